"""Epoch histories to test with: builders for examples by hand, Hypothesis strategies for the rest.

Accuracies are counts over 1,000 images, as measured ones are counts over a validation set, so that
ties and exact thresholds do occur.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from ml_trainer_env.models import EpochPlan, EpochRecord

PLAN = EpochPlan(
    optimizer="adam",
    learning_rate=0.001,
    batch_size=64,
    weight_decay=0.0,
    dropout=0.0,
    augmentation=0.0,
)


def finished(
    epoch: int,
    val_accuracy: float = 0.5,
    *,
    val_loss: float = 1.0,
    clean_train_loss: float = 1.0,
    clean_train_accuracy: float | None = None,
) -> EpochRecord:
    """A finished epoch; without a clean train accuracy its gap is 0."""
    clean = val_accuracy if clean_train_accuracy is None else clean_train_accuracy
    return EpochRecord(
        epoch=epoch,
        plan=PLAN,
        train_loss=clean_train_loss,
        train_accuracy=clean,
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        clean_train_loss=clean_train_loss,
        clean_train_accuracy=clean,
    )


def diverged(epoch: int) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        plan=PLAN,
        train_loss=None,
        train_accuracy=None,
        val_loss=None,
        val_accuracy=None,
        clean_train_loss=None,
        clean_train_accuracy=None,
    )


def curve(
    val_accuracy: Sequence[float | None] = (),
    *,
    val_loss: Sequence[float] | None = None,
    clean_train_loss: Sequence[float] | None = None,
    clean_train_accuracy: Sequence[float] | None = None,
) -> tuple[EpochRecord, ...]:
    """A history from its curves, one value an epoch; a val accuracy of None is a divergence."""
    history: list[EpochRecord] = []
    for i, accuracy in enumerate(val_accuracy):
        if accuracy is None:
            history.append(diverged(i + 1))
            continue
        record = finished(
            i + 1,
            accuracy,
            val_loss=1.0 if val_loss is None else val_loss[i],
            clean_train_loss=1.0 if clean_train_loss is None else clean_train_loss[i],
            clean_train_accuracy=None if clean_train_accuracy is None else clean_train_accuracy[i],
        )
        history.append(record)
    return tuple(history)


accuracies = st.integers(0, 1000).map(lambda correct: correct / 1000)
losses = st.one_of(
    st.floats(0.001, 10),
    st.sampled_from([0.0, 0.5, 1.0, 2.302585092994046, 1e30]),
)


@st.composite
def records(draw: st.DrawFn, epoch: int = 1, divergence: bool = True) -> EpochRecord:
    if divergence and draw(st.integers(0, 9)) == 9:
        return diverged(epoch)
    return finished(
        epoch,
        draw(accuracies),
        val_loss=draw(losses),
        clean_train_loss=draw(losses),
        clean_train_accuracy=draw(accuracies),
    )


@st.composite
def histories(
    draw: st.DrawFn, *, min_size: int = 0, max_size: int = 25, divergence: bool = True
) -> tuple[EpochRecord, ...]:
    """A history of `min_size` to `max_size` epochs, a tenth of them diverged if any may be."""
    size = draw(st.integers(min_size, max_size))
    return tuple(draw(records(epoch + 1, divergence)) for epoch in range(size))


@st.composite
def cuts(draw: st.DrawFn, start: int, end: int) -> list[int]:
    """Boundaries of consecutive steps from epoch `start` to `end`; repeats are idle steps."""
    inner = draw(st.lists(st.integers(start, end), max_size=8))
    return [start, *sorted(inner), end]
