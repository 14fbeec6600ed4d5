"""Files of conversations, in the formats that people have."""

import json
from pathlib import Path
from typing import Any

import pytest

from llucid.corpora.conversations import Conversation, open_conversations, parse_conversation, read_conversations
from llucid.errors import LlucidError

PLAIN = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Ivy."},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "By the mill."},
]
LEARNED = (False, False, True, False, True)


def test_openai_keys() -> None:
    """A `name` is ignored, an answer of `weight` 0 is not learned; what follows the last answer is left out."""
    messages: list[dict[str, Any]] = [dict(message) for message in PLAIN]
    messages[1]["name"] = "Otto"
    messages[2]["weight"] = 0
    messages[3]["weight"] = 1
    messages.append({"role": "user", "content": "Why?"})
    expected = Conversation(PLAIN, (False, False, False, False, True))
    assert parse_conversation({"messages": messages, "tools": []}) == expected
    messages[2]["weight"] = 0.5
    with pytest.raises(LlucidError, match=r"messages\[2\]: weight 0.5 is not known; expected 0 or 1"):
        parse_conversation({"messages": messages})


def test_keys_of_other_files_count_only_where_ours_are_missing() -> None:
    """Whatever their order: `value` may be anything, such as a rating."""
    own = {"role": "assistant", "content": "long", "weight": 0}
    for both in (
        own | {"value": "0.7", "from": "web", "train": True},
        {"value": "0.7", "from": "web", "train": 1} | own,
    ):
        found = parse_conversation({"messages": [{"role": "user", "content": "x"}, both]})
        assert found.messages[1] == {"role": "assistant", "content": "long"}
        assert found.learned == (False, False)


def test_sharegpt() -> None:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": names[message["role"]], "value": message["content"]} for message in PLAIN]
    assert parse_conversation({"id": "x", "conversations": turns}) == Conversation(PLAIN, LEARNED)
    for names["assistant"] in ("bot", "bard", "bing", "ai", "model", "chatgpt", "function_call", "GPT", "Assistant"):
        names["user"] = "Human" if names["user"] == "human" else "USER"
        turns = [{"from": names[message["role"]], "value": message["content"]} for message in PLAIN]
        assert parse_conversation({"conversations": turns}) == Conversation(PLAIN, LEARNED)
    with pytest.raises(LlucidError, match="role 'critic' is not known"):
        parse_conversation({"conversations": [{"from": "critic", "value": "x"}]})
    for wrong in ("x", [3], [{"from": 3, "value": "x"}], [{"from": "gpt"}]):
        with pytest.raises(LlucidError, match="messages"):
            parse_conversation({"conversations": wrong})


def test_what_is_beside_and_null() -> None:
    """The system's text beside the messages, OpenAI's keys that are null, its other names of roles and keys."""
    system = {"system": " Be kind. "}
    null = dict.fromkeys(("name", "weight", "refusal", "tool_calls")) | {"id": 3, "annotations": [], "audio": {}}
    assert parse_conversation(system | {"messages": [message | null for message in PLAIN[1:]]}).messages == PLAIN
    both = [{"value": None, "role": None, "content": None} | turn | {"from": None} for turn in PLAIN]
    for turns in (both, [dict(reversed(turn.items())) for turn in both]):
        assert parse_conversation({"messages": turns}).messages == PLAIN
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    theirs = [{"from": names[turn["role"]], "value": turn["content"], "role": None, "content": None} for turn in PLAIN]
    for turns in (theirs, [dict(reversed(turn.items())) for turn in theirs]):
        assert parse_conversation({"messages": turns}).messages == PLAIN
    assert parse_conversation(system | {"conversations": PLAIN}) == Conversation(PLAIN, LEARNED)
    assert parse_conversation({"system": "", "messages": PLAIN[1:]}) == Conversation(PLAIN[1:], LEARNED[1:])
    assert parse_conversation(system | {"messages": PLAIN}) == Conversation(PLAIN, LEARNED)
    for among in (" Be kind. ", "", "\n"):
        found = parse_conversation(system | {"messages": [{"role": "system", "content": among}, *PLAIN[1:]]})
        assert found == Conversation(
            [PLAIN[0] | {"content": among if among.strip() else "Be kind."}, *PLAIN[1:]], LEARNED
        )
    assert parse_conversation({"messages": [], "conversations": PLAIN}) == Conversation(PLAIN, LEARNED)
    with pytest.raises(LlucidError, match=r'system: expected a text, found \["Be kind."\]'):
        parse_conversation({"system": ["Be kind."], "messages": PLAIN})
    with pytest.raises(LlucidError, match="there is a system text beside the messages and another one among them"):
        parse_conversation({"system": "Be brief.", "messages": PLAIN})
    developer = {"from": "developer", "content": "Be kind."}
    assert parse_conversation({"messages": [developer, *PLAIN[1:]]}) == Conversation(PLAIN, LEARNED)
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]
    assert parse_conversation({"messages": [{"role": "system", "content": parts}, *PLAIN[1:]]}).messages == PLAIN
    for part in ({"type": "image_url"}, {"type": "text"}, {"type": "text", "text": None}, "x"):
        with pytest.raises(LlucidError, match=r"messages\[0\]: the content should be a text and is of type list"):
            parse_conversation({"messages": [{"role": "user", "content": [part]}]})
    tool = [{"role": "function", "tool_call_id": "1", "name": "f", "content": "2"}, PLAIN[2]]
    found = parse_conversation(system | {"messages": [PLAIN[1], PLAIN[2] | {"weight": 0}, *tool]})
    assert found.messages[3] == {"role": "tool", "content": "2"}
    assert found.learned == (False, False, False, False, True)


