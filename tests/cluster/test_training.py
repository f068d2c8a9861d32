"""A cluster goes on: bits, faults, remedies. On the CNN, where a window takes a second."""

import math
from dataclasses import replace

import pytest
import torch
from clusters import EVERYTHING, STEADILY, STEADY, WINDOW, OneByOne, play, same, world

from ml_trainer_env.events import (
    ConfigureData,
    ConfigureRanks,
    Diagnose,
    Restore,
    Train,
)
from ml_trainer_env.server.cluster import clock
from ml_trainer_env.server.cluster.networks import NETWORKS
from ml_trainer_env.server.cluster.reading import read
from ml_trainer_env.server.cluster.sampler import feeding
from ml_trainer_env.server.cluster.state import merged
from ml_trainer_env.server.cluster.training import advance, start
from ml_trainer_env.server.worlds import (
    BadResume,
    BitFlip,
    Corruption,
    Crash,
    Desync,
    PoisonedShards,
    Reading,
    Sampler,
    SlowHost,
    SlowShard,
)

# Bits ---------------------------------------------------------------------------------------------


def test_the_same_events_give_the_same_bits_and_a_fork_changes_nothing():
    of = world()
    state, _ = play(of, WINDOW)
    once, first = play(of, WINDOW, state=state)
    play(of, Restore(step=0), WINDOW, state=state)
    again, second = play(of, WINDOW, state=state)
    assert same(once, again)
    assert first == second


def test_ranks_with_memories_of_their_own_give_the_bits_of_ranks_that_share_one():
    of = world(*EVERYTHING, deadline=240.0)
    events = [WINDOW, WINDOW, Diagnose(what="replay"), WINDOW, WINDOW, WINDOW]
    events += [ConfigureRanks(use_spare=(0,), shares=(1, 5, 5, 5)), WINDOW]
    one, reports = play(of, *events)
    other, others = play(of, *events, ranks=OneByOne(NETWORKS[of.network]))
    assert reports == others
    assert same(one, other)
    assert one.struck == 7


@pytest.mark.parametrize("network", NETWORKS)
def test_moving_micro_shards_costs_time_and_not_one_bit(network):
    of = world(network=network)
    equal, (_, shown) = play(of, ConfigureRanks(), STEADILY)
    moved, (_, other) = play(of, ConfigureRanks(exclude=(1,), shares=(1, 7, 8)), STEADILY)
    assert same(equal, moved)
    assert shown.losses == other.losses
    assert moved.seconds > equal.seconds + 10
    assert [len(each.shards) for each in other.ranks] == [1, 0, 7, 8]


def test_a_seed_and_a_name_of_another_kind_are_another_run():
    one, _ = play(world(), WINDOW)
    other, _ = advance(world(), 1, start(world(), 1), WINDOW)
    third, _ = play(replace(world(), name="others"), WINDOW)
    assert not same(one, other)
    assert not same(one, third)


# The clock and the disk ---------------------------------------------------------------------------


def test_a_step_takes_about_a_second_and_the_deadline_ends_the_last_window():
    of = world()
    state, reports = play(of, *[WINDOW] * 5)
    assert 0.95 < reports[0].seconds / reports[0].step < 1.1
    assert of.deadline <= state.seconds < of.deadline + 1.5
    with pytest.raises(ValueError, match="the deadline of 120 s has passed"):
        play(of, WINDOW, state=state)


def test_checkpoints_are_written_as_often_as_wanted_and_cost_time():
    seldom = Train(settings=STEADY.model_copy(update={"checkpoint_every": 100}))
    state, (shown,) = play(world(), STEADILY)
    without, (other,) = play(world(), seldom)
    assert shown.checkpoints == (0, 10, 20)
    assert other.checkpoints == (0,)
    assert same(state, without)
    assert math.isclose(state.seconds, without.seconds + 2 * clock.CHECKPOINT)


def test_a_checkpoint_brings_back_weights_moments_and_the_sampler():
    of = world()
    state, _ = play(of, WINDOW)
    back, (report,) = play(of, Restore(step=20), state=state)
    assert (back.step, back.sampler) == (20, Sampler().skipping(20))
    assert back.seconds == state.seconds + clock.RESTART
    assert report.incidents == ("restored the checkpoint of step 20",)
    assert same(back, replace(state, model=state.checkpoints[-1].model))
    assert not same(back, state)
    skipped, _ = play(of, Restore(step=20, skip_batches=3, load_optimizer=False), state=state)
    assert skipped.sampler == Sampler().skipping(23)
    assert skipped.model.updates == 0
    assert not any(moment.any() for moment in skipped.model.moments)


