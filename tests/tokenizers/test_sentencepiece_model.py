"""SentencePiece models give the library's ids; text that spells `<s>` is text."""

import json
import random
import struct
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from llucid.checkpoints import convert, load, save
from llucid.errors import LlucidError
from llucid.tokenizers import load_tokenizer
from llucid.tokenizers.comparison import first_difference, json_difference, text_difference
from llucid.tokenizers.gguf_export import write_vocabulary
from llucid.tokenizers.gguf_vocabulary import read_vocabulary
from llucid.tokenizers.llama2c_export import to_llama2c
from llucid.tokenizers.protobuf import field, fields, varint
from llucid.tokenizers.sentencepiece_model import (
    CHARACTER_MAP,
    CONTROL,
    NORMALIZER,
    PIECE_SCORE,
    PIECE_TEXT,
    PIECES,
    USER_DEFINED,
    SentencePiece,
)
from llucid.tokenizers.tokenizer_json import JsonTokenizer
from tests.checkpoints.models import model_of
from tests.configs import CONFIGS
from tests.tokenizers.texts import HOSTILE, LONG, MARK, TALE, any_text, sentencepiece_model, small_sentencepiece


@pytest.fixture(scope="module")
def llama2(data: Path) -> SentencePiece:
    tokenizer = load_tokenizer(data / "llama2-tokenizer.model")
    assert isinstance(tokenizer, SentencePiece)
    return tokenizer


@pytest.fixture(scope="module")
def library(data: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(data / "llama2-tokenizer.model"))


@pytest.fixture(scope="module")
def saved(llama2: SentencePiece, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama2")
    llama2.save(folder)
    return folder


@pytest.fixture(scope="module")
def opened(saved: Path) -> JsonTokenizer:
    tokenizer = load_tokenizer(saved)
    assert isinstance(tokenizer, JsonTokenizer)
    return tokenizer


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (127, "7f"),
        (128, "8001"),
        (150, "9601"),
        (16_383, "ff7f"),
        (16_384, "808001"),
        (2**63, "80" * 9 + "01"),
    ],
)
def test_varints(value: int, encoded: str) -> None:
    """150 is the example of https://protobuf.dev/programming-guides/encoding."""
    assert field(1, value) == b"\x08" + bytes.fromhex(encoded)
    assert list(fields(field(1, value) + field(16, b"ab"))) == [(1, value), (16, b"ab")]


@pytest.mark.parametrize("text", [*HOSTILE.values(), MARK, LONG], ids=[*HOSTILE, "mark", "long"])
def test_ids_equal_those_of_the_library_and_of_the_saved_tokenizer(
    llama2: SentencePiece, library: sentencepiece.SentencePieceProcessor, opened: JsonTokenizer, text: str
) -> None:
    ids = library.encode(text)
    assert llama2.encode(text) == ids
    assert opened.encode(text) == ids
    assert llama2.decode(ids) == opened.decode(ids) == text.replace("▁", " ")


@settings(max_examples=200, deadline=None)
@given(text=any_text)
def test_ids_of_any_text_equal_those_of_the_library(
    llama2: SentencePiece, library: sentencepiece.SentencePieceProcessor, opened: JsonTokenizer, text: str
) -> None:
    assert llama2.encode(text) == library.encode(text) == opened.encode(text)


def test_known_ids(llama2: SentencePiece) -> None:
    assert llama2.encode("I believe the meaning of life is") == [306, 4658, 278, 6593, 310, 2834, 338]
    known = [3439, 17632, 1925, 29892, 278, 6368, 310, 14215, 537, 5922, 393, 29871]
    assert llama2.encode("Simply put, the theory of relativity states that ") == known


