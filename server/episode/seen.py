"""What an operator of a cluster is shown of its history. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from ml_trainer_env.cluster_status import WINDOWS_SHOWN, ClusterConfig, ClusterStatus, Window
from ml_trainer_env.events import RankReport, Settings, Train, WindowReport
from ml_trainer_env.models import EpochRecord
from ml_trainer_env.server.cluster import rates

AUGMENTATION = 0.5  # where it is switched on without a strength
DIGITS = 4

History = Sequence[EpochRecord]


def windows(history: History) -> list[EpochRecord]:
    """Those that trained."""
    return [each for each in history if isinstance(each.plan, Train)]


def latest(history: History) -> WindowReport:
    """What was reported last; before anything was, an empty report."""
    if not history:
        return WindowReport(step=0, made=0, seconds=0.0, checkpoints=(0,))
    return _window(history[-1])


def status(
    history: History,
    done: History,  # by the last action
    *,
    deadline: float,
    step_seconds: float,  # of a healthy cluster
    settings: Settings,
    part: float,  # of the time, that is over
) -> ClusterStatus:
    """Where the cluster stands."""
    now, trained = latest(history), windows(history)
    first = len(trained) - len(trained[-WINDOWS_SHOWN:]) + 1
    last = _window(trained[-1]) if trained else None
    return ClusterStatus(
        step=now.step,
        steps_made=now.made,
        seconds=round(now.seconds, 1),
        deadline=deadline,
        goodput=_short(min(1.0, now.step * step_seconds / now.seconds)) if now.seconds else None,
        config=config(settings),
        augmentation=settings.augmentation,
        learning_rate_in_force=float(f"{_in_force(trained, settings, part):.{DIGITS}g}"),
        excluded=now.excluded,
        quarantined=now.quarantined,
        checkpoints=now.checkpoints,
        windows=tuple(
            _summary(number, record, history)
            for number, record in enumerate(trained[-WINDOWS_SHOWN:], first)
        ),
        losses=_shorts(last.losses) if last else (),
        gradient_norms=_shorts(last.gradient_norms) if last else (),
        incidents=tuple(told for each in done for told in _window(each).incidents),
        finding=_window(done[-1]).finding if done else (),
    )


def config(settings: Settings) -> ClusterConfig:
    """As an operator sets it."""
    return ClusterConfig(
        learning_rate=float(f"{settings.learning_rate:.{DIGITS}g}"),
        lr_schedule=settings.lr_schedule,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        gradient_clip=settings.clip or 0.0,
        checkpoint_every=settings.checkpoint_every,
    )


def _in_force(trained: History, settings: Settings, part: float) -> float:
    """What the last step has used, on the schedule that is set now; what was set, where the rate
    was set since: a rate that is wrong stays wrong until then, whatever else is set.
    """
    factor = rates.factor(settings, part)
    if trained:
        plan, used = trained[-1].plan, _window(trained[-1]).learning_rate
        assert isinstance(plan, Train)
        if used is not None and plan.settings.revision == settings.revision:
            return used * factor / rates.factor(plan.settings, part)
    return settings.learning_rate * factor


def _summary(number: int, record: EpochRecord, history: History) -> Window:
    window = _window(record)
    losses = [each for each in window.losses if each is not None]
    norms = [each for each in window.gradient_norms if each is not None]
    before = history[record.epoch - 2] if record.epoch > 1 else None
    took = window.seconds - (_window(before).seconds if before else 0.0)
    return Window(
        number=number,
        step=window.step,
        seconds=round(window.seconds, 1),
        loss=_short(record.train_loss),
        highest_loss=_short(max(losses, default=None)),
        val_loss=_short(record.val_loss) or 0.0,
        gradient_norm=_short(fmean(norms) if norms else None),
        highest_gradient_norm=_short(max(norms, default=None)),
        learning_rate=_short(window.learning_rate),
        skipped=window.skipped,
        steps_per_second=_short(len(window.losses) / took) if took else None,
        ranks=tuple(map(_rank, window.ranks)),
        shard_losses=_shorts(window.shard_losses),
    )


def _rank(report: RankReport) -> RankReport:
    names = ("step_seconds", "gradient_norm", "agreement", "loss")
    short: dict[str, Any] = {name: _short(getattr(report, name)) for name in names}
    return report.model_copy(update=short)


def _window(record: EpochRecord) -> WindowReport:
    assert record.window is not None, "a cluster's records have windows"
    return record.window


def _shorts(numbers: Iterable[float | None]) -> tuple[float | None, ...]:
    return tuple(map(_short, numbers))


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.{DIGITS}g}")
