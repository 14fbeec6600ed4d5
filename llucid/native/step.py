"""The decode step in C, from Python.

Matrices and the cache's memory are read and written where they are, PyTorch's or NumPy's; only gains and biases are
copied. What C has no form of (other dtypes or devices, no compiler, a build that fails) is left to PyTorch:
`decode_step` returns None.
"""

import ctypes
import os
import sys
from collections.abc import Sequence as Ids
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from llucid.arrays import Mapped, Quantized
from llucid.arrays.mapped import KINDS
from llucid.cache import PAGE, Memory
from llucid.config import Config
from llucid.errors import LlucidError
from llucid.native.build import Unavailable, load, warn
from llucid.native.types import CBlock, CCache, CLlama, CMatrix, CTokens
from llucid.rope import attention_factor, frequencies
from llucid.weights import BlockWeights, Weights, named_leaves, shapes


def decode_step(weights: Weights, config: Config) -> "DecodeStep | None":
    """The step, or None where PyTorch must serve.

    That is so for other dtypes than float32, bfloat16, float16 and quantised ones, for other devices than the CPU, with
    LLUCID_C=0 in the environment, and, said once on standard error, where there is no compiler. Raises LlucidError for
    another value of LLUCID_C than 0 and 1.
    """
    switch = os.environ.get("LLUCID_C", "")
    if switch not in ("", "0", "1"):
        raise LlucidError(f"LLUCID_C={switch}: expected 0, which switches C off, or 1")
    if switch == "0" or not all(has_form(leaf) for _, leaf in named_leaves(weights)):
        return None
    try:
        return DecodeStep(weights, config, load())
    except Unavailable as reason:
        warn(f"llucid: PyTorch computes instead of C, more slowly: {reason}")
        return None


def has_form(leaf: Any) -> bool:
    """Whether llama.c can read it."""
    return str(leaf.device) == "cpu" and (isinstance(leaf, Quantized) or kind_of(leaf) is not None)


def kind_of(array: Any) -> int | None:
    """llama.c's number for how a plain array is stored."""
    return KINDS.get(str(array.dtype).removeprefix("torch."))


def address(array: Any) -> int:
    """Where the first number of a tensor or an array is."""
    return array.__array_interface__["data"][0] if isinstance(array, np.ndarray) else array.data_ptr()


def threads() -> int:
    """As many as PyTorch takes, or would: one for each core of this process, no more than OMP_NUM_THREADS."""
    return getattr(sys.modules.get("torch"), "get_num_threads", threads_without_torch)()


