"""What micro-shards read, where faults choose it, spoil it, and where it is augmented."""

import pytest
import torch
from clusters import STEADY, WINDOW, play, same, world

from ml_trainer_env.events import Diagnose, Restore, Train
from ml_trainer_env.server.cluster import reading
from ml_trainer_env.server.cluster.networks import NETWORKS
from ml_trainer_env.server.cluster.reading import corpus, read
from ml_trainer_env.server.worlds import BadBatches, PoisonedShards, Reading, Sampler, WrongOrder

AT = Sampler().skipping


def rows(of, sampler, shard=3, augmentation=0.0):
    return read(of, of.draw(0).place, [Reading(shard, sampler)], augmentation)


def mislabelled(of, sampler, shard=3):
    """By how much, against what the same sampler reads of clean labels."""
    clean = world(*(fault for fault in of.faults if isinstance(fault, WrongOrder)))
    found, expected = rows(of, sampler, shard), rows(clean, sampler, shard)
    assert torch.equal(found.inputs, expected.inputs)
    (moved,) = ((found.targets - expected.targets) % 10).unique().tolist()
    return moved


# Labels -------------------------------------------------------------------------------------------


def test_bad_batches_come_again_when_they_are_read_again_and_not_when_they_are_skipped():
    of = world(BadBatches(position=22, count=2))
    state, (shown,) = play(of, WINDOW)
    assert min(shown.losses[22:24]) > max(shown.losses[18:22]) + 1
    _, (_, again) = play(of, Restore(step=20), WINDOW, state=state)
    assert min(again.losses[2:4]) > max(again.losses[:2]) + 1
    _, (_, skipped) = play(of, Restore(step=20, skip_batches=4), WINDOW, state=state)
    assert max(skipped.losses) < shown.losses[22] - 1


def test_labels_are_wrong_at_a_position_of_the_stream_whatever_the_order():
    bad, poisoned = world(BadBatches(5, 2)), world(PoisonedShards((3,), 5))
    for order in (AT(0), AT(0).reshuffled(), AT(2).reshuffled().skipping(-2)):
        there = [order.skipping(n) for n in range(8)]
        assert [bool(mislabelled(bad, each)) for each in there] == [n in (5, 6) for n in range(8)]
        assert [bool(mislabelled(poisoned, each)) for each in there] == [n >= 5 for n in range(8)]


def test_labels_go_by_what_is_read_and_not_by_what_was_wanted():
    one = world(WrongOrder(0, "one_shard"), PoisonedShards((3,), 0))
    assert mislabelled(one, AT(4), shard=3) == 0
    one = world(WrongOrder(0, "one_shard"), PoisonedShards((0,), 0))
    assert mislabelled(one, AT(4), shard=3) == 5
    again = world(WrongOrder(4, "starts_over", period=2), BadBatches(5, 1))
    assert [bool(mislabelled(again, AT(n))) for n in range(4, 10)] == [False, True] * 3


def test_of_faults_that_mislabel_the_first_decides_and_none_undoes_another():
    bad, poisoned = BadBatches(0, 9), PoisonedShards((4,), 0)  # of shard 4 each moves by 5
    assert mislabelled(world(bad, poisoned), AT(1), shard=4) == 5
    assert mislabelled(world(PoisonedShards((6,), 0), BadBatches(0, 9)), AT(1), shard=6) == 5
    assert mislabelled(world(BadBatches(0, 9), PoisonedShards((6,), 0)), AT(1), shard=6) == 7


# A broken sampler ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sorted", "one_shard", "starts_over"])
def test_a_broken_sampler_reads_what_it_should_not_until_there_is_a_new_order(kind):
    of = world(WrongOrder(position=4, kind=kind, period=2))

    def inputs(sampler, at=of, shard=3):
        return rows(at, sampler, shard).inputs

    assert torch.equal(inputs(AT(3)), inputs(AT(3), world()))
    assert not torch.equal(inputs(AT(7)), inputs(AT(7), world()))
    healed = AT(6).reshuffled().skipping(1)
    assert torch.equal(inputs(healed), inputs(healed, world()))
    if kind == "starts_over":
        assert torch.equal(inputs(AT(4)), inputs(AT(6)))
    if kind == "one_shard":
        assert torch.equal(inputs(AT(7)), inputs(AT(7), shard=0))


