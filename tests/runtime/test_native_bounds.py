"""What native code indexes by is checked before: nothing outside of the tensors is touched."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from tauten.core.errors import CorruptError, InputError
from tauten.formats.integer import IntegerWeight
from tauten.formats.packed import PackedWeight
from tauten.formats.shared_rows import SharedRowsWeight
from tauten.formats.sparse import SparseWeight
from tauten.formats.ternary import TernaryWeight
from tauten.models.loader import Loader
from tauten.runtime import kernels, library, solve
from tauten.runtime.buffers import check
from tauten.runtime.modules import PackedLinear

NATIVE = library.load()
needs_native = pytest.mark.skipif(NATIVE is None, reason="the native library isn't built")


class Stored:
    """Tensors as a file would hold them."""

    def __init__(self, tensors: dict[str, Tensor]):
        self._tensors = tensors

    def names(self) -> Iterable[str]:
        return self._tensors

    def read(self, name: str) -> Tensor:
        return self._tensors[name].clone()

    def where(self, name: str) -> str:
        return "model.safetensors"


def shared_rows(rows: int) -> SharedRowsWeight:
    index = torch.arange(400) % rows
    return SharedRowsWeight.from_rows((400, 8), torch.randn(rows, 8), index, torch.ones(400))


def sparse(codes: bool) -> SparseWeight:
    mask = torch.arange(40 * 64).view(40, 64) % 8 < 4
    if not codes:
        return SparseWeight.from_dense(torch.randn(40, 64), mask)
    values = torch.randint(0, 16, (40, 64), dtype=torch.uint8)
    return SparseWeight.from_codes(mask, 4, 32, values, torch.ones(40, 2), None)


def two_of_four() -> SparseWeight:
    mask = torch.tensor([False, True, True, False]).repeat(40, 16)  # the pair of code 2
    return SparseWeight.from_dense(torch.randn(40, 64), mask)


def ternary() -> IntegerWeight:
    return TernaryWeight.from_signs((40, 64), 32, torch.ones(40, 64).int(), torch.ones(40, 2))


# A weight, and what a file says that can't be: the tensor, a place in it, its value, the message.
DAMAGED: dict[str, tuple[Callable[[], PackedWeight], str, tuple[int, ...], int, str]] = {
    "row beyond the shared ones": (lambda: shared_rows(9), "index", (3,), 9, "row is 9"),
    "largest row": (lambda: shared_rows(9), "index", (3,), 255, "row is 255"),
    "negative row": (lambda: shared_rows(300), "index", (3,), -1, "row is -1"),
    "mask keeps more": (lambda: sparse(False), "mask", (0, 0), 255, "kept values"),
    "mask keeps less": (lambda: sparse(False), "mask", (0, 0), 0, "kept values"),
    "mask of codes keeps more": (lambda: sparse(True), "mask", (39, 7), 255, "kept values"),
    "no pair of four": (two_of_four, "mask", (0, 4), 255, "kept values"),
    "no five trits": (ternary, "codes", (39, 0), 250, "242"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_contents_are_refused_at_load(case: str) -> None:
    make, name, place, value, message = DAMAGED[case]
    layer = nn.ModuleDict({"layer": PackedLinear(make())})
    tensors = {n: t.clone() for n, t in layer.state_dict().items()}
    Loader(layer, Stored(tensors), ()).load_all()
    changed = tensors[f"layer.packed.{name}"]
    assert changed[place] != value
    changed[place] = value
    with pytest.raises(CorruptError, match=f"model.safetensors: 'layer.packed': .*{message}"):
        Loader(layer, Stored(tensors), ()).load_all()


@pytest.mark.parametrize("step", [0.0, -1.0, float("inf"), float("nan")])
def test_a_step_that_is_none_is_refused_at_load(step: float) -> None:
    packed = IntegerWeight.encode(torch.randn(8, 32), 8, 0, torch.ones(8, 1), None)
    layer = nn.ModuleDict({"layer": PackedLinear(packed, None, "static", step=torch.tensor(1.0))})
    tensors = {n: t.clone() for n, t in layer.state_dict().items()}
    Loader(layer, Stored(tensors), ()).load_all()
    tensors["layer.step"].fill_(step)
    with pytest.raises(CorruptError, match="'layer': step is"):
        Loader(layer, Stored(tensors), ()).load_all()


@needs_native
@pytest.mark.parametrize("group", [-1, 2, 2**40])
def test_groups_of_columns_are_those_of_the_grid(group: int) -> None:
    assert NATIVE is not None
    values, local = torch.randn(3, 4), torch.eye(4)
    levels = (torch.ones(3, 2), torch.zeros(3, 2), 15)
    groups = torch.tensor([0, 0, 1, 1])
    assert solve.decide_columns(NATIVE, values.clone(), local, groups, levels).isfinite().all()
    groups[2] = group
    with pytest.raises(InputError, match="from 0 to 1"):
        solve.decide_columns(NATIVE, values, local, groups, levels)


@needs_native
def test_rows_of_values_may_lie_apart_but_not_over_each_other() -> None:
    assert NATIVE is not None
    levels = (torch.ones(3, 1), torch.zeros(3, 1), 15)
    groups, local = torch.zeros(4, dtype=torch.int64), torch.eye(4)
    apart, over = torch.randn(3, 9)[:, 2:6], torch.randn(1, 4).expand(3, 4)
    assert solve.decide_columns(NATIVE, apart, local, groups, levels).shape == (3, 4)
    with pytest.raises(InputError, match="overlap"):
        solve.decide_columns(NATIVE, over, local, groups, levels)


def test_memory_that_is_not_there_or_not_aligned_is_refused() -> None:
    freed = torch.randn(3, 4)
    freed.untyped_storage().resize_(0)
    bytes_of = torch.zeros(52, dtype=torch.uint8).numpy()
    askew = torch.frombuffer(bytes_of, dtype=torch.float32, count=12, offset=1).view(3, 4)
    for tensor in (freed, askew):
        with pytest.raises(InputError, match="contiguous and aligned"):
            check("x", tensor, (3, 4), (torch.float32,))
    check("x", torch.zeros(0, 4), (0, 4), (torch.float32,))


@needs_native
def test_damage_after_the_load_is_an_error_of_the_call() -> None:
    weight, x = sparse(True), torch.randn(3, 64)
    kernels.linear(x, weight)
    weight.mask[7] = 255
    with pytest.raises(CorruptError, match="don't match its values"):
        kernels.linear(x, weight)
