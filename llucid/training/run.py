"""The folder that a run leaves: a Hugging Face folder, beside what is needed to go on with it.

    config.json model.safetensors tokenizer.json tokenizer_config.json     the best model so far
    train.toml                                                             every setting
    state/latest.safetensors state/corpus.sha256                           where training stands, and on what text
    metrics.jsonl  curve.png  samples.txt                                  what happened

Each file is replaced as a whole, and a new folder gets its name only when it is complete, a state inside, so that a
kill at any moment leaves a folder that opens and a run that goes on.
"""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llucid.checkpoints import Model, save
from llucid.config import Config
from llucid.corpora import Corpus
from llucid.errors import LlucidError
from llucid.files import atomic_file, atomic_folder, is_occupied, write_text_atomically
from llucid.training.settings import Settings, write_toml
from llucid.weights import Weights, assemble, named_leaves


class Progress(NamedTuple):
    """Where a run stands, but for its arrays."""

    step: int = 0
    seconds: float = 0.0
    """Spent in training so far, over all processes."""
    best: float = float("inf")
    """Lowest validation loss so far on the longest windows so far, in nats per token."""
    window: int = 0
    """Tokens in these windows."""


def free_name(name: str) -> Path:
    """runs/NAME, or runs/NAME-2 and so on where that is taken."""
    folders = (Path("runs") / (name if number == 1 else f"{name}-{number}") for number in range(1, 10_000))
    return next(folder for folder in folders if not folder.exists())


def refuse_taken(out: Path) -> None:
    """Raises LlucidError if there is something at `out` already, but for what a killed process left unfinished."""
    if is_occupied(out):
        raise LlucidError(f"--out {out}: something is there already; go on with it by --resume, or name another folder")


def create(out: Path, model: Model, settings: Settings, corpus: Corpus, dropout: torch.Generator) -> None:
    """Makes the folder of a new run, its untrained model inside and a state to begin from."""
    with atomic_folder(out) as unfinished:
        (unfinished / "state").mkdir()
        save(model, unfinished)
        write_text_atomically(unfinished / "train.toml", write_toml(settings))
        write_text_atomically(unfinished / "metrics.jsonl", "")
        write_text_atomically(unfinished / "state" / "corpus.sha256", corpus.fingerprint())
        save_state(unfinished, model.weights, {}, dropout, Progress())


@contextmanager
def alone(out: Path) -> Generator[None]:
    """Inside, no other process trains in `out`, if the system has locks for folders. Raises LlucidError if one does."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    folder = os.open(out, os.O_RDONLY)
    try:
        with suppress(OSError):  # of a file system that has no locks
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LlucidError(f"--out {out}: another process is training there; stop it, or wait") from error
        yield
    finally:
        os.close(folder)


def sweep(out: Path) -> None:
    """Removes what killed processes left half-written in the run in `out`."""
    for unfinished in [*out.glob(".*.partial"), *(out / "state").glob(".*")]:
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        else:
            unfinished.unlink()


def refuse_changed(out: Path, corpus: Corpus, told: str) -> None:
    """Raises LlucidError if the run in `out` has no state, or began with another text than `corpus`, `told` so."""
    instead = f"llucid train --base {shlex.quote(str(out))} {told}"
    state, kept = out / "state" / "latest.safetensors", out / "state" / "corpus.sha256"
    if not state.is_file():
        raise LlucidError(
            f"{state}: there is no such file, so that there is nothing to go on from; begin again, or begin with the "
            f"model that the run left: {instead}"
        )
    if kept.is_file() and kept.read_text(encoding="utf-8", errors="replace") != corpus.fingerprint():
        raise LlucidError(
            f"{told} is no longer the text that {out} began with, which --resume needs; put that back, or begin a new "
            f"run with what this one learned: {instead}"
        )


def save_state(
    out: Path, weights: Weights, memory: dict[str, Tensor], dropout: torch.Generator, progress: Progress
) -> None:
    """Replaces `state/latest.safetensors`: weights, what the optimizers remember, dropout's generator, the progress."""
    tensors = {f"weights.{path}": leaf for path, leaf in named_leaves(weights)} | memory
    tensors["dropout"] = dropout.get_state()
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_file(out / "state" / "latest.safetensors") as temporary:
        save_file(on_cpu, temporary, {"progress": json.dumps(progress._asdict())})


def load_state(
    out: Path,
    config: Config,
    start: Callable[[Weights, dict[str, Tensor]], tuple[Any, Any]],
    dropout: torch.Generator,
) -> tuple[Any, Any, torch.Generator, Progress]:
    """What `save_state` saved, weights and memory as `start` makes them. Raises LlucidError if it is not whole."""
    file = out / "state" / "latest.safetensors"
    try:
        with safe_open(file, framework="pt") as opened:
            # Cloned, because matrix products round by how their operands are aligned, and a file aligns to nothing.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
            progress = Progress(**json.loads(opened.metadata()["progress"]))
        dropout.set_state(tensors["dropout"])
        weights = assemble(config, lambda path, shape: tensors[f"weights.{path}"].view(shape))
        remembered = {name: tensor for name, tensor in tensors.items() if name.startswith("optimizer.")}
        weights, memory = start(weights, remembered)
    except (SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise LlucidError(f"{file}: not a state that this run can go on from ({error})") from error
    return weights, memory, dropout, progress


class Metrics:
    """`metrics.jsonl`: one JSON object a line, one line a step, and `curve.png` and `samples.txt`, drawn from it."""

    def __init__(self, out: Path, step: int, tensorboard: bool = False) -> None:
        """The log of the run in `out`, cut after `step`, where its state stands.

        With `tensorboard` the figures also go to TensorBoard's own files. Raises LlucidError if it is not installed.
        """
        self.tensorboard = None
        if tensorboard:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError as error:
                raise LlucidError("--tensorboard: TensorBoard is not installed; pip install tensorboard") from error
            self.tensorboard = SummaryWriter(out / "tensorboard", purge_step=step + 1)
        self.file = out / "metrics.jsonl"
        self.rows: list[dict[str, Any]] = []
        for line in self.file.read_text(encoding="utf-8", errors="replace").splitlines() if self.file.is_file() else []:
            try:
                row = json.loads(line)
                if row["step"] > step:
                    break
            except (ValueError, KeyError, TypeError):
                break  # a kill cut the last line short
            self.rows.append(row)
        write_text_atomically(self.file, "".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Appends rows, to memory and file."""
        self.rows += rows
        with open(self.file, "a", encoding="utf-8") as opened:
            opened.write("".join(json.dumps(row) + "\n" for row in rows))
        if self.tensorboard:
            for row in rows:
                for name in row.keys() & {"loss", "validation", "rate"}:
                    self.tensorboard.add_scalar(name, row[name], row["step"])

    def write_samples(self) -> None:
        """Rewrites `samples.txt`."""
        samples = [(row["step"], row["sample"]) for row in self.rows if "sample" in row]
        text = "\n".join(f"---------- step {step}\n{sample}\n" for step, sample in samples)
        write_text_atomically(self.file.with_name("samples.txt"), text)
