"""The desk without a browser: what it shows of an episode."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from typing import Any

import gradio as gr
import httpx
import plotly.graph_objects as go
import pytest
from fakes import HIDDEN_TEST_ACCURACY, FakeRunner
from live import serving, with_page
from play import call, diverge

from ml_trainer_env.agents.pool import POOL
from ml_trainer_env.models import TrainingConfig
from ml_trainer_env.server.desk import cards, curves, form
from ml_trainer_env.server.desk.story import Story, live
from ml_trainer_env.server.episode.tools import TOOLS
from ml_trainer_env.server.instances import task_of
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment


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


def drawn(*stories: Story) -> Any:
    """The figure, as Plotly's own classes understand it: they refuse what it has not."""
    return go.Figure(curves.figure(*stories))


def test_the_curves_have_every_epoch_and_mark_the_best(env: MLTrainerEnvironment) -> None:
    story = played(env, COSINE, RUN)
    figure = drawn(story)
    assert list(trace(figure, "val loss").x) == [1, 2, 3, 4]
    history = env.episode.now.training.history if env.episode else ()
    assert list(trace(figure, "val accuracy").y) == [record.val_accuracy for record in history]
    assert list(trace(figure, "learning rate").y) == [r.learning_rate for r in history]
    assert list(trace(figure, "graded epoch").x) == [4]


def test_the_curves_of_a_divergence_show_where(env: MLTrainerEnvironment) -> None:
    played(env, COSINE, RUN)
    assert env.episode is not None
    diverge(env.episode)
    figure = drawn(story_of(env))
    [line] = [shape for shape in figure.layout.shapes if shape.type == "line"][:1]
    assert line.x0 == 5
    assert trace(figure, "val loss").y[-1] is None
    assert "diverged" in cards.summary(story_of(env))


def test_bands_are_as_wide_as_their_eras(env: MLTrainerEnvironment) -> None:
    story = played(env, COSINE, RUN, ("toggle_augmentation", {"enabled": True}), RUN)
    figure = drawn(story)
    [band] = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert (band.x0, band.x1) == (4.5, 8.5)
    assert "augmentation 0.5" in cards.legend(story)


def test_a_second_story_is_dashed(env: MLTrainerEnvironment) -> None:
    story = played(env, COSINE, RUN)
    figure = drawn(story, story)
    assert trace(figure, "val loss").line.dash is None
    assert trace(figure, "val loss (other)").line.dash is not None


def test_curves_without_an_epoch_are_axes_alone(env: MLTrainerEnvironment) -> None:
    env.reset()
    figure = drawn(story_of(env))
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


def test_an_instance_shows_what_it_hid_and_its_pool_with_the_grade_and_nowhere_before(
    env: MLTrainerEnvironment,
) -> None:
    env.reset(task_id="varied_mlp", split="eval", index=1)
    task = task_of("varied_mlp/eval/1")
    for name, arguments in (("configure_training", {}), ("run_epochs", {"num_epochs": 3})):
        env.call(name, arguments)
    before = story_of(env)
    assert before.pool == ()
    assert "20" in cards.summary(before)
    assert "What was hidden" not in cards.summary(before) + cards.legend(before)
    assert "pool" not in cards.legend(before)
    curves_before = len(curves.figure(before)["data"])
    env.call("submit_model", {})
    after = story_of(env)
    assert after.status.grade is not None
    shown = cards.grade(after.status.grade)
    assert "What was hidden" in shown
    assert all(name.replace("_", " ") in shown for name in task.hidden)
    assert f"{task.hidden['multiplier']:g}" in shown
    assert "pool" in cards.legend(after)
    assert len(curves.figure(after)["data"]) == curves_before + len(POOL)
    assert [len(curve) for curve in after.pool] == [task.max_epochs] * len(POOL)
    drawn(after)


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


# The page ---------------------------------------------------------------------------------------


def test_the_page_is_there_where_it_is_enabled(
    runner: FakeRunner, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert httpx.get(f"{url}/web/").status_code == 404
    monkeypatch.setenv("ENABLE_WEB_INTERFACE", "true")
    with serving(with_page(partial(MLTrainerEnvironment, runner))) as enabled:
        page = httpx.get(f"{enabled}/web/")
        for path in ("reset", "step"):  # OpenEnv's, to one environment that all visitors share
            assert httpx.post(f"{enabled}/web/{path}", json={}).status_code in (404, 405)
        assert page.status_code == 200
        assert "ML Training Optimizer" in page.text


def test_the_server_loads_the_page_only_where_it_is_enabled() -> None:
    script = (
        "import sys, ml_trainer_env.server.app\n"
        "later = ('ml_trainer_env.server.desk.page', 'torch')\n"
        "print([name for name in later if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stderr
