"""The training loop: batches in, a run folder out."""

import signal
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from llucid.arrays.devices import without_autocast
from llucid.corpora.tokens import training_batch
from llucid.training import run
from llucid.training.interrupts import interruption, stopwatch
from llucid.training.logbook import Logbook, share_done
from llucid.training.optimizer import learning_rate
from llucid.training.prepare import Task, prepare
from llucid.training.recipes import window
from llucid.training.report import Report
from llucid.training.run import Progress
from llucid.training.settings import Settings


def train(settings: Settings, console: Console | None = None) -> Path:
    """Trains as `settings` say and returns the run's folder, which holds the best model and the latest state.

    Ctrl-C, SIGTERM and SIGHUP stop it after the current step. Then the state is saved, the model is measured and kept
    if it is better, and the signal takes its usual effect: KeyboardInterrupt, for example. Raises LlucidError for bad
    input and for a loss that is not finite; the folder then holds the best model and the state before.
    """
    report = Report(console or Console())
    with neutral_defaults():
        task, state, progress = prepare(settings, report)
        with run.locked(task.out), stopwatch() as now:
            if settings.resume:
                run.refuse_advanced(task.out, progress)
            run.keep_settings(task.out, task.settings, progress)
            logbook = Logbook(task, progress, report, now)
            with logbook.metrics.ending:
                caught = run_steps(task, state, progress, logbook)
    if caught:
        signal.raise_signal(caught)
    return task.out


def run_steps(task: Task, state: Any, progress: Progress, logbook: Logbook) -> int:
    """Trains from `state` until the run ends or is stopped. Returns the number of the signal that stopped it, or 0."""
    settings, context, report, now = task.settings, task.config.context, logbook.report, logbook.now
    if progress.step:  # a kill may have come after the state was saved
        logbook.take_snapshot(state, progress)
    if logbook.finished(progress) and not logbook.measurement_due(progress):
        complete = share_done(settings, progress) >= 1
        how, more = ("is complete", "more steps or minutes") if complete else ("stopped early", "another patience")
        report.say(f"the run {how}, after {progress.step} steps; to continue it, give {more}")
        return 0
    report.begin(settings, task.config, task.corpus.floor, progress.step)
    begun = now() - progress.seconds
    last = progress.step + (settings.stop_after or sys.maxsize)
    with report.bar, interruption() as interrupted:
        if (settings.base and logbook.measured.step < progress.step == 0) or logbook.measurement_due(progress):
            logbook.measure(state, progress)
        while not logbook.finished(progress) and progress.step < last and not interrupted():
            done = share_done(settings, progress)
            rate = learning_rate(done, settings.warmup, settings.final)
            with logbook.saving_on_errors(state, progress):
                batch = training_batch(task.training, *window(settings, context, done), settings.seed, progress.step)
            loss, state = task.backend.step(batch, state, rate)
            progress = Progress(progress.step + 1, now() - begun)
            with logbook.saving_on_errors(state, progress):
                trained = int((batch[1] >= 0).flip(-1).cummax(-1).values.sum())  # without what pads short dialogues
                logbook.note(progress, trained, rate, loss)
            if logbook.measurement_due(progress):
                logbook.measure(state, progress)
            elif logbook.save_due():
                logbook.save(state, progress)
            with logbook.saving_on_errors(state, progress):
                logbook.take_snapshot(state, progress)
        if not logbook.finished(progress):
            logbook.stop(state, progress)
    logbook.conclude(progress)
    return interrupted() if not logbook.finished(progress) else 0


@contextmanager
def neutral_defaults() -> Generator[None]:
    """Inside, default dtype and device, gradients and autocast are as at the start of a program, whatever the caller
    has set."""
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(without_autocast())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
