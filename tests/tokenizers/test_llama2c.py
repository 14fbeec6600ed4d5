"""llama2.c's tokenizer.bin: ids equal those of run.c and of the sentencepiece library; decoding."""

import json
import struct
import tracemalloc
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from llucid.errors import LlucidError
from llucid.tokenizers import load_tokenizer
from llucid.tokenizers.byte_pairs import train_bpe
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.llama2c import Llama2cTokenizer
from llucid.tokenizers.llama2c_export import to_llama2c
from llucid.tokenizers.sentencepiece_model import SentencePiece
from llucid.tokenizers.tokenizer_json import JsonTokenizer
from tests.oracles import llama2c_encode
from tests.tokenizers.texts import (
    HOSTILE,
    LONG,
    MARK,
    TALE,
    any_text,
    sentencepiece_model,
    small_llama2c,
    small_ranks,
    small_sentencepiece,
)

BYTES = [b"<0x%02X>" % byte for byte in range(256)]
SPECIAL = [b"<unk>", b"\n<s>\n", b"\n</s>\n"]


def made(pieces: dict[str, float]) -> Llama2cTokenizer:
    """A vocabulary of these pieces and scores after the special tokens and the bytes."""
    spelled = [*SPECIAL, *BYTES, *(piece.encode() for piece in pieces)]
    return Llama2cTokenizer(spelled, [0.0] * 259 + list(pieces.values()))


def opened(path: Path) -> Llama2cTokenizer:
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, Llama2cTokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def llama2(data: Path) -> Llama2cTokenizer:
    return opened(data / "llama2-tokenizer.bin")


@pytest.fixture(scope="module")
def tok512(data: Path) -> Llama2cTokenizer:
    return opened(data / "tok512.bin")


@pytest.fixture(scope="module")
def library(data: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(data / "llama2-tokenizer.model"))


@pytest.fixture(scope="module")
def saved(llama2: Llama2cTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama2c")
    llama2.save(folder)
    return folder


@pytest.fixture(scope="module")
def again(saved: Path) -> JsonTokenizer:
    tokenizer = load_tokenizer(saved)
    assert isinstance(tokenizer, JsonTokenizer)
    return tokenizer


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_ids_equal_those_of_sentencepiece_and_run_c(
    llama2: Llama2cTokenizer,
    tok512: Llama2cTokenizer,
    library: sentencepiece.SentencePieceProcessor,
    again: JsonTokenizer,
    text: str,
) -> None:
    ids = llama2.encode(text)
    assert ids == library.encode(text) == llama2c_encode.encode(text, llama2.pieces, llama2.scores)
    assert ids == again.encode(text)
    assert llama2.decode(ids) == llama2.decode([1, *ids]) == again.decode(ids) == text
    ids = tok512.encode(text)
    assert ids == llama2c_encode.encode(text, tok512.pieces, tok512.scores)
    assert tok512.decode(ids) == text


@pytest.mark.parametrize("text", [LONG, "a" * 400_000, " " * 400_000], ids=["hostile", "letters", "spaces"])
def test_400_000_characters(
    llama2: Llama2cTokenizer, library: sentencepiece.SentencePieceProcessor, again: JsonTokenizer, text: str
) -> None:
    ids = llama2.encode(text)
    assert ids == library.encode(text) == again.encode(text)
    assert llama2.decode(ids) == text


def test_known_ids(llama2: Llama2cTokenizer) -> None:
    assert llama2.encode("I believe the meaning of life is") == [306, 4658, 278, 6593, 310, 2834, 338]
    known = [3439, 17632, 1925, 29892, 278, 6368, 310, 14215, 537, 5922, 393, 29871]
    assert llama2.encode("Simply put, the theory of relativity states that ") == known


def test_the_space_mark_is_an_ordinary_character(llama2: Llama2cTokenizer, again: JsonTokenizer) -> None:
    ids = llama2.encode(MARK)
    assert ids == llama2c_encode.encode(MARK, llama2.pieces, llama2.scores) == again.encode(MARK)
    assert llama2.decode(ids) == again.decode(ids) == MARK


@settings(max_examples=100, deadline=None)
@given(text=any_text)
def test_ids_of_any_text(tok512: Llama2cTokenizer, text: str) -> None:
    ids = tok512.encode(text)
    assert ids == llama2c_encode.encode(text, tok512.pieces, tok512.scores)
    assert tok512.decode(ids) == text


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.text("ab ", min_size=2, max_size=5), st.sampled_from([0.0, -1.0, -2.0, -1e9, -1e10, -1e11])),
    st.text("ab c", max_size=30),
)
def test_any_vocabulary_is_merged_as_in_run_c(pieces: dict[str, float], text: str) -> None:
    """With equal scores, scores too low to merge, and pieces that continue after a space."""
    tokenizer = made({" ": -3.0, "a": -3.0, "b": -3.0} | pieces)
    assert tokenizer.encode(text) == llama2c_encode.encode(text, tokenizer.pieces, tokenizer.scores)