def test_transformers_opens_the_saved_tokenizer(llama2: SentencePiece, saved: Path, tmp_path: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(saved)
    for text in HOSTILE.values():
        ids = llama2.encode(text)
        assert theirs(text, split_special_tokens=True, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert theirs("a")["input_ids"] == [1, *llama2.encode("a")]
    # The class of the original would ignore our normalizer.
    SentencePiece(llama2.model, {"tokenizer_class": "LlamaTokenizer"}).save(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [again.encode(text) for text in HOSTILE.values()] == [theirs.encode(text) for text in HOSTILE.values()]
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (1, 2, 32000)
    assert not (saved / "generation_config.json").exists()


def test_the_special_ids(llama2: SentencePiece, opened: JsonTokenizer) -> None:
    for tokenizer in (llama2, opened):
        assert tokenizer.special == {"<unk>": 0, "<s>": 1, "</s>": 2}
        assert (tokenizer.vocab_size, tokenizer.bos, tokenizer.eos, tokenizer.stop_ids) == (32000, 1, 2, {2})


@settings(deadline=None)
@given(text=any_text)
def test_round_trip_of_a_small_tokenizer(text: str) -> None:
    ids = small_sentencepiece().encode(text)
    assert all(token > 2 for token in ids)
    assert small_sentencepiece().decode(ids) == text.replace("▁", " ")
    assert SMALL_SAVED.encode(text) == ids


SMALL_SAVED = JsonTokenizer(json.loads(small_sentencepiece().json()))


def test_special_tokens_have_no_text() -> None:
    tokenizer = small_sentencepiece()
    ids = tokenizer.encode("the bell")
    assert tokenizer.decode([1, *ids, 0, 2, 10**6, *ids]) == "the bell the bell"
    assert tokenizer.decode([1]) == tokenizer.decode([]) == ""


@pytest.mark.parametrize(
    ("config", "bos", "eos"),
    [
        ({}, 1, 2),
        ({"bos_token": "</s>", "eos_token": {"content": "<unk>"}}, 2, 0),
        ({"bos_token": "<|none|>", "eos_token": "<|none|>"}, 1, 2),
        ({"add_bos_token": False, "eos_token": None}, None, 2),
    ],
)
def test_roles_in_tokenizer_config(config: dict[str, object], bos: int | None, eos: int) -> None:
    """If it names a piece of the model; otherwise the model's own roles hold."""
    tokenizer = SentencePiece(sentencepiece_model(), config)
    assert (tokenizer.bos, tokenizer.eos) == (bos, eos)


def test_lone_surrogates_are_replaced() -> None:
    for tokenizer in (small_sentencepiece(), SMALL_SAVED):
        assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")


def test_a_model_without_dummy_prefix() -> None:
    tokenizer = SentencePiece(sentencepiece_model(add_dummy_prefix=False))
    again = JsonTokenizer(json.loads(tokenizer.json()))
    for text in (TALE, " a bell", "bell"):
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None, max_examples=30)
@given(text=any_text | st.text("a ▁b\n", max_size=12))
@pytest.mark.parametrize("prefix", [True, False])
def test_a_model_that_collapses_spaces(prefix: bool, text: str) -> None:
    """As OpenLLaMA's."""
    tokenizer = SentencePiece(sentencepiece_model(remove_extra_whitespaces=True, add_dummy_prefix=prefix))
    again = JsonTokenizer(json.loads(tokenizer.json()))
    ids = tokenizer.encode(text)
    assert again.encode(text) == ids
    space, wren = tokenizer.ids["▁"], tokenizer.ids["▁wren"]
    for more in (ids, [space, *ids], [space, space, *ids, wren, space], [1, wren, *ids, space, space, wren]):
        assert again.decode(more) == tokenizer.decode(more)
    assert again.piece(space) == b" "


def test_models_that_a_tokenizer_json_cannot_express() -> None:
    with pytest.raises(LlucidError, match="does not merge pairs"):
        SentencePiece(sentencepiece_model("unigram")).json()
    with pytest.raises(LlucidError, match="normalises characters"):
        SentencePiece(sentencepiece_model(normalization_rule_name="nmt_nfkc")).json()
    with pytest.raises(LlucidError, match="puts the space behind a word"):
        SentencePiece(sentencepiece_model(treat_whitespace_as_suffix=True)).json()
    with pytest.raises(LlucidError, match="no field is numbered 15 and of wire type 3"):
        SentencePiece(sentencepiece_model() + b"\x7b\x7c")  # a deprecated wire type, which the library skips


def test_write_and_read(tmp_path: Path) -> None:
    small_sentencepiece().write(tmp_path / "tokenizer.model")
    again = load_tokenizer(tmp_path)
    assert isinstance(again, SentencePiece)
    assert again.model == sentencepiece_model()


def test_fields_of_a_message() -> None:
    message = b"\x08\x96\x01" + b"\x12\x07testing" + b"\x1d\x00\x00\x80\x3f" + b"\x21" + b"8 bytes!"
    assert list(fields(message)) == [(1, 150), (2, b"testing"), (3, b"\x00\x00\x80\x3f"), (4, b"8 bytes!")]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"\x08", "a number is cut off"),
        (b"\x08" + b"\xff" * 20, "a number is cut off"),
        (b"\x08" + b"\x80" * 10 + b"\x00", "a number is cut off"),  # a varint has at most ten bytes
        (b"\x12\xff\xff\xff\xff\x7fab", "a field of 34359738367 bytes is cut off"),
        (b"\x1d\x00\x00", "a field of 4 bytes is cut off"),
        (b"\x08\x00\x19" + bytes(7), "a field of 8 bytes is cut off"),
        (b"\x0b", "no field is numbered 1 and of wire type 3"),
        (b"\x00\x00", "no field is numbered 0"),
        (varint((1 << 32) + 10) + b"\x00", "no field is numbered 536870913 and of wire type 2"),
    ],
)
def test_truncated_messages(message: bytes, says: str) -> None:
    with pytest.raises(LlucidError, match=says):
        list(fields(message))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (bytes([PIECES << 3 | 1]) + b"8 bytes!", "it has 401 pieces, of which the library reads 400"),
        (field(999, 1) * 65, "it has more than 64 fields that are not pieces"),
    ],
    ids=["another type", "many"],
)
def test_fields_that_the_library_ignores(more: bytes, says: str) -> None:
    with pytest.raises(LlucidError, match=says):
        SentencePiece(sentencepiece_model() + more, {"eos_token": "▁be"})


