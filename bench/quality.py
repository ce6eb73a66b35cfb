"""What SmolLM2-135M still predicts at 4, 3 and 2 bits, by Tauten's techniques and by peers.

Every contender quantizes the linear layers of the decoder in a process of its own on one thread,
starting from the same weights and the same 64 x 512 tokens of the Brown corpus. Its dequantized
weights are judged here on 16 x 512 tokens of the Debian handbook: perplexity, and the exact
divergence of the predictions from the original's, KL(original || quantized) at every token.
Differences to the best peer are paired by window. A row that is in the JSON file isn't run again.

The weights of SmolLM2 come from a Q4_1 file and lie on its lattice, which flatters whoever finds
it: `--rescaled` runs the rows on a copy that computes the same off that lattice.

    python bench/quality.py --install    # environments and model, once
    python bench/quality.py              # minutes a row; AWQ takes more than half an hour, see -h
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from judge import Judge
from originals import original
from rescale import lattice_distance, rescaled
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from texts import tokens

from tauten.evaluation.statistics import ratio_interval

MODEL = "SmolLM2-135M"
ROOT = Path(__file__).parents[1]
OURS = "ours"
CONTENDERS = {  # name: file of `quantizers` and the method that it is asked for
    "RTN": (OURS, "rtn"),
    "GPTQ": (OURS, "gptq"),
    "GPTQ, scales tuned": (OURS, "gptq, tune_scales"),
    "KQuant, no data": (OURS, "kquant, no data"),
    "KQuant": (OURS, "kquant"),
    "KQuant, scales tuned": (OURS, "kquant, tune_scales"),
    "HQQ": ("hqq", "float_zero"),
    "HQQ, zeros rounded first": ("hqq", "round_zero"),
    "llm-compressor GPTQ": ("llm_compressor", "gptq"),
    "llm-compressor GPTQ, MSE": ("llm_compressor", "gptq mse"),
    "AutoRound, 200 iterations": ("auto_round", "200"),
    "AutoRound, 50 iterations": ("auto_round", "50"),
    "AutoRound, 20 iterations": ("auto_round", "20"),
    "llm-compressor AWQ": ("llm_compressor", "awq"),
}
PRUNERS = {  # zero half of the weights; with 16 bits those that are kept stay floating
    "magnitude": (OURS, "prune_magnitude"),
    "Wanda": (OURS, "prune_wanda"),
    "Wanda, by sensitivity": (OURS, "prune_wanda, by sensitivity"),
    "SparseGPT of the paper": (OURS, "prune_sparsegpt of the paper"),
    "SparseGPT": (OURS, "prune_sparsegpt"),
    "SparseGPT, by sensitivity": (OURS, "prune_sparsegpt, by sensitivity"),
    "SparseGPT, corrected": (OURS, "prune_sparsegpt, corrected"),
    "llm-compressor Wanda": ("llm_compressor", "wanda"),
    "llm-compressor SparseGPT": ("llm_compressor", "sparsegpt"),
    "llm-compressor SparseGPT, then GPTQ": ("llm_compressor", "sparsegpt, gptq"),
}
SHARERS = {  # a codebook a row
    "k-means, no data": (OURS, "share_kmeans, no data"),
    "k-means, weighted by inputs": (OURS, "share_kmeans"),
    "codebook": (OURS, "codebook"),
}
ALL = CONTENDERS | PRUNERS | SHARERS
ON_DEMAND = ("AutoRound, 50 iterations", "AutoRound, 20 iterations", "llm-compressor AWQ")
BUSY = 0.9  # of a thread's time that it computed; below, others took the processor


@dataclass(frozen=True)
class Run:
    """One row: who quantizes what to how much."""

    model: str
    contender: str
    bits: int
    group_size: int

    def __str__(self) -> str:
        return f"{self.model}, {self.contender}, {self.bits} bits g{self.group_size}"


def install(folder: Path) -> None:
    """Give each peer an environment."""
    for peer in {file for file, _ in CONTENDERS.values()} - {OURS}:
        if not _python(folder, peer).exists():
            subprocess.run([sys.executable, "-m", "venv", folder / peer], check=True)
        listed = ROOT / f"bench/quantizers/{peer}.txt"
        pip = [_python(folder, peer), "-m", "pip", "install", "--quiet", "-r", listed]
        subprocess.run(pip, check=True)


def _python(folder: Path, file: str) -> Path:
    return Path(sys.executable) if file == OURS else folder / file / "bin" / "python"


def quantize(run: Run, model: Path, folder: Path) -> Path:
    """Run a contender, if that wasn't done yet.

    Returns:
        The folder with its weights and facts.
    Raises:
        subprocess.CalledProcessError: It failed; its messages are in `log.txt`.
    """
    out = folder / "runs" / str(run)
    if (out / "facts.json").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    file, method = ALL[run.contender]
    python = _python(folder, file)
    if not python.exists():
        raise SystemExit(f"error: {python} isn't there; run with --install first")
    command = [python, "-m", f"bench.quantizers.{file}", model]
    command += [folder / "texts/tokens.safetensors", out, str(run.bits), str(run.group_size)]
    with (out / "log.txt").open("w") as log:
        subprocess.run(
            [*command, method],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    return out


def measure(runs: list[Run], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each run, from quantizing to judging."""
    model = prepared(options.folder, options.rescaled)
    judge = Judge(model, load_file(options.folder / "texts/tokens.safetensors")["evaluation"])
    distance = lattice_distance(model)
    for run in runs:
        print(run, file=sys.stderr)
        about = {"lattice_distance": distance, "load_before": os.getloadavg()[0]}
        try:
            out = quantize(run, model, options.folder)
        except subprocess.CalledProcessError:
            log = options.folder / "runs" / str(run) / "log.txt"
            yield asdict(run) | {"error": log.read_text().strip().splitlines()[-1]}
            continue
        facts = json.loads((out / "facts.json").read_text())
        judge.load(out / "weights.safetensors")
        yield asdict(run) | facts | judge.judge() | about
        shutil.rmtree(out)


