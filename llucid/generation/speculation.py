"""Speculation: several tokens for one pass of the model, where the text repeats what it said before.

What followed the last few tokens when they stood there before is guessed to follow again. One pass reads the newest
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
"""Ids at the end that must have stood together before: up to LONGEST are looked for, and SHORTEST needed."""
MOST = 7
"""Guesses in a pass at most: with the newest id as many vectors as llama.c multiplies at once."""
COST = 0.5
"""By how much a pass with guesses takes longer, in passes: fewer right guesses than this on average are a loss."""
PATIENCE = 64
"""Passes without a guess, at most, after guesses that were wrong."""


def guess(ids: Sequence[int], most: int) -> tuple[int, ...]:
    """At most `most` ids that followed when the end of `ids` stood there before; none if it never did.

    The longest end counts, and of several places the newest. What was found is repeated if it reaches the end itself.
    """
    if max(ids, default=0) > sys.maxunicode:  # no published vocabulary is as large
        return ()
    text = "".join(map(chr, ids))  # a string, since there is no quicker search than that for strings
    for size in range(min(LONGEST, len(ids) - 1), SHORTEST - 1, -1):
        at = text.rfind(text[-size:], 0, -1)
        if at >= 0:
            found = tuple(ids[at + size :])
            return (found * (most // len(found) + 1))[:most]
    return ()


class Draft:
    """The guesses of one text, and how many it is worth making.

    Twice as many after a pass in which all were right, half as many after one in which some were wrong; and while fewer
    are right than a pass with guesses costs more, none for a while, each time longer.
    """

    def __init__(self) -> None:
        self.guessed = 0
        self.most, self.right, self.pause, self.wait = 4, COST, 0, 0

    def guess(self, ids: Sequence[int], room: int) -> tuple[int, ...]:
        """What may follow `ids`, at most `room` tokens; none while guessing does not pay."""
        if self.wait:
            self.wait -= 1
            return ()
        guesses = guess(ids, min(self.most, room)) if room > 0 else ()
        self.guessed = len(guesses)
        return guesses

    def learn(self, wrong: int) -> None:
        """Takes note of how many of the last guesses were wrong, or behind a wrong one."""
        if not self.guessed:
            return
        right = self.guessed - wrong
        self.most = min(2 * self.most, MOST) if not wrong else max(2, self.most // 2, right)
        self.right = 0.75 * self.right + 0.25 * right
        self.pause = 0 if self.right >= COST else min(4 * max(1, self.pause), PATIENCE)
        self.wait, self.guessed = self.pause, 0
