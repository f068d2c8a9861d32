"""How the desk says things: numbers, configurations, moves. Plain text, to be escaped by others."""

# pyright: strict

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ml_trainer_env.models import EpochPlan, Signal

NONE = "–"  # what does not exist yet

# A shape beside each word, so that no meaning hangs on a colour; and how much it asks for.
SIGNALS: dict[Signal, tuple[str, str]] = {
    "not_started": ("○", "quiet"),
    "warming_up": ("◔", "quiet"),
    "improving": ("▲", "good"),
    "plateaued": ("▬", "calm"),
    "overfitting": ("◆", "warn"),
    "stalling": ("■", "warn"),
    "diverged": ("✕", "bad"),
}


def percent(share: float | None) -> str:
    """An accuracy: `93.5%`."""
    return NONE if share is None else f"{share:.1%}"


def number(value: float | None, digits: int = 4) -> str:
    """A loss."""
    return NONE if value is None else f"{value:.{digits}f}"


def short(value: float) -> str:
    """Three significant digits, as one would write a learning rate."""
    return f"{value:.3g}"


def signed(value: float) -> str:
    """A reward term; a dot where there is none, so that the eye finds those that are."""
    return f"{value:+.4f}".replace("-", "−") if value else "·"


def plural(count: int, word: str) -> str:
    """`1 epoch`, `2 epochs`."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def counted(texts: Iterable[str]) -> str:
    """Each once, in order: `a; b, 3 times`."""
    times = Counter(texts)
    return "; ".join(text if n == 1 else f"{text}, {n} times" for text, n in times.items())


def rates(first: float, last: float) -> str:
    """The learning rate of an era."""
    return short(first) if short(first) == short(last) else f"{short(first)} → {short(last)}"


def plan(used: EpochPlan) -> str:
    """What an epoch used, its learning rate apart and options that are off left out."""
    parts = [f"batch {used.batch_size}"]
    if used.weight_decay:
        parts.append(f"weight decay {short(used.weight_decay)}")
    if used.dropout:
        parts.append(f"dropout {short(used.dropout)}")
    if used.augmentation:
        parts.append(f"augmentation {short(used.augmentation)}")
    return ", ".join(parts)


def call(tool: str, arguments: Mapping[str, Any]) -> str:
    """`run_epochs(num_epochs=5)`."""
    told = ", ".join(f"{name}={_value(value)}" for name, value in arguments.items())
    return f"{tool}({told})"


def _value(value: Any) -> str:
    return short(value) if isinstance(value, float) else str(value)
