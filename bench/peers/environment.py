"""Which peers there are, their environments and their copies of a model."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .process import ROOT, Process

PEERS = {  # file of this package: what runs of it take part, by the argument that asks for them
    "llama_cpp": {"": "llama.cpp Q4_0, flash attention"},
    "onnxruntime_genai": {"": "ONNX Runtime GenAI int4 g64"},
    "openvino_genai": {
        "SDPA": "OpenVINO GenAI int4 g64, SDPA",
        "PA": "OpenVINO GenAI int4 g64, paged attention",
    },
}


def install(folder: Path, originals: list[Path]) -> None:
    """Give each peer an environment, and convert the models where that wasn't done yet.

    Args:
        folder: Holds an environment a peer, named like its file.
        originals: Hugging Face folders; a conversion lies beside its original.
    """
    for peer in PEERS:
        python = _python(folder, peer)
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", folder / peer], check=True)
        listed = Path(__file__).with_name(f"{peer}.txt")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", listed], check=True)
        for original in originals:
            out = original.with_name(peer)
            partial = original.with_name(f"{peer}.partial")
            if not out.exists():
                partial.mkdir(exist_ok=True)
                convert = ["-m", f"bench.peers.{peer}", "convert", original, partial]
                subprocess.run([python, *convert], cwd=ROOT, check=True)
                partial.rename(out)


def start(folder: Path, original: Path, threads: int) -> Iterator[tuple[str, Process]]:
    """The name and the process of each run of each peer that is installed."""
    for peer, variants in PEERS.items():
        model = original.with_name(peer)
        if not model.exists():
            continue
        for variant, name in variants.items():
            serve = [f"bench.peers.{peer}", "serve", str(model), str(threads), variant]
            command = [str(_python(folder, peer)), "-m", *serve]
            yield name, Process(command, threads, folder / f"{peer}.log")


def skipped(original: Path) -> list[str]:
    """Peers that have no copy of a model."""
    return [peer for peer in PEERS if not original.with_name(peer).exists()]


def _python(folder: Path, peer: str) -> Path:
    return (folder / peer / "bin" / "python").absolute()
