"""A scripted agent plays a whole episode of every task against a real server: `ml-trainer demo`.

Starts the server on a free port, connects as any client would, over the WebSocket, prints each call
as it is answered, each grade with its explanation, and a summary. The server is stopped whatever
happens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from rich.console import Console
from rich.status import Status as Spinner
from rich.table import Table
from rich.text import Text

from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.moves import Move
from ml_trainer_env.agents.policies import follow
from ml_trainer_env.agents.records import Called, Ended, Line, Opened
from ml_trainer_env.agents.scripted import scripted
from ml_trainer_env.agents.session import CONNECTION_ERRORS, Connect, RemoteSession
from ml_trainer_env.agents.summary import percent, summary
from ml_trainer_env.local_server import LOGS, ServerError, local_server
from ml_trainer_env.models import (
    Grade,
    Signal,
    TrainingStatus,
)
from ml_trainer_env.task_ids import TaskId
from ml_trainer_env.terminal import stdout
from ml_trainer_env.variables import one_line

BAR = 8  # characters
SIGNAL_STYLES: dict[Signal, str] = {
    "improving": "green",
    "overfitting": "yellow",
    "stalling": "yellow",
    "diverged": "bold red",
}


def demo(tasks: Sequence[TaskId], seed: int, url: str | None, token: str | None = None) -> int:
    """Play `tasks`; without a `url`, on a server of its own. `token`: what the server asks for.

    The exit status: 0 when every episode was graded, 1 on a failure, 130 when interrupted.
    """
    console = stdout()
    log = LOGS / "demo-server.log"
    started = time.perf_counter()
    try:
        with ExitStack() as server:
            if url is None:
                with console.status("starting the server"):
                    url = server.enter_context(local_server(log))
                console.print(f"server: {url}, log: {log}")
            else:
                console.print(f"server: {one_line(url)}")
            connect = partial(RemoteSession, url, token)
            played = [play(connect, task_id, seed, console) for task_id in tasks]
    except KeyboardInterrupt:
        console.print("interrupted", style="bold red")
        return 130
    except (ServerError, *CONNECTION_ERRORS) as error:
        console.print(Text(f"demo failed: {error or type(error).__name__}", "bold red"))
        return 1
    console.rule()
    console.print(summary(played))
    console.print(f"everything took {time.perf_counter() - started:.0f} s")
    return 0


def play(connect: Connect, task_id: TaskId, seed: int, console: Console) -> Ended:
    """A whole episode, shown as it goes."""
    console.rule(Text(f"{task_id}, seed {seed}", "bold"), align="left")
    with (
        console.status("loading") as spinner,  # a server that has just started still reads torch
        Attempt("reference", connect, task_id, seed, [partial(_show, console)]) as attempt,
    ):
        follow(attempt, partial(_announced, spinner))
    assert attempt.ended is not None
    return attempt.ended


def _announced(spinner: Spinner, status: TrainingStatus) -> Move:
    move = scripted(status)
    arguments = ", ".join(f"{name}={value}" for name, value in move.arguments.items())
    spinner.update(Text(f"{move.tool}({arguments})"))
    return move


# What is shown ------------------------------------------------------------------------------------

_HEADER = (
    f"{'':<{BAR + 10}}  {'train':^12}  {'validation':^12}   best\n"
    f"{'budget':<{BAR + 10}}  {'loss':>5} {'acc':>6}  {'loss':>5} {'acc':>6} {'acc':>6} {'gap':>6}"
    f" {'next lr':>8}  {'signal':<12} {'reward':>7} {'time':>7}"
)


def _show(console: Console, line: Line) -> None:
    if isinstance(line, Opened):
        console.print(Text(line.status.message, "dim"))
    elif isinstance(line, Called) and line.status is not None:
        _show_call(console, line.tool, line.status, line.seconds)
    elif isinstance(line, Ended):
        _show_grade(console, line.grade)


def _show_call(console: Console, tool: str, status: TrainingStatus, seconds: float) -> None:
    """A row for a call that trained; a sentence for any other."""
    if not status.epochs_run:
        console.print(Text.assemble((tool, "bold cyan"), f": {status.message}"))
        console.print(Text(f"  reward {status.reward:+.4f}", "dim"))
        if tool == "configure_training":
            console.print(Text(_HEADER, "dim"), soft_wrap=True)
        return
    filled = BAR * status.current_epoch // status.max_epochs
    config = status.current_config
    row = Text.assemble(
        (f"[{'#' * filled}{'.' * (BAR - filled)}]", "blue"),
        f" {status.current_epoch:>3}/{status.max_epochs:<3}",
        f"  {_loss(status.train_loss)} {_percent(status.train_accuracy)}",
        f"  {_loss(status.val_loss)} {_percent(status.val_accuracy)}",
        (f" {_percent(status.best_val_accuracy)}", "bold"),
        f" {_percent(status.generalization_gap)}",
        f" {config.learning_rate_in_force if config else 0:>8.2g}  ",
        (f"{status.convergence_signal:<12}", SIGNAL_STYLES.get(status.convergence_signal, "")),
        f" {status.reward:>+7.3f} {seconds:>5.1f} s",
    )
    console.print(row, soft_wrap=True)
    if status.is_diverged:
        console.print(Text(f"  {status.message}", "red"))


def _show_grade(console: Console, grade: Grade) -> None:
    table = Table(title=f"Grade of {grade.task_id}: {grade.score:.4f}", title_justify="left")
    for heading in ("component", "weight", "value", "points"):
        table.add_column(heading, justify="left" if heading == "component" else "right")
    table.add_column("computed from")
    for part in grade.components:
        inputs = ", ".join(f"{name} {value:.4g}" for name, value in part.inputs.items())
        points = f"{part.weight * part.value:.4f}"
        table.add_row(part.name, f"{part.weight:g}", f"{part.value:.4f}", points, inputs)
    console.print(table)
    console.print(Text(grade.explanation))
    console.print(Text(f"Hidden-test accuracy {percent(grade.hidden_test_accuracy)}."))


def _loss(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.3f}':>5}"


def _percent(share: float | None) -> str:
    return f"{percent(share):>6}"
