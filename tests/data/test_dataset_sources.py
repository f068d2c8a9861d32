"""The raw files' formats, and the user's own folder of them."""

import gzip
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_files import (
    COLOUR,
    GREY,
    assert_same,
    binary_version,
    idx,
    mnist_pickle,
    png_sheets,
    python_version,
    random_raw,
    tarball,
    write_files,
    write_idx,
)

from ml_trainer_env.server import datasets
from ml_trainer_env.server.data import formats
from ml_trainer_env.server.data import sources as dataset_sources
from ml_trainer_env.server.data.formats import RawData, SourceError

# --- Formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0",
        idx(GREY.train_labels)[:-1],
        idx(GREY.train_labels) + b"\0",
        b"\0\0\x0d" + idx(GREY.train_labels)[3:],  # floats
        b"<html>404 not found</html>",
    ],
)
def test_what_is_not_an_idx_file_of_bytes_is_refused(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ValueError, match="file"):
        formats.read_idx(tmp_path / "file")


def test_every_pixel_value_survives_the_mnist_pickle():
    pixels = np.arange(9 * 784, dtype=np.int64).astype(np.uint8).reshape(9, 1, 28, 28)
    assert len(np.unique(pixels)) == 256
    raw = RawData(pixels[:6], GREY.train_labels, pixels[6:], GREY.test_labels)
    assert_same(formats.decode_mnist_pickle(io.BytesIO(mnist_pickle(raw))), raw)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_png_sheets_are_lossless(mode):
    files = {Path(name).name: data for name, data in png_sheets(COLOUR, mode).items()}
    assert_same(formats.decode_cifar_sheets(files), COLOUR)


def test_a_full_sheet_stays_below_pillows_bomb_limit():
    assert Image.MAX_IMAGE_PIXELS is not None
    assert Image.MAX_IMAGE_PIXELS > 10_000 * 1_024


def test_a_missing_batch_is_named():
    files = {Path(name).name: data for name, data in python_version(COLOUR).items()}
    del files["data_batch_4"]
    with pytest.raises(SourceError, match="data_batch_4 is missing"):
        formats.decode_cifar(files)


class Hostile:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: np.array([x, None]), lambda x: {"data": x}]
)
def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(tmp_path, protocol, wrap):
    mark = tmp_path / "owned"
    for payload in (
        Hostile(os.system, f"touch {mark}"),
        Hostile(eval, f"open({str(mark)!r}, 'w')"),
        Hostile(np.fromfile, "/etc/passwd"),
    ):
        data = pickle.dumps(wrap(payload), protocol)
        with pytest.raises(pickle.UnpicklingError, match="refused"):
            formats.unpickle_arrays(io.BytesIO(data))
        with pytest.raises(pickle.UnpicklingError, match="refused"):
            formats.decode_mnist_pickle(io.BytesIO(gzip.compress(data)))
    assert not mark.exists()


# As Python 2 and the NumPy of that time wrote arrays, which is what the real files contain.
PYTHON_2_PICKLE = (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b"
    b"\x87Rq\x03(K\x01K\x03\x85cnumpy\ndtype\nq\x04U\x02u1K\x00K\x01\x87Rq\x05(K\x03U\x01|NNNJ"
    b"\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x03\x07\xc8\xfftb."
)


def test_python_2_arrays_are_read():
    array = formats.unpickle_arrays(io.BytesIO(PYTHON_2_PICKLE))
    assert (array.dtype, array.tolist()) == (np.uint8, [7, 200, 255])


# --- The user's folder ------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dotted", [True, False])
@pytest.mark.parametrize("sub", [".", "fashion_mnist", "FashionMNIST/raw"])
def test_idx_files_are_found_in_a_folder(tmp_path, sub, packed, dotted):
    write_idx(tmp_path / sub, GREY, packed, dotted)
    assert_same(dataset_sources.from_folder("fashion_mnist", tmp_path), GREY)


def test_a_folder_named_after_the_data_set_comes_before_the_bare_one(tmp_path):
    other = random_raw((1, 28, 28), train=6, test=3, seed=8)
    write_idx(tmp_path, other)
    write_idx(tmp_path / "FashionMNIST" / "raw", GREY)
    assert_same(dataset_sources.from_folder("fashion_mnist", tmp_path), GREY)
    assert_same(dataset_sources.from_folder("mnist", tmp_path), other)


@pytest.mark.parametrize("version", [python_version, binary_version])
@pytest.mark.parametrize("form", ["archive", "folder", "bare"])
def test_both_official_versions_of_cifar_are_found_in_a_folder(tmp_path, version, form):
    files = version(COLOUR)
    if form == "archive":
        kind = "python" if version is python_version else "binary"
        tarball(tmp_path / f"cifar-10-{kind}.tar.gz", files | {"cifar-10/readme.html": b"x"})
    else:
        bare = form == "bare"
        write_files(tmp_path, {Path(n).name if bare else n: d for n, d in files.items()})
    assert_same(dataset_sources.from_folder("cifar10", tmp_path), COLOUR)


@pytest.mark.parametrize("name", datasets.NAMES)
def test_a_folder_without_the_files_says_what_it_wants(tmp_path, name):
    with pytest.raises(SourceError, match=next(iter(dataset_sources.OFFICIAL[name].md5))):
        dataset_sources.from_folder(name, tmp_path)
    with pytest.raises(SourceError, match="is not a folder"):
        dataset_sources.from_folder(name, tmp_path / "absent")


@pytest.mark.parametrize("name", datasets.NAMES)
def test_the_users_folder_is_tried_first_then_official_files_then_packages(tmp_path, name):
    titles = [source.title for source in dataset_sources.sources(name, tmp_path)]
    assert titles[:2] == [f"raw folder {tmp_path}", "official files"]
    assert titles[2:]
    assert [s.title for s in dataset_sources.sources(name, None)] == titles[1:]


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_prepare_reads_the_users_folder(tmp_path, monkeypatch, how):
    asked = []

    def sources(name, raw_dir):
        asked.append(raw_dir)
        return []

    monkeypatch.setattr(dataset_sources, "sources", sources)
    monkeypatch.setenv("ML_TRAINER_DATA_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("ML_TRAINER_RAW_DIR", raising=False)
    if how == "environment":
        monkeypatch.setenv("ML_TRAINER_RAW_DIR", str(tmp_path))
    with pytest.raises(datasets.DatasetUnavailable):
        datasets.prepare("mnist", raw_dir=tmp_path if how == "argument" else None)
    assert asked == [tmp_path]
