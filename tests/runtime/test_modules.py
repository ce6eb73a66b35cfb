"""Packed layers as modules: sharding, state dicts, dtypes, compilers."""

import copy
import io
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import tauten
from tauten.core.errors import InputError
from tauten.formats.codebook import CodebookWeight
from tauten.formats.packed import PackedWeight
from tauten.models.packing import packed_layer
from tauten.quantization import RTN, Int8
from tauten.runtime import library
from tauten.runtime.modules import PackedLinear

pytestmark = pytest.mark.skipif(library.load() is None, reason="the native library isn't built")
ROWS, COLUMNS = 50, 160


def weights() -> Iterator[PackedWeight]:
    torch.manual_seed(0)
    weight = torch.randn(ROWS, COLUMNS)
    yield from (RTN(4, 32, "float").encode(weight), RTN(3, 32, "integer").encode(weight))
    yield from (RTN(8, 32, "none").encode(weight), Int8().encode(weight))
    codes = torch.randint(0, 16, (ROWS, COLUMNS), dtype=torch.uint8)
    for books in (1, ROWS):
        yield CodebookWeight.from_codes((ROWS, COLUMNS), 4, codes, torch.randn(books, 16))


@pytest.mark.parametrize("activation", ["float", "int8"])
@pytest.mark.parametrize("world", [2, 3])
def test_row_shards_give_the_outputs_of_the_whole(activation: str, world: int) -> None:
    for weight in weights():
        layer = PackedLinear(weight, torch.randn(ROWS), activation)
        shards = [layer.shard(rank, world, 0) for rank in range(world)]
        for tokens in (1, 3, 40):
            x = torch.randn(tokens, COLUMNS)
            with torch.inference_mode():
                found = torch.cat([shard(x) for shard in shards], -1)
                whole = layer(x)
            if activation == "float" and weight.kind == "codebook":  # a product of torch's own
                assert torch.allclose(found, whole, atol=1e-4)
            else:
                assert torch.equal(found, whole)


@pytest.mark.parametrize("activation", ["float", "int8"])
def test_column_shards_add_up_to_the_whole(activation: str) -> None:
    world = 3
    for weight in weights():
        layer = PackedLinear(weight, torch.randn(ROWS), activation)
        shards = [layer.shard(rank, world, 1, unit=32) for rank in range(world)]
        assert [shard.in_features for shard in shards] == [64, 64, 32]
        assert [shard.bias is None for shard in shards] == [False, True, True]
        x = torch.randn(5, COLUMNS)
        with torch.inference_mode():
            parts = [s(part) for s, part in zip(shards, x.split([64, 64, 32], 1), strict=True)]
            error = sum(parts) - layer(x)
        # With one scale for all columns of a token, each worker rounds with its own.
        one_scale = activation == "int8" and getattr(weight, "group_size", 0) == 0
        assert error.norm() < (2e-2 if one_scale else 1e-6) * layer(x).norm()


class Packed(nn.Module):
    """Every packed layer."""

    def __init__(self, activation: str, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.conv = nn.Embedding(40, 64), nn.Conv1d(64, 48, 3, padding=1)
        self.linear, self.grouped = nn.Linear(48, 32), nn.Conv1d(32, 32, 3, groups=4)
        for name, layer in list(self.named_children()):
            packed = RTN(4, 32, "integer").encode(layer.weight.detach())
            setattr(self, name, packed_layer(layer, packed, activation))
        codes = torch.randint(0, 16, (20, 32), dtype=torch.uint8)
        book = CodebookWeight.from_codes((20, 32), 4, codes, torch.randn(1, 16))
        self.book = PackedLinear(book, None, activation)

    def forward(self, index: Tensor) -> Tensor:
        x = self.conv(self.embedding(index).transpose(1, 2)).transpose(1, 2)
        x = self.grouped(self.linear(x).relu().transpose(1, 2)).transpose(1, 2)
        y: Tensor = self.book(x)
        return y

    def layouts(self) -> list[bool]:
        """Whether each weight is interleaved."""
        layers = (self.embedding, self.conv, self.linear, self.grouped, self.book)
        return [layer.packed.interleaved for layer in layers]


INDEX = torch.arange(24).view(2, 12)


@pytest.mark.parametrize("activation", ["float", "int8"])
def test_compiled_model_equals_eager_from_its_first_call(activation: str) -> None:
    model, eager = Packed(activation), Packed(activation)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        found, expected = compiled(INDEX), eager(INDEX)
        assert torch.equal(found, expected)
        # The first call takes the native way, as the eager one does.
        assert model.layouts() == eager.layouts() == [True] * 3 + [False, True]
        other = Packed(activation, seed=1)
        model.load_state_dict(other.state_dict())
        assert torch.equal(compiled(INDEX), other(INDEX))
        assert not torch.equal(other(INDEX), expected)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_program_equals_the_model(strict: bool) -> None:
    model = Packed("int8")
    with pytest.raises(InputError, match="run the model once"):
        torch.export.export(model, (INDEX,), strict=strict)
    with torch.no_grad():
        expected = model(INDEX)
        program = torch.export.export(model, (INDEX,), strict=strict)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        assert torch.equal(torch.export.load(file).module()(INDEX), expected)
    called = {str(node.target) for node in program.graph.nodes}
    ops = {f"tauten.{op}.default" for op in ("integer_rows", "conv", "integer_linear")}
    assert ops | {"tauten.codebook_linear.default"} <= called


@torch.no_grad()
def test_state_dict_and_copies_are_independent_of_the_layout() -> None:
    model = Packed("int8")
    before = copy.deepcopy(model.state_dict())
    expected = model(INDEX)
    twin, held = copy.deepcopy(model), model.state_dict()
    assert held.keys() == before.keys()
    assert all(torch.equal(held[name], before[name]) for name in held)
    for used_before in (False, True):
        other = Packed("int8", seed=1)
        if used_before:
            assert not torch.equal(other(INDEX), expected)
        other.load_state_dict(held, strict=True)
        assert other.linear.packed.interleaved == used_before
        assert torch.equal(other(INDEX), expected)
    model.load_state_dict(Packed("int8", seed=1).state_dict())
    assert torch.equal(twin(INDEX), expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cast_changes_what_layers_compute_in_and_not_what_they_hold(dtype: torch.dtype) -> None:
    model = Packed("int8")
    expected, held = model(INDEX), copy.deepcopy(model.state_dict())
    model = model.to(dtype)
    found = model(INDEX)
    assert found.dtype == dtype
    assert (found.float() - expected).norm() < 3e-2 * expected.norm()
    packed = [name for name in held if ".packed." in name]
    assert all(torch.equal(model.state_dict()[name], held[name]) for name in packed)


def test_a_packed_network_takes_the_memory_format_of_images() -> None:
    layers = nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)
    model, x = tauten.quantize(nn.Sequential(*layers).eval(), 4), torch.randn(2, 8, 16, 16)
    with torch.no_grad():
        expected = model(x)
        assert torch.allclose(model.to(memory_format=torch.channels_last)(x), expected)
