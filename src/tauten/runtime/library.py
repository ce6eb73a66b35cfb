"""Finding, loading and setting up the native library."""

import ctypes
import functools
import importlib.machinery
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.printing import logger

SETS = ("portable", "avx2", "avxvnni", "avx512")  # instruction sets, as the library numbers them
_HUGE_PAGES_FROM_BYTES = 1 << 18  # smaller tensors rarely come from memory, but from cache
FOLDER = "TAUTEN_NATIVE"  # environment variable: where the library is, such as one to debug


@dataclass
class Library:
    """The loaded library and the instruction set that its calls use."""

    handle: ctypes.CDLL
    isa: int

    def supports(self, name: str) -> bool:
        """Whether this processor runs an instruction set of `SETS`."""
        return bool(self.handle.tauten_supports(SETS.index(name)))

    def use_huge_pages(self, tensor: Tensor) -> None:
        """Move a large tensor's memory into huge pages where the system lets us.

        Streaming through it is then up to twice as fast; its values and address don't change.
        """
        if tensor.nbytes >= _HUGE_PAGES_FROM_BYTES:
            self.handle.tauten_huge_pages(tensor.data_ptr(), tensor.nbytes)

    def use(self, name: str) -> None:
        """Compute with one instruction set from now on, as `TAUTEN_ISA` does from the start."""
        if name not in SETS or not self.supports(name):
            usable = ", ".join(filter(self.supports, SETS))
            raise InputError(f"instruction set {name!r}: this machine runs {usable}")
        self.isa = SETS.index(name)


@functools.cache
def load() -> Library | None:
    """The native library, None (with one notice) where it wasn't built."""
    folder = Path(os.environ.get(FOLDER) or Path(__file__).parent / "native")
    paths = [folder / f"_kernels{end}" for end in importlib.machinery.EXTENSION_SUFFIXES]
    path = next(filter(Path.exists, paths), None)
    if path is None:
        logger(__name__).warning(
            "tauten's native kernels aren't built (no C++ compiler when it was installed): packed "
            "layers run in plain torch, much slower; install g++ or clang and reinstall tauten"
        )
        return None
    handle = ctypes.CDLL(str(path))
    pointer, number, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    handle.tauten_linear.argtypes = [
        *(pointer, number),  # x, tokens
        *(pointer, pointer, pointer, pointer),  # codes, scale, zero, book
        *(flag, flag, flag),  # kind of zero, half scale, bits
        *(number, number, number),  # rows, columns, chunks in a group
        *(pointer, pointer, pointer, flag, flag, flag),  # bias, y, fixed step; int8, isa, threads
    ]
    handle.tauten_conv.argtypes = [
        *(pointer, number, number, pointer),  # image, samples, channels, geometry
        *handle.tauten_linear.argtypes[2:],
    ]
    handle.tauten_rows.argtypes = [
        *(pointer, number),  # index, count
        *(pointer, pointer, pointer, flag, flag, flag),  # codes, scale, zero; kind, half, bits
        *(number, number, number),  # rows, columns, chunks in a group
        *(pointer, flag),  # y, threads
    ]
    handle.tauten_book_linear.argtypes = [
        *(pointer, number, pointer, pointer, flag, flag),  # x, tokens; codes, entries; shared, bits
        *(number, number, pointer, pointer, flag, flag),  # rows, columns; bias, y; isa, threads
    ]
    handle.tauten_sparse_linear.argtypes = [
        *(pointer, number),  # x, tokens
        *(pointer, pointer, pointer, flag, number),  # mask, starts, values; kind, slots
        *(pointer, pointer, flag, flag, flag),  # scale, zero; kind, half, bits
        *(number, number, number),  # rows, columns, chunks in a group
        *(pointer, pointer, flag, flag),  # bias, y; isa, threads
    ]
    real = ctypes.c_float
    handle.tauten_decide_columns.argtypes = [
        *(pointer, number, number, pointer, pointer),  # values, rows, stride; errors, slope
        *(pointer, pointer, number),  # local, groups, width
        *(pointer, pointer, number, real, flag, flag),  # step, low, groups, top; isa, threads
    ]
    handle.tauten_cells.argtypes = [
        *(pointer, number, pointer, pointer, pointer),  # values, rows, weights, scale, depth
        *(number, number, real, real, flag, pointer),  # groups, size, middle, top; codes, sums
        *(flag, flag),  # isa, threads
    ]
    handle.tauten_huge_pages.argtypes = [pointer, number]
    handle.tauten_huge_pages.restype = None
    handle.tauten_share_pool.argtypes = [pointer]
    handle.tauten_share_pool(_torch_pool())
    library = Library(handle, 0)
    library.use(os.environ.get("TAUTEN_ISA") or next(filter(library.supports, SETS[::-1])))
    return library


def _torch_pool() -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime that torch has loaded, if it is found.

    Calling into the same copy shares its threads; a second OpenMP runtime would fight it.
    """
    folder = Path(torch.__file__).parent / "lib"
    for pattern in ("libgomp*.so*", "libomp*", "libiomp5*"):
        for path in sorted(folder.glob(pattern)):
            entry = getattr(ctypes.CDLL(str(path)), "GOMP_parallel", None)
            if entry is not None:
                return ctypes.cast(entry, ctypes.c_void_p).value
    return None
