"""Metrics: they follow what is played, at whichever door, and a scrape waits for nobody."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import pytest
from fakes import FakeRunner
from guarded import TOKEN, Broken, bearer
from live import eventually, serving
from prometheus_client.parser import text_string_to_metric_families
from real import inline
from scraped import scraped
from states import small
from websockets.sync.client import connect

from ml_trainer_env.client import MLTrainerEnv
from ml_trainer_env.server.app import build
from ml_trainer_env.server.engine import varied
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.runtime.orders import Order
from ml_trainer_env.server.runtime.records import Records
from ml_trainer_env.server.runtime.runner import ExecutorLost, NeverStarted, SliceRunner
from ml_trainer_env.server.runtime.sharing import SharingRunner
from ml_trainer_env.server.session.places import Places
from ml_trainer_env.server.settings import Settings

PATIENCE = 60  # seconds


class Watched:
    """A server on the real engine with little data, and what its metrics have grown by."""

    def __init__(self, url: str, slices: SliceRunner) -> None:
        self.url, self.slices = url, slices
        self.begin()

    def begin(self) -> None:
        """Count from here."""
        self._before = scraped(self.url)

    def __getitem__(self, name: str) -> float:
        """What a counter has grown by."""
        return scraped(self.url)[name] - self._before.get(name, 0)

    def now(self, name: str) -> float:
        return scraped(self.url)[name]

    def play(self, seed: int = 0, epochs: int = 2) -> None:
        with MLTrainerEnv(base_url=self.url) as env:
            env.reset(task_id="easy_mnist", seed=seed)
            env.call_tool("configure_training")
            env.call_tool("run_epochs", num_epochs=epochs)
            env.call_tool("submit_model")


@contextmanager
def serving_on(slices: SliceRunner, places: int = 2) -> Iterator[Watched]:
    runner = SharingRunner(slices, Records())
    taken: Places[MLTrainerEnvironment] = Places(places)
    environment = partial(MLTrainerEnvironment, runner, places=taken)
    app = build(environment, Settings(), places=taken, find_runner=lambda: runner)
    with serving(app) as url:
        yield Watched(url, slices)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(varied, "resident", small)
    with serving_on(inline(cores=2)) as server:
        yield server


# Values -----------------------------------------------------------------------------------------


def test_epochs_and_grades_are_counted_by_where_they_come_from(watched: Watched) -> None:
    watched.play()
    assert watched["ml_trainer_epochs_total trained"] == 2
    assert watched["ml_trainer_epochs_total shared"] == 0
    assert watched["ml_trainer_grades_total computed"] == 1
    assert watched["ml_trainer_training_seconds_total"] > 0
    assert watched["ml_trainer_core_seconds_total"] > watched["ml_trainer_training_seconds_total"]
    seconds = watched["ml_trainer_training_seconds_total"]
    watched.play(epochs=3)  # two of them are known
    assert watched["ml_trainer_epochs_total trained"] == 3
    assert watched["ml_trainer_epochs_total shared"] == 2
    assert watched["ml_trainer_training_seconds_total"] > seconds
    watched.play(epochs=3)
    assert watched["ml_trainer_epochs_total trained"] == 3
    assert watched["ml_trainer_epochs_total shared"] == 5
    assert watched["ml_trainer_grades_total computed"] == 2
    assert watched["ml_trainer_grades_total shared"] == 1


def test_states_that_are_kept_are_weighed(watched: Watched) -> None:
    watched.play()
    assert watched.now("ml_trainer_states") > 0
    assert 0 < watched.now("ml_trainer_states_bytes") < watched.now("ml_trainer_states_limit_bytes")
    assert watched["ml_trainer_epochs_repeated_total"] == 0


def test_too_little_room_for_states_shows_in_the_epochs_that_are_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(varied, "resident", small)
    with serving_on(inline(cores=2, budget=1)) as watched:
        watched.play()
        assert watched["ml_trainer_epochs_total trained"] == 2
        assert watched["ml_trainer_epochs_repeated_total"] >= 2  # for the grade
        assert watched.now("ml_trainer_states") == watched.now("ml_trainer_states_bytes") == 0
        assert watched.now("ml_trainer_states_limit_bytes") == 1


def test_a_lost_worker_is_counted(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    perform, losses = watched.slices.executor.perform, [ExecutorLost, NeverStarted]

    def lost_twice(order: Order, state: int | None) -> Any:
        if losses:
            raise losses.pop()
        return perform(order, state)

    monkeypatch.setattr(watched.slices.executor, "perform", lost_twice)
    watched.play()
    assert watched["ml_trainer_workers_lost_total"] == 2
    assert watched["ml_trainer_epochs_total trained"] == 2


def test_sessions_are_there_while_they_are_open(watched: Watched) -> None:
    assert watched.now("ml_trainer_sessions_limit") == 2
    assert watched.now("ml_trainer_sessions") == 0
    with MLTrainerEnv(base_url=watched.url) as one, MLTrainerEnv(base_url=watched.url) as other:
        one.reset()
        assert watched.now("ml_trainer_sessions") == 1
        other.reset()
        assert watched.now("ml_trainer_sessions") == 2
        answer = httpx.post(watched.url + "/reset", json={})
        assert answer.status_code == 422
        assert watched["ml_trainer_sessions_refused_total"] == 1
    eventually(lambda: watched.now("ml_trainer_sessions") == 0)


def test_whom_openenv_refuses_is_counted_too() -> None:
    app = build(partial(MLTrainerEnvironment, FakeRunner()), Settings(max_sessions=1))
    with serving(app) as url, MLTrainerEnv(base_url=url) as one:
        one.reset()
        before = scraped(url)["ml_trainer_sessions_refused_total"]
        with connect(url.replace("http", "ws") + "/ws", proxy=None) as refused:
            assert "try again" in str(refused.recv(timeout=10))
        assert scraped(url)["ml_trainer_sessions_refused_total"] == before + 1


def test_cores_and_who_waits_for_them(watched: Watched) -> None:
    cores = watched.slices.cores
    assert watched.now("ml_trainer_cores") == 2
    assert watched.now("ml_trainer_cores_lent") == watched.now("ml_trainer_trainings_waiting") == 0
    with ThreadPoolExecutor(1) as threads:
        with cores.lend(), cores.lend():
            assert watched.now("ml_trainer_cores_lent") == 2
            played = threads.submit(watched.play)
            eventually(lambda: watched.now("ml_trainer_trainings_waiting") == 1)
            assert watched["ml_trainer_core_wait_seconds_count"] == 2
        played.result(PATIENCE)
    assert watched.now("ml_trainer_cores_lent") == watched.now("ml_trainer_trainings_waiting") == 0
    assert watched["ml_trainer_core_wait_seconds_count"] > 2
    assert watched["ml_trainer_core_wait_seconds_sum"] > 0
    assert watched["ml_trainer_core_seconds_total"] > 0


def test_a_training_that_is_refused_is_counted_and_has_not_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving_on(inline(cores=1, max_waiting=0)) as watched, watched.slices.cores.lend():
        watched.begin()
        with MLTrainerEnv(base_url=watched.url) as env:
            env.reset()
            env.call_tool("configure_training")
            with pytest.raises(Exception, match="try again"):
                env.call_tool("run_epochs", num_epochs=1)
        assert watched["ml_trainer_trainings_refused_total"] == 1
        assert watched["ml_trainer_core_wait_seconds_count"] == 0


def test_tools_are_timed_at_every_door_and_a_name_of_a_clients_own_is_no_label(
    watched: Watched,
) -> None:
    watched.play()
    with MLTrainerEnv(base_url=watched.url) as env:
        env.reset()
        for made_up in ("destroy", "destroy_more"):
            with pytest.raises(Exception, match="no tool is named"):
                env.call_tool(made_up)
    assert watched["ml_trainer_tool_call_seconds_count run_epochs"] == 1
    assert watched["ml_trainer_tool_call_seconds_sum run_epochs"] > 0
    assert watched["ml_trainer_tool_call_seconds_count submit_model"] == 1
    assert watched["ml_trainer_tool_call_seconds_count unknown"] == 2
    assert not any("destroy" in name for name in scraped(watched.url))


def test_mistakes_of_the_server_are_counted_and_those_of_agents_are_not(watched: Watched) -> None:
    with MLTrainerEnv(base_url=watched.url) as env:
        env.reset()
        with pytest.raises(Exception, match="learning_rate"):
            env.call_tool("configure_training", learning_rate=-1)
    assert watched["ml_trainer_failures_total"] == 0
    with serving(build(Broken, Settings())) as broken:
        before = scraped(broken)["ml_trainer_failures_total"]
        assert httpx.get(broken + "/metadata").status_code == 500
        assert scraped(broken)["ml_trainer_failures_total"] == before + 1


def test_the_engine_is_named_once_it_is_known(watched: Watched) -> None:
    watched.play()
    engine = watched.slices.engine()
    assert watched.now(f"ml_trainer_engine_info {engine.fingerprint} fp32") == 1


# The door ---------------------------------------------------------------------------------------


def test_all_formats_that_prometheus_asks_for(url: str) -> None:
    plain = httpx.get(url + "/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert plain.headers["content-type"].count("charset") == 1
    families = list(text_string_to_metric_families(plain.text))
    assert all(family.documentation for family in families)
    asked = {"Accept": "application/openmetrics-text;version=1.0.0"}
    open_metrics = httpx.get(url + "/metrics", headers=asked)
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
    assert open_metrics.text.endswith("# EOF\n")


def test_series_are_few_and_none_says_when_it_began(url: str) -> None:
    names = scraped(url)
    assert not [name for name in names if name.split()[0].endswith("_created")]
    assert len(names) < 300


def test_a_guarded_server_tells_its_metrics_to_who_has_the_token(
    serve: Callable[..., str],
) -> None:
    url = serve(token=TOKEN) + "/metrics"
    assert httpx.get(url).status_code == 401
    assert "ml_trainer_epochs_total" in httpx.get(url, headers=bearer(TOKEN)).text


def test_behind_a_prefix(runner: FakeRunner) -> None:
    app = build(partial(MLTrainerEnvironment, runner), Settings())
    with serving(app, root_path="/env") as url:
        assert "ml_trainer_epochs_total" in httpx.get(url + "/env/metrics").text


def test_a_scrape_that_takes_long_holds_nobody_up() -> None:
    """The runner is made by whoever asks first, which reads a folder."""
    asked, made = threading.Event(), threading.Event()

    def find_runner() -> FakeRunner:
        asked.set()
        assert made.wait(PATIENCE)
        return FakeRunner()

    app = build(partial(MLTrainerEnvironment, FakeRunner()), Settings(), find_runner=find_runner)
    with serving(app) as url, ThreadPoolExecutor(1) as threads:
        scrape = threads.submit(scraped, url)
        assert asked.wait(PATIENCE)
        assert httpx.get(url + "/health").json() == {"status": "healthy"}
        made.set()
        assert scrape.result(PATIENCE)
