"""The version, alone in a file so that any room may import it."""

__version__ = "0.1.0"
