"""Sessions of the standard MCP door: their places, their silence, and clients that go away."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from fakes import FakeRunner
from fastmcp import Client
from live import eventually, serving
from mcp_play import ByHand, call, client, refused, run, tool_call

from ml_trainer_env.client import MLTrainerEnv
from ml_trainer_env.server.app import build
from ml_trainer_env.server.doors.connections import Connection
from ml_trainer_env.server.doors.mcp.door import ADDRESS, SESSIONS_PER_PLACE
from ml_trainer_env.server.doors.mcp.visitor import BEGIN
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.session.places import Places
from ml_trainer_env.server.settings import Settings

Guests = Places[MLTrainerEnvironment]


@pytest.fixture
def places() -> Guests:
    return Places(2)


@pytest.fixture
def serve_places(runner: FakeRunner, places: Guests) -> Iterator[Callable[..., str]]:
    """Servers whose doors share `places`."""
    with ExitStack() as servers:

        def start(**settings: Any) -> str:
            environment = partial(MLTrainerEnvironment, runner, places=places)
            return servers.enter_context(serving(build(environment, Settings(**settings))))

        yield start
        runner.gate.set()


# Places and silence --------------------------------------------------------------------------


def test_a_session_has_a_place_from_its_first_episode_to_its_end(
    serve_places: Callable[..., str], places: Guests
) -> None:
    url = serve_places()

    async def scenario() -> None:
        async with client(url) as session:
            await session.list_tools()
            assert places.guests() == ()
            await call(session, BEGIN)
            await call(session, BEGIN)
            assert len(places.guests()) == 1

    run(scenario)
    eventually(lambda: places.guests() == ())


def test_the_one_beyond_the_limit_is_told_when_to_try_again(
    serve_places: Callable[..., str],
) -> None:
    url = serve_places()

    async def scenario() -> None:
        async with client(url) as one, client(url) as two, client(url) as three:
            await call(one, BEGIN)
            await call(two, BEGIN)
            assert "try again in about" in await refused(three, BEGIN)
            assert "no episode has begun" in await refused(three, "get_training_status")

    run(scenario)


def test_places_are_counted_across_doors(serve_places: Callable[..., str]) -> None:
    url = serve_places()

    async def scenario() -> None:
        async with client(url) as session, MLTrainerEnv(url) as one, MLTrainerEnv(url) as other:
            await one.reset()
            await call(session, BEGIN)
            with pytest.raises(RuntimeError, match="try again in about"):
                await other.reset()
            await one.close()
            await begun(other)

    run(scenario)


async def begun(env: MLTrainerEnv) -> None:
    """Once the server has noticed that somebody is gone; within the scenario's time."""
    while True:
        try:
            await env.reset()
        except RuntimeError as error:
            if "try again in about" not in str(error):
                raise
            await asyncio.sleep(0.1)
        else:
            return


def test_who_falls_silent_loses_the_place_and_may_begin_again(
    serve_places: Callable[..., str], places: Guests
) -> None:
    url = serve_places(session_timeout=0.2)

    async def scenario() -> None:
        async with client(url) as session:
            await call(session, BEGIN)
            await asyncio.to_thread(eventually, lambda: places.guests() == ())
            message = await refused(session, "get_training_status")
            assert "nothing was asked for 0.2 s" in message
            assert BEGIN in message
            assert (await call(session, BEGIN)).current_epoch == 0

    run(scenario)


# What an operator fixes ----------------------------------------------------------------------


def test_an_evaluation_is_one_attempt(serve_places: Callable[..., str], places: Guests) -> None:
    url = serve_places(mcp_task="medium_fashion", mcp_seed=7, mcp_episodes=1, session_timeout=0.2)

    async def scenario() -> None:
        async with client(url) as session:
            tools = {tool.name: tool for tool in await session.list_tools()}
            offered = tools[BEGIN].inputSchema["properties"]
            assert (offered["task_id"]["const"], offered["seed"]["const"]) == ("medium_fashion", 7)
            assert 'task_id: must be "medium_fashion"' in await refused(
                session, BEGIN, task_id="easy_mnist"
            )
            assert "seed: must be 7" in await refused(session, BEGIN, seed=8)
            begun = await call(session, BEGIN)
            assert begun.task_id == "medium_fashion"
            await asyncio.to_thread(eventually, lambda: places.guests() == ())  # it fell silent
            message = await refused(session, BEGIN, task_id="medium_fashion", seed=7)
            assert "lets a session begin 1 episode" in message

    run(scenario)


def test_another_session_has_an_attempt_of_its_own(serve_places: Callable[..., str]) -> None:
    url = serve_places(mcp_seed=7, mcp_episodes=1)

    async def attempt() -> int:
        async with client(url) as session:
            await call(session, BEGIN)
            grade = (await call(session, "submit_model")).grade
            assert grade is not None
            return grade.attempt

    assert [run(attempt), run(attempt)] == [1, 1]


