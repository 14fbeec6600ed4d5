"""What each module of a format offers: the contract between the formats and `load`, `save` and `convert`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from llucid.config import Config
from llucid.model import Model
from llucid.tokenizers import Tokenizer
from llucid.weights import Weights

Progress = Callable[[int, int], None]
"""Called after each tensor that is written, with the bytes that are done and all bytes."""


def no_progress(done: int, total: int) -> None:
    """Shows nothing."""


Header = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and dtype of each tensor in a file, by the file's own names. A dtype is called as in PyTorch ("bfloat16"),
or as the format calls its quantised one ("Q8_0")."""


@runtime_checkable
class Format(Protocol):
    """One format. Every function raises LlucidError, in one line, for bytes that are not a whole Llama.

    A module may also have `weight_files(path)`, for models of several files; `inferred(path)`, the names of the
    Config's numbers that no file says; and `open_quantized`, `open_weights` that keeps what the file has quantised.
    """

    def recognises(self, path: Path) -> bool:
        """Whether there is something of this format at `path`, by its first bytes or, for a folder, its members."""
        ...

    def read_config(self, path: Path) -> Config:
        """The numbers of the model, from headers only."""
        ...

    def read_header(self, path: Path) -> Header:
        """What tensors there are, without reading them."""
        ...

    def open_weights(self, path: Path, config: Config) -> Weights:
        """The weights, each leaf Stored; strict about every tensor."""
        ...

    def read_tokenizer(self, path: Path) -> Tokenizer:
        """The tokenizer inside or beside. Raises NoTokenizer if there is none."""
        ...

    def write(self, out: Path, model: Model, progress: Progress, dtype: str | None = None) -> None:
        """Writes the model, tensor by tensor, and its tokenizer, to a file or into an existing folder.

        `dtype` is that of the file, by name; None is the model's own, or the format's only one. Refuses, before
        anything is written, what the format cannot hold."""
        ...
