"""A model in memory, and what every room of this folder offers: the contract between formats and the door to them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from llucid.config import Config
from llucid.errors import LlucidError
from llucid.tokenizers import Tokenizer
from llucid.tokenizers.info import TokenizerInfo
from llucid.weights import Weights

if TYPE_CHECKING:  # importing PyTorch takes a second, and headers are read without it
    import torch


class Model(NamedTuple):
    """What `load` returns: everything there is, and nothing hidden."""

    config: Config
    weights: Weights
    tokenizer: Tokenizer
    chat_format: str | None = None
    """The format of its dialogues: the chat template that it came with, or a name; None if only its tokenizer tells
    (`chat.format_of`), or nothing does."""


Progress = Callable[[int, int], None]
"""Told, after each tensor that is written, how many bytes are done and how many there are in all."""


def no_progress(done: int, total: int) -> None:
    """For those who do not watch."""


Header = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and dtype of each tensor in a file, by the file's own names. A dtype is called as in PyTorch ("bfloat16"),
or as the format calls its quantised one ("Q8_0")."""


@runtime_checkable
class Room(Protocol):
    """One format. Every function raises LlucidError, in one line, for bytes that are not a whole Llama."""

    def recognises(self, path: Path) -> bool:
        """Whether there is something of this format at `path`, by its first bytes or, for a folder, its members."""
        ...

    def read_config(self, path: Path) -> Config:
        """The numbers of the model, from headers alone."""
        ...

    def read_header(self, path: Path) -> Header:
        """What tensors there are, without reading them."""
        ...

    def open_weights(self, path: Path, config: Config) -> Weights:
        """The weights, each leaf Stored: mapped when it is read, where that is possible; strict about every tensor."""
        ...

    def read_tokenizer(self, path: Path) -> Tokenizer:
        """The tokenizer inside or beside."""
        ...

    def read_tokenizer_info(self, path: Path) -> TokenizerInfo:
        """What that tokenizer is, as quickly as headers are read."""
        ...

    def write(self, out: Path, model: Model, progress: Progress, dtype: str | None = None) -> None:
        """Writes the model, tensor by tensor, and its tokenizer, to a file or into a folder that is there.

        `dtype` is that of the file, by name; the model's own or the format's only one when None. Refuses, before
        anything is written, what the format cannot hold."""
        ...


def choose_dtype(name: str | None) -> "torch.dtype | None":
    """PyTorch's float32, bfloat16 or float16; None stays None. Raises LlucidError for any other name."""
    checked = checked_dtype(name)
    return None if checked is None else dtype_of(checked)


def checked_dtype(name: str | None) -> str | None:
    """float32, bfloat16 or float16, however it is spelled; None stays None. Raises LlucidError for any other name."""
    if name is not None and full_name(name) not in ("float32", "bfloat16", "float16"):
        raise LlucidError(f"dtype={name}: expected float32, bfloat16 or float16")
    return None if name is None else full_name(name)


def dtype_of(name: str) -> "torch.dtype":
    """PyTorch's dtype of this name."""
    import torch

    return getattr(torch, name)


def full_name(dtype: str) -> str:
    """float32 and so on for whatever spelling people use: F32, fp32; in lower case, too, if it is none of theirs."""
    for name, short in (("float32", "f32"), ("bfloat16", "bf16"), ("float16", "f16")):
        if dtype.lower() in (name, short, short.replace("f", "fp")):
            return name
    return dtype.lower()


def name_of_dtype(dtype: "torch.dtype | str") -> str:
    """float32 and so on."""
    return str(dtype).removeprefix("torch.")
