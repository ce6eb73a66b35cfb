"""Which channels of a network must be cut together, found by tracing it with torch.fx.

Every layer makes channels; what adds, joins or flattens them says which are the same. Channels
that meet an operation whose way with them isn't known keep their number, and so do the inputs
and outputs of the model.
"""

import math
import operator
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from tauten.core.errors import InputError
from tauten.core.printing import logger
from tauten.models.batchnorm import NORMS
from tauten.models.channel_groups import CONVOLUTIONS, LAYERS, ChannelGroup, Member, is_depthwise
from tauten.models.channelwise import (
    CHANNELWISE,
    CHANNELWISE_MODULES,
    POOLING,
    POOLING_MODULES,
    VECTORS,
)
from tauten.models.tracing import argument, name_of, traced_parts

_log = logger(__name__)


@dataclass(frozen=True)
class Channels:
    """The channels of a tensor.

    Attributes:
        groups: Number of the group of each run of channels: more than one behind a `cat`.
        axis: Dimension they lie along: 1, or -1 where a linear layer made or a flatten left them.
        flat: A flatten has put the positions of a channel beside each other.
    """

    groups: tuple[int, ...]
    axis: int
    flat: bool = False


SCALAR = Channels((), 0)


@dataclass(frozen=True)
class ChannelGraph:
    """What can be cut in a network.

    Attributes:
        groups: Channels whose number may change.
        norms: By the name of a layer the batch norm that alone takes its outputs.
    """

    groups: tuple[ChannelGroup, ...]
    norms: dict[str, str]


def channel_graph(model: nn.Module) -> ChannelGraph:
    """Trace a network; where it can't be traced as a whole, its parts for themselves.

    Raises:
        InputError: Nothing that can be traced has channels to cut; it names the module and line
            where tracing failed.
    """
    failures: list[str] = []
    groups: list[ChannelGroup] = []
    norms: dict[str, str] = {}
    owners = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    tied = {key for key in owners if owners.count(key) > 1}
    for prefix, part, graph in traced_parts(model, "", failures):
        builder = _Builder(part, prefix, tied)
        for node in graph.nodes:
            builder.visit(node)
        groups += builder.groups()
        norms |= builder.norms
    if not groups and failures:
        raise InputError(
            f"{type(model).__name__} can't be traced, so that no channels are known to belong "
            f"together: {failures[0]}. Write that without control flow on tensors, or use "
            "prune_width and prune_heads, which know transformers by their layers"
        )
    if failures:
        kept = "what belongs to no part of the model that can be traced keeps its channels"
        _log.info("%s: %s can't be traced", kept, failures[0])
    return ChannelGraph(tuple(groups), norms)


