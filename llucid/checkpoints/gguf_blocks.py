"""How GGUF stores numbers: plain, or in blocks that share a scale, which are quantised and dequantised here.

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


class Kind(NamedTuple):
    """How the numbers of a tensor are stored."""

    name: str
    block: int
    """Numbers that share a scale; 1 for plain ones."""
    size: int
    """Bytes of a block."""


KINDS = {
    0: Kind("float32", 1, 4),
    1: Kind("float16", 1, 2),
    2: Kind("Q4_0", 32, 18),
    3: Kind("Q4_1", 32, 20),
    6: Kind("Q5_0", 32, 22),
    7: Kind("Q5_1", 32, 24),
    8: Kind("Q8_0", 32, 34),
    10: Kind("Q2_K", 256, 84),
    11: Kind("Q3_K", 256, 110),
    12: Kind("Q4_K", 256, 144),
    13: Kind("Q5_K", 256, 176),
    14: Kind("Q6_K", 256, 210),
    30: Kind("bfloat16", 1, 2),
}
"""By ggml's numbers."""
WRITTEN = {KINDS[number].name: number for number in (0, 1, 30, 8, 2)}
KEPT: "dict[str, Bits]" = {"Q8_0": 8, "Q4_0": 4}
"""Kinds that a `Quantized` matrix holds as they are, by its bits."""
_IN_ROW = "Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M"
OTHERS = {9: "Q8_1", **dict(enumerate(_IN_ROW.split(), 15)), 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"}
"""Kinds that llucid does not open."""

AT_ONCE = 2**21
"""Numbers that are quantised or dequantised in one go."""


def dequantised(raw: NDArray[np.uint8], kind: Kind, shape: tuple[int, ...]) -> Mapped:
    """The float32 numbers of blocks, some rows at a time."""
    numbers = np.empty(shape, np.float32)
    rows = raw.reshape(-1, shape[-1] // kind.block * kind.size)
    flat = numbers.reshape(-1, shape[-1])
    step = max(1, AT_ONCE // shape[-1])
    for row in range(0, len(rows), step):
        part = rows[row : row + step]
        flat[row : row + step] = from_q8_0(part) if kind.name == "Q8_0" else by_package(part, kind)
    return Mapped("float32", numbers.view(np.int32))


def from_q8_0(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """w = scale · int8, of blocks of a float16 scale and 32 int8, [rows, blocks·34] → [rows, blocks·32].

    ggml's ggml-quants.c, dequantize_row_q8_0.
    """
    blocks = rows.reshape(-1, 34)
    with np.errstate(all="ignore"):  # damaged scales may be infinite
        scaled = blocks[:, 2:].view(np.int8) * blocks[:, :2].view(np.float16).astype(np.float32)
    return scaled.reshape(len(rows), -1)


def by_package(rows: NDArray[np.uint8], kind: Kind) -> NDArray[np.float32]:
    """What ggml's own Python package makes of blocks that we have cut. Raises LlucidError if it is not installed."""
    try:
        package = importlib.import_module("gguf")
    except ImportError as error:
        raise LlucidError(f'tensors of type {kind.name} need the gguf package: pip install "llucid[gguf]"') from error
    with np.errstate(all="ignore"):  # damaged scales may be infinite
        return package.quants.dequantize(np.ascontiguousarray(rows), package.GGMLQuantizationType[kind.name])
