"""Quantised matrices: blocks of integers of a few bits that share scales, bit for bit as GGUF stores them.

llama.c reads them as they are stored here, which is why 16 rows lie side by side: of each block, 4 bytes of the first
row, 4 of the second, and so on, then the next 4. PyTorch dequantises a matrix whenever it computes with it
(llucid/fast.py). Source of the forms: ggml's ggml-quants.c.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float16, Int, UInt8
from numpy.typing import NDArray

from llucid.arrays.dtypes import converted

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 32
"""Numbers that share a scale in Q8_0 and Q4_0."""
TILE = 16
"""Rows that lie side by side."""
CHUNK = 2**22
"""Numbers that are quantised or dequantised at a time, which bounds the memory that this takes."""


class Form(NamedTuple):
    """How a block of a row is stored in GGUF."""

    block: int
    """Numbers in a block."""
    size: int
    """Bytes of a block."""
    scales: slice
    """Those of its bytes that are float16: scales, and in some forms minima. They are its first or its last ones."""

    @property
    def numbers(self) -> slice:
        """The other bytes."""
        return slice(self.scales.stop, self.size) if self.scales.start == 0 else slice(self.scales.start)


FORMS = {
    "Q8_0": Form(32, 34, slice(0, 2)),
    "Q4_0": Form(32, 18, slice(0, 2)),
    "Q2_K": Form(256, 84, slice(80, 84)),
    "Q3_K": Form(256, 110, slice(108, 110)),
    "Q4_K": Form(256, 144, slice(0, 4)),
    "Q5_K": Form(256, 176, slice(0, 4)),
    "Q6_K": Form(256, 210, slice(208, 210)),
}


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantised matrix [rows, columns]. Its arrays are PyTorch's or, where PyTorch is not imported, NumPy's."""

    form: str
    """One of FORMS."""
    numbers: UInt8[Any, "tiles blocks words 16 4"]
    """All bytes of the blocks but the scales, in their order in the file; only Q8_0's integers are stored plus 128."""
    scales: Float16[Any, "tiles scales 16"]
    """Those of the first block, one or two, those of the second and so on."""
    rows: int
    dtype: Any
    """The dtype that it computes in; with NumPy's arrays, the name of that dtype."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.numbers.shape[1] * FORMS[self.form].block

    @property
    def ndim(self) -> int:
        return 2

    @property
    def device(self) -> Any:
        return self.numbers.device

    @property
    def nbytes(self) -> int:
        """Its size in memory."""
        return self.numbers.nbytes + self.scales.nbytes

    def __repr__(self) -> str:
        return f"Quantized({list(self.shape)}, {self.form}, {self.dtype})"

    def numel(self) -> int:
        return self.rows * self.shape[1]

    def tensor(self) -> "Quantized":
        """The same memory as tensors."""
        import torch

        if isinstance(self.numbers, torch.Tensor):
            return self
        arrays = torch.from_numpy(self.numbers), torch.from_numpy(self.scales)
        return Quantized(self.form, *arrays, self.rows, getattr(torch, self.dtype))

    def to(self, device: Any = None, dtype: Any = None) -> "Quantized":
        """The same matrix, its arrays as tensors on this device, which computes in this dtype.

        Raises LlucidError if it has numbers that are too large for this dtype."""
        import torch

        w = self.tensor()
        if dtype and dtype.itemsize == 2 and w.scales.abs().max() > 15:  # the numbers are at most 4096 times the scales
            converted(replace(w, dtype=torch.float32).dense(), dtype)
        return replace(w, numbers=w.numbers.to(device), scales=w.scales.to(device), dtype=dtype or w.dtype)

    def dense(self) -> "Float[Tensor, 'rows columns']":
        """The matrix as an ordinary tensor, dequantised some rows at a time."""
        import torch

        w = self.tensor()
        dense = torch.empty(w.shape, dtype=w.dtype, device=w.device)
        step = rows_in_chunk(w.shape[1])
        for start in range(0, w.rows, step):
            rows = dequantized(blocks_of(w, slice(start // TILE, (start + step) // TILE)), w.form)
            dense[start : start + step] = rows[: w.rows - start]
        return dense

    def rows_of(self, ids: "Int[Tensor, '*shape']") -> "Float[Tensor, '*shape columns']":
        """Rows of `dense()`; no other rows are dequantised. Raises IndexError for others than there are, on a CPU."""
        import torch

        w, few = self.tensor(), ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling()
        if few and not 0 <= int(ids.min()) <= int(ids.max()) < self.shape[0]:
            raise IndexError(f"index out of range: there are rows 0 to {self.shape[0] - 1}")
        tile, row = ids // TILE, ids % TILE
        return dequantized(in_blocks(w.form, w.numbers[tile, :, :, row], w.scales[tile, :, row]), w.form).to(w.dtype)


def rows_in_chunk(columns: int) -> int:
    """A multiple of 16."""
    return max(1, CHUNK // columns // TILE) * TILE


def from_blocks(
    blocks: UInt8[NDArray[np.uint8], "rows blocks bytes"],
    form: str,
    done: Callable[[NDArray[np.uint8]], None] = lambda rows: None,
) -> Quantized:
    """The matrix that GGUF stores in these blocks; `done` is called with rows that are not read again."""
    rows, count, _ = blocks.shape
    tiles, kind = -(-rows // TILE), FORMS[form]
    numbers, scales = blocks[..., kind.numbers].view(np.int32), blocks[..., kind.scales].view(np.float16)
    size, each = numbers.shape[2], scales.shape[2]
    words = np.zeros((tiles, count, size, TILE), np.int32)
    halves = np.zeros((tiles, count, each, TILE), np.float16)
    whole, step = rows // TILE, max(1, 2**14 // (count * size))
    for start, end in [*((start, min(start + step, whole)) for start in range(0, whole, step)), (whole, tiles)]:
        part, height = slice(start * TILE, end * TILE), TILE if end <= whole else rows % TILE
        words[start:end, ..., :height] = numbers[part].reshape(-1, height, count, size).transpose(0, 2, 3, 1)
        if form == "Q8_0":  # from signed to + 128, while it is in the processor's cache
            words[start:end] ^= np.int32(-0x7F7F7F80)
        halves[start:end, ..., :height] = scales[part].reshape(-1, height, count, each).transpose(0, 2, 3, 1)
        done(blocks[part])
    return Quantized(form, words[..., None].view(np.uint8), halves.reshape(tiles, -1, TILE), rows, "float32")


def to_blocks(w: Quantized) -> "UInt8[Tensor, 'rows blocks bytes']":
    """GGUF's blocks, bit for bit: the inverse of `from_blocks`."""
    return blocks_of(w.tensor(), slice(None))[: w.rows]


