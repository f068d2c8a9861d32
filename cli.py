"""The command line, `ml-trainer`: thin, over the modules that do the work."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.text import Text

from ml_trainer_env import terminal
from ml_trainer_env.agents.catalogue import AGENTS
from ml_trainer_env.cluster_show.faults import FAULTS, NO_FAULT
from ml_trainer_env.surroundings import remembering, require_http_client, variables_set
from ml_trainer_env.task_ids import CLASSIC_IDS, GROUPS, TaskId, instance_id, named
from ml_trainer_env.variables import one_line, option, secret, server_url, settings_explained

if TYPE_CHECKING:  # importing it for real would load OpenEnv, and `--help` is to be quick
    from ml_trainer_env.agents.session import Connect

OUTPUTS = Path("outputs")
LADDER = "nothing,random,naive,expert"

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="ML Training Optimizer: agents that run the training of real neural networks.",
)
data = typer.Typer(no_args_is_help=True, help="The data sets.")
app.add_typer(data, name="data")


@settings_explained()
def main() -> None:
    """Run, and end with an exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop servers and attempts then too
    terminal.prepare()
    app()


# Options that several commands take ---------------------------------------------------------------


def _listed(given: str, known: list[str], what: str) -> list[str]:
    """The names in a comma-separated list, each once. Raises typer's error for an unknown one."""
    names = dict.fromkeys(name.strip() for name in given.split(",") if name.strip())
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"no {what} is named {name}; known: {', '.join(known)}")
    if not names:
        raise typer.BadParameter(f"names no {what}; known: {', '.join(known)}")
    return list(names)


def _tasks(given: str) -> list[TaskId]:
    names = [name.strip() for name in given.split(",") if name.strip()]
    try:
        found = dict.fromkeys(task_id for name in names for task_id in named(name))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not found:
        raise typer.BadParameter(f"names no task; known: {', '.join(CLASSIC_IDS)}")
    return list(found)


