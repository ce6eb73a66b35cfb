"""The calls that lay a model out over workers; see `api`."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from tauten.api import ModelLike
from tauten.core.errors import InputError
from tauten.parallel.module import ParallelModule
from tauten.parallel.plan import Plan
from tauten.parallel.start import start, start_training


def parallelize(
    model: ModelLike,
    example_inputs: Any = None,
    workers: int | str = "auto",
    mode: str = "auto",
    goal: str = "throughput",
    train: bool = False,
    *,
    plan: Plan | str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Compute a model on several cores or GPUs of this machine, laid out by a measured plan.

    Nothing is started before it is known what the model is called with: the first call is what
    its plan is measured on. Then layouts of up to `workers` processes are predicted, the best few
    are timed, and their outputs are compared with the model's at two shapes. One worker is kept
    where splitting loses, and at once where the first call takes less than handing it to workers;
    the plan has the figures. Under torchrun its processes are the workers, and all of them make
    the same calls.

    A model in memory is handed to workers through shared memory, all of which read the same
    tensors, with the values that they have when the workers start. Its modules are pickled without
    them, for processes that this one started alone, with the code of classes and functions that
    aren't installed: of a script, a notebook, the interactive prompt. No script is imported again.
    A model that can't be pickled (it holds a lock or an open socket) runs in this process, as
    every model does on systems other than Linux; a warning says so.

    Args:
        model: As for `quantize`; a folder is opened by each worker, which loads its share alone.
        example_inputs: A call like those to come: a tensor, a tuple of arguments or a dict of
            keywords, with the batch first. The plan is made for it at once. Without it the first
            call is what is measured, but for `mode="data"`, which then isn't; the result's
            `plan(example)` makes a plan at any time.
        workers: Most processes; by default one for each core, or GPU where there is one.
        mode: `data` cuts batches, `task` cuts the model (tensor and pipeline parallel), `auto`
            looks at both and at their combinations.
        goal: `throughput` for calls like the example, `latency` for a call of one row of it,
            `memory` for the least weights in one worker.
        train: Train it, data parallel: by DDP, or by FSDP2 where copies for all workers would
            not fit, or with `goal="memory"`. Nothing is measured.
        plan: An earlier one, or its file; then nothing is measured.
    Returns:
        A module that is called like the model: a `ParallelModule` for inference, or with `train`
        a `TrainingModule`, whose method `optimizer` makes one (under torchrun it is torch's own
        DDP or FSDP2 module, with parameters for an optimizer of yours). Close it, or use it in
        `with`.
    Raises:
        InputError: An argument or the model doesn't serve.
        WorkerError: Workers can't be started.
    """
    if train:
        if plan is not None or example_inputs is not None or mode == "task":
            raise InputError("train=True is data parallel and not planned: leave out the others")
        return start_training(model, workers, goal)
    return start(model, example_inputs, workers, mode, goal, plan)


def map(
    model: ModelLike | ParallelModule, inputs: Iterable[Any], workers: int | str = "auto"
) -> Iterator[Any]:
    """Outputs of a model for a stream of inputs, in order.

    Each input goes whole to one copy of the model. Inputs are drawn only as copies get free and
    outputs are taken, so neither piles up; a bar shows progress on a terminal.

    Args:
        model: What `parallelize` returned, or a model, of which each worker then holds a copy.
        inputs: Tensors, dicts of keywords, or (inputs, targets) pairs, such as a DataLoader's.
        workers: As for `parallelize`; unused where the model is on workers already.
    Yields:
        Outputs of each input, as the model returns them.
    """
    if isinstance(model, ParallelModule):
        yield from model.map(inputs)
        return
    with start(model, None, workers, "data", "throughput") as parallel:
        yield from parallel.map(inputs)
