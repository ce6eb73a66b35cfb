"""Workers as actors of a Ray cluster, which places them and starts them anew."""

import os
from collections.abc import Sequence
from typing import Any

from tauten.core.errors import InputError, first_line
from tauten.distributed.engine import Answered, Event, Failed, Joined, Lost
from tauten.distributed.hosts import ADDRESS
from tauten.distributed.job import Job, Opened
from tauten.distributed.wire import decode, encode

_HINT = "Ray isn't installed here: pip install 'tauten[ray]', or pass a hosts file or no cluster"
_RESTARTS = 3  # of an actor


class RayWorker:
    """What an actor does; trees come and go as bytes, as between other workers."""

    def __init__(self) -> None:
        import ray

        os.environ[ADDRESS] = ray.util.get_node_ip_address()
        self._opened: Opened | None = None

    def load(self, kind: str, settings: bytes) -> None:
        """Open a job."""
        self._opened = Job(kind, decode(settings)).open()

    def task(self, payload: bytes) -> bytes:
        """Do a task."""
        assert self._opened is not None, "a job is opened first"
        return encode(self._opened(decode(payload)))


class RayEngine:
    """An actor for each CPU or GPU of the cluster, spread over its nodes.

    Args:
        address: `auto` for the cluster of this machine, `ray://host:port`, or `host:port`.
        workers: How many actors; by default one for each CPU, or GPU where there are some.
    Raises:
        InputError: Ray isn't installed, or no cluster answers.
    """

    def __init__(self, address: str, workers: int | None = None):
        try:
            import ray
        except ImportError:
            raise InputError(_HINT) from None
        self._ray = ray
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # a cluster without tokens is for anyone
        try:
            ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"no Ray cluster answers at {address} ({error}); start one with "
                "`ray start --head`, and give this process its token (RAY_AUTH_TOKEN_PATH)"
            ) from None
        found = ray.cluster_resources()
        on_gpus = found.get("GPU", 0) >= 1
        options: dict[str, Any] = {"num_gpus": 1} if on_gpus else {"num_cpus": 1}
        self._options = {**options, "scheduling_strategy": "SPREAD"}
        count = workers or int(found.get("GPU" if on_gpus else "CPU", 1))
        self._actors: dict[str, Any] = {}
        self._refs: dict[Any, tuple[str, str]] = {}  # worker, and id of its task
        self._starts = dict.fromkeys([f"ray{number}" for number in range(count)], 0)
        self._job: tuple[str, bytes] | None = None
        self._events: list[Event] = []

    @property
    def size(self) -> int:
        """Workers that weren't given up."""
        return len(self._starts)

    @property
    def pids(self) -> list[int]:
        """None: Ray's workers are its own."""
        return []

    @property
    def is_hopeless(self) -> bool:
        """Whether all workers were given up."""
        return not self._starts and not self._events

    def load(self, job: Job) -> None:
        """As `Engine.load`."""
        self._job = (job.kind, encode(job.settings))
        self._refs, self._events = {}, []
        for name in self._starts:
            self._start(name)

    def submit(self, worker: str, id: str, payload: Any) -> None:
        """As `Engine.submit`."""
        if worker in self._actors:
            self._refs[self._actors[worker].task.remote(encode(payload))] = (worker, id)

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """As `Engine.wait`."""
        if self._refs and not self._events:
            ready, _ = self._ray.wait(list(self._refs), num_returns=1, timeout=timeout_s)
            more, _ = self._ray.wait(list(self._refs), num_returns=len(self._refs), timeout=0)
            for ref in dict.fromkeys([*ready, *more]):
                if ref in self._refs:
                    self._take(ref)
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """End the actors; the cluster goes on."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors = {}

    def _start(self, name: str) -> None:
        assert self._job is not None, "a job comes first"
        if name not in self._actors:
            self._actors[name] = self._ray.remote(RayWorker).options(**self._options).remote()
        kind, settings = self._job
        self._refs[self._actors[name].load.remote(kind, settings)] = (name, "")

    def _take(self, ref: Any) -> None:
        name, id = self._refs.pop(ref)
        try:
            made = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.as_instanceof_cause()
            self._events.append(Failed(name, id, cause, str(error)))
        except self._ray.exceptions.RayError as error:  # its actor or its node has gone
            self._lose(name, first_line(error))
        else:
            self._events.append(Answered(name, id, decode(made)) if id else Joined(name))

    def _lose(self, name: str, why: str) -> None:
        """Start an actor anew, where Ray finds room."""
        self._refs = {ref: at for ref, at in self._refs.items() if at[0] != name}
        self._events.append(Lost(name, why))
        del self._actors[name]
        self._starts[name] += 1
        if self._starts[name] < _RESTARTS:
            self._start(name)
        else:
            del self._starts[name]
