"""Everything that decides a training run, as the command line takes it and as `train.toml` keeps it."""

import dataclasses
import json
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from llucid.config import Config, head_width
from llucid.errors import LlucidError
from llucid.presets import PRESETS


@dataclass(frozen=True, kw_only=True)
class ModelNumbers:
    """Numbers of the model that are to differ from the preset's."""

    dim: int | None = None
    """Width of the residual stream."""
    layers: int | None = None
    """Blocks."""
    heads: int | None = None
    """Query heads."""
    kv_heads: int | None = None
    """Key and value heads (as many as query heads, unless given)."""
    head_dim: int | None = None
    """Width of a head (dim / heads, unless given)."""
    ffn_dim: int | None = None
    """Width of the feed-forward network's hidden layer (the preset's, whatever dim is; 8/3 of dim is usual)."""
    context: int | None = None
    """Tokens in a training window."""
    norm_eps: float | None = None
    """Added to the mean square in RMSNorm."""
    rope_theta: float | None = None
    """Base of RoPE's frequencies."""
    tied_embeddings: bool | None = None
    """Whether one matrix embeds and unembeds."""
    dropout: float | None = None
    """Probability of dropping an activation while training."""


BASE_NUMBERS = ("context", "dropout")
"""Numbers that no weight depends on."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a training run; what is None here and must be known, `recipes.resolve` chooses."""

    corpus: tuple[str, ...] = ("shakespeare",)
    """What to read: shakespeare, fables, or paths of text files and folders."""
    chat: str | None = None
    """Learn the assistant's answers instead: fables, or a file of conversations, {"messages": [...]} a line."""
    base: str | None = None
    """Begin with this model, its tokenizer and its numbers, instead of at random: fine-tuning."""
    tokenizer: str | None = None
    """characters, bpe:N (N tokens, learned from the corpus), or a path (bpe:1024 for fables and --chat, else
    characters, unless given)."""
    preset: str | None = None
    """Size of the model: nano, micro, mini, small (micro on a CPU and small on a GPU, unless given)."""
    model: ModelNumbers = field(default_factory=ModelNumbers)
    steps: int | None = None
    """Optimizer steps to train for."""
    minutes: float | None = None
    """Minutes to train for, the schedule fitted to them (the preset's, unless given); only --steps repeats exactly."""
    stop_after: int | None = None
    """Stop this process after so many steps, as Ctrl-C would; --resume goes on."""
    out: str | None = None
    """Folder of the run (runs/CORPUS, or the first free one like it, unless given)."""
    resume: bool = False
    """Go on with the run in --out, as if it had never stopped; with --steps, bit for bit."""
    backend: Literal["torch", "jax"] | None = None
    """Library that computes: torch (unless given), or jax, which trains by AdamW alone and without dropout."""
    device: str | None = None
    """cpu, cuda, mps, ... (the fastest one here, unless given)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of activations and matrix products; weights and sums stay float32 (bfloat16 where it is fast, unless given)."""
    compile: bool = False
    """Compile the step with torch.compile."""
    seed: int = 0
    """Of initial weights, batches and dropout."""
    batch: int | None = None
    """Windows in a step (the preset's, unless given)."""
    accumulate: int = 1
    """Parts in which a step's windows are run, one after the other, to save memory; the result is the same."""
    optimizer: Literal["muon", "adamw"] | None = None
    """muon (AdamW still trains embeddings and gains), or adamw alone, as --backend jax does (muon, unless given)."""
    learning_rate: float | None = None
    """Peak learning rate of AdamW (the preset's, unless given)."""
    muon_learning_rate: float | None = None
    """Peak learning rate of Muon (the preset's, unless given)."""
    weight_decay: float = 0.1
    """Pull of the matrices towards zero, times the learning rate, per step; gains and embeddings have none."""
    warmup: float = 0.02
    """Share of the run in which the learning rate rises."""
    length_warmup: float | None = None
    """Share of the run on windows a quarter as long, four times as many (the preset's; contexts below 256: none)."""
    final: float = 0.0
    """Learning rate at the end, as a share of the peak."""
    clip: float = 1.0
    """Longest gradient, as the norm over all parameters; longer ones are shortened to it."""
    evaluations: int = 5
    """How many times the validation split is measured on the way, the end included."""
    tensorboard: bool = False
    """Also write the figures for TensorBoard, into the run's folder."""

    def __post_init__(self) -> None:
        for name in ("steps", "minutes", "stop_after", "batch", "learning_rate", "muon_learning_rate", "clip"):
            number = getattr(self, name)
            if number is not None and not 0 < number < math.inf:
                raise LlucidError(f"--{name.replace('_', '-')} {number}: must be more than 0, and finite")
        if self.batch is not None and self.batch >= 1 << 31:
            raise LlucidError(f"--batch {self.batch}: no memory holds so many windows")
        if not 0 <= self.seed < 1 << 63:
            raise LlucidError(f"--seed {self.seed}: must be at least 0 and less than 2^63")
        if self.accumulate < 1 or self.evaluations < 1:
            raise LlucidError("--accumulate and --evaluations must be at least 1")
        if self.steps is not None and self.minutes is not None:
            raise LlucidError("--steps and --minutes both say how long to train; give one of them")
        if not 0 <= self.warmup < 1 or not 0 <= self.final <= 1 or not 0 <= (self.length_warmup or 0) <= 1:
            raise LlucidError("--warmup, --length-warmup and --final are shares between 0 and 1")
        if not 0 <= self.weight_decay < math.inf:
            raise LlucidError(f"--weight-decay {self.weight_decay}: must be at least 0, and finite")
        if self.preset is not None and self.preset not in PRESETS:
            raise LlucidError(f"--preset {self.preset}: unknown; expected one of: {', '.join(PRESETS)}")
        if self.resume and self.out is None:
            raise LlucidError("--resume goes on with the run in --out; say which folder that is")
        if self.chat is not None and self.corpus != ("shakespeare",):
            raise LlucidError("--corpus and --chat both say what to learn from; give one of them")
        if self.chat is not None and self.length_warmup:
            raise LlucidError("--length-warmup: conversations are not cut into windows; leave it out with --chat")
        if self.base is not None:
            numbers = dataclasses.asdict(self.model)
            fixed = [f"--model.{name}" for name in numbers if name not in BASE_NUMBERS and numbers[name] is not None]
            fixed += [f"--{name}" for name in ("preset", "tokenizer") if getattr(self, name) is not None]
            if fixed:
                raise LlucidError(f"{fixed[0].replace('_', '-')}: that of --base is taken; leave it out")

    def rebased(self, config: Config) -> Config:
        """The numbers of the model in --base, but for those that training may choose."""
        given = {name: getattr(self.model, name) for name in BASE_NUMBERS}
        return dataclasses.replace(config, **{name: number for name, number in given.items() if number is not None})

    def config(self, preset: str, vocab_size: int) -> Config:
        """The preset with the numbers that were given put in. Raises LlucidError if they do not go together."""
        given = {name: number for name, number in dataclasses.asdict(self.model).items() if number is not None}
        if "heads" in given:
            given.setdefault("kv_heads", given["heads"])
        if "dim" in given or "heads" in given:
            sizes = dataclasses.asdict(PRESETS[preset].config) | given
            given.setdefault("head_dim", head_width(sizes["dim"], sizes["heads"]))
        return dataclasses.replace(PRESETS[preset].config, vocab_size=vocab_size, **given)


