"""Whoever prepares something long hears that the process is to end, before all others do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import pytest
from live import eventually

from ml_trainer_env.server.machine import ending
from ml_trainer_env.server.machine.ending import Ending
from ml_trainer_env.server.session.waiting import InternalError, details_in_the_log


@pytest.fixture
def heard() -> Iterator[None]:
    with ending.heard():
        yield


def test_a_pause_ends_with_the_process(heard: None) -> None:
    ended: list[BaseException] = []

    def prepare() -> None:
        try:
            ending.pause(600)
        except Ending as error:
            ended.append(error)

    thread = threading.Thread(target=prepare)
    thread.start()
    ending.pause(0)
    assert not ended
    ending.tell()
    thread.join(10)
    assert len(ended) == 1
    with pytest.raises(Ending):
        ending.pause(0)


def test_a_process_may_serve_again(heard: None) -> None:
    ending.tell()
    with ending.heard():
        ending.pause(0)
        ending.tell()
    ending.pause(0)


@pytest.mark.parametrize("number", ending.SIGNALS)
def test_a_signal_is_told_first_and_then_does_what_it_did(number: signal.Signals) -> None:
    told: list[bool] = []

    def usual(_: int, __: FrameType | None) -> None:
        with pytest.raises(Ending):
            ending.pause(0)
        told.append(True)

    before = signal.signal(number, usual)
    try:
        with ending.heard():
            signal.raise_signal(number)
            assert told == [True]
        assert signal.getsignal(number) is usual
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("context", ["heard", "at_once"])
@pytest.mark.parametrize("number", ending.SIGNALS)
def test_a_signal_that_ended_the_process_still_does(context: str, number: signal.Signals) -> None:
    code = f"""
import signal, sys, time
from ml_trainer_env.server.machine import ending
if {context!r} == "heard":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
with ending.{context}():
    print(flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        program.stdout.readline()
        program.send_signal(number)
        assert program.wait(10) == -number


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a process number of its own")
@pytest.mark.parametrize("number", ending.SIGNALS)
def test_the_first_process_of_a_container_ends_too(number: signal.Signals) -> None:
    code = f"""
import signal
from ml_trainer_env.server.machine import ending
with ending.at_once():
    signal.raise_signal({int(number)})
"""
    unshare = shutil.which("unshare")
    command = [unshare or "unshare", "--pid", "--fork", sys.executable, "-c", code]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if "unshare" in ended.stderr:
        pytest.skip(ended.stderr)
    assert ended.returncode == 128 + number


def test_only_a_main_thread_looks_after_signals() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def elsewhere() -> None:
        with ending.heard(), ending.at_once():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    eventually(lambda: not thread.is_alive())
    assert seen == [before]


def test_a_client_is_told_in_words_and_it_is_nobodys_mistake(
    heard: None, caplog: pytest.LogCaptureFixture
) -> None:
    ending.tell()
    with pytest.raises(InternalError, match="the server is ending"), details_in_the_log():
        ending.pause(1)
    assert not caplog.records
