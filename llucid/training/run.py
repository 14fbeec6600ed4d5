"""The folder of a run: a Hugging Face folder, beside what only training needs.

    config.json model.safetensors tokenizer.json tokenizer_config.json     the best model so far
    train.toml                                                             every setting
    state/latest.safetensors                                               the latest weights, optimizer and progress
    state/measured.json state/corpus.sha256 state/wandb                    the best measurement so far; text and run
    state/model.safetensors                                                the best model before a stop
    metrics.jsonl  curve.png  samples.txt                                  a line per step; pictures and texts of it
    snapshots/step-N/                                                      copies of the model, if asked for

Each file is replaced atomically, and a new folder gets its name only when it is complete, with a state inside. So if
the process is killed at any moment, the folder opens and the run can continue.
"""

import hashlib
import importlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llucid.checkpoints import huggingface, refuse_difference
from llucid.corpora import Corpus
from llucid.errors import LlucidError, note
from llucid.files import (
    atomic_file,
    atomic_folder,
    is_being_written,
    is_occupied,
    json_value,
    locked_folder,
    read_file,
    read_json,
    remove,
    typed,
    utf8_path,
    write_text_atomically,
)
from llucid.model import Model
from llucid.tokenizers import Tokenizer
from llucid.tokenizers.comparison import note_difference
from llucid.training.settings import Settings, read_toml, write_toml


class Progress(NamedTuple):
    """How far a run is."""

    step: int = 0
    seconds: float = 0.0
    """Spent in training so far, over all processes, less that in which Ctrl-Z stopped one."""


class Measured(NamedTuple):
    """The measurements on the validation split so far."""

    step: int = -1
    """Of the last one; −1 before the first."""
    seconds: float = 0.0
    """`Progress.seconds` at the last one."""
    best: float = float("inf")
    """Lowest loss on the longest windows so far, in nats per token."""
    model_step: int = 0
    """The step of the best one."""
    window: int = 0
    """Tokens in these windows."""
    worse: int = 0
    """How many measurements since the best one, without those on shorter windows."""
    took: float = 0.0
    """Seconds that the last one took."""
    total: float = 0.0
    """Seconds that all of them took."""
    stop_step: int = -1
    """The step of a stop since then whose model was better, so that it is in the folder; −1 if none."""
    stop_loss: float = 0.0
    """Its loss, in nats per token."""
    stop_window: int = 0
    """Tokens in the windows on which it was measured."""

    @property
    def held(self) -> int:
        """The step whose model is in the folder."""
        return self.model_step if self.stop_step < 0 else self.stop_step


def free_name(name: str) -> Path:
    """runs/NAME, or runs/NAME-2 and so on if that exists."""
    folders = (Path("runs") / (name if number == 1 else f"{name}-{number}") for number in range(1, 10_000))
    return next(folder for folder in folders if not folder.exists())


def refuse_occupied(out: Path) -> None:
    """Raises LlucidError if there is anything at `out`, except what a killed process left unfinished."""
    if is_occupied(out):
        raise LlucidError(
            f"out={out}: something is there already; continue it with resume=True, or name another folder"
        )


def create(
    out: Path, model: Model, settings: Settings, corpus: Corpus, save_state: Callable[[Path], None]
) -> Tokenizer:
    """Makes the folder of a new run with its untrained model; `save_state` writes the first state into a folder.

    Returns the tokenizer as a resumed run opens it, which may decode bytes that are not UTF-8 otherwise. Removes what
    killed processes left of the same run. Raises LlucidError if there is something else at `out`, or if a tokenizer
    from elsewhere would not be the same there.
    """
    with atomic_folder(out) as unfinished:
        (unfinished / "state").mkdir()
        note_difference(model.text())
        huggingface.write(unfinished, model)
        tokenizer = model.text()
        if settings.base or not settings.learns_tokenizer:
            tokenizer = refuse_difference(model, unfinished, out).text()
        write_text_atomically(unfinished / "train.toml", write_toml(settings))
        write_text_atomically(unfinished / "metrics.jsonl", "")
        write_text_atomically(unfinished / "state" / "corpus.sha256", corpus.fingerprint)
        save_state(unfinished / "state")
    return tokenizer


@contextmanager
def locked(out: Path) -> Generator[None]:
    """Holds the lock of the run in `out`, on systems that have locks for folders.

    Raises LlucidError if another process holds it. Removes what killed processes left half-written.
    """
    try:
        with locked_folder(out) as free:
            if free is False:
                raise LlucidError(f"out={out}: another process is training there; stop it, or wait")
            unfinished = [path for at in ("", "state", "snapshots") for path in (out / at).glob(".*.[0-9]*.partial")]
            for path in (*unfinished, *(out / "state").glob(".tmp*")):  # which safetensors writes
                # A folder in `out` may be that of another process, which will find it occupied and remove its own.
                if path.parent != out or path.is_file() or not is_being_written(path):
                    with suppress(FileNotFoundError):
                        remove(path)
            yield
    except OSError as error:
        if out.exists():
            raise
        raise LlucidError(
            f"{out}: the folder of the run was moved or removed; continue it where it is now, with resume=True"
        ) from error