@settings(max_examples=50, deadline=None)
@given(text=any_text)
def test_round_trip_of_a_small_tokenizer(text: str) -> None:
    ids = small_llama2c().encode(text)
    assert all(token > 2 for token in ids)
    assert small_llama2c().decode(ids) == text
    assert SMALL_SAVED.encode(text) == ids


SMALL_SAVED = JsonTokenizer(json.loads(small_llama2c().json()))


def test_transformers_opens_the_saved_tokenizer(llama2: Llama2cTokenizer, saved: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(saved)
    for text in [*HOSTILE.values(), MARK]:
        ids = llama2.encode(text)
        assert theirs(text, split_special_tokens=True, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert theirs("a")["input_ids"] == [1, *llama2.encode("a")]
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (1, 2, 32000)
    assert transformers.GenerationConfig.from_pretrained(saved).eos_token_id == [1, 2]


def test_the_special_ids(llama2: Llama2cTokenizer, again: JsonTokenizer) -> None:
    for tokenizer in (llama2, again, small_llama2c()):
        assert (tokenizer.bos, tokenizer.eos, tokenizer.stop_ids) == (1, 2, {1, 2})
        assert tokenizer.special == {"<unk>": 0, "<s>": 1, "</s>": 2}
        assert tokenizer.decode([1, 0, 2]) == ""


def test_the_cache_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llucid.tokenizers.llama2c.MOST_WORDS", 3)
    tokenizer = made({" ": 0.0, "a": 0.0})
    ids = [tokenizer.encode("a " * n + "a" * 100) for n in (1, 1, 5)]
    assert ids[0] == ids[1]
    assert set(tokenizer.cache) == {b" a"}
    assert tokenizer.encode("a aa aaa aaaa")[-4:] == [260] * 4
    assert not tokenizer.cache


def test_neither_special_tokens_nor_bytes_are_merged_from_text() -> None:
    halves = [
        "\n<s",
        ">\n",
        "\n<",
        "\n",
        "s",
        ">",
        "<",
        " ",
        "<0x4",
        "1>",
        "<0x",
        "4",
        "1",
        "<0",
        "0",
        "x",
        "<u",
        "nk>",
        "n",
        "k>",
    ]
    tokenizer = made(dict.fromkeys(halves, -1.0))
    for text in ("\n<s>\n", "<0x41>", "<unk>"):
        ids = tokenizer.encode(text)
        assert min(ids) >= 259 or text == "<unk>"  # u and k are bytes
        assert not {0, 1, 2, 3 + 0x41} & set(ids)
        assert tokenizer.decode(ids) == text


def test_one_space_is_removed_at_the_start_and_after_bos() -> None:
    tokenizer = made({" ": 0.0, " a": 1.0, "a": 0.0, "  ": 2.0})
    space, a, b, two = 259, 260, 261, 262
    assert tokenizer.decode([1, a, a]) == tokenizer.decode([a, a]) == "a a"
    assert tokenizer.decode([b, 1, a]) == "aa"
    assert tokenizer.decode([b, tokenizer.vocab_size]) == "a"  # an id that only the model has
    assert tokenizer.decode([two, a]) == "  a"
    assert tokenizer.decode([1, space, space]) == " "


def test_raw_bytes_have_two_hex_digits() -> None:
    tokenizer = made({" ": 0.0, "<0x4>": 0.0, "<0x41>x": 0.0, "<0x+1>": 0.0, "<0xe9>": 0.0, "x<0x41>": 0.0})
    assert tokenizer.decode([259, 260, 261, 262]) == "<0x4><0x41>x<0x+1>"
    assert tokenizer.decode([264]) == "x<0x41>"
    assert tokenizer.decode([259, 3 + 0xC3, 3 + 0xA9]) == "é"
    assert tokenizer.decode([259, 3 + 0xC3, 263]) == "\ufffd\ufffd"


def test_a_special_token_that_is_spelled_as_a_byte_has_no_text() -> None:
    tokenizer = Llama2cTokenizer([b"<unk>", b"<0x41>", b"</s>", *BYTES, b" "], [0.0] * 260)
    assert tokenizer.decode([1, 3 + 0x41, 1]) == "A"
    assert tokenizer.encode("A") == [259, 3 + 0x41]


def test_bytes_in_the_oldest_files() -> None:
    pieces = [*SPECIAL, *(chr(byte).encode() for byte in range(256)), b" ", b"a", b"\xc3\xa9"]
    tokenizer = Llama2cTokenizer(pieces, [0.0] * len(pieces))
    ids = tokenizer.encode("aéè")
    assert ids == [259, 260, 261, 3 + 0xC3, 3 + 0xA8]
    assert tokenizer.decode(ids) == "aéè"
    assert JsonTokenizer(json.loads(tokenizer.json())).encode("aéè") == ids


def test_an_unknown_character_without_byte_pieces() -> None:
    tokenizer = Llama2cTokenizer([*SPECIAL, b" ", b"a"], [0.0] * 5)
    assert tokenizer.encode("a a") == [3, 4, 3, 4]
    with pytest.raises(LlucidError, match="'é' cannot be encoded"):
        tokenizer.encode("aé")


def test_what_a_tokenizer_json_cannot_express() -> None:
    twice = Llama2cTokenizer([*SPECIAL, *BYTES, b" ", b"a", b"a"], [0.0] * 262)
    assert twice.encode("a") == [259, 260]
    with pytest.raises(LlucidError, match="two ids with the same piece, here 'a'"):
        twice.json()
    with pytest.raises(LlucidError, match="not UTF-8"):
        Llama2cTokenizer([*SPECIAL, *BYTES, b"\xff"], [0.0] * 260).json()


def test_sentencepiece_is_exported_as_by_llama2_c(data: Path, tmp_path: Path) -> None:
    to_llama2c(load_tokenizer(data / "llama2-tokenizer.model")).write(tmp_path / "tokenizer.bin")
    assert (tmp_path / "tokenizer.bin").read_bytes() == (data / "llama2-tokenizer.bin").read_bytes()


def test_a_saved_tokenizer_json_is_converted_back(llama2: Llama2cTokenizer, again: JsonTokenizer) -> None:
    back = to_llama2c(again)
    assert back.pieces == llama2.pieces
    for text in [*HOSTILE.values(), MARK]:
        assert back.encode(text) == llama2.encode(text)
    assert to_llama2c(back, back.vocab_size) is back
    wider = to_llama2c(back, back.vocab_size + 2)  # for rows of a model without a piece
    assert wider.pieces == [*back.pieces, *(b"[PAD%d]" % (back.vocab_size + more) for more in range(2))]
    assert wider.encode(MARK + "[PAD512]") == back.encode(MARK + "[PAD512]")
    never = made({" ": 0.0, "a": 0.0, "b": 0.0, "ab": -1e10})
    assert to_llama2c(JsonTokenizer(json.loads(never.json()))).encode("ab") == never.encode("ab") == [259, 260, 261]
    ranked = to_llama2c(again)  # its characters have no score, but are halves of pieces
    assert JsonTokenizer(json.loads(ranked.json())).encode(TALE) == llama2.encode(TALE)
    from_sentencepiece = to_llama2c(JsonTokenizer(json.loads(small_sentencepiece().json())))
    for text in HOSTILE.values():
        assert from_sentencepiece.encode(text) == small_sentencepiece().encode(text)


def test_bytes_at_other_ids_cannot_be_expressed() -> None:
    """run.c takes a byte + 3 for its id."""
    other = SentencePiece(sentencepiece_model(control_symbols="<a>"))
    for tokenizer in (other, JsonTokenizer(json.loads(other.json()))):
        with pytest.raises(LlucidError, match=r"llama2\.c's pieces for bytes begin at 3, this tokenizer's do not"):
            to_llama2c(tokenizer)


def test_tokenizers_that_llama2_c_cannot_express() -> None:
    for other in (Characters("abc"), small_ranks()):
        with pytest.raises(LlucidError, match="cannot express this kind of tokenizer"):
            to_llama2c(other)
    unigram = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, byte_fallback=True))
    for other in (train_bpe([TALE], 300), JsonTokenizer(json.loads(unigram.to_str()))):
        with pytest.raises(LlucidError, match="needs byte fallback"):
            to_llama2c(other)
    content = json.loads(small_sentencepiece().json())
    content["normalizer"] = content["normalizer"]["normalizers"][1]
    with pytest.raises(LlucidError, match="other ids"):
        to_llama2c(JsonTokenizer(content))
    content = json.loads(small_sentencepiece().json())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"Q{number:x}Q": len(vocabulary) + number for number in range(4096)}
    vocabulary |= {"QQQ": 4496}
    content["added_tokens"].append({"id": 4497, "content": "<call>", **flags})  # every other piece is compared
    with pytest.raises(LlucidError, match="other ids"):
        to_llama2c(JsonTokenizer(content))
    for change, reason in (("treat_whitespace_as_suffix", "behind a word"), ("remove_extra_whitespaces", "collapses")):
        with pytest.raises(LlucidError, match=f"cannot express this SentencePiece model: it .*{reason}"):
            to_llama2c(SentencePiece(sentencepiece_model(**{change: True})))


