"""The wire format of protocol buffers: enough to read and write a SentencePiece model.

https://protobuf.dev/programming-guides/encoding
"""

from collections.abc import Iterator, Sequence

from llucid.errors import LlucidError


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The number and value of each field: an int for a varint, else bytes. Raises LlucidError for a truncated field."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        number, wire = divmod(tag, 8)
        if not 0 < number < 1 << 29 or wire not in (0, 1, 2, 5):
            raise LlucidError(f"no field is numbered {number} and of wire type {wire}")
        if wire == 0:
            value, at = _read_varint(message, at)
            yield number, value
            continue
        length, at = (8, at) if wire == 1 else (4, at) if wire == 5 else _read_varint(message, at)
        if length > len(message) - at:
            raise LlucidError(f"a field of {length} bytes is cut off")
        at += length
        yield number, message[at - length : at]


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at this place, and where it ends."""
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise LlucidError("a number is cut off")


def field(number: int, value: int | bytes) -> bytes:
    """The bytes of a field: a varint, or bytes."""
    return messages(number, [value])[0] if isinstance(value, bytes) else varint(number << 3) + varint(value)


def messages(number: int, values: Sequence[bytes]) -> list[bytes]:
    """The bytes of a field, for each of many values."""
    tag, lengths = varint(number << 3 | 2), {length: varint(length) for length in set(map(len, values))}
    return [tag + lengths[len(value)] + value for value in values]


def varint(value: int) -> bytes:
    """The bytes of a number: seven bits each, low ones first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
