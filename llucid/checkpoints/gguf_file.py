"""The GGUF container: metadata (keys and values), a list of tensor names and offsets, then the tensors.

Every length in a file is checked against the file's size before it is used. Source: ggml, docs/gguf.md and gguf.cpp.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llucid.arrays.memory import map_file, release
from llucid.arrays.quantized import FORMS, from_blocks
from llucid.checkpoints.gguf_blocks import (
    CHUNK,
    GGML_TYPES,
    NUMBERS,
    QUANTIZED_BITS,
    SAME_IN_Q8_0,
    UNSUPPORTED,
    GgmlType,
    as_q8_0,
    dequantize_blocks,
)
from llucid.checkpoints.metadata import int_of
from llucid.checkpoints.pickles import bytes_of
from llucid.checkpoints.tensors import Leaf, Stored, mapped, tensor_of
from llucid.errors import LlucidError
from llucid.files import first_bytes, refuse_stand_in

NUMBER_TYPES = {
    **dict(enumerate(["<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "<u1"])),
    **dict(enumerate(["<u8", "<i8", "<f8"], 10)),
}
"""NumPy types of numeric metadata, by GGUF's type number; 7 is bool."""
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9

ALIGNMENT = 32
"""Tensors begin at multiples of this many bytes, unless the file has general.alignment."""
MAX_NAME_BYTES, MAX_ENTRIES = 2**10, 2**16
"""Limits: bytes per name; tensors, and keys, per file. The largest Llama has 1,138 tensors."""
MAX_UNIFORM_BYTES = 2**16
"""Limit: bytes of a value that should be a single number or string, or one per layer."""


# --------------------------------------------------------------------------------------------- reading


class Field(NamedTuple):
    """Where a metadata value is in the file; it has not been read yet."""

    kind: int
    length: int | None
    """Elements of an array; None for a single value."""
    at: int
    """Offset in the file: of an array's first element, of a string's length."""
    size: int
    """Length in bytes."""


class TensorInfo(NamedTuple):
    """Where a tensor is in the file; it has not been read yet."""

    shape: tuple[int, ...]
    kind: GgmlType
    file: NDArray[np.uint8]
    """The whole file that contains it, memory-mapped."""
    at: int
    size: int
    """Bytes."""

    @property
    def data(self) -> NDArray[np.uint8]:
        return self.file[self.at : self.at + self.size]


class Cursor:
    """A reading position in a memory-mapped file. No length in the file makes it allocate memory."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        self.numbers = map_file(path)
        self.data = self.numbers.data

    def take(self, count: int) -> int:
        """Skips `count` bytes and returns their offset. Raises LlucidError if the file has fewer left."""
        begin = self.at
        if count > len(self.data) - begin:
            raise LlucidError(f"{self.path}: ends within its header: at byte {begin:,} it needs {count:,} more bytes")
        self.at = begin + count
        return begin

    def uint32(self) -> int:
        return struct.unpack_from("<I", self.data, self.take(4))[0]

    def uint64(self) -> int:
        return struct.unpack_from("<Q", self.data, self.take(8))[0]

    def name(self) -> str:
        """Reads a name: a short, printable string."""
        length = self.uint64()
        if length > MAX_NAME_BYTES:
            raise LlucidError(f"{self.path}: the name at byte {self.at:,} has {length:,} bytes; the file is damaged")
        begin = self.take(length)
        name = decode_utf8(self.data[begin : self.at], self.path)
        if not name.isprintable():
            raise LlucidError(
                f"{self.path}: the name {name!r:.80} at byte {begin:,} is not printable; the file is damaged"
            )
        return name

    def field(self) -> Field:
        """Skips a metadata value and returns where it is. Refuses an array of arrays, as llama.cpp does."""
        kind, count = self.uint32(), None
        if kind == ARRAY:
            kind, count = self.uint32(), self.uint64()
        begin = self.at
        if kind in NUMBER_TYPES:
            self.take((1 if count is None else count) * np.dtype(NUMBER_TYPES[kind]).itemsize)
        elif kind == STRING:
            self._skip_strings(1 if count is None else count)
        else:
            raise LlucidError(
                f"{self.path}: the value at byte {begin:,} has the unknown type {kind}; the file is damaged"
            )
        return Field(kind, count, begin, self.at - begin)

    def _skip_strings(self, count: int) -> None:
        data, at, end = self.data, self.at, len(self.data)
        length = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if end - at < 8:
                break
            at += 8 + length(data, at)[0]
        else:
            if at <= end:
                self.at = at
                return
        raise LlucidError(f"{self.path}: ends within {count:,} strings that begin at byte {self.at:,}")


def decode_utf8(data: memoryview, path: Path) -> str:
    """The text of UTF-8 bytes. Raises LlucidError if they are not valid."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise LlucidError(f"{path}: {bytes(data[:40])!r} is not valid UTF-8; the file is damaged") from error


