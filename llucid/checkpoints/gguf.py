"""Models in GGUF, llama.cpp's format, with the architecture "llama".

A model is one file, which also contains the tokenizer, or is split over several files, of which one opens the first.
The rows of query and key are in Meta's order, as in memory. Source of the names and keys: llama.cpp,
src/llama-arch.cpp and convert_hf_to_gguf.py.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llucid.arrays import Quantized
from llucid.arrays.dtypes import full_name, name_of_dtype
from llucid.arrays.quantized import FORMS
from llucid.checkpoints.format import Header, Progress, no_progress
from llucid.checkpoints.generation_config import checked_settings
from llucid.checkpoints.gguf_blocks import GGML_TYPES, NUMBERS, SAME_IN_Q8_0, WRITABLE, GgmlType
from llucid.checkpoints.gguf_file import (
    ALIGNMENT,
    FileHeader,
    PendingTensor,
    encode_header,
    read_file_header,
    read_model_header,
    read_parts,
    stored_tensor,
    tensor_chunks,
)
from llucid.checkpoints.metadata import float_of, int_of
from llucid.checkpoints.tensors import Leaf, gather, renamed
from llucid.config import Config, DynamicScaling, LinearScaling, RopeScaling, Scaling, YarnScaling
from llucid.errors import LlucidError, note, prefix_errors, shown
from llucid.files import atomic_file, first_bytes
from llucid.model import Model
from llucid.rope import slowdowns
from llucid.tokenizers import Tokenizer
from llucid.weights import Weights, named_leaves

NAMES = {
    "embedding": "token_embd.weight",
    "blocks.N.attention_norm": "blk.N.attn_norm.weight",
    "blocks.N.attention.query": "blk.N.attn_q.weight",
    "blocks.N.attention.key": "blk.N.attn_k.weight",
    "blocks.N.attention.value": "blk.N.attn_v.weight",
    "blocks.N.attention.output": "blk.N.attn_output.weight",
    "blocks.N.feed_forward_norm": "blk.N.ffn_norm.weight",
    "blocks.N.feed_forward.gate": "blk.N.ffn_gate.weight",
    "blocks.N.feed_forward.up": "blk.N.ffn_up.weight",
    "blocks.N.feed_forward.down": "blk.N.ffn_down.weight",
    "norm": "output_norm.weight",
    "output": "output.weight",
}
name_of = partial(renamed, names=NAMES)
ATTENTION_BIASES = tuple(f".attn_{name}.bias" for name in ("q", "k", "v", "output"))
MLP_BIASES = tuple(f".ffn_{name}.bias" for name in ("gate", "up", "down"))
SLOWDOWNS = "rope_freqs.weight"
"""The factor by which each pair of RoPE is slowed: Llama 3.1's scaling, precomputed."""

KEYS = {
    "dim": "llama.embedding_length",
    "layers": "llama.block_count",
    "heads": "llama.attention.head_count",
    "kv_heads": "llama.attention.head_count_kv",
    "head_dim": "llama.attention.key_length",
    "ffn_dim": "llama.feed_forward_length",
    "vocab_size": "llama.vocab_size",
    "context": "llama.context_length",
    "norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "rope_theta": "llama.rope.freq_base",
}
"""The metadata key of each number of the Config."""
FLOAT_FIELDS = ("norm_eps", "rope_theta")
HEAD_DIM_KEYS = ("llama.attention.value_length", "llama.rope.dimension_count")
"""Keys that must repeat head_dim."""

NOT_MODELS = {
    "adapter": "a LoRA adapter: merge it with its model, or load it into the model with llama.cpp",
    "mmproj": "the part of a model that reads pictures; give the file of its language model",
    "imatrix": "statistics for quantising, not a model",
}
"""What files of another general.type are."""

