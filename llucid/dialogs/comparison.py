"""The first difference between two chat tokenizers in the ids of a dialogue."""

from itertools import product
from typing import Any

from llucid.dialogs.formats import NATIVE, encode_dialog, format_of
from llucid.dialogs.templates import ROLES, SlowTemplate, templates_of
from llucid.errors import LlucidError
from llucid.tokenizers import Tokenizer
from llucid.tokenizers.comparison import PROBES, id_difference

VALUES: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "x", "description": "x", "parameters": {}}}],
    "documents": [{"title": "x", "text": "x"}],
    "enable_thinking": True,
}
"""What templates may ask for, beside the messages."""


def first_difference_in_dialog(
    tokenizer: Tokenizer, other: Tokenizer, format: str | None = None, other_format: str | None = None
) -> str | None:
    """The first difference between the ids of short dialogues, in words; None if there is none.

    Compares each tokenizer's own formats (several if it has named templates), or the formats given (see
    `encode_dialog`), in dialogues of every role, whose messages begin with white space and without.
    """
    formats, others = formats_of(tokenizer, format), formats_of(other, other_format)
    if formats and not others:
        return "the format of dialogues is lost"
    if len(formats) == len(others) == 1:
        others = dict(zip(formats, others.values(), strict=True))
    for name, one in formats.items():
        if name not in others:
            return f"the chat template {name} is lost"
        if difference := _difference(tokenizer, other, one, others[name]):
            return difference
    return None


def _difference(tokenizer: Tokenizer, other: Tokenizer, one: str, two: str) -> str | None:
    """The first difference in one format each, also with the values that it has a place for."""
    values = {name: value for name, value in VALUES.items() if name in one and one not in NATIVE}
    for extra, roles, first in product([{}, values][: 1 + bool(values)], ROLES, range(2)):
        contents = [PROBES[(place + first) % 2] for place in range(len(roles))]
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:
            ids = encode_dialog(messages, tokenizer, one, **extra)
        except SlowTemplate as error:  # it would be so for other messages, too
            return f"dialogues cannot be compared: {error}"
        except LlucidError:  # a template may refuse such messages
            continue
        try:
            same = encode_dialog(messages, other, two, **extra)
        except LlucidError as error:
            return f"a dialogue has ids in one, but the other: {error}"
        if same != ids:
            return f"the ids of a dialogue {id_difference(ids, same)}"
    return None


def formats_of(tokenizer: Tokenizer, format: str | None) -> dict[str, str]:
    """The given format, or those of a tokenizer's dialogues: its named templates, or one called default, or none."""
    templates = None if format else templates_of(tokenizer)
    if isinstance(templates, dict):
        return templates
    format = format or format_of(tokenizer)
    return {} if format is None else {"default": format}
