"""The tokenizer inside a GGUF file: what llama.cpp makes of the `tokenizer` keys.

llama.cpp's src/llama-vocab.cpp says what the keys mean. Its "llama" is SentencePiece with pairs merged by score, its
"gpt2" byte pairs merged by rank, and its "rwkv" the longest piece that fits, which for single characters is each of
them. Read, the first is a SentencePiece model again, the second a `tokenizer.json`, the third Characters.
"""

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from llucid.errors import LlucidError, shown
from llucid.tokenizers import Tokenizer
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.info import TokenizerInfo, facts_of
from llucid.tokenizers.llama2c import BYTE_PIECE
from llucid.tokenizers.protobuf import field, messages, varint
from llucid.tokenizers.sentencepiece_model import (
    BPE,
    DUMMY_PREFIX,
    ESCAPE_SPACES,
    MODEL_TYPE,
    NORMALIZER,
    PIECE_SCORE,
    PIECE_TEXT,
    PIECE_TYPE,
    PIECES,
    REMOVE_SPACES,
    TRAINER,
    SentencePiece,
)
from llucid.tokenizers.tokenizer_json import LETTERS, SPLIT, JsonTokenizer, said, special_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of tokens, in GGUF and in sentencepiece_model.proto alike."""
BYTE_FALLBACK = 35
NAMES = {"unk": 45, "bos": 46, "eos": 47}
"""More of that file's field numbers, of the trainer."""

WHOLE_JSON = "tokenizer.huggingface.json"
"""The key of a whole `tokenizer.json`, for programs that can read one (ggml's docs/gguf.md). llama.cpp cannot."""

TURN_ENDS, OTHER_ENDS = {"<|eot_id|>", "<|im_end|>"}, {"<|eom_id|>", "<|end_of_text|>", "<|endoftext|>"}
"""llama.cpp stops at all of them for their names alone. Here a model that does not stop at the end of a turn by its
keys is none that was taught to chat; one that does stops at the others, too."""
NO_END = {"ÿ", "<0xFF>"}
"""The byte 0xFF, which no UTF-8 has, so that no model is ever trained to write it. If no EOS is named, llama.cpp takes
an ordinary token for one (2 or 11); so where there is none, this one is named."""

_GPT2: dict[str, Any] = LETTERS | {"use_regex": True}
_DIGITS: dict[str, Any] = {"type": "Digits", "individual_digits": True}


class Rule(NamedTuple):
    """How a text is cut before pairs are merged, and what follows."""

    steps: list[dict[str, Any]]
    whole_words: bool
    """Whether a word that is a piece is that piece, whatever the merges would make of it."""
    add_bos: bool


RULES = {
    "llama-bpe": Rule([SPLIT, LETTERS], True, True),
    "smaug-bpe": Rule([SPLIT, LETTERS], False, False),
    "smollm": Rule([_DIGITS, _GPT2], False, False),
    "gpt-2": Rule([_GPT2], False, False),
}
"""By `tokenizer.ggml.pre`. The first two cut as Llama 3 does; the second is also what our own byte pairs are."""
ALIASES = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "dbrx": "smaug-bpe",
    "starcoder": "smollm",
}