# The values that a Llama may have under keys that other models use; None where the key may be missing.
EXPECTED: dict[str, tuple[Any, ...]] = {
    "general.architecture": ("llama",),
    "general.type": ("model", None),
    "llama.expert_count": (0, None),
    "llama.expert_used_count": (0, None),
    "llama.rope.scaling.type": ("none", "linear", "yarn", None),
    "llama.rope.scaling.yarn_ext_factor": (1.0, None),
    "llama.attention.causal": (True, None),
    "llama.attention.scale": (0.0, None),
    "llama.logit_scale": (1.0, 0.0, None),
    "llama.residual_scale": (1.0, 0.0, None),
    "llama.embedding_scale": (1.0, 0.0, None),
    "llama.use_parallel_residual": (False, None),
}
WINDOW_KEY = "llama.attention.sliding_window"
IGNORED_KEYS = {"llama.tensor_data_layout", "llama.rope.scaling.finetuned", WINDOW_KEY}
"""Keys without effect on the model, also in llama.cpp. Other keys that begin with "llama." should be 0, false or
empty."""
SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
OLD_FACTOR_KEY = "llama.rope.scale_linear"
SCALING_KEYS = {
    "type": "llama.rope.scaling.type",
    "factor": "llama.rope.scaling.factor",
    "original_context": "llama.rope.scaling.original_context_length",
    "beta_fast": "llama.rope.scaling.yarn_beta_fast",
    "beta_slow": "llama.rope.scaling.yarn_beta_slow",
    "attention_factor": "llama.rope.scaling.attn_factor",
}
"""Keys of linear and YaRN scaling. The attention factor is relative to 1 + 0.1 ln(factor), as in llama.cpp."""
TRUE_ATTENTION_FACTOR_KEY = "llama.rope.scaling.yarn_attn_factor"
"""Where llama.cpp's conversion writes the factor itself, as config.json has it. For a Llama, llama.cpp ignores this key
and the two of beta."""


FILE_TYPES = {
    "float32": 0,
    "float16": 1,
    "Q4_0": 2,
    "Q8_0": 7,
    "bfloat16": 32,
    "Q2_K": 10,
    "Q3_K": 12,
    "Q4_K": 15,
    "Q5_K": 17,
    "Q6_K": 18,
}
"""llama.cpp's file type (llama_ftype) by the type of most matrices."""


# --------------------------------------------------------------------------------------------- reading


def recognises(path: Path) -> bool:
    return path.is_file() and first_bytes(path, 4) == b"GGUF"


def weight_files(path: Path) -> list[Path]:
    """The files of the model: several if it is split and `path` is part 1."""
    return [part.path for part in read_parts(path)]


def read_config(path: Path) -> Config:
    """The Config from the file's metadata and, where it has no key, from the tensors: the embedding gives the
    vocabulary size, no output matrix means tied, and there may be biases.

    Raises LlucidError, which names the key, for a model that is not a Llama or has a feature that llucid lacks.
    """
    header = read_model_header(path)
    metadata = {key: header.uniform_value(key) for key in header.fields if key.startswith("llama.") or key in EXPECTED}
    if found := NOT_MODELS.get(str(metadata.get("general.type"))):
        raise LlucidError(f"{path}: {found}")
    unsupported = [key for key, allowed in EXPECTED.items() if metadata.get(key) not in allowed]
    if unsupported:
        found = ", ".join(f"{key} {json.dumps(metadata.get(key))[:40]}" for key in unsupported)
        expected = ", ".join(f"{key} {json.dumps(EXPECTED[key][0])}" for key in unsupported)
        raise LlucidError(f"{path}: llucid cannot open this model: it has {found}; expected {expected}")
    known = {*EXPECTED, *IGNORED_KEYS, *KEYS.values(), *SCALING_KEYS.values(), *HEAD_DIM_KEYS}
    known |= {OLD_FACTOR_KEY, TRUE_ATTENTION_FACTOR_KEY}
    if unknown := {key for key in metadata.keys() - known if metadata[key]}:
        key = min(unknown)
        raise LlucidError(f"{path}: {key} {shown(metadata[key])} is not supported; try llama.cpp for this model")
    if not header.tensors:
        raise LlucidError(f"{path}: a vocabulary without a model: it has no tensors")

    embedding = header.tensors.get(NAMES["embedding"])
    if embedding is None or len(embedding.shape) != 2:
        raise LlucidError(f"{path}: {NAMES['embedding']} is missing or is not a matrix")
    vocab = embedding.shape[0]
    dim, heads = (int_of(metadata, KEYS[name], path) for name in ("dim", "heads"))
    defaults: dict[str, Any] = {
        "vocab_size": vocab,
        "kv_heads": heads,
        "head_dim": dim // max(1, heads),
        "rope_theta": 10_000.0,
    }
    numbers: dict[str, Any] = {
        name: (float_of if name in FLOAT_FIELDS else int_of)(metadata, key, path, defaults.get(name))
        for name, key in KEYS.items()
    }
    if numbers["vocab_size"] != vocab:
        found = f"{KEYS['vocab_size']} is {numbers['vocab_size']}"
        raise LlucidError(f"{path}: {found}, but the embedding has {vocab} rows")
    if metadata.get(WINDOW_KEY):
        note(f"{path}: {WINDOW_KEY} is ignored, as in llama.cpp: a Llama attends to all tokens")
    for key in HEAD_DIM_KEYS:
        if int_of(metadata, key, path, numbers["head_dim"]) != numbers["head_dim"]:
            raise LlucidError(f"{path}: {key} is {metadata[key]}; expected {numbers['head_dim']}, as head_dim")
    with prefix_errors(path):
        config = Config(
            **numbers,
            tied_embeddings=NAMES["output"] not in header.tensors,
            attention_bias=any(name.endswith(ATTENTION_BIASES) for name in header.tensors),
            mlp_bias=any(name.endswith(MLP_BIASES) for name in header.tensors),
        )
        return replace(config, rope_scaling=read_scaling(header, config, metadata))