def test_other_keys_of_a_message() -> None:
    """Those that do not change what is learned are ignored; those that would are refused. `train` is a weight."""
    more: dict[str, Any] = {"timestamp": "2024", "hashed_ip": "x", "turn": 3, "header": {"a": "b"}, "toxic": False}
    assert parse_conversation({"messages": [message | more for message in PLAIN]}) == Conversation(PLAIN, LEARNED)
    trained = [message | {"train": bool(number > 2)} for number, message in enumerate(PLAIN)]
    assert parse_conversation({"messages": trained}).learned == (False, False, False, False, True)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    for name, value in {
        "tool_calls": [call],
        "function_call": {},
        "reasoning_content": "Hm.",
        "thinking": "Hm.",
    }.items():
        message = {
            "role": "assistant",
            "content": None if name == "tool_calls" else "Ivy.",
            name: value or {"name": "f"},
        }
        with pytest.raises(LlucidError, match=rf"^messages\[1\]: {name} is not read; put what the model should write"):
            parse_conversation({"messages": [PLAIN[1], message]})
    for wrong in ({"input": "x", "output": "y"}, {"role": "user", "text": "x"}):
        with pytest.raises(LlucidError, match=r"messages\[0\]: expected a role and a content, found the keys \["):
            parse_conversation({"conversation": [wrong]})


def test_what_cannot_be_learned_is_no_error() -> None:
    for messages, fault in {
        "": "it has no messages",
        '{"role": "user", "content": "x"}': "it has no message of the assistant",
        '{"role": "user", "content": "x"}, {"role": "assistant", "content": null}': "messages[1]: the content is null",
        '{"role": "user", "content": "x"}, {"role": "developer", "content": "y"}': (
            "messages[1]: a system message can only be the first"
        ),
    }.items():
        assert parse_conversation({"messages": json.loads(f"[{messages}]")}) == Conversation([], (), None, fault)
        assert parse_conversation(json.loads(f"[{messages}]")).fault == fault


