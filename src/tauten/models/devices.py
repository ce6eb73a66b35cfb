"""A model on a GPU is worked on by the CPU, and what is made of it goes back to the GPU."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.core.printing import logger
from tauten.models.obstacles import uncopied
from tauten.models.packing import packed_modules
from tauten.runtime import kernels
from tauten.runtime.buffers import CPU

_log = logger(__name__)


@dataclass(frozen=True)
class Home:
    """Where a model was before `to_cpu`.

    Attributes:
        device: Of its tensors.
        tensors: Its own tensors by the address of their copies on the CPU.
        settings: Attributes of its modules that name the device or are plain tensors there, by
            module name and key.
    """

    device: torch.device
    tensors: dict[int, Tensor]
    settings: dict[tuple[str, str], Any]

    def take_back(self, model: nn.Module) -> nn.Module:
        """Move a model made of the copy to the device, in place.

        Tensors that stayed what they were are the original's own. Where a linear layer would have
        no kernel there the model stays on the CPU, which is said.
        """
        for name, layer in packed_modules(model):
            if not kernels.serves_on(self.device, layer.packed, layer.dtype_like.dtype):
                _log.warning(
                    "the result stays on the CPU: %s has no kernel for %s (%s); "
                    "model.to('%s') computes it there in plain torch, slower",
                    *(self.device, type(layer.packed).__name__, name or "the model", self.device),
                )
                return model
        model._apply(self._moved)
        modules = dict(model.named_modules())
        for (name, key), value in self.settings.items():
            if name in modules and key in vars(modules[name]):
                setattr(modules[name], key, value)
        return model

    def _moved(self, tensor: Tensor) -> Tensor:
        own = self.tensors.get(tensor.data_ptr()) if tensor.device == CPU else None
        if own is None or (own.shape, own.dtype) != (tensor.shape, tensor.dtype):
            return tensor.to(self.device)
        return own.detach()


def to_cpu(model: nn.Module) -> tuple[nn.Module, Home | None]:
    """A model in the CPU's memory, and where it was: itself and None if it is there.

    Args:
        model: Its tensors have values.
    Raises:
        InputError: It lies on several GPUs, or can't be copied.
    """
    tensors = list(_tensors(model))
    places = {tensor.device: name for name, tensor in tensors if tensor.device != CPU}
    if not places:
        return model, None
    if len(places) > 1:
        found = " and ".join(f"tensor {name!r} on {device}" for device, name in places.items())
        raise InputError(f"{type(model).__name__} has {found}: move it to one device first")
    (device,) = places
    memo: dict[int, Any] = {}
    own: dict[int, Tensor] = {}
    for _, tensor in tensors:
        held = tensor.detach().cpu()
        own[held.data_ptr()] = tensor
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(held, requires_grad=False) if is_parameter else held
    try:
        copied = copy.deepcopy(model, memo)
    except (TypeError, RuntimeError) as error:
        raise uncopied(model, error, memo) from error
    settings = dict(_settings(model, device))
    for (name, key), value in settings.items():
        if not isinstance(value, Tensor):
            setattr(copied.get_submodule(name), key, type(value)("cpu"))
    return copied, Home(device, own, settings)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a model's modules with their names, also plain attributes."""
    for name, module in model.named_modules():
        for store in (module._parameters, module._buffers, vars(module)):
            for key, value in store.items():
                if isinstance(value, Tensor):
                    yield f"{name}.{key}" if name else key, value


def _settings(model: nn.Module, device: torch.device) -> Iterator[tuple[tuple[str, str], Any]]:
    """Attributes with a device that `Module.to` leaves alone: plain tensors, and its name, such as
    `self.device`, on which a forward makes tensors."""
    names = (str(device), device.type)
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            is_name = isinstance(value, torch.device | str) and str(value) in names
            if is_name or (isinstance(value, Tensor) and value.device == device):
                yield (name, key), value
