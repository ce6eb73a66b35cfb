"""Tauten's techniques; a row of METHODS each."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

import tauten
from tauten.core.recipe import Recipe, Step
from tauten.core.technique import Technique
from tauten.models.source import open_source
from tauten.report.html import render_html
from tauten.search.run import run_recipe

from . import adapter

METHODS: dict[str, Callable[[int, int], tuple[Technique, ...]]] = {
    "rtn": lambda bits, group_size: (tauten.RTN(bits, group_size, zero="integer"),),
    "gptq": lambda bits, group_size: (tauten.GPTQ(bits, group_size),),
    "gptq, tune_scales": lambda bits, group_size: (
        tauten.GPTQ(bits, group_size),
        tauten.TuneScales(),
    ),
    "kquant": lambda bits, group_size: (_equal_bytes(bits, group_size),),
    "kquant, tune_scales": lambda bits, group_size: (
        _equal_bytes(bits, group_size),
        tauten.TuneScales(),
    ),
    "kquant, no data": lambda bits, group_size: (_equal_bytes(bits, group_size),),
    "prune_magnitude": lambda bits, group_size: (tauten.PruneMagnitude(),),
    "prune_wanda": lambda bits, group_size: (tauten.PruneWanda(),),
    "prune_wanda, by sensitivity": lambda bits, group_size: (
        tauten.PruneWanda(allocation="sensitivity"),
    ),
    "prune_sparsegpt, by sensitivity": lambda bits, group_size: (
        tauten.PruneSparseGPT(bits=bits % 16, group_size=group_size, allocation="sensitivity"),
    ),
    "prune_sparsegpt of the paper": lambda bits, group_size: (
        tauten.PruneSparseGPT(bits=bits % 16, group_size=group_size, rounds=0),
    ),
    "prune_sparsegpt": lambda bits, group_size: (
        tauten.PruneSparseGPT(bits=bits % 16, group_size=group_size),
    ),
    "prune_sparsegpt, corrected": lambda bits, group_size: (
        tauten.PruneSparseGPT(bits=bits % 16, group_size=group_size, correction=0.5),
    ),
    "share_kmeans": lambda bits, group_size: (tauten.ShareKMeans(bits=bits, book_rows=1),),
    "share_kmeans, no data": lambda bits, group_size: (tauten.ShareKMeans(bits=bits, book_rows=1),),
    "codebook": lambda bits, group_size: (tauten.Codebook(bits),),
}


def quantize(model: Any, ids: Tensor, bits: int, group_size: int, method: str) -> nn.Module:
    first, *tunings = METHODS[method](bits, group_size)
    recipe = Recipe((Step(first, "model.layers.*"), *map(Step, tunings)))
    data = None if "no data" in method else adapter.batches(ids)
    quantized = run_recipe(open_source(model), recipe, render_html, None, data=data).model
    assert quantized is not None
    return quantized


def _equal_bytes(bits: int, group_size: int) -> tauten.KQuant:
    """The K-quant that takes the bytes of integer groups with 16-bit scales."""
    return tauten.KQuant(bits, group_size // 2, superblock=0, scale_bits=4)


def size_bytes(layer: Any, bits: int, group_size: int) -> int:
    """Of the tensors as they lie on disk."""
    if not hasattr(layer, "packed"):  # pruned, and dense in memory as it is faster so
        return adapter.pruned_bytes(layer.weight, bits, group_size)
    return int(layer.packed.size_bytes)


if __name__ == "__main__":
    adapter.main("tauten", quantize, lambda layer: layer.weight, size_bytes)
