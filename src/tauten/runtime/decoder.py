"""Llama-like decoders in the native library: one call a token, one call a prompt."""

import ctypes
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.runtime import library
from tauten.runtime.buffers import CPU, address, floats
from tauten.runtime.decoder_layout import (
    Binder,
    CacheStruct,
    DecoderShape,
    DecoderWeight,
    LayerStruct,
    LayerWeights,
    Linear,
    ModelStruct,
)

_BLOCK = 32  # the cache grows by whole pairs of key blocks, and values are padded to as much
_FIRST_CAPACITY = 256


class Decoder:
    """Computes the next token's logits of one sequence, with its keys and values at hand.

    RMSNorm, rotary positions, grouped queries, a gated MLP with SiLU, residuals; keys, values and
    all between products are float32. The weights are shared with the model that they come from
    and are interleaved in place. Calls from several threads wait for each other.

    Args:
        layers: From the first to the last.
        embedding: (vocabulary, hidden); may be the head's weight.
        norm: (hidden,), before the head.
        head: (vocabulary, hidden).
        shape: Sizes and constants.
    Raises:
        InputError: The native library isn't built or doesn't serve a weight, or sizes don't fit.
    """

    _keys: Tensor  # (layers, key heads, capacity / 16, head size, 16)
    _values: Tensor  # (layers, key heads, capacity, padded head size)

    def __init__(
        self,
        layers: Sequence[LayerWeights],
        embedding: DecoderWeight,
        norm: Tensor,
        head: Linear,
        shape: DecoderShape,
    ):
        native = library.load()
        if native is None:
            raise InputError("a Decoder needs tauten's native library, which isn't built")
        if not layers:
            raise InputError("a Decoder needs at least one layer")
        shape.check()
        self.shape, self._native = shape, native
        self.vocabulary, self.hidden = embedding.out_features, embedding.in_features
        self.position = 0  # tokens in the cache
        self._decode = _entry(native)
        self._binder, self._lock = Binder(), threading.Lock()
        self._layers = (LayerStruct * len(layers))(*self._bound(layers))
        size = (self.vocabulary, self.hidden)
        self._model = ModelStruct(
            self._layers,
            self._binder.matrix("embedding", Linear(embedding), *size),
            self._binder.matrix("head", head, *size),
            self._binder.vector("norm", norm, self.hidden),
            len(layers),
            shape.heads,
            shape.key_heads,
            shape.head_size,
            shape.epsilon,
        )
        self._capacity = 0
        self._grow(1)

    def _bound(self, layers: Sequence[LayerWeights]) -> Iterator[LayerStruct]:
        shape = self.shape
        sizes = {
            "hidden": self.hidden,
            "queries": shape.heads * shape.head_size,
            "keys": shape.key_heads * shape.head_size,
            "middle": layers[0].gate.weight.out_features,  # one size: they share scratch memory
            "head": shape.head_size,
        }
        return (self._binder.layer(i, layer, sizes) for i, layer in enumerate(layers))

    def reset(self) -> None:
        """Forget the sequence; its memory is kept for the next one."""
        with self._lock:
            self.position = 0

    def prefill(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Append tokens.

        Args:
            ids: Token ids, at least one, each below `vocabulary`.
        Returns:
            (vocabulary,) float32, logits of the token after the last one.
        Raises:
            InputError: An id isn't in the vocabulary, or the context has no room.
        """
        tokens = self._checked(ids)
        logits = floats(self.vocabulary)
        with self._lock:
            self._reserve(len(tokens))
            status = self._decode(
                ctypes.byref(self._model),
                ctypes.byref(self._cache),
                address("ids", tokens, tokens.shape, (torch.int64,)),
                len(tokens),
                self.position,
                address("logits", logits, logits.shape),
                self._native.isa,
                torch.get_num_threads(),
            )
            if status:
                raise MemoryError(f"no memory for {len(tokens)} tokens of a decoder")
            self.position += len(tokens)
        return logits

    def step(self, token: int) -> Tensor:
        """Append one token; logits as of `prefill`."""
        return self.prefill((token,))

    def _checked(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Ids as a (tokens,) int64 tensor, each a row of the embedding."""
        try:
            tokens = torch.as_tensor(ids)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"ids aren't a sequence of token ids: {error}") from error
        if tokens.dim() != 1 or not len(tokens) or tokens.dtype not in (torch.int64, torch.int32):
            got = f"{tuple(tokens.shape)} {tokens.dtype}"
            raise InputError(f"ids are {got}: expected (tokens,) int64 or int32, not empty")
        tokens = tokens.to("cpu", torch.int64).contiguous()
        if int(tokens.min()) < 0 or int(tokens.max()) >= self.vocabulary:
            raise InputError(f"ids hold one outside of the vocabulary of {self.vocabulary}")
        return tokens

    def _check_room(self, position: int, count: int) -> None:
        if position + count > self.shape.context:
            raise InputError(
                f"{position} tokens and {count} more exceed the model's context of "
                f"{self.shape.context}; shorten the text or call reset()"
            )

    def _reserve(self, count: int) -> None:
        """Make room for `count` more positions."""
        self._check_room(self.position, count)
        if self.position + count > self._capacity:
            self._grow(self.position + count)

    def _grow(self, needed: int) -> None:
        """Enlarge the cache, at least to twice the size, and keep what it holds."""
        shape, most = self.shape, -(-self.shape.context // _BLOCK) * _BLOCK
        wanted = max(needed, 2 * self._capacity, _FIRST_CAPACITY)
        capacity = min(-(-wanted // _BLOCK) * _BLOCK, most)
        heads = (len(self._layers), shape.key_heads)
        values_size = -(-shape.head_size // _BLOCK) * _BLOCK
        keys = floats(*heads, capacity // 16, shape.head_size, 16).zero_()
        values = floats(*heads, capacity, values_size).zero_()
        if self._capacity:
            keys[:, :, : self._capacity // 16] = self._keys
            values[:, :, : self._capacity] = self._values
        angle = torch.arange(capacity, device=CPU).float()[:, None] * shape.frequency
        turns = [part * shape.rotary_scale for part in (angle.cos(), angle.sin())]
        self._keys, self._values, self._turns, self._capacity = keys, values, turns, capacity
        cache = (keys, values, *turns)
        self._cache = CacheStruct(*(address("cache", part, part.shape) for part in cache), capacity)


def _entry(native: library.Library) -> "ctypes._NamedFuncPointer":
    """The library's function, with the types of its arguments."""
    decode = native.handle.tauten_decode
    pointer, number, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    decode.argtypes = [
        *(ctypes.POINTER(ModelStruct), ctypes.POINTER(CacheStruct)),
        *(pointer, number, number, pointer),  # ids, count, position, logits
        *(flag, flag),  # isa, threads
    ]
    return decode
