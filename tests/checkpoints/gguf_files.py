"""Writes GGUF files for tests: with llama.cpp's own Python package, and with llucid after a change."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from llucid.checkpoints import Model, gguf_file
from llucid.checkpoints import gguf as gguf_format
from llucid.config import Config
from llucid.tokenizers.gguf_export import write_vocabulary
from llucid.weights import named_leaves

gguf = pytest.importorskip("gguf", reason='the gguf package is not installed: pip install "llucid[gguf]"')

BLOCK = re.compile(r"\.(\d+)\.")
PACKAGE_NAMES = {
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


def package_name(path: str) -> str:
    """The package's name of the array at `path` in Weights."""
    block = BLOCK.search(path)
    matrix = path.removesuffix("_bias")
    name = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR[PACKAGE_NAMES[BLOCK.sub(".", matrix)]]]
    return name.format(bid=block[1] if block else None) + (".weight" if matrix == path else ".bias")


def write_with_package(
    path: Path,
    model: Model,
    tensors: dict[str, tuple[np.ndarray, Any]],
    big_endian: bool = False,
    alignment: int | None = None,
    split_max_tensors: int = 0,
) -> None:
    """Writes `tensors` with the package's writer, with the metadata that llama.cpp's converter writes for `model`."""
    config = model.config
    endian = gguf.GGUFEndian.BIG if big_endian else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, "llama", endianess=endian, split_max_tensors=split_max_tensors)
    if alignment:
        writer.add_custom_alignment(alignment)
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


def unquantised(model: Model) -> dict[str, tuple[np.ndarray, Any]]:
    return {package_name(path): (leaf.numpy(), None) for path, leaf in named_leaves(model.weights)}


def file_of(
    path: Path, model: Model, keys: dict[str, Any] | None = None, tensors: dict[str, Tensor | None] | None = None
) -> Path:
    """Writes the model as llucid does, with these keys and tensors changed; None leaves one out."""
    metadata = gguf_format.config_metadata(model.config, "float32")
    metadata |= write_vocabulary(model.text(), model.config.vocab_size)
    metadata = {key: value for key, value in (metadata | (keys or {})).items() if value is not None}
    changed: dict[str, Tensor | None] = {gguf_format.name_of(at): leaf for at, leaf in named_leaves(model.weights)}
    pending = [
        gguf_format.pending_tensor(name, leaf, None)
        for name, leaf in (changed | (tensors or {})).items()
        if leaf is not None
    ]
    data = [b"".join(map(bytes, gguf_file.tensor_chunks(tensor))) for tensor in pending]
    path.write_bytes(
        gguf_file.encode_header(metadata, pending) + b"".join(numbers + bytes(-len(numbers) % 32) for numbers in data)
    )
    return path


# Offsets of the float16 numbers in a block of each type.
HALVES: dict[str, list[int]] = {
    **dict(Q4_0=[0], Q4_1=[0, 2], Q5_0=[0], Q5_1=[0, 2], Q8_0=[0]),
    **{name: [0] for name in "IQ1_S IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS".split()},
    **dict(Q2_K=[80, 82], Q3_K=[108], Q4_K=[0, 2], Q5_K=[0, 2], Q6_K=[208], TQ1_0=[52], TQ2_0=[64]),
    **dict(IQ1_M=[], MXFP4=[]),
}
WIDE = Config(dim=256, layers=1, heads=4, kv_heads=2, head_dim=64, ffn_dim=256, vocab_size=300, context=32)


def random_blocks(name: str, rows: int, numbers: int) -> np.ndarray:
    """Blocks of random bytes with small scales."""
    generator = np.random.default_rng(0)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = generator.integers(0, 256, (rows * numbers // block, size), np.uint8)
    for at in HALVES[name]:
        blocks[:, at : at + 2] = generator.normal(0, 0.05, len(blocks)).astype("<f2").view(np.uint8).reshape(-1, 2)
    if name == "IQ1_M":  # its scale is the upper half of the last bytes, two by two: 0x2a66 is 0.05
        blocks[:, 49::2] = blocks[:, 49::2] & 15 | [0x60, 0x60, 0xA0, 0x20]
    if name == "MXFP4":  # its first byte is an exponent, plus 128
        blocks[:, 0] = 118 + blocks[:, 0] % 8
    return blocks.reshape(rows, -1)
