"""Options that several commands have."""

import dataclasses
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from llucid.cli.arguments import option, positional
from llucid.errors import LlucidError

if TYPE_CHECKING:
    from llucid.generation import Sampling
    from llucid.model import Model


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    TITLE: ClassVar = "opening the model"

    model: str = positional("MODEL")
    """A run, a Hugging Face folder or repository, a folder of Meta's, a .bin of llama2.c's, a .gguf, or storyteller."""
    tokenizer: str | None = option("PATH")
    """Use this tokenizer instead of the model's own."""
    dtype: str | None = option("{float32,bfloat16,float16}")
    """Compute in this precision instead of the file's own."""
    quantize: Literal["int8", "int4"] | None = None
    """Hold matrices in 8 or 4 bits: less memory, faster on a CPU (default: only those that a GGUF file holds so)."""
    device: str | None = None
    """cpu, cuda, mps, ... (default: the fastest one here)"""

    def load(self, default: str = "", mapped: bool = True) -> "Model":
        """The model, or `default` if none is named; without `dtype`, quantised matrices stay quantised."""
        from llucid.checkpoints import load

        return load(
            self.model or default,
            dtype=self.dtype,
            device=self.device,
            tokenizer=self.tokenizer,
            quantize=self.quantize or (None if self.dtype else "file"),
            mapped=mapped,
        )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    TITLE: ClassVar = "choosing tokens"

    temperature: float | None = None
    """Below 1, likely tokens become likelier; 0 always takes the likeliest (default: the model's, or 0.8)."""
    top_k: int | None = None
    """Choose from the N likeliest tokens; 0 is all of them (default: the model's, or all)."""
    top_p: float | None = None
    """Choose from the likeliest tokens that together have this probability; 1 is all of them (default: the model's, or
    0.95)."""
    min_p: float | None = None
    """Choose from the tokens at least this share as likely as the likeliest (default: the model's, or all)."""
    repetition_penalty: float | None = None
    """More than 1 makes tokens that stand in the text so far less likely (default: the model's, or 1)."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that it was written."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that were written."""
    logit_bias: tuple[str, ...] = option("ID=X", repeated=True)
    """Add X to the logit of this token; may be given several times."""
    seed: int | None = None
    """The same seed gives the same text (default: a new one each time)."""

    def sampling(self, model: "Model") -> "Sampling":
        """How tokens are chosen: by the options, else as the model says, else by default."""
        from llucid.generation import Sampling, sampling_of

        names = [field.name for field in dataclasses.fields(Sampling)]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        given["logit_bias"] = tuple(map(read_bias, self.logit_bias))
        sampling = sampling_of(model, **given)
        own = {name: value for name, value in model.sampling.items() if name not in given}
        if used := [f"{name} {value:.10g}" for name, value in own.items() if getattr(sampling, name) == value]:
            print(f"from the model's own settings: {', '.join(used)}", file=sys.stderr)
        return sampling


def read_bias(text: str) -> tuple[int, float]:
    """The id and the number in ID=X."""
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError as error:
        raise LlucidError(f"logit_bias={text}: expected an id and a number, as in 42=-1.5") from error


def read_text(given: str) -> str:
    """The text that was given; for "-", all of standard input but the line break at its end."""
    if given != "-":
        return utf8_text(given)
    with open(sys.stdin.fileno(), encoding="utf-8", errors="surrogateescape", closefd=False) as lines:
        return utf8_text(lines.read().removesuffix("\n"))


def utf8_text(given: str) -> str:
    """The text whose bytes Python could not decode, in a locale of ASCII or at all, and keeps as surrogates.

    Raises LlucidError for a text that is not UTF-8."""
    try:
        return given.encode("utf-8", "surrogateescape").decode()
    except UnicodeError as error:
        raise LlucidError(f"{given!r:.60}: not UTF-8 text") from error
