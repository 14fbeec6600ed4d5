"""Quantised matrices of random blocks, in every form."""

import numpy as np
from numpy.typing import NDArray

from llucid.arrays import Quantized
from llucid.arrays.quantized import FORMS, from_blocks

MIDDLE = {"Q4_K": 7.5, "Q5_K": 15.5}
"""Of the integers, in forms with minima: a minimum of so many scales makes the numbers symmetric around 0."""
LARGEST = {"Q8_0": 128, "Q4_0": 8, "Q4_K": 63 * 7.5, "Q5_K": 63 * 15.5, "Q6_K": 128 * 32}
"""About the largest number of a block whose scale is 1."""


def random_blocks(form: str, rows: int, columns: int, seed: int = 0, size: float = 1) -> NDArray[np.uint8]:
    """Blocks of random bytes [rows, blocks, bytes] whose numbers are up to about `size`."""
    generator, kind = np.random.default_rng(seed), FORMS[form]
    blocks = generator.integers(0, 256, (rows, columns // kind.block, kind.size), np.uint8)
    scales = generator.uniform(0.5, 1, (*blocks.shape[:2], 1)) * size / LARGEST[form]
    if form in MIDDLE:
        scales = np.concatenate([scales, scales * MIDDLE[form]], -1)
    blocks[..., kind.scales] = scales.astype("<f2").view(np.uint8)
    return blocks


def random_quantized(form: str, rows: int, columns: int, seed: int = 0, size: float = 1) -> Quantized:
    """A matrix of such blocks, its arrays tensors."""
    return from_blocks(random_blocks(form, rows, columns, seed, size), form).tensor()
