"""Arrays that llama.c can read without PyTorch, mostly mapped from a file."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


KINDS = {"float32": 0, "bfloat16": 1, "float16": 2, "Q8_0": 3, "Q4_0": 4, "Q4_K": 5, "Q5_K": 6, "Q6_K": 7}
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
        """A tensor on this device and of this dtype."""
        return self.tensor().to(device=device, dtype=dtype)

    def floats(self) -> NDArray[np.float32]:
        """The numbers in float32."""
        if self.dtype == "bfloat16":  # the upper half of a float32
            return (self.numbers.astype(np.uint32) << 16).view(np.float32)
        return self.numbers.view(self.dtype).astype(np.float32)
