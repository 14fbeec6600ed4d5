"""Tensors that are in a file and not yet in memory, and the strictness with which a Llama is gathered from them."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from torch import Tensor

from llucid.config import Config
from llucid.errors import LlucidError
from llucid.weights import Weights, assemble, shapes


class Entry(NamedTuple):
    """One tensor in a file."""

    shape: tuple[int, ...]
    dtype: str
    """PyTorch's name of it, as in "bfloat16"."""
    read: Callable[[], Tensor]
    """The tensor, mapped where that can be. It may be written to: the file behind a map does not change."""


Entries = Mapping[str, Entry]

ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number, for the dtypes that weights may have."""


def renamed(path: str, names: Mapping[str, str]) -> str:
    """A format's name of the array at our path, by its table of names, in which N is the number of the block."""
    number = re.search(r"\d+", path)
    return names[re.sub(r"\d+", "N", path)].replace("N", number[0] if number else "N")


def gather(
    config: Config,
    entries: Entries,
    name_of: Callable[[str], str],
    place: str,
    adjust: Callable[[str, Tensor], Tensor] = lambda path, tensor: tensor,
    ignored: Collection[str] = (),
) -> Weights:
    """The weights of `config` from `entries`, each read once, by the names that `name_of` gives our paths.

    `adjust(path, tensor)` has the last word on each. Strict both ways: raises LlucidError, with `place` and the
    tensor's name, for one that is missing, misshaped, not of numbers, or of no Llama; `ignored` names are let pass.
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
        if found.dtype not in ITEMSIZE:
            raise LlucidError(f"{place}: {name} is {found.dtype}; expected one of {', '.join(ITEMSIZE)}")
    for name in entries.keys() - expected.keys() - set(ignored):
        if not name.endswith("rotary_emb.inv_freq"):  # angles that some old files carry: they follow from the config
            raise LlucidError(f"{place}: {name} {list(entries[name].shape)} is no tensor of the Llama described here")
    return assemble(config, lambda path, _: adjust(path, entries[name_of(path)].read()))
