"""llama2.c's `tokenizer.bin`: pieces with scores; the pair with the best score is merged, again and again."""

import re
import struct
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from itertools import count, islice, pairwise
from mmap import mmap
from pathlib import Path
from typing import Any

from llucid.errors import LlucidError
from llucid.files import write_atomically
from llucid.properties import cached_property
from llucid.tokenizers.byte_pieces import BYTE_PIECE
from llucid.tokenizers.comparison import json_difference, text_difference
from llucid.tokenizers.folder import write_folder
from llucid.tokenizers.merges import merges_of
from llucid.tokenizers.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, SentencePiece, model_of
from llucid.tokenizers.text import replace_surrogates
from llucid.tokenizers.tokenizer_json import special_json

SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}
FIRST_BYTE = 3
"""The id of the byte 0: llama2.c assumes that the 256 bytes follow the special tokens."""
WORST_SCORE = -1e10
"""Pieces are only merged if their score is better than this."""
LONGEST_WORD, MOST_WORDS = 64, 1 << 16
"""Bounds of the cache of merged words: the bytes of a word, and the number of words."""


class Llama2cTokenizer:
    """The merge rule of llama2.c's `run.c`: of all neighbouring pairs that join to a piece, the one with the best score
    is merged, of equals the leftmost. Encoding puts a space before a text; decoding removes it after BOS.

    Unlike llama2.c, no text becomes a special token or a raw byte by spelling it; a byte has exactly two hex digits
    (sscanf accepts one, and anything after it); a zero byte does not end a text; and the lowest id wins where two have
    the same piece. Its `tokenizer.json` gives the same ids where no equally good merges overlap.
    """

    bos: int | None = 1
    eos: int | None = 2
    stop_ids: frozenset[int] = frozenset({1, 2})  # llama2.c stops at BOS, which separated its training texts

    def __init__(self, pieces: Sequence[bytes], scores: Sequence[float]) -> None:
        """The piece and the score of each id. Raises LlucidError if there are fewer than the three special tokens."""
        if len(pieces) < len(SPECIAL) or len(pieces) != len(scores):
            raise LlucidError(f"expected as many scores as pieces, 3 at least; found {len(scores)} and {len(pieces)}")
        self.pieces, self.scores = list(pieces), list(scores)
        self.vocab_size = len(pieces)
        self.special = dict(SPECIAL)
        self.config: dict[str, Any] = {}
        """More of a `tokenizer_config.json`, such as a chat template, for which a `tokenizer.bin` has no place."""

        self.byte_of = _byte_pieces(self.pieces)
        self.byte_ids = {byte: token for token, byte in reversed(self.byte_of.items())}
        ordinary = [token for token in range(len(SPECIAL), self.vocab_size) if token not in self.byte_of]
        self.ids = {self.pieces[token]: token for token in reversed(ordinary)}
        # If no piece continues after a space, merges stay within a word, and a word's ids can be cached.
        apart = not any(re.search(rb"[^ ] ", piece) for piece in self.ids)
        self.parts = re.compile(rb" *[^ ]+| +" if apart else rb"[\s\S]+")
        self.cache: dict[bytes, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = []
        for part in self.parts.findall(b" " + replace_surrogates(text).encode()):
            merged = self.cache.get(part)
            if merged is None:
                merged = self._merge(part)
                if len(part) <= LONGEST_WORD:
                    self.cache[part] = merged
            ids += merged
        if len(self.cache) > MOST_WORDS:
            self.cache.clear()
        return ids

    def _merge(self, text: bytes) -> list[int]:
        """The ids of one part: a heap of pairs, best first, over a list of tokens linked to their neighbours."""
        pieces, scores, ids = self.pieces, self.scores, self.ids
        tokens: list[int] = []
        for character in text.decode():
            token = ids.get(character.encode())
            tokens.extend(self._bytes(character) if token is None else (token,))
        following = [*range(1, len(tokens)), -1]
        previous = [*range(-1, len(tokens) - 1)]
        heap: list[tuple[float, int, int, int, int, int]] = []
        pairs = [*pairwise(range(len(tokens)))]  # new neighbours
        while True:
            for left, right in pairs:
                merged = ids.get(pieces[tokens[left]] + pieces[tokens[right]]) if min(left, right) >= 0 else None
                if merged is not None and scores[merged] > WORST_SCORE:
                    heappush(heap, (-scores[merged], left, right, merged, tokens[left], tokens[right]))
            if not heap:
                return [token for token in tokens if token >= 0]
            _, left, right, merged, was_left, was_right = heappop(heap)
            if tokens[left] != was_left or tokens[right] != was_right:  # merged since
                pairs = []
                continue
            tokens[left], tokens[right] = merged, -1
            after = following[left] = following[right]
            if after >= 0:
                previous[after] = left
            pairs = [(previous[left], left), (left, after)]

    def _bytes(self, character: str) -> list[int]:
        """The ids of the bytes of a character without a piece."""
        try:
            return [self.byte_ids[byte] for byte in character.encode()]
        except KeyError as error:
            raise LlucidError(
                f"{character!r} cannot be encoded: this tokenizer has neither a piece for it nor pieces for bytes"
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        pieces: list[bytes] = []
        begins = True
        for token in ids:
            piece = self.piece(token)
            pieces.append(piece.removeprefix(b" ") if begins and token not in self.byte_of else piece)
            begins = token == self.bos
        return b"".join(pieces).decode(errors="replace")

    def piece(self, id: int) -> bytes:
        if id in self.byte_of:
            return bytes([self.byte_of[id]])
        return self.pieces[id] if len(SPECIAL) <= id < self.vocab_size else b""

    @cached_property
    def order(self) -> dict[str, float]:
        """The pieces that are merged from others or from which others are, the best first: those of least order."""
        scores = {piece.decode(errors="replace"): self.scores[token] for piece, token in self.ids.items()}
        return {piece: -score for piece, score in scores.items() if score > WORST_SCORE or len(piece) == 1}

    def json(self) -> str:
        """Its `tokenizer.json`. Raises LlucidError for what the format cannot express: two ids with the same piece, or
        a piece that is not UTF-8."""
        names = {token: name for name, token in SPECIAL.items()}
        names |= {token: f"<0x{byte:02X}>" for byte, token in self.byte_ids.items()}
        try:
            spelled = [names.get(token) or piece.decode() for token, piece in enumerate(self.pieces)]
        except UnicodeDecodeError as error:
            raise LlucidError(f"a tokenizer.json cannot hold a piece that is not UTF-8: {error.object!r}") from error
        vocabulary = {piece: token for token, piece in enumerate(spelled)}
        if len(vocabulary) != len(spelled):
            twice = next(piece for token, piece in enumerate(spelled) if vocabulary[piece] != token)
            raise LlucidError(f"a tokenizer.json cannot hold two ids with the same piece, here {twice!r}")
        model: dict[str, Any] = {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": merges_of(self.order),
        }
        return special_json(
            model,
            SPECIAL,
            self.bos,
            normalizer=[{"type": "Prepend", "prepend": " "}],
            pre_tokenizer=[],
            decoder=[
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        )

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json`, or a SentencePiece model if the former gives other ids; `tokenizer_config.json`.

        Raises LlucidError for what neither expresses."""
        config = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | self.config
        content = self.json()
        if json_difference(self) is None:
            return write_folder(folder, content, config, self.stop_ids)
        made = self.sentencepiece(config)
        if difference := text_difference(self, made):
            raise LlucidError(
                f"neither tokenizer.json nor a SentencePiece model expresses this tokenizer: {difference}"
            )
        return made.save(folder)

    def sentencepiece(self, config: dict[str, Any]) -> SentencePiece:
        """The same pieces and scores as a SentencePiece model."""
        names = {token: name for name, token in SPECIAL.items()}
        names |= {token: f"<0x{byte:02X}>" for token, byte in self.byte_of.items()}
        texts = [names.get(token) or piece.decode().replace(" ", "▁") for token, piece in enumerate(self.pieces)]
        types = [UNKNOWN, CONTROL, CONTROL, *[NORMAL] * (self.vocab_size - len(SPECIAL))]
        for token in self.byte_of:
            types[token] = BYTE
        roles = {"unk": 0, "bos": self.bos, "eos": self.eos}
        return SentencePiece(model_of(texts, self.scores, types, roles, True), config, self.stop_ids)

    def write(self, path: Path) -> None:
        """Writes the `tokenizer.bin`."""
        longest = max(len(piece) for piece in self.pieces)
        rows = zip(self.pieces, self.scores, strict=True)
        entries = [struct.pack("<fi", score, len(piece)) + piece for piece, score in rows]
        write_atomically(path, struct.pack("<i", longest) + b"".join(entries))

    @classmethod
    def from_bytes(cls, data: bytes, vocab_size: int | None = None) -> "Llama2cTokenizer":
        """The tokenizer of a file: the largest length, then for each id a float score, an int length and its bytes.

        The file does not say how many ids it has: `vocab_size`, or all it holds. Raises LlucidError if it ends within
        an entry, or if a length is impossible.
        """
        rows = list(islice(_rows(data), vocab_size))
        if vocab_size is not None and len(rows) < vocab_size:
            raise LlucidError(f"the file holds {len(rows)} pieces, but the model has {vocab_size} ids")
        pieces = [data[start:end] for _, start, end in rows]
        return cls(pieces, [score for score, _, _ in rows])


def _rows(data: bytes | mmap) -> Iterator[tuple[float, int, int]]:
    """For each id the score, and where its piece starts and ends in the file."""
    if len(data) < 4:
        raise LlucidError(f"a tokenizer.bin has at least 4 bytes, this file {len(data)}")
    (longest,) = struct.unpack_from("<i", data)
    at = 4
    for token in count():
        if at == len(data):
            return
        if len(data) - at < 8:
            raise LlucidError(f"the file ends within the entry of id {token}")
        score, length = struct.unpack_from("<fi", data, at)
        if not 0 < length <= min(longest, len(data) - at - 8):
            raise LlucidError(f"the piece of id {token} cannot have the length {length}")
        yield score, at + 8, at + 8 + length
        at += 8 + length


def is_llama2c(data: bytes | mmap) -> bool:
    """Whether `data` consists of whole entries of score, length and piece, at least three of them."""
    try:
        return sum(1 for _ in _rows(data)) >= len(SPECIAL)
    except LlucidError:
        return False


def _byte_pieces(pieces: Sequence[bytes]) -> dict[int, int]:
    """The byte of each id that stands for one."""
    found = {token: BYTE_PIECE.fullmatch(piece) for token, piece in enumerate(pieces)}
    if all(pieces[FIRST_BYTE + byte : FIRST_BYTE + byte + 1] == [chr(byte).encode()] for byte in range(256)):
        return {FIRST_BYTE + byte: byte for byte in range(256)}  # as llama2.c's first files spelled them
    return {token: int(match[1], 16) for token, match in found.items() if match and token >= len(SPECIAL)}
