"""Damaged files and killed runs: `python -m fuzz.run` and `python -m fuzz.kill`; see README.md."""

import os

# Before torch is imported: threads don't outlive a fork.
os.environ |= {
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "RAYON")},
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
