"""Decode the raw files of the data sets, whatever they are packed in.

Every decoder returns the official file's contents as they are: uint8 pixels in file order,
nothing scaled, shuffled or dropped. A file that is not what it should be raises; nothing is
guessed. Decoding never runs code from a file: pickles are read by an unpickler that knows NumPy
arrays and nothing else.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import pickle
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

_IDX_UBYTE = 0x08  # the element type in an IDX header; the data sets know no other
_CIFAR_PIXELS = 3 * 32 * 32
_CIFAR_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_CIFAR_TEST = "test_batch"
_CIFAR_LABELS = ("train_lables.json", "test_lables.json")  # so spelt; of the PNG sheets
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class RawData:
    """A whole official data set in file order."""

    train_images: np.ndarray  # uint8 (N, C, H, W)
    train_labels: np.ndarray  # uint8 (N,)
    test_images: np.ndarray  # uint8 (M, C, H, W)
    test_labels: np.ndarray  # uint8 (M,)


class SourceError(Exception):
    """A source cannot give the data; the message says why, in words for the user."""


# --- The text -------------------------------------------------------------------------------

COMPRESS_MAGIC = b"\x1f\x9d"  # of the Unix program `compress`


def decode_verses(lines: bytes) -> str:
    """A verse a line, without its number; the first line is a title."""
    return "\n".join(line.partition(" ")[2] for line in lines.decode("ascii").splitlines()[1:])


# --- IDX: MNIST and FashionMNIST ------------------------------------------------------------


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an IDX file, gzipped or not. Raises ValueError when it is not one."""
    data = path.read_bytes()
    if data.startswith(_GZIP_MAGIC):
        data = gzip.decompress(data)
    if len(data) < 4 or data[:3] != bytes((0, 0, _IDX_UBYTE)):
        raise ValueError(f"{path.name} is not an IDX file of unsigned bytes")
    start = 4 + 4 * data[3]
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], ">u4"))
    if len(data) != start + math.prod(shape):
        raise ValueError(f"{path.name} holds {len(data) - start} bytes, not those of {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def find_idx_files(folder: Path) -> list[Path] | None:
    """Train images, train labels, test images, test labels in `folder`; None if one is missing.

    Accepts both spellings in use ("-idx3-" and ".idx3-"), with and without ".gz".
    """
    found = []
    for stem, kind in (("train", 3), ("train", 1), ("t10k", 3), ("t10k", 1)):
        what = "images" if kind == 3 else "labels"
        names = (f"{stem}-{what}{dot}idx{kind}-ubyte{gz}" for dot in "-." for gz in (".gz", ""))
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is None:
            return None
        found.append(path)
    return found


def decode_idx_files(files: list[Path]) -> RawData:
    """The data set in the four files that `find_idx_files` found."""
    train_images, train_labels, test_images, test_labels = map(read_idx, files)
    return RawData(train_images[:, None], train_labels, test_images[:, None], test_labels)


# --- Pickles: MNIST as one gzipped file, CIFAR-10's Python version --------------------------

_RECONSTRUCT = np.empty(0).__reduce__()[0]  # numpy's own; its home module moved in NumPy 2
_ALLOWED_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ALLOWED_GLOBALS[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"refused: the file asks for {module_name}.{global_name}, not for an array"
            ) from None


def unpickle_arrays(stream: io.BufferedIOBase) -> Any:
    """Unpickle plain containers of NumPy arrays; any other global is refused.

    Raises pickle.UnpicklingError before anything of a hostile pickle is called. Strings that
    Python 2 wrote come back as latin-1 text, which is what NumPy's own state needs.
    """
    return _ArrayUnpickler(stream, encoding="latin1").load()


def decode_mnist_pickle(stream: IO[bytes]) -> RawData:
    """MNIST from `mnist.pkl.gz`: three (images, labels) pairs of 50,000, 10,000 and 10,000.

    The first two, joined, are the official training file. Pixels are float32 = byte / 256, which
    is exact, so the bytes come back exactly.
    """
    with gzip.GzipFile(fileobj=stream) as plain:
        pairs = unpickle_arrays(plain)
    images = [np.rint(p[0] * 256).astype(np.uint8).reshape(-1, 1, 28, 28) for p in pairs]
    labels = [np.asarray(p[1]).astype(np.uint8) for p in pairs]
    return RawData(np.concatenate(images[:2]), np.concatenate(labels[:2]), images[2], labels[2])


# --- CIFAR-10: Python batches, binary batches, PNG sheets -----------------------------------


def is_cifar_file(name: str) -> bool:
    """Whether a file called `name` is one that the CIFAR-10 decoders want."""
    stem = Path(name).stem  # without ".bin" or ".png"
    return stem in _CIFAR_TRAIN or stem == _CIFAR_TEST or name in _CIFAR_LABELS


def cifar_files_in_archive(path: Path) -> dict[str, bytes]:
    """The CIFAR-10 files in a .tar.gz by their bare names. Reads members, extracts nothing."""
    files = {}
    with tarfile.open(path, "r|gz") as archive:  # one pass: seeking back would inflate it anew
        for member in archive:
            name = Path(member.name).name
            if member.isfile() and is_cifar_file(name) and (stream := archive.extractfile(member)):
                files[name] = stream.read()
    return files


def decode_cifar(files: Mapping[str, bytes]) -> RawData:
    """CIFAR-10 from the official files by bare name, of the Python or the binary version.

    Raises SourceError when one is missing.
    """
    binary = f"{_CIFAR_TEST}.bin" in files
    batches = _batches(files, ".bin" if binary else "")
    *train, test = map(_binary_batch if binary else _pickle_batch, batches)
    images, labels = zip(*train, strict=True)
    return RawData(np.concatenate(images), np.concatenate(labels), *test)


def decode_cifar_sheets(files: Mapping[str, bytes]) -> RawData:
    """CIFAR-10 from PNG sheets of 10,000 images each, labels in JSON lists, by bare file name.

    Raises SourceError when one is missing.
    """
    *train, test = map(_png_sheet, _batches(files, ".png"))
    train_labels, test_labels = (
        np.array(json.loads(_member(files, name)), np.uint8) for name in _CIFAR_LABELS
    )
    return RawData(np.concatenate(train), train_labels, test, test_labels)


def _batches(files: Mapping[str, bytes], suffix: str) -> list[bytes]:
    return [_member(files, f"{stem}{suffix}") for stem in (*_CIFAR_TRAIN, _CIFAR_TEST)]


def _member(files: Mapping[str, bytes], name: str) -> bytes:
    try:
        return files[name]
    except KeyError:
        raise SourceError(f"{name} is missing") from None


def _pickle_batch(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = unpickle_arrays(io.BytesIO(data))
    pixels = np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32)
    return pixels, np.asarray(batch["labels"], np.uint8)


def _binary_batch(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + _CIFAR_PIXELS)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def _png_sheet(data: bytes) -> np.ndarray:
    """The images of one sheet: an image a row, its 1,024 RGB pixels in reading order."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("PNG",)) as sheet:
        if sheet.width != 32 * 32 or sheet.mode not in ("RGB", "RGBA"):
            raise ValueError(f"a {sheet.mode} sheet {sheet.width} pixels wide, not RGB and 1024")
        pixels = np.asarray(sheet)[..., :3]
    return pixels.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