def refuse_links(out: Path) -> None:
    """Raises LlucidError if a run would write elsewhere, through a link in the folder, or wait at a named pipe. Only
    Weights & Biases makes links, in its own folder."""
    for path in (path for path in out.rglob("*") if path.is_symlink() or path.is_fifo()):
        if path.is_fifo():
            raise LlucidError(f"{path}: a named pipe, at which a run would wait for ever; remove it")
        if path.parent.relative_to(out).parts[:1] != ("wandb",):
            raise LlucidError(f"{path}: a link, through which a run would write elsewhere; put what it names here")


def refuse_changed(out: Path, corpus: Corpus, options: str) -> None:
    """Raises LlucidError if the run in `out` has no state, or began with another text than `corpus`.

    `options` names the corpus on the command line.
    """
    instead = f"llucid train --base {typed(out)} {options}"
    state, kept = out / "state" / "latest.safetensors", out / "state" / "corpus.sha256"
    if not state.is_file():
        raise LlucidError(
            f"{state}: there is no such file, so the run cannot continue; begin again, or begin with the model that it "
            f"left: {instead}"
        )
    if kept.is_file() and kept.read_text(encoding="utf-8", errors="replace") != corpus.fingerprint:
        raise LlucidError(
            f"{options.removeprefix('--').replace(' ', '=', 1)}: no longer the text that {out} began with, which "
            f"resume=True needs; put that back, or begin a new run with the model that this one left: {instead}"
        )


