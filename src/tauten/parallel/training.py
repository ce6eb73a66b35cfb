"""Data parallel training, as a worker does it: DDP, or FSDP2 where memory asks for it.

DDP keeps the model, its gradients and the optimizer's state in every worker (Li et al. 2020,
arXiv:2006.15704); FSDP2 keeps a part of each (Zhao et al. 2023, arXiv:2304.11277).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map

from tauten.core.errors import InputError
from tauten.core.rows import count_rows, cut_rows
from tauten.models.structure import find_structure
from tauten.parallel.parcel import Parcel
from tauten.parallel.rows import even_sizes, is_floating, to_device
from tauten.parallel.worker import Place


@dataclass(frozen=True)
class Trainee:
    """One of several workers that train a model together.

    Attributes:
        sharded: By FSDP2; else by DDP.
        seed: Of the first worker's random numbers, such as dropout's.
    """

    sharded: bool
    seed: int

    def load(self, parcel: Parcel, place: Place) -> "TrainedModel":
        """Load all tensors, and drop those that other workers hold."""
        opened = parcel.open()
        opened.load()
        torch.manual_seed(self.seed + place.rank)
        model = opened.model.to(place.device)
        return TrainedModel(distributed(model, place.world, self.sharded), place)


def distributed(model: nn.Module, world: int, sharded: bool) -> nn.Module:
    """A model whose gradients are the mean over the processes of torch.distributed.

    Args:
        model: Changed in place by FSDP2.
        world: Processes; the model itself is returned where there is one.
        sharded: By FSDP2; else by DDP.
    """
    if world == 1:
        return model
    if not sharded:
        return DistributedDataParallel(model, find_unused_parameters=True)
    device = next(model.parameters()).device
    # Imported late, as it takes seconds; so below.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world,))
    for name in find_structure(model).blocks:
        fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


class TrainedModel:
    """A model, its optimizer, and what the last call left for its gradients."""

    def __init__(self, model: nn.Module, place: Place):
        self._model, self._place = model, place
        self._optimizer: torch.optim.Optimizer | None = None
        self._made: list[Tensor] = []

    def __call__(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do one of the methods below; all workers do the same, each on its rows."""
        return getattr(self, f"_{method}")(*args, **kwargs)

    def _forward(self, args: Any, kwargs: Any, training: bool) -> Any:
        """Outputs for this worker's rows, without their history."""
        args, kwargs = self._own_rows((args, kwargs))
        self._model.train(training)
        with torch.set_grad_enabled(training):
            made = self._model(*args, **kwargs)
        self._made = [leaf for leaf in tree_leaves(made) if is_floating(leaf)] if training else []
        return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, made)

    def _backward(self, gradients: list[Tensor], rows: int) -> Any:
        """Add up gradients of the parameters, given those of all rows of the last outputs."""
        world, rank = self._place.world, self._place.rank
        sizes = even_sizes(rows, world)
        start = sum(sizes[:rank])
        pairs = []
        for made, gradient in zip(self._made, gradients, strict=True):
            # What is averaged over workers is to be the sum over rows.
            part = gradient[start : start + sizes[rank]].to(made.device) * world
            pairs.append((made, part if sizes[rank] else torch.zeros_like(made)))
        tensors, own = zip(*(pair for pair in pairs if pair[0].requires_grad), strict=True)
        torch.autograd.backward(tensors, own)
        self._made = []
        return NotImplemented

    def _make_optimizer(self, kind: type[torch.optim.Optimizer], settings: dict[str, Any]) -> Any:
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = kind(parameters, **settings)
        return NotImplemented

    def _step(self, settings: dict[str, Any], max_norm: float | None) -> Any:
        """Take a step with these settings, gradients being scaled down to a norm if need be."""
        assert self._optimizer is not None, "it was made before"
        if max_norm is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), max_norm)
        self._optimizer.param_groups[0].update(settings)
        self._optimizer.step()
        return NotImplemented

    def _zero_grad(self) -> Any:
        self._model.zero_grad()
        return NotImplemented

    def _state_dict(self) -> Any:
        """All tensors by name, from the first worker."""
        module = getattr(self._model, "module", self._model)
        state = module.state_dict()
        if self._place.world > 1:
            from torch.distributed.checkpoint import state_dict as states

            options = states.StateDictOptions(full_state_dict=True, cpu_offload=True)
            state = states.get_model_state_dict(self._model, options=options)
        return dict(state) if self._place.rank == 0 else NotImplemented

    def _own_rows(self, inputs: Any) -> Any:
        """This worker's rows; the first row, to no end, where there are too few."""
        sizes = even_sizes(count_rows(inputs), self._place.world)
        rank = self._place.rank
        if not sizes[rank]:
            rank = 0
        own = to_device(cut_rows(inputs, sizes)[rank], self._place.device)
        # Autograd keeps inputs for the backward pass, when their shared memory holds gradients.
        return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, own)


def check_trainable(model: nn.Module) -> None:
    """Raise InputError unless a model has parameters that want gradients."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            f"{type(model).__name__} has no parameter that requires a gradient; packed models "
            "and models loaded for inference don't train: pass the original"
        )
