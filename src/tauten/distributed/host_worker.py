"""A worker on some machine: it calls the driver, shows that it knows the token, and does tasks.

It listens on no port. It ends when the driver does, or when its machine no longer reaches it.
"""

import os
import queue
import socket
import sys
import threading
import traceback
from typing import Any

import torch

from tauten.core.errors import TautenError
from tauten.distributed.channel import Channel
from tauten.distributed.hosts import ADDRESS
from tauten.distributed.job import Job, Opened

_CONNECT_S = 10.0


def serve(address: str, port: int, name: str, token: bytes) -> None:
    """Do what the driver asks for until it closes the connection.

    Raises:
        TautenError: The driver can't be reached.
        RefusedError: It has another token.
    """
    try:
        connected = socket.create_connection((address, port), _CONNECT_S)
    except OSError as error:
        raise TautenError(f"can't reach the driver at {address}:{port} ({error})") from None
    connected.settimeout(None)
    os.environ[ADDRESS] = connected.getsockname()[0]
    channel = Channel(connected, token, is_driver=False)
    channel.send("hello", name)
    messages: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(channel, messages), daemon=True).start()
    opened: Opened | None = None
    while True:
        verb, *rest = messages.get()
        if verb == "load":
            opened = _load(channel, *rest)
        elif opened is not None:
            _answer(channel, opened, *rest)


def _read(channel: Channel, messages: "queue.SimpleQueue[tuple[Any, ...]]") -> None:
    """Take messages in while the worker computes; end at once when the driver has gone."""
    try:
        while True:
            messages.put(channel.receive())
    except (EOFError, OSError):
        os._exit(0)


def _load(channel: Channel, number: int, kind: str, settings: dict[str, Any]) -> Opened | None:
    try:
        opened = Job(kind, settings).open()
    except Exception as error:  # raised again by the driver
        channel.send("failed", "", *described(error))
        return None
    channel.send("joined", number)
    return opened


def _answer(channel: Channel, opened: Opened, id: str, payload: Any) -> None:
    try:
        channel.send("answer", id, opened(payload))
    except OSError:
        raise
    except Exception as error:  # whatever the model raises is raised again by the driver
        channel.send("failed", id, *described(error))


def described(error: Exception) -> tuple[str, str, str]:
    """Class, message and traceback of an error, as text."""
    return type(error).__name__, str(error), traceback.format_exc()


def main() -> None:
    """Entry: address, port, name, threads and local rank; the token comes on standard input."""
    address, port, name, threads, rank = sys.argv[1:]
    torch.set_num_threads(int(threads))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(rank) % torch.cuda.device_count())
    try:
        serve(address, int(port), name, sys.stdin.readline().strip().encode())
    except TautenError as error:
        sys.exit(f"tauten worker {name}: {error}")


if __name__ == "__main__":
    main()
