"""Chat templates to ids: the template's special tokens become ids, and no text of a message ever does.

The characters of messages are hidden: rare characters that occur nowhere stand in for them, and the template sees them
as what they stand for (`rendering.py`). What it writes is searched for special tokens first, and then the characters
are put back, as ordinary text.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from llucid.dialogs.sandbox import RENDERER, TemplateFailure, TemplateTimeout
from llucid.errors import LlucidError
from llucid.tokenizers import Tokenizer
from llucid.tokenizers.added_tokens import AddedTokens, Part
from llucid.tokenizers.folder import name_of
from llucid.tokenizers.sentencepiece_model import SentencePiece
from llucid.tokenizers.steps import steps_of
from llucid.tokenizers.text import replace_surrogates
from llucid.tokenizers.tokenizer_json import JsonTokenizer

MOST_SEARCHED = 10**9
"""Characters of a template times added tokens that are searched for in it: a second's work."""


class SlowTemplate(LlucidError):
    """A chat template that exceeded the limits of time and memory."""


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
    named = f"the model has several chat templates and none is called {name}"
    raise LlucidError(f"{named}; name one (format=), or call one default in its folder: {', '.join(found)}")


@lru_cache(maxsize=4)
def marks_of(tokenizer: Tokenizer) -> AddedTokens:
    """The tokens that a template can write: the special ones, and all that are found in a text as a whole.

    Single characters, like digits, and spaces are text. In SentencePiece's own tokens, "▁" is a space, too.
    """
    added = tokenizer.added if isinstance(tokenizer, JsonTokenizer | SentencePiece) else {}
    symbols = tokenizer.symbols if isinstance(tokenizer, SentencePiece) else {}
    unmarked = {token.content: number for number, token in added.items() if not token.special}
    unmarked |= symbols | {piece.replace("▁", " "): number for piece, number in symbols.items()}
    names = {name: n for name, n in unmarked.items() if len(name.replace("▁", " ").strip()) > 1}
    return AddedTokens({name: n for name, n in (dict(tokenizer.special) | names).items() if name}, added)


ROLES = (("user",), ("system", "user"), ("user", "assistant", "user"), ("user", "assistant", "tool"))
"""The roles of short dialogues; a template may refuse some of them."""


