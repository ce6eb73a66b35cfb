"""The terminal that commands print to."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from tauten.core.printing import printable


class SafeConsole(Console):
    """A console on which names from files can't do more than be read; see `printable`.

    Args:
        options: As of rich; brackets and colons in text are no markup here.
    """

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """What is printed, but for what rich itself tells the terminal."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)
