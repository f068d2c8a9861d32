"""Bad tool calls: an error that names the field and what it may be, and no other effect."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from fakes import FakeRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from openenv.core.env_server.mcp_types import ToolErrorType
from play import trained, tried
from wild import json_values

from ml_trainer_env.models import MAX_EPOCHS_PER_CALL, TrainingConfig
from ml_trainer_env.server.episode.tools import TOOLS
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment

# Values of no use to a parameter, by what the parameter is.
HUGE = 10**400
NOT_NUMBERS: list[Any] = ["", "0.1", "64", True, False, [], [0.1], {}, {"value": 1}]
NOT_FINITE = [math.nan, math.inf, -math.inf]
BAD_CHOICES: list[Any] = [
    "",
    "ADAM",
    "adam ",
    "rmsprop",
    0,
    1.5,
    True,
    [],
    {},
    ["adam"],
    "x" * 9999,
]
BAD_SWITCHES: list[Any] = [0, 1, "true", "", "on", 1.0, [], {}, math.nan, HUGE]


def numbers_outside(low: float, high: float) -> list[Any]:
    step = 1e-9
    return [*NOT_NUMBERS, *NOT_FINITE, low - step, high + 1e-6, -1e308, 1e308, HUGE, -HUGE]


BAD: dict[tuple[str, str], tuple[list[Any], str]] = {
    ("configure_training", "optimizer"): (BAD_CHOICES, 'must be one of "sgd", "adam", "adamw"'),
    ("configure_training", "learning_rate"): (
        [0, -1, 0.0, *numbers_outside(0, 10)],
        "must be a number with 0 < learning_rate <= 10",
    ),
    ("configure_training", "batch_size"): (
        [0, 1, 33, -64, 63.9, HUGE, *NOT_NUMBERS, *NOT_FINITE],
        "must be one of 32, 64, 128, 256",
    ),
    ("configure_training", "weight_decay"): (
        numbers_outside(0, 1),
        "must be a number with 0 <= weight_decay <= 1",
    ),
    ("configure_training", "dropout"): (
        [0.6, *numbers_outside(0, 0.5)],
        "must be a number with 0 <= dropout <= 0.5",
    ),
    ("configure_training", "lr_schedule"): (
        BAD_CHOICES,
        'must be one of "constant", "step", "cosine", "warmup_cosine"',
    ),
    ("configure_training", "warmup_epochs"): (
        [-1, 21, 1.5, HUGE, *NOT_NUMBERS, *NOT_FINITE],
        "must be a whole number with 0 <= warmup_epochs <= 20",
    ),
    ("configure_training", "augmentation"): (BAD_SWITCHES, "must be true or false"),
    ("configure_training", "augmentation_strength"): (
        numbers_outside(0, 1),
        "must be a number with 0 <= augmentation_strength <= 1",
    ),
    ("run_epochs", "num_epochs"): (
        [0, -1, 21, 1_000_000, 1.5, None, HUGE, *NOT_NUMBERS, *NOT_FINITE],
        "must be a whole number with 1 <= num_epochs <= 20",
    ),
    ("adjust_learning_rate", "new_lr"): (
        [0, None, *numbers_outside(0, 10)],
        "must be a number with 0 < new_lr <= 10",
    ),
    ("toggle_augmentation", "enabled"): ([None, *BAD_SWITCHES], "must be true or false"),
    ("toggle_augmentation", "strength"): (
        numbers_outside(0, 1),
        "must be a number with 0 <= strength <= 1",
    ),
}
CASES = [
    pytest.param(tool, field, value, rule, id=f"{tool}-{field}-{str(value)[:20]!r}-{index}")
    for (tool, field), (values, rule) in BAD.items()
    for index, value in enumerate(values)
]


def complete(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments` with the required ones that they lack."""
    needed: dict[str, dict[str, Any]] = {
        "run_epochs": {"num_epochs": 1},
        "adjust_learning_rate": {"new_lr": 0.1},
        "toggle_augmentation": {"enabled": True},
    }
    return {**needed.get(tool, {}), **arguments}


@pytest.fixture
def session(env: MLTrainerEnvironment) -> MLTrainerEnvironment:
    """In the middle of an episode."""
    trained(env)
    return env


def refused(env: MLTrainerEnvironment, tool: str, arguments: dict[str, Any]) -> str:
    """The message of a refusal that left everything as it was."""
    status = tried(env, "get_training_status", {}).status
    before = env.state
    observation = tried(env, tool, arguments)
    assert observation.error is not None, f"{tool} took {arguments!r}"
    assert (observation.reward, observation.done, observation.result) == (0, False, None)
    assert env.state == before
    after = tried(env, "get_training_status", {}).status
    assert after == status
    assert len(observation.error.message) < 2_000
    json.dumps(observation.model_dump(mode="json"), allow_nan=False).encode()
    return observation.error.message


