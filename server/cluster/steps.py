"""A cluster that trains: what a step does, and what a checkpoint holds.

A step: every rank computes the gradients of its micro-shards, they are added in the order of the
micro-shards, and all ranks make the same update.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from ml_trainer_env.events import Settings
from ml_trainer_env.server.cluster import clock, rates
from ml_trainer_env.server.cluster.ranks import Part, Ranks, Update
from ml_trainer_env.server.cluster.reading import read
from ml_trainer_env.server.cluster.sampler import feeding
from ml_trainer_env.server.cluster.seen import Seen, finite
from ml_trainer_env.server.cluster.state import (
    KEPT,
    Checkpoint,
    ClusterState,
    Model,
    Shown,
    merged,
)
from ml_trainer_env.server.worlds import Reading, World


class Cluster:
    """The mutable inside of one event: a state that goes on, and the ranks that see to it."""

    def __init__(self, world: World, seed: int, state: ClusterState, ranks: Ranks) -> None:
        self.world = world
        self.state = state
        self.ranks = ranks
        self.draw = world.draw(seed)

    def set(self, **changes: Any) -> None:
        """Of the state."""
        self.state = replace(self.state, **changes)

    def wait(self, seconds: float) -> None:
        """Virtual ones."""
        self.set(seconds=self.state.seconds + seconds)

    def rank(self, host: int) -> int:
        """That it plays."""
        return self.state.fleet.hosts.index(host)

    # Steps ---------------------------------------------------------------------------------------

    def compute(self, settings: Settings, rate: float, seen: Seen) -> None:
        """A step of a window. Raises `Lost`."""
        name = f"step {self.state.made}"
        self.step(settings, rate, seen, name)
        self.set(step=self.state.step + 1, made=self.state.made + 1)

    def step(self, settings: Settings, rate: float, seen: Seen, name: str, turned: int = 0) -> None:
        """Whatever is drawn of hardware is drawn by `name`. `turned`: every rank's part is done by
        the host of the next but so many. Raises `Lost`.
        """
        parts = self._parts(settings, name, turned)
        took = [self._seconds(part, name) for part in parts]
        loss = seen.look(parts, self.ranks.contribute(parts), took)
        norm = self.ranks.update(Update(rate, settings.weight_decay, settings.clip))
        seen.steps.append(Shown(loss, finite(norm), rate))
        self.set(sampler=self.state.sampler.skipping(1))
        self.wait(max(took) + clock.reduce_seconds(len(parts)))

    def _parts(self, settings: Settings, name: str, turned: int) -> list[Part]:
        state, serving, faults = self.state, self.state.fleet.serving, self.world.faults
        readings = self._readings()
        found: list[Part] = []
        for number, rank in enumerate(state.fleet.working):
            host = serving[(number + turned) % len(serving)]
            wanted = [readings[micro] for micro in state.fleet.shards(rank)]
            rows = read(self.world, self.draw.place, wanted, settings.augmentation)
            shards = tuple(each.shard for each in wanted)
            slowdown = math.prod(fault.slowdown(host, state.seconds) for fault in faults)
            found.append(Part(rank, host, shards, rows, self._factor(host, name), slowdown))
        return found

    def _readings(self) -> list[Reading]:
        """Of each micro-shard."""
        return [
            Reading(shard, self.state.sampler, None if shard == micro else micro)
            for micro, shard in enumerate(feeding(self.state.quarantined))
        ]

    def _factor(self, host: int, name: str) -> float:
        """Of a host's gradients. Every fault has a draw of its own, so that two do not agree."""
        return math.prod(
            fault.factor(host, self.state.seconds, self.draw, f"fault {n} of host {host} in {name}")
            for n, fault in enumerate(self.world.faults)
        )

    def _seconds(self, part: Part, name: str) -> float:
        now, faults = self.state.seconds, self.world.faults
        loads = [math.prod(fault.load(shard, now) for fault in faults) for shard in part.shards]
        luck = self.draw.uniform(f"luck of rank {part.rank} in {name}")
        return clock.rank_seconds(loads, part.slowdown, luck)

    def rate(self, settings: Settings) -> float:
        """In force: warm-up and cosine are functions of the clock, for time is what runs out."""
        part = self.state.seconds / self.world.deadline
        return settings.learning_rate * (rates.factor(settings, part) * self.wrong(settings))

    def wrong(self, settings: Settings) -> float:
        """By how much the rate is wrong: 1 once somebody has set it since."""
        wrong = self.state.wrong_rate
        return wrong[0] if wrong and wrong[1] == settings.revision else 1.0

    # Checkpoints ---------------------------------------------------------------------------------

    def save(self) -> None:
        """Of all ranks, each a part."""
        now = replace(self.state, model=self.ranks.model(), apart=self.ranks.apart())
        model = replace(now.model, weights=merged(now))
        older = [each for each in now.checkpoints if each.step < now.step]
        checkpoint = Checkpoint(now.step, model, now.sampler)
        self.ranks.write(checkpoint)
        self.set(checkpoints=(*older, checkpoint)[-KEPT:])
        self.wait(clock.CHECKPOINT)

    def load(self, checkpoint: Checkpoint, load_optimizer: bool = True) -> None:
        """On all ranks. Reshuffles since then stay: they are no part of the model."""
        model = self.ranks.read(checkpoint)
        if not load_optimizer:
            model = Model(model.weights, tuple(map(torch.zeros_like, model.moments)))
        sampler = self.state.sampler.resumed(checkpoint.sampler)
        self.set(model=model, apart={}, sampler=sampler, step=checkpoint.step)
