"""A connection of driver and worker, open once both have shown that they know the token."""

import contextlib
import socket
from multiprocessing.connection import Connection
from typing import Any

from tauten.distributed.token import prove
from tauten.distributed.wire import decode, encode

_SILENCE_S = 10  # of a machine, after which it counts as gone


class Channel:
    """Messages are trees, in both directions.

    Args:
        connected: A TCP socket, which is taken over.
        token: Of the cluster.
        is_driver: Of the two sides.
    Raises:
        RefusedError: The other side doesn't know the token.
    """

    def __init__(self, connected: socket.socket, token: bytes, is_driver: bool):
        _notice_silence(connected)
        self.connection = Connection(connected.detach())
        try:
            prove(self.connection, token, is_driver)
        except BaseException:
            self.connection.close()
            raise

    def send(self, *message: Any) -> None:
        """Send a message.

        Raises:
            OSError: The other side has gone.
        """
        self.connection.send_bytes(encode(message))

    def receive(self) -> tuple[Any, ...]:
        """The next message.

        Raises:
            EOFError: The other side has closed.
            OSError: It has gone.
        """
        message: tuple[Any, ...] = decode(self.connection.recv_bytes())
        return message

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(OSError):
            self.connection.close()


def _notice_silence(connected: socket.socket) -> None:
    """Have the kernel ask a silent machine whether it is still there."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    options = {"TCP_KEEPIDLE": 4, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
    options["TCP_USER_TIMEOUT"] = 1000 * _SILENCE_S
    for name, value in options.items():
        if hasattr(socket, name):  # not all systems have all of them
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
