"""Advice to the operating system about the memory of large arrays; on systems other than Linux there is none."""

import ctypes
import mmap
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

DONTNEED, HUGEPAGE = 4, 14
"""Linux's numbers of MADV_DONTNEED and MADV_HUGEPAGE, for which other systems have no names."""

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's numbers in mallopt(3)."""


def keep_freed() -> None:
    """Makes glibc keep freed blocks of up to 32 MB for the next tensor.

    Otherwise each is fetched from the system again and filled with zeros, page by page: a quarter of the time of a
    training step, and of reading a prompt. This holds for the whole process, so only a program calls it.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(TRIM_THRESHOLD, 2**30)
        libc.mallopt(MMAP_THRESHOLD, 2**25)


def blank(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """An array to be written, in pages of 2 MB where there are any: to fetch it in pages of 4 KB takes longer than to
    write it."""
    array = np.empty(shape, dtype)
    advise(array, HUGEPAGE)
    return array


def release(mapped: NDArray[Any]) -> None:
    """Gives the memory of a mapped array that nobody has changed back to the system, so that a copy of it does not
    count twice. It can still be read, from the file again."""
    advise(mapped, DONTNEED)


def advise(array: NDArray[Any], advice: int) -> None:
    """madvise(2) for the whole pages of a contiguous array; the pages that it shares with others are left out."""
    page, start = mmap.PAGESIZE, array.ctypes.data
    begin = -(-start // page) * page
    length = (start + array.nbytes) // page * page - begin
    if sys.platform == "linux" and array.flags.c_contiguous and length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), advice)
