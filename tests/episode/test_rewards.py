"""The step reward: its numbers by hand, and that no way of cutting an episode into steps pays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import curve, cuts, finished, histories

from ml_trainer_env.models import EpochRecord, RewardTerms
from ml_trainer_env.server.episode.rewards import step_reward

BUDGET = 25


def rewards(
    history: Sequence[EpochRecord], boundaries: Sequence[int], budget: int = BUDGET
) -> list[RewardTerms]:
    """The rewards of the steps that end at the given boundaries."""
    return [step_reward(history[:a], history[:b], budget) for a, b in pairwise(boundaries)]


def total(terms: Sequence[RewardTerms]) -> float:
    return sum(term.total for term in terms)


def test_progress_pays_the_rise_of_the_best_accuracy():
    history = curve([0.5, 0.7, 0.6, 0.8])
    terms = rewards(history, [0, 1, 2, 3, 4])
    assert [t.progress for t in terms] == pytest.approx([0.15, 0.06, 0.0, 0.03])


def test_progress_starts_from_zero():
    assert step_reward([], curve([0.9]), 100).progress == pytest.approx(0.27)


def test_convergence_pays_once_in_each_fifth_that_reaches_a_new_lowest_loss():
    # Fifths of 10 epochs: 1-2, 3-4, 5-6, 7-8, 9-10. New lowest losses at epochs 1, 2, 3, 8.
    losses = [2.0, 1.5, 1.0, 1.2, 1.1, 1.0, 1.3, 0.9, 0.9, 0.95]
    history = curve([0.5] * 10, val_loss=losses)
    paid = [t.convergence for t in rewards(history, list(range(11)), 10)]
    assert paid == pytest.approx([0.05, 0, 0.05, 0, 0, 0, 0, 0.05, 0, 0])
    assert step_reward([], history, 10).convergence == pytest.approx(0.15)


def test_convergence_pays_at_most_five_times_for_a_loss_that_always_falls():
    history = curve([0.5] * 100, val_loss=[10 / (i + 1) for i in range(100)])
    paid = [t.convergence for t in rewards(history, list(range(101)), 100)]
    assert [i for i, value in enumerate(paid) if value] == [0, 20, 40, 60, 80]
    assert sum(paid) == pytest.approx(0.25)


def test_twenty_calls_of_one_epoch_earn_what_one_call_of_twenty_earns():
    history = curve([0.5 + i / 100 for i in range(20)], val_loss=[2 - i / 20 for i in range(20)])
    one, twenty = rewards(history, [0, 20], 100), rewards(history, list(range(21)), 100)
    assert total(twenty) == pytest.approx(total(one)) == pytest.approx(0.3 * 0.69 + 0.05)


def test_a_divergence_costs():
    history = curve([0.5, None])
    assert step_reward(history[:1], history, 60) == RewardTerms(divergence=-0.2)


def test_a_diverging_step_keeps_what_its_finished_epochs_earned():
    terms = step_reward([], curve([0.5, None]), 60)
    assert terms.progress == pytest.approx(0.15)
    assert terms.divergence == -0.2


def test_overfitting_costs_the_gap_beyond_the_tolerated_one():
    history = curve([0.7, 0.7], clean_train_accuracy=[0.99, 0.88])
    assert step_reward([], history, 80).overfitting == pytest.approx(-0.05 * 0.10)
    assert step_reward(history[:1], history, 80).total == pytest.approx(-0.05 * 0.10)


@pytest.mark.parametrize("clean", [0.6, 0.7, 0.75, 0.78])
def test_a_gap_of_up_to_eight_points_costs_nothing(clean: float):
    history = curve([0.7], clean_train_accuracy=[clean])
    assert step_reward([], history, 80).overfitting == pytest.approx(0.0, abs=1e-12)


def test_the_gap_is_that_of_the_last_finished_epoch_of_the_step():
    history = curve([0.7, 0.7, None], clean_train_accuracy=[0.7, 0.98, 0.0])
    assert step_reward([], history, 80).overfitting == pytest.approx(-0.05 * 0.20)
    assert step_reward(history[:2], history, 80).overfitting == 0.0


def test_the_final_score_is_added_to_what_the_last_step_earned():
    history = curve([0.5])
    assert step_reward([], history, 60, 0.8).submission == 0.8
    assert step_reward([], history, 60, 0.8).total == pytest.approx(0.15 + 0.05 + 0.8)
    assert step_reward(history, history, 60, 0.8) == RewardTerms(submission=0.8)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (curve([0.5]), ()),
        (curve([0.5]), curve([0.6, 0.7])),
        ((), curve([0.5] * 61)),
    ],
    ids=["shorter", "another past", "beyond the budget"],
)
def test_what_no_step_can_do_is_refused(
    before: tuple[EpochRecord, ...], after: tuple[EpochRecord, ...]
):
    with pytest.raises(ValueError, match="60 epochs"):
        step_reward(before, after, 60)


@given(histories(max_size=BUDGET))
def test_a_step_that_did_not_train_earns_exactly_nothing(history: tuple[EpochRecord, ...]):
    assert step_reward(history, history, BUDGET) == RewardTerms()


@given(st.data(), histories(max_size=BUDGET))
def test_cutting_a_step_into_more_steps_never_pays(
    data: st.DataObject, history: tuple[EpochRecord, ...]
):
    coarse = data.draw(cuts(0, len(history)))
    fine = sorted([*coarse, *data.draw(cuts(0, len(history)))])
    assert total(rewards(history, fine)) <= total(rewards(history, coarse)) + 1e-9


@given(st.data(), histories(max_size=BUDGET))
def test_progress_and_convergence_do_not_depend_on_the_cut(
    data: st.DataObject, history: tuple[EpochRecord, ...]
):
    whole = step_reward([], history, BUDGET)
    steps = rewards(history, data.draw(cuts(0, len(history))))
    assert sum(t.progress for t in steps) == pytest.approx(whole.progress)
    assert sum(t.convergence for t in steps) == pytest.approx(whole.convergence)


@given(st.data(), histories(max_size=BUDGET))
def test_when_every_divergence_ends_a_step_each_costs_once(
    data: st.DataObject, history: tuple[EpochRecord, ...]
):
    ends = [i + 1 for i, record in enumerate(history) if record.diverged]
    steps = rewards(history, sorted([*data.draw(cuts(0, len(history))), *ends]))
    assert sum(t.divergence for t in steps) == pytest.approx(-0.2 * len(ends))


@given(st.data(), histories(max_size=BUDGET))
def test_an_episode_pays_at_most_its_best_accuracy_and_five_bonuses(
    data: st.DataObject, history: tuple[EpochRecord, ...]
):
    steps = rewards(history, data.draw(cuts(0, len(history))))
    best = max((r.val_accuracy for r in history if r.val_accuracy is not None), default=0.0)
    assert sum(t.progress for t in steps) == pytest.approx(0.3 * best)
    assert -1e-9 <= sum(t.convergence for t in steps) <= 0.25 + 1e-9
    assert total(steps) <= 0.3 * best + 0.25 + 1e-9


@given(st.data(), histories(max_size=BUDGET))
def test_every_term_has_its_sign_and_is_a_number(
    data: st.DataObject, history: tuple[EpochRecord, ...]
):
    for terms in rewards(history, data.draw(cuts(0, len(history)))):
        assert terms.progress >= 0
        assert terms.convergence >= 0
        assert terms.divergence in (0.0, -0.2)
        assert terms.overfitting <= 0
        assert terms.submission == 0
        assert math.isfinite(terms.total)
        assert "-0.0" not in {str(value) for value in terms.model_dump().values()}


@given(histories(max_size=BUDGET - 2), st.floats(0, 1))
def test_oscillating_earns_nothing_the_second_time(
    history: tuple[EpochRecord, ...], accuracy: float
):
    size = len(history)
    once = (*history, finished(size + 1, accuracy, val_loss=0.0))
    again = (*once, finished(size + 2, accuracy, val_loss=0.0))
    assert step_reward(once, again, BUDGET) == RewardTerms()
