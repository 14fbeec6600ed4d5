"""llama.cpp itself opens the GGUF files that we write."""

import json
import math
import random
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, trainers
from torch import Tensor

from llucid.checkpoints import Model, convert, load, save
from llucid.config import LinearScaling, YarnScaling
from llucid.dialogs.formats import encode_dialog
from llucid.llama import llama
from llucid.tokenizers import Tokenizer
from llucid.tokenizers.byte_pairs import train_bpe
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.gguf_export import write_vocabulary
from llucid.tokenizers.gguf_vocabulary import ALIASES, RULES, USER_DEFINED, WHOLE_JSON, read_vocabulary
from llucid.tokenizers.llama2c import WORST_SCORE, Llama2cTokenizer
from llucid.weights import tree_map
from tests.checkpoints.gguf_files import file_of
from tests.checkpoints.models import model_of
from tests.checkpoints.test_hostile import TINY
from tests.checkpoints.test_llama2c import STORY
from tests.configs import CONFIGS
from tests.oracles.llama_cpp import LlamaCpp
from tests.tokenizers.kinds import SMALL, metaspace, texts_for
from tests.tokenizers.texts import HOSTILE, MARK, TALE, small_llama2c, small_sentencepiece

TOKENIZERS = SMALL | {
    "no space before": lambda folder: metaspace("never"),
    "a piece that no pair gives": lambda folder: with_piece(small_llama2c(), b"bellzz"),
}
SPACES = re.compile(r"[^\S\x00-\x7f]")
LETTERS = [
    *"".join(HOSTILE.values()),
    *" \n\t\r'sS1234567890.,!?/-aAbB~^$+<=>|" * 20,
    *map(chr, [*range(0xA1, 0x250), *range(0x391, 0x3A2), *range(0x410, 0x450), *range(0x561, 0x587)]),
    *map(chr, [*range(0x10D0, 0x10F1), *range(0x4E00, 0x4E40), *range(0x1D400, 0x1D440)]),
]


def with_piece(tokenizer: Llama2cTokenizer, piece: bytes) -> Llama2cTokenizer:
    return Llama2cTokenizer([*tokenizer.pieces, piece], [*tokenizer.scores, WORST_SCORE])


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return TOKENIZERS[request.param](tmp_path / "tokenizer")


def with_tokenizer(tokenizer: Tokenizer, path: Path) -> LlamaCpp:
    """A small model with this tokenizer."""
    config = replace(TINY, dim=32, head_dim=16, ffn_dim=32, vocab_size=tokenizer.vocab_size + 7)
    save(Model(config, model_of(config).weights, tokenizer), path, "gguf")
    return LlamaCpp(path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "Q8_0"])
def test_it_writes_the_story(dtype: str, data: Path, tmp_path: Path) -> None:
    convert(data / "stories260K.bin", tmp_path / "a.gguf", "gguf", tokenizer=data / "tok512.bin", dtype=dtype)
    model = LlamaCpp(tmp_path / "a.gguf")
    assert model.encode("", bos=True) == [1]
    written = model.write([1], 200).strip()
    # With rounded weights the texts differ at some point.
    assert written == STORY if dtype == "float32" else written.startswith(STORY.split("She")[0])


def test_it_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = with_tokenizer(tokenizer, tmp_path / "a.gguf")
    for text in [*texts_for(tokenizer), *(["bellzz bell"] if not isinstance(tokenizer, Characters) else [])]:
        assert model.encode(text) == tokenizer.encode(text)
    if tokenizer.bos is not None:
        assert model.encode("", bos=True) == [tokenizer.bos]


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_it_gives_other_ids_only_where_it_puts_spaces(scheme: str, tmp_path: Path) -> None:
    """Before a text that begins with one, and after tokens."""
    tokenizer = metaspace(scheme, {})
    model = with_tokenizer(tokenizer, tmp_path / "a.gguf")
    reported = write_vocabulary(tokenizer, tokenizer.vocab_size + 7)
    by_rule = read_vocabulary({key: value for key, value in reported.items() if key != WHOLE_JSON})
    other: list[str] = []
    for text in (*texts_for(tokenizer), MARK, "a<|turn|>bell", "a<|turn|>  bell"):
        theirs = model.encode(text)
        assert theirs == by_rule.encode(text)
        spaced = text.replace("<|turn|>", "<|turn|> ")
        assert theirs == tokenizer.encode(" " + spaced if text else "")
        other += [text] if theirs != tokenizer.encode(text) else []
    turns = [text for text in other if "<|turn|>" in text]
    assert turns == (["a<|turn|>bell"] if scheme == "first" else []) + ["a<|turn|>  bell"]
    assert {text[0] for text in other if text not in turns} == {" ", "▁"}
    # Behind a special token it does so, too, where "first" puts none.
    theirs = model.encode("bell</s>bell", special=True, bos=True)
    assert theirs == [1, *tokenizer.encode("bell"), 2, *tokenizer.encode("bell")]


