"""Chat templates to ids: the template's special tokens become ids, and nothing that was said ever does.

A message in which a special token is spelled out goes through the template as a mark that nobody can guess, and stands
in the mark's place as ordinary text. All others go through as they are, since templates look into messages and change
them (to leave out old thoughts, say). Lest a template make a special token of harmless pieces, everything is rendered
a second time with every message as a mark: both must show the same special tokens, or it is the second that counts.
"""

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import tokenizers

from llucid.dialogs.sandbox import QUOTED, RENDERER, SAID, TemplateFailure
from llucid.errors import LlucidError
from llucid.tokenizers import Tokenizer
from llucid.tokenizers.text import replace_surrogates
from llucid.tokenizers.tokenizer_json import JsonTokenizer, name_of

PRIVATE = 0xF0000
"""The first of 65,534 characters that Unicode leaves without a meaning."""
Part = int | str
"""A special token, or ordinary text."""


def named_templates(told: object, where: str) -> str | dict[str, str] | None:
    """What `chat_template` says: a template, or several with names. Raises LlucidError if it is neither."""
    if told is None or isinstance(told, str):
        return told
    if isinstance(told, list) and all(isinstance(one, dict) for one in told):
        found = {one.get("name"): one.get("template") for one in told}
        if found and all(isinstance(word, str) for pair in found.items() for word in pair):
            return found
    raise LlucidError(f"{where}: chat_template should be a text or a list of names and templates")


def template_of(tokenizer: Tokenizer, name: str = "default") -> str | None:
    """The template that came with a tokenizer; of several with names, the one called `name`. None if it has none.

    Raises LlucidError if there are several and none has the name.
    """
    config = getattr(tokenizer, "config", None)
    told = config.get("chat_template") if isinstance(config, dict) else None
    found = named_templates(told, "tokenizer_config.json")
    if not isinstance(found, dict):
        return found if name == "default" else None
    if name in found:
        return found[name]
    if name == "default" and len(found) == 1:
        return next(iter(found.values()))
    raise LlucidError(f"the model has several chat templates and none is called {name}; name one: {', '.join(found)}")


def encode_template(
    template: str, messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer, ready: bool = True
) -> list[int]:
    """The ids of `messages` by `template`, ready for the assistant's turn unless `ready` is False.

    As transformers' `apply_chat_template`, where no message spells out a special token. BOS is as the template has it,
    but never twice at the beginning. Raises LlucidError if the template fails, refuses the messages, or rewrites a
    message that spells out a special token.
    """
    controls = controls_of(template, tokenizer)
    values = values_of(tokenizer) | {"add_generation_prompt": ready}
    spelled = spelling(controls)
    only_special = spelling({name: number for name, number in controls.items() if name in tokenizer.special})
    # An answer was written by the model: of its words, those that are no special tokens ("</think>") remain its own.
    risky = [bool((only_special if m["role"] == "assistant" else spelled).search(m["content"])) for m in messages]
    parts, intact = _parts(template, messages, values, controls, risky)
    strict, safe = _parts(template, messages, values, controls, [True] * len(messages))
    if not intact or special_in(parts) != special_in(strict):
        parts, intact = strict, safe
    if not intact:
        raise LlucidError(
            "the model's chat template rewrites messages, and one of these spells out a special token, which is "
            "not supported; leave that token out"
        )
    ids = ids_of(parts, tokenizer, controls)
    while tokenizer.bos is not None and ids[:2] == [tokenizer.bos] * 2:
        del ids[0]
    if not ids:
        raise LlucidError("the model's chat template makes nothing of these messages")
    return ids


def turn_end(template: str, tokenizer: Tokenizer) -> int | None:
    """The special token that a template puts after an answer; None if it puts none there, or cannot be asked."""
    answer = secrets.token_hex(16)
    turns = [("user", "x"), ("assistant", answer), ("user", "x")]
    asked = [{"role": role, "content": content} for role, content in turns]
    controls = controls_of(template, tokenizer)
    try:
        parts, _ = _parts(template, asked, values_of(tokenizer), controls, [True] * 3)
    except LlucidError:
        return None
    behind = parts[parts.index(answer) + 1 :] if answer in parts else []
    end = next((part for part in behind if isinstance(part, int)), None)
    return None if end == tokenizer.bos else end


