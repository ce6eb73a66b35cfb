"""Second moments of inputs that are correlated and differ in strength, as layers see them."""

import torch

from tauten.core.inputs import LayerInputs


def layer_inputs(size: int, seed: int, tokens: int = 2000) -> LayerInputs:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator) * torch.logspace(-0.5, 0.5, size)
    inputs = torch.randn(tokens, size, generator=generator) @ mixing
    return LayerInputs(inputs.t() @ inputs / tokens, tokens)
