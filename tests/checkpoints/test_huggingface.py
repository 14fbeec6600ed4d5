"""Hugging Face folders, written by transformers and by llucid; other models are refused."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from llucid.arrays.quantize import quantize_matrix
from llucid.checkpoints import Model, convert, describe, huggingface, load, save
from llucid.config import Config
from llucid.errors import LlucidError
from llucid.fast import dense
from llucid.llama import llama
from llucid.tokenizers.characters import Characters
from llucid.weights import initialise, leaves
from llucid.weights import tensors as in_torch
from tests.checkpoints.models import model_of, same
from tests.configs import CONFIGS, OTHER_SCALING, RESCALED
from tests.tokenizers.texts import small_llama2c, small_ranks, small_sentencepiece

FAR = [0, 1, 2, 3, 500, 8191, 8192, 20_000]
"""Positions at which RoPE scaling makes a difference."""


@pytest.fixture(params=CONFIGS.values(), ids=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> Config:
    return request.param


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete model, to be damaged."""
    save(model_of(CONFIGS["one for two"]), tmp_path / "model")
    return tmp_path / "model"


def change_config(folder: Path, **changes: Any) -> None:
    """Changes keys of config.json; ... removes a key."""
    file = folder / "config.json"
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def check_equal(model: Model, tokens: Tensor, expected: Tensor, positions: Tensor | None) -> None:
    """Equal up to the float32 rounding of sums (1e-5) and of RoPE's frequencies. Angles are frequencies times positions
    of thousands, and sharp attention amplifies their rounding; changing rope_theta by ten roundings shows how much."""
    config = model.config
    found = llama(tokens, model.weights, config, positions=positions)
    larger = replace(config, rope_theta=config.rope_theta * (1 + 1e-6))
    tolerance = 1e-5 + (found - llama(tokens, model.weights, larger, positions=positions)).abs().max()
    assert (found - expected).abs().max() < tolerance < 2e-2 * expected.abs().max()


@pytest.mark.parametrize("wrong", [torch.zeros(4, 4, dtype=torch.int64), torch.zeros(())])
def test_wrong_embeddings_of_a_tied_model_are_refused(wrong: torch.Tensor, tmp_path: Path) -> None:
    save(model_of(CONFIGS["one for all, tied"]), tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    changed = {"model.embed_tokens.weight": wrong, "lm_head.weight": wrong.clone()}
    save_file(tensors | changed, tmp_path / "model" / "model.safetensors")
    with pytest.raises(LlucidError, match=r"model\.embed_tokens\.weight"):
        load(tmp_path / "model", device="cpu")


def test_transformers_opens_our_folders(config: Config, tmp_path: Path) -> None:
    model = model_of(config)
    save(model, tmp_path / "model")
    opened: Any = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", output_loading_info=True, attn_implementation="eager"
    )
    theirs, report = opened
    assert not any(report.values()), report
    tokens = torch.randint(config.vocab_size, (2, len(FAR)), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens, position_ids=torch.tensor(FAR).expand(2, -1)).logits
    check_equal(model, tokens, expected, torch.tensor(FAR))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "model")("0123").input_ids == [0, 1, 2, 3]


