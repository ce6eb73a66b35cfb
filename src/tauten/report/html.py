"""One HTML file that tells what a run found. It loads no script, font or style from elsewhere."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tauten.core import figures
from tauten.core.printing import printable
from tauten.report.facts import (
    badge,
    coverage_line,
    drop_unit,
    goal_lines,
    lost_word,
    max_drop,
    shaping_lines,
    splits,
)
from tauten.report.heat import heat_maps
from tauten.report.layers import format_shares, layer_units
from tauten.report.plot import Plot, pareto_plot
from tauten.report.reverts import model_revert, revert_rows
from tauten.report.tiles import headline, tiles
from tauten.report.trials import TrialRow, trial_rows

_FILTERS = {
    "bytes": figures.format_bytes,
    "percent": figures.format_percent,
    "limit": figures.format_limit,
    "loss": figures.format_loss,
    "seconds": figures.format_seconds,
    "number": figures.format_number,
    "count": figures.format_count,
    "shape": figures.format_shape,
}
# A plot scaled down to a phone would have unreadable labels, so that it gets its own layout.
_PLOT_SIZES = {"wide": (1000, 420), "narrow": (380, 340)}


def render_html(manifest: Mapping[str, Any], timing: Mapping[str, Any]) -> str:
    """The report of an artifact.

    Args:
        manifest: Contents of its `tauten.json`.
        timing: Contents of its `timing.json`; empty if nothing was timed.
    """
    rows = trial_rows(manifest, timing)
    records = manifest.get("layers") or []
    source = shlex.quote(str(manifest["source"]["name"]))
    recipe = yaml.safe_dump(manifest["recipe"], sort_keys=False)
    return (
        _environment()
        .get_template("template.html.jinja")
        .render(
            m=manifest,
            timing=timing,
            name=manifest["source"]["name"],
            badge=badge(manifest),
            headline=headline(manifest, timing),
            tiles=tiles(manifest, timing),
            shaping=shaping_lines(manifest),
            coverage=coverage_line(manifest),
            goal=goal_lines(manifest),
            max_drop=max_drop(manifest),
            unit=drop_unit(manifest),
            lost=lost_word(manifest),
            splits=splits(manifest),
            trials=rows,
            timed=any(row.latency_s is not None for row in rows),
            plots=_plots(rows, manifest),
            predicted=any(row.predicted_kl is not None for row in rows),
            heat=heat_maps(manifest),
            units=layer_units(records),
            layer_count=len(records),
            shares=format_shares(records),
            reverts=revert_rows(manifest, timing),
            model_revert=model_revert(timing),
            recipe=recipe,
            command=_command(manifest, source),
            facts=_facts(manifest, timing),
        )
    )


def _command(manifest: Mapping[str, Any], source: str) -> str:
    """What makes the same bytes again."""
    looked = " --data DATA" if manifest["recipe"].get("split") else ""
    name = (manifest.get("data") or {}).get("name")
    looked = looked.replace("DATA", shlex.quote(name)) if name not in (None, "texts") else looked
    return f"tauten apply recipe.yaml {source}{looked} -o OUT"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    return environment


def _shown(value: Any) -> Any:
    """A value as it is filled in; control characters of names are written out."""
    return printable(value) if type(value) is str else value


def _plots(rows: list[TrialRow], manifest: Mapping[str, Any]) -> dict[str, Plot]:
    size_limit = (manifest.get("goal") or {}).get("max_size_bytes")
    plots = {
        name: pareto_plot(rows, max_drop(manifest), size_limit, width, height, drop_unit(manifest))
        for name, (width, height) in _PLOT_SIZES.items()
    }
    return {name: plot for name, plot in plots.items() if plot is not None}


def _facts(manifest: Mapping[str, Any], timing: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What someone who repeats the run must know, as (name, value); unknown ones are left out."""
    source, machine = manifest["source"], timing.get("machine") or {}
    weights, data = manifest["weights"], manifest.get("data") or {}
    facts = [
        ("Source", f"{source['name']} ({source.get('kind') or 'unknown kind'})"),
        ("Source fingerprint", source.get("fingerprint")),
        ("Parameters", source.get("parameters") and figures.format_count(source["parameters"])),
        ("Weights", f"{weights['file']}, {weights['size_bytes']:,} bytes"),
        ("Weights SHA-256", weights.get("sha256")),
        ("Data", data.get("name")),
        ("Documents", _by_split(data.get("documents"))),
        ("Tokens", _by_split(data.get("tokens"))),
        ("Seed", manifest.get("seed")),
        ("Processor", machine.get("cpu")),
        ("Threads", machine.get("threads")),
        ("PyTorch", machine.get("torch")),
        ("Python", machine.get("python")),
        ("Tauten", machine.get("tauten") or manifest.get("tauten")),
        ("Whole run", timing.get("seconds") and figures.format_seconds(timing["seconds"])),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _by_split(counts: Mapping[str, int] | None) -> str:
    return ", ".join(f"{split} {count:,}" for split, count in (counts or {}).items())
