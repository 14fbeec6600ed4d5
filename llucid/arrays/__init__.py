"""Arrays that are not PyTorch tensors: quantised matrices, and arrays that are mapped from a file."""

from llucid.arrays.mapped import Mapped
from llucid.arrays.quantized import Quantized

__all__ = ["Mapped", "Quantized"]
