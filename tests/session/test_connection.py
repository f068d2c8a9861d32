"""A call whose client is lost rings: whoever waits on its behalf need not look."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from ml_trainer_env.server.runtime.asking import Rings
from ml_trainer_env.server.session.connection import Connection, current_connection
from ml_trainer_env.server.session.waiting import Stop


@pytest.fixture
def connection() -> Iterator[Connection]:
    """That of the calls of this test, and of no other."""
    connection = Connection()
    token = current_connection.set(connection)
    yield connection
    current_connection.reset(token)


def test_a_lost_client_rings_for_its_calls(connection: Connection) -> None:
    stop, woken = Stop(), threading.Event()
    assert isinstance(stop, Rings)
    with stop.bell.wakes(woken):
        assert not stop()
        connection.lose()
        assert woken.is_set()
        assert stop()


def test_an_ended_call_rings_and_hears_of_its_client_no_more(connection: Connection) -> None:
    stop, woken = Stop(), threading.Event()
    with stop.bell.wakes(woken):
        stop.end()
        assert woken.is_set()
        assert stop()
        woken.clear()
        connection.lose()
        assert not woken.is_set()
