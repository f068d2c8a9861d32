"""What the engine computes: the same training as a plain PyTorch loop, and what follows an epoch.

The plain loop below is written the way PyTorch's tutorials are, on a slice of the real data. It
takes the engine's initial weights and its batches; everything else is its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_args

import pytest
import slices
import torch
import torch.nn.functional as F
from slices import every_task
from torch import Tensor, nn

from ml_trainer_env.models import EpochPlan, Optimizer
from ml_trainer_env.server import models_nn, trainer
from ml_trainer_env.server.engine import varied
from ml_trainer_env.server.engine.inputs import EpochInputs
from ml_trainer_env.server.engine.resident import Resident, Rows
from ml_trainer_env.server.models_nn import NETWORKS, ConvNet, Mlp, unflatten
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.server.trainer import Checkpoint, TrainingState, advance

BATCH, TRAIN, HELD_OUT = 64, 330, 130  # images: the last batch of the slice is cut off
RATES: dict[Optimizer, float] = {"sgd": 0.05, "adam": 0.003, "adamw": 0.003}

SMALL_RATES: dict[Optimizer, float] = {"sgd": 0.005, "adam": 0.0002, "adamw": 0.0002}


@cache
def small(dataset: str, train: int = TRAIN) -> Resident:
    return slices.cut(dataset, train, HELD_OUT)


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varied, "resident", small)


def plan(optimizer: Optimizer = "sgd", **changes: Any) -> EpochPlan:
    options: dict[str, Any] = {
        "optimizer": optimizer,
        "learning_rate": RATES[optimizer],
        "batch_size": BATCH,
        "weight_decay": 0.1,
        "dropout": 0.3,
        "augmentation": 0.7,
    }
    return EpochPlan(**options | changes)


def begin(task_id: str, seed: int = 0) -> TrainingState:
    task = TASKS[task_id]
    return trainer.start(task.workload, seed)


# --- The plain loop -----------------------------------------------------------------------------


class PlainMlp(nn.Module):
    def __init__(self, like: Mlp) -> None:
        super().__init__()
        self.first = nn.Linear(like.inputs, like.hidden)
        self.last = nn.Linear(like.hidden, models_nn.CLASSES)

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        hidden = F.relu(self.first(images.flatten(1)))
        return self.last(hidden if masks is None else hidden * masks)


class PlainConvNet(nn.Module):
    def __init__(self, like: ConvNet) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        channels = like.channels
        for block in like.blocks:
            padding = (block.kernel - 1) // 2
            self.blocks.append(
                nn.Sequential(
                    nn.Conv2d(
                        channels, block.channels, block.kernel, block.stride, padding, bias=False
                    ),
                    nn.MaxPool2d(block.pool),
                    nn.BatchNorm2d(block.channels),
                    nn.ReLU(),
                )
            )
            channels = block.channels
        self.first = nn.Linear(like.features, like.hidden, bias=False)
        self.norm = nn.BatchNorm1d(like.hidden)
        self.last = nn.Linear(like.hidden, models_nn.CLASSES)
        self.features = like.features

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        x = images
        for block in self.blocks:
            x = block(x)
        x = x.permute(0, 2, 3, 1).flatten(1)  # the engine's order of features
        x = x if masks is None else x * masks[:, : self.features]
        x = F.relu(self.norm(self.first(x)))
        return self.last(x if masks is None else x * masks[:, self.features :])


def plain(network: str, checkpoint: Checkpoint) -> nn.Module:
    """An ordinary module with the checkpoint's weights and running statistics."""
    like = NETWORKS[network]
    module = PlainConvNet(like) if isinstance(like, ConvNet) else PlainMlp(like)  # type: ignore[arg-type]
    views = unflatten(like.parameters, checkpoint.weights)
    with torch.no_grad():
        for parameter, view in zip(module.parameters(), views, strict=True):
            parameter.copy_(view)
        widths = [width for width in like.norm_widths for _ in range(2)]
        for buffer, part in zip(buffers(module), checkpoint.statistics.split(widths), strict=False):
            buffer.copy_(part)
    return module


