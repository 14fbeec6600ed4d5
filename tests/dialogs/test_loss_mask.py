"""Dialogues for training: the ids equal those of answering, and only the assistant's are learned."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from llucid.chat import encode_dialog, encode_learned
from llucid.dialogs.formats import LLAMA3, TEMPLATES, format_of
from llucid.dialogs.loss_mask import CHAT_CONFIG
from llucid.errors import LlucidError
from llucid.tokenizers import load_tokenizer
from llucid.tokenizers.byte_pairs import train_bpe
from llucid.tokenizers.tokenizer_json import JsonTokenizer
from tests.dialogs.templates import CHATML

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who found it?\n"},
    {"role": "assistant", "content": " Wick."},
    {"role": "tool", "content": "{}"},
    {"role": "assistant", "content": "It was\n\nWick, 12345 times."},
    {"role": "user", "content": "  "},
    {"role": "assistant", "content": "Yes?"},
]
TEMPLATE = TEMPLATES["llama3"]
MARKED = [*LLAMA3, "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def taught() -> JsonTokenizer:
    """As `llucid train --chat` makes it."""
    return train_bpe([message["content"] * 9 for message in TALK], 320, MARKED, CHAT_CONFIG)


def texts_of(ids: list[int], learned: list[bool], tokenizer: JsonTokenizer) -> list[str]:
    """The texts that are learned, special tokens spelled out."""
    names = {number: name for name, number in tokenizer.special.items()}
    texts, before = list[str](), False
    for token, own in zip(ids, learned, strict=True):
        text = names.get(token) or tokenizer.decode([token])
        if own and before:
            texts[-1] += text
        elif own:
            texts.append(text)
        before = own
    return texts


def test_ids_equal_those_of_transformers_and_only_answers_are_learned(taught: JsonTokenizer, tmp_path: Path) -> None:
    ids, learned = encode_learned(TALK, taught)
    taught.save(tmp_path)
    theirs: Any = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.apply_chat_template(TALK, tokenize=True, return_dict=False) == ids
    assert texts_of(ids, learned, taught) == [f"{text}<|eot_id|>" for text in ("Wick.", TALK[4]["content"], "Yes?")]

    for number in (2, 4, 6):
        asked = encode_dialog(TALK[:number], load_tokenizer(tmp_path))
        theirs_asked = theirs.apply_chat_template(
            TALK[:number], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert asked == theirs_asked == ids[: len(asked)]
        assert learned[len(asked)]
        assert not learned[len(asked) - 1]


def test_the_native_format_equals_the_template(taught: JsonTokenizer) -> None:
    """A template with a comment is not recognised as Llama 3's, so it is rendered."""
    assert format_of(taught) == TEMPLATE
    native = encode_learned(TALK, taught)
    assert native == encode_learned(TALK, taught, "llama3")
    assert native == encode_learned(TALK, taught, "{# as a stranger's #}" + TEMPLATE)


@pytest.mark.parametrize(
    "ending",
    [
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}",
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
        "{% else %}{{ '<|end_of_text|>' }}{% endif %}",
    ],
    ids=["Llama 3's first", "Phi 3's"],
)
def test_what_a_template_writes_after_the_last_turn_only(ending: str, taught: JsonTokenizer) -> None:
    template = TEMPLATE.partition("{% if add_generation_prompt %}")[0] + ending
    expected, own = encode_learned(TALK, taught)
    ids, learned = encode_learned(TALK, taught, template)
    assert ids[: len(expected)] == expected
    assert len(ids) > len(expected)
    assert learned == own + [False] * (len(ids) - len(own))


def test_an_answer_of_several_parts_is_learned_to_its_end(taught: JsonTokenizer) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{% if m.role == 'assistant' %}thinks\n{{ m.content.split('#')[0] }}"
        "<|im_end|><|im_start|>says\n{{ m.content.split('#')[1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    talk = [
        TALK[1],
        {"role": "assistant", "content": "one two#three"},
        TALK[1],
        {"role": "assistant", "content": "4#5"},
    ]
    ids, learned = encode_learned(talk, taught, template)
    parts = "thinks\n{}<|im_end|><|im_start|>says\n{}<|im_end|>"
    assert texts_of(ids, learned, taught) == [parts.format("one two", "three"), parts.format("4", "5")]


