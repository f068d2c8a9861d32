"""The same networks trained in the usual way: what the engine is compared with.

Stock modules, a DataLoader over a Dataset with per-sample transforms, unfused Adam, torch's default
threads. As a program it serves the benchmark from a process of its own, so that no setting of one
side reaches the other: a request on standard input and an answer on standard output, one JSON
object a line.

    {"task": "easy_mnist", "augmentation": 0.0, "epochs": 2, "limit": 1.5}
    {"seconds": [0.31, 0.3], "val_accuracy": [0.88, 0.9], "threads": 2, "collapsed": false}

A task's training goes on where its last request left it. An epoch that takes more than `limit`
seconds (null: none) is given up: `collapsed`, with the epochs that were finished before it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from ml_trainer_env.server import datasets, models_nn
from ml_trainer_env.server.engine.augment import draw_maps
from ml_trainer_env.server.models_nn import CLASSES, NETWORKS, ConvNet, Mlp, Network
from ml_trainer_env.server.tasks import TASKS, Task

LEARNING_RATE = 0.001
BATCH = 64
EVALUATION_BATCH = 256  # larger than in training, as is usual: nothing is kept for a backward pass


# --- The network --------------------------------------------------------------------------------


def build(network: Network) -> nn.Sequential:
    """The network's description as stock modules."""
    if isinstance(network, Mlp):
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(network.inputs, network.hidden),
            nn.ReLU(),
            nn.Linear(network.hidden, CLASSES),
        )
    if not isinstance(network, ConvNet):
        raise TypeError(f"no modules for {network!r}")
    layers: list[nn.Module] = []
    inputs = network.channels
    for b in network.blocks:
        layers.append(nn.Conv2d(inputs, b.channels, b.kernel, b.stride, b.padding, bias=False))
        if b.pool > 1:
            layers.append(nn.MaxPool2d(b.pool))
        layers += [nn.BatchNorm2d(b.channels), nn.ReLU()]
        inputs = b.channels
    layers += [
        nn.Flatten(),
        nn.Linear(network.features, network.hidden, bias=False),
        nn.BatchNorm1d(network.hidden),
        nn.ReLU(),
        nn.Linear(network.hidden, CLASSES),
    ]
    return nn.Sequential(*layers)


def load(module: nn.Module, network: Network, weights: Tensor, statistics: Tensor) -> None:
    """Give `module` the engine's weights (P,) and batch-norm statistics (Q,).

    The engine flattens images with the channels last, stock modules with the channels first.
    """
    views = models_nn.unflatten(network.parameters, weights)
    if isinstance(network, ConvNet):
        flattening = 3 * len(network.blocks)  # after a weight, a gain and a bias for each block
        channels = network.blocks[-1].channels
        side = math.isqrt(network.features // channels)
        by_place = views[flattening].view(-1, side, side, channels)
        views[flattening] = by_place.permute(0, 3, 1, 2).flatten(1)
    with torch.no_grad():
        for mine, theirs in zip(module.parameters(), views, strict=True):
            mine.copy_(theirs)
        norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        running = iter(statistics.split([m.num_features for m in norms for _ in range(2)]))
        for norm in norms:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(next(running))
            norm.running_var.copy_(next(running))


# --- The data -----------------------------------------------------------------------------------


class Images(Dataset[tuple[Tensor, int]]):
    """uint8 images and what is done to each one that is taken."""

    def __init__(self, split: datasets.Split, mean: Tensor, std: Tensor) -> None:
        self._pixels = split.images.transpose(0, 2, 3, 1)  # as image files are decoded
        self._labels = split.labels.tolist()
        self._mean, self._std = mean, std  # each (C, 1, 1)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(self._pixels[index]).permute(2, 0, 1).contiguous().float().div(255)
        return image.sub_(self._mean).div_(self._std), self._labels[index]


class AugmentedImages(Images):
    """The engine's augmentation, drawn and done image by image."""

    def __init__(
        self, split: datasets.Split, mean: Tensor, std: Tensor, dataset: str, strength: float
    ) -> None:
        super().__init__(split, mean, std)
        self._rng = np.random.default_rng(0)
        self._dataset, self._strength = dataset, strength

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        one = np.array([label])
        (matrix,) = draw_maps(self._rng, one, self._dataset, image.shape[-1], self._strength)
        affine = matrix.view(1, 2, 3)
        grid = F.affine_grid(affine, [1, *image.shape], align_corners=False)
        moved = F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)
        return moved[0], label


