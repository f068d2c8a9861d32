"""A data set in a nameless file that processes map into memory: one copy for all of them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import IO, NamedTuple

import torch
from torch import Tensor

from ml_trainer_env.server.engine.resident import Resident, Rows
from ml_trainer_env.server.runtime.nameless import nameless_file

SPLITS = ("train", "val", "test", "probe")


class Place(NamedTuple):
    """Where a tensor lies in the file. Plain values, to be sent as JSON."""

    dtype: str
    shape: Sequence[int]
    strides: Sequence[int]  # channels-last stays channels-last
    offset: int  # bytes, a whole number of pages


class SharedData(NamedTuple):
    """The file goes when its last user has closed it, however the processes ended."""

    file: IO[bytes]
    places: list[Place]


def share(data: Resident) -> SharedData:
    """Write `data` into a new file."""
    file = nameless_file()
    places: list[Place] = []
    for split in SPLITS:
        rows: Rows = getattr(data, split)
        for tensor in (rows.images, rows.labels):
            offset = -(-file.tell() // mmap.PAGESIZE) * mmap.PAGESIZE
            dense = tensor.clone()
            file.seek(offset)
            file.write(dense.as_strided((dense.numel(),), (1,)).numpy().data)
            dtype = str(dense.dtype).removeprefix("torch.")
            places.append(Place(dtype, tuple(dense.shape), dense.stride(), offset))
    file.flush()
    return SharedData(file, places)


def attach(descriptor: int, places: Sequence[Place]) -> Resident:
    """The data set in the file, mapped: its pages are those of all the others who mapped it."""
    # A private mapping may be written to, as PyTorch demands, but nobody writes.
    memory = mmap.mmap(descriptor, os.fstat(descriptor).st_size, access=mmap.ACCESS_COPY)
    tensors = [_tensor(memory, place) for place in places]
    splits = {
        split: Rows(images, labels)
        for split, images, labels in zip(SPLITS, tensors[::2], tensors[1::2], strict=True)
    }
    return Resident(**splits, train_labels=splits["train"].labels.numpy())


def _tensor(memory: mmap.mmap, place: Place) -> Tensor:
    dtype: torch.dtype = getattr(torch, place.dtype)
    count = torch.Size(place.shape).numel()
    flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=place.offset)
    return flat.as_strided(tuple(place.shape), tuple(place.strides))
