"""A process that trains, for the pool: `python -m ml_trainer_env.server.runtime.worker`.

It takes an order at a time from its socket and answers it while epochs are made. When the process
at the other end is gone, even by SIGKILL, it ends at once, in the middle of an epoch too, and while
it still loads torch: what takes long to import is imported once it listens.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from ml_trainer_env.server.runtime.channel import Channel, Message

if TYPE_CHECKING:
    from ml_trainer_env.server.runs import Precision
    from ml_trainer_env.server.runtime.jobs import Computer

SPACING = 0.1  # seconds between two messages: a crowd of short epochs would keep the server busy
STOP = b'{"stop": true}'  # the epoch in progress is to be the last one of its order


class Inbox:
    """What the other end sends, read as it comes; so its end is noticed, and so is a stop."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._orders: SimpleQueue[Message] = SimpleQueue()
        self._stop = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def stopped(self) -> bool:
        return self._stop.is_set()

    def next_order(self) -> Message:
        return self._orders.get()

    def _read(self) -> None:
        try:
            while True:
                message = self._channel.receive()
                if message.text == STOP:
                    self._stop.set()
                else:
                    self._stop.clear()  # it came too late for the order before
                    self._orders.put(message)
        except EOFError:
            os._exit(0)


def main(descriptor: int, precision: Precision) -> None:
    """Work until the other end closes."""
    channel = Channel(socket.socket(fileno=descriptor))
    inbox = Inbox(channel)
    try:
        from ml_trainer_env.server import trainer
        from ml_trainer_env.server.runtime.jobs import Computer

        trainer.configure_process()
        _tell(channel, {"engine": asdict(trainer.engine(precision))})
        computer = Computer()
    except Exception:
        _tell(channel, {"error": traceback.format_exc()})
        return
    while True:
        _carry_out(inbox.next_order(), computer, inbox, channel)


def _carry_out(message: Message, computer: Computer, inbox: Inbox, channel: Channel) -> None:
    """An order, or a data set to be loaded for all."""
    from ml_trainer_env.server.runtime.orders import Order

    content, files = json.loads(message.text), list(message.files)
    try:
        if "load" in content:
            _load(content["load"], channel)
            return
        if content["data"] is not None:
            _adopt(content["order"]["workload"]["dataset"], content["data"], files.pop())
        order = Order.model_validate(content["order"])
        state = files[0] if files else None
        told, waiting = time.monotonic(), list[str]()
        for answer, written, _ in computer.perform(order, state, inbox.stopped):
            waiting.append(answer.model_dump_json(exclude_defaults=True))
            if answer.last or time.monotonic() - told >= SPACING:
                _send(channel, f"[{','.join(waiting)}]".encode(), written)
                told, waiting = time.monotonic(), []
    except Exception:
        error = {"error": traceback.format_exc(), "last": True}
        _tell(channel, error if "load" in content else [error])
    finally:
        for file in files:
            os.close(file)


def _load(name: str, channel: Channel) -> None:
    """Load a data set and hand the file that holds it over, for all workers to map."""
    from ml_trainer_env.server.engine import resident
    from ml_trainer_env.server.runtime.shared_data import share

    data = share(resident.load(name))
    with data.file:
        _send(channel, json.dumps({"places": data.places}).encode(), os.dup(data.file.fileno()))


def _adopt(name: str, places: list[Any], file: int) -> None:
    """With the first order on a data set comes the file that holds it."""
    from ml_trainer_env.server.engine import resident
    from ml_trainer_env.server.runtime.shared_data import Place, attach

    try:
        resident.adopt(name, attach(file, [Place(*place) for place in places]))
    finally:
        os.close(file)


def _tell(channel: Channel, content: object) -> None:
    _send(channel, json.dumps(content).encode(), None)


def _send(channel: Channel, text: bytes, file: int | None) -> None:
    """The descriptor is closed: the file is the receiver's."""
    try:
        with suppress(OSError):  # nobody is left to be told, and the inbox ends the process
            channel.send(text, [] if file is None else [file])
    finally:
        if file is not None:
            os.close(file)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])  # pyright: ignore[reportArgumentType]
