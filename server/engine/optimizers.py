"""One optimizer step on parts of the flat parameter vector: PyTorch's fused functions, stateless.

The parts of a vector can be updated in any order and by any thread: a step is elementwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from ml_trainer_env.models import EpochPlan, Optimizer

MOMENTUM = 0.9
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # PyTorch's defaults

MOMENTS: dict[Optimizer, int] = {"sgd": 1, "adam": 2, "adamw": 2}  # vectors kept between steps


def update(
    plan: EpochPlan,
    weights: list[Tensor],
    gradients: list[Tensor],
    moments: Sequence[list[Tensor]],  # of each moment, a tensor for each of the weights
    steps: int,
) -> None:
    """Change `weights` and `moments` in place; `steps` were taken before with these moments."""
    if plan.optimizer == "sgd":
        sgd(
            weights,
            gradients,
            list(moments[0]),
            fused=True,
            lr=plan.learning_rate,
            weight_decay=plan.weight_decay,
            momentum=MOMENTUM,
            dampening=0,
            nesterov=False,
            maximize=False,
        )
        return
    function = adam if plan.optimizer == "adam" else adamw
    function(
        weights,
        gradients,
        moments[0],
        moments[1],
        [],
        list(torch.full((len(weights),), float(steps)).unbind()),
        fused=True,
        amsgrad=False,
        lr=plan.learning_rate,
        weight_decay=plan.weight_decay,
        beta1=BETA1,
        beta2=BETA2,
        eps=EPSILON,
        maximize=False,
    )
