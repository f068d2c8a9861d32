"""What a process shares is made once, also by a crowd that comes before it is there."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from ml_trainer_env.server.session import process

CROWD = 8


def test_a_crowd_that_arrives_at_once_gets_one_and_the_same() -> None:
    made: list[object] = []
    others_wait = threading.Event()

    def make() -> object:
        others_wait.wait(0.2)  # long enough for the others to ask, too
        made.append(object())
        return made[-1]

    get, start = process._once(make), threading.Barrier(CROWD)

    def ask(_: int) -> object:
        start.wait()
        return get()

    with ThreadPoolExecutor(CROWD) as threads:
        got = list(threads.map(ask, range(CROWD)))
    assert len(made) == 1
    assert set(got) == set(made)