def test_it_splits_texts_at_user_defined_tokens(tmp_path: Path) -> None:
    """And puts a space before each part."""
    plain = small_sentencepiece()
    config = replace(TINY, dim=32, head_dim=16, ffn_dim=32, vocab_size=plain.vocab_size + 1)
    written = write_vocabulary(plain, config.vocab_size)
    types = [*written["tokenizer.ggml.token_type"][:-1], USER_DEFINED]
    tokens = [*written["tokenizer.ggml.tokens"][:-1], "<|turn|>"]
    changed = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    file = file_of(tmp_path / "a.gguf", Model(config, model_of(config).weights, plain), changed)
    ours, theirs = load(file, device="cpu").text(), LlamaCpp(file)
    for text in ("bell<|turn|>the fox", "<|turn|><|turn|>", " <|turn|> bell <|turn|>\n"):
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.encode(text).count(plain.vocab_size) == text.count("<|turn|>")


def test_it_chats_with_the_same_ids(tmp_path: Path) -> None:
    model = load("storyteller")
    save(model, tmp_path / "a.gguf", "gguf")
    theirs = LlamaCpp(tmp_path / "a.gguf")
    dialog = [("system", "Be brief."), ("user", "Who found the bell?"), ("assistant", "A wren."), ("user", " Why?\n")]
    messages = [{"role": role, "content": content} for role, content in dialog]
    for said in (messages, messages[1:], messages[1:2]):
        prompt = theirs.asked("/apply-template", messages=said)["prompt"]
        assert theirs.encode(prompt, special=True, bos=True) == encode_dialog(said, model.text())


@pytest.mark.parametrize("pre", [*RULES, *ALIASES])
def test_it_splits_texts_into_the_same_words(pre: str, tmp_path: Path) -> None:
    """Held with pairs that no rule split when they were learned, so that other words give other ids.

    Left out are characters that one of the two Unicode tables does not know and, for DeepSeek, white space beyond
    ASCII: its pattern counts it to the Chinese characters, and llama.cpp does not."""
    texts = [text for text in HOSTILE.values() if not pre.startswith("deepseek") or not SPACES.search(text)]
    generator = random.Random(0)
    letters = [c for c in LETTERS if not pre.startswith("deepseek") or not SPACES.match(c)]
    texts += ["".join(generator.choices(letters, k=generator.randrange(30))) for _ in range(300)]
    vocabulary, merges = unsplit_pairs()
    size = len(vocabulary) + 1
    config = replace(TINY, dim=32, head_dim=16, ffn_dim=32, vocab_size=size)
    keys = dict(model="gpt2", pre=pre, tokens=[*vocabulary, "<|end|>"], merges=merges, scores=None)
    keys |= dict(token_type=[1] * (size - 1) + [3], eos_token_id=size - 1, add_bos_token=False)
    model = Model(config, model_of(config).weights, train_bpe([TALE], 300))
    file = file_of(tmp_path / "a.gguf", model, {f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    ours, theirs = load(file, device="cpu").text(), LlamaCpp(file)
    for text in texts:
        assert theirs.encode(text) == ours.encode(text)


@cache
def unsplit_pairs() -> tuple[list[str], list[str]]:
    """Tokens and merges learned from texts that were not split into words before."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False, max_token_length=4)
    generator = random.Random(1)
    learned = ("".join(generator.choices(LETTERS, k=30)) for _ in range(4000))
    made.train_from_iterator([*HOSTILE.values(), *learned], trainer)
    content = json.loads(made.to_str())["model"]
    return sorted(content["vocab"], key=content["vocab"].__getitem__), [" ".join(pair) for pair in content["merges"]]


YARN = YarnScaling(factor=4.0, original_context=64, attention_factor=1 + math.log(4) / 10)
SCALED = {
    "linear": LinearScaling(factor=4.0),
    "YaRN": YARN,
    "YaRN with another factor": replace(YARN, attention_factor=1.3),
}


@pytest.mark.parametrize("name", [*CONFIGS, *SCALED])
def test_it_computes_the_same_probabilities(name: str, tmp_path: Path) -> None:
    """As exactly as llucid does in float32, RoPE's scaling included."""
    config = CONFIGS.get(name) or replace(CONFIGS["one for two"], rope_scaling=SCALED[name], context=256)
    model = model_of(config)
    save(model, tmp_path / "a.gguf", "gguf")
    theirs = LlamaCpp(tmp_path / "a.gguf")
    tokens = torch.randint(config.vocab_size, (1, 60), generator=torch.Generator().manual_seed(0))
    read = [tokens[0, : end + 1].tolist() for end in range(60)]
    found = torch.from_numpy(np.stack([theirs.log_probabilities(ids, config.vocab_size) for ids in read]))
    wide = tree_map(Tensor.double, model.weights)
    exact = llama(tokens, wide, config)[0].log_softmax(-1)
    rounding = (llama(tokens, model.weights, config)[0].log_softmax(-1) - exact).abs().max()
    assert (found - exact).abs().max() < 8 * rounding
    if config.rope_scaling:
        unscaled = llama(tokens, wide, replace(config, rope_scaling=None))[0].log_softmax(-1)
        assert (found - unscaled).abs().max() > 80 * rounding
