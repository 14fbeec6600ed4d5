"""The names and sizes of dtypes."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from llucid.errors import LlucidError

if TYPE_CHECKING:  # importing PyTorch takes a second, and headers are read without it
    import torch
    from torch import Tensor


def choose_dtype(name: str | None) -> "torch.dtype | None":
    """PyTorch's float32, bfloat16 or float16; None stays None. Raises LlucidError for any other name."""
    checked = checked_dtype(name)
    return None if checked is None else dtype_of(checked)


def checked_dtype(name: str | None) -> str | None:
    """float32, bfloat16 or float16, however it is spelled; None stays None. Raises LlucidError for any other name."""
    if name is not None and full_name(name) not in ("float32", "bfloat16", "float16"):
        raise LlucidError(f"dtype={name}: expected float32, bfloat16 or float16")
    return None if name is None else full_name(name)


def dtype_of(name: str) -> "torch.dtype":
    """PyTorch's dtype of this name."""
    import torch

    return getattr(torch, name)


def converted(numbers: "Tensor", dtype: "torch.dtype") -> "Tensor":
    """The numbers in this dtype. Raises LlucidError if a finite one would become infinite."""
    import torch

    found = numbers.to(dtype)
    if dtype == numbers.dtype or torch.finfo(dtype).max >= torch.finfo(numbers.dtype).max or not found.numel():
        return found
    if not all(end.isfinite() for end in found.aminmax()):
        refuse_infinite(numbers[found.isinf()], name_of_dtype(dtype))
    return found


def refuse_infinite(numbers: "Tensor", kind: str) -> None:
    """Raises LlucidError if one of the numbers, which are infinite in this `kind`, is finite itself."""
    import torch

    finite = numbers[numbers.isfinite()].abs().double()
    if finite.numel():
        largest = finite.max().item()
        wider = " or ".join(name for name in ("bfloat16", "float32") if largest < torch.finfo(dtype_of(name)).max)
        raise LlucidError(f"{largest:g} is too large for {kind}{wider and f'; use {wider}'}")


def full_name(dtype: str) -> str:
    """float32 for F32 and fp32, and so on; any other name in lower case."""
    for name, short in (("float32", "f32"), ("bfloat16", "bf16"), ("float16", "f16")):
        if dtype.lower() in (name, short, short.replace("f", "fp")):
            return name
    return dtype.lower()


def name_of_dtype(dtype: "torch.dtype | str") -> str:
    """float32 and so on."""
    return str(dtype).removeprefix("torch.")


def widest(dtypes: Iterable[str]) -> str:
    """The one of these dtypes, or the smallest that holds the numbers of all: float32 for float16 and bfloat16."""
    different = set(dtypes)
    return different.pop() if len(different) == 1 else "float64" if "float64" in different else "float32"


def width_of(dtype: str) -> int:
    """The size in bytes of a number of this dtype."""
    return int("".join(filter(str.isdigit, dtype)) or 8) // 8