def test_a_restored_run_is_led_back_to_where_it_was_restored_by_a_crash():
    of = world(Crash(at=40, host=0))
    state, _ = play(of, WINDOW, Restore(step=10))
    assert [each.step for each in state.checkpoints] == [0, 10]
    _, (_, shown) = play(of, WINDOW, Restore(step=10), state=play(of, WINDOW)[0])
    assert shown.checkpoints == (0, 10)
    state, (shown,) = play(of, WINDOW, state=state)
    assert shown.incidents[1] == "restarted from the checkpoint of step 10"


def test_shares_hold_whatever_data_shards_are_out():
    of = world()
    shared = ConfigureRanks(shares=(1, 5, 5, 5))
    _, (_, same_ones, out) = play(
        of, shared, ConfigureData(reshuffle=True), ConfigureData(quarantine=(3, 9))
    )
    for each in (same_ones, out):
        assert [len(rank.shards) for rank in each.ranks] == [1, 5, 5, 5]
    assert (same_ones.quarantined, out.quarantined) == ((), (3, 9))


@pytest.mark.parametrize("out", [(0, 1, 2, 3), (12, 13, 14, 15), (0, 5, 10, 15)])
def test_a_step_is_as_long_and_as_large_with_data_shards_out(out):
    """Else whoever wants more steps would take good shards out."""
    before, (usual,) = play(world(), WINDOW)
    state, (_, report) = play(world(), ConfigureData(quarantine=out), WINDOW)
    assert report.made == usual.made
    assert state.seconds == pytest.approx(before.seconds + clock.RELOAD)
    assert [len(rank.shards) for rank in report.ranks] == [4, 4, 4, 4]
    read = [shard for shard, loss in enumerate(report.shard_losses) if loss is not None]
    assert read == [shard for shard in range(16) if shard not in out]


def test_what_stands_in_for_a_data_shard_reads_other_rows_of_the_next_one():
    assert feeding(frozenset({3, 4, 15})) == (0, 1, 2, 5, 5, *range(5, 15), 0)
    of, at = world(), Sampler(7)
    own, *others = (
        read(of, of.draw(0).place, [Reading(5, at, instead_of)]).inputs
        for instead_of in (None, 3, 4)
    )
    assert not any(torch.equal(own, other) for other in others)
    assert not torch.equal(*others)


def test_a_report_says_which_ranks_and_data_shards_are_out():
    _, reports = play(world(), ConfigureRanks(exclude=(2,)), ConfigureData(quarantine=(7, 1)))
    assert [each.excluded for each in reports] == [(2,), (2,)]
    assert [each.quarantined for each in reports] == [(), (1, 7)]


@pytest.mark.parametrize("event", [ConfigureData(reshuffle=True), ConfigureData(quarantine=(1,))])
def test_to_configure_data_costs_seconds(event):
    state, (report,) = play(world(), event)
    assert state.seconds == report.seconds == clock.RELOAD > 0


def test_a_reshuffle_stays_when_a_checkpoint_is_loaded_that_has_not_seen_it():
    of = world(Crash(at=35, host=0))
    state, (_, _, crashed) = play(of, WINDOW, ConfigureData(reshuffle=True), WINDOW)
    assert crashed.incidents[1] == "restarted from the checkpoint of step 30"
    assert state.sampler == Sampler(5, 30, (25,))
    back, _ = play(of, Restore(step=20, skip_batches=2), state=state)
    assert back.sampler == Sampler(2, 22, (25,))


def test_one_rank_that_works_agrees_with_nobody():
    _, (alone,) = play(world(ranks=1), WINDOW)
    assert alone.ranks[0].agreement is None
    assert alone.ranks[0].gradient_norm is not None
    _, (two,) = play(world(ranks=2), WINDOW)
    assert all(each.agreement is not None for each in two.ranks)


# Faults, and what is right and wrong --------------------------------------------------------------


def test_a_poisoned_shard_shows_in_its_loss_and_not_in_its_rank_alone():
    of = world(PoisonedShards(shards=(6,), position=10))
    state, (_, shown) = play(of, WINDOW, WINDOW)
    worst = max(range(16), key=lambda shard: shown.shard_losses[shard])
    assert worst == 6
    out, (_, cured) = play(of, ConfigureData(quarantine=(6,)), WINDOW, state=state)
    assert cured.shard_losses[6] is None
    assert cured.val_loss < play(of, WINDOW, state=state)[1][0].val_loss
    _, (finding,) = play(of, Diagnose(what="shard_loss"), state=out)
    told = [float(line.split()[-1]) for line in finding.finding]
    assert max(range(16), key=told.__getitem__) == 6
    _, (_, moved) = play(of, ConfigureRanks(exclude=(1,)), WINDOW, state=state)
    assert max(range(16), key=lambda shard: moved.shard_losses[shard]) == 6


