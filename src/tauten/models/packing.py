"""Replace a model's layers by packed ones, and describe them so that a file can be read back."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tauten.core.errors import CorruptError
from tauten.formats.packed import PackedWeight, from_spec
from tauten.runtime.modules import PackedConv, PackedEmbedding, PackedLinear, PackedModule

LAYERS: dict[str, type[PackedModule]] = {
    layer.__name__: layer for layer in (PackedLinear, PackedConv, PackedEmbedding)
}


def matrix_of(module: nn.Module, weight: Tensor) -> Tensor:
    """A layer's weight with rows of outputs: (out, in, ...)."""
    return weight.t() if isinstance(module, Conv1D) else weight  # GPT-2's Conv1D holds (in, out)


def packed_layer(module: nn.Module, packed: PackedWeight, activation: str) -> PackedModule:
    """The packed twin of a layer of `structure.PACKABLE`; it takes over the layer's bias."""
    dtype, bias = module.weight.dtype, getattr(module, "bias", None)
    assert isinstance(dtype, torch.dtype)
    if isinstance(module, nn.Embedding):
        return PackedEmbedding(packed, None, "float", dtype)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        activation = activation if module.groups == 1 else "float"
        return PackedConv(packed, bias, activation, dtype, _convolution_settings(module))
    return PackedLinear(packed, bias, activation, dtype)


def unpacked_layer(module: PackedLinear | PackedConv) -> nn.Module:
    """The layer of torch that a packed one stands for, with its dequantized weight."""
    weight, bias = module.weight, module.bias
    if isinstance(module, PackedLinear):
        layer: Any = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    else:
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in module.settings.items()}
        del options["pad_edges"]
        convolution: Any = nn.Conv1d if weight.dim() == 3 else nn.Conv2d
        channels = weight.shape[1] * options["groups"], weight.shape[0]
        layer = convolution(*channels, weight.shape[2:], bias=bias is not None, **options)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = bias
    made: nn.Module = layer
    return made


def replace_modules(model: nn.Module, new_of_old: dict[nn.Module, PackedModule]) -> None:
    """Put packed layers wherever the old ones stand, also where one stands in several places."""
    for parent in list(model.modules()):
        for leaf, child in list(parent.named_children()):
            if child in new_of_old:
                setattr(parent, leaf, new_of_old[child])


def packed_modules(model: nn.Module) -> Iterator[tuple[str, PackedModule]]:
    """Packed layers of a model with their names."""
    for name, module in model.named_modules():
        if isinstance(module, PackedModule):
            yield name, module


def module_spec(module: PackedModule, tied_to: str | None) -> dict[str, Any]:
    """JSON description of a packed layer; `tied_to` names the layer that holds its weight."""
    return {
        "layer": type(module).__name__,
        "activation": module.activation,
        "dtype": str(module.dtype_like.dtype).removeprefix("torch."),
        "settings": module.settings,
        "weight": module.packed.spec() if tied_to is None else {"tied_to": tied_to},
    }


def install_empty(model: nn.Module, specs: dict[str, dict[str, Any]]) -> nn.Module:
    """Replace layers by empty packed ones (weights on the meta device) as descriptions say.

    Returns:
        The model; another module only where the model itself is one layer.
    Raises:
        CorruptError: A description doesn't fit the model.
    """
    owned = {n: s for n, s in specs.items() if "tied_to" not in s.get("weight", {})}
    weights = {name: from_spec(spec.get("weight", {})) for name, spec in owned.items()}
    new_of_old: dict[nn.Module, PackedModule] = {}
    for name, spec in specs.items():
        try:
            old = model.get_submodule(name)
            layer, dtype = LAYERS[spec["layer"]], getattr(torch, spec["dtype"])
            packed = weights[spec["weight"].get("tied_to", name)]
            bias = getattr(old, "bias", None)
            new = layer(packed, bias, spec["activation"], dtype, spec["settings"])
        except (AttributeError, KeyError, TypeError) as error:
            raise CorruptError(f"packed layer {name!r} doesn't fit this model: {error}") from error
        new_of_old[old] = new
    replace_modules(model, new_of_old)
    return new_of_old.get(model, model)


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