def test_logits_of_1000_positions_are_equal(config: Config, tmp_path: Path) -> None:
    config = replace(config, context=max(config.context, 1024))
    save(model_of(config), tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    tokens = torch.randint(config.vocab_size, (1, 1000), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).logits
    check_equal(load(tmp_path / "model", device="cpu"), tokens, expected, None)


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_we_open_folders_of_transformers(config: Config, shard: str, tmp_path: Path) -> None:
    model = model_of(config)
    save(model, tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    assert model.tokenizer
    model.tokenizer.save(tmp_path / "theirs")
    files = list((tmp_path / "theirs").glob("*.safetensors"))
    assert len(files) == 1 if shard == "1GB" else len(files) > 1
    found = load(tmp_path / "theirs", device="cpu")
    assert found.config == config
    assert same(found.weights, model.weights)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_fsdp_wrapped_module.", "model."])
def test_prefixes_of_compiled_and_distributed_models(prefix: str, folder: Path) -> None:
    expected = load(folder, device="cpu").weights
    state = load_file(folder / "model.safetensors")
    state = {prefix + name: tensor for name, tensor in state.items()}
    save_file(state, folder / "model.safetensors")
    assert same(load(folder, device="cpu").weights, expected)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert same(load(folder, device="cpu").weights, expected)


def test_a_tied_matrix_under_the_name_of_the_output(tmp_path: Path) -> None:
    """As safetensors' save_model writes it, which keeps the first of two names."""
    model = model_of(CONFIGS["one for all, tied"])
    save(model, tmp_path / "m")
    state = load_file(tmp_path / "m" / "model.safetensors")
    state["lm_head.weight"] = state.pop("model.embed_tokens.weight")
    save_file(state, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    assert same(load(tmp_path / "m", device="cpu").weights, model.weights)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.equal(theirs.state_dict()["model.embed_tokens.weight"], model.weights.embedding)


COMMON = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "pretraining_tp": 1}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32)
            | dict(num_key_value_heads=4, vocab_size=32000, max_position_embeddings=2048, rms_norm_eps=1e-05)
            | dict(rope_scaling=None, tie_word_embeddings=False, attention_bias=False, torch_dtype="float32"),
            (2048, 22, 32, 4, 64, 5632, 32000, 2048, 1e-5, 10_000.0, False),
        ),
        (
            dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9)
            | dict(num_key_value_heads=3, vocab_size=49152, max_position_embeddings=8192, rms_norm_eps=1e-05)
            | dict(rope_theta=100000, rope_interleaved=False, is_llama_config=True, mlp_bias=False)
            | dict(tie_word_embeddings=True, **{"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}}),
            (576, 30, 9, 3, 64, 1536, 49152, 8192, 1e-5, 100_000.0, True),
        ),
        (
            dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
            | dict(num_key_value_heads=4, vocab_size=64000, max_position_embeddings=4096, rms_norm_eps=1e-05)
            | dict(rope_theta=5000000.0, pad_token_id=0, tie_word_embeddings=False, use_cache=True),
            (4096, 32, 32, 4, 128, 11008, 64000, 4096, 1e-5, 5e6, False),
        ),
    ],
    ids=["TinyLlama", "SmolLM2", "Yi"],
)
def test_other_models_of_the_same_architecture(
    values: dict[str, Any], expected: tuple[Any, ...], tmp_path: Path
) -> None:
    """The values are those of their published config.json."""
    (tmp_path / "config.json").write_text(json.dumps(COMMON | values))
    c = huggingface.read_config(tmp_path)
    assert (c.dim, c.layers, c.heads, c.kv_heads, c.head_dim, c.ffn_dim, c.vocab_size) == expected[:7]
    assert (c.context, c.norm_eps, c.rope_theta, c.tied_embeddings, c.rope_scaling) == (*expected[7:], None)


