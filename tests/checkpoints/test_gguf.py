"""GGUF models: round trips, the story of llama2.c, and errors that name what is not supported."""

import math
import re
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llucid.arrays import Quantized
from llucid.chat import encode_dialog
from llucid.checkpoints import Model, convert, describe, load, save
from llucid.checkpoints import gguf as gguf_format
from llucid.checkpoints.gguf_file import read_file_header
from llucid.config import Config, LinearScaling, RopeScaling, YarnScaling
from llucid.errors import LlucidError
from llucid.llama import llama
from llucid.weights import dequantize, leaves, named_leaves, tree_map
from tests.checkpoints.gguf_files import file_of
from tests.checkpoints.models import model_of, same
from tests.checkpoints.test_hostile import TINY
from tests.checkpoints.test_llama2c import STORY, story
from tests.configs import CONFIGS
from tests.tokenizers.kinds import metaspace


@pytest.fixture(params=CONFIGS.values(), ids=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> Config:
    return request.param


def test_round_trip_is_exact_to_the_bit(config: Config, tmp_path: Path) -> None:
    model = model_of(config)
    save(model, tmp_path / "a.gguf", "gguf")
    found = load(tmp_path / "a.gguf", device="cpu")
    assert found.config == config
    assert same(found.weights, model.weights)
    assert found.tokenizer
    assert model.tokenizer
    assert found.tokenizer.encode("0123AB") == model.tokenizer.encode("0123AB")
    tokens = torch.arange(40)[None] % config.vocab_size
    assert torch.equal(llama(tokens, found.weights, found.config), llama(tokens, model.weights, config))
    save(found, tmp_path / "b.gguf", "gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, config: Config, tmp_path: Path) -> None:
    name = str(dtype).removeprefix("torch.")
    model = model_of(config)
    rounded = Model(config, tree_map(lambda leaf: leaf.to(dtype), model.weights), model.tokenizer)
    save(model, tmp_path / "a.gguf", "gguf", dtype=name)
    save(rounded, tmp_path / "b.gguf", "gguf")
    for file in ("a.gguf", "b.gguf"):
        assert same(load(tmp_path / file, device="cpu").weights, rounded.weights)
    header = gguf_format.read_header(tmp_path / "a.gguf")
    assert {kind for shape, kind in header.values() if len(shape) == 2} == {name}
    assert {kind for shape, kind in header.values() if len(shape) == 1} == {"float32"}


def test_q8_0_error_is_within_its_bound(config: Config, tmp_path: Path) -> None:
    """The error is at most half a step, d/2, plus the rounding of the step to float16, at most 127·d/2048."""
    model = model_of(config)
    save(model, tmp_path / "a.gguf", "gguf", dtype="q8_0")
    found = load(tmp_path / "a.gguf", device="cpu")
    header = gguf_format.read_header(tmp_path / "a.gguf")
    assert found.weights.embedding.dtype == torch.float32
    for (path, a), b in zip(named_leaves(model.weights), leaves(found.weights), strict=True):
        kind = header[gguf_format.name_of(path)][1]
        if a.dim() == 1:
            assert kind == "float32"
            assert torch.equal(a, b)
        elif a.shape[1] % 32:
            assert kind == "float16"
            assert torch.equal(a.half().float(), b)
        else:
            assert kind == "Q8_0"
            step = a.view(-1, 32).abs().amax(1, keepdim=True) / 127
            assert ((a - b).view(-1, 32).abs() <= step * (0.5 + 127 / 2048 + 1e-5)).all()
            assert not torch.equal(a, b)
    save(found, tmp_path / "b.gguf", "gguf", dtype="Q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_changing_opened_weights_does_not_change_the_file(tmp_path: Path) -> None:
    save(model_of(CONFIGS["one for two"]), tmp_path / "a.gguf", "gguf")
    before = (tmp_path / "a.gguf").read_bytes()
    tree_map(lambda leaf: leaf.zero_(), load(tmp_path / "a.gguf", device="cpu").weights)
    assert (tmp_path / "a.gguf").read_bytes() == before


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_an_embedded_tokenizer_json_survives_every_conversion(scheme: str, tmp_path: Path) -> None:
    """GGUF has no keys for how these add spaces; llucid still gets the same ids, also in the other formats."""
    tokenizer = metaspace(scheme)
    tokenizer.config["chat_template"] = "{{ bos_token }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    config = replace(CONFIGS["one for two"], vocab_size=tokenizer.vocab_size + 3, norm_eps=1e-5)
    save(model_of(config)._replace(tokenizer=tokenizer), tmp_path / "a.gguf", "gguf")
    convert(tmp_path / "a.gguf", tmp_path / "hf", "huggingface")
    convert(tmp_path / "a.gguf", tmp_path / "meta", "meta")
    convert(tmp_path / "hf", tmp_path / "b.gguf", "gguf")
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()
    dialog = [{"role": role, "content": "bell"} for role in ("user", "assistant", "user")]
    ids = encode_dialog(dialog, tokenizer, tokenizer.config["chat_template"])
    assert (ids.count(tokenizer.encode("bell")[0]) == 3) == (scheme == "always")
    opened = [load(tmp_path / name, device="cpu") for name in ("a.gguf", "hf", "meta")]
    for found in (*opened, load(tmp_path / "a.gguf", device="cpu", mapped=True)):
        assert found.tokenizer
        for text in ("  Once", "bell", " a  bell "):
            assert found.tokenizer.encode(text) == tokenizer.encode(text)
        assert (found.tokenizer.bos, found.tokenizer.eos, found.tokenizer.stop_ids) == (1, 2, {2})
        assert encode_dialog(dialog, found.tokenizer, found.chat_format) == ids
    description = describe(tmp_path / "a.gguf")
    assert (description["tokenizer"], description["bos, eos"]) == (
        f"Hugging Face tokenizer, {tokenizer.vocab_size:,} ids",
        "1, 2",
    )


def test_a_damaged_embedded_tokenizer_json_is_refused(tmp_path: Path) -> None:
    model = model_of(replace(CONFIGS["one for two"], vocab_size=metaspace().vocab_size))
    save(model._replace(tokenizer=metaspace()), tmp_path / "a.gguf", "gguf")
    content = (tmp_path / "a.gguf").read_bytes()
    at = content.index(b"tokenizer.huggingface.json") + len(b"tokenizer.huggingface.json") + 4
    size = int.from_bytes(content[at : at + 8], "little")
    for length in (len(content), 2**63, 2**64 - 1):
        (tmp_path / "a.gguf").write_bytes(content[:at] + length.to_bytes(8, "little") + content[at + 8 :])
        with pytest.raises(LlucidError, match=f"ends within 1 strings that begin at byte {at:,}"):
            load(tmp_path / "a.gguf", device="cpu")
    (tmp_path / "a.gguf").write_bytes(content[: at + 8] + b"\xff" * size + content[at + 8 + size :])
    with pytest.raises(LlucidError, match="is not valid UTF-8"):
        load(tmp_path / "a.gguf", device="cpu")
    for text, reason in ((b"{", r"not a JSON file \(mostly empty"), (b"x", r"not a JSON file \(Expecting value")):
        (tmp_path / "a.gguf").write_bytes(content[: at + 8] + text * size + content[at + 8 + size :])
        with pytest.raises(LlucidError, match=rf"a\.gguf: tokenizer\.huggingface\.json: {reason}"):
            load(tmp_path / "a.gguf", device="cpu")
    assert describe(tmp_path / "a.gguf")["tokenizer"].startswith("none (")


def test_writing_streams_and_a_failure_leaves_no_file(tmp_path: Path) -> None:
    model, steps = model_of(CONFIGS["one for two"]), []
    save(model, tmp_path / "a.gguf", "gguf", progress=lambda done, total: steps.append((done, total)))
    assert len(steps) == 2 * 9 + 3
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1][0] == steps[-1][1] == sum(leaf.nbytes for leaf in leaves(model.weights))

    def fail(done: int, total: int) -> None:
        if done > total / 2:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        save(model, tmp_path / "b.gguf", "gguf", progress=fail)
    assert [file.name for file in tmp_path.iterdir()] == ["a.gguf"]


def test_describe_reads_only_the_header(tmp_path: Path) -> None:
    save(model_of(CONFIGS["scaling of Llama 3.2, tied"]), tmp_path / "a.gguf", "gguf", dtype="Q8_0")
    description = describe(tmp_path / "a.gguf")
    assert description["format"] == "gguf"
    assert description["dtype"] == "Q8_0, float16, float32"
    assert description["tokenizer"] == "characters, 50 ids"
    assert description["rope_scaling"] == str(RopeScaling(factor=32.0))
    assert description["tied_embeddings"] == "True"


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_quantised_matrices_are_kept_unchanged(name: str, tmp_path: Path) -> None:
    config = replace(CONFIGS["one for two"], dim=64, ffn_dim=172)  # rows of 172 are no multiple of 32
    save(model_of(config), tmp_path / "a.gguf", "gguf", dtype=name)
    kept = load(tmp_path / "a.gguf", device="cpu", quantize="file")
    kinds = {path: isinstance(leaf, Quantized) for path, leaf in named_leaves(kept.weights)}
    assert kinds["embedding"]
    assert not kinds["blocks.0.feed_forward.down"]
    save(kept, tmp_path / "b.gguf", "gguf", dtype=name)
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()
    again = load(tmp_path / "a.gguf", device="cpu", quantize="int8")
    assert same(dequantize(again.weights), dequantize(kept.weights))


def test_a_model_without_a_quantisable_matrix_is_refused(tmp_path: Path) -> None:
    save(model_of(replace(CONFIGS["one for two"], dim=60, head_dim=10, ffn_dim=44)), tmp_path / "a.gguf", "gguf")
    with pytest.raises(LlucidError, match="quantize=int4: no matrix of this model has rows of a multiple of 32"):
        load(tmp_path / "a.gguf", device="cpu", quantize="int4")


@pytest.mark.parametrize(("name", "numbers"), [("Q8_0", [5, 240]), ("Q4_0", [154])])
def test_blocks_of_other_quantisers_are_kept_unchanged(name: str, numbers: list[int], tmp_path: Path) -> None:
    """Quantisers that minimise a weighted error give blocks without the largest possible number."""
    save(model_of(replace(CONFIGS["one for two"], dim=64, ffn_dim=96)), tmp_path / "a.gguf", "gguf", dtype=name)
    tensor = read_file_header(tmp_path / "a.gguf").tensors["token_embd.weight"]
    content = bytearray((tmp_path / "a.gguf").read_bytes())
    for block in range(tensor.at, tensor.at + tensor.size, tensor.kind.size):
        content[block + 2 : block + tensor.kind.size] = bytes(16 * numbers)
    (tmp_path / "a.gguf").write_bytes(content)
    save(load(tmp_path / "a.gguf", device="cpu", quantize="file"), tmp_path / "b.gguf", "gguf")
    assert (tmp_path / "b.gguf").read_bytes() == content


def test_the_story_survives_gguf_and_back(data: Path, tmp_path: Path) -> None:
    convert(data / "stories260K.bin", tmp_path / "a.gguf", "gguf", tokenizer=data / "tok512.bin")
    opened = load(tmp_path / "a.gguf", device="cpu")
    assert story(opened) == STORY
    convert(tmp_path / "a.gguf", tmp_path / "back" / "model.bin", "llama2c")
    assert (tmp_path / "back" / "tokenizer.bin").read_bytes() == (data / "tok512.bin").read_bytes()
    back = load(tmp_path / "back" / "model.bin", device="cpu")
    assert same(back.weights, load(data / "stories260K.bin", tokenizer=data / "tok512.bin", device="cpu").weights)
    assert story(back) == STORY
    convert(tmp_path / "a.gguf", tmp_path / "hf", "huggingface")
    assert story(load(tmp_path / "hf", device="cpu")) == STORY


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"blk.0.attn_k.weight": None}, "blk.0.attn_k.weight is missing; expected a tensor of shape [16, 32]"),
        ({"token_embd.weight": None}, "token_embd.weight is missing"),
        (
            {"blk.0.attn_q.bias": torch.zeros(32)},
            "blk.1.attn_q.bias is missing; expected a tensor of shape [32]",
        ),
        ({"blk.0.ffn_gate_inp.weight": torch.zeros(2, 32)}, "ffn_gate_inp.weight [2, 32] is not part"),
        ({"blk.1.ffn_up.weight": torch.zeros(32, 56)}, "blk.1.ffn_up.weight has shape [32, 56]; expected [56, 32]"),
        ({"output.weight": torch.zeros(51, 32)}, "output.weight has shape [51, 32]; expected [50, 32]"),
        ({"output_norm.weight": torch.zeros(1, 32)}, "output_norm.weight has shape [1, 32]; expected [32]"),
        ({"rope_freqs.weight": torch.full((4,), 2.0)}, "rope_freqs.weight does not match Llama 3.1's RoPE scaling"),
        ({"rope_freqs.weight": torch.ones(3)}, "rope_freqs.weight has shape [3] and is float32; expected [4]"),
    ],
)
def test_tensors_are_those_of_the_config(tensors: dict[str, Tensor | None], message: str, tmp_path: Path) -> None:
    file = file_of(tmp_path / "a.gguf", model_of(CONFIGS["one for two"]), tensors=tensors)
    with pytest.raises(LlucidError, match=re.escape(f"{file}: ") + ".*" + re.escape(message)):
        load(file, device="cpu")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"general.architecture": "qwen2"},
            'it has general.architecture "qwen2"; expected general.architecture "llama"',
        ),
        ({"general.architecture": None}, "it has general.architecture null"),
        ({"general.architecture": 3}, "it has general.architecture 3"),
        ({"general.type": "lora"}, 'it has general.type "lora"'),
        ({"general.type": "adapter"}, "a LoRA adapter: merge it with its model"),
        ({"general.type": "adapter", "general.architecture": "clip"}, "a LoRA adapter"),
        ({"general.type": "mmproj", "general.architecture": "clip"}, "the part of a model that reads pictures"),
        ({"general.type": "imatrix", "general.architecture": None}, "statistics for quantising, not a model"),
        (
            {"split.count": 3},
            "is part 1 of a model that is split into 3 files; its name must end in -00001-of-00003.gguf",
        ),
        ({"split.count": 2, "general.architecture": None}, "split into 2 files"),
        ({"llama.expert_count": 8, "llama.expert_used_count": 2}, "it has llama.expert_count 8"),
        ({"llama.rope.scaling.type": "longrope"}, 'it has llama.rope.scaling.type "longrope"'),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.5}, "rope_scaling.factor=0.5"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor 0.5"),
        ({"llama.rope.scaling.attn_factor": 1.2}, "attn_factor 1.2 is only supported with YaRN"),
        ({"llama.logit_scale": 0.5}, "llama.logit_scale 0.5"),
        ({"llama.attention.clamp_kqv": 8.0}, "llama.attention.clamp_kqv 8.0 is not supported; try llama.cpp"),
        ({"llama.attention.head_count_kv": [2, 1]}, "llama.attention.head_count_kv differs between layers"),
        ({"llama.feed_forward_length": [*range(20_000)]}, "llama.feed_forward_length has 80,000 bytes"),
        ({"llama.block_count": None}, "llama.block_count is missing; expected a whole number"),
        ({"llama.block_count": 3}, "blk.2.attn_norm.weight is missing"),
        ({"llama.block_count": 1}, "is not part of the Llama that the config describes"),
        ({"llama.block_count": 2**31 - 1}, "layers, but there are only"),
        ({"llama.embedding_length": "32"}, 'llama.embedding_length should be a whole number and is "32"'),
        ({"llama.vocab_size": 51}, "llama.vocab_size is 51, but the embedding has 50 rows"),
        (
            {"llama.rope.dimension_count": 4},
            "llama.rope.dimension_count is 4; expected 8, as head_dim",
        ),
        ({"llama.attention.value_length": 16}, "llama.attention.value_length is 16"),
        ({"llama.attention.head_count": 0}, "heads=0 must be a whole number of at least 1"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "should be a number and is NaN"),
        ({"general.alignment": 48}, "general.alignment is 48; expected a power of two of at least 8"),
        ({"general.alignment": 4}, "general.alignment is 4; expected a power of two"),
        ({"general.alignment": 2**31}, "general.alignment is 2147483648; expected a power of two"),
        ({"general.alignment": "32"}, "general.alignment is '32'; expected a power of two"),
    ],
)
def test_models_that_are_no_supported_llama_are_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = file_of(tmp_path / "a.gguf", model_of(CONFIGS["one for two"]), keys)
    with pytest.raises(LlucidError, match=re.escape(f"{file}: ") + ".*" + re.escape(message)):
        load(file, device="cpu")


