"""The tokenizer that a user passes: an object of any library, a function, or a folder."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tauten.core.errors import InputError
from tauten.models.huggingface import tokenizer_loader
from tauten.models.source import Source


class PlainTokenizer:
    """A function from text to token ids, called as transformers' tokenizers are.

    Args:
        encode: Gives the ids, or a dict that has them as `input_ids`; such as `encode` of tiktoken,
            or of a vocabulary of one's own.
    """

    def __init__(self, encode: Callable[[str], Any]):
        self._encode = encode

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        found = self._encode(text)
        ids = list(found["input_ids"] if isinstance(found, Mapping) else found)
        if not all(isinstance(token, int) for token in ids):
            kind = type(ids[0]).__name__
            raise InputError(f"tokenizer made a {kind} of a text: expected whole numbers, its ids")
        return {"input_ids": ids}


def with_tokenizer(source: Source, tokenizer: Any) -> Source:
    """A source whose texts are read by a tokenizer of the user's.

    Args:
        source: Of the model.
        tokenizer: As transformers, tokenizers or tiktoken make them, a processor that has one, a
            function from text to token ids, or a folder; None for the source's own.
    Raises:
        InputError: It is none of these.
    """
    if tokenizer is None:
        return source
    if isinstance(tokenizer, str | os.PathLike):
        load = tokenizer_loader(Path(tokenizer).expanduser())
        if load is None:
            raise InputError(f"tokenizer={tokenizer}: no folder that holds a tokenizer")
        return replace(source, tokenizer=load)
    made = _as_transformers(getattr(tokenizer, "tokenizer", tokenizer))
    return replace(source, tokenizer=lambda: made)


def _as_transformers(tokenizer: Any) -> Any:
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    if isinstance(tokenizer, Tokenizer):
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]
    for name in ("encode_ordinary", "encode"):  # tiktoken's `encode` refuses special tokens
        if hasattr(tokenizer, name):
            return PlainTokenizer(getattr(tokenizer, name))
    if callable(tokenizer) and not isinstance(tokenizer, type):
        return PlainTokenizer(tokenizer)
    raise InputError(
        f"tokenizer is a {type(tokenizer).__name__}: expected one of transformers, tokenizers or "
        "tiktoken, a function from text to token ids, or a folder"
    )
