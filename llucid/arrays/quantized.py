"""Matrices in groups of 32 whole numbers with one scale each: w ≈ scale · whole, in 8 or in 4 bits.

A `Quantized` matrix is one leaf of the weights' tree, as the matrix was, and the equations run on it: PyTorch turns it
back into what it stands for whenever it computes with it. The decode step in C reads it as it is stored, which is why
16 rows lie side by side: of each group, 4 numbers of the first row, 4 of the second, and so on, then the next 4.
The groups are those of GGUF's Q8_0 and Q4_0, number for number: ggml's ggml-quants.c.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float16, Int, UInt8
from torch import Tensor
from torch.utils._pytree import tree_map_only

from llucid.arrays.mapped import GROUP, TILE
from llucid.fast import linear
from llucid.weights import Weights, tree_map

AT_ONCE = 2**22
"""Numbers that are quantised or turned back in one go, which bounds the memory that this takes."""

Bits = Literal[8, 4]
BITS: dict[str, Bits] = {"int8": 8, "int4": 4}


class Quantized(Tensor):
    """A matrix [rows, columns] of whole numbers and scales, which computes as the matrix that it stands for."""

    numbers: UInt8[Tensor, "tiles groups bits 16 4"]
    """Each number plus 128, a byte each; or plus 8, two a byte, number k of a group below and number k + 16 above. A
    group of 32 numbers of so many `bits` is as many words of 4 bytes."""
    scales: Float16[Tensor, "tiles groups 16"]

    @staticmethod
    def __new__(
        cls: type["Quantized"],
        numbers: UInt8[Tensor, "tiles groups bits 16 4"],
        scales: Float16[Tensor, "tiles groups 16"],
        rows: int,
        dtype: torch.dtype,
    ) -> "Quantized":
        """`dtype` is what it computes in."""
        shape = (rows, numbers.shape[1] * GROUP)
        made = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=numbers.device)  # pyright: ignore
        made.numbers, made.scales = numbers, scales
        return made

    @property
    def bits(self) -> int:
        """8 or 4."""
        return self.numbers.shape[2]

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What the equations do to a matrix, without the second that PyTorch takes to prepare for the rest."""
        if func is F.linear and len(args) == 2 and isinstance(args[1], Quantized):
            return linear(args[0], dense(args[1]))
        if func is F.embedding:
            return rows_of(args[1], args[0])
        with torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        aten, kwargs, first = torch.ops.aten, kwargs or {}, args[0]
        if function is aten.detach.default:
            return Quantized(first.numbers, first.scales, first.shape[0], first.dtype)
        if function is aten._to_copy.default:
            numbers, scales = (part.to(kwargs.get("device")) for part in (first.numbers, first.scales))
            return Quantized(numbers, scales, first.shape[0], kwargs.get("dtype") or first.dtype)
        return function(*tree_map_only(Quantized, dense, args), **tree_map_only(Quantized, dense, kwargs))

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"Quantized({list(self.shape)}, {self.bits} bits, {self.dtype})"


# --------------------------------------------------------------------------------------------- the tree


def quantize(weights: Weights, bits: Bits) -> Weights:
    """The same weights with their matrices quantised; what already is stays, and so do gains.

    So do matrices whose rows are no multiple of 32 numbers.
    """
    return tree_map(lambda leaf: quantize_leaf(leaf, bits), weights)


def dequantize(weights: Weights) -> Weights:
    """The weights that quantised ones stand for, as plain arrays."""
    return tree_map(lambda leaf: dense(leaf) if isinstance(leaf, Quantized) else leaf, weights)


def quantize_leaf(leaf: Tensor, bits: Bits | None) -> Tensor:
    """The leaf quantised if it is a matrix that can be and is not, and bits are named; else as it is."""
    can = leaf.ndim == 2 and leaf.shape[1] % GROUP == 0 and not isinstance(leaf, Quantized)
    return quantize_matrix(leaf, bits) if bits and can else leaf


# --------------------------------------------------------------------------------------------- one matrix


def quantize_matrix(w: Float[Tensor, "rows columns"], bits: Bits) -> Quantized:
    """w in groups of 32, some rows at a time."""
    groups = {8: groups_of_int8, 4: groups_of_int4}[bits]
    parts = (part.detach().float().unflatten(1, (-1, GROUP)) for part in w.split(rows_at_once(w.shape[1])))
    numbers, scales = zip(*(tiled(*groups(part)) for part in parts), strict=True)
    return Quantized(torch.cat(numbers), torch.cat(scales), w.shape[0], w.dtype)


