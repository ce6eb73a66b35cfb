"""Data parallel inference: every worker holds the model, a batch is cut by rows."""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tauten.core.errors import InputError
from tauten.core.trees import Watched
from tauten.models.packing import write_out
from tauten.models.state import state_kept
from tauten.parallel.parcel import Parcel
from tauten.parallel.rows import to_device
from tauten.parallel.worker import Place

TRIAL = "trial"  # a call that the model's user doesn't know of: what it counts isn't counted


@dataclass(frozen=True)
class Replica:
    """The whole model; workers on one machine share the memory of its weights."""

    def load(self, parcel: Parcel, place: Place) -> "WholeModel":
        """Load all tensors."""
        opened = parcel.open()
        opened.load()
        write_out(opened.model, opened.written_out)
        return WholeModel(opened.model.eval().to(place.device), place.device)


class WholeModel:
    """A model that this worker computes alone."""

    def __init__(self, model: nn.Module, device: str):
        self.model, self._device = model, device

    @torch.inference_mode()
    def __call__(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a method of the model."""
        return call_method(self.model, method, *to_device((args, kwargs), self._device))


def call_method(model: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Outputs of a call whose arguments are copies of the caller's.

    Args:
        model: To call.
        method: `forward`; `TRIAL`; or the name of one that the model has.
        args, kwargs: Of the call.
    Raises:
        InputError: It changed what it was given, and not that of the caller.
    """
    watched = Watched(args, kwargs)
    function = model if method in ("forward", TRIAL) else getattr(model, method)
    with state_kept(model) if method == TRIAL else contextlib.nullcontext():
        made = function(*args, **kwargs)
    if changed := watched.changed():
        raise InputError(
            f"{type(model).__name__} changes {', '.join(changed)} in place, and workers have "
            "copies: call generate, which keeps its cache itself, or the model in this process"
        )
    return made
