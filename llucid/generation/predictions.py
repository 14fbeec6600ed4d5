"""The likeliest next tokens and their probabilities."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llucid.errors import LlucidError, check_number, printable_json
from llucid.generation.batch import Batch
from llucid.generation.sampling import softmax
from llucid.model import Model
from llucid.tokenizers import StreamingDecoder, Tokenizer
from llucid.tokenizers.prompts import prompt_ids

if TYPE_CHECKING:
    from rich.table import Table


class Prediction(NamedTuple):
    """One token that may come next."""

    token: str
    """Its text after this prompt; for one that has none of its own, its name or `<token 123>`."""
    id: int
    probability: float
    """Of the whole vocabulary, as the model gives it: no temperature, nothing left out."""


def predict(model: Model, text: str, top_k: int = 5) -> list[Prediction]:
    """The `top_k` likeliest tokens after `text`, the likeliest first; of equally likely ones, the lower id first.

    Raises LlucidError for `top_k` below 1, a text that cannot be encoded, or one longer than the context, and for
    `scores` of a damaged model.
    """
    check_number("top_k", top_k, whole=True)
    if top_k < 1:
        raise LlucidError(f"top_k={top_k}: must be at least 1")
    ids = prompt_ids(model.text(), text)
    probabilities = np.asarray(softmax(Batch(model).read(ids)).tolist())
    best: list[int] = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
    texts = {token: token_text(model.text(), ids, token) for token in best}
    return [Prediction(text, token, float(probabilities[token])) for token, text in texts.items()]


def token_text(tokenizer: Tokenizer, before: list[int], token: int) -> str:
    """The text of one token after others; the name of a special one; `<token 123>` for part of a character."""
    names = {number: name for name, number in tokenizer.special.items()}
    if token in names:
        return names[token]
    text = StreamingDecoder(tokenizer, before).push(token) if token < tokenizer.vocab_size else ""
    return text or f"<token {token}>"


def table(predictions: list[Prediction]) -> "Table":
    """The predictions as a table with bars; the longest bar, 30 characters, is a probability of 1."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table("token", "id", "probability", "", box=box.SIMPLE)
    for token, number, probability in predictions:
        bar = "█" * round(30 * probability) or "▏"
        drawn.add_row(
            Text(printable_json(token)),
            str(number),
            f"{100 * probability:6.2f} %",
            bar,
        )
    return drawn