def test_tools() -> None:
    """A list of objects, or its JSON, as LLaMA-Factory has it; other keys than these are ignored."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    for given in (tools, json.dumps(tools)):
        assert parse_conversation({"messages": PLAIN, "tools": given}) == Conversation(PLAIN, LEARNED, tools)
    for none in ([], None, ""):
        assert parse_conversation({"messages": PLAIN, "tools": none}) == Conversation(PLAIN, LEARNED)
    for wrong in ("f", ["f"], {"name": "f"}, 3, "[", '["f"]', "\ud800"):
        with pytest.raises(LlucidError, match="tools: expected a list of objects"):
            parse_conversation({"messages": PLAIN, "tools": wrong})


def test_one_json_array(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    entries: list[Any] = [{"messages": PLAIN}] * 5
    file.write_text("\ufeff" + json.dumps(entries, indent=2))
    corpus = open_conversations(str(file))
    assert list(read_conversations(corpus, "validation")) == [("conversation 5", Conversation(PLAIN, LEARNED))]
    assert len(list(read_conversations(corpus))) == 5
    file.write_text(json.dumps([*entries, {"messages": 3}]))
    with pytest.raises(LlucidError, match=r"talk\.json, conversation 6: messages: expected a list"):
        list(read_conversations(corpus))
    file.write_text(json.dumps(entries)[:-3])
    with pytest.raises(LlucidError, match=r"talk\.json: not JSON"):
        list(read_conversations(corpus))


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("key", ["data", "messages", "conversations"])
@pytest.mark.parametrize("entry", [{"messages": PLAIN}, PLAIN], ids=["objects", "lists"])
def test_an_object_with_one_list_of_conversations(tmp_path: Path, entry: Any, key: str, indent: int | None) -> None:
    file = tmp_path / "talk.json"
    file.write_text(json.dumps({"version": 1, key: [entry] * 4, "tags": ["a"]}, indent=indent))
    expected = [(f"conversation {number}", Conversation(PLAIN, LEARNED)) for number in range(1, 5)]
    assert list(read_conversations(open_conversations(str(file)))) == expected


def test_other_files_are_named(tmp_path: Path) -> None:
    """By what they hold, also on a single line."""
    file = tmp_path / "talk.json"
    pair = {"instruction": "Who?", "output": "Ivy."}
    expected = r"""expected \{"messages": \[\{"role": .*\]\}, found """
    for text, says in {
        json.dumps(pair): rf'conversation 1: {expected}the keys \["instruction", "output"\]',
        f"{json.dumps(pair)}\n" * 2: rf'line 1: {expected}the keys \["instruction", "output"\]',
        json.dumps([pair] * 3): rf'conversation 1: {expected}the keys \["instruction", "output"\]',
        json.dumps([pair] * 3, indent=1): rf'conversation 1: {expected}the keys \["instruction", "output"\]',
        json.dumps({"data": [pair] * 3}): rf'conversation 1: {expected}the keys \["data"\]',
        json.dumps({"conversations": ["Who?", "Ivy."]}) * 2: r"line 1: not JSON .*; expected one conversation per line",
        json.dumps({"conversations": ["Who?", "Ivy."]}): r"conversation 1: messages\[0\]: expected .*, found str",
        json.dumps(
            {"test": [PLAIN], "train": [PLAIN]}, indent=1
        ): rf'conversation 1: {expected}the keys \["test", "train"',
    }.items():
        file.write_text(text)
        with pytest.raises(LlucidError, match=rf"^{file}, {says}"):
            list(read_conversations(open_conversations(str(file))))
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        file.write_text(f"{json.dumps(PLAIN)}\n" * 3, encoding)
        with pytest.raises(LlucidError, match=r"a UTF-16 or binary file, which is not read here; .* in UTF-8$"):
            open_conversations(str(file))


def test_a_list_of_messages_on_each_line(tmp_path: Path) -> None:
    """As nanochat has it."""
    file, line, expected = tmp_path / "talk.jsonl", json.dumps(PLAIN), Conversation(PLAIN, LEARNED)
    file.write_text("\ufeff" + f"{line}\n" * 5)
    assert list(read_conversations(open_conversations(str(file)), "validation")) == [("line 5", expected)]
    file.write_text(f"{line}\n" * 5 + "[[]]")
    with pytest.raises(LlucidError, match=r"talk\.jsonl, line 6: messages"):
        list(read_conversations(open_conversations(str(file))))
    braces = [{"content": "a {x} [y]", "role": "user"}, {"from": "gpt", "value": "b"}]
    file.write_text(f"{json.dumps(braces)}\n" * 2)
    assert len(list(read_conversations(open_conversations(str(file))))) == 2
    file.write_text(json.dumps([{"messages": PLAIN}, {"conversations": PLAIN}]))
    assert len(list(read_conversations(open_conversations(str(file))))) == 2
    file.write_text(json.dumps([PLAIN, PLAIN]))
    assert len(list(read_conversations(open_conversations(str(file))))) == 2
