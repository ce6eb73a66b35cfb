"""The table of readers."""

from fuzz.artifacts import artifact_readers
from fuzz.reader import Reader
from fuzz.records import record_readers
from fuzz.resumed import resumed_readers
from fuzz.sources import source_readers


def all_readers() -> dict[str, Reader]:
    """By name."""
    found = (*record_readers(), *artifact_readers(), *source_readers(), *resumed_readers())
    return {reader.name: reader for reader in found}