@pytest.mark.parametrize("sharded", [False, True])
def test_folders_with_pytorch_model_bin(sharded: bool, folder: Path) -> None:
    """One file, or two with an index; with prefixes of torch.compile, and angles that old versions saved."""
    expected = load(folder, device="cpu").weights
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    state["_orig_mod.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    if sharded:
        names = sorted(state)
        halves = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
        for file, half in halves.items():
            torch.save({name: state[name] for name in half}, folder / file)
        places = {name: file for file, half in halves.items() for name in half}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    else:
        torch.save(state, folder / "pytorch_model.bin")
    assert same(load(folder, device="cpu").weights, expected)
    assert describe(folder)["dtype"] == "float32"


@pytest.mark.parametrize("state", [[torch.ones(2)], torch.ones(2), {"a": 1}], ids=["a list", "a tensor", "a number"])
def test_pickles_of_other_objects_are_refused(state: Any, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(LlucidError, match=r"pytorch_model\.bin: expected a dictionary of tensors"):
        load(folder, device="cpu")


SCALED = {
    "factor": OTHER_SCALING.factor,
    "low_freq_factor": OTHER_SCALING.low_freq_factor,
    "high_freq_factor": OTHER_SCALING.high_freq_factor,
    "original_max_position_embeddings": OTHER_SCALING.original_context,
}
OF_LLAMA3 = SCALED | {"rope_type": "llama3"}


def test_tensors_are_aligned_to_8_bytes(tmp_path: Path) -> None:
    """As in safetensors' own files, so that tensors of any dtype can be mapped."""
    for layers in (1, 2, 3, 11):
        save(model_of(replace(CONFIGS["one for two"], layers=layers)), tmp_path / f"{layers}")
        with open(tmp_path / f"{layers}" / "model.safetensors", "rb") as file:
            assert int.from_bytes(file.read(8), "little") % 8 == 0


def test_config_json_has_the_keys_of_transformers_4(tmp_path: Path) -> None:
    """It reads neither rope_parameters nor dtype."""
    for config, scaling in ((RESCALED, SCALED | {"rope_type": "llama3"}), (CONFIGS["theta of Llama 3"], None)):
        save(model_of(config, dtype=torch.bfloat16), tmp_path / f"{config.head_dim}")
        values = json.loads((tmp_path / f"{config.head_dim}" / "config.json").read_text())
        assert (values["rope_theta"], values["rope_scaling"]) == (500_000.0, scaling)
        assert values["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("make", "ends"),
    [
        (small_sentencepiece, 2),
        (small_llama2c, [1, 2]),
        (small_ranks, [313, 320, 321]),
        (lambda: Characters("ab"), None),
    ],
)
def test_config_json_has_the_ids_that_end_a_text(make: Any, ends: Any, tmp_path: Path) -> None:
    config = replace(CONFIGS["one for two"], vocab_size=600)
    save(Model(config, model_of(config).weights, make()), tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["eos_token_id"] == ends


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(rope_scaling=SCALED | {"rope_type": "llama3"}, rope_theta=5e5, rope_parameters=...),
        dict(rope_scaling=SCALED | {"type": "llama3"}, rope_theta=500000, rope_parameters=...),
        dict(rope_scaling=None, rope_parameters=SCALED | {"rope_type": "llama3", "rope_theta": 5e5}, rope_theta=...),
        dict(
            rope_parameters=SCALED | {"rope_type": "llama3", "rope_theta": 5e5},
            head_dim=None,
            attention_bias=None,
            torch_dtype=...,
            dtype=...,
        ),
    ],
)
def test_other_spellings_of_one_config(changes: dict[str, Any], tmp_path: Path) -> None:
    config = replace(RESCALED, head_dim=8, tied_embeddings=True)
    save(model_of(config), tmp_path / "model")
    change_config(tmp_path / "model", **changes)
    assert huggingface.read_config(tmp_path / "model") == config


def test_defaults_of_transformers(folder: Path) -> None:
    change_config(
        folder, rope_parameters=None, rope_scaling=None, rope_theta=..., num_key_value_heads=None, head_dim=...
    )
    change_config(folder, tie_word_embeddings=..., rms_norm_eps=..., max_position_embeddings=..., mlp_bias=...)
    found = huggingface.read_config(folder)
    theirs = transformers.LlamaConfig()
    assert (found.rope_theta, found.norm_eps, found.context) == (10_000.0, theirs.rms_norm_eps, 2048)
    assert theirs.max_position_embeddings == 2048
    assert (found.kv_heads, found.head_dim, found.tied_embeddings) == (4, 8, False)


def test_a_sliding_window_is_ignored_as_in_transformers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    tokens = torch.arange(20)[None]
    change_config(folder, sliding_window=4)
    other = transformers.LlamaForCausalLM.from_pretrained(folder)
    assert other.config.sliding_window == 4
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, other(tokens).logits)
    found = huggingface.read_config(folder)
    assert "config.json: sliding_window 4 is ignored, as in transformers" in capsys.readouterr().err
    for window, used in ((None, None), (4, False), (found.context, None)):  # as Qwen's configs have it
        change_config(folder, sliding_window=window, use_sliding_window=used)
        assert huggingface.read_config(folder) == found
        assert not capsys.readouterr().err


