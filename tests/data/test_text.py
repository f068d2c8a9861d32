"""The text: its bytes, its splits, and what is refused."""

import subprocess

import numpy as np
import pytest

from ml_trainer_env.server import datasets
from ml_trainer_env.server.data import formats, packages
from ml_trainer_env.server.data.canon import NotCanonicalError
from ml_trainer_env.server.data.formats import SourceError
from ml_trainer_env.server.data.text import ALPHABET, BLOCK, CYCLE, ROW, TEXTS

KJV = TEXTS["kjv"]


def read(row: np.ndarray) -> str:
    return "".join(ALPHABET[place] for place in row)


def test_the_text_begins_as_the_book_does_and_its_splits_lie_in_their_order():
    text = datasets.load_text()
    assert (
        read(text.train[0])
        == ("In the beginning God created the heaven and the earth.\nAnd the ea")[:ROW]
    )
    assert [len(text.train), len(text.val), len(text.test)] == list(KJV.rows)
    assert "The grace of our Lord Jesus" in "".join(map(read, text.train[-3:]))


def test_every_row_is_in_one_split_and_the_splits_are_cut_by_position():
    letters = "abcdefghij"
    raw = "".join(letters[n % 10] * ROW for n in range(2 * CYCLE * BLOCK + 7))
    arrays = KJV.cut(raw)
    sizes = [len(arrays[key]) for key in KJV.keys]
    assert sizes == [2 * (CYCLE - 2) * BLOCK + 7, 2 * BLOCK, 2 * BLOCK]
    first = (CYCLE - 2) * BLOCK
    assert [read(row)[0] for row in arrays["val_rows"][:3]] == [
        letters[(first + n) % 10] for n in range(3)
    ]


def test_other_bytes_are_refused():
    arrays = KJV.cut("a" * ROW * 100)
    with pytest.raises(NotCanonicalError, match="train_rows are not"):
        KJV.verify(arrays)
    text = datasets.load_text()
    changed = {key: getattr(text, key.removesuffix("_rows")).copy() for key in KJV.keys}
    changed["test_rows"][5, 5] ^= 1
    with pytest.raises(NotCanonicalError, match="test_rows have SHA-256"):
        KJV.verify(changed)
    with pytest.raises(NotCanonicalError, match="characters"):
        KJV.cut("In the beginning \u00e9")


def test_the_package_is_unpacked_from_a_folder(tmp_path):
    verses = b"A title.\nGe1:1 In the beginning\nGe1:2 And the earth\n"
    packed = subprocess.run(["gzip", "-c"], input=verses, capture_output=True, check=True).stdout
    header = b"EC02Compressed Data File" + bytes(300)
    # gzip reads both formats; what `compress` writes, nothing on this machine need write.
    (tmp_path / packages.TEXT_FILE).write_bytes(header + formats.COMPRESS_MAGIC + packed[2:])
    with pytest.raises(SourceError, match="bible"):
        packages.text_in(tmp_path)  # not what its magic says
    with pytest.raises(SourceError, match="no bible"):
        packages.text_in(tmp_path / "elsewhere")
    assert formats.decode_verses(verses) == "In the beginning\nAnd the earth"


def test_an_image_set_is_no_text_and_a_text_no_image_set():
    with pytest.raises(ValueError, match="known: kjv"):
        datasets.load_text("mnist")
    with pytest.raises(ValueError, match="known: mnist, fashion_mnist, cifar10"):
        datasets.load("kjv")


def test_without_the_text_everything_that_tasks_need_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    prepared: list[str] = []

    def prepare(name: str, raw_dir: object = None) -> None:
        if name == "kjv":
            raise datasets.DatasetUnavailable("no apt here")
        prepared.append(name)

    monkeypatch.setattr(datasets, "prepare", prepare)
    assert datasets.main([]) == 0
    assert prepared == list(datasets.NAMES)
    assert datasets.main(["kjv"]) == 1
    assert "no apt here" in capsys.readouterr().err
