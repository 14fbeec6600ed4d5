"""The tokenizer inside a GGUF file: what llama.cpp makes of the `tokenizer` keys, and our tokenizers in its words.

llama.cpp's src/llama-vocab.cpp says what the keys mean. Its "llama" is SentencePiece with pairs merged by score, its
"gpt2" byte pairs merged by rank, and its "rwkv" the longest piece that fits, which for single characters is each of
them. Read, the first is a SentencePiece model again, the second a `tokenizer.json`, the third Characters.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llucid.errors import LlucidError
from llucid.tokenizers import Tokenizer
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.llama2c import BYTE_PIECE, WORST_SCORE, Llama2cTokenizer
from llucid.tokenizers.llama2c_export import to_llama2c
from llucid.tokenizers.protobuf import fields
from llucid.tokenizers.sentencepiece_model import (
    BPE,
    CHARACTER_MAP,
    DUMMY_PREFIX,
    ESCAPE_SPACES,
    MODEL_TYPE,
    NORMALIZER,
    PIECE_SCORE,
    PIECE_TEXT,
    PIECES,
    REMOVE_SPACES,
    TRAINER,
    SentencePiece,
)
from llucid.tokenizers.tiktoken_ranks import TiktokenRanks
from llucid.tokenizers.tokenizer_json import WORDS, JsonTokenizer, special_json, write_folder

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of tokens, in GGUF and in sentencepiece_model.proto alike."""
PIECE_TYPE, BYTE_FALLBACK = 3, 35
NAMES = {"unk": 45, "bos": 46, "eos": 47}
"""More of that file's field numbers: of a piece, and of the trainer."""

TURN_ENDS, OTHER_ENDS = {"<|eot_id|>", "<|im_end|>"}, {"<|eom_id|>", "<|end_of_text|>", "<|endoftext|>"}
"""llama.cpp stops at all of them for their names alone. Here a model that does not stop at the end of a turn by its
keys is none that was taught to chat; one that does stops at the others, too."""
NO_END = {"ÿ", "<0xFF>"}
"""The byte 0xFF, which no UTF-8 has, so that no model is ever trained to write it. If no EOS is named, llama.cpp takes
an ordinary token for one (2 or 11); so where there is none, this one is named."""

_SPLIT: dict[str, Any] = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
_LETTERS: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_GPT2: dict[str, Any] = _LETTERS | {"use_regex": True}
_DIGITS: dict[str, Any] = {"type": "Digits", "individual_digits": True}


class Rule(NamedTuple):
    """How a text is cut before pairs are merged, and what follows."""

    steps: list[dict[str, Any]]
    whole_words: bool
    """Whether a word that is a piece is that piece, whatever the merges would make of it."""
    add_bos: bool


RULES = {
    "llama-bpe": Rule([_SPLIT, _LETTERS], True, True),
    "smaug-bpe": Rule([_SPLIT, _LETTERS], False, False),
    "smollm": Rule([_DIGITS, _GPT2], False, False),
    "gpt-2": Rule([_GPT2], False, False),
}
"""By `tokenizer.ggml.pre`. The first two cut as Llama 3 does; the second is also what our own byte pairs are."""
ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "dbrx": "smaug-bpe", "starcoder": "smollm"}

PROBE = "  Once upon\n\n a time,  it's naïve 漢字 🚀\x00<s> 12345 <|eot_id|>\t\r\nDON'T  "


# --------------------------------------------------------------------------------------------- reading


