"""Commands that start work on many machines, with the options that otherwise bite.

gloo and NCCL choose a network interface by the host's name, which is often loopback or a bridge of
containers; torchrun's c10d rendezvous times out where no machine takes its own address for that of
the host; a Ray cluster without tokens runs anyone's code.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tauten.core.errors import InputError
from tauten.distributed.hosts import address_of, read_hosts
from tauten.distributed.token import ENVIRONMENT

_PORT = 29500
_TAUTEN = ("optimize", "quantize", "compress", "apply")  # commands that take workers


@dataclass(frozen=True)
class Launch:
    """A command, and what is added to its environment."""

    command: tuple[str, ...]
    environment: dict[str, str]


def plan_launch(
    nodes: str,
    arguments: Sequence[str],
    interface: str | None = None,
    rendezvous: str | None = None,
    processes: int = 1,
    token: Path | None = None,
    shell: str | None = None,
) -> Launch:
    """What starts a command of Tauten, or a script, on some nodes.

    Args:
        nodes: A hosts file or the address of a Ray cluster (`ray://`, `http://`), for a command of
            Tauten; for a script a number, or `least:most`, of machines, each of which runs this.
        arguments: A command of Tauten with its options, or a script with its own.
        interface: Of this machine, that others reach it by; name or address.
        rendezvous: `host:port` where torchrun's agents meet, on one of the machines.
        processes: Of each machine, under torchrun.
        token: File of the cluster's token.
        shell: Remote shell, with `{host}`.
    Raises:
        InputError: These don't go together.
    """
    if not arguments:
        raise InputError("launch what? write a command such as `optimize MODEL`, or a script")
    environment = _interface(interface)
    if token is not None:
        environment[ENVIRONMENT] = environment["RAY_AUTH_TOKEN_PATH"] = str(token)
    if re.fullmatch(r"\d+(:\d+)?", nodes):
        return _torchrun(nodes, arguments, interface, rendezvous, processes, environment)
    if arguments[0] not in _TAUTEN:
        raise InputError(
            f"{arguments[0]}: on a hosts file or Ray these run: {', '.join(_TAUTEN)}; for a script "
            "write the number of nodes, and run this on each of them"
        )
    if nodes.startswith(("ray://", "http://", "https://")):
        command = ("ray", "job", "submit", "--address", nodes, "--", "tauten", *arguments)
        return Launch((*command, "--workers", "auto"), {**environment, "RAY_AUTH_MODE": "token"})
    read_hosts(nodes)  # before anything is started
    if shell is not None:
        environment["TAUTEN_SHELL"] = shell
    command = (sys.executable, "-m", "tauten", *arguments, "--workers", nodes)
    return Launch(command, environment)


def _torchrun(
    nodes: str,
    arguments: Sequence[str],
    interface: str | None,
    rendezvous: str | None,
    processes: int,
    environment: dict[str, str],
) -> Launch:
    if not arguments[0].endswith(".py"):
        raise InputError(f"{arguments[0]}: a number of nodes is for scripts (name.py) by torchrun")
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}"]
    command += [f"--nproc-per-node={processes}", "--max-restarts=3", "--rdzv-backend=c10d"]
    if nodes == "1":
        return Launch((*command, "--rdzv-endpoint=127.0.0.1:0", *arguments), environment)
    if rendezvous is None or interface is None:
        raise InputError(
            "several nodes need --rendezvous host:port, an address of one of them, and "
            "--interface, by which they reach each other"
        )
    host, _, port = rendezvous.partition(":")
    here = address_of(interface)
    command += [f"--rdzv-endpoint={host}:{port or _PORT}", "--rdzv-id=tauten"]
    command += [f"--rdzv-conf=is_host={int(host == here)},join_timeout=300"]
    return Launch((*command, f"--local-addr={here}", *arguments), environment)


def _interface(interface: str | None) -> dict[str, str]:
    if interface is None:
        return {}
    address_of(interface)
    names = {"TAUTEN_INTERFACE": interface}
    if not interface[0].isdigit():
        names |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    return names
