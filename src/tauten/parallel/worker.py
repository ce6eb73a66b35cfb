"""What a worker process does: hold a part of a model, and answer calls until it is closed.

Messages are pickled, but only ever between this process and the one that started it, over a socket
that no other process can open.
"""

import contextlib
import gc
import os
import select
import signal
import threading
import traceback
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
import torch.distributed as dist

from tauten.models.allocator import return_freed_memory
from tauten.parallel.by_value import UnsendableError, dumps, loads, receive, send
from tauten.parallel.parcel import Parcel
from tauten.parallel.shared_file import SharedFile, Tree

_COLLECTIVE_TIMEOUT = timedelta(hours=1)  # a dead peer is noticed by the parent, long before


@dataclass(frozen=True)
class Place:
    """Where a worker stands among those that compute a call together.

    Attributes:
        rank: From 0 on.
        world: How many there are.
        threads: For its computations.
        device: `cpu`, or a GPU of its own.
    """

    rank: int
    world: int
    threads: int
    device: str


class Part(Protocol):
    """What a worker is to hold of a model; one class a technique."""

    def load(self, parcel: Parcel, place: Place) -> "Runner":
        """Load it, in the worker."""
        ...


class Runner(Protocol):
    """A loaded part."""

    def __call__(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute a call; `NotImplemented` from all workers of a group but one."""
        ...


@dataclass(frozen=True)
class Load:
    """Message: load a part; `rendezvous` is a file where the group's workers meet."""

    part: Part
    parcel: Parcel
    place: Place
    rendezvous: Path
    inputs: Path
    outputs: Path
    dtype: torch.dtype = field(default_factory=torch.get_default_dtype)  # of what a model makes


@dataclass(frozen=True)
class Call:
    """Message: compute a call whose (args, kwargs) lie in the group's file of inputs."""

    method: str
    inputs: Tree


@dataclass(frozen=True)
class Done:
    """Answer: the outputs lie in the group's file of outputs; None where another answers."""

    outputs: Tree | None


@dataclass(frozen=True)
class Failed:
    """Answer: the model raised an error; `where` is its traceback."""

    error: BaseException
    where: str


def main(control: int, log: int) -> NoReturn:
    """Entry of the process: descriptors of its connection and of its log."""
    os.dup2(log, 2)
    os.setsid()  # Linux shares processors out by sessions: each worker counts as much as others
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(control,), daemon=True).start()
    status = 1
    try:
        _serve(Connection(control))
        status = 0
    except (EOFError, ConnectionError):
        status = 0  # the parent has closed
    except BaseException:
        traceback.print_exc()  # into the log, whose end the parent's error quotes
    os._exit(status)  # nothing of the launcher, whose copy this is, must run at exit


def _end_with_parent(control: int) -> None:
    """End at once when the parent does, even amid a computation; the kernel closes its socket."""
    hang_up = select.poll()
    hang_up.register(control, 0)
    hang_up.poll()
    os._exit(1)


def _serve(connection: Connection) -> None:
    load = receive(connection)
    while True:
        load = _serve_part(connection, load)
        gc.collect()  # modules and their hooks refer to each other: free them before the next
        return_freed_memory()


def _serve_part(connection: Connection, load: Load) -> Load:
    """Load a part and answer calls, until another is to be loaded."""
    torch.set_num_threads(load.place.threads)
    torch.set_default_dtype(load.dtype)
    inputs, outputs = SharedFile(load.inputs), SharedFile(load.outputs)
    with contextlib.ExitStack() as stack:
        if load.place.world > 1:
            _meet(load)
            stack.callback(dist.destroy_process_group)
        runner, answer = _loaded(load)
        send(connection, answer)
        while True:
            message = receive(connection)
            if isinstance(message, Load):
                inputs.close()
                outputs.close()
                return message
            answer = _answer(runner, message, inputs, outputs)
            try:
                send(connection, answer)
            except UnsendableError as error:
                send(connection, Failed(error, traceback.format_exc()))


def _loaded(load: Load) -> tuple[Runner, Done | Failed]:
    try:
        return load.part.load(load.parcel, load.place), Done(None)
    except Exception as error:  # raised again in the process that asked for it
        return _unloaded, Failed(_portable(error), traceback.format_exc())


def _unloaded(method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise RuntimeError("this worker holds no part of a model")


def _answer(runner: Runner, call: Call, inputs: SharedFile, outputs: SharedFile) -> Done | Failed:
    args, kwargs = inputs.read(call.inputs)
    try:
        made = runner(call.method, args, kwargs)
        return Done(None if made is NotImplemented else outputs.write(made))
    except Exception as error:  # whatever the model raises is raised again where it was called
        return Failed(_portable(error), traceback.format_exc())


def _portable(error: Exception) -> BaseException:
    """The error if another process can make it of its pickle, else one that says the same."""
    try:
        loads(dumps(error))
    except Exception:  # pickling runs code of whoever wrote the error's class
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _meet(load: Load) -> None:
    backend = "nccl" if load.place.device.startswith("cuda") else "gloo"
    if backend == "gloo" and os.path.isdir("/sys/class/net/lo"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all workers are on this machine
    if backend == "nccl":
        torch.cuda.set_device(load.place.device)
    dist.init_process_group(
        backend,
        init_method=f"file://{load.rendezvous}",
        rank=load.place.rank,
        world_size=load.place.world,
        timeout=_COLLECTIVE_TIMEOUT,
    )
