"""Tauten makes PyTorch models smaller and faster, and proves that they still work."""

from tauten.api import compress, load, optimize, quantize
from tauten.api_distributed import distribute
from tauten.api_parallel import map, parallelize
from tauten.compression import (
    Distill,
    PruneChannels,
    PruneDepth,
    PruneHeads,
    PruneMagnitude,
    PruneSparseGPT,
    PruneWanda,
    PruneWidth,
    ShareKMeans,
    ShareLayers,
    ShareRows,
)
from tauten.core.errors import (
    BusyError,
    CorruptError,
    GoalError,
    InputError,
    NotApplicableError,
    TautenError,
    WorkerError,
)
from tauten.core.goal import Goal
from tauten.core.measurement import Result
from tauten.core.recipe import Recipe, Step
from tauten.core.version import __version__
from tauten.distributed.sources import read_batches
from tauten.distributed.start import Access
from tauten.quantization import (
    AWQ,
    GPTQ,
    HQQ,
    RTN,
    AdaRound,
    AutoRound,
    Binary,
    Codebook,
    Int8,
    KQuant,
    SmoothQuant,
    StaticInt8,
    Ternary,
    TuneBlocks,
    TuneScales,
)

__all__ = [
    "AWQ",
    "GPTQ",
    "HQQ",
    "RTN",
    "Access",
    "AdaRound",
    "AutoRound",
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
    "PruneDepth",
    "PruneHeads",
    "PruneMagnitude",
    "PruneSparseGPT",
    "PruneWanda",
    "PruneWidth",
    "Recipe",
    "Result",
    "ShareKMeans",
    "ShareLayers",
    "ShareRows",
    "SmoothQuant",
    "StaticInt8",
    "Step",
    "TautenError",
    "Ternary",
    "TuneBlocks",
    "TuneScales",
    "WorkerError",
    "__version__",
    "compress",
    "distribute",
    "load",
    "map",
    "optimize",
    "parallelize",
    "quantize",
    "read_batches",
]
