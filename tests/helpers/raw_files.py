"""Small random data sets and writers of every format in which raw data come."""

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from ml_trainer_env.server.data.formats import RawData

CIFAR_BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def random_raw(shape: tuple[int, int, int], train: int, test: int, seed: int = 7) -> RawData:
    rng = np.random.default_rng(seed)

    def half(rows: int) -> tuple[np.ndarray, np.ndarray]:
        images = rng.integers(0, 256, (rows, *shape), dtype=np.uint8)
        return images, rng.integers(0, 10, rows, dtype=np.uint8)

    return RawData(*half(train), *half(test))


GREY = random_raw((1, 28, 28), train=6, test=3)
COLOUR = random_raw((3, 32, 32), train=10, test=2)


def assert_same(found: RawData, expected: RawData) -> None:
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        assert getattr(found, field).dtype == np.uint8
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


def idx_files(raw: RawData) -> dict[str, bytes]:
    return {
        "train-images-idx3-ubyte": idx(raw.train_images[:, 0]),
        "train-labels-idx1-ubyte": idx(raw.train_labels),
        "t10k-images-idx3-ubyte": idx(raw.test_images[:, 0]),
        "t10k-labels-idx1-ubyte": idx(raw.test_labels),
    }


def write_idx(folder: Path, raw: RawData, packed: bool = True, dotted: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in idx_files(raw).items():
        name = name.replace("-idx", ".idx") if dotted else name
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(data) if packed else data)


def cifar_batches(raw: RawData) -> list[tuple[np.ndarray, np.ndarray]]:
    images, labels = np.split(raw.train_images, 5), np.split(raw.train_labels, 5)
    return [*zip(images, labels, strict=True), (raw.test_images, raw.test_labels)]


def python_version(raw: RawData) -> dict[str, bytes]:
    return {
        f"cifar-10-batches-py/{name}": pickle.dumps(
            {"data": images.reshape(len(images), -1), "labels": labels.tolist()}, protocol=4
        )
        for name, (images, labels) in zip(CIFAR_BATCHES, cifar_batches(raw), strict=True)
    }


def binary_version(raw: RawData) -> dict[str, bytes]:
    return {
        f"cifar-10-batches-bin/{name}.bin": np.concatenate(
            [labels[:, None], images.reshape(len(images), -1)], axis=1
        ).tobytes()
        for name, (images, labels) in zip(CIFAR_BATCHES, cifar_batches(raw), strict=True)
    }


def png_sheets(raw: RawData, mode: str = "RGB") -> dict[str, bytes]:
    files = {
        "package/train_lables.json": json.dumps(raw.train_labels.tolist()).encode(),
        "package/test_lables.json": json.dumps(raw.test_labels.tolist()).encode(),
    }
    for name, (images, _) in zip(CIFAR_BATCHES, cifar_batches(raw), strict=True):
        sheet = Image.fromarray(images.transpose(0, 2, 3, 1).reshape(-1, 1024, 3)).convert(mode)
        sheet.save(stream := io.BytesIO(), "PNG")
        files[f"package/{name}.png"] = stream.getvalue()
    return files


def mnist_pickle(raw: RawData) -> bytes:
    train = raw.train_images.reshape(-1, 784).astype(np.float32) / 256
    test = raw.test_images.reshape(-1, 784).astype(np.float32) / 256
    labels, test_labels = raw.train_labels.astype(np.int64), raw.test_labels.astype(np.int64)
    pairs = ((train[:4], labels[:4]), (train[4:], labels[4:]), (test, test_labels))
    return gzip.compress(pickle.dumps(pairs, protocol=4))


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def tarball(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
