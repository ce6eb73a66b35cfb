"""What a run found and what a model is made of, on a terminal of 80 columns or more."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tauten.core.figures import (
    format_bytes,
    format_count,
    format_loss,
    format_percent,
    format_shape,
    plural,
)
from tauten.report.facts import (
    badge,
    coverage_line,
    goal_lines,
    lost_word,
    next_steps,
    shaping_lines,
    splits,
)
from tauten.report.reverts import RevertRow, model_revert, revert_rows
from tauten.report.tiles import headline, tiles
from tauten.report.trials import TrialRow, trial_rows

_STYLES = {"good": "green", "bad": "red", "warn": "yellow", "even": "dim"}
_TRIAL_STYLES = {"chosen": "bold green", "nearest": "bold red", "failed": "dim"}
MOST_REVERTS = 6
_MARKS = {"chosen": "*", "nearest": "*", "failed": "!"}


def print_result(
    manifest: Mapping[str, Any], timing: Mapping[str, Any], console: Console, path: str = "OUT"
) -> None:
    """Say what went in, what came out, what it cost, what was tried, and what to try next.

    Args:
        manifest: Contents of `tauten.json`.
        timing: Contents of `timing.json`; empty if nothing was timed.
        console: Where to print.
        path: The artifact's folder, for the commands to try next.
    """
    verdict = badge(manifest)
    style = _STYLES[verdict.tone]
    body = Text(headline(manifest, timing))
    if verdict.detail:
        body.append(f"\n{verdict.detail}", "dim")
    # The end of a path says which model it is; the badge after it must not be cut off.
    name = manifest["source"]["name"]
    room = 72 - len(verdict.text)
    name = name if len(name) <= room else f"...{name[3 - room :]}"
    title = Text.assemble(f"{name}: ", (verdict.text, f"bold {style}"))
    console.print(Panel(body, title=title, title_align="left", border_style=style))
    console.print(_tile_table(manifest, timing))
    for change in shaping_lines(manifest):
        console.print(Text(f"\n{change}"))
    if covered := coverage_line(manifest):
        console.print(Text(f"\n{covered[0]}", "yellow" if covered[1] else ""))
    for caution in manifest.get("cautions") or []:
        console.print(Text(f"\nCaution: {caution}.", "yellow"))
    for line in _certificate(manifest):
        console.print(line)
    rows = trial_rows(manifest, timing)
    if rows:
        console.print(_trial_table(rows, lost_word(manifest)))
    _print_reverts(revert_rows(manifest, timing), model_revert(timing), console)
    _print_steps(next_steps(manifest, timing, path), console)


def print_inspect(facts: Mapping[str, Any], console: Console) -> None:
    """Show a model's parts; blocks that are built alike share one table.

    Args:
        facts: name, kind, architecture, parameters, size_bytes, blocks, units (each with names,
            block, shape, size_bytes), tied (groups of names), notes.
        console: Where to print.
    """
    title = Text(str(facts["name"]), "bold")
    for part in (facts.get("architecture"), facts.get("kind")):
        title.append(f"  {part}" if part else "", "dim")
    console.print(title)
    size = format_bytes(facts["size_bytes"])
    units = facts["units"]
    counts = [plural(len(facts["blocks"]), "block"), plural(len(units), "unit")]
    console.print(f"{format_count(facts['parameters'])} parameters, {size}, {', '.join(counts)}")
    total = sum(unit["size_bytes"] for unit in units)
    outside = [unit for unit in units if not unit["block"]]
    if outside:
        console.print(_unit_table("outside the blocks", outside, "", total, 1))
    for blocks, members in _alike(facts["blocks"], units):
        label = blocks[0] if len(blocks) == 1 else f"{len(blocks)} x {_range_name(blocks)}"
        console.print(_unit_table(label, members, f"{blocks[0]}.", total, len(blocks)))
    for names in facts["tied"]:
        console.print(Text(f"tied, stored once: {' = '.join(names)}"))
    console.print(Text(facts["coverage"], "" if facts["covered"] else "yellow"))
    for note in facts["notes"]:
        console.print(Text(f"note: {note}", "yellow"))


def _tile_table(manifest: Mapping[str, Any], timing: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("")
    table.add_column("original", justify="right", no_wrap=True)
    table.add_column("now", justify="right", no_wrap=True)
    table.add_column("", ratio=1)
    for tile in tiles(manifest, timing):
        notes = Text("\n").join(Text(note.text, _STYLES[note.tone]) for note in tile.notes)
        title, after = Text(tile.title), Text(tile.after, "bold")
        if tile.big != tile.after:
            notes = Text.assemble(f"{tile.big}; " if tile.notes else tile.big, notes)
        table.add_row(title, Text(tile.before), after, notes)
    return table


def _certificate(manifest: Mapping[str, Any]) -> list[Text]:
    lines = []
    for split in splits(manifest)[:1]:
        lines += [Text(split.sentence, _STYLES[split.tone] if split.tone == "bad" else ""), Text()]
    goal = goal_lines(manifest)
    if goal:
        lines.insert(0, Text.assemble(("Goal: ", "bold"), " ".join(goal)))
    return [Text(), *lines] if lines else []


def _trial_table(rows: list[TrialRow], lost: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("recipe", ratio=3, overflow="fold")
    for name in ("size", lost, "95% bound"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("outcome", ratio=3, overflow="fold")
    for row in rows:
        cells = (
            f"{_MARKS.get(row.state, '')}{row.number}",
            row.label,
            format_bytes(row.size_bytes),
            format_loss(row.drop, row.unit),
            format_loss(row.high, row.unit),
            row.outcome,
        )
        # Labels come from users: as Text, their brackets aren't read as markup.
        table.add_row(*(Text(cell) for cell in cells), style=_TRIAL_STYLES.get(row.state, ""))
    return table


def _print_reverts(rows: list[RevertRow], model: str, console: Console) -> None:
    if model:
        console.print(Text(f"\n{model}", "yellow"))
    if not rows:
        return
    console.print(Text("\nSlower than the layer unpacked on this machine, so not used:", "bold"))
    for row in rows[:MOST_REVERTS]:
        speed = f" {row.speed}" if row.speed else ""
        console.print(Text(f"  {row.layer} in {row.format}:{speed}; instead {row.instead}"))
    if len(rows) > MOST_REVERTS:
        console.print(Text(f"  and {len(rows) - MOST_REVERTS} more, in the HTML report", "dim"))


def _print_steps(steps: list[tuple[str, str]], console: Console) -> None:
    console.print(Text("\nTry next:", "bold"))
    width = max(len(command) for command, _ in steps)
    fits = width + 4 + max(len(aim) for _, aim in steps) <= console.width
    for command, aim in steps:
        line = Text.assemble("  ", (command, "cyan"))
        line.append(" " * (width - len(command)) + f"  {aim}" if fits else f"\n      {aim}", "dim")
        # A command that is broken into lines can't be copied.
        console.print(line, soft_wrap=True)


def _unit_table(
    title: str, units: list[Mapping[str, Any]], prefix: str, total: int, times: int
) -> Table:
    """Units of one block, with their share over all `times` blocks built like it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(title), title_justify="left")
    table.title_style = "bold"
    table.add_column("layers", overflow="fold", min_width=40)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("share" if times == 1 else "share of all", justify="right", no_wrap=True)
    for unit in units:
        share = times * unit["size_bytes"] / total if total else 0.0
        names = _short_names([name.removeprefix(prefix) for name in unit["names"]])
        shape = ", ".join(map(format_shape, unit["shapes"]))
        cells = (names, shape, format_bytes(unit["size_bytes"]), format_percent(share))
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _short_names(names: list[str]) -> str:
    """`attn.q, attn.k` as `attn.q, k`: siblings differ in their last part only."""
    parent, dot, _ = names[0].rpartition(".")
    if not all(name.startswith(parent + dot) for name in names):
        return ", ".join(names)
    return ", ".join([names[0], *(name.removeprefix(parent + dot) for name in names[1:])])


