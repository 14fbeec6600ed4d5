"""What a run writes while it trains: figures, measurements, the best model, the latest state, snapshots."""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from llucid.checkpoints import huggingface
from llucid.corpora.tokens import characters_per_token, validation_batches
from llucid.errors import LlucidError, one_line
from llucid.files import typed, write_text_atomically
from llucid.generation import generate
from llucid.model import Model
from llucid.training import run
from llucid.training.backend import Batch
from llucid.training.busy import HIGHEST_SHARE, Watch
from llucid.training.curve import learning_curve, write_png
from llucid.training.dialogues import answer
from llucid.training.prepare import Task
from llucid.training.recipes import window
from llucid.training.report import Report
from llucid.training.run import Measured, Metrics, Progress
from llucid.training.settings import Settings
from llucid.training.snapshots import Snapshots
from llucid.weights import Weights, leaves, parameter_count

SAMPLE = 160
"""Tokens of the sample that is written at each measurement."""
EVALUATIONS = 5
"""Measurements of a run, if they take at most EVALUATION_SHARE of its time."""
EVALUATION_SHARE = 0.1
FIRST_MEASUREMENT = 20.0
"""Seconds of training after which a run of some minutes is measured for the first time, if it has not been before."""
REPORTING = 20
"""Steps that take about as long as a measurement's sample, curve and files."""
SAVE_EVERY = 60.0
"""Seconds of training that a kill may lose: the state is saved when it is that old."""
SAVE_SHARE = 0.01
"""Largest share of the time that saving may take; a state that takes longer to save is saved less often."""
WATCH_EVERY = 10.0
"""Seconds between two looks at how busy the machine is."""
FEW_STEPS = 50
"""A run with fewer steps has hardly learned."""


def share_done(settings: Settings, progress: Progress) -> float:
    """How much of the run is done: 0 at its start, 1 at its end."""
    if settings.steps is not None:
        return progress.step / settings.steps
    return progress.seconds / (60 * float(settings.minutes or 0))


def planned(settings: Settings, context: int, evaluated: int) -> tuple[int, int]:
    """How many even parts of a run of some steps end with a measurement, and an earlier step with one, or 0.

    `evaluated` is the number of tokens of a measurement. Time does not count, so that a run repeats exactly: a step
    takes as long as evaluating three times its tokens.
    """
    if settings.evaluations is not None:
        return settings.evaluations, 0
    cost = REPORTING + evaluated / (3 * int(settings.batch or 1) * context)
    affordable = int(EVALUATION_SHARE * int(settings.steps or 0) / cost)
    return max(1, min(affordable, EVALUATIONS)), math.ceil(cost / EVALUATION_SHARE) if affordable > EVALUATIONS else 0


