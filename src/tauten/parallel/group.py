"""Worker processes that compute a call together, as the parent sees them."""

import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tauten.parallel.by_value import receive, send
from tauten.parallel.launcher import the_launcher
from tauten.parallel.parcel import Parcel
from tauten.parallel.shared_file import SharedFile
from tauten.parallel.worker import Call, Done, Failed, Load, Part, Place

_LOG_LINES = 12
_PEER_S = 1.0  # for the end of a peer to show, once a worker has failed


class WorkerEnded(Exception):
    """A worker's process has ended though nobody asked it to."""

    def __init__(self, rank: int, exit_code: int | None, log: str):
        self.rank, self.exit_code, self.log = rank, exit_code, log
        super().__init__(rank, exit_code, log)

    def describe(self) -> str:
        """Exit code and the end of the log, for people."""
        code = self.exit_code
        if code is None:
            ending = "ended"
        else:
            ending = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        last = "\n".join(self.log.strip().splitlines()[-_LOG_LINES:]) or "(its log is empty)"
        return f"worker {self.rank} {ending}; the end of its log:\n{last}"


class Worker:
    """One process."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        self._launcher = the_launcher()
        self.pid = self._launcher.fork(theirs, self._log)
        self.connection = Connection(ours.detach())

    def end(self) -> tuple[int | None, str]:
        """Wait for it, or end it; its exit code and log."""
        self.connection.close()
        code = self._launcher.exit_code(self.pid)
        with self._log:
            self._log.seek(0)
            return code, self._log.read().decode(errors="replace")


@dataclass(frozen=True)
class Assignment:
    """What one worker of a group is to hold."""

    part: Part
    place: Place


class Group:
    """Workers with one file of inputs and one of outputs between them.

    Args:
        folder: Of its own, for files.
        parcel: The model.
    Attributes:
        is_ready: All have loaded their parts.
    """

    def __init__(self, folder: Path, parcel: Parcel):
        folder.mkdir()
        self._folder, self._parcel = folder, parcel
        self._inputs = SharedFile(folder / "in")
        self._outputs: list[SharedFile] = []  # of each worker
        self._workers: list[Worker] = []
        self._answers: dict[int, Done | Failed] = {}
        self._loads = 0
        self.is_ready = False

    def load(self, assignments: Sequence[Assignment]) -> None:
        """Have workers load parts; more are started, or some ended, as it takes.

        `receive` tells when they are ready.
        """
        while len(self._workers) > len(assignments):
            self._workers.pop().end()
        while len(self._workers) < len(assignments):
            self._workers.append(Worker())
        while len(self._outputs) < len(assignments):
            self._outputs.append(SharedFile(self._folder / f"out{len(self._outputs)}"))
        self._loads += 1
        rendezvous = self._folder / f"rendezvous{self._loads}"
        self.is_ready, self._answers = False, {}
        for rank, (worker, wanted) in enumerate(zip(self._workers, assignments, strict=True)):
            files = (rendezvous, self._folder / "in", self._folder / f"out{rank}")
            load = Load(wanted.part, self._parcel, wanted.place, *files)
            self._send(rank, worker, load)

    @property
    def connections(self) -> list[Connection]:
        """Of all workers that have yet to answer."""
        return [w.connection for rank, w in enumerate(self._workers) if rank not in self._answers]

    @property
    def is_running(self) -> bool:
        """Whether its processes were started and not ended since."""
        return bool(self._workers)

    @property
    def pids(self) -> list[int]:
        """Process ids."""
        return [worker.pid for worker in self._workers]

    def submit(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Have it compute a call.

        Raises:
            WorkerEnded: A worker has ended.
        """
        self._answers = {}
        call = Call(method, self._inputs.write((args, kwargs)))
        for rank, worker in enumerate(self._workers):
            self._send(rank, worker, call)

    def receive(self, ready: Sequence[Any]) -> Done | Failed | None:
        """Take answers from connections that have some.

        Returns:
            Whether it worked, once all have answered or one has failed; None before.
        Raises:
            WorkerEnded: A worker has ended.
        """
        for rank, worker in enumerate(self._workers):
            if worker.connection in ready and rank not in self._answers:
                self._answers[rank] = self._take(rank, worker)
        failed = next((a for a in self._answers.values() if isinstance(a, Failed)), None)
        if failed is not None:
            self._check_peers()
            return failed
        if len(self._answers) < len(self._workers):
            return None
        self.is_ready = True
        return self._answers[0]

    def outputs(self) -> Any:
        """Outputs of the call; their tensors are views until the next call is submitted."""
        (made,) = self.all_outputs()
        return made

    def all_outputs(self) -> list[Any]:
        """Outputs of the workers that have some, by rank."""
        answers = sorted(self._answers.items())
        return [
            self._outputs[rank].read(answer.outputs)
            for rank, answer in answers
            if isinstance(answer, Done) and answer.outputs is not None
        ]

    def end(self) -> None:
        """End its processes."""
        for worker in self._workers:
            worker.connection.close()  # all at once: none waits for a peer that has gone
        for worker in self._workers:
            worker.end()
        self._workers, self.is_ready = [], False

    def close(self) -> None:
        """End its processes and forget its files."""
        self.end()
        for file in (self._inputs, *self._outputs):
            file.close()

    def _check_peers(self) -> None:
        """A worker may have failed only because a peer of it ended: then that is what counts."""
        for rank, worker in enumerate(self._workers):
            if rank not in self._answers and worker.connection.poll(_PEER_S):
                self._answers[rank] = self._take(rank, worker)

    def _send(self, rank: int, worker: Worker, message: Load | Call) -> None:
        try:
            send(worker.connection, message)
        except OSError:
            raise self._ended(rank, worker) from None

    def _take(self, rank: int, worker: Worker) -> Done | Failed:
        try:
            answer: Done | Failed = receive(worker.connection)
        except (EOFError, OSError):
            raise self._ended(rank, worker) from None
        return answer

    def _ended(self, rank: int, worker: Worker) -> WorkerEnded:
        self._workers.remove(worker)
        code, log = worker.end()
        self.end()
        return WorkerEnded(rank, code, log)
