"""What a model reads before it writes: the prompt's ids, begun as the model was taught."""

from llucid.errors import LlucidError
from llucid.tokenizers import Tokenizer


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of `text`, with BOS in front, exactly once, where the tokenizer has one; never empty.

    A model without BOS must begin somewhere: on nothing it continues a line break, as nanoGPT does, or id 0 if its
    tokenizer has none. Raises LlucidError for text that cannot be encoded.
    """
    ids = tokenizer.encode(text) if text else []
    if tokenizer.bos is not None:
        return [tokenizer.bos, *ids]
    return ids or _line_break(tokenizer) or [0]


def _line_break(tokenizer: Tokenizer) -> list[int]:
    try:
        return tokenizer.encode("\n")
    except LlucidError:
        return []
