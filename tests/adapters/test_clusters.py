"""What holds for every adapter holds for clusters, too; and each tells of them what it should."""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from adapted import Player, every_adapter, has_a_place, inspected, plain
from checkout import ROOT
from live import eventually, serving
from real import engine
from transformers.utils.chat_template_utils import get_json_schema

from ml_trainer_env.adapters import text
from ml_trainer_env.adapters.gymnasium import TrainingEnv
from ml_trainer_env.adapters.openenv_harness import Sessions
from ml_trainer_env.adapters.skyrl import MAX_TURNS, MAX_TURNS_OF_CLUSTER, TextEnv
from ml_trainer_env.adapters.trl import ClusterRun, dataset, factory
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.agents.moves import SUBMIT, Move, configure, rate, run
from ml_trainer_env.server.app import build
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.settings import Settings
from ml_trainer_env.task_ids import TaskId

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the libraries are not ours

TEN = [  # tools, in few windows
    configure(checkpoint_every=10, learning_rate=0.004),
    run(1),
    Move("restore_checkpoint", {"step": 12, "skip_batches": 3}),
    Move("configure_ranks", {"exclude": [2], "use_spare": [1]}),
    Move("configure_data", {"quarantine_shards": [3, 7], "reshuffle": True}),
    Move("run_diagnostic", {"kind": "weight_checksum"}),
    Move("toggle_augmentation", {"enabled": True, "strength": 0.3}),
    rate(0.003),
    Move("get_training_status", {}),
    run(1),
    SUBMIT,
]
WRONG = [
    run(0),
    configure(gradient_clip=-1.0),
    Move("restore_checkpoint", {"step": 0, "skip_batches": 5000}),
    Move("configure_ranks", {"exclude": [9]}),
    Move("configure_ranks", {"exclude": [0, 1]}),  # half of them
    Move("configure_data", {"quarantine_shards": [0, 1, 2, 3, 4]}),
    Move("run_diagnostic", {"kind": "guess"}),
]


@pytest.fixture
def served() -> Iterator[Callable[[int], str]]:
    """The engine behind a server with so many places."""
    with ExitStack() as servers:

        def start(places: int) -> str:
            environment = partial(MLTrainerEnvironment, engine())
            app = build(environment, Settings(max_sessions=places))
            return servers.enter_context(serving(app))

        yield start


@every_adapter
@pytest.mark.usefixtures("log_folder")
def test_all_ten_tools_bring_the_same_bits(player: Player, cluster: TaskId) -> None:
    """A grade is a function of every weight that came out."""
    outcome = player(None, cluster, 1, TEN)

    assert outcome == plain(None, cluster, 1, TEN)
    assert outcome.score == outcome.episode_return  # nothing is paid on the way
    assert 0 < outcome.score < 1


def test_the_outcomes_of_other_moves_differ(cluster: TaskId) -> None:
    """Else the comparison above would hold whatever an adapter does."""
    outcomes = [plain(None, cluster, 1, moves) for moves in (TEN, TEN[:2], TEN[1:2])]
    assert len(set(outcomes)) == len(outcomes)


@pytest.mark.slow
@every_adapter
@pytest.mark.usefixtures("log_folder")
def test_over_a_server_too_and_no_session_is_left_behind(
    player: Player, cluster: TaskId, served: Callable[[int], str]
) -> None:
    url = served(1)  # so a session that stays would be the last one

    outcome = player(url, cluster, 1, [*WRONG, run(1), SUBMIT])

    eventually(lambda: has_a_place(url))
    assert outcome == plain(url, cluster, 1, [run(1), SUBMIT])  # what is wrong costs nothing
    eventually(lambda: has_a_place(url))
    assert player(url, cluster, 1, [run(1)]) == outcome  # cut off, it is graded as it stands
    eventually(lambda: has_a_place(url))


def test_a_model_is_told_in_few_words(cluster: TaskId) -> None:
    session = LocalSession()
    opening = text.opening(session.begin(cluster, 1))
    trained, looked, moved, ended = (
        text.answer(session.call(*move))
        for move in (
            run(1),
            Move("run_diagnostic", {"kind": "weight_checksum"}),
            Move("configure_data", {"quarantine_shards": [3]}),
            SUBMIT,
        )
    )
    session.close()

    assert "You are its operator" in opening
    assert "40 calls left\nstep 0 (made 0), 0 of 608 s" in opening
    assert trained.startswith("trained 1 window; 39 calls left\nstep 25")
    assert "rank | s a step | norm | agreement" in trained
    assert len(trained) < 800  # characters
    assert "\nrank 0: " in looked
    for told in (looked, moved):  # what was seen before is not told again
        assert "s a step" not in told
    assert "quarantined shards 3" in moved
    assert ended.startswith("The episode is over. Score ")


