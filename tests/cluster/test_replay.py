"""A window again on other hosts: what differs comes of them, and a look changes nothing."""

from dataclasses import replace

import pytest
import torch
from clusters import STEADILY, WINDOW, OneByOne, play, same, world

from ml_trainer_env.events import ConfigureData, ConfigureRanks, Diagnose
from ml_trainer_env.server.cluster.networks import NETWORKS
from ml_trainer_env.server.cluster.packed import pack, unpack
from ml_trainer_env.server.worlds import (
    BadBatches,
    BitFlip,
    Corruption,
    Crash,
    Desync,
    PoisonedShards,
    WrongOrder,
)

REPLAY = Diagnose(what="replay")
SAME = "8 steps on other hosts: the same"


@pytest.mark.parametrize(
    "fault", [BadBatches(3, 2), PoisonedShards((2,), 1), WrongOrder(2, "one_shard")]
)
def test_what_comes_of_data_is_the_same_in_a_replay(fault):
    state, _ = play(world(fault), WINDOW)
    after, (report,) = play(world(fault), REPLAY, state=state)
    assert len(report.finding) == 9
    assert all(line.endswith("the same") for line in report.finding)
    assert report.finding[-1] == SAME
    assert same(after, state)
    assert after.sampler == state.sampler
    assert after.seconds > state.seconds + 7


def test_what_comes_of_a_host_differs_and_is_counted():
    of = world(Corruption(host=1, since=0, scale=-1))
    _, (_, report) = play(of, WINDOW, REPLAY)
    assert report.finding[-1].startswith("8 of 8 steps differ: a host computes wrongly")
    of = world(BitFlip(at=3, bit=27, share=0.5))
    _, (_, report) = play(of, WINDOW, REPLAY)
    assert [line.endswith("the same") for line in report.finding[:4]] == [True, True, True, False]
    assert "something happened once" in report.finding[-1]


def test_a_rank_that_was_out_of_step_when_the_window_began_is_so_in_the_replay():
    of = world(Desync(at=20, host=2))
    events = [WINDOW, WINDOW, REPLAY]
    state, (*_, report) = play(of, *events)
    assert report.finding[-1] == SAME
    assert state.window is not None
    assert set(state.window.apart) == {2}
    _, reports = play(of, *events, ranks=OneByOne(NETWORKS[of.network]))
    assert reports[-1] == report
    again = unpack(*pack(state))
    assert again.window is not None
    assert torch.equal(again.window.apart[2], state.window.apart[2])
    assert play(of, REPLAY, state=again)[1] == play(of, REPLAY, state=state)[1]


def test_what_hung_on_whose_a_micro_shard_was_is_not_replayed_by_others():
    of = world(Desync(at=20, host=2))
    _, (*_, report) = play(of, WINDOW, WINDOW, ConfigureRanks(exclude=(1,)), REPLAY)
    assert report.finding == ("there is no window to replay",)
    _, (*_, report) = play(world(), WINDOW, WINDOW, ConfigureRanks(exclude=(1,)), REPLAY)
    assert report.finding[-1] == SAME


def test_a_new_quarantine_ends_what_can_be_replayed():
    _, (*_, report) = play(world(), WINDOW, ConfigureData(quarantine=(3,)), REPLAY)
    assert report.finding == ("there is no window to replay",)


def test_with_one_host_there_is_none_to_compare_with():
    state, (_, report) = play(world(ranks=1), WINDOW, REPLAY)
    assert report.finding == ("one rank works: there is no other host to compare with",)
    assert state.made == 25


def test_a_window_without_a_step_leaves_the_one_that_can_be_replayed():
    of = world(Crash(at=15, host=3, dead=True))
    state, _ = play(of, WINDOW)
    waited, (nothing,) = play(of, WINDOW, state=state)
    assert nothing.losses == ()
    assert waited.window is state.window
    _, (_, report) = play(of, ConfigureRanks(use_spare=(3,)), REPLAY, state=waited)
    assert report.finding[-1] == SAME


def test_a_look_does_not_change_what_hosts_do_later_and_another_look_draws_anew():
    of = world(Corruption(host=1, since=0, scale=-1, chance=0.5))
    state, _ = play(of, WINDOW)
    looked, (first, second) = play(of, REPLAY, REPLAY, state=state)
    assert looked.made == state.made == first.made
    assert first.finding != second.finding
    later, (shown,) = play(of, STEADILY, state=state)
    waited = replace(looked, seconds=state.seconds)
    assert same(later, play(of, STEADILY, state=waited)[0])
    assert shown == play(of, STEADILY, state=waited)[1][0]