def llama3_scaling(stored: NDArray[np.float32], config: Config) -> RopeScaling | None:
    """Llama 3.1's scaling that gives the `stored` slowdowns, with any factor, and a power of 2 as original context;
    None if they are all 1.

    Raises LlucidError if no such scaling gives them.
    """
    largest = float(str(np.float32(stored.max())))
    if (stored == 1).all():
        return None
    for original in (RopeScaling().original_context, *(2**n for n in range(4, 21))) if 1 < largest < math.inf else ():
        scaling = RopeScaling(factor=largest, original_context=original)
        expected = slowdowns(replace(config, rope_scaling=scaling))
        if np.allclose(expected, stored, rtol=1e-4, atol=0):
            return scaling
    raise LlucidError(f"{SLOWDOWNS} does not match Llama 3.1's RoPE scaling, which llucid expects there")


def read_scaling(header: FileHeader, config: Config, metadata: dict[str, Any]) -> Scaling | None:
    """The scaling of RoPE: from the metadata, or from the tensor of slowdowns."""
    path, kind = header.path, metadata.get(SCALING_KEYS["type"])
    factor = float_of(metadata, SCALING_KEYS["factor"], path, float_of(metadata, OLD_FACTOR_KEY, path, 1.0)) or 1.0
    relative = float_of(metadata, SCALING_KEYS["attention_factor"], path, 1.0)
    scaling: Scaling | None = None
    if kind == "yarn":
        attention_factor = relative * (1 + math.log(max(factor, 1)) / 10)
        if SCALING_KEYS["attention_factor"] not in metadata:
            attention_factor = float_of(metadata, TRUE_ATTENTION_FACTOR_KEY, path, attention_factor)
        scaling = YarnScaling(
            factor=factor,
            original_context=int_of(metadata, SCALING_KEYS["original_context"], path, config.context),
            beta_fast=float_of(metadata, SCALING_KEYS["beta_fast"], path, 32.0),
            beta_slow=float_of(metadata, SCALING_KEYS["beta_slow"], path, 1.0),
            attention_factor=attention_factor,
        )
    elif relative != 1:
        raise LlucidError(f"{SCALING_KEYS['attention_factor']} {relative} is only supported with YaRN scaling")
    elif kind != "none" and factor != 1:
        scaling = LinearScaling(factor=factor)
    tensor = header.tensors.get(SLOWDOWNS)
    if tensor is None:
        return scaling
    if tensor.shape != (config.head_dim // 2,) or tensor.kind.name != "float32":
        raise LlucidError(
            f"{SLOWDOWNS} has shape {list(tensor.shape)} and is {tensor.kind.name}; "
            f"expected [{config.head_dim // 2}] and float32"
        )
    llama3 = llama3_scaling(tensor.data.view("<f4"), config)
    if llama3 and scaling:
        raise LlucidError(f"{SLOWDOWNS} and {SCALING_KEYS['type']} both scale RoPE; expected only one of them")
    return llama3 or scaling


def scaling_metadata(scaling: Scaling | None) -> dict[str, Any]:
    """The metadata of linear and YaRN scaling; empty for other scalings."""
    match scaling:
        case LinearScaling():
            return {SCALING_KEYS["type"]: "linear", SCALING_KEYS["factor"]: float(scaling.factor)}
        case YarnScaling():
            numbers = {SCALING_KEYS[name]: float(number) for name, number in vars(scaling).items()}
            numbers[SCALING_KEYS["original_context"]] = scaling.original_context
            numbers[SCALING_KEYS["attention_factor"]] /= 1 + math.log(scaling.factor) / 10
            return {SCALING_KEYS["type"]: "yarn", **numbers}
        case _:
            return {}


def read_header(path: Path) -> Header:
    return {name: (tensor.shape, tensor.kind.name) for name, tensor in read_model_header(path).tensors.items()}


def open_weights(path: Path, config: Config, keep: bool = False) -> Weights:
    """The weights in the file's own dtype; quantised tensors become float32 when read. Unknown tensors are refused.

    `keep`: matrices in a form that `Quantized` has stay quantised, bit for bit. Reading raises LlucidError if
    dequantising needs the gguf package and it is not installed.
    """
    header = read_model_header(path)
    # Both follow from the config: the slowdowns, and the RoPE angles that very old files contain.
    ignored = {name for name in header.tensors if name == SLOWDOWNS or name.endswith(".attn_rot_embd")}
    entries = {name: stored_tensor(header, name, keep) for name in header.tensors}
    if keep:
        note_floats(header)
    return gather(config, entries, name_of, str(path), ignored=ignored)


open_quantized = partial(open_weights, keep=True)


def note_floats(header: FileHeader) -> None:
    """Says how much memory the file takes, if matrices in it are quantised in a way that only float32 can hold."""
    kinds: set[str] = set()
    size = stored = 0
    for shape, kind, _, _, bytes_ in header.tensors.values():
        stored += bytes_
        if kind.block > 1 and kind.name not in (*FORMS, *SAME_IN_Q8_0):
            kinds.add(kind.name)
            bytes_ = 4 * math.prod(shape)
        size += bytes_
    if kinds:
        names = ", ".join(sorted(kinds))
        note(
            f"{header.path}: {names} matrices are opened as float32, "
            f"{size / 1e9:.1f} GB in memory for a file of {stored / 1e6:.0f} MB"
        )


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in the file. Raises LlucidError, which names the kind, if llucid does not support it."""
    from llucid.tokenizers.gguf_vocabulary import read_vocabulary

    header = read_file_header(path)
    tokens, embedding = header.fields.get(TOKENS), header.tensors.get(NAMES["embedding"])
    if tokens and embedding and (tokens.length or 0) > embedding.shape[0]:  # before it takes memory
        raise LlucidError(
            f"{path}: tokenizer.ggml.tokens has {tokens.length:,} tokens, but the embedding has {embedding.shape[0]} "
            "rows; give the path of the model's own tokenizer, as in tokenizer=PATH"
        )
    with prefix_errors(path):
        return read_vocabulary(Metadata(header))


def read_sampling(path: Path) -> dict[str, Any]:
    """The sampling settings in the file, by their names in `generation.Sampling`."""
    metadata = Metadata(read_model_header(path))
    return checked_settings({name: metadata.get(key) for name, key in SAMPLING_KEYS.items()}, path)


TOKENS, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"
LISTS = {TOKENS, MERGES, "tokenizer.ggml.token_type", "tokenizer.ggml.scores"}
"""The keys of the tokenizer whose values are lists."""


class Metadata(Mapping[str, Any]):
    """The metadata of a file, read lazily: unused values take no memory, and a list where none belongs takes little."""

    def __init__(self, header: FileHeader) -> None:
        self.header = header

    def __getitem__(self, key: str) -> Any:
        if key not in self.header.fields:
            raise KeyError(key)
        if key not in LISTS:
            return self.header.value(key, most=100)
        tokens = self.header.fields.get(TOKENS)
        if key == MERGES or tokens is None or tokens.length is None:
            return self.header.value(key)
        return self.header.value(key, most=tokens.length + 1)  # one more than belongs there, so that it is refused

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.fields)

    def __len__(self) -> int:
        return len(self.header.fields)


# --------------------------------------------------------------------------------------------- writing


def write(out: Path, model: Model, progress: Progress = no_progress, dtype: str | None = None) -> None:
    """Writes one file that contains the tokenizer, with one tensor in memory at a time.

    `dtype` is the type of the matrices: float32, float16, bfloat16, Q8_0 or Q4_0. As in llama.cpp, norms and biases
    are always float32, and matrices whose rows are not a multiple of 32 numbers are float16 instead of Q8_0 or Q4_0.
    Raises LlucidError, which names the number, for a model that GGUF cannot hold.
    """
    import torch

    from llucid.tokenizers.gguf_export import write_vocabulary

    config = model.config
    check_config(config)
    if isinstance(yarn := config.rope_scaling, YarnScaling) and (yarn.beta_fast, yarn.beta_slow) != (32, 1):
        found = f"{yarn.beta_fast:g} and {yarn.beta_slow:g}"
        note(f"{out}: llama.cpp takes 32 and 1 for YaRN's beta_fast and beta_slow, which are {found} here")
    chosen = choose_type(dtype)
    tensors = [pending_tensor(name_of(path), leaf, chosen) for path, leaf in named_leaves(model.weights)]
    if isinstance(config.rope_scaling, RopeScaling):
        tensors.append(PendingTensor(SLOWDOWNS, GGML_TYPES[0], torch.from_numpy(slowdowns(config).astype(np.float32))))
    vocabulary = {"tokenizer.ggml.model": "no_vocab"}  # as llama.cpp writes it
    if model.tokenizer:
        vocabulary = write_vocabulary(model.tokenizer, config.vocab_size)
    sampling = {
        SAMPLING_KEYS[name]: value if name == "top_k" else float(value) for name, value in model.sampling.items()
    }
    metadata = config_metadata(config, usual_kind(tensors)) | vocabulary | sampling
    total = sum(tensor.size for tensor in tensors)
    done = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as temporary, open(temporary, "wb") as file:
        file.write(encode_header(metadata, tensors))
        for tensor in tensors:
            with prefix_errors(tensor.name):
                for chunk in tensor_chunks(tensor):
                    done += file.write(chunk)
            file.write(bytes(-tensor.size % ALIGNMENT))
            progress(done, total)


def usual_kind(tensors: list[PendingTensor]) -> str:
    """The type of most numbers."""
    sizes = Counter[str]()
    for tensor in tensors:
        sizes[tensor.kind.name] += tensor.numbers.numel()
    return sizes.most_common(1)[0][0]


def check_config(config: Config) -> None:
    """Raises LlucidError, which names the number, if GGUF cannot hold `config`."""
    for name in FLOAT_FIELDS:
        value = getattr(config, name)
        with np.errstate(over="ignore"):
            held = np.float32(value)
        if value not in (rounded := float(str(held)), float(held)):
            raise LlucidError(f"GGUF cannot hold {name}={value}; in float32 it is {rounded}")
    match config.rope_scaling:
        case RopeScaling() as scaling if not scaling_is_recoverable(config):
            raise LlucidError(
                f"GGUF cannot hold {scaling}; expected {RopeScaling()}, with any factor above 1 and any power of 2 as "
                "original_context"
            )
        case DynamicScaling() as scaling:
            raise LlucidError(f"GGUF cannot hold {scaling}; it holds linear, YaRN and Llama 3.1's scaling")
        case _:
            pass


def scaling_is_recoverable(config: Config) -> bool:
    """Whether a scaling that is the same for every pair can be recovered from the slowdowns of `config`."""
    try:
        return llama3_scaling(slowdowns(config).astype(np.float32), config) is not None
    except LlucidError:
        return False


def choose_type(dtype: str | None) -> GgmlType | None:
    """The type called `dtype`; None if `dtype` is None. Raises LlucidError for a name that GGUF is not written with."""
    if dtype is None:
        return None
    name = full_name(dtype).replace("q8_0", "Q8_0").replace("q4_0", "Q4_0")
    if name not in WRITABLE:
        raise LlucidError(f"dtype={dtype}: GGUF can be written with {', '.join(WRITABLE)}")
    return GGML_TYPES[NUMBERS[name]]


def pending_tensor(name: str, leaf: Leaf, chosen: GgmlType | None) -> PendingTensor:
    """The tensor with the type to store it in: the chosen one, or its own if `chosen` is None."""
    own = leaf.form if isinstance(leaf, Quantized) else name_of_dtype(leaf.dtype)
    kind = chosen or GGML_TYPES[NUMBERS.get(own, 0)]
    if leaf.ndim == 1:
        kind = GGML_TYPES[0]
    elif leaf.shape[-1] % kind.block:
        kind = GGML_TYPES[1]
    return PendingTensor(name, kind, leaf)


def config_metadata(config: Config, kind: str) -> dict[str, Any]:
    """The metadata that describes the model; most matrices are of type `kind`."""
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
    }
    metadata |= {key: getattr(config, name) for name, key in KEYS.items()}
    metadata |= {KEYS[name]: float(getattr(config, name)) for name in FLOAT_FIELDS}
    return metadata | dict.fromkeys(HEAD_DIM_KEYS, config.head_dim) | scaling_metadata(config.rope_scaling)
