"""Runs a Dockerfile's steps without Docker: enough of the language for `server/Dockerfile`.

The image's file system is one folder: WORKDIR /app is `<folder>/app`, COPY copies (honouring
.dockerignore), RUN runs in the working directory with the ENV and the ARG so far. An instruction
that is not emulated is an error, so that a step can't be skipped unseen.
"""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

_RECORDED = {"FROM", "EXPOSE", "USER", "HEALTHCHECK", "CMD"}
_OF_THIS_PROCESS = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHON", "ML_TRAINER_DATA_DIR"}


@dataclass
class Image:
    """What the steps made. `command` and `health` are argument lists for `env` and `workdir`."""

    folder: Path
    context: Path
    env: dict[str, str] = field(
        default_factory=lambda: {k: v for k, v in os.environ.items() if k not in _OF_THIS_PROCESS}
    )
    workdir: Path = Path("/")
    settings: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def command(self) -> list[str]:
        return json.loads(self.settings["CMD"])

    @property
    def health(self) -> list[str]:
        return json.loads(self.settings["HEALTHCHECK"].partition("CMD ")[2])

    def localize(self, text: str) -> str:
        """The working directory's path in the image, as a path on this machine."""
        inside = "/" + self.workdir.relative_to(self.folder).as_posix()
        return text.replace(inside, str(self.workdir))


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, rest of the line) in order, continued lines joined, comments dropped."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    logical = "\n".join(lines).replace("\\\n", " ").splitlines()
    pairs = [line.strip().partition(" ") for line in logical if line.strip()]
    return [(name, rest.strip()) for name, _, rest in pairs]


def build(
    dockerfile: Path, context: Path, folder: Path, given: Mapping[str, str] | None = None
) -> Image:
    """Carry out every step below `folder`; `given`: what --build-arg gives.

    Raises CalledProcessError when a RUN fails.
    """
    image = Image(folder=folder, context=context)
    arguments: dict[str, str] = {}  # of the build, which no container has
    for name, rest in instructions(dockerfile):
        if name == "WORKDIR":
            image.workdir = folder / rest.lstrip("/")
            image.workdir.mkdir(parents=True, exist_ok=True)
        elif name == "ENV":
            for assignment in shlex.split(rest):
                key, _, value = assignment.partition("=")
                known = value.replace("$PATH", image.env["PATH"])
                image.env[key] = image.localize(known)
        elif name == "ARG":
            arguments[rest] = (given or {}).get(rest, "")
        elif name == "COPY":
            _copy(image, *shlex.split(rest))
        elif name == "RUN":
            command = ["/bin/sh", "-c", image.localize(rest)]
            environment = arguments | image.env
            subprocess.run(
                command, cwd=image.workdir, env=environment, check=True, stdin=subprocess.DEVNULL
            )
        elif name in _RECORDED:
            image.settings[name] = rest
        else:
            raise ValueError(f"unknown instruction: {name}")
    return image


def _copy(image: Image, *arguments: str) -> None:
    *sources, target = arguments
    patterns = [
        line
        for line in (image.context / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]

    def ignored(folder: str, names: list[str]) -> set[str]:
        return {
            name
            for name in names
            for path in [(Path(folder) / name).relative_to(image.context).as_posix()]
            for pattern in patterns
            if fnmatch(path, pattern) or fnmatch(f"/{path}", pattern.replace("**/", "*/"))
        }

    for source in sources:
        origin, goal = image.context / source, image.workdir / target
        if origin.is_dir():
            goal = goal if source == "." or len(sources) == 1 else goal / source
            shutil.copytree(origin, goal, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy2(origin, goal)
