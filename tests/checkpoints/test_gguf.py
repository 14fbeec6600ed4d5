"""GGUF files: held to llama.cpp's own Python package, which writes what we read and reads what we write, and to
llama.cpp's rules for numbers and for tokens, written out here once more."""

import json
import math
import re
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llucid.checkpoints import Model, convert, describe, load, save
from llucid.checkpoints import gguf as room
from llucid.checkpoints import gguf_file as container
from llucid.config import Config, RopeScaling
from llucid.errors import LlucidError
from llucid.llama import llama
from llucid.quantize import Quantized, dense, dequantize, from_blocks, quantize_matrix, to_blocks
from llucid.tokenizers import Tokenizer, load_tokenizer
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.gguf_vocabulary import read_vocabulary, write_vocabulary
from llucid.tokenizers.llama2c import WORST_SCORE, Llama2cTokenizer
from llucid.tokenizers.sentencepiece_model import SentencePiece
from llucid.tokenizers.tiktoken_ranks import byte_letters
from llucid.tokenizers.tokenizer_json import JsonTokenizer, train_bpe
from llucid.weights import leaves, named_leaves, tree_map
from tests.checkpoints.models import model_of, same
from tests.checkpoints.test_hostile import SLACK, TINY, attempt, limited
from tests.checkpoints.test_llama2c import STORY, story
from tests.configs import CONFIGS
from tests.tokenizers.texts import HOSTILE, TALE, sentencepiece_model, small_llama2c, small_ranks, small_sentencepiece

gguf = pytest.importorskip("gguf", reason='the gguf package is not installed: pip install "llucid[gguf]"')

BLOCK = re.compile(r"\.(\d+)\.")
THEIRS = {
    "embedding": "TOKEN_EMBD",
    "norm": "OUTPUT_NORM",
    "output": "OUTPUT",
    "blocks.attention_norm": "ATTN_NORM",
    "blocks.attention.query": "ATTN_Q",
    "blocks.attention.key": "ATTN_K",
    "blocks.attention.value": "ATTN_V",
    "blocks.attention.output": "ATTN_OUT",
    "blocks.feed_forward_norm": "FFN_NORM",
    "blocks.feed_forward.gate": "FFN_GATE",
    "blocks.feed_forward.up": "FFN_UP",
    "blocks.feed_forward.down": "FFN_DOWN",
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request: pytest.FixtureRequest) -> Config:
    return request.param


def their_name(path: str) -> str:
    """The package's name of the array at our path."""
    block = BLOCK.search(path)
    name = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR[THEIRS[BLOCK.sub(".", path)]]]
    return name.format(bid=block[1] if block else None) + ".weight"