SYMBOLS = ("\n", "0,1,2", "<|im_start|>,<|im_end|>", "▁▁,▁▁▁▁", "▁<PRE>,▁<SUF>", "  ,    ", "bell,e,the", "b c", "▁▁▁")


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("symbols", SYMBOLS)
def test_symbols_of_a_model(symbols: str, prefix: bool, tmp_path: Path) -> None:
    """Found in a text as by the library, which puts no space after them; as a tokenizer.json or not at all."""
    model = sentencepiece_model(user_defined_symbols=symbols, add_dummy_prefix=prefix)
    model += field(
        PIECES, field(PIECE_TEXT, "▁?".encode())
    )  # with the score of symbols, as the first learned piece has
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", "eos_token": "<|end|>"}))
    mixed = "x ".join(part for symbol in symbols.split(",") for part in (symbol, symbol.replace("▁", " ")))
    texts = [*HOSTILE.values(), MARK, mixed, symbols.split(",")[0], "a ?  ?   ?"]
    for tokenizer in (SentencePiece(model), load_tokenizer(tmp_path)):
        for text in texts:
            assert tokenizer.encode(text) == library.encode(text)
            assert tokenizer.decode(library.encode(text)) == library.decode(library.encode(text))
    try:
        again = JsonTokenizer(json.loads(SentencePiece(model).json()))
    except LlucidError as error:
        assert symbols in SYMBOLS[2:7]
        assert str(error).endswith("in a text before it merges, and puts no space after it")  # noqa: PT017
    else:
        same = all(again.encode(text) == library.encode(text) for text in texts)
        assert same == (symbols != "▁▁▁")  # which no two symbols join to
        assert same == (text_difference(SentencePiece(model), again) is None)


@pytest.fixture(scope="module")
def tied() -> bytes:
    return tied_model()


def tied_model() -> bytes:
    """A model with pieces of the same score, as Chinese Llamas appended them to Llama 2's."""
    letters = "我们是的"
    pieces = [one + two for one in letters for two in letters] + ["我们是", "们是的", "的我", "是我们的"]
    rows = [field(PIECES, field(PIECE_TEXT, piece.encode())) for piece in dict.fromkeys([*letters, *pieces])]
    return sentencepiece_model() + b"".join(rows)


def tied_texts() -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices("我们是的 ", k=12)) for _ in range(100)]


TIED = {
    "plain": ({}, {}),
    "an added token": ({}, {"[X]": 0}),
    "special tokens": ({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}, {}),
    "no space after special tokens": ({"legacy": False, "chat_template": "{{ messages }}"}, {}),
}


