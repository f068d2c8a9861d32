"""Messages between two processes of one machine: a JSON object, bytes, and at times an open file.

No pickles, and no thread of its own. When the other process ends, for whatever reason, `receive`
raises `EOFError`: nobody needs to be told that anybody died.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

_LENGTHS = struct.Struct("<IQ")  # of the JSON and of the bytes


class Message(NamedTuple):
    """What was sent. Whoever receives a file closes it."""

    head: dict[str, Any]
    body: bytes
    file: int | None  # descriptor


class Channel:
    """One end of a connected Unix socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, head: Mapping[str, Any], body: bytes = b"", file: int | None = None) -> None:
        """Raises `OSError` when the other end is closed."""
        text = json.dumps(head).encode()
        lengths = _LENGTHS.pack(len(text), len(body))
        sent = socket.send_fds(self._end, [lengths], [] if file is None else [file])
        self._end.sendall(lengths[sent:] + text)
        self._end.sendall(body)

    def receive(self) -> Message:
        """Block until a message is there. Raises `EOFError`."""
        try:
            start, files, _, _ = socket.recv_fds(self._end, _LENGTHS.size, 1)
            if not start:
                raise EOFError
            lengths = start + self._exactly(_LENGTHS.size - len(start))
            text, body = _LENGTHS.unpack(lengths)
            head = json.loads(self._exactly(text))
            return Message(head, self._exactly(body), files[0] if files else None)
        except ConnectionError as error:
            raise EOFError from error

    def close(self) -> None:
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
