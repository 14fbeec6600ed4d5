"""Llama 1's and 2's `tokenizer.model`: pieces with scores, merged by the sentencepiece library."""

import struct
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken

from llucid.errors import LlucidError
from llucid.files import write_atomically
from llucid.properties import cached_property
from llucid.tokenizers.added_tokens import AddedTokens
from llucid.tokenizers.comparison import json_difference
from llucid.tokenizers.folder import (
    FLAGS,
    added_in,
    end_ids,
    folder_config,
    name_of,
    role_names,
    role_tokens,
    unused_padding,
    write_beside,
    write_folder,
)
from llucid.tokenizers.merges import merges_of
from llucid.tokenizers.protobuf import field, fields, messages, varint
from llucid.tokenizers.steps import MOST_GROWTH, USUAL_GROWTH, longest_text, refuse_longer
from llucid.tokenizers.text import replace_surrogates
from llucid.tokenizers.tokenizer_json import special_json

# Field numbers of sentencepiece_model.proto: ModelProto; then those of its messages.
PIECES, TRAINER, NORMALIZER, DENORMALIZER = 1, 2, 3, 5
PIECE_TEXT, PIECE_SCORE, PIECE_TYPE = 1, 2, 3
MODEL_TYPE, BPE, SUFFIX = 3, 2, 24
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces, in GGUF as well."""
BYTE_FALLBACK, NAMES = 35, {"unk": 45, "bos": 46, "eos": 47}  # in the trainer
CHARACTER_MAP, DUMMY_PREFIX, REMOVE_SPACES, ESCAPE_SPACES = 2, 3, 4, 5
OTHERS = 64
"""A model has at most so many fields that are not pieces; the library's have up to 5."""
NEVER = -1e10
"""The score of a piece that is not merged, in llama2.c as well."""


