"""Whether models of transformers' architectures compute on workers what they compute alone.

    python bench/architectures.py                  # all
    python bench/architectures.py t5 clip whisper  # those whose names hold one of these

A row for each tiny model with random weights: `parallelize`, whose first call plans; the layouts
`data`, `tensor` and `pipeline` of two workers, where there are such; and `distribute`, called
twice, and mapped. `equal` says that all outputs of all calls were the model's; `whole` that calls
ran whole, with the reason; `refused` is a message of Tauten; anything else is a fault.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from architecture_models import Architecture, architectures
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import tauten
from tauten.parallel import profile
from tauten.parallel.cost_model import stage_ends
from tauten.parallel.parcel import switch_cache_off, twin
from tauten.parallel.plan import Layout, Plan
from tauten.parallel.profile import measure
from tauten.parallel.tensor_parallel import tensor_plan

TOLERANCE = 1e-4  # of the largest value of each tensor
CACHES = ("past_key_values", "cache_params", "mems", "state")  # aren't returned unless asked for
FAULTS = ("other", "crash")


class Said(logging.Handler):
    """Keeps what Tauten says of calls that run whole."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def ways(model: nn.Module, call: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "parallelize", lambda: tauten.parallelize(model, workers=2)
    yield "distribute", lambda: tauten.distribute(model, workers=2)
    yield "data", lambda: tauten.parallelize(model, workers=2, mode="data")
    tensor, cacheless = tensor_plan(model), twin(model)
    switch_cache_off(cacheless)
    measured, _ = measure(cacheless, ((), call), tensor, [1])
    if tensor.most_workers > 1:
        yield "tensor", lambda: laid_out(model, Layout(tensor=2))
    if measured.chain is not None:
        ends, chain = stage_ends(measured, 2), measured.chain
        yield "pipeline", lambda: laid_out(model, Layout(pipeline=2), ends, chain)


def laid_out(model: nn.Module, layout: Layout, ends: Any = (), chain: Any = None) -> Any:
    plan = Plan("bench", "throughput", 0, {}, layout, ends, chain)
    return tauten.parallelize(model, plan=plan)


def row(case: Architecture, said: Said) -> dict[str, Any]:
    torch.manual_seed(0)
    found: dict[str, Any] = {"kind": case.kind, "model": case.name}
    model = case.build().eval()
    with torch.no_grad():
        expected = model(**case.call)
    for name, start in ways(model, case.call):
        said.lines.clear()
        found[name] = verdict(name, start, case.call, expected, said)
    return found


def verdict(
    name: str, start: Callable[[], Any], call: dict[str, Any], expected: Any, said: Said
) -> str:
    try:
        with start() as module, torch.no_grad():
            made = [module(**call), module(**call)]
            if name == "distribute":
                made += list(module.map([call, call]))
    except tauten.TautenError as error:
        return f"refused: {error}"
    except Exception as error:  # whatever it is, it is a fault, and the others are tried
        return f"crash: {type(error).__name__}: {error}"
    worst = max(distance(outputs, expected) for outputs in made)
    if worst > TOLERANCE:
        return f"other numbers: {worst:.2g}"
    return f"whole: {said.lines[0]}" if said.lines else "equal"


def distance(made: Any, expected: Any) -> float:
    """Largest difference of tensors, over the largest value; infinity where forms differ."""
    if type(made) is not type(expected):
        return float("inf")
    if isinstance(expected, dict):
        expected = {key: value for key, value in expected.items() if key not in CACHES}
        made = {key: value for key, value in made.items() if key not in CACHES}
        if list(made) != list(expected):
            return float("inf")
    pairs = zip(tree_leaves(made), tree_leaves(expected), strict=True)
    return max((apart(a, b) for a, b in pairs if isinstance(b, Tensor)), default=0.0)


def apart(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    one, other = one.double().nan_to_num(), other.double().nan_to_num()
    return float((one - other).abs().max()) / (float(other.abs().max()) or 1.0)


def main(wanted: list[str]) -> None:
    profile._REPEAT_S = 1e-9  # each call is timed once: it isn't how fast layouts are that counts
    said, rows = Said(), []
    logging.getLogger("tauten").addHandler(said)
    logging.getLogger("tauten").propagate = False
    for case in architectures():
        if wanted and not any(part.lower() in case.name.lower() for part in wanted):
            continue
        rows.append(row(case, said))
        print(json.dumps(rows[-1]), flush=True)
    answers = [answer for row in rows for answer in list(row.values())[2:]]
    bad = [answer for answer in answers if answer.startswith(FAULTS)]
    print(f"{len(rows)} models, {len(answers)} ways, {len(bad)} faults", file=sys.stderr)
    if not wanted:
        facts = {"torch": torch.__version__, "transformers": transformers.__version__}
        file = Path(__file__).with_name("results") / "architectures.json"
        file.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
