"""torch's default dtype is the user's: nothing that is computed depends on it.

`pytest --default-dtype bfloat16` runs any tests so, but for those of `torch.compile`, which doesn't
trace what gives tests their inputs.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# A few of each kind of work, which take seconds: formats and kernels.
FILES = (
    "formats/test_integer.py",
    "formats/test_sparse.py",
    "runtime/test_sparse_kernels.py",
)


def test_results_are_the_same_under_another_default() -> None:
    dtype = "bfloat16"  # what differs under it differs most
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--default-dtype", dtype]
    files = [str(HERE / file) for file in FILES]
    done = subprocess.run([*command, *files], cwd=HERE.parent, capture_output=True, text=True)
    assert not done.returncode, done.stdout[-4000:] + done.stderr[-2000:]
