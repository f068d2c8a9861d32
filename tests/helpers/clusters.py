"""Clusters for tests: a small world, and ranks that share nothing."""

from dataclasses import replace

import torch

from ml_trainer_env.events import Settings, Train
from ml_trainer_env.server.cluster.networks import Rows
from ml_trainer_env.server.cluster.ranks import Contribution, Lost, Memory, copied
from ml_trainer_env.server.cluster.training import advance, start
from ml_trainer_env.server.worlds import (
    BadBatches,
    BadResume,
    BitFlip,
    Corruption,
    Crash,
    Desync,
    NetworkName,
    SlowHost,
    World,
    WrongRate,
)

SETTINGS = Settings(learning_rate=0.003, checkpoint_every=10)
WINDOW = Train(settings=SETTINGS)
STEADY = SETTINGS.model_copy(update={"lr_schedule": "constant", "warmup": 0.0})
STEADILY = Train(settings=STEADY)  # so that seconds do not change the rate


def world(*faults, network: NetworkName = "cluster_cnn", ranks=4, deadline=120.0):
    return World("tests", network, ranks, deadline, faults)


def play(of, *events, state=None, ranks=None):
    """The state after `events`, and what each has shown."""
    state, reports = state or start(of, 0), []
    for event in events:
        state, report = advance(of, 0, state, event, ranks)
        reports.append(report)
    return state, reports


def same(one, other):
    return all(
        torch.equal(a, b)
        for a, b in zip(
            (one.model.weights, *one.model.moments),
            (other.model.weights, *other.model.moments),
            strict=True,
        )
    )


class OneByOne:
    """Every host with a memory of its own, one after the other: nothing is shared."""

    def __init__(self, network):
        self.network = network

    def begin(self, hosts, model, apart):
        self.hosts = {
            host: Memory(self.network, replace(model, weights=apart.get(host, model.weights)))
            for host in hosts
        }
        self.out = {host: self.hosts.pop(host) for host in list(self.hosts) if host in apart}

    def contribute(self, parts):
        found = []
        for part in parts:
            memory = self.hosts.get(part.host) or self.out.get(part.host)
            if memory is None:
                raise Lost(part.host)
            each = [
                memory.contribution(
                    part._replace(
                        shards=(shard,),
                        rows=Rows(part.rows.inputs[n : n + 1], part.rows.targets[n : n + 1]),
                    )
                )
                for n, shard in enumerate(part.shards)
            ]
            found.append(
                Contribution(
                    torch.cat([one.losses for one in each]),
                    torch.cat([one.gradients for one in each]),
                )
            )
        self.rows = [row for each in found for row in each.gradients.unbind()]
        return found

    def update(self, made):
        norms = [memory.update(self.rows, made) for memory in self.hosts.values()]
        return norms[0]

    def part(self, host):
        if host not in self.out:
            self.out[host] = self.hosts.pop(host)

    def lose(self, host):
        self.hosts.pop(host, None)
        self.out.pop(host, None)

    def flip(self, place, bit):
        for memory in self.hosts.values():
            memory.flip(place, bit)

    def model(self):
        first, *others = self.hosts.values()
        assert all(torch.equal(first.model.weights, each.model.weights) for each in others)
        return copied(first.model)

    def apart(self):
        return {host: memory.model.weights.clone() for host, memory in self.out.items()}

    def write(self, checkpoint):
        pass

    def read(self, checkpoint):
        model = copied(checkpoint.model)
        if checkpoint.damaged:
            for part in (model.weights, *model.moments):
                part[len(part) // 2 :] = 0
        return model


EVERYTHING = (
    WrongRate(at=8, times=3),
    Corruption(host=1, since=5, scale=-1, chance=0.5),
    Desync(at=12, host=2),
    Desync(at=16, host=2),
    BadBatches(position=15, count=3),
    BitFlip(at=18, bit=27, share=0.4),
    Crash(at=33, host=3),
    SlowHost(host=0, since=3, times=1.5),
    BadResume(at=60, damage="truncated"),
    Crash(at=75, host=4, dead=True),  # of rank 0, since the job was moved
)