class FileHeader(NamedTuple):
    """The header of a file: its metadata and its list of tensors."""

    path: Path
    numbers: NDArray[np.uint8]
    """The whole file, memory-mapped."""
    fields: dict[str, Field]
    tensors: dict[str, TensorInfo]

    def value(self, key: str, most: int = 1 << 62) -> Any:
        """The value of `key`, None if it is missing: a number, a string, or a list of at most `most` elements.

        A float32 becomes the shortest decimal that rounds to it, so that 1e-5 stays 1e-5.
        """
        field = self.fields.get(key)
        if field is None:
            return None
        if field.kind == STRING:
            texts = self._strings(field, most)
            return texts[0] if field.length is None else texts
        count = 1 if field.length is None else min(field.length, most)
        values = np.frombuffer(self.numbers, NUMBER_TYPES[field.kind], count, field.at)
        if field.length is not None:
            return values.tolist()
        if field.kind == BOOL:
            return bool(values[0])
        return float(str(values[0])) if field.kind == FLOAT32 else values[0].item()

    def uniform_value(self, key: str) -> Any:
        """The value of `key`, or the one value that all elements of an array, one per layer, have."""
        field = self.fields[key]
        if field.size > MAX_UNIFORM_BYTES:
            raise LlucidError(f"{self.path}: {key} has {field.size:,} bytes; the file is damaged")
        if field.length is None:
            return self.value(key)
        values = set(self.value(key))
        if len(values) != 1:
            raise LlucidError(f"{self.path}: {key} differs between layers, which llucid does not support")
        return values.pop()

    def _strings(self, field: Field, most: int) -> list[str]:
        data, at, texts = self.numbers.data, field.at, list[str]()
        length = struct.Struct("<Q").unpack_from
        begin = at
        try:
            for _ in range(1 if field.length is None else min(field.length, most)):
                begin = at + 8
                at = begin + length(data, at)[0]
                texts.append(str(data[begin:at], "utf-8"))
        except UnicodeDecodeError:
            decode_utf8(data[begin:at], self.path)
        return texts


def read_file_header(path: Path) -> FileHeader:
    """The header of a file; every length in it is checked against the file's size.

    Raises LlucidError if it is damaged, or if the tensors are not contiguous, which llama.cpp requires.
    """
    if path.stat().st_size < 24:
        raise LlucidError(f"{path}: ends within its header")
    cursor = Cursor(path)
    cursor.take(4)
    version = cursor.uint32()
    if version & 0xFFFF == 0:
        raise LlucidError(f"{path}: is big-endian; convert the model to little-endian GGUF")
    if version not in (2, 3):
        raise LlucidError(f"{path}: GGUF version {version} is not supported; expected 2 or 3")
    tensor_count, value_count = cursor.uint64(), cursor.uint64()
    if max(tensor_count, value_count) > MAX_ENTRIES:
        raise LlucidError(
            f"{path}: its header declares {tensor_count:,} tensors and {value_count:,} metadata values; "
            "the file is damaged"
        )
    fields: dict[str, Field] = {}
    for _ in range(value_count):
        key = cursor.name()
        if key in fields:
            raise LlucidError(f"{path}: {key} occurs twice; the file is damaged")
        fields[key] = cursor.field()
    header = FileHeader(path, cursor.numbers, fields, {})

    alignment = header.uniform_value("general.alignment") if "general.alignment" in fields else ALIGNMENT
    if type(alignment) is not int or not 8 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise LlucidError(f"{path}: general.alignment is {alignment!r:.40}; expected a power of two of at least 8")
    relative: dict[str, TensorInfo] = {}
    end = 0
    for _ in range(tensor_count):
        name = cursor.name()
        if name in relative:
            raise LlucidError(f"{path}: {name} occurs twice; the file is damaged")
        relative[name] = tensor = read_tensor_info(cursor, name)
        if tensor.at != end:
            raise LlucidError(f"{path}: {name} begins at {tensor.at:,}; expected {end:,}, after the previous tensor")
        end = tensor.at + tensor.size + -tensor.size % alignment
    start = cursor.at + -cursor.at % alignment
    for name, tensor in relative.items():
        header.tensors[name] = tensor._replace(at=start + tensor.at)
        if start + tensor.at + tensor.size > len(cursor.data):
            raise LlucidError(
                f"{path}: truncated: {name} should end at byte {start + tensor.at + tensor.size:,}, "
                f"and the file has {len(cursor.data):,}"
            )
    return header