def write_toml(settings: Settings) -> str:
    """`settings` as TOML; what was left to be chosen is left out."""

    def lines(part: Any) -> list[str]:
        rows = ((item.name, getattr(part, item.name)) for item in dataclasses.fields(part))
        # JSON's strings, numbers, booleans and arrays are also TOML's.
        return [f"{name} = {json.dumps(value)}" for name, value in rows if _is_plain(value)]

    return "\n".join([*lines(settings), "", "[model]", *lines(settings.model)]) + "\n"


def _is_plain(value: Any) -> bool:
    return value is not None and not dataclasses.is_dataclass(value)


def read_toml(file: Path) -> Settings:
    """The settings in a run's `train.toml`. Raises LlucidError if it holds anything else."""
    try:
        told = tomllib.loads(file.read_text(encoding="utf-8"))
        model = told.pop("model", {})
        _check(told, Settings)
        _check(model, ModelNumbers)
        told["corpus"] = tuple(told["corpus"])
        return Settings(model=ModelNumbers(**model), **told)
    except LlucidError:
        raise
    except OSError as error:
        raise LlucidError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LlucidError(f"{file}: not the settings of a training run ({error})") from error


def _check(told: Any, kind: type) -> None:
    """Raises TypeError for what is no table, a key that `kind` has not, or a value that is none of its field's."""
    if not isinstance(told, dict):
        raise TypeError(f"expected a table, found {told!r}")
    hints = get_type_hints(kind)
    for name, value in told.items():
        if name not in hints:
            raise TypeError(f"unknown key {name!r}")
        if not _fits(value, hints[name]):
            raise TypeError(f"{name} cannot be {value!r}")


def _fits(value: object, hint: Any) -> bool:
    """Whether a value of TOML is of this type, in which a list stands for a tuple and a whole number for a float."""
    options = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, option) for option in options)
    if get_origin(hint) is Literal:
        return value in options
    if get_origin(hint) is tuple:
        return isinstance(value, list) and all(_fits(each, options[0]) for each in value)
    return type(value) is hint or (hint is float and type(value) is int)
