"""Models from files and to files: one room a format, one door in (`load`) and one out (`save`).

model.py         a model in memory, and what every room offers
huggingface.py   config.json and model.safetensors
meta.py          params.json and consolidated.00.pth
llama2c.py       llama2.c's .bin, and the .pt of its training
gguf.py          llama.cpp's .gguf; gguf_file.py: the container; gguf_blocks.py: its quantised numbers
pickles.py       PyTorch's files, read without running them
tensors.py       tensors not yet read, and how strictly a Llama is gathered from them; told.py: numbers likewise
"""

import importlib
import os
import re
import shlex
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from llucid.arrays import Quantized
from llucid.arrays.mapped import KINDS
from llucid.checkpoints.tensors import Stored
from llucid.config import Config
from llucid.errors import LlucidError, one_line
from llucid.files import atomic_folder, is_occupied
from llucid.model import Model, Progress, Room, choose_dtype, dtype_of, no_progress
from llucid.native.step import threads
from llucid.tokenizers import load_tokenizer
from llucid.tokenizers.folder import folder_config
from llucid.tokenizers.tokenizer_json import JsonTokenizer
from llucid.weights import leaves, tree_map

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["FORMATS", "Model", "choose_device", "choose_dtype", "convert", "describe", "load", "save"]

Quantization = Literal["int8", "int4", "file"]
FORMATS = ("huggingface", "meta", "llama2c", "gguf")
"""The rooms, in the order in which they are asked whether a path is theirs; `save` writes each."""


def room_of(path: Path) -> tuple[str, Room]:
    """The format of what is at `path`, by its content. Raises LlucidError if it is of none."""
    if not path.exists():
        command = f"llucid train --out {shlex.quote(str(path))}"
        raise LlucidError(f"{path}: there is no such file or folder; train a model with: {command}")
    for name in FORMATS:
        if (room := _room(name)).recognises(path):
            return name, room
    if path.is_file() and any(_room(name).recognises(path.parent) for name in FORMATS):
        raise LlucidError(f"{path}: is one file of a model; give the folder it is in, {path.parent}")
    expected = "a Hugging Face folder (config.json), Meta's (params.json), a .bin or .pt of llama2.c's, or a .gguf"
    raise LlucidError(f"{path}: not a model, or not a whole one; expected {expected}")


def _room(name: str) -> Room:
    return cast(Room, importlib.import_module(f"llucid.checkpoints.{name}"))


