"""The ids of a prompt."""

from llucid.errors import LlucidError
from llucid.tokenizers.tokenizer import Tokenizer


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of `text`, after one BOS if the tokenizer has it; never empty.

    Without BOS, an empty prompt becomes a line break, as in nanoGPT, or id 0 if the tokenizer has none. Raises
    LlucidError for text that cannot be encoded.
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
