"""A packed linear layer whose scales have gradients, for tuning."""

from typing import Any

import torch
from torch import Tensor, nn

from tauten.formats.integer import IntegerWeight, center, grouped
from tauten.runtime.modules import PackedLinear


class TunableLinear(nn.Module):
    """Multiplies by scale * exp(change) * (code - zero), dequantized anew at each call.

    Args:
        layer: Packed in integers; `write_back` changes its scales (and float zeros).
    """

    def __init__(self, layer: PackedLinear):
        super().__init__()
        assert isinstance(layer.packed, IntegerWeight)
        packed = layer.packed
        packed.deinterleave()
        self._layer, self._packed = [layer], packed  # in a list: it is no part of this module
        self.bias = layer.bias
        self.change = nn.Parameter(torch.zeros(packed.scale.shape))
        moves = packed.zero_kind == "float"
        self.offset = nn.Parameter(torch.zeros(packed.scale.shape)) if moves else None
        self._codes = packed.integer_codes()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        scale, zero = self._grid()
        y: Tensor = _Product.apply(x, scale, zero, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def cells(self) -> Tensor:
        """Codes less their integer zero, (out, groups, size) float32."""
        packed = self._packed
        codes = grouped(self._codes.float(), packed.columns_per_group)
        if packed.zero_kind == "integer":
            zero = packed.integer_zero()
            assert zero is not None
            return codes - zero.float()[..., None]
        return codes if packed.zero_kind == "float" else codes - center(packed.bits)

    def write_back(self) -> None:
        """Store the tuned grid in the packed layer, in the dtype that it had."""
        with torch.no_grad():
            scale, zero = self._grid()
            kept = self._packed.scale.dtype
            smallest = torch.finfo(kept).tiny
            self._packed.scale = scale.clamp(smallest, torch.finfo(kept).max).to(kept)
            if zero is not None:
                self._packed.zero = zero.to(kept)

    def _grid(self) -> tuple[Tensor, Tensor | None]:
        """Scale, and the float zero where there is one: (out, groups) float32."""
        before = self._packed.scale.float()
        scale = before * self.change.exp()
        if self.offset is None:
            return scale, None
        assert self._packed.zero is not None
        return scale, self._packed.zero.float() + self.offset * before


class _Product(torch.autograd.Function):
    """x W^T with gradients for x and the grid; W and its gradient exist one layer at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor | None, layer: Any) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        ctx.layer, ctx.dtype = layer, x.dtype
        x = x.to(dtype)
        ctx.save_for_backward(x, scale, zero)
        return x @ _weight(layer, scale, zero, dtype).t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, scale, zero = ctx.saved_tensors
        to_x = gradient @ _weight(ctx.layer, scale, zero, x.dtype)
        to_weight = gradient.flatten(0, -2).t() @ x.flatten(0, -2)  # (out, in)
        cells = ctx.layer.cells()
        parts = grouped(to_weight.float(), cells.shape[-1])
        to_zero = None if zero is None else parts.sum(-1)
        return to_x.to(ctx.dtype), (parts * cells).sum(-1), to_zero, None


def _weight(layer: TunableLinear, scale: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    cells = layer.cells() * scale[..., None]
    if zero is not None:
        cells = cells + zero[..., None]
    return cells.flatten(1)[:, : layer._codes.shape[1]].to(dtype)
