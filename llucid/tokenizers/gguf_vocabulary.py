"""The tokenizer inside a GGUF file, from its `tokenizer` keys, as llama.cpp reads them (src/llama-vocab.cpp).

Its "llama" is SentencePiece with pairs merged by score, its "gpt2" byte pairs merged by rank, and its "rwkv" takes the
longest piece that fits. They are read as a SentencePiece model, a `tokenizer.json`, and, if all pieces are single
characters, as Characters.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken

from llucid.errors import LlucidError, NoTokenizer, shown, wrong_value
from llucid.files import parse_json
from llucid.tokenizers.byte_pieces import BYTE_PIECE
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.folder import template_config
from llucid.tokenizers.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePiece,
    model_of,
)
from llucid.tokenizers.steps import LETTERS, SPLIT
from llucid.tokenizers.tokenizer import Tokenizer
from llucid.tokenizers.tokenizer_json import JsonTokenizer, begins_with, library_errors, special_json

WHOLE_JSON = "tokenizer.huggingface.json"
"""The key of a whole `tokenizer.json`, for programs that can read one (ggml's docs/gguf.md). llama.cpp cannot."""
TEMPLATE = "tokenizer.chat_template"
"""The key of the chat template. Others are under TEMPLATE.NAME, and their names under tokenizer.chat_templates."""

TURN_ENDS, OTHER_ENDS = {"<|eot_id|>", "<|im_end|>"}, {"<|eom_id|>", "<|end_of_text|>", "<|endoftext|>"}
"""llama.cpp stops at all of them because of their names. llucid does so only if the keys name a turn end as the end of
a text: otherwise it is a base model, which was not trained on turns."""
NO_END = {"ÿ", "<0xFF>"}
"""The byte 0xFF, which UTF-8 never has, so no model is trained to write it. If the file names no EOS, llama.cpp takes
an ordinary token (2 or 11); so for a tokenizer without EOS this one is named."""

_GPT2: dict[str, Any] = LETTERS | {"use_regex": True}
DIGITS: dict[str, Any] = {"type": "Digits", "individual_digits": True}
_CJK = "[一-龥ࠀ-一가-\ud7ff]+"
_OTHER_CASED = (
    r"\x{560}-\x{588}\x{10C7}-\x{10FF}\x{1C80}-\x{1C8A}\x{2D00}-\x{2D2D}\x{A790}-\x{AB68}"
    r"\x{10570}-\x{105BC}\x{10D50}-\x{10D85}\x{16E40}-\x{1DF2A}"
)
"""Letters with case that DeepSeek-LLM's pattern does not list: small ones of Armenian and Georgian, mathematical and
rare ones."""
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


class Rule(NamedTuple):
    """How a text is split before pairs are merged, and what depends on it."""

    steps: list[dict[str, Any]]
    whole_words: bool
    """Whether a word in the vocabulary becomes that one token, whatever the merges would give."""
    add_bos: bool


def splits(*patterns: str) -> list[dict[str, Any]]:
    """The steps that split a text by one regular expression after another."""
    return [*(SPLIT | {"pattern": {"Regex": pattern}} for pattern in patterns), LETTERS]


RULES = {
    "llama-bpe": Rule([SPLIT, LETTERS], True, True),
    "smaug-bpe": Rule([SPLIT, LETTERS], False, False),
    "smollm": Rule([DIGITS, _GPT2], False, False),
    "gpt-2": Rule([_GPT2], False, False),
    "deepseek-coder": Rule(splits(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"), False, False),
    "deepseek-llm": Rule(
        splits(
            r"[\r\n]",
            rf"\s?[[\p{{Lu}}\p{{Ll}}\p{{Lt}}]&&[^{_OTHER_CASED}]]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            _CJK,
            r"\p{N}+",
        ),
        False,
        False,
    ),
    "tekken": Rule(
        splits(
            r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+"
            r"|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*"
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        True,
        True,
    ),
    "default": Rule([*splits(r"[\p{P}$+<=>^~|]+", _WORDS, r"\p{N}+", r"[0-9][0-9][0-9]")], False, False),
}
"""By `tokenizer.ggml.pre`. The first two split as Llama 3 does; our own byte pairs are the second."""
ALIASES = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "dbrx": "smaug-bpe",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "phi-2": "gpt-2",
    "jina-es": "gpt-2",
    "jina-de": "gpt-2",
    "olmo": "gpt-2",
}


def read_vocabulary(keys: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of these keys, without the unused tokens that pad the vocabulary at its end.

    A whole `tokenizer.json` among them takes precedence over llama.cpp's rules. Raises LlucidError for keys that are
    missing or disagree, and, by name, for what llucid does not know.
    """
    if WHOLE_JSON in keys:
        return _whole_json(keys)
    match keys.get("tokenizer.ggml.model"):
        case "llama":
            return _sentencepiece(keys)
        case "gpt2":
            return _byte_pairs(keys)
        case "rwkv":
            return _characters(keys)
        case None | "no_vocab" | "none":
            raise NoTokenizer("there is no tokenizer inside; give the path of one, as in tokenizer=PATH")
        case other:
            raise LlucidError(f"tokenizer.ggml.model {shown(other)} is not supported; llama and gpt2 are")


class Tokens(NamedTuple):
    """What every kind of vocabulary has."""

    texts: list[str]
    types: list[int]
    bos: int | None
    """The id that a text begins with."""
    named_bos: int | None
    """The id of BOS for a chat template, also if texts do not begin with it."""
    eos: int | None
    stop_ids: frozenset[int]


def _tokens(keys: Mapping[str, Any], bos: int | None, eos: int | None, add_bos: bool) -> Tokens:
    """The tokens and their roles; `bos`, `eos` and `add_bos` are the defaults where the file says nothing."""
    texts = _list(keys, "tokenizer.ggml.tokens", str)
    types = _list(keys, "tokenizer.ggml.token_type", int) if "tokenizer.ggml.token_type" in keys else []
    types = [kind or NORMAL for kind in types] or [NORMAL] * len(texts)  # 0 is undefined
    if len(types) != len(texts) or not texts or not set(types) <= {*range(NORMAL, BYTE + 1)}:
        raise LlucidError(f"tokenizer.ggml.token_type should be a type, 1 to 6, for each of {len(texts)} tokens")
    while texts and types[-1] == UNUSED:
        texts.pop()
        types.pop()
    texts = [text or f"[EMPTY_{token}]" for token, text in enumerate(texts)]
    if len(set(texts)) != len(texts) or not texts:
        raise LlucidError("tokenizer.ggml.tokens should all be different")

    def named(role: str, default: int | None = None) -> int | None:
        key = f"tokenizer.ggml.{role}_token_id"
        token = keys.get(key, default)
        if token is not None and type(token) is not int:
            raise LlucidError(f"{key} should be an id and is {shown(token)}")
        return default if token is None or not 0 <= token < len(texts) else token  # as llama.cpp does

    begin = named("bos", bos if bos is not None and bos < len(texts) else None)
    end = named("eos", eos if eos is not None and eos < len(texts) else None)
    if end is not None and texts[end] in NO_END:
        end = None
    stops = {stop for stop in (end, named("eot"), named("eom")) if stop is not None}
    if any(texts[stop] in TURN_ENDS for stop in stops):
        stops |= {token for token, text in enumerate(texts) if types[token] == CONTROL and text in OTHER_ENDS}
    starts = keys.get("tokenizer.ggml.add_bos_token", add_bos)
    named_bos = begin if starts or "tokenizer.ggml.bos_token_id" in keys else None
    return Tokens(texts, types, begin if starts else None, named_bos, end, frozenset(stops))


def _config(keys: Mapping[str, Any], tokens: Tokens) -> dict[str, Any]:
    """What a `tokenizer_config.json` would contain."""
    roles = {"bos_token": tokens.named_bos, "eos_token": tokens.eos}
    config: dict[str, Any] = {role: tokens.texts[token] for role, token in roles.items() if token is not None}
    templates = {"default": keys.get(TEMPLATE)}
    names = keys.get(f"{TEMPLATE}s")
    for name in names if isinstance(names, list) else ():
        templates[str(name)] = keys.get(f"{TEMPLATE}.{name}")
    return config | template_config({name: text for name, text in templates.items() if isinstance(text, str)})


def _whole_json(keys: Mapping[str, Any]) -> JsonTokenizer:
    """The `tokenizer.json` inside; BOS, EOS and stop ids come from the other keys."""
    with library_errors(f"{WHOLE_JSON} cannot be read"):
        content = parse_json(keys[WHOLE_JSON].encode(), Path(WHOLE_JSON))
        bos = begins_with(content.get("post_processor"))
        tokens = _tokens(keys, bos, 2 if keys.get("tokenizer.ggml.model") == "llama" else None, add_bos=bos is not None)
        made = JsonTokenizer(content, config=_config(keys, tokens))
    for token in tokens.stop_ids | (set() if tokens.named_bos is None else {tokens.named_bos}):
        if (found := made.tokenizer.id_to_token(token)) != tokens.texts[token]:
            raise LlucidError(
                f"{WHOLE_JSON} is of another vocabulary: it calls {token} {shown(found)}, "
                f"and tokenizer.ggml.tokens {shown(tokens.texts[token])}"
            )
    made.bos, made.eos, made.stop_ids = tokens.bos, tokens.eos, tokens.stop_ids
    return made


def _sentencepiece(keys: Mapping[str, Any]) -> SentencePiece:
    """A vocabulary of pieces with scores, as a SentencePiece model.

    Pieces that are found in text first are its added tokens: unlike the sentencepiece library, llama.cpp puts a space
    before what follows them."""
    tokens = _tokens(keys, 1, 2, add_bos=True)
    texts, types = tokens.texts, list(tokens.types)
    scores = _list(keys, "tokenizer.ggml.scores", float) if "tokenizer.ggml.scores" in keys else [0.0] * len(texts)
    scores = scores[: len(texts)]
    if len(scores) != len(texts) or not all(abs(score) < 2.0**127 for score in scores):
        raise LlucidError(f"tokenizer.ggml.scores should be a number for each of the {len(texts)} tokens")
    unknown = keys.get("tokenizer.ggml.unknown_token_id", 0)
    if type(unknown) is not int or not 0 <= unknown < len(texts):
        raise LlucidError(f"tokenizer.ggml.unknown_token_id {shown(unknown)} is none of the {len(texts)} tokens")
    if "tokenizer.ggml.token_type" not in keys:
        types = [BYTE if BYTE_PIECE.fullmatch(text.encode()) else NORMAL for text in texts]
        for token in (tokens.named_bos, tokens.eos):
            if token is not None:
                types[token] = CONTROL
    if UNKNOWN not in types:
        types[unknown] = UNKNOWN
    if types.count(BYTE) not in (0, 256):
        raise LlucidError(f"tokenizer.ggml.tokens has {types.count(BYTE)} of the 256 bytes")

    roles = {"unk": types.index(UNKNOWN), "bos": tokens.bos, "eos": tokens.eos}
    prefix = bool(keys.get("tokenizer.ggml.add_space_prefix", True))
    found = {n: text for n, (text, kind) in enumerate(zip(texts, types, strict=True)) if kind == USER_DEFINED}
    added = {token: AddedToken(text, normalized=False) for token, text in found.items() if "▁" not in text}
    model = model_of(texts, scores, types, roles, prefix)
    made = SentencePiece(model, _config(keys, tokens), added=added)
    made.bos, made.eos, made.stop_ids = tokens.bos, tokens.eos, tokens.stop_ids
    return made


def _byte_pairs(keys: Mapping[str, Any]) -> JsonTokenizer:
    """A vocabulary of byte pairs, written in visible letters, with their merges, as a `tokenizer.json`."""
    rule = _rule(keys)
    tokens = _tokens(keys, None, None, rule.add_bos)
    known = {*tokens.texts}
    merges: dict[tuple[str, str], None] = {}  # of equal ones the first counts
    for merge in _list(keys, "tokenizer.ggml.merges", str):
        cut = merge.find(" ", 1)
        if cut < 0:
            raise LlucidError(f"tokenizer.ggml.merges has one that is not a pair, {shown(merge)}")
        pair = merge[:cut], merge[cut + 1 :]
        if not known.issuperset((*pair, "".join(pair))):
            raise LlucidError(f"tokenizer.ggml.merges has {shown(merge)}, which is not in tokenizer.ggml.tokens")
        merges[pair] = None

    kinds = dict(zip(tokens.texts, tokens.types, strict=True))
    special = {text: n for n, (text, kind) in enumerate(kinds.items()) if kind in (CONTROL, UNKNOWN)}
    last = max((token for token, text in enumerate(tokens.texts) if text not in special), default=-1)
    model = {
        "type": "BPE",
        "byte_fallback": False,
        "ignore_merges": rule.whole_words,
        # Without the special tokens at the end, so that no word that spells one becomes it.
        "vocab": {text: token for token, text in enumerate(tokens.texts[: last + 1])},
        "merges": [*merges],
    }
    unmarked = {text: n for n, (text, kind) in enumerate(kinds.items()) if kind == USER_DEFINED}
    steps: dict[str, Any] = {"normalizer": [], "pre_tokenizer": rule.steps, "decoder": [LETTERS]}
    around = json.loads(special_json({}, special, tokens.bos, **steps, unmarked=unmarked))
    made = JsonTokenizer(around | {"model": model}, config=_config(keys, tokens))
    made.bos, made.eos, made.stop_ids = tokens.bos, tokens.eos, tokens.stop_ids
    return made


def _rule(keys: Mapping[str, Any]) -> Rule:
    """How a text is split. Raises LlucidError, by name, for a rule that llucid does not know.

    Old files name no rule, or "default". Such a file of Llama 3 gets Llama 3's rule, unlike in llama.cpp."""
    pre = keys.get("tokenizer.ggml.pre", "default")
    if pre == "default" and "<|begin_of_text|>" in _list(keys, "tokenizer.ggml.tokens", str):
        pre = "llama-bpe"
    rule = RULES.get(ALIASES.get(str(pre), str(pre)))
    if rule is None:
        raise LlucidError(
            f"tokenizer.ggml.pre {shown(pre)} is not supported: how this tokenizer splits a text into words is not "
            f"known ({', '.join(RULES)} are); give the path of the model's own tokenizer, as in tokenizer=PATH"
        )
    return rule


def _characters(keys: Mapping[str, Any]) -> Characters:
    """A vocabulary of single ASCII characters in their order, with backslashes escaped."""
    texts = [text.replace("\\\\", "\\") for text in _tokens(keys, None, None, add_bos=False).texts]
    if not all(len(text) == 1 and text.isascii() for text in texts) or texts != sorted(texts):
        raise LlucidError("tokenizer.ggml.model rwkv is only supported for single ASCII characters in their order")
    return Characters(texts)


def _list(keys: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    """The list under `key`. Raises LlucidError if there is none, or one of something else."""
    values = keys.get(key)
    if not isinstance(values, list) or (values and type(values[0]) is not kind):
        raise LlucidError(wrong_value(keys, key, f"a list of {kind.__name__}"))
    return list(values)  # pyright: ignore[reportUnknownVariableType]
