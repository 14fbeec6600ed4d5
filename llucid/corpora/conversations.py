"""Files of conversations, in OpenAI's, ShareGPT's or nanochat's format: one a line, or all in one JSON value."""

import codecs
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from llucid.corpora import Corpus
from llucid.corpora.sources import GZIP, PARQUET
from llucid.dialogs.formats import check_messages, check_objects
from llucid.errors import LlucidError, prefix_errors, shown
from llucid.files import cached, first_bytes, json_value, write_text_atomically
from llucid.tokenizers.text import replace_surrogates

Messages = list[dict[str, str]]

VALIDATION_SHARE = 10
"""One conversation in ten validates: those at the end of the file, and at least one."""
FABLES = 32_000
"""Conversations in the file about fables."""
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "developer": "system",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
"""Names of roles in OpenAI's and ShareGPT's files, in any case, that are called otherwise here."""
KEYS = {"from": "role", "value": "content", "train": "weight"}
"""Keys of a message in ShareGPT's and other files that are called otherwise in OpenAI's."""
UNREAD = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold more of what the model should write; each chat template writes it in its own way."""
LISTS = ("messages", "conversations", "conversation")
"""Keys of a conversation's list of messages."""


class Conversation(NamedTuple):
    """Messages up to the last answer, and for each of them whether it is to be learned."""

    messages: Messages
    learned: tuple[bool, ...]
    tools: list[dict[str, Any]] | None = None
    """What the model may call, for the chat template."""
    fault: str = ""
    """Why nothing can be learned from it; then there are no messages."""


def open_conversations(name: str) -> Corpus:
    """The conversations in the file called `name`, or those about "fables", which are made when first needed.

    Raises LlucidError if there is no such file.
    """
    if name == "fables":
        from llucid.corpora import fable_dialogues, fable_words, fables

        files = [Path(str(module.__file__)) for module in (fable_dialogues, fable_words, fables)]
        sources = [file.read_bytes() for file in (*files, fable_words.FILE)]
        name = f"fables-{hashlib.sha256(b''.join(sources)).hexdigest()[:12]}.jsonl"
        file = cached(name, lambda file: write_text_atomically(file, "".join(fable_dialogues.lines(FABLES))))
        return Corpus("fables", (file,))
    expected = "fables, or a file of conversations, one JSON object per line, in UTF-8"
    if not Path(name).is_file():
        found = "not a regular file" if Path(name).exists() else "no such file"
        raise LlucidError(f"chat={name}: {found}; expected {expected}")
    head = first_bytes(Path(name), 4)
    packed = head.startswith((GZIP, PARQUET))
    if packed or b"\0" in head:
        kind = "gzip or Parquet" if packed else "UTF-16 or binary"
        raise LlucidError(f"chat={name}: a {kind} file, which is not read here; expected {expected}")
    return Corpus(replace_surrogates(Path(name).stem), (Path(name),))


