"""What of a batch is an argument, a keyword or a target, by what the model takes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import tiny_bert
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.data.calls import as_call

X, Z, Y = torch.randn(6, 3), torch.randn(6, 3) + 9, torch.arange(6)
IDS = torch.arange(24).view(6, 4)
MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]] * 2)
IMAGES = [torch.zeros(3, 4, 4), torch.zeros(3, 5, 5)]


def model(forward: Callable[..., Any]) -> nn.Module:
    """A model with this forward."""
    return type("Model", (nn.Module,), {"forward": staticmethod(forward)})()


def one(x: Tensor) -> Tensor:
    return x


def two(x: Tensor, z: Tensor) -> Tensor:
    return x


def two_at_most(x: Tensor, z: Tensor | None = None) -> Tensor:
    return x


def features(features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
    return features


def nano(idx: Tensor, targets: Tensor | None = None) -> Tensor:
    return idx


def anything(*args: Any, **kwargs: Any) -> Any:
    return args


def named_only(*, x: Tensor, scale: float = 1.0) -> Tensor:
    return x


DICT = {"x": X, "labels": Y}
CASES = {
    "tensor": (one, X, (X,), {}, ()),
    "pair": (one, (X, Y), (X,), {}, (Y,)),
    "pair of a loader": (one, [X, Z], (X,), {}, (Z,)),
    "weights": (one, (X, Y, Z), (X,), {}, (Y, Z)),
    "two arguments": (two, (X, Z), (X, Z), {}, ()),
    "two arguments of a loader": (two, [X, Z], (X, Z), {}, ()),
    "two arguments and targets": (two, (X, Z, Y), (X, Z), {}, (Y,)),
    "nested": (two, ((X, Z), Y), (X, Z), {}, (Y,)),
    "nested by a loader": (two, [[X, Z], Y], (X, Z), {}, (Y,)),
    "nested, the second may be left out": (two_at_most, ((X, Z), Y), (X, Z), {}, (Y,)),
    "a second that may be left out is a target": (two_at_most, (X, Z), (X,), {}, (Z,)),
    "a tuple is one argument": (one, ((X, Z), Y), ((X, Z),), {}, (Y,)),
    "images": (one, IMAGES, (IMAGES,), {}, ()),
    "images and targets": (one, (IMAGES, [Y]), (IMAGES,), {}, ([Y],)),
    "keywords": (two, {"z": Z, "x": X}, (), {"z": Z, "x": X}, ()),
    "keywords and targets": (two, ({"z": Z, "x": X}, Y), (), {"z": Z, "x": X}, (Y,)),
    "keys it doesn't take": (one, DICT, (), {"x": X}, ()),
    "keyword-only": (named_only, {"x": X, "scale": 2.0}, (), {"x": X, "scale": 2.0}, ()),
    "one dict": (features, {"a": X, "b": Z}, ({"a": X, "b": Z},), {}, ()),
    "one dict and targets": (features, ({"a": X}, Y), ({"a": X},), {}, (Y,)),
    "anything": (anything, DICT, (), DICT, ()),
    "anything nested": (anything, ((X, Z), Y), (X, Z), {}, (Y,)),
    "next tokens": (nano, (IDS, IDS + 1), (IDS, IDS + 1), {}, (IDS + 1,)),
    "classes of texts": (nano, (IDS, Y), (IDS,), {}, (Y,)),
}


@pytest.mark.parametrize("case", CASES)
def test_what_goes_where(case: str) -> None:
    forward, batch, args, kwargs, rest = CASES[case]
    taker = model(forward)
    call = as_call(taker, batch)
    same(call.args, args)
    same(call.kwargs, kwargs)
    same(call.rest, rest)
    again = as_call(taker, call.batch)
    same((again.args, again.kwargs, again.rest), (args, kwargs, rest))


def same(one: Any, other: Any) -> None:
    ours, form = torch.utils._pytree.tree_flatten(one)
    theirs, wanted = torch.utils._pytree.tree_flatten(other)
    assert form == wanted
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_a_mask_in_second_place_is_no_target() -> None:
    call = as_call(tiny_bert(), (IDS, MASK, Y))
    same(call.kwargs, {"input_ids": IDS, "attention_mask": MASK})
    same(call.rest, (Y,))
    for labels in (MASK * 2, torch.tensor([[1, 0, 1, 0]] * 6), Y):
        call = as_call(tiny_bert(), (IDS, labels))
        same((call.args, call.kwargs, call.rest), ((IDS,), {}, (labels,)))


def test_keys_that_a_transformers_model_would_ignore_are_left_out() -> None:
    call = as_call(tiny_bert(), {"input_ids": IDS, "labels": Y, "idx": Y})
    same(call.kwargs, {"input_ids": IDS})
    assert call.unused == ("labels", "idx")


def test_what_a_dict_lacks_is_named() -> None:
    message = r"Model.forward requires z; the batch has x, y: rename its keys"
    with pytest.raises(InputError, match=message):
        as_call(model(two), {"x": X, "y": Z})
