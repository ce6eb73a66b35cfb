"""Which layers calibration data reaches: what it doesn't reach is said, never passed over."""

import math
from collections.abc import Mapping, Sequence

from torch import nn

from tauten.core.errors import InputError
from tauten.core.figures import plural
from tauten.core.inputs import TOKENS_PER_FEATURE, LayerInputs
from tauten.core.measurement import LayerRecord
from tauten.core.printing import logger
from tauten.core.recipe import Recipe
from tauten.models.observer import is_observed

TUNED = "its block was tuned by"  # in the reason of a layer, before names of techniques
UNSEEN = "packed without data"  # in the reason of a layer that a calibrated technique didn't see
NEVER_SEEN = "aren't observed"  # there: no data of whatever amount would help
_log = logger(__name__)


def check_finite(seen: Mapping[str, LayerInputs]) -> None:
    """Refuse inputs that aren't finite: nothing after them would be calibrated on anything.

    Raises:
        InputError: It names the layer.
    """
    for name, inputs in seen.items():
        if not bool(inputs.moment.isfinite().all()):
            raise InputError(
                f"the inputs of {name} aren't finite on the calibration data: check that the "
                f"original model gives finite outputs on it, and pass other data if not"
            )


def unseen_reason(module: nn.Module, has_data: bool, is_zero: bool) -> str:
    """Why a layer is packed without data: for the report."""
    if not has_data:
        return f"{UNSEEN}: none was given"
    if not is_observed(module):
        return f"{UNSEEN}: inputs of {type(module).__name__} layers {NEVER_SEEN}"
    why = "its inputs are all zero" if is_zero else "none of it reached the layer"
    return f"{UNSEEN}: {why}"


def check_reach(
    recipe: Recipe,
    packed: Sequence[LayerRecord],
    has_data: bool,
    scarce: Mapping[str, LayerInputs],
    warned: set[str],
) -> None:
    """Warn of layers that calibrated techniques packed without data, or with too little.

    Args:
        recipe: That was applied.
        packed: All packed layers.
        has_data: There is data at all.
        scarce: What layers saw that were reached by fewer tokens than they need.
        warned: Warnings that aren't to be repeated; gets those that are given.
    Raises:
        InputError: There is data, but none of it reached any of the layers, or a technique that
            tunes blocks found nothing to tune.
    """
    own = [r for r in packed if r.original_bytes and _is_calibrated(recipe, r.name)]
    unseen = [record for record in own if UNSEEN in record.reason]
    if unseen and not has_data:
        widest = max(math.prod(record.shape[1:]) for record in unseen)
        _warn(
            f"{plural(len(unseen), 'layer')} packed without calibration data: pass some as data= "
            f"(--data), about {TOKENS_PER_FEATURE * widest:,} tokens (or rows)",
            warned,
        )
        return
    if unseen and len(unseen) == len(own):
        reasons = "; ".join(sorted({record.reason for record in unseen}))
        raise InputError(f"calibration had no effect: {reasons}; choose layers that it can reach")
    if recipe.block_tunings and not any(TUNED in record.reason for record in packed):
        raise InputError(
            f"{recipe.block_tunings[0].name} had no effect: it needs packed linear layers, in "
            f"blocks that hand a state on from one to the next"
        )
    for record in unseen:
        if NEVER_SEEN not in record.reason:
            _warn(f"{record.name}: {record.reason}", warned)
    if scarce:
        name = min(scarce, key=lambda n: scarce[n].tokens / len(scarce[n].moment))
        widest = max(len(inputs.moment) for inputs in scarce.values())
        _warn(
            f"{plural(len(scarce), 'layer')} saw few tokens (or rows), the layer {name!r} only "
            f"{scarce[name].tokens}: their calibration is partly chance; about "
            f"{TOKENS_PER_FEATURE * widest:,} would do for all that see each of them, "
            f"{TOKENS_PER_FEATURE} for each input feature",
            warned,
        )


def _warn(text: str, warned: set[str]) -> None:
    if text not in warned:
        warned.add(text)
        _log.warning(text)


def _is_calibrated(recipe: Recipe, name: str) -> bool:
    found = recipe.step_for(name)
    return found is not None and found[1].technique.looks_at_inputs
