"""The learning curve of a run, as a picture."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llucid.errors import note, one_line
from llucid.files import atomic_file
from llucid.tokenizers.text import replace_surrogates

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_png(out: Path, draw: "Callable[..., Figure]", *given: Any) -> None:
    """Writes the figure that `draw` makes of what is given, by the settings of matplotlib, not of a matplotlibrc.

    Prints a note instead where matplotlib itself does not start, by a wrong MPLBACKEND or matplotlibrc.
    """
    try:
        import matplotlib
    except ValueError as error:
        note(f"{out}: not drawn, as matplotlib refuses its settings: {one_line(error)}")
        return
    own: Any = {name: setting for name, setting in matplotlib.rcParamsDefault.items() if name != "backend"}
    with atomic_file(out) as temporary, warnings.catch_warnings(), matplotlib.rc_context(own):
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # shown as a box
        draw(*given).savefig(temporary, format="png")


def learning_curve(rows: list[dict[str, Any]], title: str, floor: float | None = None) -> "Figure":
    """Training and validation loss in nats per character, the floor, and the learning rate below.

    `rows` are those of `metrics.jsonl`; `floor` is the corpus's own entropy. Losses on windows of each length are a
    line of their own.
    """
    from matplotlib.figure import Figure

    trained = [row for row in rows if "loss" in row]
    steps, train = [row["step"] for row in trained], [row["loss"] for row in trained]
    smooth = _smoothed(train, max(1, len(train) // 100))
    measured = [row for row in rows if "validation" in row]
    lengths = sorted({row.get("window", 0) for row in measured})
    figure = Figure(figsize=(9, 5.6), dpi=150, layout="constrained")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    loss.plot(steps, train, color="#9db8d9", linewidth=0.6, alpha=0.6)
    loss.plot(steps, smooth, color="#2f5f9e", linewidth=1.6, label=f"training {smooth[-1]:.3f}")
    for length in lengths:
        points = [(row["step"], row["validation"]) for row in measured if row.get("window", 0) == length]
        label = f"validation {points[-1][1]:.3f}" + f", in windows of {length}" * (len(lengths) > 1)
        fill = "white" if length < lengths[-1] else "#d1622b"
        style = {"color": "#d1622b", "linewidth": 1.8, "markersize": 5, "markerfacecolor": fill}
        loss.plot(*zip(*points, strict=True), "o-", label=label, **style)
    if floor is not None:
        loss.axhline(floor, color="#3f7f4f", linestyle="--", label=f"the corpus's own entropy {floor:.3f}")
    low: float = min([*smooth, *(row["validation"] for row in measured), *([floor] if floor else [])])
    high = min(max(*train, low + 0.1), low + 2.2)
    loss.set_ylim(low - 0.06 * (high - low), high)
    loss.set_ylabel("nats per character")
    loss.set_title(replace_surrogates(title), loc="left", fontsize=12, parse_math=False)
    loss.legend(frameon=False)
    rate.plot(steps, [row["rate"] for row in trained], color="#777777", linewidth=1.2)
    rate.set_ylim(bottom=0)
    rate.set_ylabel("learning\nrate")
    rate.set_xlabel("step")
    for axes in (loss, rate):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#eeeeee")
        axes.set_axisbelow(True)
    return figure


def _smoothed(values: list[float], width: int) -> list[float]:
    """The mean of the last `width` values, at each place."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[at] - sums[max(0, at - width)]) / min(at, width) for at in range(1, len(sums))]
