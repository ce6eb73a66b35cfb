"""Weights at the edges of what numbers can be: each technique packs them right or leaves them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_conformance import TABLE
from torch import Tensor, nn

import tauten
from tauten.core.errors import CorruptError, InputError
from tauten.models.packing import packed_modules

ROWS, COLUMNS = 96, 64
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


def normal(rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    return torch.randn(rows, columns, generator=torch.manual_seed(3)) * 0.05


def changed(change: Callable[[Tensor], object]) -> Tensor:
    weight = normal()
    change(weight)
    return weight


# What is packed as well as a plain weight is.
PACKED: dict[str, Tensor] = {
    "stored as float64": normal().double(),
    "stored as float16": normal().half(),
    "stored as bfloat16": normal().bfloat16(),
    "large": normal() * 1e9,
    "largest": normal() * 2.0**51,
    "small": normal() * 1e-9,
    "smallest": normal() * 2.0**-46,
    "zero rows": changed(lambda w: w[::3].zero_()),
    "constant rows": changed(lambda w: w[::3].fill_(0.7)),
    "subnormal rows": changed(lambda w: w[::3].mul_(1e-20).mul_(1e-20)),
    "outlier": changed(lambda w: w[5:6, 7].fill_(1e4)),
    "rows unlike each other": normal() * 10.0 ** torch.linspace(-12, 12, ROWS)[:, None],
}
# What is left as it is: squares of its values, or sums of them, are no numbers of float32.
LEFT: dict[str, Tensor] = {
    "1e37": normal() * 1e38,
    "1e30 once": changed(lambda w: w[5:6, 7].fill_(1e30)),
    "1e-20": normal() * 1e-20,
    "subnormal": normal() * 1e-20 * 1e-20,
    "1e200": normal().double() * 1e200,
    "1e-200": normal().double() * 1e-200,
}
# What techniques may pack or not.
EITHER: dict[str, Tensor] = {
    "one row": normal(1, 200),
    "one column": normal(ROWS, 1),
    "all zero": torch.zeros(ROWS, COLUMNS),
    "all constant": torch.full((ROWS, COLUMNS), 0.37),
}
WEIGHTS = PACKED | LEFT | EITHER


class Layers(nn.Module):
    """A layer a weight, of the same inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        for name, weight in WEIGHTS.items():
            layer = nn.Linear(weight.shape[1], len(weight), bias=False)
            layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
            self.layers[name] = layer

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {
            name: layer(x[:, : WEIGHTS[name].shape[1]].to(WEIGHTS[name].dtype))
            for name, layer in self.layers.items()
        }


def tokens() -> Tensor:
    return torch.randn(600, 200, generator=torch.manual_seed(4))


@pytest.mark.parametrize("has_data", [False, True])
@pytest.mark.parametrize("name", TABLE)
def test_packed_right_or_left(name: str, has_data: bool) -> None:
    """Against the product in float64."""
    (technique, limit), x = TABLE[name], tokens()
    model = Layers().eval()
    packed = tauten.quantize(model, technique=technique, data=[x[:300]] if has_data else None)
    with torch.no_grad():
        before, after = model(x[300:]), packed(x[300:])
    for kind, weight in WEIGHTS.items():
        exact = x[300:, : weight.shape[1]].double() @ weight.double().T
        error = (after[kind].double() - exact).norm() / exact.norm().clamp(min=1e-300)
        assert after[kind].isfinite().all() and after[kind].dtype == weight.dtype, kind
        if kind in LEFT:
            assert torch.equal(after[kind], before[kind]), kind
        else:
            assert error <= limit * (1.1 if kind in PACKED else 1.3), kind
        if kind in PACKED:
            assert not torch.equal(after[kind], before[kind]), f"{kind} isn't packed"


