"""Run the demo and copy the end of what it prints into README: `python bench/readme.py`."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINES = 24  # as much as a screen shows
BLOCK = r"(<!-- demo -->\n```console\n).*?(```)"


def main() -> None:
    printed = []
    demo = subprocess.Popen(
        ["make", "--no-print-directory", "demo"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        print(line, end="", flush=True)
        printed.append(line.rstrip())
    if demo.wait():
        sys.exit("error: make demo failed; README stays as it is")
    shown = "".join(f"{line}\n" for line in printed[-LINES:])
    readme = ROOT / "README.md"
    made = re.sub(BLOCK, lambda match: match[1] + shown + match[2], readme.read_text(), flags=re.S)
    readme.write_text(made)


if __name__ == "__main__":
    main()
