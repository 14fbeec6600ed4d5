"""Texts that tokenizers get wrong, and small tokenizers of each kind."""

import base64
import io
import json
from functools import cache

import sentencepiece
from hypothesis import strategies as st

from llucid.tokenizers.byte_pairs import train_bpe
from llucid.tokenizers.byte_pieces import byte_letters
from llucid.tokenizers.llama2c import Llama2cTokenizer
from llucid.tokenizers.llama2c_export import to_llama2c
from llucid.tokenizers.sentencepiece_model import SentencePiece
from llucid.tokenizers.tiktoken_ranks import TiktokenRanks

TALE = "One winter evening Pip the wren lost a bell.  Who found the bell?\nThe old badger's friend found it.\n"

HOSTILE = {
    "empty": "",
    "space": " ",
    "line": "\n",
    "spaces": " ".join([" " * n for n in range(40)]) + "x  y   z",
    "space around": "   a   ",
    "lines": "\n\n\r\n\r\r\n a\n \n\t\n\t\t x\n\n\n",
    "tale": TALE,
    "contractions": "don't DON'T we'Ll I’m 'tis 'S 'ſ it'sn't",
    "numbers": "1 12 123 1234 12345678901234567890 3.14159 ½ ² ⅷ ٣٤٥ ४५६",
    "emoji": "😀🚀👍🏽👩‍👩‍👧‍👦🏳️‍🌈🇩🇪 ☃️ ❤",
    "combining": "e\u0301 é a\u0300\u0301\u0302\u0303 ก็ \u0301 Z͑ͫ̓a̴l̷g̶o̸",
    "cjk": "漢字かな交じり文。中文，韩国어 한국어　全角　ＡＢＣ ｱﾊﾟｰﾄ",
    "right to left": "עברית שלום مرحبا بالعالم \u202eabc\u202c \u200f",
    "controls": "".join(map(chr, [*range(32), 0x7F, *range(0x80, 0xA1)])),
    "zeros": "\x00\x00a\x00",
    "invisible": "\ufeffa\u200bb\u200cc\u200dd\u2060e\u00ade\u180ef\u2028g\u2029h\u0085i\u00a0j\u3000k",
    "edges": "\ud7ff\ue000\ufffd\uffff\U00010000\U0010ffff",
    "private and rare": "𐍈 𝔘𝔫𝔦 𒀀 ꙮ \ue001",
    "special tokens": "<s>a</s> <unk> <pad> [INST] <<SYS>> <|begin_of_text|><|eot_id|> <|end_of_text|>",
    "bytes in words": "<0x41> <0x0A><0x00> <0xff> <0xFF> 0x41",
    "marks of others": "Ġ Ċ ġ ## @@ ⁇ Ä",
    "code": "def f(x):\n    return {'a': [x**2 for _ in range(10)]}  # ok\n\n\nif __name__ == '__main__':\n\tf(1)\n",
    "no words": "!!!??? ... --- ==== ////\\\\\\\\ ((([[[{{{ ~~~ ^^^",
}
MARK = "▁ a▁b ▁▁"
"""The character that SentencePiece writes for a space. It decodes to a space, too."""

LONG = ("".join(HOSTILE.values()) * 400)[:400_000]
assert len(LONG) == 400_000


def letters_and_unknown(letters: str) -> dict[str, object]:
    """A tokenizer.json with a token for each of these letters, and an unknown one, id 0, for any other."""
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    vocabulary = {token: number for number, token in enumerate(("[UNK]", *letters))}
    return {
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": "[UNK]", "special": True} | flags],
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "unk_token": "[UNK]", "vocab": vocabulary, "merges": []},
    }


any_text = st.lists(
    st.sampled_from([*HOSTILE.values(), "the", " wren", " ", "\n", "'s"]) | st.text(max_size=6), max_size=8
).map("".join)


@cache
def sentencepiece_model(kind: str = "bpe", **settings: object) -> bytes:
    """A model of 400 pieces trained on a tale, with Llama 2's settings."""
    out = io.BytesIO()
    defaults = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    defaults |= {"allow_whitespace_only_pieces": True, "hard_vocab_limit": False, "minloglevel": 2, "vocab_size": 400}
    texts = iter([TALE + " a b  c   d    e "] * 20)
    trainer = sentencepiece.SentencePieceTrainer
    trainer.train(sentence_iterator=texts, model_writer=out, model_type=kind, **(defaults | settings))
    return out.getvalue()


@cache
def ranks() -> list[bytes]:
    """Some 300 byte pairs by rank, learned from a tale."""
    vocabulary = json.loads(train_bpe([TALE], 320).json())["model"]["vocab"]
    byte_of = {chr(letter): byte for byte, letter in byte_letters().items()}
    return [bytes(byte_of[letter] for letter in piece) for piece in sorted(vocabulary, key=vocabulary.__getitem__)]


def rank_file(pieces: list[bytes]) -> bytes:
    return b"".join(base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces))


@cache
def small_sentencepiece() -> SentencePiece:
    return SentencePiece(sentencepiece_model())


@cache
def small_ranks() -> TiktokenRanks:
    return TiktokenRanks(ranks())


@cache
def small_llama2c() -> Llama2cTokenizer:
    return to_llama2c(small_sentencepiece())
