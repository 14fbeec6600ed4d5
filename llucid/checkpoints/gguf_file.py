"""The container that GGUF is, whatever is in it: keys with values, the tensors' names and places, then the tensors.

Nothing in a file is believed before it is compared with the file's size. Source: ggml's docs/gguf.md and gguf.cpp.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llucid.arrays.quantized import from_blocks
from llucid.checkpoints.gguf_blocks import AT_ONCE, KEPT, KINDS, OTHERS, WRITTEN, Kind, dequantised
from llucid.checkpoints.pickles import bytes_of
from llucid.checkpoints.tensors import Leaf, Stored, mapped, tensor_of
from llucid.errors import LlucidError

NUMBERS = {
    **dict(enumerate(["<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "<u1"])),
    **dict(enumerate(["<u8", "<i8", "<f8"], 10)),
}
"""Types of values that are numbers, by GGUF's numbers; 7 is true or false."""
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9

ALIGNMENT = 32
"""Tensors begin at multiples of this, if general.alignment says nothing else."""
LONGEST_NAME, MOST_NAMES = 2**10, 2**16
"""Bytes of a name, and names of a kind in a file: the largest Llama has 1,138 tensors."""
LONGEST_SETTLED = 2**16
"""Bytes of a value that is a single one, or the same for each layer."""


# --------------------------------------------------------------------------------------------- reading


class Field(NamedTuple):
    """A value in the header, not yet read."""

    kind: int
    length: int | None
    """Numbers or strings in an array; None for a single value."""
    at: int
    """Where in the file it begins: an array's first element, a string's length."""
    size: int
    """Bytes."""


class Place(NamedTuple):
    """A tensor in the file, not yet read."""

    shape: tuple[int, ...]
    kind: Kind
    at: int
    size: int
    """Bytes."""


class Cursor:
    """A place in a mapped file that moves on. It allocates nothing that a file could ask for."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        self.numbers: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="c")  # writable; the file does not change
        self.data = self.numbers.data

    def take(self, count: int) -> int:
        """Moves on by so many bytes; where they begin. Raises LlucidError if there are not as many."""
        begin = self.at
        if count > len(self.data) - begin:
            raise LlucidError(f"{self.path}: ends within its header: at byte {begin:,} it promises {count:,} more")
        self.at = begin + count
        return begin

    def uint32(self) -> int:
        return struct.unpack_from("<I", self.data, self.take(4))[0]

    def uint64(self) -> int:
        return struct.unpack_from("<Q", self.data, self.take(8))[0]

    def name(self) -> str:
        """A short string of letters that can be shown."""
        length = self.uint64()
        if length > LONGEST_NAME:
            raise LlucidError(f"{self.path}: a name of {length:,} bytes at byte {self.at:,}; the file is damaged")
        begin = self.take(length)
        name = text_of(self.data[begin : self.at], self.path)
        if not name.isprintable():
            raise LlucidError(f"{self.path}: a name {name!r:.80} at byte {begin:,}; the file is damaged")
        return name

    def field(self) -> Field:
        """A value, passed over. An array of arrays is refused, as llama.cpp does."""
        kind, count = self.uint32(), None
        if kind == ARRAY:
            kind, count = self.uint32(), self.uint64()
        begin = self.at
        if kind in NUMBERS:
            self.take((1 if count is None else count) * np.dtype(NUMBERS[kind]).itemsize)
        elif kind == STRING:
            self._pass_strings(1 if count is None else count)
        else:
            raise LlucidError(f"{self.path}: a value of type {kind} at byte {begin:,}; the file is damaged")
        return Field(kind, count, begin, self.at - begin)

    def _pass_strings(self, count: int) -> None:
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


def text_of(data: memoryview, path: Path) -> str:
    """Text from UTF-8. Raises LlucidError if it is none."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise LlucidError(f"{path}: {bytes(data[:40])!r} should be UTF-8, and is not") from error