@pytest.mark.parametrize(("config", "added"), TIED.values(), ids=TIED)
def test_equally_good_merges(
    config: dict[str, Any], added: dict[str, int], tied: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The leftmost is first, however the model is opened, and when it was saved. A `tokenizer.json` would differ, which
    saving says once."""
    library = sentencepiece.SentencePieceProcessor(model_proto=tied)
    (tmp_path / "tokenizer.model").write_bytes(tied)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "added_tokens.json").write_text(json.dumps(dict.fromkeys(added, library.vocab_size())))
    tokenizer = load_tokenizer(tmp_path)
    for text in tied_texts():
        text = text.lstrip()
        assert tokenizer.encode(text) == library.encode(text)
    model = model_of(replace(CONFIGS["one for two"], vocab_size=tokenizer.vocab_size))._replace(tokenizer=tokenizer)
    for out in ("a", "b"):
        save(model, tmp_path / out)
    says = "make a tokenizer.json: a tokenizer.json would give other ids: the ids of"
    assert capsys.readouterr().err.count(says) == 1
    convert(tmp_path / "a", tmp_path / "c", "huggingface")
    for out in ("a", "b", "c"):
        again = load_tokenizer(tmp_path / out)
        assert (again.vocab_size, again.special) == (tokenizer.vocab_size, tokenizer.special)
        assert first_difference(tokenizer, again) is None
        assert all(again.encode(text) == tokenizer.encode(text) for text in tied_texts())


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"kind": "unigram"}, "it does not merge pairs"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it normalises characters"),
        ({"treat_whitespace_as_suffix": True}, "it puts the space behind a word"),
        ({"user_defined_symbols": "<turn>"}, "it finds '<turn>' in a text before it merges"),
    ],
)
def test_a_model_that_no_tokenizer_json_expresses_is_kept(
    choice: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = SentencePiece(sentencepiece_model(**choice))
    model = model_of(replace(CONFIGS["one for two"], vocab_size=tokenizer.vocab_size, norm_eps=1e-5, rope_theta=1e4))
    save(model._replace(tokenizer=tokenizer), tmp_path / "a")
    assert (
        f"make a tokenizer.json: a tokenizer.json cannot express this SentencePiece model: {reason}"
        in capsys.readouterr().err
    )
    for format, out in (("huggingface", "b"), ("llama2c", "c/a.bin"), ("meta", "d")):
        convert(tmp_path / "a", tmp_path / out, format)
        again = load_tokenizer((tmp_path / out).parent if format == "llama2c" else tmp_path / out)
        assert isinstance(again, SentencePiece)
        assert again.model == tokenizer.model


def test_saving_refuses_other_ids(tied: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every format, before anything is written."""
    config = {"legacy": False, "chat_template": "{{ messages }}"}
    tokenizer = SentencePiece(tied, config)
    model = model_of(replace(CONFIGS["one for two"], vocab_size=tokenizer.vocab_size))._replace(tokenizer=tokenizer)
    reason = r"llama\.cpp's rules give other ids, and a tokenizer\.json would .*; \"legacy\": true in tokenizer_config"
    with pytest.raises(LlucidError, match=reason):
        save(model, tmp_path / "a.gguf", "gguf")
    as_llama_cpp = model._replace(tokenizer=SentencePiece(tied, config | {"legacy": True}))
    save(as_llama_cpp, tmp_path / "b.gguf", "gguf")
    for module in ("sentencepiece_model", "gguf_export"):  # as if the difference were not known
        monkeypatch.setattr(f"llucid.tokenizers.{module}.json_difference", lambda tokenizer: None)
    for format, out in (("huggingface", "a"), ("gguf", "a.gguf")):
        with pytest.raises(LlucidError, match=f"{tmp_path / out}: not written, since the tokenizer would change: the "):
            save(model, tmp_path / out, format)
    assert [path.name for path in tmp_path.iterdir()] == ["b.gguf"]


def test_a_model_without_bos_is_saved_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one whose files, such as GGUF's, say so in another way than tokenizer_config.json. And nothing is written
    elsewhere, where there may be no room."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    tokenizer = SentencePiece(sentencepiece_model(), {"add_bos_token": False})
    tokenizer.config = {}
    config = replace(CONFIGS["one for two"], vocab_size=tokenizer.vocab_size, norm_eps=1e-5, rope_theta=1e4)
    model = model_of(config)._replace(tokenizer=tokenizer)
    for format, out in (("huggingface", "a"), ("meta", "b"), ("llama2c", "c/a.bin"), ("gguf", "d.gguf")):
        save(model, tmp_path / out, format)
        again = load(tmp_path / out).tokenizer
        assert again is not None
        assert again.bos is None
        assert first_difference(tokenizer, again) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d.gguf"]


def test_a_second_end_of_texts_is_kept(tmp_path: Path) -> None:
    """Which only generation_config.json names; in llama2.c's format the SentencePiece model is kept for it."""
    tokenizer = SentencePiece(sentencepiece_model(user_defined_symbols="<stop>"), {}, {2, 3})
    assert tokenizer.stop_ids == {2, 3}
    config = replace(CONFIGS["one for two"], vocab_size=tokenizer.vocab_size, norm_eps=1e-5, rope_theta=1e4)
    for format, out in (("huggingface", "a"), ("meta", "b"), ("llama2c", "c/a.bin")):
        save(model_of(config)._replace(tokenizer=tokenizer), tmp_path / out, format)
        again = load(tmp_path / out).tokenizer
        assert again is not None
        assert again.stop_ids == tokenizer.stop_ids


def test_equally_good_merges_that_a_space_before_the_text_hides() -> None:
    """It joins the first letter, which is then in no other merge."""
    letters = [field(PIECE_TEXT, text.encode()) + score(-99) for text in "是我们"]
    for pairs in (("我们", "们是"), ("们是", "我们")):
        pieces = [*letters, *(field(PIECE_TEXT, pair.encode()) + score(-50) for pair in pairs)]
        pieces.append(field(PIECE_TEXT, "▁我".encode()) + score(-1))
        tokenizer = SentencePiece(sentencepiece_model() + b"".join(field(PIECES, piece) for piece in pieces))
        again = JsonTokenizer(json.loads(tokenizer.json()))
        assert again.encode("我们是") == tokenizer.encode("我们是")
        assert (json_difference(tokenizer) is None) == (again.encode("\n我们是") == tokenizer.encode("\n我们是"))
    assert json_difference(tokenizer)


def score(number: float) -> bytes:
    return varint(PIECE_SCORE << 3 | 5) + struct.pack("<f", number)


def test_equally_good_merges_in_llama2c(tied: bytes, tmp_path: Path) -> None:
    """A `tokenizer.bin` is saved for transformers as a SentencePiece model."""
    tokenizer = to_llama2c(SentencePiece(tied))
    model = model_of(replace(CONFIGS["one for two"], vocab_size=tokenizer.vocab_size))._replace(tokenizer=tokenizer)
    tokenizer.config = {"chat_template": "{{ messages }}"}
    save(model, tmp_path / "a")
    again = load_tokenizer(tmp_path / "a" / "tokenizer.model")
    assert first_difference(tokenizer, again) is None
    assert again.stop_ids == tokenizer.stop_ids
    assert again.config["chat_template"] == "{{ messages }}"
    assert all(again.encode(text) == tokenizer.encode(text) for text in tied_texts())


@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED])
def test_equally_good_merges_in_gguf(kind: int, tied: bytes, tmp_path: Path) -> None:
    library = sentencepiece.SentencePieceProcessor(model_proto=tied)
    keys = write_vocabulary(SentencePiece(tied), library.vocab_size() + 2)
    keys["tokenizer.ggml.token_type"][-2:] = [kind, kind]
    tokenizer = read_vocabulary(keys)
    for text in tied_texts():
        assert tokenizer.encode(text) == library.encode(text)
    tokenizer.save(tmp_path)  # as a SentencePiece model, whose control symbols transformers finds only if it is told so
    listed = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {(int(n), token["special"]) for n, token in listed.items()} == {
        (library.vocab_size() + n, kind == CONTROL) for n in range(2)
    }
    again = load_tokenizer(tmp_path)
    assert (again.special, first_difference(tokenizer, again)) == (tokenizer.special, None)


def test_a_field_of_two_types_is_refused() -> None:
    """The library reads only that of its own type, which the other would hide."""
    model = sentencepiece_model(normalization_rule_name="nmt_nfkc")
    with pytest.raises(LlucidError, match="the field 2 of its message 3 has two types"):
        SentencePiece(model + field(NORMALIZER, field(CHARACTER_MAP, 0)))


def test_texts_are_not_made_far_longer(tmp_path: Path) -> None:
    """A model may say what its characters become."""
    for times, text in ((1000, None), (99, "q" * 1000), (99, "q" * 50), (5, "q" * 1000)):
        rules = tmp_path / f"{times}.tsv"
        rules.write_text(f"71\t{' '.join(['62'] * times)}\n")
        model = sentencepiece_model(normalization_rule_tsv=str(rules))
        if text is None:
            with pytest.raises(LlucidError, match="its normalizer makes texts 1000 times as long"):
                SentencePiece(model)
        elif times * len(text) < 10_000:
            assert SentencePiece(model).encode(text) == SentencePiece(sentencepiece_model()).encode(
                "b" * times * len(text)
            )
        else:
            with pytest.raises(LlucidError, match="normalizer makes the text more than 10 times as long"):
                SentencePiece(model).encode(text)
