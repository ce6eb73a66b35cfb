"""Tauten makes PyTorch models smaller and faster, and proves that they still work."""

from tauten.api import compress, load, optimize, quantize
from tauten.compression import (
    Distill,
    PruneChannels,
    PruneHeads,
    PruneWidth,
    ShareKMeans,
)
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
from tauten.quantization import (
    AWQ,
    GPTQ,
    HQQ,
    RTN,
    AdaRound,
    Binary,
    Codebook,
    Int8,
    KQuant,
    SmoothQuant,
    StaticInt8,
    Ternary,
    TuneScales,
)

__all__ = [
    "AWQ",
    "GPTQ",
    "HQQ",
    "RTN",
    "AdaRound",
    "Binary",
    "BusyError",
    "Codebook",
    "CorruptError",
    "Distill",
    "Goal",
    "GoalError",
    "InputError",
    "Int8",
    "KQuant",
    "NotApplicableError",
    "PruneChannels",
    "PruneHeads",
    "PruneWidth",
    "Recipe",
    "Result",
    "ShareKMeans",
    "SmoothQuant",
    "StaticInt8",
    "Step",
    "TautenError",
    "Ternary",
    "TuneScales",
    "__version__",
    "compress",
    "load",
    "optimize",
    "quantize",
]
