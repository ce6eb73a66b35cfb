"""The job of holding a part of a model and computing calls together with other machines."""

import os
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from tauten.distributed.blueprint import unpacked
from tauten.distributed.hosts import ADDRESS, LOOPBACK, interface_of
from tauten.distributed.inference import own_device
from tauten.parallel.data_parallel import Replica
from tauten.parallel.links import Probe
from tauten.parallel.parcel import Parcel
from tauten.parallel.pipeline_parallel import ChainShape
from tauten.parallel.share import Share
from tauten.parallel.worker import Part, Place, Runner

_TIMEOUT = timedelta(minutes=30)


class LayoutWorker:
    """A worker of a layout.

    Args:
        model: As `blueprint` makes it.
    """

    def __init__(self, model: dict[str, Any]):
        self._parcel = Parcel(str(model.get("path") or unpacked(model["files"])))
        self._runner: Runner | None = None
        self._listener: socket.socket | None = None

    def __call__(self, payload: Any) -> Any:
        """Take a message to this member: a verb, and its arguments."""
        _, (verb, *arguments) = payload
        return getattr(self, verb)(*arguments)

    def meet(self) -> tuple[str, int]:
        """Open a port, on one address only, where the others of a group may meet."""
        address = os.environ.get(ADDRESS, LOOPBACK)
        self._listener = socket.create_server((address, 0))
        return address, self._listener.getsockname()[1]

    def hold(self, part: dict[str, Any] | None, place: dict[str, Any], where: Any) -> None:
        """Load a part, and meet the others of the group."""
        if dist.is_initialized():
            dist.destroy_process_group()
        self._runner = None
        if part is None:
            return
        own = Place(**{**place, "device": str(own_device())})
        if own.world > 1:
            self._join(own, *where)
        self._runner = _part(part).load(self._parcel, own)

    def call(self, method: str, args: Any, kwargs: Any) -> Any:
        """Compute a call; None from all but one of a group."""
        if self._runner is None:
            return None
        made = self._runner(method, args, kwargs)
        return None if made is NotImplemented else {"outputs": made}

    def _join(self, place: Place, host: str, port: int) -> None:
        name = interface_of(os.environ.get(ADDRESS, LOOPBACK))
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = name
        options: dict[str, Any] = {}
        if place.rank == 0:
            assert self._listener is not None, "members meet first"
            options = {"is_master": True, "master_listen_fd": self._listener.detach()}
        store: Any = torch.distributed.TCPStore(  # type: ignore[attr-defined]
            host, port, place.world, timeout=_TIMEOUT, **options
        )
        backend = "nccl" if place.device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world)


def plain_part(part: Part) -> dict[str, Any]:
    """A part as plain data."""
    if isinstance(part, Share):
        shape = None if part.shape is None else vars(part.shape)
        return {**vars(part), "shape": shape}
    return {"name": type(part).__name__}


def _part(plain: dict[str, Any]) -> Part:
    if "name" in plain:
        return Probe() if plain["name"] == "Probe" else Replica()
    shape = None if plain["shape"] is None else ChainShape(**plain["shape"])
    return Share(**{**plain, "shape": shape})
