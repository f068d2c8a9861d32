"""What happens once, and what hosts do of their own: each by itself, however many there are."""

import math

import pytest
import torch
from clusters import SETTINGS, STEADILY, WINDOW, play, same, world

from ml_trainer_env.events import ConfigureRanks, Diagnose, Diagnosis, Restore, Train
from ml_trainer_env.server.cluster import clock
from ml_trainer_env.server.cluster.networks import NETWORKS
from ml_trainer_env.server.cluster.packed import pack
from ml_trainer_env.server.cluster.state import merged, most_bytes
from ml_trainer_env.server.worlds import (
    BadResume,
    Corruption,
    Crash,
    Desync,
    SlowHost,
    WrongRate,
)

RECORDER = Diagnose(what="flight_recorder")
RIGHT = Train(settings=SETTINGS.model_copy(update={"revision": 1}))


@pytest.mark.parametrize("fault", [WrongRate(at=3, times=5), BadResume(24, "old_rate", times=5)])
def test_a_wrong_rate_stays_until_somebody_sets_it(fault):
    of = world(fault)
    state, _ = play(of, WINDOW)
    _, (wrong,) = play(of, WINDOW, state=state)
    _, (corrected,) = play(of, RIGHT, state=state)
    assert math.isclose(wrong.learning_rate, 5 * corrected.learning_rate, rel_tol=0.05)


@pytest.mark.parametrize("second", [WrongRate(at=6, times=0.5), BadResume(24, "old_rate", 0.5)])
def test_a_second_wrong_rate_multiplies_the_first(second):
    state, _ = play(world(WrongRate(at=3, times=4), second), WINDOW)
    assert state.wrong_rate == (2.0, 0)


def test_a_wrong_rate_after_somebody_has_set_it_stands_alone():
    of = world(WrongRate(at=3, times=4), WrongRate(at=30, times=0.5))
    state, _ = play(of, WINDOW, RIGHT)
    assert state.wrong_rate == (0.5, 1)


def test_a_job_that_is_moved_has_new_hosts_and_leaves_the_faults_of_the_old_ones():
    of = world(SlowHost(host=1, since=0, times=3), BadResume(40, "old_rate", 1.0))
    state, _ = play(of, ConfigureRanks(exclude=(3,)), WINDOW, ConfigureRanks(use_spare=(2,)))
    assert state.fleet.hosts == (4, 5, 8, 7)
    moved, (shown,) = play(of, WINDOW, state=state)
    assert moved.fleet == state.fleet
    assert max(each.step_seconds for each in shown.ranks) < 1.2


def test_a_dead_host_is_left_behind_when_the_job_is_moved():
    of = world(Crash(at=10, host=2, dead=True), BadResume(10, "old_rate", 1.0))
    _, (_, shown) = play(of, WINDOW, WINDOW)
    assert all(each.alive for each in shown.ranks)
    assert len(shown.losses) == 25


def test_two_corruptions_strike_each_by_itself():
    def factors(*hosts):
        of = world(*(Corruption(host, since=0, scale=2, chance=0.5) for host in hosts))
        draw, made = of.draw(0), range(64)
        return [
            [
                math.prod(
                    fault.factor(host, 1.0, draw, f"fault {n} of host {host} in step {step}")
                    for n, fault in enumerate(of.faults)
                )
                for step in made
            ]
            for host in hosts
        ]

    one, other = factors(0, 1)
    assert one != other
    assert {1.0, 2.0, 4.0} == set(factors(0, 0)[0])  # two of one host, not always both


def test_corruptions_of_two_hosts_are_drawn_apart_in_a_training():
    faults = [Corruption(host, since=0, scale=9, chance=0.5) for host in (0, 1)]
    _, (both,) = play(world(*faults), STEADILY)
    _, (first,) = play(world(faults[0]), STEADILY)
    assert both.ranks[0].gradient_norm != both.ranks[1].gradient_norm
    assert first.ranks[0].gradient_norm > 2 * first.ranks[1].gradient_norm


def test_the_recorder_counts_what_happened_to_hosts_that_served():
    of = world(Crash(at=5, host=1), Crash(at=30, host=3))
    state, (*_, out) = play(of, ConfigureRanks(exclude=(3,)), WINDOW, WINDOW, RECORDER)
    assert [line.split(", lost ")[1] for line in out.finding] == [
        "0 times",
        "1 time",
        "0 times",
        "0 times",
    ]
    assert state.lost == (1,)
    assert state.struck == 2


def test_a_crash_of_a_host_that_was_replaced_strikes_nothing():
    of = world(Crash(at=35, host=1))
    state, (_, shown) = play(of, ConfigureRanks(use_spare=(1,)), WINDOW)
    assert shown.incidents == ()
    assert state.struck == 1
    assert state.lost == ()


def test_with_every_host_out_of_step_the_training_goes_on():
    of = world(*(Desync(at=4 + host, host=host) for host in range(4)))
    state, (_, shown, _) = play(of, WINDOW, WINDOW, Diagnose(what="replay"))
    assert set(state.apart) == {0, 1, 2, 3}
    assert len(shown.losses) == 25
    assert not torch.equal(merged(state), state.model.weights)
    assert same(state, play(of, WINDOW, WINDOW)[0])
    weighed = sum(tensor.nbytes for tensor in pack(state)[1].values())
    assert weighed <= most_bytes(NETWORKS[of.network])


def test_crashes_that_are_due_at_once_start_the_job_again_once():
    """A host that is down cannot crash; and nobody piles up crashes by waiting for them."""
    of = world(*(Crash(at=20 + n, host=2) for n in range(8)), Crash(at=25, host=0))
    state, (waited, window) = play(of, ConfigureRanks(use_spare=(1,)), WINDOW)
    assert waited.seconds > 28
    assert window.incidents == (
        "rank 2 was lost",
        "rank 0 was lost",
        "restarted from the checkpoint of step 0",
    )
    assert (len(window.losses), state.lost, state.struck) == (1, (2, 0), 9)
    step = window.seconds - waited.seconds - clock.TIMEOUT - clock.RESTART
    assert 0.8 < step < 1.2


def test_what_is_rare_costs_its_seconds():
    """Of the guide's table: the others are in the tests of their events."""
    diagnoses: dict[Diagnosis, float] = {
        "weight_checksum": 1.0,
        "shard_loss": 4.0,
        "flight_recorder": 0.5,
        "verify_checkpoint": 2.0,
    }
    for what, seconds in diagnoses.items():
        _, (report,) = play(world(), Diagnose(what=what))
        assert report.seconds == seconds
    for event, seconds in (
        (ConfigureRanks(), 9.0),
        (ConfigureRanks(exclude=(1,)), 9.0),
        (ConfigureRanks(use_spare=(0, 1)), 29.0),
        (Restore(step=0), 9.0),
    ):
        _, (report,) = play(world(), event)
        assert report.seconds == seconds
    usual, crashed = (play(world(*faults), WINDOW)[1][0] for faults in ((), (Crash(at=3, host=2),)))
    lost = crashed.seconds - usual.seconds * len(crashed.losses) / len(usual.losses)
    assert lost == pytest.approx(15, abs=0.5)
