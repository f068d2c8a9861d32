"""What workers of a simulated machine say: an engine that trains nothing, and its answers."""

from __future__ import annotations

from typing import Any

from ml_trainer_env.server.runtime.orders import METRICS

ENGINE: dict[str, Any] = {"fingerprint": "waits", "precision": "fp32", "state_bytes": {}}
STATE_BYTES = 1000  # of a state that nobody reads


def answer(key: str, seconds: float) -> dict[str, Any]:
    """Of the epoch that led to this key."""
    metric = int(key[:8], 16) / 2**32
    return {"outcome": [[metric] * len(METRICS), None], "seconds": seconds}
