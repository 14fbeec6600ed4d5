"""Model files: one module per format, `load` to open a model and `save` to write it.

format.py        the functions that the module of each format has
huggingface.py   config.json and model.safetensors
meta.py          params.json and consolidated.00.pth
llama2c.py       llama2.c's .bin, and the .pt of its training
gguf.py          llama.cpp's .gguf; gguf_file.py: the container; gguf_blocks.py: its quantised formats
pickles.py       PyTorch's files, read without executing them
tensors.py       tensors that are read on demand, and the check that they make up a Llama
metadata.py      validated numbers from a file's metadata
hub.py           models by the name of a Hugging Face repository

generation_config.py  the sampling settings of a Hugging Face folder
"""

import importlib
import os
import re
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from llucid.arrays import Quantized
from llucid.arrays.devices import choose_device, only_cpu
from llucid.arrays.dtypes import choose_dtype, dtype_of, name_of_dtype, widest
from llucid.arrays.mapped import KINDS
from llucid.checkpoints.format import Format, Progress, no_progress
from llucid.checkpoints.generation_config import copy_generation_config, copy_token_ids
from llucid.checkpoints.hub import LATER_PART, OURS, find
from llucid.checkpoints.tensors import Stored, refuse_adapter, tensor_of
from llucid.config import Config
from llucid.errors import LlucidError, NoTokenizer, note, one_line, prefix_errors
from llucid.files import (
    atomic_folder,
    filled_folder,
    is_occupied,
    refuse_stand_in,
    remove_unfinished,
    replaced_in_errors,
    typed,
    unfinished_folder,
)
from llucid.model import Model
from llucid.native.step import threads
from llucid.presets import PRESETS
from llucid.tokenizers import FILES, Tokenizer, load_tokenizer
from llucid.tokenizers.comparison import first_difference, note_difference
from llucid.tokenizers.folder import folder_config
from llucid.weights import Weights, assemble, leaves, named_leaves, parameter_count, tree_map

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["FORMATS", "Model", "choose_device", "choose_dtype", "convert", "describe", "find", "load", "save"]

Quantization = Literal["int8", "int4", "file"]
FORMATS = ("huggingface", "meta", "llama2c", "gguf")
"""The names of the modules, in the order in which `format_of` tries them."""
FILE_NAMES = {"llama2c": "model.bin", "gguf": "model.gguf"}
"""How a model may be called in the formats that are a file; the others are folders."""

SHARD = f"-{'[0-9]' * 5}-of-{'[0-9]' * 5}"
MODEL_FILES = (
    *("config.json", "params.json", "consolidated.[0-9][0-9].pth"),
    *("model.safetensors", f"model{SHARD}.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", f"pytorch_model{SHARD}.bin", "pytorch_model.bin.index.json"),
)
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("generation_config.json", "chat_template.jinja", "additional_chat_templates/*.jinja"),
)
"""Names, as patterns, of what is read of a folder's model, and of its tokenizer; tokenizer.bin is llama2.c's."""

KIND_NAMES = {
    "JsonTokenizer": "Hugging Face tokenizer",
    "TiktokenRanks": "tiktoken",
    "Llama2cTokenizer": "llama2.c",
    "Characters": "characters",
}
"""What `llucid info` calls each class of tokenizer, where that is not the name of the class."""


