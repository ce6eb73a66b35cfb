"""What calibration sees, against hooks on the whole model in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import MODELS, tiny_llama
from torch import nn

import tauten
from tauten.core.recipe import Recipe
from tauten.data.calibration import calibration_batches
from tauten.data.windows import TokenBatch
from tauten.models.calibration import Calibration, CalibrationBatch
from tauten.models.observer import Observer
from tauten.models.structure import find_structure, packable_modules
from tauten.models.walk import Walk


def batches(count: int = 3, length: int = 20) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 256, (2, length), generator=generator) for _ in range(count)]
    lengths = torch.tensor([length, length - 7])
    tokens = [TokenBatch(i, lengths, torch.zeros(2)) for i in ids]
    return calibration_batches(tokens, tiny_llama(layers=2))


def seen_by_hooks(model: nn.Module, calls: list[Any]) -> dict[str, torch.Tensor]:
    """Mean of x x^T of each linear layer, the model run as a whole."""
    rows: dict[str, list[torch.Tensor]] = {}
    mask = torch.zeros(0)
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: rows.setdefault(name, []).append(args[0][mask])
        )
        for name, module in packable_modules(model)
        if not isinstance(module, nn.Embedding)
    ]
    with torch.no_grad():
        for call in calls:
            mask = call.mask
            model(**call.kwargs)
    for hook in hooks:
        hook.remove()
    joined = {name: torch.cat(parts).double() for name, parts in rows.items()}
    return {name: x.t() @ x / len(x) for name, x in joined.items()}


class Spy(Calibration):
    """Keeps what was observed."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.observed: dict[str, Any] = {}

    def observe(self, part: str, names: Any) -> Any:
        found = super().observe(part, names)
        self.observed |= found
        return found


@pytest.mark.parametrize("kind", ["llama", "llama_untied", "gpt2"])
def test_moments_are_those_of_the_model_packed_so_far(kind: str) -> None:
    """8 bits move nothing much: moments must be those of the original, padding left out."""
    model, calls = MODELS[kind][0](), batches()
    spy = Spy(calls, dtype=torch.float32)
    structure = find_structure(model)
    expected = seen_by_hooks(model, calls)
    copy = MODELS[kind][0]()
    Walk(copy, structure, Recipe.of(tauten.GPTQ(8, 16)), calibration=spy).run()
    assert set(spy.observed) == set(expected)
    for name, moment in expected.items():
        found = spy.observed[name]
        assert found.tokens == sum(int(call.mask.sum()) for call in calls)
        assert (found.moment - moment).norm() < 0.03 * moment.norm(), name


def test_each_block_sees_the_outputs_of_the_packed_ones_before_it() -> None:
    model, calls = tiny_llama(), batches()
    spy = Spy(calls, correct=True, dtype=torch.float32)
    recipe = Recipe.of(tauten.GPTQ(3, 16, correction=0.5))
    walk = Walk(tiny_llama(), find_structure(model), recipe, calibration=spy)
    packed = walk.run()
    name = "model.layers.2.mlp.down_proj"
    # Put the original last block back: its inputs are then those that the walk observed.
    packed.model.layers[2] = model.model.layers[2]  # type: ignore[union-attr, operator, index]
    packed.model.embed_tokens = model.model.embed_tokens  # type: ignore[union-attr]
    rows: list[torch.Tensor] = []
    hook = packed.get_submodule(name).register_forward_pre_hook(
        lambda _, args: rows.append(args[0])
    )
    with torch.no_grad():
        for call in calls:
            packed(**call.kwargs)
    hook.remove()
    x = torch.cat([r[call.mask] for r, call in zip(rows, calls, strict=True)])
    moment = x.t() @ x / len(x)
    found = spy.observed[name]
    assert (found.moment - moment).norm() < 1e-3 * moment.norm()
    original = seen_by_hooks(model, calls)[name]
    assert (found.moment - original).norm() > 1e-2 * original.norm(), "the test shows nothing"
    assert found.shift is not None and found.shift.norm() > 0


