"""What becomes of data in the forms that people have: read, calibrated on, evaluated, refused.

    python bench/data_forms.py                # all
    python bench/data_forms.py csv nanoGPT    # those whose names hold one of these

Each form is given to `quantize`, with a technique that calibrates, and to `optimize`, with a tiny
model that takes it. `read` is what Tauten says of the data. `FAULT` is an error that isn't
Tauten's, or a refusal of what can be read, or none of what can't.
"""

import json
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from data_form_cases import Form, seeded, tensor_forms
from rich.console import Console
from rich.table import Table
from text_form_cases import text_forms

import tauten

OUT = Path(__file__).parent / "results" / "data_forms.json"
GOAL = tauten.Goal(max_drop=0.5)


class Said(logging.Handler):
    """Keeps what Tauten says."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def calibrated(form: Form, folder: Path) -> str:
    technique = tauten.GPTQ(4)
    tauten.quantize(built(form), technique=technique, data=form.data(folder), **form.options)
    return "yes"


def evaluated(form: Form, folder: Path) -> str:
    search: dict[str, Any] = {"pillars": ("quantize",), "effort": "quick", "max_tokens": 1024}
    result = tauten.optimize(built(form), form.data(folder), GOAL, **search, **form.options)
    assert result.test is not None
    return f"{result.test.metric}, {'certified' if result.certified else result.reason}"


def built(form: Form) -> torch.nn.Module:
    return seeded(form.model)


def row(form: Form, said: Said) -> dict[str, Any]:
    found: dict[str, Any] = {"form": form.name, "read": "", "fault": False}
    for name, call in (("calibrated", calibrated), ("evaluated", evaluated)):
        said.lines.clear()
        with tempfile.TemporaryDirectory() as folder:
            try:
                found[name], refused = call(form, Path(folder)), False
            except tauten.TautenError as error:
                found[name], refused = f"refused: {error}".replace(folder, "."), True
            except Exception as error:  # that is what is looked for
                found[name], refused = f"{type(error).__name__}: {error}", not form.refused
            read = [line for line in said.lines if line.startswith("data: ")]
            found["read"] = found["read"] or " ".join(read).replace(folder, ".")
        found["fault"] |= refused != form.refused
    return found


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    said = Said()
    logging.getLogger("tauten").addHandler(said)
    logging.getLogger("tauten").setLevel(logging.INFO)
    wanted = sys.argv[1:]
    forms = [*tensor_forms(), *text_forms()]
    rows = []
    for form in forms:
        if not wanted or any(word in form.name for word in wanted):
            rows.append(row(form, said))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    table = Table("form", "read", "calibrated", "evaluated", "")
    for found in rows:
        fault = "FAULT" if found["fault"] else ""
        table.add_row(*(found[k] for k in ("form", "read", "calibrated", "evaluated")), fault)
    Console(width=180).print(table)
    faults = [found["form"] for found in rows if found["fault"]]
    if not wanted:
        setting = {"torch": torch.__version__, "tauten": tauten.__version__}
        OUT.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")
    if faults:
        raise SystemExit(f"{len(faults)} of {len(rows)} forms at fault: {', '.join(faults)}")


if __name__ == "__main__":
    main()
