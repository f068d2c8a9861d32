"""The server's knobs: one frozen value, read from the environment once, at the start of a process.

Nothing else in the server looks at these variables. A value that cannot be used is refused with the
name of its variable, and so is a folder that cannot be written.

| variable | default | meaning |
|---|---|---|
| ML_TRAINER_MAX_SESSIONS | 64 | sessions open at once; one more is refused at once |
| ML_TRAINER_MAX_WAITING | | trainings that wait for a core; unset: 256, or as many as sessions |
| ML_TRAINER_SESSION_MB | 64 | megabytes of training state in a session; a larger task is refused |
| ML_TRAINER_SESSION_TIMEOUT | 3600 | seconds of silence until a session is closed; 0: never |
| ML_TRAINER_THREADS | 2 | threads that may compute the shards of one step, at most the free cores |
| ML_TRAINER_CORES | | cores to train on: worker processes and busy threads; unset: all it may use |
| ML_TRAINER_RUNNER | pool | worker processes of the server; ray: of a Ray cluster; inline: itself |
| ML_TRAINER_RAY_ADDRESS | | the head of that cluster, host:port; unset: one of this machine alone |
| ML_TRAINER_RAY_ENGINE | | the resource that names its nodes' engine; unset: that of most cores |
| ML_TRAINER_SHARING | on | off: every session trains all its epochs itself |
| ML_TRAINER_SNAPSHOT_MB | 1024 | megabytes of training states kept in memory |
| ML_TRAINER_VERIFY_SHARED | 0 | share of the shared epochs that are trained again and compared |
| ML_TRAINER_STATE_DIR | | a folder that remembers: epochs, states, and where sessions stood |
| ML_TRAINER_STATE_MB | 4096 | megabytes of training states in that folder |
| ML_TRAINER_TOKEN | | who asks for anything but `/health` has to bring it |
| ML_TRAINER_ORIGINS | | comma-separated sites whose pages may use the MCP door and WebSockets |
| ML_TRAINER_MCP_TASK | | the one task that a standard MCP session may begin |
| ML_TRAINER_MCP_SEED | | the one seed |
| ML_TRAINER_MCP_EPISODES | | how many episodes it may begin |
| ML_TRAINER_RECORDS_DIR | outputs/evals | the folder of the records that the page replays |
| ML_TRAINER_PRECISION | fp32 | fp32, or bf16 where the processor has it |

The folder of the data is ML_TRAINER_DATA_DIR (`server/data/folder.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ml_trainer_env.models import MAX_SEED
from ml_trainer_env.task_ids import Chosen
from ml_trainer_env.variables import Folder, Secret, SettingsError, explained, require_writable

PREFIX = "ML_TRAINER_"
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\]))(:\d{1,5})?/?")
_USUAL_PORTS = {"http": ":80", "https": ":443"}  # which browsers leave out of an origin


class Settings(BaseModel):
    """How this process serves."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    max_sessions: Annotated[int, Field(ge=1, le=4096)] = 64
    max_waiting: Annotated[int | None, Field(ge=0)] = None
    session_mb: Annotated[int, Field(ge=1)] = 64
    session_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3600.0  # seconds; 0: none
    threads: Annotated[int, Field(ge=1, le=64)] = 2
    cores: Annotated[int | None, Field(ge=1)] = None  # what a container allows bounds them anyway
    runner: Literal["pool", "ray", "inline"] = "pool"  # of a server; in process always inline
    ray_address: str | None = None
    ray_engine: str | None = None
    sharing: bool = True
    snapshot_mb: Annotated[int, Field(ge=0)] = 1024
    verify_shared: Annotated[float, Field(ge=0, le=1)] = 0.0
    state_dir: Folder | None = None
    state_mb: Annotated[int, Field(ge=0)] = 4096
    token: Secret = None
    origins: tuple[str, ...] = ()  # such as https://example.com
    mcp_task: Chosen | None = None
    mcp_seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    mcp_episodes: Annotated[int, Field(ge=1)] | None = None
    records_dir: Folder = Path("outputs/evals")
    precision: Literal["fp32", "bf16"] = "fp32"

    @field_validator("origins", mode="before")
    @classmethod
    def _are_listed(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        return tuple(_origin(origin.strip()) for origin in given.split(",") if origin.strip())

    @field_validator("ray_address")
    @classmethod
    def _has_a_port(cls, given: str | None) -> str | None:
        if given and not re.fullmatch(r"\S+:\d{1,5}", given):
            raise ValueError("must be host:port of the cluster's head, such as head:6379")
        return given

    @field_validator("ray_engine")
    @classmethod
    def _names_an_engine(cls, given: str | None) -> str | None:
        if given and not re.fullmatch(r"ml-trainer-engine-[0-9a-f]{16}", given):
            raise ValueError("must be the name that `ml-trainer resources` gives an engine")
        return given

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """The settings of this process; an empty variable counts as unset.

        Raises `SettingsError`.
        """
        given = {
            name: environment.get(PREFIX + name.upper(), "").strip() for name in cls.model_fields
        }
        try:
            return cls.model_validate({name: text for name, text in given.items() if text})
        except ValidationError as error:
            raise explained(error, PREFIX) from None


@cache
def current() -> Settings:
    """The settings of this process, as they were at the first call. Raises `SettingsError`."""
    settings = Settings.from_environment()
    if settings.state_dir:
        require_writable(settings.state_dir, f"{PREFIX}STATE_DIR")
    if settings.precision == "bf16" and not _has_bf16():
        raise SettingsError(f"{PREFIX}PRECISION: bf16 needs a processor with AVX512-BF16; use fp32")
    return settings


def _has_bf16() -> bool:
    """What torch will find, asked of the kernel, before torch is loaded."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # another system, and so another processor
        return False


def _origin(given: str) -> str:
    """As a browser sends it. Raises ValueError for what no browser would send."""
    parts = _ORIGIN.fullmatch(given.lower())
    if parts is None:
        raise ValueError("must list origins, such as https://example.com, separated by commas")
    site, port = parts[1], parts[2] or ""
    return site if port == _USUAL_PORTS.get(site.partition(":")[0]) else site + port
