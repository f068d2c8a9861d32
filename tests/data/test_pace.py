"""Which downloads are worth waiting for, told without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_trainer_env.server.data.formats import SourceError
from ml_trainer_env.server.data.pace import BARELY, BRISK, WINDOW_S, Pace, TooSlow, all_failed

SILENCE = 30.0
RATES = st.sampled_from([BARELY, BRISK])
GAPS = st.lists(st.floats(0.05, SILENCE - 1), min_size=1, max_size=60)


class Download:
    """Bytes that arrive as a test says."""

    def __init__(self, least: float) -> None:
        self.now = 1_000.0
        self.done = 0
        self._pace = Pace(least, SILENCE, lambda: self.now)

    def after(self, seconds: float, arrived: float) -> None:
        self.now += seconds
        self.done += int(arrived)
        self._pace.reached(self.done)

    def for_ever(self, seconds: float, arrived: float) -> None:
        while True:
            self.after(seconds, arrived)


@given(RATES, GAPS, st.floats(1.01, 1_000))
def test_what_is_fast_enough_is_kept_however_it_comes(
    least: float, gaps: list[float], times: float
) -> None:
    download = Download(least)
    for gap in gaps:
        download.after(gap, gap * least * times + 1)


@given(RATES, st.floats(0.05, SILENCE - 1), st.floats(0, 0.95))
def test_what_is_too_slow_is_left_within_two_windows(
    least: float, gap: float, times: float
) -> None:
    download = Download(least)
    began = download.now
    with pytest.raises(TooSlow, match=r"too slow, [\d.]+ kB/s"):
        download.for_ever(gap, max(1, gap * least * times - 1))
    assert download.now - began <= 2 * (WINDOW_S + SILENCE)


@given(st.floats(0.1, 5))
def test_it_is_noticed_when_a_fast_one_becomes_slow(gap: float) -> None:
    download = Download(BRISK)
    for _ in range(100):
        download.after(gap, gap * BRISK * 20)
    fast = download.now
    with pytest.raises(TooSlow):
        download.for_ever(gap, 1)
    assert download.now - fast <= 2 * WINDOW_S + 2 * gap


def test_a_silence_is_borne_for_a_while_and_is_not_slowness() -> None:
    download = Download(BRISK)
    download.after(SILENCE, 0)  # before the first byte
    download.after(0.1, 10_000_000)
    download.after(SILENCE - 1, 0)
    download.after(0.5, 50_000_000)
    with pytest.raises(SourceError, match="nothing arrived for 30 s") as silence:
        download.after(SILENCE + 1, 0)
    assert not isinstance(silence.value, TooSlow)


def test_what_is_there_already_and_is_unpacked_in_silence_is_not_slow() -> None:
    download = Download(BRISK)
    for _ in range(100):
        download.after(0.1, 1_000_000)
    download.after(SILENCE - 1, 0)
    download.after(0.1, 100_000_000)  # the client moves it to its place


def test_of_several_failures_one_that_was_slow_may_be_asked_again() -> None:
    failed, slow = SourceError("a: HTTP status 404"), TooSlow("b: too slow, 1.0 kB/s")
    assert type(all_failed([failed])) is SourceError
    assert type(all_failed([failed, slow])) is TooSlow
    assert str(all_failed([failed, slow])) == "a: HTTP status 404; b: too slow, 1.0 kB/s"
