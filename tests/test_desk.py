"""The desk without a browser: what it shows of an episode, and who sits where."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from fakes import HIDDEN_TEST_ACCURACY, FakeRunner, begin
from live import eventually, serving, with_page
from play import call, diverge

from ml_trainer_env.agents import catalogue
from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.agents.records import RecordWriter
from ml_trainer_env.models import TrainingConfig
from ml_trainer_env.server.desk import cards, curves, form, recorded
from ml_trainer_env.server.desk.recorded import NoRecord
from ml_trainer_env.server.desk.seats import Seat, Seats
from ml_trainer_env.server.desk.story import Point, Story, live
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.places import NoPlace, Places
from ml_trainer_env.server.tools import TOOLS
from ml_trainer_env.server.validation import ActionError, InvalidArguments


def story_of(env: MLTrainerEnvironment) -> Story:
    story = live(env)
    assert story is not None
    return story


def played(env: MLTrainerEnvironment, *moves: tuple[str, dict[str, Any]]) -> Story:
    if env.episode is None:
        env.reset(task_id="medium_fashion", seed=3)
    for tool, arguments in moves:
        assert call(env, tool, **arguments).error is None
    return story_of(env)


COSINE = ("configure_training", {"lr_schedule": "cosine", "learning_rate": 0.01})
RUN = ("run_epochs", {"num_epochs": 4})


# The story --------------------------------------------------------------------------------------


def test_an_environment_without_an_episode_has_no_story(env: MLTrainerEnvironment) -> None:
    assert live(env) is None


def test_an_era_ends_where_the_configuration_changes(env: MLTrainerEnvironment) -> None:
    wider = ("configure_training", {"batch_size": 128})
    cooler = ("adjust_learning_rate", {"new_lr": 0.001})
    story = played(env, COSINE, RUN, RUN, wider, RUN, cooler, RUN, COSINE, COSINE, RUN)
    spans = [(era.first, era.last) for era in story.eras]
    assert spans == [(1, 8), (9, 12), (13, 16), (17, 20)]
    first, second, *_ = [era.label for era in story.eras]
    assert re.fullmatch(r"adam at 0\.01 → 0\.00\d+, batch 64", first)  # a schedule is one era
    assert second.endswith("batch 128")


def test_the_same_configuration_again_is_no_new_era(env: MLTrainerEnvironment) -> None:
    story = played(env, COSINE, RUN, COSINE, RUN)
    assert len(story.eras) == 1


def test_refused_calls_are_part_of_the_story_without_what_was_sent(
    env: MLTrainerEnvironment,
) -> None:
    env.reset()
    assert call(env, "configure_training", dropout=9, secret="x" * 9999).error is not None
    assert call(env, "no_such_tool").error is not None
    [refused] = story_of(env).played
    assert refused.error is not None
    assert "dropout: must be a number" in refused.error
    assert refused.arguments == {}


def test_asking_for_the_status_pushes_nothing_out(env: MLTrainerEnvironment) -> None:
    story = played(env, COSINE, *[("get_training_status", {})] * 500)
    assert [move.tool for move in story.played] == ["configure_training"]


# Curves -----------------------------------------------------------------------------------------


def trace(figure: Any, name: str) -> Any:
    return next(each for each in figure.data if each.name == name)


def test_the_curves_have_every_epoch_and_mark_the_best(env: MLTrainerEnvironment) -> None:
    story = played(env, COSINE, RUN)
    figure = curves.figure(story)
    assert list(trace(figure, "val loss").x) == [1, 2, 3, 4]
    history = env.episode.now.training.history if env.episode else ()
    assert list(trace(figure, "val accuracy").y) == [record.val_accuracy for record in history]
    assert list(trace(figure, "learning rate").y) == [r.plan.learning_rate for r in history]
    assert list(trace(figure, "best epoch").x) == [4]


def test_the_curves_of_a_divergence_show_where(env: MLTrainerEnvironment) -> None:
    played(env, COSINE, RUN)
    assert env.episode is not None
    diverge(env.episode)
    figure: Any = curves.figure(story_of(env))
    [line] = [shape for shape in figure.layout.shapes if shape.type == "line"][:1]
    assert line.x0 == 5
    assert trace(figure, "val loss").y[-1] is None
    assert "diverged" in cards.summary(story_of(env))


def test_bands_are_as_wide_as_their_eras(env: MLTrainerEnvironment) -> None:
    story = played(env, COSINE, RUN, ("toggle_augmentation", {"enabled": True}), RUN)
    figure: Any = curves.figure(story)
    [band] = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert (band.x0, band.x1) == (4.5, 8.5)
    assert "augmentation 0.5" in cards.legend(story)


def test_a_second_story_is_dashed(env: MLTrainerEnvironment) -> None:
    story = played(env, COSINE, RUN)
    figure = curves.figure(story, story)
    assert trace(figure, "val loss").line.dash is None
    assert trace(figure, "val loss (other)").line.dash is not None


def test_curves_without_an_epoch_are_axes_alone(env: MLTrainerEnvironment) -> None:
    env.reset()
    figure: Any = curves.figure(story_of(env))
    assert not [each for each in figure.data if each.x]


# Cards ------------------------------------------------------------------------------------------


def test_the_hidden_test_is_shown_with_the_grade_and_nowhere_before(
    env: MLTrainerEnvironment,
) -> None:
    before = played(env, COSINE, RUN)
    shown = cards.summary(before) + cards.ledger(before) + cards.legend(before)
    assert "idden-test" not in shown
    graded = played(env, ("submit_model", {}))
    assert graded.status.grade is not None
    card = cards.grade(graded.status.grade)
    assert f"{HIDDEN_TEST_ACCURACY:.1%}" in card
    assert all(part.name in card for part in graded.status.grade.components)


def test_the_ledger_adds_up(env: MLTrainerEnvironment) -> None:
    story = played(env, COSINE, RUN, RUN, ("submit_model", {}))
    total = sum(move.status.reward for move in story.played if move.status)
    foot = cards.ledger(story).partition("<tfoot>")[2]
    assert foot.count("<td") == 1 + len(cards.TERMS) + 1
    assert f"{total:+.4f}" in foot


def test_what_comes_from_outside_is_escaped(env: MLTrainerEnvironment) -> None:
    env.reset()
    call(env, "configure_training", **{"<script>": 1})
    shown = cards.ledger(story_of(env)) + cards.remark("<b>x") + cards.note("<i>y", "error")
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "&lt;b&gt;x" in shown
    assert "&lt;i&gt;y" in shown


# Forms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", TOOLS)
def test_a_form_has_every_argument_with_its_default_and_bounds(tool: str) -> None:
    fields = form.fields(tool)
    schema = TOOLS[tool].input_schema["properties"]
    assert [field.name for field in fields] == list(schema)
    for field in fields:
        each, widget = schema[field.name], field.widget
        if "default" in each:
            assert widget.value == each["default"]
        match widget:
            case gr.Radio():
                assert [value for _, value in widget.choices] == each["enum"]
            case gr.Slider():
                assert (widget.minimum, widget.maximum) == (each["minimum"], each["maximum"])
            case gr.Number():  # what is typed is answered, not clamped; the bounds are told
                assert widget.minimum is None
                assert f"{each['maximum']:g}" in str(widget.info)
            case _:
                assert isinstance(widget, gr.Checkbox)


def test_only_what_changed_is_sent() -> None:
    fields = form.fields("configure_training")
    defaults = TrainingConfig().model_dump()
    wanted = form.arguments(fields, [*(defaults | {"dropout": 0.2, "warmup_epochs": 5.0}).values()])
    assert form.changed(wanted, fields, {}) == {"dropout": 0.2}
    assert form.changed(wanted, fields, defaults | {"batch_size": 32}) == {
        "dropout": 0.2,
        "batch_size": 64,
    }
    assert isinstance(wanted["warmup_epochs"], int)


# Seats ------------------------------------------------------------------------------------------


@pytest.fixture
def places() -> Places[MLTrainerEnvironment]:
    return Places(2)


@pytest.fixture
def seats(runner: FakeRunner, places: Places[MLTrainerEnvironment]) -> Seats:
    return Seats(partial(MLTrainerEnvironment, runner, begin, places=places))


async def ready(seats: Seats, visitor: str = "me") -> Seat:
    seat = seats.seat(visitor)
    await seat.begin("easy_mnist", 0)
    await seat.call("configure_training", {})
    return seat


def test_a_training_is_seen_epoch_by_epoch(seats: Seats, runner: FakeRunner) -> None:
    async def watch() -> list[int]:
        seat = await ready(seats)
        runner.gate.clear()
        seen: list[int] = []
        training = seat.train({"num_epochs": 3})
        ahead = asyncio.ensure_future(anext(training))
        await asyncio.to_thread(runner.started.acquire)
        assert not ahead.done()  # before the first epoch has finished there is nothing to see
        runner.gate.set()
        await ahead
        seen.append(len(story_of(seat.environment).points))
        seen += [len(story_of(seat.environment).points) async for _ in training]
        assert not seat.training
        seen.append(len(story_of(seat.environment).points))
        return seen

    seen = asyncio.run(watch())
    assert seen == sorted(seen)
    assert seen[0] >= 1
    assert seen[-1] == 3


def test_stopping_keeps_what_was_trained(seats: Seats, runner: FakeRunner) -> None:
    async def stopped() -> Story:
        seat = await ready(seats)
        runner.gate.clear()
        training = seat.train({"num_epochs": 20})
        ahead = asyncio.ensure_future(anext(training, None))
        await asyncio.to_thread(runner.started.acquire)
        seat.stop()
        runner.gate.set()
        await ahead
        async for _ in training:
            pass
        return story_of(seat.environment)

    story = asyncio.run(stopped())
    assert story.status.current_epoch == 1
    last = story.played[-1].status
    assert last is not None
    assert "called off" in last.message


def test_whoever_abandons_the_iteration_stops_the_training(
    seats: Seats, runner: FakeRunner
) -> None:
    async def abandon() -> Seat:
        seat = await ready(seats)
        training = seat.train({"num_epochs": 20})
        await anext(training)
        await training.aclose()
        return seat

    runner.script = lambda epoch, plan: (1.0 / epoch, 0.5, 0.0)
    seat = asyncio.run(abandon())
    assert seat.environment.episode is not None
    seat.environment.episode.wait_until_idle()
    assert story_of(seat.environment).status.current_epoch <= 20
    assert not seat.training


def test_a_mistake_is_raised_and_changes_nothing(seats: Seats) -> None:
    async def wrong() -> Story:
        seat = await ready(seats)
        with pytest.raises(InvalidArguments, match="num_epochs: must be a whole number"):
            async for _ in seat.train({"num_epochs": 21}):
                pass
        with pytest.raises(InvalidArguments, match="learning_rate: must be"):
            await seat.call("configure_training", {"learning_rate": 11})
        return story_of(seat.environment)

    assert asyncio.run(wrong()).status.current_epoch == 0


def test_visitors_have_episodes_of_their_own_within_the_capacity(
    seats: Seats, places: Places[MLTrainerEnvironment]
) -> None:
    async def three() -> None:
        first, second = await ready(seats, "a"), await ready(seats, "b")
        await first.call("run_epochs", {"num_epochs": 2})
        assert story_of(second.environment).status.current_epoch == 0
        with pytest.raises(NoPlace, match="try again"):
            await ready(seats, "c")
        seats.leave("a")
        assert places.guests() == (second.environment,)
        await ready(seats, "c")

    asyncio.run(three())
    assert len(places.guests()) == 2


def test_leaving_stops_a_training(seats: Seats, runner: FakeRunner) -> None:
    async def leave() -> Seat:
        seat = await ready(seats)
        runner.gate.clear()
        training = seat.train({"num_epochs": 20})
        ahead = asyncio.ensure_future(anext(training, None))
        await asyncio.to_thread(runner.started.acquire)
        seats.leave("me")
        runner.gate.set()
        with pytest.raises(ActionError, match="closed"):
            await ahead
        return seat

    asyncio.run(leave())
    eventually(lambda: runner.advanced == 1)


def test_a_visitor_without_an_episode_is_told_to_start_one(seats: Seats) -> None:
    with pytest.raises(ActionError, match="start one"):
        seats.require("stranger")
    seats.leave("stranger")
    seats.leave(None)


# Records ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, runner: FakeRunner) -> Path:
    for agent in ("expert", "reference", "halving"):
        _record(tmp_path / "night" / f"{agent}.jsonl", agent, runner)
    return tmp_path


def _record(path: Path, agent: str, runner: FakeRunner) -> list[MLTrainerEnvironment]:
    opened: list[MLTrainerEnvironment] = []

    def connect() -> LocalSession:
        opened.append(MLTrainerEnvironment(runner, begin))
        return LocalSession(opened[-1])

    with (
        RecordWriter(path) as writer,
        Attempt(agent, connect, "hard_cifar", 5, [writer]) as attempt,
    ):
        catalogue.find(agent)(attempt)
    return opened


@pytest.mark.parametrize("agent", ["naive", "expert", "reference"])
def test_a_replay_knows_what_every_epoch_used(
    tmp_path: Path, runner: FakeRunner, agent: str
) -> None:
    [env] = _record(tmp_path / "one.jsonl", agent, runner)
    assert env.episode is not None
    history = env.episode.now.training.history
    last = recorded.open_record(tmp_path, "one").moments[-1]
    assert [point.plan for point in last.points] == [record.plan for record in history]
    for point, known in zip(last.points, map(Point.of, history), strict=True):
        for name in ("train_loss", "val_loss", "train_accuracy", "val_accuracy"):
            assert getattr(point, name) in (None, getattr(known, name))
    assert last.points[-1] == Point.of(history[-1])
    assert last.status.grade is not None


def test_a_replay_goes_call_by_call(folder: Path) -> None:
    moments = recorded.open_record(folder, "night/expert").moments
    assert [len(story.played) for story in moments] == list(range(len(moments)))
    assert moments[0].points == ()
    assert not [story for story in moments[:-1] if story.status.grade]


def test_a_replay_of_a_search_follows_the_forks_to_what_was_submitted(folder: Path) -> None:
    found = recorded.open_record(folder, "night/halving")
    last = found.moments[-1]
    assert last.status == next(
        line.status for line in reversed(found.record.calls) if line.status is not None
    )
    assert [point.epoch for point in last.points] == [*range(1, last.status.current_epoch + 1)]


def test_records_are_listed_the_newest_first(folder: Path) -> None:
    assert set(recorded.names(folder)) == {"night/expert", "night/reference", "night/halving"}
    assert recorded.names(folder / "nowhere") == []


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "night/../../secret", "night", ""])
def test_nothing_outside_the_folder_is_opened(folder: Path, name: str) -> None:
    with pytest.raises(NoRecord, match="one of the list"):
        recorded.open_record(folder / "night", name)


def test_a_broken_record_is_an_error_without_its_path(folder: Path) -> None:
    (folder / "broken.jsonl").write_text("{}\n")
    with pytest.raises(NoRecord, match="not a whole record") as refused:
        recorded.open_record(folder, "broken")
    assert str(folder) not in str(refused.value)


# The page ---------------------------------------------------------------------------------------


def test_the_page_is_there_where_it_is_enabled(
    runner: FakeRunner, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert httpx.get(f"{url}/web/").status_code == 404
    monkeypatch.setenv("ENABLE_WEB_INTERFACE", "true")
    with serving(with_page(partial(MLTrainerEnvironment, runner, begin))) as enabled:
        page = httpx.get(f"{enabled}/web/")
        assert page.status_code == 200
        assert "ML Training Optimizer" in page.text


def test_the_server_loads_the_page_only_where_it_is_enabled() -> None:
    script = (
        "import sys, ml_trainer_env.server.app\n"
        "later = ('ml_trainer_env.server.desk.page', 'plotly', 'torch')\n"
        "print([name for name in later if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stderr
