"""Stop strings: text at which generation ends."""

from collections.abc import Sequence

from llucid.errors import LlucidError


class StopMatcher:
    """Passes text on up to the first stop string, and nothing of the stop string itself.

    The first is the one that is complete first, so that generation can end there; of several that are complete at the
    same character, the longest. Text that could still become a stop string is held back, however it is split.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises LlucidError for what is not a text, and for an empty one, at which every text would end at once."""
        self.stops = (stops,) if isinstance(stops, str | None | int) else tuple(stops)
        for stop in self.stops:
            if not isinstance(stop, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise LlucidError(f"stop={stop!r}: expected a text")
        if "" in self.stops:
            raise LlucidError("stop='': a stop string must have at least one character")
        self.waiting = ""
        self.stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """(the text that may now be shown, whether a stop string is complete). After that, nothing more is shown."""
        if self.stopped:
            return "", True
        text = self.waiting + text
        found = [(start + len(stop), start) for stop in self.stops if (start := text.find(stop)) >= 0]
        if found:
            self.waiting, self.stopped = "", True
            return text[: min(found)[1]], True
        # It is enough to hold back the longest suffix that begins a stop string: all others lie within it.
        held = max((_overlap(text, stop) for stop in self.stops), default=0)
        self.waiting = text[len(text) - held :]
        return text[: len(text) - held], False

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        rest, self.waiting = self.waiting, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next(size for size in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:size]))
