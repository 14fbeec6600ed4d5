"""Speculation: several tokens per pass of the model, where the text repeats itself.

What followed an earlier occurrence of the last few tokens is guessed to follow again. One pass reads the newest
token and the guesses after it, and so scores what follows each of them: the logits of tokens yet to be chosen.

    guesses = what followed the newest earlier occurrence of the last n ids, n as large as possible
    logits of the newest id, logits of guess 1, ... = one pass
    as long as the id chosen is the one guessed, the logits after it are there already

Nothing else changes: each id is chosen from the model's own logits by the same function and the same random numbers.
For a guess that is certain, rejection sampling (Leviathan et al. 2023, algorithm 1) is just that: it is accepted with
its own probability p(guess), and a refusal draws from p without it. Slots of wrong guesses are overwritten, since a
sequence is no longer than what was chosen. Guessing by looking up: Saxena 2023.
"""

import sys
from collections.abc import Sequence

LONGEST, SHORTEST = 8, 2
"""How many of the last ids are searched for earlier in the text: LONGEST first, down to SHORTEST."""
MOST = 7
"""Guesses per pass at most: with the newest id, as many vectors as llama.c multiplies at once."""
COST = 0.5
"""Extra cost of a pass with guesses, in passes: with fewer right guesses than this on average, guessing is a loss."""
PATIENCE = 64
"""Passes without guesses after wrong ones, at most."""


def guess(ids: Sequence[int], most: int) -> tuple[int, ...]:
    """Up to `most` ids that followed an earlier occurrence of the last ids; empty if there is none.

    The longest match counts, and of several the newest. If the match reaches the end of `ids`, it repeats.
    """
    if max(ids, default=0) > sys.maxunicode:  # no published vocabulary is as large
        return ()
    text = "".join(map(chr, ids))  # a string, since string search is the fastest search there is
    for size in range(min(LONGEST, len(ids) - 1), SHORTEST - 1, -1):
        at = text.rfind(text[-size:], 0, -1)
        if at >= 0:
            found = tuple(ids[at + size :])
            return (found * (most // len(found) + 1))[:most]
    return ()


class Draft:
    """Makes the guesses for one text, and adapts their number.

    It doubles after a pass in which all were right, and halves after one in which some were wrong. While the average of
    right guesses does not pay for their cost, there are pauses without guesses, each longer than the one before.
    """

    def __init__(self) -> None:
        self.guessed = 0
        self.most, self.right, self.pause, self.wait = 4, COST, 0, 0

    def guess(self, ids: Sequence[int], room: int) -> tuple[int, ...]:
        """Guesses what follows `ids`, at most `room` tokens; empty during a pause."""
        if self.wait:
            self.wait -= 1
            return ()
        guesses = guess(ids, min(self.most, room)) if room > 0 else ()
        self.guessed = len(guesses)
        return guesses

    def learn(self, wrong: int) -> None:
        """Records how many of the last guesses were wrong, or came after a wrong one."""
        if not self.guessed:
            return
        right = self.guessed - wrong
        self.most = min(2 * self.most, MOST) if not wrong else max(2, self.most // 2, right)
        self.right = 0.75 * self.right + 0.25 * right
        self.pause = 0 if self.right >= COST else min(4 * max(1, self.pause), PATIENCE)
        self.wait, self.guessed = self.pause, 0
