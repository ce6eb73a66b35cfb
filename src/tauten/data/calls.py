"""What a batch of data is to a model: arguments, keywords, and the targets that are left over.

A model says by the parameters of its `forward` what it takes. So `(x, z)` is two arguments of a
model that requires two, and a pair of inputs and targets for any other.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from tauten.core.errors import InputError

_MOST_OF_A_PAIR = 3  # inputs, targets and weights
_CHANNELS = {1, 3, 4}  # of images


@dataclass(frozen=True)
class Call:
    """A batch of data, taken apart.

    Attributes:
        args: Positional arguments of the model.
        kwargs: Its keywords.
        rest: What isn't for the model: targets, weights.
        unused: Keys of a dict that the model doesn't take.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rest: tuple[Any, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def batch(self) -> Any:
        """The same as inputs, or (inputs, targets), whatever it was; inputs may be a tuple."""
        inputs = self.kwargs or (self.args[0] if len(self.args) == 1 else self.args)
        return (inputs, *self.rest) if self.rest or isinstance(inputs, tuple | list) else inputs

    def on(self, model: nn.Module) -> Any:
        """What a model answers."""
        return model(*self.args, **self.kwargs)


@dataclass(frozen=True)
class Parameters:
    """What a model's forward takes.

    Attributes:
        positional: Names of those that can be given by position.
        required: Names of those without a default.
        named: All names that can be keywords.
        more: It takes keywords of any other name.
        any_number: It takes any number of arguments.
    """

    positional: tuple[str, ...]
    required: tuple[str, ...]
    named: tuple[str, ...]
    more: bool
    any_number: bool

    def fits(self, count: int) -> bool:
        """Whether it can be called with so many arguments."""
        needed = sum(name in self.required for name in self.positional)
        return needed <= count and (self.any_number or count <= len(self.positional))


def as_call(model: nn.Module, batch: Any) -> Call:
    """How a model is called on a batch.

    Args:
        model: Tells by its signature what it takes.
        batch: A tensor, a dict of keywords (or that is the one argument), or a tuple or list of
            inputs, which may be several arguments or a tuple of them, and of targets.
    Raises:
        InputError: A dict lacks what the model requires.
    """
    takes = parameters_of(model)
    needed = sum(name in takes.required for name in takes.positional)
    if isinstance(batch, Mapping):
        return _of_dict(model, takes, batch, ())
    if not isinstance(batch, tuple | list) or not batch or (needed < 2 and is_item_list(batch)):
        return Call((batch,), {})
    first, rest = batch[0], tuple(batch[1:])
    if isinstance(first, Mapping):
        return _of_dict(model, takes, first, rest)
    if len(batch) >= needed >= 2 and not isinstance(first, tuple | list):
        return Call(tuple(batch[:needed]), {}, tuple(batch[needed:]))
    if _are_arguments(takes, first):
        return Call(tuple(first), {}, rest)
    if not rest or not isinstance(first, Tensor) or len(takes.positional) < 2:
        return Call((first,), {}, rest)
    second = takes.positional[1]
    if second == "attention_mask" and _is_mask(rest[0], first):
        return Call((), {takes.positional[0]: first, second: rest[0]}, rest[1:])
    if second == "targets" and isinstance(rest[0], Tensor) and rest[0].shape == first.shape:
        return Call((first, rest[0]), {}, rest)  # as nanoGPT's, which else answers the last token
    return Call((first,), {}, rest)


def is_item_list(batch: Any) -> bool:
    """Whether a list is itself the inputs, one tensor an item, and no pair of inputs and targets.

    Items are alike in all but their sizes. Where two or three tensors have equally many rows they
    are inputs, targets and weights, as a DataLoader deals them out, unless they look like images
    (1, 3 or 4 channels, height, width).
    """
    if type(batch) is not list or len(batch) < 2:
        return False
    if not all(isinstance(x, Tensor) and x.dim() for x in batch):
        return False
    if len({(x.dtype, x.dim()) for x in batch}) > 1:
        return False
    sizes, has_few = {len(x) for x in batch}, len(batch) <= _MOST_OF_A_PAIR
    return len(sizes) > 1 or not has_few or (batch[0].dim() == 3 and sizes <= _CHANNELS)


def _are_arguments(takes: Parameters, inputs: Any) -> bool:
    """Whether a tuple, or the list that a DataLoader makes of one, is several arguments."""
    if not isinstance(inputs, tuple | list) or not inputs or not takes.fits(len(inputs)):
        return False
    return len(inputs) > 1 and (isinstance(inputs, tuple) or not is_item_list(inputs))


def _of_dict(
    model: nn.Module, takes: Parameters, inputs: Mapping[str, Any], rest: tuple[Any, ...]
) -> Call:
    known = {key: value for key, value in inputs.items() if key in takes.named}
    missing = [name for name in takes.required if name not in known]
    if not known and takes.positional and takes.fits(1) and (missing or not takes.more):
        return Call((dict(inputs),), {}, rest)
    if missing:
        raise InputError(
            f"{type(model).__name__}.forward requires {', '.join(missing)}; "
            f"the batch has {', '.join(map(str, inputs))}: rename its keys"
        )
    # transformers' models take keywords for all that lies below them, and would ignore others.
    if takes.more and not (known and isinstance(model, PreTrainedModel)):
        known = dict(inputs)
    unused = tuple(str(key) for key in inputs if key not in known)
    return Call((), known, rest, unused)


def _is_mask(mask: Any, ids: Tensor) -> bool:
    """Whether a tensor says which tokens are real: ones that stand together, and zeros."""
    if not isinstance(mask, Tensor) or mask.shape != ids.shape or mask.dim() != 2:
        return False
    real = mask.bool()
    edges = nn.functional.pad(real.int(), (1, 1)).diff(dim=1).abs().sum(1)
    return bool(mask.eq(real).all()) and bool((edges == 2).all())


def parameters_of(model: nn.Module) -> Parameters:
    """What a model's forward takes; anything, where it doesn't tell."""
    try:
        found = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # a compiled forward doesn't tell
        return Parameters((), (), (), True, True)
    kinds = inspect.Parameter
    usual = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    return Parameters(
        tuple(p.name for p in found if p.kind in usual),
        tuple(
            p.name
            for p in found
            if p.default is p.empty and p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
        ),
        tuple(p.name for p in found if p.kind in (usual[1], kinds.KEYWORD_ONLY)),
        any(p.kind is kinds.VAR_KEYWORD for p in found),
        any(p.kind is kinds.VAR_POSITIONAL for p in found),
    )