# In process -------------------------------------------------------------------------------------


def test_every_parameter_of_every_tool_is_tried() -> None:
    parameters = {
        (tool, name) for tool, spec in TOOLS.items() for name in spec.arguments.model_fields
    }
    assert set(BAD) == parameters


@pytest.mark.parametrize(("tool", "field", "value", "rule"), CASES)
def test_a_bad_value_is_refused_by_name_with_what_is_allowed(
    session: MLTrainerEnvironment, tool: str, field: str, value: Any, rule: str
) -> None:
    message = refused(session, tool, complete(tool, {field: value}))
    assert message.startswith(f"{field}: {rule}; got ")


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("keyword", ["momentum", "", "self", "Optimizer", "\ud800", "x" * 999])
def test_an_unknown_keyword_is_refused_and_the_known_ones_named(
    session: MLTrainerEnvironment, tool: str, keyword: str
) -> None:
    message = refused(session, tool, complete(tool, {keyword: 1}))
    assert f": unknown; {tool} takes " in message
    for name in TOOLS[tool].arguments.model_fields or ("no arguments",):
        assert name in message


@pytest.mark.parametrize("field", ["run_epochs", "adjust_learning_rate", "toggle_augmentation"])
def test_a_missing_argument_is_named(session: MLTrainerEnvironment, field: str) -> None:
    message = refused(session, field, {})
    assert ": is required; must be " in message


@pytest.mark.parametrize("name", ["", "reset", "step", "RUN_EPOCHS", "run_epochs ", "x" * 9999])
def test_an_unknown_tool_is_refused_and_the_tools_named(
    session: MLTrainerEnvironment, name: str
) -> None:
    message = refused(session, name, {})
    assert all(tool in message for tool in TOOLS)


def test_one_bad_value_among_good_ones_changes_none(session: MLTrainerEnvironment) -> None:
    message = refused(session, "configure_training", {"dropout": 0.3, "batch_size": 65})
    assert message.startswith("batch_size: ")
    several = refused(session, "configure_training", {"dropout": 2, "batch_size": 65})
    assert "batch_size: " in several
    assert "dropout: " in several


def test_whole_numbers_are_good_real_numbers(session: MLTrainerEnvironment) -> None:
    assert tried(session, "configure_training", {"learning_rate": 10, "dropout": 0}).error is None


field_names = st.sampled_from(sorted({name for _, name in BAD})) | st.text(max_size=12)


@given(
    tool=st.sampled_from(sorted(TOOLS)) | st.text(max_size=12),
    arguments=st.dictionaries(field_names, json_values, max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_sent_either_happens_or_changes_nothing(
    tool: str, arguments: dict[str, Any]
) -> None:
    env = MLTrainerEnvironment(FakeRunner())
    trained(env)
    before = env.state
    observation = tried(env, tool, arguments)
    json.dumps(observation.model_dump(mode="json"), allow_nan=False)
    if observation.error is None:
        assert observation.status is not None
        assert tool in TOOLS
        assert env.state.step_count == before.step_count + 1
    else:
        assert env.state == before
        assert observation.reward == 0
        assert observation.error.error_type in (
            ToolErrorType.TOOL_NOT_FOUND,
            ToolErrorType.INVALID_ARGS,
        )


valid_options = st.fixed_dictionaries(
    {},
    optional={
        "optimizer": st.sampled_from(["sgd", "adam", "adamw"]),
        "learning_rate": st.floats(0, 10, exclude_min=True) | st.integers(1, 10),
        "batch_size": st.sampled_from([32, 64, 128, 256]),
        "weight_decay": st.floats(0, 1),
        "dropout": st.floats(0, 0.5),
        "lr_schedule": st.sampled_from(["constant", "step", "cosine", "warmup_cosine"]),
        "warmup_epochs": st.integers(0, 20),
        "augmentation": st.booleans(),
        "augmentation_strength": st.floats(0, 1),
    },
)


@given(options=valid_options, epochs=st.integers(1, MAX_EPOCHS_PER_CALL))
@settings(max_examples=100, deadline=None)
def test_whatever_is_allowed_is_taken_and_shown(options: dict[str, Any], epochs: int) -> None:
    env = MLTrainerEnvironment(FakeRunner(lambda epoch, plan: (1.0, 0.5, 0.0)))
    env.reset()
    status = tried(env, "configure_training", options).status
    assert status is not None
    assert status.current_config is not None
    shown = status.current_config.model_dump(exclude={"learning_rate_in_force"})
    assert shown == TrainingConfig(**options).model_dump()
    run = tried(env, "run_epochs", {"num_epochs": epochs}).status
    assert run is not None
    assert run.epochs_run == epochs
