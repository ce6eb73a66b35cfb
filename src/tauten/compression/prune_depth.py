"""Leave out the blocks that a model's predictions need least."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from tauten.compression.block_chain import BlockChain, check_choice, chosen_count
from tauten.core.errors import NotApplicableError
from tauten.core.progress import track
from tauten.core.technique import ShapingTechnique


@dataclass(frozen=True)
class PruneDepth(ShapingTechnique):
    """Blocks are removed one at a time, each time the one without which predictions move least.

    That is measured, on the model without the blocks that are gone already: KL divergence of the
    predictions from the original's, or the error of the outputs where there are no logits. The
    angle between a block's input and output only says which blocks are worth measuring.

    Attributes:
        fraction: Of the blocks that are removed, in (0, 1).
        count: Blocks to remove; 0 to go by the fraction.
        candidates: Blocks measured for each one removed.
        batches: Of the data that are measured on, 2048 tokens or 64 examples each.

    Cost: count * candidates runs of, on average, half the blocks and the head; the hidden states
    before each block and the original's predictions are kept.
    Source: removal by measured perplexity is in SLEB (Song et al. 2024, arXiv:2402.09025), the
    angle is the block influence of ShortGPT (Men et al. 2024, arXiv:2403.03853). Here the
    measure is KL, which needs no labels, and the angle never decides.
    """

    name = "prune_depth"
    pillar = "compress"

    fraction: float = 0.25
    count: int = 0
    candidates: int = 8
    batches: int = 1

    def __post_init__(self) -> None:
        check_choice(self.name, self.knobs())

    def reshape(self, model: nn.Module, batches: Sequence[Any]) -> None:
        chain = BlockChain(model, batches[: self.batches], self.name)
        kept = list(range(len(chain.blocks)))
        count = chosen_count(self.name, self.fraction, self.count, len(kept))
        for _ in track(range(count), "removing blocks", count):
            kept.remove(self._least_needed(chain, kept))
        keep_blocks(model, chain.names, kept)

    def _least_needed(self, chain: BlockChain, kept: list[int]) -> int:
        plan = [chain.plan[place] for place in kept]
        states = chain.states(plan)
        angles = {
            step: block_influence(states[step], states[step + 1])
            for step in range(len(plan))
            if states[step][0].shape == states[step + 1][0].shape
        }
        if not angles:
            raise NotApplicableError(
                "prune_depth: every block changes the size of what it is given"
            )
        likely = sorted(angles, key=lambda step: angles[step])[: self.candidates]
        losses = {kept[step]: chain.loss(plan[step + 1 :], states[step]) for step in likely}
        return min(losses, key=lambda block: losses[block])


def block_influence(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """1 - mean cosine of what a block is given and what it makes.

    Args:
        before: Batches of (rows, length, features), or (rows, ...) whose rows are compared whole.
        after: Of the same sizes.
    Source: ShortGPT (Men et al. 2024, arXiv:2403.03853), eq. 1.
    """
    cosines = [
        torch.cosine_similarity(_vectors(x).float(), _vectors(y).float(), dim=-1).mean()
        for x, y in zip(before, after, strict=True)
    ]
    return 1 - float(torch.stack(cosines).mean())


def _vectors(state: Tensor) -> Tensor:
    return state.flatten(0, 1) if state.dim() == 3 else state.flatten(1)


def keep_blocks(model: nn.Module, names: Sequence[str], kept: Sequence[int]) -> None:
    """Leave only some blocks in a model, numbered anew, also in a transformers configuration.

    Args:
        names: Of all blocks, children of one `ModuleList` or `Sequential`.
        kept: Indices, ascending.
    """
    container: Any = model.get_submodule(names[0].rpartition(".")[0])
    for index in sorted(set(range(len(names))) - set(kept), reverse=True):
        del container[index]
    for index, block in enumerate(container):
        for module in block.modules():  # caches are found by this number
            if getattr(module, "layer_idx", None) == kept[index]:
                module.layer_idx = index
    config = getattr(model, "config", None)
    if isinstance(config, PreTrainedConfig):
        _shorten(config.get_text_config(), len(names), kept)


def _shorten(config: PreTrainedConfig, count: int, kept: Sequence[int]) -> None:
    if config.is_encoder_decoder or getattr(config, "num_hidden_layers", None) != count:
        return  # it counts other layers, such as those of the encoder
    for key, value in config.to_dict().items():
        if "layer" in key and isinstance(value, list) and len(value) == count:
            setattr(config, key, [value[index] for index in kept])
    config.num_hidden_layers = len(kept)
