"""Meta's own folders: `params.json` beside `consolidated.00.pth` and so on, one file a model-parallel GPU."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llucid.arrays import Mapped
from llucid.arrays.dtypes import checked_dtype
from llucid.arrays.memory import release
from llucid.checkpoints.format import Header, Progress, no_progress
from llucid.checkpoints.metadata import real, whole
from llucid.checkpoints.pickles import entries_of, read_pickle, write_pickle
from llucid.checkpoints.tensors import Leaf, Stored, alike, gather, renamed
from llucid.config import Config, RopeScaling, head_width
from llucid.errors import LlucidError, prefix_errors
from llucid.files import read_json, write_text_atomically
from llucid.model import Model
from llucid.presets import PRESETS, Preset
from llucid.tokenizers import FILES, Tokenizer, load_tokenizer
from llucid.tokenizers.folder import write_beside
from llucid.tokenizers.info import TokenizerInfo, read_info
from llucid.weights import Weights, named_leaves

NAMES = {
    "embedding": "tok_embeddings.weight",
    "blocks.N.attention_norm": "layers.N.attention_norm.weight",
    "blocks.N.attention.query": "layers.N.attention.wq.weight",
    "blocks.N.attention.key": "layers.N.attention.wk.weight",
    "blocks.N.attention.value": "layers.N.attention.wv.weight",
    "blocks.N.attention.output": "layers.N.attention.wo.weight",
    "blocks.N.feed_forward_norm": "layers.N.ffn_norm.weight",
    "blocks.N.feed_forward.gate": "layers.N.feed_forward.w1.weight",
    "blocks.N.feed_forward.up": "layers.N.feed_forward.w3.weight",
    "blocks.N.feed_forward.down": "layers.N.feed_forward.w2.weight",
    "norm": "norm.weight",
    "output": "output.weight",
}
"""Our names and Meta's. The rows of query and key are in the order in which we hold them."""

# What a params.json may say. Another key would be of another model (sliding_window, moe, vision, quantization_args).
KNOWN = {
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps"),
    *("rope_theta", "use_scaled_rope", "rope_scaling_factor", "max_seq_len", "max_batch_size"),
}

SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)
"""What Meta's code does where params.json says use_scaled_rope (llama-models, models/llama3/model.py)."""


def name_of(path: str) -> str:
    """Meta's name of the array at our path."""
    return renamed(path, NAMES)


def recognises(path: Path) -> bool:
    return (path / "params.json").is_file() and not (path / "config.json").is_file()


def weight_files(path: Path) -> list[Path]:
    """Each `consolidated.NN.pth`, in order. Raises LlucidError if one is missing."""
    files = sorted(path.glob("consolidated.*.pth"))
    for number, file in enumerate(files):
        if file.name != f"consolidated.{number:02}.pth":
            raise LlucidError(f"{path}: consolidated.{number:02}.pth is missing; the next there is {file.name}")
    if not files:
        raise LlucidError(f"{path}: there is a params.json but no consolidated.00.pth")
    return files


def read_entries(path: Path, dim: int) -> dict[str, Stored]:
    """Every tensor of the folder, its shards put together."""
    parts = [entries_of(read_pickle(file), file) for file in weight_files(path)]
    for number, part in enumerate(parts):
        if odd := part.keys() ^ parts[0].keys():
            raise LlucidError(f"{path}: {min(odd)} is in consolidated.00.pth or in consolidated.{number:02}.pth alone")
    names = parts[0].keys() - {"rope.freqs"}  # angles that Llama 1 and 2 carry: they follow from the config
    if all(map(twinned, parts)):
        names -= {NAMES["output"]}
    return {name: join(path, name, [part[name] for part in parts], dim) for name in parts[0] if name in names}


def join(path: Path, name: str, parts: list[Stored], dim: int) -> Stored:
    """One tensor of its shards. Norms are copies. Of a matrix, attention's wo and the feed-forward's w2, which end in
    the residual stream, are cut along their input (axis 1), the others along their output (axis 0). The embedding is
    cut along its width in Llama 1 and 2 and along its vocabulary in Llama 3: its shape decides."""
    first = parts[0]
    if any(part.shape != first.shape or part.dtype != first.dtype for part in parts):
        raise LlucidError(f"{path}: the shards of {name} differ in shape or dtype")
    if len(parts) == 1 or len(first.shape) != 2:
        return first
    within = name.endswith((".wo.weight", ".w2.weight"))
    axis = 1 if within or (name == NAMES["embedding"] and first.shape[1] != dim) else 0
    shape = list(first.shape)
    shape[axis] *= len(parts)

    def read() -> Mapped:
        mapped = [part.read().numbers for part in parts]
        whole = np.empty(shape, mapped[0].dtype)
        for piece, numbers in zip(np.split(whole, len(parts), axis), mapped, strict=True):
            piece[...] = numbers
            release(numbers)
        return Mapped(first.dtype, whole)

    return Stored(tuple(shape), first.dtype, read)


