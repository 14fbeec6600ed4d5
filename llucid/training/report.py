"""What training prints while it runs: a live line on a terminal, and a line for each measurement."""

import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from rich.cells import chop_cells
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TextColumn

from llucid.config import Config
from llucid.errors import PRINTABLE
from llucid.tokenizers.text import replace_surrogates
from llucid.training.recipes import window
from llucid.training.settings import Settings
from llucid.weights import parameter_count


def clock(seconds: float) -> str:
    """Seconds as 1:23 or 1:02:03."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def excerpt(sample: str, width: int) -> list[str]:
    """The first three lines of a sample that are not empty, for a terminal, each of at most `width` cells."""
    lines = [line.expandtabs() for line in sample.translate(PRINTABLE).splitlines() if line.strip()]
    return [cut for line in lines for cut in chop_cells(line, max(2, width))[:1]][:3]


@contextmanager
def progress_of(what: str, console: Console, total: int | None) -> Generator[Callable[[int], None]]:
    """A bar that appears after two seconds; the function that it yields is called with the amount just done."""
    begun = time.perf_counter()
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, visible=False)

        def advance(amount: int) -> None:
            bar.update(task, advance=amount, visible=time.perf_counter() - begun > 2)

        yield advance


class Report:
    """Prints to `console`. On a terminal the newest line is live; elsewhere there are only the measurements."""

    def __init__(self, console: Console) -> None:
        self.console, self.context = console, 0
        self.floor = self.validation = ""
        line = TextColumn("{task.description}", markup=False)
        self.bar = Bar(line, console=console, transient=True, disable=not console.is_terminal)
        """Shows the live line while it is entered."""
        self.task = self.bar.add_task("")
        self.renewed = 0.0

    def say(self, *lines: str) -> None:
        """Prints lines as they are: no markup, since they may name the user's files."""
        for line in lines:
            self.print(replace_surrogates(line).translate(PRINTABLE), soft_wrap=True)

    def print(self, text: str, **options: Any) -> None:
        """Prints `text` as it is, without the characters that the console's encoding lacks."""
        encoding = getattr(self.console.file, "encoding", None) or "utf-8"
        text = text.encode(encoding, "replace").decode(encoding)
        self.console.print(text, highlight=False, markup=False, emoji=False, **options)

    def begin(self, settings: Settings, config: Config, floor: float | None, step: int) -> None:
        """Prints what is trained and for how long, and explains the figures that follow."""
        self.context = config.context
        self.floor = "" if floor is None else f"floor {floor:.3f}  "
        length = f"{settings.steps:,} step" if settings.steps else f"{settings.minutes:g} minute"
        length += "" if length.startswith("1 ") else "s"
        size = f"{settings.preset or settings.base}, {parameter_count(config):,} parameters"
        after = f", from step {step} on" if step else ""
        floor_explained = "; no model gets below the floor, the entropy of the text" if self.floor else ""
        self.say(
            f"training {size}, on {settings.device} for {length}{after}; losses are in nats per character"
            f"{floor_explained}"
        )
        _, short = window(settings, config.context, 0.0)
        if short < config.context:
            share = f"the first {100 * float(settings.length_warmup or 0):g} % in windows of {short} tokens"
            self.say(f"{share}, which is faster, the rest in windows of {config.context}")

    def due(self) -> bool:
        """Whether the live line is a fifth of a second old; always false where there is none."""
        return self.console.is_terminal and time.perf_counter() - self.renewed > 0.2

    def now(self, step: int, loss: float, tokens_per_second: float, left: float) -> None:
        """Renews the live line. `loss` in nats per character, `left` in seconds."""
        self.renewed = time.perf_counter()
        figures = self.line(step, loss, self.validation, tokens_per_second)
        self.bar.update(self.task, description=f"{figures}  {clock(left)} left")

    def busy(self, tokens_per_second: float, share: float) -> None:
        """Prints that other programs use the cores in `share` of the time."""
        usual = tokens_per_second / max(1 - share, 0.01)
        self.say(
            f"this machine is busy: {tokens_per_second:,.0f} of about {usual:,.0f} tokens a second; end other "
            "programs, or give it more time"
        )

    def line(self, step: int, loss: float | None, validation: str, tokens_per_second: float) -> str:
        """The figures in one line, which usually fits a terminal of 80 columns."""
        train = "" if loss is None else f"train {loss:.3f}  "
        return f"step {step:<5} {train}{validation}{self.floor}{tokens_per_second:,.0f} tokens/s"

    def measured(
        self,
        step: int,
        loss: float | None,
        validation: float,
        length: int,
        sample: str,
        tokens_per_second: float,
        left: float,
    ) -> None:
        """Prints a measurement and the beginning of a sample.

        Losses are in nats per character. `length`, the tokens in a window of the validation split, is printed while it
        is less than the context.
        """
        self.validation = f"val {validation:.3f}  "
        figures = f"val {validation:.3f} nats {validation / math.log(2):.3f} bits  "
        figures += f"window {length}  " if length < self.context else ""
        line = self.line(step, loss, figures, tokens_per_second)
        line += "" if self.console.is_terminal else f"  {clock(left)} left"  # on a terminal the live line has it
        self.print(line)
        for written in excerpt(sample, min(76, self.console.width - 4)):
            self.print(f"    {written}", style="dim")