def test_numbers_that_float32_holds(tmp_path: Path) -> None:
    for eps in (float(np.float32(1e-5)), 2.0**-15):
        save(model_of(replace(CONFIGS["one for two"], norm_eps=eps)), tmp_path / "a.gguf", "gguf")
        assert np.float32(load(tmp_path / "a.gguf", device="cpu").config.norm_eps) == eps


def test_redundant_and_missing_keys_are_accepted(tmp_path: Path) -> None:
    """Keys of other converters, numbers given per layer, and a file without the keys that Llama 2 files lack."""
    model = model_of(CONFIGS["one for two"])
    keys: dict[str, Any] = {
        "llama.attention.head_count_kv": [2, 2],
        "llama.rope.scaling.type": "none",
        "llama.expert_count": 0,
        "llama.nextn_predict_layers": 0,
        "llama.attention.clamp_kqv": 0.0,
        "llama.a_flag": False,
        "llama.tensor_data_layout": "Meta AI original pth",
        "general.name": "a name",
        "general.license": "mit",
        "llama.attention.key_length": None,
        "llama.attention.value_length": None,
        "llama.rope.dimension_count": None,
        "llama.rope.freq_base": None,
        "llama.vocab_size": None,
        "general.alignment": 32,
    }
    found = load(file_of(tmp_path / "a.gguf", model, keys), device="cpu")
    assert found.config == model.config
    assert same(found.weights, model.weights)


