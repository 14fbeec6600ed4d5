"""GGUF files: there and back, the story, and what is refused by name."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llucid.arrays import Quantized
from llucid.chat import encode_dialog
from llucid.checkpoints import Model, convert, describe, load, save
from llucid.checkpoints import gguf as room
from llucid.checkpoints.gguf_file import read_head
from llucid.config import Config, LinearScaling, RopeScaling
from llucid.errors import LlucidError
from llucid.llama import llama
from llucid.weights import dequantize, leaves, named_leaves, tree_map
from tests.checkpoints.gguf_files import file_of
from tests.checkpoints.models import model_of, same
from tests.checkpoints.test_hostile import TINY
from tests.checkpoints.test_llama2c import STORY, story
from tests.configs import CONFIGS
from tests.tokenizers.kinds import metaspace


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request: pytest.FixtureRequest) -> Config:
    return request.param


def test_to_and_from_is_the_same_bit_for_bit(config: Config, tmp_path: Path) -> None:
    model = model_of(config)
    save(model, tmp_path / "a.gguf", "gguf")
    found = load(tmp_path / "a.gguf", device="cpu")
    assert found.config == config
    assert same(found.weights, model.weights)
    assert found.tokenizer.encode("0123AB") == model.tokenizer.encode("0123AB")
    tokens = torch.arange(40)[None] % config.vocab_size
    assert torch.equal(llama(tokens, found.weights, found.config), llama(tokens, model.weights, config))
    save(found, tmp_path / "b.gguf", "gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_the_bits(dtype: torch.dtype, config: Config, tmp_path: Path) -> None:
    name = str(dtype).removeprefix("torch.")
    model = model_of(config)
    rounded = Model(config, tree_map(lambda leaf: leaf.to(dtype), model.weights), model.tokenizer)
    save(model, tmp_path / "a.gguf", "gguf", dtype=name)
    save(rounded, tmp_path / "b.gguf", "gguf")
    for file in ("a.gguf", "b.gguf"):
        assert same(load(tmp_path / file, device="cpu").weights, rounded.weights)
    header = room.read_header(tmp_path / "a.gguf")
    assert {kind for shape, kind in header.values() if len(shape) == 2} == {name}
    assert {kind for shape, kind in header.values() if len(shape) == 1} == {"float32"}


def test_q8_0_is_within_its_bound(config: Config, tmp_path: Path) -> None:
    """A number is off by half a step, d/2, and by what float16 rounds off the step, at most 127·d/2048."""
    model = model_of(config)
    save(model, tmp_path / "a.gguf", "gguf", dtype="q8_0")
    found = load(tmp_path / "a.gguf", device="cpu")
    header = room.read_header(tmp_path / "a.gguf")
    assert found.weights.embedding.dtype == torch.float32
    for (path, a), b in zip(named_leaves(model.weights), leaves(found.weights), strict=True):
        kind = header[room.name_of(path)][1]
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


def test_what_is_opened_stays_as_it_is_on_disk(tmp_path: Path) -> None:
    save(model_of(CONFIGS["one for two"]), tmp_path / "a.gguf", "gguf")
    before = (tmp_path / "a.gguf").read_bytes()
    tree_map(lambda leaf: leaf.zero_(), load(tmp_path / "a.gguf", device="cpu").weights)
    assert (tmp_path / "a.gguf").read_bytes() == before


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_a_whole_tokenizer_json_goes_through_every_door(scheme: str, tmp_path: Path) -> None:
    """llama.cpp has no words for where these put spaces; llucid has the same ids again, also in the other formats."""
    tokenizer = metaspace(scheme)
    tokenizer.config["chat_template"] = "{{ bos_token }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    config = replace(CONFIGS["one for two"], vocab_size=tokenizer.vocab_size + 3, norm_eps=1e-5)
    save(model_of(config)._replace(tokenizer=tokenizer), tmp_path / "a.gguf", "gguf")
    convert(tmp_path / "a.gguf", tmp_path / "hf", "huggingface")
    convert(tmp_path / "a.gguf", tmp_path / "meta", "meta")
    convert(tmp_path / "hf", tmp_path / "b.gguf", "gguf")
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()
    dialog = [{"role": role, "content": "bell"} for role in ("user", "assistant", "user")]
    said = encode_dialog(dialog, tokenizer, tokenizer.config["chat_template"])
    assert (said.count(tokenizer.encode("bell")[0]) == 3) == (scheme == "always")
    opened = [load(tmp_path / name, device="cpu") for name in ("a.gguf", "hf", "meta")]
    for found in (*opened, load(tmp_path / "a.gguf", device="cpu", mapped=True)):
        for text in ("  Once", "bell", " a  bell "):
            assert found.tokenizer.encode(text) == tokenizer.encode(text)
        assert (found.tokenizer.bos, found.tokenizer.eos, found.tokenizer.stop_ids) == (1, 2, {2})
        assert encode_dialog(dialog, found.tokenizer, found.chat_format) == said
    facts = describe(tmp_path / "a.gguf")
    assert (facts["tokenizer"], facts["bos, eos"]) == (f"JsonTokenizer, {tokenizer.vocab_size:,} ids", "1, 2")


def test_a_whole_tokenizer_json_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    model = model_of(replace(CONFIGS["one for two"], vocab_size=metaspace().vocab_size))
    save(model._replace(tokenizer=metaspace()), tmp_path / "a.gguf", "gguf")
    whole = (tmp_path / "a.gguf").read_bytes()
    at = whole.index(b"tokenizer.huggingface.json") + len(b"tokenizer.huggingface.json") + 4
    size = int.from_bytes(whole[at : at + 8], "little")
    for length in (len(whole), 2**63, 2**64 - 1):
        (tmp_path / "a.gguf").write_bytes(whole[:at] + length.to_bytes(8, "little") + whole[at + 8 :])
        with pytest.raises(LlucidError, match=f"ends within 1 strings that begin at byte {at:,}"):
            load(tmp_path / "a.gguf", device="cpu")
    (tmp_path / "a.gguf").write_bytes(whole[: at + 8] + b"\xff" * size + whole[at + 8 + size :])
    with pytest.raises(LlucidError, match="should be UTF-8, and is not"):
        load(tmp_path / "a.gguf", device="cpu")
    (tmp_path / "a.gguf").write_bytes(whole[: at + 8] + b"{" * size + whole[at + 8 + size :])
    with pytest.raises(LlucidError, match=r"a\.gguf: tokenizer\.huggingface\.json cannot be read: Expecting"):
        load(tmp_path / "a.gguf", device="cpu")
    assert describe(tmp_path / "a.gguf")["tokenizer"].startswith("none (")


def test_a_write_streams_and_leaves_nothing_if_it_fails(tmp_path: Path) -> None:
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


def test_describe_answers_from_the_header(tmp_path: Path) -> None:
    save(model_of(CONFIGS["scaling of Llama 3.2, tied"]), tmp_path / "a.gguf", "gguf", dtype="Q8_0")
    facts = describe(tmp_path / "a.gguf")
    assert facts["format"] == "gguf"
    assert facts["dtype"] == "Q8_0, float16, float32"
    assert facts["tokenizer"] == "Characters, 50 ids"
    assert facts["rope_scaling"] == str(RopeScaling(factor=32.0))
    assert facts["tied"] == "the embedding is the output matrix"


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_a_quantised_file_is_held_as_it_is(name: str, tmp_path: Path) -> None:
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


def test_what_cannot_be_quantised_at_all_is_told(tmp_path: Path) -> None:
    save(model_of(replace(CONFIGS["one for two"], dim=60, head_dim=10, ffn_dim=44)), tmp_path / "a.gguf", "gguf")
    with pytest.raises(LlucidError, match="quantize=int4: no matrix of this model has rows of a multiple of 32"):
        load(tmp_path / "a.gguf", device="cpu", quantize="int4")


@pytest.mark.parametrize(("name", "numbers"), [("Q8_0", [5, 240]), ("Q4_0", [154])])
def test_blocks_that_quantising_would_not_make_are_held_too(name: str, numbers: list[int], tmp_path: Path) -> None:
    """As others make them, who weigh errors: none of these numbers is the largest that there is."""
    save(model_of(replace(CONFIGS["one for two"], dim=64, ffn_dim=96)), tmp_path / "a.gguf", "gguf", dtype=name)
    place = read_head(tmp_path / "a.gguf").places["token_embd.weight"]
    content = bytearray((tmp_path / "a.gguf").read_bytes())
    for block in range(place.at, place.at + place.size, place.kind.size):
        content[block + 2 : block + place.kind.size] = bytes(16 * numbers)
    (tmp_path / "a.gguf").write_bytes(content)
    save(load(tmp_path / "a.gguf", device="cpu", quantize="file"), tmp_path / "b.gguf", "gguf")
    assert (tmp_path / "b.gguf").read_bytes() == content


def test_the_story_goes_through_gguf_and_back(data: Path, tmp_path: Path) -> None:
    convert(data / "stories260K.bin", tmp_path / "a.gguf", "gguf", tokenizer=data / "tok512.bin")
    there = load(tmp_path / "a.gguf", device="cpu")
    assert story(there) == STORY
    convert(tmp_path / "a.gguf", tmp_path / "back" / "model.bin", "llama2c")
    assert (tmp_path / "back" / "tokenizer.bin").read_bytes() == (data / "tok512.bin").read_bytes()
    back = load(tmp_path / "back" / "model.bin", device="cpu")
    assert same(back.weights, load(data / "stories260K.bin", tokenizer=data / "tok512.bin", device="cpu").weights)
    assert story(back) == STORY
    convert(tmp_path / "a.gguf", tmp_path / "hf", "huggingface")
    assert story(load(tmp_path / "hf", device="cpu")) == STORY


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"blk.0.attn_k.weight": None}, "blk.0.attn_k.weight is missing; expected a tensor of shape [16, 32]"),
        ({"token_embd.weight": None}, "token_embd.weight is missing"),
        ({"blk.0.attn_q.bias": torch.zeros(32)}, "blk.0.attn_q.bias [32] is no tensor of the Llama described here"),
        ({"blk.0.ffn_gate_inp.weight": torch.zeros(2, 32)}, "ffn_gate_inp.weight [2, 32] is no tensor"),
        ({"blk.1.ffn_up.weight": torch.zeros(32, 56)}, "blk.1.ffn_up.weight has shape [32, 56]; expected [56, 32]"),
        ({"output.weight": torch.zeros(51, 32)}, "output.weight has shape [51, 32]; expected [50, 32]"),
        ({"output_norm.weight": torch.zeros(1, 32)}, "output_norm.weight has shape [1, 32]; expected [32]"),
        ({"rope_freqs.weight": torch.full((4,), 2.0)}, "rope_freqs.weight is not of Llama 3.1's scaling"),
        ({"rope_freqs.weight": torch.ones(3)}, "rope_freqs.weight has shape [3] and is float32; expected [4]"),
    ],
)
def test_tensors_are_those_of_the_config(tensors: dict[str, Tensor | None], said: str, tmp_path: Path) -> None:
    file = file_of(tmp_path / "a.gguf", model_of(CONFIGS["one for two"]), tensors=tensors)
    with pytest.raises(LlucidError, match=re.escape(f"{file}: ") + ".*" + re.escape(said)):
        load(file, device="cpu")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"general.architecture": "qwen2"},
            'it has general.architecture "qwen2"; a Llama has general.architecture "llama"',
        ),
        ({"general.architecture": None}, "it has general.architecture null"),
        ({"general.architecture": 3}, "it has general.architecture 3"),
        ({"general.type": "adapter"}, 'it has general.type "adapter"'),
        (
            {"split.count": 3},
            "one of 3 files that are one model; put them together with llama.cpp's: llama-",
        ),
        ({"split.count": 2, "general.architecture": None}, "is one of 2 files"),
        ({"llama.expert_count": 8, "llama.expert_used_count": 2}, "it has llama.expert_count 8"),
        ({"llama.rope.scaling.type": "longrope"}, 'it has llama.rope.scaling.type "longrope"'),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.5}, "rope_scaling.factor=0.5"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor 0.5"),
        ({"llama.attention.sliding_window": 4096}, "llama.attention.sliding_window 4096"),
        ({"llama.logit_scale": 0.5}, "llama.logit_scale 0.5"),
        ({"llama.attention.clamp_kqv": 8.0}, "llama.attention.clamp_kqv is no number of a Llama that llucid opens"),
        ({"llama.attention.head_count_kv": [2, 1]}, "llama.attention.head_count_kv differs from layer to layer"),
        ({"llama.feed_forward_length": [*range(20_000)]}, "llama.feed_forward_length takes 80,000 bytes"),
        ({"llama.block_count": None}, "llama.block_count should be a whole number and is null"),
        ({"llama.block_count": 3}, "blk.2.attn_norm.weight is missing"),
        ({"llama.block_count": 1}, "is no tensor of the Llama described here"),
        ({"llama.block_count": 2**31 - 1}, "layers are promised"),
        ({"llama.embedding_length": "32"}, 'llama.embedding_length should be a whole number and is "32"'),
        ({"llama.vocab_size": 51}, "llama.vocab_size is 51, but the embedding has 50"),
        (
            {"llama.rope.dimension_count": 4},
            "llama.rope.dimension_count is 4; llucid opens models where it is head_dim, 8",
        ),
        ({"llama.attention.value_length": 16}, "llama.attention.value_length is 16"),
        ({"llama.attention.head_count": 0}, "heads=0 must be a whole number of at least 1"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "should be a number and is NaN"),
        ({"general.alignment": 48}, "general.alignment should be a power of two from 8 on and is 48"),
        ({"general.alignment": 4}, "general.alignment should be a power of two"),
        ({"general.alignment": 2**31}, "general.alignment should be a power of two"),
        ({"general.alignment": "32"}, "general.alignment should be a power of two"),
    ],
)
def test_what_is_no_llama_is_refused_by_name(keys: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = file_of(tmp_path / "a.gguf", model_of(CONFIGS["one for two"]), keys)
    with pytest.raises(LlucidError, match=re.escape(f"{file}: ") + ".*" + re.escape(said)):
        load(file, device="cpu")


def test_what_says_nothing_new_is_let_pass(tmp_path: Path) -> None:
    """Keys that other converters write, numbers that are given for each layer, and those of Llama 2 left out."""
    model = model_of(CONFIGS["one for two"])
    keys: dict[str, Any] = {
        "llama.attention.head_count_kv": [2, 2],
        "llama.rope.scaling.type": "none",
        "llama.expert_count": 0,
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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(norm_eps=1.23456789e-5), "norm_eps=1.23456789e-05"),
        (dict(rope_theta=123_456.789), "rope_theta=123456.789"),
        (dict(rope_scaling=RopeScaling(original_context=4096), rope_theta=5e5), "original_context=4096"),
        (dict(rope_scaling=RopeScaling(factor=1.0)), "factor=1.0"),
    ],
)
def test_what_gguf_cannot_hold_is_refused_by_name(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = model_of(replace(CONFIGS["one for two"], head_dim=16))
    with pytest.raises(LlucidError, match=re.escape(said)):
        save(Model(replace(model.config, **change), model.weights, model.tokenizer), tmp_path / "a.gguf", "gguf")
    assert not list(tmp_path.iterdir())


def test_options_that_cannot_be_are_refused(tmp_path: Path) -> None:
    model = model_of(TINY)
    with pytest.raises(LlucidError, match="--dtype Q4_K: GGUF is written with float32, float16, bfloat16, Q8_0"):
        save(model, tmp_path / "a.gguf", "gguf", dtype="Q4_K")
    with pytest.raises(LlucidError, match="is a folder; GGUF is a file"):
        save(model, tmp_path, "gguf")
    with pytest.raises(LlucidError, match="the tokenizer has 12 ids, but the model only 11"):
        save(Model(replace(TINY, vocab_size=11), model.weights, model.tokenizer), tmp_path / "a.gguf", "gguf")


@pytest.mark.parametrize(
    "keys",
    [
        {"llama.rope.scale_linear": 2.0},
        {"llama.rope.scaling.factor": 2.0},
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0},
    ],
)
def test_linear_scaling_is_spelled_in_three_ways(keys: dict[str, Any], tmp_path: Path) -> None:
    file = file_of(tmp_path / "a.gguf", model_of(CONFIGS["one for two"]), keys)
    assert load(file, device="cpu").config.rope_scaling == LinearScaling(factor=2.0)
