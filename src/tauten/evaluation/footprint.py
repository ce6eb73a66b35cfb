"""Resident memory of a model in a process of its own: `python -m tauten.evaluation.footprint`."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

from tauten.models.source import open_source


def resident_bytes(model: str, tokens: int = 16) -> int:
    """Peak resident memory of a fresh process that loads a model and decodes a few tokens.

    Args:
        model: Anything `open_source` takes as text, a language model.
        tokens: Tokens to decode.
    Raises:
        subprocess.CalledProcessError: The process failed.
    """
    command = [sys.executable, "-m", "tauten.evaluation.footprint", model, str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1])["rss_bytes"])


def _main(name: str, tokens: int) -> None:
    model = open_source(name).open()
    with torch.inference_mode():
        model.generate(torch.ones(1, 8, dtype=torch.int64), max_new_tokens=tokens)  # type: ignore[operator]
    print(json.dumps({"rss_bytes": peak_rss_bytes()}))


def peak_rss_bytes() -> int:
    """Most memory that this process had resident."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: a child starts with the peak of the process that forked it.
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
