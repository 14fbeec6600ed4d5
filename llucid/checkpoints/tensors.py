"""Tensors that are in a file and not yet in memory, and the strictness with which a Llama is gathered from them."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from llucid.arrays.mapped import Mapped, Packed
from llucid.config import Config
from llucid.errors import LlucidError
from llucid.model import dtype_of, name_of_dtype
from llucid.weights import Weights, assemble, shapes

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor


class Entry(NamedTuple):
    """One tensor in a file."""

    shape: tuple[int, ...]
    dtype: str
    """PyTorch's name of it, as in "bfloat16"."""
    read: "Callable[[], Tensor]"
    """The tensor, mapped where that can be. It may be written to: the file behind a map does not change."""
    held: Callable[[], Mapped | Packed] | None = None
    """The same without PyTorch; None for what must be worked out."""


def mapped(shape: tuple[int, ...], dtype: str, bits: "Callable[[], NDArray[Any]]") -> Entry:
    """A tensor that stands in the file as it is."""
    return Entry(shape, dtype, lambda: Mapped(dtype, bits()).tensor().contiguous(), lambda: Mapped(dtype, bits()))


def alike(one: Entry, other: Entry) -> bool:
    """Whether two mapped matrices are the same, bit for bit. Reads them only as far as they are."""
    if one[:2] != other[:2]:
        return False
    assert one.held, f"{one=}"
    assert other.held, f"{other=}"
    a, b = (np.asarray(held().numbers) for held in (one.held, other.held))
    if a.ctypes.data == b.ctypes.data and a.strides == b.strides:
        return True
    return all(np.array_equal(a[row : row + 256], b[row : row + 256]) for row in range(0, len(a), 256))


Entries = Mapping[str, Entry]

NUMBERS = ("float64", "float32", "bfloat16", "float16")
"""The dtypes that weights may have in a file."""


@dataclass(frozen=True, eq=False)
class Unread:
    """A leaf of Weights that is still in its file. It has what the rooms ask of a tensor that they write."""

    shape: tuple[int, ...]
    kind: str
    """PyTorch's name of its dtype."""
    read: "Callable[[], Tensor]"
    """The tensor, each time anew."""
    held: Callable[[], Mapped | Packed] | None = None
    """As an Entry's."""

    @property
    def dtype(self) -> "torch.dtype":
        return dtype_of(self.kind)

    def numel(self) -> int:
        return math.prod(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def detach(self) -> "Tensor":
        return self.read()

    def to(self, dtype: "torch.dtype") -> "Unread":
        return Unread(self.shape, name_of_dtype(dtype), lambda: self.read().to(dtype))


Leaf: TypeAlias = "Tensor | Unread"
"""What rooms write."""


def bare(name: str) -> str:
    """A tensor's name without what torch.compile and training on several devices put before it."""
    return re.sub(r"^(?:_orig_mod\.|module\.)+", "", name)


def renamed(path: str, names: Mapping[str, str]) -> str:
    """A format's name of the array at our path, by its table of names, in which N is the number of the block."""
    number = re.search(r"\d+", path)
    return names[re.sub(r"\d+", "N", path)].replace("N", number[0] if number else "N")


def gather(
    config: Config,
    entries: Entries,
    name_of: Callable[[str], str],
    place: str,
    adjust: Callable[[str, Any], Any] = lambda path, array: array,
    ignored: Collection[str] = (),
) -> Weights:
    """The weights of `config` from `entries`, Unread, by the names that `name_of` gives our paths.

    `adjust(path, array)` has the last word on each when it is read, as a tensor or as what is Mapped. Strict both ways:
    raises LlucidError, with `place` and the tensor's name, for one that is missing, misshaped, not of numbers, or of no
    Llama; `ignored` names are let pass.
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
        if not name.endswith("rotary_emb.inv_freq"):  # angles that some old files carry: they follow from the config
            raise LlucidError(f"{place}: {name} {list(entries[name].shape)} is no tensor of the Llama described here")

    def leaf(path: str, shape: tuple[int, ...]) -> Unread:
        _, kind, read, held = entries[name_of(path)]
        return Unread(shape, kind, lambda: adjust(path, read()), held and (lambda: adjust(path, held())))

    return assemble(config, leaf)
