"""Messages between two processes of one machine: a JSON object, and at times open files.

No pickles, and no thread of its own. When the other process ends, for whatever reason, `receive`
raises `EOFError`: nobody needs to be told that anybody died.
"""

# pyright: strict

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

LENGTH = struct.Struct("<I")  # of the JSON
MOST_FILES = 2  # with one message


class Message(NamedTuple):
    """What was sent. Whoever receives files closes them."""

    text: bytes  # JSON
    files: tuple[int, ...] = ()  # descriptors

    def close(self) -> None:
        """Its files."""
        for file in self.files:
            os.close(file)


class Channel:
    """One end of a connected Unix socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, text: bytes, files: Sequence[int] = ()) -> None:
        """Raises `OSError` when the other end is closed."""
        content = LENGTH.pack(len(text)) + text
        if files:
            sent = socket.send_fds(self._end, [content], files)
            content = content[sent:]
        if content:
            self._end.sendall(content)

    def receive(self) -> Message:
        """Block until a message is there. Raises `EOFError`."""
        files: list[int] = []
        try:
            start, files, _, _ = socket.recv_fds(self._end, LENGTH.size, MOST_FILES)
            if not start:
                raise EOFError
            (length,) = LENGTH.unpack(start + self._exactly(LENGTH.size - len(start)))
            return Message(self._exactly(length), tuple(files))
        except (EOFError, OSError) as error:
            for file in files:
                os.close(file)
            raise EOFError from error

    def hang_up(self) -> None:
        """The other end is told, and whoever receives here finds an end."""
        with suppress(OSError):  # it is gone already
            self._end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Raises nothing; the other end is told."""
        self._end.close()

    def _exactly(self, size: int) -> bytes:
        content = bytearray(size)
        rest = memoryview(content)
        while rest:
            read = self._end.recv_into(rest)
            if not read:
                raise EOFError
            rest = rest[read:]
        return bytes(content)
