"""Start worker processes in milliseconds.

Importing PyTorch and transformers takes seconds. One process, the launcher, imports them once and
then forks a worker whenever it is asked to; it has a single thread and computes nothing itself, so
its copies start clean. Its only contact is a socket: when the process that started it ends, in
whatever way, the socket closes, and the launcher tidies up and ends too.
"""

import atexit
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import BinaryIO

from tauten.core.errors import TautenError
from tauten.core.temporary import SHARED_MEMORY, TemporaryFolder

_PATIENCE_S = 2.0  # for a process that has closed its connection to end
_FORK = b"fork"
_SHARED_IMPORTS = ("transformers.modeling_utils",)  # slow; imported once if models may need them
_ROOM_BYTES = 1 << 28  # a container's default of 64 MB is too little


class Launcher:
    """A process that forks workers; see the module.

    Attributes:
        folder: For what processes share; removed when the last of them ends.
    """

    def __init__(self) -> None:
        self._held = memory_folder()
        self.folder = self._held.path
        self._lock = threading.Lock()
        ours, theirs = socket.socketpair()
        # Workers import what this process could, by the same paths; threads of a BLAS library would
        # not survive a fork. A session of its own keeps Ctrl-C for this process, which ends the
        # others; standard input stays with this process too.
        paths = [path or os.getcwd() for path in sys.path]
        entry = "from tauten.parallel.launcher import main; main()"
        told = [str(theirs.fileno()), str(self.folder)]
        ready = [name for name in _SHARED_IMPORTS if name in sys.modules]
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:] = {paths!r}; {entry}", *told, *ready],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        theirs.close()
        self._socket = ours

    def fork(self, control: socket.socket, log: BinaryIO) -> int:
        """Start a worker.

        Args:
            control: Its end of a connection; this process closes its copy.
            log: File that its standard error goes to.
        Returns:
            Its process id.
        """
        with self._lock:
            try:
                socket.send_fds(self._socket, [_FORK], [control.fileno(), log.fileno()])
                answer = self._socket.recv(32)
            except OSError:
                answer = b""
        control.close()
        if not answer:
            raise TautenError("the process that starts workers has ended; call parallelize again")
        return int(answer)

    def exit_code(self, pid: int) -> int | None:
        """Wait for a worker that is ending, or end it; None where the launcher has ended too."""
        with self._lock:
            try:
                self._socket.send(str(pid).encode())
                answer = self._socket.recv(32)
            except OSError:
                answer = b""
        return int(answer) if answer else None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can still start workers."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it, at once where it is still importing."""
        self._socket.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # it leads its workers' session
            self._process.wait()
        self._held.close()


_launcher: Launcher | None = None
_owner = 0
_starting = threading.Lock()


def the_launcher() -> Launcher:
    """The launcher of this process; a new one where there is none or it was killed."""
    global _launcher, _owner
    with _starting:
        if _launcher is None or _owner != os.getpid() or not _launcher.is_alive:
            _launcher, _owner = Launcher(), os.getpid()
            atexit.register(_launcher.close)
        return _launcher


def memory_folder() -> TemporaryFolder:
    """A new folder in memory, or on disk where the memory file system is small."""
    place = None
    if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free >= _ROOM_BYTES:
        place = SHARED_MEMORY
    return TemporaryFolder(place)


def _serve(channel: socket.socket) -> None:
    import transformers.modeling_utils  # noqa: F401 (most models are its, so no copy imports it)

    from tauten.parallel import worker

    while True:
        message, descriptors, *_ = socket.recv_fds(channel, 32, 2)
        if not message:
            return
        if message == _FORK:
            pid = os.fork()
            if pid == 0:
                channel.close()
                worker.main(*descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            channel.send(str(pid).encode())
        else:
            channel.send(str(_collect(int(message))).encode())


def _collect(pid: int) -> int:
    """Exit code of a child, which is killed if it doesn't end soon; negative is a signal."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def main() -> None:
    """Entry of the process: descriptor of its socket, the folder to remove, what to import."""
    channel, folder, *names = sys.argv[1:]
    try:
        for name in names:
            importlib.import_module(name)
        with socket.socket(fileno=int(channel)) as opened:
            _serve(opened)
    except ConnectionError:
        pass  # the process that asked for a worker has ended meanwhile
    finally:
        shutil.rmtree(folder, ignore_errors=True)
