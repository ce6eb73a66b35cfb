"""A linear layer whose weight is that of another, but for a difference of low rank."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D


class LowRankResidual(nn.Module):
    """y = shared(x) + up (down x).

    What packs, observes or trains linear layers finds `shared` as any other of them. The two
    factors are plain parameters: they are trained, but not packed.

    Args:
        shared: `nn.Linear`, transformers' `Conv1D`, or such a layer packed. Its weight may stand
            in other layers too; its bias is of this layer alone.
        up: (out, rank) floating.
        down: (rank, in) floating.
    """

    def __init__(self, shared: nn.Module, up: Tensor, down: Tensor):
        super().__init__()
        self.shared = shared
        self.up = nn.Parameter(up, requires_grad=False)
        self.down = nn.Parameter(down, requires_grad=False)

    @classmethod
    def empty(cls, shared: nn.Module, rank: int) -> "LowRankResidual":
        """The same with factors on the meta device, in the dtype of the layer's weight."""
        weight = shared.weight
        assert isinstance(weight, Tensor)
        columns, rows = weight.shape if isinstance(shared, Conv1D) else weight.shape[::-1]
        up = torch.empty(rows, rank, dtype=weight.dtype, device="meta")
        return cls(shared, up, up.new_empty(rank, columns))

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return len(self.down)

    @property
    def weight(self) -> Tensor:
        """What x is multiplied by in sum, for model code that reads it; as `shared` holds it."""
        residual = self.up @ self.down
        own: Tensor = self.shared.weight  # type: ignore[assignment]
        return own + (residual.t() if isinstance(self.shared, Conv1D) else residual)

    @property
    def bias(self) -> Tensor | None:
        """Of the layer; None if it has none."""
        found: Tensor | None = self.shared.bias  # type: ignore[assignment]
        return found

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y: Tensor = self.shared(x)
        return y + functional.linear(functional.linear(x, self.down), self.up)
