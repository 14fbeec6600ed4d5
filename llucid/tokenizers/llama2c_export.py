"""Other tokenizers in llama2.c's format, if its merge rule gives the same ids."""

import json
from collections.abc import Sequence

from llucid.errors import LlucidError
from llucid.tokenizers.comparison import text_difference
from llucid.tokenizers.llama2c import FIRST_BYTE, WORST_SCORE, Llama2cTokenizer
from llucid.tokenizers.sentencepiece_model import SentencePiece
from llucid.tokenizers.tokenizer import Tokenizer
from llucid.tokenizers.tokenizer_json import JsonTokenizer


def to_llama2c(tokenizer: Tokenizer, vocab_size: int = 0) -> Llama2cTokenizer:
    """The same tokenizer in llama2.c's format: from a SentencePiece model, or from a `tokenizer.json` made of one. It
    has a piece for each of a model's `vocab_size` ids, which llama2.c requires.

    Raises LlucidError for any other: llama2.c has one merge rule, three special tokens, and a piece for each byte.
    The letter "▁" in a text gets other ids: SentencePiece reads it as a space, llama2.c does not.
    """
    made = tokenizer if isinstance(tokenizer, Llama2cTokenizer) else rows_of(tokenizer)
    if more := range(made.vocab_size, vocab_size):
        pieces = [*made.pieces, *(b"[PAD%d]" % number for number in more)]
        made = Llama2cTokenizer(pieces, [*made.scores, *[WORST_SCORE] * len(more)])
    if isinstance(tokenizer, Llama2cTokenizer):
        return made
    if tokenizer.bos != made.bos or tokenizer.eos not in (made.eos, None):
        raise LlucidError(f"llama2.c's BOS and EOS are 1 and 2, this tokenizer's {tokenizer.bos} and {tokenizer.eos}")
    if more := tokenizer.stop_ids - made.stop_ids:
        raise LlucidError(f"llama2.c ends a text at 1 and 2 only, this tokenizer also at {min(more)}")
    if any(token != FIRST_BYTE + byte for byte, token in made.byte_ids.items()):
        raise LlucidError(f"llama2.c's pieces for bytes begin at {FIRST_BYTE}, this tokenizer's do not")
    if difference := text_difference(tokenizer, made):
        raise LlucidError(f"llama2.c's merge rule gives other ids than this tokenizer: {difference}")
    return made


def rows_of(tokenizer: Tokenizer) -> Llama2cTokenizer:
    """The pieces and scores of a tokenizer in llama2.c's format, whether or not its rule gives the same ids."""
    match tokenizer:
        case SentencePiece():
            if reason := tokenizer.obstacle() or tokenizer.odd_symbol():
                raise LlucidError(f"llama2.c's format cannot express this SentencePiece model: {reason}")
            return Llama2cTokenizer(*_rows(dict(enumerate(tokenizer.pieces)), tokenizer.scores))
        case JsonTokenizer():
            return Llama2cTokenizer(*_rows(*_json_rows(tokenizer)))
        case _:
            raise LlucidError(f"llama2.c's format cannot express this kind of tokenizer ({type(tokenizer).__name__})")


def _rows(pieces: dict[int, str], scores: Sequence[float]) -> tuple[list[bytes], list[float]]:
    """Pieces as llama2.c's own export spells them."""
    marked = " " not in pieces.values()
    texts = [pieces[token].replace("▁", " ") if marked else pieces[token] for token in range(len(pieces))]
    texts[1:3] = ["\n<s>\n", "\n</s>\n"]
    return [text.encode() for text in texts], [float(score) for score in scores]


def _json_rows(tokenizer: JsonTokenizer) -> tuple[dict[int, str], list[float]]:
    """The pieces and scores of a `tokenizer.json`: earlier merges have better scores, unmerged pieces the worst."""
    model = json.loads(tokenizer.json())["model"]
    pieces = {token: piece for piece, token in tokenizer.tokenizer.get_vocab(with_added_tokens=True).items()}
    if model.get("type") != "BPE" or not model.get("byte_fallback") or sorted(pieces) != [*range(len(pieces))]:
        raise LlucidError("llama2.c's format needs byte fallback, which this tokenizer.json does not have")
    scores = dict[str, float]()
    for rank, (left, right) in enumerate(model["merges"]):
        scores.setdefault(left + right, -float(rank))
    return pieces, [scores.get(pieces[token], WORST_SCORE) for token in range(len(pieces))]
