"""The nearest matrix of low rank: the identities of Eckart and Young, in outputs."""

import pytest
import torch

from tauten.core.errors import NotApplicableError
from tauten.solvers.low_rank import nearest_low_rank


def example(rows: int = 12, columns: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix, and inputs of which some columns are much stronger than others."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(-1, 1, columns)
    inputs = torch.randn(400, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator), inputs


def error(matrix: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor], inputs: torch.Tensor):
    """Mean squared error of outputs."""
    up, down = pair
    return float(((matrix - up @ down) @ inputs.t()).square().sum() / len(inputs))


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_error_is_that_of_the_singular_values_left_out(shape: tuple[int, int], rank: int) -> None:
    matrix, inputs = example(*shape)
    moment = inputs.t() @ inputs / len(inputs)
    up, down = nearest_low_rank(matrix, rank, moment, damping=1e-9)
    assert up.shape == (shape[0], rank) and down.shape == (rank, shape[1])
    # Of the outputs themselves, which need no Cholesky factor.
    values = torch.linalg.svdvals((matrix @ inputs.t()).double()) / len(inputs) ** 0.5
    assert error(matrix, (up, down), inputs) == pytest.approx(
        float(values[rank:].square().sum()), rel=1e-3
    )


def test_weighting_by_inputs_beats_the_plain_decomposition_in_outputs_and_not_in_weights() -> None:
    matrix, inputs = example()
    plain = nearest_low_rank(matrix, 4)
    weighted = nearest_low_rank(matrix, 4, inputs.t() @ inputs / len(inputs))
    assert error(matrix, weighted, inputs) < 0.7 * error(matrix, plain, inputs)
    ones = torch.eye(matrix.shape[1])
    assert error(matrix, plain, ones) < error(matrix, weighted, ones)
    left_out = torch.linalg.svdvals(matrix)[4:].square().sum() / len(ones)
    assert error(matrix, plain, ones) == pytest.approx(float(left_out), rel=1e-4)


def test_full_rank_is_the_matrix_and_scarce_inputs_are_served() -> None:
    matrix, inputs = example()
    up, down = nearest_low_rank(matrix, 12, inputs.t() @ inputs)
    assert torch.allclose(up @ down, matrix, atol=1e-4)
    few = inputs[:5]  # whose moment has no inverse
    pair = nearest_low_rank(matrix, 5, few.t() @ few, damping=1e-6)
    assert error(matrix, pair, few) < 1e-4 * error(matrix, (up[:, :0], down[:0]), few)


def test_inputs_that_are_zero_are_refused() -> None:
    with pytest.raises(NotApplicableError, match="can't be factorized"):
        nearest_low_rank(torch.ones(3, 4), 1, torch.zeros(4, 4))
