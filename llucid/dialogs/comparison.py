"""The first difference between two chat tokenizers: whether a conversion gives the same ids."""

from llucid.dialogs.formats import encode_dialog, format_of
from llucid.errors import LlucidError
from llucid.tokenizers import Tokenizer
from llucid.tokenizers.comparison import PROBES, first_difference, id_difference


def first_difference_in_dialog(
    tokenizer: Tokenizer, other: Tokenizer, format: str | None = None, other_format: str | None = None
) -> str | None:
    """The first difference between two tokenizers, in words; None if there is none.

    Compares BOS, EOS and stop ids, the ids of texts that tokenizers get wrong, and those of a dialogue in each one's
    own format, or in the format given (see `encode_dialog`).
    """
    if difference := first_difference(tokenizer, other):
        return difference
    try:
        format, other_format = format or format_of(tokenizer), other_format or format_of(other)
    except LlucidError:  # several templates without a default
        return None
    if format is None:
        return None
    if other_format is None:
        return "the format of dialogues is lost"
    turns = [("user", PROBES[1]), ("assistant", PROBES[0]), ("user", PROBES[3])]
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        ids = encode_dialog(messages, tokenizer, format)
    except LlucidError:  # a template may refuse such messages
        return None
    try:
        others = encode_dialog(messages, other, other_format)
    except LlucidError as error:
        return f"a dialogue has ids in one, but the other: {error}"
    return None if others == ids else f"the ids of a dialogue {id_difference(ids, others)}"