def blocks_of(w: Quantized, tiles: slice) -> "UInt8[Tensor, 'rows blocks bytes']":
    """The blocks of all rows of some tiles."""
    import torch

    words = w.numbers[tiles].view(torch.int32)[..., 0].permute(0, 3, 1, 2).contiguous()
    return in_blocks(w.form, words[..., None].view(torch.uint8).flatten(0, 1), w.scales[tiles].mT.flatten(0, 1))


def in_blocks(
    form: str, numbers: "UInt8[Tensor, '*rows blocks words 4']", scales: "Float16[Tensor, '*rows scales']"
) -> "UInt8[Tensor, '*rows blocks bytes']":
    """GGUF's blocks from their parts."""
    import torch

    numbers = numbers.flatten(-2)
    parts = [numbers ^ 128 if form == "Q8_0" else numbers]
    parts.insert(FORMS[form].scales.start, scales.contiguous().view(-1).view(torch.uint8).view(*numbers.shape[:-1], -1))
    return torch.cat(parts, -1)


# --------------------------------------------------------------------------------------------- dequantising


def dequantized(blocks: "UInt8[Tensor, '*rows blocks bytes']", form: str) -> "Float[Tensor, '*rows columns']":
    """w = scale · q − less in float32, rounded as ggml rounds it.

    The functions of the forms take the bytes of the blocks without those of the scales, UInt8[*rows blocks bytes], and
    the scales, Float[*rows blocks scales]; they return Float[*rows blocks groups numbers].
    """
    import torch

    kind = FORMS[form]
    scales = blocks[..., kind.scales].contiguous().view(torch.float16).float()
    of_form = {
        "Q8_0": dequantize_q8_0,
        "Q4_0": dequantize_q4_0,
        "Q2_K": dequantize_q2_k,
        "Q3_K": dequantize_q3_k,
        "Q4_K": dequantize_q4_k,
        "Q5_K": dequantize_q5_k,
        "Q6_K": dequantize_q6_k,
    }[form]
    return of_form(blocks[..., kind.numbers], scales).flatten(-3)


