"""The convergence signal: every definition held against curves on both sides of its thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import given
from strategies import curve, diverged, finished, histories

from ml_trainer_env.models import EpochRecord, Signal
from ml_trainer_env.server.episode.signals import DEFINITIONS, convergence_signal


def learned(val_loss: Sequence[float], **curves: Sequence[float]) -> tuple[EpochRecord, ...]:
    """A network that fits 90% of its train images, at a val accuracy of 90% that never moves."""
    return curve([0.9] * len(val_loss), val_loss=val_loss, **curves)


def test_every_signal_has_a_definition_of_one_sentence():
    assert set(DEFINITIONS) == set(get_args(Signal))
    for sentence in DEFINITIONS.values():
        assert sentence.endswith(".")
        assert ". " not in sentence


def test_not_started():
    assert convergence_signal([]) == "not_started"


def test_diverged():
    assert convergence_signal(curve([None])) == "diverged"
    assert convergence_signal(curve([0.5, 0.6, 0.7, 0.8, None])) == "diverged"


@pytest.mark.parametrize("size", [1, 2])
def test_warming_up_lasts_until_three_epochs_have_finished(size: int):
    assert convergence_signal(curve([0.5] * size)) == "warming_up"
    assert convergence_signal(curve([0.5] * 3)) != "warming_up"


def test_warming_up_again_after_a_divergence():
    before = [0.5, 0.6, 0.7, 0.8, 0.9]
    assert convergence_signal(curve([*before, None, 0.9])) == "warming_up"
    assert convergence_signal(curve([*before, None, 0.9, 0.9])) == "warming_up"
    assert convergence_signal(curve([*before, None, 0.9, 0.9, 0.9])) != "warming_up"


class TestOverfitting:
    """The val loss turned up, the train loss went on down, and a gap opened."""

    LOSS = (1.0, 0.5, 0.52, 0.53, 0.53, 0.53)
    TRAIN = (1.0, 0.6, 0.5, 0.4, 0.3, 0.2)
    CLEAN = (0.9, 0.9, 0.91, 0.92, 0.93, 0.93)

    def signal(
        self,
        loss: Sequence[float] = LOSS,
        train: Sequence[float] = TRAIN,
        clean: Sequence[float] = CLEAN,
    ) -> Signal:
        return convergence_signal(learned(loss, clean_train_loss=train, clean_train_accuracy=clean))

    def test_holds(self):
        assert self.signal() == "overfitting"

    @pytest.mark.parametrize("recent", [(0.52, 0.53, 0.53), (0.53, 0.52, 0.53), (0.53, 0.53, 0.52)])
    def test_not_while_one_of_the_last_three_is_within_five_percent(
        self, recent: tuple[float, ...]
    ):
        assert self.signal(loss=(*self.LOSS[:3], *recent)) != "overfitting"

    def test_not_while_the_train_loss_rose_too(self):
        assert self.signal(train=(*self.TRAIN[:5], 0.6)) != "overfitting"

    def test_not_with_a_small_gap(self):
        assert self.signal(clean=(*self.CLEAN[:5], 0.915)) != "overfitting"

    def test_goes_before_improving(self):
        accuracies = [0.85, 0.86, 0.87, 0.88, 0.89, 0.90]
        history = curve(
            accuracies,
            val_loss=self.LOSS,
            clean_train_loss=self.TRAIN,
            clean_train_accuracy=self.CLEAN,
        )
        assert convergence_signal(history) == "overfitting"

    def test_reads_past_a_divergence(self):
        epochs = learned(self.LOSS, clean_train_loss=self.TRAIN, clean_train_accuracy=self.CLEAN)
        history = (*epochs[:3], diverged(4), *epochs[3:])
        assert convergence_signal(history) == "overfitting"


class TestStalling:
    """Too little learned for how slowly the val loss falls."""

    @staticmethod
    def signal(losses: Sequence[float], train_accuracy: float) -> Signal:
        accuracies = [0.1 + i / 100 for i in range(len(losses))]
        clean = [train_accuracy] * len(losses)
        return convergence_signal(curve(accuracies, val_loss=losses, clean_train_accuracy=clean))

    def test_holds_below_three_percent_an_epoch_even_if_accuracy_creeps_up(self):
        assert self.signal([2.0, 1.95, 1.90, 1.85, 1.80, 1.71], 0.3) == "stalling"

    def test_not_from_three_percent_an_epoch(self):
        assert self.signal([2.0, 1.95, 1.90, 1.85, 1.80, 1.69], 0.3) == "improving"

    def test_not_once_half_of_the_train_images_are_fitted(self):
        assert self.signal([2.0, 1.95, 1.90, 1.85, 1.80, 1.71], 0.499) == "stalling"
        assert self.signal([2.0, 1.95, 1.90, 1.85, 1.80, 1.71], 0.5) == "improving"

    def test_the_pace_is_per_epoch_while_fewer_than_six_have_finished(self):
        assert self.signal([2.0, 1.95, 1.89], 0.3) == "stalling"
        assert self.signal([2.0, 1.95, 1.87], 0.3) == "improving"

    def test_only_the_last_five_epochs_count(self):
        assert self.signal([9.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0], 0.3) == "stalling"
        assert self.signal([9.0, 9.0, 2.0, 2.0, 2.0, 2.0, 2.0], 0.3) == "improving"

    def test_holds_for_a_network_that_collapsed(self):
        history = curve([0.8, 0.9, 0.9, 0.9, 0.9, 0.9, 0.1], val_loss=[0.5] * 6 + [2.3])
        assert convergence_signal(history) == "stalling"


class TestImproving:
    """A better accuracy or loss within the last five epochs."""

    def test_two_images_of_a_thousand_are_enough_whatever_the_rounding(self):
        for count in range(999):
            history = curve(
                [count / 1000] * 6 + [(count + 2) / 1000], clean_train_accuracy=[0.9] * 7
            )
            assert convergence_signal(history) == "improving", count

    def test_one_image_of_a_thousand_is_not(self):
        assert convergence_signal(curve([0.9] * 6 + [0.901])) == "plateaued"

    def test_half_a_percent_of_the_loss(self):
        assert convergence_signal(learned([1.0] * 6 + [0.994])) == "improving"
        assert convergence_signal(learned([1.0] * 6 + [0.996])) == "plateaued"

    def test_for_five_epochs(self):
        assert convergence_signal(curve([0.8] * 3 + [0.9] * 5)) == "improving"
        assert convergence_signal(curve([0.8] * 3 + [0.9] * 6)) == "plateaued"

    def test_early_against_the_first_epoch(self):
        assert convergence_signal(curve([0.8, 0.9, 0.9])) == "improving"
        assert convergence_signal(curve([0.9, 0.8, 0.8])) == "plateaued"

    def test_a_return_to_an_old_best_is_none(self):
        assert convergence_signal(curve([0.9, 0.8, 0.8, 0.8, 0.8, 0.8, 0.9])) == "plateaued"


# Curves of real runs of an MLP on the MNIST subset and of a small CNN on the CIFAR-10 subset:
# val loss, val accuracy, train loss and train accuracy of consecutive epochs.
MNIST_ADAM_1E_6 = [
    (2.306, 0.141, 2.297, 0.127),
    (2.294, 0.156, 2.287, 0.140),
    (2.283, 0.178, 2.277, 0.148),
    (2.271, 0.187, 2.267, 0.157),
    (2.260, 0.205, 2.258, 0.163),
    (2.249, 0.213, 2.248, 0.178),
    (2.237, 0.222, 2.238, 0.192),
    (2.226, 0.238, 2.228, 0.205),
]
CIFAR_ADAM_1E_4_AUGMENTED = [
    (1.883, 0.363, 1.830, 0.387),
    (1.698, 0.412, 1.633, 0.426),
    (1.583, 0.438, 1.502, 0.468),
    (1.495, 0.475, 1.409, 0.506),
    (1.430, 0.495, 1.340, 0.529),
    (1.377, 0.506, 1.289, 0.549),
    (1.342, 0.516, 1.250, 0.564),
]
MNIST_ADAM_1E_3 = [
    (0.378, 0.892, 0.445, 0.871),
    (0.357, 0.896, 0.368, 0.894),
    (0.298, 0.913, 0.285, 0.923),
    (0.271, 0.924, 0.228, 0.944),
    (0.272, 0.926, 0.200, 0.944),
    (0.262, 0.927, 0.156, 0.964),
    (0.236, 0.940, 0.124, 0.973),
    (0.257, 0.932, 0.113, 0.973),
    (0.246, 0.938, 0.081, 0.985),
    (0.243, 0.934, 0.063, 0.992),
    (0.235, 0.946, 0.050, 0.994),
    (0.244, 0.941, 0.045, 0.994),
    (0.256, 0.942, 0.034, 0.996),
    (0.245, 0.945, 0.026, 0.998),
    (0.246, 0.942, 0.023, 1.000),
    (0.251, 0.941, 0.018, 1.000),
    (0.268, 0.940, 0.018, 1.000),
    (0.256, 0.948, 0.013, 1.000),
    (0.260, 0.944, 0.012, 1.000),
    (0.260, 0.947, 0.009, 1.000),
]
MNIST_COSINE_END = [
    (0.159, 0.954, 0.155, 0.962),
    (0.159, 0.955, 0.157, 0.960),
    (0.159, 0.954, 0.156, 0.961),
    (0.160, 0.954, 0.156, 0.963),
    (0.160, 0.954, 0.155, 0.961),
    (0.159, 0.954, 0.155, 0.961),
    (0.159, 0.954, 0.155, 0.961),
    (0.159, 0.954, 0.155, 0.961),
]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (MNIST_ADAM_1E_6, "stalling"),
        (CIFAR_ADAM_1E_4_AUGMENTED, "improving"),
        (MNIST_ADAM_1E_3, "overfitting"),
        (MNIST_COSINE_END, "plateaued"),
    ],
    ids=["rate far too low", "healthy and slow", "fitted by heart", "annealed to the end"],
)
def test_real_curves(rows: list[tuple[float, float, float, float]], expected: Signal):
    history = [
        finished(
            i + 1,
            val_accuracy,
            val_loss=val_loss,
            clean_train_loss=train_loss,
            clean_train_accuracy=train_accuracy,
        )
        for i, (val_loss, val_accuracy, train_loss, train_accuracy) in enumerate(rows)
    ]
    assert convergence_signal(history) == expected


@given(histories())
def test_any_history_has_a_signal_and_the_first_three_are_exact(history: tuple[EpochRecord, ...]):
    signal = convergence_signal(history)
    assert signal in DEFINITIONS
    assert (signal == "not_started") == (not history)
    assert (signal == "diverged") == (bool(history) and history[-1].diverged)
    since = 0
    for record in history:
        since = 0 if record.diverged else since + 1
    assert (signal == "warming_up") == (0 < since < 3)