def test_attempts_are_counted_through_silence(
    serve_places: Callable[..., str], places: Guests
) -> None:
    url = serve_places(session_timeout=1)

    async def scenario() -> None:
        async with client(url) as session:
            await call(session, BEGIN, seed=3)
            await asyncio.to_thread(eventually, lambda: places.guests() == ())
            await call(session, BEGIN, seed=3)
            grade = (await call(session, "submit_model")).grade
            assert grade is not None
            assert grade.attempt == 2

    run(scenario)


def test_a_long_training_is_not_silence(
    serve_places: Callable[..., str], places: Guests, runner: FakeRunner
) -> None:
    url = serve_places(session_timeout=1)

    async def scenario() -> None:
        async with client(url) as session:
            await call(session, BEGIN)
            await call(session, "configure_training")
            runner.gate.clear()
            training = asyncio.create_task(call(session, "run_epochs", num_epochs=1))
            await asyncio.to_thread(runner.started.acquire, timeout=15)
            await asyncio.sleep(1.5)
            assert len(places.guests()) == 1
            runner.gate.set()
            assert (await training).current_epoch == 1

    run(scenario)


# Clients that go away --------------------------------------------------------------------------


async def _hold_a_training(session: Client[Any], runner: FakeRunner) -> asyncio.Task[Any]:
    """A call of run_epochs that is held in its first epoch."""
    await call(session, BEGIN)
    await call(session, "configure_training")
    runner.gate.clear()
    training = asyncio.create_task(session.call_tool("run_epochs", {"num_epochs": 20}))
    await asyncio.to_thread(runner.started.acquire, timeout=15)
    return training


def test_meanwhile_the_status_can_be_asked_for(url: str, runner: FakeRunner) -> None:
    async def scenario() -> None:
        async with client(url) as session:
            training = await _hold_a_training(session, runner)
            status = await call(session, "get_training_status")
            assert status.message == "run_epochs is in progress, 0 epochs finished"
            assert "busy" in await refused(session, "run_epochs", num_epochs=1)
            runner.gate.set()
            assert (await training).structured_content["epochs_run"] == 20

    run(scenario)


def test_a_cancelled_call_stops_at_the_next_epoch(url: str, runner: FakeRunner) -> None:
    async def scenario() -> None:
        async with client(url) as session:
            training = await _hold_a_training(session, runner)
            await session.cancel(session.session._request_id - 1, "changed my mind")
            with pytest.raises(Exception, match="ancelled"):
                await training
            runner.gate.set()
            await call(session, BEGIN)  # waits until nothing of the episode before it runs

    run(scenario)
    assert runner.advanced == 1


def test_a_client_that_vanishes_stops_its_training(
    serve_places: Callable[..., str], places: Guests, runner: FakeRunner
) -> None:
    url = serve_places(session_timeout=1)

    async def scenario() -> None:
        async with client(url) as session:
            training = await _hold_a_training(session, runner)
            training.cancel()

    run(scenario)
    runner.gate.set()
    eventually(lambda: places.guests() == ())
    assert runner.advanced == 1


def test_a_client_whose_connection_breaks_stops_its_training_and_may_go_on(
    url: str, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose, noticed = Connection.lose, threading.Event()
    with ByHand(url) as session:
        session.call(BEGIN)
        session.call("configure_training")
        runner.gate.clear()
        training = tool_call(99, "run_epochs", num_epochs=20)
        with session.http.stream("POST", ADDRESS, json=training):  # which closes the connection
            assert runner.started.acquire(timeout=15)
            monkeypatch.setattr(Connection, "lose", lambda it: (lose(it), noticed.set()))
        assert noticed.wait(15)
        runner.gate.set()
        eventually(lambda: "1 of 100 epochs done" in session.call("get_training_status").text)
    assert runner.advanced == 1


def test_an_ended_session_is_unknown(url: str) -> None:
    with ByHand(url) as session:
        assert session.works()
        assert session.end().status_code == 200
        assert session.ask("ping", {}).status_code == 404


def test_a_session_without_any_request_is_ended(serve: Callable[..., str]) -> None:
    with ByHand(serve(session_timeout=0.2)) as session:

        def is_gone() -> bool:
            time.sleep(0.3)  # asking keeps it open
            return session.ask("ping", {}).status_code == 404

        eventually(is_gone)


def test_sessions_are_limited_too(serve: Callable[..., str]) -> None:
    with ByHand(serve(max_sessions=1)) as session:
        del session.http.headers["mcp-session-id"]
        opened = [session.open().status_code for _ in range(SESSIONS_PER_PLACE)]
    assert opened == [200] * (SESSIONS_PER_PLACE - 1) + [503]