def test_a_sliding_window_is_ignored_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of(CONFIGS["one for two"])
    for window in (0, 4096):
        file = file_of(tmp_path / f"{window}.gguf", model, {"llama.attention.sliding_window": window})
        assert load(file, device="cpu").config == model.config
        assert ("llama.attention.sliding_window is ignored" in capsys.readouterr().err) == bool(window)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(norm_eps=1.23456789e-5), "norm_eps=1.23456789e-05"),
        (dict(rope_theta=123_456.789), "rope_theta=123456.789"),
        (dict(rope_theta=1e299), "rope_theta=1e+299; in float32 it is inf"),
        (dict(rope_scaling=RopeScaling(low_freq_factor=2.0), rope_theta=5e5), "low_freq_factor=2.0"),
        (dict(rope_scaling=RopeScaling(factor=1.0)), "factor=1.0"),
    ],
)
def test_configs_that_gguf_cannot_hold_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = model_of(replace(CONFIGS["one for two"], head_dim=128))
    with pytest.raises(LlucidError, match=re.escape(message)):
        save(Model(replace(model.config, **change), model.weights, model.tokenizer), tmp_path / "a.gguf", "gguf")
    assert not list(tmp_path.iterdir())


def test_impossible_options_are_refused(tmp_path: Path) -> None:
    model = model_of(TINY)
    with pytest.raises(LlucidError, match="dtype=Q4_K: GGUF can be written with float32, float16, bfloat16, Q8_0"):
        save(model, tmp_path / "a.gguf", "gguf", dtype="Q4_K")
    with pytest.raises(LlucidError, match="is a folder; the format gguf is a file"):
        save(model, tmp_path, "gguf")
    with pytest.raises(LlucidError, match="the tokenizer has 12 ids, but the model only 11"):
        save(Model(replace(TINY, vocab_size=11), model.weights, model.tokenizer), tmp_path / "a.gguf", "gguf")


