"""Llamas whose matrices have biases, against transformers, in every spelling and through files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import llucid
from llucid import llama_jax
from llucid.checkpoints import convert, describe, load, save
from llucid.checkpoints.gguf import read_header
from llucid.config import Config, DynamicScaling, LinearScaling, YarnScaling
from llucid.errors import LlucidError
from llucid.fast import linear, linear_each
from llucid.generation.batch import Batch
from llucid.llama import llama
from llucid.llama_module import Llama
from llucid.look import trace
from llucid.training.optimizer import make_optimizers
from llucid.training.settings import Settings
from llucid.weights import initialise, named_leaves, parameter_count, tree_map
from tests.checkpoints.gguf_files import file_of
from tests.checkpoints.models import model_of, same
from tests.configs import CONFIGS
from tests.test_llama import random_weights, some_tokens

WITHOUT = CONFIGS["one for two"]
BOTH = replace(WITHOUT, attention_bias=True, mlp_bias=True)
KINDS = {
    "both": BOTH,
    "attention": replace(WITHOUT, attention_bias=True),
    "feed-forward": replace(WITHOUT, mlp_bias=True),
    "both, tied": replace(BOTH, tied_embeddings=True),
    "attention, one head for all": replace(WITHOUT, attention_bias=True, kv_heads=1, head_dim=12),
    "linear scaling": replace(BOTH, rope_scaling=LinearScaling(factor=4.0)),
    "dynamic scaling": replace(BOTH, rope_scaling=DynamicScaling(factor=3.0)),
    "YaRN scaling": replace(
        BOTH, head_dim=32, rope_scaling=YarnScaling(factor=4.0, original_context=32, attention_factor=1.2)
    ),
}
Q_BIAS = "model.layers.0.self_attn.q_proj.bias"


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def config(request: pytest.FixtureRequest) -> Config:
    return request.param


def without_biases(model: llucid.Model) -> llucid.Model:
    weights = tree_map(Tensor.clone, model.weights)
    for path, leaf in named_leaves(weights):
        if path.endswith("_bias"):
            leaf.zero_()
    return model._replace(weights=weights)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.filterwarnings("ignore:This is a friendly reminder")
def test_every_spelling_equals_transformers(dtype: torch.dtype, config: Config, tmp_path: Path) -> None:
    """Beyond the context as well, where scalings differ; through our folder and through theirs."""
    model = model_of(config)._replace(weights=random_weights(config, dtype=dtype))
    weights, tokens = model.weights, some_tokens(config, 1, 200)
    save(model, tmp_path / "ours")
    theirs, report = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", dtype=dtype, output_loading_info=True
    )
    assert not any(report.values()), report
    expected = theirs(tokens).logits.detach()
    # RoPE's angles are float32 in transformers, whatever the weights are.
    close: dict[str, Any] = dict(rtol=3e-4, atol=3e-4) if dtype == torch.float32 else dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(llama(tokens, weights, config), expected, **close)
    torch.testing.assert_close(Llama.from_weights(weights, config)(tokens).detach(), expected, **close)
    with jax.enable_x64(dtype == torch.float64):
        found = llama_jax.llama(jnp.array(tokens[0].numpy()), llama_jax.from_torch(weights), config)
    np.testing.assert_allclose(found, expected[0], **close)
    assert (llama(tokens, without_biases(model).weights, config) - expected).abs().max() > 0.1  # else this cannot fail

    theirs.save_pretrained(tmp_path / "theirs")
    model.tokenizer.save(tmp_path / "theirs")
    opened = load(tmp_path / "theirs", device="cpu")
    assert opened.config == config
    assert same(opened.weights, weights)


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_c_equals_pytorch(config: Config, quantize: Any, tmp_path: Path) -> None:
    """Through a file that is mapped, too. That C's results are the same to the bit in batches is in native."""
    save(model_of(config)._replace(weights=random_weights(config)), tmp_path / "model")
    ids = some_tokens(config, 1, 60)[0].tolist()
    batch = Batch(model := load(tmp_path / "model", device="cpu", quantize=quantize))
    found = np.asarray(batch.read(ids))
    expected = llama(torch.tensor([ids]), model.weights, config)[0, -1].numpy()
    close: dict[str, Any] = dict(rtol=1e-4, atol=1e-4) if quantize is None else dict(rtol=0, atol=0.1 * expected.std())
    np.testing.assert_allclose(found, expected, **close)
    if quantize is None:
        mapped = Batch(load(tmp_path / "model", device="cpu", mapped=True))
        np.testing.assert_allclose(np.asarray(mapped.read(ids)), expected, **close)


