"""The decode step in C, from Python: `llama.c`, built by the system's compiler when first needed, called once a step.

Matrices and cache are PyTorch's own or, as long as PyTorch is not there, the file's and NumPy's; they are read and
written where they are, and nothing is copied but the gains of the norms. What C cannot take (other dtypes or devices,
no compiler, a build that fails) is left to PyTorch: `decode_step` is None.
"""

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache as once
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from llucid.arrays import Mapped, Quantized
from llucid.arrays.mapped import KINDS
from llucid.config import NOWHERE, Config
from llucid.errors import one_line
from llucid.files import atomic_file, cache_folder
from llucid.rope import attention_factor, frequencies
from llucid.weights import Weights, named_leaves, shapes

if TYPE_CHECKING:
    from llucid.llama import Cache

HERE = Path(__file__).parent
LLAMA_C = HERE.parent / "llama.c"
SOURCES = (LLAMA_C, *(HERE / f"{name}.h" for name in ("numbers", "memory", "threads", "plain", "avx512")))
FLAGS = (
    *("-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread"),
    # Numbers are what IEEE 754 has, and sums are taken in another order only where ANY_ORDER says so.
    *("-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"),
)
X86 = ("x86_64", "amd64", "i386", "i686")
DecodeStep = Callable[..., tuple[Float[Any, "batch seq vocab"] | None, Any]]
"""`llama` for a few tokens: (tokens, positions, cache, scored=True) -> (the scores of what follows each token, or None
if it is not to be scored; the cache with them). With a `llama.Cache` they are tensors, with `Slots` NumPy's arrays."""


class Unavailable(Exception):
    """Why there is no C on this machine."""


# --------------------------------------------------------------------------------------------- building


def processor() -> str:
    """What the compiler's -march=native depends on."""
    told = [platform.system(), platform.machine(), platform.processor()]
    if (file := Path("/proc/cpuinfo")).is_file():
        first = file.read_text().split("\n\n")[0].splitlines()
        told += [line for line in first if line.startswith(("model name", "flags", "Features", "CPU part", "isa"))]
    return "\n".join(told)


def compiler() -> list[str]:
    """The command that $CC names, or the first C compiler on the path. Raises Unavailable if there is none."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in (named, ["cc"], ["gcc"], ["clang"]):
        if command and shutil.which(command[0]):
            return command
    raise Unavailable("no C compiler was found (cc, gcc or clang, or what CC names)")


def built(flags: Sequence[str] = FLAGS) -> Path:
    """The library made from llama.c for this very processor, in the user's cache folder; built if it is not there.

    Its name is a digest of all it depends on, and it appears whole or not at all, so that any number of processes can
    start at once. Raises Unavailable if it cannot be built.
    """
    if sys.byteorder != "little" or sys.platform == "win32":
        raise Unavailable("the processor or system is of a kind that llama.c does not know")
    command = compiler()
    digest = hashlib.sha256("\n".join([*command, *flags, processor()]).encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    try:
        library = cache_folder() / f"llama-{digest.hexdigest()[:20]}.so"
        if library.is_file():
            return library
        if sys.stderr.isatty():
            tell(f"llucid: {command[0]} builds llama.c for this processor, once: a few seconds")
        library.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(library) as temporary:
            tuned = "-march=native" if platform.machine().lower() in X86 else "-mcpu=native"
            said = subprocess.run(
                [*command, *flags, tuned, str(LLAMA_C), "-o", str(temporary), "-lm"],
                capture_output=True,
                timeout=120,
                text=True,
                errors="replace",
            )
            if said.returncode == 0:
                return library
            told = re.search(".*(error|failed).*", said.stderr) or [f"status {said.returncode}"]
            raise Unavailable(f"llama.c could not be built by {command[0]} ({told[0].strip()[:160]})")
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"llama.c could not be built ({one_line(error)})") from error


# --------------------------------------------------------------------------------------------- llama.c's own types


class CMatrix(ctypes.Structure):
    """A matrix where it is."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("kind", "rows", "columns")),
        *((name, ctypes.c_void_p) for name in ("numbers", "scales")),
    ]


class CBlock(ctypes.Structure):
    """BlockWeights, in their order."""

    _fields_ = [
        ("attention_norm", ctypes.c_void_p),
        *((name, CMatrix) for name in ("query", "key", "value", "output")),
        ("feed_forward_norm", ctypes.c_void_p),
        *((name, CMatrix) for name in ("gate", "up", "down")),
    ]


