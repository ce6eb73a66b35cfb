"""Every instruction set that this machine runs, one after the other."""

from collections.abc import Iterator

import pytest

from tauten.runtime import library

NATIVE = library.load()
SETS = [name for name in library.SETS if NATIVE is not None and NATIVE.supports(name)]


@pytest.fixture(params=SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    assert NATIVE is not None
    before = library.SETS[NATIVE.isa]
    NATIVE.use(request.param)
    yield request.param
    NATIVE.use(before)