def format_of(path: Path) -> tuple[str, Format]:
    """The format of the model at `path`, recognised by its content. Raises LlucidError if there is no model."""
    if not path.exists():
        missing = f"{path}: there is no such file or folder"
        if any(map(str.isspace, str(path))):
            raise LlucidError(f"{missing}; if it is a text, name a model before it, such as storyteller")
        if re.fullmatch(rf"(?!{OURS})[\w-][^/]*/[^/]+", str(path)) and path.parent.is_dir():
            missing += f"; a repository of this name is called hf://{path}"
        raise LlucidError(f"{missing}; train a model with: llucid train --out {typed(path)}")
    for name in FORMATS:
        if (format := _format(name)).recognises(path):
            return name, format
    if path.is_file():
        refuse_stand_in(path)
        if any(_format(name).recognises(path.parent) for name in FORMATS):
            raise LlucidError(f"{path}: one file of a model; give the folder it is in, {path.parent}")
    folder = path if path.is_dir() else path.parent
    refuse_adapter(folder)
    with suppress(OSError):
        inside = [one for pattern in ("*", "snapshots/*") for one in sorted(islice(path.glob(pattern), 1000))]
        inside = [one for one in inside if not (LATER_PART.search(one.name) or one.suffix == ".partial")]
        if models := [str(one) for one in inside if any(_format(name).recognises(one) for name in FORMATS)]:
            more = f" and {len(models) - 5} more" if len(models) > 5 else ""
            raise LlucidError(f"{path}: not a model itself; give one that is in it: {', '.join(models[:5])}{more}")
    if any(folder.glob("*.safetensors")) and not (folder / "config.json").is_file():
        raise LlucidError(f"{folder}: config.json is missing; fetch all files of the model, and give the folder")
    expected = "a Hugging Face folder (config.json), a Meta folder (params.json), llama2.c's .bin or .pt, or a .gguf"
    raise LlucidError(f"{path}: not a model, or an incomplete one; expected {expected}")


def _format(name: str) -> Format:
    return cast(Format, importlib.import_module(f"llucid.checkpoints.{name}"))


def load(
    path: str | Path,
    *,
    dtype: "torch.dtype | str | None" = None,
    device: "torch.device | str | None" = None,
    tokenizer: str | Path | None = None,
    quantize: Quantization | None = None,
    mapped: bool = False,
) -> Model:
    """Opens the model at `path`: a run, a Llama in a format of FORMATS, or the name of a Hugging Face repository.

    dtype: of the weights; None keeps the dtype of the file, or the one that holds all its matrices if it has several.
    device: None chooses a GPU if there is one.
    tokenizer: the path of a tokenizer to use instead of the model's own.
    quantize: "int8" or "int4" quantises the matrices, except those that a GGUF file has quantised in a form of
        llucid.arrays.quantized.FORMS, which are kept; "file" only keeps these, on a CPU.
    mapped: leaves the weights as NumPy's memory maps if no option needs PyTorch and llama.c can read them;
        `llucid.generation` then imports PyTorch only if it is faster. `llucid.llama` takes `weights.tensors` of them.

    Weights are mapped from the file where possible. A model without a tokenizer opens, with `tokenizer` None.
    Raises LlucidError for a model that does not exist, is incomplete, or is not a Llama, and for a weight that would be
    infinite in `dtype`.
    """
    if quantize not in (None, *get_args(Quantization)):
        raise LlucidError(f"quantize={quantize}: expected int8 or int4")
    if mapped and dtype is None and quantize in (None, "file") and (device == "cpu" or (device is None and only_cpu())):
        model = _open(find(path), tokenizer, quantize is not None)
        if all(leaf.dtype in KINDS for leaf in leaves(model.weights)):
            with ThreadPoolExecutor(threads()) as pool:  # NumPy releases the GIL while it copies
                arrays = pool.map(lambda leaf: leaf.read(), leaves(model.weights))
                return model._replace(weights=tree_map(lambda leaf: next(arrays), model.weights))
    dtype = choose_dtype(dtype) if isinstance(dtype, str) else dtype
    if dtype and (not dtype.is_floating_point or dtype.itemsize < 2):
        raise LlucidError(
            f"dtype={dtype}: expected floating-point numbers of at least 16 bits; for fewer: quantize=int8 or "
            "quantize=int4"
        )
    device = device if device is not None and not isinstance(device, str) else choose_device(device)
    keep = quantize is not None and (quantize != "file" or device.type == "cpu")
    model = _open(find(path), tokenizer, keep)
    if dtype is None:
        _, kind, rounded = in_one_dtype(model.weights)
        dtype = dtype_of(kind)
        if rounded:
            note(f"{path}: norms or biases are rounded to {kind}, as the matrices are; dtype=float32 keeps them")
    from llucid.arrays.quantize import BITS, quantize_leaf

    bits, stored = BITS.get(quantize or ""), dict(named_leaves(model.weights))

    def read(name: str, shape: tuple[int, ...]) -> "Tensor | Quantized":
        array = stored[name].read()
        with prefix_errors(f"{path}: {name}"):
            smaller = quantize_leaf(array.tensor(), bits) if bits else array
            return (smaller if isinstance(smaller, Quantized) else array).to(device, dtype)

    weights = assemble(model.config, read)
    if bits and not any(isinstance(leaf, Quantized) for leaf in leaves(weights)):
        raise LlucidError(f"quantize={quantize}: no matrix of this model has rows of a multiple of 32 numbers")
    return model._replace(weights=weights)


