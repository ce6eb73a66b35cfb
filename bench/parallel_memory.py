"""Section `memory` of bench/parallel.py: two workers hold what doesn't fit the limit of one.

The limit is the system's own: RLIMIT_DATA, of all memory that a process writes to. Each contender
is a process of its own under it, and so are its workers.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

LIMIT_OF_WEIGHTS = 0.7  # above what a process takes that holds no model
ONE = """
import json, resource, sys, torch, transformers, tauten
limit, folder, workers = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
torch.set_num_threads(1)
from tauten.models.source import open_source
x = torch.arange(4 * 32).view(4, 32)
field = lambda pid: next(int(line.split()[1]) * 1024 for line in open(f"/proc/{pid}/status")
                         if line.startswith("VmData"))
if not folder:
    print(json.dumps({"base_bytes": field("self")})); sys.exit()
with torch.inference_mode():
    if workers == 1:
        made = open_source(folder).open()(x).logits
        facts = {"data_bytes": [field("self")]}
    else:
        with tauten.parallelize(folder, x, workers=workers, goal="memory") as parallel:
            made = parallel(x).logits
            facts = {"data_bytes": [field(pid) for pid in parallel.worker_pids],
                     "layout": str(parallel.plan.layout), "reason": parallel.plan.reason}
facts |= {"sum": float(made.double().abs().sum()), "argmax": made[0].argmax(-1).tolist()}
print(json.dumps(facts))
"""


def memory(folder: Path) -> list[dict[str, Any]]:
    """Rows: unlimited, one worker under the limit, two workers under it."""
    size = write_model(folder / "limited")
    base = measured(0, "", 1)["base_bytes"]
    limit = int(base + LIMIT_OF_WEIGHTS * size)
    facts = {"weights_bytes": size, "limit_bytes": limit, "base_bytes": base}
    found = []
    for name, own_limit, workers in (
        ("one worker, no limit", 0, 1),
        ("one worker", limit, 1),
        ("two workers", limit, 2),
    ):
        found.append(
            {"who": name, **facts, **measured(own_limit, str(folder / "limited"), workers)}
        )
        print(found[-1], flush=True)
    return found


def measured(limit: int, folder: str, workers: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-c", ONE, str(limit), folder, str(workers)]
    # Holes in glibc's heap count as data though nothing lies there: large blocks stay out of it.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:300]}
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def write_model(folder: Path) -> int:
    """A Llama of random float32 weights in files of 60 MB; its bytes in memory."""
    config = transformers.LlamaConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=8,
        vocab_size=8000,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    if not folder.exists():
        model.save_pretrained(folder, max_shard_size="60MB")
    return sum(parameter.nbytes for parameter in model.parameters())
