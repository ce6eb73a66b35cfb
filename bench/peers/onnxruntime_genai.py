"""ONNX Runtime GenAI: int4 in groups of 64, products in int8 (accuracy level 4).

It decodes slower in groups of 32.
"""

import json
import subprocess
import sys
from pathlib import Path

from . import adapter
from .engine import Stepwise

CONTEXT = 1024


def convert(original: Path, out: Path) -> None:
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    files = ["-i", original, "-o", out, "-c", out / "cache"]
    options = ["block_size=64", "accuracy_level=4"]
    kind = ["-p", "int4", "-e", "cpu", "--extra_options", *options]
    subprocess.run([*builder, *files, *kind], check=True)


class OnnxRuntime(Stepwise):
    """One generator, rewound for each new sequence."""

    def __init__(self, folder: Path, threads: int, variant: str):
        import onnxruntime_genai

        config = onnxruntime_genai.Config(str(folder))
        session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = onnxruntime_genai.Model(config)
        search = onnxruntime_genai.GeneratorParams(self._model)
        # At least as many tokens as there is room for: it doesn't end at an end-of-text token.
        search.set_search_options(do_sample=False, min_length=CONTEXT, max_length=CONTEXT)
        self._generator = onnxruntime_genai.Generator(self._model, search)

    def start(self, ids: list[int]) -> int:
        self._generator.rewind_to(0)
        self._generator.append_tokens(ids)
        return self._next()

    def step(self, token: int) -> int:
        return self._next()  # the generator itself has appended the token that it gave last

    def _next(self) -> int:
        self._generator.generate_next_token()
        return int(self._generator.get_next_tokens()[0])


if __name__ == "__main__":
    adapter.main(convert, OnnxRuntime)
