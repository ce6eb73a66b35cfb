"""Give freed memory back to the system while a model streams through."""

import ctypes
import sys


def return_freed_memory() -> None:
    """Hand the allocator's free pages back, also those between blocks in use.

    glibc keeps freed blocks of up to 32 MiB in its heap, where tensors of changing sizes leave
    holes that add up over a streamed model. Other allocators are left alone.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
