"""llucid ladder."""

import sys
from dataclasses import dataclass

from llucid.errors import PRINTABLE


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Climb from a bigram table to a Llama, one idea a rung. All rungs are trained and measured alike."""

    steps: int = 800
    """Optimizer steps of each rung."""
    corpus: tuple[str, ...] | None = None
    """shakespeare, fables, or paths of text files (default: shakespeare, or fables if it cannot be downloaded)."""
    rungs: tuple[str, ...] = ()
    """Numbers, ranges like 4-6, or names like rope (default: all ten)."""
    out: str | None = None
    """Folder for ladder.png, metrics.json and samples.txt (default: runs/ladder, or the first free name like it)."""
    seed: int = 0
    """The first seed."""
    seeds: int = 2
    """How many times each rung is trained; differences between seeds are noise, and only larger ones count."""

    def run(self) -> None:
        from rich.console import Console

        from llucid.ladder.run import run_ladder

        out = run_ladder(
            Console(soft_wrap=not sys.stdout.isatty()),
            corpus=self.corpus,
            steps=self.steps,
            rungs=self.rungs,
            seed=self.seed,
            seeds=self.seeds,
            out=self.out,
        )
        print(f"the picture is {out / 'ladder.png'}; what each rung writes, {out / 'samples.txt'}".translate(PRINTABLE))
