"""A plan: how a model is laid out over workers, and the figures that speak for it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tauten.core.description import Count, Size, checked, exact, read_json
from tauten.core.errors import InputError
from tauten.core.files import write_json
from tauten.parallel.pipeline_parallel import ChainShape

MODES = ("auto", "data", "task")
GOALS = ("throughput", "latency", "memory")
MOST_WORKERS = 4096
_FORMAT = 1


@exact
@dataclass(frozen=True)
class Layout:
    """How workers divide the work: `data * tensor * pipeline` of them.

    Attributes:
        data: Copies of the model, each of which computes some rows of a batch.
        tensor: Workers that hold parts of each layer.
        pipeline: Stages that hold some blocks each.
        microbatches: That a stage's rows are cut into.
        threads: Of each worker.
    """

    data: Size = 1
    tensor: Size = 1
    pipeline: Size = 1
    microbatches: Size = 1
    threads: Size = 1

    def __post_init__(self) -> None:
        if self.workers > MOST_WORKERS or self.threads > MOST_WORKERS:
            raise InputError(f"{self}: expected at most {MOST_WORKERS} workers, and threads")

    @property
    def workers(self) -> int:
        """Processes that it takes."""
        return self.data * self.tensor * self.pipeline

    def __str__(self) -> str:
        sizes = {"data": self.data, "tensor": self.tensor, "pipeline": self.pipeline}
        parts = [f"{name} {size}" for name, size in sizes.items() if size > 1]
        if self.microbatches > 1:
            parts.append(f"micro {self.microbatches}")
        return ", ".join(parts) or f"one worker, threads {self.threads}"


@exact
@dataclass(frozen=True)
class Option:
    """A layout and what is known of it.

    Attributes:
        layout: Of workers.
        predicted_s: Of a call, by the cost model.
        memory_bytes: Of the weights that the fullest worker holds.
        measured_s: Fastest of a few calls; None where it wasn't timed.
        difference: Largest |output - original's|, over the largest |original's|; None as above.
        refusal: Why it can't be used; empty where it can.
    """

    layout: Layout
    predicted_s: float
    memory_bytes: Count
    measured_s: float | None = None
    difference: float | None = None
    refusal: str = ""


@exact
@dataclass(frozen=True)
class Plan:
    """What the planner decided.

    Attributes:
        model: Name of the model.
        goal: One of `GOALS`.
        rows: Of a call.
        inputs: Shapes and dtypes of the call that it was made for.
        layout: The chosen one.
        ends: Number of the block that each pipeline stage ends before.
        chain: How the model uses its blocks, for a pipeline.
        options: All layouts that were looked at, best first.
        reason: Why this one.
        facts: Of the machine, and what was measured of the model.
        remake: Makes another plan for an example; that of a `ParallelModule`, None elsewhere.
    """

    model: str
    goal: str
    rows: Count
    inputs: dict[str, Any]
    layout: Layout
    ends: tuple[Count, ...] = ()
    chain: ChainShape | None = None
    options: tuple[Option, ...] = ()
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    remake: Callable[[Any], "Plan"] | None = field(default=None, repr=False, compare=False)

    def __call__(self, example: Any) -> "Plan":
        """Plan the module that this is the plan of anew, for calls like an example."""
        if self.remake is None:
            raise InputError(
                "this plan is of no module: call the plan of what parallelize returned"
            )
        return self.remake(example)

    def save(self, file: str | Path) -> None:
        """Write it as JSON."""
        fields = asdict(replace(self, remake=None))
        del fields["remake"]
        write_json(Path(file), {"format": _FORMAT, **fields})

    @classmethod
    def read(cls, file: str | Path) -> "Plan":
        """Read what `save` wrote.

        Raises:
            InputError: It can't be read or is no plan.
        """
        remedy = "make one with `tauten parallelize MODEL`"
        raw: dict[str, Any] = read_json(Path(file), dict[str, Any], remedy)
        if (version := raw.pop("format", None)) != _FORMAT:
            raise InputError(f"{file}: format={version!r}: expected {_FORMAT}; {remedy}")
        plan: Plan = checked(cls, raw, file, remedy)
        return plan


def layouts(
    workers: int, rows: int, blocks: int, tensor: int, threads: int, mode: str
) -> Iterator[Layout]:
    """Every layout that could serve; the single worker first, with all threads and with fewer.

    Args:
        workers: Most processes.
        rows: Of a call.
        blocks: That a pipeline could cut between; 0 for none.
        tensor: Most workers that layers deal out to.
        threads: Of all workers together.
        mode: One of `MODES`.
    """
    yield from (Layout(threads=n) for n in single_threads(threads))
    for count in range(2, workers + 1):
        for data in _divisors(count):
            for pipeline in _divisors(count // data):
                parts = count // data // pipeline
                if data > rows or pipeline > max(1, blocks) or parts > tensor:
                    continue
                if (mode == "data" and data < count) or (mode == "task" and data > 1):
                    continue
                each = max(1, threads // count)
                for microbatches in _microbatches(-(-rows // data), pipeline):
                    yield Layout(data, parts, pipeline, microbatches, each)


def single_threads(threads: int) -> list[int]:
    """Threads that a single worker may have: small calls are faster with fewer than all."""
    return sorted({threads, max(1, threads // 2), 1}, reverse=True)


def _microbatches(rows: int, pipeline: int) -> Iterable[int]:
    """Powers of two, and one: with more than four a stage there is little left to gain."""
    if pipeline == 1:
        return (1,)
    return [n for n in (1, 2, 4, 8, 16, 32) if n <= min(rows, 4 * pipeline) and rows % n == 0]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