def _open(path: Path, tokenizer: str | Path | None, keep: bool = False) -> Model:
    """The model at `path` with Stored weights; `keep`: quantised matrices stay quantised when they are read."""
    _, format = format_of(path)
    config = format.read_config(path)
    template = folder_config(path).get("chat_template") if path.is_dir() and not tokenizer else None
    chat_format = template if isinstance(template, str) else None
    open_weights = getattr(format, "open_quantized", format.open_weights) if keep else format.open_weights
    try:
        tokens = read_tokenizer(path, format, config, tokenizer)
    except NoTokenizer as error:
        if tokenizer is not None:
            raise
        if (path / "vocab.json").is_file():
            note(str(error))
        tokens = None
    sampling = getattr(format, "read_sampling", lambda path: {})(path)
    return Model(config, open_weights(path, config), tokens, chat_format, sampling)


def in_one_dtype(weights: Weights) -> tuple[Weights, str, bool]:
    """(the weights in the dtype that holds all matrices, its name, whether a norm or a bias does not fit into it).

    Such a norm, in float32 beside narrower matrices, keeps its own dtype."""
    kind = widest(leaf.dtype for leaf in leaves(weights) if leaf.ndim == 2)

    def fits(leaf: Stored) -> bool:
        if leaf.ndim == 2 or leaf.dtype == kind:
            return True
        numbers = tensor_of(leaf)
        return numbers.to(dtype_of(kind)).to(numbers.dtype).equal(numbers)

    fitting = tree_map(lambda leaf: leaf.to(kind) if fits(leaf) else leaf, weights)
    return fitting, kind, any(leaf.dtype != kind for leaf in leaves(fitting))


def read_tokenizer(path: Path, format: Format, config: Config, other: str | Path | None = None) -> Tokenizer:
    """The tokenizer at `path`, or the one at `other`, for a model of this Config. Raises LlucidError if it has none or
    more ids than the model."""
    tokenizer = format.read_tokenizer(path) if other is None else load_tokenizer(other)
    if not tokenizer.vocab_size:
        raise LlucidError(f"{other or path}: this tokenizer has no ids")
    if tokenizer.vocab_size > config.vocab_size and (within := getattr(tokenizer, "within", None)):
        tokenizer = within(config.vocab_size)
    if tokenizer.vocab_size > config.vocab_size:
        raise LlucidError(
            f"{other or path}: this tokenizer has {tokenizer.vocab_size} ids, but the model has {config.vocab_size}; "
            "it is the tokenizer of another model"
        )
    return tokenizer


def describe(path: str | Path) -> dict[str, str]:
    """The facts that `llucid info` prints about the model at `path`, by name, in order. Reads no weights.

    Raises LlucidError as `load` does.
    """
    path = find(path)
    name, format = format_of(path)
    config = format.read_config(path)
    header = format.read_header(path).values()
    same = [name for name, preset in PRESETS.items() if preset.config == config]
    facts = {
        "format": name,
        "family": f"Llama, size {same[0]}" if same else "Llama",
        "parameters": f"{parameter_count(config):,}",
        "bytes": f"{size_of(path):,}",
        "dtype": ", ".join(sorted({dtype for _, dtype in header})),
    }
    try:
        tokenizer = read_tokenizer(path, format, config)
        kind = type(tokenizer).__name__
        facts["tokenizer"] = f"{KIND_NAMES.get(kind, kind)}, {tokenizer.vocab_size:,} ids"
        facts["bos, eos"] = ", ".join("none" if id is None else str(id) for id in (tokenizer.bos, tokenizer.eos))
    except LlucidError as error:
        facts["tokenizer"] = f"none ({one_line(error)})"
    inferred = getattr(format, "inferred", lambda path: set[str]())(path)
    note = dict.fromkeys(inferred, " (inferred: not in any file)")
    values = {item.name: getattr(config, item.name) for item in fields(config)}
    return facts | {name: f"{'none' if value is None else value}{note.get(name, '')}" for name, value in values.items()}


