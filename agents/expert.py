"""The expert: what a practitioner does without having seen the task, by the signals alone.

On a classic task: one opening, then a look every twentieth of the budget:

- *diverged*: a third of the learning rate;
- *overfitting*, or a gap above 4 points: more augmentation, dropout and weight decay, a notch at a
  time;
- *stalling*: a lower rate and less of these, for the network has not begun to learn;
- *plateaued* without a gap: less of these, the network is held back;
- *plateaued* with a gap: half the rate, and with it what is left of the schedule.

After a change it waits before it judges again, and in the last tenth of the budget it changes
nothing: there the annealed rate makes the accuracy.

On an instance of a family, whose good rate nobody knows, it looks for that first (`range_test`) and
then has few calls: it looks five times, takes wrong labels for what they are (a network that is
better on validation than on what it trains on), and undoes a change that hurt.
"""

from __future__ import annotations

from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.moves import SUBMIT, Move, configure, cooled, rate, run
from ml_trainer_env.agents.policies import follow
from ml_trainer_env.agents.range_test import HIGHEST, find_rate
from ml_trainer_env.agents.regularisation import MADE_FOR, NOTCHES, notch, notch_at
from ml_trainer_env.models import MAX_EPOCHS_PER_CALL, CurrentConfig, TrainingStatus
from ml_trainer_env.task_ids import instance_id

LOOKS = 20  # in a whole budget
PATIENCE = 2  # looks between two changes
TOLERATED_GAP = 0.04
NO_GAP = 0.01
LAST_PART = 0.9  # of the budget, from where nothing is changed any more
COOLINGS = 2  # at most, for plateaus

OPENING_NOTCH = 2
OPENING_RATE = MADE_FOR

TUNER_LOOKS = 5
TUNER_NOTCH = 1
ABOVE = 2.0  # times the rate that the range test found: annealing forgives a high one
HURT = 0.02  # of val accuracy
WRONG_LABELS = -0.05  # a gap that no clean training set has
SPARE_CALLS = 4  # with fewer left it only trains on


def expert(attempt: Attempt) -> None:
    """Opens, looks, reacts, and trains the whole budget."""
    if instance_id(attempt.task_id) is None:
        follow(attempt, Expert())
        return
    trial = attempt.begin()
    rate_found = find_rate(trial)
    tuner = Tuner(rate_found)
    while not trial.status.done:
        move = tuner(trial.status)
        trial.call(move.tool, **move.arguments)


class Expert:
    """The decisions of one episode, and the little that they must remember."""

    def __init__(self) -> None:
        self._notch = OPENING_NOTCH
        self._coolings = 0
        self._changed_at = 0  # epoch

    def __call__(self, status: TrainingStatus) -> Move:
        config = status.current_config
        if config is None:
            return configure(
                optimizer="adamw",
                learning_rate=OPENING_RATE,
                batch_size=64,
                lr_schedule="warmup_cosine",
                warmup_epochs=min(20, status.max_epochs // LOOKS),
                **notch(self._notch),
            )
        if status.is_diverged:
            return cooled(config)
        if status.remaining_budget == 0:
            return SUBMIT
        change = self._reaction(status, config) if self._may_change(status) else None
        if change is not None:
            self._changed_at = status.current_epoch
            return change
        return run(min(_look(status), status.remaining_budget))

    def _may_change(self, status: TrainingStatus) -> bool:
        waited = status.current_epoch - self._changed_at
        early = status.current_epoch < LAST_PART * status.max_epochs
        return early and waited >= PATIENCE * _look(status)

    def _reaction(self, status: TrainingStatus, config: CurrentConfig) -> Move | None:
        signal, gap = status.convergence_signal, status.generalization_gap or 0.0
        if signal == "stalling":
            return self._regularise(-1) or rate(config.learning_rate_in_force / 2)
        if signal == "overfitting" or gap > TOLERATED_GAP:
            more = self._regularise(+1)
            if more is not None or signal == "improving":
                return more
        if signal == "plateaued" and gap < NO_GAP:
            return self._regularise(-1)
        if signal in ("plateaued", "overfitting") and self._coolings < COOLINGS:
            self._coolings += 1
            return rate(config.learning_rate_in_force / 2)
        return None

    def _regularise(self, direction: int) -> Move | None:
        """A notch stronger or weaker; None at the end of the scale."""
        if not 0 <= self._notch + direction < len(NOTCHES):
            return None
        self._notch += direction
        return configure(**notch(self._notch))


def _look(status: TrainingStatus) -> int:
    """Epochs between two looks."""
    return max(1, status.max_epochs // LOOKS)


class Tuner:
    """Trains at a rate that was found, in `TUNER_LOOKS` pieces, and regularises by the gap."""

    def __init__(self, learning_rate: float) -> None:
        self._rate = min(HIGHEST, ABOVE * learning_rate)
        self._notch = TUNER_NOTCH
        self._piece = 0  # epochs between two looks
        self._step = 0  # the last change: a notch up, down, or none
        self._before = 0.0  # val accuracy before it
        self._settled = False  # a change has hurt, so no more of them
        self._looked_at = -1  # epoch

    def __call__(self, status: TrainingStatus) -> Move:
        config, left = status.current_config, status.remaining_budget
        if left == 0:
            return SUBMIT
        if not self._piece:
            self._piece = max(1, -(-left // TUNER_LOOKS))
            self._looked_at = status.current_epoch
            return configure(
                optimizer="adamw",
                learning_rate=self._rate,
                batch_size=64,
                lr_schedule="warmup_cosine",
                warmup_epochs=1,
                **notch_at(self._notch, self._rate),
            )
        if status.is_diverged and config:
            return cooled(config)
        if status.current_epoch > self._looked_at:
            self._looked_at = status.current_epoch
            change = self._reaction(status)
            if change is not None and left > self._piece and status.tool_calls_left > SPARE_CALLS:
                return change
        piece = self._piece if status.tool_calls_left > SPARE_CALLS else left
        return run(min(piece, left, MAX_EPOCHS_PER_CALL))

    def _reaction(self, status: TrainingStatus) -> Move | None:
        gap, accuracy = status.generalization_gap, status.val_accuracy
        if gap is None or accuracy is None or self._settled:
            return None
        if self._step and accuracy < self._before - HURT:
            self._settled = True
            return self._change(-self._step, accuracy)
        if gap < WRONG_LABELS or gap > TOLERATED_GAP:
            return self._change(+1, accuracy)
        return None

    def _change(self, step: int, accuracy: float) -> Move | None:
        if not 0 <= self._notch + step < len(NOTCHES):
            return None
        self._notch += step
        self._step, self._before = step, accuracy
        return configure(**notch_at(self._notch, self._rate))
