"""Text for a terminal: lines break between words, and control characters that a model writes have no effect."""

import shutil
import sys

from rich.cells import cell_len

from llucid.errors import PRINTABLE


class Screen:
    """Wraps text for a terminal of `width` cells per line; with None, for a file or a pipe, it changes nothing.

    A word is held back until it is complete, and starts a new line if it does not fit. The terminal itself breaks words
    longer than a line; between wide characters, as in Chinese, a line may end anywhere.
    """

    def __init__(self, width: int | None) -> None:
        self.width = width
        self.column = 0
        self.space, self.word = "", ""
        self.long = False
        """Whether the word is longer than a line, and is therefore not held back."""

    def push(self, piece: str) -> str:
        """Adds `piece`; returns what can be printed now."""
        if self.width is None:
            return piece
        text = ""
        for letter in piece.translate(PRINTABLE):
            if letter == "\n":
                text += self.finish() + letter
                self.column = 0
            elif letter in " \t":
                text += self._end_word()
                stop = 8 - (self.column + len(self.space)) % 8
                self.space += " " * stop if letter == "\t" else letter
            elif cell_len(letter) == 2:
                text += self._end_word()
                self.word = letter
                text += self._place_word()
            else:
                self.word += letter
                self.long = self.long or cell_len(self.word) > self.width
                text += self._place_word() if self.long else ""
        return text

    def finish(self) -> str:
        """What was still held back."""
        return self._end_word() + self._place_word()

    def _end_word(self) -> str:
        """The word that was held back, if any; the next character starts another."""
        text = self._place_word() if self.word else ""
        self.long = False
        return text

    def _place_word(self) -> str:
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
    """For standard output, at its current width."""
    return Screen(shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
