"""Machines by name, and the one address on which this machine may be reached."""

import contextlib
import ipaddress
import os
import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from tauten.core.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]*")  # no leading dash: it would be an option of ssh
_GET_ADDRESS = 0x8915  # SIOCGIFADDR
LOOPBACK = "127.0.0.1"
ADDRESS = "TAUTEN_WORKER_ADDRESS"  # by which a worker's machine reached the driver


@dataclass(frozen=True)
class Host:
    """A machine.

    Attributes:
        name: As the remote shell knows it.
        slots: Workers that it runs.
    """

    name: str
    slots: int = 1

    @property
    def is_local(self) -> bool:
        """Whether it is this machine."""
        return self.name in ("localhost", LOOPBACK)


def read_hosts(file: str | os.PathLike[str]) -> list[Host]:
    """Read a hosts file: a host a line, perhaps `slots=N` behind it; `#` begins a comment.

    Raises:
        InputError: It can't be read, or a line is something else.
    """
    path = Path(file)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"hosts file {path}: {error}") from None
    hosts: list[Host] = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if words:
            hosts.append(_host(f"{path}:{number}", words, {host.name for host in hosts}))
    if not hosts:
        raise InputError(
            f"hosts file {path}: no host in it; write one a line, such as node1 slots=2"
        )
    return hosts


def _host(where: str, words: list[str], known: set[str]) -> Host:
    name, *rest = words
    if not _NAME.fullmatch(name):
        raise InputError(f"{where}: {name!r} is no host's name")
    if name in known:
        raise InputError(f"{where}: {name} stands there twice; give it more slots instead")
    if not rest:
        return Host(name)
    found = re.fullmatch(r"slots=([1-9][0-9]{0,3})", " ".join(rest))
    if found is None:
        raise InputError(
            f"{where}: {' '.join(rest)[:80]!r} after the host: expected slots=N, up to 9999"
        )
    return Host(name, int(found[1]))


def address_of(interface: str) -> str:
    """The IPv4 address of a network interface, given by name or by that address.

    Raises:
        InputError: There is no such interface, or it has no address.
    """
    try:
        return str(ipaddress.IPv4Address(interface))
    except ipaddress.AddressValueError:
        pass
    import fcntl  # not on Windows

    name = interface.encode()[:15]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        try:
            answer = fcntl.ioctl(opened.fileno(), _GET_ADDRESS, struct.pack("256s", name))
        except OSError:
            names = ", ".join(name for _, name in socket.if_nameindex())
            raise InputError(
                f"interface {interface!r}: no such interface with an address; there are {names}"
            ) from None
    return socket.inet_ntoa(answer[20:24])


def interface_of(address: str) -> str:
    """The name of the network interface that has an address.

    Raises:
        InputError: None has.
    """
    for _, name in socket.if_nameindex():
        with contextlib.suppress(InputError):
            if address_of(name) == address:
                return name
    raise InputError(f"no network interface of this machine has the address {address}")
