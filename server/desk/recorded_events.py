"""What an operator did besides training, from the answers to its calls.

Records hold the windows that were trained; the other events of a cluster's history are what was
called and what the status said next, so a replay has them, too.
"""

# pyright: strict

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_trainer_env.cluster_status import ClusterStatus
from ml_trainer_env.events import (
    ConfigureData,
    ConfigureRanks,
    Diagnose,
    Event,
    RankReport,
    Restore,
    WindowReport,
)
from ml_trainer_env.models import EpochRecord, TrainingStatus


def event_of(
    tool: str, arguments: Mapping[str, Any], status: TrainingStatus, number: int
) -> EpochRecord | None:
    """The record of such a call, the one of this `number`; None of a call that was no event."""
    now = status.cluster
    event = now and _event(tool, arguments, now)
    if now is None or event is None:
        return None
    return EpochRecord(
        epoch=number,
        plan=event,
        train_loss=None,
        train_accuracy=None,
        # of a restored model nobody was told before it was trained on
        val_loss=None if isinstance(event, Restore) else status.val_loss,
        val_accuracy=None,
        clean_train_loss=None,
        clean_train_accuracy=None,
        window=_report(event, now),
    )


def _event(tool: str, arguments: Mapping[str, Any], now: ClusterStatus) -> Event | None:
    match tool:
        case "restore_checkpoint":
            return Restore.model_validate(arguments)
        case "configure_ranks":
            return ConfigureRanks(
                exclude=now.excluded,
                use_spare=tuple(arguments.get("use_spare") or ()),
                shares=tuple(arguments.get("shares") or ()) or None,
            )
        case "configure_data":
            reshuffle = bool(arguments.get("reshuffle"))
            return ConfigureData(quarantine=now.quarantined, reshuffle=reshuffle)
        case "run_diagnostic":
            return Diagnose.model_validate({"what": arguments["kind"]})
        case _:
            return None


def _report(event: Event, now: ClusterStatus) -> WindowReport:
    fresh = event.use_spare if isinstance(event, ConfigureRanks) else ()
    last = now.windows[-1].ranks if now.windows else ()
    ranks = tuple(
        RankReport(rank=each.rank, alive=each.alive or each.rank in fresh, shards=each.shards)
        for each in last
    )
    return WindowReport(
        step=now.step,
        made=now.steps_made,
        seconds=now.seconds,
        ranks=ranks,
        excluded=now.excluded,
        quarantined=now.quarantined,
        checkpoints=now.checkpoints,
        incidents=now.incidents,
        finding=now.finding,
    )
