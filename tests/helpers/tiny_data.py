"""A tiny data set in MNIST's place, whose canonical hashes are computed here, independently."""

import hashlib

import numpy as np

from ml_trainer_env.server.data import canon as dataset_canon
from ml_trainer_env.server.data.formats import RawData

TINY = (3, 2, 1)  # images of each class in the synthetic train, val, test


def sha256(images: np.ndarray, labels: np.ndarray) -> str:
    return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()


def make_raw(seed: int = 0) -> RawData:
    """A tiny "official" data set: unsorted classes, more rows of each than the subset takes."""
    rng = np.random.default_rng(seed)

    def half(each: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), each))
        return rng.integers(0, 256, (len(labels), 1, 4, 5), dtype=np.uint8), labels

    return RawData(*half(7), *half(4))


def cut_by_hand(raw: RawData) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The specification's sentence as a plain loop over rows, independent of the product's."""
    rows: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    seen = [0] * 10
    for row, label in enumerate(raw.train_labels):
        if seen[label] < TINY[0]:
            rows["train"].append(row)
        elif seen[label] < TINY[0] + TINY[1]:
            rows["val"].append(row)
        seen[label] += 1
    seen = [0] * 10
    for row, label in enumerate(raw.test_labels):
        if seen[label] < TINY[2]:
            rows["test"].append(row)
        seen[label] += 1
    return {
        "train": (raw.train_images[rows["train"]], raw.train_labels[rows["train"]]),
        "val": (raw.train_images[rows["val"]], raw.train_labels[rows["val"]]),
        "test": (raw.test_images[rows["test"]], raw.test_labels[rows["test"]]),
    }


def tiny_canon(raw: RawData) -> dataset_canon.Canon:
    train, val, test = (sha256(*split) for split in cut_by_hand(raw).values())
    return dataset_canon.Canon((1, 4, 5), TINY, (train, val, test))


def tiny_pool(raw: RawData) -> dataset_canon.Canon:
    """One image of each class in each split: those that come first after the tiny canon's."""

    def nth(labels: np.ndarray, n: int) -> list[int]:
        return sorted(int(np.flatnonzero(labels == label)[n]) for label in range(10))

    after, test = TINY[0] + TINY[1], nth(raw.test_labels, TINY[2])
    rows = [nth(raw.train_labels, after), nth(raw.train_labels, after + 1)]
    train, val = (sha256(raw.train_images[r], raw.train_labels[r]) for r in rows)
    hidden = sha256(raw.test_images[test], raw.test_labels[test])
    return dataset_canon.Canon((1, 4, 5), (1, 1, 1), (train, val, hidden), (after, TINY[2]))


def in_the_place_of_mnist(canons: dict[str, dataset_canon.Canon]) -> None:
    """The tiny data set, with one pool."""
    for name in dataset_canon.subsets("mnist"):
        del canons[name]
    canons |= {"mnist": tiny_canon(make_raw()), "mnist/eval": tiny_pool(make_raw())}
