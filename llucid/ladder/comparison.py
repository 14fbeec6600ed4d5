"""What each rung changed, and which changes are larger than the noise between seeds."""

import math
from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

from llucid.ladder import Rung


class Result(NamedTuple):
    """A rung, trained once with each seed."""

    rung: Rung
    parameters: int
    sees_future: bool
    """Whether it failed the check of causality: then its loss means nothing, and no rung is compared with it."""
    curves: tuple[tuple[tuple[int, float], ...], ...]
    """Per seed: (step, validation loss on some windows), from before the first step to after the last."""
    losses: tuple[float, ...]
    """Per seed: final validation loss on all evaluated windows, in nats per character."""
    seconds: float
    """Training, evaluation and sampling, all seeds together."""
    sample: str

    @property
    def loss(self) -> float:
        """The mean of `losses`."""
        return mean(self.losses)


class Comparison(NamedTuple):
    """How a rung's validation loss differs from that of the rung below, and whether the difference is significant."""

    baseline: Rung | None
    """The nearest lower rung that is causal; None where there is none."""
    change: float
    """Loss minus the baseline's loss, nats per character: negative is better."""
    verdict: str
    """first, cheats, better, worse, noise (within the noise), or unknown (one seed gives no estimate of the noise)."""
    after_cheat: bool
    """Whether the rung just below sees the future and this one does not."""


def differences(results: Sequence[Result]) -> list[tuple[Result, Result | None, list[float]]]:
    """Each result, its baseline (the nearest lower causal rung), and the difference in loss for each seed."""
    found: list[tuple[Result, Result | None, list[float]]] = []
    baseline: Result | None = None
    for result in results:
        changes = (
            [] if baseline is None else [new - old for new, old in zip(result.losses, baseline.losses, strict=False)]
        )
        found.append((result, baseline, changes))
        if not result.sees_future:
            baseline = result
    return found


def noise(results: Sequence[Result]) -> float | None:
    """Two standard errors of a difference, estimated from how much the seeds disagree.

    s² = Σ (dᵣₛ − d̄ᵣ)² / Σ (seeds − 1) over the differences d of rungs r and seeds s; the noise is 2 s / √seeds. None if
    no difference was measured with more than one seed.
    """
    causal = [changes for result, baseline, changes in differences(results) if baseline and not result.sees_future]
    repeated = [changes for changes in causal if len(changes) > 1]
    if not repeated:
        return None
    squares = sum((each - mean(changes)) ** 2 for changes in repeated for each in changes)
    degrees = sum(len(changes) - 1 for changes in repeated)
    return 2 * math.sqrt(squares / degrees / min(map(len, repeated)))


def compare(results: Sequence[Result]) -> list[Comparison]:
    """The comparison of each result with its baseline, in the order of the results."""
    limit = noise(results)
    found: list[Comparison] = []
    cheated = False
    for result, baseline, changes in differences(results):
        change = mean(changes) if changes else 0.0
        if result.sees_future:
            verdict = "cheats"
        elif baseline is None:
            verdict = "first"
        elif limit is None:
            verdict = "unknown"
        else:
            verdict = "noise" if abs(change) <= limit else "better" if change < 0 else "worse"
        after_cheat = cheated and not result.sees_future
        found.append(Comparison(baseline.rung if baseline else None, change, verdict, after_cheat))
        cheated = result.sees_future
    return found


def sentence(result: Result, comparison: Comparison, limit: float | None, corpus: str) -> str:
    """The comparison in words."""
    baseline = f"{comparison.baseline.number} {comparison.baseline.name}" if comparison.baseline else ""
    size, change = f"{abs(comparison.change):.3f} nats", f"{comparison.change:+.3f}"
    words = {
        "first": f"{result.loss:.3f} nats per character: the starting point.",
        "cheats": f"{result.loss:.3f} means nothing: the model can read the next character instead of predicting it. "
        "When it writes there is no next character to read: once it has learned to read it, the text is garbage.",
        "better": f"{size} better than {baseline}.",
        "worse": f"{size} worse than {baseline}: no gain on {corpus}, at this size and number of steps.",
        "noise": f"no significant difference from {baseline} on {corpus} ({change}, noise ±{limit or 0:.3f}).",
        "unknown": f"{change} nats compared with {baseline}; with one seed the noise is unknown.",
    }[comparison.verdict]
    return f"cannot see the answer any more: {words}" if comparison.after_cheat else words