def read_vocabulary(told: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of these keys; lists are lists, without those that only fill up the model's vocabulary at its end.

    Raises LlucidError for keys that are missing or disagree, and, by name, for what llucid does not know.
    """
    match told.get("tokenizer.ggml.model"):
        case "llama":
            return _sentencepiece(told)
        case "gpt2":
            return _byte_pairs(told)
        case "rwkv":
            return _characters(told)
        case None:
            raise LlucidError("there is no tokenizer inside; give the path of one with --tokenizer")
        case other:
            raise LlucidError(f"tokenizer.ggml.model {_shown(other)} is not supported; llama and gpt2 are")


class Tokens(NamedTuple):
    """What every kind has."""

    texts: list[str]
    types: list[int]
    bos: int | None
    eos: int | None
    stop_ids: frozenset[int]


def _tokens(told: Mapping[str, Any], bos: int | None, eos: int | None, add_bos: bool) -> Tokens:
    """The tokens and which of them are special; `bos`, `eos` and `add_bos` hold where the file says nothing."""
    texts = _list(told, "tokenizer.ggml.tokens", str)
    types = _list(told, "tokenizer.ggml.token_type", int) if "tokenizer.ggml.token_type" in told else []
    types = types or [NORMAL] * len(texts)
    if len(types) != len(texts) or not texts or not set(types) <= {*range(NORMAL, BYTE + 1)}:
        raise LlucidError(f"tokenizer.ggml.token_type should be a type, 1 to 6, for each of {len(texts)} tokens")
    while texts and types[-1] == UNUSED:
        texts.pop()
        types.pop()
    texts = [text or f"[EMPTY_{token}]" for token, text in enumerate(texts)]
    if len(set(texts)) != len(texts) or not texts:
        raise LlucidError("tokenizer.ggml.tokens should be different from each other, and are not")

    def named(role: str, default: int | None = None) -> int | None:
        key = f"tokenizer.ggml.{role}_token_id"
        token = told.get(key, default)
        if token is not None and (type(token) is not int or not 0 <= token < len(texts)):
            raise LlucidError(f"{key} {_shown(token)} is none of the {len(texts)} tokens")
        return token

    begin = named("bos", bos if bos is not None and bos < len(texts) else None)
    end = named("eos", eos if eos is not None and eos < len(texts) else None)
    if end is not None and texts[end] in NO_END:
        end = None
    stops = {stop for stop in (end, named("eot"), named("eom")) if stop is not None}
    if any(texts[stop] in TURN_ENDS for stop in stops):
        stops |= {token for token, text in enumerate(texts) if types[token] == CONTROL and text in OTHER_ENDS}
    starts = told.get("tokenizer.ggml.add_bos_token", add_bos)
    return Tokens(texts, types, begin if starts else None, end, frozenset(stops))


def _config(told: Mapping[str, Any], tokens: Tokens) -> dict[str, Any]:
    """What a `tokenizer_config.json` would say."""
    roles = {"bos_token": tokens.bos, "eos_token": tokens.eos}
    config: dict[str, Any] = {role: tokens.texts[token] for role, token in roles.items() if token is not None}
    template = told.get("tokenizer.chat_template")
    return config | ({"chat_template": template} if isinstance(template, str) else {})


class SentencePieceInside(SentencePiece):
    """A SentencePiece model out of a GGUF file, which also has what a `tokenizer_config.json` would say."""

    def __init__(self, model: bytes, config: dict[str, Any]) -> None:
        super().__init__(model)
        self.config = config

    def save(self, folder: Path) -> None:
        write_folder(folder, self.json(), self.config, self.stop_ids)


def _sentencepiece(told: Mapping[str, Any]) -> SentencePieceInside:
    """Of pieces with scores, as the message that the sentencepiece library opens."""
    tokens = _tokens(told, 1, 2, add_bos=True)
    texts, types = tokens.texts, list(tokens.types)
    scores = _list(told, "tokenizer.ggml.scores", float)[: len(texts)]
    if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
        raise LlucidError(f"tokenizer.ggml.scores should be a number for each of the {len(texts)} tokens")
    unknown = told.get("tokenizer.ggml.unknown_token_id", 0)
    if type(unknown) is not int or not 0 <= unknown < len(texts):
        raise LlucidError(f"tokenizer.ggml.unknown_token_id {_shown(unknown)} is none of the {len(texts)} tokens")
    if "tokenizer.ggml.token_type" not in told:
        types = [BYTE if BYTE_PIECE.fullmatch(text.encode()) else NORMAL for text in texts]
        for token in (tokens.bos, tokens.eos):
            if token is not None:
                types[token] = CONTROL
    if UNKNOWN not in types:
        types[unknown] = UNKNOWN
    if types.count(BYTE) not in (0, 256):
        raise LlucidError(f"tokenizer.ggml.tokens has {types.count(BYTE)} of the 256 bytes")

    spelled = _messages(PIECE_TEXT, [text.encode() for text in texts])
    kinds = {kind: b"" if kind == NORMAL else _field(PIECE_TYPE, kind) for kind in set(types)}
    score_tag = _varint(PIECE_SCORE << 3 | 5)
    pieces = [
        text + score_tag + struct.pack("<f", score) + kinds[kind]
        for text, score, kind in zip(spelled, scores, types, strict=True)
    ]
    trainer = _field(MODEL_TYPE, BPE) + _field(BYTE_FALLBACK, int(BYTE in types))
    for role, token in (("unk", types.index(UNKNOWN)), ("bos", tokens.bos), ("eos", tokens.eos)):
        trainer += b"" if token is None else _field(NAMES[role], texts[token].encode())
    prefix = told.get("tokenizer.ggml.add_space_prefix", True)
    normalizer = _field(DUMMY_PREFIX, int(bool(prefix))) + _field(REMOVE_SPACES, 0) + _field(ESCAPE_SPACES, 1)
    message = b"".join(_messages(PIECES, pieces)) + _field(TRAINER, trainer) + _field(NORMALIZER, normalizer)
    made = SentencePieceInside(message, _config(told, tokens))
    made.bos, made.eos, made.stop_ids = tokens.bos, tokens.eos, tokens.stop_ids
    return made


def _byte_pairs(told: Mapping[str, Any]) -> JsonTokenizer:
    """Of pieces spelled by the visible letters that stand for bytes, and of merges, as a `tokenizer.json`."""
    pre = told.get("tokenizer.ggml.pre")
    rule = RULES.get(ALIASES.get(str(pre), str(pre)))
    if rule is None:
        raise LlucidError(
            f"tokenizer.ggml.pre {_shown(pre)} is not supported; {', '.join(RULES)} are; "
            "give the path of the model's own tokenizer with --tokenizer"
        )
    tokens = _tokens(told, None, None, rule.add_bos)
    merges: list[tuple[str, str]] = []
    for merge in _list(told, "tokenizer.ggml.merges", str):
        cut = merge.find(" ", 1)
        if cut < 0:
            raise LlucidError(f"tokenizer.ggml.merges has one that is no pair, {_shown(merge)}")
        merges.append((merge[:cut], merge[cut + 1 :]))

    kinds = dict(zip(tokens.texts, tokens.types, strict=True))
    special = {text: n for n, (text, kind) in enumerate(kinds.items()) if kind in (CONTROL, UNKNOWN)}
    last = max((token for token, text in enumerate(tokens.texts) if text not in special), default=-1)
    model = {
        "type": "BPE",
        "byte_fallback": False,
        "ignore_merges": rule.whole_words,
        # Special tokens behind the others are left out, so that no word that spells one is taken for it.
        "vocab": {text: token for token, text in enumerate(tokens.texts[: last + 1])},
        "merges": merges,
    }
    around = special_json({}, special, tokens.bos, normalizer=[], pre_tokenizer=rule.steps, decoder=[_LETTERS])
    content: dict[str, Any] = json.loads(around) | {"model": model}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    content["added_tokens"] += [
        {"id": token, "content": text, **flags}
        for token, (text, kind) in enumerate(kinds.items())
        if kind == USER_DEFINED
    ]
    content["added_tokens"].sort(key=lambda added: added["id"])
    made = JsonTokenizer(content)
    made.config = _config(told, tokens)
    made.bos, made.eos, made.stop_ids = tokens.bos, tokens.eos, tokens.stop_ids
    return made


def _characters(told: Mapping[str, Any]) -> Characters:
    """Of single ASCII characters in their order, a backslash before a backslash."""
    texts = [text.replace("\\\\", "\\") for text in _tokens(told, None, None, add_bos=False).texts]
    if not all(len(text) == 1 and text.isascii() for text in texts) or texts != sorted(texts):
        raise LlucidError("tokenizer.ggml.model rwkv is not supported, but for single ASCII characters in their order")
    return Characters(texts)


def _list(told: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    """The list under `key`. Raises LlucidError if there is none, or one of something else."""
    values = told.get(key)
    if not isinstance(values, list) or (values and type(values[0]) is not kind):
        raise LlucidError(f"{key} should be a list of {kind.__name__} and is {_shown(values)}")
    return list(values)  # pyright: ignore[reportUnknownVariableType]


def _shown(value: object) -> str:
    return json.dumps(value, default=repr)[:60]


def _field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer: a varint, or bytes. https://protobuf.dev/programming-guides/encoding"""
    return _messages(number, [value])[0] if isinstance(value, bytes) else _varint(number << 3) + _varint(value)


def _messages(number: int, values: Sequence[bytes]) -> list[bytes]:
    """For each of many values a field."""
    tag, lengths = _varint(number << 3 | 2), {length: _varint(length) for length in set(map(len, values))}
    return [tag + lengths[len(value)] + value for value in values]


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


# --------------------------------------------------------------------------------------------- writing


def write_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The keys that make llama.cpp give the same ids, filled up to the model's `vocab_size` with unused tokens.

    Raises LlucidError, by name, for a tokenizer that llama.cpp has no words for. What is said is read again to see.
    """
    if tokenizer.vocab_size > vocab_size:
        raise LlucidError(f"the tokenizer has {tokenizer.vocab_size} ids, but the model only {vocab_size}")
    match tokenizer:
        case Characters():
            return _filled(_characters_told(tokenizer), vocab_size)
        case SentencePiece():
            told = _sentencepiece_told(tokenizer)
        case Llama2cTokenizer():
            told = _llama2c_told(tokenizer, tokenizer)
        case JsonTokenizer() | TiktokenRanks():
            content = json.loads(tokenizer.json())
            falls_back = content["model"].get("byte_fallback")
            told = _llama2c_told(to_llama2c(tokenizer), tokenizer) if falls_back else _json_told(content, tokenizer)
        case _:
            raise LlucidError(f"GGUF has no words for a tokenizer like this one ({type(tokenizer).__name__})")
    told = _filled(told | _ends_told(tokenizer, told["tokenizer.ggml.tokens"]), vocab_size)
    config = tokenizer.config if isinstance(tokenizer, JsonTokenizer | SentencePieceInside) else {}
    if isinstance(template := config.get("chat_template"), str):
        told["tokenizer.chat_template"] = template
    _check_same(read_vocabulary(told), tokenizer)
    return told


def _filled(told: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """As many tokens as the model has, as llama.cpp demands. 0xFF begins the text of the rwkv kind's: none matches."""
    tokens, spell = told["tokenizer.ggml.tokens"], "[PAD%d]"
    if told["tokenizer.ggml.model"] == "rwkv":
        spell = "\\xff%d"
    more = range(len(tokens), vocab_size)
    told = told | {"tokenizer.ggml.tokens": [*tokens, *(spell % number for number in more)]}
    for key, value in (("token_type", UNUSED), ("scores", -10000.0)):
        if f"tokenizer.ggml.{key}" in told:
            told[f"tokenizer.ggml.{key}"] = [*told[f"tokenizer.ggml.{key}"], *[value] * len(more)]
    return told


def _characters_told(tokenizer: Characters) -> dict[str, Any]:
    if not all(character.isascii() for character in tokenizer.characters):
        # Its search for a longest piece would never end at a character of which it knows only the first byte.
        raise LlucidError("GGUF has no words for a vocabulary of single characters that are not all ASCII")
    texts = [character.replace("\\", "\\\\") for character in tokenizer.characters]
    return {
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [NORMAL] * len(texts),
        "tokenizer.ggml.add_bos_token": False,
    }


def _sentencepiece_told(tokenizer: SentencePiece) -> dict[str, Any]:
    """Of the message that the library opened. Raises LlucidError for a model that is no Llama's."""
    parts = [(number, part) for number, part in fields(tokenizer.model) if isinstance(part, bytes)]
    trained = [dict(fields(part)).get(MODEL_TYPE, 1) for number, part in parts if number == TRAINER][-1:]
    normal = tokenizer.normalizer
    if trained != [BPE] or normal[CHARACTER_MAP] or normal[REMOVE_SPACES] or not normal[ESCAPE_SPACES]:
        raise LlucidError("GGUF has no words for a SentencePiece model that alters text or does not merge pairs (BPE)")
    # Nearly all pieces are normal and have no field for it, nor its tag.
    types = [
        int(dict(fields(part)).get(PIECE_TYPE, NORMAL)) if PIECE_TYPE << 3 in part else NORMAL
        for number, part in parts
        if number == PIECES
    ]
    return _pieces_told(tokenizer.pieces, tokenizer.scores, types, bool(normal[DUMMY_PREFIX]))


def _llama2c_told(made: Llama2cTokenizer, tokenizer: Tokenizer) -> dict[str, Any]:
    """Of llama2.c's rows; `tokenizer` is what they were made of."""
    if len(made.byte_ids) != 256:
        raise LlucidError("GGUF has no words for a tokenizer without a piece for each byte")
    names = {token: name for name, token in (made.special | tokenizer.special).items()}
    names |= {token: f"<0x{byte:02X}>" for token, byte in made.byte_of.items()}
    types = [CONTROL if token in names else NORMAL for token in range(made.vocab_size)]
    for token in made.byte_of:
        types[token] = BYTE
    types[made.special["<unk>"]] = UNKNOWN
    for token, piece in enumerate(made.pieces):
        text = piece.decode(errors="replace")
        if types[token] == NORMAL and made.scores[token] <= WORST_SCORE and len(text) > 1:
            halves = ((text[:cut].encode(), text[cut:].encode()) for cut in range(1, len(text)))
            if any(left in made.ids and right in made.ids for left, right in halves):
                raise LlucidError(f"GGUF cannot say that the piece {text!r} is never merged")
    try:
        texts = [names.get(token) or piece.decode().replace(" ", "▁") for token, piece in enumerate(made.pieces)]
    except UnicodeDecodeError as error:
        raise LlucidError(f"GGUF has no words for a piece that is no UTF-8: {error.object!r}") from error
    return _pieces_told(texts, made.scores, types, prefix=True)


def _pieces_told(texts: list[str], scores: Sequence[float], types: list[int], prefix: bool) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": [float(score) for score in scores],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.unknown_token_id": types.index(UNKNOWN),
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _json_told(content: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Of a `tokenizer.json` of byte pairs. Raises LlucidError for one that is of something else."""
    model = content["model"]
    cut = content.get("pre_tokenizer") or {}
    steps = [step | {"trim_offsets": True} for step in cut.get("pretokenizers", [cut])]
    rules = [
        name
        for name, rule in RULES.items()
        if steps == [step | {"trim_offsets": True} for step in rule.steps]
        and rule.whole_words == bool(model.get("ignore_merges"))
    ]
    odd = [key for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if model.get("type") != "BPE" or content.get("normalizer") or odd or not rules:
        raise LlucidError(
            f"GGUF has no words for this tokenizer.json: its model is {_shown(model.get('type'))}, it normalises by "
            f"{_shown(content.get('normalizer'))}, cuts by {_shown(cut)}, and has {', '.join(odd) or 'nothing else'}; "
            f"what GGUF knows is BPE with the cuts of {', '.join(RULES)}"
        )
    added = {told["id"]: told for told in content["added_tokens"]}
    if any(told["lstrip"] or told["rstrip"] or told["single_word"] for told in added.values() if not told["special"]):
        raise LlucidError("GGUF has no words for an added token that takes the spaces around it")
    texts = {token: text for text, token in model["vocab"].items()} | {n: told["content"] for n, told in added.items()}
    types = {token: CONTROL if told["special"] else USER_DEFINED for token, told in added.items()}
    every = range(tokenizer.vocab_size)
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rules[0],
        "tokenizer.ggml.tokens": [texts.get(token, f"[PAD{token}]") for token in every],
        "tokenizer.ggml.token_type": [types.get(token, NORMAL if token in texts else UNUSED) for token in every],
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in pairs],
    }


def _ends_told(tokenizer: Tokenizer, texts: list[str]) -> dict[str, Any]:
    """BOS, EOS and up to two more ids that end a text; where there is no EOS, the byte that no text has."""
    told: dict[str, Any] = {"tokenizer.ggml.add_bos_token": tokenizer.bos is not None}
    end = tokenizer.eos
    if end is None:
        end = next((token for token, text in enumerate(texts) if text in NO_END), None)
    if end is None:
        raise LlucidError("GGUF has no words for a tokenizer without EOS, nor a piece for the byte 0xFF")
    more = sorted(tokenizer.stop_ids - {end}, key=lambda token: (texts[token] == "<|eom_id|>", token))
    roles = {"bos": tokenizer.bos, "eos": end, **dict(zip(("eot", "eom"), more, strict=False))}
    return told | {f"tokenizer.ggml.{role}_token_id": token for role, token in roles.items() if token is not None}


def _check_same(found: Tokenizer, tokenizer: Tokenizer) -> None:
    """Raises LlucidError if what is read again differs in an id that matters, or encodes or decodes differently."""
    if (found.bos, found.eos) != (tokenizer.bos, tokenizer.eos) or not found.stop_ids >= tokenizer.stop_ids:
        raise LlucidError(
            f"GGUF has no words for this tokenizer's BOS {tokenizer.bos}, EOS {tokenizer.eos} and ends "
            f"{sorted(tokenizer.stop_ids)}: read again they are {found.bos}, {found.eos} and {sorted(found.stop_ids)}"
        )
    some = range(0, tokenizer.vocab_size, 1 + tokenizer.vocab_size // 4096)
    for text in (PROBE, " ".join(tokenizer.decode([token]) for token in some)):
        ids = tokenizer.encode(text)
        if found.encode(text) != ids or found.decode(ids) != tokenizer.decode(ids):
            raise LlucidError("GGUF has no words for this tokenizer: llama.cpp's rules give other ids than its own")
