"""A cluster through its tools: what they do, cost and refuse, and what an operator sees."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operated import call, operated, task, windows
from wild import json_values

from ml_trainer_env.server.counterfactuals import Counterfactuals
from ml_trainer_env.server.episode.episode import Episode
from ml_trainer_env.server.episode.tools import CLUSTER_TOOLS, TOOLS, UnknownTool, tools_of
from ml_trainer_env.server.validation import ActionError
from ml_trainer_env.server.worlds import (
    BadBatches,
    Corruption,
    Crash,
    SlowHost,
    WrongRate,
)

ADDED = ("restore_checkpoint", "configure_ranks", "configure_data", "run_diagnostic")
MOST_TOKENS = 700
LONGEST_ERROR = 800  # characters


def tokens(text: str) -> int:
    """An upper bound for usual tokenizers: a token for each digit and each sign, and for each four
    letters of a word.
    """
    words = re.findall(r"[A-Za-z_]+", text)
    return len(re.findall(r"[0-9]|[^\sA-Za-z0-9_]", text)) + sum(-(-len(w) // 4) for w in words)


# The tools ----------------------------------------------------------------------------------------


def test_a_cluster_has_the_six_and_four_more_whatever_is_wrong_with_it(episode) -> None:
    assert tuple(CLUSTER_TOOLS) == (*TOOLS, *ADDED)
    healthy, faulty = operated(), operated(WrongRate(10, 3))
    assert tools_of(healthy) is tools_of(faulty) is CLUSTER_TOOLS
    assert tools_of(None) is tools_of(episode) is TOOLS


def test_who_trains_one_network_is_told_that_only_clusters_have_a_tool(episode) -> None:
    with pytest.raises(UnknownTool, match=r"restore_checkpoint.*only clusters have.*run_epochs"):
        call(episode, "restore_checkpoint", step=0)


@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
    [
        ("run_epochs", {"num_epochs": 0}, "num_epochs: must be a whole number with 1 <="),
        (
            "configure_training",
            {"optimizer": "sgd"},
            "unknown; configure_training takes learning_rate",
        ),
        ("configure_training", {"gradient_clip": -1}, "gradient_clip: must be a number with 0 <="),
        ("configure_training", {"checkpoint_every": 1}, "checkpoint_every: must be a whole number"),
        ("adjust_learning_rate", {"new_lr": 10.0}, "new_lr: at this point of the schedule at most"),
        ("restore_checkpoint", {}, "step: is required"),
        ("restore_checkpoint", {"step": -1}, "step: must be a whole number with 0 <= step"),
        ("configure_ranks", {"exclude": [4]}, "exclude: there is no rank 4"),
        ("configure_ranks", {"exclude": [0, 1]}, "exclude: more than half"),
        ("configure_ranks", {"exclude": 1}, "exclude: must be a list of whole numbers"),
        ("configure_ranks", {"shares": [16]}, "shares: a number is needed for each of 4 ranks"),
        ("configure_data", {"quarantine_shards": [1, 2, 3, 4, 5]}, "4 of the 16 data shards"),
        ("configure_data", {"quarantine_shards": [16]}, "quarantine_shards: must be a list"),
        ("run_diagnostic", {"kind": "everything"}, 'kind: must be one of "replay"'),
    ],
)
def test_a_mistake_says_what_is_allowed_and_costs_nothing(
    tool: str, arguments: dict[str, Any], told: str
) -> None:
    episode = operated()
    before = episode.get_training_status()
    with pytest.raises(ActionError, match=re.escape(told)):
        call(episode, tool, **arguments)
    assert episode.get_training_status() == before


RANKS = st.lists(json_values | st.integers() | st.sampled_from([0, 1.0, 3, 10**5000]), max_size=4)
SENT = st.one_of(
    st.tuples(
        st.just("configure_ranks"),
        st.dictionaries(st.sampled_from(["exclude", "use_spare", "shares"]), RANKS | json_values),
    ),
    st.tuples(
        st.just("configure_data"),
        st.dictionaries(st.sampled_from(["quarantine_shards", "reshuffle"]), RANKS | json_values),
    ),
    st.tuples(
        st.just("restore_checkpoint"),
        st.dictionaries(
            st.sampled_from(["step", "skip_batches", "load_optimizer"]),
            json_values | st.integers() | st.sampled_from([10**5000]),
        ),
    ),
    st.tuples(
        st.sampled_from(sorted(CLUSTER_TOOLS.keys() - {"run_epochs", "submit_model"})),
        st.dictionaries(st.text(max_size=8), json_values, max_size=3),
    ),
)


def tried(episode: Episode, tool: str, arguments: dict[str, Any]) -> str:
    """Why not; empty where it was done."""
    try:
        call(episode, tool, **arguments).model_dump_json()
    except ActionError as error:
        return str(error)
    return ""


@given(sent=SENT)
@settings(max_examples=100, deadline=None)
def test_whatever_is_sent_either_happens_or_is_told_in_a_line_and_changes_nothing(
    sent: tuple[str, dict[str, Any]],
) -> None:
    tool, arguments = sent
    episode = operated()
    before = episode.get_training_status()
    told = tried(episode, tool, arguments)
    after = episode.get_training_status()
    if told:
        assert told.isascii()
        assert len(told) < LONGEST_ERROR
        assert after == before
    else:
        assert after.tool_calls_left >= before.tool_calls_left - 1


def test_whole_numbers_in_a_list_may_be_written_with_a_point() -> None:
    episode = operated()
    call(episode, "configure_ranks", exclude=[1.0])
    status = call(episode, "configure_data", quarantine_shards=[2.0, 3.0]).cluster
    assert status
    assert (status.excluded, status.quarantined) == ((1,), (2, 3))


def test_what_every_tool_does_is_seen_and_takes_its_seconds() -> None:
    episode = operated()
    windows(episode, 1)

    def seconds(tool: str, **arguments: Any) -> float:
        before = episode.get_training_status().cluster
        after = call(episode, tool, **arguments).cluster
        assert before
        assert after
        return round(after.seconds - before.seconds, 1)

    assert seconds("configure_training", weight_decay=0.1, gradient_clip=2.0) == 0
    assert seconds("toggle_augmentation", enabled=True) == 0
    assert seconds("configure_ranks", exclude=[3]) == 9
    assert seconds("configure_data", quarantine_shards=[5]) == 3
    assert seconds("run_diagnostic", kind="weight_checksum") == 1
    assert seconds("restore_checkpoint", step=12) == 9
    status = episode.get_training_status().cluster
    assert status
    assert (status.config.weight_decay, status.config.gradient_clip) == (0.1, 2.0)
    assert (status.augmentation, status.excluded, status.quarantined) == (0.5, (3,), (5,))
    assert (status.step, status.steps_made, status.checkpoints) == (10, 25, (0, 10))
    assert len(status.windows) == 1


def test_who_is_out_stays_out_until_somebody_says_otherwise() -> None:
    episode = operated()
    call(episode, "configure_ranks", exclude=[2])
    call(episode, "configure_data", quarantine_shards=[0])
    call(episode, "configure_ranks", use_spare=[0])
    status = call(episode, "configure_data", reshuffle=True).cluster
    assert status
    assert (status.excluded, status.quarantined) == ((2,), (0,))
    status = call(episode, "configure_ranks", exclude=[]).cluster
    assert status
    assert status.excluded == ()


def test_the_next_step_uses_exactly_the_rate_that_was_set() -> None:
    episode = operated()
    windows(episode, 1)
    status = call(episode, "adjust_learning_rate", new_lr=0.0011)
    assert status.cluster
    assert status.cluster.learning_rate_in_force == 0.0011
    windows(episode, 1)
    plan = episode.now.training.history[-1].window
    assert plan
    assert plan.learning_rate
    assert plan.learning_rate < 0.0011  # of the last step, down the cosine
    fault = operated(WrongRate(5, 7))
    wrong = windows(fault, 1).cluster
    call(fault, "configure_training", learning_rate=0.003)
    mended = windows(fault, 1).cluster
    assert wrong
    assert mended
    assert wrong.learning_rate_in_force > 4 * mended.learning_rate_in_force


# The clock ----------------------------------------------------------------------------------------


def test_an_incident_ends_a_call_and_the_deadline_all_but_the_submission() -> None:
    episode = operated(Crash(30, 1))
    status = windows(episode, 20)
    assert status.epochs_run == 2
    assert status.message.endswith("stopped by an incident")
    assert status.cluster
    assert status.cluster.incidents[0] == "rank 1 was lost"
    status = windows(episode, 20)
    assert status.remaining_budget == 0
    assert "call submit_model" in status.message
    for tool, arguments in (
        ("run_epochs", {"num_epochs": 1}),
        ("configure_training", {}),
        ("adjust_learning_rate", {"new_lr": 0.001}),
        ("toggle_augmentation", {"enabled": True}),
        ("restore_checkpoint", {"step": 10}),
        ("configure_ranks", {}),
        ("configure_data", {}),
        ("run_diagnostic", {"kind": "replay"}),
    ):
        with pytest.raises(ActionError, match=r"deadline.*passed.*submit_model"):
            call(episode, tool, **arguments)
    assert call(episode, "submit_model").done


def test_spam_of_restarts_spends_the_clock_and_the_calls() -> None:
    episode = operated(deadline=60.0)
    for _ in range(7):
        call(episode, "configure_ranks", use_spare=[])
    assert episode.get_training_status().remaining_budget == 0


# What is paid -------------------------------------------------------------------------------------


def test_nothing_is_paid_on_the_way_and_the_score_at_the_end() -> None:
    episode = operated(forks=Counterfactuals(1.0, (2000.0,)))
    earned = [
        windows(episode, 1).reward,
        call(episode, "run_diagnostic", kind="replay").reward,
        call(episode, "restore_checkpoint", step=10).reward,
    ]
    assert earned == [0, 0, 0]
    ended = call(episode, "submit_model")
    assert ended.grade
    assert ended.reward == ended.grade.score > 0
    assert ended.grade.components[0].name == "recovery"
    assert ended.grade.hidden["happened"] == "nothing"


def test_the_last_call_submits_the_model_as_it_stands() -> None:
    episode = operated()
    for _ in range(task().tool_calls - 1):
        call(episode, "configure_training")
    status = call(episode, "configure_training")
    assert status.done
    assert status.grade
    assert status.grade.submitted_by == "call_limit"


# What is seen -------------------------------------------------------------------------------------


def test_an_operator_sees_the_consequences_of_a_fault_and_never_its_name() -> None:
    faults = Corruption(1, 5, -1), SlowHost(2, 5, 2), BadBatches(10, 3)
    episode = operated(*faults, deadline=200.0)
    for status in (episode.opening(), windows(episode, 2), episode.get_training_status()):
        told = json.dumps(status.model_dump(mode="json")).lower()
        for word in ("corrupt", "slow_host", "badbatches", "bad_batches", "happened", "fault"):
            assert word not in told.replace(task().goal.lower(), "")
    last = windows(episode, 1).cluster
    assert last
    ranks = last.windows[-1].ranks
    assert min(ranks, key=lambda each: each.agreement or 0).rank == 1
    assert max(ranks, key=lambda each: each.step_seconds or 0).rank == 2


def test_in_words_a_status_is_short_when_everything_has_run_away() -> None:
    crashes = (Crash(at=20.0 + number, host=7) for number in range(20))
    episode = operated(*crashes, network="cluster_lm", ranks=8, deadline=400.0)
    wild = {"learning_rate": 10.0, "lr_schedule": "constant", "warmup": 0.0}
    call(episode, "configure_training", **wild)
    for _ in range(3):
        call(episode, "configure_ranks")
    highest = 0.0
    for _ in range(4):
        status = windows(episode, 3)
        assert status.cluster
        assert tokens(str(status)) < MOST_TOKENS
        highest = max(highest, *(each.highest_loss or 0 for each in status.cluster.windows))
    assert highest > 1000


def test_a_rate_that_is_wrong_is_told_until_it_is_set_whatever_else_is_set() -> None:
    episode = operated(WrongRate(at=5, times=15), deadline=300.0)
    windows(episode, 1)
    for tool, arguments in (
        ("configure_training", {"gradient_clip": 1.0}),
        ("configure_training", {"checkpoint_every": 20}),
        ("toggle_augmentation", {"enabled": True}),
    ):
        told = call(episode, tool, **arguments).cluster
        used = windows(episode, 1).cluster
        assert told
        assert used
        assert used.learning_rate_in_force == pytest.approx(told.learning_rate_in_force, rel=0.3)
        assert used.learning_rate_in_force > 5 * used.config.learning_rate
    before = episode.get_training_status().cluster
    assert before
    rate = before.config.learning_rate
    right = call(episode, "configure_training", learning_rate=rate).cluster
    assert right
    assert right.learning_rate_in_force < rate


def test_in_words_a_status_is_short_and_in_full_it_has_all() -> None:
    episode = operated(ranks=8, deadline=400.0)
    call(episode, "configure_training", checkpoint_every=5)
    call(episode, "configure_ranks", exclude=[7], use_spare=[2])
    call(episode, "configure_data", quarantine_shards=[0, 15])
    status = windows(episode, 11)
    assert status.cluster
    assert tokens(str(status)) < MOST_TOKENS
    assert len(status.cluster.windows) == 10
    assert all(len(window.ranks) == 8 for window in status.cluster.windows)
    assert all(len(window.shard_losses) == 16 for window in status.cluster.windows)
    assert len(status.cluster.losses) == 25
    for kind in ("replay", "shard_loss", "weight_checksum", "flight_recorder"):
        found = call(episode, "run_diagnostic", kind=kind)
        assert found.cluster
        assert found.cluster.finding
        assert tokens(str(found)) < MOST_TOKENS


def test_the_same_moves_give_the_same_statuses() -> None:
    def played() -> list[str]:
        episode = operated(Crash(20, 2), WrongRate(30, 3))
        moves: list[tuple[str, dict[str, Any]]] = [
            ("run_epochs", {"num_epochs": 1}),
            ("run_diagnostic", {"kind": "replay"}),
            ("configure_ranks", {"use_spare": [2]}),
            ("run_epochs", {"num_epochs": 2}),
            ("submit_model", {}),
        ]
        return [call(episode, tool, **given).model_dump_json() for tool, given in moves]

    assert played() == played()