def size_of(path: Path) -> int:
    """The size in bytes of the files that hold the weights of the model at `path`."""
    return sum(file.stat().st_size for file in _weight_files(path))


def _weight_files(path: Path) -> list[Path]:
    return getattr(format_of(path)[1], "weight_files", lambda file: [file])(path)


def save(
    model: Model,
    out: str | Path,
    format: str = "huggingface",
    *,
    version: int | None = None,
    dtype: "torch.dtype | str | None" = None,
    progress: Progress = no_progress,
) -> None:
    """Writes the model to `out`: a folder for the formats huggingface and meta, a file for llama2c and gguf.

    `version` is the version of the llama2c format; `dtype` is the one to write, None the model's own.
    Each file is written atomically, and so is a new or empty folder. In another folder, the model's files replace those
    of a model there. Raises LlucidError for an unknown format, for a model that the format cannot hold, for a tokenizer
    that would give other ids from there, and for the folder of an adapter; a weight must not become infinite in
    `dtype`. If only dialogues would differ, a note says so.
    """
    kind = dtype if isinstance(dtype, str | None) else name_of_dtype(dtype)
    kept = model.tokenizer is None and Path(out).is_dir() and any((Path(out) / name).is_file() for name in FILES)
    if kept:
        model = model._replace(sampling={})
    model = _with_template(model, format, Path(out))
    write, out = _writer(model, out, format, version, kind), Path(out)
    _check_tokenizer(model, out, format)
    if format in FILE_NAMES:
        write(out, progress)
    elif is_occupied(out):
        if format == "huggingface" and (out / "adapter_config.json").is_file():
            raise LlucidError(
                f"{out}: holds a LoRA adapter, which would be applied to the model; choose another folder"
            )
        with filled_folder(out, MODEL_FILES + (() if kept else TOKENIZER_FILES)) as place:
            write(place, progress)
        if kept:
            note(f"{out}: keeps the tokenizer and generation_config.json that are there: the model has no tokenizer")
    else:
        with atomic_folder(out) as place:
            write(place, progress)


def _writer(model: Model, out: str | Path, format: str, version: int | None, dtype: str | None) -> Callable[..., None]:
    """The function that writes the model to a path in this format, after the checks and notes about `out`."""
    if out == "":
        raise LlucidError("out='': is empty; name a folder or a file")
    if format not in FORMATS:
        raise LlucidError(f"format={format!r}: expected one of {', '.join(FORMATS)}")
    if version is not None and format != "llama2c":
        raise LlucidError(f"version={version}: only the format llama2c has versions")
    if model.sampling and format not in ("huggingface", "gguf"):
        lost = ", ".join(f"{name} {value:g}" for name, value in model.sampling.items())
        note(f"{out}: this format has no place for the model's sampling settings: {lost}")
    dtypes = {name_of_dtype(leaf.dtype) for leaf in leaves(model.weights)}
    if dtype is None and format in ("llama2c", "gguf") and "float64" in dtypes:
        note(f"{out}: float64 numbers are rounded to float32, which is the most that this format holds")
    if format == "huggingface" and model.tokenizer:
        note_difference(model.tokenizer)
    if format in FILE_NAMES and Path(out).is_dir():
        raise LlucidError(f"{out}: is a folder; the format {format} is a file, as in {Path(out) / FILE_NAMES[format]}")
    choice = {} if version is None else {"version": version}
    write: Callable[..., None] = _format(format).write
    return lambda place, progress, **options: write(place, model, progress, dtype, **choice, **options)