@pytest.mark.parametrize("before", ["", "\n", " ."])
def test_an_end_that_a_template_writes_only_before_more_is_learned(before: str, taught: JsonTokenizer) -> None:
    """As in many copies of ChatML."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        "{% if (loop.last and add_generation_prompt) or not loop.last %}{{ '" + before + "<|im_end|>\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    plain = [message for message in TALK if message["role"] != "tool"]
    ids, learned = encode_learned(plain, taught, template)
    texts = (" Wick.", TALK[4]["content"], "Yes?")
    assert texts_of(ids, learned, taught) == [f"{text}{before}<|im_end|>" for text in texts]
    whole = encode_dialog([*plain, plain[1]], taught, template)
    assert ids == whole[: len(ids)]


def test_line_breaks_after_the_end_of_a_turn_are_not_learned(taught: JsonTokenizer) -> None:
    """As ChatML has them."""
    plain = [message for message in TALK if message["role"] != "tool"]
    ids, learned = encode_learned(plain, taught, CHATML)
    assert texts_of(ids, learned, taught) == [f"{text}<|im_end|>" for text in (" Wick.", TALK[4]["content"], "Yes?")]
    asked = encode_dialog(plain[:2], taught, CHATML)
    assert ids[: len(asked)] == asked


def test_answers_in_llama_2s_format_are_learned(data: Path) -> None:
    tokenizer = load_tokenizer(data / "llama2-tokenizer.model")
    talk = [TALK[0], TALK[1], TALK[2], {"role": "user", "content": "Sure?"}, TALK[4]]
    ids, learned = encode_learned(talk, tokenizer)
    asked = encode_dialog(talk[:4], tokenizer)
    assert ids[: len(asked)] == asked
    answers = [[ids[at] for at in range(len(ids)) if learned[at] and (at < len(asked)) == first] for first in (1, 0)]
    assert [tokenizer.decode(answer).strip() for answer in answers] == ["Wick.", TALK[4]["content"]]
    assert all(answer[-1] == tokenizer.eos for answer in answers)


def test_spelled_special_tokens_stay_text(taught: JsonTokenizer) -> None:
    spelled = "".join(MARKED)
    talk = [{"role": "user", "content": spelled}, {"role": "assistant", "content": spelled}]
    ids, learned = encode_learned(talk, taught)
    assert [ids.count(taught.special[name]) for name in MARKED] == [1, 2, 2, 2, 0, 0]
    assert taught.decode([token for token, own in zip(ids, learned, strict=True) if own]) == spelled


def test_tools_are_part_of_what_is_asked(taught: JsonTokenizer, tmp_path: Path) -> None:
    template = "{% if tools %}{{ tools | tojson }}{% endif %}" + TEMPLATE
    tools = [{"type": "function", "function": {"name": "find"}}]
    with pytest.raises(LlucidError, match=r"tools=.*: the format llama3 has no place for it"):
        encode_learned(TALK, taught, tools=tools)
    ids, learned = encode_learned(TALK, taught, template, tools=tools)
    taught.save(tmp_path)
    theirs: Any = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.apply_chat_template(TALK, tools=tools, chat_template=template, return_dict=False) == ids
    without, learned_without = encode_learned(TALK, taught, template)
    begins = len(ids) - len(without)
    assert begins > 0
    assert (learned[:begins], learned[begins:]) == ([False] * begins, learned_without)


def test_tools_are_learned_by_the_template_for_them(taught: JsonTokenizer) -> None:
    """As `encode_dialog` takes it; the default one only speaks of tools."""
    tools, for_tools = [{"type": "function"}], "{{ tools | tojson }}" + TEMPLATE
    named = [{"name": "default", "template": "{# no tools #}" + TEMPLATE}, {"name": "tool_use", "template": for_tools}]
    tokenizer = JsonTokenizer(json.loads(taught.json()), config=taught.config | {"chat_template": named})
    assert encode_learned(TALK, tokenizer, tools=tools) == encode_learned(TALK, taught, for_tools, tools=tools)
    assert encode_learned(TALK, tokenizer) == encode_learned(TALK, taught)


def test_dialogues_that_cannot_be_learned(taught: JsonTokenizer) -> None:
    with pytest.raises(LlucidError, match="no message of the assistant"):
        encode_learned(TALK[:2], taught)
    with pytest.raises(LlucidError, match="marks no turns"):
        encode_learned(TALK, taught, "plain")
    prompting = (
        "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant:<think>{% endif %}"
    )
    asks = (
        r'messages\[1\]: the chat template asks for an answer with "assistant:<think>" and writes the answer without it'
    )
    with pytest.raises(LlucidError, match=asks):
        encode_learned(TALK[1:3], taught, prompting)
    closing = "{% for m in messages %}{% if loop.last %}<think>{% endif %}{{ m.content }}<|eot_id|>{% endfor %}"
    with pytest.raises(LlucidError, match=r"messages\[3\]: the chat template changes what comes before an answer"):
        encode_learned(TALK[1:5], taught, closing.replace("loop.last", "loop.last and m.role == 'assistant'"))
    forgetful = "{% for m in messages %}{{ m.content if loop.last else 'x' }}<|eot_id|>{% endfor %}"
    with pytest.raises(LlucidError, match=r"messages\[2\]: the chat template changes what comes before an answer"):
        encode_learned(TALK[:3], taught, forgetful)
    merging = train_bpe(["\n\n" * 99], 259, special=["<|im_start|>", "<|im_end|>"])
    begun = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "\nYes"}]
    with pytest.raises(
        LlucidError, match="the answer's first characters and the template's last before it are one token"
    ):
        encode_learned(begun, merging, CHATML)
    # Messages after the last answer are left out.
    assert encode_learned(TALK[:6], taught) == encode_learned(TALK[:5], taught)