def read_conversations(corpus: Corpus, split: str = "all") -> Iterator[tuple[str, Conversation]]:
    """Pairs (place in the file, conversation) of the "train" or the "validation" split, or of both.

    Raises LlucidError, naming the place, for what is not a conversation, and for fewer than two.
    """
    [file] = corpus.files
    count = sum(1 for _ in _entries(file))
    border = count - max(1, count // VALIDATION_SHARE)
    wanted = {"train": range(border), "validation": range(border, count), "all": range(count)}[split]
    for number, (where, entry) in enumerate(_entries(file)):
        if number in wanted or count == 1:  # the only one may be a file of another kind, which is a better reason
            with prefix_errors(f"{file}, {where}"):
                yield where, parse_conversation(_json(entry) if isinstance(entry, bytes) else entry)
    if count < 2:
        found = "there is no conversation" if not count else "there is one conversation"
        raise LlucidError(f"{file}: {found} in it; at least one to learn from and one to validate are needed")


def _entries(file: Path) -> Iterator[tuple[str, Any]]:
    """(where it is, a line that is not empty), or (where it is, a conversation) of a file that is one JSON value."""
    with open(file, "rb") as opened:
        first = next((line for line in opened if line.strip()), b"")
        opened.seek(0)
        with prefix_errors(file):
            array = None if _begins_lines(first) else _array(opened.read())
        opened.seek(0)
        if array is None:
            yield from ((f"line {number}", line) for number, line in enumerate(opened, 1) if line.strip())
        else:
            yield from ((f"conversation {number}", entry) for number, entry in enumerate(array, 1))


def _begins_lines(line: bytes) -> bool:
    """Whether the first line of a file is a conversation."""
    try:
        return _is_conversation(json_value(line))
    except ValueError:
        return False


def _array(content: bytes) -> list[Any] | None:
    """The conversations in a JSON value: an array, an object with one list of conversations, or one object. Else None.

    Raises LlucidError for what begins as an array and is not JSON.
    """
    try:
        value = json_value(content)
    except ValueError as error:
        if content.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            raise LlucidError(f"not JSON ({error})") from error
        return None
    if isinstance(value, dict):
        lists = [one for one in value.values() if isinstance(one, list) and any(map(_is_conversation, one))]
        return lists[0] if len(lists) == 1 else [value]
    return value if isinstance(value, list) else None


def _is_conversation(value: object) -> bool:
    """Whether a JSON value is a list of messages, by itself or in an object."""
    messages = _messages(value)
    return isinstance(messages, list) and all(
        isinstance(one, dict) and ("role" in one or "from" in one) for one in list[Any](messages)
    )


def _messages(entry: object) -> Any:
    """What should be the list of messages of a conversation; None if there is nothing."""
    if not isinstance(entry, dict):
        return entry if isinstance(entry, list) else None
    return max((entry[name] for name in LISTS if entry.get(name) is not None), key=bool, default=None)


def _json(line: bytes) -> Any:
    try:
        return json_value(line)
    except ValueError as error:
        raise LlucidError(f"not JSON ({error}); expected one conversation per line") from error


def parse_conversation(entry: object) -> Conversation:
    """The conversation in a JSON value, up to its last answer. Raises LlucidError if it is not a conversation.

    It is an object with `messages` with `role` and `content`, as OpenAI's, or `conversations` with `from` and `value`,
    as ShareGPT's, perhaps with a `system` text beside them; or only the list of messages, as nanochat's. An answer of
    `weight` 0 is not learned. `tools` is a list, or its JSON as a text. Other keys are ignored, but not UNREAD ones.
    """
    given = _messages(entry)
    conversation: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    if given is None:
        found = f"the keys {shown(list(conversation))}" if conversation else shown(entry)
        raise LlucidError(
            'expected {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}, '
            f"found {found}; rewrite each conversation so"
        )
    plain: Any = given
    weights: list[Any] = []
    if isinstance(given, list):
        plain = [_plain(message, f"messages[{number}]") for number, message in enumerate(list[Any](given))]
        if fault := _fault(plain):
            return Conversation([], (), fault=fault)
        weights = [message.pop("weight", 1) if isinstance(message, dict) else 1 for message in plain]
    checked = check_messages(plain)
    for number, weight in enumerate(weights):
        if weight not in (0, 1):
            raise LlucidError(f"messages[{number}]: weight {weight!r} is not known; expected 0 or 1")
    system = _plain({"role": "system", "content": conversation.get("system") or ""}, "system")["content"]
    if not isinstance(system, str):
        raise LlucidError(f"system: expected a text, found {shown(system)}")
    text, first = system.strip(), checked[0]["role"] == "system"
    among = checked[0]["content"].strip() if first else ""
    if text and among not in ("", text):
        raise LlucidError("there is a system text beside the messages and another one among them; leave one out")
    if text and not among:
        checked[:first], weights[:first] = [{"role": "system", "content": text}], [1]
    while checked and checked[-1]["role"] != "assistant":
        checked.pop()
    if not checked:
        return Conversation([], (), fault="it has no message of the assistant")
    pairs = zip(checked, weights, strict=False)
    learned = tuple(message["role"] == "assistant" and weight == 1 for message, weight in pairs)
    tools = conversation.get("tools") or []
    if isinstance(tools, str):
        with suppress(ValueError):
            tools = json_value(tools.encode("utf-8", "surrogatepass"))
    return Conversation(checked, learned, check_objects("tools", tools) or None)


def _fault(messages: list[Any]) -> str:
    """Why nothing can be learned from these messages, whatever the chat format; empty if something may be."""
    for number, message in enumerate(messages):
        if isinstance(message, dict) and number and message["role"] == "system":
            return f"messages[{number}]: a system message can only be the first"
        if isinstance(message, dict) and message["content"] is None:
            return f"messages[{number}]: the content is null"
    return "" if messages else "it has no messages"


def _plain(message: Any, where: str) -> Any:
    """The role, content and weight of a message by our names, which hide others; what is not an object is unchanged."""
    if not isinstance(message, dict):
        return message
    own = dict[str, Any](message)
    said = {name: value for name, value in own.items() if value is not None}
    given: dict[str, Any] = {"content": None} if "content" in own or "value" in own else {}
    given |= {KEYS[name]: value for name, value in said.items() if name in KEYS}
    given |= {name: value for name, value in said.items() if name not in KEYS}
    for name in UNREAD:
        if given.get(name):
            raise LlucidError(
                f"{where}: {name} is not read; put what the model should write into the content, or leave the key out"
            )
    if "role" not in given or "content" not in given:
        raise LlucidError(f"{where}: expected a role and a content, found the keys {shown(list(message))}")
    plain = {name: given[name] for name in ("role", "content", "weight") if name in given}
    parts = plain["content"]
    if isinstance(parts, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts
    ):
        plain["content"] = "".join(part["text"] for part in parts)
    if isinstance(role := plain["role"], str):
        plain["role"] = ROLES.get(role.lower(), role.lower())
    return plain
