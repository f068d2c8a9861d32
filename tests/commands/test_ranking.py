"""`make ranking`: what it counts, and the histories it reads out of records."""

from __future__ import annotations

from strategies import curve

from ml_trainer_env.agents.records import Called, Ended, Header, Opened, Record
from ml_trainer_env.benchmarks.calibration.ranking import Worth, disagreements, submitted, worth
from ml_trainer_env.models import EpochReport, Grade, TrainingStatus
from ml_trainer_env.server.episode.rewards import step_reward
from ml_trainer_env.server.tasks import TASKS, grade

EASY = TASKS["easy_mnist"]


def test_pairs_are_counted_where_their_scores_lie() -> None:
    found = [Worth(0.5, 1.0), Worth(0.53, 0.9), Worth(0.9, 1.4)]
    rows = {tuple(row["scores_apart"]): row for row in disagreements(found)}
    close, far = rows[0.02, 0.05], rows[0.05, 1.0]
    assert (close["pairs"], close["ranked_otherwise"]) == (1, 1)
    assert abs(close["worst_return_difference"] - 0.1) < 1e-12
    assert (far["pairs"], far["ranked_otherwise"]) == (2, 0)
    assert sum(row["pairs"] for row in rows.values()) == 3


def test_the_charge_for_divergences_is_told_apart() -> None:
    history = curve([0.9, None, None, None, 0.95])
    score = grade(EASY, history).score
    terms = step_reward([], history, EASY.loss_levels, score)
    assert terms.divergence == -0.4
    assert worth(EASY, history) == Worth(score, terms.total + 0.4)


def test_a_fork_has_the_epochs_of_its_parent_up_to_then() -> None:
    first, second, third = curve([0.5, 0.6, 0.7])
    status = TrainingStatus.model_construct()

    def opened(session: int, fork_of: int | None = None) -> Opened:
        return Opened.model_construct(session=session, fork_of=fork_of, status=status)

    def called(session: int, *epochs: EpochReport) -> Called:
        return Called.model_construct(session=session, epochs=epochs)

    reports = [EpochReport(record=r, seconds=0.0, shared=False) for r in (first, second, third)]
    record = Record.model_construct(
        header=Header.model_construct(),
        lines=(
            opened(0),
            called(0, reports[0]),
            opened(1, fork_of=0),
            called(0, reports[2]),
            called(1, reports[1]),
        ),
        end=Ended.model_construct(session=1, grade=Grade.model_construct()),
    )
    assert submitted(record) == [first, second]
