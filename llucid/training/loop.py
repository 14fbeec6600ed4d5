"""The training loop: batches in, a run folder out."""

import dataclasses
import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from llucid.checkpoints import Model, huggingface, load
from llucid.config import Config
from llucid.corpora import Corpus, open_corpus
from llucid.corpora.dialogues import Dialogues
from llucid.corpora.tokens import Tokens, characters_per_token, make_tokenizer, tokenise, training_batch
from llucid.errors import LlucidError
from llucid.generation import generate
from llucid.tokenizers import Tokenizer, load_tokenizer
from llucid.training import run
from llucid.training.backend import Backend, device_of, open_backend
from llucid.training.curve import draw_curve
from llucid.training.dialogues import Messages, answered, make_chat_tokenizer, open_chat, read_chat_tokens, taught
from llucid.training.optimizer import learning_rate
from llucid.training.recipes import resolve, window
from llucid.training.report import Report, progress_of
from llucid.training.run import Progress
from llucid.training.settings import Settings, read_toml
from llucid.training.step import evaluate
from llucid.weights import initialise, tree_map

SAMPLE = 160
"""Tokens of the sample that is written at each measurement."""
SAVE_EVERY = 60.0
"""Seconds of training that a kill may cost: after so many the state is saved, if no measurement has done so."""
SAVE_SHARE = 0.01
"""Share of the time that this may take at most: a state that takes longer to save is saved less often."""
HANGUP = getattr(signal, "SIGHUP", None)
"""What a terminal sends when it closes. Windows has none."""


class Task(NamedTuple):
    """What is to be trained on what, and by what."""

    out: Path
    settings: Settings
    config: Config
    corpus: Corpus
    tokenizer: Tokenizer
    training: Tokens | Dialogues
    validation: Tokens | Dialogues
    backend: Backend
    opening: Messages
    """A question that the model answers at each measurement, if it learns to, with the system's text before it."""


class State(NamedTuple):
    """What training changes."""

    weights: Any
    """Of the backend's own kind, as is the memory."""
    memory: Any
    """What the optimizer remembers."""
    dropout: torch.Generator
    progress: Progress


def train(settings: Settings, console: Console) -> Path:
    """Trains as `settings` say and returns the run's folder, which holds the best model and the latest state.

    Raises LlucidError for bad input and for a loss that is not finite; the state saved last is then intact.
    """
    task, state = prepare(settings, console)
    with run.alone(task.out):
        run.sweep(task.out)
        go_on(task, state, console)
    return task.out


def go_on(task: Task, state: State, console: Console) -> None:
    """Trains from `state` on, until the end or Ctrl-C."""
    settings, progress = task.settings, state.progress
    logbook = Logbook(task, progress, console)
    if share_done(settings, progress) < 1:
        logbook.report.begin(settings, task.config, progress.step)
    else:
        console.print(f"the run is complete, after {progress.step} steps: nothing is left to do", highlight=False)
    begun = time.perf_counter() - progress.seconds
    ended = progress.step + (settings.stop_after or sys.maxsize)

    with logbook.report.live(), interruption() as interrupted:
        while (done := share_done(settings, progress)) < 1 and progress.step < ended and not interrupted():
            rate = learning_rate(done, settings.warmup, settings.final)
            rows_and_length = window(settings, task.config.context, done)
            inputs, targets = training_batch(task.training, *rows_and_length, settings.seed, progress.step)
            loss, weights, memory = task.backend.step(inputs, targets, state.weights, state.memory, rate)
            progress = progress._replace(step=progress.step + 1, seconds=time.perf_counter() - begun)
            state = State(weights, memory, state.dropout, progress)
            logbook.note(progress, rate, loss)
            now = share_done(settings, progress)
            if int(now * settings.evaluations) > int(done * settings.evaluations):
                progress = logbook.measure(state)
            elif logbook.due():
                logbook.save(state)
        if share_done(settings, progress) < 1:  # before the live line ends: a terminal that has closed cannot end it
            logbook.save(state._replace(progress=progress))
            logbook.draw()
    if share_done(settings, progress) < 1:
        more = f"llucid train --resume --out {shlex.quote(str(task.out))}"
        told = f"stopped at step {progress.step}; go on with: {more}"
        console.print(told, highlight=False, markup=False, soft_wrap=True)


def share_done(settings: Settings, progress: Progress) -> float:
    """How much of the run is done: 0 at its start, 1 at its end."""
    if settings.steps is not None:
        return progress.step / settings.steps
    return progress.seconds / (60 * float(settings.minutes or 0))


