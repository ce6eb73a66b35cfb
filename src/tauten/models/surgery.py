"""What changed in a model's shape, found by comparison, and done again on an empty model.

So a technique may reshape a model as it likes, and a file of the result still needs no code.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from tauten.core.description import Size, Sizes, checked, exact
from tauten.core.errors import CorruptError, InputError, first_line
from tauten.models.batch import MISFITS
from tauten.models.config_changes import changed_config, set_config
from tauten.models.loader import place, tensor_slots
from tauten.models.low_rank_residual import LowRankResidual
from tauten.models.outline import CONTAINERS, Outline, is_plain, outline


@exact
@dataclass(frozen=True)
class Surgery:
    """How a reshaped model differs from what it was made from; plain data.

    Names are those of the reshaped model, but for `children`.

    Attributes:
        children: By the former name of a `ModuleList` or `Sequential` the former keys of its
            children, in order; they are numbered anew.
        identities: Modules that became `nn.Identity`.
        residuals: Layers that became the `shared` layer of a `LowRankResidual`, and its rank.
        sizes: New size of each tensor that has another; None for one that is gone.
        attributes: By module its plain attributes that have another value.
        ties: Groups of names that are one tensor now, or one name that is a tensor of its own.
        config: What changed in the model's `config`.
    """

    children: dict[str, list[str]] = field(default_factory=dict)
    identities: list[str] = field(default_factory=list)
    residuals: dict[str, Size] = field(default_factory=dict)
    sizes: dict[str, Sizes | None] = field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    ties: list[list[str]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether the shape is the same."""
        return self == Surgery()

    def to_dict(self) -> dict[str, Any]:
        """JSON data that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> "Surgery":
        """Read what `to_dict` wrote.

        Raises:
            CorruptError: It wrote something else.
        """
        found: Surgery = checked(cls, data, "structure", "make the artifact anew")
        return found


def describe(before: Outline, model: nn.Module) -> Surgery:
    """Find out what was changed.

    Args:
        before: Outline of the same model object, taken before.
        model: As it is now.
    Raises:
        InputError: A module is of another class than before, and none that a file can hold.
    """
    after = outline(model)
    former = _former_names(before, after)
    residuals = _new_residuals(before, after, former)
    identities = []
    for name, kind in after.kinds.items():
        old = before.kinds.get(former[name])
        if kind is nn.Identity and old is not nn.Identity:
            identities.append(name)
        elif kind is not old and name not in residuals:
            was = "not there" if old is None else f"a {old.__name__}"
            raise InputError(f"{name} is a {kind.__name__} and was {was}: a file can't hold that")
    return Surgery(
        children=_children(before, after, former),
        identities=identities,
        residuals=residuals,
        sizes=_new_sizes(before, after, former, residuals),
        attributes=_new_attributes(before, after, former, identities),
        ties=_new_ties(before, after, former),
        config=changed_config(before.config, after.config),
    )


def operate(model: nn.Module, surgery: Surgery) -> nn.Module:
    """Make a model that is shaped like the result of a surgery.

    Args:
        model: Shaped like what the surgery was done on; changed in place. Dtypes are kept.
    Returns:
        The model, with all tensors that are saved on the meta device.
    Raises:
        CorruptError: The surgery doesn't fit this model.
    """
    try:
        _keep_children(model, surgery.children)
        for name in surgery.identities:
            model.set_submodule(name, nn.Identity())
        for name, rank in surgery.residuals.items():
            model.set_submodule(name, LowRankResidual.empty(model.get_submodule(name), rank))
        for name, values in surgery.attributes.items():
            _set_attributes(model.get_submodule(name), values)
        _resize(model, surgery.sizes)
        _tie(model, surgery.ties)
        if surgery.config:
            set_config(model.config, surgery.config)  # type: ignore[arg-type]
    except (*MISFITS, StrictDataclassError) as error:
        raise CorruptError(
            f"the structure doesn't fit this {type(model).__name__} ({first_line(error)}); "
            "pass a model shaped like the one that was reshaped"
        ) from error
    for slot in tensor_slots(model):
        if not slot.empty.is_meta:
            place(slot, torch.empty_like(slot.empty, device="meta"))
    return model


def summary(before: Outline, after: Outline, surgery: Surgery) -> str:
    """What a surgery did, in one line."""
    parts = []
    for name, keys in surgery.children.items():
        count, kept = len(before.children[name]), set(keys)
        gone = [key for key in before.children[name] if key not in kept]
        parts.append(f"removed {len(gone)} of the {count} in {name} ({', '.join(gone)})")
    if surgery.identities:
        parts.append(f"passed by {len(surgery.identities)} modules")
    if surgery.residuals:
        ranks = ", ".join(map(str, sorted(set(surgery.residuals.values()))))
        parts.append(f"gave {len(surgery.residuals)} layers a residual of rank {ranks}")
    if surgery.sizes:
        parts.append(f"resized {len(surgery.sizes)} tensors")
    if surgery.ties:
        parts.append(f"tied {sum(map(len, surgery.ties))} tensors to {len(surgery.ties)}")
    if before.parameters != after.parameters:
        parts.append(f"{before.parameters:,} -> {after.parameters:,} parameters")
    return "; ".join(parts) or "trained in the shape it had"


def _former_names(before: Outline, after: Outline) -> dict[str, str]:
    """For each module now, what it was called; children of a container are known by identity."""
    known: dict[int, list[str]] = {}
    for name, module in before.modules.items():
        known.setdefault(id(module), []).append(name)
    former: dict[str, str] = {"": ""}
    for name, module in after.modules.items():
        if not name:
            continue
        parent, _, key = name.rpartition(".")
        prefix = f"{former[parent]}." if former[parent] else ""
        former[name] = prefix + key
        is_residual = after.kinds[parent] is LowRankResidual
        if is_residual and before.kinds.get(former[parent]) is not LowRankResidual:
            former[name] = former[parent]  # its `shared` stood in its place
        if isinstance(after.modules[parent], CONTAINERS):
            beside = (
                n for n in known.get(id(module), []) if n.rpartition(".")[0] == former[parent]
            )
            former[name] = next(beside, prefix + key)
    return former


def _new_residuals(before: Outline, after: Outline, former: dict[str, str]) -> dict[str, int]:
    return {
        name: module.rank
        for name, module in after.modules.items()
        if isinstance(module, LowRankResidual)
        and before.kinds.get(former[name]) is not LowRankResidual
    }


def _children(before: Outline, after: Outline, former: dict[str, str]) -> dict[str, list[str]]:
    found = {}
    for name, keys in after.children.items():
        prefix = f"{name}." if name else ""
        kept = [former[prefix + key].rpartition(".")[2] for key in keys]
        if kept != before.children.get(former[name]):
            found[former[name]] = kept
    return found


def _new_sizes(
    before: Outline, after: Outline, former: dict[str, str], residuals: dict[str, int]
) -> dict[str, list[int] | None]:
    changed: dict[str, list[int] | None] = {}
    for name, size in after.sizes.items():
        module, _, key = name.rpartition(".")
        if module not in residuals and size != before.sizes.get(_joined(former[module], key)):
            changed[name] = None if size is None else list(size)
    return changed


def _new_attributes(
    before: Outline, after: Outline, former: dict[str, str], identities: list[str]
) -> dict[str, dict[str, Any]]:
    changed = {}
    for name, values in after.attributes.items():
        old = before.attributes[former[name]]
        new = {key: v for key, v in values.items() if key not in old or old[key] != v}
        if new and name not in identities:
            changed[name] = new
    return changed


def _new_ties(before: Outline, after: Outline, former: dict[str, str]) -> list[list[str]]:
    """Groups that weren't groups, and names that have left one."""
    now_of: dict[str, list[str]] = {}
    for name in after.sizes:
        module, _, key = name.rpartition(".")
        now_of.setdefault(_joined(former[module], key), []).append(name)
    kept = [[now for old in group for now in now_of.get(old, [])] for group in before.ties]
    kept += [names for names in now_of.values() if len(names) > 1]
    tied = {name for group in after.ties for name in group}
    left = {name for group in kept if len(group) > 1 for name in group} - tied
    same = {frozenset(group) for group in kept}
    new = [list(group) for group in after.ties if frozenset(group) not in same]
    return sorted(new) + [[name] for name in sorted(left)]


