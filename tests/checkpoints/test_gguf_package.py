"""GGUF compared with llama.cpp's own Python package: it reads files of llucid, and llucid reads its files."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llucid.arrays import Quantized
from llucid.arrays.quantize import quantize_matrix
from llucid.arrays.quantized import FORMS, from_blocks, to_blocks
from llucid.checkpoints import convert, describe, gguf_blocks, load, save
from llucid.checkpoints import gguf as gguf_format
from llucid.config import Config, RopeScaling
from llucid.errors import LlucidError
from llucid.fast import dense
from llucid.rope import slowdowns
from llucid.weights import leaves, named_leaves
from tests.checkpoints.gguf_files import (
    HALVES,
    WIDE,
    gguf,
    package_name,
    random_blocks,
    unquantised,
    write_with_package,
)
from tests.checkpoints.models import model_of, same
from tests.checkpoints.test_hostile import TINY
from tests.configs import CONFIGS


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request: pytest.FixtureRequest) -> Config:
    return request.param


def test_the_package_reads_our_files(config: Config, tmp_path: Path) -> None:
    model = model_of(config)
    save(model, tmp_path / "a.gguf", "gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for path, leaf in named_leaves(model.weights):
        tensor = tensors.pop(package_name(path))
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        np.testing.assert_array_equal(tensor.data, leaf.numpy())
    assert tensors.keys() == ({"rope_freqs.weight"} if config.rope_scaling else set())
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    assert metadata["general.architecture"] == "llama"
    assert metadata["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    assert metadata["llama.attention.head_count_kv"] == config.kv_heads
    assert metadata["llama.rope.dimension_count"] == metadata["llama.attention.value_length"] == config.head_dim
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == np.float32(config.norm_eps)
    assert metadata["tokenizer.ggml.tokens"][:2] == ["0", "1"]


def test_we_read_files_of_the_package(config: Config, tmp_path: Path) -> None:
    model = model_of(replace(config, vocab_size=300, rope_scaling=None))
    write_with_package(tmp_path / "a.gguf", model, unquantised(model))
    found = load(tmp_path / "a.gguf", device="cpu")
    assert found.config == model.config
    assert same(found.weights, model.weights)
    assert (found.tokenizer.bos, found.tokenizer.eos, found.tokenizer.stop_ids) == (1, 2, frozenset({2}))
    assert found.tokenizer.encode("a aé") == [261, 261, 3 + 0xC3, 3 + 0xA9]
    assert found.tokenizer.decode([1, 261, 261, 3 + 0xC3, 3 + 0xA9, 2]) == "a aé"


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_other_alignments(alignment: int, tmp_path: Path) -> None:
    model = model_of(replace(TINY, ffn_dim=5, vocab_size=301))
    write_with_package(tmp_path / "a.gguf", model, unquantised(model), alignment=alignment)
    assert same(load(tmp_path / "a.gguf", device="cpu").weights, model.weights)


def test_rows_are_in_the_order_of_llama_cpps_converter(tmp_path: Path) -> None:
    """convert_hf_to_gguf.py permutes the rows of transformers (LlamaModel.permute); so must our conversion."""
    from safetensors.numpy import load_file

    config = CONFIGS["explicit head_dim"]
    save(model_of(config), tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "a.gguf", "gguf")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    state = load_file(tmp_path / "hf" / "model.safetensors")
    for theirs, ours, heads in (("q_proj", "attn_q", config.heads), ("k_proj", "attn_k", config.kv_heads)):
        rows = state[f"model.layers.1.self_attn.{theirs}.weight"]
        permuted = rows.reshape(heads, 2, len(rows) // heads // 2, config.dim).swapaxes(1, 2).reshape(rows.shape)
        np.testing.assert_array_equal(tensors[f"blk.1.{ours}.weight"], permuted)
        assert not np.array_equal(rows, permuted)


def converter_rope_factors(config: Config, scaling: RopeScaling) -> np.ndarray:
    """rope_freqs as convert_hf_to_gguf.py computes it, in float32 (LlamaModel.generate_extra_tensors)."""
    frequencies = 1.0 / (
        config.rope_theta ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    )
    low = scaling.original_context / scaling.low_freq_factor
    high = scaling.original_context / scaling.high_freq_factor
    factors = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(scaling.factor)
        else:
            span = scaling.high_freq_factor - scaling.low_freq_factor
            smooth = (scaling.original_context / wavelength - scaling.low_freq_factor) / span
            factors.append(float(1 / ((1 - smooth) / scaling.factor + smooth)))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("factor", [2.0, 8.0, 8.3, 32.0])
@pytest.mark.parametrize("original", [8192, 2048])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_rope_factors(factor: float, original: int, head_dim: int, tmp_path: Path) -> None:
    scaling = RopeScaling(factor=factor, original_context=original)
    config = replace(TINY, head_dim=head_dim, rope_theta=500_000.0, vocab_size=300)
    theirs = converter_rope_factors(config, scaling)
    np.testing.assert_allclose(slowdowns(replace(config, rope_scaling=scaling)), theirs, rtol=1e-4)
    model = model_of(config)
    write_with_package(tmp_path / "a.gguf", model, unquantised(model) | {"rope_freqs.weight": (theirs, None)})
    assert gguf_format.read_config(tmp_path / "a.gguf") == replace(config, rope_scaling=scaling)
    ones = {"rope_freqs.weight": (np.ones_like(theirs), None)}
    write_with_package(tmp_path / "b.gguf", model, unquantised(model) | ones)
    assert gguf_format.read_config(tmp_path / "b.gguf") == config
    for other in (theirs * 1.01, theirs[::-1].copy(), theirs[1:], theirs * np.nan, theirs / 2, np.full_like(theirs, 3)):
        write_with_package(tmp_path / "c.gguf", model, unquantised(model) | {"rope_freqs.weight": (other, None)})
        with pytest.raises(LlucidError, match=r"c\.gguf: rope_freqs\.weight"):
            gguf_format.read_config(tmp_path / "c.gguf")


@pytest.mark.parametrize("name", HALVES)
def test_every_quantised_type(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the package, dequantised in several chunks, give the same numbers as the package."""
    monkeypatch.setattr(gguf_blocks, "CHUNK", 256 * 7)
    kind = gguf.GGMLQuantizationType[name]
    model = model_of(WIDE)
    raw = {
        package_name(path): (random_blocks(name, len(leaf), leaf.shape[1]), kind)
        for path, leaf in named_leaves(model.weights)
        if leaf.dim() == 2
    }
    write_with_package(tmp_path / "a.gguf", model, unquantised(model) | raw)
    header, weights = gguf_format.read_header(tmp_path / "a.gguf"), load(tmp_path / "a.gguf", device="cpu").weights
    for path, leaf in named_leaves(weights):
        if leaf.dim() == 2:
            assert header[gguf_format.name_of(path)] == (tuple(leaf.shape), name)
            np.testing.assert_array_equal(leaf.numpy(), gguf.dequantize(*raw[package_name(path)]))
    assert load(tmp_path / "a.gguf", dtype="bfloat16", device="cpu").weights.embedding.dtype == torch.bfloat16


