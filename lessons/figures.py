"""Figures that several lessons draw."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

PARTS = {  # name: (text, x, y, width, height)
    "tokens": ("tokens\nand ids", 0.0, 1.0, 1.3, 1.0),
    "embedding": ("embedding", 1.75, 1.0, 1.35, 1.0),
    "norm 1": ("RMSNorm", 3.75, 2.2, 1.1, 0.7),
    "attention": ("attention", 5.05, 2.2, 1.3, 0.7),
    "position": ("RoPE", 5.05, 3.05, 1.3, 0.5),
    "norm 2": ("RMSNorm", 7.0, 2.2, 1.1, 0.7),
    "feed-forward": ("feed-\nforward", 8.3, 2.2, 1.2, 0.7),
    "norm 3": ("RMSNorm", 10.6, 1.0, 1.1, 1.0),
    "output": ("output\nmatrix", 12.1, 1.0, 1.1, 1.0),
    "loss": ("softmax\nand loss", 13.6, 1.0, 1.2, 1.0),
}
GREY, BLUE, ORANGE = "#eceae4", "#c9d9ee", "#f3c9ae"


def whole_llama(*highlighted: str, words: Sequence[str] = (), prediction: str = "") -> None:
    """Draws the whole Llama, with some parts of it (names in PARTS, "norm", "block") highlighted.

    `words` stand at the input and `prediction` at the output.
    """
    bottom = 0.0 if words or prediction else 0.6
    _, ax = plt.subplots(figsize=(7.4, 2.3 * (3.9 - bottom) / 3.9))
    stream = 1.5
    ax.add_patch(
        FancyArrowPatch((-0.3, stream), (15.1, stream), arrowstyle="-|>", mutation_scale=12, color="#777777")
    )
    marked = "block" in highlighted
    frame = {"fc": "#faf1e9" if marked else "#fbfbf9", "ec": "#d1622b" if marked else "#bbbbbb"}
    ax.add_patch(FancyBboxPatch((3.45, 0.75), 6.55, 2.95, boxstyle="round,pad=0.05", zorder=0, **frame))
    ax.text(6.7, 3.6, "block, one after the other", size=6.5, color="#777777", va="top")
    for inward, outward, (a, b) in (
        (3.6, 6.65, ("norm 1", "attention")),
        (6.85, 9.8, ("norm 2", "feed-forward")),
    ):
        middle = PARTS[a][2] + PARTS[a][4] / 2
        ax.plot([inward, inward, PARTS[a][1]], [stream, middle, middle], color="#777777", lw=1)
        ax.plot([PARTS[a][1] + PARTS[a][3], PARTS[b][1]], [middle, middle], color="#777777", lw=1)
        ax.plot(
            [PARTS[b][1] + PARTS[b][3], outward, outward],
            [middle, middle, stream],
            color="#777777",
            lw=1,
        )
        ax.text(
            outward,
            stream,
            "+",
            ha="center",
            va="center",
            size=9,
            bbox={"fc": "white", "ec": "#777777", "pad": 1},
        )
    ax.plot([5.7, 5.7], [2.9, 3.05], color="#777777", lw=1)
    ax.text(6.72, 1.02, "the residual stream", size=6.5, color="#777777", ha="center")
    for name, (text, x, y, width, height) in PARTS.items():
        chosen = name in highlighted or (name.startswith("norm") and "norm" in highlighted)
        ax.add_patch(
            Rectangle((x, y), width, height, fc=ORANGE if chosen else BLUE, ec="#555555", lw=0.8, zorder=3)
        )
        ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", size=6.8, zorder=4)
    ax.text(-0.3, 0.35, " ".join(words), size=6.8, va="center")
    ax.text(15.1, 0.35, prediction, size=6.8, va="center", ha="right")
    ax.set(xlim=(-0.5, 15.3), ylim=(bottom, 3.9))
    ax.axis("off")


def boxes(ax: Axes, pieces: Sequence[str], colours: Sequence[object], width: int = 92) -> None:
    """Draws pieces of text one after another, each on its colour, `width` letters in a line."""
    column, y = 0.0, 0.0
    for piece, colour in zip(pieces, colours, strict=True):
        shown = piece.replace("\n", "⏎")
        if column + len(shown) > width:
            column, y = 0.0, y - 1.5
        ax.add_patch(Rectangle((column, y - 0.55), len(shown), 1.1, fc=colour, ec="white", lw=0.8))
        for at, letter in enumerate(shown):
            ax.text(column + at + 0.5, y, letter, family="monospace", size=8, ha="center", va="center")
        column += len(shown)
    ax.set(xlim=(-0.2, width + 0.2), ylim=(y - 0.9, 0.9))
    ax.axis("off")
