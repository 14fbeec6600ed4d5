"""Speculation: several tokens for one pass of the model, where the text repeats what it said before.

What followed the last few tokens when they stood there before is guessed to follow again. One pass reads the newest
token and the guesses after it, and so scores what follows each of them: the logits of tokens yet to be chosen.

    guesses = what followed the newest earlier occurrence of the last n ids, n as large as possible
    logits of the newest id, logits of guess 1, ... = one pass
    as long as the id chosen is the one guessed, the logits after it are there already

Nothing else changes: each id is chosen from the model's own logits by the same function and the same random numbers.
For a guess that is certain, rejection sampling (Leviathan et al. 2023, algorithm 1) is just that: it is accepted with
its own probability p(guess), and a refusal draws from p without it. The slots of guesses that were wrong are written
over, since the cache that goes on is no longer than what was chosen. Guessing by looking up: Saxena 2023.
"""

import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float

from llucid.config import Config
from llucid.generation.decode import Statistics
from llucid.generation.reading import Context, read, read_each
from llucid.native.step import DecodeStep
from llucid.weights import Weights

LONGEST, SHORTEST = 8, 2
"""Ids at the end that must have stood together before: as many as LONGEST are looked for, and SHORTEST needed."""
MOST = 7
"""Guesses in a pass at most: with the newest id as many as llama.c takes at once, while it waits for the weights."""
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


class ReadAhead:
    """`reading.read` for one row, that reads guesses along with the newest id and remembers what it found out.

    How many are guessed follows from how that went: twice as many after a pass in which all were right, half as many
    after one in which some were wrong; and while fewer are right than a pass with guesses costs more, none for a while,
    each time longer. `statistics` counts the tokens that cost no pass. A text has a reader of its own.
    """

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics
        self.context: Context | None = None
        self.ahead: deque[tuple[int, Any]] = deque()
        self.guessed = 0
        self.most, self.right, self.pause, self.wait = 4, COST, 0, 0

    def __call__(
        self,
        weights: Weights,
        config: Config,
        context: Context,
        new: Sequence[Sequence[int]],
        step: DecodeStep | None = None,
    ) -> tuple[Float[Any, "batch vocab"], Context]:
        """What `reading.read` returns; without a pass of the model, if the new id had been guessed."""
        row = (*context.rows[0], *new[0])
        if self.ahead and context is self.context and list(new[0]) == [self.ahead[0][0]]:
            logits = self.ahead.popleft()[1]
            self.statistics.guessed += 1
            self.context = Context((row,), context.cache._replace(length=len(row)))
            return logits, self.context
        self._learn()
        room = min(config.context, context.cache.positions.shape[1]) - len(row)
        may = len(new[0]) == 1 and room > 0 and self.wait == 0
        self.wait = max(0, self.wait - 1)
        if may and (guesses := guess(row, min(self.most, room))):
            (logits,), read_on = read_each(weights, config, context, [[*new[0], *guesses]], step)
            self.ahead = deque(zip(guesses, logits[1:, None], strict=True))
            self.context = Context((row,), read_on.cache._replace(length=len(row)))
            self.guessed = len(guesses)
            return logits[:1], self.context
        logits, self.context = read(weights, config, context, new, step)
        return logits, self.context

    def _learn(self) -> None:
        """Draws the conclusion from the guesses of the last pass, if there were any."""
        if not self.guessed:
            return
        right = self.guessed - len(self.ahead)
        self.most = min(2 * self.most, MOST) if not self.ahead else max(2, self.most // 2, right)
        self.right = 0.75 * self.right + 0.25 * right
        self.pause = 0 if self.right >= COST else min(4 * max(1, self.pause), PATIENCE)
        self.wait = self.pause
        self.ahead.clear()
        self.guessed = 0
