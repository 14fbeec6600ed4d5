"""RoPE's scalings against transformers beyond the original context, in every spelling and through files."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from llucid import llama_jax
from llucid.checkpoints import describe, load, save
from llucid.config import Config, DynamicScaling, LinearScaling, RopeScaling, YarnScaling
from llucid.errors import LlucidError
from llucid.generation.batch import Batch
from llucid.llama import llama, rope_frequencies
from llucid.llama_module import Llama
from llucid.rope import dynamic_length, frequencies, slowdowns
from tests.checkpoints.models import model_of
from tests.test_llama import random_weights, some_tokens

CONFIG = Config(
    dim=32, layers=2, heads=4, kv_heads=2, head_dim=32, ffn_dim=56, vocab_size=50, context=128, rope_theta=500.0
)
LN16 = math.log(16)
SCALINGS = {
    "llama3": RopeScaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=32),
    "linear": LinearScaling(factor=4.0),
    "dynamic": DynamicScaling(factor=3.0),
    "yarn": YarnScaling(factor=4.0, original_context=32, attention_factor=0.1 * np.log(4.0) + 1),
    "yarn, its own": YarnScaling(factor=8.0, original_context=64, beta_fast=16.0, beta_slow=2.0, attention_factor=1.5),
}


@pytest.fixture(params=SCALINGS.values(), ids=SCALINGS)
def config(request: pytest.FixtureRequest) -> Config:
    return replace(CONFIG, rope_scaling=request.param)


def test_equals_transformers_beyond_the_context(config: Config, tmp_path: Path) -> None:
    """Through our folder, which they open, and through theirs, which we open; each spelling."""
    weights, tokens = random_weights(config), some_tokens(config, 1, 300)
    save(model_of(config)._replace(weights=weights), tmp_path / "ours")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    expected = theirs(tokens).logits.detach()
    close: dict[str, Any] = dict(rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(llama(tokens, weights, config), expected, **close)
    torch.testing.assert_close(Llama.from_weights(weights, config)(tokens).detach(), expected, **close)
    found = llama_jax.llama(jnp.array(tokens[0].numpy()), llama_jax.from_torch(weights), config)
    np.testing.assert_allclose(found, expected[0], **close)
    without = llama(tokens, weights, replace(config, rope_scaling=None))
    assert (without - expected).abs().max() > 0.1  # else this could not fail

    theirs.save_pretrained(tmp_path / "theirs")
    for file in (tmp_path / "ours").glob("tokenizer*"):
        file.rename(tmp_path / "theirs" / file.name)
    assert load(tmp_path / "theirs", device="cpu").config == config


def test_jax_has_the_same_scores_at_given_positions(config: Config) -> None:
    weights, tokens, at = random_weights(config), some_tokens(config, 1, 8), torch.arange(300, 308)
    expected = llama(tokens, weights, config, positions=at[None])
    found = llama_jax.llama(jnp.array(tokens[0].numpy()), llama_jax.from_torch(weights), config, jnp.array(at.numpy()))
    np.testing.assert_allclose(found, expected[0], rtol=2e-4, atol=2e-4)


def test_the_engine_computes_the_same(config: Config) -> None:
    """In C where it can be built; within the context, where generation stays."""
    weights, tokens = random_weights(config), some_tokens(config, 1, 100)
    found = Batch(model_of(config)._replace(weights=weights)).read(tokens[0].tolist())
    expected = llama(tokens, weights, config)[0, -1, : len(found)]
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4, atol=1e-4)


def test_numpy_has_the_same_frequencies(config: Config) -> None:
    expected = rope_frequencies(config, torch.empty(1, dtype=torch.float64))
    np.testing.assert_allclose(frequencies(config), expected, rtol=4 * 2**-24)


def test_dynamic_scaling_begins_beyond_the_context() -> None:
    config = replace(CONFIG, rope_scaling=DynamicScaling(factor=3.0))
    assert (slowdowns(config, 128) == 1).all()
    assert (slowdowns(config, 129)[1:] > 1).all()
    assert slowdowns(config, 256).max() == pytest.approx(3 * 2 - 2)
    padding = torch.tensor([2**31 - 1])
    assert dynamic_length(config, padding) == 0
    assert dynamic_length(config, torch.cat([torch.arange(256), padding])) == 256


def test_gguf_keeps_them(config: Config, tmp_path: Path) -> None:
    if isinstance(config.rope_scaling, RopeScaling):
        config = replace(config, rope_scaling=RopeScaling(factor=4.0), rope_theta=500_000.0)
    model = model_of(config)
    if isinstance(config.rope_scaling, DynamicScaling):
        with pytest.raises(LlucidError, match="GGUF cannot hold DynamicScaling"):
            save(model, tmp_path / "model.gguf", "gguf")
        return
    save(model, tmp_path / "model.gguf", "gguf")
    found = load(tmp_path / "model.gguf", device="cpu").config
    assert vars(found.rope_scaling) == pytest.approx(vars(config.rope_scaling), rel=1e-6)
    assert replace(found, rope_scaling=config.rope_scaling) == config


@pytest.mark.parametrize(
    ("said", "longest", "context"),
    [
        ({}, None, 512),  # LongLoRA
        ({"max_sequence_length": 400}, None, 400),  # Vicuna, LongChat
        ({}, 128, 128),  # DeepSeek-Coder: the context is the stretched one
        ({}, 10**30, 512),
        ({}, 64, 512),
        ({"max_sequence_length": "x"}, None, 512),
    ],
)
def test_the_context_of_linear_scaling(said: dict[str, Any], longest: int | None, context: int, tmp_path: Path) -> None:
    save(model_of(CONFIG), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | said
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": {"type": "linear", "factor": 4.0}}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": longest}))
    found = load(tmp_path, device="cpu").config
    assert found == replace(CONFIG, context=context, rope_scaling=LinearScaling(factor=4.0))
    inferred = "" if context in (*said.values(), longest) else " (inferred: not in any file)"
    assert describe(tmp_path)["context"] == f"{context}{inferred}"
    save(model_of(found), tmp_path / "again")
    assert load(tmp_path / "again", device="cpu").config == found
    theirs = transformers.LlamaConfig.from_pretrained(tmp_path / "again")
    assert theirs.max_position_embeddings == -(-context // 4)


@pytest.mark.parametrize("format", ["meta", "llama2c"])
@pytest.mark.parametrize("name", ["linear", "dynamic", "yarn"])
def test_other_formats_refuse_them(format: str, name: str, tmp_path: Path) -> None:
    config = replace(CONFIG, rope_scaling=SCALINGS[name], rope_theta=10_000.0, head_dim=8)
    with pytest.raises(LlucidError, match="rope_scaling"):
        save(model_of(config), tmp_path / "model", format)


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ({"type": "linear", "factor": 4.0}, LinearScaling(factor=4.0)),
        ({"type": "dynamic", "factor": 2}, DynamicScaling(factor=2.0)),
        (
            {"rope_type": "yarn", "factor": 16.0, "mscale": 1.0, "mscale_all_dim": 0.5},
            YarnScaling(factor=16.0, original_context=128, attention_factor=(1 + LN16 / 10) / (1 + LN16 / 20)),
        ),
    ],
)
def test_spellings_of_config_json(reported: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    save(model_of(CONFIG), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    del config["rope_parameters"]
    file.write_text(json.dumps(config | {"rope_scaling": reported}))
    assert load(tmp_path / "model", device="cpu").config.rope_scaling == expected


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
@pytest.mark.parametrize("inner", [{}, {"original_max_position_embeddings": 32}])
@pytest.mark.parametrize("outer", [{}, {"original_max_position_embeddings": 64}])
def test_where_the_original_context_is_said(
    kind: str, inner: dict[str, Any], outer: dict[str, Any], tmp_path: Path
) -> None:
    """It is in the scaling, or else it is the context. One outside of the scaling wins, as in transformers' models."""
    save(model_of(CONFIG), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    scaling = {"rope_type": kind, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "yarn":
        scaling = {"rope_type": kind, "factor": None}
    (tmp_path / "config.json").write_text(json.dumps(config | outer | {"rope_scaling": scaling | inner}))
    found = load(tmp_path, device="cpu").config.rope_scaling
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path).config
    assert isinstance(found, YarnScaling | RopeScaling)
    assert found.original_context == theirs.rope_parameters["original_max_position_embeddings"]
    assert found.factor == (CONFIG.context / found.original_context if kind == "yarn" else 4.0)