def test_hugging_face_to_gguf_and_back(config: Config, tmp_path: Path) -> None:
    model = model_of(config)
    save(model, tmp_path / "one")
    if isinstance(config.rope_scaling, DynamicScaling):
        with pytest.raises(LlucidError, match="GGUF cannot hold DynamicScaling"):
            convert(tmp_path / "one", tmp_path / "two.gguf", "gguf")
        return
    convert(tmp_path / "one", tmp_path / "two.gguf", "gguf")
    convert(tmp_path / "two.gguf", tmp_path / "three", "huggingface")
    found = load(tmp_path / "three", device="cpu")
    assert replace(found.config, rope_scaling=None) == replace(config, rope_scaling=None)
    assert same(found.weights, model.weights)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "three"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_biases_stay_float32_in_quantised_files(tmp_path: Path) -> None:
    model = model_of(replace(BOTH, ffn_dim=64), dtype=torch.bfloat16)
    save(model, tmp_path / "model.gguf", "gguf", dtype="Q8_0")
    header = read_header(tmp_path / "model.gguf")
    assert header["blk.1.attn_k.weight"][1] == "Q8_0"
    assert header["blk.1.attn_k.bias"] == ((16,), "float32")
    assert header["blk.1.ffn_up.bias"] == ((64,), "float32")
    found = load(tmp_path / "model.gguf", device="cpu", quantize="file")
    assert torch.equal(found.weights.blocks[1].attention.key_bias, model.weights.blocks[1].attention.key_bias.float())


def test_query_biases_have_the_order_of_query_matrices(tmp_path: Path) -> None:
    """Hugging Face's file has halves where GGUF and we have pairs."""
    model = model_of(BOTH)
    bias = model.weights.blocks[0].attention.query_bias
    save(model, tmp_path / "hf")
    expected = bias.unflatten(0, (4, 4, 2)).transpose(1, 2).flatten()
    assert torch.equal(load_file(tmp_path / "hf" / "model.safetensors")[Q_BIAS], expected)
    assert not torch.equal(expected, bias)


def test_biases_that_no_block_has_are_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in transformers, and in llama.cpp."""
    model = model_of(KINDS["attention"])
    for block in model.weights.blocks:
        block.attention.output_bias.zero_()
    save(model, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    state = load_file(file)
    save_file({name: tensor for name, tensor in state.items() if not name.endswith("o_proj.bias")}, file)
    found = load(tmp_path / "model", device="cpu")
    assert same(found.weights, model.weights)
    note = capsys.readouterr().err
    assert (
        note == f"note: {tmp_path / 'model'}: model.layers.*.self_attn.o_proj.bias are missing and taken to be zero\n"
    )
    tokens = some_tokens(model.config, 1, 20)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "model")
    expected = theirs(tokens).logits.detach()
    torch.testing.assert_close(llama(tokens, found.weights, found.config), expected, rtol=1e-4, atol=1e-4)


def test_a_gguf_file_with_some_biases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of query, key and value, as from InternLM: the others are zero."""
    model = model_of(BOTH)
    for path, leaf in named_leaves(model.weights):
        if path.endswith(("output_bias", "gate_bias", "up_bias", "down_bias")):
            leaf.zero_()
    names = ("attn_output", "ffn_gate", "ffn_up", "ffn_down")
    left_out = {f"blk.{layer}.{name}.bias": None for layer in range(2) for name in names}
    found = load(file_of(tmp_path / "a.gguf", model, tensors=left_out), device="cpu")
    assert found.config == replace(BOTH, mlp_bias=False)
    assert capsys.readouterr().err.endswith("a.gguf: blk.*.attn_output.bias are missing and taken to be zero\n")
    tokens = some_tokens(BOTH, 1, 20)
    assert torch.equal(llama(tokens, found.weights, found.config), llama(tokens, model.weights, BOTH))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(Q_BIAS), rf"{Q_BIAS} is missing; expected a tensor of shape \[32\]"),
        (lambda state: state.update({Q_BIAS: torch.zeros(16)}), rf"{Q_BIAS} has shape \[16\]; expected \[32\]"),
    ],
    ids=["missing in one block", "another shape"],
)
def test_wrong_biases_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    save(model_of(BOTH), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file)
    with pytest.raises(LlucidError, match=message):
        load(tmp_path / "model", device="cpu")


