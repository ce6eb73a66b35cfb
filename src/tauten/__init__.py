"""Tauten makes PyTorch models smaller and faster, and proves that they still work."""

from tauten.api import compress, load, optimize, quantize
from tauten.compression import ShareKMeans
from tauten.core.errors import (
    BusyError,
    CorruptError,
    GoalError,
    InputError,
    NotApplicableError,
    TautenError,
)
from tauten.core.goal import Goal
from tauten.core.measurement import Result
from tauten.core.recipe import Recipe, Step
from tauten.core.version import __version__
from tauten.quantization import GPTQ, RTN, AdaRound, Int8, StaticInt8, TuneScales

__all__ = [
    "GPTQ",
    "RTN",
    "AdaRound",
    "BusyError",
    "CorruptError",
    "Goal",
    "GoalError",
    "InputError",
    "Int8",
    "NotApplicableError",
    "Recipe",
    "Result",
    "ShareKMeans",
    "StaticInt8",
    "Step",
    "TautenError",
    "TuneScales",
    "__version__",
    "compress",
    "load",
    "optimize",
    "quantize",
]
