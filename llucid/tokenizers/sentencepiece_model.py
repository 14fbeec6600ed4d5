"""Llama 1's and 2's `tokenizer.model`: pieces with scores, merged by the sentencepiece library."""

import json
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from llucid.errors import LlucidError
from llucid.files import atomic_file
from llucid.tokenizers import Tokenizer
from llucid.tokenizers.merges import merges_of
from llucid.tokenizers.protobuf import field, fields
from llucid.tokenizers.text import replace_surrogates
from llucid.tokenizers.tokenizer_json import (
    JsonTokenizer,
    added_in,
    ends_in,
    folder_config,
    name_of,
    special_json,
    write_folder,
)

# Field numbers of sentencepiece_model.proto: ModelProto; then those of its messages.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE_TEXT, PIECE_SCORE, PIECE_TYPE = 1, 2, 3
MODEL_TYPE, BPE = 3, 2
USER_DEFINED = 4
CHARACTER_MAP, DUMMY_PREFIX, REMOVE_SPACES, ESCAPE_SPACES = 2, 3, 4, 5


class SentencePiece:
    """A SentencePiece model, by its own library. A text begins with a space that is not in it; decoding takes it away.

    Its `tokenizer.json` gives the same ids wherever no two equally good merges overlap (the library takes the leftmost
    one, the format knows no equals); Llama 2's only equals are runs of spaces, which are the same. It decodes bytes
    that are no UTF-8 with U+FFFD for each byte of their run, where the library keeps what it can.
    """

    def __init__(self, model: bytes, config: Mapping[str, Any] | None = None, ends: Collection[int] = ()) -> None:
        """`config` is what a `tokenizer_config.json` says of it; special tokens among `ends` end a text, too.

        Raises LlucidError if `model` is not the content of a whole SentencePiece model.
        """
        self.model = model
        self.config = dict(config or {})
        try:
            self.processor = library = SentencePieceProcessor(model_proto=model)
            self.vocab_size = library.vocab_size()
            self.pieces = library.id_to_piece(every := list(range(self.vocab_size)))  # all at once: a third of the time
        except (RuntimeError, ValueError) as error:  # among them pieces that are no UTF-8
            raise LlucidError(f"the sentencepiece library refuses it: {error}") from error
        self.scores = library.get_score(every)
        begins = self.config.get("add_bos_token") is not False
        self.bos = self.named("bos_token", library.bos_id()) if begins else None
        self.eos = self.named("eos_token", library.eos_id())
        kinds = zip(self.pieces, every, library.is_control(every), library.is_unknown(every), strict=True)
        self.special = {piece: token for piece, token, control, unknown in kinds if control or unknown}
        stops = {*ends} & {*self.special.values()}
        self.stop_ids = frozenset(stops if self.eos is None else stops | {self.eos})

    def named(self, role: str, otherwise: int) -> int | None:
        """The id of what `tokenizer_config.json` calls "bos_token" or "eos_token", else the model's own, if any."""
        name = name_of(role, self.config)
        token = self.processor.piece_to_id(name) if name else otherwise
        token = otherwise if self.pieces[token] != name else token
        return None if token < 0 else token

    @cached_property
    def user_defined(self) -> dict[str, int]:
        """The pieces that are found in a text before anything is merged, but for those with a space in them."""
        tag = bytes([PIECE_TYPE << 3, USER_DEFINED])
        if tag not in self.model:
            return {}
        parts = [part for number, part in fields(self.model) if number == PIECES and isinstance(part, bytes)]
        return {
            piece: token
            for token, (piece, part) in enumerate(zip(self.pieces, parts, strict=True))
            if "▁" not in piece and tag in part and dict(fields(part)).get(PIECE_TYPE) == USER_DEFINED
        }

    @cached_property
    def normalizer(self) -> dict[int, int | bytes]:
        """What it does to text before it merges, by field number. Raises LlucidError for fields that are damaged."""
        told: dict[int, int | bytes] = {CHARACTER_MAP: b"", DUMMY_PREFIX: 1, REMOVE_SPACES: 1, ESCAPE_SPACES: 1}
        for number, value in fields(self.model):
            if number == NORMALIZER and isinstance(value, bytes):
                told |= dict(fields(value))
        return told

    def encode(self, text: str) -> list[int]:
        return self.processor.encode(replace_surrogates(text))

    def decode(self, ids: Sequence[int]) -> str:
        special = self.special.values()
        return self.processor.decode([token for token in ids if token < self.vocab_size and token not in special])

    def json(self) -> str:
        """Its `tokenizer.json`. Raises LlucidError for a model that is no Llama's: unigram, or one that alters text."""
        if trained_as(self.model) != BPE:
            raise LlucidError("this SentencePiece model does not merge pairs (BPE), as every Llama's does")
        told = self.normalizer
        if told[CHARACTER_MAP] or told[REMOVE_SPACES] or not told[ESCAPE_SPACES]:
            raise LlucidError("this SentencePiece model alters text before it merges, as no Llama's does")
        library = self.processor
        order = {
            piece: -score
            for token, (piece, score) in enumerate(zip(self.pieces, self.scores, strict=True))
            if piece not in self.special | self.user_defined and not library.is_byte(token)
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
        steps: dict[str, list[dict[str, Any]]] = {"normalizer": normalizer, "pre_tokenizer": [], "decoder": decoder}
        return special_json(model, self.special, self.bos, **steps, unmarked=self.user_defined)

    def save(self, folder: Path) -> None:
        names = {"unk_token": self.processor.unk_id(), "bos_token": self.bos, "eos_token": self.eos}
        told = {role: self.pieces[token] for role, token in names.items() if token is not None}
        write_folder(folder, self.json(), told | self.config, self.stop_ids)

    def write(self, path: Path) -> None:
        """Writes the model as it was read, Meta's `tokenizer.model`."""
        with atomic_file(path) as temporary:
            temporary.write_bytes(self.model)


def open_sentencepiece(model: bytes, folder: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.model` in a folder, where transformers' files may stand beside it.

    If tokens were added to it, it is opened as its `tokenizer.json`, since its library knows no others. Then a text
    after a special token begins with a space, too, but not where `legacy` is false, as in transformers. So it is if
    some are in it that are not special, which a template may write all the same.
    """
    config = folder_config(folder)
    if config.get("add_prefix_space") is False:
        model += field(NORMALIZER, field(DUMMY_PREFIX, 0))  # of a field that comes twice, the last counts
    alone = SentencePiece(model, config, ends_in(folder))
    padding = name_of("pad_token", config)  # which is in no text
    added = {token.content: number for number, token in added_in(folder, config).items() if token.content != padding}
    if added.items() <= alone.special.items() and not alone.user_defined:
        return alone
    content = json.loads(alone.json())
    if config.get("legacy") is False and alone.normalizer[DUMMY_PREFIX]:
        content["normalizer"] = None
        content["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "first",
            "split": False,
        }
    return JsonTokenizer(content, folder)


def is_sentencepiece(data: bytes) -> bool:
    """Whether `data` begins as a SentencePiece model does: with a piece, that is with its text."""
    return data[:1] == bytes([PIECES << 3 | 2]) and PIECE_TEXT << 3 | 2 in data[2:4]


def trained_as(model: bytes) -> int | bytes:
    """The algorithm that its pieces were found by, a number; BPE is one of them, and unigram, 1, if nothing is said."""
    kinds = [dict(fields(value)) for number, value in fields(model) if number == TRAINER and isinstance(value, bytes)]
    return kinds[-1].get(MODEL_TYPE, 1) if kinds else 1
