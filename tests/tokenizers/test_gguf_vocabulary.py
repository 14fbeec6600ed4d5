"""Tokenizers as GGUF keys. tests/checkpoints/test_llama_cpp.py holds them to llama.cpp itself."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from llucid.checkpoints import Model, load, save
from llucid.checkpoints.gguf_file import read_file_header
from llucid.dialogs.templates import encode_template, template_of
from llucid.errors import LlucidError
from llucid.tokenizers import Tokenizer, load_tokenizer
from llucid.tokenizers.byte_pairs import train_bpe
from llucid.tokenizers.byte_pieces import byte_letters
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.gguf_export import write_vocabulary
from llucid.tokenizers.gguf_vocabulary import RULES, WHOLE_JSON, read_vocabulary
from llucid.tokenizers.llama2c import WORST_SCORE, Llama2cTokenizer
from llucid.tokenizers.protobuf import field
from llucid.tokenizers.sentencepiece_model import NORMAL, PIECE_TEXT, PIECE_TYPE, PIECES, SentencePiece
from llucid.tokenizers.tokenizer_json import JsonTokenizer
from tests.checkpoints.models import model_of
from tests.checkpoints.test_hostile import TINY
from tests.tokenizers.kinds import SMALL, metaspace, opened_again, texts_for
from tests.tokenizers.texts import (
    HOSTILE,
    LONG,
    MARK,
    TALE,
    sentencepiece_model,
    small_llama2c,
    small_ranks,
    small_sentencepiece,
)


@pytest.fixture(params=SMALL)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return SMALL[request.param](tmp_path / "tokenizer")


def test_round_trip(tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size + 3
    gguf = write_vocabulary(tokenizer, size)
    found = read_vocabulary(gguf)
    tokens = gguf["tokenizer.ggml.tokens"]
    assert len(tokens) == len(set(tokens)) == len(gguf["tokenizer.ggml.token_type"]) == size
    assert tokens[-1] == ("\\xff%d" if isinstance(tokenizer, Characters) else "[PAD%d]") % (size - 1)
    assert found.vocab_size == tokenizer.vocab_size
    assert (found.bos, found.eos, found.stop_ids) == (tokenizer.bos, tokenizer.eos, tokenizer.stop_ids)
    for text in texts_for(tokenizer):
        ids = tokenizer.encode(text)
        assert found.encode(text) == ids
        assert found.decode(ids) == tokenizer.decode(ids)
    if tokenizer.bos is not None:
        assert found.special[tokens[tokenizer.bos]] == tokenizer.bos
        assert found.decode([tokenizer.bos]) == ""
    assert write_vocabulary(found, size) == gguf


def test_round_trip_through_a_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """In a model with more ids than the tokenizer has."""
    config = replace(TINY, vocab_size=tokenizer.vocab_size + 7)
    save(Model(config, model_of(config).weights, tokenizer), tmp_path / "a.gguf", "gguf")
    found = load(tmp_path / "a.gguf", device="cpu")
    assert found.tokenizer
    assert found.tokenizer.encode(TALE) == tokenizer.encode(TALE)
    assert found.config == config
    tokens = read_file_header(tmp_path / "a.gguf").value("tokenizer.ggml.tokens")
    assert len(tokens) == config.vocab_size
    ends = [(each.vocab_size, each.bos, each.eos) for each in (tokenizer, found.tokenizer)]
    assert ends[0] == ends[1]


def test_no_eos_stays_no_eos() -> None:
    """llama.cpp takes the token 11 (or 2) as EOS if none is named, so the byte 0xFF is named."""
    tokenizer = train_bpe([TALE], 320)
    gguf = write_vocabulary(tokenizer, tokenizer.vocab_size)
    assert gguf["tokenizer.ggml.tokens"][gguf["tokenizer.ggml.eos_token_id"]] == "ÿ"
    assert gguf["tokenizer.ggml.add_bos_token"] is False
    assert read_vocabulary(gguf).eos is None


def test_add_bos() -> None:
    """If the file says nothing, llama.cpp's default: BOS for SentencePiece and Llama 3, not for GPT-2."""
    for tokenizer in (small_sentencepiece(), small_ranks()):
        gguf = write_vocabulary(tokenizer, tokenizer.vocab_size)
        silent = {key: value for key, value in gguf.items() if not key.endswith("add_bos_token")}
        for keys, bos in (
            (gguf, tokenizer.bos),
            (silent, tokenizer.bos),
            (gguf | {"tokenizer.ggml.add_bos_token": False}, None),
        ):
            assert read_vocabulary(keys).bos == bos
    assert read_vocabulary(silent | {"tokenizer.ggml.pre": "gpt-2"}).bos is None


def test_stop_ids_of_llama_3() -> None:
    ranks = small_ranks()
    gguf = write_vocabulary(ranks, ranks.vocab_size)
    assert gguf["tokenizer.ggml.pre"] == "llama-bpe"
    for role, name in (("bos", "begin_of_text"), ("eos", "end_of_text"), ("eot", "eot_id"), ("eom", "eom_id")):
        assert gguf[f"tokenizer.ggml.{role}_token_id"] == ranks.special[f"<|{name}|>"]
    assert read_vocabulary(gguf).special == ranks.special
    for other in ("llama3", "falcon3", "default"):  # other names of the same rule
        assert read_vocabulary(gguf | {"tokenizer.ggml.pre": other}).encode(TALE) == ranks.encode(TALE)
    nameless = {key: value for key, value in gguf.items() if key != "tokenizer.ggml.pre"}
    assert read_vocabulary(nameless).encode(TALE + "12345") == ranks.encode(TALE + "12345")
    base = {key: value for key, value in gguf.items() if "eot_token" not in key and "eom_token" not in key}
    assert read_vocabulary(base).stop_ids == {ranks.eos}  # a base model, not trained on turns
    chat = base | {"tokenizer.ggml.eos_token_id": ranks.special["<|eot_id|>"]}
    assert read_vocabulary(chat).stop_ids == ranks.stop_ids


def test_chat_templates_survive(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
    for made in (small_sentencepiece(), small_ranks()):
        gguf = write_vocabulary(made, made.vocab_size) | {"tokenizer.chat_template": template}
        found = read_vocabulary(gguf)
        assert isinstance(found, SentencePiece | JsonTokenizer)
        assert found.config["chat_template"] == template
        assert write_vocabulary(found, made.vocab_size)["tokenizer.chat_template"] == template
        again = opened_again(found, tmp_path / type(made).__name__)
        assert isinstance(again, JsonTokenizer)
        assert again.config["chat_template"] == template
        assert (again.bos, again.eos) == (made.bos, made.eos)
        assert again.encode(TALE) == made.encode(TALE)
    config = {"chat_template": [{"template": "nameless"}, {"name": "default", "template": template}]}
    assert write_vocabulary(SentencePiece(sentencepiece_model(), config), 400)["tokenizer.chat_template"] == template


def test_a_piece_whose_type_is_no_number() -> None:
    """It is none, so that the piece is normal, as in the sentencepiece library."""
    odd = SentencePiece(sentencepiece_model() + field(PIECES, field(PIECE_TEXT, b"\x18") + field(PIECE_TYPE, b"x")))
    assert write_vocabulary(odd, odd.vocab_size)["tokenizer.ggml.token_type"][-1] == NORMAL


def test_named_chat_templates_survive(tmp_path: Path) -> None:
    """As in Hermes 3: transformers keeps them in a list, GGUF under keys of their own."""
    for names in (["default", "tool_use"], ["tool_use", "rag"]):
        rows = [{"name": name, "template": f"{{{{ bos_token }}}}{name}"} for name in names]
        tokenizer = SentencePiece(sentencepiece_model(), {"chat_template": rows})
        config = replace(TINY, vocab_size=tokenizer.vocab_size)
        save(Model(config, model_of(config).weights, tokenizer), tmp_path / "a.gguf", "gguf")
        found = load(tmp_path / "a.gguf", device="cpu").tokenizer
        assert found
        assert [template_of(found, name) for name in names] == [row["template"] for row in rows]
        head = read_file_header(tmp_path / "a.gguf")
        assert head.value("tokenizer.chat_templates") == [name for name in names if name != "default"]
        assert ("tokenizer.chat_template" in head.fields) == ("default" in names)


def test_bos_for_templates_if_texts_do_not_begin_with_it(tmp_path: Path) -> None:
    """As in Hugging Face folders, where bos_token names it, and the tokenizer decides whether it comes first."""
    template = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
    for made in (small_sentencepiece(), small_ranks()):
        assert made.bos is not None
        more = {"tokenizer.chat_template": template, "tokenizer.ggml.add_bos_token": False}
        gguf = write_vocabulary(made, made.vocab_size) | more
        found = read_vocabulary(gguf)
        again = opened_again(found, tmp_path / type(made).__name__)
        for one in (found, again):
            assert one.bos is None
            messages = [{"role": "user", "content": "bell"}]
            assert encode_template(template, messages, one) == [made.bos, *made.encode("bell")]
            assert write_vocabulary(one, made.vocab_size)["tokenizer.ggml.bos_token_id"] == made.bos
        assert write_vocabulary(found, made.vocab_size) == gguf
        untyped = {key: value for key, value in gguf.items() if not key.endswith("token_type")}
        if isinstance(made, SentencePiece):
            assert read_vocabulary(untyped).special == made.special


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_spaces_before_texts(scheme: str) -> None:
    """Where llama.cpp puts others, the file also has the whole tokenizer.json, which gives the tokenizer's own ids."""
    tokenizer = metaspace(scheme)
    gguf = write_vocabulary(tokenizer, tokenizer.vocab_size + 3)
    found = read_vocabulary(gguf)
    assert (WHOLE_JSON in gguf) == (scheme != "never")
    for text in (*HOSTILE.values(), MARK):
        ids = tokenizer.encode(text)
        assert found.encode(text) == ids
        assert found.decode(ids) == tokenizer.decode(ids)
    assert (found.bos, found.eos, found.stop_ids) == (tokenizer.bos, tokenizer.eos, tokenizer.stop_ids) == (1, 2, {2})
    assert found.vocab_size == tokenizer.vocab_size
    if scheme != "never":
        assert json.loads(gguf[WHOLE_JSON]) == json.loads(tokenizer.json())
        assert found.special == tokenizer.special
        assert write_vocabulary(found, tokenizer.vocab_size + 3) == gguf


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_spaces_after_tokens_in_text(scheme: str) -> None:
    """llama.cpp puts a space there, "first" does not."""
    tokenizer = metaspace(scheme, {})
    gguf = write_vocabulary(tokenizer, tokenizer.vocab_size)
    theirs = read_vocabulary({key: value for key, value in gguf.items() if key != WHOLE_JSON})
    for text, spaced in (("a<|turn|>bell", "a<|turn|> bell"), ("a<|turn|>  bell", "a<|turn|>   bell")):
        assert read_vocabulary(gguf).encode(text) == tokenizer.encode(text)
        assert theirs.encode(text) == tokenizer.encode(spaced)
        assert (theirs.encode(text) == tokenizer.encode(text)) == (scheme == "always" and "  " not in text)


def test_a_template_with_user_defined_tokens() -> None:
    made = metaspace(added={})
    gguf = write_vocabulary(made, made.vocab_size) | {"tokenizer.chat_template": "{{ messages }}"}
    found = read_vocabulary({key: value for key, value in gguf.items() if key != WHOLE_JSON})
    assert isinstance(found, SentencePiece)
    assert found.config == {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}"}


def test_add_bos_with_the_whole_json(tmp_path: Path) -> None:
    """BOS and the chat template come from the other keys."""
    tokenizer = metaspace()
    tokenizer.config["chat_template"] = template = "{{ bos_token }}{{ messages[0].content }}"
    gguf = write_vocabulary(tokenizer, tokenizer.vocab_size)
    for keys, bos in ((gguf, 1), (gguf | {"tokenizer.ggml.add_bos_token": False}, None)):
        found = read_vocabulary(keys)
        assert found.bos == bos
        assert encode_template(template, [{"role": "user", "content": " a"}], found) == [1, *tokenizer.encode(" a")]
    silent = {key: value for key, value in gguf.items() if not key.endswith(("_token_id", "add_bos_token"))}
    found = read_vocabulary(silent)
    assert (found.bos, found.eos) == (1, 2)  # llama.cpp's
    assert isinstance(found, JsonTokenizer)
    assert found.config == tokenizer.config
    without = read_vocabulary(silent | {"tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": None})
    assert isinstance(without, JsonTokenizer)
    assert without.bos is None
    assert without.config == {"eos_token": "</s>"}


GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
LLAMA3 = {"type": "Sequence", "pretokenizers": json.loads(small_ranks().json())["pre_tokenizer"]["pretokenizers"]}
DIGITS = {"type": "Digits", "individual_digits": True}


def byte_pairs(cut: dict[str, Any], whole_words: bool = False, added: dict[str, Any] | None = None) -> JsonTokenizer:
    """Our byte pairs with another splitting rule; `added` are the flags of a token <|turn|> found in text."""
    content = json.loads(train_bpe([TALE], 320, ["</s>"]).json())
    content["pre_tokenizer"] = cut
    content["model"]["ignore_merges"] = whole_words
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False) | (added or {})
    if added is not None:
        content["added_tokens"].append({"id": len(content["model"]["vocab"]), "content": "<|turn|>", **flags})
    return JsonTokenizer(content, config={"eos_token": "</s>"})


@pytest.mark.parametrize(
    ("name", "cut", "whole_words"),
    [
        ("llama-bpe", LLAMA3, True),
        ("smaug-bpe", LLAMA3, False),
        ("gpt-2", GPT2, False),
        ("smollm", {"type": "Sequence", "pretokenizers": [DIGITS, GPT2]}, False),
    ],
)
def test_names_of_splitting_rules(name: str, cut: dict[str, Any], whole_words: bool) -> None:
    """By llama.cpp's convert_hf_to_gguf.py."""
    made = byte_pairs(cut, whole_words, {})
    gguf = write_vocabulary(made, made.vocab_size)
    assert gguf["tokenizer.ggml.pre"] == name
    assert gguf["tokenizer.ggml.token_type"] == [3, *[1] * (made.vocab_size - 2), 4]
    for text in ("It is 1234 <|turn|> o'clock's  end", TALE):
        assert read_vocabulary(gguf).encode(text) == made.encode(text)


def test_deepseek_coder_as_hugging_face_has_it() -> None:
    """With a normalizer that does nothing, with Digits for a split, and with the line breaks themselves."""
    steps = [*RULES["deepseek-coder"].steps]
    steps[0] = steps[0] | {"pattern": {"Regex": "[\r\n]"}}
    steps[-2] = DIGITS
    content = json.loads(byte_pairs({"type": "Sequence", "pretokenizers": steps}).json())
    content["normalizer"] = {"type": "Sequence", "normalizers": []}
    made = JsonTokenizer(content, config={"eos_token": "</s>"})
    gguf = write_vocabulary(made, made.vocab_size)
    assert gguf["tokenizer.ggml.pre"] == "deepseek-coder"
    for text in ("It is 1234 ½٣ o'clock!\n漢字", TALE):
        assert read_vocabulary(gguf).encode(text) == made.encode(text)


OTHER_WORDS = {
    "deepseek-coder": (["It", " is", " ", "1", "2", " o", "'", "clock", "!", "\n", "漢字"], "It is 12 o'clock!\n漢字"),
    "deepseek-llm": (["It", " is", " ", "12", " o", "'", "clock", "!", "\n", "漢字"], "It is 12 o'clock!\n漢字"),
    "tekken": (["It", " is", " ", "1", "2", " o", "'clock", " Mc", "Gee", "/"], "It is 12 o'clock McGee/"),
    "default": (["It", " is", " ", "123", "4", " o", "'", "clock", "!"], "It is 1234 o'clock!"),
    "refact": (["It", " is", " ", "1", "2", " o", "'", "clock", "!"], "It is 12 o'clock!"),
    "phi-2": (["It", " is", " 12", " o", "'", "clock", "!"], "It is 12 o'clock!"),
}


@pytest.mark.parametrize("pre", OTHER_WORDS)
def test_words_of_each_splitting_rule(pre: str) -> None:
    made = byte_pairs(GPT2)
    gguf = write_vocabulary(made, made.vocab_size) | {"tokenizer.ggml.pre": pre}
    found = read_vocabulary(gguf)
    assert isinstance(found, JsonTokenizer)
    assert found.tokenizer.pre_tokenizer is not None
    words, text = OTHER_WORDS[pre]
    spelled = [word.encode().decode("latin-1").translate(byte_letters()) for word in words]
    assert [word for word, _ in found.tokenizer.pre_tokenizer.pre_tokenize_str(text)] == spelled


def test_an_id_out_of_range_is_ignored_as_in_llama_cpp() -> None:
    ranks = small_ranks()
    gguf = write_vocabulary(ranks, ranks.vocab_size)
    assert read_vocabulary(gguf | {"tokenizer.ggml.eos_token_id": 2**32 - 1}).eos is None
    gguf = write_vocabulary(small_sentencepiece(), 400)
    found = read_vocabulary(gguf | {"tokenizer.ggml.eos_token_id": 400, "tokenizer.ggml.bos_token_id": 2**32 - 1})
    assert (found.bos, found.eos) == (1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(normalizer={"type": "NFC"}), 'its normalizer {"type": "NFC"}'),
        (
            lambda content: content.update(
                model={"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["</s>", 0.0]]}
            ),
            'its model is "Unigram"',
        ),
        (lambda content: content["model"].update(unk_token="</s>"), "and it has unk_token"),
        (lambda content: content["model"].update(dropout=0.5), "and it has dropout"),
        (lambda content: content["model"].update(end_of_word_suffix="x"), "and it has end_of_word_suffix"),
        (lambda content: content["pre_tokenizer"].update(add_prefix_space=True), '"add_prefix_space": true'),
    ],
)
def test_byte_pairs_that_gguf_cannot_express(change: Callable[[dict[str, Any]], None], message: str) -> None:
    content = json.loads(byte_pairs(GPT2).json())
    change(content)
    made = JsonTokenizer(content, config={"eos_token": "</s>"})
    with pytest.raises(LlucidError, match=re.escape(message)):
        write_vocabulary(made, made.vocab_size)


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_added_tokens_with_strip_flags_are_refused(flag: str) -> None:
    made = byte_pairs(GPT2, added={flag: True})
    with pytest.raises(LlucidError, match="an added token with lstrip, rstrip or single_word"):
        write_vocabulary(made, made.vocab_size)


def normalizing(**step: Any) -> JsonTokenizer:
    content = json.loads(metaspace().json())
    return JsonTokenizer(content | {"normalizer": step}, config={"eos_token": "</s>"})


@pytest.mark.parametrize(
    "make",
    [
        lambda: normalizing(type="Strip", strip_left=True, strip_right=False),
        lambda: normalizing(type="Replace", pattern={"Regex": "^O"}, content="Q"),  # without a space before it
        lambda: metaspace(split=True),
        lambda: metaspace("first", split=True),
        lambda: metaspace(added={"rstrip": True}),
        lambda: metaspace(added={"lstrip": True}),
        lambda: metaspace("first", {"single_word": True}),
    ],
)
def test_other_differences_are_refused(make: Callable[[], JsonTokenizer]) -> None:
    tokenizer = make()
    with pytest.raises(LlucidError, match=r"llama.cpp's rules give other ids"):
        write_vocabulary(tokenizer, tokenizer.vocab_size)


def word_level() -> JsonTokenizer:
    content = json.loads(Characters("a").json())
    content["model"]["vocab"] = {"aa": 0, "\ufffd": 1}
    return JsonTokenizer(content)


def never_merged() -> Llama2cTokenizer:
    made = small_llama2c()
    return Llama2cTokenizer([*made.pieces, b"bell bell", b"bel", b"l bell"], [*made.scores, WORST_SCORE, -1.0, -2.0])


def test_unmerged_pieces_that_cannot_be_merged() -> None:
    """Nothing is lost: characters, and added tokens of a tokenizer.json."""
    made = small_llama2c()
    made = Llama2cTokenizer([*made.pieces, b"bellzz"], [*made.scores, WORST_SCORE])
    content = json.loads(small_sentencepiece().json())
    half = next(
        piece for piece in content["model"]["vocab"] if piece.isalpha() and len(piece) == 2 and "▁" not in piece
    )
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    content["added_tokens"].append({"id": 400, "content": half * 2, **flags})  # found in a text before merging
    added = JsonTokenizer(content, config={"eos_token": "</s>"})
    assert read_vocabulary(write_vocabulary(added, 401)).encode(f"a {half * 2}") == added.encode(f"a {half * 2}")
    assert read_vocabulary(write_vocabulary(made, made.vocab_size)).encode("bellzz bell") == made.encode("bellzz bell")


def unigram() -> JsonTokenizer:
    made = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, byte_fallback=True))
    return JsonTokenizer(json.loads(made.to_str()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Characters("aé"), "not all ASCII"),
        (lambda: SentencePiece(sentencepiece_model("unigram")), r"does not merge pairs \(BPE\)"),
        (lambda: SentencePiece(sentencepiece_model(normalization_rule_name="nmt_nfkc")), "normalises characters"),
        (lambda: SentencePiece(sentencepiece_model(remove_extra_whitespaces=True)), "collapses runs of spaces"),
        (lambda: SentencePiece(sentencepiece_model(treat_whitespace_as_suffix=True)), "space behind a word"),
        (lambda: SentencePiece(sentencepiece_model(user_defined_symbols="<turn>")), "GGUF cannot .* it finds '<turn>'"),
        (lambda: SentencePiece(sentencepiece_model(byte_fallback=False)), "without a piece for each byte"),
        (unigram, 'its model is "Unigram"'),
        (lambda: Llama2cTokenizer([b"<unk>", b"<s>", b"</s>", b"a"], [0.0] * 4), "without pieces for the 256 bytes"),
        (never_merged, "the piece 'bell bell' is never merged"),
        (word_level, 'its model is "WordLevel"'),
    ],
)
def test_tokenizers_that_gguf_cannot_express(make: Any, message: str, tmp_path: Path) -> None:
    tokenizer = make()
    config = replace(TINY, vocab_size=tokenizer.vocab_size)
    with pytest.raises(LlucidError, match=message):
        save(Model(config, model_of(config).weights, tokenizer), tmp_path / "a.gguf", "gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "keys", "message"),
    [
        (small_ranks, {"model": "bert"}, 'model "bert" is not supported'),
        (small_ranks, {"model": None}, "no tokenizer inside; give the path of one, as in tokenizer=PATH"),
        (small_ranks, {"model": 7}, "model 7 is not supported"),
        (small_ranks, {"pre": "qwen2"}, 'pre "qwen2" is not supported: how this tokenizer splits'),
        (small_ranks, {"pre": 7}, "pre 7 is not supported"),
        (small_ranks, {"tokens": None}, "tokens is missing; expected a list of str"),
        (small_ranks, {"tokens": ["a", "a"], "token_type": [1, 1]}, "should all be different"),
        (small_ranks, {"token_type": [1]}, "a type, 1 to 6, for each"),
        (small_ranks, {"merges": None}, "merges is missing; expected a list"),
        (small_ranks, {"merges": ["ab"]}, "one that is not a pair"),
        (small_ranks, {"merges": [7]}, "merges should be a list of str and is [7]"),
        (small_ranks, {"tokens": [7], "token_type": [1]}, "tokens should be a list of str and is [7]"),
        (small_ranks, {"merges": ["a zzz"]}, 'merges has "a zzz", which is not in tokenizer.ggml.tokens'),
        (small_ranks, {"model": "none"}, "no tokenizer inside; give the path of one, as in tokenizer=PATH"),
        (small_ranks, {"bos_token_id": "x"}, 'bos_token_id should be an id and is "x"'),
        (small_sentencepiece, {"scores": [1]}, "scores should be a list of float"),
        (small_sentencepiece, {"scores": [0.0]}, "scores should be a number for each"),
        (small_sentencepiece, {"scores": [math.nan] + [0.0] * 399}, "scores should be a number for each"),
        (small_sentencepiece, {"scores": [1e300] + [0.0] * 399}, "scores should be a number for each"),
        (small_sentencepiece, {"unknown_token_id": -1}, "unknown_token_id -1 is none"),
        (
            lambda: Characters("ab"),
            {"tokens": ["b", "a"]},
            "is only supported for single ASCII characters in their order",
        ),
    ],
)
def test_invalid_keys(make: Any, keys: dict[str, Any], message: str) -> None:
    tokenizer = make()
    gguf = write_vocabulary(tokenizer, tokenizer.vocab_size)
    gguf |= {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    with pytest.raises(LlucidError, match=re.escape(message)):
        read_vocabulary({key: value for key, value in gguf.items() if value is not None})


def test_what_llama_cpp_does_not_need() -> None:
    """Scores may be missing, types undefined; of equal merges the first counts."""
    tokenizer = small_sentencepiece()
    gguf = write_vocabulary(tokenizer, tokenizer.vocab_size)
    types = [0 if kind == 1 else kind for kind in gguf["tokenizer.ggml.token_type"]]
    for text in HOSTILE.values():
        assert read_vocabulary(gguf | {"tokenizer.ggml.token_type": types}).encode(text) == tokenizer.encode(text)
    del gguf["tokenizer.ggml.scores"]
    assert read_vocabulary(gguf).decode(read_vocabulary(gguf).encode(TALE)) == TALE
    ranks = small_ranks()
    gguf = write_vocabulary(ranks, ranks.vocab_size)
    gguf["tokenizer.ggml.merges"] += gguf["tokenizer.ggml.merges"][:1]
    assert read_vocabulary(gguf).encode(TALE) == ranks.encode(TALE)


def of_another_vocabulary(name: str) -> str:
    content = json.loads(metaspace().json())
    content["added_tokens"] = []
    number = content["model"]["vocab"][name]
    return json.dumps(content).replace(f'"{name}": {number},', f'"{name[:-2]}t>": {number},')


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "tokenizer.huggingface.json cannot be read: 'int' object has no attribute 'encode'"),
        ("{", "tokenizer.huggingface.json: not a JSON file (Expecting property name"),
        ("[1]", "tokenizer.huggingface.json: expected a JSON object, found list"),
        ("[" * 10**5, "tokenizer.huggingface.json: not a JSON file (mostly empty lists or objects)"),
        ("9" * 10**5, "tokenizer.huggingface.json: not a JSON file (Exceeds the limit"),
        ("{}", "tokenizer.json cannot be read"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}', "tokenizer.json cannot be read"),
        (of_another_vocabulary("</s>"), 'it calls 2 "</t>", and tokenizer.ggml.tokens "</s>"'),
        (of_another_vocabulary("<s>"), 'it calls 1 "<t>", and tokenizer.ggml.tokens "<s>"'),
        (tokenizers.Tokenizer(tokenizers.models.BPE()).to_str(), "tokenizer.huggingface.json is of another vocabulary"),
    ],
)
def test_invalid_whole_json(value: Any, message: str) -> None:
    tokenizer = metaspace()
    gguf = write_vocabulary(tokenizer, tokenizer.vocab_size) | {WHOLE_JSON: value}
    with pytest.raises(LlucidError, match=re.escape(message)):
        read_vocabulary(gguf)


def test_byte_tokens_are_two_hex_digits() -> None:
    tokenizer = small_sentencepiece()
    gguf = write_vocabulary(tokenizer, tokenizer.vocab_size)
    at = gguf["tokenizer.ggml.tokens"].index("<0x41>")
    for wrong in ("<0x4>", "<0x041>", "<0x4G>", "<0x+1>", "<0x 1>", "<0x41> ", "A A", "<0x4\n>"):
        tokens = [*gguf["tokenizer.ggml.tokens"]]
        tokens[at] = wrong
        with pytest.raises(LlucidError):
            read_vocabulary(gguf | {"tokenizer.ggml.tokens": tokens})
        untyped = {key: value for key, value in gguf.items() if not key.endswith("token_type")}
        with pytest.raises(LlucidError, match="has 255 of the 256 bytes"):
            read_vocabulary(untyped | {"tokenizer.ggml.tokens": tokens})


def test_a_word_that_spells_a_special_token() -> None:
    """Although with this rule a word in the vocabulary becomes that one token."""
    ranks = small_ranks()
    gguf = write_vocabulary(ranks, ranks.vocab_size)
    gguf["tokenizer.ggml.tokens"] += ["zebra"]
    gguf["tokenizer.ggml.token_type"] += [3]
    found = read_vocabulary(gguf)
    assert found.special["zebra"] == ranks.vocab_size
    assert found.encode("zebra") == ranks.encode("zebra")


def test_older_files_without_types() -> None:
    tokenizer = small_sentencepiece()
    gguf = write_vocabulary(tokenizer, tokenizer.vocab_size)
    found = read_vocabulary({key: value for key, value in gguf.items() if not key.endswith("token_type")})
    for text in HOSTILE.values():
        assert found.encode(text) == tokenizer.encode(text)
    assert found.special == tokenizer.special


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama2-tokenizer.model", "llama3-tokenizer.model"])
def test_400_000_characters(name: str, data: Path) -> None:
    tokenizer = load_tokenizer(data / name)
    found = read_vocabulary(write_vocabulary(tokenizer, tokenizer.vocab_size))
    assert found.encode(LONG) == tokenizer.encode(LONG)


@pytest.mark.slow
def test_the_tokenizer_of_llama_2(data: Path) -> None:
    tokenizer = load_tokenizer(data / "llama2-tokenizer.model")
    found = read_vocabulary(write_vocabulary(tokenizer, 32_000))
    for text in HOSTILE.values():
        assert found.encode(text) == tokenizer.encode(text)
        assert found.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))


@pytest.mark.slow
@pytest.mark.parametrize(("legacy", "scheme"), [(True, "always"), (False, "first")])
def test_the_tokenizer_of_llama_2_as_transformers_saves_it(
    legacy: bool, scheme: str, data: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    shutil.copy(data / "llama2-tokenizer.model", tmp_path / "tokenizer.model")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = names | {"tokenizer_class": "LlamaTokenizer", "legacy": legacy}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
    tokenizer = load_tokenizer(tmp_path / "saved")
    assert json.loads(tokenizer.json())["pre_tokenizer"]["prepend_scheme"] == scheme
    gguf = write_vocabulary(tokenizer, 32_000)
    by_rule = read_vocabulary({key: value for key, value in gguf.items() if key != WHOLE_JSON})
    found = read_vocabulary(gguf)
    for text in HOSTILE.values():
        assert found.encode(text) == tokenizer.encode(text)
        assert by_rule.encode(text) == (tokenizer.encode(" " + text) if text else [])
        assert (by_rule.encode(text) != tokenizer.encode(text)) == text.startswith(" ")


@pytest.mark.slow
def test_the_tokenizer_of_llama_3(data: Path) -> None:
    tokenizer = load_tokenizer(data / "llama3-tokenizer.model")
    gguf = write_vocabulary(tokenizer, 128_256)
    found = read_vocabulary(gguf)
    assert (found.bos, found.eos, found.stop_ids) == (128_000, 128_001, frozenset({128_001, 128_008, 128_009}))
    assert found.special == tokenizer.special
    assert len(gguf["tokenizer.ggml.merges"]) == 280_147  # as many as Hugging Face's tokenizer.json has
    for text in HOSTILE.values():
        assert found.encode(text) == tokenizer.encode(text)


@cache
def gguf_of(name: str) -> dict[str, Any]:
    tokenizer = SMALL[name](Path())
    return write_vocabulary(tokenizer, tokenizer.vocab_size)


@settings(max_examples=40, deadline=None)
@given(seed=st.data())
@pytest.mark.parametrize("name", ["sentencepiece", "tiktoken"])
def test_hostile_vocabularies(name: str, seed: st.DataObject) -> None:
    """A changed vocabulary is refused, or it encodes and decodes."""
    gguf = gguf_of(name).copy()
    strange = st.text(max_size=8) | st.sampled_from(gguf["tokenizer.ggml.tokens"])
    for _ in range(seed.draw(st.integers(1, 3))):
        key = seed.draw(st.sampled_from([key for key in gguf if isinstance(gguf[key], list)]))
        values = [*gguf[key]]
        kind = {str: strange, int: st.integers(-1, 8), float: st.floats(width=32)}[type(values[0])]
        values[seed.draw(st.integers(0, len(values) - 1))] = seed.draw(kind)
        gguf[key] = values
    try:
        found = read_vocabulary(gguf)
        ids = found.encode(TALE + "漢字")
    except LlucidError:
        return
    assert all(0 <= token < found.vocab_size for token in ids)
    assert isinstance(found.decode(ids), str)
