"""No text becomes a special token, whatever it spells and whatever kind of tokenizer reads it."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from llucid.dialogs.templates import encode_template
from llucid.errors import LlucidError
from llucid.tokenizers import Tokenizer, load_tokenizer
from llucid.tokenizers.gguf_export import write_vocabulary
from llucid.tokenizers.gguf_vocabulary import read_vocabulary
from llucid.tokenizers.sentencepiece_model import SentencePiece
from llucid.tokenizers.tokenizer_json import JsonTokenizer, beginning_with
from tests.tokenizers.texts import TALE, sentencepiece_model, small_llama2c, small_ranks, small_sentencepiece

NAMES = ["<unk>", "<s>", "</s>", "<|eot_id|>"]
LETTERS = sorted({*"".join(NAMES), *"ab ▁"})
NAME_MERGES = [(name[:cut], name[cut]) for name in NAMES for cut in range(1, len(name))]
HALVES = sorted({name[:cut] for name in NAMES for cut in range(2, len(name))})
WORDS = [*NAMES, *LETTERS, *HALVES]
VOCABULARY = {word: number for number, word in enumerate(WORDS)}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def of(model: Any, special: list[str] = NAMES, config: dict[str, Any] | None = None, **steps: Any) -> JsonTokenizer:
    """A tokenizer of this model, with special tokens that are in the model's vocabulary."""
    library = tokenizers.Tokenizer(model)
    library.decoder = decoders.Fuse()
    for name, step in steps.items():
        setattr(library, name, step)
    library.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    return JsonTokenizer(json.loads(library.to_str()), config=config)


def merged(**settings: Any) -> Any:
    return models.BPE({word: n for n, word in enumerate([*WORDS, *BYTES])}, NAME_MERGES, **settings)


def unigram(**settings: Any) -> Any:
    rows = [(word, 0.0 if word in NAMES else -float(len(word) < 2)) for word in [*WORDS, *BYTES]]
    return models.Unigram(rows, 0, **settings)


def colliding() -> JsonTokenizer:
    """The library gives <s> the id 2 and </s> the id 3, which is also a word's."""
    content = json.loads(of(models.WordLevel({"a": 0, "b": 3}, "a"), ["<s>", "</s>"]).json())
    return JsonTokenizer(content)


def of_gguf(make: Callable[[], Tokenizer]) -> Tokenizer:
    made = make()
    return read_vocabulary(write_vocabulary(made, made.vocab_size))


FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
ROLES = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "additional_special_tokens": ["<|eot_id|>"]}
KINDS: dict[str, Callable[[], Tokenizer]] = {
    "WordLevel": lambda: of(models.WordLevel(VOCABULARY, "<unk>"), pre_tokenizer=pre_tokenizers.WhitespaceSplit()),
    "WordLevel without splits": lambda: of(models.WordLevel(VOCABULARY, "<unk>")),
    "WordPiece": lambda: of(
        models.WordPiece({**VOCABULARY, **{f"##{word}": 500 + n for n, word in enumerate(WORDS)}}, unk_token="<unk>"),
        pre_tokenizer=pre_tokenizers.WhitespaceSplit(),
        decoder=decoders.WordPiece(),
    ),
    "Unigram": lambda: of(unigram()),
    "Unigram with bytes": lambda: of(unigram(byte_fallback=True)),
    "Unigram as of SentencePiece": lambda: of(
        unigram(byte_fallback=True), pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.Metaspace()
    ),
    "BPE": lambda: of(merged(unk_token="<unk>", byte_fallback=True)),
    "BPE without unknown": lambda: of(merged()),
    "BPE of whole words": lambda: of(merged(ignore_merges=True, unk_token="<unk>")),
    "BPE that normalises": lambda: of(merged(), normalizer=normalizers.Replace("a", "<s>")),
    "special by role": lambda: of(merged(byte_fallback=True), [], ROLES),
    "colliding ids": colliding,
    "sentencepiece": small_sentencepiece,
    "sentencepiece unigram": lambda: SentencePiece(sentencepiece_model("unigram")),
    "sentencepiece of a control character": lambda: SentencePiece(sentencepiece_model(control_symbols="ж,<|eot_id|>")),
    "sentencepiece as json": lambda: JsonTokenizer(json.loads(small_sentencepiece().json())),
    "sentencepiece in gguf": lambda: of_gguf(small_sentencepiece),
    "tiktoken": small_ranks,
    "tiktoken as json": lambda: JsonTokenizer(json.loads(small_ranks().json())),
    "tiktoken in gguf": lambda: of_gguf(small_ranks),
    "llama2c": small_llama2c,
    "llama2c as json": lambda: JsonTokenizer(json.loads(small_llama2c().json())),
}
made = cache(lambda kind: KINDS[kind]())


