"""What of a stopped run is still true when it is called again with something changed."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from tauten.core.files import whole_file
from tauten.core.journal import line_of, read_entries
from tauten.core.printing import logger
from tauten.core.version import __version__

VERSIONS = f"{__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
# Events that hang on the model, the data and the versions alone, and those on the metric as well.
_MADE = frozenset({"block", "zeros", "levels", "group", "formats", "dense", "timed"})
_MEASURED = _MADE | {"scores", "trusted"}
# What may change from call to call, and which events stay true then.
_STAY = {
    "metric": _MADE,
    "goal": _MEASURED,
    "pillars": _MEASURED,
    "effort": _MEASURED,
    "entropy_coding": _MEASURED,
    "seed": frozenset[str](),
    "data": frozenset[str](),
    "versions": frozenset[str](),
}
_log = logger(__name__)


def forget_what_changed(folder: Path, journal: Path, run: dict[str, Any]) -> None:
    """Leave of a stopped run only what holds for this one, and say so; another model's is left.

    Args:
        folder: Of the run.
        journal: Its file in it, perhaps absent.
        run: What identifies this run.
    """
    entries, _ = read_entries(journal)
    if not entries:
        return
    now, held = json.loads(json.dumps({"event": "run", **run})), entries[0]
    changed = [key for key in now | held if now.get(key) != held.get(key)]
    if not changed or now.keys() != held.keys() or not set(changed) <= set(_STAY):
        return  # the journal refuses a run of another kind, or of another model
    stay = frozenset.intersection(*(_STAY[key] for key in changed))
    if not stay:
        for inside in folder.iterdir():
            if inside.is_dir():
                shutil.rmtree(inside)
    with whole_file(journal) as opened:
        for entry in (now, *(entry for entry in entries if entry["event"] in stay)):
            opened.write(line_of(entry))
    rest = "what is packed stays" if stay else "all is made anew"
    what = "is measured anew" if stay != _MEASURED else "is judged anew"
    _log.warning(
        "%s: another %s than when the run was stopped: every trial %s, %s",
        *(folder.name, ", ".join(sorted(changed)), what, rest),
    )
