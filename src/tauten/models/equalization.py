"""Cross-layer equalization: channels between two layers take equal ranges of both weights."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.models.batchnorm import DIMENSIONS, frozen
from tauten.models.dataflow import Dataflow, equal_outputs

SWEEPS = 20  # over all pairs; chains of layers settle within them


def equalize(
    model: nn.Module, names: Collection[str], run: Callable[[nn.Module], Any]
) -> dict[str, nn.Module]:
    """Scale channels between layers that follow each other, directly or through a ReLU.

    Args:
        model: In evaluation mode, batch norms folded. Changed: its layers get new tensors.
        names: Linear layers and convolutions that may be changed.
        run: Calls the model; watched once for the way its tensors go, and compared before and
            after.
    Returns:
        The layers that have new tensors, by name.
    Raises:
        InputError: The model's outputs changed: it uses a layer in ways that can't be seen.
    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1.
    """
    before = run(model)
    pairs = list(_pairs(model, names, run))
    layers: dict[str, Any] = {n: model.get_submodule(n) for pair in pairs for n in pair}
    for _ in range(SWEEPS):
        for first, second in pairs:
            _equalize_pair(layers[first], layers[second])
    if pairs and not equal_outputs(before, run(model)):
        raise InputError(
            f"{type(model).__name__}: equalizing changes its outputs; pass equalize=False"
        )
    return layers


def equalizing_scale(first: Tensor, second: Tensor) -> Tensor:
    """What each channel between two weights is divided by for equal ranges on both sides.

    Args:
        first: (channels, in, ...) weight that makes them.
        second: (out, channels, ...) weight that takes them.
    Returns:
        (channels,), 1 where one of them is all zero; eq. 11.
    """
    ranges = [w.flatten(1).abs().amax(1) for w in (first, second.transpose(0, 1))]
    scale = (ranges[0] / ranges[1]).sqrt()
    return torch.where((scale > 0) & scale.isfinite(), scale, 1)


def _equalize_pair(first: Any, second: Any) -> None:
    scale = equalizing_scale(first.weight, second.weight)
    first.weight = frozen(first.weight / scale.view(-1, *[1] * (first.weight.dim() - 1)))
    if first.bias is not None:
        first.bias = frozen(first.bias / scale)
    second.weight = frozen(second.weight * scale.view(1, -1, *[1] * (second.weight.dim() - 2)))


def _pairs(
    model: nn.Module, names: Collection[str], run: Callable[[nn.Module], Any]
) -> Iterator[tuple[str, str]]:
    """Layers, each with the only one that takes its outputs."""
    modules: dict[str, Any] = dict(model.named_modules())
    owners = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    layers = {
        name: modules[name]
        for name in names
        if type(modules[name]) in DIMENSIONS and owners.count(id(modules[name].weight)) == 1
    }
    with Dataflow(layers).watching() as flow:
        run(model)
    for second, x in flow.given.items():
        made, rectified = flow.rectified.get(id(x), (x, x))
        first = flow.maker(made)
        if not first or flow.calls[first] != 1 or flow.calls[second] != 1:
            continue
        alone = flow.takers(x) == {second} and (made is x or len(flow.takers(made)) == 1)
        same = type(layers[first]) is type(layers[second]) and rectified is x
        groups = getattr(layers[second], "groups", 1)
        if alone and same and groups == 1 and x.dim() == DIMENSIONS[type(layers[second])]:
            yield first, second
