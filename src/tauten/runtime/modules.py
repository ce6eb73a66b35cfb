"""Packed layers: drop-in for torch's, with the weight held in fewer bits."""

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from tauten.core.errors import CorruptError, InputError
from tauten.formats.packed import PackedWeight, shard_range
from tauten.runtime import kernels
from tauten.runtime.buffers import CPU
from tauten.runtime.read_weight import WRITTEN, read_weight


class PackedModule(nn.Module):
    """What packed layers share: the packed weight, an optional bias, and what activations do.

    `weight` gives the dequantized weight, for model code that reads its dtype or multiplies by it.
    To `torch.fx` a packed layer is one node, as torch's own layers are.

    Args:
        packed: The weight; a tied weight is the same object in several layers.
        bias: As in the layer it replaces.
        activation: `float`, `int8` or `static`, as for `kernels.linear`.
        dtype: That of the weight it replaced.
        settings: What else a convolution needs: stride, padding, ...
        step: () float32, of `static` activations.
    """

    def __init__(
        self,
        packed: PackedWeight,
        bias: Tensor | None = None,
        activation: str = "float",
        dtype: torch.dtype = torch.float32,
        settings: dict[str, Any] | None = None,
        step: Tensor | None = None,
    ):
        super().__init__()
        self.packed = packed
        self.activation = activation
        self.settings = settings or {}
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias)
        self.register_parameter("bias", bias)
        self.bias: nn.Parameter | None
        self.register_buffer("step", step)
        self.step: Tensor | None
        # Empty: sees `.to(dtype)`, and says device and dtype to who asks a model's parameters.
        # Not in the set of buffers that aren't saved: torch.export would miss a parameter.
        like = torch.empty(0, dtype=dtype, device=CPU)
        self.dtype_like = nn.Parameter(like, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The weight it stands for, dequantized anew on each access.

        Raises:
            InputError: On writing to it, in place or through `data` too.
        """
        return read_weight(self.dequantized())

    def dequantized(self) -> Tensor:
        """The weight it stands for, (out, in, ...), in the dtype of the one it replaced."""
        self.prepare()  # before another thread changes the layout
        return self.packed.dequantize(self.dtype_like.dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise InputError(WRITTEN)
        super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As in torch, but nothing may stand for the weight, as pruning masks would have it."""
        if name.startswith("weight"):
            raise InputError(WRITTEN)
        super().register_parameter(name, param)

    @property
    def parametrizations(self) -> nn.ModuleDict:
        """Where torch asks, before it parametrizes a tensor, whether that has been done."""
        found = self._modules.get("parametrizations")
        return found if isinstance(found, nn.ModuleDict) else _Unparametrized()

    def check_contents(self) -> None:
        """Raise CorruptError where a step isn't one; the weight checks its own tensors."""
        if self.step is not None and not 0 < float(self.step) < math.inf:
            raise CorruptError(f"step is {float(self.step)}: expected a number above 0")

    def prepare(self) -> None:
        """Lay the weight out for the kernels that serve it; a weight still to be loaded stays."""
        kernels.prepare(self.packed)

    def reset_parameters(self) -> None:
        """What initializes the layer that this one replaces; InputError."""
        raise InputError(WRITTEN)

    def forward(self, input: Tensor) -> Tensor:
        """What `multiply` gives, in the dtype of torch's own layer, under autocast too."""
        node = node_of(self, input)
        return self.multiply(input) if node is None else node

    def multiply(self, x: Tensor) -> Tensor:
        """The layer's outputs."""
        raise NotImplementedError

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(f"{prefix}dtype_like", None)

    def _load_from_state_dict(
        self,
        state: Any,
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: list[str],
        *others: Any,
    ) -> None:
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, *others)
        if f"{prefix}dtype_like" in missing:
            missing.remove(f"{prefix}dtype_like")

    def extra_repr(self) -> str:
        shape = "x".join(map(str, self.packed.shape))
        bits = f"{self.packed.bits_per_weight:.2f} bits a weight"
        return f"{shape}, {self.packed.kind}, {bits}, activation={self.activation}"


