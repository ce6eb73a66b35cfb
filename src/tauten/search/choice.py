"""Which techniques `quantize` uses where the user names none."""

from typing import Any

from tauten.core.errors import InputError
from tauten.core.knobs import check_bits, check_group_size
from tauten.core.printing import logger
from tauten.core.recipe import Recipe, Step
from tauten.core.technique import WeightTechnique
from tauten.data.calibration import CALIBRATION_TOKENS
from tauten.evaluation.task import is_language_model
from tauten.models.source import Source
from tauten.quantization import GPTQ, RTN, Binary, Int8, KQuant, TuneScales
from tauten.search.forecast import available_memory_bytes, operations_per_s

# Above, tuning wins little or, on text unlike the calibration data, loses: K-quants of
# SmolLM2-135M have a KL of 1.41 at 2 bits, tuned .95, but .27 at 3 bits, tuned .29.
MOST_TUNED_BITS = 2
TRAINING_BYTES = 16  # a weight, measured: original, dequantized, its gradient, codes, logits
# Passes over the calibration tokens, in products with every weight, measured on SmolLM2-135M.
CALIBRATION_PASSES, TUNING_PASSES = 3, 4
_log = logger(__name__)


def choose_recipe(
    source: Source,
    bits: int | None,
    group_size: int | None,
    where: str,
    has_data: bool,
    max_time_s: float | None = None,
) -> Recipe:
    """The recipe that is known to lose least, as far as data, time and memory allow.

    Args:
        source: The model.
        bits: 1 to 8; None for 8.
        group_size: Columns a scale; None for what suits the bits.
        where: Pattern of the layers to pack.
        has_data: Calibration data is at hand.
        max_time_s: Most time to take, by an estimate; None for no limit.
    Raises:
        InputError: A number is out of its range.
    """
    if bits is not None:
        check_bits("quantize", bits)
    if group_size is not None:
        check_group_size("quantize", group_size)
    if max_time_s is not None and not max_time_s > 0:
        raise InputError(f"max_time_s={max_time_s}: expected seconds above 0, or None")
    if bits in (None, 8) and group_size is None:
        return _say("8 bits lose next to nothing, and compute fast", Step(Int8(), where))
    knobs: dict[str, Any] = {"bits": 8 if bits is None else bits}
    if group_size is not None:
        knobs["group_size"] = group_size
    if not has_data:
        return _say("there is no data to calibrate on", Step(_best(False, **knobs), where))
    model = source.skeleton()
    weights = sum(p.numel() for p in model.parameters())
    pass_s = 2 * weights * CALIBRATION_TOKENS / operations_per_s()
    allowed_s = float("inf") if max_time_s is None else max_time_s
    if CALIBRATION_PASSES * pass_s > allowed_s:
        _log.warning(
            "max_time_s=%g: calibration would take about %.0f s, so weights are rounded to nearest "
            "without data",
            allowed_s,
            CALIBRATION_PASSES * pass_s,
        )
        return _say("calibration would take too long", Step(_nearest(**knobs), where))
    step = Step(_best(True, **knobs), where)
    if knobs["bits"] > MOST_TUNED_BITS:
        return _say("data is at hand; tuning wins only at fewer bits", step)
    if not is_language_model(model):
        return _say("data is at hand; only language models are tuned", step)
    if TRAINING_BYTES * weights > available_memory_bytes():
        return _say("data is at hand, but memory for tuning isn't", step)
    if (CALIBRATION_PASSES + TUNING_PASSES) * pass_s > allowed_s:
        return _say("data is at hand, but tuning would take too long", step)
    return _say("data, memory and time are at hand", step, Step(TuneScales()))


def _nearest(bits: int, **grouped: Any) -> WeightTechnique:
    """What takes least time."""
    return Binary(**grouped) if bits == 1 else RTN(bits, **grouped)


def _best(has_data: bool, bits: int, **grouped: Any) -> WeightTechnique:
    """What loses least for its bytes, those of integer groups of 64."""
    group_size = grouped.get("group_size")
    suits = group_size is None or (group_size and not KQuant.superblock % group_size)
    if bits > 1 and suits:
        return KQuant(bits, **grouped)
    return GPTQ(bits, **grouped) if bits > 1 and has_data else _nearest(bits, **grouped)


def _say(why: str, *steps: Step) -> Recipe:
    recipe = Recipe(steps)
    assert isinstance(steps[0].technique, WeightTechnique)
    _log.info("quantizing by %s: %s", recipe, why)
    return recipe
