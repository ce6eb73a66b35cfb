"""GPU products against float64; where there is no GPU, in Triton's interpreter."""

import itertools

import pytest
import torch
from packed_weights import exact_linear, random_weight
from torch import Tensor

from tauten.core.errors import InputError
from tauten.formats.codebook import CodebookWeight
from tauten.formats.integer import IntegerWeight
from tauten.runtime import reference

pytest.importorskip("triton", reason="Triton isn't installed (there are wheels for Linux only)")
from tauten.runtime.gpu import launch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GRIDS = list(itertools.product((32, 64, 128, 0), ("none", "integer", "float")))
SHAPES = [(5, 31), (9, 150), (1, 1), (3, 70)]


def multiply(
    x: Tensor, weight: IntegerWeight, bias: Tensor | None = None, activation: str = "float"
) -> Tensor:
    tensors = (x, weight.codes, weight.scale, weight.zero, bias)
    x, codes, scale, zero, bias = (t if t is None else t.to(DEVICE) for t in tensors)
    sizes = (weight.bits, weight.group_size, weight.out_features)
    return launch.integer_linear(x, codes, scale, zero, bias, *sizes, activation == "int8").cpu()


def multiply_book(x: Tensor, weight: CodebookWeight, bias: Tensor, activation: str) -> Tensor:
    book, step = weight.codebook, None
    if activation == "int8":
        book, step = weight.rounded_codebook()
    tensors = (x, weight.codes, book, step, bias)
    moved = (tensor if tensor is None else tensor.to(DEVICE) for tensor in tensors)
    return launch.codebook_linear(*moved, weight.bits, weight.out_features).cpu()


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_grid_equals_float64(bits: int) -> None:
    torch.manual_seed(bits)
    for number, (group_size, zero_kind) in enumerate(GRIDS):
        shape = SHAPES[(number + bits) % len(SHAPES)]
        weight = random_weight(shape, bits, group_size, zero_kind)
        x, bias = torch.randn(17, shape[1]), torch.randn(shape[0])
        expected, size = exact_linear(x, weight, bias, "float")
        for tokens in (0, 3 if number % 2 else 1, 17):
            y = multiply(x[:tokens], weight, bias)
            assert y.shape == (tokens, shape[0])
            close = (y - expected[:tokens]).abs() <= 1e-6 * size[:tokens]
            assert close.all(), (group_size, zero_kind, shape, tokens)


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_rounded_activations_equal_float64(bits: int) -> None:
    torch.manual_seed(bits)
    for group_size, zero_kind in ((32, "integer"), (0, "none"), (64, "float")):
        weight = random_weight((5, 70), bits, group_size, zero_kind)
        x, bias = torch.randn(7, 70), torch.randn(5)
        expected, size = exact_linear(x, weight, bias, "int8")
        for tokens in (2, 7):
            close = (multiply(x[:tokens], weight, bias, "int8") - expected[:tokens]).abs()
            assert (close <= 1e-6 * size[:tokens]).all(), (group_size, zero_kind, tokens)


@pytest.mark.parametrize("activation", ["float", "int8"])
@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_codebook_equals_float64(bits: int, activation: str) -> None:
    torch.manual_seed(bits)
    for books in (1, 5):
        codes = torch.randint(0, 2**bits, (5, 70), dtype=torch.uint8)
        weight = CodebookWeight.from_codes((5, 70), bits, codes, torch.randn(books, 2**bits).half())
        x, bias = torch.randn(17, 70), torch.randn(5)
        entries, unit = weight.codebook.double(), torch.ones(1, 1)
        exact = x.double()
        if activation == "int8":
            entries, unit = weight.rounded_codebook()
            token_codes, scale = reference.quantize_tokens(x)
            exact = token_codes.double() * scale.double()
        matrix = (entries.double() * unit.double()).expand(5, -1).gather(1, codes.long())
        expected = exact @ matrix.T + bias.double()
        size = x.abs().sum(1, keepdim=True) * weight.codebook.abs().max() + bias.abs()
        for tokens in (0, 1, 17):
            close = (multiply_book(x[:tokens], weight, bias, activation) - expected[:tokens]).abs()
            assert (close <= 1e-6 * size[:tokens]).all(), (books, tokens)


@pytest.mark.parametrize("tokens", [4, 40])
def test_several_tiles(tokens: int) -> None:
    """Several steps along columns, several programs along rows and tokens."""
    weight = random_weight((70, 1200), 4, 128, "integer")
    rows = IntegerWeight.from_codes(
        (70, 1200), 4, 128, weight.integer_codes(), weight.scale, weight.integer_zero()
    )
    x = torch.randn(tokens, 1200)
    expected, size = exact_linear(x, rows, torch.zeros(70), "float")
    assert ((multiply(x, rows) - expected).abs() <= 1e-6 * size).all()


