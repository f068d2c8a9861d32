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
from ml_trainer_env.server.episode.rewards import RETURNS, STEPS, step_reward
from ml_trainer_env.server.tasks import TASKS, grade

LEVELS = (1.5, 1.0, 0.8, 0.6, 0.5)


def rewards(history: Sequence[EpochRecord], boundaries: Sequence[int]) -> list[RewardTerms]:
    """The rewards of the steps that end at the given boundaries."""
    return [step_reward(history[:a], history[:b], LEVELS) for a, b in pairwise(boundaries)]


def total(terms: Sequence[RewardTerms]) -> float:
    return sum(term.total for term in terms)


def test_progress_pays_the_rise_of_the_best_accuracy():
    history = curve([0.5, 0.7, 0.6, 0.8])
    terms = rewards(history, [0, 1, 2, 3, 4])
    assert [t.progress for t in terms] == pytest.approx([0.15, 0.06, 0.0, 0.03])


def test_progress_starts_from_zero():
    assert step_reward([], curve([0.9]), LEVELS).progress == pytest.approx(0.27)


def test_convergence_pays_each_level_once_when_the_loss_reaches_it():
    losses = [2.0, 1.5, 1.6, 0.7, 0.9, 0.7, 0.1]  # two levels at once, in the fourth and the last
    history = curve([0.5] * 7, val_loss=losses)
    paid = [t.convergence for t in rewards(history, list(range(8)))]
    assert paid == pytest.approx([0, 0.05, 0, 0.1, 0, 0, 0.1])
    assert step_reward([], history, LEVELS).convergence == pytest.approx(0.25)


def test_convergence_does_not_pay_a_loss_that_falls_without_reaching_a_level():
    history = curve([0.1] * 25, val_loss=[2.3 - i / 100 for i in range(25)])
    assert step_reward([], history, LEVELS).convergence == 0


def test_twenty_calls_of_one_epoch_earn_what_one_call_of_twenty_earns():
    history = curve(
        [0.5 + i / 100 for i in range(20)],
        val_loss=[2 - i / 20 for i in range(20)],
        clean_train_accuracy=[0.6 + i / 50 for i in range(20)],
    )
    one, twenty = rewards(history, [0, 20]), rewards(history, list(range(21)))
    assert total(twenty) == pytest.approx(total(one))
    assert total(one) == pytest.approx(0.3 * 0.69 + 0.05 - 0.05 * (0.98 - 0.69 - 0.08))


def test_a_divergence_costs():
    history = curve([0.5, None])
    assert step_reward(history[:1], history, LEVELS) == RewardTerms(divergence=-0.2)


def test_divergences_cost_twice_at_most():
    history = curve([None] * 25)
    paid = [t.total for t in rewards(history, list(range(26)))]
    assert paid == [-0.2, -0.2] + [0.0] * 23


def test_a_diverging_step_keeps_what_its_finished_epochs_earned():
    terms = step_reward([], curve([0.5, None]), LEVELS)
    assert terms.progress == pytest.approx(0.15)
    assert terms.divergence == -0.2


def test_overfitting_costs_the_gap_beyond_the_tolerated_one_and_gives_it_back():
    history = curve([0.7] * 3, clean_train_accuracy=[0.99, 0.88, 0.7])
    paid = [t.overfitting for t in rewards(history, [0, 1, 2, 3])]
    assert paid == pytest.approx([-0.05 * 0.21, 0.05 * 0.11, 0.05 * 0.10])
    assert step_reward([], history, LEVELS).overfitting == 0.0


@pytest.mark.parametrize("clean", [0.6, 0.7, 0.75, 0.78])
def test_a_gap_of_up_to_eight_points_costs_nothing(clean: float):
    history = curve([0.7], clean_train_accuracy=[clean])
    assert step_reward([], history, LEVELS).overfitting == pytest.approx(0.0, abs=1e-12)


def test_a_diverged_epoch_has_no_gap():
    history = curve([0.7, 0.7, None], clean_train_accuracy=[0.7, 0.98, 0.0])
    assert step_reward([], history, LEVELS).overfitting == pytest.approx(-0.05 * 0.20)
    assert step_reward(history[:2], history, LEVELS).overfitting == 0.0


