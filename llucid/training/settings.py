"""Everything that decides a training run: the options of `llucid train`, kept in the run's `train.toml`."""

import dataclasses
import inspect
import json
import math
import numbers
import os
import re
import tomllib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from llucid.config import Config, head_width
from llucid.errors import LlucidError
from llucid.files import read_file
from llucid.presets import PRESETS
from llucid.tokenizers.text import replace_surrogates

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModelNumbers:
    """Numbers of the model that differ from the preset's."""

    dim: int | None = None
    """Width of the residual stream."""
    layers: int | None = None
    """Blocks."""
    heads: int | None = None
    """Query heads."""
    kv_heads: int | None = None
    """Key and value heads (default: as many as query heads)."""
    head_dim: int | None = None
    """Width of a head (default: dim / heads)."""
    ffn_dim: int | None = None
    """Width of the feed-forward network's hidden layer (default: the preset's, whatever dim is; 8/3 dim is usual)."""
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

    def __post_init__(self) -> None:
        _check_types(self, "model.")


BASE_NUMBERS = ("context", "dropout")
"""Numbers of the model that fine-tuning may change, since no weight depends on them."""
FIXED = ("base", "tokenizer", "preset", "optimizer", "seed", "dtype", "length_warmup", "warmup", "column")
"""Settings that a resumed run keeps."""
NOT_KEPT = ("out", "resume", "stop_after")
"""Settings of one call only, which `train.toml` does not hold."""
LARGEST_TOML, MOST_OUTSIDE, MOST_DOTS = 1 << 22, 1 << 18, 100
"""Bytes of a `train.toml`, characters outside of its texts, and dots there: the parser keeps all beginnings of keys
like a.a.a, and takes a hundred times the memory for numbers and tables."""
TEXTS = re.compile(r"""(?!\"{3})"(?:[^"\\\n]|\\.)*"?|(?!'{3})'[^'\n]*'?|#[^\n]*""")
"""Texts on one line, and comments, of TOML."""
SWITCH = {"switch": True}
"""Metadata of a setting that a resumed run may switch off again: `--no-wandb`."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a training run. Where a field is None, `recipes.resolve` chooses a value."""

    given: ClassVar[frozenset[str]] = frozenset()
    """Of an instance: the names of the fields that were given. A resumed run keeps the others."""

    corpus: tuple[str, ...] | None = None
    """Text to learn: shakespeare, fables, or paths of files and folders (text, .gz, .jsonl, .parquet) (default:
    shakespeare)."""
    column: str = "text"
    """Key or column that holds the text in .jsonl and Parquet files."""
    chat: str | None = None
    """Learn the assistant's answers instead: fables, or a file of conversations, one JSON object per line."""
    base: str | None = None
    """Fine-tune this model: begin with its weights, tokenizer and sizes (default: begin at random)."""
    tokenizer: str | None = None
    """characters, bpe:N (N tokens, learned from the corpus), or a path (default: bpe:1024 for fables and --chat, else
    characters)."""
    preset: str | None = None
    """Size of the model: nano, micro, mini, small (default: micro on a CPU, small on a GPU)."""
    model: ModelNumbers = field(default_factory=ModelNumbers)
    steps: int | None = None
    """Optimizer steps to train for; a run repeats exactly only with a number of steps."""
    minutes: float | None = None
    """Minutes to train for, with the schedule fitted to them (default: the preset's)."""
    stop_after: int | None = None
    """Stop after this many steps of this process, as Ctrl-C would; --resume continues."""
    out: str | None = None
    """Folder of the run (default: runs/CORPUS, or the first free name like it)."""
    resume: bool = False
    """Continue the run in --out as if it had never stopped; with more --steps or --minutes, beyond its end."""
    backend: Literal["torch", "jax"] | None = None
    """Library that computes (default: torch); jax has AdamW only, and no dropout."""
    device: str | None = None
    """cpu, cuda, mps, ... (default: the fastest one here)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of activations and matrix products; weights and sums stay float32 (default: bfloat16 where it is fast)."""
    compile: bool = field(default=False, metadata=SWITCH)
    """Compile the step with torch.compile."""
    seed: int = 0
    """Random seed of initial weights, batches and dropout."""
    batch: int | None = None
    """Windows in a step (default: the preset's)."""
    accumulate: int = 1
    """Parts in which a step's windows are computed one after the other, to save memory; of the result, only
    dropout's random numbers differ."""
    optimizer: Literal["muon", "adamw"] | None = None
    """muon (AdamW still trains embeddings and gains), or only adamw (default: muon; adamw with --backend jax)."""
    learning_rate: float | None = None
    """Peak learning rate of AdamW (default: the preset's)."""
    muon_learning_rate: float | None = None
    """Peak learning rate of Muon (default: the preset's)."""
    weight_decay: float = 0.1
    """Share of the matrices that decays per step, times the learning rate; gains and embeddings do not decay."""
    warmup: float = 0.02
    """Share of the run in which the learning rate rises."""
    length_warmup: float | None = None
    """Share of the run on windows a quarter as long, four times as many (default: the preset's; none below a context
    of 256)."""
    final: float = 0.0
    """Learning rate at the end, as a share of the peak."""
    clip: float = 1.0
    """Largest norm of the gradient over all parameters; a longer gradient is scaled down to it."""
    evaluations: int | None = None
    """Evenly spaced measurements on the validation split (default: up to five, in about a tenth of the time)."""
    patience: int | None = None
    """Stop after this many measurements without a lower validation loss, on windows as long (default: never)."""
    snapshots: int = 0
    """Copies of the model to keep in the run's folder, in bfloat16, at logarithmically spaced steps."""
    tensorboard: bool = field(default=False, metadata=SWITCH)
    """Also write the figures for TensorBoard, into the run's folder."""
    wandb: bool = field(default=False, metadata=SWITCH)
    """Also log the figures to Weights & Biases."""

    def __new__(cls: type[T], **given: Any) -> T:
        self = object.__new__(cls)
        object.__setattr__(self, "given", frozenset(given))
        return self

    def __post_init__(self) -> None:
        _check_types(self)
        for name in ("steps", "minutes", "stop_after", "batch", "learning_rate", "muon_learning_rate", "clip"):
            number = getattr(self, name)
            if number is not None and not 0 < number < 1e35:  # so that products with it are finite in float32
                raise LlucidError(f"{name}={number}: must be more than 0, and less than 1e35")
        for name, least in (("accumulate", 1), ("evaluations", 1), ("patience", 1), ("snapshots", 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise LlucidError(f"{name}={getattr(self, name)}: must be at least {least}")
        for name in ("steps", "stop_after", "batch", "accumulate", "evaluations", "patience", "snapshots"):
            if (getattr(self, name) or 0) >= 1 << 31:
                raise LlucidError(f"{name}={getattr(self, name)}: must be less than 2^31")
        if not 0 <= self.seed < 1 << 63:
            raise LlucidError(f"seed={self.seed}: must be at least 0 and less than 2^63")
        if self.steps is not None and self.minutes is not None:
            raise LlucidError("steps= and minutes= both say how long to train; give one of them")
        for name, most in (("warmup", math.nextafter(1, 0)), ("final", 1), ("length_warmup", 1)):
            if not 0 <= (getattr(self, name) or 0) <= most:
                raise LlucidError(f"{name}={getattr(self, name)}: must be a share between 0 and 1")
        if not 0 <= self.weight_decay < math.inf:
            raise LlucidError(f"weight_decay={self.weight_decay}: must be at least 0, and finite")
        for name in ("corpus", "chat", "base", "tokenizer", "out"):
            if getattr(self, name) in ("", ()):
                raise LlucidError(f"{name}={getattr(self, name)!r}: is empty; leave it out, or give it a value")
        if self.preset is not None and self.preset not in PRESETS:
            raise LlucidError(f"preset={self.preset}: unknown; expected one of: {', '.join(PRESETS)}")
        if self.resume and self.out is None:
            raise LlucidError("resume=True: name the folder of the run to continue with out=")
        if self.chat is not None and self.corpus is not None:
            raise LlucidError("corpus= and chat= both say what to learn from; give one of them")
        if self.chat is not None and self.length_warmup:
            raise LlucidError(
                f"length_warmup={self.length_warmup}: conversations are not cut into windows; leave it out with chat="
            )
        if self.base is not None:
            fixed = {f"model.{name}": number for name, number in vars(self.model).items() if name not in BASE_NUMBERS}
            fixed["preset"] = self.preset
            fixed["tokenizer"] = self.tokenizer if self.learns_tokenizer else None
            for name, value in fixed.items():
                if value is not None:
                    raise LlucidError(f"{name}={value}: base= already has its own; leave this out")

    @property
    def learns_tokenizer(self) -> bool:
        """Whether a tokenizer is given that is made from the corpus, not read from a path."""
        return bool(re.fullmatch("characters|bpe:.*", self.tokenizer or ""))

    def rebased(self, config: Config) -> Config:
        """The Config of the base with the numbers that fine-tuning may change."""
        given = {name: getattr(self.model, name) for name in BASE_NUMBERS}
        return dataclasses.replace(config, **{name: number for name, number in given.items() if number is not None})

    def config(self, preset: str, vocab_size: int) -> Config:
        """The preset's Config with the given numbers. Raises LlucidError if they do not fit together."""
        given = {name: number for name, number in dataclasses.asdict(self.model).items() if number is not None}
        if "heads" in given:
            given.setdefault("kv_heads", given["heads"])
        try:
            if "dim" in given or "heads" in given:
                sizes = dataclasses.asdict(PRESETS[preset].config) | given
                given.setdefault("head_dim", head_width(sizes["dim"], sizes["heads"]))
            return dataclasses.replace(PRESETS[preset].config, vocab_size=vocab_size, **given)
        except LlucidError as error:
            raise LlucidError(re.sub(r"(\w+=)", r"model.\1", str(error))) from error

    def continuing(self, kept: "Settings") -> "Settings":
        """The settings `kept` in a run's folder, with what is given here instead.

        Raises LlucidError for a setting that cannot change within a run.
        """
        given = {name: getattr(self, name) for name in self.given if getattr(self, name) is not None}
        numbers = vars(given.pop("model", ModelNumbers()))
        texts = [name for name in ("corpus", "chat") if getattr(kept, name) is None]  # of the other, a path may change
        fixed = {name: given.pop(name) for name in (*FIXED, *texts) if name in given}
        changed = {  # the kept base or tokenizer may be the absolute path of the one given
            name: value
            for name, value in fixed.items()
            if getattr(kept, name) not in (value, os.path.abspath(str(value)))
        }
        model = kept.config(kept.preset, 1) if kept.preset else kept.model
        changed |= {
            f"model.{name}": number
            for name, number in numbers.items()
            if number is not None and number != getattr(model, name)
        }
        for name, value in changed.items():
            shown = " ".join(value) if isinstance(value, tuple) else value
            raise LlucidError(f"{name}={shown}: a resumed run keeps what it began with; leave this out")
        kept = dataclasses.replace(kept, stop_after=None)
        if "steps" in given or "minutes" in given:
            kept = dataclasses.replace(kept, steps=None, minutes=None)
        return dataclasses.replace(kept, **given | {"resume": True, "out": self.out})


def write_toml(settings: Settings) -> str:
    """`settings` as TOML, without what is None and what belongs to one call only."""

    def lines(part: Any) -> list[str]:
        rows = ((item.name, getattr(part, item.name)) for item in dataclasses.fields(part))
        rows = ((name, value) for name, value in rows if value is not None and name not in (*NOT_KEPT, "model"))
        return [f"{name} = {_toml(value)}" for name, value in rows]

    text = "\n".join([*lines(settings), "", "[model]", *lines(settings.model)]) + "\n"
    if len(text.encode()) > LARGEST_TOML or len(TEXTS.sub("", text)) > MOST_OUTSIDE:
        raise LlucidError("corpus: the names of its files are too long to be kept; name their folder instead")
    return text


def _toml(value: object) -> str:
    """JSON's strings, numbers, booleans and arrays are also TOML's, but for DEL. TOML has no lone surrogates."""
    return replace_surrogates(json.dumps(value, ensure_ascii=False)).replace("\x7f", "\\u007f")


def read_toml(file: Path) -> Settings:
    """The settings in a run's `train.toml`. Raises LlucidError if it holds anything else."""
    content = read_file(file, LARGEST_TOML)
    try:
        text = content.decode()
        outside = TEXTS.sub("", text)
        if len(outside) > MOST_OUTSIDE or outside.count(".") > MOST_DOTS or "'" in outside or '"' in outside:
            raise ValueError("it has keys or texts that no setting has")
        values = tomllib.loads(text)
        if isinstance(values.get("corpus"), list):
            values["corpus"] = None if "chat" in values else tuple(values["corpus"])
        return Settings(model=ModelNumbers(**values.pop("model", {})), **values)
    except LlucidError as error:
        raise LlucidError(f"{file}: {error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LlucidError(f"{file}: not the settings of a training run ({error})") from error


def _check_types(part: Settings | ModelNumbers, prefix: str = "") -> None:
    """Replaces the values by those that TOML can hold. Raises LlucidError, with its name, for one of another type."""
    hints = get_type_hints(type(part))
    for name in (item.name for item in dataclasses.fields(part)):
        given, hint = getattr(part, name), hints[name]
        with suppress(OverflowError):  # no float holds it
            value = _plain(given)
            if type(value) is int and float in (hint, *get_args(hint)):
                value = float(value)
            if _fits(value, hint):
                object.__setattr__(part, name, value)
                continue
        raise LlucidError(f"{prefix}{name}={given!r}: must be of type {inspect.formatannotation(hint)}")


def _plain(value: Any) -> Any:
    """What TOML can hold for a path or a number of NumPy, also in a list."""
    match value:
        case os.PathLike():
            return os.fspath(value)
        case bool():
            return value
        case numbers.Integral():
            return int(value)
        case numbers.Real():
            return float(value)
        case list() | tuple():
            return tuple(_plain(inner) for inner in list[Any](value))
        case _:
            return value


def _fits(value: object, hint: Any) -> bool:
    """Whether a value has this type; booleans are no numbers."""
    options = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, option) for option in options)
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in options
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(each, options[0]) for each in value)
    return isinstance(value, hint) and isinstance(value, bool) == (hint is bool)
