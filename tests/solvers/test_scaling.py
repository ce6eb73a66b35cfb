"""Scales of columns."""

import torch

from tauten.solvers.scaling import centred, least_lossy, spread_rows, tied


def test_columns_of_a_channel_share_its_largest_value() -> None:
    values, channels = torch.tensor([1.0, 5.0, 3.0, 2.0]), torch.tensor([0, 1, 0, 1])
    assert tied(values, channels).tolist() == [3.0, 5.0, 3.0, 5.0]


def test_channels_that_are_never_used_keep_a_positive_scale() -> None:
    for values in (torch.tensor([0.0, 4.0]), torch.zeros(2)):
        assert (tied(values, torch.arange(2)) > 0).all()


def test_centred_scales_multiply_to_one() -> None:
    scale = centred(torch.tensor([1.0, 4.0, 16.0]))
    torch.testing.assert_close(scale, torch.tensor([0.25, 1.0, 4.0]))


def test_spread_rows_are_few_and_cover_the_matrix() -> None:
    matrix = torch.arange(10.0)[:, None]
    assert spread_rows(matrix, 4).flatten().tolist() == [0, 3, 6, 9]
    assert torch.equal(spread_rows(matrix, 10), matrix)


def test_the_first_of_equal_scales_is_taken() -> None:
    scales = [torch.tensor([s]) for s in (3.0, 1.0, -1.0)]
    assert least_lossy(scales, lambda s: float(s.abs())) is scales[1]