class SentencePiece:
    """A SentencePiece model in its own library. Encoding puts a space before a text; decoding removes it.

    The library has no added tokens, which transformers and llama.cpp find in a text first: here, each part between them
    is encoded as a text of its own. If `legacy` is false and there are added tokens or a chat template, then a space is
    put before the first part only, unless it begins with one, as in transformers.

    Its `tokenizer.json` gives the same ids where no equally good merges overlap: the library takes the leftmost of
    equals, the format has none. Llama 2's only equals are runs of spaces, where both agree. It decodes bytes that are
    not UTF-8 as U+FFFD for each byte of the run, where the library keeps the valid ones.
    """

    def __init__(
        self,
        model: bytes,
        config: Mapping[str, Any] | None = None,
        ends: Collection[int] = (),
        added: Mapping[int, AddedToken] | None = None,
    ) -> None:
        """`config` is the content of a `tokenizer_config.json`; special and added tokens among `ends` end a text, too.
        The `added` tokens, by id, are pieces of the model or have the next ids.

        Raises LlucidError if `model` is not the content of a whole SentencePiece model.
        """
        self.model, self.config, self.ends = model, dict(config or {}), ends
        with refused():
            library = SentencePieceProcessor(model_proto=model)
            every = list(range(library.vocab_size()))
            self.pieces = library.id_to_piece(every)  # faster than one by one
        scores, given = library.get_score(every), dict(sorted((added or {}).items()))
        for number in [n for n, token in given.items() if token.special and n < len(every)]:
            if len(self.pieces[number]) == 1 and scores[number] < 0:  # needed to spell text
                del given[number]
        more = {number: token.content for number, token in given.items() if number >= len(every)}
        self.pieces += more.values()
        self.scores = [*scores, *[NEVER] * len(more)]
        self.vocab_size = len(self.pieces)
        self.ids = {piece: token for token, piece in enumerate(self.pieces)}

        begins = self.config.get("add_bos_token") is not False
        self.bos = self.named("bos_token", library.bos_id()) if begins else None
        self.eos = self.named("eos_token", library.eos_id())
        kinds = zip(every, library.is_control(every), library.is_unknown(every), strict=True)
        own = {token for token, control, unknown in kinds if control or unknown}
        special = {number for number, token in given.items() if token.special}
        special |= {token for token in (self.bos, self.eos) if token is not None}
        roles = {*role_names(self.config)} - {unused_padding(self.config)}
        # A single character is needed to spell other text.
        special |= {self.ids[name] for name in roles if name in self.ids and len(name) > 1}
        self.special = {self.pieces[token]: token for token in sorted(own | special)}

        self.given, self.own_size = given, len(every)
        self.next_ids = frozenset[int]()
        """Of tokens whose id is in no file."""
        named = {token for token in special - own if token < len(every)}
        self.bytes = {token for token in named if library.is_byte(token)}  # which the library spells text with
        self.hidden = named - self.bytes
        known = {*given, *self.special.values()}
        stops = {*ends} & (known if known.issuperset(ends) else known | self.added.keys())  # whose types take time
        self.stop_ids = frozenset(stops if self.eos is None else stops | {self.eos})
        if self.hidden:  # no text becomes a control symbol
            control = field(PIECE_TYPE, CONTROL)
            pieces = [part + control if token in self.hidden else part for token, part in enumerate(self.parts[PIECES])]
            model = b"".join(
                part for number, parts in (self.parts | {PIECES: pieces}).items() for part in messages(number, parts)
            )
            with refused():
                library = SentencePieceProcessor(model_proto=model)
        self.merged, self.processor, self.decoder = model, library, library
        if more:  # not in `processor`, which would merge them
            model += b"".join(
                field(PIECES, field(PIECE_TEXT, text.encode()) + field(PIECE_TYPE, CONTROL if n in special else UNUSED))
                for n, text in more.items()
            )
            with refused():
                self.decoder = SentencePieceProcessor(model_proto=model)
        tables = [self.message(number).get(CHARACTER_MAP) for number in (NORMALIZER, DENORMALIZER)]
        times = max(longest_text(table) if isinstance(table, bytes) and table else 1 for table in tables)
        if times > MOST_GROWTH:
            raise LlucidError(f"its normalizer makes texts {times} times as long")
        self.grows = times > USUAL_GROWTH
        names = {token.content: number for number, token in given.items() if number not in own | special}
        self.outside = AddedTokens(names, given) if names else None
        self.first_only = bool(
            self.config.get("legacy") is False
            and (given.keys() - own or self.config.get("chat_template"))
            and self.normalizer[DUMMY_PREFIX]
            and not self.normalizer[REMOVE_SPACES]
        )

    def named(self, role: str, default: int = -1) -> int | None:
        """The id of what `tokenizer_config.json` calls "bos_token" or "eos_token", else the default; none below 0."""
        token = self.ids.get(name_of(role, self.config) or "", default)
        return None if token < 0 else token

    @cached_property
    def parts(self) -> dict[int, list[bytes]]:
        """The messages of the model, such as its PIECES. Raises LlucidError for others than the library reads."""
        found: dict[int, list[bytes]] = {PIECES: []}
        for count, (number, value) in enumerate(fields(self.model), -self.own_size):
            if count > OTHERS:
                raise LlucidError(f"it has more than {OTHERS} fields that are not pieces")
            if isinstance(value, bytes):
                found.setdefault(number, []).append(value)
        if len(found[PIECES]) != self.own_size:
            raise LlucidError(f"it has {len(found[PIECES])} pieces, of which the library reads {self.own_size}")
        return found

    def message(self, number: int) -> dict[int, int | bytes]:
        """The fields of a message, such as its NORMALIZER. Raises LlucidError for damaged fields, and for one of two
        types, of which the library reads only its own."""
        found: dict[int, int | bytes] = {}
        for key, value in chain.from_iterable(map(fields, self.parts.get(number, []))):
            if type(found.setdefault(key, value)) is not type(value):
                raise LlucidError(f"the field {key} of its message {number} has two types")
            found[key] = value
        return found

    @cached_property
    def types(self) -> list[int]:
        """The type of each piece by the model, or CONTROL if it is hidden here; NORMAL if it has none."""
        types = [
            dict(fields(part)).get(PIECE_TYPE) if PIECE_TYPE << 3 in part else NORMAL for part in self.parts[PIECES]
        ]
        types = [type if isinstance(type, int) else NORMAL for type in types]
        own = [CONTROL if token in self.hidden else type for token, type in enumerate(types)]
        more = range(self.own_size, self.vocab_size)
        return [*own, *(CONTROL if self.pieces[token] in self.special else UNUSED for token in more)]

    @cached_property
    def symbols(self) -> dict[str, int]:
        """The pieces that the library finds in a text before it merges anything."""
        return {self.pieces[token]: token for token, type in enumerate(self.types) if type == USER_DEFINED}

    @cached_property
    def added(self) -> dict[int, AddedToken]:
        """The tokens that are found in a text before anything is merged: the added ones, and those of `symbols` that a
        `tokenizer.json` can find, which are longer than a character and without spaces."""
        found = {
            token: AddedToken(piece, normalized=False)
            for piece, token in self.symbols.items()
            if len(piece) > 1 and "▁" not in piece and " " not in piece
        }
        return found | self.given

    def without(self, tokens: Collection[int]) -> "SentencePiece":
        """The same, but none of these tokens is found in a text."""
        special = {token: AddedToken(self.pieces[token], normalized=False, special=True) for token in tokens}
        return SentencePiece(self.model, self.config, self.ends, self.given | special)

    def within(self, vocab_size: int) -> "SentencePiece":
        """The same without added tokens beyond the ids of a model, such as a pad token that was never trained; itself
        if a text begins or ends with one of them that a file gives its id."""
        beyond = {number for number in (self.bos, *self.stop_ids) if number is not None and number >= vocab_size}
        if not beyond <= self.next_ids:
            return self
        kept = {number: token for number, token in self.given.items() if number < vocab_size}
        return SentencePiece(self.model, self.config, self.ends, kept)

    def encode(self, text: str) -> list[int]:
        """Raises LlucidError for a character that only a special token spells."""
        return self._encode(text, True)

    def encode_later(self, text: str) -> list[int]:
        """The ids of a text after a special token."""
        return self._encode(text, False)

    def _encode(self, text: str, first: bool) -> list[int]:
        text = replace_surrogates(text)
        if self.grows:
            refuse_longer(self.processor.Normalize, text)
        ids: list[int] = []
        for part in self.outside.split(text) if self.outside else [text]:
            if isinstance(part, int):
                ids.append(part)
                first = False
            elif self.first_only and not (first and not part.startswith((" ", "▁"))):
                ids += self.without_space.encode(part)
            else:
                ids += self.processor.encode(part)
        if self.bytes and (lost := self.bytes.intersection(ids)):
            raise LlucidError(f"the text has a character that this tokenizer has only as the special token {min(lost)}")
        return ids

    @cached_property
    def without_space(self) -> SentencePieceProcessor:
        """The library's model without the space before a text."""
        return SentencePieceProcessor(model_proto=self.merged + field(NORMALIZER, field(DUMMY_PREFIX, 0)))

    @cached_property
    def normalizer(self) -> dict[int, int | bytes]:
        """How it normalises text, by field number. Raises LlucidError for damaged fields."""
        default: dict[int, int | bytes] = {CHARACTER_MAP: b"", DUMMY_PREFIX: 1, REMOVE_SPACES: 1, ESCAPE_SPACES: 1}
        return default | self.message(NORMALIZER)

    def decode(self, ids: Sequence[int]) -> str:
        known = (token for token in ids if token < self.vocab_size)
        return self.decoder.decode([token for token in known if self.pieces[token] not in self.special])

    def piece(self, id: int) -> bytes:
        if id >= self.vocab_size or self.pieces[id] in self.special:
            return b""
        if self.decoder.is_byte(id):
            return bytes([int(self.pieces[id][3:5], 16)])
        return self.pieces[id].replace("▁", " ").encode()

    def obstacle(self, collapses: bool = False) -> str | None:
        """Why another format cannot express this model, None if it can: it merges pairs (BPE), of text as it is, with
        the space before a word. `collapses` is whether it can express that runs of spaces are collapsed."""
        normalizer, trainer = self.normalizer, self.message(TRAINER)
        if trainer.get(MODEL_TYPE, 1) != BPE:
            return "it does not merge pairs (BPE), and only such models are converted"
        if normalizer[CHARACTER_MAP]:
            return "it normalises characters (NFKC), and other libraries do so differently"
        if not normalizer[ESCAPE_SPACES]:
            return "it does not write spaces as ▁"
        if normalizer[REMOVE_SPACES] and not collapses:
            return "it collapses runs of spaces"
        return "it puts the space behind a word" if trainer.get(SUFFIX) else None

    @cached_property
    def order(self) -> dict[str, float]:
        """The pieces that are merged from others or from which others are, the best first: those of least order."""
        alone = {piece for piece in self.symbols if "▁" not in piece}
        unmerged = alone | self.special.keys() | {self.pieces[token] for token in self.given}
        return {
            piece: -inf if piece in self.symbols else -score
            for token, (piece, score) in enumerate(zip(self.pieces, self.scores, strict=True))
            if piece not in unmerged and not self.processor.is_byte(token)
        }

    def json(self) -> str:
        """Its `tokenizer.json`. Raises LlucidError for a model that is not converted."""
        if reason := self.obstacle(collapses=True) or self.odd_symbol():
            raise LlucidError(f"a tokenizer.json cannot express this SentencePiece model: {reason}")
        normalizer = self.normalizer
        model = {
            "type": "BPE",
            "unk_token": self.pieces[self.processor.unk_id()],
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: token for piece, token in self.ids.items() if token < self.own_size},
            "merges": merges_of(self.order),
        }
        steps, cut = [replace("String", " ", "▁")], list[dict[str, Any]]()
        decoder = [replace("String", "▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
        if normalizer[DUMMY_PREFIX]:
            steps.insert(0, {"type": "Prepend", "prepend": "▁"})
            decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        if normalizer[REMOVE_SPACES]:
            steps = [replace("Regex", r"\A +| +(?= )", ""), *steps, replace("Regex", r"▁+\z", "")]
            decoder = [*decoder[:3], replace("Regex", r"\A +", "")]
        if self.first_only:
            steps, cut = [], [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}]
        unmarked = {token.content: number for number, token in self.added.items() if token.content not in self.special}
        chains: dict[str, list[dict[str, Any]]] = {"normalizer": steps, "pre_tokenizer": cut, "decoder": decoder}
        return special_json(model, self.special, self.bos, **chains, unmarked=unmarked, flags=self.given)

    def odd_symbol(self) -> str | None:
        """Why a `tokenizer.json` cannot express one of `symbols`, None if it can. A single character is merged with
        nothing; pieces of spaces only are merged first."""
        for piece, token in self.symbols.items():
            spaced = "▁" in piece if piece.strip("▁") else False
            if token not in self.given and (spaced or (token in self.added and self.normalizer[DUMMY_PREFIX])):
                return f"it finds {piece!r} in a text before it merges, and puts no space after it"
        return None

    def roles(self) -> dict[str, str]:
        """The names of its UNK, BOS and EOS."""
        roles = {"unk_token": self.processor.unk_id(), "bos_token": self.bos, "eos_token": self.eos}
        return {role: self.pieces[token] for role, token in roles.items() if token is not None}

    def listed(self) -> dict[str, Any]:
        """The added tokens as a `tokenizer_config.json` lists them, with the model's own control symbols, which
        transformers takes for letters otherwise; empty if there are none but those that have a role."""
        own = {*self.special.values()} - self.hidden - self.bytes - {*map(self.ids.get, self.roles().values())}
        controls = {token: AddedToken(self.pieces[token], special=True) for token in sorted(own)}
        found = {
            str(number): {
                "content": token.content,
                "normalized": False,
                **{flag: getattr(token, flag) for flag in FLAGS},
            }
            for number, token in sorted((controls | self.given).items())
        }
        return {"added_tokens_decoder": found} if found else {}

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json`, or `tokenizer.model` if the former gives other ids or none; and
        `tokenizer_config.json`."""
        roles = {role: name for role, name in self.roles().items() if self.config.get(role) in (None, "")}
        config = {key: value for key, value in self.config.items() if key != "added_tokens_decoder"}
        config |= roles | self.listed()
        if json_difference(self) is None:
            return write_folder(folder, self.json(), config, self.stop_ids)
        self.write(folder / "tokenizer.model")
        return write_beside(folder, config | {"add_bos_token": self.bos is not None}, self.stop_ids, "LlamaTokenizer")

    def write(self, path: Path) -> None:
        """Writes the model as it was read, Meta's `tokenizer.model`."""
        write_atomically(path, self.model)


def model_of(
    texts: Sequence[str], scores: Sequence[float], types: Sequence[int], roles: Mapping[str, int | None], prefix: bool
) -> bytes:
    """A SentencePiece model that merges pairs: for each piece its text, score and type; the ids of "unk", "bos" and
    "eos", if it has them; and whether it puts a space before a text."""
    kinds = {kind: b"" if kind == NORMAL else field(PIECE_TYPE, kind) for kind in {*types}}
    score_tag = varint(PIECE_SCORE << 3 | 5)
    rows = zip(messages(PIECE_TEXT, [text.encode() for text in texts]), scores, types, strict=True)
    pieces = [text + score_tag + struct.pack("<f", score) + kinds[kind] for text, score, kind in rows]
    trainer = field(MODEL_TYPE, BPE) + field(BYTE_FALLBACK, int(BYTE in kinds))
    for role, token in roles.items():
        trainer += b"" if token is None else field(NAMES[role], texts[token].encode())
    normalizer = field(DUMMY_PREFIX, int(prefix)) + field(REMOVE_SPACES, 0) + field(ESCAPE_SPACES, 1)
    return b"".join(messages(PIECES, pieces)) + field(TRAINER, trainer) + field(NORMALIZER, normalizer)


def replace(kind: str, pattern: str, content: str) -> dict[str, Any]:
    """A step of a `tokenizer.json` that replaces a "String" or a "Regex"."""
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def open_sentencepiece(model: bytes, folder: Path) -> SentencePiece:
    """The tokenizer of a `tokenizer.model`, with the files of transformers beside it.

    Tokens with a role are special, as in transformers, and get the next ids if no file gives them ids; a token that
    only pads does so only if there are other such tokens."""
    config = folder_config(folder)
    if config.get("add_prefix_space") is False:
        model += field(NORMALIZER, field(DUMMY_PREFIX, 0))  # of a repeated field, the last counts
    plain = SentencePiece(model, config, ends := end_ids(folder))
    listed, roles, padding = added_in(folder, config), role_tokens(config), unused_padding(config)
    if {*roles, *(token["content"] for token in listed.values())} <= plain.ids.keys() | {padding}:
        listed = {number: token for number, token in listed.items() if token["content"] != padding}
        roles = {name: flags for name, flags in roles.items() if name != padding}

    ids, added, next_ids = dict(plain.ids), dict[int, AddedToken](), set[int]()
    for number, flags in sorted(listed.items()):
        name = flags["content"]
        if (found := ids.setdefault(name, len(ids)) if name else None) != number:
            raise LlucidError(
                f"the added token {name!r} has the id {found} here and in transformers, but {folder} says {number}; "
                "correct it in tokenizer_config.json or added_tokens.json"
            )
        added[number] = AddedToken(normalized=False, **flags)
    for name, flags in roles.items():
        if name not in ids:
            next_ids.add(number := len(ids))
            ids[name] = number
            added[number] = AddedToken(name, normalized=False, special=True, **flags)
    if not added:
        return plain
    made = SentencePiece(model, config, ends, added)
    made.next_ids = frozenset(next_ids)
    return made


@contextmanager
def refused() -> Generator[None]:
    """Turns what the library raises into LlucidError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # ValueError: a piece that is not UTF-8
        raise LlucidError(f"the sentencepiece library refuses it: {error}") from error


def is_sentencepiece(data: bytes) -> bool:
    """Whether `data` begins as a SentencePiece model does: with a piece, and that with its text."""
    return data[:1] == bytes([PIECES << 3 | 2]) and PIECE_TEXT << 3 | 2 in data[2:4]