@pytest.mark.parametrize("tokens", [2, 6])
def test_dtype_and_shape_follow_the_input(tokens: int) -> None:
    weight = random_weight((5, 70), 4, 32)
    dtypes = [torch.float16, torch.float32]
    if tokens < 4 or DEVICE.type == "cuda":  # the interpreter multiplies matrices of no bfloat16
        dtypes.append(torch.bfloat16)
    for dtype in dtypes:
        x = torch.randn(2, tokens // 2, 70, dtype=dtype)
        y = multiply(x.transpose(0, 1), weight, torch.randn(5, dtype=dtype) * 0)
        assert y.dtype == dtype and y.shape == (tokens // 2, 2, 5)
        expected = x.transpose(0, 1).double() @ weight.dequantize(torch.float64).T
        assert torch.allclose(y.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-4)
    assert multiply(x[0, 0], weight).shape == (5,)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, as it should be
def test_non_finite_tokens_stay_non_finite() -> None:
    weight = random_weight((5, 70), 4, 32, "integer")
    for value, activation, tokens in itertools.product(
        (float("nan"), float("-inf")), ("float", "int8"), (2, 6)
    ):
        x = torch.randn(tokens, 70)
        x[0, 69] = value
        y = multiply(x, weight, None, activation)
        assert not y[0].isfinite().any() and y[1:].isfinite().all()


def test_quantized_tokens_equal_the_reference() -> None:
    x = torch.cat([torch.randn(3, 64), torch.zeros(1, 64), torch.full((1, 64), 1e-40)])
    x[0, :5] = torch.tensor([127.0, 0.5, 1.5, 2.5, -3.5])  # halves are rounded to even
    codes, scale = launch.quantize_tokens(x.to(DEVICE), 32)
    expected_codes, expected_scale = reference.quantize_tokens(x.unflatten(1, (2, 32)))
    assert torch.equal(codes.cpu(), expected_codes.flatten(1))
    assert torch.equal(scale.cpu(), expected_scale.squeeze(-1))


CORRUPTIONS = {
    "x is float64": (0, lambda x: x.double()),
    "x has other columns": (0, lambda x: x[:, :9]),
    "x has no dimension": (0, lambda x: x[0, 0]),
    "x lies elsewhere": (0, lambda x: x.to("meta")),
    "codes are short": (1, lambda codes: codes[:-1]),
    "codes are signed": (1, lambda codes: codes.view(torch.int8)),
    "codes have gaps": (1, lambda codes: torch.stack([codes, codes], -1)[..., 0]),
    "scale is short": (2, lambda scale: scale[:, :-1]),
    "scale is float64": (2, lambda scale: scale.double()),
    "zero is short": (3, lambda zero: zero[:-1]),
    "zero is int16": (3, lambda zero: zero.short()),
    "zero is of another float": (3, lambda zero: torch.zeros(33, 3, device=DEVICE)),
    "bias is long": (4, lambda bias: torch.zeros(34, device=DEVICE)),
    "bits are too many": (5, lambda bits: 9),
    "bits don't match": (5, lambda bits: 3),
    "group is odd": (6, lambda size: 48),
    "group is small": (6, lambda size: 16),
    "group doesn't match": (6, lambda size: 64),
    "rows are none": (7, lambda rows: 0),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_bad_tensors_raise_before_a_launch(corruption: str) -> None:
    weight = random_weight((33, 70), 4, 32, "integer").to(DEVICE)
    x = torch.randn(2, 70, device=DEVICE)
    arguments = [x, weight.codes, weight.scale, weight.zero, None, 4, 32, 33, False]
    position, change = CORRUPTIONS[corruption]
    arguments[position] = change(arguments[position])  # type: ignore[no-untyped-call]
    with pytest.raises(InputError):
        launch.integer_linear(*arguments)  # type: ignore[arg-type]


def test_bad_codebooks_raise() -> None:
    codes, x = torch.zeros(5, 9, dtype=torch.uint8), torch.randn(2, 70)
    table, step = torch.zeros(1, 2), torch.ones(1, 1)
    for wrong_table, wrong_step in ((table, step), (table.to(torch.int8), None), (table[0], None)):
        with pytest.raises(InputError):
            launch.codebook_linear(x, codes, wrong_table, wrong_step, None, 1, 5)
