"""A slow source is left while there are others, and asked again when none was faster."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_data import make_raw

from ml_trainer_env.server import datasets
from ml_trainer_env.server.data import sources as dataset_sources
from ml_trainer_env.server.data.formats import RawData, SourceError
from ml_trainer_env.server.data.pace import BARELY, BRISK, TooSlow
from ml_trainer_env.server.machine.ending import Ending

pytestmark = pytest.mark.usefixtures("cache")


class Lines:
    """Sources that give so many bytes a second; 0: none at all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *speeds: float) -> None:
        self.asked: list[tuple[int, float]] = []
        self._speeds = speeds
        monkeypatch.setattr(dataset_sources, "sources", self)

    def __call__(self, name: str, raw_dir: Path | None) -> list[dataset_sources.Source]:
        return [
            dataset_sources.Source(f"place {i}", lambda _, least, i=i: self.fetch(i, least))
            for i in range(len(self._speeds))
        ]

    def fetch(self, number: int, least: float) -> RawData:
        self.asked.append((number, least))
        if not self._speeds[number]:
            raise SourceError("not there")
        if self._speeds[number] < least:
            raise TooSlow("too slow")
        return make_raw()


FAST, MODEM, DEAD = 10 * BRISK, 10 * BARELY, BARELY / 10


@pytest.mark.parametrize(
    ("speeds", "asked"),
    [
        ((FAST, FAST), [(0, BRISK)]),
        ((MODEM, FAST), [(0, BRISK), (1, BRISK)]),
        ((MODEM, 0, FAST), [(0, BRISK), (1, BRISK), (2, BRISK)]),
        ((FAST,), [(0, BARELY)]),
        ((0, FAST), [(0, BRISK), (1, BARELY)]),
        ((MODEM, 0), [(0, BRISK), (1, BRISK), (0, BARELY)]),
        ((MODEM, MODEM, 0), [(0, BRISK), (1, BRISK), (2, BRISK), (0, BARELY)]),
        ((DEAD, MODEM), [(0, BRISK), (1, BRISK), (0, BARELY), (1, BARELY)]),
        ((MODEM,), [(0, BARELY)]),
    ],
)
def test_the_data_come_from_the_fastest_or_from_whoever_is_left(
    monkeypatch: pytest.MonkeyPatch, speeds: tuple[float, ...], asked: list[tuple[int, float]]
) -> None:
    lines = Lines(monkeypatch, *speeds)
    assert datasets.prepare("mnist").exists()
    assert lines.asked == asked


@pytest.mark.parametrize("speeds", [(DEAD,), (DEAD, DEAD), (DEAD, 0)])
def test_what_would_never_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch, speeds: tuple[float, ...]
) -> None:
    lines = Lines(monkeypatch, *speeds)
    with pytest.raises(datasets.DatasetUnavailable, match="place 0: too slow"):
        datasets.prepare("mnist")
    assert all(lines.asked.count(once) == 1 for once in lines.asked)


def test_no_other_source_is_asked_when_the_process_is_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = Lines(monkeypatch, FAST, FAST)

    def ended(number: int, least: float) -> RawData:
        lines.asked.append((number, least))
        raise Ending

    monkeypatch.setattr(lines, "fetch", ended)
    with pytest.raises(Ending):
        datasets.prepare("mnist")
    assert lines.asked == [(0, BRISK)]