def test_trl_offers_the_ten_tools_of_a_cluster(cluster: TaskId) -> None:
    session = LocalSession()
    session.begin(cluster, 0)
    listed = {tool.name: tool.input_schema for tool in session.tools()}
    session.close()
    run_ = factory(None, cluster=True)()

    offered = {
        name: get_json_schema(getattr(run_, name))["function"]["parameters"]
        for name, _ in inspect.getmembers(ClusterRun, inspect.isfunction)
        if not name.startswith("_") and name not in ("reset", "get_reward")
    }

    assert len(offered) == 10
    assert offered.keys() == listed.keys()
    for name, schema in listed.items():
        assert offered[name]["properties"].keys() == schema.get("properties", {}).keys()
        assert set(offered[name].get("required", [])) == set(schema.get("required", []))
    kinds = offered["run_diagnostic"]["properties"]["kind"]["enum"]
    assert kinds == listed["run_diagnostic"]["properties"]["kind"]["enum"]


def test_a_data_set_of_trl_is_of_one_kind(cluster: TaskId) -> None:
    rows = dataset(cluster)
    assert rows["prompt"][0][0]["content"] == text.OPERATORS_RULES
    with pytest.raises(ValueError, match="2 of 3 tasks are clusters"):
        dataset("cluster/train/0-1", "easy_mnist")
    with pytest.raises(ValueError, match=r"is a cluster, and has other tools.*cluster=True"):
        factory(None)().reset(task_id=cluster)
    with pytest.raises(ValueError, match=r"is no cluster, and has other tools.*cluster=False"):
        factory(None, cluster=True)().reset(task_id="easy_mnist")


def test_who_takes_the_list_of_tools_has_that_of_the_episode(cluster: TaskId) -> None:
    sessions = Sessions(None)
    for task, tools, rules in (
        (cluster, 10, text.OPERATORS_RULES),
        ("varied_mlp/validation/4", 6, text.RULES),
    ):
        episode = sessions.create(task)
        assert len(episode.list_tools()) == tools
        assert episode.initial_messages()[0]["content"] == rules
        episode.close()


def test_skyrl_tells_the_ten_and_has_turns_for_all_calls(cluster: TaskId) -> None:
    env = TextEnv({"url": None}, {"task_id": cluster})
    said = env.init([])[0][-1]["content"]
    env.close()

    assert '"name": "configure_ranks"' in said
    assert env.max_turns == MAX_TURNS_OF_CLUSTER > 40
    assert TextEnv({"url": None}, {"task_id": "easy_mnist"}).max_turns == MAX_TURNS


def test_inspects_log_tells_what_the_model_was_worth(cluster: TaskId, tmp_path: Path) -> None:
    log = inspected(None, cluster, 0, [run(1), SUBMIT], log_dir=str(tmp_path))

    (sample,) = log.samples or []
    score = (sample.scores or {})["final_score"]
    assert "healthy steps, hidden-test loss" in (score.answer or "")
    assert text.OPERATORS_RULES in sample.messages[0].text


def test_gymnasiums_single_networks_are_no_clusters() -> None:
    for tasks in (["cluster/train"], ["easy_mnist", "cluster/eval/0"]):
        with pytest.raises(ValueError, match=r"cluster/\w+/0 is a cluster"):
            TrainingEnv(tasks=tasks, url=None)
    with pytest.raises(ValueError, match="is a cluster"):
        TrainingEnv(url=None).reset(options={"task_id": "cluster/eval/0"})


def loaded(file: str) -> ModuleType:
    """A file of an integration, which is in no package of this environment."""
    spec = importlib.util.spec_from_file_location("loaded", ROOT / "integrations" / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nemo_gyms_row_has_the_ten(cluster: TaskId) -> None:
    asked = loaded("nemo_gym/rows.py").row(cluster)["responses_create_params"]

    assert len(asked["tools"]) == 10
    assert asked["input"][0]["content"] == text.OPERATORS_RULES


def test_verifiers_tells_where_a_cluster_stands(cluster: TaskId) -> None:
    standing = loaded("verifiers/ml_trainer_verifiers/told.py").standing
    session = LocalSession()
    statuses: list[dict[str, Any]] = [session.begin(cluster, 1).model_dump(mode="json")]
    for move in (run(1), Move("run_diagnostic", {"kind": "weight_checksum"})):
        status = session.call(*move).status
        assert status is not None
        statuses.append(status.model_dump(mode="json"))
    session.close()

    begun, trained, looked = (json.loads(standing(status)) for status in statuses)
    assert begun["step"] == 0
    assert [row[0] for row in trained["ranks"]] == ["rank", 0, 1, 2, 3]
    assert trained["windows"][1][:2] == [1, 25]
    assert len(trained["shard_losses"]) == 16
    assert len(looked["finding"]) == 4
    assert "windows" not in looked
    assert len(standing(statuses[1])) < 1500