def convert(
    path: str | Path,
    out: str | Path,
    format: str,
    *,
    version: int | None = None,
    tokenizer: str | Path | None = None,
    dtype: str | None = None,
    progress: Progress = no_progress,
) -> dict[str, tuple[object, object]]:
    """Converts the model at `path` to another format, with one tensor in memory at a time.

    Returns the values of the Config that the format cannot hold and that differ when the result is opened, before and
    after: Meta's format has no context, and none has the dropout. The result is opened and its tokenizer is compared
    with the original; if only dialogues differ, a note says so. Raises LlucidError, and leaves nothing behind, if `out`
    exists, for a model that the format cannot hold, if the result gives other token ids, and if the model's files
    change meanwhile.
    """
    path, out = find(path), Path(out)
    before = {file: _stamp(file) for file in _weight_files(path)}
    model = _open(path, tokenizer)
    model = model._replace(weights=in_one_dtype(model.weights)[0])
    with atomic_folder(out, file=format in FILE_NAMES) as new, _refuse_changed(before):
        source = format_of(path)[0]
        given = _with_template(model, format, out) if source == "meta" else model
        options = {"beside": new.parent.parent} if format == "llama2c" else {}
        _writer(given, out, format, version, dtype)(new, progress, **options)
        if format == source == "huggingface":
            copy_generation_config(path, new, token_ids=tokenizer is None)
            if model.tokenizer is None:
                copy_token_ids(path, new)
        config = refuse_difference(model, new, out).config
    pairs = {item.name: (getattr(model.config, item.name), getattr(config, item.name)) for item in fields(Config)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _stamp(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


@contextmanager
def _refuse_changed(before: Mapping[Path, tuple[int, int, int]]) -> Generator[None]:
    """Raises LlucidError at the end, in place of another error too, if a file has another stamp than before. A file
    that was removed is still mapped, unchanged."""
    failed = None
    try:
        yield
    except Exception as error:
        failed = error
    if changed := [file for file, stamp in before.items() if file.exists() and _stamp(file) != stamp]:
        raise LlucidError(f"{changed[0]}: changed while it was read; give the same command again") from failed
    if failed:
        raise failed


def _with_template(model: Model, format: str, out: Path) -> Model:
    """The model with a chat template if it is known to be Llama 2's or 3's by its tokenizer, as in Meta's format."""
    from llucid.dialogs.formats import format_of, with_template  # imports jinja2, which takes time

    if format not in ("huggingface", "gguf") or model.tokenizer is None:
        return model
    made = with_template(model.tokenizer)
    if made is not model.tokenizer:
        note(f"{out}: gets the chat template of {format_of(model.tokenizer)}; a base model should have none")
    return model._replace(tokenizer=made)


def _check_tokenizer(model: Model, out: Path, format: str) -> None:
    """Writes a small model with this tokenizer beside or in `out`, opens it, and raises and notes what
    `refuse_difference` does. It cannot be opened from a pipe or a device."""
    if model.tokenizer is None or (out.exists() and not (out.is_file() or out.is_dir())):
        return
    import torch

    sizes: dict[str, int] = dict(dim=8, layers=1, heads=1, kv_heads=1, head_dim=8, ffn_dim=8, context=8)
    config = Config(**sizes, vocab_size=model.config.vocab_size, tied_embeddings=True)  # pyright: ignore
    weights = assemble(config, lambda name, shape: torch.zeros(shape, dtype=torch.bfloat16, device="cpu"))
    small = Model(config, weights, model.tokenizer, model.chat_format)
    remove_unfinished(out)
    place = Path(os.path.realpath(out))
    with (
        unfinished_folder(place if out.is_dir() else place.parent, place.name, out) as folder,
        replaced_in_errors(new := folder / FILE_NAMES.get(format, ""), out),
    ):
        _format(format).write(new, small, no_progress)
        refuse_difference(small, new, out)


def refuse_difference(model: Model, new: Path, out: Path) -> Model:
    """The model at `new`, which is to become `out`, with Stored weights. Raises LlucidError if its tokenizer differs
    from that of `model`; notes different dialogues."""
    from llucid.dialogs.comparison import first_difference_in_dialog  # imports jinja2, which takes time

    result = _open(new, None)
    one, two = model.tokenizer, result.tokenizer
    if one and two:
        difference = first_difference(one, two)
    else:
        difference = None if one is two else f"only the {'old' if one else 'new'} model has a tokenizer"
    if difference:
        raise LlucidError(f"{out}: not written, since the tokenizer would change: {difference}")
    if one and two:
        formats = (model.chat_format, result.chat_format)
        if difference := first_difference_in_dialog(one, two, format=formats[0], other_format=formats[1]):
            note(f"{out}: chat differs from the original: {difference}")
    return result
