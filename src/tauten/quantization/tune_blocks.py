"""Train scales and norms of each packed block to make what the original block made."""

from dataclasses import dataclass

import torch
from torch import nn

from tauten.core.errors import InputError, NotApplicableError
from tauten.core.inputs import BlockExamples
from tauten.core.technique import BlockTuning
from tauten.models.trainable import scales_and_norms, tunable_layers
from tauten.models.training import Schedule
from tauten.solvers.block_fit import fit_block


@dataclass(frozen=True)
class TuneBlocks(BlockTuning):
    """Gradient descent on the error of each block's outputs before the next block is packed.

    Codes stay as the technique before decided them. Inputs are those that the packed blocks
    before make, so that a block also makes up for their errors. Only one block is in memory for
    it; `tune_scales` then does better for the whole, where there is memory for that.

    Attributes:
        rate: As for `tune_scales`.
        epochs: Passes over the calibration data.
        norms: Also tune the weights of norms, which take no bytes more.
        seed: Of the order of batches.

    Source: EfficientQAT (Chen et al. 2024, arXiv:2407.11062), its block-wise phase; there the
    weights are trained too. Here codes are decided by what packed the block, and what serves
    batches held out best is kept.
    """

    name = "tune_blocks"
    pillar = "quantize"

    rate: float = 0.005
    epochs: int = 1
    norms: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise InputError(f"tune_blocks: rate={self.rate}: expected a positive number")
        if not isinstance(self.epochs, int) or self.epochs < 1:
            raise InputError(f"tune_blocks: epochs={self.epochs}: expected a positive integer")

    def tune_block(self, block: nn.Module, examples: BlockExamples) -> None:
        steps = self.epochs * (len(examples.targets) - examples.held_out)
        schedule = Schedule(self.rate, steps, max_time_s=0.0, seed=self.seed)
        if not tunable_layers(block):
            raise NotApplicableError("no linear layer is packed in integers of its own")
        with scales_and_norms(block, self.norms, biases=False) as trained:
            parameters = list(trained.values())
            optimizer = torch.optim.Adam(parameters, self.rate, betas=(0.9, 0.95))

            def update(step: int) -> None:
                for group in optimizer.param_groups:
                    group["lr"] = schedule.learning_rate(step / steps)
                optimizer.step()

            fit_block(block, examples, parameters, update, steps, self.seed)