def unknown_of(tokenizer: Tokenizer) -> set[int]:
    return {token for name, token in tokenizer.special.items() if name == "<unk>"}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_text_becomes_a_special_token(kind: str, data: st.DataObject) -> None:
    tokenizer = made(kind)
    names = [*NAMES, *tokenizer.special][:40]
    parts = st.sampled_from([*names, *HALVES, *LETTERS, "b", "ж", "é", "\n", "<|", "|>"]) | st.text(max_size=4)
    text = "".join(data.draw(st.lists(parts, max_size=8)))
    try:
        ids = tokenizer.encode(text)
    except LlucidError as error:
        assert "cannot be encoded" in str(error) or "as the special token" in str(error)  # noqa: PT017
        return
    found = {*tokenizer.special.values()}.intersection(ids)
    assert found <= unknown_of(tokenizer)
    if found:  # for a character or a word without an id
        assert kind.startswith(("Word", "Unigram", "BPE of"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_of_a_special_token_keeps_its_letters(kind: str) -> None:
    tokenizer = made(kind)
    if kind.startswith(("Word", "colliding")) or "normalises" in kind:
        return
    for name in NAMES:
        assert tokenizer.decode(tokenizer.encode(f"a{name}a")).strip() == f"a{name}a"


@pytest.mark.parametrize("kind", ["BPE", "BPE of whole words", "Unigram", "Unigram with bytes"])
def test_other_text_has_the_ids_of_the_library(kind: str) -> None:
    tokenizer = made(kind)
    library = tokenizers.Tokenizer.from_str(tokenizer.json())
    for text in ("ab", "a <| b", "ba▁b ", "<|eot"):
        assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids


def test_a_character_that_only_a_special_token_has_is_named() -> None:
    made = of(models.BPE({"a": 0, "ж": 1}, []), ["ж"], {"eos_token": "ж"})
    assert made.encode("aa") == [0, 0]
    with pytest.raises(LlucidError, match="a character that this tokenizer has only as the special token 1"):
        made.encode("aжa")


def test_a_byte_that_is_special_spells_no_text() -> None:
    plain = small_sentencepiece()
    byte = plain.ids["<0xC3>"]
    keys = write_vocabulary(plain, plain.vocab_size) | {"tokenizer.ggml.eos_token_id": byte}
    added = {byte: AddedToken("<0xC3>", special=True)}
    by_role, by_flag = ({"eos_token": "<0xC3>"}, {}), ({}, added)
    opened = [SentencePiece(sentencepiece_model(), config, (), more) for config, more in (by_role, by_flag)]
    for tokenizer in (*opened, read_vocabulary(keys)):
        assert tokenizer.special["<0xC3>"] == byte
        assert tokenizer.encode("a bell漢") == plain.encode("a bell漢")
        with pytest.raises(LlucidError, match=f"a character that this tokenizer has only as the special token {byte}"):
            tokenizer.encode("aéa")


@pytest.mark.parametrize(
    "model",
    [
        models.BPE({"a": 0, "!": 1, "a!": 2}, [("a", "!")]),
        models.BPE({"a": 0, "!": 1}, []),
        models.WordLevel({"a": 0, "!": 1, "<unk>": 2}, "<unk>"),
        models.Unigram([("a", -1.0), ("!", -2.0), ("<unk>", 0.0)], 2),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_single_character_spells_text_though_a_file_calls_it_special(model: Any) -> None:
    """As the pad token "!" of some Llama 3, in transformers."""
    made = of(model, ["!"], {"pad_token": "!"}, pre_tokenizer=pre_tokenizers.Split("a", "isolated"))
    assert made.encode("a!") == [0, 1]
    assert made.special.keys().isdisjoint("!")


@pytest.mark.parametrize("flagged", [True, False])
@pytest.mark.parametrize("mark", ["<|user|>", "none"])
def test_an_end_of_one_character_is_no_text(flagged: bool, mark: str) -> None:
    """Also in a dialogue whose template writes a token that is not marked as special."""
    template = "{% for message in messages %}" + mark + "{{ message.content }}{{ eos_token }}{% endfor %}"
    model = models.BPE(
        {"?": 0, "$": 1, "a": 2, **{letter: 3 + n for n, letter in enumerate("none")}}, [], unk_token="?"
    )
    made = of(model, ["$"] if flagged else [], {"eos_token": "$", "chat_template": template})
    content = json.loads(made.json())
    content["added_tokens"].append({"id": 90, "content": "<|user|>", "special": False, "normalized": False, **FLAGS})
    made = JsonTokenizer(content, config=made.config)
    assert made.special == {"$": 1}
    assert made.encode("a$") == [2, 0]
    assert encode_template(template, [{"role": "user", "content": "a$"}], made)[-3:] == [2, 0, 1]


def test_a_role_is_no_reason_to_lose_a_letter() -> None:
    made = of(merged(), [], {"pad_token": "a", "eos_token": "</s>"})
    assert made.decode(made.encode("a")) == "a"
    assert [*made.special] == ["</s>"]


def test_the_id_that_begins_every_text_is_special() -> None:
    content = json.loads(of(merged(), []).json()) | {"post_processor": beginning_with("<s>", 1)}
    tokenizer = JsonTokenizer(content)
    assert tokenizer.bos == 1
    assert tokenizer.special == {"<s>": 1}
    assert 1 not in tokenizer.encode("<s>")


def test_what_is_saved_is_unchanged(tmp_path: Path) -> None:
    tokenizer = made("Unigram")
    assert tokenizer.encode("<s>") != [1]
    tokenizer.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    assert [row[0] for row in content["model"]["vocab"]][:4] == NAMES
    assert load_tokenizer(tmp_path).special == tokenizer.special


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 700), max_size=12))
def test_pieces_join_to_what_is_decoded(kind: str, ids: list[int]) -> None:
    tokenizer = made(kind)
    ids = [token for token in ids if token < tokenizer.vocab_size]
    pieces = [tokenizer.piece(token) for token in ids]
    assert all(piece == b"" for token, piece in zip(ids, pieces, strict=True) if token in tokenizer.special.values())
    joined, text = b"".join(pieces).decode(errors="replace"), tokenizer.decode(ids)
    if "\ufffd" not in joined and kind != "WordPiece":  # libraries replace invalid UTF-8 differently
        assert joined.replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("kind", ["tiktoken", "tiktoken as json", "tiktoken in gguf", "sentencepiece", "llama2c"])
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="▁")))
def test_pieces_of_a_text_are_its_bytes(kind: str, text: str) -> None:
    """After the space that SentencePiece puts before a text."""
    tokenizer = made(kind)
    joined = b"".join(map(tokenizer.piece, tokenizer.encode(text)))
    space = " " if text and not kind.startswith("tiktoken") else ""
    assert joined == (space + text).encode()


