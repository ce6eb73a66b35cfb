"""The two commands of a peer's file, run by the Python of that peer's environment.

    python -m bench.peers.NAME convert ORIGINAL OUT
    python -m bench.peers.NAME serve MODEL THREADS [VARIANT]

`serve` reads lines of JSON, `[method, argument, ...]` of an `Engine`, and answers each with a
line of JSON. A first line, the runtime's version, says that the model is loaded.
"""

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from .engine import Engine


def main(convert: Callable[[Path, Path], None], load: Callable[[Path, int, str], Engine]) -> None:
    command, model, argument, *variant = sys.argv[1:]
    if command == "convert":
        convert(Path(model), Path(argument))
    else:
        serve(lambda: load(Path(model), int(argument), "".join(variant)))


def serve(load: Callable[[], Engine]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the runtime prints must not mix with the answers
    engine = load()
    module = Path(sys.argv[0]).stem  # a peer's file is named like what it imports
    distribution = importlib.metadata.packages_distributions()[module][0]
    version = importlib.metadata.version(distribution)
    print(json.dumps(version), file=answers, flush=True)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(getattr(engine, method)(*arguments)), file=answers, flush=True)
