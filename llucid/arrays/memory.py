"""What the system is told about the memory of large tensors, where it is Linux; elsewhere it is told nothing."""

import ctypes
import mmap
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DONTNEED, HUGEPAGE = 4, 14
"""Linux's numbers of MADV_DONTNEED and MADV_HUGEPAGE, which other systems have no names for."""

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's numbers in mallopt(3)."""


def keep_freed() -> None:
    """What is freed is kept for the next tensor, where the C library is glibc, if it had up to 32 MB.

    Else each is fetched from the system anew and filled with zeros, a page after the other: a quarter of the time of a
    training step, and of reading a prompt. It holds for the whole process, so a program decides it and no function.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(TRIM_THRESHOLD, 2**30)
        libc.mallopt(MMAP_THRESHOLD, 2**25)


def blank(shape: Sequence[int], dtype: "torch.dtype") -> "Tensor":
    """A tensor to be written, in pages of 2 MB where there are any: to fetch it in pages of 4 KB takes longer than to
    write it."""
    import torch

    tensor = torch.empty(*shape, dtype=dtype)
    advise(tensor, HUGEPAGE)
    return tensor


def release(mapped: "Tensor") -> None:
    """Gives the memory of a mapped tensor that nobody has changed back to the system, so that a copy of it does not
    count twice. It can still be read, from the file again."""
    advise(mapped, DONTNEED)


def advise(tensor: "Tensor", advice: int) -> None:
    """madvise(2) for the whole pages of a contiguous tensor: what shares the first and the last is left alone."""
    page = mmap.PAGESIZE
    begin = -(-tensor.data_ptr() // page) * page
    length = (tensor.data_ptr() + tensor.nbytes) // page * page - begin
    if sys.platform == "linux" and tensor.is_contiguous() and length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), advice)