def test_info_says_it(tmp_path: Path) -> None:
    save(model_of(KINDS["attention"]), tmp_path / "model")
    facts = describe(tmp_path / "model")
    assert (facts["attention_bias"], facts["mlp_bias"]) == ("True", "False")
    per_block = WITHOUT.dim + 2 * 16 + WITHOUT.dim
    expected = parameter_count(WITHOUT) + WITHOUT.layers * per_block
    assert facts["parameters"] == f"{expected:,}"
    assert json.loads((tmp_path / "model" / "config.json").read_text())["attention_bias"] is True


def test_untrained_biases_are_zero_and_do_not_decay() -> None:
    weights = initialise(BOTH)
    biases = [leaf for path, leaf in named_leaves(weights) if path.endswith("_bias")]
    assert len(biases) == 7 * BOTH.layers
    assert not any(leaf.any() for leaf in biases)
    for optimizer in ("adamw", "muon"):
        settings = Settings(steps=1, learning_rate=0.1, muon_learning_rate=0.1, optimizer=optimizer)
        groups = [group for each in make_optimizers(weights, settings) for group in each.param_groups]
        for leaf in biases:
            (group,) = (group for group in groups if any(leaf is other for other in group["params"]))
            assert group["weight_decay"] == 0


def test_several_matrices_have_each_its_bias() -> None:
    """Where they are one product, as in training, and where they are not; values and gradients."""
    torch.manual_seed(0)
    for size in (8, 400):
        x = torch.randn(size, size, requires_grad=True)
        pairs = [
            (torch.randn(rows, size, requires_grad=True), bias) for rows, bias in ((400, torch.randn(400)), (20, None))
        ]
        expected = [x @ w.mT + (0 if bias is None else bias) for w, bias in pairs]
        for found in (linear_each(x, *pairs), [linear(x, *pair) for pair in pairs]):
            torch.testing.assert_close(list(found), expected, rtol=1e-4, atol=1e-4)
        bias = pairs[0][1].requires_grad_()
        linear_each(x, *pairs)[0].sum().backward()
        torch.testing.assert_close(bias.grad, torch.full((400,), float(size)))


def test_a_trace_sees_them(config: Config) -> None:
    model = model_of(config)._replace(weights=random_weights(config))
    ids = some_tokens(config, 1, 9)[0].tolist()
    found = trace(model, ids)
    torch.testing.assert_close(found.logits, llama(torch.tensor([ids]), model.weights, config)[0], rtol=1e-5, atol=1e-5)
    parts = found.attribution(-1, 3)
    assert ("blocks.1.attention_bias" in parts) == config.attention_bias
    assert sum(parts.values()) == pytest.approx(float(found.logits[-1, 3]), abs=1e-4)
    names = [value.name for value in found.names()]
    plain = trace(model_of(replace(config, attention_bias=False, mlp_bias=False)), ids)
    assert names == [value.name for value in plain.names()]
