"""Train what a packed model can still choose, scales and norms, to predict as the original does."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError, NotApplicableError
from tauten.core.technique import TuningTechnique
from tauten.models.calibration import CalibrationBatch, fast_dtype
from tauten.models.trainable import scales_and_norms, tunable_layers
from tauten.models.training import Schedule, Training, working_folder
from tauten.solvers.distillation import output_loss


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
        if not tunable_layers(model):
            raise NotApplicableError("no linear layer is packed in integers of its own")
        batches = list(batches)
        rows = max(1, sum(batch.rows for batch in batches) // self.steps)
        pieces = [piece for batch in batches for piece in batch.split(rows)]
        schedule = Schedule(self.rate, self.epochs * len(pieces), max_time_s=0.0, seed=self.seed)

        def loss(_: int | None, batch: CalibrationBatch) -> Tensor:
            with torch.autocast("cpu", fast_dtype(), fast_dtype() == torch.bfloat16):
                with torch.no_grad():
                    target = batch.call(original)
                return output_loss(batch.call(model), target, batch.mask)

        with (
            working_folder(folder) as own,
            scales_and_norms(model, self.norms, biases=False) as trained,
        ):
            Training("tuning scales", trained, schedule, own).run(pieces, loss)
