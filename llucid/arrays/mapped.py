"""Arrays as their files have them, in memory without PyTorch: what llama.c can read at once."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float16, UInt8
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from llucid.arrays.quantized import Quantized

KINDS = {"float32": 0, "bfloat16": 1, "float16": 2, 8: 3, 4: 4}
"""llama.c's numbers for how a matrix is stored: by its dtype or, if it is quantised, its bits."""
GROUP = 32
"""Numbers of a quantised matrix that share a scale."""
TILE = 16
"""Rows of one that lie side by side."""


@dataclass(frozen=True, eq=False)
class Mapped:
    """Numbers as they are in a file that is mapped."""

    dtype: str
    """PyTorch's name of it, as in "bfloat16"."""
    numbers: NDArray[Any]
    """As whole numbers that are as wide."""
    device = "cpu"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.shape

    def tensor(self) -> "Tensor":
        """The same memory as a tensor. It may be written to: the file does not change."""
        import torch

        return torch.from_numpy(self.numbers).view(getattr(torch, self.dtype))

    def floats(self) -> NDArray[np.float32]:
        """The numbers in float32."""
        if self.dtype == "bfloat16":  # the upper half of a float32
            return (self.numbers.astype(np.uint32) << 16).view(np.float32)
        return self.numbers.view(self.dtype).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Packed:
    """What a `quantize.Quantized` matrix holds."""

    numbers: UInt8[NDArray[np.uint8], "tiles groups bits 16 4"]
    scales: Float16[NDArray[np.float16], "tiles groups 16"]
    rows: int
    dtype = "float32"
    device = "cpu"

    @property
    def bits(self) -> int:
        """8 or 4."""
        return self.numbers.shape[2]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows, self.numbers.shape[1] * GROUP

    def tensor(self) -> "Quantized":
        """The same memory as a tensor."""
        import torch

        from llucid.arrays.quantized import Quantized

        return Quantized(torch.from_numpy(self.numbers), torch.from_numpy(self.scales), self.rows, torch.float32)


def packed(blocks: UInt8[NDArray[np.uint8], "rows groups bytes"]) -> Packed:
    """GGUF's blocks, a float16 scale and then 32 bytes (Q8_0) or 16 (Q4_0), bit for bit; some rows at a time."""
    rows, groups, size = blocks.shape
    tiles, quads = -(-rows // TILE), (size - 2) // 4
    words, scales = np.zeros((tiles, groups, quads, TILE), np.int32), np.zeros((tiles, groups, TILE), np.float16)
    numbers, scale = blocks[..., 2:].view(np.int32), blocks[..., :2].view(np.float16)[..., 0]
    whole, step = rows // TILE, max(1, 2**11 // groups)
    for start, end in [*((start, min(start + step, whole)) for start in range(0, whole, step)), (whole, tiles)]:
        part, height = slice(start * TILE, end * TILE), TILE if end <= whole else rows % TILE
        words[start:end, ..., :height] = numbers[part].reshape(-1, height, groups, quads).transpose(0, 2, 3, 1)
        if quads == 8:  # from a sign to + 128, while it is in the processor's cache
            words[start:end] ^= np.int32(-0x7F7F7F80)
        scales[start:end, ..., :height] = scale[part].reshape(-1, height, groups).swapaxes(1, 2)
    return Packed(words[..., None].view(np.uint8), scales, rows)
