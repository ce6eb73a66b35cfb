"""k-means of scalars, against the optimum that dynamic programming finds."""

import numpy as np
import pytest
import torch

from tauten.solvers.kmeans import kmeans_1d, nearest_code, storable_book


def squared_error(values: torch.Tensor, centres: torch.Tensor) -> float:
    """Each value to its nearest centre, by comparing with all."""
    return float((values[:, None].double() - centres.double()).square().amin(1).sum())


def optimal_error(values: torch.Tensor, count: int) -> float:
    """Least squared error of any `count` centres: optimal cells are intervals."""
    ordered = values.double().sort().values.numpy()
    sums, squares = (np.concatenate([[0], (ordered**p).cumsum()]) for p in (1, 2))
    best = np.full(len(ordered) + 1, np.inf)
    best[0] = 0
    for _ in range(count):
        extended = best.copy()
        for end in range(1, len(ordered) + 1):
            start = np.arange(end)
            cell = squares[end] - squares[start]
            cell -= (sums[end] - sums[start]) ** 2 / (end - start)
            extended[end] = min(best[end], (best[start] + cell).min())
        best = extended
    return float(best[-1])


def sample(kind: str, seed: int, count: int = 200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(count, generator=generator)
    if kind == "uniform":
        return torch.rand(count, generator=generator)
    if kind == "heavy tails":
        return normal**3
    if kind == "outlier":
        normal[0] = 1e4
    return normal.round() if kind == "repeated" else normal


KINDS = ("normal", "uniform", "heavy tails", "outlier", "repeated")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
@pytest.mark.parametrize("seed", range(3))
def test_error_is_near_the_optimum(kind: str, seed: int, count: int) -> None:
    values = sample(kind, seed)
    found, best = squared_error(values, kmeans_1d(values, count)), optimal_error(values, count)
    assert best * (1 - 1e-6) <= found <= 1.2 * best


@pytest.mark.parametrize("count", [2, 4, 8, 16, 64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("seed", "size"), [(2, 30), (4, 30), (19, 30), (56, 100), (14, 300)])
def test_never_worse_than_the_uniform_grid(kind: str, seed: int, size: int, count: int) -> None:
    values = sample(kind, seed, size)
    low, high = values.aminmax()
    uniform = squared_error(values, torch.linspace(float(low), float(high), count))
    centres = kmeans_1d(values, count)
    assert squared_error(values, centres) <= uniform * (1 + 1e-6) + 1e-12
    assert (centres.diff() >= 0).all()
    assert centres.shape == (count,)


def test_beats_the_uniform_grid_where_weights_are_bell_shaped() -> None:
    values = sample("normal", 0, 10000)
    uniform = torch.linspace(float(values.min()), float(values.max()), 16)
    assert squared_error(values, kmeans_1d(values, 16)) < 0.5 * squared_error(values, uniform)


def test_sixteen_levels_reach_the_known_optimum_of_the_normal_distribution() -> None:
    values = torch.special.ndtri((torch.arange(100000).double() + 0.5) / 100000).float()
    error = squared_error(values, kmeans_1d(values, 16)) / 100000
    assert error == pytest.approx(0.009497, rel=0.02)  # Max 1960, table I


@pytest.mark.parametrize("values", [[3.0], [2.5] * 7, [-1.0, 4.0], [0.0, 0.0, 1.0, 5.0]])
def test_few_distinct_values_are_met_exactly(values: list[float]) -> None:
    centres = kmeans_1d(torch.tensor(values), 4)
    assert centres.shape == (4,)
    assert squared_error(torch.tensor(values), centres) == 0


def test_one_centre_is_the_mean() -> None:
    values = sample("heavy tails", 1)
    assert kmeans_1d(values, 1).item() == pytest.approx(values.double().mean().item(), rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 5, 16, 256])
def test_nearest_code_is_the_nearest_of_all(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    centres = torch.randn(count, generator=generator).sort().values
    values = torch.randn(7, 33, generator=generator) * 2
    codes = nearest_code(values, centres)
    assert codes.dtype is torch.uint8 and codes.shape == values.shape
    distance = (values - centres[codes.int()]).abs()
    assert torch.allclose(distance, (values[..., None] - centres).abs().amin(-1), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_clustered_each_by_itself(kind: str) -> None:
    rows = torch.stack([sample(kind, seed) for seed in range(4)])
    together = kmeans_1d(rows, 8)
    assert torch.equal(together, torch.stack([kmeans_1d(row, 8) for row in rows]))
    assert torch.equal(together, kmeans_1d(rows.t().contiguous().t(), 8)), "a transposed weight"
    codes = nearest_code(rows, together)
    assert torch.equal(codes, torch.stack(list(map(nearest_code, rows, together))))


def test_a_weight_counts_like_repeated_values() -> None:
    values, weights = sample("normal", 3, 60), torch.arange(60) % 4
    weighted = kmeans_1d(values, 4, weights)
    repeated = values.repeat_interleave(weights)
    assert squared_error(repeated, weighted) <= 1.2 * optimal_error(repeated, 4)
    plain = squared_error(repeated, kmeans_1d(values, 4))
    assert squared_error(repeated, weighted) < plain


@pytest.mark.parametrize(
    ("centres", "dtype"),
    [
        ([[0.0, 1e-9, 1.0], [0.0, 0.0, 0.0]], torch.float16),
        ([[0.0, 1.0, 2.0], [0.0, 1e-9, 1e-8]], torch.float32),
        ([[0.0, 1.0, 7e4], [0.0, 1.0, 2.0]], torch.float32),
    ],
)
def test_books_are_halves_where_halves_hold_the_largest_of_each(
    centres: list[list[float]], dtype: torch.dtype
) -> None:
    assert storable_book(torch.tensor(centres)).dtype is dtype
