"""Tauten makes PyTorch models smaller and faster, and proves that they still work.

Names are imported when they are first asked for, so that `tauten --help` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tauten.core.version import __version__

if TYPE_CHECKING:
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
    from tauten.distributed.sources import read_batches
    from tauten.distributed.start import Access
    from tauten.evaluation.user_metric import Metric
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
    "Metric",
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

# Where each name lives, as the imports above say it to type checkers.
_ROOMS = {
    "api": "compress load optimize quantize",
    "api_distributed": "distribute",
    "api_parallel": "map parallelize",
    "compression": "Distill PruneChannels PruneDepth PruneHeads PruneMagnitude PruneSparseGPT"
    " PruneWanda PruneWidth ShareKMeans ShareLayers ShareRows",
    "core.errors": "BusyError CorruptError GoalError InputError NotApplicableError TautenError"
    " WorkerError",
    "core.goal": "Goal",
    "core.measurement": "Result",
    "core.recipe": "Recipe Step",
    "distributed.sources": "read_batches",
    "distributed.start": "Access",
    "evaluation.user_metric": "Metric",
    "quantization": "AWQ GPTQ HQQ RTN AdaRound AutoRound Binary Codebook Int8 KQuant SmoothQuant"
    " StaticInt8 Ternary TuneBlocks TuneScales",
}
_HOMES = {name: f"tauten.{room}" for room, names in _ROOMS.items() for name in names.split()}

if not TYPE_CHECKING:  # it would tell them that every name exists

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'tauten' has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
