"""Text from text: one continuation as it is written, or many at once."""

import os
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from llucid.config import Config
from llucid.errors import LlucidError
from llucid.generation.decode import NEW_SLOTS, PastContext, Reason, Statistics
from llucid.generation.sampling import Sampling, generator
from llucid.generation.stream import Piece, stream
from llucid.model import Model
from llucid.tokenizers.prompts import prompt_ids


class Completion(NamedTuple):
    """A prompt and what the model wrote after it."""

    prompt: str
    text: str
    """The continuation alone."""
    tokens: tuple[int, ...]
    """The ids that were written; the one that ended it is among them."""
    reason: Reason
    slid: bool
    """Whether it outgrew the context, so that its beginning was forgotten."""


def generate(
    model: Model,
    prompt: str = "",
    *,
    max_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = 0.95,
    min_p: float | None = None,
    seed: int | None = None,
    stop: Sequence[str] = (),
    past_context: PastContext = "slide",
    statistics: Statistics | None = None,
    speculate: bool = False,
) -> Iterator[str]:
    """The continuation of `prompt`, piece by piece: whole characters, and nothing of a `stop` string.

    An empty prompt begins at BOS, or at a line break where the model has no BOS. The same seed gives the same text on
    the same machine, called in the same way; None takes a new one. When the context is full, the oldest half of the
    tokens is forgotten and the text goes on (`past_context="slide"`), or it ends (`"stop"`). `statistics` is filled in
    as the text is written. `speculate` guesses what repeats earlier text and is quicker where it is right; the text is
    the same (where PyTorch alone serves, in float32; in bfloat16 it rounds several tokens at once otherwise than one).
    Raises LlucidError, at the call, for options that cannot be, a prompt that cannot be encoded, or one longer than
    the context.
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    pieces = _begin(model, [prompt], max_tokens, sampling, seed, stop, past_context, statistics, speculate)
    return (piece.text for piece in pieces if piece.text)


def generate_batch(
    model: Model,
    prompts: Sequence[str],
    *,
    samples: int = 1,
    max_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = 0.95,
    min_p: float | None = None,
    seed: int | None = None,
    stop: Sequence[str] = (),
    past_context: PastContext = "slide",
    statistics: Statistics | None = None,
    texts: list[str] | None = None,
) -> list[Completion]:
    """`samples` continuations of each prompt, all in one batch: prompt by prompt, in the order given.

    The first of a prompt is what `generate` writes with the same seed, whatever else is in the batch, in float32 (what
    is narrower is rounded otherwise in a batch); its others, and repeated prompts, have random numbers of their own.
    `statistics` and `texts` are filled in as they are written, for whoever is interrupted. Raises LlucidError as
    `generate` does.
    """
    if samples < 1:
        raise LlucidError(f"--num {samples}: must be at least 1")
    check_room(model.config, samples * len(prompts), min(max_tokens, NEW_SLOTS))
    prompts = [prompt for prompt in prompts for _ in range(samples)]
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    pieces = _begin(model, prompts, max_tokens, sampling, seed, stop, past_context, statistics)
    texts, tokens = [] if texts is None else texts, [[] for _ in prompts]
    texts[:] = [""] * len(prompts)
    reasons: list[Reason] = ["length"] * len(prompts)
    slid = [False] * len(prompts)
    for piece in pieces:
        texts[piece.row] += piece.text
        tokens[piece.row].append(piece.token)
        slid[piece.row] |= piece.slid
        reasons[piece.row] = piece.reason or "length"
    columns = zip(prompts, texts, map(tuple, tokens), reasons, slid, strict=True)
    return [Completion(*column) for column in columns]


def check_room(config: Config, rows: int, slots: int) -> None:
    """Raises LlucidError if this machine has less memory than the keys and values of so many texts take, in 16 bits."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        taken = 2 * 2 * config.layers * config.kv_heads * config.head_dim * rows * slots
        if taken > there:
            raise LlucidError(
                f"--num: the keys and values of {rows:,} texts take {taken / 1e9:,.0f} GB at least, and this machine "
                f"has {there / 1e9:.0f}; write fewer at once"
            )


def _begin(
    model: Model,
    prompts: Sequence[str],
    max_tokens: int,
    sampling: Sampling,
    seed: int | None,
    stop: Sequence[str],
    past_context: PastContext,
    statistics: Statistics | None,
    speculate: bool = False,
) -> Iterator[Piece]:
    if seed is None:
        seed = secrets.randbits(63)
    elif seed < 0:
        raise LlucidError(f"--seed {seed}: must be at least 0")
    before: Counter[str] = Counter()
    generators = []
    for prompt in prompts:
        generators.append(generator(seed, stream=before[prompt]))
        before[prompt] += 1
    return stream(
        model,
        [prompt_ids(model.text(), prompt) for prompt in prompts],
        sampling=sampling,
        generators=generators,
        max_tokens=max_tokens,
        stop=stop,
        past_context=past_context,
        statistics=statistics,
        speculate=speculate,
    )
