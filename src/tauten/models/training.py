"""The loop that trains: shuffled batches, a learning rate, checkpoints, progress."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tauten.core.description import Count
from tauten.core.errors import InputError
from tauten.core.files import make_folder
from tauten.core.printing import logger
from tauten.core.progress import progress_bar
from tauten.core.temporary import TemporaryFolder
from tauten.models.calibration import CalibrationBatch
from tauten.models.checkpoint import Checkpoint

WARM_UP = 0.1  # part of the training in which the rate grows to its full size
MAX_NORM = 1.0  # of all gradients together; longer ones are shortened to it
BETAS = (0.9, 0.95)
MEMORY = 0.95  # of the live loss for the steps before
CHECKPOINT_S = 120.0
CHECKPOINT = "checkpoint.safetensors"
_log = logger(__name__)
Loss = Callable[[int | None, CalibrationBatch], Tensor]


@contextlib.contextmanager
def working_folder(folder: Path | None) -> Iterator[Path]:
    """The folder, made if absent; a temporary one where none is given."""
    if folder is not None:
        make_folder(folder)
        yield folder
        return
    with TemporaryFolder() as temporary:
        yield temporary


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        rate: Full learning rate; it falls to 0 along a cosine over what is measured as progress.
        steps: Where to end; 0 for no limit.
        max_time_s: Likewise; at least one of both is positive, and the first that is reached ends.
        seed: Of the order of batches.
    """

    rate: float
    steps: int
    max_time_s: float
    seed: int

    def progress(self, step: int, elapsed_s: float) -> float:
        """Part of the training that is done, from 0 to 1 and beyond."""
        by_steps = step / self.steps if self.steps else 0.0
        return max(by_steps, elapsed_s / self.max_time_s if self.max_time_s else 0.0)

    def learning_rate(self, progress: float) -> float:
        """A linear start from a tenth, then a cosine to 0."""
        start = min(1.0, 0.1 + progress / WARM_UP)
        return self.rate * start * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Position:
    """How far a training has come.

    Attributes:
        step: Steps done.
        elapsed_s: Time taken, before a kill too.
        first_loss: Of the first step.
        loss: Smoothed over the last steps.
    """

    step: Count = 0
    elapsed_s: float = 0.0
    first_loss: float = math.nan
    loss: float = math.nan

    def after(self, elapsed_s: float, loss: float) -> "Position":
        """One step later."""
        if self.step == 0:
            return Position(1, elapsed_s, loss, loss)
        smooth = MEMORY * self.loss + (1 - MEMORY) * loss
        return replace(self, step=self.step + 1, elapsed_s=elapsed_s, loss=smooth)


class Training:
    """AdamW on some tensors.

    A killed training goes on from its last checkpoint, and where it ends by steps, ends with the
    same bits as one that wasn't killed. A loss that isn't finite ends it with the weights of the
    last checkpoint, at which it still was.

    Args:
        what: Begins messages, and names the progress bar.
        tensors: By name; those that require gradients are learned, all are in the checkpoint.
        schedule: How long and how fast.
        folder: For the checkpoint.
    """

    def __init__(self, what: str, tensors: dict[str, Tensor], schedule: Schedule, folder: Path):
        self._what, self._schedule = what, schedule
        self._learned = [tensor for tensor in tensors.values() if tensor.requires_grad]
        self._statistics = {n: t for n, t in tensors.items() if not t.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._learned, schedule.rate, BETAS, weight_decay=0.0, fused=True
        )
        self._checkpoint = Checkpoint(folder / CHECKPOINT, tensors, self._optimizer)

    def run(self, batches: Iterable[CalibrationBatch], loss_of: Loss) -> None:
        """Train until the schedule ends.

        Args:
            batches: Shuffled anew in each pass if they are a sequence, else taken as they come.
            loss_of: Of the index of a batch in the sequence (None without) and the batch.
        Raises:
            InputError: The loss isn't finite at the first step, or there are no batches (more).
        """
        position = self._checkpoint.restore(Position) or Position()
        start, saved_at = time.monotonic() - position.elapsed_s, -math.inf
        schedule = self._schedule
        with progress_bar(self._what, schedule.steps or schedule.max_time_s) as show:
            for index, batch in passes(batches, schedule.seed, position.step):
                elapsed_s = time.monotonic() - start
                progress = schedule.progress(position.step, elapsed_s)
                if progress >= 1:
                    break
                save = time.monotonic() - saved_at >= CHECKPOINT_S
                # The model's call changes them, and a resumed training repeats this step.
                before = {n: t.clone() for n, t in self._statistics.items()} if save else {}
                loss = self._slopes(loss_of(index, batch))
                if not math.isfinite(loss):
                    position = self._go_back(position, loss)
                    break
                if save:  # before a step that may break it
                    self._checkpoint.save(asdict(replace(position, elapsed_s=elapsed_s)), before)
                    saved_at = time.monotonic()
                self._step(schedule.learning_rate(progress))
                position = position.after(elapsed_s, loss)
                show(position.step if schedule.steps else elapsed_s, f"loss {position.loss:.4f}")
        self._tell(position)

    def _slopes(self, loss: Tensor) -> float:
        """Compute and shorten the gradients; the loss, NaN if they aren't finite."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._learned, MAX_NORM)
        return float(loss.detach()) if norm.isfinite() else math.nan

    def _step(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()

    def _tell(self, position: Position) -> None:
        _log.info(
            "%s: loss %.4f at first, %.4f at last; %d steps in %.0f s",
            self._what,
            position.first_loss,
            position.loss,
            position.step,
            position.elapsed_s,
        )

    def _go_back(self, position: Position, loss: float) -> Position:
        """The last position whose loss was finite, with its tensors."""
        good: Position | None = self._checkpoint.restore(Position)
        if good is None:
            raise InputError(
                f"{self._what}: the loss is {loss} at the first step; look for NaN in the data, "
                "and in what model and teacher make of it"
            )
        _log.warning(
            "%s: the loss became %s after %d steps; stopped, and the weights after %d steps are "
            "kept. A lower learning_rate may go further",
            self._what,
            loss,
            position.step,
            good.step,
        )
        return good


def passes(
    batches: Iterable[CalibrationBatch], seed: int, done: int
) -> Iterator[tuple[int | None, CalibrationBatch]]:
    """Batches without end, in the order of training, from the one after the first `done` on."""
    if isinstance(batches, Sequence):
        count = len(batches)
        while count:
            generator = torch.Generator().manual_seed(seed + done // count)
            order = torch.randperm(count, generator=generator)[done % count :]
            for index in order.tolist():
                yield index, batches[index]
            done += len(order)
    else:
        found = True
        while found:
            found = False
            for batch in batches:
                found = True
                if done <= 0:
                    yield None, batch
                done -= 1
    raise InputError("data: no batches (more); pass a list or a DataLoader, which can be read anew")
