"""Chat templates to ids: the template's special tokens become ids, and no text of a message ever does.

A message that spells a special token goes through the template as a mark that nobody can guess, and is put in the
mark's place as ordinary text. Other messages go through as they are, since templates read and change them (to leave out
old reasoning, for example). A template could also join harmless parts to a special token. So everything is rendered a
second time with each message as a mark, and the first rendering counts only if it has the same special tokens.

Texts in tools and documents are marks if they have a character that begins a special token. They need no second
rendering: two of them cannot be joined to a special token.
"""

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from llucid.dialogs.sandbox import QUOTED, RENDERER, SAID, TemplateFailure
from llucid.errors import LlucidError
from llucid.tokenizers import Tokenizer
from llucid.tokenizers.added_tokens import AddedTokens, Part
from llucid.tokenizers.folder import name_of
from llucid.tokenizers.sentencepiece_model import SentencePiece
from llucid.tokenizers.text import replace_surrogates
from llucid.tokenizers.tokenizer_json import JsonTokenizer

PRIVATE = 0xF0000
"""The first of 65,534 private-use characters."""


def templates_of(tokenizer: Tokenizer) -> str | dict[str, str] | None:
    """The template of a tokenizer's folder, or several by name. Raises LlucidError if it is neither."""
    config = getattr(tokenizer, "config", None)
    template: object = config.get("chat_template") if isinstance(config, dict) else None
    if template is None or isinstance(template, str):
        return template
    if isinstance(template, list) and all(isinstance(one, dict) for one in template):
        found = [(one.get("name"), one.get("template")) for one in template]
        if found and all(isinstance(word, str) for pair in found for word in pair):
            return dict(found)
    raise LlucidError("tokenizer_config.json: chat_template should be a text or a list of names and templates")


def template_of(tokenizer: Tokenizer, name: str = "default") -> str | None:
    """The template of a tokenizer's folder; of several, the one called `name`. None if it has none.

    Raises LlucidError if there are several and none has the name.
    """
    found = templates_of(tokenizer)
    if not isinstance(found, dict):
        return found if name == "default" else None
    if name in found:
        return found[name]
    if name == "default" and len(found) == 1:
        return next(iter(found.values()))
    raise LlucidError(f"the model has several chat templates and none is called {name}; name one: {', '.join(found)}")


@lru_cache(maxsize=4)
def controls_of(template: str, tokenizer: Tokenizer) -> AddedTokens:
    """The tokens that structure a dialogue: the special ones, and added tokens that the template contains.

    Some of them are not marked as special, such as `<｜User｜>` in DeepSeek's distilled Llamas. Single characters, like
    digits, are text.
    """
    added = tokenizer.added if isinstance(tokenizer, JsonTokenizer | SentencePiece) else {}
    found = dict(tokenizer.special) | {
        token.content: number
        for number, token in added.items()
        if not token.special and len(token.content.strip()) > 1 and token.content in template
    }
    return AddedTokens({name: number for name, number in found.items() if name}, added)


class Marks:
    """Texts that are hidden from a template, each behind a mark."""

    def __init__(self) -> None:
        # Private characters have no case and no use, so any rest of a mark that a template changed can be found.
        secret = [chr(PRIVATE + number) for number in secrets.SystemRandom().sample(range(0xFFFE), 19)]
        self.mark, self.digits, self.end = "".join(secret[:8]), "".join(secret[8:18]), secret[18]
        self.characters = {*secret, SAID, QUOTED}
        self.texts: list[str] = []

    def hide(self, text: str) -> str:
        """The mark for a text: `mark`, SAID, its number and `end`."""
        number = str(len(self.texts)).translate(str.maketrans("0123456789", self.digits))
        self.texts.append(text)
        return f"{self.mark}{SAID}{number}{self.end}"

    def hide_in(self, value: Any, hidden: Callable[[str], bool]) -> Any:
        """A JSON value in which the texts for which `hidden` is true are replaced by their marks."""
        match value:
            case str():
                return self.hide(value) if hidden(value) else value
            case dict():
                pairs = dict[str, Any](value).items()
                return {self.hide_in(key, hidden): self.hide_in(inner, hidden) for key, inner in pairs}
            case list():
                return [self.hide_in(inner, hidden) for inner in list[Any](value)]
            case _:
                return value

    def show(self, text: str, controls: AddedTokens) -> tuple[list[Part], bool]:
        """(the parts of what a template wrote, with the hidden texts in place of their marks; whether each mark was
        left as it was)."""
        pieces = re.split(f"{self.mark}([{SAID}{QUOTED}])([{self.digits}]+){self.end}", text)
        parts: list[Part] = []
        whole = True
        for number in range(0, len(pieces), 3):
            parts += controls.split(pieces[number])
            whole = whole and self.characters.isdisjoint(pieces[number])
            if number + 2 < len(pieces):
                index = int(pieces[number + 2].translate(str.maketrans(self.digits, "0123456789")))
                hidden = self.texts[index]
                parts.append(hidden if pieces[number + 1] == SAID else json.dumps(hidden, ensure_ascii=False)[1:-1])
        return parts, whole


