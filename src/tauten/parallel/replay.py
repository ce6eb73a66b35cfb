"""Time a saved plan again, beside one worker."""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from tauten.core.description import Sizes, checked
from tauten.core.errors import InputError
from tauten.core.progress import track
from tauten.parallel.comparison import difference
from tauten.parallel.footprint import fits_one_worker
from tauten.parallel.given import Given
from tauten.parallel.plan import Plan
from tauten.parallel.start import by_plan

MOST_ELEMENTS = 2**32  # of an input
_Floats = Literal["float64", "float32", "float16", "bfloat16"]


class _Form(TypedDict):
    """A tensor."""

    shape: Sizes
    dtype: _Floats | Literal["int64", "int32", "int16", "int8", "uint8", "bool"]


class _Inputs(TypedDict):
    """Of a call; what was no tensor is told in words."""

    args: list[_Form | str]
    kwargs: dict[str, _Form | str]


def replay(model: Any, plan: Plan, rounds: int) -> dict[str, Any]:
    """Time calls like the plan's, alternately by its layout and in this process.

    Args:
        model: As for `tauten.parallelize`.
        plan: Made by a measurement.
        rounds: Turns that each gets, after a first that isn't counted.
    Returns:
        Under `plan` and `one worker` (left out where that can't hold it) `seconds` of each turn,
        and the `difference` of their outputs.
    Raises:
        InputError: The plan wasn't measured, or its inputs were something else than tensors.
    """
    given = Given(model)
    args, kwargs = inputs_of_plan(plan, given.model)
    contenders: dict[str, Callable[..., Any]] = {}
    if fits_one_worker(given.model):
        contenders["one worker"] = given.runnable(stream=False)
    seconds: dict[str, list[float]] = {}
    outputs: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        executor, _ = by_plan(given, plan)
        stack.callback(executor.close)
        contenders["plan"] = lambda *args, **kwargs: executor.call("forward", args, kwargs)
        stack.enter_context(torch.inference_mode())
        for turn in track(range(rounds + 1), "timing", rounds + 1):
            for name, contender in contenders.items():
                start_s = time.perf_counter()
                outputs[name] = contender(*args, **kwargs)
                if turn:
                    seconds.setdefault(name, []).append(time.perf_counter() - start_s)
    worst = difference(outputs["plan"], outputs.get("one worker", outputs["plan"]))
    return {"seconds": seconds, "difference": worst}


def inputs_of_plan(plan: Plan, model: nn.Module) -> tuple[list[Any], dict[str, Any]]:
    """Inputs of the shapes and dtypes that a plan was made for; token numbers fit the model."""
    if not plan.inputs:
        raise InputError("the plan wasn't measured, so the inputs to time it on aren't known")
    checked(_Inputs, plan.inputs, "the plan's inputs")
    vocabulary = int(getattr(getattr(model, "config", None), "vocab_size", 2))
    generator = torch.Generator().manual_seed(0)

    def made(form: Any) -> Tensor:
        if not isinstance(form, dict):
            raise InputError(f"the plan's inputs hold {form}: only tensors can be made anew")
        if math.prod(form["shape"]) > MOST_ELEMENTS:
            raise InputError(f"the plan's inputs hold {form}: too large to be made anew")
        dtype = getattr(torch, form["dtype"])
        if dtype.is_floating_point:
            return torch.randn(form["shape"], generator=generator).to(dtype)
        return torch.randint(vocabulary, form["shape"], generator=generator).to(dtype)

    args = [made(form) for form in plan.inputs["args"]]
    return args, {key: made(form) for key, form in plan.inputs["kwargs"].items()}