def prepared(folder: Path, off_lattice: bool) -> Path:
    """The model to quantize, with the texts for it."""
    model = original(MODEL, folder / "models")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokens(folder / "texts", tokenizer)
    return rescaled(model) if off_lattice else model


def show(rows: list[dict[str, Any]]) -> None:
    """A table for each model, bits and group size, the best contender first."""
    kinds = dict.fromkeys((row["model"], -row["bits"], row["group_size"]) for row in rows)
    for kind in sorted(kinds):
        chosen = [r for r in rows if (r["model"], -r["bits"], r["group_size"]) == kind]
        good = sorted((r for r in chosen if "error" not in r), key=lambda row: row["kl_mean"])
        peers = (row for row in good if ALL[row["contender"]][0] != OURS)
        best = next(peers, None)
        table = Table(title=f"{kind[0]}, {-kind[1]} bits g{kind[2]}", caption=caption(good))
        table.add_column("contender", no_wrap=True)
        kl = ("KL mean", "p99", "of best peer's", "difference, 95%")
        costs = ("bytes", "bits", "wall s", "CPU s", "peak MB")
        for column in ("perplexity", *kl, *costs):
            table.add_column(column, justify="right")
        for row in good:
            table.add_row(row["contender"], *figures(row, best))
        console = Console(width=160)
        console.print(table)
        for row in chosen:
            if "error" in row:
                console.print(f"{row['contender']} failed: {row['error']}", markup=False)


def caption(good: list[dict[str, Any]]) -> str:
    lines = ["bytes and bits of the decoder's linear layers; * while others computed"]
    for row in good[:1]:
        lines.append(f"the original: perplexity {row['original_perplexity']:.1f}, ")
        lines[-1] += f"weights {row['lattice_distance']:.2f} steps off Q4_1's lattice (0 to 0.27)"
    return "\n".join(lines)


def figures(row: dict[str, Any], best: dict[str, Any] | None) -> list[str]:
    ratio, difference = "", ""
    if best is not None and row is not best:
        mine, theirs = torch.tensor(row["window_kl"]), torch.tensor(best["window_kl"])
        middle, low, high = ratio_interval(mine - theirs, torch.ones_like(mine), 0.975)
        ratio = f"{row['kl_mean'] / best['kl_mean']:.2f}"
        difference = f"{middle:+.3f} ({low:+.3f} to {high:+.3f})"
    busy = "*" if row["cpu_s"] < BUSY * row["wall_s"] else ""
    return [
        f"{row['perplexity']:.1f}",
        f"{row['kl_mean']:.3f}",
        f"{row['kl_p99']:.2f}",
        ratio,
        difference,
        f"{row['size_bytes']:,}",
        f"{row['bits_per_weight']:.3f}",
        f"{row['wall_s']:.0f}{busy}",
        f"{row['cpu_s']:.0f}",
        f"{row['peak_rss_bytes'] / 1e6:.0f}",
    ]


def setting(options: argparse.Namespace) -> dict[str, Any]:
    found = load_file(options.folder / "texts/tokens.safetensors")
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": 1,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "calibration_windows": list(found["calibration"].shape),
        "evaluation_windows": list(found["evaluation"].shape),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--install", action="store_true", help="prepare the peers, then end")
    parser.add_argument(
        "--folder", type=Path, default=Path("bench/results/work/quality"), help="models and peers"
    )
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=CONTENDERS,
        default=[name for name in CONTENDERS if name not in ON_DEMAND],
        help=f"only when named: {'; '.join(ON_DEMAND)}",
    )
    parser.add_argument(
        "--rescaled", action="store_true", help="on a copy off the lattice of its file"
    )
    parser.add_argument("--out", type=Path, default=Path("bench/results/quality.json"))
    options = parser.parse_args()
    options.folder = options.folder.absolute()
    return options


def main() -> None:
    options = arguments()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    if options.install:
        prepared(options.folder, options.rescaled)
        return install(options.folder)
    sizes = itertools.product(options.contenders, options.bits, options.group_sizes)
    collect(sizes, options)


def collect(wanted: Iterable[tuple[str, int, int]], options: argparse.Namespace) -> None:
    """Show the rows of a JSON file, after those that it lacks were measured.

    Args:
        wanted: Contender, bits and group size of each.
        options: With `folder`, `rescaled` and `out`.
    """
    name = f"{MODEL} rescaled" if options.rescaled else MODEL
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    rows = [row for row in rows if "error" not in row]  # these are tried again
    done = {Run(*(row[key] for key in Run.__dataclass_fields__)) for row in rows}
    missing = [run for run in (Run(name, *row) for row in wanted) if run not in done]
    for row in measure(missing, options) if missing else ():
        rows.append(row)
        written = {"setting": setting(options), "rows": rows}
        options.out.write_text(json.dumps(written, indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