def _joined(module: str, key: str) -> str:
    return f"{module}.{key}" if module else key


def _keep_children(model: nn.Module, children: dict[str, list[str]]) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, keys in children.items():
        container = modules[name]
        kept = [container._modules[key] for key in keys]
        container._modules.clear()
        container._modules.update({str(index): child for index, child in enumerate(kept)})


def _set_attributes(module: nn.Module, values: dict[str, Any]) -> None:
    for key, value in values.items():
        old = getattr(module, key, None)
        if key.startswith("_") or not (is_plain(old) and is_plain(value)):
            raise TypeError(f"{key} of a {type(module).__name__} can't be set to {value!r}")
        setattr(module, key, tuple(value) if isinstance(old, tuple) else value)


def _resize(model: nn.Module, sizes: dict[str, list[int] | None]) -> None:
    """Empty tensors of other sizes; what was one tensor and still is of one size stays one."""
    made: dict[tuple[int, tuple[int, ...]], tuple[Tensor, Tensor]] = {}
    for name, size in sizes.items():
        module, key = _place_of(model, name)
        store = _store_of(module, key)
        old = store.get(key)
        if size is None:
            store[key] = None
            continue
        like = (
            getattr(module, "weight", torch.empty(0, dtype=torch.float32)) if old is None else old
        )
        dtype = like.dtype
        new = _empty(size, dtype, store is module._parameters)
        if old is not None:
            new = made.setdefault((id(old), tuple(size)), (old, new))[1]
        store[key] = new


def _tie(model: nn.Module, ties: list[list[str]]) -> None:
    for names in ties:
        module, key = _place_of(model, names[0])
        store = _store_of(module, key)
        old = store[key]
        if old is None:
            raise KeyError(names[0])
        shared = _empty(list(old.shape), old.dtype, store is module._parameters)
        for name in names:
            module, key = _place_of(model, name)
            _store_of(module, key)[key] = shared


def _place_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    module, _, key = name.rpartition(".")
    return model.get_submodule(module), key


def _store_of(module: nn.Module, key: str) -> dict[str, Tensor | None]:
    store: Any = module._buffers if key in module._buffers else module._parameters
    found: dict[str, Tensor | None] = store
    return found


def _empty(size: list[int], dtype: torch.dtype, is_parameter: bool) -> Tensor:
    tensor = torch.empty(size, dtype=dtype, device="meta")
    return nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
