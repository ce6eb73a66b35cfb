"""Models laid out over workers as a test wishes, without a plan being measured."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tauten.parallel.cost_model import stage_ends
from tauten.parallel.module import ParallelModule
from tauten.parallel.parcel import twin
from tauten.parallel.plan import Layout, Plan
from tauten.parallel.profile import measure
from tauten.parallel.start import start
from tauten.parallel.tensor_parallel import tensor_plan


@contextmanager
def laid_out(model: nn.Module, layout: Layout, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """The model on workers; arguments are a call, from which a pipeline learns its blocks."""
    ends, chain = (), None
    if layout.pipeline > 1:
        profile, _ = measure(without_cache(model), (args, kwargs), tensor_plan(model), [1])
        ends, chain = stage_ends(profile, layout.pipeline), profile.chain
        assert chain is not None, "its blocks form a chain"
    plan = Plan("test", "throughput", 0, {}, layout, ends, chain)
    parallel: ParallelModule
    with start(model, None, "auto", "auto", "throughput", plan) as parallel:
        yield parallel


def without_cache(model: nn.Module) -> nn.Module:
    """The model as workers call it: in evaluation mode, without a cache of keys and values."""
    model = twin(model).eval()
    config: Any = getattr(model, "config", None)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return model


@torch.inference_mode()
def by_parts(model: nn.Module, x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """The main output of the model called on parts of a batch, one after the other."""
    # Cloned: where a tensor lies decides how some libraries add up, and so its last bits.
    parts = [main(without_cache(model)(part.clone())) for part in x.split(sizes)]
    return torch.cat(parts)


def main(output: Any) -> torch.Tensor:
    """The tensor that counts."""
    for name in ("logits", "last_hidden_state"):
        if hasattr(output, name):
            return getattr(output, name)
    return output
