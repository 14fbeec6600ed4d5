"""The merges that a vocabulary implies: `tokenizer.json` lists them, other formats leave them to the reader."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import TypeVar

from llucid.errors import LlucidError

Text = TypeVar("Text", str, bytes)

FACTOR = 64
"""Limits the work: all pairs that are tried have at most this many times the characters of the vocabulary (published
ones: 6). Nested long pieces have far more, and merges that grow with the third power of their length."""


def merges_of(order: Mapping[Text, int | float]) -> list[tuple[Text, Text]]:
    """All pairs of pieces that join to a piece, in increasing `order` of the joined piece.

    If pieces have equal order, the pair with the longest left part comes first. So a run of spaces, whose pieces all
    have one order in Llama 2, is merged from the left, as by a rule that merges the leftmost of equal pairs. Raises
    LlucidError if the pieces are so long that listing the pairs would take far more memory than the vocabulary.
    """
    lengths = sorted({len(piece) for piece in order})
    room = 10**6 + FACTOR * sum(map(len, order))
    found: list[tuple[float, int, int, Text, Text]] = []
    for piece, rank in order.items():
        for cut in lengths:
            if cut >= len(piece):
                break
            room -= len(piece)
            left, right = piece[:cut], piece[cut:]
            if left in order and right in order:
                found.append((rank, -cut, -len(right), left, right))
        if room < 0:
            raise LlucidError("the vocabulary has too many long pieces that contain one another to list its merges")
    found.sort()
    return [(left, right) for *_, left, right in found]


def overlaps(order: Mapping[str, float]) -> Iterator[str]:
    """Texts in which a piece overlaps with another one of equal order, so that it matters which of them is merged.

    Raises LlucidError if the pieces are so long that this would take far more memory than the vocabulary.
    """
    number = Counter(order.values())
    equals = {piece: rank for piece, rank in order.items() if number[rank] > 1}
    if sum(len(piece) ** 2 for piece in equals) > 10**6 + FACTOR * sum(map(len, order)):
        raise LlucidError("the vocabulary has too many long pieces of equal score to look for overlaps")
    begins: defaultdict[tuple[float, str], list[str]] = defaultdict(list)
    for piece, rank in equals.items():
        for end in range(1, len(piece)):
            begins[rank, piece[:end]].append(piece)
    for piece, rank in equals.items():
        for start in range(1, len(piece)):
            for other in begins.get((rank, piece[start:]), ()):
                if other != piece:
                    yield piece[:start] + other