@pytest.mark.parametrize("name", TABLE)
def test_saved_and_loaded_bit_equal(tmp_path: Path, name: str) -> None:
    x = tokens()[:20]
    written = tauten.quantize(Layers(), technique=TABLE[name][0], out=tmp_path / "out")
    loaded = tauten.load(tmp_path / "out", model=Layers())
    with torch.no_grad():
        before, after = written(x), loaded(x)
    assert all(torch.equal(before[kind], after[kind]) for kind in WEIGHTS)


@pytest.mark.parametrize("name", TABLE)
def test_a_weight_that_can_not_be_packed_is_refused_with_the_reason(name: str) -> None:
    layer = nn.Linear(COLUMNS, ROWS)
    layer.weight = nn.Parameter(normal() * 1e38)
    with pytest.raises(InputError, match=r"changed nothing .* its largest value is 1\.9\d+e\+37"):
        tauten.quantize(layer, technique=TABLE[name][0])


class Odd(nn.Module):
    """Layers without weights, weights that are no floats, and one that can be packed."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(COLUMNS, ROWS)
        self.of_nothing, self.to_nothing = nn.Linear(0, 4), nn.Linear(4, 0)
        self.no_rows = nn.Embedding(0, 8)
        self.whole, self.complex = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
        self.whole.weight = nn.Parameter(torch.arange(12).view(3, 4), requires_grad=False)
        self.complex.weight = nn.Parameter(torch.ones(3, 4) * 1j, requires_grad=False)
        self.mask = nn.Parameter(torch.arange(4) > 1, requires_grad=False)
        self.register_buffer("seen", torch.arange(5, dtype=torch.int32))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        few = x[:, :4]
        looked = self.no_rows(torch.empty(0, dtype=torch.int64))
        whole = self.whole(few.long()) * self.mask[1:]
        parts = self.of_nothing(x[:, :0]), self.to_nothing(few), looked, whole
        return self.plain(x), *parts, self.complex(few.to(torch.complex64)), self.seen


@pytest.mark.parametrize("name", TABLE)
def test_what_is_empty_or_not_floating_stays(tmp_path: Path, name: str) -> None:
    (technique, limit), x, model = TABLE[name], tokens()[:300, :COLUMNS], Odd().eval()
    torch.nn.init.normal_(model.plain.weight, generator=torch.manual_seed(0))
    written = tauten.quantize(model, technique=technique, data=[x], out=tmp_path / "out")
    loaded = tauten.load(tmp_path / "out", model=Odd())
    with torch.no_grad():
        before, after, again = model(x), written(x), loaded(x)
    assert all(map(torch.equal, after, again)) and all(map(torch.equal, before[1:], after[1:]))
    assert 0 < (before[0] - after[0]).norm() <= limit * before[0].norm()
    assert [n for n, _ in packed_modules(written)] in (["plain"], [])  # pruned: perhaps dense


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((7, 3), r"'weight' holds NaN or infinity in row 7 \(1 row of 96\)"),
        ((slice(90, None), 0), r"'weight' holds NaN or infinity in row 90 \(6 rows of 96\)"),
    ],
)
def test_a_row_that_is_not_finite_is_named(place: tuple[object, int], message: str) -> None:
    layer = nn.Linear(COLUMNS, ROWS)
    with torch.no_grad():
        layer.weight[place] = torch.nan
    with pytest.raises(CorruptError, match=message):
        tauten.quantize(layer)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", ["sparse", "quantized"])
def test_tensors_that_are_not_plain_are_refused(kind: str) -> None:
    layer, plain = nn.Linear(COLUMNS, ROWS), normal()
    if kind == "sparse":
        layer.weight = nn.Parameter(plain.to_sparse(), requires_grad=False)
    else:
        layer.register_buffer("codes", torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8))
    with pytest.raises(InputError, match="make it dense first"):
        tauten.quantize(layer)


def test_data_without_rows_is_refused() -> None:
    with pytest.raises(InputError, match="all batches have 0 rows"):
        tauten.quantize(nn.Linear(COLUMNS, ROWS), 4, data=[torch.zeros(0, COLUMNS)])
