"""Matrices in groups of 32 integers that share a scale: w ≈ scale · integer, in 8 or in 4 bits.

The groups are those of GGUF's Q8_0 and Q4_0, number for number: ggml's ggml-quants.c. llama.c reads them as they are
stored here, which is why 16 rows lie side by side: of each group, 4 numbers of the first row, 4 of the second, and so
on, then the next 4. PyTorch dequantises a matrix whenever it computes with it (llucid/fast.py).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float16, Int, UInt8
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 32
"""Numbers that share a scale."""
TILE = 16
"""Rows that lie side by side."""
CHUNK = 2**22
"""Numbers that are quantised or dequantised at a time, which bounds the memory that this takes."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantised matrix [rows, columns]. Its arrays are PyTorch's or, where PyTorch is not imported, NumPy's."""

    numbers: UInt8[Any, "tiles groups bits 16 4"]
    """Each integer plus 128, one in a byte; or plus 8, two in a byte, number k of a group in the lower half and number
    k + 16 in the upper one. A group of 32 takes `bits` words of 4 bytes."""
    scales: Float16[Any, "tiles groups 16"]
    rows: int
    dtype: Any
    """The dtype that it computes in; with NumPy's arrays, the name of that dtype."""

    @property
    def bits(self) -> int:
        """8 or 4."""
        return self.numbers.shape[2]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.numbers.shape[1] * GROUP

    @property
    def ndim(self) -> int:
        return 2

    @property
    def device(self) -> Any:
        return self.numbers.device

    def __repr__(self) -> str:
        return f"Quantized({list(self.shape)}, {self.bits} bits, {self.dtype})"

    def numel(self) -> int:
        return self.rows * self.shape[1]

    def tensor(self) -> "Quantized":
        """The same memory as tensors."""
        import torch

        if isinstance(self.numbers, torch.Tensor):
            return self
        arrays = torch.from_numpy(self.numbers), torch.from_numpy(self.scales)
        return Quantized(*arrays, self.rows, getattr(torch, self.dtype))

    def to(self, device: Any = None, dtype: Any = None) -> "Quantized":
        """The same matrix, its arrays as tensors on this device, which computes in this dtype."""
        w = self.tensor()
        return Quantized(w.numbers.to(device), w.scales.to(device), w.rows, dtype or w.dtype)

    def dense(self) -> "Float[Tensor, 'rows columns']":
        """The matrix as an ordinary tensor, dequantised some rows at a time."""
        import torch

        w = self.tensor()
        dense = torch.empty(w.shape, dtype=w.dtype, device=w.device)
        step = rows_in_chunk(w.shape[1]) // TILE
        for start in range(0, len(w.numbers), step):
            words = w.numbers[start : start + step].view(torch.int32)[..., 0].permute(0, 3, 1, 2).contiguous()
            rows = dequantized(words[..., None].view(torch.uint8), w.scales[start : start + step].mT).flatten(0, 1)
            begin = start * TILE
            dense[begin : begin + len(rows)] = rows[: len(dense) - begin]
        return dense

    def rows_of(self, ids: "Int[Tensor, '*shape']") -> "Float[Tensor, '*shape columns']":
        """Rows of `dense()`; no other rows are dequantised."""
        w = self.tensor()
        tile, row = ids // TILE, ids % TILE
        return dequantized(w.numbers[tile, :, :, row], w.scales[tile, :, row]).to(w.dtype)


def rows_in_chunk(columns: int) -> int:
    """A multiple of 16."""
    return max(1, CHUNK // columns // TILE) * TILE


def dequantized(
    numbers: "UInt8[Tensor, '*rows groups bits 4']", scales: "Float16[Tensor, '*rows groups']"
) -> "Float[Tensor, '*rows columns']":
    """scale · integer."""
    import torch

    flat = numbers.flatten(-2)
    integers = flat.float() - 128 if flat.shape[-1] == GROUP else torch.cat([flat & 15, flat >> 4], -1).float() - 8
    return (integers * scales[..., None].float()).flatten(-2)


def from_blocks(blocks: UInt8[NDArray[np.uint8], "rows groups bytes"]) -> Quantized:
    """The matrix that GGUF stores in blocks, bit for bit: a float16 scale, then 32 bytes (Q8_0) or 16 (Q4_0)."""
    rows, groups, size = blocks.shape
    tiles, quads = -(-rows // TILE), (size - 2) // 4
    words, scales = np.zeros((tiles, groups, quads, TILE), np.int32), np.zeros((tiles, groups, TILE), np.float16)
    numbers, scale = blocks[..., 2:].view(np.int32), blocks[..., :2].view(np.float16)[..., 0]
    whole, step = rows // TILE, max(1, 2**11 // groups)
    for start, end in [*((start, min(start + step, whole)) for start in range(0, whole, step)), (whole, tiles)]:
        part, height = slice(start * TILE, end * TILE), TILE if end <= whole else rows % TILE
        words[start:end, ..., :height] = numbers[part].reshape(-1, height, groups, quads).transpose(0, 2, 3, 1)
        if quads == 8:  # from signed to + 128, while it is in the processor's cache
            words[start:end] ^= np.int32(-0x7F7F7F80)
        scales[start:end, ..., :height] = scale[part].reshape(-1, height, groups).swapaxes(1, 2)
    return Quantized(words[..., None].view(np.uint8), scales, rows, "float32")


def to_blocks(w: Quantized) -> "UInt8[Tensor, 'rows groups bytes']":
    """GGUF's blocks, bit for bit: the inverse of `from_blocks`."""
    import torch

    w = w.tensor()
    numbers = w.numbers.view(torch.int32)[..., 0].permute(0, 3, 1, 2).contiguous().view(torch.uint8).flatten(0, 1)
    if w.bits == 8:
        numbers = numbers ^ 128
    scales = w.scales.mT.flatten(0, 1)[..., None].contiguous().view(torch.uint8)
    return torch.cat([scales, numbers], -1)[: w.rows]
