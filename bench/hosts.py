"""Hosts on one machine: network namespaces with addresses of their own and links of a set speed."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

BRIDGE = "tautenbr"


def obstacle() -> str:
    """Why hosts can't be made here; empty where they can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    return f"needs {', '.join(missing)} (iproute2)" if missing else ""


@contextlib.contextmanager
def hosts(count: int, rate: str | None = None) -> Iterator[list[str]]:
    """Namespaces tauten1, tauten2, ..., the first of which has 10.78.0.1, and so on.

    Args:
        count: How many.
        rate: Of each link, in both directions, such as `100mbit`; None for no limit.
    """
    names = [f"tauten{number}" for number in range(1, count + 1)]
    _remove(names)
    try:
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "link", "set", BRIDGE, "up")
        for number, name in enumerate(names, 1):
            _add(name, number, rate)
        yield names
    finally:
        _remove(names)


def address(number: int) -> str:
    """Of a host, from 1 on."""
    return f"10.78.0.{number}"


def cut_off(name: str) -> list[int]:
    """Take a host off the network and end all its processes at once; their ids."""
    number = name.removeprefix("tauten")
    _run("ip", "-n", name, "link", "set", f"tve{number}", "down")
    return end_all(name)


def end_all(name: str) -> list[int]:
    """End all processes of a host."""
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
    pids = [int(pid) for pid in listed.stdout.split()]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    return pids


def _add(name: str, number: int, rate: str | None) -> None:
    inner, outer = f"tve{number}", f"tbr{number}"
    _run("ip", "netns", "add", name)
    _run("ip", "link", "add", inner, "type", "veth", "peer", "name", outer)
    _run("ip", "link", "set", inner, "netns", name)
    _run("ip", "link", "set", outer, "master", BRIDGE, "up")
    _run("ip", "-n", name, "addr", "add", f"{address(number)}/24", "dev", inner)
    _run("ip", "-n", name, "link", "set", inner, "up")
    _run("ip", "-n", name, "link", "set", "lo", "up")
    if rate is not None:
        shape = ["root", "tbf", "rate", rate, "burst", "64kb", "latency", "400ms"]
        _run("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", inner, *shape)
        _run("tc", "qdisc", "add", "dev", outer, *shape)


def _remove(names: list[str]) -> None:
    for name in names:
        outer = f"tbr{name.removeprefix('tauten')}"
        if os.path.exists(f"/run/netns/{name}"):
            end_all(name)
        if os.path.exists(f"/sys/class/net/{outer}"):  # a namespace lets go of it only later
            _run("ip", "link", "del", outer)
        if os.path.exists(f"/run/netns/{name}"):
            _run("ip", "netns", "del", name)
    if os.path.exists(f"/sys/class/net/{BRIDGE}"):
        _run("ip", "link", "del", BRIDGE)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