LISTED = ["general.sampling.temp", "general.sampling.top_k", "tokenizer.chat_template", "tokenizer.chat_templates"]
LISTED += ["tokenizer.huggingface.json", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.bos_token_id"]
LISTED += ["tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.unknown_token_id"]


@pytest.mark.parametrize("key", [*LISTED, "tokenizer.ggml.token_type", "tokenizer.ggml.scores"])
@pytest.mark.parametrize("number", [3, 0.5])
def test_a_long_list_where_none_belongs_takes_little_memory(key: str, number: float, tmp_path: Path) -> None:
    """As a list of Python's it would take 8 to 24 times the memory of the file, as JSON in a message even more."""
    model = model_of(replace(TINY, vocab_size=metaspace().vocab_size))._replace(tokenizer=metaspace())
    file = file_of(tmp_path / "a.gguf", model, {key: [number] * 500_000})
    tracemalloc.start()
    try:
        with suppress(LlucidError):
            load(file, device="cpu")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("own", [1.0, 1.3, None])
def test_the_attention_factor_of_yarn(own: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Relative to the usual one under llama.cpp's key; as it is under the key that its conversion writes."""
    usual = 1 + math.log(4) / 10
    scaling = YarnScaling(factor=4.0, original_context=64, attention_factor=own or usual)
    model = model_of(replace(CONFIGS["one for two"], rope_scaling=scaling))
    for changed in (
        {},
        {"llama.rope.scaling.attn_factor": None, "llama.rope.scaling.yarn_attn_factor": own},
        {"llama.rope.scaling.yarn_attn_factor": 7.0},
    ):
        file = file_of(tmp_path / "a.gguf", model, changed)
        relative = read_file_header(file).value("llama.rope.scaling.attn_factor")
        if "llama.rope.scaling.attn_factor" not in changed:
            assert relative == pytest.approx((own or usual) / usual)
        read = load(file, device="cpu").config.rope_scaling
        assert read == replace(scaling, attention_factor=read.attention_factor)
        assert read.attention_factor == pytest.approx(own or usual, rel=1e-7)
    assert capsys.readouterr().err == ""


def test_what_llama_cpp_makes_of_yarn_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scaling = YarnScaling(factor=4.0, original_context=64, beta_fast=16.0, attention_factor=1.1)
    file = tmp_path / "a.gguf"
    save(model_of(replace(CONFIGS["one for two"], rope_scaling=scaling)), file, "gguf")
    says = "llama.cpp takes 32 and 1 for YaRN's beta_fast and beta_slow, which are 16 and 1 here\n"
    assert capsys.readouterr().err == f"note: {file}: {says}"


def test_factors_of_scaling_are_written_as_floats() -> None:
    """Also those that are given as whole numbers: llama.cpp reads no others."""
    yarn = YarnScaling(factor=4.0, original_context=64, attention_factor=1.0)
    for scaling in (LinearScaling(factor=2.0), yarn):
        vars(scaling).update({name: int(number) for name, number in vars(scaling).items()})
        written = gguf_format.scaling_metadata(scaling)
        whole = {key for key, value in written.items() if isinstance(value, int)}
        assert whole <= {"llama.rope.scaling.original_context_length"}


@pytest.mark.parametrize(
    "keys",
    [
        {"llama.rope.scale_linear": 2.0},
        {"llama.rope.scaling.factor": 2.0},
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0},
    ],
)
def test_three_spellings_of_linear_scaling(keys: dict[str, Any], tmp_path: Path) -> None:
    file = file_of(tmp_path / "a.gguf", model_of(CONFIGS["one for two"]), keys)
    assert load(file, device="cpu").config.rope_scaling == LinearScaling(factor=2.0)


def test_more_tokens_than_rows_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llucid.tokenizers.gguf_vocabulary.read_vocabulary", None)
    file = file_of(tmp_path / "a.gguf", model_of(CONFIGS["one for two"]), {"tokenizer.ggml.tokens": [""] * 10**5})
    rows = CONFIGS["one for two"].vocab_size
    with pytest.raises(LlucidError, match=f"tokens has 100,000 tokens, but the embedding has {rows} rows"):
        load(file)
