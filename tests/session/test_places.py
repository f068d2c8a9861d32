"""Places: every open episode has one, whichever door it came in by."""

from __future__ import annotations

import pytest
from fakes import FakeRunner

from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.session.places import NoPlace, Places


def visitor(places: Places[MLTrainerEnvironment]) -> MLTrainerEnvironment:
    return MLTrainerEnvironment(FakeRunner(), places=places)


def test_the_one_beyond_the_limit_is_told_when_to_try_again() -> None:
    places: Places[MLTrainerEnvironment] = Places(2)
    first, second, third = (visitor(places) for _ in range(3))
    first.reset()
    second.reset()
    with pytest.raises(NoPlace, match=r"all 2 places .* try again in about \d+ s"):
        third.reset()
    assert places.guests() == (first, second)


def test_a_session_that_begins_another_episode_keeps_its_place() -> None:
    places: Places[MLTrainerEnvironment] = Places(1)
    env = visitor(places)
    env.reset()
    env.reset(task_id="hard_cifar")
    assert places.guests() == (env,)


def test_closing_gives_the_place_back_once() -> None:
    places: Places[MLTrainerEnvironment] = Places(1)
    first, second = visitor(places), visitor(places)
    first.reset()
    first.close()
    first.close()
    second.reset()
    assert places.guests() == (second,)


def test_a_session_without_an_episode_takes_none() -> None:
    places: Places[MLTrainerEnvironment] = Places(1)
    idle, playing = visitor(places), visitor(places)
    playing.reset()
    idle.close()
    assert places.guests() == (playing,)


def test_options_that_cannot_be_used_take_no_place() -> None:
    places: Places[MLTrainerEnvironment] = Places(1)
    with pytest.raises(Exception, match="task_id"):
        visitor(places).reset(task_id="no such task")
    assert places.guests() == ()
