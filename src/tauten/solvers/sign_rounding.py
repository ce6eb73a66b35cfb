"""Learn how weights are rounded, and how wide their grids are, by the signs of gradients."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tauten.formats.integer import center, grouped
from tauten.solvers.grid import Grid
from tauten.solvers.second_order import output_error

WIDEST, NARROWEST = 1.5, 0.5  # a half of a grid's span, relative to where it started
MOST_OFFSET = 0.5  # of a step: rounding may go to the other level around a weight


class LearnedRounding(nn.Module):
    """A weight on a grid, with gradients for an offset before rounding and for the grid's ends.

    code = clip(round(w / scale + zero + offset)), and both ends of the grid move as parts of where
    they were. Rounding passes gradients on as if it weren't there.

    Args:
        weight: (out, in) floating.
        bits: 1 to 8.
        group_size: Columns a group; 0 for the whole row.
        grid: What it starts from; its dtypes are those of the result.

    Source: SignRound, Cheng et al. 2023, arXiv:2309.05516, eqs. 3 to 5. There the ends start at
    the smallest and largest weight and only move inwards; here the grid may be any, and a float
    zero is allowed.
    """

    def __init__(self, weight: Tensor, bits: int, group_size: int, grid: Grid):
        super().__init__()
        self._columns, self._bits = weight.shape[1], bits
        self._scale_dtype = grid[0].dtype
        self._zero_dtype = None if grid[1] is None else grid[1].dtype
        self._cells = grouped(weight.float(), group_size or self._columns)  # (out, groups, size)
        scale, zero = grid[0].float(), None if grid[1] is None else grid[1].float()
        if self._is_float:
            assert zero is not None
            self._pivot = zero + scale * (2**bits - 1) / 2  # what the ends move from and to
            self._low = zero - self._pivot
        else:
            self._pivot = torch.zeros_like(scale)
            self._low = -scale * (center(bits) if zero is None else zero)
        self._high = self._low + scale * (2**bits - 1)
        self.offset = nn.Parameter(torch.zeros_like(self._cells))
        self.low_share = nn.Parameter(torch.ones_like(scale))
        self.high_share = nn.Parameter(torch.ones_like(scale))

    @property
    def _is_float(self) -> bool:
        return self._zero_dtype is not None and self._zero_dtype.is_floating_point

    def forward(self) -> Tensor:
        """The rounded weight, (out, in) float32."""
        scale, zero = self._grid()
        codes = self._codes(scale, zero)
        cells = codes * scale[..., None] + zero[..., None] if self._is_float else codes
        if not self._is_float:
            cells = (codes - zero[..., None]) * scale[..., None]
        values: Tensor = cells.flatten(1)[:, : self._columns]
        return values

    @torch.no_grad()
    def rounded(self) -> tuple[Tensor, Grid]:
        """Codes (out, in) uint8 and the grid, as `IntegerWeight.from_codes` takes them."""
        scale, zero = self._grid()
        codes = self._codes(scale, zero).round().to(torch.uint8).flatten(1)[:, : self._columns]
        kept = None if self._zero_dtype is None else zero
        if kept is not None:
            kept = (kept if self._is_float else kept.round()).to(self._zero_dtype)
        return codes, (scale.to(self._scale_dtype), kept)

    def _grid(self) -> tuple[Tensor, Tensor]:
        """Scale and zero (out, groups) float32, of values that are stored."""
        top = 2**self._bits - 1
        high = self._high * self.high_share
        if self._zero_dtype is None:
            scale = _as_stored(high / (top - center(self._bits)), self._scale_dtype)
            return scale, torch.full_like(scale, center(self._bits))
        low = self._low * self.low_share
        scale = _as_stored((high - low) / top, self._scale_dtype)
        if self._is_float:
            return scale, _as_stored(self._pivot + low, self._zero_dtype)
        return scale, _straight_round(-low / scale).clamp(0, top)

    def _codes(self, scale: Tensor, zero: Tensor) -> Tensor:
        """(out, groups, size), whole numbers."""
        steps = self._cells - zero[..., None] if self._is_float else self._cells
        steps = steps / scale[..., None]
        steps = steps if self._is_float else steps + zero[..., None]
        return _straight_round(steps + self.offset).clamp(0, 2**self._bits - 1)


@torch.no_grad()
def sign_step(roundings: Iterable[LearnedRounding], rate: float) -> None:
    """Move each parameter by `rate` against the sign of its gradient, within its bounds."""
    for rounding in roundings:
        bounds = {"offset": (-MOST_OFFSET, MOST_OFFSET)}
        for name, parameter in rounding.named_parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad.sign(), alpha=rate)
                parameter.clamp_(*bounds.get(name, (NARROWEST, WIDEST)))


def learn_alone(rounding: LearnedRounding, weight: Tensor, moment: Tensor, steps: int) -> None:
    """Fit a weight's rounding to the outputs of its layer; each row ends where it was best.

    Args:
        rounding: Changed in place.
        weight: (out, in) float32.
        moment: (in, in), mean of x x^T.
        steps: Each costs two products of the weight with the moment.
    """
    least, best = torch.full((len(weight),), torch.inf, dtype=torch.float32), rounding.state_dict()
    for step in range(steps + 1):
        with torch.enable_grad():
            error = output_error(rounding() - weight, moment)
            error.sum().backward()
        better = error.detach() < least
        least = torch.where(better, error.detach(), least)
        best = {
            name: torch.where(better.view(-1, *[1] * (now.dim() - 1)), now, best[name])
            for name, now in rounding.state_dict().items()
        }
        if step < steps:
            sign_step([rounding], (1 - step / steps) / steps)
        rounding.zero_grad()
    rounding.load_state_dict(best)


def _straight_round(values: Tensor) -> Tensor:
    """Rounded, with gradients as if it weren't."""
    return values + (values.round() - values).detach()


def _as_stored(values: Tensor, dtype: torch.dtype | None) -> Tensor:
    """What is left of values in a dtype, with gradients as if all were."""
    return values + (values.to(dtype).float() - values).detach()
