"""What a package computes under another default dtype of torch, on the same inputs."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import tauten

_TESTS, _PACKAGE = (str(Path(file).parent) for file in (__file__, tauten.__file__))


class InputsInFloat32(TorchFunctionMode):
    """What tests compute themselves, and the models they build, has torch's own default."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if torch.compiler.is_dynamo_compiling() or not _asked_by_a_test():
            return func(*args, **(kwargs or {}))
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            torch.set_default_dtype(before)


def _asked_by_a_test() -> bool:
    """Whether it is a test's file, not the package's, that called last."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_PACKAGE):
            return False
        if file.startswith(_TESTS):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
