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
    "outputs",
    "uv.lock",
)


def copy_checkout(target: Path) -> Path:
    """Copy the repository to `target`, without what a fresh clone would not have."""
    return Path(shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*LEFTOVERS)))


def pyproject() -> dict[str, Any]:
    """The parsed pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
