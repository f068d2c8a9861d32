"""A cluster goes on: `advance(world, seed, state, event)`, a pure function of values.

The same world, seed, state and event give the same bits, whoever plays the ranks. What faults do is
in the arithmetic: gradients are really corrupted, weights really differ between ranks, batches are
really mislabelled. Only seconds are virtual; the clock never goes back.

A step: every rank computes the gradients of its micro-shards, they are added in the order of the
micro-shards, and all ranks make the same update. The model of the cluster is put together from
its ranks, a contiguous part from each, as sharded checkpoints are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ml_trainer_env.events import (
    MICRO_SHARDS,
    REPLAYED,
    WINDOW,
    ConfigureData,
    ConfigureRanks,
    Diagnose,
    Event,
    Restore,
    Settings,
    Train,
    WindowReport,
)
from ml_trainer_env.server.cluster import clock, diagnoses
from ml_trainer_env.server.cluster.networks import NETWORKS, ClusterNetwork, Rows, losses
from ml_trainer_env.server.cluster.ranks import Lost, Part, Ranks, Together, Update
from ml_trainer_env.server.cluster.reading import corpus, read
from ml_trainer_env.server.cluster.seen import Seen, finite
from ml_trainer_env.server.cluster.state import (
    KEPT,
    Checkpoint,
    ClusterState,
    Fleet,
    Model,
    Shown,
    Window,
    merged,
    owners,
)
from ml_trainer_env.server.engine import modes
from ml_trainer_env.server.models_nn import initial_weights
from ml_trainer_env.server.worlds import (
    BadResume,
    BitFlip,
    Crash,
    Desync,
    Sampler,
    Strike,
    World,
    WrongRate,
)

FLOOR = 0.05  # of the cosine, at the deadline
NOTHING_LEARNED = 20.0  # nats: a loss above it, or none, is told as this


class Report(WindowReport):
    """What came of an event, for the record of it."""

    train_loss: float | None
    val_loss: float


def start(world: World, seed: int) -> ClusterState:
    """Before the first step, with a checkpoint of it."""
    network = NETWORKS[world.network]
    generator = torch.Generator().manual_seed(world.draw(seed).bits("weights") >> 32)
    with modes.of_the_engine(), modes.of_a_computation("fp32"):
        weights = initial_weights(network, generator)
    model = Model(weights, (torch.zeros_like(weights), torch.zeros_like(weights)))
    ranks = range(world.ranks)
    fleet = Fleet(tuple(ranks), owners(ranks, None, frozenset()))
    first = Checkpoint(0, model, Sampler())
    return ClusterState(model, fleet, first.sampler, checkpoints=(first,))


def advance(
    world: World, seed: int, state: ClusterState, event: Event, ranks: Ranks | None = None
) -> tuple[ClusterState, Report]:
    """What `event` makes of `state`, and what is seen of it."""
    with modes.of_the_engine(), modes.of_a_computation("fp32"):
        run = _Run(world, seed, state, ranks or Together(NETWORKS[world.network]))
        match event:
            case Train():
                report = run.train(event)
            case Restore():
                report = run.restore(event)
            case ConfigureRanks():
                report = run.configure_ranks(event)
            case ConfigureData():
                report = run.configure_data(event)
            case Diagnose():
                report = run.diagnose(event)
        return run.state, report


def mean_loss(network: ClusterNetwork, weights: Tensor, rows: Rows) -> float:
    """Over rows of a split, in nats, in parts of a fixed size."""
    with modes.of_the_engine(), modes.of_a_computation("fp32"):
        found = [
            losses(
                network, weights.expand(len(inputs), -1), Rows(inputs[:, None], targets[:, None])
            )
            for inputs, targets in zip(*(each.split(MICRO_SHARDS) for each in rows), strict=True)
        ]
        mean = torch.cat(found).double().mean().item()
    return min(mean, NOTHING_LEARNED) if math.isfinite(mean) else NOTHING_LEARNED


class _Run:
    """The mutable inside of one call of `advance`."""

    def __init__(self, world: World, seed: int, state: ClusterState, ranks: Ranks) -> None:
        self.world = world
        self.state = state
        self._ranks = ranks
        self._draw = world.draw(seed)
        self._network = NETWORKS[world.network]
        self._strikes = sorted(
            (fault for fault in world.faults if isinstance(fault, Strike)),
            key=lambda strike: strike.at,
        )

    # Events --------------------------------------------------------------------------------------

    def train(self, event: Train) -> Report:
        """A window: it ends early at the deadline, and when a step fails."""
        seen, before = Seen(), self.state
        self._ranks.begin(before.fleet.alive, before.model, before.apart)
        for _ in range(WINDOW):
            if self.state.seconds >= self.world.deadline or not self._step(event.settings, seen):
                break
        self._set(
            model=self._ranks.model(),
            apart=self._ranks.apart(),
            window=Window(before.model, before.sampler, event.settings, tuple(seen.steps)),
        )
        return self._report(seen)

    def restore(self, event: Restore) -> Report:
        """Later checkpoints are given up: a crash leads back to this one, not to them."""
        found = [each for each in self.state.checkpoints if each.step <= event.step]
        checkpoint = found[-1] if found else self.state.checkpoints[0]
        self._load(checkpoint, event.load_optimizer)
        self._set(
            sampler=self.state.sampler.skipping(event.skip_batches),
            checkpoints=tuple(found) or self.state.checkpoints[:1],
        )
        self._wait(clock.RESTART)
        return self._report(incidents=[f"restored the checkpoint of step {checkpoint.step}"])

    def configure_ranks(self, event: ConfigureRanks) -> Report:
        """Weights are broadcast by the first rank that works."""
        hosts = list(self.state.fleet.hosts)
        for rank in event.use_spare:
            hosts[rank] = max(*hosts, *self.state.fleet.dead, -1) + 1
        fleet = replace(self.state.fleet, hosts=tuple(hosts), excluded=frozenset(event.exclude))
        owned = owners(fleet.working, event.shares, self.state.quarantined)
        weights = self.state.apart.get(fleet.serving[0], self.state.model.weights)
        self._set(
            fleet=replace(fleet, owners=owned),
            model=replace(self.state.model, weights=weights),
            apart={},
        )
        self._wait(clock.RESTART + clock.SPARE * bool(event.use_spare))
        return self._report()

    def configure_data(self, event: ConfigureData) -> Report:
        """After another quarantine the last window cannot be replayed: it was of other batches."""
        quarantined, fleet = frozenset(event.quarantine), self.state.fleet
        if quarantined != self.state.quarantined:
            fleet = replace(fleet, owners=owners(fleet.working, None, quarantined))
            self._set(window=None)
        sampler = self.state.sampler.reshuffled() if event.reshuffle else self.state.sampler
        self._set(quarantined=quarantined, sampler=sampler, fleet=fleet)
        return self._report()

    # Steps ---------------------------------------------------------------------------------------

    def _step(self, settings: Settings, seen: Seen) -> bool:
        """One step. False if it ends the window; it takes time all the same."""
        try:
            self._compute(settings, self._rate(settings), seen)
        except Lost as lost:
            self._wait(clock.TIMEOUT)
            rank = self._rank(lost.host)
            seen.incidents.append(f"a collective timed out, waiting for rank {rank}")
            return False
        self._set(step=self.state.step + 1)
        if self.state.step % settings.checkpoint_every == 0:
            self._save()
        return self._strike(settings, seen)

    def _compute(self, settings: Settings, rate: float, seen: Seen, turned: int = 0) -> None:
        """`turned`: every rank's part is done by the host of the next but so many."""
        parts = self._parts(turned)
        took = [self._seconds(part) for part in parts]
        loss = seen.look(parts, self._ranks.contribute(parts), took)
        norm = self._ranks.update(Update(rate, settings.weight_decay, settings.clip))
        seen.steps.append(Shown(loss, finite(norm), rate))
        self._set(made=self.state.made + 1, sampler=self.state.sampler.skipping(1))
        self._wait(max(took) + clock.reduce_seconds(len(parts)))

    def _parts(self, turned: int) -> list[Part]:
        state, serving, faults = self.state, self.state.fleet.serving, self.world.faults
        found: list[Part] = []
        for number, rank in enumerate(state.fleet.working):
            host, shards = serving[(number + turned) % len(serving)], state.fleet.shards(rank)
            rows = read(self.world, self._draw.place, state.sampler, shards)
            factors = (f.factor(host, state.seconds, self._draw, state.made) for f in faults)
            slowdown = math.prod(fault.slowdown(host, state.seconds) for fault in faults)
            found.append(Part(rank, host, shards, rows, math.prod(factors), slowdown))
        return found

    def _seconds(self, part: Part) -> float:
        now, faults = self.state.seconds, self.world.faults
        loads = [math.prod(fault.load(shard, now) for fault in faults) for shard in part.shards]
        luck = self._draw.uniform(f"luck of rank {part.rank} in step {self.state.made}")
        return clock.rank_seconds(loads, part.slowdown, luck)

    def _rate(self, settings: Settings) -> float:
        """In force: warm-up and cosine are functions of the clock, for time is what runs out."""
        part = self.state.seconds / self.world.deadline
        factor = min(1.0, part / settings.warmup + 1e-3) if settings.warmup else 1.0
        if settings.lr_schedule == "cosine":
            factor *= FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))
        wrong = self.state.wrong_rate
        if wrong and wrong[1] == settings.revision:
            factor *= wrong[0]
        return settings.learning_rate * factor

    # What the world does -------------------------------------------------------------------------

    def _strike(self, settings: Settings, seen: Seen) -> bool:
        """What is due by now happens. False where it ends the window."""
        going_on = True
        for strike in self._strikes[self.state.struck :]:
            if strike.at > self.state.seconds:
                break
            self._set(struck=self.state.struck + 1)
            going_on = self._happen(strike, settings, seen) and going_on
        return going_on

    def _happen(self, strike: Strike, settings: Settings, seen: Seen) -> bool:
        fleet = self.state.fleet
        match strike:
            case WrongRate():
                self._set(wrong_rate=(strike.times, settings.revision))
            case BitFlip():
                count = len(self.state.model.weights)
                self._ranks.flip(int(strike.share * count), strike.bit)
            case Desync() if strike.host in fleet.alive:
                self._ranks.part(strike.host)
            case Crash() if strike.host in fleet.alive:
                if strike.dead:
                    self._set(fleet=replace(fleet, dead=fleet.dead | {strike.host}))
                self._ranks.lose(strike.host)
                seen.incidents.append(f"rank {self._rank(strike.host)} was lost")
                return self._restarted(seen)
            case BadResume():
                seen.incidents.append("the job was moved to other machines")
                if strike.damage == "truncated":
                    *others, latest = self.state.checkpoints
                    damaged = replace(latest, damaged=True)
                    self._ranks.write(damaged)
                    self._set(checkpoints=(*others, damaged))
                else:
                    self._set(wrong_rate=(strike.times, settings.revision))
                return self._restarted(seen)
            case _:
                pass  # it strikes a host that no longer serves, or no longer answers
        return True

    def _restarted(self, seen: Seen) -> bool:
        """By the launcher, from the latest checkpoint; the window is over."""
        checkpoint = self.state.checkpoints[-1]
        self._load(checkpoint, load_optimizer=True)
        self._ranks.begin(self.state.fleet.alive, self.state.model, {})
        self._wait(clock.TIMEOUT + clock.RESTART)
        seen.incidents.append(f"restarted from the checkpoint of step {checkpoint.step}")
        return False

    # Checkpoints ---------------------------------------------------------------------------------

    def _save(self) -> None:
        now = replace(self.state, model=self._ranks.model(), apart=self._ranks.apart())
        model = replace(now.model, weights=merged(now))
        older = [each for each in now.checkpoints if each.step < now.step]
        checkpoint = Checkpoint(now.step, model, now.sampler)
        self._ranks.write(checkpoint)
        self._set(checkpoints=(*older, checkpoint)[-KEPT:])
        self._wait(clock.CHECKPOINT)

    def _load(self, checkpoint: Checkpoint, load_optimizer: bool) -> None:
        """On all ranks."""
        model = self._ranks.read(checkpoint)
        if not load_optimizer:
            model = Model(model.weights, tuple(map(torch.zeros_like, model.moments)))
        self._set(model=model, apart={}, sampler=checkpoint.sampler, step=checkpoint.step)

    # Diagnoses -----------------------------------------------------------------------------------

    def diagnose(self, event: Diagnose) -> Report:
        match event.what:
            case "replay":
                finding = self._replay()
            case "weight_checksum":
                finding = diagnoses.weight_checksum(self.state)
            case "shard_loss":
                finding = diagnoses.shard_loss(self.world, self._draw.place, self.state)
            case "flight_recorder":
                finding = diagnoses.flight_recorder(self.state, self._struck)
            case "verify_checkpoint":
                finding = diagnoses.verify_checkpoint(self.state)
        self._wait(clock.DIAGNOSES[event.what])
        return self._report(finding=finding)

    def _replay(self) -> list[str]:
        """The first steps of the last window again, each rank's part on the next one's host. Data
        and weights are as they were, so what is different comes of a host.
        """
        window, now, seen = self.state.window, self.state, Seen()
        if window is None or not window.shown:
            return ["there is no window to replay"]
        self._set(sampler=window.sampler)
        self._ranks.begin(now.fleet.alive, window.model, {})
        lines: list[str] = []
        try:
            for then in window.shown[:REPLAYED]:
                self._compute(window.settings, then.rate, seen, turned=1)
                lines.append(diagnoses.replayed(then, seen.steps[-1]))
        except Lost as lost:
            self._wait(clock.TIMEOUT)
            lines.append(f"a collective timed out, waiting for rank {self._rank(lost.host)}")
        self.state = replace(now, made=self.state.made, seconds=self.state.seconds)
        return lines

    # Inside --------------------------------------------------------------------------------------

    def _set(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)

    @property
    def _struck(self) -> Sequence[Strike]:
        return self._strikes[: self.state.struck]

    def _rank(self, host: int) -> int:
        return self.state.fleet.hosts.index(host)

    def _wait(self, seconds: float) -> None:
        self._set(seconds=self.state.seconds + seconds)

    def _report(
        self,
        seen: Seen | None = None,
        incidents: Sequence[str] = (),
        finding: Sequence[str] = (),
    ) -> Report:
        seen = seen or Seen()
        losses = [step.loss for step in seen.steps if step.loss is not None]
        return Report(
            train_loss=fmean(losses) if losses else None,
            val_loss=mean_loss(self._network, merged(self.state), corpus(self.world.network).val),
            step=self.state.step,
            made=self.state.made,
            seconds=self.state.seconds,
            learning_rate=seen.steps[-1].rate if seen.steps else None,
            skipped=sum(step.norm is None for step in seen.steps),
            losses=tuple(step.loss for step in seen.steps),
            gradient_norms=tuple(step.norm for step in seen.steps),
            ranks=seen.ranks(self.state.fleet),
            shard_losses=seen.shards(),
            checkpoints=tuple(each.step for each in self.state.checkpoints),
            incidents=(*seen.incidents, *incidents),
            finding=tuple(finding),
        )
