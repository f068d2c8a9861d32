"""What a state folder holds, shown and cleared: `ml-trainer state`.

The folder is that of ML_TRAINER_STATE_DIR, or the one in which evaluations remember. Clearing it
removes the files that servers and evaluations put there, and nothing else.
"""

# pyright: strict

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_trainer_env.server import settings
from ml_trainer_env.server.runtime.records import NAME, Records
from ml_trainer_env.server.runtime.states import SUFFIX
from ml_trainer_env.server.session import saved
from ml_trainer_env.surroundings import remembering, variables_set
from ml_trainer_env.terminal import stdout
from ml_trainer_env.variables import settings_explained

_MB = 2**20
PARTS = {
    "records": f"{NAME}*",
    "states": f"states/*{SUFFIX}",
    "episodes": f"episodes/*{saved.SUFFIX}",
    "resumed and over": f"episodes/*{saved.OVER}",
}


def shown(folder: Path, budget: int) -> Iterator[str]:
    """Lines about it; `budget` in bytes."""
    yield f"{folder}"
    known = 0
    if (folder / NAME).exists():
        records = Records(folder / NAME)
        known = len(records)
        records.close()
    sizes = {part: _sizes(folder, part) for part in PARTS}
    yield f"  {known:,} epochs that are known ({sum(sizes['records']) / _MB:.1f} MB)"
    states = sizes["states"]
    yield f"  {len(states):,} states to train on ({sum(states) / _MB:.0f} of {budget // _MB} MB)"
    yield f"  {len(sizes['episodes']):,} episodes that can be resumed"


def clear(folder: Path) -> int:
    """Remove what was put there; how many files that were."""
    files = [file for part in PARTS for file in folder.glob(PARTS[part])]
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)


def _sizes(folder: Path, part: str) -> list[int]:
    return [file.stat().st_size for file in folder.glob(PARTS[part])]


@settings_explained()
def main(argv: Sequence[str] | None = None) -> None:
    """Show it, or clear it."""
    parser = argparse.ArgumentParser(prog="ml-trainer state", description="The state folder.")
    parser.add_argument("--clear", action="store_true", help="forget all of it")
    options = parser.parse_args(argv)
    with variables_set(remembering()):
        chosen = settings.current()
    assert chosen.state_dir is not None
    if options.clear:
        stdout().print(f"{clear(chosen.state_dir)} files removed from {chosen.state_dir}")
        return
    for line in shown(chosen.state_dir, chosen.state_mb * _MB):
        stdout().print(line, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
