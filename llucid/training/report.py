"""What training says while it runs: one live line, and a line for each measurement."""

import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.cells import chop_cells
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TextColumn

from llucid.config import Config
from llucid.errors import PRINTABLE
from llucid.training.recipes import window
from llucid.training.settings import Settings


def clock(seconds: float) -> str:
    """Seconds as 1:23 or 1:02:03."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def excerpt(sample: str, width: int) -> list[str]:
    """The first three lines of a sample that are not empty, for a terminal, each of `width` cells at most."""
    lines = [line for line in sample.translate(PRINTABLE).splitlines() if line.strip()]
    return [chop_cells(line.expandtabs(), max(2, width))[0] for line in lines[:3]]


@contextmanager
def progress_of(what: str, console: Console, total: int) -> Generator[Callable[[int], None]]:
    """A bar that shows after two seconds, moved by calling what is given with the amount just done."""
    begun = time.perf_counter()
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, visible=False)

        def heard(amount: int) -> None:
            bar.update(task, advance=amount, visible=time.perf_counter() - begun > 2)

        yield heard


class Report:
    """Prints to `console`; on a terminal the newest line is live, elsewhere there are only the measurements."""

    def __init__(self, console: Console, floor: float | None, context: int) -> None:
        self.console = console
        self.floor = "" if floor is None else f"floor {floor:.3f}  "
        self.context = context
        self.validation = ""
        self.bar = Bar(
            TextColumn("{task.description}"), console=console, transient=True, disable=not console.is_terminal
        )
        self.task = self.bar.add_task("")
        self.renewed = 0.0

    def begin(self, settings: Settings, config: Config, step: int) -> None:
        """Says what is trained, for how long, and what the figures mean that come."""
        length = f"{settings.steps:,} step" if settings.steps else f"{settings.minutes:g} minute"
        length += "" if length.startswith("1 ") else "s"
        size = f"{settings.preset or settings.base}, {config.parameters:,} parameters"
        after = f", from step {step} on" if step else ""
        floor = "; no model gets below the floor, the entropy of the text" if self.floor else ""
        told = [f"training {size}, on {settings.device} for {length}{after}; losses are in nats per character{floor}"]
        _, short = window(settings, config.context, 0.0)
        if short < config.context:
            share = f"the first {100 * float(settings.length_warmup or 0):g} % in windows of {short} tokens"
            told.append(f"{share}, which is quicker, the rest of {config.context}")
        self.console.print(*told, sep="\n", highlight=False, markup=False)

    def due(self) -> bool:
        """Whether the live line is a fifth of a second old; always false where there is none."""
        return self.console.is_terminal and time.perf_counter() - self.renewed > 0.2

    @contextmanager
    def live(self) -> Generator[None]:
        """Shows the live line while inside."""
        with self.bar:
            yield

    def now(self, step: int, loss: float, tokens_per_second: float, left: float) -> None:
        """Renews the live line. `loss` in nats per character, `left` in seconds."""
        self.renewed = time.perf_counter()
        figures = self.line(step, loss, self.validation, tokens_per_second)
        self.bar.update(self.task, description=f"{figures}  {clock(left)} left")

    def line(self, step: int, loss: float, validation: str, tokens_per_second: float) -> str:
        """The figures in one line that fits a terminal of 80 columns, most times."""
        return f"step {step:<5} train {loss:.3f}  {validation}{self.floor}{tokens_per_second:,.0f} tokens/s"

    def measured(
        self,
        step: int,
        loss: float,
        validation: float,
        length: int,
        sample: str,
        tokens_per_second: float,
        left: float,
    ) -> None:
        """Prints a measurement, and how the model writes by now.

        `validation` is in nats per character; `length`, the tokens of its windows, is told of while that is less than
        the context.
        """
        self.validation = f"val {validation:.3f}  "
        told = f"val {validation:.3f} nats {validation / math.log(2):.3f} bits  "
        told += f"window {length}  " if length < self.context else ""
        line = self.line(step, loss, told, tokens_per_second)
        line += "" if self.console.is_terminal else f"  {clock(left)} left"  # which the live line says there
        self.console.print(line, highlight=False)
        for written in excerpt(sample, min(76, self.console.width - 4)):
            self.console.print(f"    {written}", style="dim", highlight=False, markup=False, emoji=False)