class Head(NamedTuple):
    """What stands before the tensors."""

    path: Path
    numbers: NDArray[np.uint8]
    """The whole file, mapped."""
    fields: dict[str, Field]
    places: dict[str, Place]

    def value(self, key: str) -> Any:
        """The value under `key`, None if there is none: a number, a string, or a list.

        A number in float32 is that of the fewest decimals, so that 1e-5 is 1e-5 again.
        """
        field = self.fields.get(key)
        if field is None:
            return None
        if field.kind == STRING:
            texts = self._texts(field)
            return texts[0] if field.length is None else texts
        values = np.frombuffer(self.numbers, NUMBERS[field.kind], 1 if field.length is None else field.length, field.at)
        if field.length is not None:
            return values.tolist()
        if field.kind == BOOL:
            return bool(values[0])
        return float(str(values[0])) if field.kind == FLOAT32 else values[0].item()

    def settled(self, key: str) -> Any:
        """The value under a key; of an array, which says it for each layer, the one that all have."""
        field = self.fields[key]
        if field.size > LONGEST_SETTLED:
            raise LlucidError(f"{self.path}: {key} takes {field.size:,} bytes; the file is damaged")
        if field.length is None:
            return self.value(key)
        values = set(self.value(key))
        if len(values) != 1:
            raise LlucidError(f"{self.path}: {key} differs from layer to layer, which llucid does not open")
        return values.pop()

    def _texts(self, field: Field) -> list[str]:
        data, at, texts = self.numbers.data, field.at, list[str]()
        length = struct.Struct("<Q").unpack_from
        begin = at
        try:
            for _ in range(1 if field.length is None else field.length):
                begin = at + 8
                at = begin + length(data, at)[0]
                texts.append(str(data[begin:at], "utf-8"))
        except UnicodeDecodeError:
            text_of(data[begin:at], self.path)
        return texts


def read_head(path: Path) -> Head:
    """The header of a file, every length in it checked against the file's size.

    Raises LlucidError for one that is damaged, or whose tensors do not follow one another as llama.cpp demands.
    """
    if path.stat().st_size < 24:
        raise LlucidError(f"{path}: ends within its header")
    cursor = Cursor(path)
    cursor.take(4)
    version = cursor.uint32()
    if version & 0xFFFF == 0:
        raise LlucidError(f"{path}: is for machines that store numbers big-endian; convert it again for this one")
    if version not in (2, 3):
        raise LlucidError(f"{path}: version {version} of GGUF is not supported; 2 and 3 are")
    tensors, values = cursor.uint64(), cursor.uint64()
    if max(tensors, values) > MOST_NAMES:
        raise LlucidError(f"{path}: promises {tensors:,} tensors and {values:,} values; the file is damaged")
    fields: dict[str, Field] = {}
    for _ in range(values):
        key = cursor.name()
        if key in fields:
            raise LlucidError(f"{path}: {key} is there twice")
        fields[key] = cursor.field()
    head = Head(path, cursor.numbers, fields, {})

    alignment = head.settled("general.alignment") if "general.alignment" in fields else ALIGNMENT
    if type(alignment) is not int or not 8 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise LlucidError(f"{path}: general.alignment should be a power of two from 8 on and is {alignment!r:.40}")
    relative: dict[str, Place] = {}
    end = 0
    for _ in range(tensors):
        name = cursor.name()
        if name in relative:
            raise LlucidError(f"{path}: {name} is there twice")
        relative[name] = place = read_place(cursor, name)
        if place.at != end:
            raise LlucidError(f"{path}: {name} begins at {place.at:,}; it should at {end:,}, after the one before")
        end = place.at + place.size + -place.size % alignment
    start = cursor.at + -cursor.at % alignment
    for name, place in relative.items():
        head.places[name] = place._replace(at=start + place.at)
        if start + place.at + place.size > len(cursor.data):
            raise LlucidError(
                f"{path}: truncated: {name} should end at byte {start + place.at + place.size:,}, "
                f"and the file has {len(cursor.data):,}"
            )
    return head


