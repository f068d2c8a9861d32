"""The server's knobs: one frozen value, read from the environment once, at the start of a process.

Nothing else in the server looks at these variables. A value that cannot be used is refused with the
name of its variable.

| variable | default | meaning |
|---|---|---|
| ML_TRAINER_MAX_SESSIONS | 64 | sessions open at once; one more is refused at once |
| ML_TRAINER_MAX_WAITING | 256 | epochs that wait for a core; one more training is refused |
| ML_TRAINER_SESSION_MB | 64 | megabytes of training state in a session; a larger task is refused |
| ML_TRAINER_SESSION_TIMEOUT | 3600 | seconds of silence until a session is closed; 0: never |
| ML_TRAINER_THREADS | 2 | threads that may compute the shards of one step, at most the free cores |
| ML_TRAINER_CORES | | cores to train on: worker processes and busy threads; unset: all it may use |
| ML_TRAINER_RUNNER | pool | pool: the server trains in worker processes; inline: in its own |
| ML_TRAINER_SHARING | on | off: every session trains all its epochs itself |
| ML_TRAINER_SNAPSHOT_MB | 512 | megabytes of training states kept in memory, for sharing |
| ML_TRAINER_VERIFY_SHARED | 0 | share of the shared epochs that are trained again and compared |
| ML_TRAINER_STATE_DIR | | a folder that lets sessions go on after the server was killed |
| ML_TRAINER_STATE_MB | 4096 | megabytes of training states in that folder |
| ML_TRAINER_TOKEN | | who asks for anything but `/health` has to bring it |
| ML_TRAINER_ORIGINS | | comma-separated sites whose pages may use the MCP door and WebSockets |
| ML_TRAINER_RECORDS_DIR | outputs/evals | the folder of the records that the page replays |
| ML_TRAINER_PRECISION | fp32 | fp32, or bf16 where the processor has it |

The folder of the data is ML_TRAINER_DATA_DIR (`server/datasets.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)

PREFIX = "ML_TRAINER_"
_SITE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#@\s\x7f-\U0010ffff]+/?")  # as browsers name it


class SettingsError(ValueError):
    """A variable holds what cannot be used; the message names it and says what can."""


class Settings(BaseModel):
    """How this process serves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_sessions: Annotated[int, Field(ge=1, le=4096)] = 64
    max_waiting: Annotated[int, Field(ge=0)] = 256
    session_mb: Annotated[int, Field(ge=1)] = 64
    session_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3600.0  # seconds; 0: none
    threads: Annotated[int, Field(ge=1, le=64)] = 2
    cores: Annotated[int | None, Field(ge=1)] = None  # what a container allows bounds them anyway
    runner: Literal["pool", "inline"] = "pool"  # of a server; in process it is always inline
    sharing: bool = True
    snapshot_mb: Annotated[int, Field(ge=0)] = 512
    verify_shared: Annotated[float, Field(ge=0, le=1)] = 0.0
    state_dir: Path | None = None
    state_mb: Annotated[int, Field(ge=0)] = 4096
    token: SecretStr | None = None
    origins: tuple[str, ...] = ()  # such as https://example.com
    records_dir: Path = Path("outputs/evals")
    precision: Literal["fp32", "bf16"] = "fp32"

    @field_validator("origins", mode="before")
    @classmethod
    def _are_listed(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        return tuple(origin.strip() for origin in given.split(",") if origin.strip())

    @field_validator("origins")
    @classmethod
    def _are_sites(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(_SITE.fullmatch, given)):
            raise ValueError("must be sites such as https://example.com, separated by commas")
        return given

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """The settings of this process; an empty variable counts as unset.

        Raises `SettingsError`.
        """
        given = {name: environment.get(PREFIX + name.upper(), "") for name in cls.model_fields}
        try:
            return cls.model_validate({name: text for name, text in given.items() if text})
        except ValidationError as error:
            first = error.errors()[0]
            variable = PREFIX + str(first["loc"][0]).upper()
            raise SettingsError(f"{variable}: {first['msg']}; got {first['input']!r}") from error


@cache
def current() -> Settings:
    """The settings of this process, as they were at the first call. Raises `SettingsError`."""
    return Settings.from_environment()
