"""What a file must tell of a model besides the values of its tensors."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from tauten.core.errors import InputError
from tauten.models.config_changes import config_of
from tauten.models.loader import tensor_slots
from tauten.runtime.modules import unsaved

CONTAINERS = (nn.ModuleList, nn.Sequential)
PASSING = ("training", "name_or_path")  # a mode, and where transformers read the model
Size = tuple[int, ...] | None


@dataclass(frozen=True)
class Outline:
    """A model's modules and tensors by name, without values.

    A module or tensor that stands in several places has an entry for each. Buffers that aren't
    saved are left out: a model makes them itself.

    Attributes:
        modules: Kept so that no later module takes over the id of one.
        kinds: Class of each module.
        children: Keys of the children of each `ModuleList` and `Sequential`, in order.
        sizes: Size of each tensor; None where a module has a place for one and none in it.
        attributes: Of each module the attributes that JSON can hold.
        ties: Groups of names that are one tensor, each of two names or more.
        config: A transformers model's configuration as JSON holds it; empty for others.
        parameters: How many numbers the parameters are.
    """

    modules: dict[str, nn.Module]
    kinds: dict[str, type]
    children: dict[str, list[str]]
    sizes: dict[str, Size]
    attributes: dict[str, dict[str, Any]]
    ties: set[tuple[str, ...]]
    config: dict[str, Any]
    parameters: int

    def difference(self, other: "Outline") -> str:
        """Where another model isn't shaped alike; empty if it is. Configurations don't count."""
        for what in ("kinds", "children", "sizes", "attributes"):
            mine, others = getattr(self, what), getattr(other, what)
            for name in [*mine, *(name for name in others if name not in mine)]:
                if mine.get(name, ...) != others.get(name, ...):
                    return f"{what} of {name or 'the model itself'}"
        changed = self.ties ^ other.ties
        return f"what {min(changed)[0]} is tied to" if changed else ""


def outline(model: nn.Module) -> Outline:
    """The outline of a model as it is now."""
    modules = dict(model.named_modules(remove_duplicate=False))
    groups = [tuple(slot.names) for slot in tensor_slots(model)]
    return Outline(
        modules=modules,
        kinds={name: type(module) for name, module in modules.items()},
        children={n: list(m._modules) for n, m in modules.items() if isinstance(m, CONTAINERS)},
        sizes={k: s for name, module in modules.items() for k, s in _sizes(name, module).items()},
        attributes={name: _attributes(module) for name, module in modules.items()},
        ties={group for group in groups if len(group) > 1},
        config=config_of(model),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _sizes(name: str, module: nn.Module) -> dict[str, Size]:
    prefix = f"{name}." if name else ""
    own: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
    return {
        prefix + key: None if tensor is None else tuple(tensor.shape)
        for key, tensor in own.items()
        if key not in unsaved(module)
    }


def _attributes(module: nn.Module) -> dict[str, Any]:
    public = {k: v for k, v in vars(module).items() if not k.startswith("_")}
    plain = {k: _jsonable(v) for k, v in public.items() if is_plain(v)}
    return {key: value for key, value in plain.items() if key not in PASSING}


def is_plain(value: Any) -> bool:
    """Whether JSON can hold an attribute."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _jsonable(value: Any) -> Any:
    return [_jsonable(item) for item in value] if isinstance(value, tuple | list) else value


def layers_of(model: nn.Module) -> dict[str, Any]:
    """What a file can tell of a module that it doesn't hold: its classes and torch's settings.

    Returns:
        By module name the name of its class, and of torch's own classes what they were made with:
        all that changes what they compute in evaluation.
    """
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        kind = type(module)
        own = kind.__module__.startswith("torch.nn.") and not isinstance(module, _DropoutNd)
        settings = {k: v for k, v in _attributes(module).items() if k != "inplace"} if own else {}
        absent = [key for key, tensor in module._parameters.items() if tensor is None]
        found[name] = {"class": kind.__qualname__, **settings, "without": absent}
    return found


def check_layers(written: dict[str, Any], model: nn.Module, file: str) -> None:
    """Raise InputError where a module isn't built as the one that a file was made from.

    Args:
        written: `layers_of` that one.
        model: That is passed instead.
        file: For the message.
    """
    given = layers_of(model)
    for name in [*written, *(name for name in given if name not in written)]:
        mine, other = (layers.get(name, {"class": "missing"}) for layers in (given, written))
        for key in sorted({*mine, *other}):
            if mine.get(key) != other.get(key):
                where = f"{name or 'the model itself'}: {key}"
                raise InputError(
                    f"the model isn't what {file} was made from: {where} is {mine.get(key)!r}, and "
                    f"was {other.get(key)!r}; pass a module that is built the same"
                )
