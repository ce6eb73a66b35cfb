"""What one would write by hand: `torchrun --nproc-per-node 2 torchrun_data_parallel.py FOLDER N`.

Each process loads the model of a folder and computes its rows with one thread; the first gathers
the outputs. For a line of input it computes N calls and prints the seconds of each as JSON.
"""

import json
import sys
import time

import torch
import torch.distributed as dist
from torch.distributed import get_rank, get_world_size
from transformers import AutoModel


@torch.inference_mode()
def call(model: torch.nn.Module, ids: torch.Tensor) -> list[torch.Tensor]:
    mine = ids.chunk(get_world_size())[get_rank()]
    made = model(input_ids=mine, attention_mask=torch.ones_like(mine)).last_hidden_state
    parts = [torch.empty_like(made) for _ in range(get_world_size())] if get_rank() == 0 else None
    dist.gather(made.contiguous(), parts)
    return [torch.cat(parts)] if parts else []


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    ids = torch.randint(1000, 20000, (32, 64), generator=torch.manual_seed(32))
    call(model, ids)
    go = torch.ones(1)
    while True:
        if get_rank() == 0:
            go[0] = float(bool(sys.stdin.readline()))
        dist.broadcast(go, 0)
        if not go:
            break
        times = []
        for _ in range(int(sys.argv[2])):
            dist.barrier()
            start = time.perf_counter()
            call(model, ids)
            times.append(time.perf_counter() - start)
        if get_rank() == 0:
            print(json.dumps(times), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