def _completion(known: list[str]) -> Callable[[str], list[str]]:
    """The shell completes the last name of a list."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + name for name in known if name.startswith(last)]

    return complete


Tasks = Annotated[
    str,
    typer.Option(
        help=f"Comma-separated: {', '.join(CLASSIC_IDS)}, an instance such as varied_mlp/eval/7, "
        "a whole split such as varied_mlp/eval, or a part of one: varied_mlp/eval/0-11.",
        autocompletion=_completion(list(GROUPS)),
    ),
]
Agents = Annotated[
    str,
    typer.Option(
        help=f"Comma-separated: {', '.join(AGENTS)}.",
        autocompletion=_completion(list(AGENTS)),
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        help="A running server, whose token is ML_TRAINER_TOKEN; left out: one is started."
    ),
]
InProcess = Annotated[bool, typer.Option("--in-process", help="Train here, without a server.")]
Folder = Annotated[Path, typer.Option(help="Where the records are.")]
EVERY_TASK = ",".join(CLASSIC_IDS)


# Commands -----------------------------------------------------------------------------------------


@app.command(epilog="Example: `ml-trainer demo --tasks easy_mnist --seed 3`")
def demo(tasks: Tasks = EVERY_TASK, seed: int = 0, url: Url = None) -> None:
    """Watch a scripted agent play every task against a real server."""
    require_http_client()  # before OpenEnv is imported
    from ml_trainer_env.demo import demo

    chosen = _tasks(tasks)
    if any(map(instance_id, chosen)):
        raise typer.BadParameter("the demo plays the classic tasks; evaluate plays instances, too")
    raise typer.Exit(demo(chosen, seed, _url(url), _token()))


@app.command(epilog="Example: `ml-trainer cluster --ranks-as-processes --fault dead,slow`")
def cluster(
    ranks_as_processes: Annotated[
        bool,
        typer.Option(
            "--ranks-as-processes",
            help="Every host a process of its own, over torch.distributed, really killed and "
            "really slowed.",
        ),
    ] = False,
    network: Annotated[
        Literal["cluster_lm", "cluster_cnn"], typer.Option(help="A text or images.")
    ] = "cluster_lm",
    ranks: Annotated[int, typer.Option(min=2, max=16)] = 4,
    windows: Annotated[int, typer.Option(min=1, help="Of 25 steps.")] = 4,
    fault: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help=f"Of {', '.join(FAULTS)}, or {NO_FAULT}; several: a list with commas, or "
            "the option again.",
            autocompletion=_completion([*FAULTS, NO_FAULT]),
        ),
    ] = ["crash", "slow"],  # noqa: B006 - typer copies it
    seed: int = 0,
) -> None:
    """Watch a cluster train while things go wrong, and every bit of it checked."""
    names = _listed(",".join(fault), [*FAULTS, NO_FAULT], "fault")
    from ml_trainer_env.cluster_show.show import show

    chosen = [name for name in names if name != NO_FAULT]
    raise typer.Exit(show(network, ranks, windows, chosen, seed, processes=ranks_as_processes))


@app.command(epilog="Example: `ml-trainer serve --port 9000`")
def serve(host: str = "0.0.0.0", port: int = 8000) -> None:
    """Serve the environment until interrupted."""
    _run_module("ml_trainer_env.server.app", "--host", host, "--port", str(port))


@app.command(epilog="Example: `ml-trainer resources --cores 4`")
def resources(
    cores: Annotated[
        int | None, typer.Option(min=1, help="That train here, at most; left out: all.")
    ] = None,
) -> None:
    """Print what a Ray node has to name to be trained on.

    `ray start --address HEAD:6379 --resources "$(ml-trainer resources)"`
    """
    chosen = ["--cores", str(cores)] if cores else []
    _run_module("ml_trainer_env.server.runtime.ray.resources", *chosen)


@app.command(epilog="Example: `ml-trainer mcp --config`, for a desktop client's settings")
def mcp(
    config: Annotated[
        bool, typer.Option("--config", help="Print the settings for a desktop client, and end.")
    ] = False,
) -> None:
    """Serve one MCP client over standard input and output, training in this process."""
    _run_module("ml_trainer_env.server.doors.mcp." + ("desktop" if config else "stdio"))


@data.command(epilog="Example: `ml-trainer data fetch cifar10 --raw ~/Downloads`")
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Data sets; left out: all.")] = None,
    raw: Annotated[Path | None, typer.Option(help="A folder of official files.")] = None,
) -> None:
    """Fetch, verify and cache."""
    folder = ["--raw", str(raw)] if raw else []
    _run_module("ml_trainer_env.server.datasets", *(names or []), *folder)


@data.command()
def status() -> None:
    """Show what the cache holds."""
    _run_module("ml_trainer_env.server.datasets", "--status")


@app.command(epilog="Example: `ml-trainer state --clear`")
def state(
    clear: Annotated[bool, typer.Option("--clear", help="Forget all of it.")] = False,
) -> None:
    """Show what earlier evaluations have left to be trained on, or clear it."""
    _run_module("ml_trainer_env.server.session.state_folder", *(["--clear"] if clear else []))


@app.command(
    epilog="Example: `ml-trainer evaluate --agents naive,expert --tasks easy_mnist --seeds 5`"
)
def evaluate(
    agents: Agents = LADDER,
    tasks: Tasks = EVERY_TASK,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ... of each.")] = 5,
    parallel: Annotated[int, typer.Option(min=1, help="Attempts at a time.")] = 2,
    out: Folder = OUTPUTS / "evals" / "evaluation",
    url: Url = None,
    in_process: InProcess = False,
    tensorboard: Annotated[Path | None, typer.Option(help="Stream the curves there.")] = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Train what earlier evaluations trained, too.")
    ] = False,
) -> None:
    """Play agents x tasks x seeds, each on record, and report. Goes on where it was interrupted."""
    require_http_client()  # before OpenEnv is imported
    from ml_trainer_env.agents import catalogue
    from ml_trainer_env.evals import evaluate as evaluation
    from ml_trainer_env.evals.progress import Progress

    console = terminal.stdout()
    try:
        players = evaluation.contenders(_listed(agents, list(AGENTS), "agent"), _tasks(tasks))
        out.mkdir(parents=True, exist_ok=True)
    except (catalogue.AgentUnavailable, OSError) as error:
        _fail(str(error))
    with _sessions(url, in_process, {} if anew else remembering()) as connect:
        wanted = evaluation.jobs(players, seeds, connect)
        todo = evaluation.pending(wanted, out)
        progress = Progress(console, len(wanted), len(wanted) - len(todo))
        try:
            with progress.shown():
                failures = evaluation.evaluate(
                    todo, out, connect, parallel=parallel, progress=progress, curves=tensorboard
                )
        except KeyboardInterrupt:
            _fail("interrupted; the same command goes on from here", status=130)
    for line in evaluation.together(failures):
        console.print(Text(terminal.plain(line), "red"), soft_wrap=True)
    _report(out, one_line(shlex.join(["ml-trainer", *sys.argv[1:]]), longest=1000))
    if failures:
        _fail(f"{len(failures)} of {len(wanted)} attempts failed")


@app.command(epilog="Example: `ml-trainer report --folder outputs/evals/evaluation`")
def report(folder: Folder = OUTPUTS / "evals" / "evaluation") -> None:
    """Build the tables and pictures again, from the records in a folder."""
    _report(folder)


@app.command(epilog="Example: `ml-trainer replay outputs/evals/evaluation/hard_cifar-pbt-0.jsonl`")
def replay(
    records: Annotated[list[Path], typer.Argument(help="Record files.")],
    url: Url = None,
    in_process: InProcess = False,
) -> None:
    """Play recorded attempts again and compare every answer, bit for bit."""
    require_http_client()  # before OpenEnv is imported
    from ml_trainer_env.agents import records as reading
    from ml_trainer_env.agents.replay import OtherVersion, verify

    console = terminal.stdout()
    kept: list[tuple[Path, reading.Record]] = []
    for path in records:
        try:
            kept.append((path, reading.read(path)))
        except reading.BadRecord as error:
            console.print(Text(str(error), "bold red"), soft_wrap=True)
    good = len(kept) == len(records)
    if not kept:
        raise typer.Exit(1)
    trained = {"ML_TRAINER_SHARING": "off"}  # or a record would be compared with itself
    with _sessions(url, in_process, trained) as connect:
        for path, record in kept:
            try:
                differences = verify(record, connect)
            except OtherVersion as error:
                good = False
                console.print(Text(f"{path}: {error}", "red"), soft_wrap=True)
                continue
            good &= not differences
            verdict = f"{len(differences)} differences" if differences else "the same, bit for bit"
            shown = Text(f"{path}: {verdict}", "red" if differences else "green")
            console.print(shown, soft_wrap=True)
            for difference in differences[:20]:
                console.print(Text(f"  {difference}"), soft_wrap=True)
    raise typer.Exit(0 if good else 1)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: `ml-trainer bench --help`",
    add_help_option=False,
)
def bench(context: typer.Context) -> None:
    """Measure the speed against the usual way of training; needs a checkout."""
    script = Path(__file__).parent / "benchmarks" / "engine" / "bench.py"
    if not script.exists():
        _fail("the benchmark is part of the repository, not of the installed package")
    _become(str(script), *context.args)


# Inside -------------------------------------------------------------------------------------------


@contextmanager
def _sessions(
    url: str | None, in_process: bool, variables: Mapping[str, str]
) -> Generator[Connect, None, None]:
    """How sessions are opened; a server that is started for them ends with the block.

    `variables` are for what trains on this machine; a server elsewhere has its own.
    """
    from ml_trainer_env.agents.local import LocalSession
    from ml_trainer_env.agents.session import CONNECTION_ERRORS, RemoteSession
    from ml_trainer_env.local_server import LOGS, ServerError, local_server

    url = _url(url)
    with ExitStack() as stack:
        if url is None:
            stack.enter_context(variables_set(variables))
        try:
            if in_process:
                yield LocalSession
                return
            if url is None:
                with terminal.stdout().status("starting a server"):
                    url = stack.enter_context(local_server(LOGS / "evaluation-server.log"))
            yield partial(RemoteSession, url, _token())
        except typer.Exit:  # is a RuntimeError, as many connection errors are
            raise
        except (ServerError, *CONNECTION_ERRORS) as error:
            _fail(str(error) or type(error).__name__)


def _token() -> str | None:
    """From the environment alone: a command line is shown to others, and kept in the report."""
    return secret("ML_TRAINER_TOKEN")


def _url(given: str | None) -> str | None:
    return option("--url", given, server_url)


def _report(folder: Path, command: str | None = None) -> None:
    from ml_trainer_env.evals import report, results

    if find_spec("matplotlib") is None:
        _fail("the report needs matplotlib: install ml-trainer-env with its extra `evaluate`")
    try:
        page = report.write(results.load(folder), folder, command=command)
    except (report.NoResults, OSError) as error:
        _fail(str(error))
    console = terminal.stdout()
    console.print(terminal.plain(page.read_text(encoding="utf-8")), soft_wrap=True)
    console.print(f"report: {page}", soft_wrap=True)


def _run_module(module: str, *arguments: str) -> NoReturn:
    _become("-m", module, *arguments)


def _become(*arguments: str) -> NoReturn:
    """Python with these arguments, in the place of this process: no signal can part the two."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *arguments])


def _fail(problem: str, status: int = 1) -> NoReturn:
    terminal.stdout().print(Text(terminal.plain(problem), "bold red"), soft_wrap=True)
    raise typer.Exit(status)


if __name__ == "__main__":
    main()
