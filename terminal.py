"""The terminal: where every command writes, whatever is at the other end.

Guarantees:
- Nothing fails for a character. What standard output cannot encode is shown as a question mark;
  standard error shows it escaped, as Python sets it up.
- A reader that goes away (`ml-trainer report | head -1`) ends the command quietly, and everything
  that it has started.

Files are another matter: those are UTF-8, always.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from io import TextIOWrapper
from typing import Any

from rich.console import Console

WIDTH = 100  # columns where there is no terminal to ask: the widest table


def prepare() -> None:
    """Let standard output take any character. For what does not write through `stdout`."""
    stream: object = sys.stdout  # it may be closed, or be somebody's own
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="replace")


def stdout(width: int = WIDTH, *, markup: bool = False) -> Console:
    """Standard output, `width` columns wide where it is no terminal.

    `markup`: whether `[bold]` is more than six characters; not where names from outside are shown.
    """
    prepare()
    shown = _Output(markup=markup)
    return shown if shown.is_terminal else _Output(markup=markup, width=width)


def stderr() -> Console:
    """Standard error, for what is no result."""
    return _Output(stderr=True)


def plain(text: str) -> str:
    """`text` that came from outside, without what would steer a terminal."""
    return "".join(each if each.isprintable() or each in "\n\t" else "?" for each in text)


class _Output(Console):
    """Shows text as it is: a path or a model may be called anything.

    Where the reader is gone it ends the process as if it was interrupted, and not the thread that
    happens to write.
    """

    def __init__(self, *, markup: bool = False, **options: Any) -> None:
        super().__init__(highlight=False, markup=markup, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())  # what is left in buffers goes there
        os.close(nowhere)
        if threading.current_thread() is threading.main_thread():
            raise SystemExit(1)
        main = threading.main_thread().ident
        assert main is not None, "it has been started"
        signal.pthread_kill(main, signal.SIGINT)
