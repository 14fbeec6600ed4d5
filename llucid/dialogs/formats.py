"""From messages to ids: the published formats of Llama 2 and Llama 3, and a folder's own template.

In all of them the content of a message is ordinary text: `<|eot_id|>` in a message does not end a turn.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from llucid.dialogs.templates import encode_template, template_of, templates_of, turn_end
from llucid.errors import LlucidError, shown
from llucid.files import json_value
from llucid.tokenizers import Tokenizer
from llucid.tokenizers.prompts import prompt_ids
from llucid.tokenizers.text import replace_surrogates
from llucid.tokenizers.tokenizer_json import JsonTokenizer

ROLES = ("system", "user", "assistant", "tool")
LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA2_INST = [518, 25580, 29962]
"""`[INST]` in Llama 2's vocabulary."""


class NotAChatModel(LlucidError):
    """The model has no known format of dialogues, so it was probably not trained on any."""

    def __init__(self) -> None:
        super().__init__(
            "this is not a chat model, it seems: it has neither a chat template nor Meta's own tokenizer of Llama 2 or "
            "3; let it continue a text (llucid generate), or name the format that it was trained on: format=llama2"
        )


def encode_dialog(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    format: str | None = None,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    enable_thinking: bool | None = None,
) -> list[int]:
    """The ids of a dialogue, ending with the header of the assistant's turn.

    A message is `{"role": …, "content": …}`, its role system (only the first), user, assistant or tool. Llama 2's and
    3's formats drop white space around the content; a template decides that itself. `format` is "llama2", "llama3",
    "plain" (none: the texts as they are), the name of one of the model's own templates, or a template; None for that of
    `format_of`. `tools`, `documents` and `enable_thinking` are values for a template, as in transformers; their texts
    are ordinary text, too. Raises NotAChatModel if there is no format, and LlucidError, naming the message, for
    messages that are not a dialogue.
    """
    dialog = check_dialog(messages)
    format = known_format(format, tokenizer, tools=bool(tools))
    extra = values_for(format, tools=tools, documents=documents, enable_thinking=enable_thinking)
    if format not in NATIVE:
        return encode_template(format, dialog, tokenizer, extra=extra)
    return NATIVE[format](dialog, tokenizer)


def values_for(format: str, **values: object) -> dict[str, Any]:
    """Copies of those values for a template that are not None.

    Raises LlucidError, naming the value, if the format has no place for it, and if it is not JSON.
    """
    given = {name: copied(name, value) for name, value in values.items() if value is not None}
    for name, value in given.items():
        if format in NATIVE:
            raise LlucidError(f"{name}={shown(value)}: the format {format} has no place for it; only a template may")
        if name not in format:
            raise LlucidError(f"{name}={shown(value)}: the chat template has no place for it")
    return given


def check_objects(name: str, items: object) -> list[dict[str, Any]]:
    """A list of objects, such as tools. Raises LlucidError, with its name, for anything else."""
    if isinstance(items, list) and all(isinstance(item, dict) for item in list[Any](items)):
        return items
    raise LlucidError(f"{name}: expected a list of objects")


