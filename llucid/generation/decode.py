"""The engine: rows of ids in, one new id per row and step out. It knows nothing of text.

    context = what has been read so far (ids, and the cache of their keys and values)
    logits, context = read(context, new ids)             the prompt, and later each new id: the same function
    new ids = choose(logits)

Rows of a batch are padded on the right: each continues right after its own last token, and padding stands NOWHERE,
where no token sees it. So a row's scores do not depend on the other rows, but for rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from llucid.arrays.mapped import Mapped
from llucid.config import Config
from llucid.errors import LlucidError
from llucid.generation.reading import Context, Reader, empty_context, read, ready
from llucid.generation.sampling import wide
from llucid.native.step import Slots
from llucid.weights import Weights

Reason = Literal["stop", "length", "context"]
"""Why a row ended: at a stop token or string, after max_tokens, or because the model's context was full."""
PastContext = Literal["slide", "stop"]
"""What happens when the context is full: `slide` forgets the oldest half and goes on, `stop` ends the row."""
NEW_SLOTS = 256
"""Room in the cache for so many new tokens at most, before they are there; for more it is found when needed."""
LARGEST = 1e30
"""Of a score: divided by the lowest temperature it is still finite in float32."""


class Step(NamedTuple):
    """One new token for every row that had not ended."""

    tokens: tuple[int | None, ...]
    """The new token of each row; None if it had ended before."""
    reasons: tuple[Reason | None, ...]
    """Why a row ends with this token; None if it goes on, or had ended before."""
    slid: tuple[bool, ...]
    """Whether a row forgot its oldest half just before this token."""
    context: Context
    """All that has been read: every token but the newest. Given to the next `decode`, it is not read again."""


@dataclass
class Statistics:
    """How much was read and written, and how fast; filled in while it happens. `str` is a line for people."""

    rows: int = 0
    """Texts written at once."""
    prompt_tokens: int = 0
    """Tokens read before the first was written, of all rows; those that a cache already held are not counted."""
    prompt_seconds: float = 0.0
    """Until the first token of each row was there."""
    tokens: int = 0
    """Tokens written, of all rows."""
    seconds: float = 0.0
    """For the tokens after each row's first; what the caller does between two tokens is not counted."""
    guessed: int = 0
    """Tokens that speculation guessed right, so that they cost no pass of the model."""
    slid: bool = False
    """Whether the context was full and the oldest tokens were forgotten."""
    reason: Reason | None = None
    """Why the last row ended; None while one goes on."""

    @property
    def tokens_per_second(self) -> float:
        """Tokens after each row's first, of all rows, per second; 0 if there was none."""
        return (self.tokens - self.rows) / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        prompt = f"prompt {self.prompt_tokens} tokens in {self.prompt_seconds:.2f} s"
        rate = f" ({self.tokens_per_second:.0f} tokens/s)" if self.seconds else ""
        guessed = f", {self.guessed} of them guessed" if self.guessed else ""
        return f"{prompt}, {self.tokens} tokens in {self.seconds:.1f} s{rate}{guessed}"