def by_their_writer(path: Path, model: Model, tensors: dict[str, tuple[np.ndarray, Any]], big: bool = False) -> None:
    """Writes the model with the package's writer: these tensors, and keys as llama.cpp's converter has them."""
    config = model.config
    endian = gguf.GGUFEndian.BIG if big else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, "llama", endianess=endian)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a"]
    pieces = (pieces + [f"w{number}" for number in range(config.vocab_size)])[: config.vocab_size]
    types = [2, 3, 3, *[6] * 256, 1, 1, 1] + [1] * config.vocab_size
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(number) for number in range(len(pieces))])
    writer.add_token_types(types[: len(pieces)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, (numbers, kind) in tensors.items():
        writer.add_tensor(name, numbers, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def plain(model: Model) -> dict[str, tuple[np.ndarray, Any]]:
    return {their_name(path): (leaf.numpy(), None) for path, leaf in named_leaves(model.weights)}


def file_of(
    path: Path, model: Model, keys: dict[str, Any] | None = None, tensors: dict[str, Tensor | None] | None = None
) -> Path:
    """Writes a file like ours but for these keys and tensors; None leaves one out."""
    told = room.keys_of(model.config, "float32") | write_vocabulary(model.tokenizer, model.config.vocab_size)
    told = {key: value for key, value in (told | (keys or {})).items() if value is not None}
    every: dict[str, Tensor | None] = {room.name_of(at): leaf for at, leaf in named_leaves(model.weights)}
    parts = [room.part_of(name, leaf, None) for name, leaf in (every | (tensors or {})).items() if leaf is not None]
    data = [b"".join(map(bytes, container.pieces_of(part))) for part in parts]
    path.write_bytes(container.encoded(told, parts) + b"".join(numbers + bytes(-len(numbers) % 32) for numbers in data))
    return path


# --------------------------------------------------------------------------------------------- ours, both ways


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


# --------------------------------------------------------------------------------------------- the package


def test_their_reader_reads_ours(config: Config, tmp_path: Path) -> None:
    model = model_of(config)
    save(model, tmp_path / "a.gguf", "gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for path, leaf in named_leaves(model.weights):
        tensor = tensors.pop(their_name(path))
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        np.testing.assert_array_equal(tensor.data, leaf.numpy())
    assert tensors.keys() == ({"rope_freqs.weight"} if config.rope_scaling else set())
    told = {key: field.contents() for key, field in reader.fields.items()}
    assert told["general.architecture"] == "llama"
    assert told["llama.attention.head_count_kv"] == config.kv_heads
    assert told["llama.rope.dimension_count"] == told["llama.attention.value_length"] == config.head_dim
    assert told["llama.attention.layer_norm_rms_epsilon"] == np.float32(config.norm_eps)
    assert told["tokenizer.ggml.tokens"][:2] == ["0", "1"]


def test_we_read_theirs(config: Config, tmp_path: Path) -> None:
    model = model_of(replace(config, vocab_size=300, rope_scaling=None))
    by_their_writer(tmp_path / "a.gguf", model, plain(model))
    found = load(tmp_path / "a.gguf", device="cpu")
    assert found.config == model.config
    assert same(found.weights, model.weights)
    assert (found.tokenizer.bos, found.tokenizer.eos, found.tokenizer.stop_ids) == (1, 2, frozenset({2}))
    assert found.tokenizer.encode("a aé") == [261, 261, 3 + 0xC3, 3 + 0xA9]
    assert found.tokenizer.decode([1, 261, 261, 3 + 0xC3, 3 + 0xA9, 2]) == "a aé"


def test_rows_are_those_of_their_converter(tmp_path: Path) -> None:
    """convert_hf_to_gguf.py permutes what transformers has (LlamaModel.permute); so do two of our rooms together."""
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


def their_rope_factors(config: Config, scaling: RopeScaling) -> np.ndarray:
    """What convert_hf_to_gguf.py writes as rope_freqs (LlamaModel.generate_extra_tensors), in its float32."""
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
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_rope_factors(factor: float, head_dim: int, tmp_path: Path) -> None:
    scaling = RopeScaling(factor=factor)
    config = replace(TINY, head_dim=head_dim, rope_theta=500_000.0, vocab_size=300)
    theirs = their_rope_factors(config, scaling)
    np.testing.assert_allclose(room.slowdowns(config, scaling), theirs, rtol=1e-4)
    model = model_of(config)
    by_their_writer(tmp_path / "a.gguf", model, plain(model) | {"rope_freqs.weight": (theirs, None)})
    assert room.read_config(tmp_path / "a.gguf") == replace(config, rope_scaling=scaling)
    ones = {"rope_freqs.weight": (np.ones_like(theirs), None)}
    by_their_writer(tmp_path / "b.gguf", model, plain(model) | ones)
    assert room.read_config(tmp_path / "b.gguf") == config
    for other in (theirs * 1.01, theirs[::-1].copy(), theirs[1:], theirs * np.nan, theirs / 2, np.full_like(theirs, 3)):
        by_their_writer(tmp_path / "c.gguf", model, plain(model) | {"rope_freqs.weight": (other, None)})
        with pytest.raises(LlucidError, match=r"c\.gguf: rope_freqs\.weight"):
            room.read_config(tmp_path / "c.gguf")


# Of each type of blocks, where its float16 numbers are.
HALVES = dict(Q4_0=[0], Q4_1=[0, 2], Q5_0=[0], Q5_1=[0, 2], Q8_0=[0])
HALVES |= dict(Q2_K=[80, 82], Q3_K=[108], Q4_K=[0, 2], Q5_K=[0, 2], Q6_K=[208])
WIDE = Config(dim=256, layers=1, heads=4, kv_heads=2, head_dim=64, ffn_dim=256, vocab_size=300, context=32)


def random_blocks(name: str, rows: int, numbers: int) -> np.ndarray:
    """Blocks of random bytes, but for scales that are small numbers."""
    generator = np.random.default_rng(0)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = generator.integers(0, 256, (rows * numbers // block, size), np.uint8)
    for at in HALVES[name]:
        blocks[:, at : at + 2] = generator.normal(0, 0.05, len(blocks)).astype("<f2").view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("name", HALVES)
def test_every_quantised_type(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers as of the package by itself, in a file that it wrote; in several goes."""
    monkeypatch.setattr(container, "AT_ONCE", 256 * 7)
    kind = gguf.GGMLQuantizationType[name]
    model = model_of(WIDE)
    raw = {
        their_name(path): (random_blocks(name, len(leaf), leaf.shape[1]), kind)
        for path, leaf in named_leaves(model.weights)
        if leaf.dim() == 2
    }
    by_their_writer(tmp_path / "a.gguf", model, plain(model) | raw)
    header, weights = room.read_header(tmp_path / "a.gguf"), room.read_weights(tmp_path / "a.gguf", WIDE)
    for path, leaf in named_leaves(weights):
        if leaf.dim() == 2:
            assert header[room.name_of(path)] == (tuple(leaf.shape), name)
            np.testing.assert_array_equal(leaf.numpy(), gguf.dequantize(*raw[their_name(path)]))
    assert load(tmp_path / "a.gguf", dtype="bfloat16", device="cpu").weights.embedding.dtype == torch.bfloat16


def literally_q8_0(block: bytes) -> list[np.float32]:
    scale = np.frombuffer(block[:2], "<f2")[0].astype(np.float32)
    return [scale * np.float32(byte - 256 if byte > 127 else byte) for byte in block[2:]]


def literally_q4_0(block: bytes) -> list[np.float32]:
    """The low halves of 16 bytes, then their high halves, less 8 (ggml-quants.c, dequantize_row_q4_0)."""
    scale = np.frombuffer(block[:2], "<f2")[0].astype(np.float32)
    low, high = [byte & 0x0F for byte in block[2:]], [byte >> 4 for byte in block[2:]]
    return [np.float32(number - 8) * scale for number in low + high]


@pytest.mark.parametrize(("name", "literally"), [("Q8_0", literally_q8_0), ("Q4_0", literally_q4_0)])
def test_blocks_by_the_letter(name: str, literally: Any) -> None:
    raw = random_blocks(name, 5, 96)
    kind = next(kind for kind in container.KINDS.values() if kind.name == name)
    found = container.dequantised(raw.reshape(-1), kind, (5, 96))
    expected = [
        number for at in range(0, raw.size, kind.size) for number in literally(raw.tobytes()[at : at + kind.size])
    ]
    np.testing.assert_array_equal(found.numpy().reshape(-1), np.array(expected, np.float32))


@pytest.mark.parametrize(("name", "bits"), [("Q8_0", 8), ("Q4_0", 4)])
def test_numbers_are_quantised_as_they_do_and_stay_so(name: str, bits: Any, tmp_path: Path) -> None:
    numbers = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    numbers[0] = 0
    numbers[1] = torch.arange(64) - 31.5  # among them halves of a step, which are rounded away from zero
    numbers[2, :32] = torch.tensor([127.0, *[n + 0.5 for n in range(-16, 15)]])
    numbers[3] *= 1e-6  # whose steps float16 rounds off to nearly nothing
    kind = gguf.GGMLQuantizationType[name]
    expected = gguf.quantize(numbers.numpy(), kind)
    blocks = torch.from_numpy(expected).view(300, 2, -1)
    assert torch.equal(to_blocks(quantize_matrix(numbers, bits)), blocks)
    held = from_blocks(blocks)
    assert torch.equal(to_blocks(held), blocks)
    assert dense(held).tolist() == gguf.dequantize(expected, kind).tolist()


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_a_quantised_file_is_held_as_it_is(name: str, tmp_path: Path) -> None:
    model = model_of(replace(WIDE, vocab_size=50, ffn_dim=172))  # rows of 172 are no multiple of 32
    save(model, tmp_path / "a.gguf", "gguf", dtype=name)
    plain, held = load(tmp_path / "a.gguf", device="cpu"), load(tmp_path / "a.gguf", device="cpu", quantize="file")
    assert not any(isinstance(leaf, Quantized) for leaf in leaves(plain.weights))
    kinds = {path: isinstance(leaf, Quantized) for path, leaf in named_leaves(held.weights)}
    assert kinds["embedding"]
    assert not kinds["blocks.0.feed_forward.down"]
    assert same(dequantize(held.weights), plain.weights)
    save(held, tmp_path / "b.gguf", "gguf", dtype=name)
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()
    assert same(dequantize(load(tmp_path / "a.gguf", device="cpu", quantize="int8").weights), plain.weights)


def test_without_the_package_only_what_needs_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(WIDE)
    blocks = {"output.weight": (random_blocks("Q6_K", 300, 256), gguf.GGMLQuantizationType.Q6_K)}
    by_their_writer(tmp_path / "a.gguf", model, plain(model) | blocks)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert describe(tmp_path / "a.gguf")["dtype"] == "Q6_K, float32"
    with pytest.raises(LlucidError, match=r'Q6_K need the gguf package: pip install "llucid\[gguf\]"'):
        load(tmp_path / "a.gguf", device="cpu")
    model = model_of(replace(WIDE, vocab_size=50))
    save(model, tmp_path / "b.gguf", "gguf", dtype="Q8_0")
    load(tmp_path / "b.gguf", device="cpu")


# --------------------------------------------------------------------------------------------- tokenizers

CUT = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""llama.cpp's own spelling of how Llama 3 cuts a text (llama-vocab.cpp, llm_tokenizer_bpe)."""


def llama_cpp(text: str, told: dict[str, Any]) -> list[int]:
    """The ids of llama.cpp's tokenizers for these keys, written out without their queues."""
    ids = {token: number for number, token in enumerate(told["tokenizer.ggml.tokens"])}
    if told["tokenizer.ggml.model"] == "rwkv":
        return [ids[character.replace("\\", "\\\\")] for character in text]
    if told["tokenizer.ggml.model"] == "llama":
        scores = told["tokenizer.ggml.scores"]
        if text and told["tokenizer.ggml.add_space_prefix"]:
            text = " " + text
        order = {token: -scores[number] for token, number in ids.items()}
        pieces = merged(list(text.replace(" ", "▁")), order, joined="".join)
        return [n for piece in pieces for n in ([ids[piece]] if piece in ids else byte_ids(piece, ids))]
    assert told["tokenizer.ggml.pre"] in ("llama-bpe", "smaug-bpe")
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(told["tokenizer.ggml.merges"])}
    letters = byte_letters()
    found: list[int] = []
    for word in regex.findall(CUT, text):
        word = word.encode().decode("latin-1").translate(letters)
        whole = told["tokenizer.ggml.pre"] == "llama-bpe" and word in ids
        found += [ids[piece] for piece in ([word] if whole else merged(list(word), ranks))]
    return found


def byte_ids(piece: str, ids: dict[str, int]) -> list[int]:
    return [ids[f"<0x{byte:02X}>"] for byte in piece.encode()]


def merged(pieces: list[str], order: Mapping[Any, float], joined: Callable[[Any], Any] = tuple) -> list[str]:
    """The best pair is merged, of equals the leftmost, until none is in the order."""
    while True:
        pairs = [(order[joined(pair)], at) for at, pair in enumerate(pairwise(pieces)) if joined(pair) in order]
        if not pairs:
            return pieces
        _, at = min(pairs)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


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


@pytest.fixture(params=SMALL)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return SMALL[request.param](tmp_path / "tokenizer")


def texts_for(tokenizer: Tokenizer) -> list[str]:
    if isinstance(tokenizer, Characters):
        return ["", TALE, '\\ "n\\\\n" \\xt\\n\t\n', TALE[::-1]]
    # llama.cpp spells out upper and lower case of "'s", and so has no long s, which is one of them.
    return [text.replace("ſ", "s") for text in HOSTILE.values()]


def test_llama_cpp_gives_the_same_ids(tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size + 3
    told = write_vocabulary(tokenizer, size)
    found = read_vocabulary(told)
    tokens = told["tokenizer.ggml.tokens"]
    assert len(tokens) == len(set(tokens)) == len(told["tokenizer.ggml.token_type"]) == size
    assert found.vocab_size == tokenizer.vocab_size
    assert (found.bos, found.eos, found.stop_ids) == (tokenizer.bos, tokenizer.eos, tokenizer.stop_ids)
    for text in texts_for(tokenizer):
        ids = tokenizer.encode(text)
        assert llama_cpp(text, told) == ids
        assert found.encode(text) == ids
        assert found.decode(ids) == tokenizer.decode(ids)
    if tokenizer.bos is not None:
        assert found.special[tokens[tokenizer.bos]] == tokenizer.bos
        assert found.decode([tokenizer.bos]) == ""
    assert write_vocabulary(found, size) == told


def test_a_tokenizer_goes_through_the_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """In a model with more ids than the tokenizer has."""
    config = replace(TINY, vocab_size=tokenizer.vocab_size + 7)
    save(Model(config, model_of(config).weights, tokenizer), tmp_path / "a.gguf", "gguf")
    found = load(tmp_path / "a.gguf", device="cpu")
    assert found.tokenizer.encode(TALE) == tokenizer.encode(TALE)
    assert found.config == config
    tokens = gguf.GGUFReader(tmp_path / "a.gguf").fields["tokenizer.ggml.tokens"]
    assert len(tokens.contents()) == config.vocab_size


def test_no_end_is_not_taken_for_one() -> None:
    """llama.cpp takes the token 11 (or 2) for EOS where none is named: here the byte that no text has is named."""
    tokenizer = train_bpe([TALE], 320)
    told = write_vocabulary(tokenizer, tokenizer.vocab_size)
    assert told["tokenizer.ggml.tokens"][told["tokenizer.ggml.eos_token_id"]] == "ÿ"
    assert told["tokenizer.ggml.add_bos_token"] is False
    assert read_vocabulary(told).eos is None


def test_the_ends_of_llama_3() -> None:
    ranks = small_ranks()
    told = write_vocabulary(ranks, ranks.vocab_size)
    assert told["tokenizer.ggml.pre"] == "llama-bpe"
    for role, name in (("bos", "begin_of_text"), ("eos", "end_of_text"), ("eot", "eot_id"), ("eom", "eom_id")):
        assert told[f"tokenizer.ggml.{role}_token_id"] == ranks.special[f"<|{name}|>"]
    assert read_vocabulary(told).special == ranks.special
    base = {key: value for key, value in told.items() if "eot_token" not in key and "eom_token" not in key}
    assert read_vocabulary(base).stop_ids == {ranks.eos}  # a base model: it was not taught to end a turn
    chat = base | {"tokenizer.ggml.eos_token_id": ranks.special["<|eot_id|>"]}
    assert read_vocabulary(chat).stop_ids == ranks.stop_ids


def test_templates_go_through(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
    for made in (small_sentencepiece(), small_ranks()):
        told = write_vocabulary(made, made.vocab_size) | {"tokenizer.chat_template": template}
        found = read_vocabulary(told)
        assert found.config["chat_template"] == template
        assert write_vocabulary(found, made.vocab_size)["tokenizer.chat_template"] == template
        again = opened_again(found, tmp_path / type(made).__name__)
        assert isinstance(again, JsonTokenizer)
        assert again.config["chat_template"] == template
        assert (again.bos, again.eos) == (made.bos, made.eos)
        assert again.encode(TALE) == made.encode(TALE)


def word_level() -> JsonTokenizer:
    content = json.loads(Characters("a").json())
    content["model"]["vocab"] = {"aa": 0, "\ufffd": 1}
    return JsonTokenizer(content)


def never_merged() -> Llama2cTokenizer:
    made = small_llama2c()
    return Llama2cTokenizer([*made.pieces, b"bell bell", b"bel", b"l bell"], [*made.scores, WORST_SCORE, -1.0, -2.0])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Characters("aé"), "not all ASCII"),
        (lambda: SentencePiece(sentencepiece_model("unigram")), r"does not merge pairs \(BPE\)"),
        (lambda: SentencePiece(sentencepiece_model(normalization_rule_name="nmt_nfkc")), "alters text"),
        (lambda: Llama2cTokenizer([b"<unk>", b"<s>", b"</s>", b"a"], [0.0] * 4), "without a piece for each byte"),
        (never_merged, "the piece 'bell bell' is never merged"),
        (word_level, 'its model is "WordLevel"'),
    ],
)
def test_tokenizers_that_gguf_cannot_say(make: Any, said: str, tmp_path: Path) -> None:
    tokenizer = make()
    config = replace(TINY, vocab_size=tokenizer.vocab_size)
    with pytest.raises(LlucidError, match=said):
        save(Model(config, model_of(config).weights, tokenizer), tmp_path / "a.gguf", "gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "keys", "said"),
    [
        (small_ranks, {"model": "bert"}, 'model "bert" is not supported'),
        (small_ranks, {"model": None}, "no tokenizer inside; give the path of one with --tokenizer"),
        (small_ranks, {"model": 7}, "model 7 is not supported"),
        (small_ranks, {"pre": "deepseek-coder"}, 'pre "deepseek-coder" is not supported; llama-bpe, '),
        (small_ranks, {"pre": None}, "pre null is not supported"),
        (small_ranks, {"tokens": None}, "tokens should be a list of str and is null"),
        (small_ranks, {"tokens": ["a", "a"], "token_type": [1, 1]}, "different from each other"),
        (small_ranks, {"token_type": [1]}, "a type, 1 to 6, for each"),
        (small_ranks, {"merges": None}, "merges should be a list"),
        (small_ranks, {"merges": ["ab"]}, "one that is no pair"),
        (small_ranks, {"merges": ["a zzz"]}, "tokenizer.json cannot be read"),
        (small_ranks, {"eos_token_id": 10**6}, "eos_token_id 1000000 is none of the"),
        (small_ranks, {"bos_token_id": "x"}, 'bos_token_id "x" is none'),
        (small_sentencepiece, {"scores": None}, "scores should be a list of float"),
        (small_sentencepiece, {"scores": [0.0]}, "scores should be a number for each"),
        (small_sentencepiece, {"unknown_token_id": -1}, "unknown_token_id -1 is none"),
        (lambda: Characters("ab"), {"tokens": ["b", "a"]}, "but for single ASCII characters in their order"),
    ],
)
def test_vocabularies_that_are_refused_by_name(make: Any, keys: dict[str, Any], said: str) -> None:
    tokenizer = make()
    told = write_vocabulary(tokenizer, tokenizer.vocab_size)
    told |= {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    with pytest.raises(LlucidError, match=re.escape(said)):
        read_vocabulary({key: value for key, value in told.items() if value is not None})


def test_byte_tokens_are_two_hex_digits() -> None:
    tokenizer = small_sentencepiece()
    told = write_vocabulary(tokenizer, tokenizer.vocab_size)
    at = told["tokenizer.ggml.tokens"].index("<0x41>")
    for wrong in ("<0x4>", "<0x041>", "<0x4G>", "<0x41> ", "A A", "<0x4\n>"):
        tokens = [*told["tokenizer.ggml.tokens"]]
        tokens[at] = wrong
        with pytest.raises(LlucidError):
            read_vocabulary(told | {"tokenizer.ggml.tokens": tokens})


def test_older_files_without_types() -> None:
    tokenizer = small_sentencepiece()
    told = write_vocabulary(tokenizer, tokenizer.vocab_size)
    found = read_vocabulary({key: value for key, value in told.items() if not key.endswith("token_type")})
    for text in HOSTILE.values():
        assert found.encode(text) == tokenizer.encode(text)
    assert found.special == tokenizer.special


@pytest.mark.slow
def test_the_tokenizer_of_llama_2(data: Path) -> None:
    tokenizer = load_tokenizer(data / "llama2-tokenizer.model")
    found = read_vocabulary(write_vocabulary(tokenizer, 32_000))
    for text in HOSTILE.values():
        assert found.encode(text) == tokenizer.encode(text)
        assert found.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))


@pytest.mark.slow
def test_the_tokenizer_of_llama_3(data: Path) -> None:
    tokenizer = load_tokenizer(data / "llama3-tokenizer.model")
    told = write_vocabulary(tokenizer, 128_256)
    found = read_vocabulary(told)
    assert (found.bos, found.eos, found.stop_ids) == (128_000, 128_001, frozenset({128_001, 128_008, 128_009}))
    assert found.special == tokenizer.special
    assert len(told["tokenizer.ggml.merges"]) == 280_147  # as many as Hugging Face's tokenizer.json has
    for text in HOSTILE.values():
        assert found.encode(text) == tokenizer.encode(text)


# --------------------------------------------------------------------------------------------- the story


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "Q8_0"])
def test_llama_cpp_itself_writes_the_story(dtype: str, data: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install llama-cpp-python")
    convert(data / "stories260K.bin", tmp_path / "a.gguf", "gguf", tokenizer=data / "tok512.bin", dtype=dtype)
    model = library.Llama(str(tmp_path / "a.gguf"), n_ctx=512, n_threads=1, verbose=False)
    ids = model.tokenize(b"", add_bos=True)
    assert ids == [1]
    for token in model.generate(ids.copy(), temp=0.0, repeat_penalty=1.0):
        ids.append(token)
        if len(ids) == 201:
            break
    written = model.detokenize(ids).decode().strip()
    # What is rounded goes on in its own way some day.
    assert written == STORY if dtype == "float32" else written.startswith(STORY.split("She")[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_llama_cpp_itself_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    library = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install llama-cpp-python")
    config = replace(TINY, dim=32, head_dim=16, ffn_dim=32, vocab_size=tokenizer.vocab_size + 7)
    save(Model(config, model_of(config).weights, tokenizer), tmp_path / "a.gguf", "gguf")
    model = library.Llama(str(tmp_path / "a.gguf"), n_ctx=16, n_threads=1, verbose=False)
    for text in texts_for(tokenizer):
        if "\0" not in text:  # where a text ends for some of its functions
            assert model.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)
    assert tokenizer.bos is None or model.token_bos() == tokenizer.bos
    told = write_vocabulary(tokenizer, config.vocab_size)
    assert model.token_eos() == told.get("tokenizer.ggml.eos_token_id", -1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_llama_cpp_itself_computes_the_same_logits(config: Config, tmp_path: Path) -> None:
    """To float32 rounding, RoPE's scaling included; its cache is in float32 (type 0) for it."""
    library = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install llama-cpp-python")
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


# --------------------------------------------------------------------------------------------- strictness


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
        ({"split.count": 3}, "it has split.count 3"),
        ({"llama.expert_count": 8, "llama.expert_used_count": 2}, "it has llama.expert_count 8"),
        ({"llama.rope.scaling.type": "yarn"}, 'it has llama.rope.scaling.type "yarn"'),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, "llama.rope.scaling.factor 4.0"),
        ({"llama.rope.scale_linear": 2.0}, "llama.rope.scale_linear 2.0"),
        ({"llama.attention.sliding_window": 4096}, "llama.attention.sliding_window 4096"),
        ({"llama.logit_scale": 0.5}, "llama.logit_scale 0.5"),
        ({"llama.attention.clamp_kqv": 8.0}, "llama.attention.clamp_kqv is no number of a Llama that llucid opens"),
        ({"llama.attention.head_count_kv": [2, 1]}, "llama.attention.head_count_kv differs from layer to layer"),
        ({"llama.feed_forward_length": [*range(20_000)]}, "llama.feed_forward_length takes 80,000 bytes"),
        ({"llama.block_count": None}, "llama.block_count should be a whole number and is null"),
        ({"llama.block_count": 3}, "blk.2.attn_norm.weight is missing"),
        ({"llama.block_count": 1}, "is no tensor of the Llama described here"),
        ({"llama.block_count": 2**31}, "layers are promised"),
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
    """Keys that other converters write, and numbers that are given for each layer."""
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
        (dict(context=2**32), "context=4294967296"),
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


# --------------------------------------------------------------------------------------------- hostile files


def tiny(folder: Path) -> tuple[Path, bytes]:
    """Where a file is to be damaged, and what it is when whole."""
    if not (folder / "whole").exists():
        save(model_of(TINY), folder / "whole", "gguf")
    whole = (folder / "whole").read_bytes()
    (folder / "model.gguf").write_bytes(whole)
    return folder / "model.gguf", whole


def header_of(data: bytes) -> int:
    """Bytes before the first tensor."""
    return data.rindex(b"output.weight") + 64


def test_headers_that_are_damaged_on_purpose(tmp_path: Path) -> None:
    model = model_of(TINY)
    file = file_of(tmp_path / "a.gguf", model, {"x.same1": 1, "x.same2": 2, "general.alignment": 32})
    whole = file.read_bytes()

    def at(name: bytes, behind: int = 0) -> int:
        return whole.index(name) + len(name) + behind

    def put(place: int, code: str, *values: int) -> bytes:
        packed = struct.pack("<" + code, *values)
        return whole[:place] + packed + whole[place + len(packed) :]

    norm = at(b"output_norm.weight")  # dimensions, length, type, offset
    big = 2**63
    for damaged, said in (
        (whole[:23], "ends within its header"),
        (put(4, "I", 1), "version 1 of GGUF is not supported; 2 and 3 are"),
        (put(4, "I", 0x03000000), "big-endian"),
        (put(8, "Q", 2**60), "promises 1,152,921,504,606,846,976 tensors"),
        (put(16, "Q", 2**60), "promises .* values; the file is damaged"),
        (put(24, "Q", big), "a name of 9,223,372,036,854,775,808 bytes"),
        (whole.replace(b"x.same1", b"x\nsame1"), r"a name 'x\\nsame1' at byte"),
        (whole.replace(b"x.same2", b"x.same1"), "x.same1 is there twice"),
        (whole.replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight"), "blk.0.attn_q.weight is there twice"),
        (whole.replace(b"x.same1", b"x.s\xffme1"), "should be UTF-8"),
        (put(at(b"x.same1"), "I", 13), "a value of type 13"),
        (put(at(b"x.same1"), "II", 9, 9), "a value of type 9"),
        (put(at(b"x.same1"), "I", 8), "ends within|promises|a name of"),
        (put(at(b"ggml.tokens", 8), "Q", 2**61), "strings"),
        (put(at(b"ggml.tokens", 16), "Q", 2**61), "ends within"),
        (put(at(b"token_type", 8), "Q", 2**62), "promises .* more"),
        (put(norm, "I", 0), "output_norm.weight has 0 dimensions; expected 1 to 4"),
        (put(norm, "I", 2**32 - 1), "has 4294967295 dimensions"),
        (put(norm, "I", 5), "has 5 dimensions"),
        (put(norm, "IQ", 1, 0), r"has shape \[0\]"),
        (put(norm, "IQ", 1, 2**62), "begins at|truncated"),
        (put(norm, "IQI", 1, 8, 8), r"has shape \[8\], which Q8_0 cannot have"),
        (put(norm, "IQI", 1, 8, 18), "output_norm.weight is of ggml's type IQ3_XXS, which llucid does not open"),
        (put(norm, "IQI", 1, 8, 31), "of ggml's type number 31"),
        (put(norm, "IQIQ", 1, 8, 0, 2**63), "output_norm.weight begins at 9,223,372,036,854,775,808; it should at"),
        (put(norm, "IQIQ", 1, 8, 0, 0), "output_norm.weight begins at 0; it should at"),
        (whole[:-100], r"truncated: output\.weight should end at byte"),
        (whole[: header_of(whole)], "truncated: token_embd"),
    ):
        file.write_bytes(damaged)
        with limited(2 * len(whole) + SLACK), pytest.raises(LlucidError, match=said):
            load(file, device="cpu")
    file.write_bytes(put(4, "I", 2))
    assert same(load(file, device="cpu").weights, model.weights)


def test_sizes_whose_product_wraps_around(tmp_path: Path) -> None:
    """2³² rows of 2³² numbers are 0 in 64 bits."""
    model = model_of(TINY)
    by_their_writer(tmp_path / "a.gguf", model, plain(model))
    whole = (tmp_path / "a.gguf").read_bytes()
    at = whole.index(b"output.weight") + len(b"output.weight") + 4
    (tmp_path / "a.gguf").write_bytes(whole[:at] + struct.pack("<QQ", 2**32, 2**32) + whole[at + 16 :])
    assert not attempt(tmp_path / "a.gguf", len(whole))


def test_files_for_other_machines(tmp_path: Path) -> None:
    model = model_of(TINY)
    by_their_writer(tmp_path / "a.gguf", model, plain(model), big=True)
    with pytest.raises(LlucidError, match=r"a\.gguf: is for machines that store numbers big-endian"):
        load(tmp_path / "a.gguf")


def test_truncated_anywhere(tmp_path: Path) -> None:
    file, whole = tiny(tmp_path)
    assert attempt(file, len(whole))
    header = header_of(whole)
    for cut in (*range(0, header, 11), *range(header, len(whole), 197), len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert not attempt(file, len(whole)), f"{cut} of {len(whole)} bytes were taken for a whole file"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes(changes: list[tuple[int, int]], tmp_path: Path) -> None:
    file, whole = tiny(tmp_path)
    header, damaged = header_of(whole), bytearray(whole)
    for place, byte in changes:
        damaged[place % header] = byte
    file.write_bytes(damaged)
    attempt(file, len(whole))
    read_tokenizer_safely(file)


def test_length_fields_that_grow(tmp_path: Path) -> None:
    """Every thirteenth byte of the header is once the beginning of an enormous number."""
    file, whole = tiny(tmp_path)
    for place in range(0, header_of(whole) - 8, 13):
        for code, value in (("<I", 2**32 - 1), ("<Q", 2**40), ("<Q", 2**64 - 1)):
            packed = struct.pack(code, value)
            file.write_bytes(whole[:place] + packed + whole[place + len(packed) :])
            attempt(file, len(whole))
    file.write_bytes(whole)
    assert attempt(file, len(whole))


def read_tokenizer_safely(file: Path) -> None:
    """It opens, or is refused by our own error that names the file, in memory that the file explains."""
    said = ""
    with limited(SLACK):
        try:
            assert room.read_tokenizer(file).vocab_size > 0
        except LlucidError as error:
            said = str(error)
    assert not said or str(file) in said


@cache
def told_of(name: str) -> dict[str, Any]:
    tokenizer = SMALL[name](Path())
    return write_vocabulary(tokenizer, tokenizer.vocab_size)


@settings(max_examples=40, deadline=None)
@given(seed=st.data())
@pytest.mark.parametrize("name", ["sentencepiece", "tiktoken"])
def test_hostile_vocabularies(name: str, seed: st.DataObject) -> None:
    """What is read may be strange; then it encodes and decodes, strangely."""
    told = told_of(name).copy()
    strange = st.text(max_size=8) | st.sampled_from(told["tokenizer.ggml.tokens"])
    for _ in range(seed.draw(st.integers(1, 3))):
        key = seed.draw(st.sampled_from([key for key in told if isinstance(told[key], list)]))
        values = [*told[key]]
        kind = {str: strange, int: st.integers(-1, 8), float: st.floats(width=32)}[type(values[0])]
        values[seed.draw(st.integers(0, len(values) - 1))] = seed.draw(kind)
        told[key] = values
    try:
        found = read_vocabulary(told)
        ids = found.encode(TALE + "漢字")
    except LlucidError:
        return
    assert all(0 <= token < found.vocab_size for token in ids)
    assert isinstance(found.decode(ids), str)


def test_the_tables_are_theirs() -> None:
    for number, name in container.OTHERS.items():
        assert gguf.GGMLQuantizationType(number).name == name
    short = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    for number, kind in container.KINDS.items():
        theirs = gguf.GGMLQuantizationType(number)
        assert gguf.GGML_QUANT_SIZES[theirs] == (kind.block, kind.size)
        assert short.get(theirs.name, theirs.name) == kind.name
    for name, number in room.FILE_TYPES.items():
        full = {theirs: ours for ours, theirs in short.items()}.get(name, name)
        assert gguf.LlamaFileType(number).name.endswith(full)
    assert {kind.name for kind in container.KINDS.values()} == {*HALVES, *short.values()}
