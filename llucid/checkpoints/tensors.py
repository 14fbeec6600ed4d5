"""Tensors in a file that are read on demand, and the check that they make up a Llama."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from llucid.arrays import Mapped, Quantized
from llucid.arrays.dtypes import dtype_of
from llucid.config import Config
from llucid.errors import LlucidError, note
from llucid.weights import Weights, assemble, shapes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor in a file that is read on demand; also a leaf of weights during a conversion."""

    shape: tuple[int, ...]
    dtype: str
    """By its name in PyTorch, such as "bfloat16"."""
    read: Callable[[], Mapped | Quantized]
    """Reads the tensor, mapped where possible. Writing to the result does not change the file."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return math.prod(self.shape)

    def to(self, dtype: str) -> "Stored":
        """The same tensor with another dtype, to which it is converted when it is read."""
        return replace(self, dtype=dtype)


Leaf: TypeAlias = "Tensor | Mapped | Quantized | Stored"
"""An array that can be written to a file."""


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
    """A tensor that is not quantised; `bits` maps its numbers from the file."""
    return Stored(shape, dtype, lambda: Mapped(dtype, bits()))


def equal_numbers(one: Stored, other: Stored) -> bool:
    """Whether two matrices are equal: bit for bit, or in float32 if their dtypes differ. Stops reading at the first
    difference."""
    same = one.dtype == other.dtype
    if one.shape != other.shape or not (same or {one.dtype, other.dtype} <= {*NUMBERS}):
        return False
    a, b = (np.asarray(matrix.read().numbers) for matrix in (one, other))
    if same and a.ctypes.data == b.ctypes.data and a.strides == b.strides:
        return True
    for row in range(0, len(a), 256):
        part, twin = Mapped(one.dtype, a[row : row + 256]), Mapped(other.dtype, b[row : row + 256])
        if not np.array_equal(*((part.numbers, twin.numbers) if same else (part.floats(), twin.floats()))):
            return False
    return True


DERIVED = re.compile(
    r"rotary_emb\.((original_)?inv_freq|(cos|sin)_cached)$|\.(masked_bias|position_ids|causal_mask|self_attn\.bias)$"
)
"""Tensors in some old files that follow from the config: RoPE's angles, positions and masks."""
NUMBERS = ("float64", "float32", "bfloat16", "float16")
"""The dtypes that weights may have in a file."""


def refuse_adapter(folder: Path) -> None:
    """Raises LlucidError for a folder with a LoRA adapter, which is not a model."""
    if (folder / "adapter_config.json").is_file():
        raise LlucidError(f"{folder}: a LoRA adapter, not a model; merge it into its base model first, with peft")


def plain_name(name: str) -> str:
    """A tensor's name without the prefixes that PyTorch's wrappers of modules add."""
    name = re.sub(r"\b_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.", "", name)
    return re.sub(r"^(?:module\.)+|^model\.(?=model\.|lm_head\.)", "", name)


def renamed(path: str, names: Mapping[str, str]) -> str:
    """A format's name for the array at our path, from its table of names, where N stands for the block number.

    A bias is called .bias where its matrix is .weight.
    """
    matrix, number = path.removesuffix("_bias"), re.search(r"\d+", path)
    name = names[re.sub(r"\d+", "N", matrix)].replace("N", number[0] if number else "N")
    return name if matrix == path else f"{name.removesuffix('weight')}bias"


def zero_biases(config: Config, names: Collection[str], name_of: Callable[[str], str]) -> dict[str, Stored]:
    """Zeros for the biases of each kind, as of `blocks.N.attention.output_bias`, of which none is in `names`."""
    if not (config.attention_bias or config.mlp_bias):
        return {}
    biases = {path: shape for path, shape in shapes(config).items() if path.endswith("_bias")}
    kinds = {re.sub(r"\d+", "N", path) for path in biases if name_of(path) in names}
    return {
        name_of(path): mapped(shape, "float32", lambda shape=shape: np.zeros(shape, "<i4"))
        for path, shape in biases.items()
        if re.sub(r"\d+", "N", path) not in kinds
    }


def gather(
    config: Config,
    entries: Mapping[str, Stored],
    name_of: Callable[[str], str],
    place: str,
    adjust: Callable[[str, Any], Any] = lambda path, array: array,
    ignored: Collection[str] = (),
) -> Weights:
    """The weights of `config`, each leaf Stored. `name_of` translates our paths to the names in `entries`.

    `adjust(path, array)` is applied to each array when it is read. A bias that no block has is zero, with a note, as
    in transformers. Raises LlucidError, with `place` and the tensor's name, for a tensor that is missing, has another
    shape or no floating-point dtype, or is neither part of a Llama nor in `ignored`.
    """
    if config.layers > len(entries):  # before `shapes` makes a list of that many
        raise LlucidError(f"{place}: expected {config.layers} layers, but there are only {len(entries)} tensors")
    zeros = zero_biases(config, entries, name_of)
    entries = {**entries, **zeros}
    described = shapes(config)
    names = {path: name_of(path) for path in described}
    expected = {names[path]: shape for path, shape in described.items()}
    for name, shape in expected.items():
        if name not in entries:
            raise LlucidError(f"{place}: {name} is missing; expected a tensor of shape {list(shape)}")
        found = entries[name]
        if tuple(found.shape) != shape:
            raise LlucidError(f"{place}: {name} has shape {list(found.shape)}; expected {list(shape)}")
        if found.dtype not in NUMBERS:
            raise LlucidError(f"{place}: {name} is {found.dtype}; expected one of {', '.join(NUMBERS)}")
    for name in entries.keys() - expected.keys() - set(ignored):
        if not DERIVED.search(name):
            raise LlucidError(
                f"{place}: {name} {list(entries[name].shape)} is not part of the Llama that the config describes"
            )
    if zeros:
        kinds = ", ".join(sorted({re.sub(r"\d+", "*", name) for name in zeros}))
        note(f"{place}: {kinds} are missing and taken to be zero")

    def leaf(path: str, shape: tuple[int, ...]) -> Stored:
        stored = entries[names[path]]
        return Stored(stored.shape, stored.dtype, lambda: adjust(path, stored.read()))

    return assemble(config, leaf)