def read_config(path: Path) -> Config:
    """The Config of a folder, from `params.json` and, for what is not in it, the tensors.

    The width of the feed-forward, the size of the vocabulary and tying are those of the tensors: a tied output matrix
    is absent, or equal to the embedding. What no file says is inferred (`inferred`). Raises LlucidError for keys of
    other models.
    """
    return read(path)[0]


def inferred(path: Path) -> set[str]:
    """The numbers of the Config that no file of the folder says."""
    return read(path)[1]


def read(path: Path) -> tuple[Config, set[str]]:
    """The Config of a folder, and which of its numbers are inferred: those of the published model of these sizes.

    For other sizes, the scaling factor is 32 with tied embeddings (Llama 3.2), else 8 (3.1). The context is 131,072
    with scaled RoPE, 16,384 with a base of 10⁶ (Code Llama), 8,192 with one of 500,000 (3), 2,048 with an epsilon of
    1e-6 or 64 ungrouped heads (Llama 1, of which 65B has no such epsilon), else 4,096 (Llama 2, but for the first
    downloads of 7B-chat, which say 1e-6 too).
    """
    file = path / "params.json"
    told = {key: value for key, value in read_json(file).items() if value is not None}
    if unknown := told.keys() - KNOWN:
        raise LlucidError(f"{file}: {min(unknown)} is no number of a Llama that llucid opens")
    dim, heads, eps = whole(told, "dim", file), whole(told, "n_heads", file), real(told, "norm_eps", file)
    kv_heads, theta = whole(told, "n_kv_heads", file, heads), real(told, "rope_theta", file, 10_000.0)
    entries = read_entries(path, dim)
    vocab, ffn = (rows(entries, name, path) for name in (NAMES["embedding"], name_of("blocks.0.feed_forward.gate")))
    if whole(told, "vocab_size", file, -1) not in (-1, vocab):
        raise LlucidError(f"{file}: vocab_size is {told['vocab_size']}, but {NAMES['embedding']} has {vocab} rows")
    scaled, tied = bool(told.get("use_scaled_rope", False)), NAMES["output"] not in entries
    context = {1_000_000.0: 16_384, 500_000.0: 8192}.get(theta, 2048 if eps < 5e-6 or heads == kv_heads == 64 else 4096)
    with prefix_errors(file):
        config = Config(
            dim=dim,
            layers=whole(told, "n_layers", file),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_width(dim, max(1, heads)),
            ffn_dim=ffn,
            vocab_size=vocab,
            context=131_072 if scaled else context,
            norm_eps=eps,
            rope_theta=theta,
            rope_scaling=RopeScaling(factor=32.0 if tied else 8.0) if scaled else None,
            tied_embeddings=tied,
        )
        config = next((preset.config for preset in PRESETS.values() if alike_but_for_inferred(preset, config)), config)
        guessed = {"context", "rope_scaling"} if scaled else {"context"}
        if "max_seq_len" in told:
            config = replace(config, context=whole(told, "max_seq_len", file))
            guessed -= {"context"}
        if scaled and "rope_scaling_factor" in told:
            config = replace(config, rope_scaling=RopeScaling(factor=real(told, "rope_scaling_factor", file)))
            guessed -= {"rope_scaling"}
    return config, guessed


def alike_but_for_inferred(preset: Preset, config: Config) -> bool:
    """Whether the numbers that a params.json says are those of a preset."""
    theirs = replace(preset.config, context=config.context, rope_scaling=config.rope_scaling)
    return theirs == config and bool(preset.config.rope_scaling) == bool(config.rope_scaling)


def rows(entries: dict[str, Stored], name: str, path: Path) -> int:
    """How many rows a matrix has."""
    if name not in entries or len(entries[name].shape) != 2:
        raise LlucidError(f"{path}: {name} is missing; expected a matrix")
    return entries[name].shape[0]


def twinned(entries: dict[str, Stored]) -> bool:
    """Whether the output matrix is the embedding once more, bit for bit. Reads them only as far as they are alike."""
    embedding, output = entries.get(NAMES["embedding"]), entries.get(NAMES["output"])
    return bool(embedding and output and len(embedding.shape) == 2 and alike(embedding, output))


