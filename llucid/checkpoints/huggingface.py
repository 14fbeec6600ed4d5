"""Hugging Face folders: `config.json` and `model.safetensors`, as transformers' LlamaForCausalLM reads them.

The weights may also be in several files with an index, or in PyTorch's format, `pytorch_model.bin`.
"""

import json
import math
import re
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open

from llucid.arrays import Mapped
from llucid.arrays.dtypes import checked_dtype, name_of_dtype, width_of
from llucid.arrays.memory import map_file, release
from llucid.checkpoints.format import Header, Progress, no_progress
from llucid.checkpoints.generation_config import sampling_defaults, write_sampling
from llucid.checkpoints.metadata import float_of, int_of
from llucid.checkpoints.pickles import bytes_of, entries_of, read_pickle
from llucid.checkpoints.tensors import (
    NUMBERS,
    Leaf,
    Stored,
    equal_numbers,
    gather,
    mapped,
    plain_name,
    refuse_adapter,
    renamed,
    tensor_of,
)
from llucid.config import Config, DynamicScaling, LinearScaling, RopeScaling, Scaling, YarnScaling
from llucid.errors import LlucidError, note, prefix_errors, shown
from llucid.files import LARGEST_JSON, atomic_file, parse_json, read_json, refuse_stand_in, write_text_atomically
from llucid.model import Model
from llucid.tokenizers import Tokenizer, load_tokenizer
from llucid.weights import Weights, named_leaves

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", bound=Any)

NAMES = {
    "embedding": "model.embed_tokens.weight",
    "blocks.N.attention_norm": "model.layers.N.input_layernorm.weight",
    "blocks.N.attention.query": "model.layers.N.self_attn.q_proj.weight",
    "blocks.N.attention.key": "model.layers.N.self_attn.k_proj.weight",
    "blocks.N.attention.value": "model.layers.N.self_attn.v_proj.weight",
    "blocks.N.attention.output": "model.layers.N.self_attn.o_proj.weight",
    "blocks.N.feed_forward_norm": "model.layers.N.post_attention_layernorm.weight",
    "blocks.N.feed_forward.gate": "model.layers.N.mlp.gate_proj.weight",
    "blocks.N.feed_forward.up": "model.layers.N.mlp.up_proj.weight",
    "blocks.N.feed_forward.down": "model.layers.N.mlp.down_proj.weight",
    "norm": "model.norm.weight",
    "output": "lm_head.weight",
}
name_of = partial(renamed, names=NAMES)


def halves_from_pairs(matrix: Array, heads: int) -> Array:
    """Permutes the rows of a query or key matrix [heads·head_dim, dim], or of a bias, from Meta's order (RoPE rotates
    x₀ with x₁) to Hugging Face's (x₀ with the row half a head later). For tensors and NumPy arrays."""
    return matrix.reshape(heads, -1, 2, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)


def pairs_from_halves(matrix: Array, heads: int) -> Array:
    """The inverse of `halves_from_pairs`."""
    return matrix.reshape(heads, 2, -1, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)


def heads_of(path: str, config: Config) -> int | None:
    """The number of heads in the rows of the array at our path, if RoPE rotates its rows."""
    return {"query": config.heads, "key": config.kv_heads}.get(path.rpartition(".")[2].removesuffix("_bias"))


# --------------------------------------------------------------------------------------------- config.json

SIZES = {
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn_dim": "intermediate_size",
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
}
FLAGS = {"tied_embeddings": "tie_word_embeddings", "attention_bias": "attention_bias", "mlp_bias": "mlp_bias"}
"""The keys of the whole numbers and the truth values of the Config."""

# The allowed values of keys in config.json by which other models differ from a Llama.
EXPECTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "architectures": (["LlamaForCausalLM"], [], None),
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, True, None),
    "mlp_bias": (False, True, None),
    "tie_word_embeddings": (False, True, None),
    "partial_rotary_factor": (1, None),
    "rope_interleaved": (False, None),
}
LLAMAS = ("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel")
"""Architectures of which one suffices, and which transformers does not look at."""
UNUSED = re.compile(r"^(?!model\.|lm_head\.)|^lm_head\.bias$|\.[kv]_scale$")
"""Tensors without effect in transformers: other heads, as trl's value function, and scales of a cache in 8 bits."""

read_sampling = sampling_defaults