@pytest.mark.parametrize("names", [["LlamaForSequenceClassification", "LlamaForCausalLM"], "LlamaForCausalLM"])
def test_other_spellings_of_the_architecture(names: Any, folder: Path) -> None:
    expected = huggingface.read_config(folder)
    change_config(folder, architectures=names)
    assert huggingface.read_config(folder) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model_type="mistral", sliding_window=4096), 'model_type "mistral"; a Llama'),
        (dict(architectures=["MistralForCausalLM"], model_type=...), '["MistralForCausalLM"]'),
        (dict(model_type="qwen2"), 'model_type "qwen2"'),
        (dict(architectures="MistralForCausalLM"), 'architectures "MistralForCausalLM"'),
        (dict(architectures=7), "architectures 7"),
        (dict(attention_bias="yes"), 'attention_bias "yes"'),
        (dict(mlp_bias=[]), "mlp_bias []"),
        (dict(tie_word_embeddings="false"), 'tie_word_embeddings "false"'),
        (dict(hidden_act="gelu"), 'hidden_act "gelu"'),
        (
            dict(quantization_config={"quant_method": "gptq"}),
            'has quantization_config {"quant_method": "gptq"}; llucid opens no model that is quantised so; use the',
        ),
        (dict(rope_scaling={"type": "longrope", "factor": 2.0}, rope_parameters=...), 'type "longrope"'),
        (dict(rope_scaling={"type": "linear"}, rope_parameters=...), "factor is missing; expected a number"),
        (dict(rope_parameters={"rope_type": "llama3"}), "factor is missing; expected a number"),
        (dict(rope_parameters={"partial_rotary_factor": 0.5}), "partial_rotary_factor 0.5"),
        (
            dict(rope_parameters={"rope_type": "default"}, rope_scaling={"type": "linear", "factor": 4.0}),
            'rope_type is "default" in rope_parameters and "linear" in rope_scaling',
        ),
        (
            dict(
                rope_parameters=SCALED | {"rope_type": "llama3"}, rope_scaling=SCALED | {"type": "llama3", "factor": 3}
            ),
            "in rope_parameters and 3 in rope_scaling",
        ),
        (
            dict(rope_parameters=OF_LLAMA3 | {"rope_theta": 5e4}, rope_scaling=OF_LLAMA3, rope_theta=...),
            "rope_theta is 50000.0 in rope_parameters and 10000.0 in rope_scaling",
        ),
        (dict(rope_parameters={"rope_type": "default"}, rope_scaling=[1]), "rope_scaling should be an object"),
        (dict(hidden_size="64"), 'hidden_size should be a whole number and is "64"'),
        (dict(hidden_size=...), "config.json: hidden_size is missing; expected a whole number"),
        (dict(hidden_size=None), "hidden_size should be a whole number and is null"),
        (
            dict(max_position_embeddings=10**400, rope_parameters=dict(rope_type="linear", factor=2)),
            "be below 2⁶⁴",
        ),
        (dict(max_position_embeddings=10**400, rope_parameters=dict(rope_type="yarn")), "be below 2⁶⁴"),
        (
            dict(rope_parameters=dict(rope_type="yarn", factor=math.e, mscale=1, mscale_all_dim=-10)),
            "attention_factor=0",
        ),
        (dict(num_attention_heads=0), "heads=0"),
        (dict(num_key_value_heads=3), "not divisible by kv_heads=3"),
        (dict(rms_norm_eps=float("nan")), "rms_norm_eps should be a number"),
        (dict(rms_norm_eps=10**400), "rms_norm_eps should be a number"),
        (dict(num_hidden_layers=2**31 - 1), "2147483647 layers, but there are only"),
    ],
)
def test_other_models_are_refused(changes: dict[str, Any], message: str, folder: Path) -> None:
    change_config(folder, **changes)
    with pytest.raises(LlucidError, match=message if "\\" in message else re.escape(message)) as caught:
        load(folder, device="cpu")
    assert str(folder) in str(caught.value)


