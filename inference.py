"""The LLM baseline: a language model plays the three classic tasks, or those of `LLM_TASKS`.

    export OPENAI_API_KEY=...          # or OPENROUTER_API_KEY, or GEMINI_API_KEY; or a .env file
    export ENV_URL=http://localhost:8000
    uv run inference.py

Any OpenAI-compatible endpoint will do. The variables are in `agents/llm/settings.py`. Each episode
is recorded below `outputs/evals`, and a table ends the run. Exit status: 0 when every task was
graded, 1 when the model or the environment could not be reached (what was finished is kept), 2 for
settings that cannot be used (told in one line), 130 when interrupted.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ml_trainer_env import program  # first: it must come before OpenEnv
from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.llm import agent
from ml_trainer_env.agents.llm.chat import Chat, EndpointError
from ml_trainer_env.agents.llm.settings import LLMSettings
from ml_trainer_env.agents.players import slug
from ml_trainer_env.agents.records import Called, Ended, Line, RecordWriter, Remark
from ml_trainer_env.agents.session import CONNECTION_ERRORS, RemoteSession
from ml_trainer_env.agents.summary import summary
from ml_trainer_env.task_ids import TaskId
from ml_trainer_env.terminal import plain, stdout
from ml_trainer_env.variables import one_line

OUTPUTS = Path("outputs") / "evals"
SEED = 0


@program.settings_explained()
def main() -> int:
    """Play, and give the exit status."""
    console = stdout()
    settings = LLMSettings.load()
    chat = Chat(settings)
    endpoint, environment = map(agent.address, (settings.base_url, settings.env_url))
    console.print(plain(f"{settings.model} at {endpoint}, environment {environment}"))
    try:
        folder = _folder_of_its_own(f"{datetime.now():%Y%m%d-%H%M%S}-{slug(settings.model)}")
    except OSError as error:
        console.print(Text(f"no folder for the records: {error}", "bold red"))
        return 1
    ended: list[Ended] = []
    failure, status = None, 1
    for task_id in settings.tasks:
        try:
            ended.append(_play(task_id, settings, chat, folder, console))
        except (EndpointError, *CONNECTION_ERRORS) as error:
            failure = one_line(f"{task_id} failed: {error or type(error).__name__}")
            break
        except KeyboardInterrupt:
            failure, status = "interrupted", 130
            break
    if ended:
        console.print(summary(ended), f"records: {folder}")
    with suppress(OSError):  # whatever it holds stays
        folder.rmdir()
    if failure:
        console.print(Text(plain(failure), "bold red"), soft_wrap=True)
        return status
    return 0


def _play(
    task_id: TaskId, settings: LLMSettings, chat: Chat, folder: Path, console: Console
) -> Ended:
    """One episode, shown and recorded."""
    console.rule(Text(task_id, "bold"), align="left")
    connect = partial(RemoteSession, settings.env_url, settings.env_token)
    player = agent.player(settings, task_id)
    with (
        RecordWriter(folder / f"{slug(task_id)}-{SEED}.jsonl") as record,
        Attempt(player, connect, task_id, SEED, [record, partial(_show, console)]) as attempt,
    ):
        agent.play(attempt, chat, settings.decisions(task_id))
        assert attempt.ended is not None
        return attempt.ended


def _show(console: Console, line: Line) -> None:
    if isinstance(line, Remark):
        console.print(Text(plain(line.text)))
    elif isinstance(line, Called):
        told = Text(line.error or "", "red") if line.status is None else Text(str(line.status))
        console.print(told)


def _folder_of_its_own(name: str) -> Path:
    """A new folder of this name, or of this name and a number: others may start at the same time.

    Raises OSError.
    """
    for number in count(1):
        folder = OUTPUTS / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("numbers do not end")


if __name__ == "__main__":
    sys.exit(main())
