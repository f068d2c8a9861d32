"""The canonical subsets, the cache and the preparation.

Real data come through `load()`, as users get them; everything that must break is tried on tiny
synthetic data sets whose canonical hashes the tests compute on their own.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkout import HELPERS
from tiny_data import cut_by_hand, make_raw, sha256, tiny_canon

from ml_trainer_env.server import datasets
from ml_trainer_env.server.data import canon as dataset_canon
from ml_trainer_env.server.data import sources as dataset_sources
from ml_trainer_env.server.data.formats import RawData, SourceError

# The specification's table, written down a second time on purpose.
SPEC = {
    "mnist": {
        "train": "9bb29e014dfa15ce48fa9745d9ab1a175a2db3e81b08852af395d152b4b3058e",
        "val": "2857510f346351074e333ae0fc06f0fca8c02268fa9193b942011b8eedbeb718",
        "test": "1362cd7c923db5b269e5d9b1292359b04f6a7fc1f08ac30f5d6b266f02c48a8c",
    },
    "fashion_mnist": {
        "train": "0bb9551cb096556043354a7b2a42bd72f8aef55483ab45dfdd5c8b361a33db62",
        "val": "4e4895ef4887931b3e92c8820d07539a517fcd9fe4ba9773328d170013e8536a",
        "test": "8e8b02fc2db0ff9ed2d481ff30f8bd7cc5c88205cb131d7f4a0c19448f6957c9",
    },
    "cifar10": {
        "train": "0c094ae1c06804c0f8fbda167b853ebd697062dd99df8de782f6478efe7c9858",
        "val": "e234cff7af3b59fef83b1be41702563fd64ecec672692e175d632debc119f88d",
        "test": "bbebd75360541f4ae9fccb7f5bac76cd29b8edcd2054e8797422729ea19c9426",
    },
}
PER_CLASS = {"mnist": (400, 100, 200), "fashion_mnist": (650, 150, 200), "cifar10": (800, 200, 200)}
SHAPE = {"mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


class Sources:
    """Stands in for the list of sources; counts the fetches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *outcomes: RawData | Exception) -> None:
        self.fetched = 0
        self.outcomes = outcomes
        monkeypatch.setattr(dataset_sources, "sources", self)

    def __call__(self, name: str, raw_dir: Path | None) -> list[dataset_sources.Source]:
        return [
            dataset_sources.Source(f"place {i}", lambda work, least, o=outcome: self.fetch(o))
            for i, outcome in enumerate(self.outcomes)
        ]

    def fetch(self, outcome: RawData | Exception) -> RawData:
        self.fetched += 1
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


# --- The canonical subset ---------------------------------------------------------------------


@pytest.mark.parametrize("name", datasets.NAMES)
def test_real_data_are_the_specifications_bytes(name):
    data = datasets.load(name)
    for split, per_class in zip(("train", "val", "test"), PER_CLASS[name], strict=True):
        part: datasets.Split = getattr(data, split)
        assert part.images.shape == (10 * per_class, *SHAPE[name])
        assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int64)
        assert np.bincount(part.labels).tolist() == [per_class] * 10
        labels = part.labels.astype(np.uint8)
        assert sha256(part.images, labels) == SPEC[name][split]


def test_cut_is_first_n_then_next_m_of_every_class_in_file_order():
    raw = make_raw()
    arrays = tiny_canon(raw).cut(raw)
    for split, (images, labels) in cut_by_hand(raw).items():
        np.testing.assert_array_equal(arrays[f"{split}_images"], images)
        np.testing.assert_array_equal(arrays[f"{split}_labels"], labels)


def numbered(name: str) -> RawData:
    """Official files as large as the subsets ask for, whose pixels are the number of the row."""
    most = [0, 0]
    for canon in dataset_canon.subsets(name).values():
        train, val, test = canon.per_class
        most = [max(most[0], canon.skip[0] + train + val), max(most[1], canon.skip[1] + test)]

    def half(each: int, first: int) -> tuple[np.ndarray, np.ndarray]:
        rows = first + np.arange(10 * each, dtype=np.uint32)
        images = rows.view(np.uint8).reshape(-1, 1, 2, 2)
        return images, np.random.default_rng(each).permutation(np.arange(10 * each) % 10)

    return RawData(*half(most[0], 0), *half(most[1], 1 << 20))


