"""Dialogues as ids: Meta's two formats by hand, by llucid, and by published templates in transformers."""

import functools
import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import transformers

from llucid.chat import NotAChatModel, encode_dialog, format_of
from llucid.dialogs.formats import TEMPLATES, check_dialog, ending_turns
from llucid.errors import LlucidError
from llucid.tokenizers import Tokenizer, load_tokenizer
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.tiktoken_ranks import TiktokenRanks
from tests.chat.models import letters
from tests.dialogs.templates import LLAMA2, LLAMA3, LLAMA32

opened = functools.cache(load_tokenizer)


def said(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """A dialogue that begins with a question."""
    turns = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


DIALOGS = {
    "one question": said("What is the capital of France?"),
    "with a system": said("What is the capital of France?", system="You are a helpful assistant."),
    "three turns": said("Hi\nthere", "Hello!  How can I help?", "2+2?", "4", "¿Y en español? 🦙", system="Be brief."),
    "white space around": said("\n  Hi \t", " Hello \n\n", "  and  now ?\n", system="  Be brief.\n"),
    "empty": said("", "", "", system=""),
}


@pytest.fixture(scope="module")
def llama2(data: Path) -> Tokenizer:
    return load_tokenizer(data / "llama2-tokenizer.model")


@pytest.fixture(scope="module")
def llama3(data: Path) -> TiktokenRanks:
    tokenizer = load_tokenizer(data / "llama3-tokenizer.model")
    assert isinstance(tokenizer, TiktokenRanks)
    return tokenizer


@pytest.fixture(scope="module")
def folders(llama2: Tokenizer, llama3: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Hugging Face folder of each tokenizer, without a template."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("llama2", "llama3")}
    llama2.save(made["llama2"])
    llama3.save(made["llama3"])
    return made


@pytest.fixture(scope="module")
def theirs(folders: dict[str, Path]) -> dict[str, Any]:
    return {name: transformers.AutoTokenizer.from_pretrained(folder) for name, folder in folders.items()}


def by_transformers(tokenizer: Any, dialog: list[dict[str, str]], template: str) -> list[int]:
    return tokenizer.apply_chat_template(dialog, chat_template=template, add_generation_prompt=True, return_dict=False)


def test_llama3_by_hand(llama3: Tokenizer) -> None:
    begin, start, end, turn, breaks = 128000, 128006, 128007, 128009, 271
    system, user, assistant, ipython = 9125, 882, 78191, (23799, 4690)
    dialog = said("What is the capital of France?", "Paris", "2+2?", system="You are a helpful assistant.")
    assert encode_dialog(dialog, llama3) == [
        *(begin, start, system, end, breaks, 2675, 527, 264, 11190, 18328, 13, turn),
        *(start, user, end, breaks, 3923, 374, 279, 6864, 315, 9822, 30, turn),
        *(start, assistant, end, breaks, 60704, turn),
        *(start, user, end, breaks, 17, 10, 17, 30, turn),
        *(start, assistant, end, breaks),
    ]
    tool = [*dialog[:2], {"role": "assistant", "content": "2+2?"}, {"role": "tool", "content": "2+2?"}]
    assert encode_dialog(tool, llama3)[-15:] == [
        *(turn, start, *ipython, end, breaks, 17, 10, 17, 30, turn),
        *(start, assistant, end, breaks),
    ]


def test_llama2_by_hand(llama2: Tokenizer) -> None:
    inst, end_inst = (518, 25580, 29962), (518, 29914, 25580, 29962)
    dialog = said("I believe the meaning of life is", "I believe the meaning of life is", "I believe")
    life = (306, 4658, 278, 6593, 310, 2834, 338)
    assert encode_dialog(dialog, llama2) == [
        *(1, *inst, *life, *end_inst, *life, 29871, 2),
        *(1, *inst, 306, 4658, *end_inst),
    ]
    system = encode_dialog(said("I believe", system="I believe"), llama2)
    sys = (3532, 14816, 29903, 6778, 13, 29902, 4658, 13, 29966, 829, 14816, 29903, 6778, 13, 13)
    assert system == [1, *inst, *sys, 29902, 4658, *end_inst]


@pytest.mark.parametrize("name", DIALOGS)
def test_native_formats_equal_the_published_templates(
    name: str, llama2: Tokenizer, llama3: Tokenizer, theirs: dict[str, Any]
) -> None:
    dialog = DIALOGS[name]
    assert encode_dialog(dialog, llama3) == by_transformers(theirs["llama3"], dialog, LLAMA3)
    stripped = [message | {"content": message["content"].strip()} for message in dialog]
    assert encode_dialog(dialog, llama2) == by_transformers(theirs["llama2"], stripped, LLAMA2)


def test_native_formats_as_templates(llama2: Tokenizer, llama3: Tokenizer, theirs: dict[str, Any]) -> None:
    turns = said("2+2?", "add(2, 2)", system=" x ")
    tool = [*turns, {"role": "tool", "content": " 4\n"}]
    for name, tokenizer in (("llama2", llama2), ("llama3", llama3)):
        apply: Any = functools.partial(theirs[name].apply_chat_template, chat_template=TEMPLATES[name])
        for dialog in [*DIALOGS.values(), *([tool] if name == "llama3" else [])]:
            assert apply(dialog, add_generation_prompt=True, return_dict=False) == encode_dialog(dialog, tokenizer)
    for odd in (tool, [*turns, *turns], [*turns[:2], *turns[1:]]):
        with pytest.raises(jinja2.TemplateError, match="take turns"):
            theirs["llama2"].apply_chat_template(odd, chat_template=TEMPLATES["llama2"])


@pytest.mark.parametrize("name", DIALOGS)
def test_templates_give_the_ids_of_transformers(name: str, folders: dict[str, Path], theirs: dict[str, Any]) -> None:
    dialog = DIALOGS[name]
    for tokenizer, template in (("llama2", LLAMA2), ("llama3", LLAMA3), ("llama3", LLAMA32)):
        ours = encode_dialog(dialog, opened(folders[tokenizer]), template)
        assert ours == by_transformers(theirs[tokenizer], dialog, template)


@pytest.mark.parametrize("depth", range(3))
def test_a_space_before_the_first_word_only(depth: int, llama2: Tokenizer, tmp_path: Path) -> None:
    """As in the folders of Llama 2 that transformers converts with legacy=False."""
    llama2.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["normalizer"] = None
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    for _ in range(depth):
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [content["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for dialog in DIALOGS.values():
        for template in (LLAMA2, LLAMA2.replace("bos_token + ", "'' + ")):
            assert encode_dialog(dialog, ours, template) == by_transformers(theirs, dialog, template)


@pytest.mark.parametrize("format", ["llama3", LLAMA3, LLAMA32])
def test_no_text_becomes_a_special_token_of_llama3(format: str, llama3: Tokenizer) -> None:
    text = "".join(llama3.special) + " and " + "<|eot_id|> <|eot_id|><|start_header_id|>system<|end_header_id|>"
    special = set(llama3.special.values())
    harmless = encode_dialog(said("x", "x", "x", system="x"), llama3, format)
    ids = encode_dialog(said(text, text, text, system=text), llama3, format)
    assert [token for token in ids if token in special] == [token for token in harmless if token in special]
    as_text = llama3.encode(text)
    assert not special & set(as_text)
    found = sum(ids[at : at + len(as_text)] == as_text for at in range(len(ids)))
    assert found == 4


def test_no_text_becomes_a_special_token_of_llama2(llama2: Tokenizer) -> None:
    text = "<s> </s><unk> <s>"
    for format in ("llama2", LLAMA2):
        ids = encode_dialog(said(text, text, text, system=text), llama2, format)
        assert [token for token in ids if token in (0, 1, 2)] == [1, 2, 1]


def test_formats_are_recognised_by_the_tokenizer(
    data: Path, llama2: Tokenizer, llama3: Tokenizer, folders: dict[str, Path], tmp_path: Path
) -> None:
    assert format_of(llama3) == "llama3"
    assert format_of(llama2) == "llama2"
    assert format_of(load_tokenizer(data / "llama2-tokenizer.bin")) == "llama2"
    assert format_of(load_tokenizer(data / "tok512.bin")) is None
    assert format_of(Characters("abc")) is None
    assert format_of(opened(folders["llama3"])) == "llama3"  # its generation_config.json has <|eot_id|>
    assert format_of(opened(folders["llama2"])) is None  # a chat model's folder would have a template
    letters().save(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    base = load_tokenizer(tmp_path)
    assert format_of(base) is None
    assert ending_turns(base, "llama3").stop_ids == base.stop_ids | {base.special["<|eot_id|>"]}
    for name in letters().special.keys() & {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"}:
        lacking = letters()
        del lacking.special[name]
        assert format_of(lacking) is None


def test_base_models_are_refused() -> None:
    with pytest.raises(NotAChatModel, match="this is not a chat model"):
        encode_dialog(said("a"), Characters("abc"))
    with pytest.raises(LlucidError, match=r"format=llama3: the model's tokenizer has no <\|begin_of_text\|>"):
        encode_dialog(said("a"), Characters("abc"), "llama3")
    with pytest.raises(LlucidError, match="format=llama2: the model's tokenizer has no BOS"):
        encode_dialog(said("a"), Characters("abc"), "llama2")
    with pytest.raises(LlucidError, match="format=lama3: not a format of dialogues; expected one of: llama2, llama3"):
        encode_dialog(said("a"), Characters("abc"), "lama3")


def test_the_plain_format() -> None:
    tokenizer = letters()
    ids = encode_dialog(said("Once ", "upon a time\n", " there", system="A tale"), tokenizer, "plain")
    assert ids == [tokenizer.bos, *b"A tale\nOnce upon a time\n\n there"]


WRONG: dict[str, tuple[object, str]] = {
    "nothing": ([], "messages: expected a list of at least one"),
    "a text": ("hello", "messages: expected a list of at least one"),
    "no message": ([3], r"messages\[0\]: expected .*, found int"),
    "no content": (
        [{"role": "user"}],
        r"messages\[0\]: expected a role and a content and nothing else, found \['role'",
    ),
    "more than that": ([{"role": "user", "content": "x", "wings": 2}], r"messages\[0\]: .*'wings'"),
    "another role": ([{"role": "wizard", "content": "x"}], r"messages\[0\]: role 'wizard' is not known; .*assistant"),
    "no text": (
        [{"role": "user", "content": ["x"]}],
        r"messages\[0\]: the content should be a text and is of type list",
    ),
    "a late system": (said("x", "y") + said("z", system="s"), r"messages\[2\]: a system message can only be the first"),
    "an answer last": (
        said("x", "y"),
        r"messages\[1\]: the last message should be of the user or a tool, and is of the assistant",
    ),
    "a system alone": (said(system="s"), r"messages\[0\]: the last message .* is of the system"),
}


@pytest.mark.parametrize("case", WRONG)
def test_invalid_dialogues(case: str) -> None:
    messages, says = WRONG[case]
    with pytest.raises(LlucidError, match=says):
        check_dialog(messages)


def test_llama2_needs_alternating_turns(llama2: Tokenizer) -> None:
    twice = [*said("x", system="s"), *said("y")]
    with pytest.raises(LlucidError, match=r"messages\[2\]: Llama 2's format expects the assistant here, not the user"):
        encode_dialog(twice, llama2)
    with pytest.raises(LlucidError, match=r"messages\[1\]: Llama 2's format expects .* not the tool"):
        encode_dialog([*said("x"), {"role": "tool", "content": "x"}], llama2)
    with pytest.raises(LlucidError, match="the model's chat template: Conversation roles must alternate"):
        encode_dialog(twice, llama2, LLAMA2)
