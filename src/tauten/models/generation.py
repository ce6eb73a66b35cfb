"""`generate` of a loaded model: transformers prepares and chooses, the native library computes.

transformers reads the configuration, makes logits processors and stopping criteria, and hands them
to `_sample`, which stands in for its loop of the same name. What the native decoder doesn't cover
is left to transformers.
"""

import threading
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from tauten.models.decoding import ARCHITECTURES, class_name, decoder_for
from tauten.runtime.decoder import Decoder

_MODES = ("greedy_search", "sample")
_TENSORS = {"input_ids", "attention_mask"}
_PREPARED = {"logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"}
# Two first calls at once must not both interleave the weights.
_building = threading.Lock()


def use_native_decoder(model: nn.Module) -> nn.Module:
    """Let `model.generate` compute with the native decoder where that covers the call.

    It covers greedy decoding and sampling of one sequence, with any logits processor, stopping
    criterion and streamer. A decoder lives for one call: it reads the weights as they are then,
    and calls from several threads don't meet. Models that no decoder knows stay as they are.
    """
    if class_name(model) in ARCHITECTURES:
        model.generate = MethodType(generate, model)  # type: ignore[assignment]
    return model


def generate(
    model: Any,
    inputs: Tensor | None = None,
    generation_config: Any = None,
    *others: Any,
    streamer: Any = None,
    **options: Any,
) -> Any:
    """As transformers' `generate`, which it calls."""
    if not others and _covers(model, inputs, generation_config, options):
        with _building:
            decoder = decoder_for(model)
        if decoder is not None:
            options["custom_generate"] = partial(_sample, decoder=decoder, streamer=streamer)
    given = (inputs, generation_config, *others)
    return type(model).generate(model, *given, streamer=streamer, **options)


def _covers(
    model: Any, inputs: Tensor | None, generation_config: Any, options: dict[str, Any]
) -> bool:
    """Whether a call asks for nothing but the tokens of one sequence in a mode of `_sample`."""
    rest = {key: value for key, value in options.items() if key not in _PREPARED}
    config, tensors = model._prepare_generation_config(generation_config, **rest)
    ids = tensors.get("input_ids") if inputs is None else inputs
    return (
        {key for key, value in tensors.items() if value is not None} <= _TENSORS
        and (ids is None or len(ids) == 1)
        and config.get_generation_mode() in _MODES
        and not config.return_dict_in_generate
        and config.cache_implementation is None
        and config.use_cache is not False
        and config.num_return_sequences in (None, 1)
    )


def _sample(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    decoder: Decoder,
    streamer: Any,
    **options: Any,
) -> Tensor:
    """transformers' `_sample` for one sequence: ids (1, tokens) -> ids (1, more tokens)."""
    mask = options.get("attention_mask")
    padded = mask is not None and not mask.all()
    if padded or generation_config.max_length > decoder.shape.context:
        prepared = (input_ids, logits_processor, stopping_criteria, generation_config)
        made: Tensor = type(model)._sample(model, *prepared, streamer=streamer, **options)
        return made
    logits = decoder.prefill(input_ids[0])
    while True:
        scores = logits_processor(input_ids, logits[None])
        if generation_config.do_sample:
            token = torch.multinomial(scores.softmax(-1), 1)
        else:
            token = scores.argmax(-1, keepdim=True)
        input_ids = torch.cat([input_ids, token], 1)
        if streamer is not None:
            streamer.put(token[0])
        if stopping_criteria(input_ids, None).all():
            break
        logits = decoder.step(int(token))
    if streamer is not None:
        streamer.end()
    return input_ids
