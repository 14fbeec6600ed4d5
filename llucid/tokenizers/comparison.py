"""The first difference between two tokenizers: whether a conversion gives the same ids."""

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice

from llucid.errors import LlucidError, note
from llucid.tokenizers.merges import overlaps
from llucid.tokenizers.tokenizer import Tokenizer

PROBES = (
    "Once upon a time, there was 1 bell.",
    "  Once upon\n\n a time,  it's naïve 漢字 🚀\x00<s> 12345 <|eot_id|>\t\r\nDON'T  ",
    "e\u0301 ＡＢＣ ½ \u00a0\u3000\u2028 \ufeff\ue000 ก็ 👩‍👩‍👧‍👦 שלום مرحبا",
    "def f(x):\n    return {'a': [x**2]}  # <0x41> [INST] <<SYS>>\n\n\n\tend   ",
    " ",
    "\n",
)
"""Texts that tokenizers get wrong. Without "▁", which llama2.c's format cannot tell from a space."""


def first_difference(tokenizer: Tokenizer, other: Tokenizer) -> str | None:
    """The first difference between two tokenizers, in words: BOS, EOS, an id that ends a text only in the first, or
    what `text_difference` finds; None if there is none."""
    for role, one, two in (("BOS", tokenizer.bos, other.bos), ("EOS", tokenizer.eos, other.eos)):
        if one != two:
            return f"{role} is {one} in one and {two} in the other"
    if missing := tokenizer.stop_ids - other.stop_ids:
        return f"{min(missing)} ends a text in one and not in the other"
    return text_difference(tokenizer, other)


def text_difference(tokenizer: Tokenizer, other: Tokenizer) -> str | None:
    """The first difference in the ids of some texts or in their decoding, in words; None if there is none.

    The texts are PROBES, special and added tokens, runs of spaces, pieces of the vocabulary, and overlaps of them.
    Those that `tokenizer` cannot encode are left out.
    """
    for text in texts_for(tokenizer):
        try:
            ids = tokenizer.encode(text)
        except LlucidError:
            continue
        try:
            theirs, back = other.encode(text), other.decode(ids)
        except (LlucidError, IndexError) as error:
            return f"{text[:20]!r} has ids in one, but the other: {error}"
        if theirs != ids:
            return f"the ids of {text[:20]!r} {id_difference(ids, theirs)}"
        if back != tokenizer.decode(ids):
            return f"the ids of {text[:20]!r} are decoded differently"
    return None


@lru_cache(maxsize=4)
def json_difference(tokenizer: Tokenizer) -> str | None:
    """How the `tokenizer.json` of a tokenizer whose pieces have scores first differs, or why it has none, in words."""
    from llucid.tokenizers.tokenizer_json import JsonTokenizer

    if not hasattr(tokenizer, "scores"):
        return None
    try:
        made = JsonTokenizer(json.loads(tokenizer.json()))
    except LlucidError as error:
        return str(error)
    difference = text_difference(tokenizer, made)
    return difference and f"a tokenizer.json would give other ids: {difference}"


@lru_cache(maxsize=4)
def note_difference(tokenizer: Tokenizer) -> None:
    """Notes, once, that no `tokenizer.json` expresses a tokenizer whose pieces have scores."""
    if difference := json_difference(tokenizer):
        note(f"tokenizer.model is written, of which transformers' fast classes make a tokenizer.json: {difference}")


def identity(tokenizer: Tokenizer) -> str:
    """A text that no two tokenizers with different ids share: the `tokenizer.json`, unless pieces have scores."""
    if not hasattr(tokenizer, "scores"):
        return tokenizer.json()
    names = ("model", "pieces", "scores", "special", "given", "first_only")
    return repr([getattr(tokenizer, name, None) for name in names])


def id_difference(ids: Sequence[int], others: Sequence[int]) -> str:
    """Where two different lists of ids differ first, in words."""
    pairs = zip(ids, others, strict=False)
    at = next((at for at, (one, two) in enumerate(pairs) if one != two), min(len(ids), len(others)))
    return f"differ at place {at}: {list(ids[at : at + 4])} in one, {list(others[at : at + 4])} in the other"


def texts_for(tokenizer: Tokenizer) -> Iterator[str]:
    """The texts that two tokenizers are compared by.

    Where pieces merge by score, they include texts in which equally good merges overlap: SentencePiece takes the
    leftmost, and a `tokenizer.json` has no equals."""
    yield from PROBES
    added = [token.content for token in getattr(tokenizer, "added", {}).values()]
    yield " ".join([*tokenizer.special][:256])
    yield " ".join(added[:4096])
    yield "".join(f"the{' ' * number}" for number in range(40))
    every = range(0, tokenizer.vocab_size, 1 + tokenizer.vocab_size // 4096)
    pieces = [tokenizer.decode([token]) for token in every]
    yield "".join(pieces)
    yield " ".join(pieces)
    for text in islice(overlaps(getattr(tokenizer, "order", {})), 4096):
        yield text.replace("▁", " ")
        yield "\n" + text.replace("▁", " ")  # no space is put before it
