"""Items mapped by Ray Data on a cluster that runs already; those that are finished are files."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import ray

ITEM_S = 0.15


def main() -> None:
    out, count = Path(sys.argv[1]), int(sys.argv[2])
    ray.init(address="auto", log_to_driver=False)

    def work(batch: dict[str, Any]) -> dict[str, Any]:
        time.sleep(ITEM_S)
        (out / f"{int(batch['id'][0])}.done").touch()
        return batch

    items = ray.data.range(count, override_num_blocks=count)
    mapped = items.map_batches(work, batch_size=1, num_cpus=1)
    seen = [row["id"] for row in mapped.iter_rows()]
    print("JSON" + json.dumps({"items": len(seen), "in_order": seen == sorted(seen)}))


if __name__ == "__main__":
    main()