def split_position(header: FileHeader) -> tuple[int, int]:
    """Which part of a split model the file is, counted from 1, and the number of parts; (1, 1) if it is not split."""
    values = {key: header.uniform_value(key) for key in ("split.no", "split.count") if key in header.fields}
    return int_of(values, "split.no", header.path, 0) + 1, int_of(values, "split.count", header.path, 1) or 1


def read_parts(path: Path) -> list[FileHeader]:
    """The header of every file of a model. Other files are found by the names that llama.cpp gives to parts.

    Raises LlucidError if `path` is not part 1, or if another part is missing, damaged or of another model.
    """
    first = read_file_header(path)
    number, count = split_position(first)
    if count == 1:
        return [first]
    position = f"is part {number} of a model that is split into {count} files"
    if number != 1:
        raise LlucidError(f"{path}: {position}; open part 1")
    ending = f"-00001-of-{count:05}.gguf"
    if not path.name.endswith(ending):
        raise LlucidError(f"{path}: {position}; its name must end in {ending}")
    parts = [first]
    for number in range(2, count + 1):
        file = path.with_name(f"{path.name.removesuffix(ending)}-{number:05}-of-{count:05}.gguf")
        if not file.is_file():
            raise LlucidError(f"{file}: is missing; the model is split into {count} files")
        refuse_stand_in(file)
        if first_bytes(file, 4) != b"GGUF":
            raise LlucidError(f"{file}: is not a GGUF file; the model is split into {count} files")
        parts.append(read_file_header(file))
        if (found := split_position(parts[-1])) != (number, count):
            raise LlucidError(f"{file}: is part {found[0]} of {found[1]}; expected part {number} of {count}")
    return parts


def read_model_header(path: Path) -> FileHeader:
    """The header of a model: of a split one, the metadata of part 1 and the tensors of all parts."""
    parts = read_parts(path)
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        if twice := tensors.keys() & part.tensors.keys():
            raise LlucidError(f"{part.path}: {min(twice)} occurs twice; it is in another part, too")
        tensors |= part.tensors
    if len(parts) > 1 and "split.tensors.count" in parts[0].fields:
        expected = parts[0].uniform_value("split.tensors.count")
        if expected != len(tensors):
            raise LlucidError(f"{path}: has {len(tensors)} tensors in {len(parts)} files; expected {expected!r:.40}")
    return parts[0]._replace(tensors=tensors)


