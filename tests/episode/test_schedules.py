"""Learning rate schedules: the rates by hand, exact adjustments, and what restarts a schedule."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_trainer_env.models import Schedule, TrainingConfig
from ml_trainer_env.server.episode.schedules import RunningSchedule, after_change

KINDS: tuple[Schedule, ...] = ("constant", "step", "cosine", "warmup_cosine")

learning_rates = st.floats(min_value=0, max_value=10, exclude_min=True)
configs = st.builds(
    TrainingConfig,
    learning_rate=learning_rates,
    lr_schedule=st.sampled_from(KINDS),
    warmup_epochs=st.integers(0, 20),
)


def config(kind: Schedule, learning_rate: float = 0.1, warmup_epochs: int = 5) -> TrainingConfig:
    return TrainingConfig(
        lr_schedule=kind, learning_rate=learning_rate, warmup_epochs=warmup_epochs
    )


def rates(kind: Schedule, horizon: int, *, first: int = 0, warmup_epochs: int = 5) -> list[float]:
    schedule = RunningSchedule.start(config(kind, 1.0, warmup_epochs), first, horizon)
    return [schedule.rate(epoch) for epoch in range(first, first + horizon)]


@st.composite
def settings_of_a_schedule(draw: st.DrawFn) -> tuple[RunningSchedule, int, int]:
    """A schedule with its first epoch and its horizon, inside a budget of 100."""
    first = draw(st.integers(0, 99))
    horizon = draw(st.integers(1, 100 - first))
    return RunningSchedule.start(draw(configs), first, horizon), first, horizon


def test_constant():
    assert rates("constant", 4) == [1.0] * 4


def test_step_drops_tenfold_at_each_third():
    assert rates("step", 9) == pytest.approx([1.0] * 3 + [0.1] * 3 + [0.01] * 3)


def test_step_thirds_of_a_horizon_that_three_does_not_divide():
    # T/3 is 10/3: drops from i = 3.33 and i = 6.67 on.
    assert rates("step", 10) == pytest.approx([1.0] * 4 + [0.1] * 3 + [0.01] * 3)


@pytest.mark.parametrize("horizon", range(1, 101))
def test_step_never_drops_more_than_twice(horizon: int):
    values = rates("step", horizon)
    assert min(values) >= 0.01
    assert values == sorted(values, reverse=True)


def test_step_drops_to_round_numbers():
    schedule = RunningSchedule.start(config("step", 0.001), 0, 60)
    assert [schedule.rate(e) for e in (0, 20, 40)] == [0.001, 0.0001, 0.00001]


def test_cosine():
    assert rates("cosine", 4) == pytest.approx(
        [1.0, 0.5 + math.sqrt(2) / 4, 0.5, 0.5 - math.sqrt(2) / 4]
    )


def test_warmup_cosine():
    # w = 3: 1/4, 2/4, 3/4, then a cosine over the 4 that remain.
    assert rates("warmup_cosine", 7, warmup_epochs=3) == pytest.approx(
        [0.25, 0.5, 0.75, 1.0, 0.5 + math.sqrt(2) / 4, 0.5, 0.5 - math.sqrt(2) / 4]
    )


def test_warmup_cosine_without_warmup_is_cosine():
    assert rates("warmup_cosine", 10, warmup_epochs=0) == rates("cosine", 10)


@pytest.mark.parametrize("horizon", [1, 3, 4])
def test_a_horizon_no_longer_than_the_warmup_only_warms_up(horizon: int):
    values = rates("warmup_cosine", horizon, warmup_epochs=4)
    assert values == pytest.approx([0.2, 0.4, 0.6, 0.8][:horizon])


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_counts_from_the_epoch_it_was_set_at(kind: Schedule):
    assert rates(kind, 20, first=37) == rates(kind, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_beyond_the_horizon_the_last_rate_stays(kind: Schedule):
    schedule = RunningSchedule.start(config(kind), 10, 20)
    assert schedule.rate(30) == schedule.rate(29) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_set_on_a_spent_budget_it_still_has_a_rate(kind: Schedule):
    assert RunningSchedule.start(config(kind), 60, 0).rate(60) > 0


def test_an_adjusted_cosine_keeps_its_shape():
    schedule = RunningSchedule.start(config("cosine", 0.1), 0, 4).rescaled(0.02, 2)
    # The shape is 0.5 at epoch 2 and 0.5 - sqrt(2)/4 at epoch 3.
    assert schedule.rate(2) == 0.02
    assert schedule.rate(3) == pytest.approx(0.02 * (1 - math.sqrt(2) / 2))


def test_an_adjusted_step_still_drops_tenfold():
    schedule = RunningSchedule.start(config("step", 0.1), 0, 9).rescaled(0.7, 4)
    assert [schedule.rate(e) for e in (4, 5, 6, 8)] == pytest.approx([0.7, 0.7, 0.07, 0.07])


def test_an_adjusted_constant_stays():
    schedule = RunningSchedule.start(config("constant"), 0, 9).rescaled(0.7, 4)
    assert [schedule.rate(e) for e in range(4, 9)] == [0.7] * 5


def test_an_adjusted_warmup_goes_on_rising_in_proportion():
    schedule = RunningSchedule.start(config("warmup_cosine", 0.1, 3), 0, 7).rescaled(0.01, 1)
    assert [schedule.rate(e) for e in (1, 2, 3)] == pytest.approx([0.01, 0.015, 0.02])


@given(settings_of_a_schedule())
def test_rates_are_finite_and_between_zero_and_the_base(drawn: tuple[RunningSchedule, int, int]):
    schedule, first, horizon = drawn
    for epoch in range(first, first + horizon + 1):
        assert 0 <= schedule.rate(epoch) <= schedule.learning_rate


@given(settings_of_a_schedule(), st.data())
def test_an_adjustment_is_exact_to_the_bit_and_keeps_all_ratios(
    drawn: tuple[RunningSchedule, int, int], data: st.DataObject
):
    before, first, horizon = drawn
    epoch = data.draw(st.integers(first, first + horizon))
    new_lr = data.draw(learning_rates)
    after = before.rescaled(new_lr, epoch)
    assert after.rate(epoch) == new_lr
    unit = RunningSchedule(before.kind, 1.0, first, horizon, before.warmup_epochs)
    for later in range(epoch, first + horizon):
        assert math.isfinite(after.rate(later))
        ratio = unit.rate(later) / unit.rate(epoch)
        assert after.rate(later) == pytest.approx(new_lr * ratio, rel=1e-12, abs=1e-300)


@given(settings_of_a_schedule(), st.data())
def test_the_last_adjustment_alone_counts(
    drawn: tuple[RunningSchedule, int, int], data: st.DataObject
):
    schedule, first, horizon = drawn
    epoch = data.draw(st.integers(first, first + horizon - 1))
    new_lr = data.draw(learning_rates)
    detour = schedule.rescaled(data.draw(learning_rates), epoch).rescaled(new_lr, epoch)
    assert detour == schedule.rescaled(new_lr, epoch)


RUNNING = RunningSchedule.start(config("cosine"), 0, 60)


def test_the_first_configuration_starts_a_schedule():
    new = config("cosine")
    assert after_change(None, new, None, 0, 60) == RUNNING


@given(configs)
def test_sending_the_same_values_again_restarts_nothing(sent: TrainingConfig):
    running = RunningSchedule.start(sent, 0, 60).rescaled(0.5, 7)
    assert after_change(sent, sent.model_copy(), running, 20, 40) is running


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "sgd"},
        {"batch_size": 256},
        {"weight_decay": 0.1},
        {"dropout": 0.5},
        {"augmentation": True},
        {"augmentation_strength": 1.0},
        {"warmup_epochs": 10},  # no part of a cosine schedule
    ],
    ids=lambda change: next(iter(change)),
)
def test_changing_anything_else_restarts_nothing(change: dict[str, object]):
    old = config("cosine")
    assert after_change(old, old.model_copy(update=change), RUNNING, 20, 40) is RUNNING


@pytest.mark.parametrize(
    "change",
    [{"learning_rate": 0.2}, {"lr_schedule": "step"}, {"lr_schedule": "warmup_cosine"}],
    ids=str,
)
def test_changing_what_shapes_it_starts_over_the_remaining_budget(change: dict[str, object]):
    old = config("cosine")
    new = old.model_copy(update=change)
    restarted = after_change(old, new, RUNNING, 20, 40)
    assert restarted == RunningSchedule.start(new, 20, 40)
    assert (restarted.first, restarted.horizon) == (20, 40)


def test_a_new_warmup_length_restarts_warmup_cosine():
    old, new = config("warmup_cosine"), config("warmup_cosine", warmup_epochs=6)
    running = RunningSchedule.start(old, 0, 60)
    assert after_change(old, new, running, 20, 40) == RunningSchedule.start(new, 20, 40)
