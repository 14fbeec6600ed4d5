"""llama2.c's files: `.bin` in its three versions, and the `.pt` that its train.py saves.

A `.bin` is a header of seven sizes, then the arrays, grouped by kind. Version 0 has no magic number; version 1 has a
header of 256 bytes and another order; version 2 is version 1 with int8 matrices and a float32 scale for each group of
numbers. Source: llama2.c, export.py, run.c and runq.c.
"""

import math
import struct
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llucid.arrays import Mapped
from llucid.arrays.dtypes import converted, full_name
from llucid.arrays.memory import map_file
from llucid.checkpoints import meta
from llucid.checkpoints.format import Header, Progress, no_progress
from llucid.checkpoints.metadata import float_of, int_of
from llucid.checkpoints.pickles import Archive, bytes_of, entries_of, is_archive, read_pickle
from llucid.checkpoints.tensors import Stored, gather, mapped, tensor_of
from llucid.config import Config, head_width
from llucid.errors import LlucidError, prefix_errors
from llucid.files import atomic_file, first_bytes, remove_unfinished, replaced_in_errors, unfinished_folder
from llucid.model import Model
from llucid.tokenizers import FILES, Tokenizer, load_tokenizer
from llucid.weights import Weights, named_leaves, shapes

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = 0x616B3432
SIZES = struct.Struct("<7i")
"""dim, ffn_dim, layers, heads, kv_heads, vocab_size, context."""
GROUP = 64
"""The largest group in version 2."""
LARGEST_TABLES = 1 << 30
"""Bytes of version 0's tables of angles; those of Llama 3.1 have 67 million."""
MAX_LAYERS = 2**10
"""A limit above any Llama: a tiny layer takes 100 times as much memory as it takes in the file."""
ROWS = 2**14
"""Rows of RoPE tables that are computed at a time."""

_ATTENTION = tuple(f"blocks.N.attention.{name}" for name in ("query", "key", "value", "output"))
_FEED_FORWARD = tuple(f"blocks.N.feed_forward.{name}" for name in ("gate", "down", "up"))
_NORMS = ("blocks.N.attention_norm", "blocks.N.feed_forward_norm")
ORDER = {
    0: ("embedding", _NORMS[0], *_ATTENTION, _NORMS[1], *_FEED_FORWARD, "norm", "angles", "output"),
    1: (*_NORMS, "norm", "embedding", *_ATTENTION, *_FEED_FORWARD, "output"),
}
"""The order of the arrays in a file, by version: each kind, for all blocks in turn. Version 2 has the order of version
1. `angles` are RoPE tables, which reading skips."""


