"""The decoder's C structures (native/decode.h), filled from tensors that have been checked."""

import ctypes
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.formats.codebook import CodebookWeight
from tauten.formats.integer import ZERO_KINDS, IntegerWeight
from tauten.formats.interleaved import COLUMNS
from tauten.runtime import book_ops, kernels, ops
from tauten.runtime.buffers import FLOAT, address, check

DecoderWeight = IntegerWeight | CodebookWeight  # what a decoder multiplies by
_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


class MatrixStruct(ctypes.Structure):
    """`tauten::Matrix`."""

    _fields_ = (
        *((name, _POINTER) for name in ("codes", "scale", "zero", "book", "entries", "bias")),
        *((name, _LONG) for name in ("out", "in_", "group_chunks")),
        *((name, _INT) for name in ("zero_kind", "half", "bits", "shared_entries", "int8")),
    )


class LayerStruct(ctypes.Structure):
    """`tauten::Layer`."""

    _fields_ = (
        *((n, MatrixStruct) for n in ("query", "key", "value", "output", "gate", "up", "down")),
        *((n, _POINTER) for n in ("attention_norm", "mlp_norm", "query_norm", "key_norm")),
    )


class ModelStruct(ctypes.Structure):
    """`tauten::Model`."""

    _fields_ = (
        ("layers", ctypes.POINTER(LayerStruct)),
        ("embedding", MatrixStruct),
        ("head", MatrixStruct),
        ("norm", _POINTER),
        *((name, _LONG) for name in ("layer_count", "heads", "key_heads", "head_size")),
        ("epsilon", ctypes.c_float),
    )


class CacheStruct(ctypes.Structure):
    """`tauten::Cache`."""

    _fields_ = (
        *((name, _POINTER) for name in ("keys", "values", "cosine", "sine")),
        ("capacity", _LONG),
    )


@dataclass(frozen=True)
class Linear:
    """A packed product: (out, in) weight, (out,) bias or None, `float` or `int8` activations."""

    weight: DecoderWeight
    bias: Tensor | None = None
    activation: str = "float"


@dataclass(frozen=True)
class LayerWeights:
    """What one layer of a decoder holds; norms are floating, (hidden,) or (head_size,)."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    gate: Linear
    up: Linear
    down: Linear
    attention_norm: Tensor
    mlp_norm: Tensor
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None


@dataclass(frozen=True)
class DecoderShape:
    """Sizes and constants of a decoder.

    Attributes:
        heads: Of queries, a multiple of `key_heads`.
        key_heads: Of keys and values.
        head_size: Numbers in a head, even.
        context: The most positions.
        epsilon: That every norm adds to the mean square.
        frequency: (head_size / 2,) float32, radians a position of the rotary embedding.
        rotary_scale: That its cosines and sines are multiplied by.
    """

    heads: int
    key_heads: int
    head_size: int
    context: int
    epsilon: float
    frequency: Tensor
    rotary_scale: float = 1.0

    def check(self) -> None:
        """Raise InputError unless the sizes make a decoder."""
        if min(self.heads, self.key_heads, self.head_size, self.context) < 1:
            raise InputError(f"{self}: expected positive sizes")
        if self.heads % self.key_heads or self.head_size % 2:
            raise InputError(f"{self}: expected heads in whole groups and an even head_size")
        check("frequency", self.frequency, (self.head_size // 2,), FLOAT)


# A weight's part of a MatrixStruct: its tensors, checked, and the numbers that go with them.
_Parts = tuple[dict[str, Tensor | None], dict[str, int]]


def _integer(weight: IntegerWeight) -> _Parts:
    codes, scale, zero = grid = (weight.codes, weight.scale, weight.zero)
    size = (weight.out_features, weight.in_features)
    kind = ops.check_integer(grid, weight.bits, weight.group_size, *size)
    numbers = {
        "group_chunks": -(-weight.columns_per_group // COLUMNS),
        "zero_kind": ZERO_KINDS.index(kind),
        "half": scale.dtype == torch.float16,
    }
    return {"codes": codes, "scale": scale, "zero": zero}, numbers


def _codebook(weight: CodebookWeight) -> _Parts:
    """For either kind of activations: of a row rounded to int8 the step is the scale."""
    codes, table, step, entries = map(weight.get_buffer, ("codes", "table", "step", "entries"))
    size = (weight.out_features, weight.in_features)
    ops.check_codebook((codes, table, step), weight.bits, *size)
    shared = book_ops.check_entries(entries, weight.out_features)
    numbers = {"group_chunks": -(-weight.in_features // COLUMNS), "shared_entries": shared}
    return {"codes": codes, "scale": step, "book": table, "entries": entries}, numbers


class Binder:
    """Fills C structures, and keeps the tensors that they point to."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def address(self, tensor: Tensor | None) -> int | None:
        """Where a tensor lies; it is kept from now on."""
        if tensor is None:
            return None
        self.kept.append(tensor)
        return tensor.data_ptr()

    def vector(self, name: str, values: Tensor | None, size: int) -> int | None:
        """Address of (size,) floating values, as float32."""
        if values is None:
            return None
        if not values.is_floating_point():
            raise InputError(f"{name} is {values.dtype}: expected floating values")
        self.kept.append(values.detach().float())
        return address(name, self.kept[-1], (size,))

    def matrix(self, name: str, linear: Linear, rows: int, columns: int) -> MatrixStruct:
        """A weight of rows x columns, interleaved in place."""
        weight = linear.weight
        if (weight.out_features, weight.in_features) != (rows, columns):
            raise InputError(f"{name} is {weight.shape}: expected ({rows}, {columns})")
        if linear.activation not in ("float", "int8"):
            raise InputError(f"{name}: activation={linear.activation!r}: expected float or int8")
        if not kernels.prepare(weight):
            raise InputError(f"{name}: the native library doesn't serve {weight.spec()}")
        parts = _integer(weight) if isinstance(weight, IntegerWeight) else _codebook(weight)
        tensors, numbers = parts
        return MatrixStruct(
            **{part: self.address(tensor) for part, tensor in tensors.items()},
            bias=self.vector(f"{name} bias", linear.bias, rows),
            out=rows,
            in_=columns,
            bits=weight.bits,
            int8=linear.activation == "int8",
            **numbers,
        )

    def layer(self, index: int, weights: LayerWeights, sizes: dict[str, int]) -> LayerStruct:
        """A layer; `sizes` holds hidden, queries, keys, middle and head."""
        hidden, queries, keys = sizes["hidden"], sizes["queries"], sizes["keys"]
        shapes = {
            "query": (queries, hidden),
            "key": (keys, hidden),
            "value": (keys, hidden),
            "output": (hidden, queries),
            "gate": (sizes["middle"], hidden),
            "up": (sizes["middle"], hidden),
            "down": (hidden, sizes["middle"]),
        }
        filled = LayerStruct()
        for field in fields(weights):
            part, name = getattr(weights, field.name), f"layer {index} {field.name}"
            if field.name in shapes:
                bound: object = self.matrix(name, part, *shapes[field.name])
            else:
                size = hidden if field.name in ("attention_norm", "mlp_norm") else sizes["head"]
                bound = self.vector(name, part, size)
            setattr(filled, field.name, bound)
        return filled
