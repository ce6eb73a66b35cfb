"""Section `outputs` of bench/parallel.py: each way of cutting, against the model itself."""

from pathlib import Path
from typing import Any

import torch
from parallel_models import Case, cases
from torch import nn
from torch.utils._pytree import tree_map

import tauten
from tauten.parallel.comparison import difference
from tauten.parallel.cost_model import stage_ends
from tauten.parallel.parcel import twin
from tauten.parallel.plan import Layout, Plan
from tauten.parallel.profile import measure, with_threads
from tauten.parallel.rows import count_rows, cut_rows, even_sizes, join_rows
from tauten.parallel.tensor_parallel import tensor_plan

LAYOUTS = {
    "data": Layout(data=2),
    "pipeline": Layout(pipeline=2, microbatches=2),
    "tensor": Layout(tensor=2),
}


def outputs(models: Path) -> list[dict[str, Any]]:
    """Bit-equal on the same rows for data and pipeline, within rounding for tensor parallel."""
    found = []
    for case in cases(models):
        if count_rows(case.call) > 1:
            model = without_cache(case.model())
            found += [outputs_of(case, model, mode) for mode in LAYOUTS]
            print(*found[-3:], sep="\n", flush=True)
    return found


def outputs_of(case: Case, model: nn.Module, mode: str) -> dict[str, Any]:
    layout = LAYOUTS[mode]
    parts = {"data": layout.data, "pipeline": layout.microbatches, "tensor": 1}[mode]
    sizes = even_sizes(count_rows(case.call), parts)
    try:
        with tauten.parallelize(model, plan=laid_out(layout, model, case)) as parallel:
            args, kwargs = case.call
            made = main(parallel(*args, **kwargs))
    except tauten.InputError as error:
        return {"case": case.name, "mode": mode, "refused": str(error)}
    with torch.inference_mode(), with_threads(1):
        cut = [tree_map(torch.clone, part) for part in cut_rows(case.call, sizes)]
        expected = join_rows([main(model(*a, **k)) for a, k in cut], sizes)
    return {
        "case": case.name,
        "mode": mode,
        "bit_equal": torch.equal(made, expected),
        "difference": difference(made, expected),
        "same_argmax": torch.equal(made.argmax(-1), expected.argmax(-1)),
    }


def laid_out(layout: Layout, model: nn.Module, case: Case) -> Plan:
    """A plan of a layout, for a pipeline with stages that are balanced by measured costs."""
    if layout.pipeline == 1:
        return Plan(case.name, "throughput", 0, {}, layout)
    profile, _ = measure(model, case.call, tensor_plan(model), [1])
    ends = stage_ends(profile, layout.pipeline)
    return Plan(case.name, "throughput", 0, {}, layout, ends, profile.chain)


def without_cache(model: nn.Module) -> nn.Module:
    """The model as workers call it."""
    model = twin(model).eval()
    config: Any = getattr(model, "config", None)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return model


def main(output: Any) -> torch.Tensor:
    """The tensor that counts."""
    for name in ("logits", "last_hidden_state"):
        if hasattr(output, name):
            found: torch.Tensor = getattr(output, name)
            return found
    made: torch.Tensor = output
    return made
