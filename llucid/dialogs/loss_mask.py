"""Dialogues for training: messages to ids and a loss mask, since only the assistant's words are learned.

In each format the ids are those that `encode_dialog` gives when the model answers.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from llucid.dialogs.formats import (
    LLAMA3,
    TEMPLATES,
    check_messages,
    encode_llama2,
    ending_turns,
    known_format,
    turns_of_llama3,
    values_for,
)
from llucid.dialogs.templates import encode_template
from llucid.errors import LlucidError, shown
from llucid.tokenizers import Tokenizer

CHAT_CONFIG = {"bos_token": LLAMA3[0], "eos_token": LLAMA3[3], "chat_template": TEMPLATES["llama3"]}
"""The `tokenizer_config.json` of a model trained on dialogues in Llama 3's format."""


def encode_learned(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    format: str | None = None,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[list[int], list[bool]]:
    """(the ids of a whole dialogue, whether each is learned): the assistant's words and the end of its turns.

    The arguments are those of `encode_dialog`, but the last message should be the assistant's: what comes after it is
    left out. Raises LlucidError if there is none, or if the ids of a turn depend on later ones.
    """
    dialog = check_messages(messages)
    answers = [number for number, message in enumerate(dialog) if message["role"] == "assistant"]
    if not answers:
        raise LlucidError("there is no message of the assistant, so there is nothing to learn")
    dialog = dialog[: answers[-1] + 1]
    format = known_format(format, tokenizer, tools=bool(tools))
    extra = values_for(format, tools=tools)
    if format == "llama3":
        return turns_of_llama3(dialog, tokenizer)
    if format == "plain":
        raise LlucidError("format=plain: it marks no turns, so none can be learned")

    ends = ending_turns(tokenizer, format).stop_ids
    ids, learned, after = list[int](), list[bool](), list[int]()
    for number in answers:
        asked = _encoded(dialog[:number], tokenizer, format, True, extra)
        whole = _encoded(dialog[: number + 1], tokenizer, format, False, extra)
        if ends.isdisjoint(whole[len(asked) :]):
            whole = _with_end(dialog[: number + 1], asked, whole, tokenizer, format, extra, ends)
        unchanged = asked[: len(ids)] == ids
        if not unchanged or whole[: len(asked)] != asked:
            if unchanged and tokenizer.decode(whole).startswith(tokenizer.decode(asked)):
                raise LlucidError(
                    f"messages[{number}]: the answer's first characters and the template's last before it are one "
                    "token, so it is unknown what the model should learn; begin the answer otherwise"
                )
            before = _encoded(dialog[:number], tokenizer, format, False, extra)
            if unchanged and asked[: len(before)] == before == whole[: len(before)]:
                prompt = shown(tokenizer.decode(asked[len(before) :]))
                raise LlucidError(
                    f"messages[{number}]: the chat template asks for an answer with {prompt} and writes the answer "
                    "without it, so it is unknown what the model should learn; make both begin alike in the template"
                )
            raise LlucidError(
                f"messages[{number}]: the chat template changes what comes before an answer when more follows, so "
                "it is unknown what the model should learn"
            )
        answer = whole[len(asked) :]
        found = [at + 1 for at, token in enumerate(answer) if token in ends] or [len(answer)]
        # Some templates write several parts, each with an end.
        word = re.findall(r"\w+", dialog[number]["content"])[-1:]
        end = next((at for at in found[:-1] if not word or word[0] not in tokenizer.decode(answer[at:])), found[-1])
        learned += [False] * (len(asked) - len(ids)) + [True] * end
        ids, after = asked + answer[:end], answer[end:]  # some templates write there what is left out if more follows
    return ids + after, learned + [False] * len(after)


def _with_end(
    dialog: Sequence[Mapping[str, str]],
    asked: list[int],
    whole: list[int],
    tokenizer: Tokenizer,
    format: str,
    extra: Mapping[str, Any],
    ends: frozenset[int],
) -> list[int]:
    """The ids of a dialog and of the end of its answer, which some templates write only before another turn; `whole` if
    there is none."""
    later = secrets.token_hex(8)
    try:
        more = _encoded([*dialog, {"role": "user", "content": later}], tokenizer, format, False, extra)
    except LlucidError:
        return whole
    at = next((at for at, token in enumerate(more) if at >= len(asked) and token in ends), None)
    if at is None or more[: len(asked)] != asked:
        return whole
    answer, ended = tokenizer.decode(whole[len(asked) :]), tokenizer.decode(more[len(asked) : at])
    return more[: at + 1] if ended.startswith(answer) and later not in ended else whole


def _encoded(
    dialog: Sequence[Mapping[str, str]], tokenizer: Tokenizer, format: str, ready: bool, extra: Mapping[str, Any]
) -> list[int]:
    if format == "llama2":
        return encode_llama2(dialog, tokenizer)
    return encode_template(format, dialog, tokenizer, ready, extra)