def controls_of(template: str, tokenizer: Tokenizer) -> dict[str, int]:
    """The tokens by which a dialogue is structured: the special ones, and those that the template spells out.

    Not all are marked as special: `<｜User｜>` of DeepSeek's distilled Llamas is not.
    """
    found = dict(tokenizer.special)
    if isinstance(tokenizer, JsonTokenizer):
        added = tokenizer.tokenizer.get_added_tokens_decoder()
        found |= {
            token.content: number
            for number, token in added.items()
            if not token.special and token.content.strip() and token.content in template
        }
    return {name: number for name, number in found.items() if name}


def values_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a template is told beside the messages: bos_token, eos_token and so on; that the next turn is to begin."""
    config = getattr(tokenizer, "config", None) or {}
    told = {role: name_of(role, config) for role in config if role.endswith("_token")}
    names: dict[int | None, str] = {number: name for name, number in tokenizer.special.items()}
    known = {"bos_token": names.get(tokenizer.bos, ""), "eos_token": names.get(tokenizer.eos, "")}
    known |= {role: name for role, name in told.items() if name is not None}
    return {"add_generation_prompt": True, "tools": None, "documents": None, **known}


def spelling(tokens: Mapping[str, int]) -> re.Pattern[str]:
    """Finds the text of any of these tokens, the longest where several begin."""
    longest_first = sorted(tokens, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _parts(
    template: str,
    messages: Sequence[Mapping[str, str]],
    values: dict[str, Any],
    controls: dict[str, int],
    marked: Sequence[bool],
) -> tuple[list[Part], bool]:
    """(what the template makes of the messages, of which some are marks until it is done; whether it left the marks as
    they were)."""
    # Of characters that have no meaning, no case and no use: what is left of a mark that was rewritten is found.
    mark = "".join(chr(PRIVATE + secrets.randbelow(0xFFFE)) for _ in range(8))
    given = [
        {
            **message,
            "content": mark + SAID + chr(PRIVATE + number) if hide and message["content"] else message["content"],
        }
        for number, (message, hide) in enumerate(zip(messages, marked, strict=True))
    ]
    try:
        text = RENDERER.render(template, {"messages": given, **values}, mark)
    except TemplateFailure as error:
        raise LlucidError(f"the model's chat template: {error}") from error
    pieces = re.split(f"{mark}([{SAID}{QUOTED}])(.)", text)
    spelled = spelling(controls)
    parts: list[Part] = []
    for number in range(0, len(pieces), 3):
        at = 0
        for found in spelled.finditer(pieces[number]):
            parts += [pieces[number][at : found.start()], controls[found[0]]]
            at = found.end()
        parts.append(pieces[number][at:])
        if number + 2 < len(pieces):
            content = messages[ord(pieces[number + 2]) - PRIVATE]["content"]
            parts.append(content if pieces[number + 1] == SAID else json.dumps(content, ensure_ascii=False)[1:-1])
    return parts, set(mark).isdisjoint("".join(pieces[::3]))


def special_in(parts: Sequence[Part]) -> list[int]:
    """The special tokens among the parts."""
    return [part for part in parts if isinstance(part, int)]


def ids_of(parts: Sequence[Part], tokenizer: Tokenizer, controls: Mapping[str, int]) -> list[int]:
    """The ids of special tokens and of the texts between them, each text encoded as one."""
    first, later = encoders(tokenizer, frozenset(controls.values()))
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

    The two differ for a `tokenizer.json` that puts a space before the first word only. In neither is a control token
    that is not marked as special found in text.
    """
    if not isinstance(tokenizer, JsonTokenizer):
        return tokenizer.encode, tokenizer.encode
    library = tokenizer.tokenizer
    added = library.get_added_tokens_decoder()
    unmarked = {number for number in controls if number in added and not added[number].special}
    stages: Any = library.pre_tokenizer
    first_only = stages is not None and b'"prepend_scheme":"first"' in stages.__getstate__()
    if not unmarked and not first_only:
        return tokenizer.encode, tokenizer.encode
    content = json.loads(tokenizer.json())
    for token in content["added_tokens"]:
        token["special"] = token["special"] or token["id"] in unmarked
    first = _copy(content)
    for stage in content["pre_tokenizer"].get("pretokenizers", [content["pre_tokenizer"]]) if first_only else ():
        if stage.get("prepend_scheme") == "first":
            stage["prepend_scheme"] = "never"
    return first, _copy(content) if first_only else first


def _copy(content: dict[str, Any]) -> Encoder:
    made = tokenizers.Tokenizer.from_str(json.dumps(content))
    made.encode_special_tokens = True
    return lambda text: made.encode(replace_surrogates(text), add_special_tokens=False).ids
