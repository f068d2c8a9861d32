"""`ml-trainer cluster`: what a visitor is shown, and that it is checked to the bit."""

from __future__ import annotations

import io
import re

import pytest
from command import run
from rich.console import Console

from ml_trainer_env.cluster_show import show
from ml_trainer_env.cluster_show.board import spans
from ml_trainer_env.cluster_show.faults import FAULTS, world
from ml_trainer_env.cluster_show.operator import answer
from ml_trainer_env.cluster_show.screen import Screen
from ml_trainer_env.cluster_show.watched import Watched
from ml_trainer_env.events import ConfigureRanks, RankReport, Restore
from ml_trainer_env.server.cluster.training import Report, start
from ml_trainer_env.server.datasets import DatasetUnavailable

SHORT = ["cluster", "--network", "cluster_cnn", "--windows", "1"]
DIGEST = re.compile("SHA-256 ([0-9a-f]{64})")


def report(**changes):
    ranks = tuple(RankReport(rank=n, alive=n != 3, shards=(n,)) for n in range(4))
    seen = {"step": 5, "made": 5, "seconds": 9.0, "train_loss": 2.0, "val_loss": 2.0}
    return Report(**{**seen, "ranks": ranks, **changes})


def test_a_training_is_shown_line_by_line_where_there_is_no_terminal() -> None:
    status, out = run(*SHORT, "--fault", "crash", "--fault", "slow")
    assert status == 0
    assert "rank 2 was lost" in out
    assert "restarted from the checkpoint of step 10" in out
    assert "rank host alive shards step s grad norm agreement loss" in out
    assert "pid" not in out
    assert len(set(DIGEST.findall(out))) == 1
    assert "all 1 reports and every weight, moment and checkpoint: equal to the bit" in out
    assert "\x1b" not in out


def test_a_difference_is_told_and_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    again = show._again

    def other(of, seed, events):
        return again(of, seed, events)._replace(state=start(of, seed))

    monkeypatch.setattr(show, "_again", other)
    status, out = run(*SHORT, "--fault", "none")
    assert status == 1
    assert "1 of 1 reports are equal; the states are not" in out
    assert len(set(DIGEST.findall(out))) == 2


def test_without_the_text_it_says_what_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def corpus(network):
        raise DatasetUnavailable("tried everything")

    monkeypatch.setattr(show, "corpus", corpus)
    status, out = run("cluster")
    assert status == 2
    assert "--network cluster_cnn" in out
    status, out = run(*SHORT)
    assert status == 2
    assert "tried everything" in out


def test_a_process_that_ends_by_itself_ends_the_show(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(self, hosts, model, apart):
        raise EOFError

    monkeypatch.setattr(Watched, "begin", begin)
    status, out = run(*SHORT, "--ranks-as-processes")
    assert status == 1
    assert "a host's process ended, and not by this program" in out


@pytest.mark.parametrize("ranks", [2, 4, 16])
def test_every_fault_can_be_chosen_with_any_number_of_ranks(ranks: int) -> None:
    of = world("cluster_cnn", ranks, 4, FAULTS)
    assert len({type(fault) for fault in of.faults}) >= 10
    assert all(getattr(fault, "host", 0) < ranks for fault in of.faults)


def test_the_operator_does_little() -> None:
    assert answer(0, None, report()) is None  # a dead host that nobody waited for yet
    late = report(incidents=("a collective timed out, waiting for rank 3",))
    assert answer(0, 2.0, late) == (
        ConfigureRanks(use_spare=(3,)),
        "a spare host takes the place of rank 3",
    )
    for bad in (report(skipped=2), report(val_loss=2.5)):
        found = answer(25, 2.0, bad)
        assert found
        assert found[0] == Restore(step=4)  # the job has just started from step 5


def test_a_terminal_has_a_live_board_and_the_lines_stay_above_it() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, _environ={"TERM": "xterm"})
    ranks = [against(each) for each in report().ranks]
    with Screen(console, 4, processes=True) as screen:
        screen.window((0, 1, 2, 4), ranks)
        screen.processes({0: 100, 1: 101, 2: 102})
        screen.step(2.5, ranks)
        screen.say("something happened")
    assert "something happened" in written.getvalue()
    plain = Console(record=True, file=io.StringIO(), width=100)
    plain.print(screen.board.shown())
    shown = " ".join(plain.export_text().split())
    assert "window 1 of 4 [#........................] 1 of 25 steps" in shown
    assert "0 0 100 yes 0 - - -0.500 -" in shown
    assert "3 4 - no 3 - - -0.500 -" in shown


def against(rank: RankReport) -> RankReport:
    return rank.model_copy(update={"agreement": -0.5})


def test_numbers_in_a_row_are_told_together() -> None:
    assert [spans(each) for each in ((0, 1, 2, 7), (4,), ())] == ["0-2, 7", "4", "-"]


@pytest.mark.slow
def test_every_host_a_process_the_dead_one_replaced_and_the_same_bits() -> None:
    arguments = ["--ranks", "2", "--fault", "dead,slow", "--ranks-as-processes"]
    status, out = run("cluster", "--network", "cluster_cnn", "--windows", "3", *arguments)
    assert status == 0, out
    [dead] = re.findall(r"host 1: process (\d+) was killed", out)
    [spare] = re.findall(r"host 2: process (\d+) was started", out)
    assert dead != spare
    assert "a collective timed out, waiting for rank 1" in out
    assert "operator: a spare host takes the place of rank 1" in out
    assert len(set(DIGEST.findall(out))) == 1
    assert "equal to the bit" in out
