"""`generate` of loaded models: the same as transformers' own loop, by the native decoder."""

import copy
import io
import pickle
import threading
from typing import Any

import pytest
import torch
import transformers
from packed_decoders import FAMILIES, SIZES, packed_model
from torch import Tensor

from tauten.models import generation
from tauten.models.generation import use_native_decoder
from tauten.runtime import library
from tauten.runtime.decoder import Decoder

pytestmark = pytest.mark.skipif(library.load() is None, reason="the native library isn't built")
PLAIN: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": None, "max_new_tokens": 12}


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each call of a native decoder."""
    counts: list[int] = []
    prefill = Decoder.prefill

    def counted(self: Decoder, ids: Any) -> Tensor:
        counts.append(len(ids))
        return prefill(self, ids)

    monkeypatch.setattr(Decoder, "prefill", counted)
    return counts


def prompt(length: int = 9, rows: int = 1) -> Tensor:
    """Without token 0, which pads."""
    return (torch.arange(rows * length).view(rows, length) * 7 + 1) % SIZES["vocab_size"]


def long_enough(ids: Tensor, _: object) -> Tensor:
    return torch.tensor([ids.shape[1] >= 14])


def transformers_own(model: Any, *arguments: Any, **options: Any) -> Any:
    return type(model).generate(model, *arguments, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_those_of_transformers(family: str, steps: list[int]) -> None:
    for bits, length in ((8, 1), (4, 9), (3, 17)):
        model = use_native_decoder(packed_model(family, bits))
        ids = prompt(length)
        made = model.generate(ids, do_sample=False, **PLAIN)
        assert steps == [length] + [1] * 11
        assert torch.equal(made, transformers_own(model, ids, do_sample=False, **PLAIN))
        assert len(steps) == 12, "the oracle must not be native"
        steps.clear()


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9},
        {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
        {"generation_config": transformers.GenerationConfig(max_new_tokens=7, pad_token_id=0)},
        {"min_new_tokens": 3, "eos_token_id": list(range(0, 200, 2))},
        {"prefix_allowed_tokens_fn": lambda _, ids: [len(ids), 5]},
        {"attention_mask": torch.ones(1, 9, dtype=torch.long)},
        {"stopping_criteria": [long_enough]},
        {},
    ],
    ids=lambda options: "-".join(options),
)
def test_options_do_what_they_do_in_transformers(options: Any, steps: list[int]) -> None:
    model = use_native_decoder(packed_model("qwen3"))
    options = options if "generation_config" in options else {**PLAIN, **options}
    torch.manual_seed(5)
    made = model.generate(prompt(), **options)
    assert steps
    torch.manual_seed(5)
    assert torch.equal(made, transformers_own(model, prompt(), **options))


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_return_sequences": 2, "do_sample": True},
        {"return_dict_in_generate": True},
        {"past_key_values": transformers.DynamicCache()},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"attention_mask": torch.tensor([[0, 0] + [1] * 7])},
        {"position_ids": torch.arange(3, 12)[None]},
        {"max_new_tokens": SIZES["max_position_embeddings"], "stopping_criteria": [long_enough]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_is_not_covered_is_left_to_transformers(options: Any, steps: list[int]) -> None:
    model, untouched = use_native_decoder(packed_model()), copy.deepcopy(options)
    torch.manual_seed(5)
    made = model.generate(prompt(), **{**PLAIN, **options})
    assert not steps
    torch.manual_seed(5)
    own = transformers_own(model, prompt(), **{**PLAIN, **untouched})
    if "past_key_values" in options:
        assert options["past_key_values"].get_seq_length() == 20, "the user's cache is filled"
    elif "return_dict_in_generate" in options:
        assert torch.equal(made.sequences, own.sequences) and made.past_key_values is not None
    else:
        assert torch.equal(made, own)


def test_several_texts_are_left_to_transformers(steps: list[int]) -> None:
    model = use_native_decoder(packed_model())
    made = model.generate(prompt(rows=2), **PLAIN)
    assert made.shape == (2, 21) and not steps
    assert model.generate(input_ids=prompt(rows=2), **PLAIN).shape == (2, 21) and not steps


def test_padding_that_transformers_finds_itself(steps: list[int]) -> None:
    """Without a mask, pad tokens in the prompt are masked."""
    model = use_native_decoder(packed_model())
    ids = torch.cat([torch.zeros(1, 3, dtype=torch.long), prompt()[:, 1:]], 1)
    options = {**PLAIN, "eos_token_id": 202, "do_sample": False}
    assert torch.equal(model.generate(ids, **options), transformers_own(model, ids, **options))
    assert not steps


def test_a_streamer_gets_each_token_as_it_comes(steps: list[int]) -> None:
    class Listener:
        def __init__(self) -> None:
            self.heard: list[tuple[list[int], int]] = []
            self.ended = False

        def put(self, tokens: Tensor) -> None:
            self.heard.append((tokens.flatten().tolist(), len(steps)))

        def end(self) -> None:
            self.ended = True

    model, listener = use_native_decoder(packed_model()), Listener()
    made = model.generate(prompt(), streamer=listener, do_sample=False, **PLAIN)[0].tolist()
    assert listener.ended
    assert listener.heard == [(made[:9], 0)] + [([made[9 + i]], i + 1) for i in range(12)]


def test_changed_weights_are_seen(steps: list[int]) -> None:
    model = use_native_decoder(packed_model())
    before = model.generate(prompt(), **PLAIN)
    model.model.norm.weight.data.mul_(-1)
    model.model.layers[0].input_layernorm.weight = torch.nn.Parameter(torch.rand(72))
    after = model.generate(prompt(), **PLAIN)
    assert len(steps) == 24 and not torch.equal(after, before)
    assert torch.equal(after, transformers_own(model, prompt(), **PLAIN))


def register_hook(model: Any) -> None:
    model.model.layers[0].register_forward_hook(lambda *_: None)


def replace_forward(model: Any) -> None:
    forward = model.model.forward
    model.model.forward = lambda *a, **k: forward(*a, **k)


@pytest.mark.parametrize(
    "change",
    [register_hook, replace_forward, lambda m: m.to(torch.float64), lambda m: m.train()],
    ids=["hook", "forward", "dtype", "training"],
)
def test_changed_models_are_left_to_transformers(change: Any, steps: list[int]) -> None:
    model = use_native_decoder(packed_model())
    change(model)
    assert model.generate(prompt(), **PLAIN).shape == (1, 21)
    assert not steps


def test_copies_are_models_of_their_own(steps: list[int]) -> None:
    model = use_native_decoder(packed_model())
    twin = copy.deepcopy(model)
    twin.model.norm.weight.data.mul_(-1)
    assert not torch.equal(twin.generate(prompt(), **PLAIN), model.generate(prompt(), **PLAIN))
    assert len(steps) == 24
    assert torch.equal(twin.generate(prompt(), **PLAIN), transformers_own(twin, prompt(), **PLAIN))
    read = pickle.load(io.BytesIO(pickle.dumps(model)))
    made = read.generate(prompt(), **PLAIN)
    assert torch.equal(made, transformers_own(model, prompt(), **PLAIN))


def test_threads_do_not_meet() -> None:
    model = use_native_decoder(packed_model())
    lengths, made = range(1, 9), {}

    def work(length: int) -> None:
        made[length] = model.generate(prompt(length), **PLAIN)

    threads = [threading.Thread(target=work, args=(length,)) for length in lengths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for length in lengths:
        assert torch.equal(made[length], transformers_own(model, prompt(length), **PLAIN))


def test_int8_chooses_what_the_eager_model_scores_highest(steps: list[int]) -> None:
    """Within the noise of a rounding that flips; see test_decoder.py."""
    model = use_native_decoder(packed_model("llama", 4, "int8"))
    text = model.generate(prompt(), do_sample=False, **PLAIN)
    assert len(steps) == 12
    with torch.inference_mode():
        expected = model(text, use_cache=False).logits[0, 8:-1]
    chosen = expected.gather(1, text[0, 9:, None])[:, 0]
    assert (expected.amax(1) - chosen <= 2e-2 * expected.std(1)).all()


def test_unknown_models_keep_their_generate() -> None:
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)
    model = use_native_decoder(transformers.GPT2LMHeadModel(config))
    assert model.generate.__func__ is not generation.generate
