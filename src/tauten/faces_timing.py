"""What the command line does to time a model: its tokens, or its layers in each format."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tauten.compression import PruneMagnitude, PruneSparseGPT, ShareKMeans
from tauten.core.errors import InputError
from tauten.core.figures import format_change, format_seconds, plural
from tauten.core.progress import progress_bars
from tauten.core.technique import WeightTechnique
from tauten.evaluation.formats import FormatTime, distinct_layers, time_formats
from tauten.evaluation.latency import compare_latency
from tauten.evaluation.task import is_language_model
from tauten.faces_inspect import open_model
from tauten.models.source import open_source
from tauten.quantization import RTN

BENCH_FORMATS: dict[str, WeightTechnique] = {
    **{
        f"{bits} bits, group {group_size or 'none'}, {activation}": RTN(
            bits, group_size, "none", "minmax", activation
        )
        for bits in (8, 4, 3, 2)
        for group_size in (0, 32, 64, 128)
        for activation in ("int8", "float")
    },
    **{f"codebook {bits} bits, float": ShareKMeans(bits=bits) for bits in (4, 3, 2)},
    "half pruned, 16 bits, float": PruneMagnitude(),
    "2:4 pruned, 16 bits, float": PruneMagnitude(pattern="2:4"),
    "half pruned, 4 bits, group 64, float": PruneSparseGPT(bits=4),
}


def bench_facts(name: str, reference: str | None, base: str | None, rounds: int) -> dict[str, Any]:
    """Latency of a language model, alternated with its original."""
    models = {"model": open_model(name, base).open()}
    if reference:
        models["original"] = open_source(reference).open()
    for key, model in models.items():
        if not is_language_model(model) or not hasattr(model, "generate"):
            raise InputError(
                f"bench: the {key} is no language model; time a call with tauten.optimize instead"
            )
    with progress_bars():
        times = compare_latency(models, None, True, rounds)
    return {key: latency.facts() for key, latency in times.items()}


def print_bench(facts: dict[str, Any], console: Console) -> None:
    """Print what `bench_facts` gathered."""
    table = Table("", "token", "spread", "tokens/s", "prompt of 128")
    for name, latency in facts.items():
        row = (latency["median_s"], latency["spread_s"], latency["prefill_s"])
        token, spread, prefill = (format_seconds(x) for x in row)
        table.add_row(name, token, spread, f"{latency['tokens_per_s']:.1f}", prefill)
    console.print(table)


def bench_layers(name: str, base: str | None, rounds: int) -> list[FormatTime]:
    """Each distinct layer of a model in each format, beside the layer unpacked."""
    layers = distinct_layers(open_model(name, base).open())
    if not layers:
        raise InputError(f"{name}: has no linear layer or convolution; there is nothing to time")
    with progress_bars():
        return list(time_formats(layers, BENCH_FORMATS, rounds=rounds))


def print_layers(times: list[FormatTime], console: Console) -> None:
    """Print what `bench_layers` timed, a table a layer; slower formats stand out."""
    for layer in dict.fromkeys(time.layer for time in times):
        own = [time for time in times if time.layer == layer]
        rows = list(dict.fromkeys(time.tokens for time in own))
        table = Table("format", title=layer, title_justify="left", min_width=60)
        for count in rows:
            table.add_column(plural(count, "row"), justify="right")
        best = [min(time.unpacked_s for time in own if time.tokens == count) for count in rows]
        table.add_row("unpacked", *map(format_seconds, best), end_section=True)
        for name in dict.fromkeys(time.format for time in own):
            table.add_row(name, *(_beside(time) for time in own if time.format == name))
        console.print(table)


def _beside(time: FormatTime) -> Text:
    change = format_change(time.unpacked_s, time.packed_s, "faster", "slower")
    color = "red" if time.ratio > 1 else "green"
    return Text.assemble(f"{format_seconds(time.packed_s)}, ", (change, color))
