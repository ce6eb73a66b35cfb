"""What a cluster's workers are, asked of the workers themselves."""

import os
import platform
import socket
import time
from typing import Any

import torch

from tauten.core.version import __version__
from tauten.distributed.engine import Answered, Engine, Failed, Joined, Lost
from tauten.distributed.job import Job

_PATIENCE_S = 60.0
JOB = Job("tauten.distributed.status:Report")


class Report:
    """The job of telling what a machine is."""

    def __call__(self, payload: Any) -> dict[str, Any]:
        """Facts of this worker."""
        return {
            "host": socket.gethostname(),
            "tauten": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cores": os.cpu_count() or 1,
            "threads": torch.get_num_threads(),
            "memory_bytes": _memory_bytes(),
            "gpus": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        }


def reports(engine: Engine, patience_s: float = _PATIENCE_S) -> dict[str, dict[str, Any]]:
    """By worker its facts and `answer_s`, or under `error` why it is missing.

    Args:
        engine: Its workers.
        patience_s: For all of them to answer.
    """
    engine.load(JOB)
    found: dict[str, dict[str, Any]] = {}
    asked_s: dict[str, float] = {}
    count, deadline = engine.size, time.monotonic() + patience_s
    while len(found) < count and time.monotonic() < deadline and not engine.is_hopeless:
        for event in engine.wait(0.2):
            if isinstance(event, Joined):
                asked_s[event.worker] = time.monotonic()
                engine.submit(event.worker, "status", None)
            elif isinstance(event, Answered):
                answer_s = time.monotonic() - asked_s[event.worker]
                found[event.worker] = {**event.result, "answer_s": answer_s}
            elif isinstance(event, Lost):
                found[event.worker] = {"error": event.why}
            elif isinstance(event, Failed):
                found[event.worker] = {"error": str(event.error)}
    return found


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
