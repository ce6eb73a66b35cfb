"""Layers of derived classes keep their own forward, and their weight is stored once."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import tauten
from tauten.models.packing import packed_modules
from tauten.runtime import kernels
from tauten.runtime.modules import PackedModule


class Scaled(nn.Embedding):
    """As Gemma 3's: a factor in a buffer, in the dtype of the weight."""

    def __init__(self, rows: int, columns: int):
        super().__init__(rows, columns)
        self.register_buffer("factor", torch.tensor(8.0), persistent=False)

    def forward(self, index: Tensor) -> Tensor:
        return super().forward(index) * self.factor.to(self.weight.dtype)


class Looked(nn.Embedding):
    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.weight) * 3


class Cast(nn.Linear):
    """As openai-whisper's."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Transposed(nn.Linear):
    """As Falcon's."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


class SelfPadded(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(F.pad(x, (1, 1)), self.weight, self.bias, self.stride) * 2


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scaled, self.looked = Scaled(300, 64), Looked(300, 64)
        self.cast, self.transposed = Cast(64, 64), Transposed(64, 64)
        self.padded = SelfPadded(64, 64, 3)
        self.head = nn.Linear(64, 300, bias=False)
        self.head.weight = self.scaled.weight

    def forward(self, index: Tensor) -> Tensor:
        x = self.transposed(self.cast(self.scaled(index) + self.looked(index)))
        return self.head(self.padded(x.transpose(1, 2)).transpose(1, 2))


INDEX = torch.arange(24).view(2, 12)


def build() -> nn.Module:
    torch.manual_seed(0)
    return Model().eval()


def dequantized(packed: nn.Module) -> nn.Module:
    """The original with the weights that its packed form stands for."""
    model = build()
    for name, layer in packed_modules(packed):
        model.get_submodule(name).weight = nn.Parameter(layer.packed.dequantize())
    return model


def test_a_derived_layer_computes_its_own_forward_on_the_packed_weight() -> None:
    model = build()
    packed = tauten.quantize(model, technique=tauten.RTN(4, group_size=32))
    assert {name for name, _ in packed_modules(packed)} == {n for n, _ in model.named_children()}
    derived = [(n, type(m)) for n, m in model.named_children() if n != "head"]
    assert all(isinstance(packed.get_submodule(name), kind) for name, kind in derived)
    torch.testing.assert_close(packed(INDEX), dequantized(packed)(INDEX), atol=1e-4, rtol=1e-4)


def test_functions_of_torch_reach_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tauten.quantize(build(), technique=tauten.RTN(4, group_size=32))
    used = []
    for name in ("rows", "linear", "conv"):
        real = getattr(kernels, name)
        counted = lambda *args, name=name, real=real: (used.append(name), real(*args))[1]  # noqa: E731
        monkeypatch.setattr(kernels, name, counted)
    packed(INDEX)
    assert used == ["rows", "rows", "linear", "conv", "linear"]


def test_a_table_of_a_derived_class_is_stored_once_with_the_head() -> None:
    packed = tauten.quantize(build(), 4)
    assert packed.scaled.packed is packed.head.packed
    assert torch.equal(packed.scaled.weight, packed.head.weight)


def test_a_weight_that_also_stands_where_it_cannot_be_packed_is_kept_at_all_places() -> None:
    class Reads(nn.Module):
        def __init__(self, table: nn.Parameter):
            super().__init__()
            self.table = table

    model = nn.ModuleDict({"layer": nn.Linear(64, 64), "head": nn.Linear(64, 64)})
    model["reads"] = Reads(model["head"].weight)
    packed = tauten.quantize(model, 4)
    assert [name for name, _ in packed_modules(packed)] == ["layer"]
    assert packed["head"].weight is packed["reads"].table


def test_it_is_copied_pickled_exported_written_and_read(tmp_path: Path) -> None:
    model = build()
    packed = tauten.quantize(model, 8, out=tmp_path / "out")
    expected = packed(INDEX)
    assert torch.equal(copy.deepcopy(packed)(INDEX), expected)
    assert torch.equal(pickle.loads(pickle.dumps(packed))(INDEX), expected)
    assert torch.equal(tauten.load(tmp_path / "out", model=model)(INDEX), expected)
    torch.testing.assert_close(torch.export.export(packed, (INDEX,)).module()(INDEX), expected)
    assert torch.equal(tauten.load(tmp_path / "out", model=model)(INDEX), expected)


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.add_(1),
        lambda w: w.data.mul_(2),
        lambda w: w.detach().zero_(),
        lambda w: w.__setitem__(0, 1.0),
        lambda w: setattr(w, "data", torch.zeros(64, 64)),
        lambda w: w[0].add_(1),
        lambda w: w.T.mul_(2),
        lambda w: torch._foreach_mul_([w], 2.0),
        lambda w: torch.zeros(64, 64, out=w),
        nn.init.zeros_,
        nn.init.normal_,
    ],
)
def test_writing_to_its_weight_is_refused(write) -> None:
    packed = tauten.quantize(build(), 8)
    with pytest.raises(tauten.InputError, match=r"is a copy.*dense layer"):
        write(packed.cast.weight)


