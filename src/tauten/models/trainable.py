"""What of a model is trained: all its weights, low-rank changes of them, or its scales and norms.

Each function is a context: inside, the model computes with tensors that can be trained; after it,
the model is as before with what was trained in it, in the dtypes that it had. Tensors that a model
shares with another are replaced, never written into.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from tauten.core.errors import NotApplicableError
from tauten.formats.integer import IntegerWeight
from tauten.models.packing import packed_modules
from tauten.models.structure import packable_modules
from tauten.runtime.modules import PackedLinear
from tauten.runtime.tunable import TunableLinear

SMALLEST_SHIFT = 0.01  # what a bias of zeros moves in units of
Trained = dict[str, Tensor]  # by name; those that require gradients are learned by descent


@contextlib.contextmanager
def all_weights(model: nn.Module, keep_zeros: bool = False) -> Iterator[Trained]:
    """Train every floating parameter in float32; batch norms follow the statistics of the data.

    Args:
        model: Without packed layers.
        keep_zeros: Weights of matrices and kernels that are 0 stay 0.
    """
    norms = [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
    floating = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    dtypes = {name: parameter.dtype for name, parameter in floating.items()}
    trained: Trained = dict(floating)
    kept = []
    for parameter in floating.values():
        parameter.data = parameter.detach().to(torch.float32, copy=True)
        parameter.requires_grad_(True)
        if keep_zeros and parameter.dim() > 1:
            kept.append(parameter.register_hook(lambda g, weight=parameter: g * (weight != 0)))
    for name, norm in norms:
        norm.train()
        for key, buffer in norm._buffers.items():
            if buffer is not None:
                norm._buffers[key] = trained[f"{name}.{key}"] = buffer.clone()
    try:
        yield trained
    finally:
        for hook in kept:
            hook.remove()
        for name, parameter in floating.items():
            parameter.grad = None
            parameter.requires_grad_(False).data = parameter.detach().to(dtypes[name])
        model.eval()


@contextlib.contextmanager
def low_rank(
    model: nn.Module, rank: int, seed: int = 0, keep_zeros: bool = False
) -> Iterator[Trained]:
    """Train W + B A of each layer instead of W, and put the sum into the layer at the end.

    Embeddings and weights that are tied stay as they are.

    Args:
        model: Its packed layers stay as they are too.
        rank: Rows of A.
        seed: Of A's start; B starts at 0.
        keep_zeros: Weights that are 0 stay 0.
    Raises:
        NotApplicableError: There is no such layer.
    Source: LoRA (Hu et al. 2021, arXiv:2106.09685), eq. 3 with a scale of 1.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    layers = {
        name: layer
        for name, layer in packable_modules(model)
        if not isinstance(layer, nn.Embedding) and uses[id(layer.weight)] == 1
    }
    if not layers:
        raise NotApplicableError("no layer has a weight of its own that isn't packed")
    trained: Trained = {}
    for name, layer in layers.items():
        change = LowRank(layer.weight, rank, generator, keep_zeros)  # type: ignore[arg-type]
        parametrize.register_parametrization(layer, "weight", change)
        trained |= {f"{name}.up": change.up, f"{name}.down": change.down}
    try:
        yield trained
    finally:
        for layer in layers.values():
            _settle(layer, "weight")


@contextlib.contextmanager
def scales_and_norms(
    model: nn.Module, norms: bool = True, biases: bool = True
) -> Iterator[Trained]:
    """Train the scales of layers packed in integers, the weights of norms, and biases.

    All are learned relative to what they are, so that one learning rate serves them.

    Args:
        model: Dense or packed.
        norms: Whether those of norms.
        biases: Whether those of all modules.
    Raises:
        NotApplicableError: It has nothing of the kind.
    """
    model.requires_grad_(False)
    with _scales(model) as scales, _vectors(model, norms, biases) as vectors:
        if not scales and not vectors:
            raise NotApplicableError("it has no norm, no bias and no layer packed in integers")
        yield scales | vectors


