"""Llama 1's and 2's `tokenizer.model`: pieces with scores, merged by the sentencepiece library."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from llucid.errors import LlucidError
from llucid.files import replacing
from llucid.tokenizers.merges import merges_of
from llucid.tokenizers.protobuf import fields
from llucid.tokenizers.surrogates import mend
from llucid.tokenizers.tokenizer_json import special_json, write_folder

# Field numbers of sentencepiece_model.proto: ModelProto; then those of its messages.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE_TEXT, PIECE_SCORE = 1, 2
MODEL_TYPE, BPE = 3, 2
CHARACTER_MAP, DUMMY_PREFIX, REMOVE_SPACES, ESCAPE_SPACES = 2, 3, 4, 5


class SentencePiece:
    """A SentencePiece model, by its own library. A text begins with a space that is not in it; decoding takes it away.

    Its `tokenizer.json` gives the same ids wherever no two equally good merges overlap (the library takes the leftmost
    one, the format knows no equals); Llama 2's only equals are runs of spaces, which are the same. It decodes bytes
    that are no UTF-8 with U+FFFD for each byte of their run, where the library keeps what it can.
    """

    def __init__(self, model: bytes) -> None:
        """Raises LlucidError if `model` is not the content of a whole SentencePiece model."""
        self.model = model
        try:
            self.processor = library = SentencePieceProcessor(model_proto=model)
            self.vocab_size = library.vocab_size()
            self.pieces = library.id_to_piece(every := list(range(self.vocab_size)))  # all at once: a third of the time
        except (RuntimeError, ValueError) as error:  # among them pieces that are no UTF-8
            raise LlucidError(f"the sentencepiece library refuses it: {error}") from error
        self.scores = library.get_score(every)
        self.bos = library.bos_id() if library.bos_id() >= 0 else None
        self.eos = library.eos_id() if library.eos_id() >= 0 else None
        self.stop_ids = frozenset() if self.eos is None else frozenset({self.eos})
        kinds = zip(self.pieces, every, library.is_control(every), library.is_unknown(every), strict=True)
        self.special = {piece: token for piece, token, control, unknown in kinds if control or unknown}

    @cached_property
    def normalizer(self) -> dict[int, int | bytes]:
        """What it does to text before it merges, by field number. Raises LlucidError for fields that are damaged."""
        told: dict[int, int | bytes] = {CHARACTER_MAP: b"", DUMMY_PREFIX: 1, REMOVE_SPACES: 1, ESCAPE_SPACES: 1}
        for number, value in fields(self.model):
            if number == NORMALIZER and isinstance(value, bytes):
                told |= dict(fields(value))
        return told

    def encode(self, text: str) -> list[int]:
        return self.processor.encode(mend(text))

    def decode(self, ids: Sequence[int]) -> str:
        special = self.special.values()
        return self.processor.decode([token for token in ids if token < self.vocab_size and token not in special])

    def json(self) -> str:
        """Its `tokenizer.json`. Raises LlucidError for a model that is no Llama's: unigram, or one that alters text."""
        if _trained_as(self.model) != BPE:
            raise LlucidError("this SentencePiece model does not merge pairs (BPE), as every Llama's does")
        told = self.normalizer
        if told[CHARACTER_MAP] or told[REMOVE_SPACES] or not told[ESCAPE_SPACES]:
            raise LlucidError("this SentencePiece model alters text before it merges, as no Llama's does")
        library = self.processor
        order = {
            piece: -score
            for token, (piece, score) in enumerate(zip(self.pieces, self.scores, strict=True))
            if piece not in self.special and not library.is_byte(token)
        }
        model = {
            "type": "BPE",
            "unk_token": self.pieces[library.unk_id()],
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: token for token, piece in enumerate(self.pieces)},
            "merges": merges_of(order),
        }
        spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        normalizer: list[dict[str, Any]] = [spaces]
        decoder: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        if told[DUMMY_PREFIX]:
            normalizer = [{"type": "Prepend", "prepend": "▁"}, spaces]
            decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        return special_json(model, self.special, self.bos, normalizer=normalizer, pre_tokenizer=[], decoder=decoder)

    def save(self, folder: Path) -> None:
        names = {"unk_token": self.processor.unk_id(), "bos_token": self.bos, "eos_token": self.eos}
        told = {role: self.pieces[token] for role, token in names.items() if token is not None}
        write_folder(folder, self.json(), told, self.stop_ids)

    def write(self, path: Path) -> None:
        """Writes the model as it was read, Meta's `tokenizer.model`."""
        with replacing(path) as temporary:
            temporary.write_bytes(self.model)


def is_sentencepiece(data: bytes) -> bool:
    """Whether `data` begins as a SentencePiece model does: with a piece, that is with its text."""
    return data[:1] == bytes([PIECES << 3 | 2]) and PIECE_TEXT << 3 | 2 in data[2:4]


def _trained_as(model: bytes) -> int | bytes:
    kinds = [dict(fields(value)) for number, value in fields(model) if number == TRAINER and isinstance(value, bytes)]
    return kinds[-1].get(MODEL_TYPE, 1) if kinds else 1
