"""Tensor parallel: every worker holds some heads of each attention and some hidden features.

Which layers are cut where follows from the units of the model: what makes a hidden feature is cut
by rows, what reads it by columns, and the workers' outputs of the latter are added up by one
all_reduce (Shoeybi et al. 2019, arXiv:1909.08053, section 3). A head stays whole, and so does a
key with the queries that share it; where they don't deal out evenly the first workers hold one
more. A packed layer whose groups of columns would be cut is cut by rows instead, and what it reads
and makes is gathered.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tauten.core.errors import InputError, NotApplicableError
from tauten.formats.packed import PackedWeight, shard_range
from tauten.formats.sum import SumWeight
from tauten.models.channel_graph import channel_graph
from tauten.models.channel_groups import ChannelGroup
from tauten.models.packing import replace_modules
from tauten.models.transformer_groups import Attention, attentions, feed_forwards, set_heads
from tauten.parallel.parcel import twin
from tauten.runtime.modules import PackedLinear

_LEAST_UNITS = 4  # fewer groups of columns deal out too unevenly
_LINEAR = (nn.Linear, Conv1D, PackedLinear)


@dataclass(frozen=True)
class Cut:
    """How one layer is dealt out.

    Attributes:
        layer: Its name.
        dim: 0 for rows of out, 1 for columns of in.
        unit: Rows or columns that stay together.
        gathered: Its outputs are put together again (a head over a vocabulary).
        unit_in: Its inputs are put together again first; they were dealt out in this unit. 0 where
            each worker has all of them, or needs its own only.
    """

    layer: str
    dim: int
    unit: int
    gathered: bool = False
    unit_in: int = 0


@dataclass(frozen=True)
class TensorPlan:
    """How a model is dealt out to workers.

    Attributes:
        cuts: Of the layers that are cut; all others are whole everywhere.
        heads: Attentions whose layers are among them.
        most_workers: More would leave one without a part of some layer; 1 where nothing is cut.
        obstacles: Why attentions or feed-forward networks stay whole.
    """

    cuts: tuple[Cut, ...]
    heads: tuple[Attention, ...]
    most_workers: int
    obstacles: tuple[str, ...] = ()

    def within(self, skipped: Sequence[str]) -> "TensorPlan":
        """The plan without the layers of some modules."""
        prefixes = tuple(f"{name}." for name in skipped)
        cuts = (c for c in self.cuts if not f"{c.layer}.".startswith(prefixes))
        heads = (h for h in self.heads if not f"{h.holder}.".startswith(prefixes))
        return replace(self, cuts=tuple(cuts), heads=tuple(heads))


def tensor_plan(model: nn.Module) -> TensorPlan:
    """Derive the plan from a model's units.

    Args:
        model: Its tensors may be on the meta device.
    """
    dense = _dense_outline(model)
    cuts: list[Cut] = []
    most: list[int] = []
    found, obstacles = _known(attentions, dense)
    networks, more = _known(feed_forwards, dense)
    obstacles += more
    for attention in found:
        q, k, v, o = attention.layers
        queries = attention.heads // attention.kv_heads * attention.head_size
        sizes = (queries, attention.head_size, attention.head_size)
        cuts += [Cut(name, 0, size) for name, size in zip((q, k, v), sizes, strict=True)]
        cuts.append(_reader(o, queries, queries % _columns_of(model, o) == 0))
        most.append(attention.kv_heads)
    for group in networks or ([] if found else _chains(dense)):
        unit = math.lcm(*(_columns_of(model, member.module) for member in group.on("in")))
        by_columns = group.size >= _LEAST_UNITS * unit
        unit = unit if by_columns else 1
        cuts += [Cut(member.module, 0, unit) for member in group.on("out")]
        cuts += [_reader(m.module, unit, by_columns) for m in group.on("in")]
        most.append(-(-group.size // unit))
    if not found and not obstacles:
        obstacles = ["it has no attention whose heads are known by their layers"]
    if cuts:
        cuts += _head(model)
    return TensorPlan(tuple(cuts), tuple(found), min(most, default=1), tuple(obstacles))


def shard_layers(
    model: nn.Module, plan: TensorPlan, ranks: tuple[int, int], group: Any
) -> Iterator[str]:
    """Replace layers by a worker's parts of them, in place.

    Args:
        model: On the meta device.
        plan: Of the model.
        ranks: The worker's, and how many there are.
        group: Of torch.distributed, of these workers.
    Yields:
        Name of each layer before it is cut; its tensors must be loaded before going on.
    Raises:
        InputError: There are more workers than parts.
        NotApplicableError: A packed layer is of a kind that can't be cut.
    """
    rank, world = ranks
    if world > plan.most_workers:
        why = "; ".join(plan.obstacles) or "its keys or groups of columns are too few"
        raise InputError(
            f"tensor parallel over {world} workers: {type(model).__name__} deals out to at most "
            f"{plan.most_workers} ({why}); use fewer workers or data parallel"
        )
    for cut in plan.cuts:
        layer = model.get_submodule(cut.layer)
        if getattr(layer, "_is_part", False):
            continue  # a layer that stands in several places
        yield cut.layer
        part: Any = shard_layer(layer, rank, world, cut.dim, cut.unit)
        part._is_part = True
        _connect(part, layer, cut, world, group)
        replace_modules(model, {layer: part})
    for attention in plan.heads:
        begin, end = shard_range(attention.kv_heads, rank, world)
        queries = attention.heads // attention.kv_heads
        set_heads(model, attention, (end - begin) * queries, end - begin)


def _connect(part: nn.Module, layer: nn.Module, cut: Cut, world: int, group: Any) -> None:
    """Have a part of a layer put together what the workers' parts need or make together."""
    if cut.dim == 1:
        part.register_forward_hook(lambda _, __, y: _summed(y, group))
    if cut.unit_in:
        taken = _sizes(_width(layer, 1), world, cut.unit_in)
        part.register_forward_pre_hook(lambda _, x: (_gathered(x[0], taken, group),))
    if cut.gathered:
        made = _sizes(_width(layer, 0), world, cut.unit)
        part.register_forward_hook(lambda _, __, y: _gathered(y, made, group))


