"""An actor that ends between its last answer and the state that it has reached, once.

As a program it is the bridge whose actors these are; the file that MORTAL names makes the next one
end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path

from ml_trainer_env.server.runtime.ray import bridge
from ml_trainer_env.server.runtime.ray.actors import Answers, Trainer


class Mortal(Trainer):
    def perform(self, number: int, text: bytes, state: bytes | None) -> Generator[Answers | bytes]:
        for each in super().perform(number, text, state):
            yield each
            doom = Path(os.environ["MORTAL"])
            if isinstance(each, Answers) and each.state_follows and doom.exists():
                doom.unlink()
                os._exit(1)


if __name__ == "__main__":
    import mortal  # by its name, so that every actor imports it instead of being sent it

    bridge.main(sys.argv[1], sys.argv[2], mortal.Mortal)