@cache
def threads_without_torch() -> int:
    """The same; cached, since counting takes longer than a token of a small model."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        own = (Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings") for cpu in os.sched_getaffinity(0))
        cores = len({file.read_text() if file.is_file() else file for file in own})
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(limit), cores) if limit.isdigit() and int(limit) else cores


def prefetching() -> dict[str, int]:
    """How many bytes ahead llama.c prefetches weights of each form, where it has measured that in this process."""
    try:
        found = (ctypes.c_int32 * 16).in_dll(load(), "llama_ahead")
    except Unavailable:
        return {}
    return {str(form): found[kind] - 1 for form, kind in KINDS.items() if found[kind]}


class DecodeStep:
    """One model in C. Raises ValueError for weights of other shapes than the config has."""

    def __init__(self, weights: Weights, config: Config, library: ctypes.CDLL) -> None:
        self.config, self.library = config, library
        self._kept: list[Any] = []  # what C points to must live as long as the step
        for (path, leaf), shape in zip(named_leaves(weights), shapes(config).values(), strict=True):
            if tuple(leaf.shape) != shape:
                raise ValueError(f"{path} has shape {list(leaf.shape)}; the config says {list(shape)}")
        blocks = (CBlock * config.layers)(*map(self._block, weights.blocks))
        sizes = (config.dim, config.layers, config.heads, config.kv_heads, config.head_dim, config.ffn_dim)
        embedding = self._matrix(weights.embedding)
        output = embedding if weights.output is None else self._matrix(weights.output)
        theta, norm = self._keep(frequencies(config)), self._vector(weights.norm)
        factor = attention_factor(config)
        self._model = CLlama(*sizes, config.norm_eps, factor, theta, embedding, blocks, norm, output)
        self._memory: tuple[Any, CCache] | None = None

    def _keep(self, array: Any) -> int:
        self._kept.append(array)
        return address(array)

    def _block(self, block: BlockWeights) -> CBlock:
        """llama.c's names for a block's arrays are the last parts of their paths; it has a bias with its matrix."""
        found = {path.rpartition(".")[2]: leaf for path, leaf in named_leaves(block)}
        norms = {name: self._vector(leaf) for name, leaf in found.items() if name.endswith("_norm")}
        matrices = {
            name: self._matrix(leaf, found.get(f"{name}_bias")) for name, leaf in found.items() if leaf.ndim == 2
        }
        return CBlock(**norms, **matrices)

    def _vector(self, leaf: Any) -> int:
        match leaf:
            case Mapped():
                return self._keep(leaf.floats())
            case _:
                return self._keep(leaf.detach().float().contiguous())

    def _matrix(self, leaf: Any, bias: Any = None) -> CMatrix:
        at = None if bias is None else self._vector(bias)
        match leaf:
            case Quantized():
                return CMatrix(KINDS[leaf.form], *leaf.shape, self._keep(leaf.numbers), self._keep(leaf.scales), at)
            case Mapped():
                numbers = np.require(leaf.numbers, None, ["C", "A"])
            case _:
                numbers = leaf.detach().contiguous()
        return CMatrix(kind_of(leaf), *leaf.shape, self._keep(numbers), None, at)

    def _cache(self, memory: Memory) -> CCache:
        """Where the memory is, which changes only when it grows."""
        seen = self._memory  # once, since another thread may be here with other memory
        if seen is None or seen[0] is not memory.keys:
            shape = (self.config.kv_heads, memory.slots, self.config.head_dim)
            arrays = (*memory.keys, *memory.values)
            if any(array.shape != shape for array in arrays) or len(arrays) != 2 * self.config.layers:
                raise ValueError(f"the cache is not {self.config.layers} times {list(shape)}")
            kind = KINDS.get(memory.dtype)
            if memory.device != "cpu" or kind is None:
                raise ValueError(f"llama.c has no cache in {memory.dtype} on {memory.device}")
            of = ctypes.c_void_p * self.config.layers
            keys, values = (of(*map(address, side)) for side in (memory.keys, memory.values))
            seen = self._memory = memory.keys, CCache(kind, PAGE, memory.slots, keys, values)
        return seen[1]

    def __call__(
        self, parts: "Ids[tuple[Ids[int], int, NDArray[np.int32]]]", memory: Memory, wanted: Ids[int]
    ) -> Float[NDArray[np.float32], "wanted vocab"]:
        """Reads the tokens of some sequences, and returns the scores of what follows those that are `wanted`.

        Each part is (new ids, the position of the first, the numbers of the sequence's pages); `wanted` counts tokens
        over all parts. Raises ValueError for ids, pages or tokens that are not there, before anything is written.
        """
        ids = [token for ids, _, _ in parts for token in ids]
        if not 0 <= min(ids) <= max(ids) < self.config.vocab_size:
            odd = min(ids) if min(ids) < 0 else max(ids)
            raise ValueError(f"token {odd} is not in the vocabulary of {self.config.vocab_size}")
        positions: list[int] = []
        first: list[int] = []
        begin = 0
        for new, at, own in parts:
            if at < 0 or at + len(new) > len(own) * PAGE:
                raise ValueError(f"positions {at} to {at + len(new) - 1} are not in the sequence's {len(own)} pages")
            positions += range(at, at + len(new))
            first += [begin] * len(new)
            begin += len(own)
        pages = np.ascontiguousarray(np.concatenate([own for _, _, own in parts]) if len(parts) > 1 else parts[0][2])
        if pages.min() < 0 or (int(pages.max()) + 1) * PAGE > memory.slots:
            raise ValueError(f"page {pages.max()} is not in the memory of {memory.slots} slots")
        if any(not 0 <= token < len(ids) for token in wanted):
            raise ValueError(f"there are {len(ids)} tokens, and token {max(wanted)} is wanted")
        numbers = np.array([*ids, *positions, *first, *wanted], np.int32)
        start, size = address(numbers), 4 * len(ids)
        logits = np.empty((len(wanted), self.config.vocab_size), np.float32)
        tokens = CTokens(len(ids), len(wanted), start, start + size, address(pages), start + 2 * size, start + 3 * size)
        if not self.library.llama_step(self._model, self._cache(memory), tokens, threads(), address(logits)):
            raise MemoryError("there is no memory for a decode step")
        return logits