def copied(name: str, value: object) -> Any:
    """A copy of a value. Raises LlucidError if it is not JSON."""
    try:
        return json_value(json.dumps(value).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise LlucidError(f"{name}: expected what JSON can express ({error})") from error


def known_format(format: str | None, tokenizer: Tokenizer, tools: bool = False) -> str:
    """The name of a native format, or a template, for the `format` of `encode_dialog`. As in transformers, a template
    called tool_use is for dialogues with `tools`.

    Raises NotAChatModel for None if the model has no format, and LlucidError for an unknown name.
    """
    if format is None and tools and isinstance(named := templates_of(tokenizer), dict) and "tool_use" in named:
        return named["tool_use"]
    if format is None:
        format = format_of(tokenizer)
        if format is None:
            raise NotAChatModel
    template = format if format in NATIVE or "{" in format else template_of(tokenizer, format)
    if template is None:
        raise LlucidError(f"format={format}: not a format of dialogues; expected one of: {', '.join(NATIVE)}")
    return "llama3" if template == TEMPLATES["llama3"] else template  # which need not be rendered


def format_of(tokenizer: Tokenizer) -> str | None:
    """The format of a tokenizer's dialogues: its own template, else "llama3" or "llama2", or None for a base model.

    Llama 3's is recognised by its special tokens, if `<|eot_id|>` ends a text: a model that does not stop at the end
    of its turn was not trained on turns. Llama 2's has none; it is recognised by its vocabulary, which base models have
    as well. But chat models with a `tokenizer.json` have a template, so one without a template is a base model.
    """
    template = template_of(tokenizer)
    if template is not None:
        return template
    special = tokenizer.special
    if all(name in special for name in LLAMA3) and special["<|eot_id|>"] in tokenizer.stop_ids:
        return "llama3"
    if isinstance(tokenizer, JsonTokenizer) or (tokenizer.bos, tokenizer.eos) != (1, 2):
        return None
    if getattr(tokenizer, "added", {}).keys() - {0, 1, 2}:
        return None
    try:
        return "llama2" if tokenizer.encode("[INST]") == LLAMA2_INST else None
    except LlucidError:  # it has no ids for some characters
        return None


def check_dialog(messages: object) -> list[dict[str, str]]:
    """The messages. Raises LlucidError, naming the message, if they are not a dialogue that waits for an answer."""
    dialog = check_messages(messages)
    last = dialog[-1]["role"]
    if last not in ("user", "tool"):
        raise LlucidError(
            f"messages[{len(dialog) - 1}]: the last message should be of the user or a tool, and is of the {last}"
        )
    return dialog


def check_messages(messages: object) -> list[dict[str, str]]:
    """The messages. Raises LlucidError, naming the message, if they are not messages."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise LlucidError('messages: expected a list of at least one {"role": …, "content": …}')
    dialog: list[dict[str, str]] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping):
            raise LlucidError(f'{where}: expected {{"role": …, "content": …}}, found {type(message).__name__}')
        if set(message) != {"role", "content"}:
            raise LlucidError(
                f"{where}: expected a role and a content and nothing else, found {sorted(map(str, message))}"
            )
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise LlucidError(f"{where}: role {role!r} is not known; expected one of: {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise LlucidError(f"{where}: the content should be a text and is of type {type(content).__name__}")
        if role == "system" and number:
            raise LlucidError(f"{where}: a system message can only be the first")
        dialog.append({"role": role, "content": replace_surrogates(content)})
    return dialog


def encode_llama3(dialog: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> list[int]:
    """BOS, for each message a header with the role, the content and `<|eot_id|>`, then the assistant's header.

    meta-llama/llama3, llama/tokenizer.py (ChatFormat); a tool's role is called ipython (llama-models, llama3/api).
    """
    ids, _ = turns_of_llama3(dialog, tokenizer)
    return [*ids, *header_of_llama3("assistant", tokenizer)]


def turns_of_llama3(dialog: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """(the ids of BOS and the messages, whether each belongs to an answer: its words and its `<|eot_id|>`)."""
    missing = [name for name in LLAMA3 if name not in tokenizer.special]
    if missing:
        raise LlucidError(f"format=llama3: the model's tokenizer has no {missing[0]}")
    ids, own = [tokenizer.special["<|begin_of_text|>"]], [False]
    for message in dialog:
        header = header_of_llama3(message["role"], tokenizer)
        content = [*tokenizer.encode(message["content"].strip()), tokenizer.special["<|eot_id|>"]]
        ids += [*header, *content]
        own += [False] * len(header) + [message["role"] == "assistant"] * len(content)
    return ids, own


def header_of_llama3(role: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of `<|start_header_id|>role<|end_header_id|>` and two line breaks."""
    start, end = tokenizer.special["<|start_header_id|>"], tokenizer.special["<|end_header_id|>"]
    return [start, *tokenizer.encode("ipython" if role == "tool" else role), end, *tokenizer.encode("\n\n")]


def encode_llama2(dialog: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> list[int]:
    """Each turn is BOS, `[INST] question [/INST] answer ` and EOS; the system message is inside the first question.

    meta-llama/llama, llama/generation.py (chat_completion). `[INST]` is ordinary text, also in a question, where Meta's
    code refuses it.
    """
    bos, eos = tokenizer.bos, tokenizer.eos
    if bos is None or eos is None:
        raise LlucidError("format=llama2: the model's tokenizer has no BOS and EOS")
    system = f"<<SYS>>\n{dialog[0]['content'].strip()}\n<</SYS>>\n\n" if dialog[0]["role"] == "system" else ""
    begun = 1 if system else 0
    for number, message in enumerate(dialog[begun:]):
        wanted = "assistant" if number % 2 else "user"
        if message["role"] != wanted:
            where = f"messages[{number + begun}]"
            raise LlucidError(f"{where}: Llama 2's format expects the {wanted} here, not the {message['role']}")
    contents = [message["content"].strip() for message in dialog[begun:]]
    questions = [f"[INST] {text} [/INST]" for text in [(system + contents[0]).strip(), *contents[2::2]]]
    answered = zip(questions, contents[1::2], strict=False)
    turns = [[bos, *tokenizer.encode(f"{question} {answer} "), eos] for question, answer in answered]
    waiting = [bos, *tokenizer.encode(questions[-1])] if len(contents) % 2 else []
    return [token for ids in turns for token in ids] + waiting


def encode_plain(dialog: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> list[int]:
    """No format, for a model that only continues texts: each message on a new line, an answer right after the text that
    it continues."""
    texts = [message["content"] if message["role"] == "assistant" else "\n" + message["content"] for message in dialog]
    return prompt_ids(tokenizer, "".join(texts).removeprefix("\n"))


NATIVE = {"llama2": encode_llama2, "llama3": encode_llama3, "plain": encode_plain}
TEMPLATES = {
    "llama2": "{% set system = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'].strip() + '\\n<</SYS>>\\n\\n' %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}{% set content = (system if loop.first else '') + message['content'].strip() %}"
    "{% if message['role'] != ('assistant' if loop.index0 % 2 else 'user') %}"
    "{{ raise_exception('the user and the assistant should take turns') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama3": "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + ('ipython' if message['role'] == 'tool' else message['role']) + '<|end_header_id|>' }}"
    "{{ '\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
}
"""The same as chat templates. llama.cpp recognises Llama 2's by `bos_token + '[INST]` and `content.strip()`."""


def with_template(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the chat template of its format, as a Hugging Face folder and a GGUF say it; itself if it has
    one already, or no format."""
    given = (getattr(tokenizer, "config", None) or {}).get("chat_template")
    name = format_of(tokenizer) if given is None else None
    if name not in TEMPLATES:
        return tokenizer
    made: Any = copy.copy(tokenizer)
    known = {"bos_token": LLAMA3[0], "eos_token": LLAMA3[3]} if name == "llama3" else {}
    made.config = known | made.config | {"chat_template": TEMPLATES[name]}
    return made


def ending_turns(tokenizer: Tokenizer, format: str) -> Tokenizer:
    """The same tokenizer, whose stop ids include the one that ends the assistant's turn in a format."""
    if format == "plain":
        return tokenizer
    if format in NATIVE:
        end = tokenizer.special.get("<|eot_id|>") if format == "llama3" else tokenizer.eos
    else:
        end = turn_end(format, tokenizer)
    if end is None or end in tokenizer.stop_ids:
        return tokenizer
    ending: Any = copy.copy(tokenizer)
    ending.stop_ids = tokenizer.stop_ids | {end}
    return ending
