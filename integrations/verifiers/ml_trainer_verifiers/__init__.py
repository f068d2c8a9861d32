"""The ML Training Optimizer for verifiers: a taskset, and the environment that plays it."""

from ml_trainer_verifiers.taskset import (
    TrainingConfig,
    TrainingData,
    TrainingEnv,
    TrainingEnvConfig,
    TrainingTask,
    TrainingTaskset,
)

__all__ = [
    "TrainingConfig",
    "TrainingData",
    "TrainingEnv",
    "TrainingEnvConfig",
    "TrainingTask",
    "TrainingTaskset",
]
