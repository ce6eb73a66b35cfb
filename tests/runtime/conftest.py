"""Every instruction set that this machine runs, one after the other."""

from collections.abc import Callable, Iterator

import pytest
import torch

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


@pytest.fixture
def use_threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads kernels run on; afterwards it is as before."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
