"""Splits never share an example, and don't depend on the order given."""

import pytest

from tauten.core.errors import InputError
from tauten.data.splits import FEWEST, split


def parts_of(count: int, seed: int = 0) -> list[tuple[int, ...]]:
    return list(vars(split(range(count), [f"d{i}" for i in range(count)], seed)).values())


@pytest.mark.parametrize("count", [*range(12, 31), 100, 1000])
def test_every_example_is_in_exactly_one_part(count: int) -> None:
    parts = parts_of(count)
    assert sorted(sum(parts, ())) == list(range(count))
    assert min(map(len, parts)) >= FEWEST


@pytest.mark.parametrize("count", [100, 1000])
def test_shares(count: int) -> None:
    assert [len(part) / count for part in parts_of(count)] == [0.2, 0.4, 0.4]


@pytest.mark.parametrize("count", [0, 1, 11])
def test_too_few_are_refused_with_the_number_needed(count: int) -> None:
    with pytest.raises(InputError, match=f"{count} documents?, too few.*at least 12"):
        parts_of(count)


def test_the_order_given_does_not_matter() -> None:
    names = [f"d{i}" for i in range(50)]
    forward, backward = split(names, names, 3), split(names[::-1], names[::-1], 3)
    assert forward == backward


def test_the_same_seed_deals_alike_and_another_one_does_not() -> None:
    assert parts_of(50, 1) == parts_of(50, 1)
    assert parts_of(50, 1) != parts_of(50, 2)


def test_each_example_lands_anywhere_with_its_share() -> None:
    in_test = sum(0 in parts_of(50, seed)[2] for seed in range(400))
    assert in_test / 400 == pytest.approx(0.4, abs=0.08)  # 3 standard errors and more
