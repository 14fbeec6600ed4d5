"""Ids decoded one at a time give the same text as together, in pieces of whole characters."""

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from llucid.tokenizers import StreamingDecoder, Tokenizer
from llucid.tokenizers.byte_pairs import train_bpe
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.tokenizer_json import JsonTokenizer
from tests.tokenizers.texts import small_llama2c, small_ranks, small_sentencepiece

TEXT = "éa naïve café — 👩‍🚀🚀🚀 日本語日本語日本語 x" * 2
BYTES = train_bpe(["plain words only, plain words"], 260)


def byte_fallback() -> JsonTokenizer:
    """As Llama 2's tokenizer.json: ▁ for a space, bytes for unknown characters, and decoding strips a space."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz"]
    model = models.BPE({word: n for n, word in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return JsonTokenizer(json.loads(tokenizer.to_str()))


FALLBACK = byte_fallback()
ALL = {
    "bytes": BYTES,
    "fallback": FALLBACK,
    "characters": Characters(TEXT),
    "ranks": small_ranks(),
    "sentencepiece": small_sentencepiece(),
    "llama2c": small_llama2c(),
}


@pytest.mark.parametrize("tokenizer", ALL.values(), ids=ALL)
@pytest.mark.parametrize("prompt", ["", "a", "日🚀日日", "a plain word"])
def test_pieces_are_whole_characters(tokenizer: Tokenizer, prompt: str):
    if isinstance(tokenizer, Characters):
        prompt = "".join(character for character in prompt if character in TEXT)
    before = tokenizer.encode(prompt) if prompt else []
    ids = tokenizer.encode(prompt + TEXT)
    assert ids[: len(before)] == before
    decoder = StreamingDecoder(tokenizer, before)
    pieces = [decoder.push(token) for token in ids[len(before) :]]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == TEXT
    assert decoder.finish() == ""


def test_a_character_arrives_with_its_last_byte():
    decoder = StreamingDecoder(BYTES)
    assert [decoder.push(token) for token in BYTES.encode("a🚀é")] == ["a", "", "", "", "🚀", "", "é"]


@pytest.mark.parametrize("name", ["fallback", "sentencepiece", "llama2c"])
def test_a_space_after_a_prompt_is_kept(name: str):
    tokenizer = ALL[name]
    before, ids = tokenizer.encode("the"), tokenizer.encode("the wren lost")
    assert ids[: len(before)] == before
    decoder = StreamingDecoder(tokenizer, before)
    assert "".join(decoder.push(token) for token in ids[len(before) :]) == " wren lost"


@pytest.mark.parametrize("name", ["sentencepiece", "llama2c"])
def test_the_space_before_a_text_is_removed(name: str):
    tokenizer = ALL[name]
    for context in ([], [1], [1, 1, 2] * 5 + [1]):
        decoder = StreamingDecoder(tokenizer, context)
        assert "".join(decoder.push(token) for token in tokenizer.encode(" a  wren")) == " a  wren"


def test_an_incomplete_character_arrives_at_the_end():
    decoder = StreamingDecoder(BYTES)
    ids = BYTES.encode("a🚀")[:-1]
    assert "".join(decoder.push(token) for token in ids) == "a"
    assert decoder.finish() == "\ufffd"
    assert decoder.finish() == ""


@pytest.mark.parametrize("name", ["bytes", "ranks", "sentencepiece", "llama2c"])
@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=80))
def test_pieces_of_any_ids_join_to_the_text(name: str, ids: list[int]):
    tokenizer = ALL[name]
    ids = [token for token in ids if token < tokenizer.vocab_size]
    decoder = StreamingDecoder(tokenizer)
    pieces = "".join([decoder.push(token) for token in ids])
    assert pieces + decoder.finish() == tokenizer.decode(ids)


def test_only_the_last_ids_are_decoded_again(monkeypatch: pytest.MonkeyPatch):
    lengths: list[int] = []
    tokenizer = Characters("ab")
    monkeypatch.setattr(tokenizer, "decode", lambda ids: lengths.append(len(ids)) or "a" * len(ids))
    decoder = StreamingDecoder(tokenizer, [0] * 1000)
    assert "".join(decoder.push(0) for _ in range(300)) == "a" * 300
    assert max(lengths) <= 32


@pytest.mark.parametrize("text", ["", "\ufffd"])
def test_the_context_is_found_in_steps_that_double(monkeypatch: pytest.MonkeyPatch, text: str):
    """Where all ids before decode to nothing, or to bytes that are no characters."""
    lengths: list[int] = []
    tokenizer = Characters("ab")
    monkeypatch.setattr(tokenizer, "decode", lambda ids: lengths.append(len(ids)) or text * len(ids))
    StreamingDecoder(tokenizer, [0] * 5000)
    assert lengths[:5] == [8, 9, 10, 11, 12]
    assert sum(lengths) < 4 * 5000


@pytest.mark.parametrize("before", [0, 9])
def test_a_space_between_words_after_tokens_without_text(before: int):
    """As of a WordLevel model without a decoder, whose words are joined by spaces."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "word": 1}, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>"])
    words, ids = JsonTokenizer(json.loads(tokenizer.to_str())), [1, *[0] * 20, 1]
    decoder = StreamingDecoder(words, ids[:before])
    text = "".join(decoder.push(token) for token in ids[before:]) + decoder.finish()
    assert words.decode(ids[:before]) + text == words.decode(ids) == "word word"