# --- The loop -----------------------------------------------------------------------------------


class TooSlowError(Exception):
    """The epoch took longer than it may."""


class Training:
    """One task's training from the engine's initial weights of seed 0."""

    def __init__(self, task: Task, augmentation: float) -> None:
        network = NETWORKS[task.workload.network]
        self.model = build(network)
        initial = models_nn.initial_weights(network, torch.Generator().manual_seed(0))
        load(self.model, network, initial, models_nn.initial_statistics(network))
        self.optimizer = torch.optim.Adam(self.model.parameters(), LEARNING_RATE, fused=False)
        data = datasets.load(task.workload.dataset)
        pixels = torch.from_numpy(data.train.images).float().div(255)
        mean, std = pixels.mean((0, 2, 3)).view(-1, 1, 1), pixels.std((0, 2, 3)).view(-1, 1, 1)
        plain = Images(data.train, mean, std)
        train = (
            AugmentedImages(data.train, mean, std, task.workload.dataset, augmentation)
            if augmentation
            else plain
        )
        probe = Subset(plain, _probe(data))
        # The engine trains full batches only, so both do the same work.
        self.train = DataLoader(train, BATCH, shuffle=True, drop_last=True)
        self.val = DataLoader(Images(data.val, mean, std), EVALUATION_BATCH)
        self.probe = DataLoader(probe, EVALUATION_BATCH)

    def epoch(self, limit: float) -> float:
        """Train one epoch and evaluate on val and the train probe; the val accuracy.

        Raises `TooSlowError` at the first training step after `limit` seconds.
        """
        deadline = time.perf_counter() + limit
        self.model.train()
        total_loss, correct = 0.0, 0
        for images, labels in self.train:
            if time.perf_counter() > deadline:
                raise TooSlowError
            self.optimizer.zero_grad()
            logits = self.model(images)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            self.optimizer.step()
            total_loss += loss.item() * len(labels)
            correct += int((logits.argmax(1) == labels).sum().item())
        self._evaluate(self.probe)
        return self._evaluate(self.val)

    def _evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        self.model.eval()
        total_loss, correct, count = 0.0, 0, 0
        with torch.no_grad():
            for images, labels in batches:
                logits = self.model(images)
                total_loss += F.cross_entropy(logits, labels, reduction="sum").item()
                correct += int((logits.argmax(1) == labels).sum().item())
                count += len(labels)
        return correct / count


def _probe(data: datasets.Dataset) -> list[int]:
    """The engine's probe: the first images of every class, as many as in val."""
    labels, per_class = torch.from_numpy(data.train.labels), len(data.val.labels) // CLASSES
    firsts = [(labels == c).nonzero()[:per_class, 0] for c in range(CLASSES)]
    return torch.cat(firsts).sort().values.tolist()


def main() -> None:
    trainings: dict[tuple[str, float], Training] = {}
    for line in sys.stdin:
        request = json.loads(line)
        key = request["task"], request["augmentation"]
        if key not in trainings:
            trainings[key] = Training(TASKS[key[0]], key[1])
        limit = math.inf if request["limit"] is None else request["limit"]
        print(json.dumps(_train(trainings[key], request["epochs"], limit)), flush=True)


def _train(training: Training, epochs: int, limit: float) -> dict[str, Any]:
    seconds: list[float] = []
    accuracies: list[float] = []
    try:
        for _ in range(epochs):
            begin = time.perf_counter()
            accuracies.append(training.epoch(limit))
            seconds.append(time.perf_counter() - begin)
    except TooSlowError:
        pass
    return {
        "seconds": seconds,
        "val_accuracy": accuracies,
        "threads": torch.get_num_threads(),
        "collapsed": len(seconds) < epochs,
    }


if __name__ == "__main__":
    main()
