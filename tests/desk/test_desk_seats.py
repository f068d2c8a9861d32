"""Seats: a visitor has an episode of its own, sees it trained, and gives the place back."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from fakes import FakeRunner
from live import eventually

from ml_trainer_env.server.desk.seats import Seat, Seats
from ml_trainer_env.server.desk.story import Story, live
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.session.places import NoPlace, Places
from ml_trainer_env.server.validation import ActionError, InvalidArguments


def story_of(env: MLTrainerEnvironment) -> Story:
    story = live(env)
    assert story is not None
    return story


@pytest.fixture
def places() -> Places[MLTrainerEnvironment]:
    return Places(2)


@pytest.fixture
def seats(runner: FakeRunner, places: Places[MLTrainerEnvironment]) -> Seats:
    return Seats(partial(MLTrainerEnvironment, runner, places=places))


async def ready(seats: Seats, visitor: str = "me") -> Seat:
    seat = seats.seat(visitor)
    await seat.begin(task_id="easy_mnist", seed=0)
    await seat.call("configure_training", {})
    return seat


def test_a_training_is_seen_epoch_by_epoch(seats: Seats, runner: FakeRunner) -> None:
    async def watch() -> list[int]:
        seat = await ready(seats)
        runner.gate.clear()
        seen: list[int] = []
        training = seat.train({"num_epochs": 3})
        ahead = asyncio.ensure_future(anext(training))
        await asyncio.to_thread(runner.started.acquire)
        assert not ahead.done()  # before the first epoch has finished there is nothing to see
        runner.gate.set()
        await ahead
        seen.append(len(story_of(seat.environment).points))
        seen += [len(story_of(seat.environment).points) async for _ in training]
        assert not seat.training
        seen.append(len(story_of(seat.environment).points))
        return seen

    seen = asyncio.run(watch())
    assert seen == sorted(seen)
    assert seen[0] >= 1
    assert seen[-1] == 3


def test_stopping_keeps_what_was_trained(seats: Seats, runner: FakeRunner) -> None:
    async def stopped() -> Story:
        seat = await ready(seats)
        runner.gate.clear()
        training = seat.train({"num_epochs": 20})
        ahead = asyncio.ensure_future(anext(training, None))
        await asyncio.to_thread(runner.started.acquire)
        seat.stop()
        runner.gate.set()
        await ahead
        async for _ in training:
            pass
        return story_of(seat.environment)

    story = asyncio.run(stopped())
    assert story.status.current_epoch == 1
    last = story.played[-1].status
    assert last is not None
    assert "called off" in last.message


def test_whoever_abandons_the_iteration_stops_the_training(
    seats: Seats, runner: FakeRunner
) -> None:
    async def abandon() -> Seat:
        seat = await ready(seats)
        training = seat.train({"num_epochs": 20})
        await anext(training)
        await training.aclose()
        return seat

    runner.script = lambda epoch, plan: (1.0 / epoch, 0.5, 0.0)
    seat = asyncio.run(abandon())
    assert seat.environment.episode is not None
    seat.environment.episode.wait_until_idle()
    assert story_of(seat.environment).status.current_epoch <= 20
    assert not seat.training


def test_a_mistake_is_raised_and_changes_nothing(seats: Seats) -> None:
    async def wrong() -> Story:
        seat = await ready(seats)
        with pytest.raises(InvalidArguments, match="num_epochs: must be a whole number"):
            async for _ in seat.train({"num_epochs": 21}):
                pass
        with pytest.raises(InvalidArguments, match="learning_rate: must be"):
            await seat.call("configure_training", {"learning_rate": 11})
        return story_of(seat.environment)

    assert asyncio.run(wrong()).status.current_epoch == 0


def test_visitors_have_episodes_of_their_own_within_the_capacity(
    seats: Seats, places: Places[MLTrainerEnvironment]
) -> None:
    async def three() -> None:
        first, second = await ready(seats, "a"), await ready(seats, "b")
        await first.call("run_epochs", {"num_epochs": 2})
        assert story_of(second.environment).status.current_epoch == 0
        with pytest.raises(NoPlace, match="try again"):
            await ready(seats, "c")
        seats.leave("a")
        assert places.guests() == (second.environment,)
        await ready(seats, "c")

    asyncio.run(three())
    assert len(places.guests()) == 2


def test_leaving_stops_a_training(seats: Seats, runner: FakeRunner) -> None:
    async def leave() -> Seat:
        seat = await ready(seats)
        runner.gate.clear()
        training = seat.train({"num_epochs": 20})
        ahead = asyncio.ensure_future(anext(training, None))
        await asyncio.to_thread(runner.started.acquire)
        seats.leave("me")
        runner.gate.set()
        with pytest.raises(ActionError, match="closed"):
            await ahead
        return seat

    asyncio.run(leave())
    eventually(lambda: runner.advanced == 1)


def test_a_visitor_without_an_episode_is_told_to_start_one(seats: Seats) -> None:
    with pytest.raises(ActionError, match="start one"):
        seats.require("stranger")
    seats.leave("stranger")
    seats.leave(None)
