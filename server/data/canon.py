"""What the canonical subsets of each data set are, and whether given bytes are they.

No randomness: from the official training file, in file order, the first n images of every class
are train and the next m are val; from the official test file the first 200 of every class are the
hidden test. Rows stay in file order. That is the subset of the classic task. The images that come
after it are cut in the same way into three more, `mnist/train`, `mnist/validation` and
`mnist/eval`, from which the families draw: no image is in two of the four. SHA-256 sums pin the
outcome, so any source that yields them is a good source and any other bytes are refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ml_trainer_env.server.data.formats import RawData

CLASSES = 10
SPLITS = ("train", "val", "test")


class NotCanonicalError(Exception):
    """The bytes are not the canonical subset; the message says what differs."""


@dataclass(frozen=True, slots=True)
class Canon:
    """The definition of a subset of a data set."""

    image_shape: tuple[int, int, int]  # (C, H, W)
    per_class: tuple[int, int, int]  # images of each class in train, val, test
    sha256: tuple[str, str, str]  # of images.tobytes() + labels.tobytes(), both uint8, per split
    skip: tuple[int, int] = (0, 0)  # images of each class before it, in the two official files

    @property
    def images(self) -> tuple[int, int, int]:
        """Images in train, val, test."""
        train, val, test = self.per_class
        return CLASSES * train, CLASSES * val, CLASSES * test

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.images

    @property
    def shape(self) -> str:
        return "x".join(map(str, self.image_shape))

    @property
    def keys(self) -> tuple[str, ...]:
        """Of its arrays."""
        return tuple(f"{split}_{part}" for split in SPLITS for part in ("images", "labels"))

    def cut(self, raw: RawData) -> dict[str, np.ndarray]:
        """The subset as C-ordered uint8 arrays: "train_images", "train_labels", "val_images", ...

        A class with too few images gives fewer rows; `verify` refuses such a subset.
        """
        train, val, test = self.per_class
        train_rank = _rank_in_class(raw.train_labels) - self.skip[0]
        test_rank = _rank_in_class(raw.test_labels) - self.skip[1]
        in_val = (train_rank >= train) & (train_rank < train + val)
        picks = (
            (raw.train_images, raw.train_labels, (train_rank >= 0) & (train_rank < train)),
            (raw.train_images, raw.train_labels, in_val),
            (raw.test_images, raw.test_labels, (test_rank >= 0) & (test_rank < test)),
        )
        arrays = {}
        for split, (images, labels, rows) in zip(SPLITS, picks, strict=True):
            arrays[f"{split}_images"] = np.ascontiguousarray(images[rows], np.uint8)
            arrays[f"{split}_labels"] = np.ascontiguousarray(labels[rows], np.uint8)
        return arrays

    def verify(self, arrays: dict[str, np.ndarray]) -> None:
        """Raise NotCanonicalError unless the arrays are the subset: every shape, type and byte."""
        for split, count, expected in zip(SPLITS, self.images, self.sha256, strict=True):
            images, labels = arrays.get(f"{split}_images"), arrays.get(f"{split}_labels")
            if images is None or labels is None:
                raise NotCanonicalError(f"the {split} split is incomplete")
            shape = (count, *self.image_shape)
            if images.shape != shape or labels.shape != (count,):
                raise NotCanonicalError(f"{split} images are {images.shape}, not {shape}")
            if images.dtype != np.uint8 or labels.dtype != np.uint8:
                raise NotCanonicalError(f"{split} is {images.dtype} and {labels.dtype}, not uint8")
            found = digest(images, labels)
            if found != expected:
                raise NotCanonicalError(
                    f"{split} has SHA-256 {found[:12]}..., not {expected[:12]}..."
                )


CANON: dict[str, Canon] = {
    "mnist": Canon(
        image_shape=(1, 28, 28),
        per_class=(400, 100, 200),
        sha256=(
            "9bb29e014dfa15ce48fa9745d9ab1a175a2db3e81b08852af395d152b4b3058e",
            "2857510f346351074e333ae0fc06f0fca8c02268fa9193b942011b8eedbeb718",
            "1362cd7c923db5b269e5d9b1292359b04f6a7fc1f08ac30f5d6b266f02c48a8c",
        ),
    ),
    "fashion_mnist": Canon(
        image_shape=(1, 28, 28),
        per_class=(650, 150, 200),
        sha256=(
            "0bb9551cb096556043354a7b2a42bd72f8aef55483ab45dfdd5c8b361a33db62",
            "4e4895ef4887931b3e92c8820d07539a517fcd9fe4ba9773328d170013e8536a",
            "8e8b02fc2db0ff9ed2d481ff30f8bd7cc5c88205cb131d7f4a0c19448f6957c9",
        ),
    ),
    "cifar10": Canon(
        image_shape=(3, 32, 32),
        per_class=(800, 200, 200),
        sha256=(
            "0c094ae1c06804c0f8fbda167b853ebd697062dd99df8de782f6478efe7c9858",
            "e234cff7af3b59fef83b1be41702563fd64ecec672692e175d632debc119f88d",
            "bbebd75360541f4ae9fccb7f5bac76cd29b8edcd2054e8797422729ea19c9426",
        ),
    ),
}


# What the families draw from: of each class, what comes after the classic subset, and so on.
POOLS = ("train", "validation", "eval")
PER_POOL = (400, 100, 200)
POOL_SHA256: dict[str, tuple[tuple[str, str, str], ...]] = {
    "mnist": (
        (
            "1f108cf5ae5d67210998c329acc81536c4cbc0e2aa933c20cf735e14ab2b7b08",
            "4a36df105ae71bd664e4a2500f567d9e23fdc6013eefeaad246db211e98c5345",
            "01908addd39e1d93e0b0b2a4b1228774992e471f867ca7dbc4f44a61f090b924",
        ),
        (
            "20f85638de1860e5f6511b6106c5bbfa45fedeae9bffa1b856ac03688f608df7",
            "1f5c7d8f0548cb96e5ba98060f8c28afc299a2f3549a86da367ac16dcd2c7746",
            "6c61ac95c81d9eb557c82f813d918b132b6299df9d8e9bdfc91b1ba6ec2489b0",
        ),
        (
            "939104f40d45222ec2cdef25c90de35dc4136c58727b6b0c8b519f290351bb71",
            "101d6a4f32b5a6cb30209d262b7dbb6f4442b72e3adfa4e8624ce3610f385bdc",
            "d446fb0f04b564e0f2d952710b8cdd30207df512281b8f88e6007c5915b2ad57",
        ),
    ),
    "fashion_mnist": (
        (
            "758661e2bf44b4da31568925fd7bb2cb775281fba1250b9eaa31ad90da40125d",
            "e7e984cacde0f77cfea6cd6a97f6eba0360bc74f22668edd4e76e6607030e9b5",
            "d07f7651f264e9abd5a4c09b6be6e30da74a544d20b58bcec81684faec86fdfa",
        ),
        (
            "de58514337dd5df4266242158fb29276753302237cd6dade38ba54a5902de8cd",
            "f3e53d8ca812691d6f67d6df9d7132bc93642d75c7487436d21d12a1703535f4",
            "ce0f1b6d0e101f7d12d5f7fee4e25c465697ba3aece02f36a829c10a51f8af3e",
        ),
        (
            "fabfe185b1df78c3b2ae2bee128780d163377be3dd2f70f316c616f7040e6145",
            "47f13835996c8afdab9844b49bcd516c478e735d3d9e7474367bfb8641d6acfd",
            "ffb1fa7dac8f941aba65b570631df4cc62fce7bc4432c873ba69a7161a8bd32f",
        ),
    ),
    "cifar10": (
        (
            "a13784e7b8a76c8beeecb11062ca1451c5fd8d27ce508206f5f217afb264f781",
            "2f6632c7bfa346232ce312f706fabc892e93a3d3ced8e275e826a26a4da4f454",
            "b0fb3ce48120744789456b8d146d676acae43c1cf9d601938a063c0e350061af",
        ),
        (
            "a54f1d4b7d976654e8c728c505eb5847289b2c7b93ee17d8c8e516e422980cc5",
            "9f005378b36ffcbe7654ee67f91242236e1bbb034a066ea73d280c7b258d72a4",
            "942a1a4e87841908ecd1c93b58a3661a0152efbfce8f8ffbd7ea5fbc8a9655ff",
        ),
        (
            "f3eceb0c07db7dba0b6b0cd7a7aaae1ac9fb0c6ccd7083d437b98943b4617736",
            "d2aa3e306b222fb1f5976a478f74017e6d18f502e7522d18470e7bda3ebbe0d1",
            "8684d28ba50c204cbef8d5e7d34f1f73964d4cc5a25c6b2a12f7b0132c9ae2a6",
        ),
    ),
}


def _pool(classic: Canon, number: int, sha256: tuple[str, str, str]) -> Canon:
    """Pool `number` of a data set, from 0."""
    train, val, test = classic.per_class
    more_train, more_val, more_test = PER_POOL
    skip = (train + val + number * (more_train + more_val), test + number * more_test)
    return Canon(classic.image_shape, PER_POOL, sha256, skip)


CANON |= {
    f"{name}/{pool}": _pool(CANON[name], number, sha256)
    for name, sums in POOL_SHA256.items()
    for number, (pool, sha256) in enumerate(zip(POOLS, sums, strict=True))
}


def subsets(name: str) -> dict[str, Canon]:
    """All that are cut from the official files of data set `name`, the classic one first."""
    return {key: canon for key, canon in CANON.items() if key.partition("/")[0] == name}


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """For each row, how many earlier rows have its label."""
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rank[rows] = np.arange(len(rows))
    return rank


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 of the C-ordered bytes of `images`, then of `labels`, in hex."""
    sha = hashlib.sha256(np.ascontiguousarray(images).data)
    sha.update(np.ascontiguousarray(labels).data)
    return sha.hexdigest()
