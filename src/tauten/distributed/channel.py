"""A connection of driver and worker, open once both have shown that they know the token."""

import contextlib
import hashlib
import hmac
import itertools
import socket
from multiprocessing.connection import Connection
from typing import Any

from tauten.distributed.token import prove
from tauten.distributed.wire import decode, encode

_CODE_BYTES = 32
_SILENCE_S = 10  # of a machine, after which it counts as gone


class Channel:
    """Messages are trees, in both directions.

    Each carries a code that its sender, its number and its bytes make with a key of this connection
    (HMAC-SHA256): who sits on the line can read messages, but can't change, repeat or add any.

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
        self._sent, self._received = itertools.count(), itertools.count()
        self._is_driver = is_driver
        try:
            self._key = prove(self.connection, token, is_driver)
        except BaseException:
            self.connection.close()
            raise

    def send(self, *message: Any) -> None:
        """Send a message.

        Raises:
            OSError: The other side has gone.
        """
        data = encode(message)
        code = self._code(self._is_driver, next(self._sent), data)
        self.connection.send_bytes(b"".join((code, data)))

    def receive(self) -> tuple[Any, ...]:
        """The next message.

        Raises:
            EOFError: The other side has closed.
            OSError: It has gone, or a message isn't its own.
        """
        received = self.connection.recv_bytes()
        code, data = received[:_CODE_BYTES], received[_CODE_BYTES:]
        expected = self._code(not self._is_driver, next(self._received), data)
        if not hmac.compare_digest(code, expected):
            raise ConnectionError("a message was changed on its way, or isn't from the other side")
        message: tuple[Any, ...] = decode(data)
        return message

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(OSError):
            self.connection.close()

    def _code(self, from_driver: bool, number: int, data: bytes) -> bytes:
        head = (b"driver" if from_driver else b"worker") + number.to_bytes(8, "little")
        made = hmac.new(self._key, head, hashlib.sha256)
        made.update(data)
        return made.digest()


def _notice_silence(connected: socket.socket) -> None:
    """Have the kernel ask a silent machine whether it is still there."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    options = {"TCP_KEEPIDLE": 4, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
    options["TCP_USER_TIMEOUT"] = 1000 * _SILENCE_S
    for name, value in options.items():
        if hasattr(socket, name):  # not all systems have all of them
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
