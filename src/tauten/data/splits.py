"""Split examples into calibration, development and sealed test parts, never through one."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tauten.core.errors import InputError
from tauten.core.figures import plural

T = TypeVar("T")
SHARES = (0.2, 0.4, 0.4)
_ONE = {
    "document": "a file, a line of JSONL or a row is one",
    "example": "a row of a batch is one; one batch is passed as a list of it: data=[(x, y)]",
    "group": "what groups= gives the same for is one",
}
FEWEST = 4  # a confidence interval needs a few independent examples in each part


@dataclass(frozen=True)
class Splits(Generic[T]):
    """Examples by purpose.

    Attributes:
        calibration: Techniques may look at them.
        development: The search compares candidates on them.
        test: Looked at once, for the final certificate.
    """

    calibration: tuple[T, ...]
    development: tuple[T, ...]
    test: tuple[T, ...]


def shuffled(names: Sequence[str], seed: int = 0) -> list[int]:
    """Indices of names in an order by a hash of each: the same whatever order they come in."""
    digests = [hashlib.sha256(f"{seed} {name}".encode()).digest() for name in names]
    return sorted(range(len(names)), key=digests.__getitem__)


def split(
    examples: Sequence[T],
    names: Sequence[str],
    seed: int = 0,
    tunes: bool = True,
    noun: str = "document",
) -> Splits[T]:
    """Deal examples out by a hash of name and seed, so that the order given doesn't matter.

    Args:
        examples: Independent examples; nothing is cut.
        names: One for each, distinct.
        seed: Of the hash.
        tunes: The first two parts are needed; else, of too few for that, all are the test part.
        noun: What an example is called: `document`, `example` or `group`.
    Raises:
        InputError: There are too few.
    """
    if len(examples) < FEWEST * 3:
        if not tunes:
            return Splits((), (), tuple(examples))
        raise InputError(
            f"the data is {plural(len(examples), noun)}, too few to tune and certify on: "
            f"pass at least {FEWEST * 3}, better 100 ({_ONE[noun]})"
        )
    order = shuffled(names, seed)
    first = max(FEWEST, round(SHARES[0] * len(order)))
    second = min(first + max(FEWEST, round(SHARES[1] * len(order))), len(order) - FEWEST)
    parts = order[:first], order[first:second], order[second:]
    calibration, development, test = (tuple(examples[i] for i in part) for part in parts)
    return Splits(calibration, development, test)
