"""Replace a model's layers by packed ones, and describe them so that a file can be read back."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from typing_extensions import TypedDict

from tauten.core.description import checked, exact
from tauten.core.dtypes import dtype_name
from tauten.core.errors import CorruptError
from tauten.formats.packed import PackedWeight, from_spec
from tauten.models.replacing import take_over
from tauten.models.structure import PACKABLE
from tauten.runtime.modules import (
    PackedConv,
    PackedConv1D,
    PackedEmbedding,
    PackedLinear,
    PackedModule,
)
from tauten.runtime.own_forward import with_own_forward

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@exact
class PackedSpec(TypedDict):
    """What `module_spec` gives; `weight` is the `spec` of a packed weight, or `tied_to` a layer."""

    layer: Literal["PackedLinear", "PackedConv1D", "PackedConv", "PackedEmbedding"]
    activation: Literal["float", "int8", "static"]
    bias: bool
    dtype: Literal["float64", "float32", "float16", "bfloat16"]
    settings: dict[str, Any]
    weight: dict[str, Any]


@exact
class ChangedSpec(TypedDict):
    """What `change_spec` gives."""

    layer: Literal["Identity", "WithBias"]


def matrix_of(module: nn.Module, weight: Tensor) -> Tensor:
    """A layer's weight with rows of outputs: (out, in, ...)."""
    return weight.t() if isinstance(module, Conv1D) else weight  # GPT-2's Conv1D holds (in, out)


def packed_layer(
    module: nn.Module, packed: PackedWeight, activation: str, step: Tensor | None = None
) -> PackedModule:
    """The packed twin of a layer of `structure.PACKABLE`, with its bias, attributes and hooks.

    Static activations without a step (), because nothing was observed, are rounded as they come.
    """
    if activation == "static" and step is None:
        activation = "int8"
    dtype, bias = module.weight.dtype, getattr(module, "bias", None)
    assert isinstance(dtype, torch.dtype)
    if isinstance(module, nn.Embedding):
        activation, bias = "float", None
    if isinstance(module, CONVOLUTIONS) and module.groups > 1:
        activation = "float"
    step = step if activation == "static" else None
    return _twin(module, packed, bias, activation, dtype, step)


def _twin(
    old: nn.Module,
    weight: PackedWeight,
    bias: nn.Parameter | None,
    activation: str,
    dtype: torch.dtype,
    step: Tensor | None,
) -> PackedModule:
    """A packed layer as the class of the layer it replaces wants it, with all that it had."""
    settings = _convolution_settings(old) if isinstance(old, CONVOLUTIONS) else None
    packed = _packed_class(old)(weight, bias, activation, dtype, settings, step)
    made = packed if type(old) in PACKABLE else with_own_forward(type(old), packed)
    take_over(made, old)
    return made


def _packed_class(module: nn.Module) -> type[PackedModule]:
    if isinstance(module, nn.Embedding):
        return PackedEmbedding
    if isinstance(module, CONVOLUTIONS):
        return PackedConv
    return PackedConv1D if isinstance(module, Conv1D) else PackedLinear


def unpacked_layer(module: PackedLinear | PackedConv) -> nn.Module:
    """The layer of torch that a packed one stands for, with its dequantized weight."""
    weight, bias = module.packed.dequantize(module.dtype_like.dtype), module.bias
    if isinstance(module, PackedLinear):
        layer: Any = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    else:
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in module.settings.items()}
        del options["pad_edges"]
        convolution: Any = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[weight.dim()]
        channels = weight.shape[1] * options["groups"], weight.shape[0]
        layer = convolution(*channels, weight.shape[2:], bias=bias is not None, **options)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = bias
    take_over(layer, module)
    made: nn.Module = layer
    return made


def prepacked(model: nn.Module) -> nn.Module:
    """The model with its packed weights laid out for the kernels, before anyone calls or traces it.

    Weights on the meta device, which are still to be loaded, stay as they are.
    """
    for _, layer in packed_modules(model):
        layer.prepare()
    return model


def write_out(model: nn.Module, names: Iterable[str]) -> None:
    """Replace packed layers by dense ones, in place."""
    new_of_old: dict[nn.Module, nn.Module] = {}
    for name in names:
        layer = model.get_submodule(name)
        if isinstance(layer, PackedLinear | PackedConv):
            new_of_old[layer] = unpacked_layer(layer).eval()
    replace_modules(model, new_of_old)