def read_tensor_info(cursor: Cursor, name: str) -> TensorInfo:
    """Reads the list's entry for one tensor; its offset counts from the first tensor."""
    dimensions = cursor.uint32()
    if not 1 <= dimensions <= 4:
        raise LlucidError(f"{cursor.path}: {name} has {dimensions} dimensions; expected 1 to 4")
    lengths = [cursor.uint64() for _ in range(dimensions)]
    number, at = cursor.uint32(), cursor.uint64()
    kind = GGML_TYPES.get(number)
    if kind is None:
        what = UNSUPPORTED.get(number, f"number {number}")
        raise LlucidError(
            f"{cursor.path}: {name} has ggml type {what}, which llucid does not read; use a model in Q8_0 or Q4_K_M"
        )
    shape = tuple(reversed(lengths))
    if 0 in shape or shape[-1] % kind.block:
        raise LlucidError(f"{cursor.path}: {name} has shape {list(shape)}, which {kind.name} does not allow")
    return TensorInfo(shape, kind, cursor.numbers, at, math.prod(shape) // kind.block * kind.size)


def stored_tensor(header: FileHeader, name: str, keep: bool) -> Stored:
    """A tensor of the file, to be read later; with `keep`, what FORMS or `as_q8_0` can hold stays quantised."""
    tensor = header.tensors[name]
    shape, kind, raw = tensor.shape, tensor.kind, tensor.data
    if kind.block == 1:
        return mapped(shape, kind.name, lambda: raw.view(f"<i{kind.size}").reshape(shape))
    if keep and kind.name in FORMS and len(shape) == 2:
        blocks = raw.reshape(shape[0], -1, kind.size)
        return Stored(shape, "float32", lambda: from_blocks(blocks, kind.name, done=release))
    if keep and kind.name in SAME_IN_Q8_0 and len(shape) == 2:
        blocks = raw.reshape(shape[0], -1, kind.size)
        return Stored(shape, "float32", lambda: from_blocks(as_q8_0(blocks, kind), "Q8_0"))
    return Stored(shape, "float32", lambda: dequantize_blocks(raw, kind, shape))


# --------------------------------------------------------------------------------------------- writing


class PendingTensor(NamedTuple):
    """A tensor to be written, and the type to write it in."""

    name: str
    kind: GgmlType
    numbers: Leaf

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.numbers.numel() // self.kind.block * self.kind.size


def encode_header(metadata: dict[str, Any], tensors: list[PendingTensor]) -> bytes:
    """The bytes of the header, padded to where the first tensor begins."""
    header = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += encode_string(key) + encode_value(value)
    at = 0
    for tensor in tensors:
        lengths = [*reversed(tensor.numbers.shape)]
        header += encode_string(tensor.name) + struct.pack(f"<I{len(lengths)}Q", len(lengths), *lengths)
        header += struct.pack("<IQ", NUMBERS[tensor.kind.name], at)
        at += tensor.size + -tensor.size % ALIGNMENT
    return bytes(header) + bytes(-len(header) % ALIGNMENT)


def encode_string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def encode_value(value: Any) -> bytes:
    """The type and bytes of a value: bool, uint32, float32, string, or a list of int32, of float32 or of strings."""
    match value:
        case bool():
            return struct.pack("<IB", BOOL, value)
        case int():
            return struct.pack("<II", UINT32, value)
        case float():
            return struct.pack("<If", FLOAT32, value)
        case str():
            return struct.pack("<I", STRING) + encode_string(value)
        case [float(), *_]:
            return struct.pack("<IIQ", ARRAY, FLOAT32, len(value)) + np.array(value, "<f4").tobytes()
        case [int(), *_]:
            return struct.pack("<IIQ", ARRAY, INT32, len(value)) + np.array(value, "<i4").tobytes()
        case _:
            return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(encode_string, value))


def tensor_chunks(tensor: PendingTensor) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor, quantised some rows at a time to limit the memory."""
    if tensor.kind.block == 1:
        yield bytes_of(tensor.numbers, tensor.kind.name)
        return
    from llucid.arrays.quantize import quantize_matrix
    from llucid.arrays.quantized import Quantized, to_blocks

    numbers = tensor.numbers
    if isinstance(numbers, Quantized) and numbers.form == tensor.kind.name:
        yield to_blocks(numbers).numpy().tobytes()
        return
    bits, step = QUANTIZED_BITS[tensor.kind.name], max(1, CHUNK // numbers.shape[-1])
    for rows in tensor_of(numbers).split(step):
        yield to_blocks(quantize_matrix(rows, bits)).numpy().tobytes()
