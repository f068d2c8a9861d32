"""An OpenEnv environment in which an agent runs the training of real neural networks.

```python
from ml_trainer_env import MLTrainerEnv
```

Importing the package loads nothing; a name loads its module when it is first used, and no name
loads torch or the server. It only gives a process what libraries need to be imported at all, where
the machine lacks it (`surroundings.py`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ml_trainer_env import surroundings

if TYPE_CHECKING:
    from ml_trainer_env.client import MLTrainerEnv, SessionLost, ToolCallError
    from ml_trainer_env.models import (
        CurrentConfig,
        Grade,
        GradeComponent,
        RewardTerms,
        TrainingConfig,
        TrainingStatus,
    )
    from ml_trainer_env.wire import EpisodeState, StatusObservation, ToolObservation

__all__ = [
    "CurrentConfig",
    "EpisodeState",
    "Grade",
    "GradeComponent",
    "MLTrainerEnv",
    "RewardTerms",
    "SessionLost",
    "StatusObservation",
    "ToolCallError",
    "ToolObservation",
    "TrainingConfig",
    "TrainingStatus",
]

_OUTSIDE_MODELS = {  # where the names live that are not in models
    "MLTrainerEnv": "client",
    "SessionLost": "client",
    "ToolCallError": "client",
    "EpisodeState": "wire",
    "StatusObservation": "wire",
    "ToolObservation": "wire",
}

surroundings.provide()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"ml_trainer_env.{_OUTSIDE_MODELS.get(name, 'models')}")
    value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
