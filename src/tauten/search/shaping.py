"""The steps of a recipe before packing: each changes or trains a whole dense model in memory."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from tauten.core.errors import InputError
from tauten.core.technique import ShapingTechnique, Technique, TuningTechnique
from tauten.models.batch import MISFITS
from tauten.models.outline import outline
from tauten.models.packing import packed_modules
from tauten.models.shaped import (
    reshaped_source,
    stored_shape,
    stored_tensors,
    with_plain_config,
    with_tensors,
)
from tauten.models.source import Source
from tauten.models.store import BlockStore
from tauten.models.surgery import Surgery, describe, operate, summary
from tauten.search.edited import check_runs, runnable_calls
from tauten.search.trainer import Trainer

Facts = dict[str, Any]
WHOLE = ""  # a store's part: all of the model


@dataclass(frozen=True)
class Shaped:
    """A model after some steps.

    Attributes:
        source: Opens it.
        facts: What the manifest says of each step: step, summary and parameters left.
    """

    source: Source
    facts: tuple[Facts, ...] = ()


def shape_stored(
    original: Source,
    techniques: Sequence[Technique],
    store_of: Callable[[int], BlockStore],
    trainer: Trainer,
) -> Shaped:
    """Take each step from what the one before has stored, unless it is stored already.

    Args:
        original: Isn't changed.
        techniques: Of a recipe's `shaping`.
        store_of: Where the result of a step goes, by its number from 1.
        trainer: Holds the data.
    Raises:
        InputError: A technique needs data and there is none, or the model is packed already.
    """
    shaped = Shaped(original)
    for number, technique in enumerate(techniques, 1):
        store = store_of(number)
        done = store.finished(WHOLE) or _store_step(technique, shaped.source, store, trainer)
        source = shaped.source
        if not Surgery.from_dict(done["surgery"]).is_empty:
            source = reshaped_source(source, [done["surgery"]])
        source = with_tensors(source, store.reader([WHOLE]))
        shaped = Shaped(source, (*shaped.facts, done["facts"]))
    return Shaped(with_plain_config(original, shaped.source), shaped.facts)


def shape_in_memory(source: Source, techniques: Sequence[Technique], trainer: Trainer) -> nn.Module:
    """Take the steps on a copy of a model in memory, which shares what they leave alone."""
    model = source.skeleton().eval()  # before it is run: batch norms would learn from the data
    for technique in techniques:
        model, _, _ = _take_step(technique, model, trainer)
    return model


def _store_step(
    technique: Technique, source: Source, store: BlockStore, trainer: Trainer
) -> dict[str, Any]:
    packed = replace(source, written_out=())  # a packed model is refused, whatever it computes as
    model, surgery, facts = _take_step(technique, packed.open(), trainer, store.folder)
    shape = operate(stored_shape(source), surgery)
    tensors = stored_tensors(model, shape, str(technique))
    store.write(WHOLE, tensors, surgery=surgery.to_dict(), facts=facts)
    return {"surgery": surgery.to_dict(), "facts": facts}


def _take_step(
    technique: Technique, model: nn.Module, trainer: Trainer, folder: Path | None = None
) -> tuple[nn.Module, Surgery, Facts]:
    packed = next((name for name, _ in packed_modules(model)), None)
    if packed is not None:
        raise InputError(
            f"{technique.name} needs plain layers, and {packed} is packed already; "
            "start from the model before it was packed"
        )
    if isinstance(technique, TuningTechnique):
        model = copy.deepcopy(model)  # it may share tensors with the original
    before = outline(model.eval())  # batch norms would learn from calibration data
    if isinstance(technique, ShapingTechnique):
        calls = runnable_calls(model, trainer.calibration)
        try:
            technique.reshape(model, trainer.calibration)
        except MISFITS:  # it runs the model on the way: that may be broken already
            check_runs(technique.name, model, calls)
            raise
        check_runs(technique.name, model, calls)
    else:
        assert isinstance(technique, TuningTechnique), "weights are packed after these steps"
        trainer.run([technique], model, folder)
    after = outline(model)
    surgery = describe(before, model)
    told = summary(before, after, surgery)
    facts = {"step": str(technique), "summary": told, "parameters": after.parameters}
    return model.eval(), surgery, facts
