"""Meta's folders: `params.json`, and `consolidated.00.pth` and so on, one shard per model-parallel GPU."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llucid.arrays import Mapped
from llucid.arrays.dtypes import checked_dtype
from llucid.arrays.memory import release
from llucid.checkpoints.format import Header, Progress, no_progress
from llucid.checkpoints.metadata import float_of, int_of
from llucid.checkpoints.pickles import entries_of, read_pickle, write_pickle
from llucid.checkpoints.tensors import Leaf, Stored, equal_numbers, gather, renamed
from llucid.config import Config, RopeScaling, head_width
from llucid.errors import LlucidError, prefix_errors
from llucid.files import read_json, write_text_atomically
from llucid.model import Model
from llucid.presets import PRESETS, Preset
from llucid.tokenizers import FILES, Tokenizer, load_tokenizer
from llucid.tokenizers.folder import write_beside
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
"""Our names and Meta's. The rows of query and key have the same order as ours."""
name_of = partial(renamed, names=NAMES)

# The keys of a params.json. Others belong to other models (sliding_window, moe, vision, quantization_args).
KNOWN = {
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps"),
    *("rope_theta", "use_scaled_rope", "rope_scaling_factor", "max_seq_len", "max_batch_size"),
}

SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)
"""The scaling in Meta's code if params.json says use_scaled_rope (llama-models, models/llama3/model.py)."""


def recognises(path: Path) -> bool:
    return (path / "params.json").is_file() and not (path / "config.json").is_file()


def weight_files(path: Path) -> list[Path]:
    """Each `consolidated.NN.pth`, in order. Raises LlucidError if one is missing."""
    files = sorted(path.glob("consolidated.*.pth"))
    for number, file in enumerate(files):
        if file.name != f"consolidated.{number:02}.pth":
            raise LlucidError(f"{path}: consolidated.{number:02}.pth is missing; the next shard is {file.name}")
    if not files:
        raise LlucidError(f"{path}: has a params.json but no consolidated.00.pth")
    return files


def read_entries(path: Path, dim: int) -> dict[str, Stored]:
    """Every tensor of the folder, with its shards concatenated."""
    parts = [entries_of(read_pickle(file), file) for file in weight_files(path)]
    for number, part in enumerate(parts):
        if odd := part.keys() ^ parts[0].keys():
            raise LlucidError(
                f"{path}: {min(odd)} is in only one of consolidated.00.pth and consolidated.{number:02}.pth"
            )
    query = parts[0].get(name_of("blocks.0.attention.query"))  # of which each shard has some of `dim` rows
    some = query.shape[0] if query and len(query.shape) == 2 else 0
    if 0 < len(parts) * some < dim and dim % some == 0:
        missing, count = f"consolidated.{len(parts):02}.pth", dim // some
        raise LlucidError(f"{path}: {missing} is missing: a query matrix of {dim} rows is in {count} shards")
    # Angles in the files of Llama 1, in each layer, and of Llama 2; they follow from the config.
    names = {name for name in parts[0] if not name.endswith("rope.freqs")}
    if all(map(twinned, parts)):
        names -= {NAMES["output"]}
    return {name: join(path, name, [part[name] for part in parts], dim) for name in parts[0] if name in names}


def join(path: Path, name: str, parts: list[Stored], dim: int) -> Stored:
    """Concatenates the shards of a tensor. Each shard has a copy of the norms. wo and w2, which write to the residual
    stream, are split along their input (axis 1), the other matrices along their output (axis 0). The embedding is split
    along its width in Llama 1 and 2 and along its vocabulary in Llama 3: its shape tells which."""
    first = parts[0]
    if any(part.shape != first.shape or part.dtype != first.dtype for part in parts):
        raise LlucidError(f"{path}: the shards of {name} differ in shape or dtype")
    if len(parts) == 1 or len(first.shape) != 2:
        return first
    by_input = name.endswith((".wo.weight", ".w2.weight"))
    axis = 1 if by_input or (name == NAMES["embedding"] and first.shape[1] != dim) else 0
    shape = list(first.shape)
    shape[axis] *= len(parts)

    def read() -> Mapped:
        mapped = [part.read().numbers for part in parts]
        joined = np.empty(shape, mapped[0].dtype)
        for piece, numbers in zip(np.split(joined, len(parts), axis), mapped, strict=True):
            piece[...] = numbers
            release(numbers)
        return Mapped(first.dtype, joined)

    return Stored(tuple(shape), first.dtype, read)


