"""Llama 1's and 2's `tokenizer.model`: pieces with scores, merged by the sentencepiece library."""

import json
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from llucid.errors import LlucidError
from llucid.files import write_atomically
from llucid.tokenizers.folder import added_in, end_ids, folder_config, name_of, role_names, unused_padding, write_folder
from llucid.tokenizers.merges import merges_of
from llucid.tokenizers.protobuf import field, fields
from llucid.tokenizers.text import replace_surrogates
from llucid.tokenizers.tokenizer import Tokenizer
from llucid.tokenizers.tokenizer_json import JsonTokenizer, special_json

# Field numbers of sentencepiece_model.proto: ModelProto; then those of its messages.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE_TEXT, PIECE_SCORE, PIECE_TYPE = 1, 2, 3
MODEL_TYPE, BPE, SUFFIX = 3, 2, 24
USER_DEFINED = 4
CHARACTER_MAP, DUMMY_PREFIX, REMOVE_SPACES, ESCAPE_SPACES = 2, 3, 4, 5


class SentencePiece:
    """A SentencePiece model in its own library. Encoding puts a space before a text; decoding removes it.

    Its `tokenizer.json` gives the same ids where no equally good merges overlap: the library takes the leftmost of
    equals, the format has none. Llama 2's only equals are runs of spaces, where both agree. It decodes bytes that are
    not UTF-8 as U+FFFD for each byte of the run, where the library keeps the valid ones.
    """

    def __init__(self, model: bytes, config: Mapping[str, Any] | None = None, ends: Collection[int] = ()) -> None:
        """`config` is the content of a `tokenizer_config.json`; special tokens among `ends` end a text as well.

        Raises LlucidError if `model` is not the content of a whole SentencePiece model.
        """
        self.model = model
        self.config = dict(config or {})
        try:
            self.processor = library = SentencePieceProcessor(model_proto=model)
            self.vocab_size = library.vocab_size()
            self.pieces = library.id_to_piece(every := list(range(self.vocab_size)))  # faster than one by one
        except (RuntimeError, ValueError) as error:  # ValueError: a piece that is not UTF-8
            raise LlucidError(f"the sentencepiece library refuses it: {error}") from error
        self.scores = library.get_score(every)
        begins = self.config.get("add_bos_token") is not False
        self.bos = self.named("bos_token", library.bos_id()) if begins else None
        self.eos = self.named("eos_token", library.eos_id())
        kinds = zip(self.pieces, every, library.is_control(every), library.is_unknown(every), strict=True)
        self.special = {piece: token for piece, token, control, unknown in kinds if control or unknown}
        stops = {*ends} & {*self.special.values()}
        self.stop_ids = frozenset(stops if self.eos is None else stops | {self.eos})

    def named(self, role: str, default: int) -> int | None:
        """The id of what `tokenizer_config.json` calls "bos_token" or "eos_token", else the model's own, if any."""
        name = name_of(role, self.config)
        token = self.processor.piece_to_id(name) if name else default
        token = default if self.pieces[token] != name else token
        return None if token < 0 else token

    @cached_property
    def user_defined(self) -> dict[str, int]:
        """The pieces that are found in a text before anything is merged, except those with a space."""
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
        """How it normalises text, by field number. Raises LlucidError for damaged fields."""
        default: dict[int, int | bytes] = {CHARACTER_MAP: b"", DUMMY_PREFIX: 1, REMOVE_SPACES: 1, ESCAPE_SPACES: 1}
        return default | message_in(self.model, NORMALIZER)

    def encode(self, text: str) -> list[int]:
        return self.processor.encode(replace_surrogates(text))

    def decode(self, ids: Sequence[int]) -> str:
        known = (token for token in ids if token < self.vocab_size)
        return self.processor.decode([token for token in known if self.pieces[token] not in self.special])

    def piece(self, id: int) -> bytes:
        if id >= self.vocab_size or self.processor.is_control(id) or self.processor.is_unknown(id):
            return b""
        if self.processor.is_byte(id):
            return bytes([int(self.pieces[id][3:5], 16)])
        return self.pieces[id].replace("▁", " ").encode()

    def obstacle(self, collapses: bool = False) -> str | None:
        """Why another format cannot express this model, None if it can: it merges pairs (BPE), of text as it is, with
        the space before a word. `collapses` is whether it can express that runs of spaces are collapsed."""
        normalizer, trainer = self.normalizer, message_in(self.model, TRAINER)
        if trainer.get(MODEL_TYPE, 1) != BPE:
            return "it does not merge pairs (BPE)"
        if normalizer[CHARACTER_MAP]:
            return "it normalises characters (NFKC), and other libraries do so differently"
        if not normalizer[ESCAPE_SPACES]:
            return "it does not write spaces as ▁"
        if normalizer[REMOVE_SPACES] and not collapses:
            return "it collapses runs of spaces"
        return "it puts the space behind a word" if trainer.get(SUFFIX) else None

    def json(self) -> str:
        """Its `tokenizer.json`. Raises LlucidError for a model that the format cannot express."""
        if reason := self.obstacle(collapses=True):
            raise LlucidError(f"a tokenizer.json cannot express this SentencePiece model: {reason}")
        normalizer, library, unmerged = self.normalizer, self.processor, self.special | self.user_defined
        order = {
            piece: -score
            for token, (piece, score) in enumerate(zip(self.pieces, self.scores, strict=True))
            if piece not in unmerged and not library.is_byte(token)
        }
        model = {
            "type": "BPE",
            "unk_token": self.pieces[library.unk_id()],
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: token for token, piece in enumerate(self.pieces)},
            "merges": merges_of(order),
        }
        steps = [replace("String", " ", "▁")]
        decoder = [replace("String", "▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
        if normalizer[DUMMY_PREFIX]:
            steps.insert(0, {"type": "Prepend", "prepend": "▁"})
            decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        if normalizer[REMOVE_SPACES]:
            steps = [replace("Regex", r"\A +| +(?= )", ""), *steps, replace("Regex", r"▁+\z", "")]
        chains: dict[str, list[dict[str, Any]]] = {"normalizer": steps, "pre_tokenizer": [], "decoder": decoder}
        return special_json(model, self.special, self.bos, **chains, unmarked=self.user_defined)

    def roles(self) -> dict[str, str]:
        """The names of its UNK, BOS and EOS."""
        roles = {"unk_token": self.processor.unk_id(), "bos_token": self.bos, "eos_token": self.eos}
        return {role: self.pieces[token] for role, token in roles.items() if token is not None}

    def save(self, folder: Path) -> None:
        write_folder(folder, self.json(), self.roles() | self.config, self.stop_ids)

    def write(self, path: Path) -> None:
        """Writes the model as it was read, Meta's `tokenizer.model`."""
        write_atomically(path, self.model)


def replace(kind: str, pattern: str, content: str) -> dict[str, Any]:
    """A step of a `tokenizer.json` that replaces a "String" or a "Regex"."""
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def open_sentencepiece(model: bytes, folder: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.model`, with the files of transformers beside it.

    With more special or added tokens it is opened as its `tokenizer.json`, since the library has no added tokens. Then
    a text after a special token also begins with a space, but not if `legacy` is false, as in transformers. The same
    holds if a chat template writes special tokens and `legacy` is false, if BOS or EOS is an ordinary piece, or if the
    model finds pieces in text that are not special: a template may write them.
    """
    config = folder_config(folder)
    if config.get("add_prefix_space") is False:
        model += field(NORMALIZER, field(DUMMY_PREFIX, 0))  # of a repeated field, the last counts
    plain = SentencePiece(model, config, end_ids(folder))
    padding = unused_padding(config)
    added = {
        name: number for number, token in added_in(folder, config).items() if (name := token["content"]) != padding
    }
    ends = {plain.bos, plain.eos} - {None}
    spaceless = config.get("legacy") is False and plain.normalizer[DUMMY_PREFIX] and not plain.normalizer[REMOVE_SPACES]
    roles = {*role_names(config)} - {padding}
    known = added.items() <= plain.special.items() and roles <= plain.special.keys() and not plain.user_defined
    if known and ends <= {*plain.special.values()} and not (spaceless and config.get("chat_template")):
        return plain
    content = json.loads(plain.json())
    if spaceless:
        first = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
        content |= {"normalizer": None, "pre_tokenizer": first}
    return JsonTokenizer(content, folder, plain.roles())


def is_sentencepiece(data: bytes) -> bool:
    """Whether `data` begins as a SentencePiece model does: with a piece, and that with its text."""
    return data[:1] == bytes([PIECES << 3 | 2]) and PIECE_TEXT << 3 | 2 in data[2:4]


def message_in(model: bytes, number: int) -> dict[int, int | bytes]:
    """The fields of a message in a model, such as its NORMALIZER. Raises LlucidError for damaged fields."""
    found: dict[int, int | bytes] = {}
    for place, value in fields(model):
        if place == number and isinstance(value, bytes):
            found |= dict(fields(value))
    return found