def planes(bytes_: "UInt8[Tensor, '*rows bytes']", bits: int, length: int) -> "UInt8[Tensor, '*rows numbers']":
    """Numbers of so many bits: the lowest bits of the first `length` bytes, then the next bits of these, and so on."""
    import torch

    parts = bytes_.unflatten(-1, (-1, length))
    shifts = [parts >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)]
    return torch.stack(shifts, -2).flatten(-3)


def dequantize_q8_0(numbers: "Tensor", scales: "Tensor") -> "Tensor":
    import torch

    return (numbers.view(torch.int8).float() * scales)[..., None, :]


def dequantize_q4_0(numbers: "Tensor", scales: "Tensor") -> "Tensor":
    return ((planes(numbers, 4, 16).float() - 8) * scales)[..., None, :]


def dequantize_q2_k(numbers: "Tensor", scales: "Tensor") -> "Tensor":
    q = planes(numbers[..., 16:], 2, 32).unflatten(-1, (16, 16)).float()
    scale, less = scales[..., :1] * (numbers[..., :16] & 15), scales[..., 1:] * (numbers[..., :16] >> 4)
    return q * scale[..., None] - less[..., None]


def dequantize_q3_k(numbers: "Tensor", scales: "Tensor") -> "Tensor":
    q = planes(numbers[..., 32:96], 2, 32) | planes(numbers[..., :32], 1, 32) << 2
    whole = planes(numbers[..., 96:104], 4, 8) | planes(numbers[..., 104:], 2, 4) << 4
    scale = scales * (whole.float() - 32)
    return (q.unflatten(-1, (16, 16)).float() - 4) * scale[..., None]


def dequantize_q4_k(numbers: "Tensor", scales: "Tensor") -> "Tensor":
    return affine(numbers[..., :12], planes(numbers[..., 12:], 4, 32), scales)


def dequantize_q5_k(numbers: "Tensor", scales: "Tensor") -> "Tensor":
    q = planes(numbers[..., 44:], 4, 32) | planes(numbers[..., 12:44], 1, 32) << 4
    return affine(numbers[..., :12], q, scales)


def dequantize_q6_k(numbers: "Tensor", scales: "Tensor") -> "Tensor":
    import torch

    q = planes(numbers[..., :128], 4, 64) | planes(numbers[..., 128:192], 2, 32) << 4
    scale = scales * numbers[..., 192:].contiguous().view(torch.int8)
    return (q.unflatten(-1, (16, 16)).float() - 32) * scale[..., None]


def affine(whole: "Tensor", q: "Tensor", scales: "Tensor") -> "Tensor":
    """Eight scales and eight minima of 6 bits in 12 bytes: ggml-quants.c, get_scale_min_k4."""
    import torch

    first, second, rest = whole.unflatten(-1, (3, 4)).unbind(-2)
    scale = torch.cat([first & 63, rest & 15 | first >> 6 << 4], -1) * scales[..., :1]
    less = torch.cat([second & 63, rest >> 4 | second >> 6 << 4], -1) * scales[..., 1:]
    return q.unflatten(-1, (8, 32)).float() * scale[..., None] - less[..., None]
