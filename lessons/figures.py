"""What several lessons draw."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle


def boxes(ax: Axes, pieces: Sequence[str], colours: Sequence[object], width: int = 92) -> None:
    """Draws pieces of text one after another, each on its colour, `width` letters in a line."""
    column, y = 0.0, 0.0
    for piece, colour in zip(pieces, colours, strict=True):
        shown = piece.replace("\n", "⏎")
        if column + len(shown) > width:
            column, y = 0.0, y - 1.5
        ax.add_patch(Rectangle((column, y - 0.55), len(shown), 1.1, fc=colour, ec="white", lw=0.8))
        for at, letter in enumerate(shown):
            ax.text(
                column + at + 0.5, y, letter, family="monospace", size=8, ha="center", va="center"
            )
        column += len(shown)
    ax.set(xlim=(-0.2, width + 0.2), ylim=(y - 0.9, 0.9))
    ax.axis("off")