def buffers(module: nn.Module) -> list[Tensor]:
    return [buffer for buffer in module.buffers() if buffer.dim()]


def flat(module: nn.Module) -> Tensor:
    """The module's weights in the engine's order: channels last."""
    parts = [p.permute(0, 2, 3, 1) if p.dim() == 4 else p for p in module.parameters()]
    return torch.cat([part.detach().reshape(-1) for part in parts])


def stock_optimizer(plan: EpochPlan, module: nn.Module) -> torch.optim.Optimizer:
    parameters, rate, decay = module.parameters(), plan.learning_rate, plan.weight_decay
    if plan.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=decay)
    kind = torch.optim.Adam if plan.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, rate, weight_decay=decay)


@dataclass
class PlainLoop:
    """A data-parallel training: one module for each shard, sharing weights but not batch norm."""

    start: TrainingState
    plan: EpochPlan
    train: int = TRAIN  # images

    def __post_init__(self) -> None:
        work = self.start.run.workload
        self.module = plain(work.network, self.start.current)
        shared = {id(p): p for p in self.module.parameters()}
        others = range(work.shards - 1)
        self.shards = [self.module, *(copy.deepcopy(self.module, dict(shared)) for _ in others)]
        self.optimizer = stock_optimizer(self.plan, self.module)

    def epoch(self, number: int) -> tuple[float, float]:
        """The running averages of loss and accuracy."""
        loss = correct = seen = 0.0
        for batch in self.batches(number):
            self.optimizer.zero_grad()
            for module, part in zip(self.shards, batch, strict=True):
                module.train()
                images, labels, masks = part
                logits = module(images, masks)
                (F.cross_entropy(logits, labels, reduction="sum") / BATCH).backward()
                loss += F.cross_entropy(logits, labels, reduction="sum").item()
                correct += (logits.argmax(1) == labels).sum().item()
                seen += len(labels)
            self.optimizer.step()
        for same in zip(*(buffers(module) for module in self.shards), strict=True):
            mean = torch.stack(same).mean(0)
            for buffer in same:
                buffer.copy_(mean)
        return loss / seen, correct / seen

    def batches(self, number: int) -> Iterator[list[tuple[Tensor, Tensor, Tensor | None]]]:
        work, part = self.start.run.workload, BATCH // self.start.run.workload.shards
        data, units = small(work.dataset, self.train), NETWORKS[work.network].dropout_units
        seed = self.start.run.seed
        inputs = EpochInputs.draw(data, self.plan, work.dataset, seed, number, units)
        for first in range(0, len(inputs) // BATCH * BATCH, BATCH):
            rows = [inputs.rows(i, i + part) for i in range(first, first + BATCH, part)]
            yield [(r.images, r.labels, r.masks) for r in rows]


def measured(module: nn.Module, rows: Rows) -> tuple[float, float]:
    """Loss and accuracy in eval mode, in one go."""
    module.eval()
    with torch.no_grad():
        logits = module(rows.images)
    loss = F.cross_entropy(logits, rows.labels).item()
    return loss, (logits.argmax(1) == rows.labels).float().mean().item()


def apart(reached: Tensor, expected: Tensor, start: Tensor | float = 0.0) -> float:
    """As a share of the way that `expected` went."""
    return ((reached - expected).norm() / (expected - start).norm()).item()


def tolerance(start: TrainingState) -> float:
    """Of the weights. Plain PyTorch in NCHW and in channels-last drift apart as far: a difference
    in the last bit sends a max pool or a ReLU the other way, and Adam makes it a step of full size.
    """
    return 1e-4 if isinstance(NETWORKS[start.run.workload.network], Mlp) else 0.02


@pytest.mark.parametrize("optimizer", get_args(Optimizer))
@pytest.mark.parametrize("regularised", [True, False])
@every_task
def test_two_epochs_agree_with_a_plain_loop(
    task_id: str, optimizer: Optimizer, regularised: bool
) -> None:
    off = {} if regularised else {"dropout": 0, "augmentation": 0}
    each = plan(optimizer, learning_rate=SMALL_RATES[optimizer], weight_decay=1, **off)
    start = state = begin(task_id)
    loop, data = PlainLoop(start, each), small(start.run.workload.dataset)
    for number in range(2):
        state = advance(state, each)
        record, running = state.run.history[-1], loop.epoch(number)
        assert apart(state.current.weights, flat(loop.module), start.current.weights) < tolerance(
            start
        )
        if found := buffers(loop.module):
            assert apart(state.current.statistics, torch.cat(found)) < 2e-3
        assert_scores(record.train_loss, record.train_accuracy, *running)
        assert_scores(record.val_loss, record.val_accuracy, *measured(loop.module, data.val))
        probe = measured(loop.module, data.probe)
        assert_scores(record.clean_train_loss, record.clean_train_accuracy, *probe)
    assert state.steps == 2 * (TRAIN // BATCH)


def assert_scores(loss: float | None, accuracy: float | None, *expected: float) -> None:
    """One image on the edge may fall to either side."""
    assert (loss, accuracy) == (
        pytest.approx(expected[0], rel=1e-3),
        pytest.approx(expected[1], abs=1.01 / HELD_OUT),
    )


@every_task
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_the_gradient_is_the_sum_over_the_shards(
    monkeypatch: pytest.MonkeyPatch, task_id: str, shards: int
) -> None:
    """After one step of sgd its momentum is the gradient. Seed 2: no unit on its ReLU's edge."""
    monkeypatch.setattr(varied, "resident", lambda name: small(name, BATCH))
    work = replace(begin(task_id).run.workload, shards=shards)
    start, each = trainer.start(work, 2), plan(weight_decay=0)
    loop = PlainLoop(start, each, train=BATCH)
    loop.epoch(0)
    for parameter in loop.module.parameters():
        assert parameter.grad is not None
        parameter.data = parameter.grad
    (gradient,) = advance(start, each).moments
    assert apart(gradient, flat(loop.module)) < 1e-4


# --- Moments ------------------------------------------------------------------------------------


def same(a: TrainingState, b: TrainingState) -> bool:
    """In everything but the key."""
    pairs = zip(tensors(a), tensors(b), strict=True)
    values = (a.run.history, a.optimizer, a.steps) == (b.run.history, b.optimizer, b.steps)
    return values and all(torch.equal(x, y) for x, y in pairs)


def tensors(state: TrainingState) -> list[Tensor]:
    current, best = state.current, state.best_checkpoint
    return [current.weights, current.statistics, best.weights, best.statistics, *state.moments]


def without_moments(state: TrainingState) -> TrainingState:
    return replace(state, optimizer=None, moments=(), steps=0)


@every_task
@pytest.mark.parametrize(
    ("before", "after"), [("sgd", "adam"), ("adam", "adamw"), ("adamw", "sgd")]
)
def test_another_optimizer_starts_with_fresh_moments(
    task_id: str, before: Optimizer, after: Optimizer
) -> None:
    state = advance(begin(task_id), plan(before))
    switched = advance(state, plan(after))
    assert switched.steps == TRAIN // BATCH
    assert same(switched, advance(without_moments(state), plan(after)))


@pytest.mark.parametrize("optimizer", get_args(Optimizer))
def test_any_other_change_keeps_the_moments(optimizer: Optimizer) -> None:
    state = advance(begin("easy_mnist"), plan(optimizer))
    rate = RATES[optimizer] / 3
    changed = plan(
        optimizer, learning_rate=rate, batch_size=32, weight_decay=0, dropout=0, augmentation=0
    )
    on = advance(state, changed)
    assert on.steps == TRAIN // BATCH + TRAIN // 32
    fresh = advance(without_moments(state), changed)
    assert not torch.equal(on.current.weights, fresh.current.weights)


# --- Divergence and the best checkpoint ---------------------------------------------------------

EXPLOSIVE = plan("sgd", learning_rate=10.0, weight_decay=0.0)
WILTING = plan("sgd", learning_rate=0.1, weight_decay=1.0)  # shrinks the weights to nothing


@every_task
def test_a_first_epoch_that_diverges_leaves_the_initial_weights(task_id: str) -> None:
    start = begin(task_id)
    state = advance(start, EXPLOSIVE)
    (record,) = state.run.history
    assert record.diverged
    assert set(record.model_dump(exclude={"epoch", "plan"}).values()) == {None}
    assert (record.epoch, record.plan, state.run.best) == (1, EXPLOSIVE, None)
    assert torch.equal(state.current.weights, start.current.weights)
    assert torch.equal(state.current.statistics, start.current.statistics)
    assert state.key != start.key
    assert (state.optimizer, state.moments, state.steps) == (None, (), 0)


@every_task
def test_after_a_divergence_the_best_checkpoint_goes_on_with_fresh_moments(task_id: str) -> None:
    good = advance(begin(task_id), plan("adam"))
    worse = advance(good, WILTING)
    assert not worse.run.history[-1].diverged
    assert not torch.equal(worse.current.weights, good.current.weights)
    diverged = advance(worse, EXPLOSIVE)
    assert [record.diverged for record in diverged.run.history] == [False, False, True]
    assert diverged.run.best == good.run.best == good.run.history[0]
    assert torch.equal(diverged.current.weights, good.current.weights)
    assert torch.equal(diverged.current.statistics, good.current.statistics)
    onward = advance(diverged, plan("sgd"))
    assert not onward.run.history[-1].diverged
    fresh = replace(without_moments(diverged), current=good.current)
    assert same(onward, advance(fresh, plan("sgd")))


def test_the_mean_loss_decides_what_has_exploded(monkeypatch: pytest.MonkeyPatch) -> None:
    record = advance(begin("easy_mnist"), plan()).run.history[-1]
    losses = (record.train_loss, record.val_loss, record.clean_train_loss)
    highest = max(loss for loss in losses if loss is not None)
    monkeypatch.setattr(trainer, "EXPLODED", highest)
    assert not advance(begin("easy_mnist"), plan()).run.history[-1].diverged
    monkeypatch.setattr(trainer, "EXPLODED", math.nextafter(highest, 0))
    assert advance(begin("easy_mnist"), plan()).run.history[-1].diverged


@every_task
def test_the_best_checkpoint_is_the_one_of_the_best_epoch(task_id: str) -> None:
    states = [begin(task_id)]
    for each in (plan("adam"), WILTING, plan("adam"), plan("sgd"), WILTING):
        states.append(advance(states[-1], each))
    for state in states[1:]:
        worth = [state.run.workload.scale.worth(record) for record in state.run.history]
        best = worth.index(max(worth))
        assert state.run.best is not None
        assert state.run.best.epoch == best + 1
        found, wanted = state.best_checkpoint, states[best + 1].current
        assert torch.equal(found.weights, wanted.weights)
        assert torch.equal(found.statistics, wanted.statistics)


def test_of_equally_good_epochs_the_earliest_is_the_best() -> None:
    first = advance(begin("easy_mnist"), plan("adam"))
    standing = plan("sgd", learning_rate=0)
    tied = advance(first, standing)
    assert tied.run.history[1].val_accuracy == tied.run.history[0].val_accuracy
    assert tied.run.best is first.run.best
    assert tied.best_checkpoint is first.current


@every_task
def test_test_accuracy_is_that_of_the_best_checkpoint(task_id: str) -> None:
    good = advance(begin(task_id), plan("adam"))
    state = advance(good, WILTING)
    assert state.best_checkpoint is good.current
    network, test = state.run.workload.network, small(state.run.workload.dataset).test
    _, best = measured(plain(network, state.best_checkpoint), test)
    _, last = measured(plain(network, state.current), test)
    assert trainer.test_accuracy(state) == pytest.approx(best, abs=1e-6)
    assert abs(best - last) > 1e-3
