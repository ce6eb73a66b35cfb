"""What knowing frequencies alone is worth, and that a model that is worse is said to be."""

import logging
import math

import pytest
import torch

from tauten.data.windows import TokenBatch
from tauten.evaluation.unigram import say_if_no_better, unigram_perplexity


def batch(rows: list[list[int]]) -> TokenBatch:
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return TokenBatch(ids, lengths, torch.arange(len(rows)))


KNOWN = [batch([[1, 1, 1, 2]]), batch([[3, 1], [2]])]  # four 1s, two 2s, one 3; padding is none
JUDGED = [batch([[9, 1, 2], [9, 4]])]  # 9s begin windows: not judged, but tokens


def test_frequencies_are_those_of_real_tokens_and_each_token_may_come() -> None:
    total = 7 + 5  # of 0 to 4, one each for Laplace
    wanted = math.exp(-sum(math.log(count / total) for count in (5, 3, 1)) / 3)
    assert unigram_perplexity(KNOWN, [batch([[0, 1, 2], [0, 4]])]) == pytest.approx(wanted)


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_a_model_that_is_no_better_is_said_to_be(
    factor: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tauten")
    say_if_no_better(factor * unigram_perplexity(KNOWN, JUDGED), KNOWN, JUDGED)
    assert ("token frequencies alone" in caplog.text) == (factor > 1)