def rows_at_once(columns: int) -> int:
    """A multiple of 16."""
    return max(1, AT_ONCE // columns // TILE) * TILE


def groups_of_int8(
    w: Float[Tensor, "rows groups 32"],
) -> tuple[UInt8[Tensor, "rows groups 32"], Float16[Tensor, "rows groups"]]:
    """(whole + 128, scale) with scale = max|w| / 127 and whole = w / scale, rounded half away from zero.

    ggml's quantize_row_q8_0_ref, bit for bit.
    """
    scale = w.abs().amax(-1, keepdim=True) / 127
    scaled = w * torch.where(scale == 0, 0, 1 / scale)
    below = scaled.abs().floor()
    whole = scaled.sign() * (below + (2 * (scaled.abs() - below)).floor())
    return (whole + 128).to(torch.uint8), scale[..., 0].half()


def groups_of_int4(
    w: Float[Tensor, "rows groups 32"],
) -> tuple[UInt8[Tensor, "rows groups 16"], Float16[Tensor, "rows groups"]]:
    """(two numbers + 8 a byte, scale) with scale = m / −8, m the number of the largest |w|, and whole = w / scale.

    ggml's quantize_row_q4_0_ref, bit for bit: the largest is met, whatever its sign, but for the rounding of the scale.
    """
    largest = w.gather(-1, w.abs().argmax(-1, keepdim=True))
    scale = largest / -8
    whole = (w * torch.where(scale == 0, 0, 1 / scale) + 8.5).floor().clamp(0, 15).to(torch.uint8)
    return whole[..., :16] | whole[..., 16:] << 4, scale[..., 0].half()


def tiled(
    numbers: UInt8[Tensor, "rows groups bytes"], scales: Float16[Tensor, "rows groups"]
) -> tuple[UInt8[Tensor, "tiles groups bits 16 4"], Float16[Tensor, "tiles groups 16"]]:
    """Rows of groups as they are stored: 16 side by side, the last of them filled up with zeros."""
    more = -len(numbers) % TILE
    if more:
        numbers = torch.cat([numbers, numbers.new_zeros(more, *numbers.shape[1:])])
        scales = torch.cat([scales, scales.new_zeros(more, scales.shape[1])])
    words = numbers.contiguous().view(torch.int32).unflatten(0, (-1, TILE))  # tiles 16 groups quads
    tiles = words.permute(0, 2, 3, 1).contiguous()[..., None].view(torch.uint8)
    return tiles, scales.unflatten(0, (-1, TILE)).mT.contiguous()


def to_blocks(w: Quantized) -> UInt8[Tensor, "rows groups bytes"]:
    """GGUF's blocks, bit for bit: the inverse of `mapped.packed`."""
    numbers = w.numbers.view(torch.int32)[..., 0].permute(0, 3, 1, 2).contiguous().view(torch.uint8).flatten(0, 1)
    if w.bits == 8:
        numbers = numbers ^ 128
    scales = w.scales.mT.flatten(0, 1)[..., None].contiguous().view(torch.uint8)
    return torch.cat([scales, numbers], -1)[: w.shape[0]]


def values(
    numbers: UInt8[Tensor, "*rows groups bits 4"], scales: Float16[Tensor, "*rows groups"]
) -> Float[Tensor, "*rows columns"]:
    """scale · whole."""
    flat = numbers.flatten(-2)
    whole = flat.float() - 128 if flat.shape[-1] == GROUP else torch.cat([flat & 15, flat >> 4], -1).float() - 8
    return (whole * scales[..., None].float()).flatten(-2)


def dense(w: Quantized) -> Float[Tensor, "rows columns"]:
    """The matrix that it stands for, made some rows at a time."""
    made = torch.empty(w.shape, dtype=w.dtype, device=w.device)
    step = rows_at_once(w.shape[1]) // TILE
    for start in range(0, len(w.numbers), step):
        numbers, scales = w.numbers[start : start + step], w.scales[start : start + step]
        words = numbers.contiguous().view(torch.int32)[..., 0].permute(0, 3, 1, 2).contiguous()
        rows = values(words[..., None].view(torch.uint8), scales.mT).flatten(0, 1)
        at = start * TILE
        made[at : at + len(rows)] = rows[: len(made) - at]
    return made


def rows_of(w: Quantized, ids: Int[Tensor, "*any"]) -> Float[Tensor, "*any columns"]:
    """Some rows of it alone."""
    tile, row = ids // TILE, ids % TILE
    return values(w.numbers[tile, :, :, row], w.scales[tile, :, row]).to(w.dtype)
