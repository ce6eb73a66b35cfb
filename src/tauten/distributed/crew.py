"""Workers that keep state from one message to the next; one that is lost is brought up again."""

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tauten.core.errors import WorkerError
from tauten.core.files import whole_file
from tauten.core.temporary import TemporaryFolder
from tauten.distributed.engine import Answered, Engine, Failed, Joined, Lost
from tauten.distributed.job import Job
from tauten.distributed.wire import decode, encode

_TICK_S = 0.2
_crews = itertools.count()  # of this process: workers may still answer an earlier one
_LOSSES = 6  # of workers between two answers, after which a crew gives up


class Crew:
    """Members, each of whom a worker plays; several by one where there are too few.

    A message goes to all members. Messages are kept on disk: whoever takes over a lost worker's
    members gives them all that they were told, in order, which brings them to the same state.

    Args:
        engine: Its workers; closed by the caller.
        job: Called with (member, message).
        members: How many.
    """

    def __init__(self, engine: Engine, job: Job, members: int):
        self._engine, self._members = engine, range(members)
        self._player: dict[int, str] = {}
        self._ready: list[str] = []
        self._told: list[list[Path]] = []  # messages so far: a file for each member
        self._folder = TemporaryFolder()
        self._name, self._ids = f"crew{next(_crews)}/", itertools.count()
        self._awaited: dict[str, int] = {}  # members by the id of the message that they are at
        self._answers: dict[int, Any] = {}
        self._messages: Sequence[Any] = ()
        self.lost: list[Lost] = []
        engine.load(job)

    def ask(self, messages: Sequence[Any], keep: bool = True) -> list[Any]:
        """What each member answers to its message, by members; nothing to those without one.

        Args:
            messages: One a member; None for none.
            keep: The messages change members' state, and are told again to a new player.
        Raises:
            WorkerError: No worker is left.
            Exception: Whatever a member raised.
        """
        self._messages, self._awaited = messages, {}
        self._answers = {m: None for m in self._members if messages[m] is None}
        losses = len(self.lost)
        for member in self._members:
            if member in self._player:
                self._tell(member)
        while len(self._answers) < len(self._members):
            self._cast()
            # Failures last: one raises, and a loss beside it, which it comes of, must be known.
            for event in sorted(self._engine.wait(_TICK_S), key=lambda e: isinstance(e, Failed)):
                self._act(event)
            if self._engine.is_hopeless or len(self.lost) - losses >= _LOSSES:
                why = self.lost[-1].why if self.lost else "none could be started"
                raise WorkerError(f"no worker is left: {why}")
        if keep:
            self._told.append([self._kept(message) for message in messages])
        return [self._answers[member] for member in self._members]

    @property
    def workers(self) -> int:
        """Workers that play a member."""
        return len(set(self._player.values()))

    def has_lost(self, known: int, timeout_s: float = 0.0) -> bool:
        """Whether more workers were lost than are known of; waits so long for news of one."""
        ends_s = time.monotonic() + timeout_s
        while len(self.lost) == known and time.monotonic() < ends_s:
            for event in self._engine.wait(_TICK_S):
                if isinstance(event, Joined | Lost):
                    self._act(event)
        return len(self.lost) > known

    def close(self) -> None:
        """Forget the messages."""
        self._folder.close()

    def _cast(self) -> None:
        """Have members without a player played, once all workers that are coming are there."""
        missing = [member for member in self._members if member not in self._player]
        if not missing or not self._ready or len(self._ready) < self._expected():
            return
        for member in missing:
            parts = {name: list(self._player.values()).count(name) for name in self._ready}
            self._player[member] = min(sorted(self._ready), key=parts.__getitem__)
            for told in self._told:
                self._submit(member, decode(told[member].read_bytes()))
            self._tell(member)

    def _expected(self) -> int:
        """Workers to wait for before members are cast: those that never were lost."""
        return 1 if self._player else min(len(self._members), self._engine.size)

    def _act(self, event: Any) -> None:
        if isinstance(event, Joined):
            self._ready.append(event.worker)
        elif isinstance(event, Lost):
            self.lost.append(event)
            self._ready = [name for name in self._ready if name != event.worker]
            gone = [m for m, player in self._player.items() if player == event.worker]
            for member in gone:
                del self._player[member]
                self._awaited = {i: m for i, m in self._awaited.items() if m != member}
        elif isinstance(event, Failed) and event.id.startswith(self._name if event.id else ""):
            raise event.error from RuntimeError(f"in worker {event.worker}:\n{event.where}")
        elif isinstance(event, Answered) and event.id in self._awaited:
            self._answers[self._awaited.pop(event.id)] = event.result

    def _tell(self, member: int) -> None:
        """Give a member the message that all are at, unless it has answered that."""
        if member not in self._answers:
            self._awaited[self._submit(member, self._messages[member])] = member

    def _submit(self, member: int, message: Any) -> str:
        id = f"{self._name}{next(self._ids)}"
        self._engine.submit(self._player[member], id, (member, message))
        return id

    def _kept(self, message: Any) -> Path:
        file = self._folder.path / str(next(self._ids))
        with whole_file(file) as opened:
            opened.write(encode(message))
        return file


def dealt_out(shards: int, members: int) -> Iterator[range]:
    """Neighbouring shards for each member, as evenly as can be."""
    starts = [shards * member // members for member in range(members + 1)]
    return (range(one, other) for one, other in itertools.pairwise(starts))
