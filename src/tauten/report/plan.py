"""A plan on the terminal: every layout that was looked at, with its figures."""

import statistics
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tauten.core.figures import format_bytes, format_change, format_rate, format_seconds, plural
from tauten.parallel.plan import Option, Plan


def print_plan(plan: Plan, console: Console, most: int = 12) -> None:
    """Print a plan's layouts, best first.

    Args:
        plan: Of `tauten.parallelize`.
        console: Where to.
        most: Rows of the table; layouts that fare worse are counted only.
    """
    title = f"{plan.model}: {plan.goal} of calls of {plural(plan.rows, 'row')}"
    # Eighty columns have to do.
    table = Table(
        title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True
    )
    table.add_column("layout", no_wrap=True)
    for heading in ("threads", "predicted", "measured", "rows/s", "weights"):
        table.add_column(heading, justify="right")
    table.add_column("outputs")
    for number, option in enumerate(plan.options[:most]):
        table.add_row(
            *map(Text, _cells(option, plan.rows)), style="bold green" if number == 0 else ""
        )
    console.print(table)
    if len(plan.options) > most:
        console.print(f"and {plural(len(plan.options) - most, 'layout')} that fare worse")
    console.print(Text.assemble((str(plan.layout), "bold"), f": {plan.reason}"), soft_wrap=True)


def print_replay(plan: Plan, facts: dict[str, Any], console: Console) -> None:
    """Print what `parallel.replay` timed."""
    medians = {name: statistics.median(times) for name, times in facts["seconds"].items()}
    table = Table("", "call", "fastest", "slowest", "rows/s", "", title=str(plan.layout))
    for name, times in facts["seconds"].items():
        change = ""
        if name == "plan" and "one worker" in medians:
            change = format_change(medians["one worker"], medians[name], "faster", "slower")
        figures = (medians[name], min(times), max(times))
        rate = format_rate(plan.rows / medians[name])
        table.add_row(name, *map(format_seconds, figures), rate, change)
    console.print(table)
    measured = plan.options[0].measured_s if plan.options else None
    if measured is not None:
        console.print(f"when it was planned a call took {format_seconds(measured)}")
    console.print(f"largest relative difference of outputs: {facts['difference']:.2g}")


def _cells(option: Option, rows: int) -> list[str]:
    measured, difference = option.measured_s, option.difference
    outputs = "" if difference is None else f"differ by {difference:.1g}"
    rate = None if measured is None else rows / measured
    return [
        str(option.layout) if option.layout.workers > 1 else "one worker",
        f"{option.layout.workers} x {option.layout.threads}",
        format_seconds(option.predicted_s),
        format_seconds(measured),
        format_rate(rate),
        format_bytes(option.memory_bytes),
        option.refusal or ("equal" if difference == 0 else outputs),
    ]
