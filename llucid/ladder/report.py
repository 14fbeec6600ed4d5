"""What the ladder says: each rung as it is climbed, a live table below, and at the end what it all means."""

import time
from collections.abc import Generator
from contextlib import contextmanager

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llucid.ladder import Rung
from llucid.ladder.checks import Check
from llucid.ladder.verdicts import Result, noise, sentence, verdicts
from llucid.training.report import clock, excerpt

COLOURS = {"better": "green", "worse": "red", "cheats": "red", "chance": "yellow"}


def table(results: list[Result]) -> Table:
    """A row for each rung."""
    told = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("", "rung", "what changed"):
        told.add_column(column, no_wrap=column == "rung", justify="left" if column else "right")
    for column in ("params", "val loss", "change", "secs"):
        told.add_column(column, justify="right", no_wrap=True)
    for result, verdict in zip(results, verdicts(results), strict=True):
        change = {"first": "", "cheats": "cheats"}.get(verdict.kind, f"{verdict.change:+.3f}".replace("-", "−"))
        told.add_row(
            str(result.rung.number),
            result.rung.name,
            result.rung.change,
            f"{result.parameters:,}",
            f"{result.loss:.3f}",
            Text(change, style=COLOURS.get(verdict.kind, "")),
            f"{result.seconds:.0f}",
        )
    return told


class Report:
    """Prints to `console`; on a terminal the table is live, elsewhere it comes at the end."""

    def __init__(self, console: Console, corpus: str, steps: int) -> None:
        self.console, self.corpus, self.steps = console, corpus, steps
        self.results: list[Result] = []
        self.done, self.begun, self.line = 0, time.perf_counter(), ""
        self.shown = Live(get_renderable=self.picture, console=console, transient=True, refresh_per_second=4)

    def picture(self) -> Group:
        """The table so far, and the line that moves."""
        return Group(table(self.results) if self.results else "", Text(self.line, style="bold"))

    @contextmanager
    def live(self) -> Generator[None]:
        """Shows the live table while inside, on a terminal."""
        if not self.console.is_terminal:
            yield
            return
        with self.shown:
            yield

    def begins(self, rung: Rung, checks: list[Check]) -> None:
        """Says what is new in a rung, and what was found to hold of it."""
        self.console.print()
        self.console.print(Text(f"{rung.number} {rung.name}", "bold"), Text(f"· {rung.sentence}"))
        for each in checks:
            mark = ("✓", "green") if each.holds else ("✗", "bold red")
            self.console.print(Text("   ").append(*mark).append(f" {each.finding}", "dim" if each.holds else ""))

    def step(self, rung: Rung, seed: int, step: int, loss: float) -> None:
        """Moves the line: where training stands, and the validation loss measured last."""
        self.done += 1
        left = (time.perf_counter() - self.begun) * (self.steps - self.done) / self.done
        self.line = f"{rung.number} {rung.name}, seed {seed}: step {step}, validation {loss:.3f}; {clock(left)} left"

    def ends(self, result: Result) -> None:
        """Says what a rung came to, and shows how it writes."""
        self.results.append(result)
        each = ", ".join(f"{loss:.3f}" for loss in result.losses)
        verdict = verdicts(self.results)[-1]
        line = f"validation loss {result.loss:.3f} nats a character (by seed: {each}), {result.seconds:.0f} s"
        if verdict.against and not result.peeks:
            line += f"; {verdict.change:+.3f} against {verdict.against.number} {verdict.against.name}"
        self.console.print(f"   {line.replace('-', '−')}", highlight=False)
        if result.peeks:
            self.console.print(f"   {sentence(result, verdict, None, self.corpus)}", style="red", highlight=False)
        for written in excerpt(result.sample, min(74, self.console.width - 5)):
            self.console.print(f"     {written}", style="dim", highlight=False, markup=False, emoji=False)

    def summary(self) -> None:
        """The table, and what each change was worth."""
        limit = noise(self.results)
        self.console.print()
        self.console.print(table(self.results))
        for result, verdict in zip(self.results, verdicts(self.results), strict=True):
            told = sentence(result, verdict, limit, self.corpus).replace("(-", "(−")
            name = f"{result.rung.number:>2} {result.rung.name}: "
            self.console.print(Text(name, "bold").append(told, COLOURS.get(verdict.kind, "") or "not bold"))
        if limit is not None:
            seeds = len(self.results[0].curves)
            self.console.print(
                f"Noise: changes within ±{limit:.3f} can be chance (two standard errors; {seeds} seeds of each rung).",
                highlight=False,
            )