def test_the_final_score_is_added_to_what_the_last_step_earned():
    history = curve([0.5])
    assert step_reward([], history, LEVELS, 0.8).submission == 0.8
    assert step_reward([], history, LEVELS, 0.8).total == pytest.approx(0.15 + 0.1 + 0.8)
    assert step_reward(history, history, LEVELS, 0.8) == RewardTerms(submission=0.8)


@pytest.mark.parametrize(
    ("before", "after"),
    [(curve([0.5]), ()), (curve([0.5]), curve([0.6, 0.7]))],
    ids=["shorter", "another past"],
)
def test_what_no_step_can_do_is_refused(
    before: tuple[EpochRecord, ...], after: tuple[EpochRecord, ...]
):
    with pytest.raises(ValueError, match="continued"):
        step_reward(before, after, LEVELS)


@given(histories(max_size=25))
def test_a_step_that_did_not_train_earns_exactly_nothing(history: tuple[EpochRecord, ...]):
    assert step_reward(history, history, LEVELS) == RewardTerms()


@given(st.data(), histories(max_size=25))
def test_no_term_depends_on_the_cut(data: st.DataObject, history: tuple[EpochRecord, ...]):
    whole = step_reward([], history, LEVELS)
    steps = rewards(history, data.draw(cuts(0, len(history))))
    for term in RewardTerms.model_fields:
        summed = sum(getattr(step, term) for step in steps)
        assert summed == pytest.approx(getattr(whole, term), abs=1e-9)


@pytest.mark.parametrize("task_id", TASKS)
@given(data=st.data(), history=histories(max_size=25))
def test_returns_and_rewards_stay_in_the_documented_range(
    task_id: str, data: st.DataObject, history: tuple[EpochRecord, ...]
):
    task = TASKS[task_id]
    bounds = data.draw(cuts(0, len(history)))
    score = grade(task, history).score
    steps = [
        step_reward(
            history[:a], history[:b], task.loss_levels, score if n == len(bounds) - 1 else None
        )
        for n, (a, b) in enumerate(pairwise(bounds), 1)
    ]
    # Training stops at a divergence, so a step holds one at most.
    if all(sum(r.diverged for r in history[a:b]) <= 1 for a, b in pairwise(bounds)):
        assert all(STEPS[0] - 1e-9 <= step.total <= STEPS[1] + 1e-9 for step in steps)
    assert RETURNS[0] - 1e-9 <= total(steps) <= RETURNS[1] + 1e-9


def test_both_ends_of_the_range_are_reached():
    worst = curve([None, None, 0.0], clean_train_accuracy=[0, 0, 1.0], val_loss=[9, 9, 9])
    assert step_reward([], worst, LEVELS, 0.0).total == pytest.approx(RETURNS[0])
    taken_over = curve([0.0], clean_train_accuracy=[1.0], val_loss=[9])
    best = curve([0.0, 1.0], clean_train_accuracy=[1.0, 1.0], val_loss=[9, 0.0])
    assert step_reward(taken_over, best, LEVELS, 1.0).total == pytest.approx(RETURNS[1])


@given(st.data(), histories(max_size=25))
def test_every_term_is_a_plain_number(data: st.DataObject, history: tuple[EpochRecord, ...]):
    for terms in rewards(history, data.draw(cuts(0, len(history)))):
        assert terms.progress >= 0
        assert terms.convergence >= 0
        assert terms.divergence <= 0
        assert terms.submission == 0
        assert math.isfinite(terms.total)
        assert "-0.0" not in {str(value) for value in terms.model_dump().values()}


@given(histories(max_size=23), st.floats(0, 1))
def test_oscillating_earns_nothing_the_second_time(
    history: tuple[EpochRecord, ...], accuracy: float
):
    size = len(history)
    once = (*history, finished(size + 1, accuracy, val_loss=0.0))
    again = (*once, finished(size + 2, accuracy, val_loss=0.0))
    assert step_reward(once, again, LEVELS) == RewardTerms()