def prepare(settings: Settings, console: Console) -> tuple[Task, State]:
    """Opens or makes all that training needs: corpus, tokenizer, tokens, weights, and the run's folder."""
    if settings.resume:
        given = {name: getattr(settings, name) for name in ("out", "stop_after", "device", "backend")}
        if dataclasses.asdict(settings) != dataclasses.asdict(Settings(resume=True, **given)):
            raise LlucidError(
                "--resume takes everything from the run: only --out, --device, --backend, --stop-after go with it"
            )
        if not (toml := Path(str(settings.out)) / "train.toml").is_file():
            raise LlucidError(
                f"--out {settings.out}: there is no run here to go on with; to begin one, leave out --resume"
            )
        kept = read_toml(toml)
        given |= {name: given[name] or getattr(kept, name) for name in ("device", "backend")}
        settings = dataclasses.replace(kept, resume=True, **given)
    device = device_of(settings)
    settings = resolve(settings, device)
    corpus = open_chat(settings.chat) if settings.chat else open_corpus(settings.corpus)
    if settings.resume:
        out = Path(str(settings.out))
        base = None
        told = shlex.join(["--chat", settings.chat] if settings.chat else ["--corpus", *settings.corpus])
        run.refuse_changed(out, corpus, told)
        tokenizer = load_tokenizer(out)
    else:
        out = Path(settings.out) if settings.out else run.free_name(corpus.name)
        run.refuse_taken(out)
        base = load(settings.base, device="cpu") if settings.base else None
        make = make_chat_tokenizer if settings.chat else make_tokenizer
        tokenizer = base.text() if base else make(str(settings.tokenizer), corpus)
        if base and settings.chat:
            tokenizer = taught(tokenizer, f"--base {settings.base}")
    if settings.base:
        config = settings.rebased(base.config if base else huggingface.read_config(out))
    else:
        config = settings.config(str(settings.preset), tokenizer.vocab_size)
    dropout = torch.Generator(device).manual_seed(settings.seed)
    backend = open_backend(config, settings, device, dropout)
    read = read_chat_tokens if settings.chat else read_tokens
    training, validation, opening = read(corpus, tokenizer, config.context, console)
    task = Task(out, settings, config, corpus, tokenizer, training, validation, backend, opening)
    if settings.resume:
        return task, State(*run.load_state(out, config, backend.start, dropout))
    # Cloned, because those of a file are mapped from it.
    weights = tree_map(lambda leaf: leaf.float().clone(), base.weights) if base else initialise(config, settings.seed)
    run.create(out, Model(config, weights, tokenizer), settings, corpus, dropout)
    return task, State(*backend.start(weights, {}), dropout, Progress())


def read_tokens(
    corpus: Corpus, tokenizer: Tokenizer, context: int, console: Console
) -> tuple[Tokens, Tokens, Messages]:
    """The ids of a text to train on and to validate by; and nothing to answer."""
    with progress_of("reading", console, 2 * corpus.size()) as heard:
        training = tokenise(corpus, tokenizer, "train", heard)
        validation = tokenise(corpus, tokenizer, "validation", heard)
    for split, tokens in (("train", training), ("validation", validation)):
        if tokens.length <= context + 1:
            raise LlucidError(
                f"--corpus {' '.join(map(str, corpus.files))}: its {split} split has {tokens.length} tokens and one "
                f"context needs {context + 2}; give more text, or a shorter --model.context"
            )
    return training, validation, []


