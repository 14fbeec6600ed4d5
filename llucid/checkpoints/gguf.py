"""GGUF files, llama.cpp's format, of its architecture "llama": one file, with the tokenizer inside.

Rows of query and key are in Meta's order, as we hold them. The names and keys are those of llama.cpp, its
src/llama-arch.cpp and convert_hf_to_gguf.py.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from llucid.arrays.dtypes import full_name, name_of_dtype
from llucid.checkpoints.format import Header, Progress, no_progress
from llucid.checkpoints.gguf_blocks import KINDS, WRITTEN, Kind
from llucid.checkpoints.gguf_file import ALIGNMENT, Head, Part, encoded, entry_of, pieces_of, read_head
from llucid.checkpoints.metadata import real, whole
from llucid.checkpoints.tensors import Leaf, gather, renamed
from llucid.config import Config, DynamicScaling, LinearScaling, RopeScaling, Scaling, YarnScaling
from llucid.errors import LlucidError, prefix_errors
from llucid.files import atomic_file, first_bytes
from llucid.model import Model
from llucid.rope import slowdowns
from llucid.tokenizers import Tokenizer
from llucid.tokenizers.info import TokenizerInfo
from llucid.weights import Weights, named_leaves

Found = TypeVar("Found")

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
SLOWDOWNS = "rope_freqs.weight"
"""By how much each pair of RoPE is slowed: Llama 3.1's scaling, worked out."""

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
"""The numbers of the Config, by their keys."""
FLOATS = ("norm_eps", "rope_theta")
WIDTHS = ("llama.attention.value_length", "llama.rope.dimension_count")
"""Keys that can only say head_dim once more."""

# What a Llama has, by the keys that could say otherwise; None where a key need not be there.
EXPECTED: dict[str, tuple[Any, ...]] = {
    "general.architecture": ("llama",),
    "general.type": ("model", None),
    "llama.expert_count": (0, None),
    "llama.expert_used_count": (0, None),
    "llama.rope.scaling.type": ("none", "linear", "yarn", None),
    "llama.rope.scaling.attn_factor": (1.0, None),
    "llama.rope.scaling.yarn_ext_factor": (1.0, None),
    "llama.attention.sliding_window": (0, None),
    "llama.attention.causal": (True, None),
    "llama.attention.scale": (0.0, None),
    "llama.logit_scale": (1.0, 0.0, None),
    "llama.residual_scale": (1.0, 0.0, None),
    "llama.embedding_scale": (1.0, 0.0, None),
    "llama.use_parallel_residual": (False, None),
}
IDLE = {"llama.tensor_data_layout", "llama.rope.scaling.finetuned"}
"""Keys that change nothing here. Any other key of "llama" would be of another model."""
OLD_FACTOR = "llama.rope.scale_linear"
ROPE = {
    name: f"llama.rope.scaling.{key}"
    for name, key in {
        "type": "type",
        "factor": "factor",
        "original_context": "original_context_length",
        "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
        "attention_factor": "yarn_attn_factor",
    }.items()
}
"""Keys of linear and YaRN scaling. The attention factor is relative to 1 + 0.1 ln(factor): in
llama.cpp, ggml_rope_yarn."""


FILE_TYPES = {"float32": 0, "float16": 1, "Q4_0": 2, "Q8_0": 7, "bfloat16": 32}
"""llama.cpp's numbers (llama_ftype) of files whose matrices are mostly of a kind."""


def name_of(path: str) -> str:
    """GGUF's name of the array at our path."""
    return renamed(path, NAMES)


# --------------------------------------------------------------------------------------------- the room, reading


def recognises(path: Path) -> bool:
    return path.is_file() and first_bytes(path, 4) == b"GGUF"


def read_config(path: Path) -> Config:
    """The Config that the keys say. The vocabulary is that of the embedding; tied is a model without output matrix.

    Raises LlucidError, by name, for a model that is not a Llama, or is one with something that llucid lacks.
    """
    return config_of(read_head(path))