@pytest.mark.parametrize("mapped", [False, True])
def test_quantised_matrices_stay_as_they_are_in_every_form(mapped: bool, tmp_path: Path) -> None:
    """Each matrix in another form, as in files of a mixture such as Q4_K_M, and written again to the same bytes."""
    model = model_of(WIDE)
    matrices = [(path, leaf) for path, leaf in named_leaves(model.weights) if leaf.dim() == 2]
    forms = {path: [*FORMS][number % len(FORMS)] for number, (path, _) in enumerate(matrices)}
    assert {*forms.values()} == {*FORMS}
    raw = {
        package_name(path): (random_blocks(forms[path], *leaf.shape), gguf.GGMLQuantizationType[forms[path]])
        for path, leaf in matrices
    }
    write_with_package(tmp_path / "a.gguf", model, unquantised(model) | raw)
    kept = load(tmp_path / "a.gguf", device="cpu", quantize="file", mapped=mapped)
    for path, leaf in named_leaves(kept.weights):
        if path in forms:
            assert isinstance(leaf, Quantized)
            assert leaf.form == forms[path]
            np.testing.assert_array_equal(leaf.dense().numpy(), gguf.dequantize(*raw[package_name(path)]))
    assert describe(tmp_path / "a.gguf")["dtype"] == ", ".join([*sorted(FORMS), "float32"])
    save(kept, tmp_path / "b.gguf", "gguf")
    for tensor in gguf.GGUFReader(tmp_path / "b.gguf").tensors:
        if tensor.name in raw:
            assert tensor.tensor_type == raw[tensor.name][1]
            np.testing.assert_array_equal(tensor.data.reshape(-1), raw[tensor.name][0].reshape(-1))
    save(kept, tmp_path / "hf")
    for one, two in zip(leaves(load(tmp_path / "hf", device="cpu").weights), leaves(kept.weights), strict=True):
        assert torch.equal(one, dense(two))


