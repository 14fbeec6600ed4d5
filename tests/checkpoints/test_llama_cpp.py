"""llama.cpp itself, through llama-cpp-python, opens the GGUF files that we write."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llucid.checkpoints import Model, convert, save
from llucid.config import Config
from llucid.llama import llama
from llucid.tokenizers import Tokenizer
from llucid.tokenizers.gguf_export import write_vocabulary
from llucid.tokenizers.gguf_vocabulary import WHOLE_JSON, read_vocabulary
from tests.checkpoints.models import model_of
from tests.checkpoints.test_hostile import TINY
from tests.checkpoints.test_llama2c import STORY
from tests.configs import CONFIGS
from tests.tokenizers.kinds import SMALL, metaspace, texts_for
from tests.tokenizers.texts import MARK

library = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install llama-cpp-python")
# Its own __del__ and ctypes warn.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request: pytest.FixtureRequest) -> Config:
    return request.param


@pytest.fixture(params=SMALL)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return SMALL[request.param](tmp_path / "tokenizer")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "Q8_0"])
def test_llama_cpp_itself_writes_the_story(dtype: str, data: Path, tmp_path: Path) -> None:
    convert(data / "stories260K.bin", tmp_path / "a.gguf", "gguf", tokenizer=data / "tok512.bin", dtype=dtype)
    model = library.Llama(str(tmp_path / "a.gguf"), n_ctx=512, n_threads=1, verbose=False)
    ids = model.tokenize(b"", add_bos=True)
    assert ids == [1]
    for token in model.generate(ids.copy(), temp=0.0, repeat_penalty=1.0):
        ids.append(token)
        if len(ids) == 201:
            break
    written = model.detokenize(ids).decode().strip()
    # With rounded weights the texts differ at some point.
    assert written == STORY if dtype == "float32" else written.startswith(STORY.split("She")[0])


def test_llama_cpp_itself_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = replace(TINY, dim=32, head_dim=16, ffn_dim=32, vocab_size=tokenizer.vocab_size + 7)
    save(Model(config, model_of(config).weights, tokenizer), tmp_path / "a.gguf", "gguf")
    model = library.Llama(str(tmp_path / "a.gguf"), n_ctx=16, n_threads=1, verbose=False)
    for text in texts_for(tokenizer):
        if "\0" not in text:  # where a text ends for some of its functions
            assert model.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)
    assert tokenizer.bos is None or model.token_bos() == tokenizer.bos
    reported = write_vocabulary(tokenizer, config.vocab_size)
    assert model.token_eos() == reported.get("tokenizer.ggml.eos_token_id", -1)


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_llama_cpp_itself_gives_other_ids_only_where_it_puts_spaces(scheme: str, tmp_path: Path) -> None:
    """Before a text that begins with one, and after tokens."""
    tokenizer = metaspace(scheme, {})
    config = replace(TINY, dim=32, head_dim=16, ffn_dim=32, vocab_size=tokenizer.vocab_size + 7)
    save(Model(config, model_of(config).weights, tokenizer), tmp_path / "a.gguf", "gguf")
    model = library.Llama(str(tmp_path / "a.gguf"), n_ctx=16, n_threads=1, verbose=False)
    reported = write_vocabulary(tokenizer, config.vocab_size)
    by_rule = read_vocabulary({key: value for key, value in reported.items() if key != WHOLE_JSON})
    other: list[str] = []
    for text in (*texts_for(tokenizer), MARK, "a<|turn|>bell", "a<|turn|>  bell"):
        if "\0" not in text:
            theirs = model.tokenize(text.encode(), add_bos=False, special=False)
            assert theirs == by_rule.encode(text)
            spaced = text.replace("<|turn|>", "<|turn|> ")
            assert theirs == tokenizer.encode(" " + spaced if text else "")
            other += [text] if theirs != tokenizer.encode(text) else []
    turns = [text for text in other if "<|turn|>" in text]
    assert turns == (["a<|turn|>bell"] if scheme == "first" else []) + ["a<|turn|>  bell"]
    assert {text[0] for text in other if text not in turns} == {" ", "▁"}
    # Behind a special token it does so, too, where "first" puts none.
    theirs = model.tokenize(b"bell</s>bell", add_bos=True, special=True)
    assert theirs == [1, *tokenizer.encode("bell"), 2, *tokenizer.encode("bell")]


def test_llama_cpp_itself_computes_the_same_logits(config: Config, tmp_path: Path) -> None:
    """To float32 rounding, RoPE's scaling included; its cache is in float32 (type 0) for it."""
    model = model_of(config)
    save(model, tmp_path / "a.gguf", "gguf")
    tokens = torch.randint(config.vocab_size, (1, 60), generator=torch.Generator().manual_seed(0))
    wide = dict(type_k=0, type_v=0, n_ctx=64, n_threads=1, verbose=False, logits_all=True)
    theirs = library.Llama(str(tmp_path / "a.gguf"), **wide)
    theirs.eval(tokens[0].tolist())
    found = torch.from_numpy(theirs.scores[: tokens.shape[1]].copy())
    assert (found - llama(tokens, model.weights, config)[0]).abs().max() < 2e-4
    if config.rope_scaling:
        unscaled = llama(tokens, model.weights, replace(config, rope_scaling=None))[0]
        assert (found - unscaled).abs().max() > 1e-2
