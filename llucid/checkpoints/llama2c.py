"""llama2.c's files: `.bin` in its three versions, numbers after a header of seven, and the `.pt` of its train.py.

Version 0 has no magic number and all arrays of a kind in a row; 1 has a header of 256 bytes and another order; 2 is 1
with matrices as int8, a float32 scale for each group of them. Source: llama2.c, export.py, run.c and runq.c.
"""

import math
import os
import shutil
import struct
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llucid.arrays import Mapped
from llucid.arrays.dtypes import full_name
from llucid.checkpoints import meta
from llucid.checkpoints.format import Header, Progress, no_progress
from llucid.checkpoints.metadata import real, whole
from llucid.checkpoints.pickles import Archive, bytes_of, entries_of, is_archive, read_pickle
from llucid.checkpoints.tensors import Stored, gather, mapped, tensor_of
from llucid.config import Config, head_width
from llucid.errors import LlucidError, prefix_errors
from llucid.files import atomic_file, first_bytes, naming
from llucid.model import Model
from llucid.tokenizers import FILES, Tokenizer, load_tokenizer
from llucid.tokenizers.info import TokenizerInfo, read_info
from llucid.weights import Weights, named_leaves, parameter_count, shapes

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = 0x616B3432
SEVEN = struct.Struct("<7i")
"""dim, ffn_dim, layers, heads, kv_heads, vocab_size, context."""
GROUP = 64
MOST_LAYERS = 2**12
"""More than any Llama has: their names alone would take many times the memory of a file with tiny layers."""

_ATTENTION = tuple(f"blocks.N.attention.{name}" for name in ("query", "key", "value", "output"))
_FEED_FORWARD = tuple(f"blocks.N.feed_forward.{name}" for name in ("gate", "down", "up"))
_NORMS = ("blocks.N.attention_norm", "blocks.N.feed_forward_norm")
ORDER = {
    0: ("embedding", _NORMS[0], *_ATTENTION, _NORMS[1], *_FEED_FORWARD, "norm", "angles", "output"),
    1: (*_NORMS, "norm", "embedding", *_ATTENTION, *_FEED_FORWARD, "output"),
}
"""The order of the arrays in a file, each kind for all blocks in a row; version 2 has that of 1. `angles` are tables of
RoPE, which are passed over."""


