"""Knowledge distillation: train a smaller model to do as a larger one."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tauten.compression.imitation import Imitation, compared_blocks
from tauten.core.dtypes import dtype_name
from tauten.core.errors import InputError
from tauten.core.technique import Questions, TuningTechnique
from tauten.models.calibration import CalibrationBatch, fast_dtype
from tauten.models.packing import packed_modules
from tauten.models.trainable import Trained, all_weights, low_rank, scales_and_norms
from tauten.models.training import Schedule, Training, passes, working_folder

ANSWERS = "teacher"  # folder of the teacher's answers
LOSSES = ("kl", "skew", "hidden", "embedding", "kl+hidden", "skew+hidden", "hidden+embedding")
RATES = {"all": 1e-4, "lora": 1e-3, "scales_and_norms": 5e-3}


@dataclass(frozen=True)
class Distill(TuningTechnique):
    """Train a student to predict as its teacher does, on any inputs; labels aren't needed.

    The student computes in bfloat16 where the machine multiplies it, on float32 weights; the
    teacher likewise. What the teacher says to a batch is kept on disk (`Imitation`), so it runs
    once a batch however often that is trained on; not so where the data is an iterable that may
    give other batches in each pass.

    Attributes:
        loss: `kl` is the divergence of predictions from the teacher's likeliest 64 classes and
            the mass of the others; `skew` the same with a tenth of the teacher's prediction mixed
            into the student's, which is milder where the student is far off; `hidden` the error of
            the outputs of matching blocks, for encoders without logits also of the output;
            `embedding` the error of the output's mean over tokens, for encoders whose users
            compare that; `kl+hidden`, `skew+hidden` and `hidden+embedding` the sum.
        train: `all` weights of a dense model; `lora` trains low-rank changes of them, in less
            memory; `scales_and_norms` norms and biases, and the scales of packed layers, whose
            codes can't be trained. `auto` is that for a packed model, else `all`.
        rank: Of `lora`.
        steps: Steps to take; 0 for one pass over the data, or until `max_time_s`.
        max_time_s: Most time to take, 0 for no limit; the learning rate falls to 0 by then.
        learning_rate: Largest step of a weight; 0 for 1e-4 with `all`, 1e-3 with `lora`, and with
            `scales_and_norms` 5e-3 of what a tensor is.
        batch_tokens: Tokens a step, padding counted, so batches of rows of like length learn
            faster; batches of other inputs are taken as they come.
        keep_zeros: Weights that are 0 stay 0, as in a pruned model.
        seed: Of the order of batches and the start of `lora`.

    Source: Hinton et al. 2015, arXiv:1503.02531, without labels and at a temperature of 1. Skew:
    DistiLLM (Ko et al. 2024, arXiv:2402.03898). Hidden states: TinyBERT (Jiao et al. 2020,
    arXiv:1909.10351), eq. 8, here relative to their variance and without projections.
    """

    name = "distill"
    pillar = "compress"
    wants_all_data = True

    loss: str = "kl"
    train: str = "auto"
    rank: int = 16
    steps: int = 0
    max_time_s: float = 0.0
    learning_rate: float = 0.0
    batch_tokens: int = 1024
    keep_zeros: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InputError(f"distill: loss={self.loss!r}: expected one of {', '.join(LOSSES)}")
        if self.train not in ("auto", *RATES):
            known = ", ".join(("auto", *RATES))
            raise InputError(f"distill: train={self.train!r}: expected one of {known}")
        for knob, least in (("rank", 1), ("steps", 0), ("batch_tokens", 1), ("seed", 0)):
            value = getattr(self, knob)
            if not isinstance(value, int) or value < least:
                raise InputError(f"distill: {knob}={value}: expected an integer from {least} on")
        for knob in ("max_time_s", "learning_rate"):
            value = getattr(self, knob)
            if not 0 <= value < float("inf"):
                raise InputError(f"distill: {knob}={value}: expected a positive number, or 0")

    def tune(
        self,
        model: nn.Module,
        original: nn.Module,
        batches: Iterable[CalibrationBatch],
        folder: Path | None = None,
    ) -> None:
        part, pieces = self._part_to_train(model), self._pieces(batches)
        schedule = self._schedule(part, pieces)
        with working_folder(folder) as own:
            imitation = Imitation(model, original, self.loss.split("+"), own / ANSWERS)
            with self._opened(part, model) as trained:
                Training("distilling", trained, schedule, own).run(pieces, imitation.loss)

    def questions(
        self, model: nn.Module, original: nn.Module, batches: Iterable[CalibrationBatch]
    ) -> Questions | None:
        """None where a limit on time decides what is trained on, or the data may change."""
        pieces = self._pieces(batches)
        if not isinstance(pieces, Sequence) or (self.max_time_s and not self.steps):
            return None
        schedule, parts = self._schedule(self._part_to_train(model), pieces), self.loss.split("+")
        order = (index for index, _ in passes(pieces, schedule.seed, 0) if index is not None)
        asked = dict.fromkeys(itertools.islice(order, schedule.steps))
        blocks = [theirs for _, theirs in compared_blocks(model, original, parts)]
        dtype = dtype_name(fast_dtype())
        settings = {"blocks": blocks, "parts": parts, "dtype": dtype}
        return Questions(settings, {index: pieces[index] for index in asked}, ANSWERS)

    def _pieces(self, batches: Iterable[CalibrationBatch]) -> Iterable[CalibrationBatch]:
        pieces = Pieces(batches, self.batch_tokens)
        return list(pieces) if isinstance(batches, Sequence) else pieces

    def _part_to_train(self, model: nn.Module) -> str:
        packed = next((name for name, _ in packed_modules(model)), None)
        if self.train == "auto":
            return "all" if packed is None else "scales_and_norms"
        if self.train == "all" and packed is not None:
            raise InputError(
                f"distill: {packed} is packed, and its codes can't be trained; distill before "
                "packing, or pass train='scales_and_norms'"
            )
        return self.train

    def _opened(self, part: str, model: nn.Module) -> AbstractContextManager[Trained]:
        if part == "all":
            return all_weights(model, self.keep_zeros)
        if part == "lora":
            return low_rank(model, self.rank, self.seed, self.keep_zeros)
        return scales_and_norms(model)

    def _schedule(self, part: str, pieces: Iterable[CalibrationBatch]) -> Schedule:
        steps = self.steps
        if not steps and not self.max_time_s:
            if not isinstance(pieces, Sequence):
                raise InputError("distill: pass steps or max_time_s, as the data may have no end")
            steps = len(pieces)
        return Schedule(self.learning_rate or RATES[part], steps, self.max_time_s, self.seed)


class Pieces:
    """Batches cut to a number of tokens.

    Args:
        batches: Are read anew in each pass.
        tokens: Most in a batch; at least one row. Batches of other inputs stay whole.
    """

    def __init__(self, batches: Iterable[CalibrationBatch], tokens: int):
        self._batches, self._tokens = batches, tokens

    def __iter__(self) -> Iterator[CalibrationBatch]:
        for batch in self._batches:
            first = next(x for x in tree_leaves(vars(batch)) if isinstance(x, Tensor))
            is_tokens = first.dim() == 2 and not first.is_floating_point()
            rows = max(1, self._tokens // first.shape[1]) if is_tokens else batch.rows
            yield from batch.split(rows)
