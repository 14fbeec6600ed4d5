"""Other tokenizers as llama2.c has them, where its merge rule gives the same ids."""

import json
from collections.abc import Sequence

from llucid.errors import LlucidError
from llucid.tokenizers import Tokenizer
from llucid.tokenizers.llama2c import WORST_SCORE, Llama2cTokenizer
from llucid.tokenizers.sentencepiece_model import SentencePiece
from llucid.tokenizers.tokenizer_json import JsonTokenizer


def to_llama2c(tokenizer: Tokenizer) -> Llama2cTokenizer:
    """The same tokenizer as llama2.c has it: from a SentencePiece model or from a `tokenizer.json` made of one.

    Raises LlucidError for any other: llama2.c knows one merge rule, three special tokens, and pieces for bytes.
    """
    if isinstance(tokenizer, Llama2cTokenizer):
        return tokenizer
    made = rows_of(tokenizer)
    probe = "  Once upon\n\n a time,  naïve 漢字 🚀\x00<s>"
    alike = tokenizer.bos in (made.bos, None) and tokenizer.eos in (made.eos, None)
    if not alike or made.encode(probe) != tokenizer.encode(probe):
        raise LlucidError("llama2.c's merge rule and special tokens give other ids than this tokenizer")
    return made


def rows_of(tokenizer: Tokenizer) -> Llama2cTokenizer:
    """The pieces and scores of a tokenizer, as llama2.c has them, whether or not its rule gives the same ids."""
    match tokenizer:
        case SentencePiece():
            return Llama2cTokenizer(*_rows(dict(enumerate(tokenizer.pieces)), tokenizer.scores))
        case JsonTokenizer():
            return Llama2cTokenizer(*_rows(*_json_rows(tokenizer)))
        case _:
            raise LlucidError(f"llama2.c has no tokenizer like this one ({type(tokenizer).__name__})")


def _rows(pieces: dict[int, str], scores: Sequence[float]) -> tuple[list[bytes], list[float]]:
    """Pieces as the export of llama2.c spells them."""
    marked = " " not in pieces.values()
    texts = [pieces[token].replace("▁", " ") if marked else pieces[token] for token in range(len(pieces))]
    texts[1:3] = ["\n<s>\n", "\n</s>\n"]
    return [text.encode() for text in texts], [float(score) for score in scores]


def _json_rows(tokenizer: JsonTokenizer) -> tuple[dict[int, str], list[float]]:
    """The pieces and scores of a `tokenizer.json`: what is merged earlier scores more, what is never merged nothing."""
    model = json.loads(tokenizer.json())["model"]
    pieces = {token: piece for piece, token in tokenizer.tokenizer.get_vocab(with_added_tokens=True).items()}
    if model.get("type") != "BPE" or not model.get("byte_fallback") or sorted(pieces) != [*range(len(pieces))]:
        raise LlucidError("this tokenizer.json does not fall back to bytes as SentencePiece does; llama2.c's has to")
    scores = dict[str, float]()
    for rank, (left, right) in enumerate(model["merges"]):
        scores.setdefault(left + right, -float(rank))
    return pieces, [scores.get(pieces[token], WORST_SCORE) for token in range(len(pieces))]
