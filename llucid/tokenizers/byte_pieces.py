"""Bytes written as text: GPT-2's visible characters, one for each byte, and SentencePiece's `<0x41>`."""

import re

BYTE_PIECE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")
"""SentencePiece's spelling of a byte: exactly two hex digits."""


def byte_letters() -> dict[int, int]:
    """The visible character for each byte in a byte-level `tokenizer.json` (GPT-2's bytes_to_unicode)."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: byte for byte in visible} | {byte: 0x100 + n for n, byte in enumerate(others)}


BYTE_OF_LETTER = {chr(letter): byte for byte, letter in byte_letters().items()}
