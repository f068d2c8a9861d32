"""What a guarded server is tried with: its doors, a token, an environment that fails."""

from __future__ import annotations

from typing import Any

from ml_trainer_env.server.doors.mcp.door import ADDRESS
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment

TOKEN = "s3cret-t0ken"
HTTP_DOORS = [
    *(
        ("GET", path)
        for path in ("/", "/metadata", "/state", "/schema", "/docs", "/openapi.json", "/metrics")
    ),
    *(("POST", path) for path in ("/reset", "/step", "/mcp", ADDRESS, "/ml_trainer_env/tasks")),
    *(("GET", "/web"), ("POST", "/web/step"), ("GET", ADDRESS), ("DELETE", ADDRESS)),
    ("GET", "/no/such/path"),
]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


class Broken(MLTrainerEnvironment):
    """Fails in every way that an environment can."""

    def _reset(self, /, *_: Any, **__: Any) -> Any:
        raise FileNotFoundError(2, "No such file or directory", "/srv/secret/weights.bin")

    def call(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError('Traceback (most recent call last): File "/srv/secret/x.py"')

    def get_metadata(self) -> Any:
        raise KeyError("/srv/secret")

    @property
    def state(self) -> Any:
        raise KeyError("/srv/secret")

    def get_task_range(self, split: str, start: Any = None, stop: Any = None) -> Any:
        raise KeyError("/srv/secret")

    def num_tasks(self, split: str) -> Any:
        raise KeyError("/srv/secret")
