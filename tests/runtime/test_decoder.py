"""The native decoder against the eager packed model in transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from packed_decoders import FAMILIES, SIZES, built, packed_model, random_packed
from torch import Tensor

from tauten.quantization import KQuant
from tauten.runtime import library
from tauten.runtime.decoder import Decoder
from tauten.runtime.modules import PackedLinear

NATIVE = library.load()
pytestmark = pytest.mark.skipif(NATIVE is None, reason="the native library isn't built")
SETS = [name for name in library.SETS if NATIVE is not None and NATIVE.supports(name)]


@torch.inference_mode()
def eager_logits(model: Any, ids: Tensor) -> Tensor:
    return model(ids[None], use_cache=False).logits[0]


def greedy(model: Any, ids: Tensor, count: int) -> list[int]:
    made = model.generate(
        ids[None],
        attention_mask=torch.ones_like(ids[None]),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return made[0, len(ids) :].tolist()


def continued(decoder: Decoder, ids: Tensor, count: int) -> list[int]:
    """The most likely continuation of a new sequence."""
    decoder.reset()
    tokens = [int(decoder.prefill(ids).argmax())]
    while len(tokens) < count:
        tokens.append(int(decoder.step(tokens[-1]).argmax()))
    return tokens


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def assert_follows_in_int8(model: Any) -> None:
    """A last digit can flip the rounding of an activation, in the eager model too.

    So logits are less close than in float, and the greedy token is one that the eager model, after
    the same text, scores as high as the best within that noise.
    """
    decoder = built(model)
    for length in (1, 2, 17):
        ids = torch.arange(length) * 5
        decoder.reset()
        found = decoder.prefill(ids)
        text = torch.cat([ids, torch.tensor(continued(decoder, ids, 20))])
        expected = eager_logits(model, text)[length - 1 : -1]
        assert relative_error(found, expected[0]) < 1e-2
        chosen = expected.gather(1, text[length:, None])[:, 0]
        assert (expected.amax(1) - chosen <= 2e-2 * expected.std(1)).all()


def assert_equals_in_float(model: Any) -> None:
    decoder = built(model)
    for length in (1, 2, 17):
        ids = torch.arange(length) * 7 % SIZES["vocab_size"]
        decoder.reset()
        expected = eager_logits(model, ids)
        assert relative_error(decoder.prefill(ids), expected[-1]) < 1e-5
        assert continued(decoder, ids, 20) == greedy(model, ids, 20)


@pytest.mark.parametrize("family", FAMILIES)
def test_float_logits_and_tokens_equal_the_eager_model(instruction_set: str, family: str) -> None:
    for bits, group_size in ((8, 0), (4, 32), (3, 64)):
        assert_equals_in_float(packed_model(family, bits, "float", group_size))


# `kinds` as in packed_model: one book a tensor, a row or some rows, alone and beside integers.
@pytest.mark.parametrize(
    ("bits", "family", "group_size", "kinds"),
    [
        (4, "qwen3", 0, (0,)),
        (4, "llama", 0, (1,)),
        (3, "qwen3", 32, (5, "integer", 0, 1, "none")),
        (2, "qwen2", 0, (1, "none", 0)),
    ],
)
def test_codebooks_follow_the_eager_model(
    instruction_set: str, bits: int, family: str, group_size: int, kinds: tuple[str | int, ...]
) -> None:
    assert_equals_in_float(packed_model(family, bits, "float", group_size, kinds))
    assert_follows_in_int8(packed_model(family, bits, "int8", group_size, kinds))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_int8_follows_the_eager_model(instruction_set: str, family: str) -> None:
    for bits in (8, 4, 3):
        assert_follows_in_int8(packed_model(family, bits, "int8"))


def test_chunks_continue_the_cache(instruction_set: str) -> None:
    """One prompt at once, in two chunks and token by token; longer than a native batch."""
    model = packed_model("qwen3")
    decoder = built(model)
    ids = torch.randint(0, SIZES["vocab_size"], (560,))
    expected = eager_logits(model, ids)
    assert relative_error(decoder.prefill(ids), expected[-1]) < 1e-5
    decoder.reset()
    decoder.prefill(ids[:19])
    assert relative_error(decoder.prefill(ids[19:300]), expected[299]) < 1e-5
    for i in range(300, 330):
        assert relative_error(decoder.step(int(ids[i])), expected[i]) < 1e-5
    assert decoder.position == 330


def test_threads_change_nothing(use_threads: Callable[[int], None]) -> None:
    use_threads(1)
    ids = torch.randint(0, SIZES["vocab_size"], (70,))
    decoder = built(packed_model("llama", 4, "int8"))
    alone = decoder.prefill(ids)
    use_threads(2)
    decoder.reset()
    assert torch.equal(decoder.prefill(ids), alone)


def test_mixed_formats_of_siblings() -> None:
    """Queries, keys and values that aren't rounded alike are multiplied one by one."""
    model = packed_model("llama", 4, "int8")
    model.model.layers[0].self_attn.k_proj.activation = "float"
    value = model.model.layers[1].self_attn.v_proj
    value.packed = random_packed(value.weight, 5, 64, "integer")
    decoder, ids = built(model), torch.arange(9)
    assert relative_error(decoder.prefill(ids), eager_logits(model, ids)[-1]) < 1e-2


def test_scales_of_two_levels(instruction_set: str) -> None:
    """A K-quant's scales and offsets are expanded for the kernels, in float32."""
    model = packed_model("llama", 4)
    for layer in model.modules():
        if isinstance(layer, PackedLinear):
            layer.packed = KQuant(3, 32, 64, 4).encode(layer.weight)
    ids = torch.arange(9)
    wanted = eager_logits(model, ids)[-1]
    assert relative_error(built(model).prefill(ids), wanted) < 1e-5
