"""Arrays that llama.c can read without PyTorch, mostly mapped from a file."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llucid.arrays.dtypes import converted, dtype_of

if TYPE_CHECKING:
    from torch import Tensor


KINDS = {
    name: number for number, name in enumerate("float32 bfloat16 float16 Q8_0 Q4_0 Q2_K Q3_K Q4_K Q5_K Q6_K".split())
}
"""llama.c's numbers for how a matrix is stored: by its dtype or, if it is quantised, its form."""


@dataclass(frozen=True, eq=False)
class Mapped:
    """A NumPy array whose numbers may be bfloat16, which NumPy does not have."""

    dtype: str
    """PyTorch's name of it, as in "bfloat16"."""
    numbers: NDArray[Any]
    """The same bits as integers."""
    device = "cpu"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.shape

    @property
    def ndim(self) -> int:
        return self.numbers.ndim

    def numel(self) -> int:
        return math.prod(self.shape)

    def tensor(self) -> "Tensor":
        """A tensor on the same memory. It may be written to: the file does not change."""
        import torch

        numbers = np.require(self.numbers, requirements=["C", "A", "W"])  # a copy only of what PyTorch cannot take
        return torch.from_numpy(numbers).view(getattr(torch, self.dtype))

    def to(self, device: Any = None, dtype: Any = None) -> "Tensor":
        """A tensor on this device, of this dtype. Raises LlucidError as `converted` does."""
        return converted(self.tensor(), dtype or dtype_of(self.dtype)).to(device)

    def floats(self) -> NDArray[np.float32]:
        if self.dtype == "bfloat16":  # the upper half of a float32
            return (self.numbers.astype(np.uint32) << 16).view(np.float32)
        return self.numbers.view(self.dtype).astype(np.float32)
