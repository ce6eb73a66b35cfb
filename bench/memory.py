"""Peak memory of quantizing a model that is larger than it: at most 35% of its size.

Writes a Llama-shaped model of random bf16 weights in shards, quantizes it to 4 bits in a fresh
process through the command line, and reads that process's peak resident memory.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

LIMIT = 0.35
SHARD_BYTES = 2**29
MEASURED = """
import atexit
from tauten.cli import main
from tauten.evaluation.footprint import peak_rss_bytes
atexit.register(lambda: print(peak_rss_bytes()))
main()
"""


def write_model(folder: Path, gigabytes: float) -> int:
    """Write shards until the model has the wanted size; returns its exact bytes."""
    config = transformers.LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32000,
        num_hidden_layers=1,
        tie_word_embeddings=False,
    )
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        one = transformers.LlamaForCausalLM(config)
    block = sum(p.numel() for p in one.model.layers[0].parameters()) * 2
    rest = sum(p.numel() for p in one.parameters()) * 2 - block
    config.num_hidden_layers = int(-(-(gigabytes * 2**30 - rest) // block))
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    generator, shard, shard_bytes, weight_map, total = torch.manual_seed(0), {}, 0, {}, 0
    names = list(model.state_dict())
    for name in names:
        shape = model.get_parameter(name).shape
        tensor = torch.randn(shape, generator=generator, dtype=torch.float32).mul_(0.02).bfloat16()
        shard[name] = tensor
        shard_bytes += tensor.nbytes
        total += tensor.nbytes
        if shard_bytes > SHARD_BYTES or name == names[-1]:
            file = f"model-{len(set(weight_map.values())):05d}.safetensors"
            save_file(shard, folder / file, {"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
            shard, shard_bytes = {}, 0
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--work", type=Path, default=Path("bench/results/work/memory"))
    parser.add_argument("--json", type=Path, default=Path("bench/results/memory.json"))
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    model, out = arguments.work / "model", arguments.work / "out"
    model_bytes = write_model(model, arguments.gigabytes)
    command = [sys.executable, "-c", MEASURED, "quantize", str(model)]
    command += ["--bits", str(arguments.bits), "-o", str(out)]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    peak = int(done.stdout.splitlines()[-1])
    facts = {
        "model_bytes": model_bytes,
        "out_bytes": (out / "model.safetensors").stat().st_size,
        "peak_rss_bytes": peak,
        "ratio": round(peak / model_bytes, 3),
        "seconds": round(seconds, 1),
        "bits": arguments.bits,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(facts, indent=2) + "\n")
    shutil.rmtree(arguments.work)
    print(json.dumps(facts, indent=2))
    print("met" if facts["ratio"] <= LIMIT else "missed", f"the limit of {LIMIT:.0%}")


if __name__ == "__main__":
    main()
