"""A report is rendered of whatever manifest and timing were accepted."""

import io
from pathlib import Path
from typing import Any

from mutations import as_json, mutated
from rich.console import Console

from tauten.core.errors import InputError
from tauten.models.artifact import read_manifest, read_timing
from tauten.report.html import render_html
from tauten.report.terminal import print_result


def test_odd_facts_are_refused_or_shown(
    manifest: dict[str, Any], timing: dict[str, Any], tmp_path: Path
) -> None:
    reverts = [{"layer": "a", "format": "b", "instead": "c"}]
    units = {"model.layers.0.q": {"size_bytes": [1.0], "losses": [0.1, None]}}
    manifest |= {"levels": {"levels": ["x"], "units": units}, "reverted": reverts}
    manifest |= {"shaping": [{"step": "s", "summary": "t"}], "cautions": ["c"]}
    timing |= {"formats": [{**reverts[0], "packed_s": 0.2, "unpacked_s": 0.1}]}
    timing |= {"more": {"effort": "thorough", "gain": 0.1, "time_s": 3.0}}
    timing |= {"given_up": timing["chosen"]}
    del manifest["layers"][4:]
    refused = 0
    for seed in range(500):
        first, second = (manifest, timing) if seed % 3 else (timing, manifest)
        names = ("tauten.json", "timing.json") if seed % 3 else ("timing.json", "tauten.json")
        (tmp_path / names[0]).write_bytes(as_json(mutated(first, seed)))
        (tmp_path / names[1]).write_bytes(as_json(second))
        try:
            read = read_manifest(tmp_path), read_timing(tmp_path)
        except InputError as error:
            refused += 1
            assert names[0] in str(error) or "format" in str(error), seed
        else:
            render_html(*read)
            print_result(*read, Console(file=io.StringIO()), "out")
    assert 150 < refused < 450