def encode_template(
    template: str,
    messages: Sequence[Mapping[str, str]],
    tokenizer: Tokenizer,
    ready: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> list[int]:
    """The ids of `messages` by `template`, ending with the header of the assistant's turn if `ready`.

    They are those of transformers' `apply_chat_template`, if no message spells a special token. BOS is where the
    template puts it, but only once at the beginning. `extra` are more values for the template, such as tools. Raises
    LlucidError if the template fails, refuses the messages, or changes a message that spells a special token.
    """
    controls = controls_of(template, tokenizer)
    values = values_of(tokenizer) | dict(extra or {}) | {"add_generation_prompt": ready}
    special = {*tokenizer.special.values()}

    def spells(message: Mapping[str, str]) -> bool:
        # The model wrote the answers: the tokens in them that are not special ("</think>") remain its own.
        found = controls.find(message["content"])
        return any(number in special or message["role"] != "assistant" for number, _, _ in found)

    parts, whole = _rendered(template, messages, values, controls, [spells(message) for message in messages])
    strict, strict_whole = _rendered(template, messages, values, controls, [True] * len(messages))
    if not whole or ids_in(parts) != ids_in(strict):
        parts, whole = strict, strict_whole
    if not whole:
        raise LlucidError(
            "the model's chat template changes a text that spells a special token, which is not supported; leave that "
            "token out"
        )
    ids = ids_of(parts, tokenizer, controls)
    while tokenizer.bos is not None and ids[:2] == [tokenizer.bos] * 2:
        del ids[0]
    if not ids:
        raise LlucidError("the model's chat template makes nothing of these messages")
    return ids


def turn_end(template: str, tokenizer: Tokenizer) -> int | None:
    """The special token that a template puts after an answer; None if it puts none there or fails."""
    answer = secrets.token_hex(16)
    turns = [("user", "x"), ("assistant", answer), ("user", "x")]
    messages = [{"role": role, "content": content} for role, content in turns]
    values = values_of(tokenizer) | {"add_generation_prompt": True}
    try:
        parts, _ = _rendered(template, messages, values, controls_of(template, tokenizer), [True] * 3)
    except LlucidError:
        return None
    after = parts[parts.index(answer) + 1 :] if answer in parts else []
    end = next((part for part in after if isinstance(part, int)), None)
    return None if end == tokenizer.bos else end


def values_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """The values of a template beside the messages: bos_token, eos_token and so on."""
    config = getattr(tokenizer, "config", None) or {}
    roles = {role: name for role in config if role.endswith("_token") and (name := name_of(role, config)) is not None}
    names: dict[int | None, str] = {number: name for name, number in tokenizer.special.items()}
    known = {"bos_token": names.get(tokenizer.bos, ""), "eos_token": names.get(tokenizer.eos, "")}
    return {"tools": None, "documents": None, **known, **roles}


def _rendered(
    template: str,
    messages: Sequence[Mapping[str, str]],
    values: Mapping[str, Any],
    controls: AddedTokens,
    hidden: Sequence[bool],
) -> tuple[list[Part], bool]:
    """(what the template makes of the messages, some of them `hidden` behind marks; whether it left the marks as they
    were)."""
    marks = Marks()
    given = [
        {**message, "content": marks.hide(message["content"]) if hide and message["content"] else message["content"]}
        for message, hide in zip(messages, hidden, strict=True)
    ]
    for name in ("tools", "documents"):
        values = {**values, name: marks.hide_in(values[name], lambda text: not controls.firsts.isdisjoint(text))}
    try:
        text = RENDERER.render(template, {**values, "messages": given}, marks.mark)
    except TemplateFailure as error:
        raise LlucidError(f"the model's chat template: {error}") from error
    return marks.show(replace_surrogates(text), controls)


def ids_in(parts: Sequence[Part]) -> list[int]:
    return [part for part in parts if isinstance(part, int)]


def ids_of(parts: Sequence[Part], tokenizer: Tokenizer, controls: AddedTokens) -> list[int]:
    """The ids of all parts; adjacent texts are encoded as one."""
    first, later = encoders(tokenizer, frozenset(controls.ids))
    ids: list[int] = []
    text = ""
    for part in [*parts, -1]:
        if isinstance(part, str):
            text += part
            continue
        if text:
            ids += (later if ids else first)(text)
        text = ""
        ids.append(part)
    return ids[:-1]


Encoder = Callable[[str], list[int]]


@lru_cache(maxsize=4)
def encoders(tokenizer: Tokenizer, controls: frozenset[int]) -> tuple[Encoder, Encoder]:
    """How text is encoded at the beginning of a dialogue, and after a special token.

    The two differ for a tokenizer that puts a space before the first word only. Neither finds a control token
    in text that is not marked as special.
    """
    if not isinstance(tokenizer, JsonTokenizer | SentencePiece):
        return tokenizer.encode, tokenizer.encode
    unmarked = {number for number in controls if number in tokenizer.added and not tokenizer.added[number].special}
    if isinstance(tokenizer, SentencePiece):
        found = tokenizer.without(unmarked) if unmarked else tokenizer
        return found.encode, found.encode_later
    steps: Any = tokenizer.tokenizer.pre_tokenizer
    first_only = steps is not None and b'"prepend_scheme":"first"' in steps.__getstate__()
    if not unmarked and not first_only:
        return tokenizer.encode, tokenizer.encode
    content = json.loads(tokenizer.json())
    for token in content["added_tokens"]:
        token["special"] = token["special"] or token["id"] in unmarked
    first = JsonTokenizer(content).encode
    if not first_only:
        return first, first
    for step in content["pre_tokenizer"].get("pretokenizers", [content["pre_tokenizer"]]):
        if step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
    return first, JsonTokenizer(content).encode