def window(row: Sequence[int], context: int, keep: int) -> tuple[int, ...]:
    """What stays of a row that has outgrown the context: its first `keep` ids (a BOS) and its newest, half in all."""
    size = max(1, context // 2)
    keep = min(keep, size - 1)
    return (*row[:keep], *row[len(row) - (size - keep) :])


def check_prompt(prompt: Sequence[int], config: Config) -> None:
    """Raises LlucidError for a prompt of no tokens, or of more than the context holds."""
    if not prompt:
        raise LlucidError("the prompt has no tokens; a model can only continue at least one, such as its BOS")
    if len(prompt) > config.context:
        raise LlucidError(
            f"the prompt has {len(prompt)} tokens, but the model's context is {config.context}; shorten the prompt, "
            "or take a model with a longer context"
        )


def decode(
    weights: Weights,
    config: Config,
    prompts: Sequence[Sequence[int]],
    *,
    choose: Callable[[Float[Any, "batch vocab"]], Int[Any, " batch"]],
    stops: Callable[[int, int], bool],
    max_tokens: int,
    past_context: PastContext = "slide",
    keep: int = 0,
    context: Context | None = None,
    statistics: Statistics | None = None,
    reader: Reader = read,
) -> Iterator[Step]:
    """Continues every prompt, one token per row and step, until all rows have ended.

    `choose` picks the next ids from the logits: NumPy's array where they are on the CPU, else a tensor. `stops(row,
    token)` is told each new id and says whether its row ends with it. When a row has more than `config.context` tokens
    and is to `slide`, it is read again from position 0 with half of them: the first `keep` and the newest. `context` is
    what has been read before: what the prompts begin with in it is not read again (and it is no longer to be used,
    since its slots are written over). `reader` reads.

    Raises LlucidError at the call for an empty prompt, for one longer than the context, or for `max_tokens` below 1;
    and while it runs, for `scores` that cannot be chosen from.
    """
    if max_tokens < 1:
        raise LlucidError(f"--max-tokens {max_tokens}: must be at least 1")
    if past_context not in ("slide", "stop"):
        raise LlucidError(f"past_context={past_context!r}: expected 'slide' or 'stop'")
    for prompt in prompts:
        check_prompt(prompt, config)
    if not prompts:
        return iter(())
    statistics = Statistics() if statistics is None else statistics
    context = _already_read(context, prompts) if context else None
    longest = max(len(prompt) for prompt in prompts)
    slides = past_context == "slide" and longest + max_tokens > config.context
    old = context.rows if context else ((),) * len(prompts)
    unread = max(len(prompt) - len(row) for prompt, row in zip(prompts, old, strict=True))
    tokens = len(prompts) * max(unread, config.context // 2 if slides else 0)
    weights, step = ready(weights, config, len(prompts), tokens, context)
    if context and isinstance(context.cache, Slots) != isinstance(weights.norm, Mapped):
        context = None  # C read it alone, and PyTorch is to read the rest: it reads all of it
    read_new = lambda context, new: reader(weights, config, context, new, step)  # noqa: E731
    limits = (max_tokens, past_context, keep, context)
    return _steps(weights, config, prompts, choose, stops, *limits, statistics, read_new)


def _steps(
    weights: Weights,
    config: Config,
    prompts: Sequence[Sequence[int]],
    choose: Callable[[Any], Any],
    stops: Callable[[int, int], bool],
    max_tokens: int,
    past_context: PastContext,
    keep: int,
    context: Context | None,
    statistics: Statistics,
    read: Callable[[Context, Sequence[Sequence[int]]], tuple[Any, Context]],
) -> Iterator[Step]:
    slots = max(len(prompt) for prompt in prompts) + min(max_tokens, NEW_SLOTS)
    if context is None:
        context = empty_context(weights, config, len(prompts), slots)
    unread = [tuple(prompt[len(old) :]) for old, prompt in zip(context.rows, prompts, strict=True)]
    statistics.rows += len(prompts)
    statistics.prompt_tokens += sum(len(row) for row in unread)
    going = set(range(len(prompts)))
    slid = [False] * len(prompts)

    for number in range(1, max_tokens + 1):
        began = perf_counter()
        logits, context = read(context, unread)
        chosen: list[int] = choose(scores(logits)).tolist()
        spent = perf_counter() - began
        if number == 1:
            statistics.prompt_seconds += spent
        else:
            statistics.seconds += spent
        statistics.tokens += len(going)
        statistics.slid |= any(slid)

        reasons: list[Reason | None] = [None] * len(prompts)
        for row in sorted(going):
            full = len(context.rows[row]) == config.context
            if stops(row, chosen[row]):
                reasons[row] = "stop"
            elif number == max_tokens:
                reasons[row] = "length"
            elif full and past_context == "stop":
                reasons[row] = "context"
        tokens = tuple(chosen[row] if row in going else None for row in range(len(prompts)))
        going -= {row for row in going if reasons[row]}
        statistics.reason = None if going else next(filter(None, reversed(reasons)))
        yield Step(tokens, tuple(reasons), tuple(slid), context)

        if not going:
            return
        unread = [(chosen[row],) if row in going else () for row in range(len(prompts))]
        slid = [row in going and len(context.rows[row]) == config.context for row in range(len(prompts))]
        if any(slid):  # the cache holds turned keys, so moved tokens are read again, and the other rows with them
            whole = [(*old, *new) if new else () for old, new in zip(context.rows, unread, strict=True)]
            unread = [window(row, config.context, keep) if full else row for row, full in zip(whole, slid, strict=True)]
            slots = max(len(row) for row in unread) + min(max_tokens - number, NEW_SLOTS)
            context = empty_context(weights, config, len(prompts), slots)


def scores(logits: Float[Any, "batch vocab"]) -> Float[Any, "batch vocab"]:
    """The logits as they are chosen from, in the wide dtype. A CPU's are NumPy's array, on the same memory if they were
    wide: what is chosen from it starts no threads, which would go on spinning for a while where C needs them.

    Raises LlucidError for what no model that works would say.
    """
    logits = wide(logits)
    if not isinstance(logits, np.ndarray) and logits.device.type == "cpu":
        logits = logits.numpy()
    if not bool((abs(logits) < LARGEST).all()):
        raise LlucidError(
            "the model's scores are not finite, or far too large; its weights may be damaged, or try --dtype float32"
        )
    return logits


def _already_read(context: Context, prompts: Sequence[Sequence[int]]) -> Context | None:
    """The context as far as the prompts begin with it, with at least one id of each left to read; None if it is no use.

    One row alone can go back to where it still agrees; rows of a batch share their slots, so that they cannot.
    """
    if len(prompts) != len(context.rows):
        return None
    if len(prompts) == 1:
        row, prompt = context.rows[0], prompts[0]
        same = next((at for at, (a, b) in enumerate(zip(row, prompt, strict=False)) if a != b), len(row))
        same = min(same, len(row), len(prompt) - 1)
        return Context((row[:same],), context.cache._replace(length=same))
    begun = [tuple(prompt[: len(row)]) for row, prompt in zip(context.rows, prompts, strict=True)]
    more = all(len(row) < len(prompt) for row, prompt in zip(context.rows, prompts, strict=True))
    return context if more and tuple(begun) == context.rows else None
