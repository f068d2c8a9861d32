"""What the canonical subset of each data set is, and whether given bytes are it.

No randomness: from the official training file, in file order, the first n images of every class
are train and the next m are val; from the official test file the first 200 of every class are the
hidden test. Rows stay in file order. SHA-256 sums pin the outcome, so any source that yields them
is a good source and any other bytes are refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ml_trainer_env.server.data.formats import RawData

CLASSES = 10
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Canon:
    """The definition of one data set's subset."""

    image_shape: tuple[int, int, int]  # (C, H, W)
    per_class: tuple[int, int, int]  # images of each class in train, val, test
    sha256: tuple[str, str, str]  # of images.tobytes() + labels.tobytes(), both uint8, per split

    @property
    def images(self) -> tuple[int, int, int]:
        """Images in train, val, test."""
        train, val, test = self.per_class
        return CLASSES * train, CLASSES * val, CLASSES * test


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


class NotCanonicalError(Exception):
    """The bytes are not the canonical subset; the message says what differs."""


def cut(raw: RawData, canon: Canon) -> dict[str, np.ndarray]:
    """The subset as C-ordered uint8 arrays: "train_images", "train_labels", "val_images", ...

    A class with too few images gives fewer rows; `verify` refuses such a subset.
    """
    train, val, test = canon.per_class
    train_rank, test_rank = (_rank_in_class(raw.train_labels), _rank_in_class(raw.test_labels))
    in_val = (train_rank >= train) & (train_rank < train + val)
    picks = (
        (raw.train_images, raw.train_labels, train_rank < train),
        (raw.train_images, raw.train_labels, in_val),
        (raw.test_images, raw.test_labels, test_rank < test),
    )
    arrays = {}
    for split, (images, labels, rows) in zip(SPLITS, picks, strict=True):
        arrays[f"{split}_images"] = np.ascontiguousarray(images[rows], np.uint8)
        arrays[f"{split}_labels"] = np.ascontiguousarray(labels[rows], np.uint8)
    return arrays


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """For each row, how many earlier rows have its label."""
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rank[rows] = np.arange(len(rows))
    return rank


def verify(arrays: dict[str, np.ndarray], canon: Canon) -> None:
    """Raise NotCanonicalError unless the arrays are the subset: every shape, type and byte."""
    for split, count, expected in zip(SPLITS, canon.images, canon.sha256, strict=True):
        images, labels = arrays.get(f"{split}_images"), arrays.get(f"{split}_labels")
        if images is None or labels is None:
            raise NotCanonicalError(f"the {split} split is incomplete")
        shape = (count, *canon.image_shape)
        if images.shape != shape or labels.shape != (count,):
            raise NotCanonicalError(f"{split} images are {images.shape}, not {shape}")
        if images.dtype != np.uint8 or labels.dtype != np.uint8:
            raise NotCanonicalError(f"{split} is {images.dtype} and {labels.dtype}, not uint8")
        found = digest(images, labels)
        if found != expected:
            raise NotCanonicalError(f"{split} has SHA-256 {found[:12]}..., not {expected[:12]}...")


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 of the C-ordered bytes of `images`, then of `labels`, in hex."""
    sha = hashlib.sha256(np.ascontiguousarray(images).data)
    sha.update(np.ascontiguousarray(labels).data)
    return sha.hexdigest()