def test_pieces_of_parts_of_characters() -> None:
    for tokenizer in (small_ranks(), JsonTokenizer(json.loads(small_ranks().json()))):
        assert [tokenizer.piece(token) for token in tokenizer.encode("é")] == [b"\xc3", b"\xa9"]
    assert [small_sentencepiece().piece(token) for token in small_sentencepiece().encode("漢")][-1] == b"\xa2"
    assert b"".join(map(small_llama2c().piece, small_llama2c().encode(TALE))) == b" " + TALE.encode()


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_an_end_with_spaces_in_a_gguf(kind: int) -> None:
    """No text becomes it, whatever its type."""
    size = (plain := small_sentencepiece()).vocab_size
    gguf: dict[str, Any] = write_vocabulary(plain, size) | {"tokenizer.ggml.eos_token_id": size}
    for key, value in (("tokens", "<end▁of▁turn>"), ("token_type", kind), ("scores", 0.0)):
        gguf[f"tokenizer.ggml.{key}"] = [*gguf[f"tokenizer.ggml.{key}"], value]
    found = read_vocabulary(gguf)
    assert found.eos == size
    for text in ("a <end of turn> b", "a <end▁of▁turn> b", "<end of turn>"):
        assert size not in found.encode(text)
        assert found.decode(found.encode(text)) == text.replace("▁", " ")
