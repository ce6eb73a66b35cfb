"""The same calls over three hosts, which are network namespaces of this machine.

    sudo python bench/distributed.py                # all sections
    sudo python bench/distributed.py calibration

Sections: `inference` (batch inference, one host lost on the way; beside it torchrun elastic, and
with `--ray` an interpreter in whose environment `pip install 'ray[data]'` was run, Ray Data),
`calibration` (packed weights beside those of one machine), `planner` (its choice beside every
layout timed, on each link) and `search` (20 trials on two workers of this machine). Links are
shaped to 1 Gbit/s and 100 Mbit/s. The hosts share this machine's cores, so that more of them
compute no faster; what is shown is that results are whole, and what travelling costs. Sections
that need namespaces are skipped, with the reason, where those can't be made.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from distributed_search import search
from hosts import address, end_all, hosts, obstacle
from rich.console import Console

RATES = ("1gbit", "100mbit")
MOST_REGRET = 1.05
ITEMS, KILLED_AT = 90, 20  # of a peer
SILENT: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
Row = dict[str, Any]


def driver(*arguments: str) -> Row:
    """Run a section of the driver on the first host."""
    script = str(Path(__file__).with_name("distributed_driver.py"))
    command = ["ip", "netns", "exec", "tauten1", sys.executable, script, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    answer = [line for line in ended.stdout.splitlines() if line.startswith("JSON")]
    if not answer:
        return {"error": ended.stderr.strip().splitlines()[-1:]}
    found: Row = json.loads(answer[0][4:])
    return found


def inference(ray: str | None) -> list[Row]:
    """Hosts lost in two ways: all processes killed, or taken off the network besides."""
    rows = []
    for ending in ("kept", "killed", "cut off"):
        with hosts(3, RATES[0]):
            row = {"third host": ending, **driver("inference", ending)}
        row["ok"] = row.get("items") == 90 and row["in_order_and_bit_equal"]
        rows.append(row)
    with hosts(3, RATES[0]):
        rows.append(elastic())
    if ray is not None:
        with hosts(3, RATES[0]):
            rows.append(ray_data(ray))
    return rows


def elastic() -> Row:
    """torchrun elastic with 2 to 3 hosts doing as much, the third killed: the peer."""
    script = str(Path(__file__).parent / "peers/torchrun_elastic.py")
    agents: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="tauten-elastic-") as out:
        for number in (1, 2, 3):
            command = ["ip", "netns", "exec", f"tauten{number}", sys.executable]
            command += ["-m", "torch.distributed.run", "--nnodes=2:3", "--nproc-per-node=1"]
            command += ["--max-restarts=3", "--monitor-interval=0.5", "--rdzv-backend=c10d"]
            command += [f"--rdzv-endpoint={address(1)}:29600", "--rdzv-id=elastic", "--rdzv-conf"]
            command += [f"is_host={int(number == 1)},join_timeout=60,last_call_timeout=5"]
            command += [f"--local-addr={address(number)}", script, out, str(ITEMS)]
            interface = {"GLOO_SOCKET_IFNAME": f"tve{number}", "OMP_NUM_THREADS": "1"}
            agents.append(subprocess.Popen(command, env={**os.environ, **interface}, **SILENT))
        return {"peer": "torchrun elastic", **after_a_loss(Path(out), agents)}


def ray_data(python: str) -> Row:
    """Ray Data on the same hosts, the third killed: the other peer."""
    script = str(Path(__file__).parent / "peers/ray_data.py")
    ray = str(Path(python).parent / "ray")
    with tempfile.TemporaryDirectory(prefix="tauten-ray-") as out:
        for number in (1, 2, 3):
            join = [f"--address={address(1)}:6379"] if number > 1 else ["--head", "--port=6379"]
            command = ["ip", "netns", "exec", f"tauten{number}", ray, "start", *join]
            command += [f"--node-ip-address={address(number)}", "--num-cpus=1"]
            subprocess.run(command, check=True, timeout=120, **SILENT)
        command = ["ip", "netns", "exec", "tauten1", python, script, out, str(ITEMS)]
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        row = {"peer": "Ray Data", **after_a_loss(Path(out), [driver])}
        assert driver.stdout is not None
        said = [line for line in driver.stdout.read().decode().splitlines() if line[:4] == "JSON"]
        return row | (json.loads(said[0][4:]) if said else {"error": "it gave no results"})


def after_a_loss(out: Path, processes: Sequence[subprocess.Popen[bytes]]) -> Row:
    """Kill the third host once some items are done; how long the next ones then took."""
    deadline = time.monotonic() + 240
    while len(list(out.glob("*.done"))) < KILLED_AT and time.monotonic() < deadline:
        time.sleep(0.05)
    killed = time.time()
    end_all("tauten3")
    for process in processes:
        try:
            process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
    times = sorted(file.stat().st_mtime for file in out.glob("*.done"))
    after = [killed, *(t for t in times if t >= killed)]
    gap = max((b - a for a, b in itertools.pairwise(after)), default=None)
    return {"items": len(times), "longest_wait_for_a_result_s": gap}


def calibration() -> list[Row]:
    """The same bytes from one machine, and from data on two and three hosts."""
    with hosts(1):
        alone = driver("calibration", "0")
    rows = [{"hosts": 1, "rate": None, **alone}]
    for rate in RATES:
        for count in (2, 3):
            with hosts(3, rate):
                row = {"hosts": count, "rate": rate, **driver("calibration", str(count))}
            row["ok"] = "sha256" in row and row["sha256"] == alone.get("sha256")
            rows.append(row)
    return rows


def planner() -> list[Row]:
    """Calls of which each layout wins some: large batches, and one long row."""
    rows = []
    for rate in RATES:
        for call in (("16", "128"), ("1", "512")):
            with hosts(2, rate):
                row = {"rate": rate, **driver("planner", *call)}
            row["ok"] = row.get("regret") is not None and row["regret"] <= MOST_REGRET
            rows.append(row)
    return rows


SECTIONS: dict[str, Callable[..., list[Row]]] = {
    "inference": inference,
    "calibration": calibration,
    "planner": planner,
    "search": search,
}
NEED_HOSTS = {"inference", "calibration", "planner"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all by default")
    folder = Path(__file__).parent / "results"
    parser.add_argument("--ray", help="an interpreter with ray[data], whose Ray Data is a peer")
    parser.add_argument("--out", type=Path, default=folder / "distributed.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console, reason = Console(width=160), obstacle()
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.sections or SECTIONS:
        if name in NEED_HOSTS and reason:
            console.print(f"{name}: skipped, {reason}")
            results[name] = {"skipped": reason}
            continue
        section = SECTIONS[name]
        results[name] = section(options.ray) if section is inference else section()
        console.print(name, results[name])
        facts = {"torch": torch.__version__, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        results["machine"] = facts
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