class BinHeader(NamedTuple):
    """The header of a `.bin`."""

    version: int
    config: Config
    group: int
    """Numbers that share a scale in version 2; else 1."""

    @property
    def start(self) -> int:
        """Bytes before the first array."""
        return SIZES.size if self.version == 0 else 256

    def bytes_of(self, path: str, shape: tuple[int, ...]) -> int:
        """Bytes that the array at `path` takes in the file."""
        count = math.prod(shape)
        return count + 4 * (count // self.group) if self.version == 2 and len(shape) == 2 else 4 * count

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        angles = self.config.context * self.config.head_dim if self.version == 0 else 0
        one, two = (  # not every layer: a damaged file may claim many
            sum(self.bytes_of(*array) for array in shapes(replace(self.config, layers=layers)).items())
            for layers in (1, 2)
        )
        return self.start + 4 * angles + one + (self.config.layers - 1) * (two - one)


def recognises(path: Path) -> bool:
    if is_archive(path):
        try:
            return b"model_args" in Archive(path).pickle
        except Exception:  # zipfile raises almost any exception for damaged files
            return False
    try:
        return path.is_file() and bool(parse_header(first_bytes(path, 256), path))
    except LlucidError:
        # A damaged file of version 1 or 2 still has the magic number. Version 0 has none: only plausible sizes.
        return first_bytes(path, 4) == struct.pack("<I", MAGIC)


def parse_header(data: bytes, place: Path) -> BinHeader:
    """Parses the first 256 bytes of a file. Raises LlucidError if they are not a header."""
    has_magic = data[:4] == struct.pack("<I", MAGIC)
    if len(data) < (256 if has_magic else SIZES.size):
        raise LlucidError(f"{place}: ends within its header")
    version, group, shared = 0, 1, True
    numbers = SIZES.unpack_from(data, 8 if has_magic else 0)
    if has_magic:
        version, shared, group = struct.unpack_from("<i", data, 4)[0], data[36], struct.unpack_from("<i", data, 37)[0]
        if version not in (1, 2) or shared not in (0, 1):
            raise LlucidError(
                f"{place}: version {version} with shared={shared} is not supported; expected 1 or 2, and 0 or 1"
            )
    dim, ffn, layers, heads, kv_heads, vocab, context = numbers
    if version == 0 and vocab < 0:
        vocab, shared = -vocab, False
    if not 0 < dim < 2**20 or not 0 < heads <= dim or layers > MAX_LAYERS:
        numbers = f"dim={dim}, heads={heads} and layers={layers}"
        raise LlucidError(f"{place}: not a llama2.c file: its header has {numbers}")
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
        raise LlucidError(f"{place}: not a llama2.c file: {error}") from error
    if version == 2:
        sizes = (dim * dim, dim * config.kv_heads * config.head_dim, dim * ffn, dim * vocab)
        if group < 1 or any(size % group for size in sizes):
            raise LlucidError(
                f"{place}: its group size {group} does not divide the size of every matrix; the file is damaged"
            )
    return BinHeader(version, config, group)


def read_bin_header(path: Path) -> BinHeader:
    """The header of a `.bin`. Raises LlucidError if the file does not have exactly the size that the header implies."""
    header, size = parse_header(first_bytes(path, 256), path), path.stat().st_size
    if header.size != size:
        problem = "truncated" if size < header.size else "too long"
        raise LlucidError(f"{path}: {problem}: by its header it should have {header.size:,} bytes, and it has {size:,}")
    return header


def array_offsets(header: BinHeader) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Path in Weights, shape and offset of each array, in the file's order."""
    expected = shapes(header.config)
    offset = header.start
    for kind in ORDER[min(header.version, 1)]:
        blocks = range(header.config.layers) if ".N." in kind else (0,)
        for block in blocks:
            path = kind.replace(".N.", f".{block}.")
            if path == "angles":
                offset += 4 * header.config.context * header.config.head_dim
            elif path in expected:  # without the output matrix if it is tied
                yield path, expected[path], offset
                offset += header.bytes_of(path, expected[path])
    assert offset == header.size, f"{offset=} {header.size=}"


def read_entries(path: Path) -> dict[str, Stored]:
    """Every array of a `.bin`, under Meta's names."""
    header = read_bin_header(path)
    numbers = map_file(path)

    def entry(shape: tuple[int, ...], offset: int) -> Stored:
        count = math.prod(shape)

        if header.version < 2 or len(shape) != 2:
            return mapped(shape, "float32", lambda: numbers[offset : offset + 4 * count].view("<i4").reshape(shape))

        def grouped() -> Mapped:
            small = numbers[offset : offset + count].view(np.int8).reshape(-1, header.group)
            scales = numbers[offset + count : offset + count + 4 * (count // header.group)].view("<f4")
            with np.errstate(all="ignore"):  # damaged scales may be infinite
                return Mapped("float32", (small * scales[:, None]).view(np.int32).reshape(shape))

        return Stored(shape, "float32", grouped)

    return {meta.name_of(at): entry(shape, offset) for at, shape, offset in array_offsets(header)}


# --------------------------------------------------------------------------------------------- train.py's .pt


def read_checkpoint(path: Path) -> tuple[Config, dict[str, Stored]]:
    """Reads what llama2.c's train.py saves: `model_args`, and the tensors in `model` under Meta's names."""
    saved = read_pickle(path)
    arguments = saved.get("model_args") if isinstance(saved, dict) else None
    if not isinstance(arguments, dict) or "model" not in saved:
        raise LlucidError(f"{path}: not a llama2.c checkpoint: expected model_args and model")
    # Nested lists that share parts could make an error message endless.
    arguments = {key: value for key, value in arguments.items() if isinstance(value, int | float | str)}
    entries = entries_of(saved["model"], path)
    twin = meta.NAMES["output"] if meta.twinned(entries) else None
    for unused in ("freqs_cos", "freqs_sin", "freqs_cis", twin):
        entries.pop(str(unused), None)

    sizes = meta.sizes_of(arguments, path, entries, path)
    context, eps = int_of(arguments, "max_seq_len", path, 2048), float_of(arguments, "norm_eps", path, 1e-5)
    with prefix_errors(path):
        return Config(**sizes, context=context, norm_eps=eps), entries


# --------------------------------------------------------------------------------------------- both kinds of file


def read_config(path: Path) -> Config:
    """The Config from the header; RoPE base 10,000 and epsilon 1e-5, which it lacks, are those of llama2.c."""
    return read_checkpoint(path)[0] if is_archive(path) else read_bin_header(path).config


def read_header(path: Path) -> Header:
    """Shape and type of each array, under Meta's names; a `.bin` itself contains no names."""
    if is_archive(path):
        return {name: (entry.shape, entry.dtype) for name, entry in read_checkpoint(path)[1].items()}
    header = read_bin_header(path)
    quantised = f"int8 in groups of {header.group}"
    kinds = {1: "float32", 2: quantised if header.version == 2 else "float32"}
    return {meta.name_of(at): (shape, kinds[len(shape)]) for at, shape, _ in array_offsets(header)}


def open_weights(path: Path, config: Config) -> Weights:
    """The weights: float32, memory-mapped; those of version 2 are dequantised one by one when they are read."""
    entries = read_checkpoint(path)[1] if is_archive(path) else read_entries(path)
    return gather(config, entries, meta.name_of, str(path))


def read_tokenizer(path: Path) -> Tokenizer:
    return load_tokenizer(path.parent)


def check_config(config: Config) -> None:
    """Raises LlucidError for a number that differs from the one fixed in llama2.c's programs, and for more layers than
    `parse_header` accepts."""
    if config.layers > MAX_LAYERS:
        raise LlucidError(f"llama2.c's format: layers={config.layers}: llucid reads at most {MAX_LAYERS}")
    width = config.dim / config.heads
    for name, value, fixed in (
        ("rope_theta", config.rope_theta, 10_000.0),
        ("rope_scaling", config.rope_scaling, None),
        ("head_dim", config.head_dim, width),
        ("norm_eps", config.norm_eps, 1e-5),
        ("attention_bias", config.attention_bias, False),
        ("mlp_bias", config.mlp_bias, False),
    ):
        if value != fixed:
            raise LlucidError(f"llama2.c's format cannot hold {name}={value}; its programs have {fixed}")


def quantize_groups(matrix: "Tensor", group: int) -> "tuple[Tensor, Tensor]":
    """int8 numbers from −127 to 127, and a scale per group that makes its largest number ±127, as in llama2.c's export.

    Quantising dequantised numbers gives the same bytes: 127 times the scale rounds to the largest number again.
    """
    import torch

    numbers = converted(matrix, torch.float32).reshape(-1, group)
    scale = numbers.abs().amax(1) / 127
    divisor = torch.where(scale == 0, 1, scale)  # a group of zeros
    return (numbers / divisor[:, None]).round().to(torch.int8), scale


def write(
    out: Path,
    model: Model,
    progress: Progress = no_progress,
    dtype: str | None = None,
    version: int | None = None,
    beside: Path | None = None,
) -> None:
    """Writes a `.bin` of this version (0 when None) and the tokenizer in the same folder.

    `beside` is the folder that both will be in, by default that of `out`: it must have no other tokenizer.

    The group size of version 2 is 64, halved until it divides dim, as in llama2.c's export, and also ffn_dim: runq.c
    only reads whole groups of a row. Raises LlucidError for a model that the format cannot hold.
    """
    config = model.config
    version = version or 0
    check_config(config)
    if version not in (0, 1, 2):
        raise LlucidError(f"version={version}: llama2.c's format has the versions 0, 1 and 2")
    if dtype and full_name(dtype) != "float32":
        raise LlucidError(f"dtype={dtype}: llama2.c's format holds float32, or int8 with version=2")
    if version == 0 and 4 * config.context * config.head_dim > LARGEST_TABLES:
        raise LlucidError(
            f"version=0 has angles for each position, too many for a context of {config.context:,}; use version=1"
        )
    group = math.gcd(GROUP, config.dim, config.ffn_dim) if version == 2 else 1
    header = BinHeader(version, config, group)
    leaves = dict(named_leaves(model.weights))
    out.parent.mkdir(parents=True, exist_ok=True)
    vocab = config.vocab_size
    with (
        atomic_file(out) as temporary,
        # Gets its name before the model, which needs it.
        tokenizer_beside(out.parent, beside or out.parent, model.tokenizer, vocab),
        open(temporary, "wb") as file,
    ):
        file.write(encode_header(header))
        for path, shape, offset in array_offsets(header):
            if path == "output":
                file.writelines(angles(config) if version == 0 else ())
            assert file.tell() == offset, f"{path=} {offset=}"
            with prefix_errors(path):
                if version == 2 and len(shape) == 2:
                    small, scale = quantize_groups(tensor_of(leaves[path]), group)
                    file.write(bytes_of(small, "int8"))
                    file.write(bytes_of(scale, "float32"))
                else:
                    file.write(bytes_of(leaves[path], "float32"))
            progress(file.tell(), header.size)
        if version == 0 and config.tied_embeddings:
            file.writelines(angles(config))
        assert file.tell() == header.size, f"{file.tell()=} {header.size=}"


def encode_header(header: BinHeader) -> bytes:
    config = header.config
    vocab = config.vocab_size if header.version or config.tied_embeddings else -config.vocab_size
    sizes = (config.dim, config.ffn_dim, config.layers, config.heads, config.kv_heads, vocab, config.context)
    if header.version == 0:
        return SIZES.pack(*sizes)
    data = struct.pack("<Ii", MAGIC, header.version) + SIZES.pack(*sizes) + bytes([config.tied_embeddings])
    return (data + (struct.pack("<i", header.group) if header.version == 2 else b"")).ljust(256, b"\0")


def angles(config: Config) -> Iterator[memoryview]:
    """Version 0's RoPE tables: cos, then sin, each [context, head_dim/2], some rows at a time. run.c skips them."""
    import torch

    pair = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")
    frequencies = 1.0 / config.rope_theta ** (pair / config.head_dim)
    for function in (torch.cos, torch.sin):
        for start in range(0, config.context, ROWS):
            positions = torch.arange(start, min(start + ROWS, config.context), device="cpu")
            yield bytes_of(function(torch.outer(positions, frequencies)), "float32")


@contextmanager
def tokenizer_beside(folder: Path, beside: Path, tokenizer: Tokenizer | None, vocab_size: int) -> Generator[None]:
    """Puts the tokenizer into the folder when the body has run without an error.

    It is `tokenizer.bin`, or `tokenizer.json` if llama2.c's format cannot hold it. Raises LlucidError before the body
    if the folder `beside` has a different tokenizer, because both models would be read with the same one.
    """
    from llucid.tokenizers.llama2c_export import to_llama2c

    remove_unfinished(folder / "tokenizer")
    with unfinished_folder(folder, "tokenizer", folder) as unfinished:
        with replaced_in_errors(unfinished, folder):
            if tokenizer:
                try:
                    to_llama2c(tokenizer, vocab_size).write(unfinished / "tokenizer.bin")
                except LlucidError:
                    tokenizer.save(unfinished)
        files = sorted(unfinished.iterdir())
        contents = {file.name: file.read_bytes() for file in files}
        for there in (beside / name for name in {*FILES, *contents}):
            if there.is_file() and there.read_bytes() != contents.get(there.name):
                raise LlucidError(
                    f"{there}: belongs to the tokenizer of another model, or to this one in another form; write to "
                    "another folder"
                )
        yield
        for file in files:
            file.replace(folder / file.name)
