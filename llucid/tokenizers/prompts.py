"""The ids of a prompt."""

from contextlib import suppress

from llucid.errors import LlucidError
from llucid.tokenizers.tokenizer import Tokenizer


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of `text`, after one BOS if the tokenizer has it; never empty.

    Without BOS, an empty prompt becomes a line break, as in nanoGPT, or id 0 if the tokenizer has none. Raises
    LlucidError for text that cannot be encoded, and for what is not text.
    """
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise LlucidError(f"prompt={text!r}: expected a text")
    ids = tokenizer.encode(text) if text else []
    if tokenizer.bos is not None:
        return [tokenizer.bos, *ids]
    if not ids:
        with suppress(LlucidError):
            ids = tokenizer.encode("\n")
    return ids or [0]
