"""Items shared out by rank under torchrun elastic; finished ones are files, so they stay done."""

import datetime
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

ITEM_S = 0.15


def main() -> None:
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=20))
    rank, world = dist.get_rank(), dist.get_world_size()
    out, count = Path(sys.argv[1]), int(sys.argv[2])
    todo = [item for item in range(count) if not (out / f"{item}.done").exists()]
    dist.barrier()
    for turn, item in enumerate(todo[rank::world]):
        if turn < len(todo) // world:
            dist.all_reduce(torch.ones(1))  # a lost peer shows only in a collective
        time.sleep(ITEM_S)
        (out / f"{item}.done").touch()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
