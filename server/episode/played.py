"""What was asked of an episode and answered, for whoever watches it."""

# pyright: strict

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_trainer_env.models import MAX_TOOL_CALLS, TrainingStatus

REMEMBERED = 4 * MAX_TOOL_CALLS  # calls that are kept: all that count, and many that were refused


@dataclass(frozen=True, slots=True)
class Played:
    """One call of a tool: the status that it answered, or the error that it was refused with."""

    tool: str
    arguments: Mapping[str, Any]  # empty when refused: they may be anything, of any size
    status: TrainingStatus | None = None
    error: str | None = None
