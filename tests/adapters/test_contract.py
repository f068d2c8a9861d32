"""What holds for every adapter, whatever the library behind it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from adapted import Outcome, Player, every_adapter, has_a_place, plain
from live import eventually

from ml_trainer_env.adapters.gymnasium import TrainingEnv
from ml_trainer_env.agents.moves import SUBMIT, Move, configure, rate, run

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the libraries are not ours

MOVES = [
    configure(optimizer="adamw", learning_rate=0.003, dropout=0.1),
    run(2),
    Move("get_training_status", {}),
    rate(0.01),
    run(3),
    Move("toggle_augmentation", {"enabled": True, "strength": 0.3}),
    run(1),
    SUBMIT,
]
WRONG = [
    Move("run_epochs", {"num_epochs": 1}),  # nothing is configured
    configure(learning_rate=0.01),
    configure(optimizer="lion"),
    Move("run_epochs", {"num_epochs": 0}),
    Move("adjust_learning_rate", {"new_lr": -1.0}),
    run(2),
    SUBMIT,
]


@every_adapter
@pytest.mark.usefixtures("log_folder")
def test_same_moves_bring_the_same_return_and_the_same_grade(
    player: Player, serve: Callable[..., str]
) -> None:
    url = serve(max_sessions=4)

    assert player(url, "hard_cifar", 3, MOVES) == plain(url, "hard_cifar", 3, MOVES)


def test_large_steps_are_moves_that_bring_the_same(serve: Callable[..., str]) -> None:
    """What Gymnasium and Stable-Baselines3 are given is the return of the moves behind it."""
    url = serve(max_sessions=2)
    env = TrainingEnv(url=url)
    env.reset(options={"task_id": "hard_cifar", "seed": 3})
    total, done, info = 0.0, False, {}
    while not done:
        action = [3, 1, 0, 2] if total else [5, 1, 0, 0]
        _, reward, done, _, info = env.step(np.array(action))
        total += reward

    moves = env._rollout._moves
    expected = plain(url, "hard_cifar", 3, moves)
    assert info["score"] == expected.score
    assert total == pytest.approx(expected.episode_return)
    assert {move.tool for move in moves} >= {"configure_training", "run_epochs", "submit_model"}


@every_adapter
@pytest.mark.usefixtures("log_folder")
def test_on_the_engine_the_bits_are_the_same(player: Player) -> None:
    """A return and a grade are functions of every loss and accuracy on the way."""
    task_id = "varied_mlp/validation/4"  # a run to take over

    assert player(None, task_id, 1, MOVES) == plain(None, task_id, 1, MOVES)


@every_adapter
@pytest.mark.usefixtures("log_folder")
def test_what_is_wrong_costs_nothing_and_the_episode_goes_on(
    player: Player, serve: Callable[..., str]
) -> None:
    url = serve(max_sessions=4)
    right = [configure(learning_rate=0.01), run(2), SUBMIT]

    assert player(url, "easy_mnist", 0, WRONG) == plain(url, "easy_mnist", 0, right)


@every_adapter
@pytest.mark.usefixtures("log_folder")
def test_an_episode_that_is_cut_off_is_graded_as_it_stands(
    player: Player, serve: Callable[..., str]
) -> None:
    url = serve(max_sessions=4)

    begun = [configure(learning_rate=0.003), run(20), run(20)]

    cut_off = player(url, "easy_mnist", 0, begun)

    assert cut_off == plain(url, "easy_mnist", 0, [*begun, SUBMIT])
    assert cut_off.score > 0


@every_adapter
@pytest.mark.usefixtures("log_folder")
def test_no_session_is_left_behind(player: Player, serve: Callable[..., str]) -> None:
    url = serve(max_sessions=1)  # so a session that stays would be the last one

    for moves in (MOVES, MOVES[:2], WRONG[:1]):
        player(url, "easy_mnist", 0, moves)
        eventually(lambda: has_a_place(url))


def test_the_outcomes_of_other_moves_differ(url: str) -> None:
    """Else the comparisons above would hold whatever an adapter does."""
    outcomes: list[Outcome] = [
        plain(url, "hard_cifar", 3, MOVES),
        plain(url, "hard_cifar", 3, MOVES[:2]),
        plain(None, "varied_mlp/validation/4", 1, MOVES),
        plain(None, "varied_mlp/validation/4", 1, MOVES[:2]),
    ]
    assert len({each.episode_return for each in outcomes}) == len(outcomes)
