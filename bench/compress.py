"""What compression is worth on real models, a section a claim.

    python bench/quality.py --install                # environments and models, once
    python bench/compress.py pruning sharing         # or other sections; without names all

Each section has a file of its own, which says what it shows, and writes `compress_NAME.json`; rows
that stand there aren't run again.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import encoder
import healing
import pruning
import sharing
import torch

SECTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "pruning": pruning.show,
    "sharing": sharing.show,
    "healing": healing.show,
    "encoder": encoder.show,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument(
        "--folder", type=Path, default=Path("bench/results/work/quality"), help="models and peers"
    )
    parser.add_argument(
        "--rescaled", action="store_true", help="on a copy off the lattice of its file"
    )
    parser.add_argument("--results", type=Path, default=Path("bench/results"), help="JSON files")
    parser.add_argument("--only", nargs="+", default=[], help="contenders; by default all")
    options = parser.parse_args()
    options.folder = options.folder.absolute()
    torch.set_num_threads(1)
    for name in options.sections:
        options.out = options.results / f"compress_{name}.json"
        SECTIONS[name](options)


if __name__ == "__main__":
    main()
