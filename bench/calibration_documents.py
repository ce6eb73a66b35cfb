"""Calibrating on 10, 100, 1,000 and 10,000 documents: what is used of them, and what is lost.

All are the Brown corpus, cut at sentence ends into so many documents. The loss is the divergence
from the original, KL(original || quantized) a token, on the Debian handbook.

    python bench/calibration_documents.py MODEL.gguf    # a few minutes a row
"""

import argparse
import json
import logging
import re
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table
from texts import brown, handbook

import tauten
from tauten.data.reading import UserData
from tauten.faces import evaluate_facts

COUNTS = (10, 100, 1_000, 10_000)
RESULTS = Path(__file__).parent / "results/calibration_documents.json"


class Said(logging.Handler):
    """Keeps what is said of calibration."""

    def __init__(self) -> None:
        super().__init__()
        self.line = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("calibration: "):
            self.line = record.getMessage().removeprefix("calibration: ")


def documents(texts: list[str], count: int) -> list[str]:
    """So many documents: the first ones, or pieces of all."""
    if count <= len(texts):
        return texts[:count]
    sentences = re.split(r"(?<=[.?!]) ", " ".join(texts))
    size = len(sentences) / count
    return [" ".join(sentences[round(i * size) : round((i + 1) * size)]) for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--bits", type=int, default=4)
    options = parser.parse_args()
    said, rows = Said(), []
    logging.getLogger("tauten").addHandler(said)
    logging.getLogger("tauten").setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts, judged = brown(folder), folder / "handbook.txt"
        judged.write_text(handbook(folder))
        for count in COUNTS:
            out = folder / str(count)
            tauten.quantize(options.model, options.bits, data=documents(texts, count), out=out)
            facts = evaluate_facts(
                str(out), options.model, UserData(str(judged)), None, max_tokens=8192, seed=0
            )
            rows.append({"documents": count, "used": said.line, "kl": facts["kl"]})
            print(rows[-1], flush=True)
    RESULTS.write_text(json.dumps({"bits": options.bits, "rows": rows}, indent=1) + "\n")
    table = Table("documents", "calibrated on", "KL a token")
    for row in rows:
        table.add_row(f"{row['documents']:,}", str(row["used"]), f"{row['kl']:.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