def test_streamed_from_disk_is_bit_equal_to_in_memory(tmp_path: Path) -> None:
    model = tiny_llama(tied=False)
    model.save_pretrained(tmp_path / "model")
    data = [batch.kwargs["input_ids"] for batch in batches()]
    from_disk = tauten.quantize(
        tmp_path / "model", technique=tauten.GPTQ(3, 16), data=data, out=tmp_path / "out"
    )
    in_memory = tauten.quantize(model, technique=tauten.GPTQ(3, 16), data=data)
    for (name, a), (_, b) in zip(
        from_disk.state_dict().items(), in_memory.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


class Branches(nn.Module):
    """Blocks that don't form a chain: each sees the input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(3))
        self.head = nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(sum(block(x) for block in self.blocks))


def test_blocks_without_a_chain_are_observed_in_one_pass() -> None:
    model, x = Branches(), torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    spy = Spy(calibration_batches([x], nn.Identity()), dtype=torch.float32)
    Walk(Branches(), find_structure(model), Recipe.of(tauten.GPTQ(4, 16)), calibration=spy).run()
    moment = x.t() @ x / 64
    for name in ("blocks.0.0", "blocks.1.0", "blocks.2.0"):
        torch.testing.assert_close(spy.observed[name].moment, moment)
    assert "head" in spy.observed


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, 3, stride=2, padding=1),
        nn.Conv2d(3, 5, (1, 3), padding="same", dilation=2, padding_mode="reflect"),
        nn.Conv1d(3, 5, 4, padding=2, padding_mode="circular"),
    ],
)
def test_patches_are_what_the_weight_multiplies(layer: nn.Module) -> None:
    """tr(W M W^T) is the mean square of the outputs without bias."""
    x = torch.randn(4, 3, 9, 9) if isinstance(layer, nn.Conv2d) else torch.randn(4, 3, 9)
    spy = Spy(calibration_batches([x], nn.Identity()), dtype=torch.float32)
    model = nn.Sequential(layer)
    Walk(model, find_structure(model), Recipe.of(tauten.GPTQ(8, 0)), calibration=spy).run()
    weight = layer.weight.flatten(1)
    with torch.no_grad():
        outputs = layer(x) - layer.bias.view(-1, *[1] * (x.dim() - 2))
        energy = (weight @ spy.observed["0"].moment * weight).sum()
    torch.testing.assert_close(energy, outputs.square().mean() * len(weight))


def test_a_batch_is_split_by_rows_in_order() -> None:
    ids, mask = torch.arange(35).view(5, 7), torch.ones(5, 7, dtype=torch.bool)
    shared = torch.randn(7)
    batch = CalibrationBatch((ids,), {"labels": ids + 1, "scale": shared, "flag": True}, mask)
    parts = batch.split(2)
    assert [part.rows for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.args[0] for part in parts]), ids)
    assert torch.equal(torch.cat([part.kwargs["labels"] for part in parts]), ids + 1)
    assert all(part.kwargs["scale"] is shared and part.kwargs["flag"] for part in parts)
    assert all(part.mask is not None and len(part.mask) == part.rows for part in parts)


def test_convolutions_on_one_tensor_see_patches_of_their_own() -> None:
    layers = {"wide": nn.Conv2d(4, 8, 3, stride=2, padding=1), "skip": nn.Conv2d(4, 8, 1, stride=2)}
    x = torch.randn(2, 4, 6, 6)
    with Observer(layers) as observer, observer.batch(None):
        for layer in layers.values():
            layer(x)
    pixels = x[..., ::2, ::2].movedim(1, -1).flatten(0, -2)
    assert torch.allclose(observer.inputs()["skip"].moment, pixels.t() @ pixels / len(pixels))
    assert observer.inputs()["wide"].moment.shape == (36, 36)


def test_a_plain_model_that_generates_is_called_as_it_wants() -> None:
    """As nanoGPT: no keyword of transformers, targets that may be left out."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(32, 16), nn.Linear(16, 32)

        def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
            return self.head(self.table(idx)), None

        def generate(self, idx: torch.Tensor) -> torch.Tensor:
            return idx

    model, ids = Plain(), torch.arange(64).view(4, 16) % 32
    for data in ([ids], [(ids[:, :-1], ids[:, 1:])]):
        packed = tauten.quantize(model, technique=tauten.GPTQ(8), data=data)
        assert (packed(ids)[0] - model(ids)[0]).norm() < 0.05 * model(ids)[0].norm()


def test_what_is_pooled_to_as_many_features_as_tokens_is_not_masked() -> None:
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model, ids = transformers.BertModel(config).eval(), torch.arange(64).view(2, 32)
    mask = torch.ones_like(ids)
    mask[0, 20:] = 0
    data = [{"input_ids": ids, "attention_mask": mask}] * 4
    packed = tauten.quantize(model, technique=tauten.GPTQ(8), data=data)
    expected, made = (m(ids, attention_mask=mask).pooler_output for m in (model, packed))
    assert (made - expected).norm() < 0.05 * expected.norm()
