"""Stop strings: where a text ends although the model would go on."""

from collections.abc import Sequence

from llucid.errors import LlucidError


class StopMatcher:
    """Passes text on up to the first stop string, of which nothing is ever shown.

    The first is the one that is complete first, so that generation can end there; of several complete at the same
    character, the longest. What could still become a stop string waits, however it is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises LlucidError for an empty stop string, which every text would end before."""
        self.stops = (stops,) if isinstance(stops, str) else tuple(stops)
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
        # Only the longest end of the text that begins a stop string need wait: every other such end lies within it.
        held = max((_overlap(text, stop) for stop in self.stops), default=0)
        self.waiting = text[len(text) - held :]
        return text[: len(text) - held], False

    def finish(self) -> str:
        """What was waiting for a stop string that never came."""
        rest, self.waiting = self.waiting, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """How many characters the longest end of `text` has that is a beginning of `stop`, and not all of it."""
    return next(size for size in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:size]))
