"""The machine's memory, and advice to the operating system about that of large arrays, which only Linux takes."""

import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DONTNEED, NORESERVE = 4, 0x4000
"""Linux's MADV_DONTNEED and MAP_NORESERVE."""

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's numbers in mallopt(3)."""


def keep_freed() -> None:
    """Makes glibc keep freed blocks of up to 32 MB for the next tensor.

    Otherwise each is fetched from the system again and filled with zeros, page by page: a quarter of the time of a
    training step, and of reading a prompt. This holds for the whole process, so only a program calls it.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(MMAP_THRESHOLD, 2**25)


def memory_size() -> int | None:
    """Of this machine, in bytes; None where the system does not say."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def map_file(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, mapped: read when they are used. They can be written to, as PyTorch requires, which does not
    change the file.

    Linux would refuse to map a file that is larger than the memory, in case all of it were written to; but hardly any
    is (MAP_NORESERVE, mmap(2)). Raises OSError, and ValueError for an empty file.
    """
    if sys.platform != "linux":
        return np.memmap(path, np.uint8, mode="c")
    with open(path, "rb") as file:
        kind = {"flags": mmap.MAP_PRIVATE | NORESERVE, "prot": mmap.PROT_READ | mmap.PROT_WRITE}
        return np.frombuffer(mmap.mmap(file.fileno(), 0, **kind), np.uint8)


def release(mapped: NDArray[Any]) -> None:
    """Returns the memory of a contiguous, unchanged mapped array to the system, so that a copy does not count twice.

    Reading the array again reads the file. Pages that it shares with other arrays stay (madvise(2)).
    """
    page, start = mmap.PAGESIZE, mapped.ctypes.data
    begin = -(-start // page) * page
    length = (start + mapped.nbytes) // page * page - begin
    if sys.platform == "linux" and mapped.flags.c_contiguous and length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), DONTNEED)
