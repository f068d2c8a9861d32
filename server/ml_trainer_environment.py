"""The OpenEnv environment: one session, through which `tools.call` reaches an `Episode`.

Thin on purpose. It answers in OpenEnv's envelopes (`wire.py`), keeps long work off the event loop,
and tells training to stop when nobody waits for it any more.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

from fastmcp import FastMCP
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, ListToolsAction
from openenv.core.env_server.types import Action, EnvironmentMetadata, Observation

from ml_trainer_env.models import TrainingStatus
from ml_trainer_env.server import counters
from ml_trainer_env.server.episode import situation, tools
from ml_trainer_env.server.episode.episode import Episode
from ml_trainer_env.server.episode.played import Played
from ml_trainer_env.server.episode.situation import Situation
from ml_trainer_env.server.runs import Run
from ml_trainer_env.server.runtime.asking import Asker, bell_of, never
from ml_trainer_env.server.runtime.runner import Runner
from ml_trainer_env.server.session import envelopes, process
from ml_trainer_env.server.session.connection import current_connection
from ml_trainer_env.server.session.current import Current
from ml_trainer_env.server.session.mcp_tools import DirectClient, EpisodeTool
from ml_trainer_env.server.session.places import Places
from ml_trainer_env.server.session.reset_options import ResetOptions
from ml_trainer_env.server.session.saved import RESUMED, Held, Saved, SavedEpisodes
from ml_trainer_env.server.session.task_api import TaskApi
from ml_trainer_env.server.session.waiting import Stop, in_thread, nothing
from ml_trainer_env.server.tasks import Task
from ml_trainer_env.server.validation import ActionError, validate
from ml_trainer_env.wire import EpisodeState, StatusObservation, ToolObservation

NAME = "ml_trainer_env"
UNHEARD = "the connection was lost before the answer, so the call has not happened"


class MLTrainerEnvironment(TaskApi, MCPEnvironment):
    """An agent runs the training of a real neural network.

    Action Space: `CallToolAction` with one of six tools, of a cluster ten
    (`server/episode/tools.py`), and `ListToolsAction`.
    Observation Space: `ToolObservation`, whose result is a `models.TrainingStatus`.
    Rewards: `server/episode/rewards.py`, of this step alone; the final score is in the last one.
    Starting State: an untrained network, or a run to take over; the same task and seed (default 0)
    give the same bits.
    Episode End: `submit_model`, or the last tool call, which submits by itself.

    Any thread may call it. `step` and `reset` block; `step_async` and `reset_async` never block the
    event loop and have no time limit of their own: with `timeout_s`, training stops at the first
    epoch boundary after it and what was trained counts.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(
        self,
        runner: Runner | None = None,
        *,
        find_runner: Callable[[], Runner] | None = None,
        saved: SavedEpisodes | None = None,
        places: Places[MLTrainerEnvironment] | None = None,
    ) -> None:
        """A session whose trainings run on `runner`. Cheap: no torch yet.

        Without one, on that which `find_runner()` gives at the first reset, by default one in this
        process that all its sessions share. `saved` is what they can fork.
        """
        super().__init__(_unused_server())
        del self.mcp_server  # until somebody asks for it
        self.mcp_client = DirectClient(self._tools, self.call_async)
        self._find_runner = find_runner or process.inline_runner
        self._runner = runner
        self._saved = saved or process.saved_episodes()
        self._places = places
        self._run: Current | None = None
        self.attempts: Counter[tuple[str, int | None]] = Counter()  # episodes begun: `_counted`
        self._closed = False
        self._lock = threading.Lock()

    # Episodes --------------------------------------------------------------------------------

    def reset(
        self, /, seed: int | None = None, episode_id: str | None = None, **options: Any
    ) -> StatusObservation:
        """Begin an episode: `task_id=`, or `split=` and `index=`; an unfinished one is abandoned.

        `fork_of=` goes on from another open episode, as it stands after its last finished action;
        `resume=` does so in its place, if its session was lost. Both take that episode's key.

        A training in progress is stopped at its next epoch boundary and waited for.
        Raises `InvalidArguments`, and `NoPlace` when the server is full.
        """
        return self._reset({"seed": seed, "episode_id": episode_id, **options})

    def _reset(self, given: Mapping[str, Any], stop: tools.Stop = never) -> StatusObservation:
        """`stop` ends the training of a run that is to be taken over, and with it the reset."""
        wanted = validate(ResetOptions, given, subject="reset")
        runner = self._runner or self._find_runner()
        self._take_place()
        held = self._saved.take_over(wanted.resume) if wanted.resume else None
        try:
            saved = self._first(wanted, partial(process.begin, runner.engine()))
            own = self._run and self._run.held
            held = held or self._saved.hold(wanted.episode_id, instead_of=own)
            self._abandon()
            if not wanted.going_on:
                asker = Asker(lambda: stop() or self._closed, bell=bell_of(stop))
                now = situation.first(saved.task, saved.now, runner, asker)
                saved = replace(saved, now=now)
            episode = self._started(saved, held, runner)
        except BaseException:
            if held:
                self._saved.close(held)
            raise
        status = episode.get_training_status() if wanted.going_on else episode.opening()
        return StatusObservation(status=status, done=False, reward=None)

    def _first(self, wanted: ResetOptions, begin: Callable[[Task, int], Run]) -> Saved:
        """Where the new episode begins: on a task, or where that of the given key stands."""
        if wanted.going_on:
            option, key = wanted.going_on
            saved = self._saved.find(key, option, begin)
        else:
            task = wanted.chosen_task()
            saved = Saved("", task, wanted.seed, Situation(begin(task, wanted.seed)))
        if wanted.resume:
            return saved
        attempt = self.attempts[_counted(saved)] + 1
        if saved.task.hidden:  # what the attempts of a fork's parent have shown it, it knows
            attempt = max(attempt, saved.now.attempt)
        return replace(saved, now=replace(saved.now, attempt=attempt))

    def _started(self, saved: Saved, held: Held, runner: Runner) -> Episode:
        """The episode, which is the session's from here on."""
        saved = replace(saved, episode_id=held.episode_id)

        def note(now: Situation) -> None:
            connection = current_connection.get()
            if connection and connection.is_session and connection.lost():
                raise ActionError(UNHEARD)
            self._saved.save(held, replace(saved, now=now))

        episode = tools.begun(saved.task, saved.now, runner, note)

        def give_up() -> None:
            episode.abandon(RESUMED)
            episode.wait_until_idle()

        held.give_up = give_up
        with self._lock:
            self._require_open()
            if held.over:
                raise ActionError(RESUMED)
            self._saved.save(held, saved)
            self._run = Current(episode, held, saved.seed)
            vars(self).pop("mcp_server", None)  # another episode may have other tools
            key = _counted(saved)
            self.attempts[key] = max(self.attempts[key], saved.now.attempt)
        return episode

    async def reset_async(
        self, /, seed: int | None = None, episode_id: str | None = None, **options: Any
    ) -> StatusObservation:
        given = {"seed": seed, "episode_id": episode_id, **options}
        return await in_thread(partial(self._reset, given), Stop())

    def call(
        self, name: str, arguments: Mapping[str, Any], stop: tools.Stop = never
    ) -> TrainingStatus:
        """Call a tool. Raises `ActionError`, and then nothing has changed."""
        self._require_open()
        run = self._run
        known = name if name in self._tools() else counters.UNKNOWN
        try:
            with counters.TOOL_CALL_SECONDS.labels(known).time():
                status = tools.call(run.episode if run else None, name, arguments, stop)
        except ActionError as error:
            if run and name in self._tools():
                run.played.append(Played(name, {}, error=str(error)))
            raise
        if run:
            with self._lock:
                run.steps += 1
            if name != tools.FREE:  # it would push out what counts
                run.played.append(Played(name, dict(arguments), status))
        return status

    async def call_async(
        self, name: str, arguments: Mapping[str, Any], notice: Callable[[], object] = nothing
    ) -> TrainingStatus:
        """`call` for the doors that bypass `step`: `/mcp` and standard MCP clients.

        `notice` is called at epoch boundaries, in the thread that trains.
        """
        return await in_thread(partial(self.call, name, arguments), Stop(notice=notice))

    @cached_property
    def mcp_server(self) -> FastMCP:
        """The tools as an MCP server; None once closed.

        Few ask for it, and it is hundreds of objects in cycles: a collection of what the crowd's
        closed sessions had left of them held the server up for 40 ms.
        """
        server = FastMCP(NAME)
        for spec in self._tools().values():
            server.add_tool(EpisodeTool.of(spec, self.call_async))
        return server

    # OpenEnv's protocol ----------------------------------------------------------------------

    def step(self, action: Action, timeout_s: float | None = None, **_: Any) -> Observation:
        return self._step(action, Stop(timeout_s))

    async def step_async(
        self, action: Action, timeout_s: float | None = None, **_: Any
    ) -> Observation:
        stop = Stop(timeout_s)
        return await in_thread(partial(self._step, action), stop)

    def _step(self, action: Action, stop: tools.Stop) -> Observation:
        if isinstance(action, CallToolAction):
            return self._tool_step(action, stop)
        if isinstance(action, ListToolsAction):
            with self._lock:
                if self._run:
                    self._run.steps += 1
            return envelopes.listed(self._tools().values(), done=self._done)
        return self._step_impl(action)

    def _tool_step(self, action: CallToolAction, stop: tools.Stop) -> ToolObservation:
        try:
            status = self.call(action.tool_name, action.arguments, stop)
        except ActionError as error:
            return envelopes.refused(action.tool_name, error, done=self._done)
        return envelopes.answered(action.tool_name, status)

    def _step_impl(self, action: Action, timeout_s: float | None = None, **_: Any) -> Observation:
        raise ActionError(f"unknown action {type(action).__name__}: call or list tools")

    @property
    def episode(self) -> Episode | None:
        """The episode in progress or just ended; for who watches, never for an agent."""
        run = self._run
        return run.episode if run else None

    @property
    def played(self) -> tuple[Played, ...]:
        """The latest calls of that episode, oldest first; for who watches, never for an agent."""
        run = self._run
        return tuple(run.played.copy()) if run else ()

    @property
    def watch_id(self) -> str | None:
        """Names that episode to who watches. Opens nothing, and is not the id of the client."""
        run = self._run
        return run.watch_id if run else None

    @property
    def state(self) -> EpisodeState:
        run = self._run
        return run.state if run else EpisodeState()

    def get_metadata(self) -> EnvironmentMetadata:
        return EnvironmentMetadata(
            name=NAME,
            description="An agent learns to run the training of real neural networks: it sees the "
            "curves, decides what to change, trains on, and submits. Nothing is simulated.",
            readme_content=_readme(),
            version=version(),
        )

    def get_callables(self) -> dict[str, Callable[..., TrainingStatus]]:
        """The tools as plain functions, for OpenEnv's code mode."""
        return {name: partial(self._call_by_keywords, name) for name in self._tools()}

    def close(self) -> None:
        """End the session without waiting: a training in progress stops at its next boundary."""
        with self._lock:
            self._closed = True
            run, self._run = self._run, None
        if run:
            run.episode.abandon()
            self._saved.close(run.held)
        if self._places:
            self._places.leave(self)
        super().close()

    # Inside ----------------------------------------------------------------------------------

    @property
    def _done(self) -> bool:
        run = self._run
        return run is not None and run.episode.done

    def _tools(self) -> Mapping[str, tools.ToolSpec]:
        """Of the episode; before any has begun, the six."""
        return tools.tools_of(self.episode)

    def _require_open(self) -> None:
        if self._closed:
            raise ActionError("the session is closed")

    def _take_place(self) -> None:
        with self._lock:  # so that `close` comes before it or after it
            self._require_open()
            if self._places:
                self._places.take(self)

    def _abandon(self) -> None:
        """End the present episode, if any, and wait until nothing of it runs."""
        run = self._run
        if run:
            run.episode.abandon()
            run.episode.wait_until_idle()
            self._saved.forget(run.held)
            self._saved.close(run.held)

    def _call_by_keywords(self, name: str, /, **arguments: Any) -> TrainingStatus:
        return self.call(name, arguments)

    def _validate_tool_names(self, mcp_server: Any) -> None:
        """The names are a constant that a test checks; asking FastMCP would cost an event loop."""


def _counted(saved: Saved) -> tuple[str, int | None]:
    """What counts as the same attempt: the task and its seed; an instance hides the same whatever
    the seed.
    """
    return saved.task.task_id, None if saved.task.hidden else saved.seed


@cache
def _unused_server() -> FastMCP:
    """What OpenEnv's constructor wants, for all sessions."""
    return FastMCP(NAME)


@cache
def _readme() -> str | None:
    path = Path(__file__).parents[1] / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else None


@cache
def version() -> str | None:
    """Of this package; None when it was not installed."""
    try:
        return metadata.version("ml-trainer-env")
    except metadata.PackageNotFoundError:  # run from a checkout
        return None
