"""The types in which GGUF stores numbers (ggml_type): plain, or quantised in blocks that share a scale.

Source: ggml's ggml-quants.c.
"""

import importlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llucid.arrays import Mapped
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
    2: GgmlType("Q4_0", 32, 18),
    3: GgmlType("Q4_1", 32, 20),
    6: GgmlType("Q5_0", 32, 22),
    7: GgmlType("Q5_1", 32, 24),
    8: GgmlType("Q8_0", 32, 34),
    10: GgmlType("Q2_K", 256, 84),
    11: GgmlType("Q3_K", 256, 110),
    12: GgmlType("Q4_K", 256, 144),
    13: GgmlType("Q5_K", 256, 176),
    14: GgmlType("Q6_K", 256, 210),
    30: GgmlType("bfloat16", 1, 2),
}
"""The types that llucid reads, by their number in ggml."""
NUMBERS = {kind.name: number for number, kind in GGML_TYPES.items()}
WRITABLE = ("float32", "float16", "bfloat16", "Q8_0", "Q4_0")
"""The types that plain numbers can be written in."""
QUANTIZED_BITS: "dict[str, Bits]" = {"Q8_0": 8, "Q4_0": 4}
"""The types that matrices are quantised to, with their bits."""
_FROM_15 = "Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M"
UNSUPPORTED = {9: "Q8_1", **dict(enumerate(_FROM_15.split(), 15)), 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"}
"""The types that llucid does not read."""

CHUNK = 2**21
"""Numbers that are quantised or dequantised at a time."""


def dequantize_blocks(raw: NDArray[np.uint8], kind: GgmlType, shape: tuple[int, ...]) -> Mapped:
    """The float32 numbers of the blocks in `raw`; some rows at a time limit the memory."""
    numbers = np.empty(shape, np.float32)
    rows = raw.reshape(-1, shape[-1] // kind.block * kind.size)
    flat = numbers.reshape(-1, shape[-1])
    step = max(1, CHUNK // shape[-1])
    for row in range(0, len(rows), step):
        chunk = rows[row : row + step]
        flat[row : row + step] = dequantize_q8_0(chunk) if kind.name == "Q8_0" else dequantize_with_package(chunk, kind)
    return Mapped("float32", numbers.view(np.int32))


def dequantize_q8_0(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """w = scale · int8, [rows, blocks·34] → [rows, blocks·32]. A block is a float16 scale and 32 int8 numbers.

    Source: ggml-quants.c, dequantize_row_q8_0.
    """
    blocks = rows.reshape(-1, 34)
    with np.errstate(all="ignore"):  # damaged scales may be infinite
        scaled = blocks[:, 2:].view(np.int8) * blocks[:, :2].view(np.float16).astype(np.float32)
    return scaled.reshape(len(rows), -1)


def dequantize_with_package(rows: NDArray[np.uint8], kind: GgmlType) -> NDArray[np.float32]:
    """Rows of blocks, dequantised by ggml's own Python package. Raises LlucidError if it is not installed."""
    try:
        package = importlib.import_module("gguf")
    except ImportError as error:
        raise LlucidError(f'tensors of type {kind.name} need the gguf package: pip install "llucid[gguf]"') from error
    with np.errstate(all="ignore"):  # damaged scales may be infinite
        return package.quants.dequantize(np.ascontiguousarray(rows), package.GGMLQuantizationType[kind.name])
