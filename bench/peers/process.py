"""A peer's process: it runs in its turn and is stopped while others have theirs."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Process:
    """The `Engine` of another process.

    Between calls it is stopped by a signal: threads that wait for work by spinning, as OpenMP's
    and ONNX Runtime's do for good reason, would take cores from the others.

    Args:
        command: Ends in `serve MODEL THREADS [VARIANT]`, see `adapter`.
        threads: For runtimes that ask the environment.
        log: Where its messages go.
    Attributes:
        version: Of the runtime.
    """

    def __init__(self, command: list[str], threads: int, log: Path):
        self._name, self._log = " ".join(command), log
        with log.open("a") as messages:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
            )
        self.version: str = self._answer()

    def prefill(self, ids: list[int]) -> float:
        """As `Engine.prefill`."""
        seconds: float = self._call("prefill", ids)
        return seconds

    def decode(self, ids: list[int], count: int) -> tuple[float, list[int]]:
        """As `Engine.decode`."""
        seconds, tokens = self._call("decode", ids, count)
        return seconds, tokens

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.send_signal(signal.SIGCONT)
        self._process.wait()

    def _call(self, *request: Any) -> Any:
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise SystemExit(f"error: {self._name} ended with {code}; see {self._log}")
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(line)