@pytest.mark.parametrize("name", datasets.NAMES)
def test_no_image_is_in_two_subsets_or_two_splits(name):
    raw, seen = numbered(name), []
    assert list(dataset_canon.subsets(name)) == [
        name,
        *(f"{name}/{split}" for split in ("train", "validation", "eval")),
    ]
    for canon in dataset_canon.subsets(name).values():
        arrays = canon.cut(raw)
        for split, count in zip(dataset_canon.SPLITS, canon.images, strict=True):
            rows = arrays[f"{split}_images"].reshape(-1, 4).view(np.uint32)[:, 0]
            assert len(rows) == count
            seen += rows.tolist()
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("split", ["train", "validation", "eval"])
@pytest.mark.parametrize("name", datasets.NAMES)
def test_the_families_have_as_many_images_of_each_class_to_draw_from(name, split):
    data = datasets.load(f"{name}/{split}")
    for part, per_class in ((data.train, 400), (data.val, 100), (data.test, 200)):
        assert part.images.shape == (10 * per_class, *SHAPE[name])
        assert np.bincount(part.labels).tolist() == [per_class] * 10


def test_all_subsets_lie_in_one_file_that_is_fetched_once(cache, monkeypatch):
    source = Sources(monkeypatch, make_raw())
    assert len(datasets.load("mnist/eval").train.labels) == 10
    assert len(datasets.load("mnist").train.labels) == 30
    assert source.fetched == 1


def test_cut_of_a_transposed_view_is_stored_in_c_order():
    raw = make_raw()
    images = np.asfortranarray(raw.train_images)
    view = RawData(images, raw.train_labels, raw.test_images, raw.test_labels)
    arrays = tiny_canon(raw).cut(view)
    assert all(array.flags.c_contiguous for array in arrays.values())
    tiny_canon(raw).verify(arrays)


def flip_pixel(arrays):
    arrays["val_images"][3, 0, 2, 2] ^= 1


def swap_labels(arrays):
    labels = arrays["test_labels"]
    labels[[0, 1]] = labels[[1, 0]]


def reshape(arrays):  # the same bytes, so no hash can tell
    arrays["train_images"] = arrays["train_images"].reshape(-1, 1, 5, 4)


def change_type(arrays):
    arrays["train_images"] = arrays["train_images"].view(np.int8)


def drop_a_row(arrays):
    arrays["train_images"] = arrays["train_images"][:-1]


def drop_a_split(arrays):
    del arrays["test_labels"]


@pytest.mark.parametrize(
    "spoil", [flip_pixel, swap_labels, reshape, change_type, drop_a_row, drop_a_split]
)
def test_anything_but_the_canonical_arrays_is_refused(spoil):
    raw = make_raw()
    arrays = tiny_canon(raw).cut(raw)
    tiny_canon(raw).verify(arrays)
    spoil(arrays)
    with pytest.raises(dataset_canon.NotCanonicalError):
        tiny_canon(raw).verify(arrays)


# --- Loading and caching ----------------------------------------------------------------------


def test_load_prepares_once_and_then_reads_the_cache(cache, monkeypatch):
    sources = Sources(monkeypatch, make_raw())
    first = datasets.load("mnist")
    assert datasets.load("mnist") is first, "one copy a process"
    datasets.load.cache_clear()
    again = datasets.load("mnist")
    assert sources.fetched == 1
    images, labels = cut_by_hand(make_raw())["train"]
    np.testing.assert_array_equal(again.train.images, images)
    np.testing.assert_array_equal(again.train.labels, labels)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite(path: Path) -> None:
    path.write_bytes(b"not a safetensors file" * 100)


@pytest.mark.parametrize("damage", [truncate, flip_last_byte, empty, overwrite])
def test_a_damaged_cache_file_is_fetched_again(cache, monkeypatch, capfd, damage):
    sources = Sources(monkeypatch, make_raw())
    path = datasets.prepare("mnist")
    damage(path)
    assert datasets.status()[0].state == "damaged"
    np.testing.assert_array_equal(
        datasets.load("mnist").test.images, cut_by_hand(make_raw())["test"][0]
    )
    assert sources.fetched == 2
    assert "damaged" in capfd.readouterr().err
    assert datasets.status()[0].state == "ok"


def test_wrong_bytes_are_refused_and_the_next_source_is_tried(cache, monkeypatch):
    sources = Sources(monkeypatch, make_raw(seed=1), make_raw())
    datasets.prepare("mnist")
    assert sources.fetched == 2
    assert datasets.status()[0].source == "place 1"


def test_a_source_may_fail_in_any_way(cache, monkeypatch):
    Sources(monkeypatch, SourceError("x"), EOFError(), KeyError("a"), SyntaxError("b"), make_raw())
    assert datasets.prepare("mnist").is_file()


def test_when_every_source_fails_one_error_names_each_and_nothing_is_cached(cache, monkeypatch):
    Sources(monkeypatch, make_raw(seed=1), SourceError("no route"), OSError("disk on fire"))
    with pytest.raises(datasets.DatasetUnavailable) as caught:
        datasets.load("mnist")
    message = str(caught.value)
    for part in ("place 0: train has SHA-256", "place 1: no route", "place 2: ", "disk on fire"):
        assert part in message
    for advice in ("--raw", "ML_TRAINER_RAW_DIR", "train-images-idx3-ubyte.gz", str(cache)):
        assert advice in message
    assert not [path for path in cache.iterdir() if path.suffix != ".lock"]


