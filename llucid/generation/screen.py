"""Text as a terminal shows it: lines end between words, and nothing that a model writes steers the terminal."""

import shutil
import sys

from rich.cells import cell_len

from llucid.errors import PRINTABLE


class Screen:
    """Text on its way to a terminal of `width` cells a line; with None, to a file or a pipe, which get it unchanged.

    A word is held back until its end has come, and begins a new line if it does not fit into this one. The terminal
    itself breaks words that are longer than a line; between wide characters, as in Chinese, a line may end anywhere.
    """

    def __init__(self, width: int | None) -> None:
        self.width = width
        self.column = 0
        self.space, self.word = "", ""
        self.long = False
        """Whether the word is longer than a line, so that nothing of it is held back."""

    def push(self, piece: str) -> str:
        """What can be printed, now that `piece` has come."""
        if self.width is None:
            return piece
        text = ""
        for letter in piece.translate(PRINTABLE):
            if letter == "\n":
                text += self.finish() + letter
                self.column = 0
            elif letter in " \t":
                text += self._ended()
                stop = 8 - (self.column + len(self.space)) % 8
                self.space += " " * stop if letter == "\t" else letter
            elif cell_len(letter) == 2:
                text += self._ended()
                self.word = letter
                text += self._placed()
            else:
                self.word += letter
                self.long = self.long or cell_len(self.word) > self.width
                text += self._placed() if self.long else ""
        return text

    def finish(self) -> str:
        """What was still held back."""
        return self._ended() + self._placed()

    def _ended(self) -> str:
        """The word that was held back, if there is one; whatever comes then is another word."""
        text = self._placed() if self.word else ""
        self.long = False
        return text

    def _placed(self) -> str:
        """The word that was held back: after its space, or on the next line."""
        width, cells = self.width or 0, cell_len(self.space + self.word)
        if self.word and 0 < self.column <= width < self.column + cells and not self.long:
            self.column, text = cell_len(self.word), "\n" + self.word
        else:
            self.column = (self.column + cells - 1) % max(width, 1) + 1 if self.column + cells else 0
            text = self.space + self.word
        self.space, self.word = "", ""
        return text


def screen() -> Screen:
    """That of standard output, as wide as it is now."""
    return Screen(shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