class CLlama(ctypes.Structure):
    """The numbers of the config that the step needs, and the weights."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("dim", "layers", "heads", "kv_heads", "head_dim", "ffn")),
        ("norm_eps", ctypes.c_float),
        ("theta", ctypes.c_void_p),
        ("embedding", CMatrix),
        ("blocks", ctypes.POINTER(CBlock)),
        ("norm", ctypes.c_void_p),
        ("output", CMatrix),
    ]


class CCache(ctypes.Structure):
    """Keys and values of some sequences."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("kind", "batch", "capacity", "length")),
        ("positions", ctypes.c_void_p),
        *((name, ctypes.POINTER(ctypes.c_void_p)) for name in ("keys", "values")),
    ]


@once
def library(flags: Sequence[str] = FLAGS) -> ctypes.CDLL:
    """llama.c, built and loaded. Raises Unavailable."""
    try:
        loaded = ctypes.CDLL(str(built(flags)))
    except OSError as error:
        raise Unavailable(f"the library built from llama.c cannot be loaded ({error})") from error
    pointers, integers = [ctypes.POINTER(CLlama), ctypes.POINTER(CCache), ctypes.c_void_p], [ctypes.c_int] * 2
    loaded.llama_step.argtypes = [*pointers, *integers, ctypes.c_void_p]
    return loaded


# --------------------------------------------------------------------------------------------- the step


