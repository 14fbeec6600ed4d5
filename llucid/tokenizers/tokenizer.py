"""What every tokenizer offers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back. No text is encoded as a special token, whatever it says: these are inserted by id."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is less."""
        ...

    @property
    def bos(self) -> int | None:
        """The id that begins every sequence, where the model was trained with one."""
        ...

    @property
    def eos(self) -> int | None:
        """The id that ends a text."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids after which generation stops."""
        ...

    @property
    def special(self) -> dict[str, int]:
        """The special tokens by name."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of ordinary text, without BOS. Raises LlucidError for a character that has none."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens have none."""
        ...

    def piece(self, id: int) -> bytes:
        """The bytes that an id stands for, which may be part of a character; none for a special token.

        The pieces of an encoded text join to its UTF-8, after the space that SentencePiece puts before every text.
        """
        ...

    def json(self) -> str:
        """The content of its `tokenizer.json`. Raises LlucidError if the format cannot express it."""
        ...

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json`, or `tokenizer.model` where that gives other ids, and `tokenizer_config.json`, which
        transformers' AutoTokenizer opens."""
        ...
