"""The expert: what a practitioner does without having seen the task, by the signals alone.

One opening for every task, then a look every twentieth of the budget:

- *diverged*: a third of the learning rate;
- *overfitting*, or a gap above 4 points: more augmentation, dropout and weight decay, a notch at a
  time;
- *stalling*: a lower rate and less of these, for the network has not begun to learn;
- *plateaued* without a gap: less of these, the network is held back;
- *plateaued* with a gap: half the rate, and with it what is left of the schedule.

After a change it waits before it judges again, and in the last tenth of the budget it changes
nothing: there the annealed rate makes the accuracy.
"""

from __future__ import annotations

from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.moves import SUBMIT, Move, configure, cooled, rate, run
from ml_trainer_env.agents.policies import follow
from ml_trainer_env.models import CurrentConfig, TrainingStatus

LOOKS = 20  # in a whole budget
PATIENCE = 2  # looks between two changes
TOLERATED_GAP = 0.04
NO_GAP = 0.01
LAST_PART = 0.9  # of the budget, from where nothing is changed any more
COOLINGS = 2  # at most, for plateaus

# Notches of regularisation, weak to strong: dropout, augmentation strength, weight decay.
NOTCHES = (
    (0.0, 0.0, 0.01),
    (0.1, 0.3, 0.02),
    (0.2, 0.5, 0.05),
    (0.3, 0.7, 0.1),
    (0.4, 0.85, 0.15),
)
OPENING_NOTCH = 2


def expert(attempt: Attempt) -> None:
    """Opens, looks, reacts, and trains the whole budget."""
    follow(attempt, Expert())


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
                learning_rate=0.003,
                batch_size=64,
                lr_schedule="warmup_cosine",
                warmup_epochs=min(20, status.max_epochs // LOOKS),
                **_regularisation(self._notch),
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
        notch = self._notch + direction
        if not 0 <= notch < len(NOTCHES):
            return None
        self._notch = notch
        return configure(**_regularisation(notch))


def _regularisation(notch: int) -> dict[str, float | bool]:
    dropout, strength, weight_decay = NOTCHES[notch]
    return {
        "dropout": dropout,
        "augmentation": strength > 0,
        "augmentation_strength": strength,
        "weight_decay": weight_decay,
    }


def _look(status: TrainingStatus) -> int:
    """Epochs between two looks."""
    return max(1, status.max_epochs // LOOKS)
