"""A model as the user gave it, what workers open of it, and the calls that it is planned for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.core.rows import count_rows
from tauten.core.temporary import TemporaryFolder
from tauten.models.devices import to_cpu
from tauten.models.source import open_source
from tauten.models.state import check_loaded, say_if_training
from tauten.models.structure import find_structure
from tauten.parallel.by_value import UnsendableError
from tauten.parallel.comparison import tolerance
from tauten.parallel.executors import under_torchrun
from tauten.parallel.launcher import memory_folder
from tauten.parallel.parcel import Parcel, dump_skeleton, pack, switch_cache_off, twin
from tauten.parallel.pool import pool_folder
from tauten.parallel.row_cuts import Call, RowCuts

_folders: list[TemporaryFolder] = []  # of this process, until it ends
_ROWS, _TOKENS = 8, 64  # of the call that a language model is planned for by default


class Given:
    """A model as the user gave it, and what workers open.

    Attributes:
        name: Of the model.
        model: In memory, that of the CPU; or with empty tensors, where it is on disk.
    """

    def __init__(self, model: Any):
        self._source = None if isinstance(model, nn.Module) else open_source(model)
        self._own: Any = None  # where the user's module lies
        on_disk = isinstance(model, str | os.PathLike) and self._source is not None
        if self._source is not None and on_disk and self._source.reader is not None:
            self.name, self.model = self._source.name, self._source.skeleton()
        else:
            whole = model if self._source is None else self._source.open()
            check_loaded(whole)
            say_if_training(whole)
            self.name = type(whole).__name__ if self._source is None else self._source.name
            self._source, self._own, (self.model, _) = None, whole, to_cpu(whole)

    @property
    def config(self) -> Any:
        """The model's, if it has one."""
        return getattr(self.model, "config", None)

    def packed(self) -> tuple[Parcel, Path]:
        """What workers open, and a new folder for the files of a pool, in which it may lie.

        Raises:
            UnsendableError: The model can't be sent to another process; nothing was started.
        """
        skeleton = dump_skeleton(self.model) if self._source is None else b""
        folder = _own_folder() if under_torchrun() else pool_folder()
        if self._source is not None:
            return Parcel(self.name), folder
        return pack(self.model, skeleton, folder), folder

    def row_cuts(self) -> RowCuts:
        """Of calls of it; nothing is proved yet."""
        return RowCuts(self.name, tolerance(self.model))

    def runnable(self, stream: bool) -> Any:
        """The model for calls in this process; streamed from disk it needs a block's memory."""
        if self._source is None:
            try:
                model = twin(self._own).eval()
            except UnsendableError:
                return Uncopied(self._own)
        else:
            blocks = find_structure(self.model).blocks if stream else ()
            model = self._source.open(blocks, stream)
        switch_cache_off(model)
        return model


class Uncopied:
    """A model that can't be copied: called as it is, in evaluation mode, which calls restore."""

    def __init__(self, model: nn.Module):
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's."""
        with _evaluating(self._model):
            return self._model(*args, **kwargs)

    def modules(self) -> Iterator[nn.Module]:
        """As the model's."""
        return self._model.modules()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's."""
        model: Any = self._model
        with _evaluating(model):
            return model.generate(*args, **kwargs)


def example_call(given: Given, example: Any) -> Call:
    """Arguments of the call that a plan is made for.

    Args:
        given: The model.
        example: A tensor, a dict of keywords, or a tuple of positional arguments; None for
            tokens, for a language model.
    """
    if example is None:
        if not takes_tokens(given.config):
            raise InputError(
                f"{given.name}: pass example_inputs, a call like those to come (a tensor, a tuple "
                "of arguments or a dict of keywords): plans are measured on it"
            )
        return (), {"input_ids": example_tokens(int(given.config.vocab_size), _ROWS, _TOKENS)}
    if isinstance(example, Tensor):
        call: Call = (example,), {}
    elif isinstance(example, dict):
        call = (), dict(example)
    elif isinstance(example, tuple | list):
        call = tuple(example), {}
    else:
        kind = type(example).__name__
        raise InputError(f"example_inputs is a {kind}: expected a tensor, a tuple or a dict")
    if not count_rows(call):
        raise InputError("example_inputs has no rows; pass a batch of the size that is to come")
    return call


def takes_tokens(config: Any) -> bool:
    """Whether a model of this configuration can be called on tokens alone."""
    has_vocabulary = getattr(config, "vocab_size", None) is not None
    return has_vocabulary and not getattr(config, "is_encoder_decoder", False)


def example_tokens(vocabulary: int, rows: int, tokens: int) -> Tensor:
    """Some tokens, (rows, tokens)."""
    return torch.arange(rows * tokens).view(rows, tokens) * 7919 % vocabulary


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _own_folder() -> Path:
    """A folder for a process that starts no workers, removed at its end."""
    _folders.append(memory_folder())
    return _folders[-1].path
