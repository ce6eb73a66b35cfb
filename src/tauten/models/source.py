"""Open whatever the user has: a Hugging Face folder or id, a GGUF file, a module, a factory."""

import copy
import functools
import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tauten.core.errors import CorruptError, InputError
from tauten.core.printing import logger
from tauten.models.devices import Home, to_cpu
from tauten.models.experts import unfuse_experts
from tauten.models.loader import Loader
from tauten.models.obstacles import uncopied
from tauten.models.packing import prepacked, write_out
from tauten.models.reader import SafetensorsReader, check_finite
from tauten.models.replacing import check_replaceable, fold_reparametrized, unwrapped
from tauten.models.state import check_loaded, say_if_training, written_buffers

_log = logger(__name__)
_FACTORY = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass
class Source:
    """A model that can be opened any number of times; it is never changed.

    Attributes:
        name: What the user passed, for messages and reports.
        kind: `huggingface`, `sentence-transformers`, `gguf`, `module`, `factory` or `artifact`.
        skeleton: Builds the module; with a reader its tensors are on the meta device, without one
            they are shared with the original.
        identify: Makes its fingerprint, which may take seconds: all its bytes are read.
        size_bytes: Bytes of its weights on disk (in memory for modules).
        reader: Source of its tensors, None where they are in memory.
        base_prefix: Name of the base model that checkpoints may leave out.
        save_companions: Writes configuration and tokenizer files into a folder.
        left_behind: Names of files beside the model that `save_companions` doesn't write.
        tokenizer: Loads the tokenizer, None where there is none.
        keep_dtype: Compute in the dtype that is stored, as a module in memory does; else float32.
        whole: Why its blocks can't be loaded one by one; empty where they can.
        outline: Builds the module with empty tensors where `skeleton` loads all of them first.
        structure: Surgeries between what a file or the user's module says of its shape and what
            the skeleton is; see `models.surgery`.
        written_out: Packed layers that are made dense when all is loaded: packed they are slower.
        home: Where the module lies, unless that is the CPU; what is made of it goes back there.
    """

    name: str
    kind: str
    skeleton: Callable[[], nn.Module]
    identify: Callable[[], str]
    size_bytes: int
    reader: SafetensorsReader | None = None
    base_prefix: str = ""
    save_companions: Callable[[Path], None] = lambda folder: None
    left_behind: str = ""
    tokenizer: Callable[[], Any] | None = None
    keep_dtype: bool = False
    whole: str = ""
    structure: tuple[dict[str, Any], ...] = ()
    outline: Callable[[], nn.Module] | None = None
    written_out: tuple[str, ...] = ()
    home: Home | None = None

    @property
    def fingerprint(self) -> str:
        """Changes when any byte of the model does; names a run's journal."""
        return self.identify()

    def open(self, blocks: tuple[str, ...] = (), stream: bool = False) -> nn.Module:
        """The model, ready to be called, in float32 where it came from disk.

        Args:
            blocks: Names of its blocks.
            stream: Load each block only while it runs.
        """
        model = self.skeleton()
        if self.reader is not None:
            loader = self.loader(model, blocks)
            if stream:
                loader.stream(model)
            else:
                loader.load_all()
                write_out(model, self.written_out)
        return model.eval()

    def delivered(self, model: nn.Module) -> nn.Module:
        """A model made of this one, ready for its user: where this one lies, laid out for calls."""
        return prepacked(model if self.home is None else self.home.take_back(model))

    def loader(self, model: nn.Module, blocks: tuple[str, ...]) -> Loader:
        """A loader of a skeleton of this source."""
        assert self.reader is not None, "a source in memory needs no loader"
        dtype = None if self.keep_dtype else torch.float32
        loader = Loader(model, self.reader, blocks, dtype, self.base_prefix)
        loader.check(self.name)
        return loader


def open_source(model: "str | os.PathLike[str] | nn.Module | Source") -> Source:
    """Open a model.

    Args:
        model: A folder with config.json and safetensors, a hub id (needs network), a .gguf file,
            a folder that Tauten wrote, `package.module:factory`, or a module.
    Raises:
        InputError: It is none of these, or of a kind that is refused; the message says what to
            pass instead.
        CorruptError: Its files are damaged.
    """
    if isinstance(model, Source):
        return model
    if isinstance(model, nn.Module):
        say_if_training(model)
        return module_source(model)
    if not isinstance(model, str | os.PathLike):
        raise InputError(f"model is a {type(model).__name__}: pass a module, a folder or a file")
    text = os.fspath(model)
    path = Path(text).expanduser()
    # Imported late: transformers takes seconds, and a plain module doesn't need it.
    from tauten.models import artifact, huggingface

    if path.is_dir():
        return artifact.source(path) if artifact.is_artifact(path) else _open_folder(path)
    if path.is_file():
        return _open_file(path)
    if names_code(text):
        return factory_source(text)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) or re.fullmatch(r"[\w.-]+", text):
        return _open_folder(huggingface.download(text))
    raise InputError(f"{text}: no such file or folder; pass a model folder or a .gguf file")


