"""The dashboard and the guide's table have what `/metrics` answers, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import promql_parser
import pytest
from checkout import ROOT
from executors import FakeExecutor
from fakes import FakeRunner
from live import serving
from prometheus_client import Metric
from scraped import answered

from ml_trainer_env.server.app import build
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.runtime.cores import Cores
from ml_trainer_env.server.runtime.runner import SliceRunner
from ml_trainer_env.server.runtime.states import States
from ml_trainer_env.server.session.places import Places
from ml_trainer_env.server.settings import Settings

OURS = "ml_trainer_"
GUIDE = (ROOT / "docs/guide/operators.md").read_text()
MANY_MACHINES = (ROOT / "docs/guide/many-machines.md").read_text()
PANELS: list[dict[str, Any]] = json.loads((ROOT / "docs/guide/grafana.json").read_text())["panels"]
QUERIES: list[str] = [
    *(target["expr"] for panel in PANELS for target in panel["targets"]),
    *re.findall(r"`([^`\n]*(?:rate|increase|max)\([^`\n]*)`", GUIDE + MANY_MACHINES),
]
SAMPLES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}  # gauges: the name


@pytest.fixture(scope="module")
def families() -> Iterator[list[Metric]]:
    """Ours, of a server that has all that is watched."""
    places: Places[MLTrainerEnvironment] = Places(1)
    runner = SliceRunner(FakeExecutor(), Cores(1, 1), States(1))
    environment = partial(MLTrainerEnvironment, FakeRunner(), places=places)
    app = build(environment, Settings(), places=places, find_runner=lambda: runner)
    with serving(app) as url:
        yield [family for family in answered(url) if family.name.startswith(OURS)]


def parsed(query: str) -> promql_parser.Expr:
    """Raises `ValueError`. Grafana replaces its own variables before anybody parses a query."""
    return promql_parser.parse(query.replace("$__rate_interval", "1m"))


def selected(query: str) -> set[str]:
    """The series that a query is about."""
    names: set[str] = set()

    def look(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name is not None
            names.add(node.name)

    promql_parser.walk(parsed(query), pre_visit=look)
    return names


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_is_about_series_that_there_are(families: list[Metric], query: str) -> None:
    there = {
        family.name + suffix for family in families for suffix in SAMPLES.get(family.type, ("",))
    }
    assert selected(query)
    assert selected(query) <= there


def test_the_guides_table_has_every_metric_and_no_other(families: list[Metric]) -> None:
    told = set(re.findall(rf"^\| `({OURS}\w+)", GUIDE, re.MULTILINE))
    assert told == {
        f"{family.name}_total" if family.type == "counter" else family.name for family in families
    }


def test_panels_say_what_they_show_and_lie_side_by_side() -> None:
    cells = [
        (column, row)
        for panel in PANELS
        for at in [panel["gridPos"]]
        for column in range(at["x"], at["x"] + at["w"])
        for row in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(column for column, _ in cells) < 24  # Grafana's columns
    assert len({panel["id"] for panel in PANELS}) == len({panel["title"] for panel in PANELS})
    assert all(panel["description"] for panel in PANELS)
