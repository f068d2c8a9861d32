"""The settings that let a desktop program start the MCP server: `ml-trainer mcp --config`.

Prints what works on this machine as it is. A desktop program has no virtual environment, none of
the shell's variables, and any working folder, so the interpreter and all folders are absolute, and
the variables that decide how the server trains are carried over. The token never is: over standard
input and output there is nobody to be kept out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

from ml_trainer_env.server import datasets
from ml_trainer_env.server.data.progress import note
from ml_trainer_env.server.settings import PREFIX, Settings, SettingsError

NAME = "ml-trainer"
MODULE = "ml_trainer_env.server.doors.mcp.stdio"
DATA = PREFIX + "DATA_DIR"
OF_A_SERVER = {  # what only matters where several clients come in over a network
    PREFIX + name
    for name in ("TOKEN", "ORIGINS", "MAX_SESSIONS", "SESSION_TIMEOUT", "RUNNER", "RECORDS_DIR")
}


class NotInstalled(RuntimeError):
    """The interpreter does not find the package by itself; the message says what to do."""


def configuration(
    environment: Mapping[str, str] = os.environ,
) -> dict[str, dict[str, dict[str, object]]]:
    """The block `mcpServers`. Raises `SettingsError` and `NotInstalled`."""
    Settings.from_environment(environment)
    # As it was called: a virtual environment is found by where the link lies, not by its target.
    python = os.path.abspath(sys.executable)  # noqa: PTH100 - Path.resolve() would follow it
    variables = _carried_over(environment)
    _check(python, variables)
    # -P: what happens to lie in the program's working folder is not imported.
    entry: dict[str, object] = {"command": python, "args": ["-P", "-m", MODULE], "env": variables}
    return {"mcpServers": {NAME: entry}}


def _carried_over(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of this process that the server needs too."""
    set_here = {
        name: _absolute(value) if name.endswith("_DIR") else value
        for name, value in environment.items()
        if name.startswith(PREFIX) and name not in OF_A_SERVER and value
    }
    # Where the data is depends on variables, too. Without any path, libraries do not even load.
    path = environment.get("PATH") or os.defpath
    return {**set_here, DATA: str(datasets.cache_dir()), "PATH": path}


def _absolute(folder: str) -> str:
    return os.path.abspath(os.path.expanduser(folder))  # noqa: PTH100, PTH111 - links stay links


def _check(python: str, variables: Mapping[str, str]) -> None:
    """Raise `NotInstalled` unless the interpreter finds the package from anywhere."""
    look = [python, "-P", "-c", f"from importlib.util import find_spec as f; f({MODULE!r}).name"]
    found = subprocess.run(look, env=dict(variables), cwd="/", capture_output=True)
    if found.returncode:
        raise NotInstalled(
            f"{python} does not find ml_trainer_env outside this folder: install it there, "
            "with make setup, or with pip"
        )


def main() -> int:
    """Print the settings; the exit status is 2 where they cannot work."""
    try:
        print(json.dumps(configuration(), indent=2))
    except (SettingsError, NotInstalled) as error:
        note(str(error))
        return 2
    missing = [found.name for found in datasets.status() if found.state != "ok"]
    if missing:
        names = ", ".join(missing)
        note(f"not prepared yet: {names}; ml-trainer data fetch does it, or the first training")
    return 0


if __name__ == "__main__":
    sys.exit(main())