class Logbook:
    """What a run writes down: its figures, its best model and latest state, samples and the curve."""

    def __init__(self, task: Task, first: Progress, console: Console) -> None:
        self.task, self.first = task, first
        self.metrics = run.Metrics(task.out, first.step, task.settings.tensorboard)
        self.report = Report(console, task.corpus.floor, task.config.context)
        self.per_character = 1 / characters_per_token(task.validation, task.tokenizer, task.config.context)
        self.unwritten: list[tuple[int, float, Tensor]] = []  # losses stay on the device until they are wanted
        self.saved, self.saving = time.perf_counter(), 0.0  # when a state was saved last, and how long that took
        self.measuring = 0.0  # seconds, over all measurements so far

    def note(self, progress: Progress, rate: float, loss: Tensor) -> None:
        """Keeps a step's figures, and renews the live line now and then. `loss` in nats per token."""
        self.unwritten.append((progress.step, rate, loss))
        if self.report.due():
            self.report.now(progress.step, loss.item() * self.per_character, *self.speed(progress))

    def speed(self, progress: Progress) -> tuple[float, float]:
        """Tokens per second of training in this process, measurements left out, and the seconds left."""
        tokens = (progress.step - self.first.step) * self.task.config.context * int(self.task.settings.batch or 0)
        seconds = progress.seconds - self.first.seconds
        done, before = share_done(self.task.settings, progress), share_done(self.task.settings, self.first)
        return tokens / max(seconds - self.measuring, 1e-9), max(seconds, 1e-9) * (1 - done) / max(done - before, 1e-9)

    def flush(self, figures: dict[str, Any]) -> float:
        """Writes the steps noted so far, and `figures` with the newest; returns its loss in nats per character.

        Raises LlucidError if a loss is not finite.
        """
        losses = torch.stack([loss for _, _, loss in self.unwritten]).tolist() if self.unwritten else []
        rows: list[dict[str, Any]] = []
        for (step, rate, _), loss in zip(self.unwritten, losses, strict=True):
            self.judge("loss", step, loss)
            rows.append({"step": step, "loss": loss * self.per_character, "rate": rate})
        self.unwritten.clear()
        if rows:
            self.metrics.add([*rows[:-1], rows[-1] | figures])
        return rows[-1]["loss"] if rows else math.nan

    def judge(self, what: str, step: int, loss: float) -> None:
        """Raises LlucidError for a loss that is not finite: training has diverged."""
        if not math.isfinite(loss):
            raise LlucidError(
                f"the {what} at step {step} is {loss}; the best model before is in {self.task.out}; "
                "begin again with a lower --learning-rate or --muon-learning-rate"
            )

    def measure(self, state: State) -> Progress:
        """Evaluates, keeps the model if it is the best so far, saves the state, writes a sample and draws the curve."""
        task, progress, begun = self.task, state.progress, time.perf_counter()
        if not torch.stack([loss for _, _, loss in self.unwritten]).isfinite().all():
            self.flush({})
        weights = tree_map(torch.Tensor.detach, task.backend.weights(state.weights))
        dtype = getattr(torch, str(task.settings.dtype))
        # What has seen short windows only fails at places that it never saw: that says nothing of how well it learns.
        _, length = window(task.settings, task.config.context, share_done(task.settings, progress))
        windowed = dataclasses.replace(task.config, context=length)
        validation = evaluate(weights, windowed, task.validation, task.corpus.floor is not None, dtype)
        self.judge("validation loss", progress.step, validation)
        model = Model(task.config, weights, task.tokenizer)
        if task.settings.chat:
            sample = answered(model, task.opening, SAMPLE, progress.step)
        else:
            sample = "".join(generate(model, max_tokens=SAMPLE, seed=progress.step))
        loss = self.flush({"validation": validation * self.per_character, "window": length, "sample": sample})
        if length > progress.window or validation < progress.best:
            progress = progress._replace(best=validation, window=length)
            huggingface.write_weights(task.out, weights, task.config)
        self.save(state._replace(progress=progress))
        self.draw()
        self.report.measured(
            progress.step, loss, validation * self.per_character, length, sample, *self.speed(progress)
        )
        self.measuring += time.perf_counter() - begun
        return progress

    def due(self) -> bool:
        """Whether a state should be saved, since the last one is old."""
        return time.perf_counter() - self.saved > max(SAVE_EVERY, self.saving / SAVE_SHARE)

    def save(self, state: State) -> None:
        """Saves the state, and the figures so far."""
        self.flush({})
        begun, backend = time.perf_counter(), self.task.backend
        weights, memory = backend.weights(state.weights), backend.memory(state.memory)
        run.save_state(self.task.out, weights, memory, state.dropout, state.progress)
        self.saved = time.perf_counter()
        self.saving = self.saved - begun

    def draw(self) -> None:
        """Writes the samples, and draws what can be drawn from the figures."""
        self.metrics.write_samples()
        numbers = f"{self.task.config.parameters:,} parameters"
        title = f"{self.task.corpus.name}: {self.task.settings.preset or self.task.settings.base}, {numbers}"
        if self.metrics.rows:
            draw_curve(self.metrics.rows, self.task.out / "curve.png", title, self.task.corpus.floor)


@contextmanager
def interruption() -> Generator[Callable[[], bool]]:
    """Inside, a first Ctrl-C (SIGTERM, SIGHUP) only makes what is given here return True; a second one interrupts.

    SIGHUP never is the second, since a session that ends sends more than one; and under nohup it is nothing.
    """
    caught: list[int] = []

    def catch(number: int, frame: object) -> None:
        if caught and number != HANGUP:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    heeded = [signal.SIGINT, signal.SIGTERM]
    if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:
        heeded.append(HANGUP)
    previous = {number: signal.signal(number, catch) for number in heeded}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
