"""The steps of a `tokenizer.json`, which are normalizers, pre-tokenizers, post-processors and decoders: those of Llama
3, and what a stranger's could do to a text."""

import base64
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import tokenizers

from llucid.errors import LlucidError

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's words: letters with the space before them, three digits at most, punctuation. Merges stay within a word."""
SPLIT: dict[str, Any] = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
"""The step that splits a text into these words."""
LETTERS: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
"""The step that writes each byte as a visible character."""
SAFE = {
    *("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "ByteLevel", "Metaspace", "Digits", "Punctuation"),
    *("Whitespace", "WhitespaceSplit", "ByteFallback", "Fuse"),
}
"""Steps in which the library has never been seen to panic, whatever their settings."""
KINDS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def around_a_word(content: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The library's tokenizer with the steps of a `tokenizer.json` around a model of the one word "a".

    Raises what the library raises, and ValueError for a table that is cut off."""
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    steps = {kind: content.get(kind) for kind in KINDS}
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "model": model}
    text = json.dumps(whole | steps)
    for table in re.findall(r'"precompiled_charsmap": "([^"]*)"', text):  # the library reserves the size that it says
        if int.from_bytes(base64.b64decode(table[:8])[:4], "little") > len(table):
            raise ValueError("a table of its normalizer is cut off")
    return tokenizers.Tokenizer.from_str(text)


def typed_steps(library: tokenizers.Tokenizer) -> dict[str, Any]:
    """The library's steps of each kind as it writes them, each with its type: it also reads forms without types."""
    steps = {kind: getattr(library, kind) for kind in KINDS}
    return {kind: None if step is None else json.loads(step.__getstate__()) for kind, step in steps.items()}


def steps_of(step: Any) -> list[Any]:
    """The single steps of one of a kind."""
    match step:
        case None:
            return []
        case {"type": "Sequence", **lists}:
            parts = [part for parts in lists.values() if isinstance(parts, list) for part in list[Any](parts)]
            return [*chain(*map(steps_of, parts))]
        case _:
            return [step]


def may_panic(step: Any) -> bool:
    """Whether the library might panic in a single step."""
    match step:
        case {"type": "Replace" | "Split", "pattern": {"String": text}}:
            return not text or step.get("content") == ""
        case {"type": "Split", "pattern": pattern}:
            return pattern != SPLIT["pattern"]
        case {"type": "Prepend", "prepend": text}:
            return not text
        case {"type": "Strip", "stop": 0}:
            return False
        case {"type": kind}:
            return kind not in SAFE
        case _:
            return True


MOST_STEPS, MOST_GROWTH = 100, 100
"""Steps of a kind, and times that they may make a text longer: those of published files have at most 72, if ever a text
has only the one character that becomes 18, and spaces."""
USUAL_GROWTH = 10
"""Times that a normalizer may make a given text longer: Unicode's normal forms make 3 characters of one of Korea's."""
LONGEST = 256
"""Characters of the longest word of WordPiece, which takes the third power of time, of the longest piece of Unigram,
which tries all at every letter, in its square, and of what a model copies for each piece; published: 100 and 16."""
LONGER = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "ByteLevel", "BertNormalizer")
"""Steps that make some characters longer: up to 18 times."""


def growth(steps: Sequence[Any]) -> float:
    """How many times as long the steps can make a text, without normal forms, which leave their own result as it is,
    and the first of each other kind that does not say what it adds."""
    times, kinds = 1.0, set[str]()
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(part)}, "content": str(text)} if part:
                times *= max(1.0, normal_length(text) / len(part))
            case {"type": "Replace", "content": str(text)}:  # it may also find nothing, between all letters
                times *= 1 + normal_length(text)
            case {"type": "Prepend", "prepend": str(text)}:
                times *= 1 + normal_length(text)
            case {"type": "Precompiled", "precompiled_charsmap": str(table)}:
                times *= longest_text(base64.b64decode(table))
            case {"type": "Metaspace" | "BertNormalizer" | "ByteLevel" as kind}:
                times *= 4 if kind in kinds else 1
                kinds.add(kind)
            case {"type": "TemplateProcessing", "single": list(parts), "special_tokens": dict(named)}:
                added = [len(named[part["SpecialToken"]["id"]]["ids"]) for part in parts if "SpecialToken" in part]
                times = times * (len(parts) - len(added)) + sum(added)
            case _:
                pass
    return times


