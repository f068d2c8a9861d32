"""A program on a leash: it ends with the process that started it, however that one ends.

Between the two stands a process that runs this file. It holds the end of a pipe that closes when
its starter is gone, killed hard included, and then kills the program with all its group: a package
manager's helpers, a script's commands. Knows nothing of the package, so that it starts in a moment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NOT_FOUND = 127  # the exit status, as a shell has it


class Leashed(subprocess.Popen[bytes]):
    """The program `arguments`, without standard input; `options` are those of `Popen`.

    Signals reach it and all its group, and `kill` leaves nothing of them. Ctrl-C in a terminal does
    not: it is for whoever holds the leash. The exit status is the program's, 128 + N for signal N.
    """

    def __init__(self, arguments: Sequence[str], **options: Any) -> None:
        watcher = (sys.executable, "-I", "-S", __file__)
        super().__init__(
            [*watcher, *arguments], stdin=subprocess.PIPE, start_new_session=True, **options
        )

    def kill(self) -> None:
        assert self.stdin is not None
        self.stdin.close()

    def end(self, patience: float = 0.0) -> None:
        """Ask it to end, kill it after `patience` seconds, and wait for that."""
        try:
            if patience:
                self.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self.wait(patience)
        finally:
            self.kill()
            self.wait()


def main(arguments: Sequence[str]) -> int:
    """Run the program; its exit status."""
    program: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, frame: FrameType | None = None) -> None:
        if program is None:
            early.append(number)
            return
        with suppress(ProcessLookupError):
            os.killpg(program.pid, number)

    def wait_for_the_end_of_the_starter() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        pass_on(signal.SIGKILL)

    for number in SIGNALS:
        signal.signal(number, pass_on)
    try:
        program = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(error, file=sys.stderr)
        return NOT_FOUND
    for number in early:
        pass_on(number)
    threading.Thread(target=wait_for_the_end_of_the_starter, daemon=True).start()
    status = program.wait()
    pass_on(signal.SIGKILL)  # what it has left behind
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