def shard_layer(layer: nn.Module, rank: int, world: int, dim: int, unit: int) -> nn.Module:
    """One worker's part of a linear layer; see `PackedLinear.shard`, which this is for all kinds.

    Args:
        layer: `nn.Linear`, transformers' `Conv1D`, or `PackedLinear`.
    """
    if isinstance(layer, PackedLinear):
        return layer.shard(rank, world, dim, unit)
    weight: Any = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
    begin, end = shard_range(weight.shape[dim], rank, world, unit)
    bias: Any = layer.bias
    part: Any = nn.Linear(1, 1, bias is not None and (dim == 0 or rank == 0), device="meta")
    own = weight.narrow(dim, begin, end - begin)
    if dim == 1 or own.untyped_storage().nbytes() == 0:
        own = own.clone()  # columns lie apart; rows stay views of a table that may be tied
    part.weight = nn.Parameter(own.contiguous(), requires_grad=False)
    if part.bias is not None:
        kept = bias[begin:end].clone() if dim == 0 else bias
        part.bias = nn.Parameter(kept, requires_grad=False)
    part.out_features, part.in_features = own.shape
    made: nn.Module = part
    return made


def _summed(y: Tensor, group: Any) -> Tensor:
    dist.all_reduce(y, group=group)
    return y


def _gathered(y: Tensor, sizes: Sequence[int], group: Any) -> Tensor:
    """(..., own) of all workers -> (..., all); parts are padded to one size on the way."""
    widest = max(sizes)
    own = nn.functional.pad(y, (0, widest - y.shape[-1])).contiguous()
    parts = [torch.empty_like(own) for _ in sizes]
    dist.all_gather(parts, own, group=group)
    return torch.cat([part[..., :n] for part, n in zip(parts, sizes, strict=True)], -1)


def _sizes(width: int, world: int, unit: int) -> list[int]:
    parts = [shard_range(width, rank, world, unit) for rank in range(world)]
    return [end - begin for begin, end in parts]


def _width(layer: Any, dim: int) -> int:
    if isinstance(layer, Conv1D):
        return int((layer.nf, layer.nx)[dim])
    return int((layer.out_features, layer.in_features)[dim])


def _dense_outline(model: nn.Module) -> nn.Module:
    """The model with empty dense layers for packed ones, whose names and sizes are looked at."""
    outline = twin(model)
    dense: dict[nn.Module, nn.Module] = {}
    for module in outline.modules():
        if isinstance(module, PackedLinear):
            sizes = module.in_features, module.out_features
            dense[module] = nn.Linear(*sizes, module.bias is not None, device="meta")
    replace_modules(outline, dense)
    return outline


def _known(find: Callable[[nn.Module], list[Any]], model: nn.Module) -> tuple[list[Any], list[str]]:
    """What is found in a model, or why not."""
    try:
        return find(model), []
    except NotApplicableError as error:
        return [], [str(error)]


def _chains(model: nn.Module) -> list[ChannelGroup]:
    """Hidden features of plain networks, between linear layers alone."""
    try:
        groups = channel_graph(model).groups
    except InputError:  # nothing in it can be traced
        return []

    def is_linear(group: ChannelGroup) -> bool:
        plain = all(m.start == 0 and m.span == 1 for m in group.members) and group.parts == 1
        kinds = all(isinstance(model.get_submodule(m.module), _LINEAR) for m in group.members)
        return plain and kinds and bool(group.on("in")) and bool(group.on("out"))

    chosen: list[ChannelGroup] = []
    taken: set[str] = set()
    for group in filter(is_linear, groups):  # a layer is cut by rows or by columns, not by both
        names = {member.module for member in group.members}
        if not names & taken:
            chosen.append(group)
            taken |= names
    return chosen


def _head(model: nn.Module) -> list[Cut]:
    """The layer over a vocabulary, which is large; its outputs are put together again."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    names = [name for name, module in model.named_modules() if module is head]
    return [Cut(names[0], 0, 1, True)] if names and isinstance(head, _LINEAR) else []


def _reader(name: str, unit: int, by_columns: bool) -> Cut:
    """The cut of a layer that reads features that are dealt out in units.

    Where they would cut groups of its columns, it gets them all and is cut by rows instead.
    """
    return Cut(name, 1, unit) if by_columns else Cut(name, 0, 1, gathered=True, unit_in=unit)


def _columns_of(model: nn.Module, name: str) -> int:
    """Columns of a layer that stay together."""
    layer = model.get_submodule(name)
    return _columns_together(layer.packed) if isinstance(layer, PackedLinear) else 1


def _columns_together(weight: PackedWeight) -> int:
    if isinstance(weight, SumWeight):
        return math.lcm(_columns_together(weight.first), _columns_together(weight.second))
    superblock = getattr(getattr(weight, "grid", None), "superblock", 0)
    return superblock or getattr(weight, "group_size", 0) or 1