def read_header(path: Path) -> Header:
    """The shape and dtype of every tensor in a folder, its shards put together."""
    dim = read_json(path / "params.json").get("dim")
    return {
        name: (entry.shape, entry.dtype) for name, entry in read_entries(path, dim if type(dim) is int else 0).items()
    }


def open_weights(path: Path, config: Config) -> Weights:
    """The weights in a folder, in the file's own dtype. Strict, as every room is."""
    return gather(config, read_entries(path, config.dim), name_of, str(path))


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in the folder, or above it."""
    return load_tokenizer(tokenizer_place(path))


def read_tokenizer_info(path: Path) -> TokenizerInfo:
    """What that tokenizer is."""
    return read_info(tokenizer_place(path))


def tokenizer_place(path: Path) -> Path:
    """Where the tokenizer is: in the folder or, as Meta's downloads of Llama 1 and 2 have one for all sizes, above."""
    above = path / ".." / "tokenizer.model"
    return above if above.is_file() and not any((path / name).is_file() for name in FILES) else path


def refuse(config: Config) -> None:
    """Raises LlucidError, by name, for what no params.json can say."""
    if config.head_dim * config.heads != config.dim:
        raise LlucidError(
            f"Meta's format has no head_dim: {config.head_dim} must be dim / heads = {config.dim}/{config.heads}"
        )
    scaling = config.rope_scaling
    if scaling and (not isinstance(scaling, RopeScaling) or scaling != RopeScaling(factor=scaling.factor)):
        raise LlucidError(f"Meta's format has no rope_scaling but Llama 3.1's, {SCALING}; this one is {scaling}")


def ffn_recipe(dim: int, ffn_dim: int) -> dict[str, int | float]:
    """What makes Meta's code find the width: int(multiplier · int(8/3 dim)), then up to a multiple of multiple_of."""
    plain = 2 * 4 * dim // 3
    if math.ceil(plain / 256) * 256 == ffn_dim:
        return {"multiple_of": 256}
    return {"multiple_of": 1, "ffn_dim_multiplier": (ffn_dim + 0.5) / plain}


def write_params(out: Path, config: Config) -> None:
    """Writes `params.json`. Of rope_scaling.factor Meta's own code knows 8 alone, of the context nothing."""
    told: dict[str, Any] = {
        "dim": config.dim,
        "n_layers": config.layers,
        "n_heads": config.heads,
        "n_kv_heads": config.kv_heads,
        "vocab_size": config.vocab_size,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # also where it is 10,000: Llama 3's code would take 500,000
    }
    told |= ffn_recipe(config.dim, config.ffn_dim)
    if config.rope_scaling:
        told["use_scaled_rope"] = True
        if config.tied_embeddings or config.rope_scaling.factor != SCALING.factor:  # so that none has to be inferred
            told["rope_scaling_factor"] = config.rope_scaling.factor
    write_text_atomically(out / "params.json", json.dumps(told, indent=2) + "\n")


def write_tokenizer(out: Path, tokenizer: Tokenizer) -> None:
    """Writes `tokenizer.model`, as Meta does, for a tokenizer of one of Meta's kinds; else `tokenizer.json`. What a
    `tokenizer_config.json` said, as the chat template, goes beside it."""
    from llucid.tokenizers.sentencepiece_model import SentencePiece
    from llucid.tokenizers.tiktoken_ranks import TiktokenRanks

    if isinstance(tokenizer, TiktokenRanks | SentencePiece):
        tokenizer.write(out / "tokenizer.model")
        if isinstance(tokenizer, SentencePiece) and tokenizer.config:
            write_beside(out, tokenizer.config, tokenizer.stop_ids)
    else:
        tokenizer.save(out)


def write(out: Path, model: Model, progress: Progress = no_progress, dtype: str | None = None) -> None:
    """Writes a folder of one shard, with the tokenizer's files beside. Refuses what `params.json` cannot say."""
    refuse(model.config)
    kind = checked_dtype(dtype)
    tensors: dict[str, Leaf] = {name_of(path): leaf for path, leaf in named_leaves(model.weights)}
    tensors.setdefault(NAMES["output"], model.weights.embedding)  # Meta's code knows no tying: it reads both
    if model.tokenizer:
        write_tokenizer(out, model.tokenizer)
    write_params(out, model.config)
    write_pickle(out / "consolidated.00.pth", tensors, kind, progress)