def read_vocabulary(told: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of these keys; lists are lists, without those that only fill up the model's vocabulary at its end.

    A whole `tokenizer.json` among them counts before llama.cpp's rules. Raises LlucidError for keys that are missing or
    disagree, and, by name, for what llucid does not know.
    """
    if WHOLE_JSON in told:
        return _whole_json(told)
    match told.get("tokenizer.ggml.model"):
        case "llama":
            return _sentencepiece(told)
        case "gpt2":
            return _byte_pairs(told)
        case "rwkv":
            return _characters(told)
        case other:
            raise _unknown(other)


def read_facts(told: Mapping[str, Any]) -> TokenizerInfo:
    """What `read_vocabulary` would find, for which nothing is built; merges and scores are not needed.

    Only a whole `tokenizer.json` is built, as nothing else tells whether it can be."""
    if WHOLE_JSON in told:
        return facts_of(_whole_json(told))
    match told.get("tokenizer.ggml.model"):
        case "llama":
            name, tokens = "SentencePiece", _tokens(told, 1, 2, add_bos=True)
        case "gpt2":
            name, tokens = "JsonTokenizer", _tokens(told, None, None, _rule(told).add_bos)
        case "rwkv":
            name, tokens = "Characters", _tokens(told, None, None, add_bos=False)
        case other:
            raise _unknown(other)
    return TokenizerInfo(name, len(tokens.texts), tokens.bos, tokens.eos)


def _unknown(model: object) -> LlucidError:
    if model is None:
        return LlucidError("there is no tokenizer inside; give the path of one with --tokenizer")
    return LlucidError(f"tokenizer.ggml.model {shown(model)} is not supported; llama and gpt2 are")


class Tokens(NamedTuple):
    """What every kind has."""

    texts: list[str]
    types: list[int]
    bos: int | None
    """What a text begins with."""
    named_bos: int | None
    """What a template is told that BOS is, also where texts do not begin with it."""
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
            raise LlucidError(f"{key} {shown(token)} is none of the {len(texts)} tokens")
        return token

    begin = named("bos", bos if bos is not None and bos < len(texts) else None)
    end = named("eos", eos if eos is not None and eos < len(texts) else None)
    if end is not None and texts[end] in NO_END:
        end = None
    stops = {stop for stop in (end, named("eot"), named("eom")) if stop is not None}
    if any(texts[stop] in TURN_ENDS for stop in stops):
        stops |= {token for token, text in enumerate(texts) if types[token] == CONTROL and text in OTHER_ENDS}
    starts = told.get("tokenizer.ggml.add_bos_token", add_bos)
    named_bos = begin if starts or "tokenizer.ggml.bos_token_id" in told else None
    return Tokens(texts, types, begin if starts else None, named_bos, end, frozenset(stops))


def _config(told: Mapping[str, Any], tokens: Tokens) -> dict[str, Any]:
    """What a `tokenizer_config.json` would say."""
    roles = {"bos_token": tokens.named_bos, "eos_token": tokens.eos}
    config: dict[str, Any] = {role: tokens.texts[token] for role, token in roles.items() if token is not None}
    template = told.get("tokenizer.chat_template")
    return config | ({"chat_template": template} if isinstance(template, str) else {})


def _whole_json(told: Mapping[str, Any]) -> JsonTokenizer:
    """The `tokenizer.json` inside; what begins and ends a text, the other keys say."""
    with said(f"{WHOLE_JSON} cannot be read"):
        content = json.loads(told[WHOLE_JSON])
        if not isinstance(content, dict):
            raise ValueError(f"expected a JSON object, found {type(content).__name__}")
        made = JsonTokenizer(dict[str, Any](content))
    end = 2 if told.get("tokenizer.ggml.model") == "llama" else None
    tokens = _tokens(told, made.bos, end, add_bos=made.bos is not None)
    for token in tokens.stop_ids | (set() if tokens.named_bos is None else {tokens.named_bos}):
        if (found := made.tokenizer.id_to_token(token)) != tokens.texts[token]:
            raise LlucidError(
                f"{WHOLE_JSON} is of another vocabulary: it calls {token} {shown(found)}, "
                f"and tokenizer.ggml.tokens {shown(tokens.texts[token])}"
            )
    made.config = _config(told, tokens)
    made.bos, made.eos, made.stop_ids = tokens.bos, tokens.eos, tokens.stop_ids
    return made


def _sentencepiece(told: Mapping[str, Any]) -> SentencePiece | JsonTokenizer:
    """Of pieces with scores, as the message that the sentencepiece library opens.

    If some are to be found in text first, it is opened as a `tokenizer.json`: unlike the library, this and llama.cpp
    begin what follows with a space."""
    tokens = _tokens(told, 1, 2, add_bos=True)
    texts, types = tokens.texts, list(tokens.types)
    scores = _list(told, "tokenizer.ggml.scores", float)[: len(texts)]
    if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
        raise LlucidError(f"tokenizer.ggml.scores should be a number for each of the {len(texts)} tokens")
    unknown = told.get("tokenizer.ggml.unknown_token_id", 0)
    if type(unknown) is not int or not 0 <= unknown < len(texts):
        raise LlucidError(f"tokenizer.ggml.unknown_token_id {shown(unknown)} is none of the {len(texts)} tokens")
    if "tokenizer.ggml.token_type" not in told:
        types = [BYTE if BYTE_PIECE.fullmatch(text.encode()) else NORMAL for text in texts]
        for token in (tokens.named_bos, tokens.eos):
            if token is not None:
                types[token] = CONTROL
    if UNKNOWN not in types:
        types[unknown] = UNKNOWN
    if types.count(BYTE) not in (0, 256):
        raise LlucidError(f"tokenizer.ggml.tokens has {types.count(BYTE)} of the 256 bytes")

    spelled = messages(PIECE_TEXT, [text.encode() for text in texts])
    kinds = {kind: b"" if kind == NORMAL else field(PIECE_TYPE, kind) for kind in set(types)}
    score_tag = varint(PIECE_SCORE << 3 | 5)
    pieces = [
        text + score_tag + struct.pack("<f", score) + kinds[kind]
        for text, score, kind in zip(spelled, scores, types, strict=True)
    ]
    trainer = field(MODEL_TYPE, BPE) + field(BYTE_FALLBACK, int(BYTE in types))
    for role, token in (("unk", types.index(UNKNOWN)), ("bos", tokens.bos), ("eos", tokens.eos)):
        trainer += b"" if token is None else field(NAMES[role], texts[token].encode())
    prefix = told.get("tokenizer.ggml.add_space_prefix", True)
    normalizer = field(DUMMY_PREFIX, int(bool(prefix))) + field(REMOVE_SPACES, 0) + field(ESCAPE_SPACES, 1)
    message = b"".join(messages(PIECES, pieces)) + field(TRAINER, trainer) + field(NORMALIZER, normalizer)
    made = SentencePiece(message, _config(told, tokens))
    if USER_DEFINED in types and made.user_defined:  # the second looks through every piece
        made.bos = tokens.bos
        made = JsonTokenizer(json.loads(made.json()), config=made.config)
    made.bos, made.eos, made.stop_ids = tokens.bos, tokens.eos, tokens.stop_ids
    return made


def _byte_pairs(told: Mapping[str, Any]) -> JsonTokenizer:
    """Of pieces spelled by the visible letters that stand for bytes, and of merges, as a `tokenizer.json`."""
    rule = _rule(told)
    tokens = _tokens(told, None, None, rule.add_bos)
    merges: list[tuple[str, str]] = []
    for merge in _list(told, "tokenizer.ggml.merges", str):
        cut = merge.find(" ", 1)
        if cut < 0:
            raise LlucidError(f"tokenizer.ggml.merges has one that is no pair, {shown(merge)}")
        merges.append((merge[:cut], merge[cut + 1 :]))

    kinds = dict(zip(tokens.texts, tokens.types, strict=True))
    special = {text: n for n, (text, kind) in enumerate(kinds.items()) if kind in (CONTROL, UNKNOWN)}
    last = max((token for token, text in enumerate(tokens.texts) if text not in special), default=-1)
    model = {
        "type": "BPE",
        "byte_fallback": False,
        "ignore_merges": rule.whole_words,
        # Special tokens after the others are left out, so that no word that spells one is taken for it.
        "vocab": {text: token for token, text in enumerate(tokens.texts[: last + 1])},
        "merges": merges,
    }
    unmarked = {text: n for n, (text, kind) in enumerate(kinds.items()) if kind == USER_DEFINED}
    steps: dict[str, Any] = {"normalizer": [], "pre_tokenizer": rule.steps, "decoder": [LETTERS]}
    around = json.loads(special_json({}, special, tokens.bos, **steps, unmarked=unmarked))
    made = JsonTokenizer(around | {"model": model})
    made.config = _config(told, tokens)
    made.bos, made.eos, made.stop_ids = tokens.bos, tokens.eos, tokens.stop_ids
    return made


def _rule(told: Mapping[str, Any]) -> Rule:
    """How a text is cut. Raises LlucidError, by name, for a way that llucid does not know."""
    pre = told.get("tokenizer.ggml.pre")
    rule = RULES.get(ALIASES.get(str(pre), str(pre)))
    if rule is None:
        raise LlucidError(
            f"tokenizer.ggml.pre {shown(pre)} is not supported; {', '.join(RULES)} are; "
            "give the path of the model's own tokenizer with --tokenizer"
        )
    return rule


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
        raise LlucidError(f"{key} should be a list of {kind.__name__} and is {shown(values)}")
    return list(values)  # pyright: ignore[reportUnknownVariableType]
