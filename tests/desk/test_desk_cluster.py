"""The desk of a cluster without a browser: what is drawn from a history, and what is not yet."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import gradio as gr
import plotly.graph_objects as go
import pytest

from ml_trainer_env import frozen
from ml_trainer_env.cluster_status import Window
from ml_trainer_env.events import (
    ConfigureData,
    ConfigureRanks,
    Diagnose,
    Event,
    RankReport,
    Restore,
    Settings,
    Train,
    WindowReport,
)
from ml_trainer_env.models import EpochRecord, Grade, TrainingStatus
from ml_trainer_env.server import counterfactuals
from ml_trainer_env.server.desk import cluster_cards, cluster_curves, form, lanes
from ml_trainer_env.server.desk.choices import surprise
from ml_trainer_env.server.desk.story import Story, live
from ml_trainer_env.server.episode.played import Played
from ml_trainer_env.server.episode.tools import CLUSTER_TOOLS
from ml_trainer_env.server.instances import task_of
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.task_ids import CLUSTER

TASK = task_of("cluster/eval/4")
TRAIN = Train(settings=Settings(learning_rate=0.006))
STEPS = 25


class History:
    """Records, one after another."""

    def __init__(self) -> None:
        self.records: list[EpochRecord] = []
        self.now = WindowReport(step=0, made=0, seconds=0.0, checkpoints=(0,))

    def add(self, plan: Event, took: float, **seen: Any) -> History:
        trains = isinstance(plan, Train)
        step = self.now.step + (STEPS if trains else 0)
        ranks = [RankReport(rank=each, alive=True, shards=(0, 1, 2, 3)) for each in range(4)]
        if trains:
            worked = {"step_seconds": 1.0, "gradient_norm": 1.0, "agreement": 0.3, "loss": 2.0}
            ranks = [each.model_copy(update=worked) for each in ranks]
        report: dict[str, Any] = {
            "step": step,
            "made": self.now.made + (STEPS if trains else 0),
            "seconds": self.now.seconds + took,
            "losses": (2.0,) * STEPS if trains else (),
            "ranks": tuple(ranks),
            "excluded": self.now.excluded,
            "quarantined": self.now.quarantined,
            "checkpoints": self.now.checkpoints,
            "shard_losses": (2.0,) * 16 if trains else (),
        }
        self.now = WindowReport(**report | seen)
        self.records.append(
            EpochRecord(
                epoch=len(self.records) + 1,
                plan=plan,
                train_loss=2.0 if trains else None,
                train_accuracy=None,
                val_loss=2.1,
                val_accuracy=None,
                clean_train_loss=None,
                clean_train_accuracy=None,
                window=self.now,
            )
        )
        return self

    @property
    def spans(self) -> list[lanes.Span]:
        return lanes.spans(self.records)


def ranks_of(rank: int, **seen: Any) -> tuple[RankReport, ...]:
    usual = {"step_seconds": 1.0, "gradient_norm": 1.0, "agreement": 0.3, "loss": 2.0}
    return tuple(
        RankReport(rank=each, alive=True, shards=(0,), **usual | (seen if each == rank else {}))
        for each in range(4)
    )


def story_of(history: History, status: TrainingStatus) -> Story:
    return Story(TASK, 0, status, tuple(history.records), ())


@pytest.fixture
def status(env: MLTrainerEnvironment) -> TrainingStatus:
    env.reset(task_id=TASK.task_id)
    story = live(env)
    assert story is not None
    return story.status


@pytest.fixture
def eventful() -> History:
    history = History().add(TRAIN, 25).add(TRAIN, 25, checkpoints=(0, 50))
    history.add(TRAIN, 40, incidents=("rank 2 was lost",), checkpoints=(0, 50))
    history.add(Diagnose(what="flight_recorder"), 0.5, finding=("rank 2: answers, lost 1 time",))
    history.add(ConfigureRanks(exclude=(1,), use_spare=(2,)), 29, excluded=(1,))
    history.add(ConfigureData(quarantine=(3,)), 3, quarantined=(3,))
    restored = ("restored the checkpoint of step 50",)
    history.add(Restore(step=60), 9, step=50, incidents=restored)
    return history.add(Train(settings=Settings(learning_rate=0.003, revision=1)), 30)


def drawn(story: Story) -> Any:
    return go.Figure(cluster_curves.figure(story))


def trace(figure: Any, name: str) -> Any:
    return next(each for each in figure.data if each.name == name)


# Lanes --------------------------------------------------------------------------------------------


def test_a_slow_rank_stands_out_against_all_others() -> None:
    history = History().add(TRAIN, 25).add(TRAIN, 50, ranks=ranks_of(2, step_seconds=2.0))
    assert lanes.slowness(history.spans) == [[1, 1], [1, 1], [1, 2], [1, 1]]


@pytest.mark.parametrize("norm", [4.0, 0.25])
def test_a_gradient_stands_out_by_its_norm_and_by_its_direction(norm: float) -> None:
    odd = ranks_of(1, gradient_norm=norm, agreement=-0.1)
    along = History().add(TRAIN, 25, ranks=odd).spans
    assert lanes.loudness(along) == [[1], [4], [1], [1]]
    assert lanes.dissent(along)[1] == [pytest.approx(0.4)]
    assert lanes.dissent(along)[0] == [0]


def test_a_poisoned_shard_stands_out_and_one_that_is_not_read_has_no_cell() -> None:
    losses = (None, 3.5, *(2.0,) * 14)
    excess = lanes.excess(History().add(TRAIN, 25, shard_losses=losses).spans)
    assert excess[:3] == [[None], [1.5], [0]]


def test_what_happened_and_was_done_is_in_order_and_in_words(eventful: History) -> None:
    found = lanes.marks(eventful.spans)
    assert [(mark.seconds, mark.kind, mark.text) for mark in found] == [
        (90, "incident", "rank 2 was lost"),
        (90, "diagnose", "diagnosed: flight_recorder"),
        (90.5, "ranks", "process group restarted, rank 1 out, a fresh host for rank 2"),
        (119.5, "data", "loaders restarted, shard 3 out"),
        (122.5, "restore", "restored the checkpoint of step 50"),
        (131.5, "settings", "learning_rate 0.006 → 0.003"),
    ]
    assert found[1].finding == ("rank 2: answers, lost 1 time",)


def test_what_happened_again_and_again_is_told_once(status: TrainingStatus) -> None:
    again = ("rank 3 was lost", "restarted from the checkpoint of step 300") * 3
    history = History().add(TRAIN, 25, incidents=again)
    told = "rank 3 was lost, 3 times; restarted from the checkpoint of step 300, 3 times"
    assert [mark.text for mark in lanes.marks(history.spans)] == [told]
    assert "<p>Rank 3 was lost, 3 times</p>" in cluster_cards.summary(story_of(history, status))


def test_absences_hosts_and_checkpoints_have_their_time(eventful: History) -> None:
    along = eventful.spans
    assert lanes.absences(along) == [lanes.Stretch(1, 90.5, 161.5, "out")]
    assert lanes.quarantines(along) == [lanes.Stretch(3, 119.5, 161.5, "out")]
    assert lanes.fresh_hosts(along) == [(119.5, 2)]
    assert lanes.checkpoints(along) == [(50, 50)]
    silent = tuple(r.model_copy(update={"alive": r.rank != 3}) for r in ranks_of(0))
    dead = History().add(TRAIN, 30, ranks=silent).spans
    assert lanes.absences(dead) == [lanes.Stretch(3, 0, 30, "silent")]


# The picture --------------------------------------------------------------------------------------


def test_the_picture_has_every_window_and_steps_back(
    eventful: History, status: TrainingStatus
) -> None:
    figure = drawn(story_of(eventful, status))
    assert len(trace(figure, "val loss").x) == len(eventful.records)
    assert list(trace(figure, "step").y) == [0, 25, 50, 75, 75, 75, 75, 50, 75]
    slow = trace(figure, "Ranks: seconds a step")
    assert len(slow.x) == len(eventful.records) + 1
    assert len(slow.z) == 4
    told = [note.text for note in figure.layout.annotations]
    assert {"out", "▸ new host"} <= set(told)
    assert TASK.cluster is not None
    assert figure.layout.xaxis.range[1] == TASK.cluster.world.deadline


def test_the_norm_of_every_step_and_the_rate_of_every_window_have_their_panels(
    status: TrainingStatus,
) -> None:
    history = History().add(TRAIN, 25, gradient_norms=(0.5, 30.0), learning_rate=0.006)
    history.add(Diagnose(what="flight_recorder"), 0.5).add(TRAIN, 25, learning_rate=0.06)
    figure = drawn(story_of(history, status))
    assert [value for value in trace(figure, "gradient norm").y if value] == [0.5, 30.0]
    assert list(trace(figure, "learning rate").y) == [0.006, 0.06]
    axis = figure.layout[trace(figure, "gradient norm").yaxis.replace("y", "yaxis")]
    assert axis.range[0] < math.log10(0.5) < math.log10(30) < axis.range[1]


def test_who_is_out_or_does_not_answer_is_not_at_work(status: TrainingStatus) -> None:
    assert status.cluster
    silent = tuple(r.model_copy(update={"alive": r.rank not in (1, 3)}) for r in ranks_of(0))
    window = Window.model_construct(ranks=silent)
    seen = status.cluster.model_copy(update={"excluded": (1,), "windows": (window,)})
    story = story_of(History(), status.model_copy(update={"cluster": seen}))
    shown = cluster_cards.summary(story)
    assert "2 of 4" in shown
    assert "out: 1; no answer: 3; all shards" in shown
    assert "4 of 4" in cluster_cards.summary(story_of(History(), status))  # before any window


def test_the_calls_have_their_seconds_and_the_score(status: TrainingStatus) -> None:
    def after(seconds: float, **more: Any) -> TrainingStatus:
        assert status.cluster
        cluster = status.cluster.model_copy(update={"seconds": seconds})
        return status.model_copy(update={"cluster": cluster, **more})

    played = (
        Played("run_epochs", {"num_epochs": 1}, after(25.0)),
        Played("configure_ranks", {}, error="exclude: <too many>"),
        Played("run_diagnostic", {"kind": "replay"}, after(33.1)),
        Played("submit_model", {}, after(33.1, reward=0.25)),
    )
    shown = cluster_cards.ledger(replace(story_of(History(), status), played=played))
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in shown.split("<tr")[2:]]
    assert rows == [
        ["3", "submit_model()", "·", "33.1", "+0.2500"],
        ["2", "run_diagnostic(kind=replay)", "8.1", "33.1", "·"],
        ["✕", "configure_ranks", "refused: exclude: &lt;too many&gt;"],
        ["1", "run_epochs(num_epochs=1)", "25.0", "25.0", "·"],
        ["", "total", "33.1", "", "+0.2500"],
    ]
    assert cluster_cards.ledger(story_of(History(), status)) == ""


def test_before_anything_was_trained_there_are_axes_alone(status: TrainingStatus) -> None:
    figure = drawn(story_of(History(), status))
    assert not [t for t in figure.data if t.x and t.name != "healthy pace" and len(t.x) > 1]


def graded(status: TrainingStatus) -> TrainingStatus:
    assert TASK.cluster
    found: Grade = counterfactuals.grade(
        TASK.task_id, TASK.version, TASK.cluster.counterfactuals, 1.8, "agent"
    )
    found = found.model_copy(update={"hidden": dict(TASK.hidden)})
    return status.model_copy(update={"done": True, "grade": found})


def test_nothing_of_the_fault_is_shown_before_the_grade(
    eventful: History, status: TrainingStatus
) -> None:
    before = story_of(eventful, status)
    shown = cluster_cards.summary(before) + cluster_cards.legend(before)
    shown += json.dumps(cluster_curves.figure(before))
    happened = str(TASK.hidden["happened"])
    assert before.forks is None
    for secret in (happened, "best remedy", "nothing done", "What it came to"):
        assert secret not in shown.replace(TASK.aim, "").replace(
            TASK.aim.removeprefix(TASK.description).strip(), ""
        )
    after = replace(before, status=graded(status))
    figure = drawn(after)
    assert after.forks is not None
    assert len(trace(figure, "nothing done").x) == len(after.forks.curve)
    assert len(trace(figure, "best remedy").x) == len(after.forks.best_curve)
    assert after.status.grade is not None
    card = cluster_cards.grade(after.status.grade)
    assert happened in card
    assert f"{TASK.hidden['steps_of_best']:.0f} steps" in card


def test_a_finding_is_text_and_is_escaped(status: TrainingStatus) -> None:
    history = History().add(TRAIN, 25)
    history.add(Diagnose(what="replay"), 9, finding=("rank 0: <b>the same</b>",))
    story = story_of(history, status)
    for shown in (cluster_cards.summary(story), cluster_cards.legend(story)):
        assert "rank 0: &lt;b&gt;the same" in shown


# Forms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", CLUSTER_TOOLS)
def test_a_form_has_every_argument(tool: str) -> None:
    fields = form.fields(tool, CLUSTER_TOOLS, "cluster-")
    properties = CLUSTER_TOOLS[tool].input_schema["properties"]
    assert [field.name for field in fields] == list(properties)


def test_lists_are_ticked_or_written() -> None:
    exclude, spare, shares = form.fields("configure_ranks", CLUSTER_TOOLS)
    [shards, _] = form.fields("configure_data", CLUSTER_TOOLS)
    assert isinstance(shards.widget, gr.CheckboxGroup)
    assert [value for _, value in shards.widget.choices] == list(range(16))
    given = form.arguments((exclude, spare, shares), ([1], [], "4, 4 8"))
    assert given == {"exclude": [1], "use_spare": [], "shares": [4, 4, 8]}
    assert form.numbers("") is None
    assert form.numbers("4, x") == [4, "x"]


def test_a_choice_that_is_explained_has_a_line_of_its_own() -> None:
    [kind] = form.fields("run_diagnostic", CLUSTER_TOOLS)
    assert isinstance(kind.widget, gr.Radio)
    lines = {value: text for text, value in kind.widget.choices}
    assert lines["shard_loss"] == "shard_loss: the model's loss on each data shard"
    assert lines.keys() == set(kind.schema["enum"])
    schedule = form.fields("configure_training", CLUSTER_TOOLS)[1].widget
    assert isinstance(schedule, gr.Radio)
    assert schedule.choices == [("constant", "constant"), ("cosine", "cosine")]


def test_a_cluster_has_steps_and_no_epochs() -> None:
    [rate] = form.fields("adjust_learning_rate", CLUSTER_TOOLS)
    assert "next step" in form.help_of(rate.schema)
    for spec in CLUSTER_TOOLS.values():
        told = f"{spec.description} {json.dumps(spec.input_schema)}".replace("num_epochs", "")
        assert "epoch" not in told


def test_only_released_instances_surprise() -> None:
    assert {surprise(CLUSTER, "eval") for _ in range(50)} <= {
        index for split, index in frozen.forks() if split == "eval"
    }
