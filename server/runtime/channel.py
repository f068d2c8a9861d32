"""Messages between two processes of one machine: a JSON object, bytes, and at times an open file.

They take turns: whoever has sent waits for the answer. So one piece of memory that both have mapped
carries the bytes of either, and the socket only says that they are there; through a socket they
would cost a tenth of a short epoch.

No pickles, and no thread of its own. When the other process ends, for whatever reason, `receive`
raises `EOFError`: nobody needs to be told that anybody died.
"""

from __future__ import annotations

import json
import mmap
import os
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
    """One end: of a connected Unix socket, and of a file that both map."""

    def __init__(self, end: socket.socket, memory: int) -> None:
        """`memory` is the file's descriptor; it belongs to the channel from here on."""
        self._end = end
        self._memory = memory
        self._mapped: mmap.mmap | None = None

    def send(self, head: Mapping[str, Any], body: bytes = b"", file: int | None = None) -> None:
        """Raises `OSError` when the other end is closed."""
        text = json.dumps(head).encode()
        lengths = _LENGTHS.pack(len(text), len(body))
        if body:
            self._map(len(body), grow=True)[: len(body)] = body
        sent = socket.send_fds(self._end, [lengths], [] if file is None else [file])
        self._end.sendall(lengths[sent:] + text)

    def receive(self) -> Message:
        """Block until a message is there. Raises `EOFError`."""
        try:
            start, files, _, _ = socket.recv_fds(self._end, _LENGTHS.size, 1)
            if not start:
                raise EOFError
            lengths = start + self._exactly(_LENGTHS.size - len(start))
            text, body = _LENGTHS.unpack(lengths)
            head = json.loads(self._exactly(text))
            content = self._map(body)[:body] if body else b""
            return Message(head, content, files[0] if files else None)
        except ConnectionError as error:
            raise EOFError from error

    def close(self) -> None:
        """Raises nothing; the other end is told."""
        self._end.close()
        if self._mapped is not None:
            self._mapped.close()
            self._mapped = None
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    def _map(self, size: int, *, grow: bool = False) -> mmap.mmap:
        """The memory, at least `size` bytes of it; the sender makes it grow."""
        if self._mapped is None or len(self._mapped) < size:
            if grow and os.fstat(self._memory).st_size < size:
                os.ftruncate(self._memory, size)
            if self._mapped is not None:
                self._mapped.close()
            self._mapped = mmap.mmap(self._memory, os.fstat(self._memory).st_size)
        return self._mapped

    def _exactly(self, size: int) -> bytes:
        content = bytearray(size)
        rest = memoryview(content)
        while rest:
            read = self._end.recv_into(rest)
            if not read:
                raise EOFError
            rest = rest[read:]
        return bytes(content)