def read_config(path: Path) -> Config:
    """The Config of a folder, from `params.json` and the shapes of the tensors.

    `ffn_dim`, `vocab_size` and `tied_embeddings` follow from the tensors: a tied output matrix is missing, or equal to
    the embedding. Some values are in no file: see `inferred`. Raises LlucidError for keys of other models.
    """
    return read(path)[0]


def inferred(path: Path) -> set[str]:
    """The names of the Config's values that are inferred because they are in no file of the folder."""
    return read(path)[1]


def read(path: Path) -> tuple[Config, set[str]]:
    """The Config of a folder, and the names of its inferred values, taken from the published model of these sizes.

    For other sizes, the scaling factor is 32 with tied embeddings (as in Llama 3.2), otherwise 8 (3.1). The context is
    131,072 with scaled RoPE, 16,384 if rope_theta is 10⁶ (Code Llama), 8,192 if it is 500,000 (Llama 3), 2,048 if
    norm_eps is 1e-6 or there are 64 heads and as many KV heads (Llama 1, whose 65B has norm_eps 1e-5), otherwise 4,096
    (Llama 2, although the first downloads of 7B-chat also have norm_eps 1e-6).
    """
    file = path / "params.json"
    params = {key: value for key, value in read_json(file).items() if value is not None}
    if unknown := params.keys() - KNOWN:
        raise LlucidError(f"{file}: {min(unknown)} is not a parameter of a Llama that llucid opens")
    entries = read_entries(path, int_of(params, "dim", file))
    sizes = sizes_of(params, file, entries, path)
    eps, theta = float_of(params, "norm_eps", file), float_of(params, "rope_theta", file, 10_000.0)
    scaled = bool(params.get("use_scaled_rope", False))
    first = eps < 5e-6 or sizes["heads"] == sizes["kv_heads"] == 64
    context = {1_000_000.0: 16_384, 500_000.0: 8192}.get(theta, 2048 if first else 4096)
    scaling = RopeScaling(factor=32.0 if sizes["tied_embeddings"] else 8.0) if scaled else None
    with prefix_errors(file):
        context = 131_072 if scaled else context
        config = Config(**sizes, context=context, norm_eps=eps, rope_theta=theta, rope_scaling=scaling)
        found = next((preset.config for preset in PRESETS.values() if matches_preset(preset, config)), config)
        config = replace(found, tied_embeddings=config.tied_embeddings)
        missing = {"context", "rope_scaling"} if scaled else {"context"}
        if "max_seq_len" in params:
            config = replace(config, context=int_of(params, "max_seq_len", file))
            missing -= {"context"}
        if scaled and "rope_scaling_factor" in params:
            config = replace(config, rope_scaling=RopeScaling(factor=float_of(params, "rope_scaling_factor", file)))
            missing -= {"rope_scaling"}
    return config, missing


def sizes_of(params: Mapping[str, Any], file: Path, entries: dict[str, Stored], path: Path) -> dict[str, Any]:
    """The sizes of a Config: from `params`, which `file` has under Meta's keys, and from the tensors of `path`."""
    dim, heads = int_of(params, "dim", file), int_of(params, "n_heads", file)
    vocab, ffn = (rows(entries, name, path) for name in (NAMES["embedding"], name_of("blocks.0.feed_forward.gate")))
    if int_of(params, "vocab_size", file, -1) not in (-1, vocab):
        raise LlucidError(f"{file}: vocab_size is {params['vocab_size']}, but {NAMES['embedding']} has {vocab} rows")
    with prefix_errors(file):
        return {
            "dim": dim,
            "layers": int_of(params, "n_layers", file),
            "heads": heads,
            "kv_heads": int_of(params, "n_kv_heads", file, heads),
            "head_dim": head_width(dim, max(1, heads)),
            "ffn_dim": ffn,
            "vocab_size": vocab,
            "tied_embeddings": NAMES["output"] not in entries,
        }


def matches_preset(preset: Preset, config: Config) -> bool:
    """Whether `config` is the preset's, except for the values that may be inferred, and for an output matrix that is no
    longer the embedding, after more training."""
    free = {name: getattr(config, name) for name in ("context", "rope_scaling", "tied_embeddings")}
    return replace(preset.config, **free) == config and bool(preset.config.rope_scaling) == bool(config.rope_scaling)


def rows(entries: dict[str, Stored], name: str, path: Path) -> int:
    """The number of rows of a matrix. Raises LlucidError if it is missing."""
    if name not in entries or len(entries[name].shape) != 2:
        raise LlucidError(f"{path}: {name} is missing; expected a matrix")
    return entries[name].shape[0]


def twinned(entries: dict[str, Stored]) -> bool:
    """Whether the output matrix equals the embedding. Stops reading at the first difference."""
    embedding, output = entries.get(NAMES["embedding"]), entries.get(NAMES["output"])
    return bool(embedding and output and len(embedding.shape) == 2 and equal_numbers(embedding, output))