def find(name: str | Path) -> Path:
    """The path called `name`; or, if there is none, a copy of the Hugging Face repository of that name ("org/name").

    What stands in a folder that is here is a path, there or not. Raises LlucidError if it cannot be fetched.
    """
    path = Path(name)
    if path.exists() or path.parent.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(name)):
        return path
    from huggingface_hub import snapshot_download

    def fetch(*wanted: str) -> Path:
        return Path(snapshot_download(str(name), allow_patterns=[*wanted], ignore_patterns=["*/*"]))

    try:
        fetched = fetch("*.json", "*.safetensors", "*.model", "*.jinja")
        # An older repository has its weights in PyTorch's own form alone.
        return fetched if any(fetched.glob("*.safetensors")) else fetch("pytorch_model*.bin")
    except Exception as error:  # whatever a network and its libraries can come up with
        raise LlucidError(
            f"{name}: there is no such file or folder, and no repository of that name could be fetched "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error


def choose_device(name: str | None = None) -> "torch.device":
    """The device called `name`, or else the fastest here: CUDA, then Apple's MPS, then the CPU.

    Raises LlucidError if there is no such device on this machine.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise LlucidError(
            f"--device {name}: there is no such device on this machine ({error})".split("\n")[0]
        ) from error


def only_cpu() -> bool:
    """Whether this machine has no GPU for sure, as can be told without PyTorch."""
    drivers = ("/proc/driver/nvidia", "/sys/module/nvidia", "/dev/nvidiactl", "/dev/nvmap", "/dev/kfd", "/dev/dxg")
    return sys.platform == "linux" and not any(map(os.path.exists, drivers))


def load(
    path: str | Path,
    *,
    dtype: "torch.dtype | str | None" = None,
    device: "torch.device | str | None" = None,
    tokenizer: str | Path | None = None,
    quantize: Quantization | None = None,
    mapped: bool = False,
) -> Model:
    """The model at `path`: a run of ours, or any Llama in a format of FORMATS, or a Hugging Face repository's name.

    The weights keep the file's own dtype (if it has several, that of the embedding) unless `dtype` names another;
    what is mapped from the file stays mapped. `device` is chosen when None; `tokenizer` is the path of another
    tokenizer than the model's own. `quantize` has matrices in 8 or 4 bits ("int8", "int4"), but those that GGUF has in
    Q8_0 or Q4_0 as they are; "file" keeps just those, on a CPU. `mapped` leaves weights as their file has them, each
    `Mapped` or `Quantized` (llucid/arrays), if nothing else is asked for and llama.c can read them so: this is for
    `llucid.generation` alone, which then imports PyTorch only if that pays.
    Raises LlucidError for what is not there, not whole, or not a Llama.
    """
    if quantize not in (None, *get_args(Quantization)):
        raise LlucidError(f"--quantize {quantize}: expected int8 or int4")
    if mapped and dtype is None and quantize in (None, "file") and (device == "cpu" or (device is None and only_cpu())):
        model = _opened(find(path), tokenizer, quantize is not None)
        if all(leaf.dtype in KINDS for leaf in leaves(model.weights)):
            with ThreadPoolExecutor(threads()) as pool:  # NumPy releases the GIL while it copies
                arrays = pool.map(lambda leaf: leaf.read(), leaves(model.weights))
                return model._replace(weights=tree_map(lambda leaf: next(arrays), model.weights))
    dtype = choose_dtype(dtype) if isinstance(dtype, str) else dtype
    if dtype and not dtype.is_floating_point:
        raise LlucidError(f'dtype={dtype}: expected floating-point numbers; for others: quantize="int8" or "int4"')
    device = device if device is not None and not isinstance(device, str) else choose_device(device)
    kept = quantize is not None and (quantize != "file" or device.type == "cpu")
    model = _opened(find(path), tokenizer, kept)
    dtype = dtype or dtype_of(model.weights.dtype)
    if not kept:
        return model._replace(weights=tree_map(lambda leaf: leaf.read().to(device, dtype), model.weights))
    from llucid.arrays.quantize import BITS, quantize_leaf

    bits = BITS.get(quantize or "")

    def read(leaf: Stored) -> "Tensor | Quantized":
        array = leaf.read().tensor()
        return quantize_leaf(array, bits) if bits else array

    weights = tree_map(read, model.weights)
    if bits and not any(isinstance(leaf, Quantized) for leaf in leaves(weights)):
        raise LlucidError(f"--quantize {quantize}: no matrix of this model has rows of a multiple of 32 numbers")
    return model._replace(weights=tree_map(lambda leaf: leaf.to(device, dtype), weights))


def _opened(path: Path, tokenizer: str | Path | None, kept: bool = False) -> Model:
    """The model at `path`, its weights Stored; `kept`, what the file has quantised stays so when it is read."""
    _, room = room_of(path)
    config = room.read_config(path)
    opened = load_tokenizer(tokenizer) if tokenizer else room.read_tokenizer(path)
    if opened.vocab_size > config.vocab_size and isinstance(opened, JsonTokenizer):
        opened = opened.within(config.vocab_size)
    if opened.vocab_size > config.vocab_size:
        raise LlucidError(
            f"{tokenizer or path}: this tokenizer has {opened.vocab_size} ids, but the model only {config.vocab_size}; "
            "it belongs to another model"
        )
    template = folder_config(path).get("chat_template") if path.is_dir() and not tokenizer else None
    chat_format = template if isinstance(template, str) else None
    open_weights = getattr(room, "open_quantized", room.open_weights) if kept else room.open_weights
    return Model(config, open_weights(path, config), opened, chat_format)


def describe(path: str | Path) -> dict[str, str]:
    """What `llucid info` tells of the model at `path`, read from headers alone: facts by name, in order.

    Raises LlucidError as `load` does, but for a tokenizer that is missing.
    """
    from llucid.presets import PRESETS

    path = find(path)
    name, room = room_of(path)
    config = room.read_config(path)
    header = room.read_header(path).values()
    same = [name for name, preset in PRESETS.items() if preset.config == config]
    facts = {
        "format": name,
        "family": f"Llama, size {same[0]}" if same else "Llama, of a size of its own",
        "parameters": f"{config.parameters:,}",
        "bytes": f"{size_of(path):,}",
        "dtype": ", ".join(sorted({dtype for _, dtype in header})),
    }
    try:
        tokenizer = room.read_tokenizer_info(path)
        facts["tokenizer"] = f"{tokenizer.kind}, {tokenizer.vocab_size:,} ids"
        facts["bos, eos"] = f"{tokenizer.bos}, {tokenizer.eos}"
    except LlucidError as error:
        facts["tokenizer"] = f"none ({one_line(error)})"
    facts["tied"] = "the embedding is the output matrix" if config.tied_embeddings else "nothing"
    return facts | {item.name: str(getattr(config, item.name)) for item in fields(config)}


def size_of(path: Path) -> int:
    """Bytes of the files that hold the weights of the model at `path`."""
    weight_files = getattr(room_of(path)[1], "weight_files", lambda file: [file])  # of rooms whose models are folders
    return sum(file.stat().st_size for file in weight_files(path))


def save(
    model: Model,
    out: str | Path,
    format: str = "huggingface",
    *,
    version: int | None = None,
    dtype: str | None = None,
    progress: Progress = no_progress,
) -> None:
    """Writes the model to `out` in the named format: a folder for huggingface and meta, a file for the others.

    `version` is that of llama2c's format; `dtype` names another than the model's own. Each file is written whole or not
    at all, and so is a folder that was not there, or empty. Raises LlucidError for an unknown format, and for what a
    format cannot hold.
    """
    if format not in FORMATS:
        raise LlucidError(f"format {format!r} is not known; expected one of: {', '.join(FORMATS)}")
    if version is not None and format != "llama2c":
        raise LlucidError(f"--version {version}: only llama2c's format has versions")
    choice = {} if version is None else {"version": version}
    write: Callable[..., None] = _room(format).write
    if format in ("huggingface", "meta"):
        with nullcontext(Path(out)) if is_occupied(Path(out)) else atomic_folder(Path(out)) as folder:
            write(folder, model, progress, dtype, **choice)
    else:
        write(Path(out), model, progress, dtype, **choice)


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
    """Writes the model at `path` to `out` in another format, one tensor in memory at a time.

    Returns the numbers of the Config that the format could not say and that opening it will therefore guess, before and
    after: Meta's has no context, none has the dropout. Raises LlucidError, before anything is written, if there is
    something at `out`, and for what the format cannot hold.
    """
    out = Path(out)
    if is_occupied(out):
        raise LlucidError(f"{out}: something is there already; name another {'folder' if out.is_dir() else 'file'}")
    model = _opened(find(path), tokenizer)
    weights = tree_map(lambda leaf: leaf.to(model.weights.dtype), model.weights)  # as in `load`
    model = model._replace(weights=weights)
    save(model, out, format, version=version, dtype=dtype, progress=progress)
    before, after = model.config, room_of(out)[1].read_config(out)
    pairs = {item.name: (getattr(before, item.name), getattr(after, item.name)) for item in fields(Config)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
