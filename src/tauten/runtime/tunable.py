"""A packed linear layer whose scales have gradients, for tuning."""

from typing import Any

import torch
from torch import Tensor, nn

from tauten.formats.integer import IntegerWeight, center, grouped
from tauten.formats.superblock import SuperblockWeight
from tauten.runtime.modules import PackedLinear


class TunableLinear(nn.Module):
    """A packed linear layer, dequantized anew at each call from a grid that has gradients.

    Args:
        layer: Packed in integers; `write_back` changes its scales (and float zeros).
        twin: Of another layer with the same packed weight: both then have one grid.
    """

    def __init__(self, layer: PackedLinear, twin: "TunableLinear | None" = None):
        super().__init__()
        packed = layer.packed
        assert isinstance(packed, IntegerWeight)
        packed.deinterleave()
        self.grid: _TunableScales | _TunableTwoLevel
        if twin is not None:
            self.grid = twin.grid
        elif isinstance(packed, SuperblockWeight):
            self.grid = _TunableTwoLevel(packed)
        else:
            self.grid = _TunableScales(packed)
        # (out, groups, size), zero at the end of a row
        self.cells: Tensor = _compact(_cells(packed)) if twin is None else twin.cells
        self.bias = layer.bias
        self._columns = packed.in_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        scale, zero = self.grid()
        y: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            x, scale, zero, self.cells, self._columns
        )
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def write_back(self) -> None:
        """Store the tuned grid in the packed layer, in the dtype that it had."""
        with torch.no_grad():
            self.grid.write_back()


class _TunableScales(nn.Module):
    """Scales s * exp(change); a float zero moves in units of its scale."""

    def __init__(self, packed: IntegerWeight):
        super().__init__()
        self._packed = packed
        self.change = nn.Parameter(torch.zeros(packed.scale.shape, dtype=torch.float32))
        moves = packed.zero_kind == "float"
        self.offset = (
            nn.Parameter(torch.zeros(packed.scale.shape, dtype=torch.float32)) if moves else None
        )

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """Scale, and the float zero where there is one: (out, groups) float32."""
        before = self._packed.scale.float()
        scale = before * self.change.exp()
        if self.offset is None:
            return scale, None
        assert self._packed.zero is not None
        return scale, self._packed.zero.float() + self.offset * before

    def write_back(self) -> None:
        scale, zero = self()
        kept = self._packed.scale.dtype
        self._packed.scale = _storable(scale, kept)
        if zero is not None:
            self._packed.zero = zero.to(kept)


class _TunableTwoLevel(nn.Module):
    """Super-scales s * exp(change), of zeros likewise; the integers below them stay."""

    def __init__(self, packed: SuperblockWeight):
        super().__init__()
        self._packed = packed
        self.change = nn.Parameter(torch.zeros(packed.super_scale.shape, dtype=torch.float32))
        moves = packed.super_zero is not None
        self.zero_change = (
            nn.Parameter(torch.zeros(packed.super_scale.shape, dtype=torch.float32))
            if moves
            else None
        )

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """Scale, and the zero where there is one: (out, groups) float32."""
        scales = self._packed.scales()
        return self._packed.grid.expand(scales._replace(**self._supers()))

    def write_back(self) -> None:
        for name, value in self._supers().items():
            setattr(self._packed, name, _storable(value, self._packed.super_scale.dtype))

    def _supers(self) -> dict[str, Tensor]:
        supers = {"super_scale": self._packed.super_scale.float() * self.change.exp()}
        if self.zero_change is not None:
            assert self._packed.super_zero is not None
            supers["super_zero"] = self._packed.super_zero.float() * self.zero_change.exp()
        return supers


def _storable(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales in a dtype, of a size that it can hold; none becomes 0 that wasn't."""
    size = scale.abs().clamp(torch.finfo(dtype).tiny, torch.finfo(dtype).max)
    return torch.where(scale == 0, 0.0, size.copysign(scale)).to(dtype)


class _Product(torch.autograd.Function):
    """x W^T with gradients for x and the grid."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero: Tensor | None, cells: Tensor, columns: int
    ) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        weight = cells * scale[..., None]
        if zero is not None:
            weight += zero[..., None]
        weight = weight.flatten(1)[:, :columns].to(dtype)  # (out, in)
        ctx.dtype, ctx.has_zero = x.dtype, zero is not None
        x = x.to(dtype)
        ctx.save_for_backward(x, weight, cells)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        x, weight, cells = ctx.saved_tensors
        to_weight = gradient.flatten(0, -2).t() @ x.flatten(0, -2)  # (out, in)
        parts = grouped(to_weight, cells.shape[-1]).float()
        to_zero = parts.sum(-1) if ctx.has_zero else None
        to_scale = (parts * cells).sum(-1)
        return (gradient @ weight).to(ctx.dtype), to_scale, to_zero, None, None


def _cells(packed: IntegerWeight) -> Tensor:
    """Codes less their integer zero, (out, groups, size) float32; codes where it is a float."""
    codes = packed.integer_codes().float()
    if packed.zero_kind == "integer":
        zero = packed.integer_zero()
        assert zero is not None
        columns = codes.shape[1]
        codes -= zero.repeat_interleave(packed.columns_per_group, 1)[:, :columns]
    elif packed.zero_kind == "none":
        codes -= center(packed.bits)
    return grouped(codes, packed.columns_per_group)


def _compact(cells: Tensor) -> Tensor:
    """The same values in a byte or two each: small integers, or halves at one bit."""
    small = cells.to(torch.int8)
    return small if torch.equal(small.float(), cells) else cells.half()