class PackedLinear(PackedModule):
    """y = x W^T + b."""

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.packed.in_features

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.packed.out_features

    def multiply(self, x: Tensor) -> Tensor:
        """(..., in) floating -> (..., out), same dtype."""
        return autocast(kernels.linear(x, self.packed, self.bias, self.activation, self.step))

    def shard(self, rank: int, world: int, dim: int, unit: int = 1) -> "PackedLinear":
        """One worker's part of the layer, which it computes alone.

        By rows (dim 0) the outputs of all workers, one after the other, are those of the layer.
        By columns (dim 1) each worker takes its columns of x, and the outputs add up to those of
        the layer; worker 0 holds the bias. With int8 activations and one group a row, each worker
        then rounds its columns of a token by themselves.

        Args:
            rank: Of the worker, from 0 on.
            world: How many workers there are.
            dim: 0 for rows of out, 1 for columns of in.
            unit: Rows or columns that stay together, such as a head or a group; the first workers
                get one more where they don't deal out evenly.
        Raises:
            InputError: A worker would get nothing, or a group of columns would be cut.
            NotApplicableError: This kind of weight can't be cut there.
        """
        packed = self.packed.shard(rank, world, dim, unit)
        bias = self.bias if dim == 0 or rank == 0 else None
        if bias is not None and dim == 0:
            begin, end = shard_range(self.out_features, rank, world, unit)
            bias = nn.Parameter(bias.detach()[begin:end].clone(), bias.requires_grad)
        return PackedLinear(packed, bias, self.activation, self.dtype_like.dtype, step=self.step)


class PackedConv1D(PackedLinear):
    """transformers' Conv1D: a linear layer whose `weight` reads as (in, out)."""

    @property
    def weight(self) -> Tensor:
        """The weight it stands for, (in, out), dequantized anew on each access."""
        return super().weight.t()

    def forward(self, x: Tensor) -> Tensor:
        """As in `PackedModule`; Conv1D's input has this name."""
        return super().forward(x)


class PackedConv(PackedModule):
    """1-D to 3-D convolution; `settings` holds stride, padding, dilation, groups, padding_mode."""

    def prepare(self) -> None:
        """As in `PackedModule`, except for channels in groups, which no kernel serves."""
        if self.settings["groups"] == 1:
            super().prepare()

    def multiply(self, x: Tensor) -> Tensor:
        """(batch, in, *size) or (in, *size) floating -> (batch, out, *size), same dtype."""
        product = (x, self.packed, self.bias, self.activation, self.settings, self.step)
        return autocast(kernels.conv(*product))


class PackedEmbedding(PackedModule):
    """Rows of a packed table, dequantized as they are looked up."""

    from_pretrained = nn.Embedding.from_pretrained

    def multiply(self, x: Tensor) -> Tensor:
        """(...) integer -> (..., features)."""
        return kernels.rows(x, self.packed, self.dtype_like.dtype)


class _Unparametrized(nn.ModuleDict):
    """None yet; InputError for the weight, which can have none."""

    def __contains__(self, key: str) -> bool:
        if key == "weight":
            raise InputError(WRITTEN)
        return False


def autocast(y: Tensor) -> Tensor:
    """A product in autocast's dtype where that is on; it leaves float64 alone."""
    kind = y.device.type
    cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return y.to(torch.get_autocast_dtype(kind)) if cast and y.dtype != torch.float64 else y


def node_of(module: PackedModule, *args: Any, **kwargs: Any) -> Any:
    """The call of a layer as one node of the graph that `torch.fx` traces; None elsewhere."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, fx.Proxy):
            tracer: Any = value.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(module), args, kwargs)
    return None


def unsaved(module: nn.Module) -> set[str]:
    """Names of those of a module's own tensors that no file holds."""
    like = {"dtype_like"} if isinstance(module, PackedModule) else set()
    return module._non_persistent_buffers_set | like