def config_of(head: Head) -> Config:
    """The Config that a header says."""
    path = head.path
    parts = head.settled("split.count") if "split.count" in head.fields else 1
    if parts not in (0, 1):
        raise LlucidError(
            f"{path}: is one of {parts} files that are one model; put them together with llama.cpp's: "
            "llama-gguf-split --merge FIRST_FILE NEW_FILE"
        )
    told = {key: head.settled(key) for key in head.fields if key.startswith("llama.") or key in EXPECTED}
    odd = [key for key, allowed in EXPECTED.items() if told.get(key) not in allowed]
    if odd:
        found = ", ".join(f"{key} {json.dumps(told.get(key))[:40]}" for key in odd)
        wanted = ", ".join(f"{key} {json.dumps(EXPECTED[key][0])}" for key in odd)
        raise LlucidError(f"{path}: not a model that llucid opens: it has {found}; a Llama has {wanted}")
    if unknown := told.keys() - EXPECTED.keys() - IDLE - {*KEYS.values(), *ROPE.values(), *WIDTHS, OLD_FACTOR}:
        raise LlucidError(f"{path}: {min(unknown)} is no number of a Llama that llucid opens")

    embedding = head.places.get(NAMES["embedding"])
    if embedding is None or len(embedding.shape) != 2:
        raise LlucidError(f"{path}: {NAMES['embedding']} is missing; expected a matrix")
    vocab = embedding.shape[0]
    if whole(told, KEYS["vocab_size"], path, vocab) != vocab:
        raise LlucidError(f"{path}: {KEYS['vocab_size']} is {told[KEYS['vocab_size']]}, but the embedding has {vocab}")
    dim, heads = (whole(told, KEYS[name], path) for name in ("dim", "heads"))
    head_dim = whole(told, KEYS["head_dim"], path, dim // max(1, heads))
    for key in WIDTHS:
        if whole(told, key, path, head_dim) != head_dim:
            raise LlucidError(f"{path}: {key} is {told[key]}; llucid opens models where it is head_dim, {head_dim}")
    with prefix_errors(path):
        config = Config(
            dim=dim,
            layers=whole(told, KEYS["layers"], path),
            heads=heads,
            kv_heads=whole(told, KEYS["kv_heads"], path, heads),
            head_dim=head_dim,
            ffn_dim=whole(told, KEYS["ffn_dim"], path),
            vocab_size=vocab,
            context=whole(told, KEYS["context"], path),
            norm_eps=real(told, KEYS["norm_eps"], path),
            rope_theta=real(told, KEYS["rope_theta"], path, 10_000.0),
            tied_embeddings=NAMES["output"] not in head.places,
        )
        return replace(config, rope_scaling=read_scaling(head, config, told))


def llama3_of(stored: NDArray[np.float32], config: Config) -> RopeScaling | None:
    """Llama 3.1's scaling with these slowdowns, whatever its factor; None if nothing is slowed.

    Raises LlucidError if these are the slowdowns of another scaling.
    """
    largest = float(str(np.float32(stored.max())))
    if (stored == 1).all():
        return None
    if 1 < largest < math.inf:
        scaling = RopeScaling(factor=largest)
        expected = slowdowns(replace(config, rope_scaling=scaling))
        if np.allclose(expected, stored, rtol=1e-4, atol=0):
            return scaling
    raise LlucidError(f"{SLOWDOWNS} is not of Llama 3.1's scaling of RoPE, the only one that llucid reads from it")


def read_scaling(head: Head, config: Config, told: dict[str, Any]) -> Scaling | None:
    """The scaling of RoPE: in keys, or worked out in a tensor."""
    path, kind = head.path, told.get(ROPE["type"])
    factor = real(told, ROPE["factor"], path, real(told, OLD_FACTOR, path, 1.0)) or 1.0
    scaling: Scaling | None = None
    if kind == "yarn":
        relative = real(told, ROPE["attention_factor"], path, 1.0)
        scaling = YarnScaling(
            factor=factor,
            original_context=whole(told, ROPE["original_context"], path, config.context),
            beta_fast=real(told, ROPE["beta_fast"], path, 32.0),
            beta_slow=real(told, ROPE["beta_slow"], path, 1.0),
            attention_factor=relative * (1 + math.log(max(factor, 1)) / 10),
        )
    elif kind != "none" and factor != 1:
        scaling = LinearScaling(factor=factor)
    place = head.places.get(SLOWDOWNS)
    if place is None:
        return scaling
    if place.shape != (config.head_dim // 2,) or place.kind.name != "float32":
        raise LlucidError(
            f"{SLOWDOWNS} has shape {list(place.shape)} and is {place.kind.name}; "
            f"expected [{config.head_dim // 2}] and float32"
        )
    llama3 = llama3_of(head.numbers[place.at : place.at + place.size].view("<f4"), config)
    if llama3 and scaling:
        raise LlucidError(f"{SLOWDOWNS} and {ROPE['type']} both scale RoPE; llucid opens files with one of the two")
    return llama3 or scaling


def keys_of_scaling(scaling: Scaling | None) -> dict[str, Any]:
    """The keys of `ROPE` for linear and YaRN scaling."""
    match scaling:
        case LinearScaling():
            return {ROPE["type"]: "linear", ROPE["factor"]: scaling.factor}
        case YarnScaling():
            numbers = {ROPE[name]: number for name, number in vars(scaling).items()}
            relative = scaling.attention_factor / (1 + math.log(scaling.factor) / 10)
            return {ROPE["type"]: "yarn", **numbers, ROPE["attention_factor"]: relative}
        case _:
            return {}


def read_header(path: Path) -> Header:
    """The shape of every tensor in a file, and how it is stored."""
    return {name: (place.shape, place.kind.name) for name, place in read_head(path).places.items()}


def open_weights(path: Path, config: Config) -> Weights:
    """The weights in the file's own dtype; what is quantised is float32 when read. Strict, as every room.

    Reading raises LlucidError if dequantising needs the gguf package and it is not there.
    """
    return _open(path, config, keep=False)


def open_quantized(path: Path, config: Config) -> Weights:
    """`open_weights`, but matrices in Q8_0 and Q4_0 stay so when they are read, bit for bit."""
    return _open(path, config, keep=True)


def _open(path: Path, config: Config, keep: bool) -> Weights:
    head = read_head(path)
    # The angles' slowdowns are in the config; very old files have the angles themselves, which follow from it.
    idle = {name for name in head.places if name == SLOWDOWNS or name.endswith(".attn_rot_embd")}
    return gather(config, {name: entry_of(head, name, keep) for name in head.places}, name_of, str(path), ignored=idle)


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer inside. Raises LlucidError, by name, for one of a kind that llucid does not know."""
    from llucid.tokenizers.gguf_vocabulary import read_vocabulary

    return within(path, read_vocabulary)


def read_tokenizer_info(path: Path) -> TokenizerInfo:
    """What the tokenizer inside is."""
    from llucid.tokenizers.gguf_vocabulary import read_info

    return within(path, read_info)


def within(path: Path, read: Callable[[Mapping[str, Any]], Found]) -> Found:
    """What `read` makes of a file's keys. Raises its LlucidError with the path."""
    with prefix_errors(path):
        return read(Values(read_head(path)))


class Values(Mapping[str, Any]):
    """The values of a header by their keys, each read when it is asked for: what nobody needs takes no memory."""

    def __init__(self, head: Head) -> None:
        self.head = head

    def __getitem__(self, key: str) -> Any:
        if key not in self.head.fields:
            raise KeyError(key)
        return self.head.value(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.head.fields)

    def __len__(self) -> int:
        return len(self.head.fields)


# --------------------------------------------------------------------------------------------- the room, writing


def write(out: Path, model: Model, progress: Progress = no_progress, dtype: str | None = None) -> None:
    """Writes one file, one tensor in memory at a time, with the tokenizer inside.

    `dtype` is float32, float16, bfloat16, Q8_0 or Q4_0, for matrices: norms are always float32, and rows that are no
    multiple of 32 numbers float16 instead of the last two, as llama.cpp has both. Refuses by name what it cannot hold.
    """
    import torch

    from llucid.tokenizers.gguf_export import write_vocabulary

    config = model.config
    refuse(config)
    chosen = choose_kind(dtype)
    if out.is_dir():
        raise LlucidError(f"{out}: is a folder; GGUF is a file, as in {out / 'model.gguf'}")
    parts = [part_of(name_of(path), leaf, chosen) for path, leaf in named_leaves(model.weights)]
    if isinstance(config.rope_scaling, RopeScaling):
        parts.append(Part(SLOWDOWNS, KINDS[0], torch.from_numpy(slowdowns(config).astype(np.float32))))
    vocabulary = {"tokenizer.ggml.model": "no_vocab"}  # as llama.cpp has it
    if model.tokenizer:
        vocabulary = write_vocabulary(model.tokenizer, config.vocab_size)
    told = keys_of(config, parts[0].kind.name) | vocabulary
    total = sum(part.size for part in parts)
    done = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as temporary, open(temporary, "wb") as file:
        file.write(encoded(told, parts))
        for part in parts:
            for piece in pieces_of(part):
                done += file.write(piece)
            file.write(bytes(-part.size % ALIGNMENT))
            progress(done, total)


def refuse(config: Config) -> None:
    """Raises LlucidError, by name, for numbers that the format does not have."""
    for name in FLOATS:
        value = getattr(config, name)
        held = float(str(np.float32(value)))
        if held != value:
            raise LlucidError(f"GGUF cannot hold {name}={value}; in 32 bits it is {held}")
    match config.rope_scaling:
        case RopeScaling() as scaling if not can_be_read_again(config):
            raise LlucidError(f"GGUF has no rope_scaling but Llama 3.1's, {RopeScaling()}; this one is {scaling}")
        case DynamicScaling() as scaling:
            raise LlucidError(f"GGUF has linear and YaRN scaling of RoPE; this one is {scaling}")
        case _:
            pass


def can_be_read_again(config: Config) -> bool:
    """Whether the slowdowns of `config` are enough to find its scaling again."""
    try:
        return llama3_of(slowdowns(config).astype(np.float32), config) == config.rope_scaling
    except LlucidError:
        return False


def choose_kind(dtype: str | None) -> Kind | None:
    """The kind called `dtype`, None stays None. Raises LlucidError for any other name."""
    if dtype is None:
        return None
    name = full_name(dtype).replace("q8_0", "Q8_0").replace("q4_0", "Q4_0")
    if name not in WRITTEN:
        raise LlucidError(f"--dtype {dtype}: GGUF is written with {', '.join(WRITTEN)}")
    return KINDS[WRITTEN[name]]


def part_of(name: str, leaf: Leaf, chosen: Kind | None) -> Part:
    """How a tensor is to be stored; in its own dtype if none is chosen."""
    bits = getattr(leaf, "bits", None)  # of a Quantized matrix
    own = f"Q{bits}_0" if bits else name_of_dtype(leaf.dtype)
    kind = chosen or KINDS[WRITTEN.get(own, 0)]
    if leaf.ndim == 1:
        kind = KINDS[0]
    elif leaf.shape[-1] % kind.block:
        kind = KINDS[1]
    return Part(name, kind, leaf)


def keys_of(config: Config, kind: str) -> dict[str, Any]:
    """The keys that say what the model is, for matrices mostly of this kind."""
    told: dict[str, Any] = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
    }
    told |= {key: getattr(config, name) for name, key in KEYS.items()}
    told |= {KEYS[name]: float(getattr(config, name)) for name in FLOATS}
    return told | dict.fromkeys(WIDTHS, config.head_dim) | keys_of_scaling(config.rope_scaling)
