"""Tokens a second of language models, ours beside other runtimes, in one alternated run.

Batch 1, greedy: a prompt of 512 tokens at once, and tokens one by one behind a short prompt. All
contenders start from the same weights and take turns, so that they see the same weather; figures
are medians of the rounds. Each peer has an environment and a process of its own, which is stopped
while others have their turn. A peer that isn't installed is named as skipped.

    python bench/decode.py --install    # environments and converted models, once
    python bench/decode.py --out bench/results
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import pydoc_data.topics
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from originals import MODELS, original
from peers import environment
from peers.engine import Engine, Stepwise
from rich.console import Console
from rich.table import Table

import tauten
from tauten.models.decoding import decoder_for
from tauten.models.source import open_source
from tauten.runtime import library

PROMPT = 512
LEAD = 16  # tokens in the cache before those that are decoded one by one
EAGER_LIMIT = 10**9  # parameters; a turn of a larger model in float32 takes minutes
FORMATS = ((4, 32), (4, 64), (3, 64), (2, 64))  # bits and group size


class Eager(Stepwise):
    """transformers with its own cache."""

    def __init__(self, model: Any):
        self._model = model

    def start(self, ids: list[int]) -> int:
        return self._compute(ids, None)

    def step(self, token: int) -> int:
        return self._compute([token], self._cache)

    def _compute(self, ids: list[int], cache: Any) -> int:
        x = torch.tensor([ids])
        result = self._model(x, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self._cache = result.past_key_values
        return int(result.logits[0, -1].argmax())


class Native(Stepwise):
    """One call of the native library a token."""

    def __init__(self, model: Any):
        decoder = decoder_for(model)
        if decoder is None:
            raise SystemExit("error: the native decoder doesn't serve this model")
        self._decoder = decoder

    def start(self, ids: list[int]) -> int:
        self._decoder.reset()
        return int(self._decoder.prefill(ids).argmax())

    def step(self, token: int) -> int:
        return int(self._decoder.step(token).argmax())


@dataclass
class Contender:
    """An engine and what it has shown."""

    name: str
    engine: Engine
    version: str = ""  # of a peer
    seconds: dict[str, list[float]] = field(default_factory=dict)  # a token, by phase
    tokens: list[int] = field(default_factory=list)

    def turn(self, prompt: list[int], count: int) -> None:
        prefill = self.engine.prefill(prompt)
        decode, self.tokens = self.engine.decode(prompt[:LEAD], count)
        self.seconds.setdefault("prefill", []).append(prefill / len(prompt))
        self.seconds.setdefault("decode", []).append(decode / count)

    def row(self, reference: list[int]) -> dict[str, Any]:
        figures: dict[str, Any] = {"contender": self.name, "peer_version": self.version}
        for phase, seconds in self.seconds.items():
            rates = [1 / value for value in seconds[1:]]  # the first round warms up
            figures[f"{phase}_tokens_per_s"] = statistics.median(rates)
            figures[f"{phase}_spread"] = [min(rates), max(rates)]
        pairs = zip(self.tokens, reference, strict=False)
        figures["same_first_tokens"] = ([a == b for a, b in pairs] + [False]).index(False)
        return figures


def ours(dense: Any) -> Iterator[tuple[str, Engine]]:
    small = dense.num_parameters() < EAGER_LIMIT
    if small:
        yield "transformers float32", Eager(dense)
    for bits, group_size in FORMATS:
        technique = tauten.RTN(bits, group_size=group_size, zero="none", activation="int8")
        packed = tauten.quantize(dense, technique=technique)
        name = f"{bits} bits g{group_size}"
        if small and (bits, group_size) == FORMATS[0]:
            yield f"tauten in transformers, {name}", Eager(packed)
        yield f"tauten native, {name}", Native(packed)


def race(name: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each contender and thread count on one model."""
    folder = original(name, options.folder / "models")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "\n".join(pydoc_data.topics.topics.values())[: 16 * PROMPT]
    prompt = tokenizer(text)["input_ids"][:PROMPT]
    dense: Any = open_source(folder).open()
    engines = list(ours(dense))
    _, reference = Eager(dense).decode(prompt[:LEAD], options.compared - 1)
    del dense
    for threads in options.threads:
        torch.set_num_threads(threads)
        with contextlib.ExitStack() as running:
            contenders = [Contender(*pair) for pair in engines]
            for peer, process in environment.start(options.folder, folder, threads):
                running.callback(process.close)
                contenders.append(Contender(peer, process, process.version))
            for turn in range(options.rounds + 1):
                print(f"{name}, {threads} threads, round {turn}", file=sys.stderr)
                for contender in contenders:
                    contender.turn(prompt, options.tokens)
        for contender in contenders:
            yield {"model": name, "threads": threads} | contender.row(reference)


def show(results: list[dict[str, Any]], compared: int) -> None:
    console = Console(width=125)
    for model, threads in dict.fromkeys((row["model"], row["threads"]) for row in results):
        rows = [row for row in results if (row["model"], row["threads"]) == (model, threads)]
        table = Table(title=f"{model}, tokens a second, {threads} threads; ratios to the best peer")
        table.add_column("contender", no_wrap=True)
        phases = ("decode", "spread", "ratio", f"prefill {PROMPT}", "spread", "ratio")
        for column in (*phases, f"as float32, of {compared}"):
            table.add_column(column, justify="right")
        peers = [row for row in rows if row["peer_version"]]
        for row in rows:
            cells = [cell for phase in ("decode", "prefill") for cell in figures(row, peers, phase)]
            table.add_row(row["contender"], *cells, str(row["same_first_tokens"]))
        console.print(table)


def figures(row: dict[str, Any], peers: list[dict[str, Any]], phase: str) -> tuple[str, str, str]:
    """Median, spread, and ratio to the fastest peer."""
    rate, (low, high) = row[f"{phase}_tokens_per_s"], row[f"{phase}_spread"]
    best = max((peer[f"{phase}_tokens_per_s"] for peer in peers), default=None)
    digits = 0 if rate >= 100 else 1
    ratio = "" if best is None else f"{rate / best:.2f}"
    return f"{rate:.{digits}f}", f"{low:.{digits}f}-{high:.{digits}f}", ratio


def setting(options: argparse.Namespace, originals: list[Path]) -> dict[str, Any]:
    loaded = library.load()
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "instruction_set": library.SETS[loaded.isa] if loaded else None,
        "rounds": options.rounds,
        "tokens": options.tokens,
        "compared_tokens": options.compared,
        "skipped": {folder.parent.name: environment.skipped(folder) for folder in originals},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--install", action="store_true", help="prepare the peers, then end")
    parser.add_argument(
        "--folder", type=Path, default=Path("bench/results/work/decode"), help="models and peers"
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="decoded in a turn")
    parser.add_argument(
        "--compared", type=int, default=16, help="first tokens compared with float32's"
    )
    parser.add_argument("--out", type=Path, help="folder for a JSON file a thread count")
    options = parser.parse_args()
    options.folder = options.folder.absolute()
    torch.set_grad_enabled(False)
    originals = [original(name, options.folder / "models") for name in options.models]
    if options.install:
        return environment.install(options.folder, originals)
    conditions = setting(options, originals)
    results = [row for name in options.models for row in race(name, options)]
    show(results, options.compared)
    for threads in options.threads if options.out else ():
        file = options.out / f"decode_{threads}thread{'s'[: threads - 1]}.json"
        rows = [row for row in results if row["threads"] == threads]
        file.write_text(json.dumps({"setting": conditions, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