@lru_cache(maxsize=4)
def controls_of(template: str, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that structure a dialogue: the special ones, and those that the template contains, or writes around a
    message of any role, as in `'<|' + message.role + '|>'`.

    Some of them are not marked as special, such as `<｜User｜>` in DeepSeek's distilled Llamas.
    """
    names = marks_of(tokenizer).names
    if len(template) * len(names) > MOST_SEARCHED:
        raise LlucidError("the model's chat template is too long for a tokenizer of so many added tokens")
    text = literals_of(template).replace("▁", " ")  # which some tokenizers do not tell apart
    found = {number for name, number in names.items() if name.replace("▁", " ") in text}
    found.update(tokenizer.special.values())
    for roles in ROLES:
        messages = [{"role": role, "content": "x"} for role in roles]
        try:
            found |= _rendered(template, messages, tokenizer)[1]
        except SlowTemplate:
            raise
        except LlucidError:
            continue
    return frozenset(found)


def literals_of(template: str) -> str:
    """What a template can write of its own: the text around its code, and the texts in it."""
    from jinja2 import Environment, TemplateSyntaxError  # takes time

    try:
        return "\0".join(word for _, kind, word in Environment().lex(template) if kind in ("data", "string"))
    except TemplateSyntaxError:  # which rendering it will report
        return ""


def encode_template(
    template: str,
    messages: Sequence[Mapping[str, str]],
    tokenizer: Tokenizer,
    ready: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> list[int]:
    """The ids of `messages` by `template`, ending with the header of the assistant's turn if `ready`.

    They are those of transformers' `apply_chat_template`, if no message spells a special token, and if transformers
    reads the tokenizer as its file says (5 replaces the rules for spaces of a Llama 2's); what the template's
    own tokens say of `normalized` is ignored, as in llama.cpp. BOS is where the template puts it, but only once at the
    beginning. `extra` are more values for the template, such as tools. Raises
    LlucidError if the template fails or refuses the messages.
    """
    parts, written = _rendered(template, messages, tokenizer, ready, extra)
    ids = ids_of(parts, tokenizer, controls_of(template, tokenizer) | written)
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
    try:
        parts, _ = _rendered(template, messages, tokenizer)
    except LlucidError:
        return None
    there = [number for number, part in enumerate(parts) if isinstance(part, str) and answer in part]
    end = next(iter(ids_in(parts[there[0] :])), None) if there else None
    return None if end == tokenizer.bos else end


def values_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """The values of a template beside the messages: bos_token, eos_token and so on."""
    config = getattr(tokenizer, "config", None) or {}
    named = [config.get(key) for key in ("model_specific_special_tokens", "extra_special_tokens")]
    config = {role: token for tokens in named if isinstance(tokens, dict) for role, token in tokens.items()} | config
    roles = {role: name for role in config if role.endswith("_token") and (name := name_of(role, config)) is not None}
    names: dict[int | None, str] = {number: name for name, number in tokenizer.special.items()}
    known = {"bos_token": names.get(tokenizer.bos, ""), "eos_token": names.get(tokenizer.eos, "")}
    return {"tools": None, "documents": None, **known, **roles}


def _rendered(
    template: str,
    messages: Sequence[Mapping[str, str]],
    tokenizer: Tokenizer,
    ready: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> tuple[list[Part], set[int]]:
    """(what the template makes of the messages, the tokens of `marks_of` that its own text becomes).

    Raises LlucidError if it fails, or refuses them."""
    marks = marks_of(tokenizer)
    values = values_of(tokenizer) | dict(extra or {}) | {"add_generation_prompt": ready, "messages": list(messages)}
    try:
        text, shown = RENDERER.render(template, values, marks.characters)
    except TemplateFailure as error:
        kind = SlowTemplate if isinstance(error, TemplateTimeout) else LlucidError
        raise kind(f"the model's chat template: {error}") from error
    parts = marks.split(replace_surrogates(text))
    written = {*ids_in(parts)}
    if isinstance(tokenizer, JsonTokenizer | SentencePiece):  # also those that it spells in another way
        for part in parts:
            if isinstance(part, str):
                written.update(tokenizer.encode(part.translate(dict.fromkeys(shown))))
    return [part.translate(shown) if isinstance(part, str) else part for part in parts], written & {*marks.ids}


def ids_in(parts: Sequence[Part]) -> list[int]:
    return [part for part in parts if isinstance(part, int)]


def ids_of(parts: Sequence[Part], tokenizer: Tokenizer, controls: frozenset[int]) -> list[int]:
    """The ids of all parts; adjacent texts are encoded as one."""
    first, later = encoders(tokenizer, controls)
    ids: list[int] = []
    text = ""
    for part in [*parts, -1]:
        if isinstance(part, str):
            text += part
            continue
        if text:
            encode = later if ids else first
            ids += encoded(encode, text) if len(text) <= LONGEST_KEPT else encode(text)
        text = ""
        ids.append(part)
    return ids[:-1]


Encoder = Callable[[str], list[int]]
LONGEST_KEPT = 10_000
"""Characters of a text whose ids are kept: many long ones would take much memory."""


@lru_cache(maxsize=256)
def encoded(encode: Encoder, text: str) -> tuple[int, ...]:
    """The ids of a text. A dialogue is often asked for with one more turn, or without its last."""
    return tuple(encode(text))


@lru_cache(maxsize=4)
def encoders(tokenizer: Tokenizer, controls: frozenset[int]) -> tuple[Encoder, Encoder]:
    """How text is encoded at the beginning of a dialogue, and after a special token.

    The two differ for a tokenizer that puts a space before the first word only. Neither finds a control token
    in text that is not marked as special.
    """
    if not isinstance(tokenizer, JsonTokenizer | SentencePiece):
        return tokenizer.encode, tokenizer.encode
    unmarked = controls - {*tokenizer.special.values()}
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
    first = JsonTokenizer(content, config=tokenizer.config).encode
    if not first_only:
        return first, first
    for step in steps_of(content["pre_tokenizer"]):
        if step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
    return first, JsonTokenizer(content, config=tokenizer.config).encode
