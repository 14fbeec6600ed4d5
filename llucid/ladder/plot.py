"""All learning curves of the ladder in one plot."""

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING

from llucid.ladder.comparison import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (
    *("#8c8c8c", "#cf7f22", "#c8324a", "#62b87f", "#41ab8c", "#1f9c97"),
    *("#13879a", "#1f7096", "#2f578c", "#34306f"),
)
"""One per rung; those with attention get darker towards the Llama."""
CHEAT = "#c8324a"
"""For a rung that sees the future."""
LABEL = 0.043
"""Height of a label, as a fraction of the axis."""


def ladder_figure(results: Sequence[Result], title: str, floor: float | None = None) -> "Figure":
    """Validation loss over steps: the mean of the seeds, a band between them, and a label at the end of each curve.

    A curve that leaves the plot at the bottom, because the rung sees the future, has its label there. `floor` is the
    entropy of the corpus, a dotted line.
    """
    from matplotlib.figure import Figure

    causal = [result for result in results if not result.sees_future]
    ends = [result.loss for result in causal] or [result.loss for result in results]
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
        colour = CHEAT if result.sees_future else COLOURS[result.rung.number - 1]
        at = [step for step, _ in result.curves[0]]
        by_step = [[loss for _, loss in points] for points in zip(*result.curves, strict=True)]
        line = [mean(losses) for losses in by_step]
        axes.fill_between(at, [min(x) for x in by_step], [max(x) for x in by_step], color=colour, alpha=0.18, lw=0)
        axes.plot(at, line, color=colour, linewidth=2.2, linestyle=(0, (4, 2)) if result.sees_future else "-")
        text = f"{result.rung.number}  {result.rung.name}  {result.loss:.3f}"
        labels.append((line[-1], f"{text}: sees the answer" if result.sees_future else text, colour))
    if floor is not None:
        axes.axhline(floor, color="#555555", linestyle=":", linewidth=1.2)
        labels.append((floor, f"entropy of the corpus  {floor:.3f}", "#555555"))
    labels.sort()
    heights = spread_out([loss for loss, *_ in labels], LABEL * (high - low), low, high)
    for height, (loss, text, colour) in zip(heights, labels, strict=True):
        axes.annotate(
            text,
            (steps, min(max(loss, low), high)),
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
    axes.set_title("The ladder: from a bigram table to a Llama", loc="left", fontsize=15, pad=26, fontweight="bold")
    axes.text(0, 1.025, title, transform=axes.transAxes, fontsize=10.5, color="#555555")
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss, nats per character")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    return figure


def spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The heights nearest to `wanted` (in rising order) that are at least `gap` apart, and between low and high.

    Isotonic regression of wanted[i] − i·gap: neighbours that are too close share the mean of their places.
    """
    groups: list[tuple[float, int]] = []  # mean place, number of labels
    for number, height in enumerate(wanted):
        groups.append((height - number * gap, 1))
        while len(groups) > 1 and groups[-2][0] > groups[-1][0]:
            (above, n), (below, m) = groups.pop(), groups.pop()
            groups.append(((above * n + below * m) / (n + m), n + m))
    places = [place for place, count in groups for _ in range(count)]
    top = high - gap * (len(wanted) - 1)
    return [min(max(place, low), top) + number * gap for number, place in enumerate(places)]
