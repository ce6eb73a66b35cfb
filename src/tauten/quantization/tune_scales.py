"""Train what a packed model can still choose, scales and norms, to predict as the original does."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError, NotApplicableError
from tauten.core.progress import track
from tauten.core.technique import TuningTechnique
from tauten.formats.integer import IntegerWeight
from tauten.models.calibration import CalibrationBatch, fast_dtype
from tauten.models.packing import packed_modules
from tauten.runtime.modules import PackedEmbedding, PackedLinear
from tauten.runtime.tunable import TunableLinear
from tauten.solvers.distillation import output_loss

WARM_UP = 0.1  # part of the steps in which the rate grows to its full size


@dataclass(frozen=True)
class TuneScales(TuningTechnique):
    """Gradient descent on the divergence from the original, codes as they are.

    A scale s becomes s * exp(u), a norm's weight w likewise, and u starts at 0, so that one rate
    serves all of them. A float zero moves in units of its scale. It takes the whole packed model
    and the original in memory.

    Attributes:
        rate: Step of u at full size; it falls to 0 along a cosine.
        epochs: Passes over the calibration data.
        steps: Steps a pass, as far as there are examples.
        norms: Also tune the weights of norms, which take no bytes more.
        seed: Of the order of batches.

    Source: EfficientQAT (Chen et al. 2024, arXiv:2407.11062), its end-to-end phase; here against
    the original's predictions instead of the text, and with norms.
    """

    name = "tune_scales"
    pillar = "quantize"

    rate: float = 0.005
    epochs: int = 1
    steps: int = 32
    norms: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise InputError(f"tune_scales: rate={self.rate}: expected a positive number")
        if not isinstance(self.epochs, int) or self.epochs < 1:
            raise InputError(f"tune_scales: epochs={self.epochs}: expected a positive integer")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise InputError(f"tune_scales: steps={self.steps}: expected a positive integer")

    def tune(
        self,
        model: nn.Module,
        original: nn.Module,
        batches: Iterable[CalibrationBatch],
        folder: Path | None = None,
    ) -> None:
        packed, batches = model, list(batches)
        layers = _tunable_layers(packed)
        if not layers:
            raise NotApplicableError("no linear layer is packed in integers of its own")
        wrapped = {name: TunableLinear(layer) for name, layer in layers.items()}
        norms = _RelativeNorms(packed) if self.norms else None
        try:
            for name, tunable in wrapped.items():
                packed.set_submodule(name, tunable)
            parameters = [p for tunable in wrapped.values() for p in tunable.parameters()]
            parameters += norms.parameters if norms else []
            self._descend(packed, original, batches, parameters, norms)
        finally:
            for name, layer in layers.items():
                packed.set_submodule(name, layer)
        for tunable in wrapped.values():
            tunable.write_back()

    def _descend(
        self,
        packed: nn.Module,
        original: nn.Module,
        batches: Sequence[CalibrationBatch],
        parameters: list[nn.Parameter],
        norms: "_RelativeNorms | None",
    ) -> None:
        optimizer = torch.optim.Adam(parameters, self.rate, betas=(0.9, 0.95))
        rows = max(1, sum(batch.rows for batch in batches) // self.steps)
        batches = [piece for batch in batches for piece in batch.split(rows)]
        order = _order(len(batches), self.epochs, self.seed)
        steps = len(order)
        for step, index in enumerate(track(order, "tuning scales", steps)):
            for group in optimizer.param_groups:
                group["lr"] = self.rate * _schedule(step, steps)
            batch = batches[index]
            with torch.no_grad(), torch.autocast("cpu", fast_dtype()):
                target = original(*batch.args, **batch.kwargs)
            with torch.enable_grad(), torch.autocast("cpu", fast_dtype()):
                if norms:
                    norms.place()
                loss = output_loss(packed(*batch.args, **batch.kwargs), target, batch.mask)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if norms:
            norms.settle()


class _RelativeNorms:
    """Weights of a model's norms, times the exponential of what is trained."""

    def __init__(self, model: nn.Module):
        found = [m for m in model.modules() if _is_norm(m)]
        self._weights: list[tuple[nn.Module, Tensor]] = []
        for module in found:
            weight = module.weight
            assert isinstance(weight, Tensor)
            self._weights.append((module, weight.detach()))
        self.parameters = [nn.Parameter(torch.zeros_like(w)) for _, w in self._weights]

    def place(self) -> None:
        """Put the weights of this step into the model, as functions of the parameters."""
        for (module, weight), change in zip(self._weights, self.parameters, strict=True):
            module._parameters.pop("weight", None)
            module.weight = weight * change.exp()

    def settle(self) -> None:
        """Put the trained weights into the model for good."""
        for (module, weight), change in zip(self._weights, self.parameters, strict=True):
            del module.weight
            tuned = (weight * change.detach().exp()).to(weight.dtype)
            module.weight = nn.Parameter(tuned, requires_grad=False)


def _is_norm(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return "Norm" in type(module).__name__ and weight is not None and weight.dim() == 1


def _tunable_layers(model: nn.Module) -> dict[str, PackedLinear]:
    """Packed linear layers whose weight no embedding reads: its rows have no gradient here."""
    modules = dict(packed_modules(model))
    read = {id(m.packed) for m in modules.values() if isinstance(m, PackedEmbedding)}
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, PackedLinear)
        and isinstance(module.packed, IntegerWeight)
        and id(module.packed) not in read
    }


def _order(count: int, epochs: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    passes = [torch.randperm(count, generator=generator) for _ in range(epochs)]
    order: list[int] = torch.cat(passes).tolist()
    return order


def _schedule(step: int, steps: int) -> float:
    """Part of the full rate: a linear start, then a cosine to 0."""
    start = min(1.0, (step + 1) / max(1.0, WARM_UP * steps))
    return start * 0.5 * (1 + math.cos(math.pi * step / steps))
