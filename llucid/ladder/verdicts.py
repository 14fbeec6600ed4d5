"""What the ladder found, and which changes are more than chance."""

import math
from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

from llucid.ladder import Rung


class Result(NamedTuple):
    """A rung, trained once from each seed."""

    rung: Rung
    parameters: int
    peeks: bool
    """Whether it was found to see the future: then its loss says nothing, and nothing is compared with it."""
    curves: tuple[tuple[tuple[int, float], ...], ...]
    """Per seed: (steps, validation loss on some windows) on the way, from before the first step to the last."""
    losses: tuple[float, ...]
    """Per seed: validation loss at the end, on all windows, in nats per character."""
    seconds: float
    """Training, measuring and writing, all seeds together."""
    sample: str

    @property
    def loss(self) -> float:
        """The mean of `losses`."""
        return mean(self.losses)


class Verdict(NamedTuple):
    """A rung's change of the validation loss, and what it is worth."""

    against: Rung | None
    """The nearest rung below that does not cheat; None where there is none."""
    change: float
    """Nats per character; less is better."""
    kind: str
    """first, cheats, better, worse, chance (not beyond noise), or unknown (one seed tells no noise)."""
    honest_again: bool
    """Whether the rung before cheats and this one does not."""


def differences(results: Sequence[Result]) -> list[tuple[Result, Result | None, list[float]]]:
    """Each rung, the nearest one below that does not cheat, and by how much the loss changed, seed by seed."""
    found: list[tuple[Result, Result | None, list[float]]] = []
    below: Result | None = None
    for result in results:
        change = [] if below is None else [new - old for new, old in zip(result.losses, below.losses, strict=False)]
        found.append((result, below, change))
        if not result.peeks:
            below = result
    return found


def noise(results: Sequence[Result]) -> float | None:
    """Two standard errors of a change, from how far the seeds of the same rungs disagree about theirs.

    s² = Σ (dᵣₛ − d̄ᵣ)² / Σ (seeds − 1) over the changes d of rungs r and seeds s, and the noise is 2 s / √seeds. None if
    there is no change that was measured twice.
    """
    honest = [change for result, below, change in differences(results) if below and not result.peeks]
    repeated = [change for change in honest if len(change) > 1]
    if not repeated:
        return None
    squares = sum((each - mean(change)) ** 2 for change in repeated for each in change)
    freedom = sum(len(change) - 1 for change in repeated)
    return 2 * math.sqrt(squares / freedom / min(map(len, repeated)))


def verdicts(results: Sequence[Result]) -> list[Verdict]:
    """What each rung brought, in the order of the results."""
    limit = noise(results)
    found: list[Verdict] = []
    cheated = False
    for result, below, changes in differences(results):
        change = mean(changes) if changes else 0.0
        if result.peeks:
            kind = "cheats"
        elif below is None:
            kind = "first"
        elif limit is None:
            kind = "unknown"
        else:
            kind = "chance" if abs(change) <= limit else "better" if change < 0 else "worse"
        found.append(Verdict(below.rung if below else None, change, kind, cheated and not result.peeks))
        cheated = result.peeks
    return found


def sentence(result: Result, verdict: Verdict, limit: float | None, corpus: str) -> str:
    """The verdict in words."""
    against = f"than {verdict.against.number} {verdict.against.name}" if verdict.against else ""
    size = f"{abs(verdict.change):.3f} nats"
    told = {
        "first": f"{result.loss:.3f} nats a character: where the ladder stands.",
        "cheats": f"{result.loss:.3f} is no achievement: it reads the next character instead of guessing it. "
        "When it writes, there is none to read, hence the garbage.",
        "better": f"{size} better {against}.",
        "worse": f"{size} worse {against}: no gain on {corpus}, at this size and budget.",
        "chance": f"no difference to {against.removeprefix('than ')} beyond chance on {corpus} "
        f"({verdict.change:+.3f}, noise ±{limit or 0:.3f}).",
        "unknown": f"{verdict.change:+.3f} nats {against.replace('than', 'against')}; "
        "with one seed, nobody knows whether that is chance.",
    }[verdict.kind]
    return f"no longer told the answer, and honest: {told}" if verdict.honest_again else told
