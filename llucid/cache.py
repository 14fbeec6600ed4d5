"""The cache of keys and values, which PyTorch and C share.

A `Memory` has slots; a slot holds the key and value of one token in every layer. Slots are allocated to sequences, and
shared between them, in pages of PAGE slots (generation/pages.py). On a CPU the memory belongs to NumPy and PyTorch sees
the same bytes, so llama.c and PyTorch take turns without copying. A `Cache` is what `llama` takes: the slots of some
sequences, as a value that knows its length.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from llucid.config import NOWHERE, Config
from llucid.properties import cached_property

if TYPE_CHECKING:  # importing PyTorch takes a second, and short texts are written without it
    import torch
    from torch import Tensor

    from llucid.weights import Weights

PAGE = 64
"""Slots per page. At position 8,000, on scattered pages, C decodes 1.4 times as fast with 64 slots as with 16, and 1.2
times as fast as with 32; on adjacent pages equally fast (./dev bench positions)."""


class Memory:
    """Slots for keys and values, `keys` and `values` each [kv_heads, slots, head_dim] per layer.

    `dtype` is PyTorch's name, as in "bfloat16". On the CPU the arrays are NumPy's (bfloat16 as uint16), elsewhere
    PyTorch's. Page 0 is for padding, whose keys and values are written but never seen.
    """

    def __init__(self, config: Config, slots: int, dtype: str, device: str = "cpu") -> None:
        self.dtype, self.device, self.slots = dtype, device, slots
        self.shape = (config.kv_heads, config.head_dim)
        self.keys, self.values = (tuple(self._empty(slots) for _ in range(config.layers)) for _ in "kv")

    def _empty(self, slots: int) -> Any:
        shape = (self.shape[0], slots, self.shape[1])
        if self.device == "cpu":
            array = np.empty(shape, np.uint16 if self.dtype == "bfloat16" else self.dtype)
        else:
            import torch

            array = torch.empty(shape, dtype=getattr(torch, self.dtype), device=self.device)
        array[:, :PAGE] = 0  # padding is finite
        return array

    @cached_property
    def tensors(self) -> tuple[tuple["Tensor", ...], tuple["Tensor", ...]]:
        """(keys, values) as tensors on the same memory."""
        import torch

        def tensor(array: Any) -> "Tensor":
            return torch.from_numpy(array).view(getattr(torch, self.dtype)) if self.device == "cpu" else array

        return tuple(map(tensor, self.keys)), tuple(map(tensor, self.values))

    def grow(self, slots: int) -> None:
        """Copies what there is into memory of more slots; caches made before keep the old memory."""
        sides: list[tuple[Any, ...]] = []
        for side in (self.keys, self.values):
            longer = tuple(self._empty(slots) for _ in side)
            for new, old in zip(longer, side, strict=True):
                new[:, : self.slots] = old
            sides.append(longer)
        self.__dict__.pop("tensors", None)
        (self.keys, self.values), self.slots = sides, slots

    def copy_page(self, source: int, target: int, count: int) -> None:
        """Copies the first `count` slots of a page to another page."""
        for array in (*self.keys, *self.values):
            array[:, target * PAGE : target * PAGE + count] = array[:, source * PAGE : source * PAGE + count]

    @staticmethod
    def bytes_per_slot(config: Config, dtype: str) -> int:
        """What a token takes."""
        width = 8 if dtype == "float64" else 4 if dtype == "float32" else 2
        return 2 * config.layers * config.kv_heads * config.head_dim * width


class Cache(NamedTuple):
    """Keys and values of the tokens of some sequences: a value that knows its length, returned longer by `llama`.

    A longer cache shares slots with the one it grew from, which stays valid up to its own length: to go back, keep the
    old value (and grow only one of the two). Rows lie `stride` slots apart, from slot `start` on, each in order, or
    where `slots` says.
    """

    keys: tuple[Float[Any, "kv_heads slots head_dim"], ...]
    values: tuple[Float[Any, "kv_heads slots head_dim"], ...]
    positions: Int[Any, "batch capacity"]
    """Of the token in each slot; NOWHERE for padding and for slots that are empty."""
    length: int
    start: int = 0
    stride: int = 0
    slots: Int[Any, "batch capacity"] | None = None

    def next_positions(self, seq: int) -> Int[Any, "batch seq"]:
        """Where the next `seq` tokens of each row stand: after its last one, padding not counted."""
        import torch

        if self.length == 0:
            return torch.arange(seq, device=self.positions.device).expand(len(self.positions), seq)
        filled = self.positions[:, : self.length]
        last = filled.masked_fill(filled == NOWHERE, -1).amax(1, keepdim=True)
        return last + torch.arange(1, seq + 1, device=filled.device)

    def append(self, positions: Int[Any, "batch seq"]) -> "Cache":
        """The cache with slots taken for tokens at these positions; `write` fills them, layer by layer.

        Raises ValueError if there are too few slots.
        """
        start, end = self.length, self.length + positions.shape[1]
        if end > self.positions.shape[1]:
            raise ValueError(f"the cache has {self.positions.shape[1]} slots and {end} tokens do not fit into it")
        self.positions[:, start:end] = positions
        return self._replace(length=end)

    def write(self, layer: int, k: "Tensor", v: "Tensor") -> tuple["Tensor", "Tensor"]:
        """Puts k and v (batch kv_heads seq head_dim) into a layer's newest slots; returns all it has, of k's dtype."""
        new = slice(self.length - k.shape[2], self.length)
        sides: list[Tensor] = []
        for memory, x in ((self.keys[layer], k), (self.values[layer], v)):
            if self.slots is None:  # a view of the memory: batch kv_heads capacity head_dim
                heads, total, width = memory.shape
                shape, strides = (len(x), heads, self.positions.shape[1], width), (total * width, width, 1)
                rows = memory.as_strided(shape, (self.stride * width, *strides), self.start * width)
                rows[:, :, new] = x.to(memory.dtype)
                sides.append(rows[:, :, : self.length].type_as(x))
            else:
                memory[:, self.slots[:, new]] = x.to(memory.dtype).transpose(0, 1)
                sides.append(memory[:, self.slots[:, : self.length]].transpose(0, 1).type_as(x))
        return sides[0], sides[1]


def empty_cache(
    config: Config, batch: int, capacity: int, weights: "Weights", dtype: "torch.dtype | None" = None
) -> Cache:
    """A cache for `batch` sequences of at most `capacity` tokens, on the weights' device, in `dtype` or else theirs."""
    import torch

    name = str(weights.dtype if dtype is None else dtype).removeprefix("torch.")
    memory = Memory(config, batch * capacity, name, str(weights.device))
    positions = torch.full((batch, capacity), NOWHERE, device=weights.device)
    return Cache(*memory.tensors, positions, length=0, stride=capacity)
