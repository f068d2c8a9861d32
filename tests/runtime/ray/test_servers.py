"""Several servers on one cluster and one folder, behind a balancer: each episode is as if alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import mcp_play
import pytest
from live import eventually
from openenv.core.env_server.mcp_types import CallToolAction
from real import Outcome, play

pytest.importorskip("ray", reason="the extra `ray`")

from balanced import BALANCER, PATIENCE, Balanced, Server, balanced

from ml_trainer_env import MLTrainerEnv
from ml_trainer_env.agents.moves import SUBMIT, Move, configure, rate, run
from ml_trainer_env.benchmarks.sessions import ray_nodes as rays
from ml_trainer_env.client import SessionLost, SyncClient, ToolCallError
from ml_trainer_env.models import TrainingStatus
from ml_trainer_env.server.runtime.orders import outcome_of
from ml_trainer_env.server.runtime.records import NAME, Records
from ml_trainer_env.wire import StatusObservation, ToolObservation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.skipif(not BALANCER, reason="haproxy is not installed"),
]
CORES = 1
LONG = run(20)


def moves(learning_rate: float) -> list[Move]:
    """Of an episode that nobody else plays, unless they say the same rate."""
    begin = configure(optimizer="sgd", learning_rate=learning_rate, dropout=0.1)
    return [begin, run(2), LONG, rate(learning_rate / 2), run(3), SUBMIT]


@pytest.fixture(scope="module")
def cluster() -> Iterator[rays.Nodes]:
    with rays.nodes(CORES) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def both(cluster: rays.Nodes, folder: Path) -> Iterator[Balanced]:
    settings = {
        "ML_TRAINER_RUNNER": "ray",
        "ML_TRAINER_RAY_ADDRESS": cluster.address,
        "ML_TRAINER_STATE_DIR": str(folder),
    }
    with balanced(settings) as both:
        for server in both.servers:
            eventually(lambda server=server: server.counts("cores") == CORES, PATIENCE)
        yield both


@pytest.fixture
def door(both: Balanced) -> Iterator[Callable[..., SyncClient]]:
    """Opens sessions, through the balancer or at a server; all are closed in the end."""
    eventually(both.idle, PATIENCE)
    opened: list[SyncClient] = []

    def session(server: Server | None = None) -> SyncClient:
        env = MLTrainerEnv(base_url=server.url if server else both.url).sync()
        opened.append(env)
        env.connect()
        return env

    yield session
    for env in opened:
        with suppress(Exception):  # some have lost their server
            env.close()


def step(env: SyncClient, move: Move) -> TrainingStatus:
    """Raises `SessionLost`."""
    seen = env.step(CallToolAction(tool_name=move.tool, arguments=move.arguments)).observation
    assert isinstance(seen, ToolObservation)
    assert seen.status, seen.error
    return seen.status


def played(env: SyncClient, todo: Sequence[Move]) -> list[TrainingStatus]:
    return [step(env, move) for move in todo]


def assert_as_alone(answers: list[TrainingStatus], alone: Outcome, folder: Path) -> None:
    """Every answer, reward and grade, and all that is remembered of its epochs."""
    assert answers == alone.statuses
    with closing(Records(folder / NAME)) as records:
        for key, record in zip(alone.training.keys()[1:], alone.training.history, strict=True):
            known = records.get(key)
            assert known
            assert known.outcome == outcome_of(record)
    assert not (folder / NAME).with_suffix(".unreadable").exists()


class Begun:
    """An episode through the balancer, the server that it is on, and the other one."""

    def __init__(self, both: Balanced, door: Callable[..., SyncClient]) -> None:
        before = both.sessions()
        self.env = door()
        self.env.reset(seed=0)
        places = [now > then for now, then in zip(both.sessions(), before, strict=True)]
        assert sum(places) == 1
        self.server = both.servers[places.index(True)]
        self.other = both.servers[places.index(False)]

    def in_the_middle_of(self, move: Move) -> Future[TrainingStatus]:
        """Its server has trained some epochs of it, and not all."""
        before = self.server.counts("epochs_total trained")
        asked = ThreadPoolExecutor(1).submit(step, self.env, move)
        eventually(lambda: self.server.counts("epochs_total trained") >= before + 2, PATIENCE)
        return asked


def test_sessions_spread_and_each_is_as_if_alone(
    both: Balanced, door: Callable[..., SyncClient], cluster: rays.Nodes, folder: Path
) -> None:
    """Two and two; of each server's two one plays what one of the other's plays, in the same
    moment.
    """
    envs = [door() for _ in range(4)]
    for env in envs:
        env.reset(seed=0)
    assert both.sessions() == [2, 2]
    rates = (0.03, 0.03, 0.04, 0.05)
    with ThreadPoolExecutor(4) as threads:
        plays = [threads.submit(played, env, moves(r)) for env, r in zip(envs, rates, strict=True)]
        lent: list[float] = []
        while not all(each.done() for each in plays):
            lent += [server.counts("cores_lent") for server in both.servers]
    for each, learning_rate in zip(plays, rates, strict=True):
        assert_as_alone(each.result(), play(*moves(learning_rate)), folder)
    assert max(lent) == CORES
    assert all(server.counts("epochs_total trained") >= 25 for server in both.servers)
    (node,) = cluster.cluster.worker_nodes
    assert len(rays.actors_of(node)) == len(both.servers) * CORES


def test_what_one_server_has_trained_the_other_knows(
    both: Balanced, door: Callable[..., SyncClient]
) -> None:
    shared: list[int] = []
    answers: list[list[TrainingStatus]] = []
    for server in both.servers:
        env = door(server)
        env.reset(seed=0)
        answers.append(played(env, moves(0.06)))
        shared.append(env.state().epochs_shared)
    assert answers[0] == answers[1]
    assert shared == [0, 25]


def test_a_server_is_killed_in_the_middle_of_an_episode(
    both: Balanced, door: Callable[..., SyncClient], folder: Path
) -> None:
    """Its client goes on at the other one, and the server that comes again finds what is there."""
    todo = moves(0.07)
    begun, beside = Begun(both, door), Begun(both, door)
    assert beside.server is begun.other
    env = begun.env
    answers = played(env, todo[:2])
    asked = begun.in_the_middle_of(LONG)
    begun.server.kill()
    with pytest.raises(SessionLost):
        asked.result(PATIENCE)
    opening = resume(env)
    assert begun.other.counts("sessions") == 2
    assert (opening.current_epoch, opening.tool_calls_left) == (2, answers[-1].tool_calls_left)
    answers += played(env, todo[2:])
    assert_as_alone(answers, play(*todo), folder)

    begun.server.start()
    eventually(begun.server.answers, PATIENCE)
    taken = door(begun.server)
    resume(taken, beside.env.state().key)
    assert step(taken, configure()).tool_calls_left == 49
    with pytest.raises(ToolCallError, match="another session"):
        beside.env.call_tool("configure_training")


def test_a_client_is_cut_off_in_the_middle_of_a_call(
    both: Balanced, door: Callable[..., SyncClient], folder: Path
) -> None:
    """Its server trains on for a moment; the other one has the episode as it was before."""
    todo = moves(0.08)
    begun = Begun(both, door)
    env, key = begun.env, begun.env.state().key
    answers = played(env, todo[:2])
    asked = begun.in_the_middle_of(LONG)
    cut_off(env)
    with pytest.raises(SessionLost):
        asked.result(PATIENCE)
    taken = door(begun.other)
    assert resume(taken, key).tool_calls_left == answers[-1].tool_calls_left
    eventually(lambda: begun.server.counts("sessions") == 0, PATIENCE)
    answers += played(taken, todo[2:])
    assert_as_alone(answers, play(*todo), folder)


def test_the_call_of_a_client_that_was_cut_off_has_not_happened(
    both: Balanced, door: Callable[..., SyncClient]
) -> None:
    """Nor when its server has noticed it long before anybody resumes."""
    todo = moves(0.09)
    begun = Begun(both, door)
    key = begun.env.state().key
    answers = played(begun.env, todo[:2])
    asked = begun.in_the_middle_of(LONG)
    cut_off(begun.env)
    with pytest.raises(SessionLost):
        asked.result(PATIENCE)
    eventually(lambda: begun.server.counts("sessions") == 0, PATIENCE)
    opening = resume(door(begun.other), key)
    assert (opening.current_epoch, opening.tool_calls_left) == (2, answers[-1].tool_calls_left)


def test_standard_mcp_stays_where_it_began(both: Balanced, door: Callable[..., SyncClient]) -> None:
    with ExitStack() as stack:
        sessions = [stack.enter_context(mcp_play.ByHand(both.url)) for _ in range(4)]
        for session in sessions:
            session.call("begin_episode")
        assert both.sessions() == [2, 2]
        for left in (49, 48, 47):
            for session in sessions:
                session.http.cookies.clear()  # most clients keep none
                told = session.call("configure_training", dropout=left / 100).text
                assert f'"tool_calls_left":{left}' in told
        for session in sessions:
            assert session.end().is_success


def test_doors_without_sessions_and_openenvs_own(
    both: Balanced, door: Callable[..., SyncClient]
) -> None:
    opened = [httpx.post(both.url + "/reset", json={}, timeout=60) for _ in range(4)]
    assert all(each.is_success for each in opened)
    create = mcp_play.request(1, "openenv/session/create")
    for _ in range(4):
        session = httpx.post(both.url + "/mcp", json=create).json()["result"]["session_id"]
        listed = mcp_play.request(2, "tools/list", session_id=session)
        assert "result" in httpx.post(both.url + "/mcp", json=listed).json()
        end = mcp_play.request(3, "openenv/session/close", session_id=session)
        assert "result" in httpx.post(both.url + "/mcp", json=end).json()


def resume(env: SyncClient, key: str | None = None) -> TrainingStatus:
    """Where the episode stands."""
    client = env.async_client
    assert isinstance(client, MLTrainerEnv)
    observation = env._run(client.resume(key)).observation
    assert isinstance(observation, StatusObservation)
    return observation.status


def cut_off(env: SyncClient) -> None:
    """As the network would: without a goodbye."""

    async def abort() -> None:
        connection = env.async_client._ws
        assert connection
        connection.transport.abort()

    env._run(abort())
