"""Heads and feed-forward widths of transformers, known by the names of their layers.

torch.fx can't trace transformers' own classes as a whole; their layers, however, have the same
few names in most architectures. What these names must mean is checked against the layers' sizes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tauten.core.errors import NotApplicableError
from tauten.models.channel_groups import LAYERS, ChannelGroup, Member, width

FEED_FORWARDS = (  # the layers that make the features, and the one that reads them
    (("gate_proj", "up_proj"), "down_proj"),
    (("w1", "w3"), "w2"),
    (("intermediate.dense",), "output.dense"),
    (("fc1",), "fc2"),
    (("lin1",), "lin2"),
    (("linear1",), "linear2"),
    (("up_proj",), "down_proj"),
    (("c_fc",), "c_proj"),
    (("wi_0", "wi_1"), "wo"),
    (("wi",), "wo"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
)
ATTENTIONS = (  # the module that counts heads; queries, keys, values and what reads the result
    ("", "q_proj", "k_proj", "v_proj", "o_proj"),
    ("self", "self.query", "self.key", "self.value", "output.dense"),
)
HEAD_SIZES = ("head_dim", "attention_head_size")


@dataclass(frozen=True)
class Attention:
    """An attention whose heads can be cut.

    Attributes:
        holder: Name of the module that counts heads.
        layers: Names of the layers of queries, keys, values and output.
        heads: Of queries.
        kv_heads: Of keys and values; each serves `heads / kv_heads` neighbouring queries.
        head_size: Features of a head.
    """

    holder: str
    layers: tuple[str, str, str, str]
    heads: int
    kv_heads: int
    head_size: int

    def whole_groups(self) -> ChannelGroup:
        """Keys with all queries they serve, to be cut together."""
        q, k, v, o = self.layers
        served = self.heads // self.kv_heads * self.head_size
        keys = [Member(name, "out", 0, self.head_size) for name in (k, v)]
        members = Member(q, "out", 0, served), *keys, Member(o, "in", 0, served)
        return ChannelGroup(self.kv_heads, members)

    def queries(self) -> ChannelGroup:
        """Queries, equally many of each key."""
        q, _, _, o = self.layers
        sides = Member(q, "out", 0, self.head_size), Member(o, "in", 0, self.head_size)
        return ChannelGroup(self.heads, sides, self.kv_heads)


def feed_forwards(model: nn.Module) -> list[ChannelGroup]:
    """The hidden features of every feed-forward network, in the order of the model.

    Raises:
        NotApplicableError: One has tensors beside its layers that depend on the width.
    """
    found: list[ChannelGroup] = []
    taken: set[str] = set()
    for parent, (makers, reader) in _matches(model, FEED_FORWARDS):
        names = [*makers, reader]
        sizes = {width(model.get_submodule(parent + name), "out") for name in makers}
        sizes.add(width(model.get_submodule(parent + reader), "in"))
        if len(sizes) == 1 and not taken & {parent + name for name in names}:
            taken |= {parent + name for name in names}
            _check_no_norms(model, parent, parent + reader, *sizes)
            members = [Member(parent + name, "out") for name in makers]
            found.append(ChannelGroup(sizes.pop(), (*members, Member(parent + reader, "in"))))
    return found


def attentions(model: nn.Module) -> list[Attention]:
    """Every attention whose heads can be cut, in the order of the model.

    Raises:
        NotApplicableError: One has tensors beside its layers that depend on the number of heads.
    """
    found = []
    for parent, (inner, *layers) in _matches(model, ATTENTIONS):
        holder = f"{parent}{inner}".rstrip(".")
        module = model.get_submodule(holder)
        size = next((getattr(module, name) for name in HEAD_SIZES if hasattr(module, name)), 0)
        q, k, v, o = (parent + name for name in layers)
        made = [width(model.get_submodule(name), "out") for name in (q, k, v)]
        fits = made[0] == width(model.get_submodule(o), "in") and made[1] == made[2]
        if not size or not fits or made[0] % made[1] or made[1] % size:
            continue
        _check_no_more_tensors(holder, module, size)
        found.append(Attention(holder, (q, k, v, o), made[0] // size, made[1] // size, size))
    return found


def set_heads(model: nn.Module, attention: Attention, heads: int, kv_heads: int) -> None:
    """Have the module that counts heads count these."""
    module = model.get_submodule(attention.holder)
    counts = {
        "num_heads": (attention.heads, heads),
        "num_attention_heads": (attention.heads, heads),
        "num_key_value_heads": (attention.kv_heads, kv_heads),
        "num_key_value_groups": (attention.heads // attention.kv_heads, heads // kv_heads),
        "all_head_size": (attention.heads * attention.head_size, heads * attention.head_size),
    }
    for name, (old, new) in counts.items():
        if getattr(module, name, None) == old:
            setattr(module, name, new)


def update_sizes(model: nn.Module, changes: dict[str, tuple[int, int]], needed: str) -> None:
    """Write new sizes into the configs of a transformers model, and wherever modules copied them.

    Args:
        model: Changed in place, in all its layers alike.
        changes: By field the old and the new number.
        needed: A field without which a config can't express the change; it is then left alone.
    """
    modules: Sequence[Any] = list(model.modules())
    configs = {id(m.config): m.config for m in modules if hasattr(m, "config")}
    able = [c for c in configs.values() if getattr(c, needed, None) is not None]
    for holder in (*able, *modules):
        for name, (old, new) in changes.items():
            if vars(holder).get(name) == old:
                setattr(holder, name, new)


def _matches(model: nn.Module, rows: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Modules under which a row's names are layers: with the prefix of names in it."""
    modules = dict(model.named_modules())
    for parent in modules:
        prefix = f"{parent}." if parent else ""
        for row in rows:
            names = [name for part in row for name in ([part] if isinstance(part, str) else part)]
            layers = names[1:] if row in ATTENTIONS else names
            if all(type(modules.get(prefix + name)) in LAYERS for name in layers):
                yield prefix, row
                break


def _check_no_norms(model: nn.Module, parent: str, reader: str, size: int) -> None:
    """Refuse norms and depthwise convolutions of a width's features, which would be cut too."""
    if width(model.get_submodule(reader), "out") == size:
        return  # they may as well be of what comes in and goes out
    for name, module in model.get_submodule(parent.rstrip(".")).named_modules():
        if type(module) in LAYERS and getattr(module, "groups", 1) == 1:
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.dim() != 2 and len(parameter) == size:
                raise NotApplicableError(
                    f"{parent}{name}.{key} has the shape {tuple(parameter.shape)}: how it depends "
                    "on the width isn't known"
                )


def _check_no_more_tensors(name: str, holder: nn.Module, head_size: int) -> None:
    """Norms of a head's features don't mind how many heads there are; nothing else is known."""
    layers = {"q_proj", "k_proj", "v_proj", "o_proj", "query", "key", "value"}
    for key, parameter in holder.named_parameters():
        if key.split(".")[0] not in layers and parameter.shape != (head_size,):
            raise NotApplicableError(
                f"{name}.{key} has the shape {tuple(parameter.shape)}: how it depends on the "
                "number of heads isn't known"
            )
