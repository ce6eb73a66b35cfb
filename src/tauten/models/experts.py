"""Mixture-of-experts layers with a linear layer a matrix, so that each expert is packed alone.

transformers holds the experts of a layer as two tensors, (experts, 2 * hidden, in) and
(experts, in, hidden). Here each matrix is an `nn.Linear` on its slice of them: what packs, observes
or loads linear layers then does so for experts, under the names that most checkpoints have.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.inputs import TOKENS_PER_FEATURE, LayerInputs

_ORDINARY = {  # what transformers says of experts; its earlier versions don't say all of it
    "has_gate": True,
    "is_concatenated": True,
    "is_transposed": False,
    "has_bias": False,
    "has_post_expert_norm": False,
}


class Expert(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, gate: Tensor, up: Tensor, down: Tensor, act_fn: nn.Module):
        super().__init__()
        self.gate_proj, self.up_proj = _linear(gate), _linear(up)
        self.down_proj = _linear(down)
        self.act_fn = act_fn

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, in) -> (tokens, in)."""
        x = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        output: Tensor = self.down_proj(x)
        return output


class Experts(nn.ModuleList):
    """The experts of one layer, called as transformers calls its own.

    Attributes:
        shown_all: Experts that compute all tokens, also those routed elsewhere, whose outputs are
            dropped: for calibration.
    """

    def __init__(self, gate_up: Tensor, down: Tensor, act_fn: nn.Module):
        halves = (matrix.chunk(2) for matrix in gate_up.detach())
        pairs = zip(halves, down.detach(), strict=True)
        super().__init__(Expert(gate, up, last, act_fn) for (gate, up), last in pairs)
        self.shown_all: frozenset[int] = frozenset()

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Sum the outputs of each token's experts.

        Args:
            hidden_states: (tokens, in) floating.
            top_k_index: (tokens, k) integer, experts of each token; larger numbers are no expert.
            top_k_weights: (tokens, k) floating.
        Returns:
            (tokens, in), same dtype.
        """
        total = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            token, choice = torch.where(top_k_index == number)
            if number in self.shown_all:
                output = expert(hidden_states)[token]
            elif len(token):
                output = expert(hidden_states[token])
            else:
                continue
            output = output * top_k_weights[token, choice, None]
            total.index_add_(0, token, output.to(total.dtype))
        return total


def unfuse_experts(model: nn.Module) -> nn.Module:
    """Replace fused experts by linear layers on the same memory, in place.

    Experts with biases, transposed matrices or a gate of their own stay as they are.
    """
    for parent in list(model.modules()):
        for leaf, child in list(parent._modules.items()):
            if child is not None and _is_fused(child):
                setattr(parent, leaf, Experts(child.gate_up_proj, child.down_proj, child.act_fn))  # type: ignore[arg-type]
    return model


def has_experts(block: nn.Module) -> bool:
    """Whether some of its layers are experts."""
    return any(isinstance(module, Experts) for module in block.modules())


def routed_layers(block: nn.Module, prefix: str) -> frozenset[str]:
    """Names of the linear layers of all experts: which tokens come to one, a router decides."""
    return frozenset(
        f"{name}.{inner}"
        for name, experts in block.named_modules(prefix=prefix)
        if isinstance(experts, Experts)
        for inner, layer in experts.named_modules()
        if isinstance(layer, nn.Linear)
    )


def show_starved(block: nn.Module, prefix: str, tokens: Mapping[str, int]) -> dict[str, nn.Linear]:
    """Make experts that too few tokens were routed to compute all tokens.

    Args:
        block: Changed: see `Experts.shown_all`.
        prefix: Of its layers' names in `tokens`.
        tokens: How many its layers saw.
    Returns:
        Layers of those experts by name.
    """
    layers: dict[str, nn.Linear] = {}
    for name, experts in block.named_modules(prefix=prefix):
        if not isinstance(experts, Experts):
            continue
        starved = set()
        for number, expert in enumerate(experts):
            own = {
                f"{name}.{number}.{leaf}": layer
                for leaf, layer in expert.named_children()
                if isinstance(layer, nn.Linear)
            }
            needed = TOKENS_PER_FEATURE * max(layer.in_features for layer in own.values())
            seen = [tokens.get(key, 0) for key in own]
            if min(seen) < needed:
                starved.add(number)
                layers |= own
        experts.shown_all = frozenset(starved)
    return layers


def starved_note(routed: LayerInputs | None, shown: LayerInputs) -> str:
    """What the report says of a layer that was calibrated on all tokens."""
    count = 0 if routed is None else routed.tokens
    return (
        f"only {count} tokens reached this expert: calibrated on what it would make of all "
        f"{shown.tokens}"
    )


def _is_fused(module: Any) -> bool:
    """Whether a module is one of transformers' fused experts of the ordinary kind."""
    gate = getattr(type(module), "_apply_gate", None)
    if gate is None or gate.__module__ != "transformers.integrations.moe":  # one of its own
        return False
    return all(getattr(module, name, value) == value for name, value in _ORDINARY.items())


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer
