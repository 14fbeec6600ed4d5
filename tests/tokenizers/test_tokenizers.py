"""Tokenizers round-trip, and transformers gives the same ids."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models

from llucid.checkpoints import Model, save
from llucid.errors import LlucidError
from llucid.tokenizers import Tokenizer, load_tokenizer
from llucid.tokenizers.byte_pairs import train_bpe
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.llama2c import Llama2cTokenizer
from llucid.tokenizers.merges import merges_of, overlaps
from llucid.tokenizers.prompts import prompt_ids
from llucid.tokenizers.steps import growth
from llucid.tokenizers.tokenizer_json import JsonTokenizer, beginning_with
from tests.checkpoints.models import model_of
from tests.configs import CONFIGS
from tests.tokenizers.texts import small_sentencepiece

HOSTILE = "The quick  brown\n\n\tfox 😀👩‍👩‍👧 é é 漢字 עברית \x00\x7f <|eot_id|> <0x41> 12345 don't\r\n ▁ Ġ \ufeff"
TALE = "One winter evening Pip the wren lost a bell. Who found the bell? The old badger's friend found it.\n" * 20


@pytest.fixture(params=["characters", "bpe"], scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Characters(HOSTILE + TALE) if request.param == "characters" else train_bpe([TALE, HOSTILE], 400)


@pytest.mark.parametrize("text", [HOSTILE, TALE, "", " ", "\n"], ids=["hostile", "tale", "empty", "space", "line"])
def test_round_trip_here_saved_and_in_transformers(tokenizer: Tokenizer, text: str, tmp_path: Path) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert type(again) is type(tokenizer)
    assert (again.encode(text), again.decode(ids), again.vocab_size) == (ids, text, tokenizer.vocab_size)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == text
    assert len(theirs) == tokenizer.vocab_size


@given(st.text())
def test_every_text_has_byte_pairs(text: str) -> None:
    assert BPE.decode(BPE.encode(text)) == text


BPE = train_bpe([TALE], 300)


def test_bpe_learns_the_words_of_its_text() -> None:
    assert BPE.vocab_size == 300
    assert len(BPE.encode(TALE)) < 0.5 * len(TALE)


def test_impossible_vocabularies() -> None:
    with pytest.raises(LlucidError, match="more than its 256 bytes"):
        train_bpe([TALE], 256)
    with pytest.raises(LlucidError, match="text is empty"):
        Characters("")


def test_an_unknown_character_is_named() -> None:
    with pytest.raises(LlucidError, match="'é' cannot be encoded"):
        Characters("abc").encode("aébc")


def test_special_tokens_are_not_found_in_text(tmp_path: Path) -> None:
    content = json.loads(BPE.json())
    special = {"content": "<|eot|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"] = [special | {"id": 300, "special": True}]
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|eot|>", "bos_token": {"content": "<|eot|>"}}')
    tokenizer = JsonTokenizer(content, tmp_path)
    assert tokenizer.special == {"<|eot|>": 300}
    assert (tokenizer.bos, tokenizer.eos, tokenizer.stop_ids, tokenizer.vocab_size) == (None, 300, {300}, 301)
    ids = tokenizer.encode("a <|eot|> b")
    assert 300 not in ids
    assert tokenizer.decode(ids) == "a <|eot|> b"
    assert tokenizer.decode([300]) == ""


def with_special(*names: str) -> dict[str, Any]:
    """The content of BPE with special tokens after its 300 ids."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": 300 + n, "content": name} | flags for n, name in enumerate(names)]
    return json.loads(BPE.json()) | {"added_tokens": added}


@pytest.mark.parametrize("make", [lambda: Characters(TALE), lambda: train_bpe([TALE], 310)])
def test_the_tokenizer_class_beside_a_llama_config(make: Any, tmp_path: Path) -> None:
    """transformers 4 takes the class from config.json's "llama" if tokenizer_config.json has none."""
    config = replace(CONFIGS["one for two"], vocab_size=310)
    tokenizer = make()
    save(Model(config, model_of(config).weights, tokenizer), tmp_path / "model")
    config_json = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert config_json["tokenizer_class"] == "PreTrainedTokenizerFast"
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert theirs("Who  found the bell?")["input_ids"] == tokenizer.encode("Who  found the bell?")
    assert theirs.decode(tokenizer.encode("the bell ?")) == "the bell ?"


@pytest.mark.parametrize(("config", "side"), [({}, "left"), ({"padding_side": "right"}, "right")], ids=str)
def test_transformers_pads_on_the_same_side(config: dict[str, str], side: str, tmp_path: Path) -> None:
    """The Llama class of transformers pads on the left if its file says nothing; the one that is written would not."""
    made = small_sentencepiece()
    (tmp_path / "a").mkdir()
    made.save(tmp_path / "a")
    file = tmp_path / "a" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "LlamaTokenizer"} | config))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "a").padding_side == side
    (tmp_path / "b").mkdir()
    load_tokenizer(tmp_path / "a").save(tmp_path / "b")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "b").padding_side == side


def test_smallest_vocabulary_with_special_tokens() -> None:
    special = ["<s>", "</s>", "<pad>"]
    with pytest.raises(LlucidError, match="bpe:999999999: expected at most 1,048,576 tokens"):  # aborts otherwise
        train_bpe(["a"], 999_999_999)
    with pytest.raises(LlucidError, match="needs more than its 259 bytes and special tokens"):
        train_bpe([TALE], 259, special)
    assert train_bpe([TALE], 260, special).vocab_size == 260


def test_old_stop_ids_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    Characters("ab").save(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": None}


BEGINNING = beginning_with("<s>", 300)
LETTERS = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
ROBERTA = LETTERS | {"type": "RobertaProcessing", "cls": ["<s>", 300], "sep": ["</s>", 301]}
ENDING = BEGINNING | {"single": BEGINNING["single"][::-1]}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize(
    ("processor", "bos"),
    [
        (None, None),
        (BEGINNING, 300),
        (ENDING, None),
        ({"type": "Sequence", "processors": [LETTERS, BEGINNING]}, 300),
        (ROBERTA, 300),
    ],
)
def test_a_prompt_begins_as_in_transformers(
    processor: dict[str, Any] | None, bos: int | None, add_bos: bool | None, named: bool, tmp_path: Path
) -> None:
    content = with_special("<s>", "</s>") | {"post_processor": processor}
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | ({"bos_token": "<s>"} if named else {})
    config |= {} if add_bos is None else {"add_bos_token": add_bos}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_tokenizer(tmp_path)
    assert ours.bos == bos
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)("a fox")["input_ids"]
    assert prompt_ids(ours, "a fox") == (theirs[:-1] if theirs[-1] in (300, 301) else theirs)


def test_a_trained_vocabulary_with_bos(tmp_path: Path) -> None:
    tokenizer = train_bpe([TALE], 310, ["<s>", "</s>"], {"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert prompt_ids(load_tokenizer(tmp_path), "a fox") == theirs("a fox")["input_ids"]
    assert theirs("a fox")["input_ids"][0] == tokenizer.bos == 0


def test_a_named_bos_that_no_text_begins_with(tmp_path: Path) -> None:
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = JsonTokenizer(with_special("<s>", "</s>"), config=config)
    assert tokenizer.bos is None
    model = model_of(replace(CONFIGS["one for two"], vocab_size=302))
    save(model._replace(tokenizer=tokenizer), tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["bos_token_id"] == 300
    assert load_tokenizer(tmp_path / "model").bos is None


def test_invalid_bos() -> None:
    nothing = BEGINNING | {"single": []}
    assert JsonTokenizer(with_special("<s>") | {"post_processor": nothing}).bos is None
    beyond = beginning_with("<s>", 301)
    with pytest.raises(LlucidError, match=r"tokenizer.json begins texts with 301, which is none of its 301 ids"):
        JsonTokenizer(with_special("<s>") | {"post_processor": beyond})


def test_an_error_of_the_library_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """A panic of its Rust prints nothing else."""
    panics = {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}
    tokenizer = JsonTokenizer(json.loads(BPE.json()) | {"normalizer": panics})
    with pytest.raises(LlucidError, match="the text cannot be encoded: index out of bounds"):
        tokenizer.encode("a")
    odd = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer = JsonTokenizer(json.loads(BPE.json()) | {"pre_tokenizer": odd})
    with pytest.raises(LlucidError, match=r"the text cannot be encoded: .*retry-limit"):
        tokenizer.encode("a" * 50 + "b")
    strip = {"type": "Strip", "content": "a", "start": 1, "stop": 1}
    with pytest.raises(LlucidError, match="the tokens cannot be decoded"):
        JsonTokenizer(json.loads(BPE.json()) | {"decoder": strip}).decode(BPE.encode("a"))
    length = {"type": "FixedLength", "length": 0}
    with pytest.raises(LlucidError, match="the text cannot be encoded: chunk size"):
        JsonTokenizer(json.loads(BPE.json()) | {"pre_tokenizer": length}).encode("a")
    flags = dict.fromkeys(("special", "lstrip", "rstrip", "single_word"), False)
    spaces = flags | {"id": BPE.vocab_size, "content": "  ", "normalized": True}
    before = flags | {"id": BPE.vocab_size + 1, "content": "x", "normalized": False, "rstrip": True}
    after = spaces | {"normalized": False, "lstrip": True}
    with pytest.raises(LlucidError, match="the text cannot be encoded: AddedVocabulary bad split"):
        JsonTokenizer(json.loads(BPE.json()) | {"added_tokens": [after, before]}).encode("x   é")
    everywhere = {"type": "Replace", "pattern": {"String": ""}, "content": "x"}
    for normalizer in (everywhere, {"type": "Prepend", "prepend": ""}):
        whole = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, normalizer]}
        with pytest.raises(LlucidError, match="the text cannot be encoded: index out of bounds"):
            JsonTokenizer(json.loads(BPE.json()) | {"normalizer": whole}).encode("ab cd.")
    nothing = BEGINNING | {"special_tokens": {}}
    with pytest.raises(LlucidError, match="cannot be read"):
        JsonTokenizer(with_special("<s>") | {"post_processor": nothing})
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("generation", "config", "stops"),
    [
        (None, None, {300}),
        ('{"eos_token_id": 301}', None, {300, 301}),
        ('{"eos_token_id": [300, 301]}', '{"eos_token_id": 302}', {300, 301, 302}),
        (None, '{"eos_token_id": [302]}', {300, 302}),
        ('{"eos_token_id": [301], "temperature": 0.6,, }', '{"eos_token_id": 302}', {300, 302}),
        ("\x00", "[]", {300}),
        ('{"eos_token_id": [true, "x", null, 301.0, -1, 999, [301]]}', '{"eos_token_id": null}', {300}),
        ('{"eos_token_id": [2, 301]}', None, {300, 301}),
    ],
)
def test_stop_ids(tmp_path: Path, generation: str | None, config: str | None, stops: set[int]) -> None:
    """All that the folder names, unless the file is not JSON, except ordinary tokens (here 2)."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(with_special("<e>", "<f>", "<g>")))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<e>"}')
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (tmp_path / name).write_text(content)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos, tokenizer.stop_ids) == (300, stops)
    tokenizer.save(tmp_path / "..")
    assert load_tokenizer(tmp_path / "..").stop_ids == stops


def test_truncation_and_padding_are_ignored() -> None:
    tokenizer = tokenizers.Tokenizer.from_str(BPE.json())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=10_000)
    assert JsonTokenizer(json.loads(tokenizer.to_str())).encode(TALE) == BPE.encode(TALE)


def test_lone_surrogates_are_replaced() -> None:
    assert BPE.encode("a\ud800b") == BPE.encode("a\ufffdb")
    assert BPE.encode("\ud83d\ude80") == BPE.encode("🚀")


def test_an_unknown_word() -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0}, "<unk>"))
    with pytest.raises(LlucidError, match="cannot be encoded"):
        JsonTokenizer(json.loads(words.to_str())).encode("b")


@pytest.mark.parametrize(
    ("prefix", "right"), [("##", "b"), ("##", "b##"), ("a", "▁"), ("▁", "▁b"), (7, "b"), (["#"], "b")]
)
def test_merges_without_the_prefix_of_a_subword_are_refused(prefix: Any, right: str) -> None:
    """The library removes the prefix unchecked, and aborts the process if it ends within a character."""
    model = {"type": "BPE", "vocab": {"a": 0, right: 1, "a" + right: 2}, "continuing_subword_prefix": prefix}
    for merges in ([["a", right]], [f"a {right}"]):
        with pytest.raises(LlucidError, match=r"tokenizer.json cannot be read"):
            JsonTokenizer(with_special() | {"model": model | {"merges": merges}})
    model |= {"vocab": {"a": 0, "##b": 1, "ab": 2}, "continuing_subword_prefix": "##", "merges": [["a", "##b"]]}
    plain = with_special() | {"model": model, "pre_tokenizer": None}
    assert JsonTokenizer(plain).encode("ab") == [2]


STRIP = {"strip_left": True, "strip_right": True}
BERT = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True}
EMPTY_TABLE = base64.b64encode((2048).to_bytes(4, "little") + bytes(2048)).decode()


@pytest.mark.parametrize("number", [2**29, 2**31 - 1, 2**64, -1, 1.5, True, None, "1"])
def test_ids_are_bounded_by_the_size_of_the_file(number: Any) -> None:
    """The library allocates memory for each id up to the largest: 2 GB for 2²⁹."""
    words = {"type": "WordLevel", "vocab": {"a": 0, "b": number}, "unk_token": "a"}
    for content in (with_special() | {"model": words}, with_special("<s>")):
        content["added_tokens"] = [added | {"id": number} for added in content["added_tokens"]]
        with pytest.raises(LlucidError, match=r"its \d+ ids should be whole numbers below"):
            JsonTokenizer(content)


@pytest.mark.parametrize("kind", ["normalizer", "decoder"])
def test_texts_are_not_made_very_much_longer(kind: str) -> None:
    """Twelve replacements of one letter by ten of them make a text 10¹² times as long."""
    steps = [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}] * 12
    empty = [{"type": "Replace", "pattern": {pattern: ""}, "content": "a"} for pattern in ("Regex", "String")] * 20
    forms = [{"type": "Replace", "pattern": {"String": "\u0644"}, "content": "\ufdfa"}, {"type": "NFKD"}] * 9
    table = base64.b64encode(bytes([2, 0, 0, 0, *b"xx", *b"a\0", *b"b" * 400, 0])).decode()
    mapped = [{"type": "Precompiled", "precompiled_charsmap": table}] * 2
    long = [{"type": "Prepend", "prepend": "a" * 10_000}]
    both = [steps, [{"type": "Sequence", f"{kind}s": steps}] * 2, empty, [LETTERS] * 40]
    for chain in [*both, forms, mapped, long] if kind == "normalizer" else both:
        with pytest.raises(LlucidError, match=rf"its {kind} makes texts [\d.]+(e[+]\d+)? times as long"):
            JsonTokenizer(with_special() | {kind: {"type": "Sequence", f"{kind}s": chain}})


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("normalizer", [{"pattern": {"String": "a"}, "content": "a" * 100}] * 4),
        ("normalizer", [{"prepend": "a" * 99}] * 4),
        ("decoder", [{"pattern": {"String": "a"}, "content": "a" * 100}] * 4),
    ],
)
def test_steps_without_a_type_count(kind: str, steps: list[Any]) -> None:
    """The library reads such older forms, too."""
    for one in ({"type": "Sequence", f"{kind}s": steps}, {f"{kind}s": steps}):
        with pytest.raises(LlucidError, match=rf"its {kind} makes texts 1e[+]08 times as long|did not match any"):
            JsonTokenizer(with_special() | {kind: one})
    with pytest.raises(LlucidError, match="makes texts"):
        JsonTokenizer(with_special() | {kind: {"type": "Sequence", f"{kind}s": steps}})


@pytest.mark.parametrize("parts", [10_000, 20])
def test_a_post_processor_does_not_make_texts_very_much_longer(parts: int) -> None:
    """As many special tokens as it names, times the ids of each; and the text itself, each time that it names it."""
    special = [{"SpecialToken": {"id": "x", "type_id": 0}}] * parts
    texts = [{"Sequence": {"id": letter, "type_id": 0}} for letter in "AB"]
    named = {"x": {"id": "x", "ids": [0] * 10_000, "tokens": ["a"] * 10_000}}
    step = {"type": "TemplateProcessing", "pair": texts, "special_tokens": named}
    for content in (step | {"single": special}, step | {"single": texts[:1] * 100}):
        several = {"type": "Sequence", "processors": [content] * 3}
        with pytest.raises(LlucidError, match=r"its post_processor makes texts [\d.]+(e[+]\d+)? times as long"):
            JsonTokenizer(with_special() | {"post_processor": several})


def test_very_many_special_tokens_without_ids() -> None:
    """Each takes far more time and memory than its name has letters."""
    for key in ("additional_special_tokens", "extra_special_tokens"):
        with pytest.raises(LlucidError, match="99,999 special tokens are more than any model has"):
            JsonTokenizer(with_special(), config={key: [f"<{number}>" for number in range(99_999)]})


def test_both_steps_before_the_model_count() -> None:
    many = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 99}
    twice = {"type": "Sequence", "pretokenizers": [LETTERS] * 2}
    JsonTokenizer(with_special() | {"normalizer": many, "pre_tokenizer": LETTERS})
    with pytest.raises(LlucidError, match="its pre_tokenizer makes texts 396 times as long"):
        JsonTokenizer(with_special() | {"normalizer": many, "pre_tokenizer": twice})


def test_a_text_is_not_made_far_longer() -> None:
    """The library would take 150 bytes for each letter, and the third power of a word's length for some models."""
    many = {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 99}}
    tokenizer = JsonTokenizer(with_special() | many)
    assert len(tokenizer.encode("a b")) > 99
    tokenizer.encode("b" * 10_000 + "a" * 999)
    with pytest.raises(LlucidError, match="normalizer makes the text more than 10 times as long"):
        tokenizer.encode("b" * 10_000 + "a" * 2000)
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    tokens = [{"id": 9999, "content": "a" * 20_000, **added}]
    JsonTokenizer(with_special() | {"added_tokens": tokens})
    with pytest.raises(LlucidError, match="normalizer makes the text more than 10 times as long"):
        JsonTokenizer(with_special() | many | {"added_tokens": tokens})
    words = {
        "type": "WordPiece",
        "vocab": {"a": 0, "[UNK]": 1},
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
    }
    JsonTokenizer(with_special() | {"model": words | {"max_input_chars_per_word": 100}})
    with pytest.raises(LlucidError, match="its words may have more than 256 characters"):
        JsonTokenizer(with_special() | {"model": words | {"max_input_chars_per_word": 10**9}})
    pieces = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["q" * 256, -1.0]]}
    JsonTokenizer(with_special() | {"model": pieces})
    with pytest.raises(LlucidError, match="it has a piece of more than 256 characters"):
        JsonTokenizer(with_special() | {"model": pieces | {"vocab": [["<unk>", 0.0], ["q" * 257, -1.0]]}})


def test_an_added_token_that_vanishes_is_refused() -> None:
    """The library may look for it forever: U+200B, by BERT's normalizer, in a text with the beginning of another."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    for normalizer, name in (({"type": "StripAccents"}, "\u0301"), ({"type": "Strip", **STRIP}, " "), (BERT, "\u200b")):
        content = with_special() | {"normalizer": normalizer}
        content["added_tokens"].append({"id": 9999, "content": name, **flags})
        with pytest.raises(LlucidError, match=re.escape(f"its normalizer makes the added token {name!r} empty")):
            JsonTokenizer(content)
        content["added_tokens"][-1]["normalized"] = False
        JsonTokenizer(content)


@pytest.mark.parametrize("key", ["unk_token", "continuing_subword_prefix", "end_of_word_suffix"])
def test_what_a_model_copies_for_each_piece_is_short(key: str) -> None:
    model = with_special()["model"] | {"merges": [], key: "#" * 257}
    with pytest.raises(LlucidError, match="it has a piece of more than 256 characters"):
        JsonTokenizer(with_special() | {"model": model})


def test_a_table_that_is_cut_off_is_refused() -> None:
    """The library reserves as much memory as it says, and aborts where there is less."""
    table = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff" * 8).decode()}
    for step in (table, {"type": "Sequence", "normalizers": [table]}):
        with pytest.raises(LlucidError, match=r"tokenizer.json cannot be read: a table of its normalizer is cut off"):
            JsonTokenizer(with_special() | {"normalizer": step})


@pytest.mark.parametrize("first", [{"type": "NFKC"}, {"type": "Precompiled", "precompiled_charsmap": EMPTY_TABLE}])
def test_normal_forms_and_tables_hide_no_growth(first: dict[str, str]) -> None:
    """A table may have no text; normal forms make 18 characters of U+FDFA, also in an added token."""
    longer = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
    steps = {"type": "Sequence", "normalizers": [first, longer, longer]}
    with pytest.raises(LlucidError, match=r"its normalizer makes texts 1e[+]04 times as long"):
        JsonTokenizer(with_special() | {"normalizer": steps})
    tokenizer = JsonTokenizer(with_special() | {"normalizer": {"type": "NFKC"}})
    assert tokenizer.encode("\ufdfa") == tokenizer.encode(normalize("NFKC", "\ufdfa"))
    with pytest.raises(LlucidError, match="normalizer makes the text more than 10 times as long"):
        tokenizer.encode("\ufdfa" * 2000)
    content = with_special() | {"normalizer": {"type": "NFKC"}}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    content["added_tokens"].append({"id": 9999, "content": "\ufdfa" * 2000, **flags})
    JsonTokenizer(content)
    content["added_tokens"][-1]["normalized"] = True
    with pytest.raises(LlucidError, match="normalizer makes the text more than 10 times as long"):
        JsonTokenizer(content)


def test_normal_forms_leave_their_own_result_as_it_is() -> None:
    forms = [{"type": kind} for kind in ("NFKC", "Lowercase", "NFD", "NFKD")] * 9
    content = with_special() | {"normalizer": {"type": "Sequence", "normalizers": forms}}
    assert JsonTokenizer(content).tokenizer.normalizer.normalize_str("\ufdfa" * 9) == normalize("NFKD", "\ufdfa" * 9)
    assert growth([*forms, {"type": "Replace", "pattern": {"String": " "}, "content": "_"}]) == 1


def test_steps_are_few() -> None:
    """Each is applied to each added token when the file is opened."""
    for kind, step in (("normalizer", {"type": "NFKD"}), ("pre_tokenizer", {"type": "Whitespace"})):
        name = f"{kind}s".replace("_", "")
        steps = {"type": "Sequence", name: [step] * 101}
        with pytest.raises(LlucidError, match=rf"tokenizer.json cannot be read: its {kind} has 101 steps"):
            JsonTokenizer(with_special() | {kind: {"type": "Sequence", name: [steps]}})


def test_texts_of_pre_tokenizers_are_not_made_very_much_longer() -> None:
    steps = {"type": "Sequence", "pretokenizers": [LETTERS] * 40}
    with pytest.raises(LlucidError, match=r"its pre_tokenizer makes texts 3.02e[+]23 times as long"):
        JsonTokenizer(with_special() | {"pre_tokenizer": steps})


def test_merges_are_bounded_by_the_size_of_the_vocabulary() -> None:
    """Of pieces q, qq, qqq and so on, they grow with the third power of the number of pieces."""
    many = {"q" * n: n for n in range(1, 1500)}
    with pytest.raises(LlucidError, match="too many long pieces that contain one another"):
        merges_of(many)
    assert len(merges_of({"q" * n: n for n in range(1, 100)})) == 99 * 98 // 2
    assert merges_of({"q" * 10**6: 0, "q": 1, "qq": 2}) == [("q", "q")]
    tokenizer = Llama2cTokenizer([b"<unk>", b"<s>", b"</s>", *(piece.encode() for piece in many)], [0.0] * 1502)
    with pytest.raises(LlucidError, match="too many long pieces"):
        tokenizer.json()
    with pytest.raises(LlucidError, match="too many long pieces of equal score"):
        next(overlaps({"q" * 40_000: 0.0, "r" * 40_000: 0.0}))


def test_the_merges_of_a_vocabulary() -> None:
    """The best piece first; of equal pieces, the longest left part first."""
    order = {"a": 0, "b": 0, "aa": 2, "aaa": 2, "ab": 1, "ac": 0, "abb": 3.5}
    assert merges_of(order) == [("a", "b"), ("aa", "a"), ("a", "aa"), ("a", "a"), ("ab", "b")]
    assert merges_of({b"x": 1, b"y": 0, b"xy": 2}) == [(b"x", b"y")]