def recognises(path: Path) -> bool:
    """Whether there is a config.json, unless it lies beside GGUF files in the place of weights of its own."""
    own = any((path / name).is_file() or (path / name).is_symlink() for name in WEIGHTS)
    return (path / "config.json").is_file() and (own or not any(path.glob("*.gguf")))


def read_config(path: Path) -> Config:
    """The Config of a folder's `config.json`; as in transformers, a head that differs from the embedding is not tied.

    Raises LlucidError, with the key, for a model that is not a Llama or has a feature that llucid lacks.
    """
    file = path / "config.json"
    values = read_json(file)
    if values.get("quantization"):
        raise LlucidError(f"{file}: this model was quantised by MLX, which llucid cannot open; use the original")
    if quantised := values.get("quantization_config"):
        found = f"has quantization_config {shown(quantised)}"
        raise LlucidError(f"{file}: {found}; llucid opens no model that is quantised so; use the original")
    names = values.get("architectures")
    if any(name in LLAMAS for name in (names if isinstance(names, list) else [names])):
        values["architectures"] = ["LlamaForCausalLM"]
    odd = [key for key, allowed in EXPECTED.items() if values.get(key, allowed[0]) not in allowed]
    if odd:
        found = ", ".join(f"{key} {json.dumps(values[key])}" for key in odd)
        wanted = ", ".join(f"{key} {json.dumps(EXPECTED[key][0])}" for key in odd)
        raise LlucidError(f"{file}: not a model that llucid opens: has {found}; a Llama has {wanted}")

    dim, heads = (int_of(values, SIZES[name], file) for name in ("dim", "heads"))
    defaults = {"kv_heads": heads, "head_dim": dim // max(1, heads), "context": 2048}
    sizes = {name: int_of(values, key, file, defaults.get(name)) for name, key in SIZES.items()}
    flags = {name: bool(values.get(key, False)) for name, key in FLAGS.items()}
    if flags["tied_embeddings"] and has_own_head(path):
        flags["tied_embeddings"] = False
        note(
            f"{path}: {NAMES['output']} differs from the embedding and is used, as in transformers 5, although "
            "config.json has tie_word_embeddings, by which transformers 4 ignores it"
        )
    eps, (theta, scaling) = float_of(values, "rms_norm_eps", file, 1e-6), read_rope(values, file)
    window = int_of(values, "sliding_window", file, sizes["context"])
    if window < sizes["context"] and values.get("use_sliding_window") is not False:
        note(f"{file}: sliding_window {window} is ignored, as in transformers: a Llama attends to all tokens")
    if isinstance(scaling, LinearScaling):
        sizes["context"] = stretched_context(values, path, sizes["context"], scaling.factor)
    with prefix_errors(file):
        return Config(**sizes, **flags, norm_eps=eps, rope_theta=theta, rope_scaling=scaling)


def stretched_context(values: dict[str, Any], path: Path, original: int, factor: float) -> int:
    """The context of a model with linear scaling.

    `max_position_embeddings` should then be the `original` context, but some publish the stretched one. Vicuna and
    LongChat say it in `max_sequence_length`, others in the tokenizer's `model_max_length`.
    """
    stretched = round(original * min(max(factor, 1), 2**20))
    said = said_context(values, path)
    return said if said is not None and original <= said <= stretched else stretched


def said_context(values: dict[str, Any], path: Path) -> int | None:
    """What the files of a model with linear scaling say of its context, beside `max_position_embeddings`."""
    said = values.get("max_sequence_length")
    if type(said) is not int and (path / "tokenizer_config.json").is_file():
        said = read_json(path / "tokenizer_config.json").get("model_max_length")
    return said if type(said) is int else None


def inferred(path: Path) -> set[str]:
    """The numbers of the Config that no file says."""
    file = path / "config.json"
    values = read_json(file)
    _, scaling = read_rope(values, file)
    if not isinstance(scaling, LinearScaling):
        return set()
    context = stretched_context(values, path, int_of(values, SIZES["context"], file, 2048), scaling.factor)
    return set() if context == said_context(values, path) else {"context"}


def read_rope(values: dict[str, Any], file: Path) -> tuple[float, Scaling | None]:
    """RoPE's base and scaling. transformers 4 writes `rope_scaling`, which may be null; 5 writes `rope_parameters`,
    with the base in it. Raises LlucidError for a scaling that llucid lacks, and if the two keys differ."""
    ropes = [values[key] for key in ("rope_parameters", "rope_scaling") if values.get(key)] or [{}]
    for rope in ropes:
        if not isinstance(rope, dict):
            raise LlucidError(f"{file}: rope_scaling should be an object and is {json.dumps(rope)}")
    rope, *other = [{"rope_type": rope.get("type", "default"), **rope} for rope in ropes]
    for scaling in other:  # which transformers prefers, with the base beside it
        scaling.setdefault("rope_theta", values.get("rope_theta") or 10_000.0)
    for key in other[0] if other else ():
        if key != "type" and other[0][key] != rope.get(key, other[0][key]):
            raise LlucidError(
                f"{file}: {key} is {json.dumps(rope[key])} in rope_parameters and {json.dumps(other[0][key])} in "
                "rope_scaling; remove one of the two"
            )
    theta = float_of(rope, "rope_theta", file, float_of(values, "rope_theta", file, 10_000.0))
    if float_of(rope, "partial_rotary_factor", file, 1.0) != 1:
        raise LlucidError(f"{file}: partial_rotary_factor {rope['partial_rotary_factor']} is not supported; 1 is")
    with prefix_errors(file):
        return theta, read_scaling(rope, values, file)


def read_scaling(rope: dict[str, Any], values: dict[str, Any], file: Path) -> Scaling | None:
    """The scaling that `rope` describes; the defaults are those of transformers' modeling_rope_utils.py."""
    kind = rope["rope_type"]
    if kind == "default":
        return None
    if kind not in ("llama3", "linear", "dynamic", "yarn"):
        known = "default, llama3, linear, dynamic and yarn"
        raise LlucidError(f"{file}: RoPE scaling of type {json.dumps(kind)} is not supported; {known} are")
    context = int_of(values, "max_position_embeddings", file, 2048)
    original = "original_max_position_embeddings"  # outside of the scaling it wins, as in transformers
    original = int_of(values, original, file, int_of(rope, original, file, context))
    factor = float_of(rope, "factor", file, context / max(1, original) if kind == "yarn" else None)
    if kind == "linear":
        return LinearScaling(factor=factor)
    if kind == "dynamic":
        return DynamicScaling(factor=factor)
    if kind == "yarn":
        if rope.get("truncate") is False:
            raise LlucidError(f"{file}: truncate=false is not supported with YaRN scaling")
        one, all_dim = (float_of(rope, key, file, 0.0) for key in ("mscale", "mscale_all_dim"))
        growth = math.log(max(factor, 1)) / 10
        default = (1 + one * growth) / (1 + all_dim * growth or math.inf) if one and all_dim else 1 + growth
        return YarnScaling(
            factor=factor,
            original_context=original,
            beta_fast=float_of(rope, "beta_fast", file, 32.0),
            beta_slow=float_of(rope, "beta_slow", file, 1.0),
            attention_factor=float_of(rope, "attention_factor", file, default),
        )
    return RopeScaling(
        factor=factor,
        low_freq_factor=float_of(rope, "low_freq_factor", file),
        high_freq_factor=float_of(rope, "high_freq_factor", file),
        original_context=original,
    )


def write_rope(scaling: Scaling | None) -> dict[str, Any]:
    """The inverse of `read_scaling`."""
    match scaling:
        case None:
            return {"rope_type": "default"}
        case LinearScaling():
            return {"rope_type": "linear", "factor": scaling.factor}
        case DynamicScaling():
            return {"rope_type": "dynamic", "factor": scaling.factor}
        case _:
            rope = {"rope_type": "yarn" if isinstance(scaling, YarnScaling) else "llama3", **vars(scaling)}
            return rope | {"original_max_position_embeddings": rope.pop("original_context")}


def write_config(folder: Path, config: Config, tokenizer: Tokenizer | None, dtype: str) -> None:
    """Writes `config.json`, with RoPE's values under the keys of transformers 4 and 5."""
    rope = write_rope(config.rope_scaling)
    bos, ends = (tokenizer.bos, sorted(tokenizer.stop_ids)) if tokenizer else (None, [])
    if bos is None and (named := getattr(tokenizer, "named", None)):  # transformers' `generate` may begin with it
        bos = named("bos_token")
    stretched: dict[str, int] = {}
    if isinstance(config.rope_scaling, LinearScaling):  # see `stretched_context`
        original = math.ceil(config.context / config.rope_scaling.factor)
        stretched = {"max_position_embeddings": original, "max_sequence_length": config.context}
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{key: getattr(config, name) for name, key in (SIZES | FLAGS).items()},
        **stretched,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope if config.rope_scaling else None,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        "hidden_act": "silu",
        "bos_token_id": bos,
        "eos_token_id": ends if len(ends) > 1 else tokenizer and tokenizer.eos,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    write_text_atomically(folder / "config.json", json.dumps(values, indent=2) + "\n")


# --------------------------------------------------------------------------------------------- weights

SAFETENSORS = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}