def entry(piece: bytes, score: float = 0.0, length: int | None = None) -> bytes:
    return struct.pack("<fi", score, len(piece) if length is None else length) + piece


def test_write_and_read(tmp_path: Path) -> None:
    tokenizer = small_llama2c()
    tokenizer.write(tmp_path / "tokenizer.bin")
    again = opened(tmp_path)
    assert (again.pieces, again.scores) == (tokenizer.pieces, tokenizer.scores)
    content = (tmp_path / "tokenizer.bin").read_bytes()
    assert content.startswith(struct.pack("<i", max(map(len, tokenizer.pieces))) + entry(b"<unk>"))
    assert Llama2cTokenizer.from_bytes(content, 300).pieces == tokenizer.pieces[:300]
    with pytest.raises(LlucidError, match="but the model has 500 ids"):
        Llama2cTokenizer.from_bytes(content, 500)


WHOLE = struct.pack("<i", 6) + b"".join(map(entry, [*SPECIAL, *BYTES]))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "at least 4 bytes"),
        (WHOLE[:-1], "id 258 cannot have the length 6"),
        (WHOLE[:-7], "ends within the entry of id 258"),
        (WHOLE[:-14] + entry(b"", length=2**31 - 1), "id 258 cannot have the length 2147483647"),
        (WHOLE[:-14] + entry(b"<0xFF>", length=-6), "id 258 cannot have the length -6"),
        (WHOLE[:-14] + entry(b""), "id 258 cannot have the length 0"),
        (WHOLE + entry(b"longest"), "id 259 cannot have the length 7"),
        (WHOLE[:17], "as many scores as pieces, 3 at least"),
    ],
)
def test_truncated_files(content: bytes, says: str) -> None:
    tracemalloc.start()
    with pytest.raises(LlucidError, match=says):
        Llama2cTokenizer.from_bytes(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
