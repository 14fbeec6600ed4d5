"""Options that several commands have."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from llucid.cli.arguments import option, positional

if TYPE_CHECKING:
    from llucid.generation import Sampling
    from llucid.model import Model


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    TITLE: ClassVar = "opening the model"

    model: str = positional("MODEL")
    """A run, a Hugging Face folder or repository, a folder of Meta's, a .bin of llama2.c's, or a .gguf."""
    tokenizer: str | None = option("PATH")
    """Use this tokenizer instead of the model's own."""
    dtype: str | None = option("{float32,bfloat16,float16}")
    """Compute in this precision instead of the file's own."""
    quantize: Literal["int8", "int4"] | None = None
    """Hold matrices in 8 or 4 bits: less memory, faster on a CPU (default: only those that a GGUF file holds so)."""
    device: str | None = None
    """cpu, cuda, mps, ... (default: the fastest one here)"""

    def load(self, default: str = "") -> "Model":
        """The model, or the one at `default` if none is named; without `dtype`, quantised matrices stay quantised."""
        from llucid.checkpoints import load

        return load(
            self.model or default,
            dtype=self.dtype,
            device=self.device,
            tokenizer=self.tokenizer,
            quantize=self.quantize or (None if self.dtype else "file"),
            mapped=True,
        )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    TITLE: ClassVar = "choosing tokens"

    temperature: float = 0.8
    """Below 1, likely tokens become likelier; 0 always takes the likeliest."""
    top_k: int | None = None
    """Choose from the N likeliest tokens (default: all)."""
    top_p: float = 0.95
    """Choose from the likeliest tokens that together have this probability; 1 is all of them."""
    min_p: float | None = option("X")
    """Choose from the tokens at least this share as likely as the likeliest (default: all)."""
    seed: int | None = None
    """The same seed gives the same text (default: a new one each time)."""

    def sampling(self) -> "Sampling":
        """How a token is chosen."""
        from llucid.generation import Sampling

        return Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)


def read_text(given: str) -> str:
    """The text that was given; for "-", all of standard input but the line break at its end."""
    if given != "-":
        return given
    with open(sys.stdin.fileno(), encoding="utf-8", errors="replace", closefd=False) as lines:
        return lines.read().removesuffix("\n")