def read_place(cursor: Cursor, name: str) -> Place:
    """What the header says of one tensor; its place is counted from the first."""
    dimensions = cursor.uint32()
    if not 1 <= dimensions <= 4:
        raise LlucidError(f"{cursor.path}: {name} has {dimensions} dimensions; expected 1 to 4")
    lengths = [cursor.uint64() for _ in range(dimensions)]
    number, at = cursor.uint32(), cursor.uint64()
    kind = KINDS.get(number)
    if kind is None:
        what = OTHERS.get(number, f"number {number}")
        raise LlucidError(f"{cursor.path}: {name} is of ggml's type {what}, which llucid does not open")
    shape = tuple(reversed(lengths))
    if 0 in shape or shape[-1] % kind.block:
        raise LlucidError(f"{cursor.path}: {name} has shape {list(shape)}, which {kind.name} cannot have")
    return Place(shape, kind, at, math.prod(shape) // kind.block * kind.size)


def entry_of(head: Head, name: str, keep: bool) -> Stored:
    """A tensor of the file, as it will be in memory; `keep` has matrices in Q8_0 and Q4_0 stay quantised."""
    shape, kind, at, size = head.places[name]
    if kind.block == 1:
        width = f"<i{kind.size}"
        return mapped(shape, kind.name, lambda: head.numbers[at : at + size].view(width).reshape(shape))

    raw = head.numbers[at : at + size]
    if keep and kind.name in KEPT and len(shape) == 2:
        return Stored(shape, "float32", lambda: from_blocks(raw.reshape(shape[0], -1, kind.size)))
    return Stored(shape, "float32", lambda: dequantised(raw, kind, shape))


# --------------------------------------------------------------------------------------------- writing


class Part(NamedTuple):
    """A tensor to be written."""

    name: str
    kind: Kind
    numbers: Leaf

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.numbers.numel() // self.kind.block * self.kind.size


def encoded(told: dict[str, Any], parts: list[Part]) -> bytes:
    """The header, filled up to where the first tensor begins."""
    head = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(parts), len(told)))
    for key, value in told.items():
        head += encoded_text(key) + encoded_value(value)
    at = 0
    for part in parts:
        lengths = [*reversed(part.numbers.shape)]
        head += encoded_text(part.name) + struct.pack(f"<I{len(lengths)}Q", len(lengths), *lengths)
        head += struct.pack("<IQ", WRITTEN[part.kind.name], at)
        at += part.size + -part.size % ALIGNMENT
    return bytes(head) + bytes(-len(head) % ALIGNMENT)


def encoded_text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def encoded_value(value: Any) -> bytes:
    """A value with its type: bool, uint32, float32, string, or a list of int32, of float32 or of strings."""
    match value:
        case bool():
            return struct.pack("<IB", BOOL, value)
        case int():
            return struct.pack("<II", UINT32, value)
        case float():
            return struct.pack("<If", FLOAT32, value)
        case str():
            return struct.pack("<I", STRING) + encoded_text(value)
        case [float(), *_]:
            return struct.pack("<IIQ", ARRAY, FLOAT32, len(value)) + np.array(value, "<f4").tobytes()
        case [int(), *_]:
            return struct.pack("<IIQ", ARRAY, INT32, len(value)) + np.array(value, "<i4").tobytes()
        case _:
            return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(encoded_text, value))


def pieces_of(part: Part) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor in the file, quantised some rows at a time."""
    if part.kind.block == 1:
        yield bytes_of(part.numbers, part.kind.name)
        return
    from llucid.arrays.quantize import quantize_matrix
    from llucid.arrays.quantized import Quantized, to_blocks

    bits, numbers = KEPT[part.kind.name], part.numbers
    if isinstance(numbers, Quantized) and numbers.bits == bits:
        yield to_blocks(numbers).numpy().tobytes()
        return
    step = max(1, AT_ONCE // numbers.shape[-1])
    for rows in tensor_of(numbers).split(step):
        yield to_blocks(quantize_matrix(rows, bits)).numpy().tobytes()
