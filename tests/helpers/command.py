"""The command line, in this process."""

from __future__ import annotations

import re

from typer.testing import CliRunner

from ml_trainer_env.cli import app


def run(*arguments: str) -> tuple[int, str]:
    """Exit status, and what was printed, without boxes and line ends."""
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "TERM": "dumb"})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, re.sub(r"[\s│]+", " ", done.output)
