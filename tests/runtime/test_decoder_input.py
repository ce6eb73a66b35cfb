"""What the native decoder refuses, before native code sees it."""

from typing import Any

import pytest
import torch
from packed_decoders import built, packed_model, random_packed

from tauten.core.errors import InputError
from tauten.runtime import library
from tauten.runtime.decoder import Decoder
from tauten.runtime.decoder_layout import DecoderShape, LayerWeights, Linear

pytestmark = pytest.mark.skipif(library.load() is None, reason="the native library isn't built")


def test_context_overflow_is_an_input_error() -> None:
    decoder = built(packed_model())
    decoder.prefill(torch.zeros(599, dtype=torch.int64))
    decoder.step(0)
    with pytest.raises(InputError, match="600"):
        decoder.step(0)
    assert decoder.position == 600
    decoder.reset()
    with pytest.raises(InputError, match="600"):
        decoder.prefill([0] * 601)


@pytest.mark.parametrize(
    "ids",
    [[], [203], [-1], [[1, 2]], [1.5], "text", None, torch.ones(2), [2**70], [None], 3],
    ids=repr,
)
def test_bad_ids_raise(ids: Any) -> None:
    decoder = built(packed_model())
    with pytest.raises(InputError):
        decoder.prefill(ids)
    assert decoder.position == 0


def parts(**changes: Any) -> dict[str, Any]:
    """Arguments of a Decoder with one layer."""
    hidden, middle = 64, 96

    def linear(rows: int, columns: int) -> Linear:
        return Linear(random_packed(torch.empty(rows, columns), 4, 32, "none"))

    layer: dict[str, Any] = {
        "query": linear(hidden, hidden),
        "key": linear(32, hidden),
        "value": linear(32, hidden),
        "output": linear(hidden, hidden),
        "gate": linear(middle, hidden),
        "up": linear(middle, hidden),
        "down": linear(hidden, middle),
        "attention_norm": torch.ones(hidden),
        "mlp_norm": torch.ones(hidden),
    }
    shape: dict[str, Any] = {"heads": 4, "key_heads": 2, "head_size": 16, "context": 64}
    shape |= {"epsilon": 1e-6, "frequency": torch.ones(8)}
    layer |= {name: changes[name] for name in layer | {"key_norm": 0} if name in changes}
    shape |= {name: changes[name] for name in shape if name in changes}
    head = linear(50, hidden)
    whole = {"layers": [LayerWeights(**layer)], "embedding": head.weight, "norm": torch.ones(64)}
    whole |= {"head": head, "shape": DecoderShape(**shape)}
    return whole | {name: changes[name] for name in whole if name in changes}


def test_parts_make_a_decoder() -> None:
    assert Decoder(**parts()).step(3).shape == (50,)


LINEAR = Linear(random_packed(torch.empty(32, 64), 4, 32, "none"))
ODD_GROUPS = Linear(random_packed(torch.empty(32, 64), 4, 48, "none"))


@pytest.mark.parametrize(
    "change",
    [
        {"query": LINEAR},
        {"key": ODD_GROUPS},
        {"key": Linear(LINEAR.weight, torch.zeros(31))},
        {"key": Linear(LINEAR.weight, torch.zeros(32, dtype=torch.int64))},
        {"value": Linear(LINEAR.weight, None, "int4")},
        {"mlp_norm": torch.ones(63)},
        {"mlp_norm": torch.ones(128)[::2]},
        {"key_norm": torch.ones(64)},
        {"norm": torch.ones(64, dtype=torch.int64)},
        {"head": LINEAR},
        {"layers": []},
        {"heads": 3},
        {"heads": 8},
        {"head_size": 15},
        {"context": 0},
        {"frequency": torch.ones(16)},
        {"frequency": torch.ones(8).double()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_bad_parts_raise_before_native_code(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Decoder(**parts(**change))


def test_corrupt_weight_raises() -> None:
    arguments = parts()
    weight = arguments["layers"][0].gate.weight
    weight.interleave()
    weight.codes = weight.codes[:-1]
    with pytest.raises(InputError):
        Decoder(**arguments)