class Head(NamedTuple):
    """What the beginning of a `.bin` says."""

    version: int
    config: Config
    group: int
    """Numbers that share a scale, in version 2."""

    @property
    def start(self) -> int:
        """Bytes before the first array."""
        return SEVEN.size if self.version == 0 else 256

    def bytes_of(self, path: str, shape: tuple[int, ...]) -> int:
        """What an array takes in the file."""
        count = math.prod(shape)
        return count + 4 * (count // self.group) if self.version == 2 and len(shape) == 2 else 4 * count

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        config = self.config
        norms = config.dim * (2 * config.layers + 1)
        matrices = parameter_count(config) - norms
        angles = config.context * config.head_dim if self.version == 0 else 0
        packed = matrices + 4 * (matrices // self.group) if self.version == 2 else 4 * matrices
        return self.start + 4 * (norms + angles) + packed


def recognises(path: Path) -> bool:
    if is_archive(path):
        try:
            return b"model_args" in Archive(path).pickle
        except Exception:  # zipfile raises nearly anything for damaged bytes
            return False
    try:
        return path.is_file() and bool(read_head(first_bytes(path, 256), path))
    except LlucidError:
        # A damaged header of version 1 or 2 is still one. Version 0 has no mark: only numbers that make a Llama.
        return first_bytes(path, 4) == struct.pack("<I", MAGIC)


def read_head(data: bytes, place: Path) -> Head:
    """The head in the first 256 bytes of a file. Raises LlucidError if they are not one."""
    marked = data[:4] == struct.pack("<I", MAGIC)
    if len(data) < (256 if marked else SEVEN.size):
        raise LlucidError(f"{place}: ends within its header")
    version, group, shared = 0, 1, True
    numbers = SEVEN.unpack_from(data, 8 if marked else 0)
    if marked:
        version, shared, group = struct.unpack_from("<i", data, 4)[0], data[36], struct.unpack_from("<i", data, 37)[0]
        if version not in (1, 2) or shared not in (0, 1):
            raise LlucidError(
                f"{place}: version {version} and shared={shared} are not known; expected 1 or 2, and 0 or 1"
            )
    dim, ffn, layers, heads, kv_heads, vocab, context = numbers
    if version == 0 and vocab < 0:
        vocab, shared = -vocab, False
    if not 0 < dim < 2**20 or not 0 < heads <= dim or layers > MOST_LAYERS:
        numbers = f"dim={dim}, heads={heads} and layers={layers}"
        raise LlucidError(f"{place}: not a file of llama2.c; its header says {numbers}")
    try:
        config = Config(
            dim=dim,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_width(dim, heads),
            ffn_dim=ffn,
            vocab_size=vocab,
            context=context,
            tied_embeddings=bool(shared),
        )
    except LlucidError as error:
        raise LlucidError(f"{place}: not a file of llama2.c: {error}") from error
    if version == 2:
        sizes = (dim * dim, dim * config.kv_heads * config.head_dim, dim * ffn, dim * vocab)
        if group < 1 or any(size % group for size in sizes):
            raise LlucidError(f"{place}: groups of {group} do not divide every matrix")
    return Head(version, config, group)


def checked_head(path: Path) -> Head:
    """The head of a `.bin` that is exactly as long as its head says."""
    head, size = read_head(first_bytes(path, 256), path), path.stat().st_size
    if head.size != size:
        what = "truncated" if size < head.size else "longer than it should be"
        raise LlucidError(f"{path}: {what}: its header's numbers make {head.size:,} bytes, and it has {size:,}")
    return head


def layout(head: Head) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Our path, shape and offset of each array in a file, in its order."""
    every = shapes(head.config)
    offset = head.start
    for kind in ORDER[min(head.version, 1)]:
        blocks = range(head.config.layers) if ".N." in kind else (0,)
        for block in blocks:
            path = kind.replace(".N.", f".{block}.")
            if path == "angles":
                offset += 4 * head.config.context * head.config.head_dim
            elif path in every:  # a tied matrix is not
                yield path, every[path], offset
                offset += head.bytes_of(path, every[path])
    assert offset == head.size, f"{offset=} {head.size=}"


def read_entries(path: Path) -> dict[str, Stored]:
    """Every array of a `.bin`, by Meta's names."""
    head = checked_head(path)
    numbers = np.memmap(path, np.uint8, mode="c")  # writable, as PyTorch wants it; the file does not change

    def entry(shape: tuple[int, ...], offset: int) -> Stored:
        count = math.prod(shape)

        if head.version < 2 or len(shape) != 2:
            return mapped(shape, "float32", lambda: numbers[offset : offset + 4 * count].view("<i4").reshape(shape))

        def grouped() -> Mapped:
            small = numbers[offset : offset + count].view(np.int8).reshape(-1, head.group)
            scales = numbers[offset + count : offset + count + 4 * (count // head.group)].view("<f4")
            with np.errstate(all="ignore"):  # damaged scales may be infinite
                return Mapped("float32", (small * scales[:, None]).view(np.int32).reshape(shape))

        return Stored(shape, "float32", grouped)

    return {meta.name_of(at): entry(shape, offset) for at, shape, offset in layout(head)}


# --------------------------------------------------------------------------------------------- train.py's .pt


def read_checkpoint(path: Path) -> tuple[Config, dict[str, Stored]]:
    """What llama2.c's train.py saves: `model_args`, and under `model` the tensors by Meta's names."""
    told = read_pickle(path)
    arguments = told.get("model_args") if isinstance(told, dict) else None
    if not isinstance(arguments, dict) or "model" not in told:
        raise LlucidError(f"{path}: not a checkpoint of llama2.c, which has model_args and model")
    arguments = {
        key: value for key, value in arguments.items() if isinstance(value, int | float | str)
    }  # no endless lists
    entries = entries_of(told["model"], path)
    twin = meta.NAMES["output"] if meta.twinned(entries) else None
    for needless in ("freqs_cos", "freqs_sin", "freqs_cis", twin):
        entries.pop(str(needless), None)

    dim, heads = whole(arguments, "dim", path), whole(arguments, "n_heads", path)
    names = (meta.NAMES["embedding"], meta.name_of("blocks.0.feed_forward.gate"))
    vocab, ffn = (meta.rows(entries, name, path) for name in names)
    if vocab != whole(arguments, "vocab_size", path, vocab):
        raise LlucidError(f"{path}: vocab_size is {arguments['vocab_size']}, but {names[0]} has {vocab} rows")
    with prefix_errors(path):
        config = Config(
            dim=dim,
            layers=whole(arguments, "n_layers", path),
            heads=heads,
            kv_heads=whole(arguments, "n_kv_heads", path, heads),
            head_dim=head_width(dim, max(1, heads)),
            ffn_dim=ffn,
            vocab_size=vocab,
            context=whole(arguments, "max_seq_len", path, 2048),
            norm_eps=real(arguments, "norm_eps", path, 1e-5),
            tied_embeddings=meta.NAMES["output"] not in entries,
        )
    return config, entries


# --------------------------------------------------------------------------------------------- the room


def read_config(path: Path) -> Config:
    """The Config that a header says; what it does not say is as llama2.c has it: base 10,000, epsilon 1e-5."""
    return read_checkpoint(path)[0] if is_archive(path) else checked_head(path).config


def read_header(path: Path) -> Header:
    """The arrays of a file by Meta's names: those of a `.bin` have none."""
    if is_archive(path):
        return {name: (entry.shape, entry.dtype) for name, entry in read_checkpoint(path)[1].items()}
    head = checked_head(path)
    quantised = f"int8 in groups of {head.group}"
    kinds = {1: "float32", 2: quantised if head.version == 2 else "float32"}
    return {meta.name_of(at): (shape, kinds[len(shape)]) for at, shape, _ in layout(head)}


def open_weights(path: Path, config: Config) -> Weights:
    """The weights: float32, mapped; those of version 2 are dequantised, one by one as they are read."""
    entries = read_checkpoint(path)[1] if is_archive(path) else read_entries(path)
    return gather(config, entries, meta.name_of, str(path))


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer beside: in the same folder."""
    return load_tokenizer(path.parent)


def read_tokenizer_info(path: Path) -> TokenizerInfo:
    """What that tokenizer is."""
    return read_info(path.parent)


def refuse(config: Config) -> None:
    """Raises LlucidError, by name, for what llama2.c's programs take for granted."""
    width = config.dim / config.heads
    for name, value, fixed in (
        ("rope_theta", config.rope_theta, 10_000.0),
        ("rope_scaling", config.rope_scaling, None),
        ("head_dim", config.head_dim, width),
        ("norm_eps", config.norm_eps, 1e-5),
    ):
        if value != fixed:
            raise LlucidError(f"llama2.c's format cannot hold {name}={value}; its programs have {fixed}")


def quantise(matrix: "Tensor", group: int) -> "tuple[Tensor, Tensor]":
    """int8 numbers in −127…127 and the scale of each group: the largest becomes ±127, as in llama2.c's export.

    Quantising what was read from such a file gives the file again: 127 times a scale rounds to the number it is from.
    """
    import torch

    numbers = matrix.float().reshape(-1, group)
    scale = numbers.abs().amax(1) / 127
    divisor = torch.where(scale == 0, 1, scale)  # a group of zeros
    return (numbers / divisor[:, None]).round().to(torch.int8), scale


def write(
    out: Path, model: Model, progress: Progress = no_progress, dtype: str | None = None, version: int | None = None
) -> None:
    """Writes a `.bin` of this version (0 when None) and the tokenizer beside it. Refuses what the format cannot hold.

    The group of version 2 is 64, halved until it divides dim, as llama2.c's export does, and ffn_dim: its runq.c counts
    whole groups in a row of either, and would pass over the rest of a row.
    """

    config = model.config
    version = version or 0
    refuse(config)
    if version not in (0, 1, 2):
        raise LlucidError(f"--version {version}: llama2.c's format has the versions 0, 1 and 2")
    if dtype and full_name(dtype) != "float32":
        raise LlucidError(f"--dtype {dtype}: llama2.c's format holds float32, and int8 with --version 2")
    if out.is_dir():
        raise LlucidError(f"{out}: is a folder; llama2.c's format is a file, as in {out / 'model.bin'}")
    group = math.gcd(GROUP, config.dim, config.ffn_dim) if version == 2 else 1
    head = Head(version, config, group)
    leaves = dict(named_leaves(model.weights))
    out.parent.mkdir(parents=True, exist_ok=True)
    with beside(out.parent, model.tokenizer), atomic_file(out) as temporary, open(temporary, "wb") as file:
        file.write(encoded(head))
        for path, shape, offset in layout(head):
            if path == "output":
                file.write(angles(config) if version == 0 else b"")
            assert file.tell() == offset, f"{path=} {offset=}"
            if version == 2 and len(shape) == 2:
                small, scale = quantise(tensor_of(leaves[path]), group)
                file.write(bytes_of(small, "int8"))
                file.write(bytes_of(scale, "float32"))
            else:
                file.write(bytes_of(leaves[path], "float32"))
            progress(file.tell(), head.size)
        if version == 0 and config.tied_embeddings:
            file.write(angles(config))
        assert file.tell() == head.size, f"{file.tell()=} {head.size=}"


def encoded(head: Head) -> bytes:
    """The header's bytes."""
    config = head.config
    vocab = config.vocab_size if head.version or config.tied_embeddings else -config.vocab_size
    sizes = (config.dim, config.ffn_dim, config.layers, config.heads, config.kv_heads, vocab, config.context)
    if head.version == 0:
        return SEVEN.pack(*sizes)
    marked = struct.pack("<Ii", MAGIC, head.version) + SEVEN.pack(*sizes) + bytes([config.tied_embeddings])
    return (marked + (struct.pack("<i", head.group) if head.version == 2 else b"")).ljust(256, b"\0")


def angles(config: Config) -> bytes:
    """Version 0's tables of RoPE, cos and then sin, [context, head_dim/2] each. Its own programs pass over them too."""
    import torch

    pair = torch.arange(0, config.head_dim, 2)
    turns = torch.outer(torch.arange(config.context), 1.0 / config.rope_theta ** (pair / config.head_dim))
    return bytes(bytes_of(turns.cos(), "float32")) + bytes(bytes_of(turns.sin(), "float32"))


@contextmanager
def beside(folder: Path, tokenizer: Tokenizer | None) -> Generator[None]:
    """Leaves `tokenizer.bin`, or `tokenizer.json` for what llama2.c's format cannot hold, in the folder once the body
    has run.

    Raises LlucidError, at the beginning, if the folder holds another tokenizer, which one of the two models would be
    read with.
    """
    from llucid.tokenizers.llama2c_export import to_llama2c

    unfinished = folder / f".tokenizer.{os.getpid()}.partial"
    try:
        with naming(unfinished, folder):
            unfinished.mkdir(exist_ok=True)
            if tokenizer:
                try:
                    to_llama2c(tokenizer).write(unfinished / "tokenizer.bin")
                except LlucidError:
                    tokenizer.save(unfinished)
        files = sorted(unfinished.iterdir())
        contents = {file.name: file.read_bytes() for file in files}
        for there in (folder / name for name in {*FILES, *contents}):
            if there.is_file() and there.read_bytes() != contents.get(there.name):
                raise LlucidError(
                    f"{there}: is the tokenizer of another model, or this one in another form; write to another folder"
                )
        yield
        for file in files:
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