def read_header(path: Path) -> Header:
    """The shape and dtype of every tensor in a folder, with its shards concatenated."""
    dim = read_json(path / "params.json").get("dim")
    return {
        name: (entry.shape, entry.dtype) for name, entry in read_entries(path, dim if type(dim) is int else 0).items()
    }


def open_weights(path: Path, config: Config) -> Weights:
    """The weights in a folder, in the dtype of the file. Raises LlucidError as `gather` does."""
    return gather(config, read_entries(path, config.dim), name_of, str(path))


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in the folder, or in its parent, as in Meta's downloads of Llama 1 and 2."""
    in_parent = path / ".." / "tokenizer.model"
    return load_tokenizer(
        in_parent if in_parent.is_file() and not any((path / name).is_file() for name in FILES) else path
    )


def refuse(config: Config) -> None:
    """Raises LlucidError for values that a params.json cannot hold."""
    if config.head_dim * config.heads != config.dim:
        raise LlucidError(
            f"Meta's format has no head_dim: {config.head_dim} must be dim / heads = {config.dim}/{config.heads}"
        )
    for name in ("attention_bias", "mlp_bias"):
        if getattr(config, name):
            raise LlucidError(f"Meta's format cannot hold {name}=True; huggingface and gguf can")
    scaling = config.rope_scaling
    if scaling and (not isinstance(scaling, RopeScaling) or scaling != RopeScaling(factor=scaling.factor)):
        raise LlucidError(f"Meta's format can only hold the rope_scaling of Llama 3.1, {SCALING}; found {scaling}")


def ffn_recipe(dim: int, ffn_dim: int) -> dict[str, int | float]:
    """The keys from which Meta's code computes ffn_dim: int(multiplier · int(8/3 dim)), rounded up to multiple_of."""
    plain = 2 * 4 * dim // 3
    if math.ceil(plain / 256) * 256 == ffn_dim:
        return {"multiple_of": 256}
    return {"multiple_of": 1, "ffn_dim_multiplier": (ffn_dim + 0.5) / plain}


def write_params(out: Path, config: Config) -> None:
    """Writes `params.json`. Meta's own code has the constant 8 for rope_scaling.factor, and no context."""
    params: dict[str, Any] = {
        "dim": config.dim,
        "n_layers": config.layers,
        "n_heads": config.heads,
        "n_kv_heads": config.kv_heads,
        "vocab_size": config.vocab_size,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # even if 10,000: the default of Llama 3's code is 500,000
    }
    params |= ffn_recipe(config.dim, config.ffn_dim)
    if config.rope_scaling:
        params["use_scaled_rope"] = True
        if config.tied_embeddings or config.rope_scaling.factor != SCALING.factor:  # so that it is not inferred
            params["rope_scaling_factor"] = config.rope_scaling.factor
    write_text_atomically(out / "params.json", json.dumps(params, indent=2) + "\n")


def write_tokenizer(out: Path, tokenizer: Tokenizer) -> None:
    """Writes `tokenizer.model` for a tokenizer of one of Meta's kinds, otherwise `tokenizer.json`. Keeps the content of
    a `tokenizer_config.json`, such as the chat template."""
    from llucid.tokenizers.sentencepiece_model import SentencePiece
    from llucid.tokenizers.tiktoken_ranks import TiktokenRanks

    if isinstance(tokenizer, TiktokenRanks | SentencePiece):
        tokenizer.write(out / "tokenizer.model")
        config = tokenizer.config | (tokenizer.listed() if isinstance(tokenizer, SentencePiece) else {})
        config |= {"add_bos_token": False} if tokenizer.bos is None else {}
        if config or (isinstance(tokenizer, SentencePiece) and tokenizer.stop_ids - {tokenizer.eos}):
            write_beside(out, config, tokenizer.stop_ids)
    else:
        tokenizer.save(out)


def write(out: Path, model: Model, progress: Progress = no_progress, dtype: str | None = None) -> None:
    """Writes a folder with one shard and the tokenizer's files. Raises LlucidError as `refuse` does."""
    refuse(model.config)
    kind = checked_dtype(dtype)
    tensors: dict[str, Leaf] = {name_of(path): leaf for path, leaf in named_leaves(model.weights)}
    tensors.setdefault(NAMES["output"], model.weights.embedding)  # Meta's code reads both, tied or not
    if model.tokenizer:
        write_tokenizer(out, model.tokenizer)
    write_params(out, model.config)
    write_pickle(out / "consolidated.00.pth", tensors, kind, progress)
