"""Workers on the machines of a hosts file, started by a remote shell; they call back here."""

import builtins
import contextlib
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import IO, Any

from tauten.core import errors
from tauten.core.errors import InputError, TautenError
from tauten.core.printing import logger
from tauten.distributed.channel import Channel
from tauten.distributed.engine import Answered, Event, Failed, Joined, Lost
from tauten.distributed.hosts import LOOPBACK, Host, address_of
from tauten.distributed.job import Job
from tauten.distributed.token import RefusedError

SHELL = "ssh -o BatchMode=yes {host}"
_STARTS = 3  # in a row that may fail before a worker is given up
_LOG_BYTES = 2000
_log = logger(__name__)


@dataclass
class _Slot:
    """A worker to be: its command, and its process once it runs."""

    command: list[str]
    log: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0


class HostEngine:
    """Starts a process for each slot, anew where one ends, and hears from those that call.

    The port is open on one address of this machine only, and nobody is heard there who doesn't
    know the token. The token reaches workers through the standard input of the remote shell.

    Args:
        hosts: Where to start workers.
        token: Of the cluster.
        interface: Name or address of this machine's interface; loopback by default, which serves
            only for workers on this machine.
        shell: What runs a command on a host.
        python: Interpreter on the hosts; by default as here.
        threads: Of each worker.
    Raises:
        InputError: Workers on other machines couldn't reach the interface.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        token: bytes,
        interface: str = LOOPBACK,
        shell: str = SHELL,
        python: str = sys.executable,
        threads: int = 1,
    ):
        self.address, self._token = address_of(interface), token
        if self.address.startswith("127.") and not all(host.is_local for host in hosts):
            raise InputError(
                "workers on other machines can't reach loopback: pass interface=, the name or "
                "address of the network interface that they reach this machine by"
            )
        self._listener = socket.create_server((self.address, 0))
        self.port: int = self._listener.getsockname()[1]
        self._slots: dict[str, _Slot] = {}
        for host in hosts:
            for rank in range(host.slots):
                name = f"{host.name}/{rank}"
                arguments = [self.address, str(self.port), name, str(threads), str(rank)]
                words = [python, "-m", "tauten.distributed.host_worker", *arguments]
                prefix = [] if host.is_local else shlex.split(shell.format(host=host.name))
                remote = words if host.is_local else [shlex.quote(word) for word in words]
                self._slots[name] = _Slot([*prefix, *remote])
        self._channels: dict[str, Channel] = {}
        self._new: list[tuple[str, Channel]] = []
        self._bell, self._ring = socket.socketpair()
        self._job: Job | None = None
        self._loads = 0
        self._events: list[Event] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()
        for slot in self._slots.values():
            self._start(slot)

    @property
    def size(self) -> int:
        """Workers that weren't given up."""
        return max(1, len(self._slots))

    @property
    def pids(self) -> list[int]:
        """Process ids of workers on this machine, or of the shells that started them."""
        return [slot.process.pid for slot in self._slots.values() if slot.process is not None]

    @property
    def is_hopeless(self) -> bool:
        """Whether no worker is left, nor being started."""
        return not (self._channels or self._slots or self._events or self._new)

    def load(self, job: Job) -> None:
        """As `Engine.load`."""
        self._job, self._loads = job, self._loads + 1
        for name in list(self._channels):
            self._send_job(name, job)

    def submit(self, worker: str, id: str, payload: Any) -> None:
        """As `Engine.submit`."""
        self._send(worker, "task", id, payload)

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """As `Engine.wait`."""
        names = {channel.connection: name for name, channel in self._channels.items()}
        for ready in wait([self._bell, *names], 0 if self._events else timeout_s):
            if ready is self._bell:
                self._bell.recv(1)
                self._admit()
            else:
                self._hear(names[ready])  # type: ignore[index]
        for name, slot in list(self._slots.items()):
            gone = slot.process is not None and slot.process.poll() is not None
            if gone and name not in self._channels:
                self._restart(name)
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """End the workers."""
        self._listener.close()
        for channel in self._channels.values():
            channel.close()
        for slot in self._slots.values():
            if slot.process is not None:
                _end(slot.process)
            slot.log.close()
        self._channels, self._slots = {}, {}
        self._bell.close()
        self._ring.close()

    def _accept(self) -> None:
        """Take callers, each in a thread: one that says nothing keeps no other waiting."""
        while True:
            try:
                connected, peer = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._greet, args=(connected, peer), daemon=True).start()

    def _greet(self, connected: socket.socket, peer: Any) -> None:
        try:
            channel = Channel(connected, self._token, is_driver=True)
            _, name = channel.receive()
        except RefusedError as error:
            _log.warning("refused a worker at %s: %s", peer[0], error)
            return
        except (OSError, EOFError, ValueError):
            return  # it has gone again
        with self._lock, contextlib.suppress(OSError):
            self._new.append((str(name), channel))
            self._ring.send(b"!")

    def _admit(self) -> None:
        with self._lock:
            new, self._new = self._new, []
        for name, channel in new:
            if name in self._channels:
                channel.close()
                continue
            self._channels[name] = channel
            if self._job is not None:
                self._send_job(name, self._job)

    def _send_job(self, name: str, job: Job) -> None:
        self._send(name, "load", self._loads, job.kind, job.settings)

    def _send(self, name: str, *message: Any) -> None:
        channel = self._channels.get(name)
        try:
            if channel is not None:
                channel.send(*message)
        except OSError as error:
            self._lose(name, str(error))

    def _hear(self, name: str) -> None:
        try:
            verb, *rest = self._channels[name].receive()
        except (EOFError, OSError) as error:
            self._lose(name, str(error) or "it closed the connection")
            return
        if verb == "joined":
            if rest != [self._loads]:
                return  # it has opened an earlier job
            if name in self._slots:
                self._slots[name].failures = 0
            self._events.append(Joined(name))
        elif verb == "answer":
            self._events.append(Answered(name, *rest))
        else:
            id, kind, text, where = rest
            self._events.append(Failed(name, id, _error(kind, text), where))

    def _lose(self, name: str, why: str) -> None:
        self._channels.pop(name).close()
        self._events.append(Lost(name, f"worker {name}: {why}"))

    def _restart(self, name: str) -> None:
        slot = self._slots[name]
        slot.failures += 1
        if slot.failures < _STARTS:
            self._start(slot)
            return
        assert slot.process is not None, "it has ended"
        code, log = slot.process.returncode, _tail(slot.log)
        why = f"worker {name} ended with code {code}; the end of its log:\n{log}"
        self._events.append(Lost(name, why))
        _end(slot.process)
        slot.log.close()
        del self._slots[name]

    def _start(self, slot: _Slot) -> None:
        if slot.process is not None:
            _end(slot.process)
        slot.process = subprocess.Popen(
            slot.command, stdin=subprocess.PIPE, stdout=slot.log, stderr=slot.log
        )
        assert slot.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already; `wait` sees that
            slot.process.stdin.write(self._token + b"\n")
            slot.process.stdin.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let a worker whose connection is closed end by itself, else end it."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: IO[bytes]) -> str:
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - _LOG_BYTES))
    return log.read().decode(errors="replace").strip() or "(its log is empty)"


def _error(kind: str, text: str) -> Exception:
    """An error that a worker described: an exception of Python or Tauten, by its name."""
    for place in (errors, builtins):
        found = getattr(place, kind, None)
        if isinstance(found, type) and issubclass(found, TautenError | Exception):
            with contextlib.suppress(TypeError):
                return found(text)
    return RuntimeError(f"{kind}: {text}")