@pytest.mark.parametrize("name", sorted(HALVES.keys() - FORMS.keys()))
def test_other_types_are_repacked_without_change_or_opened_as_float32(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(WIDE)
    raw = random_blocks(name, *model.weights.embedding.shape)
    blocks = {"token_embd.weight": (raw, gguf.GGMLQuantizationType[name])}
    write_with_package(tmp_path / "a.gguf", model, unquantised(model) | blocks)
    leaf = load(tmp_path / "a.gguf", device="cpu", quantize="file").weights.embedding
    np.testing.assert_array_equal(dense(leaf).numpy(), gguf.dequantize(*blocks["token_embd.weight"]))
    repacked = isinstance(leaf, Quantized) and leaf.form == "Q8_0"
    assert repacked == (name in ("Q5_0", "IQ4_NL"))
    said = capsys.readouterr().err
    expected = f"{name} matrices are opened as float32, 0.0 GB in memory for a file of 2 MB\n"
    assert said == "" if repacked else said.endswith(expected)


def definition_q8_0(block: bytes) -> list[np.float32]:
    scale = np.frombuffer(block[:2], "<f2")[0].astype(np.float32)
    return [scale * np.float32(byte - 256 if byte > 127 else byte) for byte in block[2:]]


def definition_q4_0(block: bytes) -> list[np.float32]:
    """The low 4 bits of 16 bytes, then their high 4 bits, minus 8 (ggml-quants.c, dequantize_row_q4_0)."""
    scale = np.frombuffer(block[:2], "<f2")[0].astype(np.float32)
    low, high = [byte & 0x0F for byte in block[2:]], [byte >> 4 for byte in block[2:]]
    return [np.float32(number - 8) * scale for number in low + high]


@pytest.mark.parametrize(("name", "definition"), [("Q8_0", definition_q8_0), ("Q4_0", definition_q4_0)])
def test_dequantising_follows_the_definition(name: str, definition: Any) -> None:
    raw = random_blocks(name, 5, 96)
    kind = next(kind for kind in gguf_blocks.GGML_TYPES.values() if kind.name == name)
    found = gguf_blocks.dequantize_blocks(raw.reshape(-1), kind, (5, 96))
    expected = [
        number for at in range(0, raw.size, kind.size) for number in definition(raw.tobytes()[at : at + kind.size])
    ]
    np.testing.assert_array_equal(found.floats().reshape(-1), np.array(expected, np.float32))


@pytest.mark.parametrize(("name", "bits"), [("Q8_0", 8), ("Q4_0", 4)])
def test_quantising_equals_the_package_and_round_trips(name: str, bits: Any) -> None:
    numbers = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    numbers[0] = 0
    numbers[1] = torch.arange(64) - 31.5  # includes halves of a step, which round away from zero
    numbers[2, :32] = torch.tensor([127.0, *[n + 0.5 for n in range(-16, 15)]])
    numbers[3] *= 1e-6  # steps so small that float16 rounds them to zero or almost
    kind = gguf.GGMLQuantizationType[name]
    expected = gguf.quantize(numbers.numpy(), kind)
    blocks = torch.from_numpy(expected).view(300, 2, -1)
    assert torch.equal(to_blocks(quantize_matrix(numbers, bits)), blocks)
    for rows in (300, 16, 5):
        held = from_blocks(blocks[:rows].numpy(), name)
        assert (held.shape, held.form) == ((rows, 64), name)
        assert torch.equal(to_blocks(held.tensor()), blocks[:rows])
        assert held.dense().tolist() == gguf.dequantize(expected[:rows], kind).tolist()


def test_without_the_package_only_types_that_need_it_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(WIDE)
    blocks = {"output.weight": (random_blocks("IQ4_XS", 300, 256), gguf.GGMLQuantizationType.IQ4_XS)}
    write_with_package(tmp_path / "a.gguf", model, unquantised(model) | blocks)
    own = {"output.weight": (random_blocks("Q6_K", 300, 256), gguf.GGMLQuantizationType.Q6_K)}
    write_with_package(tmp_path / "own.gguf", model, unquantised(model) | own)
    monkeypatch.setitem(sys.modules, "gguf", None)
    load(tmp_path / "own.gguf", device="cpu")
    assert describe(tmp_path / "a.gguf")["dtype"] == "IQ4_XS, float32"
    with pytest.raises(LlucidError, match=r'IQ4_XS need the gguf package: pip install "llucid\[gguf\]"'):
        load(tmp_path / "a.gguf", device="cpu")
    model = model_of(replace(WIDE, vocab_size=50))
    save(model, tmp_path / "b.gguf", "gguf", dtype="Q8_0")
    load(tmp_path / "b.gguf", device="cpu")


def test_the_tables_equal_the_packages() -> None:
    for number, name in gguf_blocks.UNSUPPORTED.items():
        assert gguf.GGMLQuantizationType(number).name == name
    short = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    for number, kind in gguf_blocks.GGML_TYPES.items():
        theirs = gguf.GGMLQuantizationType(number)
        assert gguf.GGML_QUANT_SIZES[theirs] == (kind.block, kind.size)
        assert short.get(theirs.name, theirs.name) == kind.name
    for name, number in gguf_format.FILE_TYPES.items():
        full = {theirs: ours for ours, theirs in short.items()}.get(name, name)
        assert gguf.LlamaFileType(number).name.endswith((full, f"{full}_M"))
    assert {kind.name for kind in gguf_blocks.GGML_TYPES.values()} == {*HALVES, *short.values()}
