"""Decisions of the native library against the plain loop, and of its instruction sets."""

import pytest
import torch
from torch import Tensor

from tauten.formats.superblock import TwoLevelGrid
from tauten.runtime import library
from tauten.solvers.columns import GridRounder
from tauten.solvers.grid import column_rounder, fit_grid
from tauten.solvers.second_order import curvature, damped, descend, output_error, sweep
from tauten.solvers.two_level import column_rounder as two_level_rounder
from tauten.solvers.two_level import fit_two_level

NATIVE = library.load()
native_only = pytest.mark.skipif(NATIVE is None, reason="the native library isn't built")


def problem(rows: int = 37, columns: int = 150) -> tuple[Tensor, Tensor]:
    """A weight, and a second moment of correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator)
    inputs = torch.randn(400, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator), inputs.t() @ inputs / 400


def rounders(matrix: Tensor) -> dict[str, GridRounder]:
    two_level = {zero: TwoLevelGrid(3, 16, 64, 4, zero) for zero in ("none", "float")}
    found = {f"plain {zero}": plain_rounder(matrix, zero) for zero in ("none", "integer", "float")}
    for zero, grid in two_level.items():
        found[f"two-level {zero}"] = two_level_rounder(grid, fit_two_level(matrix, grid))
    return found


def plain_rounder(matrix: Tensor, zero: str) -> GridRounder:
    return column_rounder(*fit_grid(matrix, 3, 32, zero, "mse"), 3, 32)


KINDS = tuple(rounders(torch.eye(2, 150)))


def is_level(values: Tensor, rounder: GridRounder) -> Tensor:
    """Whether each value is a level of its group, for (out, in)."""
    columns = torch.arange(values.shape[1]) // rounder.size
    step, low = rounder.step[:, columns].double(), rounder.low[:, columns].double()
    code = (values.double() - low) / step
    whole = (code - code.round()).abs() < 1e-4
    return whole & (code > -0.5) & (code < rounder.top + 0.5)


@native_only
@pytest.mark.parametrize("kind", KINDS)
def test_the_library_decides_as_the_plain_loop(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    matrix, moment = problem()
    rounder, curve = rounders(matrix)[kind], curvature(moment, 0.01, True)
    moment = damped(moment, curve.damping)

    def decide() -> tuple[Tensor, Tensor]:
        swept = sweep(matrix, curve, rounder)
        return swept, descend(matrix, swept, moment, rounder)

    swept, descended = decide()
    monkeypatch.setattr(library, "load", lambda: None)
    plainly_swept, plainly_descended = decide()
    for ours, plain in ((swept, plainly_swept), (descended, plainly_descended)):
        # A value half-way between two levels may fall to either; all that follow then differ.
        same = (ours == plain).all(1)
        assert same.float().mean() > 0.9
        assert bool(is_level(ours, rounder).all())
        error, plain_error = (output_error(v - matrix, moment).sum() for v in (ours, plain))
        torch.testing.assert_close(error, plain_error, rtol=0.01, atol=0)
    assert bool(
        (output_error(descended - matrix, moment) <= output_error(swept - matrix, moment)).all()
    )


@native_only
@pytest.mark.parametrize("kind", KINDS)
def test_all_instruction_sets_decide_alike(kind: str) -> None:
    assert NATIVE is not None
    matrix, moment = problem()
    rounder, curve = rounders(matrix)[kind], curvature(moment, 0.01, True)
    usual, found = library.SETS[NATIVE.isa], []
    for name in filter(NATIVE.supports, library.SETS):
        NATIVE.use(name)
        found.append(sweep(matrix, curve, rounder))
    NATIVE.use(usual)
    assert all(torch.equal(other, found[0]) for other in found)


def test_a_group_with_one_level_takes_it() -> None:
    step, low = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.25, 0.0]])
    rounder = GridRounder(step, low, 3, 2)
    matrix = torch.tensor([[5.0, -5.0, 2.2, 9.0]])
    curve = curvature(torch.eye(4), 1e-6, False)
    assert sweep(matrix, curve, rounder).tolist() == [[0.25, 0.25, 2.0, 3.0]]


def test_halves_go_to_even_codes_and_ends_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.tensor([[-7.0, 0.5, 1.5, 2.5, 3.5, 99.0]])
    rounder = GridRounder(torch.ones(1, 1), torch.zeros(1, 1), 3, 6)
    curve = curvature(torch.eye(6), 1e-6, False)
    expected = [[0.0, 0.0, 2.0, 2.0, 3.0, 3.0]]
    assert sweep(matrix, curve, rounder).tolist() == expected
    monkeypatch.setattr(library, "load", lambda: None)
    assert sweep(matrix, curve, rounder).tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_how_a_matrix_lies_in_memory_is_nothing_to_it(kind: str) -> None:
    """Weights of GPT-2 lie transposed."""
    matrix, moment = problem()
    across = matrix.t().contiguous().t()
    found = []
    for given in (matrix, across):
        rounder, curve = rounders(given)[kind], curvature(moment, 0.01, True)
        swept = sweep(given, curve, rounder)
        found.append(descend(given, swept.t().contiguous().t(), moment, rounder))
    assert torch.equal(*found)
