"""Tensors in a file that are not yet read, and how strictly the weights of a Llama are gathered from them."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from llucid.arrays import Mapped, Quantized
from llucid.arrays.dtypes import dtype_of
from llucid.config import Config
from llucid.errors import LlucidError
from llucid.weights import Weights, assemble, shapes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor in a file, read when it is needed; also a leaf of weights that are being converted."""

    shape: tuple[int, ...]
    dtype: str
    """PyTorch's name of it, as in "bfloat16"."""
    read: Callable[[], Mapped | Quantized]
    """The tensor as the file has it, mapped where possible. It may be written to: the file does not change."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return math.prod(self.shape)

    def to(self, dtype: str) -> "Stored":
        """The same tensor, to be converted to this dtype after it is read."""
        return replace(self, dtype=dtype)


Leaf: TypeAlias = "Tensor | Mapped | Quantized | Stored"
"""What can be written to a file."""


def tensor_of(leaf: Leaf) -> "Tensor":
    """The leaf as an ordinary tensor on the CPU."""
    match leaf:
        case Stored():
            return tensor_of(leaf.read().to(dtype=dtype_of(leaf.dtype)))
        case Quantized():
            return leaf.dense().cpu()
        case Mapped():
            return leaf.tensor()
        case _:
            return leaf.detach().cpu()


def mapped(shape: tuple[int, ...], dtype: str, bits: "Callable[[], NDArray[Any]]") -> Stored:
    """A tensor whose numbers stand in the file one by one."""
    return Stored(shape, dtype, lambda: Mapped(dtype, bits()))


def alike(one: Stored, other: Stored) -> bool:
    """Whether two matrices are the same, bit for bit. Reads no further than the first difference."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    a, b = (np.asarray(matrix.read().numbers) for matrix in (one, other))
    if a.ctypes.data == b.ctypes.data and a.strides == b.strides:
        return True
    return all(np.array_equal(a[row : row + 256], b[row : row + 256]) for row in range(0, len(a), 256))


NUMBERS = ("float64", "float32", "bfloat16", "float16")
"""The dtypes that weights may have in a file."""


def bare(name: str) -> str:
    """A tensor's name without the prefixes of torch.compile and of training on several devices."""
    return re.sub(r"^(?:_orig_mod\.|module\.)+", "", name)


def renamed(path: str, names: Mapping[str, str]) -> str:
    """A format's name of the array at our path, by its table of names, in which N is the number of the block."""
    number = re.search(r"\d+", path)
    return names[re.sub(r"\d+", "N", path)].replace("N", number[0] if number else "N")


def gather(
    config: Config,
    entries: Mapping[str, Stored],
    name_of: Callable[[str], str],
    place: str,
    adjust: Callable[[str, Any], Any] = lambda path, array: array,
    ignored: Collection[str] = (),
) -> Weights:
    """The weights of `config` from `entries`, by the names that `name_of` gives our paths; each leaf is Stored.

    `adjust(path, array)` is applied to each array when it is read. Strict both ways: raises LlucidError, with `place`
    and the tensor's name, for a tensor that is missing, has another shape or no floating-point numbers, or is not one
    of a Llama and not `ignored`.
    """
    if config.layers > len(entries):  # before a list is made that a hostile number could make endless
        raise LlucidError(f"{place}: {config.layers} layers are promised, but there are only {len(entries)} tensors")
    expected = {name_of(path): shape for path, shape in shapes(config).items()}
    for name, shape in expected.items():
        if name not in entries:
            raise LlucidError(f"{place}: {name} is missing; expected a tensor of shape {list(shape)}")
        found = entries[name]
        if tuple(found.shape) != shape:
            raise LlucidError(f"{place}: {name} has shape {list(found.shape)}; expected {list(shape)}")
        if found.dtype not in NUMBERS:
            raise LlucidError(f"{place}: {name} is {found.dtype}; expected one of {', '.join(NUMBERS)}")
    for name in entries.keys() - expected.keys() - set(ignored):
        if not re.search(r"rotary_emb\.(inv_freq|(cos|sin)_cached)$", name):  # in some old files: the config says it
            raise LlucidError(f"{place}: {name} {list(entries[name].shape)} is no tensor of the Llama described here")

    def leaf(path: str, shape: tuple[int, ...]) -> Stored:
        stored = entries[name_of(path)]
        return replace(stored, read=lambda: adjust(path, stored.read()))

    return assemble(config, leaf)
