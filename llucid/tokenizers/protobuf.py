"""The wire format of protocol buffers, read only: enough to look into a SentencePiece model before it is opened."""

from collections.abc import Iterator

from llucid.errors import LlucidError


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The number and value of each field: a number for a varint, else bytes. Raises LlucidError if one is cut off.

    https://protobuf.dev/programming-guides/encoding
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            if at >= len(message):
                break
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise LlucidError("a number is cut off")

    while at < len(message):
        number, wire = divmod(varint(), 8)
        if number == 0 or wire not in (0, 1, 2, 5):
            raise LlucidError(f"no field is numbered {number} and of wire type {wire}")
        if wire == 0:
            yield number, varint()
            continue
        length = {1: 8, 5: 4}.get(wire) or (varint() if wire == 2 else 0)
        if length > len(message) - at:
            raise LlucidError(f"a field of {length} bytes is cut off")
        at += length
        yield number, message[at - length : at]
