"""A scripted agent plays a whole episode of every task against a real server: `make demo`.

Starts the server on a free port, connects as any client would, over the WebSocket, prints each call
as it is answered, each grade with its explanation, and a summary. The server is stopped whatever
happens. Exit status: 0 when every episode was graded, 1 on a failure, 130 when interrupted.

    python demo.py --tasks easy_mnist --seed 3
    python demo.py --url http://localhost:8000      # a server that runs already
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text
from websockets.exceptions import WebSocketException

from ml_trainer_env.agents.moves import Move
from ml_trainer_env.agents.scripted import scripted
from ml_trainer_env.client import MLTrainerEnv, SyncClient
from ml_trainer_env.models import TASK_IDS, Grade, Signal, TaskId, TrainingStatus
from ml_trainer_env.wire import StatusObservation

ROOT = Path(__file__).resolve().parent
SERVER = (sys.executable, "-m", "uvicorn", "server.app:app", "--timeout-graceful-shutdown", "5")
LOG = ROOT / "outputs" / "logs" / "demo-server.log"
START_SECONDS = 120.0  # reading everything from a cold disk takes long
STOP_SECONDS = 20.0
LOG_TAIL = 15  # lines of the server's log that are shown when it fails

WIDTH = 100  # columns where there is no terminal to ask
BAR = 8  # characters
SIGNAL_STYLES: dict[Signal, str] = {
    "improving": "green",
    "overfitting": "yellow",
    "stalling": "yellow",
    "diverged": "bold red",
}

# What a client can raise for a server that is gone, refuses, or falls silent.
CLIENT_ERRORS = (OSError, RuntimeError, WebSocketException)


class DemoError(Exception):
    """The demo cannot go on; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Played:
    """One finished episode."""

    grade: Grade
    epochs: int
    calls: int
    total_reward: float  # over all observations, the final score among them
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Play, and give the exit status."""
    options = _options(argv)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    started = time.perf_counter()
    try:
        with ExitStack() as server:
            if (url := options.url) is None:
                with console.status("starting the server"):
                    url = server.enter_context(local_server(LOG))
            console.print(f"server: {url}" + (f", log: {LOG}" if options.url is None else ""))
            played = [play(url, task_id, options.seed, console) for task_id in options.tasks]
    except KeyboardInterrupt:
        console.print("interrupted", style="bold red")
        return 130
    except (DemoError, *CLIENT_ERRORS) as error:
        console.print(Text(f"demo failed: {error or type(error).__name__}", "bold red"))
        return 1
    _show_summary(console, played, time.perf_counter() - started)
    return 0


def play(url: str, task_id: TaskId, seed: int, console: Console) -> Played:
    """A whole episode, shown as it goes."""
    started = time.perf_counter()
    total, calls = 0.0, 0
    with MLTrainerEnv(base_url=url) as env:
        console.rule(Text(f"{task_id}, seed {seed}", "bold"), align="left")
        with console.status("loading"):  # a server that has just started still reads torch
            opening = env.reset(task_id=task_id, seed=seed).observation
        assert isinstance(opening, StatusObservation)
        status = opening.status
        console.print(Text(status.message, "dim"))
        while not status.done:
            move = scripted(status)
            status = _call(env, move, console)
            total, calls = total + status.reward, calls + 1
            _show_call(console, move, status)
    if status.grade is None:
        raise DemoError(f"{task_id} ended without a grade: {status.message}")
    _show_grade(console, status.grade)
    return Played(status.grade, status.current_epoch, calls, total, time.perf_counter() - started)


def _call(env: SyncClient, move: Move, console: Console) -> TrainingStatus:
    arguments = ", ".join(f"{name}={value}" for name, value in move.arguments.items())
    with console.status(Text(f"{move.tool}({arguments})")):
        return env.call_tool(move.tool, **move.arguments)


# The server ---------------------------------------------------------------------------------------


@contextmanager
def local_server(log: Path, program: Sequence[str] = SERVER) -> Iterator[str]:
    """`program` serving on a free port of this machine; yields its base URL, then stops it.

    Its output goes to `log`. Raises `DemoError`, with the end of the log, when it does not start or
    when it ends before it is stopped.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    command = [*program, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out:
        server = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the demo, which then stops the server
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(server, url, log)
        yield url
    except CLIENT_ERRORS as error:
        with suppress(subprocess.TimeoutExpired):  # a client hears of the end before we do
            server.wait(1)
        if server.returncode is None:
            raise
        raise _ended(server, log) from error
    finally:
        _stop(server)


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise _ended(server, log)
        with suppress(httpx.TransportError):
            # trust_env: a proxy that the environment names is not for this machine.
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise DemoError(
        f"the server did not answer {url}/health in {START_SECONDS:g} s{_log_tail(log)}"
    )


def _ended(server: subprocess.Popen[bytes], log: Path) -> DemoError:
    return DemoError(f"the server ended with status {server.returncode}{_log_tail(log)}")


def _log_tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL:]
    return "\n".join([f"; the end of {log}:", *(f"  {line}" for line in lines)])


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            server.wait(STOP_SECONDS)
    finally:  # a second Ctrl-C must not leave it behind either
        server.kill()
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# What is shown ------------------------------------------------------------------------------------

_HEADER = (
    f"{'':<{BAR + 10}}  {'train':^12}  {'validation':^12}   best\n"
    f"{'budget':<{BAR + 10}}  {'loss':>5} {'acc':>6}  {'loss':>5} {'acc':>6} {'acc':>6} {'gap':>6}"
    f" {'next lr':>8}  {'signal':<12} {'reward':>7} {'time':>7}"
)


def _show_call(console: Console, move: Move, status: TrainingStatus) -> None:
    """A row for a call that trained; a sentence for any other."""
    if not status.epochs_run:
        console.print(Text.assemble((move.tool, "bold cyan"), f": {status.message}"))
        console.print(Text(f"  reward {status.reward:+.4f}", "dim"))
        if move.tool == "configure_training":
            console.print(Text(_HEADER, "dim"), soft_wrap=True)
        return
    filled = BAR * status.current_epoch // status.max_epochs
    config = status.current_config
    seconds = (status.epoch_time_seconds or 0.0) * status.epochs_run
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
    console.print(Text(f"Hidden-test accuracy {_percent(grade.hidden_test_accuracy).strip()}."))


def _show_summary(console: Console, episodes: Sequence[Played], seconds: float) -> None:
    table = Table(title="Summary", title_justify="left")
    table.add_column("task")
    for heading in ("score", "val acc", "hidden test", "gap", "epochs", "calls", "return", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for played in episodes:
        grade = played.grade
        table.add_row(
            grade.task_id,
            f"{grade.score:.4f}",
            _percent(grade.val_accuracy),
            _percent(grade.hidden_test_accuracy),
            _percent(grade.generalization_gap),
            f"{played.epochs}",
            f"{played.calls}",
            f"{played.total_reward:+.4f}",
            f"{played.seconds:.1f} s",
        )
    console.rule()
    console.print(table)
    console.print(f"everything took {seconds:.0f} s")


def _loss(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.3f}':>5}"


def _percent(share: float | None) -> str:
    return f"{'-' if share is None else f'{share:.1%}':>6}"


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo.py", description="Play every task, by a script.")
    parser.add_argument(
        "--tasks", nargs="+", choices=TASK_IDS, default=TASK_IDS, metavar="TASK", help="which tasks"
    )
    parser.add_argument("--seed", type=int, default=0, help="of every episode (%(default)s)")
    parser.add_argument("--url", help="of a running server; left out: start one")
    return parser.parse_args(argv)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the server then too
    sys.exit(main())