# The weights, or the index of several files; the first that exists is read.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def weight_files(path: Path) -> list[Path]:
    """The files with the folder's weights. Raises LlucidError if there are none, or one of the index is missing."""
    file, places = index_of(path)
    if not places:
        return [file]
    found = {one.name for one in path.iterdir() if one.is_file()}
    if missing := set(places.values()) - found:  # so no path that could lead anywhere is opened
        raise LlucidError(
            f"{path / min(missing)[:255]}: does not exist in {path.name} itself, but {file.name} names it"
        )
    return [path / name for name in sorted(set(places.values()))]


def index_of(path: Path) -> tuple[Path, dict[str, str]]:
    """The file with the weights, or the index of several files, with the file name of each tensor."""
    file = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if file is None:
        if link := next((path / name for name in WEIGHTS if (path / name).is_symlink()), None):
            raise LlucidError(f"{link}: a link to a file that does not exist; fetch the model again")
        refuse_adapter(path)
        patterns = ("*.safetensors*", "*.bin*", "*.msgpack*", "*.h5")
        others = [file.name for pattern in patterns for file in sorted(path.glob(pattern))]
        found = f"; found only {', '.join(others[:3])}" if others else ""
        raise LlucidError(f"{path}: has a config.json but no weights; expected one of {', '.join(WEIGHTS)}{found}")
    if file.suffix != ".json":
        return file, {}
    places = read_json(file).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise LlucidError(f"{file}: expected weight_map to be an object of tensor names and file names")
    return file, {plain_name(str(name)): place for name, place in places.items()}


