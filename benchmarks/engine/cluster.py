"""What it costs that ranks own micro-shards: `make bench-cluster`.

A window of a cluster of four ranks, with its validation, against the same number of steps in the
usual way: one batch of all rows, a module of PyTorch's own parts, its fused AdamW. One thread each.
Measure alone. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from ml_trainer_env.benchmarks.timing import Spread, seconds_of
from ml_trainer_env.events import MICRO_SHARDS, WINDOW, Settings, Train
from ml_trainer_env.server.cluster.networks import Transformer
from ml_trainer_env.server.cluster.reading import corpus, read
from ml_trainer_env.server.cluster.training import advance, start
from ml_trainer_env.server.worlds import Reading, Sampler, World
from ml_trainer_env.terminal import stdout

TARGET = 1.5
WORLD = World("benchmark", "cluster_lm", 4, 1e9)
NETWORK = Transformer()


class Usual(nn.Module):
    """The transformer as anybody would write it."""

    def __init__(self) -> None:
        super().__init__()
        d = NETWORK.width
        self.symbols = nn.Embedding(NETWORK.symbols, d)
        self.positions = nn.Parameter(torch.randn(NETWORK.context, d) * 0.05)
        self.layers = nn.ModuleList(_Layer() for _ in range(NETWORK.layers))
        self.norm = nn.RMSNorm(d)
        self.head = nn.Linear(d, NETWORK.symbols, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        x = self.symbols(text) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        d = NETWORK.width
        self.before, self.between = nn.RMSNorm(d), nn.RMSNorm(d)
        self.mix, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, length, d = x.shape
        parts = self.mix(self.before(x)).view(n, length, 3, NETWORK.heads, -1)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(n, length, d))
        return x + self.down(F.gelu(self.up(self.between(x))))


def usual_way() -> Callable[[], object]:
    """A window of steps and a validation."""
    torch.manual_seed(0)
    model, val = Usual(), corpus("cluster_lm").val
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.006, weight_decay=0.05, fused=True)
    place, cursor = WORLD.draw(0).place, 0

    def window() -> None:
        nonlocal cursor
        for _ in range(WINDOW):
            wanted = [Reading(shard, Sampler(cursor)) for shard in range(MICRO_SHARDS)]
            rows = read(WORLD, place, wanted)
            cursor += 1
            logits = model(rows.inputs.flatten(0, 1))
            loss = F.cross_entropy(logits.flatten(0, 1), rows.targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            for inputs, targets in zip(*(each.split(16) for each in val), strict=True):
                F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    return window


def cluster() -> Callable[[], object]:
    """A window of four ranks, with its report."""
    state, event = start(WORLD, 0), Train(settings=Settings(checkpoint_every=50))

    def window() -> None:
        nonlocal state
        state, _ = advance(WORLD, 0, state, event)

    return window


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="windows of each")
    count = parser.parse_args().count
    torch.set_num_threads(1)
    sides = {"the usual way": usual_way(), "four ranks": cluster()}
    for window in sides.values():  # to warm up
        window()
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(count):
        for name, window in sides.items():
            taken[name].append(seconds_of(window))
    spreads = {name: Spread.of(seconds) for name, seconds in taken.items()}
    ratio = spreads["four ranks"].median / spreads["the usual way"].median
    table = Table("25 steps and a validation", "median", "quartiles")
    for name, spread in spreads.items():
        table.add_row(name, f"{spread.median:.3f} s", f"{spread.q1:.3f} to {spread.q3:.3f} s")
    stdout().print(table)
    stdout().print(f"four ranks take {ratio:.2f} times as long; the target is {TARGET} at most")
    found = {name: asdict(spread) for name, spread in spreads.items()}
    print(json.dumps({"benchmark": "cluster", "ratio": round(ratio, 3), **found}))


if __name__ == "__main__":
    main()
