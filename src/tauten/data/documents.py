"""One independent piece of text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """Text that splits never cut through.

    Attributes:
        name: Distinct among those of one run; splits go by it.
        text: Of it.
    """

    name: str
    text: str