def replace_modules(model: nn.Module, new_of_old: Mapping[nn.Module, nn.Module]) -> None:
    """Put new layers wherever the old ones stand, also where one stands in several places."""
    for parent in list(model.modules()):
        for leaf, child in list(parent._modules.items()):  # also the second of two names
            if child is not None and child in new_of_old:
                setattr(parent, leaf, new_of_old[child])


def packed_modules(model: nn.Module) -> Iterator[tuple[str, PackedModule]]:
    """Packed layers of a model with their names."""
    for name, module in model.named_modules():
        if isinstance(module, PackedModule):
            yield name, module


def module_spec(module: PackedModule, tied_to: str | None) -> dict[str, Any]:
    """JSON description of a packed layer; `tied_to` names the layer that holds its weight."""
    return {
        "layer": getattr(module, "stands_for", type(module).__name__),
        "activation": module.activation,
        "bias": module.bias is not None,
        "dtype": dtype_name(module.dtype_like.dtype),
        "settings": module.settings,
        "weight": module.packed.spec() if tied_to is None else {"tied_to": tied_to},
    }


def change_spec(old: nn.Module, new: nn.Module) -> dict[str, Any] | None:
    """JSON description of what a technique made of a module before packing.

    None where the module to be loaded has the same tensors.
    """
    if isinstance(new, nn.Identity):
        return {"layer": "Identity"}
    gained = getattr(new, "bias", None) is not None and getattr(old, "bias", None) is None
    return {"layer": "WithBias"} if gained else None


def install_empty(model: nn.Module, specs: dict[str, dict[str, Any]]) -> nn.Module:
    """Replace layers by empty ones (new tensors on the meta device) as descriptions say.

    Returns:
        The model; another module only where the model itself is one layer.
    Raises:
        CorruptError: A description doesn't fit the model.
    """
    for name, spec in specs.items():
        kind = ChangedSpec if spec.keys() == {"layer"} else PackedSpec
        checked(kind, spec, f"packed layer {name!r}")
    packed = {n: s["weight"] for n, s in specs.items() if "weight" in s}
    weights = {n: from_spec(weight) for n, weight in packed.items() if "tied_to" not in weight}
    new_of_old: dict[nn.Module, nn.Module] = {}
    for name, spec in specs.items():
        try:
            old = model.get_submodule(name)
            if name in packed:
                weight = weights[packed[name].get("tied_to", name)]
                new: nn.Module = _empty_layer(old, spec, weight)
            else:
                new = CHANGED[spec["layer"]](old)
        except (AttributeError, KeyError, TypeError) as error:
            raise CorruptError(f"packed layer {name!r} doesn't fit this model: {error}") from error
        new_of_old[old] = new
    replace_modules(model, new_of_old)
    return new_of_old.get(model, model)


def _empty_layer(old: Any, spec: dict[str, Any], weight: PackedWeight) -> PackedModule:
    dtype, bias = getattr(torch, spec["dtype"]), getattr(old, "bias", None)
    if bias is None and spec["bias"]:
        bias = _empty_bias(weight.shape[0], dtype)
    is_static = spec["activation"] == "static"
    step = torch.empty((), device="meta", dtype=torch.float32) if is_static else None
    made = _twin(old, weight, bias, spec["activation"], dtype, step)
    found = {**module_spec(made, None), "weight": tuple(matrix_of(old, old.weight).shape)}
    for key, value in {**spec, "weight": weight.shape}.items():
        if found[key] != value:
            raise TypeError(f"its {key} is {value}, that of the model is {found[key]}")
    return made


def _with_empty_bias(old: nn.Module) -> nn.Module:
    new: Any = copy.copy(old)
    new._parameters = dict(old._parameters)
    new.bias = _empty_bias(new.weight.shape[0], new.weight.dtype)
    layer: nn.Module = new
    return layer


def _empty_bias(rows: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, dtype=dtype, device="meta"), requires_grad=False)


# What a layer that isn't packed became, by the name of that in a description.
CHANGED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "Identity": lambda old: nn.Identity(),
    "WithBias": _with_empty_bias,
}


def _convolution_settings(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> dict[str, Any]:
    padding = module.padding if isinstance(module.padding, str) else list(module.padding)
    return {
        "stride": list(module.stride),
        "padding": padding,
        "dilation": list(module.dilation),
        "groups": module.groups,
        "padding_mode": module.padding_mode,
        "pad_edges": list(module._reversed_padding_repeated_twice),
    }
