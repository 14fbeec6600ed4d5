"""Tensors that are in a file and not yet in memory, and the strictness with which a Llama is gathered from them."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from llucid.checkpoints.model import dtype_of
from llucid.config import Config
from llucid.errors import LlucidError
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
    bits: "Callable[[], NDArray[Any]] | None" = None
    """The same numbers as integers as wide, where that needs no PyTorch: to compare, not to compute."""


Entries = Mapping[str, Entry]

NUMBERS = ("float64", "float32", "bfloat16", "float16")
"""The dtypes that weights may have in a file."""


@dataclass(frozen=True, eq=False)
class Unread:
    """A leaf of Weights that is still in its file. It has what the rooms ask of a tensor that they write."""

    shape: tuple[int, ...]
    dtype: "torch.dtype"
    read: "Callable[[], Tensor]"
    """The tensor, each time anew."""

    def numel(self) -> int:
        return math.prod(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def detach(self) -> "Tensor":
        return self.read()

    def to(self, dtype: "torch.dtype") -> "Unread":
        return Unread(self.shape, dtype, lambda: self.read().to(dtype))


Leaf: TypeAlias = "Tensor | Unread"
"""What rooms write."""


def renamed(path: str, names: Mapping[str, str]) -> str:
    """A format's name of the array at our path, by its table of names, in which N is the number of the block."""
    number = re.search(r"\d+", path)
    return names[re.sub(r"\d+", "N", path)].replace("N", number[0] if number else "N")


def gather(
    config: Config,
    entries: Entries,
    name_of: Callable[[str], str],
    place: str,
    adjust: "Callable[[str, Tensor], Tensor]" = lambda path, tensor: tensor,
    ignored: Collection[str] = (),
) -> Weights:
    """The weights of `config` from `entries`, Unread, by the names that `name_of` gives our paths.

    `adjust(path, tensor)` has the last word on each when it is read. Strict both ways: raises LlucidError, with `place`
    and the tensor's name, for one that is missing, misshaped, not of numbers, or of no Llama; `ignored` names are let
    pass.
    """
    if config.layers > len(entries):  # before a list is made that a hostile number could make endless
        raise LlucidError(f"{place}: {config.layers} layers are promised, but there are only {len(entries)} tensors")
    if config.parameters > 2**60:
        raise LlucidError(f"{place}: its numbers make {config.parameters} parameters, which no file can hold")
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
        entry = entries[name_of(path)]
        return Unread(shape, dtype_of(entry.dtype), lambda: adjust(path, entry.read()))

    return assemble(config, leaf)
