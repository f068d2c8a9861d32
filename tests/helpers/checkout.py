"""The repository as a user has it: where its root is, and a clean copy of it."""

import shutil
import tomllib
from pathlib import Path
from typing import Any

HELPERS = Path(__file__).resolve().parent
ROOT = HELPERS.parents[1]

# What git, tools and runs leave in a working copy and a fresh clone does not have.
LEFTOVERS = (
    ".git",
    ".venv",
    ".*_cache",
    ".hypothesis",
    "*.egg-info",
    "__pycache__",
    "build",
    "dist",
    "uv.lock",
)
KEPT = {"evals", "logs", ".gitkeep"}  # of outputs/, whose other contents runs leave behind


def copy_checkout(target: Path) -> Path:
    """Copy the repository to `target`, without what a fresh clone would not have."""
    return Path(shutil.copytree(ROOT, target, ignore=_ignored))


def _ignored(folder: str, names: list[str]) -> set[str]:
    left_behind = shutil.ignore_patterns(*LEFTOVERS)(folder, names)
    is_output = Path(folder).is_relative_to(ROOT / "outputs")
    return left_behind | (set(names) - KEPT if is_output else set())


def pyproject() -> dict[str, Any]:
    """The parsed pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