def test_a_cache_folder_that_cannot_be_used_is_said_so(tmp_path, monkeypatch, cache):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ML_TRAINER_DATA_DIR", str(tmp_path / "file" / "cache"))
    Sources(monkeypatch, make_raw())
    with pytest.raises(datasets.DatasetUnavailable, match="ML_TRAINER_DATA_DIR"):
        datasets.prepare("mnist")


@pytest.mark.parametrize("call", [datasets.load, datasets.prepare, datasets.cache_file])
def test_an_unknown_name_is_refused_with_the_known_ones(call):
    with pytest.raises(ValueError, match=r"'mnits'.*mnist, fashion_mnist, cifar10"):
        call("mnits")


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("ML_TRAINER_DATA_DIR", str(tmp_path))
    assert datasets.cache_dir() == tmp_path
    monkeypatch.delenv("ML_TRAINER_DATA_DIR")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert datasets.cache_dir().is_relative_to("/home/somebody")


# --- Several processes, killed processes ------------------------------------------------------

# A process of its own that prepares the tiny data set; `hook` is code that runs before.
CHILD = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
import tiny_data as t
from ml_trainer_env.server.data import canon as dataset_canon, sources as dataset_sources
from ml_trainer_env.server import datasets
def fetch(work, least):
    with open({log!r}, "a") as log: log.write("fetched\\n")
    time.sleep(0.5)
    return t.make_raw()
t.in_the_place_of_mnist(dataset_canon.CANON)
dataset_sources.sources = lambda name, raw_dir: [dataset_sources.Source("slow", fetch)]
{hook}
print("ready", flush=True)
sys.stdin.readline()
datasets.prepare("mnist")
"""


def start_child(log: Path, hook: str = "") -> subprocess.Popen[str]:
    code = CHILD.format(tests=str(HELPERS), log=str(log), hook=hook)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def prepare_in(*children: subprocess.Popen[str]) -> list[str]:
    """Let all children prepare at the same moment; what each said on stderr."""
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n", child.communicate()[1]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    return [child.communicate(timeout=60)[1] for child in children]


def test_two_processes_that_prepare_at_once_fetch_once(cache, tmp_path):
    children = [start_child(tmp_path / "log") for _ in range(2)]
    said = prepare_in(*children)
    assert [child.returncode for child in children] == [0, 0], said
    assert (tmp_path / "log").read_text() == "fetched\n"
    assert sum("another process is preparing it" in text for text in said) == 1
    assert datasets.status()[0].state == "ok"


def test_a_killed_writer_leaves_no_cache_file_and_no_lock(cache, tmp_path, monkeypatch):
    die = "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)"
    child = start_child(tmp_path / "log", hook=die)
    prepare_in(child)
    assert child.returncode == -signal.SIGKILL
    assert not datasets.cache_file("mnist").exists()
    assert list(cache.glob(".*.tmp")), "the kill came too early to test anything"
    Sources(monkeypatch, make_raw())
    datasets.prepare("mnist")  # the dead process's lock does not hang it
    assert datasets.status()[0].state == "ok"
    assert not list(cache.glob(".*.tmp")), "the half-written file is cleaned up"


def test_importing_has_no_effect(tmp_path):
    code = (
        "import sys; from ml_trainer_env.server import datasets; "
        "print([m for m in ('pooch', 'requests', 'PIL', 'rich') if m in sys.modules])"
    )
    env = os.environ | {
        "ML_TRAINER_DATA_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert not (tmp_path / "cache").exists()


# --- Command line -----------------------------------------------------------------------------


def test_command_line_prepares_and_prints_the_table(cache, monkeypatch, capfd):
    Sources(monkeypatch, make_raw())
    assert datasets.main(["mnist"]) == 0
    out = capfd.readouterr().out
    for cell in ("mnist", "30 / 20 / 10", "1x4x5", "place 0", "ok"):
        assert cell in out
    assert "cifar10" not in out, "only what was asked for"


def test_command_line_fails_when_a_data_set_is_missing(cache, monkeypatch, capfd):
    Sources(monkeypatch, SourceError("no route"))
    assert datasets.main(["mnist"]) == 1
    said = capfd.readouterr()
    assert "missing" in said.out
    assert "1. place 0: no route" in said.err


def test_command_line_refuses_an_unknown_name(capfd):
    with pytest.raises(SystemExit):
        datasets.main(["mnits"])
    assert "unknown data set 'mnits'" in capfd.readouterr().err


@pytest.mark.network
@pytest.mark.parametrize("name", datasets.NAMES)
def test_a_machine_with_a_network_prepares_from_nothing(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ML_TRAINER_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("ML_TRAINER_RAW_DIR", raising=False)
    datasets.prepare(name)
    found = {status.name: status for status in datasets.status()}[name]
    assert (found.state, found.path.parent) == ("ok", tmp_path)
