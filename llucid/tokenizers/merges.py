"""The merges that a vocabulary implies: what `tokenizer.json` lists, and other formats leave to the reader."""

from collections.abc import Mapping
from typing import TypeVar

Text = TypeVar("Text", str, bytes)


def merges_of(order: Mapping[Text, int | float]) -> list[tuple[Text, Text]]:
    """Every way in which a piece is two other pieces side by side, the pieces of least `order` first.

    Of pieces of equal order, those with the longest left part come first. A run of spaces, whose pieces are all of one
    order in Llama 2, so becomes one long piece from the left, as where the leftmost of equal pairs is merged.
    """
    found: list[tuple[float, int, int, Text, Text]] = []
    for piece, rank in order.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in order and right in order:
                found.append((rank, -cut, -len(right), left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]