def normal_length(text: str) -> int:
    """Characters of a text in its longest normal form."""
    return len(unicodedata.normalize("NFKD", text.lower()))


def refuse_growth(typed: Mapping[str, Any]) -> None:
    """Raises ValueError if there are too many steps of a kind, if they make a text far longer, and for a model whose
    parts are so long that a text takes forever."""
    steps = {kind: steps_of(typed[kind]) for kind in KINDS}
    before_words = [*steps["normalizer"], *steps["pre_tokenizer"]]
    for name, inner in (steps | {"pre_tokenizer": before_words}).items():
        if len(inner) > MOST_STEPS:
            raise ValueError(f"its {name} has {len(inner):,} steps")
        if (times := growth(inner)) > MOST_GROWTH:
            raise ValueError(f"its {name} makes texts {times:.3g} times as long")
    model = typed.get("model") or {}
    if (model.get("max_input_chars_per_word") or 0) > LONGEST:
        raise ValueError(f"its words may have more than {LONGEST} characters")
    pieces = [model.get(key) or "" for key in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix")]
    if isinstance(model.get("vocab"), list):
        pieces += [piece for piece, _ in model["vocab"]]
    if any(len(piece) > LONGEST for piece in pieces):
        raise ValueError(f"it has a piece of more than {LONGEST} characters")


def grows(normalizer: Any) -> bool:
    """Whether a normalizer may make a text more than USUAL_GROWTH times as long. That of a Llama does not."""
    steps = steps_of(normalizer)
    return growth(steps) > 2 or any(step["type"] in LONGER for step in steps)


def refuse_longer(normalize: Callable[[str], str], text: str) -> None:
    """Raises LlucidError if a normalizer makes this text far longer, which it may be only a little at a time."""
    parts = (text[at : at + 1000] for at in range(0, len(text), 1000))
    if sum(len(normalize(part)) for part in parts) > USUAL_GROWTH * (len(text) + 1000):
        raise LlucidError(f"the tokenizer's normalizer makes the text more than {USUAL_GROWTH} times as long")


def longest_text(charsmap: bytes) -> int:
    """Characters of the longest text that SentencePiece's `charsmap` puts in place of a character: its size, a table of
    that size, and the texts, each with NUL at its end."""
    texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :].split(b"\0")
    return max(1, *(normal_length(text.decode(errors="replace")) for text in texts))


def refuse_vanishing(library: tokenizers.Tokenizer) -> None:
    """Raises ValueError for an added token that the normalizer makes empty: the library may look for it forever."""
    normal: Any = library.normalizer
    for token in library.get_added_tokens_decoder().values() if normal else ():
        if token.normalized and not normal.normalize_str(token.content):
            raise ValueError(
                f"its normalizer makes the added token {token.content!r} empty; set its normalized to false"
            )


def without_prefix(step: Any) -> Any:
    """A normalizer, pre-tokenizer or decoder that neither puts a space before a text nor removes one there."""
    match step:
        case {"type": "Sequence", **lists}:
            kept = {key: [without_prefix(part) for part in parts] for key, parts in lists.items()}
            return {"type": "Sequence", **{key: [part for part in parts if part] for key, parts in kept.items()}}
        case {"type": "Prepend"} | {"type": "Strip", "content": " ", "start": 1}:
            return None
        case {"type": "Metaspace"}:
            return step | {"prepend_scheme": "never"}
        case _:
            return step