class _Builder:
    """Follows channels through a graph, from operation to operation."""

    def __init__(self, root: nn.Module, prefix: str, tied: set[int]):
        self._root, self._prefix, self._tied = root, prefix, tied
        self._values: dict[fx.Node, Channels | None] = {}  # None: not known
        self._same: list[int] = []  # group that each group is the same as; itself at first
        self._sizes: list[int] = []
        self._parts: list[int] = []
        self._frozen: set[int] = set()
        self._members: list[tuple[int, Member]] = []
        self._called: set[str] = set()
        self.norms: dict[str, str] = {}

    def groups(self) -> list[ChannelGroup]:
        """Groups whose size may change and that something reads."""
        frozen = {self._root_of(group) for group in self._frozen}
        members: dict[int, list[Member]] = {}
        for group, member in self._members:
            members.setdefault(self._root_of(group), []).append(member)
        found = [
            ChannelGroup(self._sizes[group], tuple(own), self._parts[group])
            for group, own in members.items()
            if group not in frozen
        ]
        return [group for group in found if group.on("in") and group.on("out")]

    def visit(self, node: fx.Node) -> None:
        """Note what an operation does with channels."""
        if node.op == "call_module":
            module = self._root.get_submodule(str(node.target))
            self._values[node] = self._module(node, module)
        elif node.op == "get_attr":
            tensor = operator.attrgetter(str(node.target))(self._root)
            self._values[node] = SCALAR if tensor.numel() == 1 else None
        elif node.op in ("call_function", "call_method"):
            self._values[node] = self._operation(node, name_of(node))
        else:
            self._values[node] = self._unknown(node)

    def _operation(self, node: fx.Node, name: str) -> Channels | None:
        shape = name in ("size", "dim") or (name == "getattr" and node.args[1] == "shape")
        if shape or not self._tensors(node):
            return SCALAR
        if name in CHANNELWISE:
            return self._join(node)
        x = self._values.get(node.all_input_nodes[0])
        if name == "cat" and argument(node, 1, "dim", 0) == 1:
            return self._concatenate(node)
        if x is not None and x.axis == 1:
            if name in POOLING:
                return x
            if name == "flatten" and argument(node, 1, "start_dim", 0) == 1:
                ends = argument(node, 2, "end_dim", -1)
                return replace(x, axis=-1, flat=True) if ends == -1 else self._unknown(node)
            if name in ("view", "reshape") and len(node.args) == 3 and node.args[2] == -1:
                return replace(x, axis=-1, flat=True)
            if name == "mean" and _positions(argument(node, 1, "dim", None)):
                return x if argument(node, 2, "keepdim", False) else replace(x, axis=-1)
        return self._unknown(node)

    def _module(self, node: fx.Node, module: nn.Module) -> Channels | None:
        name, x = f"{self._prefix}{node.target}", self._values.get(node.all_input_nodes[0])
        if isinstance(module, CHANNELWISE_MODULES):
            return self._join(node)
        if isinstance(module, POOLING_MODULES) and x is not None and x.axis == 1:
            return x
        if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
            return x if x is None or x.axis == -1 else replace(x, axis=-1, flat=True)
        known = type(module) in LAYERS + VECTORS and name not in self._called
        if not known or any(id(p) in self._tied for p in module.parameters()):
            self._refuse(name)
            return self._unknown(node)
        self._called.add(name)
        if type(module) in VECTORS:
            return self._vector(node, name, module, x)
        if is_depthwise(module):
            return self._depthwise(node, name, x)
        if not self._read(name, module, x):
            self._unknown(node)
        return self._made(node, name, module)

    def _vector(self, node: fx.Node, name: str, module: Any, x: Channels | None) -> Channels | None:
        """A norm, or another module with a number a channel."""
        tensors = [t for t in (*module.parameters(), *module.buffers()) if t.dim() == 1]
        size = len(tensors[0]) if tensors else 1
        if x is None or size == 1:
            return x
        if not self._attach(name, "both", size, x):
            return self._unknown(node)
        self._note_norm(node, name, module)
        return x

    def _note_norm(self, node: fx.Node, name: str, module: nn.Module) -> None:
        """Remember a batch norm that alone takes a layer's outputs."""
        before = node.all_input_nodes[0]
        alone = before.op == "call_module" and len(before.users) == 1
        if isinstance(module, NORMS) and module.running_mean is not None and alone:
            layer = self._root.get_submodule(str(before.target))
            if type(layer) in LAYERS:
                self.norms[f"{self._prefix}{before.target}"] = name

    def _depthwise(self, node: fx.Node, name: str, x: Channels | None) -> Channels | None:
        module: Any = self._root.get_submodule(str(node.target))
        if x is None or x.axis != 1 or not self._attach(name, "both", module.in_channels, x):
            return self._unknown(node)
        return x

    def _read(self, name: str, module: Any, x: Channels | None) -> bool:
        """Whether a layer reads channels in a way that allows to cut them."""
        convolution = isinstance(module, CONVOLUTIONS)
        if x is None or x.axis != (1 if convolution else -1):
            return False
        parts = module.groups if convolution else 1
        if parts > 1 and (len(x.groups) > 1 or not self._divide(x.groups[0], parts)):
            return False
        size = module.in_channels if convolution else getattr(module, "in_features", 0)
        return self._attach(name, "in", size or module.nx, x)

    def _made(self, node: fx.Node, name: str, module: Any) -> Channels:
        convolution = isinstance(module, CONVOLUTIONS)
        size = module.out_channels if convolution else getattr(module, "out_features", 0)
        group = len(self._same)
        self._same.append(group)
        self._sizes.append(size or module.nf)
        self._parts.append(module.groups if convolution else 1)
        self._members.append((group, Member(name, "out")))
        return Channels((group,), 1 if convolution else -1)

    def _attach(self, name: str, side: Any, features: int, x: Channels) -> bool:
        """Make a module of so many features a member of all groups in x."""
        total = sum(self._sizes[group] for group in x.groups)
        span, rest = divmod(features, total)
        if rest or (span > 1 and not x.flat):
            return False
        start = 0
        for group in x.groups:
            self._members.append((group, Member(name, side, start, span)))
            start += span * self._sizes[group]
        return True

    def _join(self, node: fx.Node) -> Channels | None:
        """Tensors that an operation takes element by element have the same channels."""
        inputs = self._tensors(node)
        first = inputs[0]
        for other in inputs[1:]:
            if first is None or other is None or not self._unite(first, other):
                return self._unknown(node)
        return first

    def _unite(self, first: Channels, other: Channels) -> bool:
        sizes = [[self._sizes[group] for group in x.groups] for x in (first, other)]
        if (first.axis, first.flat, sizes[0]) != (other.axis, other.flat, sizes[1]):
            return False
        for a, b in zip(first.groups, other.groups, strict=True):
            old, new = self._root_of(a), self._root_of(b)
            self._same[old] = new
            if not self._divide(new, self._parts[old]):
                self._frozen.add(new)
        return True

    def _concatenate(self, node: fx.Node) -> Channels | None:
        parts: Any = argument(node, 0, "tensors", ())
        groups: list[int] = []
        for part in parts:
            x = self._values.get(part)
            if x is None or x.axis != 1:
                return self._unknown(node)
            groups += x.groups
        return Channels(tuple(groups), 1)

    def _divide(self, group: int, parts: int) -> bool:
        """Have a group cut equally in so many parts, if its size allows."""
        group = self._root_of(group)
        parts = math.lcm(self._parts[group], parts)
        if self._sizes[group] % parts:
            return False
        self._parts[group] = parts
        return True

    def _tensors(self, node: fx.Node) -> list[Channels | None]:
        inputs = [self._values.get(before) for before in node.all_input_nodes]
        return [x for x in inputs if x is not SCALAR]

    def _unknown(self, node: fx.Node) -> Channels | None:
        """Channels that go in must keep their number; what comes out isn't known."""
        for x in self._tensors(node):
            self._frozen |= set(x.groups if x else ())
        return None

    def _refuse(self, name: str) -> None:
        """A module that is called twice: also what its first call read and made stays."""
        self._frozen |= {group for group, member in self._members if member.module == name}

    def _root_of(self, group: int) -> int:
        while self._same[group] != group:
            group = self._same[group]
        return group


def _positions(dim: Any) -> bool:
    """Whether dimensions are all behind the channels of an image."""
    return isinstance(dim, tuple | list) and sorted(d % 4 for d in dim) == [2, 3]