def read_entries(path: Path) -> dict[str, Stored]:
    """Every tensor in the folder, Stored, from the file that the index names. The names of a LlamaModel, which has no
    head, get the prefix that they have in a LlamaForCausalLM.

    Raises LlucidError if a tensor is in two files and the index does not name one of them.
    """
    _, places = index_of(path)
    entries: dict[str, Stored] = {}
    for file in weight_files(path):
        found = safetensors_entries(file) if file.suffix == ".safetensors" else entries_of(read_pickle(file), file)
        if spare := sorted(name for name in found if places.get(name, file.name) != file.name):
            note(f"{file}: ignored, since the index names another file for it: {', '.join(spare)[:200]}")
        found = {name: entry for name, entry in found.items() if places.get(name, file.name) == file.name}
        if twice := entries.keys() & found.keys():
            raise LlucidError(f"{file}: {min(twice)} is also in another file of the folder")
        entries |= found
    if "embed_tokens.weight" in entries:
        return {name if name.startswith("lm_head") else f"model.{name}": entry for name, entry in entries.items()}
    return entries


def safetensors_entries(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file."""
    names = {short: name for name, short in SAFETENSORS.items()}
    refuse_stand_in(file)
    try:
        with open(file, "rb") as opened:
            start = 8 + int.from_bytes(opened.read(8), "little")
            if start > LARGEST_JSON:
                other = start > file.stat().st_size
                raise ValueError("it is no safetensors file" if other else f"its header has {start:,} bytes")
            with safe_open(file, framework="np"):  # the library validates the header
                header = parse_json(opened.read(start - 8), file)
            if not all(isinstance(entry, dict) for entry in header.values()):  # the library reads lists as well
                raise ValueError("an entry of its header is not an object")
        content = map_file(file)

        def entry(tensor: dict[str, Any]) -> Stored:
            shape, kind, (begin, end) = tuple(tensor["shape"]), names.get(tensor["dtype"]), tensor["data_offsets"]
            width = f"<i{int(kind[-2:]) // 8}" if kind else "u1"
            bits = lambda: content[start + begin : start + end].view(width).reshape(shape)  # noqa: E731
            return mapped(shape, kind or tensor["dtype"], bits)

        return {plain_name(name): entry(tensor) for name, tensor in header.items() if name != "__metadata__"}
    except OSError as error:
        raise LlucidError(f"{file}: cannot be read ({error.strerror})") from error
    except (SafetensorError, ValueError) as error:
        raise LlucidError(f"{file}: not a complete safetensors file ({error})") from error


def has_own_head(path: Path) -> bool:
    """Whether the folder has an output matrix that differs from the embedding. False if its weights cannot be read."""
    with suppress(LlucidError):
        entries = read_entries(path)
        head, embedding = (entries.get(NAMES[name]) for name in ("output", "embedding"))
        if head and embedding and embedding.ndim == 2 and embedding.dtype in NUMBERS:  # others are refused later
            return not equal_numbers(head, embedding)
    return False


def read_header(path: Path) -> Header:
    return {name: (entry.shape, entry.dtype) for name, entry in read_entries(path).items()}


def open_weights(path: Path, config: Config) -> Weights:
    """The weights in a folder, in the dtype of the file. Reading permutes the rows to Meta's order.

    Raises LlucidError as `gather` does.
    """
    entries = read_entries(path)
    head, embedding = (entries.get(NAMES[name]) for name in ("output", "embedding"))
    if config.tied_embeddings and head and not embedding:  # safetensors keeps the first of two names
        entries[NAMES["embedding"]] = head
    if embedding and not head and not config.tied_embeddings:
        raise LlucidError(
            f"{path}: {NAMES['output']} is missing; if the embedding is the output matrix, too, write "
            '"tie_word_embeddings": true into config.json'
        )
    for name in entries:
        if re.search(r"lora_|\.base_layer\.|^base_model\.", name):
            raise LlucidError(
                f"{path}: {name} belongs to a LoRA adapter; merge it into its base model first, with peft"
            )
        if "_proj." in name and entries[name].dtype not in NUMBERS:
            raise LlucidError(f"{path}: quantised in a way that llucid cannot open ({name}); use the original model")
    other = {name for name in entries if UNUSED.search(name)}
    unused = {*other}
    if config.tied_embeddings:
        unused.add(NAMES["output"])

    def in_pairs(path: str, array: Mapped) -> Mapped:
        heads = heads_of(path, config)
        if not heads:
            return array
        paired = Mapped(array.dtype, pairs_from_halves(array.numbers, heads))
        release(array.numbers)  # so that memory does not hold both orders
        return paired

    weights = gather(config, entries, name_of, str(path), in_pairs, unused)
    if other:
        note(f"{path}: not part of a Llama, and ignored: {', '.join(sorted(other)[:3])}")
    if any(path.glob("adapter_model.*")):
        note(f"{path}: the LoRA adapter beside the model is not used; merge it first, with peft")
    return weights


read_tokenizer = load_tokenizer


def in_halves(path: str, leaf: Leaf, config: Config) -> "Tensor":
    """The array at our path with its rows in Hugging Face's order, on the CPU."""
    tensor, heads = tensor_of(leaf), heads_of(path, config)
    return (halves_from_pairs(tensor, heads) if heads else tensor).contiguous()


def write_weights(
    folder: Path, weights: Weights, config: Config, dtype: str | None = None, progress: Progress = no_progress
) -> None:
    """Writes `model.safetensors` atomically, with one tensor in memory at a time."""
    kinds = {path: dtype or name_of_dtype(leaf.dtype) for path, leaf in named_leaves(weights)}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    total = done = 0
    for path, leaf in named_leaves(weights):
        begin, total = total, total + leaf.numel() * width_of(kinds[path])
        header[name_of(path)] = {
            "dtype": SAFETENSORS[kinds[path]],
            "shape": list(leaf.shape),
            "data_offsets": [begin, total],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # aligns the tensors to 8 bytes
    with atomic_file(folder / "model.safetensors") as temporary, open(temporary, "wb") as out:
        out.write(len(encoded).to_bytes(8, "little") + encoded)
        for path, leaf in named_leaves(weights):
            with prefix_errors(name_of(path)):
                done += out.write(bytes_of(in_halves(path, leaf, config), kinds[path]))
            progress(done, total)
        out.flush()


def write(out: Path, model: Model, progress: Progress = no_progress, dtype: str | None = None) -> None:
    """Writes a folder for transformers: `config.json`, `generation_config.json` if it has something to say,
    `model.safetensors` and the tokenizer's files."""
    kind = checked_dtype(dtype)
    if model.tokenizer:
        model.tokenizer.save(out)
    write_config(out, model.config, model.tokenizer, kind or name_of_dtype(model.weights.dtype))
    write_sampling(out, model.sampling)
    write_weights(out, model.weights, model.config, kind, progress)
