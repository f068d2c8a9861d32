"""Files that are whole or absent, whenever their writer is killed and whoever else writes them."""

from __future__ import annotations

import os
from pathlib import Path

from ml_trainer_env.agents.records import UNFINISHED


def write(path: Path, content: bytes) -> None:
    """`content` at `path`, in the place of what was there. Raises OSError."""
    part = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