def _alike(
    blocks: list[str], units: list[Mapping[str, Any]]
) -> list[tuple[list[str], list[Mapping[str, Any]]]]:
    """Blocks grouped by what they are made of, each with the units of the first of them."""
    groups: dict[Any, tuple[list[str], list[Mapping[str, Any]]]] = {}
    for block in blocks:
        members = [unit for unit in units if unit["block"] == block]
        key = tuple(
            (tuple(name.removeprefix(block) for name in u["names"]), tuple(map(tuple, u["shapes"])))
            for u in members
        )
        groups.setdefault(key, ([], members))[0].append(block)
    return [group for key, group in groups.items() if key]


def _range_name(blocks: list[str]) -> str:
    """`model.layers.*`, or `model.layers.0 ... model.layers.29` where the names differ more."""
    parents = {block.rpartition(".")[0] for block in blocks}
    indices = [block.rpartition(".")[2] for block in blocks]
    if len(parents) > 1 or not all(index.isdigit() for index in indices):
        return f"{blocks[0]} ... {blocks[-1]}"
    first, last = int(indices[0]), int(indices[-1])
    whole = first == 0 and last - first + 1 == len(blocks)
    parent = next(iter(parents))
    inner = (
        "*"
        if whole
        else f"{first}-{last}"
        if last - first + 1 == len(blocks)
        else ",".join(indices)
    )
    return f"{parent}.{inner}" if parent else inner