def write_state(folder: Path, tensors: Mapping[str, Tensor], progress: Progress) -> None:
    """Replaces `latest.safetensors` in a run's `state/` atomically."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_file(folder / "latest.safetensors") as temporary:
        save_file(on_cpu, temporary, {"progress": json.dumps(progress._asdict())})


@contextmanager
def read_state(folder: Path) -> Generator[tuple[dict[str, Tensor], Progress]]:
    """What `write_state` wrote: (tensors, progress). Raises LlucidError if it is damaged, also if that shows inside."""
    file = folder / "latest.safetensors"
    try:
        with utf8_path(file) as path, safe_open(path, framework="pt") as opened:
            # Cloned, because matrix products round by how their operands are aligned, and a file aligns to nothing.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
            progress = Progress(**json.loads(opened.metadata()["progress"]))
        if type(progress.step) is not int or not 0 <= progress.step < 1 << 63 or not 0 <= progress.seconds < 1 << 63:
            raise ValueError(f"progress {progress!r:.80}")
        yield tensors, progress
    except (SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise LlucidError(f"{file}: not a state that the run of its train.toml can continue from ({error})") from error


def refuse_advanced(out: Path, progress: Progress) -> None:
    """Raises LlucidError if another process has continued the run in `out` since its state of `progress` was read."""
    with utf8_path(out / "state" / "latest.safetensors") as path, safe_open(path, framework="pt") as opened:
        if json.loads(opened.metadata()["progress"])["step"] != progress.step:
            raise LlucidError(
                f"out={out}: another process has continued the run meanwhile; give the same command again"
            )


@contextmanager
def keeping_state(out: Path) -> Generator[None]:
    """Restores the state that was saved before if a LlucidError is raised inside."""
    state, before = out / "state" / "latest.safetensors", out / "state" / ".before.safetensors"
    before.unlink(missing_ok=True)
    with suppress(OSError):  # a file system without links
        os.link(state, before)
    try:
        yield
    except LlucidError:
        if before.exists():
            os.replace(before, state)
        raise
    finally:
        before.unlink(missing_ok=True)


def read_measured(out: Path, progress: Progress) -> Measured:
    """The measurements of the run in `out` up to `progress`."""
    try:
        measured = Measured(**read_json(out / "state" / "measured.json"))
        numbers = measured._replace(best=min(measured.best, 0))  # which is infinite before the first measurement
        if all(type(number) in (int, float) and -1 <= number < 1 << 63 for number in numbers):
            return measured if measured.step <= progress.step else Measured()
    except (ValueError, TypeError):  # none yet
        pass
    return Measured()


def keep_settings(out: Path, settings: Settings, progress: Progress) -> None:
    """Rewrites `train.toml` if a resumed run has other settings than before; then patience counts from 0 again."""
    toml, text = out / "train.toml", write_toml(settings)
    if write_toml(read_toml(toml)) != text:
        write_measured(out, read_measured(out, progress)._replace(worse=0))
        write_text_atomically(toml, text)


def set_model_aside(out: Path) -> None:
    """Keeps the model in the folder for `put_model_back`, unless one is kept already."""
    aside = out / "state" / "model.safetensors"
    if not aside.exists():
        with atomic_file(aside) as temporary:
            shutil.copyfile(out / "model.safetensors", temporary)


def put_model_back(out: Path) -> None:
    """Replaces the model in the folder by the one that was set aside, if there is one."""
    with suppress(FileNotFoundError):
        os.replace(out / "state" / "model.safetensors", out / "model.safetensors")


def write_measured(out: Path, measured: Measured) -> None:
    write_text_atomically(out / "state" / "measured.json", json.dumps(measured._asdict()))


def _read_row(line: str) -> dict[str, Any] | None:
    """A row of `metrics.jsonl` whose figures can be drawn (up to float32's largest); None for anything else."""
    try:
        row = json_value(line.encode())
    except ValueError:
        return None
    if not isinstance(row, dict) or "step" not in row or ("loss" in row) != ("rate" in row):
        return None
    figures: list[Any] = [row.get(name, 0) for name in ("step", "loss", "rate", "validation", "window")]
    numbers = all(type(figure) in (int, float) and abs(figure) < 1e39 for figure in figures)
    return row if numbers and isinstance(row.get("sample", ""), str) else None


class Metrics:
    """`metrics.jsonl`, one JSON object a step, and the copies of its figures for TensorBoard and Weights & Biases."""

    def __init__(self, out: Path, step: int, settings: Settings) -> None:
        """The log of the run in `out`, cut after `step`."""
        self.ending = ExitStack()
        self.loggers = [
            *([_tensorboard(out, step, self.ending)] if settings.tensorboard else []),
            *([_wandb(out, settings, self.ending)] if settings.wandb else []),
        ]
        self.file = out / "metrics.jsonl"
        text = self.file.read_text(encoding="utf-8", errors="replace") if self.file.is_file() else ""
        rows = [_read_row(line) for line in text.splitlines()]
        self.rows = [row for row in rows if row and row["step"] <= step]
        damaged = [str(number) for number, row in enumerate(rows[:-1], 1) if not row]  # a kill cuts the last line short
        if damaged:
            note(f"{self.file}: left out damaged lines: {', '.join(damaged[:20])}")
        self._rewrite()

    def _rewrite(self) -> None:
        write_text_atomically(self.file, "".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Appends the rows of new steps."""
        self.rows += rows
        try:
            with open(self.file, "a", encoding="utf-8") as opened:
                opened.write("".join(json.dumps(row) + "\n" for row in rows))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.file)) from error
        for row in rows:
            self._log(row["step"], row)

    def measured(self, step: int, figures: dict[str, Any]) -> None:
        """Adds the figures of a measurement to the row of its step."""
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": step})
        self.rows[-1] |= figures
        self._rewrite()
        self._log(step, figures)

    def _log(self, step: int, row: dict[str, Any]) -> None:
        for log in self.loggers:
            log(step, {name: row[name] for name in ("loss", "validation", "rate") if name in row})

    def samples(self) -> str:
        """The content of `samples.txt`."""
        samples = [(row["step"], row["sample"]) for row in self.rows if "sample" in row]
        return "\n".join(f"---------- step {step}\n{sample}\n" for step, sample in samples)


Log = Callable[[int, dict[str, float]], None]


def refuse_missing_libraries(settings: Settings) -> None:
    """Raises LlucidError if a library that `settings` log to is not installed."""
    libraries = (
        ("tensorboard", "torch.utils.tensorboard.writer", "TensorBoard"),
        ("wandb", "wandb", "Weights & Biases"),
    )
    for name, module, called in libraries:
        if getattr(settings, name):
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise LlucidError(
                    f"{name}=True: {called} is not installed; pip install {name}, or use {name}=False"
                ) from error


def _tensorboard(out: Path, step: int, ending: ExitStack) -> Log:
    from torch.utils.tensorboard.writer import SummaryWriter

    writer = ending.enter_context(SummaryWriter(out / "tensorboard", purge_step=step + 1))

    def log(step: int, figures: dict[str, float]) -> None:
        for name, figure in figures.items():
            writer.add_scalar(name, figure, step)

    return log


def _wandb(out: Path, settings: Settings, ending: ExitStack) -> Log:
    wandb: Any = importlib.import_module("wandb")
    place, kept = str(out.resolve()), out / "state" / "wandb"
    if not kept.exists():
        write_text_atomically(kept, secrets.token_hex(8))
    # A resumed run is the same one there; a copy of its folder, or a new run in the same place, is another.
    name = hashlib.sha256(os.fsencode(place) + read_file(kept, 100)).hexdigest()[:16]
    run = wandb.init(project="llucid", name=out.name, id=name, dir=place, config=asdict(settings), resume="allow")
    ending.push(lambda error, *_: run.finish(1 if error else 0))
    return lambda step, figures: run.log(figures, step=step)
