"""One id per character: nothing to learn, and a text has about four times as many tokens as with byte pairs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llucid.errors import LlucidError
from llucid.tokenizers.folder import write_folder
from llucid.tokenizers.text import replace_surrogates


class Characters:
    """A vocabulary of single characters; an id is the rank of its character in code-point order."""

    bos: int | None = None
    eos: int | None = None
    stop_ids: frozenset[int] = frozenset()

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = sorted(set(characters))
        if not self.characters:
            raise LlucidError("a character vocabulary needs at least one character; the text is empty")

        self.vocab_size = len(self.characters)
        self.special: dict[str, int] = {}
        self.ids = np.full(0x110000, -1, np.int32)  # by code point; −1 for none
        self.ids[[ord(character) for character in self.characters]] = np.arange(self.vocab_size)

    def encode_array(self, text: str) -> NDArray[np.int32]:
        """`encode` as one array, at hundreds of millions of characters a second."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = self.ids[points]
        if (ids < 0).any():
            unknown = ", ".join(repr(chr(point)) for point in sorted(set(points[ids < 0].tolist()))[:10])
            raise LlucidError(
                f"{unknown} cannot be encoded: this tokenizer has only the {self.vocab_size} characters of the text "
                "that it was made from; leave such characters out, or train a new model with tokenizer=bpe:1024"
            )
        return ids

    def encode(self, text: str) -> list[int]:
        return self.encode_array(text).tolist()

    def decode(self, ids: Sequence[int]) -> str:
        return "".join([self.characters[token] for token in ids])

    def piece(self, id: int) -> bytes:
        return replace_surrogates(self.characters[id]).encode()

    def json(self) -> str:
        """Its `tokenizer.json`: text is split everywhere, and each character is a word of its own."""
        from llucid.tokenizers.tokenizer_json import special_json  # imports a library that takes time

        isolate = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False}
        vocabulary = {character: token for token, character in enumerate(self.characters)}
        model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "\ufffd"}
        return special_json(model, {}, None, normalizer=[], pre_tokenizer=[isolate], decoder=[{"type": "Fuse"}])

    def save(self, folder: Path) -> None:
        write_folder(folder, self.json(), {})


def is_characters(content: dict[str, Any]) -> bool:
    """Whether a `tokenizer.json` is one that Characters writes."""
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") != "WordLevel" or content.get("added_tokens"):
        return False
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not vocabulary or not all(len(word) == 1 for word in vocabulary):
        return False
    return vocabulary == {character: token for token, character in enumerate(sorted(vocabulary))}
