"""What the ladder prints: each rung as it is trained, a live table below, and a summary at the end."""

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llucid.ladder import Rung
from llucid.ladder.checks import Check
from llucid.ladder.comparison import Result, compare, noise, sentence
from llucid.training.report import clock, excerpt

COLOURS = {"better": "green", "worse": "red", "cheats": "red", "noise": "yellow"}


def table(results: list[Result]) -> Table:
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("", "rung", "what changed"):
        rows.add_column(column, no_wrap=column == "rung", justify="left" if column else "right")
    for column in ("params", "val loss", "change", "secs"):
        rows.add_column(column, justify="right", no_wrap=True)
    for result, comparison in zip(results, compare(results), strict=True):
        change = {"first": "", "cheats": "cheats"}.get(
            comparison.verdict, f"{comparison.change:+.3f}".replace("-", "−")
        )
        rows.add_row(
            str(result.rung.number),
            result.rung.name,
            result.rung.change,
            f"{result.parameters:,}",
            f"{result.loss:.3f}",
            Text(change, style=COLOURS.get(comparison.verdict, "")),
            f"{result.seconds:.0f}",
        )
    return rows


class Report:
    """Prints to `console`: on a terminal the table is live, otherwise it is printed at the end."""

    def __init__(self, console: Console, corpus: str, steps: int) -> None:
        self.console, self.corpus, self.steps = console, corpus, steps
        self.results: list[Result] = []
        self.done, self.started, self.line = 0, time.perf_counter(), ""
        self.display = Live(get_renderable=self.live_table, console=console, transient=True, refresh_per_second=4)

    def live_table(self) -> Group:
        return Group(table(self.results) if self.results else "", Text(self.line, style="bold"))

    def live(self) -> AbstractContextManager[Any]:
        """On a terminal, shows the live table inside the `with` block."""
        return self.display if self.console.is_terminal else nullcontext()

    def rung_started(self, rung: Rung, checks: list[Check]) -> None:
        """Prints what is new in a rung, and the results of its checks."""
        self.console.print()
        self.console.print(Text(f"{rung.number} {rung.name}", "bold"), Text(f"· {rung.sentence}"))
        for each in checks:
            mark = ("✓", "green") if each.passed else ("✗", "bold red")
            self.console.print(Text("   ").append(*mark).append(f" {each.finding}", "dim" if each.passed else ""))

    def step(self, rung: Rung, seed: int, step: int, loss: float) -> None:
        """Updates the progress line: the step, and the last validation loss."""
        self.done += 1
        left = (time.perf_counter() - self.started) * (self.steps - self.done) / self.done
        self.line = f"{rung.number} {rung.name}, seed {seed}: step {step}, validation {loss:.3f}; {clock(left)} left"

    def rung_finished(self, result: Result) -> None:
        """Prints the loss of a rung, and the beginning of its sample."""
        self.results.append(result)
        each = ", ".join(f"{loss:.3f}" for loss in result.losses)
        comparison = compare(self.results)[-1]
        line = f"validation loss {result.loss:.3f} nats per character (by seed: {each}), {result.seconds:.0f} s"
        if comparison.baseline and not result.sees_future:
            line += f"; {comparison.change:+.3f} compared with {comparison.baseline.number} {comparison.baseline.name}"
        self.console.print(f"   {line.replace('-', '−')}", highlight=False)
        if result.sees_future:
            self.console.print(f"   {sentence(result, comparison, None, self.corpus)}", style="red", highlight=False)
        for written in excerpt(result.sample, min(74, self.console.width - 5)):
            self.console.print(f"     {written}", style="dim", highlight=False, markup=False, emoji=False)

    def summary(self) -> None:
        """Prints the table, and for each rung whether its change is significant."""
        limit = noise(self.results)
        self.console.print()
        self.console.print(table(self.results))
        for result, comparison in zip(self.results, compare(self.results), strict=True):
            words = sentence(result, comparison, limit, self.corpus).replace("(-", "(−")
            name = f"{result.rung.number:>2} {result.rung.name}: "
            self.console.print(Text(name, "bold").append(words, COLOURS.get(comparison.verdict, "") or "not bold"))
        if limit is not None:
            seeds = len(self.results[0].curves)
            self.console.print(
                f"Noise: changes within ±{limit:.3f} are not significant (two standard errors; {seeds} seeds).",
                highlight=False,
            )