def names_code(model: Any) -> bool:
    """Whether a model's name is that of a function, which only a user may have imported and run."""
    is_one = isinstance(model, str) and re.fullmatch(_FACTORY, model) is not None
    return is_one and not Path(model).exists()


def _open_folder(path: Path) -> Source:
    from tauten.models import huggingface, sentence
    from tauten.models.covered import MANIFEST, RECIPE

    if (path / RECIPE).is_file() and (path / huggingface.CONFIG).is_file():
        raise CorruptError(f"{path / MANIFEST} is missing, beside a recipe: make the folder anew")
    if not sentence.is_sentence_folder(path):
        return huggingface.source(path)
    if sentence.is_installed():
        return sentence.source(path)
    _log.warning(
        "%s: opened as its transformer alone, without pooling and what follows (%s)",
        *(path, sentence.REMEDY),
    )
    return huggingface.source(path)


def _open_file(path: Path) -> Source:
    from tauten.models import gguf

    if path.suffix == ".gguf":
        return gguf.source(path)
    if path.suffix in PICKLE_SUFFIXES:
        raise InputError(
            f"{path} is a pickle checkpoint, which can run code when loaded; "
            "convert it to a safetensors folder in an environment you trust, or pass the module"
        )
    if path.suffix == ".safetensors":
        raise InputError(f"{path} holds weights only; pass the folder with its config.json")
    raise InputError(f"{path}: not a model; pass a model folder or a .gguf file")


def module_source(model: nn.Module, name: str = "", kind: str = "module") -> Source:
    """A module in memory; what is made from it shares the tensors that stay as they are.

    Raises:
        InputError: Its tensors aren't in memory, or others changed what it computes in a way that
            can't be packed.
        CorruptError: A tensor holds NaN or infinity.
    """
    model = unwrapped(model)
    check_replaceable(model)
    check_loaded(model)
    model, home = to_cpu(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    check_weights(model, name or type(model).__name__)
    return Source(
        name=name or type(model).__name__,
        kind=kind,
        skeleton=lambda: shared_copy(model),
        identify=functools.cache(lambda: fingerprint_tensors(tensors)),
        size_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        tokenizer=_tokenizer_of(model),
        home=home,
    )


def check_weights(model: nn.Module, name: str) -> None:
    """Raise CorruptError where a parameter of a model in memory holds NaN or infinity."""
    for key, tensor in model.named_parameters():  # a buffer may be a mask of -inf
        check_finite(tensor, f"{name}: tensor {key!r}")


def _tokenizer_of(model: nn.Module) -> Callable[[], Any] | None:
    """Loads the tokenizer that a model holds, or that of the folder it was loaded from, if any."""
    own = getattr(model, "tokenizer", None)
    if callable(own) and hasattr(own, "pad_token_id"):  # as sentence-transformers' models
        return lambda: own
    place = getattr(getattr(model, "config", None), "name_or_path", None)
    if not isinstance(place, str) or not place or not Path(place).is_dir():
        return None
    from tauten.models import huggingface

    return huggingface.tokenizer_loader(Path(place))


def factory_source(text: str) -> Source:
    """`package.module:factory`, found from the working directory like any import."""
    module_name, _, attribute = text.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:  # a user's code may raise anything
        factory = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        raise InputError(
            f"{text}: can't import it ({error}); expected package.module:factory"
        ) from error
    try:
        model = factory() if callable(factory) else factory
    except Exception as error:
        raise InputError(
            f"{text} raised {type(error).__name__}: {error}; expected a function that needs no "
            "arguments and returns an nn.Module"
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{text} returned a {type(model).__name__}; expected an nn.Module")
    return module_source(model, text, "factory")


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy for inference: modules and parameters of its own on the same storage, no gradients.

    Its weights are those that the model computes with, whatever they are made of; see
    `fold_reparametrized`. Buffers that a forward may write are copied. Fused experts are linear
    layers in it; see `unfuse_experts`.
    """
    written = {id(buffer) for _, _, buffer in written_buffers(model)}
    memo: dict[int, Any] = {id(b): b for b in model.buffers() if id(b) not in written}
    for parameter in model.parameters():
        tensor = parameter.detach()
        if tensor.is_inference():  # nothing could be trained on it
            tensor = tensor.clone()
        memo[id(parameter)] = nn.Parameter(tensor, requires_grad=False)
    for value in (value for module in model.modules() for value in vars(module).values()):
        if isinstance(value, torch.Tensor) and value.grad_fn is not None:
            memo[id(value)] = value.detach()
    try:
        return unfuse_experts(fold_reparametrized(copy.deepcopy(model, memo)))
    except (TypeError, RuntimeError) as error:
        raise uncopied(model, error, memo) from error


def fingerprint_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and contents."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content = tensor.detach().cpu().contiguous()
        digest.update(content.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
