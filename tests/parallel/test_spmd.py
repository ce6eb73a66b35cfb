"""Under torchrun the same calls run in all of its processes."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_same_calls_under_torchrun() -> None:
    script = Path(__file__).parents[1] / "spmd_script.py"
    paths = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = {"env": environment, "capture_output": True, "text": True}
    done = subprocess.run([*command, script], check=False, timeout=300, **options)
    assert done.returncode == 0 and done.stdout.count("all equal") == 2, done.stderr[-3000:]
