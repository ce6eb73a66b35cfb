"""Calibration here, or over workers that each see some of the data: the same weights."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from tauten.core.recipe import Recipe
from tauten.distributed.blueprint import model_of
from tauten.distributed.calibration import DistributedCalibration, check_distributable
from tauten.distributed.start import engine_for
from tauten.models.batch import CalibrationBatch
from tauten.models.calibration import Calibration
from tauten.models.source import Source
from tauten.search.workspace import calibration_for

Calibrate = Callable[[Recipe, Sequence[CalibrationBatch]], Calibration | None]


@contextlib.contextmanager
def calibrating(source: Source, recipe: Recipe, workers: int | str | None) -> Iterator[Calibrate]:
    """How recipes are calibrated.

    Args:
        source: The model.
        recipe: That will be.
        workers: On this machine, or the name of a cluster; None for this process alone.
    Raises:
        InputError: A technique needs all data on one machine.
    """
    if workers is None:
        yield calibration_for
        return
    check_distributable(recipe, source.skeleton())
    with engine_for(model_of(source), workers) as (reference, engine):

        def over_workers(
            recipe: Recipe, batches: Sequence[CalibrationBatch]
        ) -> DistributedCalibration | None:
            alone = calibration_for(recipe, batches)
            if alone is None:
                return None
            return DistributedCalibration(engine, reference, batches, alone.correct, alone.counted)

        yield over_workers
