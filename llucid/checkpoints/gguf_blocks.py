"""The types in which GGUF stores numbers (ggml_type): plain, or quantised in blocks that share a scale.

Source: ggml's ggml-quants.c.
"""

import importlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from llucid.arrays import Mapped
from llucid.arrays.quantized import FORMS, dequantized
from llucid.errors import LlucidError

if TYPE_CHECKING:
    from llucid.arrays.quantize import Bits


class GgmlType(NamedTuple):
    """The type of a tensor's numbers."""

    name: str
    block: int
    """Numbers per block; 1 for plain numbers."""
    size: int
    """Bytes per block."""


GGML_TYPES = {
    0: GgmlType("float32", 1, 4),
    1: GgmlType("float16", 1, 2),
    3: GgmlType("Q4_1", 32, 20),
    6: GgmlType("Q5_0", 32, 22),
    7: GgmlType("Q5_1", 32, 24),
    16: GgmlType("IQ2_XXS", 256, 66),
    17: GgmlType("IQ2_XS", 256, 74),
    18: GgmlType("IQ3_XXS", 256, 98),
    19: GgmlType("IQ1_S", 256, 50),
    20: GgmlType("IQ4_NL", 32, 18),
    21: GgmlType("IQ3_S", 256, 110),
    22: GgmlType("IQ2_S", 256, 82),
    23: GgmlType("IQ4_XS", 256, 136),
    29: GgmlType("IQ1_M", 256, 56),
    30: GgmlType("bfloat16", 1, 2),
    34: GgmlType("TQ1_0", 256, 54),
    35: GgmlType("TQ2_0", 256, 66),
    39: GgmlType("MXFP4", 32, 17),
    **{
        number: GgmlType(name, FORMS[name].block, FORMS[name].size)
        for number, name in {2: "Q4_0", 8: "Q8_0", **dict(enumerate("Q2_K Q3_K Q4_K Q5_K Q6_K".split(), 10))}.items()
    },
}
"""The types that llucid reads, by their number in ggml."""
NUMBERS = {kind.name: number for number, kind in GGML_TYPES.items()}
WRITABLE = ("float32", "float16", "bfloat16", "Q8_0", "Q4_0")
"""The types that plain numbers can be written in."""
QUANTIZED_BITS: "dict[str, Bits]" = {"Q8_0": 8, "Q4_0": 4}
"""The types that matrices are quantised to, with their bits."""
UNSUPPORTED = {
    9: "Q8_1",
    15: "Q8_K",
    40: "NVFP4",
    **dict(enumerate("I8 I16 I32 I64 F64".split(), 24)),
}
"""The types that llucid does not read."""

CHUNK = 2**21
"""Numbers that are quantised or dequantised at a time."""


SAME_IN_Q8_0 = ("Q5_0", "IQ4_NL")
"""The types whose numbers are 8-bit integers times the scale of 32: `as_q8_0` repacks them without any change."""
IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


def as_q8_0(
    blocks: UInt8[NDArray[np.uint8], "rows blocks bytes"], kind: GgmlType
) -> UInt8[NDArray[np.uint8], "rows blocks 34"]:
    """The same numbers as blocks of Q8_0. `kind` is one of SAME_IN_Q8_0."""
    found = np.empty((*blocks.shape[:2], 34), np.uint8)
    found[..., :2] = blocks[..., :2]
    packed = blocks[..., -16:]
    integers = found[..., 2:].view(np.int8)
    for half, four_bits in enumerate((packed & 15, packed >> 4)):
        place = slice(16 * half, 16 * half + 16)
        if kind.name == "IQ4_NL":
            integers[..., place] = IQ4_NL[four_bits]
        else:
            fifth = np.unpackbits(blocks[..., 2:6], axis=-1, bitorder="little")[..., place]
            integers[..., place] = (four_bits | fifth << 4).view(np.int8) - 16
    return found


def dequantize_blocks(raw: NDArray[np.uint8], kind: GgmlType, shape: tuple[int, ...]) -> Mapped:
    """The float32 numbers of the blocks in `raw`; some rows at a time limit the memory."""
    numbers = np.empty(shape, np.float32)
    rows = raw.reshape(-1, shape[-1] // kind.block * kind.size)
    flat = numbers.reshape(-1, shape[-1])
    step = max(1, CHUNK // shape[-1])
    for row in range(0, len(rows), step):
        chunk = rows[row : row + step]
        flat[row : row + step] = (dequantize_form if kind.name in FORMS else dequantize_with_package)(chunk, kind)
    return Mapped("float32", numbers.view(np.int32))


def dequantize_form(
    rows: UInt8[NDArray[np.uint8], "rows bytes"], kind: GgmlType
) -> Float[NDArray[np.float32], "rows columns"]:
    """Rows of blocks of one of FORMS, dequantised by PyTorch."""
    import torch

    return dequantized(torch.tensor(rows, device="cpu").unflatten(-1, (-1, kind.size)), kind.name).numpy()


def dequantize_with_package(rows: NDArray[np.uint8], kind: GgmlType) -> NDArray[np.float32]:
    """Rows of blocks, dequantised by ggml's own Python package. Raises LlucidError if it is not installed."""
    try:
        package = importlib.import_module("gguf")
        type_ = package.GGMLQuantizationType[kind.name]
    except (ImportError, KeyError) as error:  # an old package does not know every type
        raise LlucidError(f'tensors of type {kind.name} need the gguf package: pip install "llucid[gguf]"') from error
    with np.errstate(all="ignore"):  # damaged scales may be infinite
        return package.quants.dequantize(np.ascontiguousarray(rows), type_)
