"""Quantising matrices as ggml does."""

from typing import Literal

import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor

from llucid.arrays.dtypes import converted, refuse_infinite
from llucid.arrays.quantized import GROUP, TILE, Quantized, rows_in_chunk

Bits = Literal[8, 4]
BITS: dict[str, Bits] = {"int8": 8, "int4": 4}


def quantize_leaf(leaf: Tensor | Quantized, bits: Bits) -> Tensor | Quantized:
    """The leaf quantised, if it is a matrix that can be and is not; else as it is."""
    if isinstance(leaf, Quantized) or leaf.ndim != 2 or leaf.shape[1] % GROUP:
        return leaf
    return quantize_matrix(leaf, bits)


def quantize_matrix(w: Float[Tensor, "rows columns"], bits: Bits) -> Quantized:
    """w in groups of 32, some rows at a time. Raises LlucidError if a number is too large for the scales."""
    groups = {8: groups_of_int8, 4: groups_of_int4}[bits]

    def quantized(part: Tensor) -> tuple[Tensor, Tensor]:
        part = converted(part.detach(), torch.float32).unflatten(1, (-1, GROUP))
        numbers, scales = groups(part)
        if (infinite := scales.isinf()).any():
            refuse_infinite(part[infinite].abs().amax(-1), f"the float16 scales of {bits} bits")
        return tiled(numbers, scales)

    with torch.autocast(w.device.type, enabled=False):
        numbers, scales = zip(*map(quantized, w.split(rows_in_chunk(w.shape[1]))), strict=True)
        return Quantized(f"Q{bits}_0", torch.cat(numbers), torch.cat(scales), w.shape[0], w.dtype)


def groups_of_int8(
    w: Float[Tensor, "rows groups 32"],
) -> tuple[UInt8[Tensor, "rows groups 32"], Float16[Tensor, "rows groups"]]:
    """(integer + 128, scale) with scale = max|w| / 127 and integer = w / scale, rounded half away from zero.

    ggml's quantize_row_q8_0_ref, bit for bit.
    """
    scale = w.abs().amax(-1, keepdim=True) / 127
    scaled = w * torch.where(scale == 0, 0, 1 / scale)
    below = scaled.abs().floor()
    integer = scaled.sign() * (below + (2 * (scaled.abs() - below)).floor())
    return (integer + 128).to(torch.uint8), scale[..., 0].half()


def groups_of_int4(
    w: Float[Tensor, "rows groups 32"],
) -> tuple[UInt8[Tensor, "rows groups 16"], Float16[Tensor, "rows groups"]]:
    """(two integers + 8 in a byte, scale) with scale = m / −8, m the number with the largest |w|, and integer =
    w / scale.

    ggml's quantize_row_q4_0_ref, bit for bit: m is exact, whatever its sign, but for the rounding of the scale.
    """
    largest = w.gather(-1, w.abs().argmax(-1, keepdim=True))
    scale = largest / -8
    integer = (w * torch.where(scale == 0, 0, 1 / scale) + 8.5).floor().clamp(0, 15).to(torch.uint8)
    return integer[..., :16] | integer[..., 16:] << 4, scale[..., 0].half()


def tiled(
    numbers: UInt8[Tensor, "rows groups bytes"], scales: Float16[Tensor, "rows groups"]
) -> tuple[UInt8[Tensor, "tiles groups bits 16 4"], Float16[Tensor, "tiles groups 16"]]:
    """Rows of groups as `Quantized` stores them, 16 side by side; the last rows are padded with zeros."""
    more = -len(numbers) % TILE
    if more:
        numbers = torch.cat([numbers, numbers.new_zeros(more, *numbers.shape[1:])])
        scales = torch.cat([scales, scales.new_zeros(more, scales.shape[1])])
    words = numbers.contiguous().view(torch.int32).unflatten(0, (-1, TILE))  # tiles 16 groups quads
    tiles = words.permute(0, 2, 3, 1).contiguous()[..., None].view(torch.uint8)
    return tiles, scales.unflatten(0, (-1, TILE)).mT.contiguous()
