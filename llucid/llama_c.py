"""The decode step in C, from Python: `llama.c`, built by the system's compiler when first needed, called once a step.

Matrices and cache are PyTorch's own, read and written where they are; nothing is copied but the gains of the norms.
What C cannot take (other dtypes or devices, no compiler, a build that fails) is left to PyTorch: `decode_step` is None.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache as once
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llucid.config import Config
from llucid.errors import one_line
from llucid.files import cache_folder, replacing
from llucid.llama import Cache, rope_frequencies
from llucid.quantize import Quantized
from llucid.weights import Weights, named_leaves, shapes

HERE = Path(__file__).parent
SOURCES = ("llama.c", "llama_numbers.h", "llama_threads.h", "llama_plain.h", "llama_avx512.h")
FLAGS = (
    *("-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread"),
    # Sums may be taken in any order, as vector code does; numbers that are none stay none.
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
X86 = ("x86_64", "amd64", "i386", "i686")
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""llama.c's numbers for what is stored plainly; of `Quantized` they are 3 for int8 and 4 for int4."""

Step = Callable[
    [Int[Tensor, "batch seq"], Int[Tensor, "batch seq"], Cache], tuple[Float[Tensor, "batch seq vocab"], Cache]
]
"""(tokens, positions, cache) -> (scores of what follows each, the cache with them): `llama` for a few tokens."""


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
    for name in SOURCES:
        digest.update((HERE / name).read_bytes())
    library = cache_folder() / f"llama-{digest.hexdigest()[:20]}.so"
    if library.is_file():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with replacing(library) as temporary:
            tuned = "-march=native" if platform.machine().lower() in X86 else "-mcpu=native"
            said = subprocess.run(
                [*command, *flags, tuned, str(HERE / "llama.c"), "-o", str(temporary), "-lm"],
                capture_output=True,
                timeout=120,
                text=True,
                errors="replace",
            )
            if said.returncode == 0:
                return library
            told = [line for line in said.stderr.splitlines() if "error" in line] or [f"status {said.returncode}"]
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


def decode_step(weights: Weights, config: Config) -> Step | None:
    """`llama` for a few tokens at a time, in C; None where PyTorch is to serve.

    That is so for other dtypes than float32, bfloat16, float16 and what `quantize` makes, for other devices than the
    CPU, with LLUCID_C=0 in the environment, and, said in one line on standard error, where there is no compiler.
    """
    if os.environ.get("LLUCID_C") == "0" or not all(suits(leaf) for _, leaf in named_leaves(weights)):
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


def suits(leaf: Tensor) -> bool:
    """Whether llama.c can read it."""
    return leaf.device.type == "cpu" and (isinstance(leaf, Quantized) or leaf.dtype in KINDS)


def step_of(weights: Weights, config: Config, loaded: ctypes.CDLL) -> Step:
    """The step, by a library. Raises ValueError for weights of other shapes than the config has."""
    kept: list[Any] = []  # what C points to must live as long as the step
    for (path, leaf), shape in zip(named_leaves(weights), shapes(config).values(), strict=True):
        if tuple(leaf.shape) != shape:
            raise ValueError(f"{path} has shape {list(leaf.shape)}; the config says {list(shape)}")

    def vector(leaf: Tensor) -> int:
        kept.append(leaf.detach().float().contiguous())
        return kept[-1].data_ptr()

    def matrix(leaf: Tensor) -> CMatrix:
        rows, columns = leaf.shape
        if isinstance(leaf, Quantized):
            kept.extend((leaf.numbers, leaf.scales))
            return CMatrix({8: 3, 4: 4}[leaf.bits], rows, columns, leaf.numbers.data_ptr(), leaf.scales.data_ptr())
        kept.append(leaf.detach().contiguous())
        return CMatrix(KINDS[leaf.dtype], rows, columns, kept[-1].data_ptr(), None)

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
        vector(rope_frequencies(config, torch.empty(1))),
        embedding,
        blocks,
        vector(weights.norm),
        embedding if weights.output is None else matrix(weights.output),
    )
    kept.append(blocks)

    def where_it_is(cache: Cache) -> CCache:
        (batch, capacity), dtype = cache.positions.shape, cache.keys[0].dtype
        shape = (batch, config.kv_heads, capacity, config.head_dim)
        for side in (cache.keys, cache.values):
            alike = all(layer.shape == shape and layer.dtype == dtype and layer.is_contiguous() for layer in side)
            if not alike or len(side) != config.layers or dtype not in KINDS or side[0].device.type != "cpu":
                raise ValueError(f"the cache is not {config.layers} times {list(shape)} of one dtype that llama.c has")
        if not cache.positions.is_contiguous() or cache.positions.dtype != torch.int64:
            raise ValueError("the cache's positions are not whole numbers in a row")
        of = ctypes.c_void_p * config.layers
        keys, values = (of(*(layer.data_ptr() for layer in side)) for side in (cache.keys, cache.values))
        return CCache(KINDS[dtype], batch, capacity, cache.length, cache.positions.data_ptr(), keys, values)

    last: tuple[Cache, CCache] | None = None

    def step(tokens: Tensor, positions: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        nonlocal last
        assert kept
        lowest, highest = (int(end) for end in tokens.aminmax())
        if not 0 <= lowest <= highest < config.vocab_size:
            odd = lowest if lowest < 0 else highest
            raise ValueError(f"token {odd} is not in the vocabulary of {config.vocab_size}")
        if tokens.shape != positions.shape or len(tokens) != len(cache.positions):
            raise ValueError(f"{list(tokens.shape)} tokens, {list(positions.shape)} positions: the cache has others")
        seen = last  # once, since another thread may be here with another cache
        if seen is None or any(a is not b for a, b in zip(seen[0][:3], cache[:3], strict=True)):
            seen = last = cache, where_it_is(cache)  # true as long as a cache grows into its own slots
        grown, logits = cache.append(positions), torch.empty(*tokens.shape, config.vocab_size)
        where, tokens = CCache.from_buffer_copy(seen[1]), tokens.long().contiguous()
        where.length = cache.length
        threads = torch.get_num_threads()
        if not loaded.llama_step(model, where, tokens.data_ptr(), tokens.shape[1], threads, logits.data_ptr()):
            raise MemoryError("there is no memory for a decode step")
        return logits, grown

    return step
