"""A GPU that isn't there: tensors that say `cuda:0` and hold their values on the CPU.

Real enough for code that moves tensors: `.to`, `.cuda()` and factories reach it, tensors of two
devices don't mix, and packed products run in Triton's interpreter.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

GPU = torch.device("cuda:0")
CPU = torch.device("cpu")
_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
# Torch would switch to the GPU for these before any code of ours is asked.
_IN_TORCH = {
    *(Tensor.__getitem__, Tensor.__setitem__, Tensor.__float__, Tensor.__int__, Tensor.__bool__),
    *(Tensor.item, Tensor.tolist, torch.where, nn.functional.scaled_dot_product_attention),
    Tensor._version.__get__,  # type: ignore[attr-defined]
}
_MOVES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


class OnGpu(Tensor):
    """A tensor of the GPU; `held` is where its values are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        # The device under it is `meta`, as in torch's fake tensors: CUDA's own code isn't reached.
        shape = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device="meta")
        made: OnGpu = Tensor._make_subclass(
            cls, shape, False, dispatch_device=True, device_for_backend_keys=GPU
        )
        made.held = held.detach()
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGpu({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            return GPU
        target = torch.device(kwargs["device"]) if kwargs.get("device") else GPU
        if "device" in kwargs:
            kwargs["device"] = CPU
        if func not in _MOVES:
            _check_places(func, (args, kwargs))
        plain_args, plain = tree_map(_held, (args, kwargs))
        if func.namespace == "tauten":  # in Triton's interpreter
            return OnGpu(func.redispatch(_CUDA, *plain_args, **plain))
        made = func(*plain_args, **plain)
        if func._schema.is_mutable:
            return args[0] if isinstance(made, Tensor) else made
        return made if target == CPU else tree_map(_on_gpu, made)


class SimulatedGpu(TorchFunctionMode):
    """Where `device="cuda"` makes tensors of the simulated GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _IN_TORCH and any(isinstance(value, OnGpu) for value in args):
            return tree_map(_on_gpu, func(*tree_map(_held, args), **tree_map(_held, kwargs)))
        if func is Tensor.cuda:
            return _on_gpu(args[0])
        if func is Tensor.cpu:
            return args[0].to(CPU)
        if func is Tensor.to and any(map(_is_gpu, (*args[1:], *kwargs.values()))):
            held, *options = tree_map(_off_gpu, tree_map(_held, args))
            return _on_gpu(held.to(*options, **tree_map(_off_gpu, kwargs)))
        if _is_gpu(kwargs.get("device")) and not any(isinstance(x, OnGpu) for x in args):
            return _on_gpu(func(*args, **kwargs | {"device": CPU}))
        return func(*args, **kwargs)


@contextmanager
def simulated_gpu() -> Iterator[torch.device]:
    """A machine with a GPU, for code that names one; without gradients, which need a real one."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a move changes the class
    try:
        with torch.no_grad(), SimulatedGpu():
            yield GPU
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def _is_gpu(value: Any) -> bool:
    return isinstance(value, torch.device | str) and str(value).startswith("cuda")


def _off_gpu(value: Any) -> Any:
    return CPU if _is_gpu(value) else value


def _on_gpu(value: Any) -> Any:
    if not isinstance(value, Tensor) or isinstance(value, OnGpu):
        return value
    return OnGpu(value)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnGpu) else value


def _check_places(func: Any, values: Any) -> None:
    leaves = torch.utils._pytree.tree_leaves(values)
    others = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, OnGpu) and x.dim()]
    indexes = func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)
    if others and not (indexes and not others[0].is_floating_point()):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, cuda:0 and cpu")