def test_settings_that_change_no_value_are_let_through() -> None:
    weight = tauten.quantize(build(), 8).cast.weight
    weight.requires_grad = False
    assert torch.equal(weight.requires_grad_(False), weight.clone())


def test_attributes_that_a_packed_layer_needs_for_itself_keep_a_layer_dense() -> None:
    class Activated(nn.Linear):
        activation = staticmethod(torch.relu)

        def forward(self, x: Tensor) -> Tensor:
            return self.activation(super().forward(x))

    model = nn.Sequential(Activated(64, 64), nn.Linear(64, 64)).eval()
    packed = tauten.quantize(model, 8)
    assert [isinstance(layer, PackedModule) for layer in packed] == [False, True]


class Shifted(nn.Embedding):
    """With a bias, which torch's have not, and a factor that its class knows."""

    factor = 1.0

    def __init__(self, rows: int, columns: int):
        super().__init__(rows, columns)
        self.bias, self.factor = nn.Parameter(torch.ones(columns)), 2.0

    def forward(self, index: Tensor) -> Tensor:
        return super().forward(index) * self.factor + self.bias


def test_what_torch_has_not_is_kept_too() -> None:
    layer = Shifted(64, 64)
    packed = tauten.quantize(nn.Sequential(layer), 8)[0]
    assert isinstance(packed, PackedModule)
    expected = packed.weight[INDEX] * 2 + layer.bias
    torch.testing.assert_close(packed(INDEX), expected)


def test_a_table_gets_no_bias_for_the_head_that_it_is_tied_to() -> None:
    technique = tauten.StaticInt8(bias_correction=True)
    packed = tauten.quantize(build(), technique=technique, data=[INDEX])
    assert packed.scaled.packed is packed.head.packed and packed.scaled.bias is None


SIZES = {"vocab_size": 512, "max_position_embeddings": 64}


def gemma() -> nn.Module:
    size = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**SIZES, **size, **heads))


def bart() -> nn.Module:
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "d_model": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 64}
    config = transformers.MBartConfig(**SIZES, **layers, **heads, scale_embedding=True)
    return transformers.MBartForConditionalGeneration(config)


@pytest.mark.parametrize("make", [gemma, bart])
def test_scaled_tables_of_transformers_are_packed_once(make) -> None:
    torch.manual_seed(0)
    model = make().eval()
    packed = tauten.quantize(model, 4)
    assert packed.get_input_embeddings().packed is packed.get_output_embeddings().packed
    stored = {t.data_ptr(): t.nbytes for t in (*packed.parameters(), *packed.buffers())}
    assert sum(stored.values()) < 0.4 * sum(p.nbytes for p in model.parameters())
