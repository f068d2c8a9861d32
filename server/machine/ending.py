"""The process is to end: work that takes long hears of it, and stops within a moment.

Servers wait for what is in progress before they close an application. So the signals are heard here
first. No locks: a signal may arrive in the middle of anything.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TypeAlias

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GLANCE = 0.05  # seconds between two looks

_Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None
_told: list[bool] = []


class Ending(Exception):
    """The process is to end; whatever was asked for is not done."""


def tell() -> None:
    """The process is to end."""
    _told.append(True)


def pause(seconds: float) -> None:
    """Sleep, but not past the end. Raises `Ending`."""
    until = time.monotonic() + seconds
    while True:
        if _told:
            raise Ending("the server is ending")
        left = until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(GLANCE, left))


def die_of(number: int, _: FrameType | None = None) -> NoReturn:
    """End the process by this signal, as it does by default."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(128 + number)  # the first process of a container, which the default spares


@contextmanager
def at_once() -> Generator[None, None, None]:
    """Within the block a signal ends the process then and there: nothing has to be stopped yet."""
    with _answered_by(lambda _: die_of):
        yield


@contextmanager
def heard() -> Generator[None, None, None]:
    """Within the block a signal is told, and then does what it did before."""
    _told.clear()

    def told_first(usual: _Handler) -> _Handler:
        def answer(number: int, frame: FrameType | None) -> None:
            tell()
            if callable(usual):
                usual(number, frame)
            elif usual == signal.SIG_DFL:
                die_of(number)

        return answer

    try:
        with _answered_by(told_first):
            yield
    finally:
        _told.clear()  # a process may serve again


@contextmanager
def _answered_by(answer: Callable[[_Handler], _Handler]) -> Generator[None, None, None]:
    """`answer(usual)` in place of each usual handler; only a main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in usual.items():
        signal.signal(number, answer(handler))
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
