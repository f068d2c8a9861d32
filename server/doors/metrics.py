"""`GET /metrics`: what a server is watched by, in the text format of Prometheus.

Events are counted where they happen (`server/counters.py`); what there is at the moment is looked
at here, when somebody asks. Guarantees: a scrape runs beside the event loop, waits for no training
and no worker, and costs a training nothing but the reading of a few numbers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import Request, Response
from prometheus_client import CollectorRegistry, Metric, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ml_trainer_env.server.counters import COUNTED
from ml_trainer_env.server.runtime.runner import Runner, SliceRunner
from ml_trainer_env.server.runtime.sharing import SharingRunner
from ml_trainer_env.server.session.places import Places

Door = Callable[[Request], Awaitable[Response]]


def door(places: Places[Any] | None, find_runner: Callable[[], Runner] | None) -> Door:
    """What answers: all that is counted, and what is known of these places and this runner."""
    disable_created_metrics()  # when each began: as many series again, which nobody looks at
    registry = CollectorRegistry()
    registry.register(COUNTED)
    registry.register(_Present(places, find_runner))
    ProcessCollector(registry=registry)

    async def metrics(request: Request) -> Response:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        text = await to_thread.run_sync(encode, registry, limiter=CapacityLimiter(1))
        return Response(text, media_type=media_type)

    return metrics


class _Present(Collector):
    """What there is at the moment."""

    def __init__(
        self, places: Places[Any] | None, find_runner: Callable[[], Runner] | None
    ) -> None:
        self._places = places
        self._find_runner = find_runner

    def collect(self) -> Iterator[Metric]:
        """The runner is made, if nobody has asked for it yet; workers are not waited for."""
        if self._places:
            yield from _of_places(self._places)
        runner = self._find_runner and self._find_runner()
        if isinstance(runner, SharingRunner):
            runner = runner.runner
        if isinstance(runner, SliceRunner):
            yield from _of_runner(runner)


def _of_places(places: Places[Any]) -> Iterator[Metric]:
    yield GaugeMetricFamily("ml_trainer_sessions", "Sessions with a place", len(places.guests()))
    yield GaugeMetricFamily("ml_trainer_sessions_limit", "Places that there are", places.limit)


def _of_runner(runner: SliceRunner) -> Iterator[Metric]:
    cores, states = runner.cores, runner.states
    yield GaugeMetricFamily("ml_trainer_cores", "Cores that may train", cores.total)
    yield GaugeMetricFamily("ml_trainer_cores_lent", "Cores that are lent", cores.lent)
    yield GaugeMetricFamily(
        "ml_trainer_trainings_waiting", "Trainings that wait for a core", cores.waiting
    )
    yield GaugeMetricFamily("ml_trainer_states", "Training states that are kept", len(states))
    yield GaugeMetricFamily("ml_trainer_states_bytes", "What they weigh", states.used)
    yield GaugeMetricFamily("ml_trainer_states_limit_bytes", "What they may weigh", states.budget)