@pytest.mark.parametrize("kind", ["sorted", "one_shard", "starts_over"])
def test_a_new_order_heals_from_the_position_on_and_wards_nothing_off_before(kind):
    of = world(WrongOrder(position=4, kind=kind, period=2))
    for at, healed in ((3, False), (4, True), (5, True)):
        later = AT(at).reshuffled().skipping(7 - at)
        assert torch.equal(rows(of, later).inputs, rows(world(), later).inputs) == healed


# Splits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("there", "wanted"), [(10, 4), (10, 10), (3, 8), (1001, 128)])
def test_some_rows_of_a_split_are_spread_over_all_of_it(there, wanted):
    rows_of_it = reading.Rows(torch.arange(there), torch.arange(there))
    chosen = reading._spread(rows_of_it, wanted).inputs.tolist()
    assert len(chosen) == min(there, wanted)
    gaps = {b - a for a, b in zip(chosen, [*chosen[1:], there], strict=True)}
    assert chosen[0] == 0
    assert max(gaps) - min(gaps) <= 1 <= min(gaps)


# Augmentation -------------------------------------------------------------------------------------


def test_a_strength_of_zero_changes_nothing_and_another_one_is_drawn_by_name():
    of = world()
    plain, once = rows(of, AT(3)), rows(of, AT(3), augmentation=1.0)
    assert torch.equal(once.targets, plain.targets)
    assert not torch.equal(once.inputs, plain.inputs)
    assert torch.equal(once.inputs, rows(of, AT(3), augmentation=1.0).inputs)
    assert torch.equal(plain.inputs, rows(of, AT(3)).inputs)


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_images_are_shifted_by_at_most_so_many_pixels_and_zeros_move_in(strength):
    of, most, found = world(), round(4 * strength), set()
    for n in range(4):
        for plain, moved in zip(
            rows(of, AT(n)).inputs[0], rows(of, AT(n), augmentation=strength).inputs[0], strict=True
        ):
            moves = range(-most, most + 1)
            (shift, *_) = [s for s in _pairs(moves) if torch.equal(_moved(plain, *s), moved)]
            found.add(shift)
    assert {abs(move) for shift in found for move in shift} == set(range(most + 1))


def _pairs(moves):
    return [(down, right) for down in moves for right in moves]


def _moved(image, down, right):
    """One image (C, H, W), rolled, with zeros where it came round."""
    found = image.roll((down, right), (1, 2))
    for dim, move in ((1, down), (2, right)):
        first = 0 if move > 0 else image.shape[dim] + move
        found.narrow(dim, first, abs(move)).zero_()
    return found


def test_of_text_some_of_what_is_read_is_replaced_and_no_target(monkeypatch):
    text = torch.arange(16 * 64 * 64).view(16, 64, 64) % 61
    fake = reading.Corpus(reading.Rows(text, text), *[reading.Rows(text[0], text[0])] * 2)
    monkeypatch.setattr(reading, "corpus", lambda _: fake)
    of = world(network="cluster_lm")
    differ = []
    for n in range(64):
        plain, other = rows(of, AT(n)), rows(of, AT(n), augmentation=1.0)
        assert torch.equal(other.targets, plain.targets)
        assert other.inputs.dtype == plain.inputs.dtype
        assert other.inputs.max() < NETWORKS["cluster_lm"].classes
        differ.append((other.inputs != plain.inputs).float().mean())
    assert 0.08 < torch.stack(differ).mean() < 0.12


def test_what_is_measured_is_not_augmented_and_a_replay_is_as_its_window_was():
    augmented = Train(settings=STEADY.model_copy(update={"augmentation": 1.0}))
    of = world()
    state, (shown,) = play(of, augmented)
    plain, (other,) = play(of, Train(settings=STEADY))
    assert shown.losses != other.losses
    assert same(state, play(of, augmented)[0])
    _, (replayed, losses) = play(
        of, Diagnose(what="replay"), Diagnose(what="shard_loss"), state=state
    )
    assert all(line.endswith("the same") for line in replayed.finding)
    assert losses.finding == play(of, Diagnose(what="shard_loss"), state=state)[1][0].finding
    assert corpus(of.network).val is corpus(of.network).val
    assert not same(plain, state)
