"""A model that is trained by several workers from one ordinary training loop."""

from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from tauten.core.errors import InputError, WorkerError
from tauten.core.rows import count_rows
from tauten.parallel.closing import ModuleOnWorkers
from tauten.parallel.group import Assignment, Group, WorkerEnded
from tauten.parallel.parcel import Parcel
from tauten.parallel.plan import Plan
from tauten.parallel.rows import even_sizes, join_rows
from tauten.parallel.worker import Failed


class TrainingModule(ModuleOnWorkers):
    """A model in the hands of workers, trained like any other.

    A call gives outputs for all rows; what is computed of them here, such as a loss, has
    gradients; `backward` runs on in the workers, which add theirs up. Parameters and the
    optimizer stay with the workers: make it by `optimizer`. No gradient comes back to inputs.

    Attributes:
        plan: How it is laid out.
    """

    def __init__(self, parcel: Parcel, folder: Path, assignments: list[Assignment], plan: Plan):
        super().__init__()
        self.plan = plan
        self._workers = _Workers(parcel, folder, assignments)
        self._anchor = torch.zeros((), requires_grad=True)  # so that autograd follows the outputs
        self._closers.append(self._workers.close)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's, in the mode of this module (`train()` or `eval()`).

        Raises:
            WorkerError: A worker ended; its state is lost: load a checkpoint and start again.
            InputError: The outputs have no row for each of the inputs'.
        """
        rows = count_rows((args, kwargs))
        sizes = [size for size in even_sizes(rows, self._workers.count) if size]
        training = self.training and torch.is_grad_enabled()
        parts = self._workers.ask("forward", args, kwargs, training)
        made = join_rows(parts[: len(sizes)], sizes)
        if not training:
            return made
        leaves, spec = tree_flatten(made)
        floating = [
            i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.is_floating_point()
        ]
        self._workers.calls += 1
        call = (self._workers, self._workers.calls, rows)
        linked = _Linked.apply(self._anchor, call, *(leaves[i] for i in floating))  # type: ignore[no-untyped-call]
        for place, leaf in zip(floating, linked, strict=True):
            leaves[place] = leaf
        return tree_unflatten(leaves, spec)

    def optimizer(self, kind: type[torch.optim.Optimizer], **settings: Any) -> "WorkersOptimizer":
        """An optimizer of the workers' parameters.

        Args:
            kind: Such as `torch.optim.AdamW`.
            **settings: Its own, such as `lr`.
        """
        self._workers.ask("make_optimizer", kind, settings)
        return WorkersOptimizer(self._workers, settings)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The trained tensors by name, as the model's own `load_state_dict` takes them."""
        found = self._workers.ask("state_dict")[0]
        return {name: tensor.clone() for name, tensor in found.items()}

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers."""
        return self._workers.group.pids

    def close(self) -> None:
        """End the workers; what they trained is lost unless `state_dict` was taken before."""
        super().close()


class WorkersOptimizer(torch.optim.Optimizer):
    """Stands here for the optimizer that the workers hold; learning rate schedulers work on it."""

    def __init__(self, workers: "_Workers", settings: dict[str, Any]):
        self._workers = workers
        stand_in = nn.Parameter(torch.zeros(()))
        super().__init__([stand_in], dict(settings))

    def step(self, closure: Any = None, *, max_norm: float | None = None) -> None:  # type: ignore[override]
        """Take a step.

        Args:
            closure: Must be None: the loop computes the loss.
            max_norm: Of all gradients together; larger ones are scaled down to it first.
        """
        if closure is not None:
            raise InputError("a closure isn't called by workers: compute the loss in the loop")
        settings = {key: x for key, x in self.param_groups[0].items() if key != "params"}
        self._workers.ask("step", settings, max_norm)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self._workers.ask("zero_grad")


class _Linked(torch.autograd.Function):
    """Hands gradients of outputs to the workers that made them."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, call: Any, *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        workers, number, rows = ctx.call
        if number != workers.calls:
            raise InputError(
                "only the last call of a model on workers has gradients; call "
                "backward before the next forward"
            )
        workers.ask("backward", list(gradients), rows)
        return (torch.zeros(()), *(None for _ in range(len(gradients) + 1)))


class _Workers:
    """The processes, asked to do the same thing all at once."""

    def __init__(self, parcel: Parcel, folder: Path, assignments: list[Assignment]):
        self.group = Group(folder / "group", parcel)
        self.count, self.calls = len(assignments), 0
        try:
            self.group.load(assignments)
            self._answers()
        except WorkerEnded as ended:
            raise _lost(ended) from None
        except BaseException:
            self.group.close()
            raise

    def ask(self, method: str, *args: Any) -> list[Any]:
        """What each worker answers, by rank; views of shared memory until the next question."""
        if not self.group.is_running:
            raise InputError("the workers of this model have ended; call parallelize again")
        try:
            self.group.submit(method, args, {})
            self._answers()
        except WorkerEnded as ended:
            raise _lost(ended) from None
        except BaseException:
            self.group.end()  # they would answer this when they are asked something else
            raise
        return self.group.all_outputs()

    def _answers(self) -> None:
        answer = None
        while answer is None:
            answer = self.group.receive(wait(self.group.connections))
        if isinstance(answer, Failed):
            raise answer.error from RuntimeError(f"in a worker:\n{answer.where}")

    def close(self) -> None:
        """End them."""
        self.group.close()


def _lost(ended: WorkerEnded) -> Exception:
    return WorkerError(
        f"{ended.describe()}\nwhat it had trained is lost: start again from a checkpoint"
    )
