"""The first difference between two tokenizers."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llucid.dialogs import sandbox
from llucid.dialogs.comparison import first_difference_in_dialog
from llucid.dialogs.formats import ROLES as DIALOG_ROLES
from llucid.tokenizers import Tokenizer
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.comparison import first_difference
from llucid.tokenizers.gguf_export import write_vocabulary
from llucid.tokenizers.gguf_vocabulary import read_vocabulary
from llucid.tokenizers.llama2c_export import to_llama2c
from llucid.tokenizers.sentencepiece_model import SentencePiece
from llucid.tokenizers.tokenizer_json import JsonTokenizer, special_token
from tests.chat.models import letters
from tests.dialogs.templates import CHATML
from tests.tokenizers.kinds import SMALL, opened_again
from tests.tokenizers.texts import sentencepiece_model, small_llama2c, small_ranks, small_sentencepiece


@pytest.mark.parametrize("kind", SMALL)
def test_conversions_that_keep_the_ids(kind: str, tmp_path: Path) -> None:
    tokenizer = SMALL[kind](tmp_path / "t")
    assert first_difference(tokenizer, opened_again(tokenizer, tmp_path / "out")) is None
    assert first_difference(tokenizer, read_vocabulary(write_vocabulary(tokenizer, tokenizer.vocab_size))) is None
    assert first_difference_in_dialog(tokenizer, opened_again(tokenizer, tmp_path / "out")) is None


def changed(change: Callable[[dict[str, Any]], object]) -> JsonTokenizer:
    content = json.loads(small_sentencepiece().json())
    change(content)
    return JsonTokenizer(content, config={"eos_token": "</s>"})


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (lambda: changed(lambda content: content.update(post_processor=None)), "BOS is 1 in one and None in the other"),
        (
            lambda: changed(lambda content: content["normalizer"]["normalizers"].pop(0)),
            "the ids of 'Once upon a time, th'",
        ),
        (lambda: changed(lambda content: content["model"]["merges"].pop(0)), "the ids of"),
        (lambda: changed(lambda content: content["decoder"]["decoders"].pop()), "are decoded differently"),
        (
            lambda: SentencePiece(sentencepiece_model(treat_whitespace_as_suffix=True)),
            "the ids of 'Once upon a time, th'",
        ),
        (lambda: SentencePiece(sentencepiece_model(remove_extra_whitespaces=True)), "the ids of"),
        (lambda: SentencePiece(sentencepiece_model(), {"eos_token": "<unk>"}), "EOS is 2 in one and 0 in the other"),
        (lambda: Characters("abc"), "BOS is 1"),
    ],
)
def test_first_differences(other: Callable[[], Tokenizer], difference: str) -> None:
    assert difference in (first_difference(small_sentencepiece(), other()) or "")


def test_an_id_that_no_longer_ends_a_text(tmp_path: Path) -> None:
    made = opened_again(small_ranks(), tmp_path)
    (tmp_path / "generation_config.json").unlink()
    lost = opened_again(made, tmp_path)
    assert first_difference(
        small_ranks(), JsonTokenizer(json.loads(lost.json()), config={"eos_token": "<|end_of_text|>"})
    )
    assert first_difference(to_llama2c(small_sentencepiece()), small_sentencepiece()) == (
        "1 ends a text in one and not in the other"
    )
    assert first_difference(small_sentencepiece(), small_llama2c()) is None


def test_a_tokenizer_that_cannot_encode() -> None:
    assert "has ids in one, but the other" in (first_difference(Characters("abc \n"), Characters("ab \n")) or "")


def test_dialogues() -> None:
    assert first_difference_in_dialog(letters(), letters()) is None
    found = first_difference_in_dialog(letters(), letters(), CHATML)
    assert found is not None
    assert found.startswith("the ids of a dialogue differ at place 0:")
    assert first_difference_in_dialog(small_sentencepiece(), small_sentencepiece()) is None
    named = SentencePiece(sentencepiece_model(), {"chat_template": "{{ bos_token }}{{ messages[0].content }}"})
    assert first_difference_in_dialog(named, small_sentencepiece()) == "the format of dialogues is lost"
    assert first_difference_in_dialog(named, small_sentencepiece(), other_format="{{ messages[0].content }}")


@pytest.mark.parametrize("where", [*DIALOG_ROLES, "tools", "documents", "enable_thinking"])
@pytest.mark.parametrize("strip", ["lstrip", "rstrip"])
def test_white_space_beside_tokens_everywhere(where: str, strip: str) -> None:
    """A GGUF cannot say that a special token includes it."""
    tokenizer = letters()
    content = json.loads(tokenizer.json())
    content["added_tokens"].append(special_token("<|mark|>", tokenizer.vocab_size))
    other = copy.deepcopy(content)
    other["added_tokens"][-1][strip] = True
    asks = f"m.role == '{where}'" if where in DIALOG_ROLES else where
    template = "{% for m in messages %}{{ m.content }}{% if " + asks + " %} <|mark|> {% endif %}{% endfor %}"
    found = first_difference_in_dialog(JsonTokenizer(content), JsonTokenizer(other), template, template)
    assert "the ids of a dialogue" in str(found)


def test_a_template_without_an_end_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = "{% for n in range(99999) %}{% for m in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr(sandbox, "SECONDS", 0.5)
    started = vars(sandbox.Renderer)["started"]
    tried = list[int]()
    monkeypatch.setattr(sandbox.Renderer, "started", lambda self: (tried.append(1), started(self))[1])
    templates = [{"name": name, "template": endless} for name in ("default", "rag")]
    made = SentencePiece(sentencepiece_model(), {"chat_template": templates})
    found = first_difference_in_dialog(made, made)
    sandbox.RENDERER.close()
    assert str(found).startswith("dialogues cannot be compared: the model's chat template: it did not end within")
    assert len(tried) <= 2


def test_named_templates() -> None:
    def of(**templates: str) -> Tokenizer:
        named = [{"name": name, "template": text} for name, text in templates.items()]
        return SentencePiece(sentencepiece_model(), {"chat_template": named})

    one, other = "{{ messages[0].content }}", "{{ messages[-1].content }}"
    assert first_difference_in_dialog(of(rag=one, tools=other), of(tools=other, rag=one)) is None
    assert first_difference_in_dialog(of(rag=one, tools=other), of(rag=one)) == "the chat template tools is lost"
    assert first_difference_in_dialog(of(default=one, rag=one), of(default=one)) == "the chat template rag is lost"
    assert "the ids of a dialogue" in str(first_difference_in_dialog(of(rag=one, tools=one), of(rag=one, tools=other)))
    assert first_difference_in_dialog(of(rag=one), of(default=one)) is None
    assert first_difference_in_dialog(of(rag=one, tools=one), small_sentencepiece()) == (
        "the format of dialogues is lost"
    )
