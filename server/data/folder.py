"""Where the finished data sets are kept, one file each.

ML_TRAINER_DATA_DIR, or the user's cache folder. Where nothing can be written there, and it does not
hold all of them either, a temporary folder of this user does.
"""

# pyright: strict

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from ml_trainer_env.surroundings import is_writable, temporary_folder
from ml_trainer_env.variables import expanded, require_writable

VARIABLE = "ML_TRAINER_DATA_DIR"
NAMES: tuple[str, ...] = ("mnist", "fashion_mnist", "cifar10")  # of images
ALL = (*NAMES, "kjv")  # and the text that clusters read


def cache_dir() -> Path:
    """The folder, which need not exist yet."""
    own = os.environ.get(VARIABLE)
    if own:
        return expanded(Path(own)).absolute()
    usual = _of_the_user()
    usable = _is_complete(usual) or is_writable(usual)
    return usual if usable else temporary_folder() / "datasets"


def is_temporary(folder: Path) -> bool:
    """Whether it was chosen for want of a better one."""
    return not os.environ.get(VARIABLE) and temporary_folder() in folder.parents


def require_usable() -> None:
    """Raises `SettingsError` where data sets are missing and cannot be put."""
    folder = cache_dir()
    if not _is_complete(folder):
        require_writable(folder, VARIABLE)


def _of_the_user() -> Path:
    return platformdirs.user_cache_path("ml-trainer", appauthor=False) / "datasets"


def _is_complete(folder: Path) -> bool:
    return all(os.access(folder / f"{name}.safetensors", os.R_OK) for name in NAMES)