class Logbook:
    """Writes into the run's folder, and reports what it writes."""

    def __init__(self, task: Task, first: Progress, report: Report, now: Callable[[], float]) -> None:
        self.task, self.first, self.report, self.now = task, first, report, now
        self.metrics = Metrics(task.out, first.step, task.settings)
        self.measured = run.read_measured(task.out, first)
        if task.settings.steps is not None:
            evaluated = sum(inputs.numel() for inputs, _ in self.validation_batches(task.config.context))
            self.parts, self.early = planned(task.settings, task.config.context, evaluated)
        self.snapshots = Snapshots(task.out, task.settings.snapshots, first.step)
        # Tokens per character of each split, for nats per character: the texts may differ, and so do these.
        self.trained_on, self.validated_on = (
            1 / characters_per_token(tokens, task.tokenizer, task.config.context)
            for tokens in (task.training, task.validation)
        )
        self.tokens = 0  # trained on in this process
        self.unwritten: list[tuple[int, float, Tensor]] = []  # losses stay on the device until they are written
        self.kept = first.step  # of which a state was saved last
        self.saved, self.saving = self.now(), 0.0  # when that was, and how long it took
        self.measuring = 0.0  # seconds of all measurements in this process
        self.watch, self.watched, self.reported_busy = Watch(), first.seconds, False
        samples = task.out / "samples.txt"
        if self.metrics.samples() and (
            not samples.is_file() or samples.read_bytes() != self.metrics.samples().encode()
        ):
            self.draw()  # a kill came before they were written

    def finished(self, progress: Progress) -> bool:
        """Whether the run is at its end, or has not improved for `patience` measurements."""
        patience = self.task.settings.patience
        return share_done(self.task.settings, progress) >= 1 or (
            patience is not None and self.measured.worse >= patience
        )

    def note(self, progress: Progress, tokens: int, rate: float, loss: Tensor) -> None:
        """Keeps the figures of a step on so many tokens, and renews the live line now and then. `loss` in nats per
        token."""
        self.tokens += tokens
        self.unwritten.append((progress.step, rate, loss))
        if self.report.due():
            self.report.now(progress.step, loss.item() * self.trained_on, *self.speed(progress))
        if not self.reported_busy and (seconds := progress.seconds - self.watched) > WATCH_EVERY:
            share = self.watch.share(seconds)
            self.watched = progress.seconds
            if share > HIGHEST_SHARE:
                self.report.busy(self.speed(progress)[0], share)
                self.reported_busy = True

    def speed(self, progress: Progress) -> tuple[float, float]:
        """Tokens per second of training in this process, without measuring, and the seconds left."""
        seconds = max(progress.seconds - self.first.seconds, 1e-9)
        done, before = share_done(self.task.settings, progress), share_done(self.task.settings, self.first)
        left = seconds * (1 - done) / max(done - before, 1e-9)
        return self.tokens / max(seconds - self.measuring, 1e-9), left

    def flush(self) -> None:
        """Writes the figures of the steps noted so far. Raises LlucidError if a loss is not finite."""
        losses = torch.stack([loss for _, _, loss in self.unwritten]).tolist() if self.unwritten else []
        noted, self.unwritten = self.unwritten, []
        finite = next((number for number, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
        self.metrics.add(
            [
                {"step": step, "loss": loss * self.trained_on, "rate": rate}
                for (step, rate, _), loss in zip(noted[:finite], losses, strict=False)
            ]
        )
        if finite < len(losses):
            raise self.diverged(f"the loss at step {noted[finite][0]} is {losses[finite]}")

    def diverged(self, what: str) -> LlucidError:
        """The error for numbers that are not finite, after the curve up to there is drawn."""
        self.draw()
        return LlucidError(
            f"{what}; the model in {self.task.out} is that of step {self.measured.held}; begin again, or "
            "resume, with a lower learning_rate= or muon_learning_rate="
        )

    def measurement_due(self, progress: Progress) -> bool:
        """Whether to measure now: at the end, once early, and at even intervals of the run."""
        settings, measured, step = self.task.settings, self.measured, progress.step
        if step <= max(measured.step, 0):
            return False
        done = share_done(settings, progress)
        if done >= 1:
            return True
        if settings.steps is not None:
            return step == self.early or step * self.parts // settings.steps > (step - 1) * self.parts // settings.steps
        if measured.step <= 0 and progress.seconds > FIRST_MEASUREMENT:
            return True
        before = share_done(settings, Progress(max(measured.step, 0), measured.seconds))
        count = settings.evaluations or EVALUATIONS
        if int(done * count) <= int(before * count):
            return False
        with_the_last = measured.total + 2 * measured.took
        affordable = with_the_last <= EVALUATION_SHARE * progress.seconds / done
        return settings.evaluations is not None or (affordable and done - before > 0.5 / count)

    def measure(self, state: Any, progress: Progress, record: bool = True) -> None:
        """Saves the state, evaluates the model, keeps it if it is the best so far, and writes a sample.

        It is evaluated on windows as long as the current training windows, since a model that has only seen short ones
        fails at later positions, which says nothing about how well it learns; with a base, on whole windows. Without
        `record`, only the model is kept, until the next measurement.
        """
        task, begun, step = self.task, self.now(), progress.step
        _, trained = window(task.settings, task.config.context, share_done(task.settings, progress))
        length = task.config.context if task.settings.base else trained
        with run.keeping_state(task.out):
            if step:  # that of step 0 is there
                self.save(state, progress)
            validation = task.backend.evaluate(self.validation_batches(length), state)
            if not math.isfinite(validation):
                raise self.diverged(f"the validation loss at step {step} is {validation}")
        weights = task.backend.weights(state)
        model = Model(task.config, weights, task.tokenizer)
        if task.settings.chat:
            sample = answer(model, task.opening, SAMPLE, step)
        else:
            sample = "".join(generate(model, max_tokens=SAMPLE, seed=step))
        if record:
            figures = {"validation": validation * self.validated_on, "window": length, "sample": sample}
            self.metrics.measured(step, figures)
        old = self.measured
        held = (old.window, old.best) if record or old.stop_step < 0 else (old.stop_window, old.stop_loss)
        better = length > held[0] or (length == held[0] and validation < held[1])
        if record:
            run.put_model_back(task.out)
        elif better:
            run.set_model_aside(task.out)
        if better and step:  # the folder of a new run holds the model of step 0
            huggingface.write_weights(task.out, weights, task.config)
        speed = self.speed(progress)
        if record:
            self.measured = Measured(
                step=step,
                seconds=progress.seconds,
                best=validation if better else old.best,
                model_step=step if better else old.model_step,
                window=max(length, old.window),
                worse=0 if better else old.worse + (length >= old.window),
                took=old.took,
                total=old.total,
            )
        elif better:
            self.measured = old._replace(stop_step=step, stop_loss=validation, stop_window=length)
        run.write_measured(task.out, self.measured)
        if record:
            self.draw()
        took = self.now() - begun
        self.measuring += took
        if record:
            self.measured = self.measured._replace(took=took, total=old.total + took)
            run.write_measured(task.out, self.measured)
        loss = self.metrics.rows[-1].get("loss") if self.metrics.rows else None
        self.report.measured(step, loss, validation * self.validated_on, length, sample, *speed)

    def validation_batches(self, length: int) -> Iterator[Batch]:
        """The validation split in windows of `length`, in batches that need no more memory than a step."""
        task = self.task
        memory = int(task.settings.batch or 1) * task.config.context // task.settings.accumulate
        return validation_batches(task.validation, length, task.corpus.floor is not None, memory)

    def save_due(self) -> bool:
        """Whether the saved state is old."""
        return self.now() - self.saved > max(SAVE_EVERY, self.saving / SAVE_SHARE)

    def save(self, state: Any, progress: Progress) -> None:
        """Writes the figures so far, and saves the state. Raises LlucidError if something is not finite."""
        self.finite_weights(state, progress)
        begun = self.now()
        self.task.backend.save(self.task.out / "state", state, progress)
        self.kept, self.saved = progress.step, self.now()
        self.saving = self.saved - begun

    def finite_weights(self, state: Any, progress: Progress) -> Weights:
        """The weights, after the figures so far are written. Raises LlucidError if something is not finite."""
        self.flush()
        weights = self.task.backend.weights(state)
        if not all(leaf.isfinite().all() for leaf in leaves(weights)):
            raise self.diverged(f"the weights after step {progress.step} are not finite")
        return weights

    @contextmanager
    def saving_on_errors(self, state: Any, progress: Progress) -> Generator[None]:
        """Saves the state before an error from outside of the program ends the run: a cache that was cleared, a full
        disk, a terminal that has closed, or a reader of a pipe that has ended, for which rich raises SystemExit."""
        try:
            yield
        except (OSError, SystemExit) as error:
            self.save(state, progress)
            if isinstance(error, SystemExit):
                raise
            saved = f"stopped at step {progress.step}; continue with resume=True"
            raise LlucidError(f"{one_line(error)}; {saved}") from error

    def take_snapshot(self, state: Any, progress: Progress) -> None:
        """Keeps a copy of the model, if one is due. Raises LlucidError if something is not finite."""
        done = share_done(self.task.settings, progress)
        if self.snapshots.due(progress.step, progress.step / max(min(done, 1.0), 1e-9)):
            task, weights = self.task, self.finite_weights(state, progress)
            model = Model(task.config, weights, task.tokenizer, sampling=task.sampling)
            self.snapshots.take(progress.step, model)

    def stop(self, state: Any, progress: Progress) -> None:
        """Saves the state of a run that is stopped, and measures its model.

        The measurement is not recorded, so that a run that was stopped and resumed is the same as one that was not.
        """
        if progress.step > max(self.measured.step, 0):
            with suppress(KeyboardInterrupt):  # a second Ctrl-C
                self.measure(state, progress, record=False)
            self.draw()
        else:
            self.save(state, progress)

    def conclude(self, progress: Progress) -> None:
        """Prints which model the folder holds when training ends or stops, if it is not that of the last step."""
        settings, step, held = self.task.settings, progress.step, self.measured.held
        if not self.finished(progress):
            command = f"llucid train --resume --out {typed(self.task.out)}"
            self.report.say(f"stopped at step {self.kept}; continue with: {command}")
        elif share_done(settings, progress) < 1:
            self.report.say(f"stopped early at step {step}: {settings.patience} measurements did not improve")
        if held == 0 and step and settings.base:
            self.report.say(
                "no measurement was better than the base's: the weights in the folder are the base's, unchanged"
            )
        elif held == 0:
            self.report.say("the model in the folder is untrained")
        elif held < step:
            self.report.say(f"the model in the folder is that of step {held}, the best one measured")
        if settings.minutes is not None and 0 < step < FEW_STEPS and self.finished(progress):
            self.report.say(f"only {step} steps fitted into {settings.minutes:g} minutes, so it has learned little")

    def draw(self) -> None:
        task, name = self.task, self.task.settings.preset or self.task.settings.base
        title = f"{task.corpus.name}: {name}, {parameter_count(task.config):,} parameters"
        if any("loss" in row for row in self.metrics.rows):
            write_png(task.out / "curve.png", learning_curve, self.metrics.rows, title, task.corpus.floor)
        write_text_atomically(task.out / "samples.txt", self.metrics.samples())