@contextlib.contextmanager
def _scales(model: nn.Module) -> Iterator[Trained]:
    layers = tunable_layers(model)
    grids: dict[int, TunableLinear] = {}  # by packed weight: tied layers have one in common
    trained: Trained = {}
    for name, layer in layers.items():
        known = grids.get(id(layer.packed))
        tunable = TunableLinear(layer, known)
        model.set_submodule(name, tunable)
        if known is None:
            grids[id(layer.packed)] = tunable
            trained |= {f"{name}.{key}": p for key, p in tunable.grid.named_parameters()}
    try:
        yield trained
    finally:
        for tunable in grids.values():
            tunable.write_back()
        for name, layer in layers.items():
            layer.bias = model.get_submodule(name).bias  # type: ignore[assignment]
            model.set_submodule(name, layer)


@contextlib.contextmanager
def _vectors(model: nn.Module, norms: bool, biases: bool) -> Iterator[Trained]:
    changes: dict[int, Relative | Shift] = {}  # by tensor: tied modules have one in common
    settled: list[tuple[nn.Module, str, nn.Module]] = []
    trained: Trained = {}
    for name, module in list(model.named_modules()):
        chosen = {"weight": norms and _is_norm(module), "bias": biases and _has_bias(module)}
        for key in (key for key, wanted in chosen.items() if wanted):
            tensor = module._parameters[key]
            assert tensor is not None, "only what is there is chosen"
            if id(tensor) not in changes:
                changes[id(tensor)] = (Relative if key == "weight" else Shift)(tensor)
                trained[f"{name}.{key}"] = changes[id(tensor)].change
            settled.append((module, key, changes[id(tensor)]))
            parametrize.register_parametrization(module, key, changes[id(tensor)])
    try:
        yield trained
    finally:
        values: dict[int, nn.Parameter] = {}
        for module, key, change in settled:
            value = _settle(module, key)
            setattr(module, key, values.setdefault(id(change), value))


def tunable_layers(model: nn.Module) -> dict[str, PackedLinear]:
    """Packed linear layers whose weight no other kind reads: its rows have no gradient there."""
    modules = dict(packed_modules(model))
    read = {id(m.packed) for m in modules.values() if not isinstance(m, PackedLinear)}
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, PackedLinear)
        and isinstance(module.packed, IntegerWeight)
        and id(module.packed) not in read
    }


class LowRank(nn.Module):
    """W + B A: the parametrization of `low_rank`."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator, keep_zeros: bool):
        super().__init__()
        rows, columns = weight.flatten(1).shape
        start = torch.randn(rank, columns, generator=generator, dtype=torch.float32) / columns**0.5
        self.down = nn.Parameter(start.to(weight.device))
        self.up = nn.Parameter(start.new_zeros(rows, rank))
        self._keep_zeros = keep_zeros

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in, ...) -> the same shape and dtype."""
        change = (self.up @ self.down).view_as(weight)
        if self._keep_zeros:
            change = change * (weight != 0)
        return (weight + change).to(weight.dtype)


class Relative(nn.Module):
    """w exp(u): how the weights of norms are learned."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.change = nn.Parameter(torch.zeros_like(weight, dtype=torch.float32))

    def forward(self, weight: Tensor) -> Tensor:
        """(features,) -> the same shape and dtype."""
        return (weight * self.change.exp()).to(weight.dtype)


class Shift(nn.Module):
    """b + u times the typical size of b: how biases are learned."""

    def __init__(self, bias: Tensor):
        super().__init__()
        self.change = nn.Parameter(torch.zeros_like(bias, dtype=torch.float32))
        self._unit = max(float(bias.detach().float().square().mean().sqrt()), SMALLEST_SHIFT)

    def forward(self, bias: Tensor) -> Tensor:
        """(features,) -> the same shape and dtype."""
        return (bias + self.change * self._unit).to(bias.dtype)


def _settle(module: nn.Module, key: str) -> nn.Parameter:
    """Put what a parametrization makes of a tensor into its place, as a tensor of its own."""
    value = nn.Parameter(getattr(module, key).detach().clone(), requires_grad=False)
    parametrize.remove_parametrizations(module, key, leave_parametrized=False)
    setattr(module, key, value)
    return value


def _is_norm(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return "Norm" in type(module).__name__ and weight is not None and weight.dim() == 1


def _has_bias(module: nn.Module) -> bool:
    bias = module._parameters.get("bias")
    return bias is not None and bias.is_floating_point()
