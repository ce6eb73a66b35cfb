"""Limits of time and memory for a process that reads damaged files."""

import resource
import signal
import sys
from pathlib import Path

SLOWEST_S = 10.0  # of computing; of waiting WAIT times that, as the machine may be busy
WAIT = 12
MOST_BYTES = 200 * 2**20  # of memory, and half as much again as the file
_ADDRESS_BYTES = 2**30  # more may be reserved than is used: stacks and arenas of threads
TIMED = (signal.SIGPROF, signal.SIGALRM)
_UNHAD = ("allocate memory", "bad_alloc", "alloc memory", "not enough memory")


def end_in(seconds: float | None = None) -> None:
    """End this process by a signal if it computes that long from now on; 0 for not at all."""
    seconds = SLOWEST_S if seconds is None else seconds
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WAIT * seconds)


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was made of, is that memory couldn't be had."""
    while error is not None:
        if isinstance(error, MemoryError) or any(words in str(error) for words in _UNHAD):
            return True
        error = error.__cause__ or error.__context__
    return False


def peak_bytes() -> int:
    """Most memory that this process had resident since it was forked."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def limit_memory(file_bytes: int) -> int:
    """Bytes that the peak may reach; far more is refused by the system."""
    more = int(1.5 * file_bytes) + MOST_BYTES
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + more + _ADDRESS_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return peak_bytes() + more
