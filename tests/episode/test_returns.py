"""The return ranks episodes as the score does: the holes of the first reward, played for real."""

from __future__ import annotations

from itertools import combinations

import pytest
from real import Outcome, Player, inline

from ml_trainer_env.agents.moves import SUBMIT, Move, configure, rate, run
from ml_trainer_env.models import BatchSize
from ml_trainer_env.server.episode.rewards import RETURNS

CLOSE = 0.02  # of score: pairs that are closer may be ranked either way
IMAGES = 0.3 * 0.004  # of progress: four images of a thousand
TWENTY, FIVE_TIMES = (run(20),), 5 * (run(20),)
BATCHES: tuple[BatchSize, ...] = (32, 64, 128, 256)


def idle(batch_size: BatchSize) -> Move:
    return configure(optimizer="sgd", learning_rate=1e-5, batch_size=batch_size)


def good(batch_size: BatchSize = 64, learning_rate: float = 0.001) -> Move:
    return configure(optimizer="adam", learning_rate=learning_rate, batch_size=batch_size)


def episodes() -> dict[str, tuple[Move, ...]]:
    """Honest runs, good and bad ones, and those that made the first reward pay too much."""
    found: dict[str, tuple[Move, ...]] = {
        "scores nothing": (configure(optimizer="sgd", learning_rate=1e-4), *TWENTY),
        "hardly scores": (good(learning_rate=1e-4), run(10)),
        "stops early": (good(), *TWENTY),
        "idle in the middle": (good(), run(10), rate(1e-7), *4 * TWENTY, rate(0.001), run(10)),
        "idle in the end": (good(), *TWENTY, rate(1e-7), *4 * TWENTY),
    }
    for size in BATCHES:
        found[f"honest, {size}"] = (good(size), *FIVE_TIMES)
        found[f"idle before, {size}"] = (idle(size), *4 * TWENTY, good(size), *TWENTY)
    return found


@pytest.fixture(scope="module")
def played() -> dict[str, Outcome]:
    runner = inline(threads=2)
    return {name: Player(runner=runner).do(*moves, SUBMIT) for name, moves in episodes().items()}


def test_no_pair_is_ranked_otherwise_than_by_the_score(played: dict[str, Outcome]) -> None:
    for (one, a), (other, b) in combinations(played.items(), 2):
        if abs(a.score - b.score) >= CLOSE:
            assert (a.total > b.total) == (a.score > b.score), (one, other)


@pytest.mark.parametrize("size", BATCHES)
def test_idling_before_training_does_not_pay(played: dict[str, Outcome], size: int) -> None:
    """Beside its score, which luck may raise by a few images, it earns no more."""
    idling, honest = played[f"idle before, {size}"], played[f"honest, {size}"]
    assert idling.total - idling.score <= honest.total - honest.score + IMAGES


def test_idling_after_training_changes_nothing(played: dict[str, Outcome]) -> None:
    early, idling = played["stops early"], played["idle in the end"]
    assert idling.total == pytest.approx(early.total, abs=CLOSE)


def test_a_score_of_nothing_returns_less_than_any_score(played: dict[str, Outcome]) -> None:
    worst = played["scores nothing"]
    assert worst.score == 0
    assert all(worst.total < other.total for other in played.values() if other.score > CLOSE)


def test_looking_often_costs_nothing_and_pays_nothing() -> None:
    runner = inline()
    often = Player(runner=runner).do(good(), *40 * (run(1),), SUBMIT)
    seldom = Player(runner=runner).do(good(), *2 * TWENTY, SUBMIT)
    assert often.grade == seldom.grade
    assert often.total == pytest.approx(seldom.total)


def test_a_divergence_costs_what_it_is_said_to_and_nothing_else() -> None:
    runner = inline()
    straight = Player(runner=runner).do(good(), *TWENTY, SUBMIT)
    first = configure(optimizer="sgd", learning_rate=10.0)
    diverged = Player(runner=runner).do(first, run(1), good(), *TWENTY, SUBMIT)
    assert diverged.training.history[0].diverged
    rest = diverged.total - diverged.score - (straight.total - straight.score)
    assert rest == pytest.approx(-0.2, abs=IMAGES)


def test_diverging_again_and_again_costs_no_more_than_twice() -> None:
    moves = (configure(optimizer="sgd"), *24 * (rate(10), run(1)), SUBMIT)
    outcome = Player(runner=inline()).do(*moves)
    assert sum(record.diverged for record in outcome.training.history) == 24
    assert outcome.total >= RETURNS[0]
    assert outcome.sum_of("divergence") == pytest.approx(-0.4)
