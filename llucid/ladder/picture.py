"""All curves of the ladder in one picture."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from llucid.ladder.verdicts import Result

COLOURS = (
    *("#8c8c8c", "#cf7f22", "#c8324a", "#62b87f", "#41ab8c", "#1f9c97"),
    *("#13879a", "#1f7096", "#2f578c", "#34306f"),
)
"""Of the rungs: those with attention darken on their way up."""
CHEAT = "#c8324a"
"""The colour of what sees the future."""


def draw_ladder(results: Sequence[Result], out: Path, title: str, floor: float | None = None) -> None:
    """Writes a PNG: validation loss over steps, mean of the seeds and a band between them, each named at its end.

    What sees the future leaves the picture at the bottom, where its name stands. `floor` is the corpus's own entropy.
    """
    from matplotlib.figure import Figure

    honest = [result for result in results if not result.peeks]
    ends = [result.loss for result in honest] or [result.loss for result in results]
    spread = max(max(ends) - min(ends), 0.3)
    low, high = min(ends) - 0.07 * spread, max(ends) + 0.45 * spread
    if floor is not None:
        low = min(low, floor - 0.05 * (high - floor))
    steps = results[0].curves[0][-1][0]

    figure = Figure(figsize=(10.5, 6.2), dpi=160, layout="constrained")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    axes = figure.subplots()
    axes.set_xlim(0, steps)
    axes.set_ylim(low, high)
    labels: list[tuple[float, str, str]] = []
    for result in results:
        colour = CHEAT if result.peeks else COLOURS[result.rung.number - 1]
        at = [step for step, _ in result.curves[0]]
        by_step = [[loss for _, loss in measured] for measured in zip(*result.curves, strict=True)]
        line = [mean(losses) for losses in by_step]
        axes.fill_between(at, [min(x) for x in by_step], [max(x) for x in by_step], color=colour, alpha=0.18, lw=0)
        axes.plot(at, line, color=colour, linewidth=2.2, linestyle=(0, (4, 2)) if result.peeks else "-")
        name = f"{result.rung.number}  {result.rung.name}  {result.loss:.3f}"
        if low < line[-1]:
            labels.append((line[-1], name, colour))
        else:
            below = next((number for number, loss in enumerate(line) if loss < low), len(line) - 1)
            told = f"{result.rung.number}  {result.rung.name}: ends at {result.loss:.3f},\nsince it sees the answer"
            axes.annotate(
                told,
                (at[below], low),
                (0.03 * steps + at[below], low + 0.08 * (high - low)),
                color=colour,
                fontsize=10.5,
                va="center",
            )
    for height, (loss, name, colour) in zip(_apart(labels, 0.043 * (high - low)), sorted(labels), strict=True):
        axes.annotate(
            name,
            (steps, loss),
            (1.035 * steps, height),
            color=colour,
            fontsize=10.5,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.8,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )
    if floor is not None:
        axes.axhline(floor, color="#555555", linestyle=":", linewidth=1.2)
        axes.annotate(f"the corpus's own entropy {floor:.3f}", (0.02 * steps, floor), va="bottom", color="#555555")
    axes.set_title("The ladder: from a table of pairs to a Llama", loc="left", fontsize=15, pad=26, fontweight="bold")
    axes.text(0, 1.025, title, transform=axes.transAxes, fontsize=10.5, color="#555555")
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss, nats per character")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    figure.savefig(out, format="png")


def _apart(labels: Sequence[tuple[float, str, str]], gap: float) -> list[float]:
    """Heights for the labels, in order, at least `gap` apart and about where they belong."""
    heights = sorted(loss for loss, *_ in labels)
    for _ in range(200):
        for number in range(len(heights) - 1):
            missing = gap - (heights[number + 1] - heights[number])
            if missing > 0:
                heights[number] -= missing / 2
                heights[number + 1] += missing / 2
    return heights
