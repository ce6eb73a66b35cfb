"""Fold batch norms into the layers before them: fewer operations, and one weight to round."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.models.dataflow import Dataflow, equal_outputs
from tauten.models.packing import replace_modules

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DIMENSIONS = {nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}  # with channels second


def fold_batch_norms(
    model: nn.Module, names: Collection[str], run: Callable[[nn.Module], Any]
) -> dict[str, nn.Module]:
    """Fold each batch norm whose input is one layer's output, taken by nothing else.

    Args:
        model: In evaluation mode. Changed: its layers get new tensors, folded norms become
            `nn.Identity`.
        names: Linear layers and convolutions that may be changed.
        run: Calls the model; watched once for the way its tensors go, and compared before and
            after.
    Returns:
        The modules that are new or whose tensors are, by name.
    Raises:
        InputError: The model's outputs changed: it uses a layer in ways that can't be seen.
    Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2.
    """
    before = run(model)
    changed: dict[str, nn.Module] = {}
    for layer_name, norm_name in list(_pairs(model, names, run)):
        layer: Any = model.get_submodule(layer_name)
        norm = model.get_submodule(norm_name)
        layer.weight, layer.bias = map(frozen, folded(layer, norm))
        changed |= {layer_name: layer, norm_name: nn.Identity()}
        replace_modules(model, {norm: changed[norm_name]})
    if changed and not equal_outputs(before, run(model)):
        raise InputError(
            f"{type(model).__name__}: folding its batch norms changes its outputs; pass fold=False"
        )
    return changed


def folded(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight (out, in, ...) and bias (out,) of a layer that does a batch norm's part too."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -norm.running_mean.double() if layer.bias is None else layer.bias - norm.running_mean
    bias = shift.double() * scale
    bias = bias if norm.bias is None else bias + norm.bias
    weight = layer.weight.double() * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    return weight.to(layer.weight.dtype), bias.to(layer.weight.dtype)


def _pairs(
    model: nn.Module, names: Collection[str], run: Callable[[nn.Module], Any]
) -> Iterator[tuple[str, str]]:
    """Layers and the batch norms that alone take their outputs, by name."""
    modules = dict(model.named_modules())
    layers = {name: modules[name] for name in names if type(modules[name]) in DIMENSIONS}
    norms = {n: m for n, m in modules.items() if type(m) in NORMS and m.running_mean is not None}
    with Dataflow(layers | norms).watching() as flow:
        run(model)
    owners = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    for norm in norms:
        x = flow.given.get(norm)
        layer = "" if x is None else flow.maker(x)
        if x is None or layer not in layers or flow.takers(x) != {norm} or id(x) in flow.rectified:
            continue
        once = flow.calls[layer] == flow.calls[norm] == 1
        tied = owners.count(id(layers[layer].weight)) > 1
        if once and not tied and x.dim() == DIMENSIONS[type(layers[layer])]:
            yield layer, norm


def frozen(tensor: Tensor) -> nn.Parameter:
    """A tensor as the parameter of a model that isn't trained."""
    return nn.Parameter(tensor.detach(), requires_grad=False)
