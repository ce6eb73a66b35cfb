"""A worker's share of a model that is cut by layers' parts, by blocks, or by both."""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tauten.core.errors import InputError
from tauten.models.state import state_kept
from tauten.parallel.data_parallel import TRIAL, call_method
from tauten.parallel.parcel import Parcel
from tauten.parallel.pipeline_parallel import ChainShape, Pipeline, Stage
from tauten.parallel.rows import to_device
from tauten.parallel.tensor_parallel import shard_layers, tensor_plan
from tauten.parallel.worker import Place


@dataclass(frozen=True)
class Share:
    """Rank `stage * tensor + part` holds that part of the layers of that stage.

    Attributes:
        tensor: Workers that each layer is dealt out to; 1 for whole layers.
        ends: Number of the block that each stage ends before; empty for one stage.
        shape: Of the chain of blocks, where there are stages.
        microbatches: That a batch is cut into.
    """

    tensor: int
    ends: tuple[int, ...] = ()
    shape: ChainShape | None = None
    microbatches: int = 1

    def load(self, parcel: Parcel, place: Place) -> "SharedModel":
        """Load the tensors of this share, a layer at a time."""
        stages = max(1, len(self.ends))
        stage, rank = divmod(place.rank % (stages * self.tensor), self.tensor)
        begin, end = ((0, *self.ends)[stage], self.ends[stage]) if self.ends else (0, 0)
        opened = parcel.open()
        model = opened.model.eval()
        skipped = Stage.unused(self.shape, begin, end) if self.shape else ()
        names = _names_outside(model, skipped)
        beside, along = _groups(self.tensor, stages, place)
        if self.tensor > 1:
            plan = tensor_plan(model).within(skipped)
            for layer in shard_layers(model, plan, (rank, self.tensor), beside):
                opened.load(_names_inside(model, layer))
        opened.load(names)
        if place.device != "cpu":
            model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(place.device))
        pipeline = None
        if self.shape is not None:
            held = Stage(model, self.shape, begin, end, place.device)
            pipeline = Pipeline(held, stage, stages, self.microbatches, along, place.device)
        return SharedModel(model, pipeline, place.device, rank == 0)


class SharedModel:
    """A model that several workers compute together."""

    def __init__(self, model: nn.Module, pipeline: Pipeline | None, device: str, answers: bool):
        self.model, self._pipeline, self._device, self._answers = model, pipeline, device, answers

    @torch.inference_mode()
    def __call__(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a method of the model; the first part answers, of the last stage."""
        args, kwargs = to_device((args, kwargs), self._device)
        if self._pipeline is None:
            made = call_method(self.model, method, args, kwargs)
            return made if self._answers else NotImplemented
        if method not in ("forward", TRIAL):
            raise InputError(f"{method}: a pipeline computes forward alone; use another mode")
        with state_kept(self.model) if method == TRIAL else contextlib.nullcontext():
            made = self._pipeline(args, kwargs)
        return made if self._answers else NotImplemented


def _groups(tensor: int, stages: int, place: Place) -> tuple[Any, Any]:
    """Process groups of a worker: those of its stage, and those of its part in all stages.

    All workers make all groups, in the same order, as torch demands.
    """
    size, mine = tensor * stages, place.rank
    copies = range(0, place.world, size)
    stage_ranks = [
        range(c + s * tensor, c + (s + 1) * tensor) for c in copies for s in range(stages)
    ]
    part_ranks = [range(c + part, c + size, tensor) for c in copies for part in range(tensor)]
    found = []
    for rows in (stage_ranks, part_ranks):
        groups = {ranks: dist.new_group(list(ranks)) for ranks in rows}
        found.append(next(group for ranks, group in groups.items() if mine in ranks))
    return found[0], found[1]


def _names_outside(model: nn.Module, modules: tuple[str, ...]) -> set[str]:
    """Names of tensors that stand in none of some modules."""
    prefixes = tuple(f"{name}." for name in modules)
    parameters = model.named_parameters(remove_duplicate=False)
    named = (*parameters, *model.named_buffers(remove_duplicate=False))
    return {name for name, _ in named if not name.startswith(prefixes)}


def _names_inside(model: nn.Module, module: str) -> set[str]:
    inner = model.get_submodule(module)
    named = (*inner.named_parameters(), *inner.named_buffers())
    return {f"{module}.{name}" for name, _ in named}