class Slots(NamedTuple):
    """`llama.Cache` without PyTorch: keys and values of the tokens so far, a value that is returned longer."""

    keys: tuple[NDArray[Any], ...]
    values: tuple[NDArray[Any], ...]
    positions: Int[NDArray[np.int64], "batch capacity"]
    length: int
    dtype: str
    """PyTorch's name of it; bfloat16 is kept as uint16."""

    def append(self, positions: Int[NDArray[np.int64], "batch seq"]) -> "Slots":
        """With slots taken for tokens at these positions. Raises ValueError if there are too few."""
        start, end = self.length, self.length + positions.shape[1]
        if end > self.positions.shape[1]:
            raise ValueError(f"the cache has {self.positions.shape[1]} slots and {end} tokens do not fit into it")
        self.positions[:, start:end] = positions
        return self._replace(length=end)

    def longer(self, more: int) -> "Slots":
        """A copy with so many slots more."""

        def padded(layer: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate((layer, np.empty_like(layer, shape=(*layer.shape[:2], more, layer.shape[3]))), 2)

        keys, values = (tuple(map(padded, side)) for side in (self.keys, self.values))
        positions = np.pad(self.positions, ((0, 0), (0, more)), constant_values=NOWHERE)
        return self._replace(keys=keys, values=values, positions=positions)


def empty_slots(config: Config, batch: int, capacity: int, dtype: str) -> Slots:
    """Room for `batch` sequences of at most `capacity` tokens."""
    shape = (batch, config.kv_heads, capacity, config.head_dim)
    kind = np.float32 if dtype == "float32" else np.uint16
    keys, values = (tuple(np.empty(shape, kind) for _ in range(config.layers)) for _ in "kv")
    return Slots(keys, values, np.full((batch, capacity), NOWHERE, np.int64), 0, dtype)


def decode_step(weights: Weights, config: Config) -> DecodeStep | None:
    """`llama` for a few tokens at a time, in C; None where PyTorch is to serve.

    That is so for other dtypes than float32, bfloat16, float16 and what `quantize` makes, for other devices than the
    CPU, for YaRN's larger scores, with LLUCID_C=0 in the environment, and, said in one line on standard error, where
    there is no compiler.
    """
    if os.environ.get("LLUCID_C") == "0" or attention_factor(config) != 1:
        return None
    if not all(suits(leaf) for _, leaf in named_leaves(weights)):
        return None
    try:
        return step_of(weights, config, library())
    except Unavailable as reason:
        tell(f"llucid: PyTorch serves, more slowly: {reason}")
        return None


@once
def tell(line: str) -> None:
    """Says something on standard error, once."""
    print(line, file=sys.stderr)


def suits(leaf: Any) -> bool:
    """Whether llama.c can read it."""
    return str(leaf.device) == "cpu" and (isinstance(leaf, Quantized) or kind_of(leaf) >= 0)


def kind_of(array: Any) -> int:
    """llama.c's number for how it is stored, if that is plain; else −1."""
    return KINDS.get(str(array.dtype).removeprefix("torch."), -1)


def address(array: Any) -> int:
    """Where the first number of a tensor or an array is."""
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr()


def in_a_row(array: Any) -> bool:
    """Whether its numbers follow one another, the last axis first."""
    return array.flags.c_contiguous if isinstance(array, np.ndarray) else array.is_contiguous()


def threads() -> int:
    """How many PyTorch takes, or would: one for each core that this process has, and no more than OMP_NUM_THREADS."""
    told = getattr(sys.modules.get("torch"), "get_num_threads", threads_without_torch)
    return told()


@once
def threads_without_torch() -> int:
    """The same, counted once: it takes longer than a token of a small model."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        own = (Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings") for cpu in os.sched_getaffinity(0))
        cores = len({file.read_text() if file.is_file() else file for file in own})
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(told), cores) if told.isdigit() and int(told) else cores


def step_of(weights: Weights, config: Config, loaded: ctypes.CDLL) -> DecodeStep:
    """The step, by a library. Raises ValueError for weights of other shapes than the config has."""
    kept: list[Any] = []  # what C points to must live as long as the step
    for (path, leaf), shape in zip(named_leaves(weights), shapes(config).values(), strict=True):
        if tuple(leaf.shape) != shape:
            raise ValueError(f"{path} has shape {list(leaf.shape)}; the config says {list(shape)}")

    def keep(array: Any) -> int:
        kept.append(array)
        return address(array)

    def vector(leaf: Any) -> int:
        return keep(leaf.floats() if isinstance(leaf, Mapped) else leaf.detach().float().contiguous())

    def matrix(leaf: Any) -> CMatrix:
        if isinstance(leaf, Quantized):
            return CMatrix(KINDS[leaf.bits], *leaf.shape, keep(leaf.numbers), keep(leaf.scales))
        numbers = np.require(leaf.numbers, None, ["C", "A"]) if isinstance(leaf, Mapped) else leaf.detach().contiguous()
        return CMatrix(kind_of(leaf), *leaf.shape, keep(numbers), None)

    blocks = (CBlock * config.layers)(
        *(
            CBlock(
                vector(block.attention_norm),
                *map(matrix, block.attention),
                vector(block.feed_forward_norm),
                *map(matrix, block.feed_forward),
            )
            for block in weights.blocks
        )
    )
    sizes = (config.dim, config.layers, config.heads, config.kv_heads, config.head_dim, config.ffn_dim)
    embedding = matrix(weights.embedding)
    model = CLlama(
        *sizes,
        config.norm_eps,
        keep(frequencies(config)),
        embedding,
        blocks,
        vector(weights.norm),
        embedding if weights.output is None else matrix(weights.output),
    )
    kept.append(blocks)

    def where_it_is(cache: "Cache | Slots") -> CCache:
        (batch, capacity), first = cache.positions.shape, cache.keys[0]
        shape = (batch, config.kv_heads, capacity, config.head_dim)
        for side in (cache.keys, cache.values):
            alike = all(layer.shape == shape and layer.dtype == first.dtype and in_a_row(layer) for layer in side)
            if not alike or len(side) != config.layers or not (isinstance(cache, Slots) or suits(first)):
                raise ValueError(f"the cache is not {config.layers} times {list(shape)} of one dtype that llama.c has")
        if not in_a_row(cache.positions) or not str(cache.positions.dtype).endswith("int64"):
            raise ValueError("the cache's positions are not whole numbers in a row")
        of = ctypes.c_void_p * config.layers
        keys, values = (of(*map(address, side)) for side in (cache.keys, cache.values))
        kind = kind_of(cache if isinstance(cache, Slots) else first)
        return CCache(kind, batch, capacity, cache.length, address(cache.positions), keys, values)

    last: tuple[Any, CCache] | None = None

    def step(tokens: Any, positions: Any, cache: Any, scored: bool = True) -> tuple[Any, Any]:
        nonlocal last
        assert kept
        ids = np.ascontiguousarray(tokens, np.int64)
        lowest, highest = int(ids.min()), int(ids.max())
        if not 0 <= lowest <= highest < config.vocab_size:
            odd = lowest if lowest < 0 else highest
            raise ValueError(f"token {odd} is not in the vocabulary of {config.vocab_size}")
        if tokens.shape != positions.shape or len(ids) != len(cache.positions):
            raise ValueError(f"{list(tokens.shape)} tokens, {list(positions.shape)} positions: the cache has others")
        seen = last  # once, since another thread may be here with another cache
        if seen is None or any(a is not b for a, b in zip(seen[0][:3], cache[:3], strict=True)):
            seen = last = cache, where_it_is(cache)  # true as long as a cache grows into its own slots
        grown = cache.append(positions)
        logits = np.empty((*ids.shape, config.vocab_size), np.float32) if scored else None
        where = CCache.from_buffer_copy(seen[1])
        where.length = cache.length
        to = None if logits is None else address(logits)
        if not loaded.llama_step(model, where, address(ids), ids.shape[1], threads(), to):
            raise MemoryError("there is no memory for a decode step")
        if logits is None or isinstance(cache, Slots):
            return logits, grown
        import torch

        return torch.from_numpy(logits), grown

    return step