OUTPUT, NORM = "lm_head.weight", "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop(NORM), "model.norm.weight is missing; expected a tensor of shape [32]"),
        (lambda t: t.pop(OUTPUT), "lm_head.weight is missing; if the embedding is the output matrix"),
        (
            lambda t: t.update({"model.layers.2.mlp.up_proj.weight": t[NORM] * 1}),
            "model.layers.2.mlp.up_proj.weight [32] is not part",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": t[NORM] * 1}),
            "q_proj.bias [32] is not part of the Llama",
        ),
        (lambda t: t.update({NORM: t[NORM][1:].clone()}), "model.norm.weight has shape [31]; expected [32]"),
        (
            lambda t: t.update({OUTPUT: t[OUTPUT].T.contiguous()}),
            "lm_head.weight has shape [32, 50]; expected [50, 32]",
        ),
        (lambda t: t.update({NORM: t[NORM].int()}), "model.norm.weight is I32; expected one of float64"),
        (lambda t: t.update({NORM: t[NORM].to(torch.float8_e5m2)}), "model.norm.weight is F8_E5M2; expected"),
    ],
)
def test_wrong_tensors_are_refused(damage: Any, message: str, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(LlucidError, match=re.escape(message)):
        load(folder, device="cpu")


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_head_of_its_own_is_used_although_the_config_ties_it(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in transformers, which ties only a head that is missing or equal."""
    model = model_of(CONFIGS["one for all, tied"])
    save(model, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "model.safetensors").unlink()
    write = save_file if file == "model.safetensors" else torch.save
    for dtype in (torch.float64, torch.float32):
        tensors[OUTPUT] = tensors["model.embed_tokens.weight"].clone().to(dtype)
        write(tensors, tmp_path / "model" / file)
        assert same(load(tmp_path / "model", device="cpu").weights, model.weights)
        assert not capsys.readouterr().err
    tensors[OUTPUT][3, 3] += 1
    write(tensors, tmp_path / "model" / file)
    found = load(tmp_path / "model", device="cpu")
    assert f"{tmp_path / 'model'}: lm_head.weight differs from the embedding and is used" in capsys.readouterr().err
    assert found.config == replace(model.config, tied_embeddings=False)
    assert same(found.weights, model.weights._replace(output=tensors[OUTPUT]))
    tokens = torch.arange(20)[None]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    with torch.no_grad():
        check_equal(found, tokens, theirs(tokens).logits, None)
    mapped = load(tmp_path / "model", device="cpu", mapped=True)
    assert same(in_torch(mapped.weights), found.weights)
    quantised = load(tmp_path / "model", device="cpu", quantize="int8").weights
    assert torch.equal(dense(leaves(quantised)[-1]), quantize_matrix(tensors[OUTPUT], 8).dense())
    assert describe(tmp_path / "model")["tied_embeddings"] == "False"
    for out, format in (("hf", "huggingface"), ("m.gguf", "gguf"), ("meta", "meta"), ("m.bin", "llama2c")):
        convert(tmp_path / "model", tmp_path / "out" / out, format)
        written = load(tmp_path / "out" / out, device="cpu")
        assert not written.config.tied_embeddings
        assert same(written.weights, found.weights)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({NORM: "../model.safetensors"}, "does not exist in model itself, but model"),
        ({NORM: "/etc/passwd"}, "does not exist in model itself, but model"),
        ({NORM: "part-2.safetensors"}, "does not exist in model itself, but model"),
        ({NORM: "x" * 300}, "does not exist in model itself, but model"),
        ({NORM: 3}, "expected weight_map to be"),
        (["part-1.safetensors"], "expected weight_map to be"),
        (None, "expected weight_map to be"),
    ],
)
def test_an_index_can_only_name_files_of_its_folder(places: Any, message: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "part-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(LlucidError, match=message):
        load(folder, device="cpu")


def test_a_tensor_in_two_files_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "part-1.safetensors")
    save_file({NORM: tensors[NORM]}, folder / "part-2.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {OUTPUT: "part-1.safetensors", "other": "part-2.safetensors"}}))
    with pytest.raises(LlucidError, match=r"part-2\.safetensors: model\.norm\.weight is also in another file"):
        load(folder, device="cpu")
    for chosen in ("part-1.safetensors", "part-2.safetensors"):
        save_file({NORM: tensors[NORM] + 1}, folder / "part-2.safetensors")
        places = {OUTPUT: "part-1.safetensors", "other": "part-2.safetensors", NORM: chosen}
        index.write_text(json.dumps({"weight_map": places}))
        norm = load(folder, device="cpu").weights.norm
        assert torch.equal(norm, tensors[NORM] + (chosen == "part-2.safetensors"))
        said = "ignored, since the index names another file for it: model.norm.weight\n"
        assert capsys.readouterr().err.endswith(f"part-{1 + (chosen == 'part-1.safetensors')}.safetensors: {said}")


def test_additional_tensors_are_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other heads, as trl's value function, and what old versions saved."""
    model = model_of(CONFIGS["one for two"])
    save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors |= {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)}
    tensors["score.weight"] = torch.ones(2, 32)
    tensors["model.layers.0.self_attn.rotary_emb.cos_cached"] = torch.ones(9, 8)
    tensors["model.layers.0.self_attn.masked_bias"] = torch.ones(1)
    tensors["model.layers.0.self_attn.bias"] = tensors["model.causal_mask"] = torch.ones(8, 8).tril().bool()
    tensors["model.layers.0.self_attn.bias"] = tensors["model.layers.0.self_attn.bias"].clone()
    tensors["model.rotary_emb.original_inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors")
    assert same(load(tmp_path, device="cpu").weights, model.weights)
    ignored = "not part of a Llama, and ignored: score.weight, v_head.summary.bias, v_head.summary.weight\n"
    assert capsys.readouterr().err == f"note: {tmp_path}: {ignored}"
    tensors |= {"lm_head.bias": torch.ones(50), "model.layers.0.self_attn.k_proj.k_scale": torch.tensor(2.0)}
    save_file(tensors | {"model.layers.0.self_attn.v_scale": torch.ones(1)}, tmp_path / "model.safetensors")
    assert same(load(tmp_path, device="cpu").weights, model.weights)
    assert "ignored: lm_head.bias, model.layers.0.self_attn.k_proj.k_scale, model" in capsys.readouterr().err
    tokens = torch.arange(20)[None]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    with torch.no_grad():
        check_equal(load(tmp_path, device="cpu"), tokens, theirs(tokens).logits, None)
    capsys.readouterr()
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "adapter_model.safetensors")
    load(tmp_path, device="cpu")
    assert "the LoRA adapter beside the model is not used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("qweight", torch.int32, "quantised in a way that llucid cannot open"),
        ("weight", torch.int8, "quantised in a way that llucid cannot open"),
        ("weight", torch.float8_e4m3fn, "quantised in a way that llucid cannot open"),
        ("W_q", torch.uint8, "quantised in a way that llucid cannot open"),
        ("lora_A.weight", torch.float32, "belongs to a LoRA adapter; merge it into its base model first"),
        ("base_layer.weight", torch.float32, "belongs to a LoRA adapter"),
    ],
)
def test_quantised_and_adapted_models_are_named(name: str, dtype: torch.dtype, message: str, tmp_path: Path) -> None:
    """Without a quantization_config, as older programs write them."""
    save(model_of(CONFIGS["one for two"]), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    place = "model.layers.0.self_attn.q_proj."
    tensors[place + name] = tensors.pop(f"{place}weight").to(dtype)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(LlucidError, match=f"{message}.*"):
        load(tmp_path, device="cpu")


def test_several_dtypes_become_the_one_that_holds_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the matrices: norms may be in float32 beside them."""
    model = model_of(CONFIGS["one for two"])
    save(model, tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    tensors = load_file(file)
    large = "model.layers.0.mlp.up_proj.weight"
    tensors[large] = tensors[large] * 1e6
    halves = {name: tensor if name == large else tensor.half() for name, tensor in tensors.items()}
    save_file(halves, file)
    convert(tmp_path / "a", tmp_path / "b", "huggingface")
    for path in (tmp_path / "a", tmp_path / "b"):
        found = load(path, device="cpu").weights
        assert found.dtype == torch.float32
        assert torch.equal(found.blocks[0].feed_forward.up, tensors[large])
        assert torch.equal(found.embedding, tensors["model.embed_tokens.weight"].half().float())
        assert same(in_torch(load(path, device="cpu", mapped=True).weights), found)
    tensors |= {large: halves[large] / 1e6, NORM: torch.full((32,), 1 / 3)}
    narrow = {name: tensor.half() if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
    for name in (name for name, tensor in tensors.items() if tensor.ndim == 1 and name != NORM):
        narrow[name] = torch.ones(32)
    save_file(narrow, file)
    capsys.readouterr()
    assert load(tmp_path / "a", device="cpu").weights.dtype == torch.float16
    assert "norms or biases are rounded to float16, as the matrices are; dtype=float32 keeps" in capsys.readouterr().err
    convert(tmp_path / "a", tmp_path / "c", "huggingface")
    kept = load_file(tmp_path / "c" / "model.safetensors")
    assert torch.equal(kept[NORM], tensors[NORM])
    assert kept["model.layers.0.input_layernorm.weight"].dtype == torch.float16


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_model_without_its_head(tied: bool, tmp_path: Path) -> None:
    """As transformers saves a LlamaModel."""
    model = model_of(CONFIGS["one for all, tied" if tied else "one for two"])
    save(model, tmp_path)
    change_config(tmp_path, architectures=["LlamaModel"])
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop(OUTPUT, None)
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    if tied:
        assert same(load(tmp_path, device="cpu").weights, model.weights)
    else:
        with pytest.raises(
            LlucidError, match=r'lm_head.weight is missing; .* "tie_word_embeddings": true into config.json'
        ):
            load(tmp_path, device="cpu")


def test_a_model_with_several_dtypes_gets_that_of_the_embedding(tmp_path: Path) -> None:
    model = model_of(CONFIGS["one for two"], dtype=torch.bfloat16)
    mixed = model.weights._replace(norm=model.weights.norm.float())
    save(Model(model.config, mixed, model.tokenizer), tmp_path / "model")
    assert {leaf.dtype for leaf in leaves(load(tmp_path / "model", device="cpu").weights)} == {torch.bfloat16}


def test_errors_for_paths_without_a_model(folder: Path) -> None:
    (folder.parent / "text.txt").write_text("To be, or not to be, that is the question: whether")
    (folder.parent / "empty").mkdir()
    for path, message in (
        (folder.parent / "nothing", "there is no such file or folder"),
        (folder.parent / "text.txt", "not a model"),
        (folder.parent / "empty", "not a model"),
        (folder / "model.safetensors", "give the folder it is in"),
    ):
        with pytest.raises(LlucidError, match=message):
            load(path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(LlucidError, match=r"has a config\.json but no weights"):
        load(folder)


def test_another_tokenizer_does_not_get_the_folder_s_template(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": "{{ messages }}"}))
    assert load(folder, device="cpu").chat_format == "{{ messages }}"
    assert load(folder, device="cpu", tokenizer=folder / "tokenizer.json").chat_format is None


def test_a_repository_is_downloaded_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[tuple[str, list[str]]] = []

    def fetch(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        requested.append((name, allow_patterns))
        if name != "org/llama-1.5":
            raise ConnectionError("no route to host\nand more")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert same(load("org/llama-1.5").weights, load(folder).weights)
    assert requested == [("org/llama-1.5", ["*.json", "*.safetensors", "*.model", "*.jinja"])]
    with pytest.raises(LlucidError, match=r"^org/other: .* no repository .* \(no route to host\)$"):
        load("org/other")
    with pytest.raises(LlucidError, match="a/b/c: there is no such file or folder; a Hugging Face repository is"):
        load("a/b/c")
    assert len(requested) == 2


def test_pytorch_files_of_an_older_repository_are_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(folder).weights
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()

    def fetch(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        if "pytorch_model*.bin" in allow_patterns:
            torch.save(state, folder / "pytorch_model.bin")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert same(load("org/llama-1.5").weights, expected)


def test_saved_weights_do_not_require_gradients(tmp_path: Path) -> None:
    """Although the weights that training saves do."""
    config = CONFIGS["one for two"]
    weights = initialise(config)
    for leaf in leaves(weights):
        leaf.requires_grad_()
    for format, out in (("huggingface", "hf"), ("meta", "meta")):
        save(Model(config, weights, model_of(config).tokenizer), tmp_path / out, format)
        assert not any(leaf.requires_grad for leaf in leaves(load(tmp_path / out).weights))


def test_entries_of_a_safetensors_header_are_objects(tmp_path: Path) -> None:
    """The library also reads lists."""
    save(model_of(CONFIGS["one for two"]), tmp_path)
    header = b'{"t":["F32",[2,2],[0,16]]}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(LlucidError, match=r"model\.safetensors: .*an entry of its header is not an object"):
        load(tmp_path)