def test_a_turned_sign_disagrees_and_is_gone_with_its_host():
    of = world(Corruption(host=1, since=0, scale=-1))
    state, (shown,) = play(of, WINDOW)
    assert min(range(4), key=lambda rank: shown.ranks[rank].agreement) == 1
    _, (replay,) = play(of, Diagnose(what="replay"), state=state)
    assert any(line.endswith("different") for line in replay.finding)
    _, (_, spare) = play(of, ConfigureRanks(use_spare=(1,)), WINDOW, state=state)
    clean = start(world(), 0)
    clean = replace(clean, model=state.model, sampler=state.sampler)
    _, (without,) = play(world(), WINDOW, state=clean)
    assert spare.losses[0] == without.losses[0]
    assert spare.gradient_norms[0] == without.gradient_norms[0]


def test_a_slow_host_and_a_slow_shard_are_told_apart_by_moving_the_shard():
    by_host = world(SlowHost(host=2, since=0, times=2))
    by_shard = world(SlowShard(shard=9, since=0, times=5))
    for of in (by_host, by_shard):
        _, (shown,) = play(of, WINDOW)
        assert max(range(4), key=lambda rank: shown.ranks[rank].step_seconds) == 2
    moved = ConfigureRanks(shares=(4, 6, 2, 4))  # shard 9 is rank 1's now
    slowest = [
        max(range(4), key=lambda rank: report.ranks[rank].step_seconds)
        for of in (by_host, by_shard)
        for report in play(of, moved, WINDOW)[1][1:]
    ]
    assert slowest == [2, 1] or slowest == [1, 1]
    assert play(by_shard, moved, WINDOW)[1][1].ranks[1].step_seconds > 2


def test_a_host_out_of_step_has_another_checksum_and_spoils_the_model_until_weights_are_broadcast():
    of = world(Desync(at=3, host=2))
    state, (shown,) = play(of, WINDOW)
    _, (sums,) = play(of, Diagnose(what="weight_checksum"), state=state)
    told = [line.split()[-1] for line in sums.finding]
    assert told[0] == told[1] == told[3] != told[2]
    assert not torch.equal(merged(state), state.model.weights)
    cured, _ = play(of, ConfigureRanks(), state=state)
    assert torch.equal(merged(cured), state.model.weights)
    _, (healthy,) = play(world(), WINDOW)
    assert shown.val_loss > healthy.val_loss


def test_a_lost_host_costs_the_steps_since_the_checkpoint_and_a_dead_one_stops_everything():
    once = world(Crash(at=15, host=3))
    state, (shown, after) = play(once, WINDOW, WINDOW)
    assert shown.incidents == ("rank 3 was lost", "restarted from the checkpoint of step 10")
    assert (shown.step, shown.made) == (10, len(shown.losses))
    assert after.step == 35
    dead = world(Crash(at=15, host=3, dead=True))
    state, (_, waiting) = play(dead, WINDOW, WINDOW)
    assert waiting.incidents == ("a collective timed out, waiting for rank 3",)
    assert not waiting.ranks[3].alive
    assert waiting.losses == ()
    _, (recorder,) = play(dead, Diagnose(what="flight_recorder"), state=state)
    assert recorder.finding[3] == "rank 3: does not answer, lost 1 time"
    _, (_, spare) = play(dead, ConfigureRanks(use_spare=(3,)), STEADILY, state=state)
    _, (_, fewer) = play(dead, ConfigureRanks(exclude=(3,)), STEADILY, state=state)
    assert spare.step == fewer.step == 35
    assert spare.losses == fewer.losses


def test_a_truncated_checkpoint_is_found_and_an_older_one_helps():
    of = world(BadResume(at=24, damage="truncated"))
    state, (shown,) = play(of, WINDOW)
    assert shown.incidents[0] == "the job was moved to other machines"
    assert not state.model.weights[len(state.model.weights) // 2 :].any()
    _, (found,) = play(of, Diagnose(what="verify_checkpoint"), state=state)
    assert found.finding == ("step 0: whole", "step 10: whole", "step 20: damaged")
    good, _ = play(of, Restore(step=10), state=state)
    assert good.model.weights[-1000:].any()
    bad, _ = play(of, Restore(step=20), state=state)
    assert not bad.model.weights[-1000:].any()


def test_a_flipped_bit_changes_one_weight_on_every_rank_alike():
    of = world(BitFlip(at=20, bit=30, share=0.5))
    state, (shown,) = play(of, WINDOW)
    healthy, (other,) = play(world(), WINDOW)
    assert shown.losses[:20] == other.losses[:20]
    _, (sums,) = play(of, Diagnose(what="weight_checksum"), state=state)
    assert len({line.split()[-1] for line in sums.finding}) == 1
    assert not same(state, healthy)
