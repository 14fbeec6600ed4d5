"""A small tokenizer of each kind that GGUF can express, and texts for it."""

import json
from pathlib import Path
from typing import Any

from llucid.tokenizers import Tokenizer, load_tokenizer
from llucid.tokenizers.byte_pairs import train_bpe
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.sentencepiece_model import SentencePiece
from llucid.tokenizers.tokenizer_json import JsonTokenizer
from tests.tokenizers.texts import HOSTILE, TALE, sentencepiece_model, small_llama2c, small_ranks, small_sentencepiece


def opened_again(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    tokenizer.save(folder)
    return load_tokenizer(folder)


SMALL = {
    "sentencepiece": lambda folder: small_sentencepiece(),
    "sentencepiece without a space before": lambda folder: SentencePiece(sentencepiece_model(add_dummy_prefix=False)),
    "llama2c": lambda folder: small_llama2c(),
    "tiktoken": lambda folder: small_ranks(),
    "our byte pairs": lambda folder: train_bpe([TALE], 320),
    "sentencepiece as json": lambda folder: opened_again(small_sentencepiece(), folder),
    "llama2c as json": lambda folder: opened_again(small_llama2c(), folder),
    "tiktoken as json": lambda folder: opened_again(small_ranks(), folder),
    "characters": lambda folder: Characters({*TALE, *'\\\t"x'}),
}


def metaspace(scheme: str = "always", added: dict[str, Any] | None = None, **stage: Any) -> JsonTokenizer:
    """A SentencePiece model as transformers 5 saves it; `added` are the flags of a token <|turn|> found in text."""
    content = json.loads(small_sentencepiece().json())
    content["normalizer"] = None
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    content["pre_tokenizer"] |= stage
    if scheme == "never":
        content["decoder"]["decoders"].pop()
    if added is not None:
        flags = {**dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False), **added}
        content["added_tokens"].append({"id": len(content["model"]["vocab"]), "content": "<|turn|>", **flags})
    return JsonTokenizer(content, config={"bos_token": "<s>", "eos_token": "</s>"})


def texts_for(tokenizer: Tokenizer) -> list[str]:
    if isinstance(tokenizer, Characters):
        return ["", TALE, '\\ "n\\\\n" \\xt\\n\t\n', TALE[::-1]]
    # llama.cpp lists the cases of "'s", without the long s.
    return [text.replace("ſ", "s") for text in HOSTILE.values()]
