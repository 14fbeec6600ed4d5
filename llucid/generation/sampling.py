"""From logits to a token: filters that are pure functions of logits, then one draw with a generator of its own.

A filter takes a token out of the running by giving it −∞; it returns new logits and leaves the caller's alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llucid.errors import LlucidError
from llucid.llama import wide


def temperature(logits: Float[Tensor, "batch vocab"], t: float) -> Float[Tensor, "batch vocab"]:
    """logits / t: below 1 the likely become likelier, above 1 all become more alike. Ackley et al. 1985, eq. 5."""
    return logits / t


def top_k(logits: Float[Tensor, "batch vocab"], k: int) -> Float[Tensor, "batch vocab"]:
    """The k largest logits, and any that equal the k-th, so that ties are never broken by the order of ids.

    Fan et al. 2018, §5.4.
    """
    kth = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < kth, -math.inf)


MOSTLY = 256
"""So many of the likeliest tokens nearly always have most of the probability: to sort all would take far longer."""


def top_p(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """The likeliest tokens up to and with the one that crosses p: dropped is what has more than p before it.

    Holtzman et al. 2020 (nucleus sampling), §3.1. Of equally likely tokens, that of the lower id comes first.
    """
    probabilities = wide(logits).softmax(-1)
    for count in (MOSTLY, logits.shape[-1]):
        largest, ids = logits.topk(min(count, logits.shape[-1]))
        before = F.pad(probabilities.gather(-1, ids).cumsum(-1)[:, :-1], (1, 0))
        if bool((before[:, -1] > p).all()):
            break  # of these some are dropped, and so is all that is less likely
    kept = before <= p
    least = largest.gather(-1, kept.sum(-1, keepdim=True) - 1)
    ties, room = logits == least, (kept & (largest == least)).sum(-1, keepdim=True)
    return logits.masked_fill((logits < least) | (ties & (ties.cumsum(-1) > room)), -math.inf)


def min_p(logits: Float[Tensor, "batch vocab"], share: float) -> Float[Tensor, "batch vocab"]:
    """The tokens that are at least `share` as likely as the likeliest: logit ≥ max + ln share.

    Nguyen et al. 2024, §3.
    """
    if share == 0:
        return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(share), -math.inf)


def draw(logits: Float[Tensor, "batch vocab"], generators: Sequence[torch.Generator]) -> Int[Tensor, " batch"]:
    """One token per row from softmax(logits): the first whose cumulative probability exceeds a uniform number.

    Row i takes its one number from `generators[i]` (on the CPU, wherever the logits are), so its token does not
    depend on the other rows. Sums are in float64: in float32, tokens rarer than 2⁻²⁴ would never have their turn.
    """
    probabilities = wide(logits).softmax(-1)
    if probabilities.device.type == "mps":  # has no float64
        probabilities = probabilities.cpu()
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    uniform = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    # uniform ≤ 1 − 2⁻⁵³, so uniform · total < total even when rounded: there is always such a token.
    return torch.searchsorted(cumulative, uniform.to(total.device) * total, right=True)[:, 0]


def generator(seed: int, stream: int = 0) -> torch.Generator:
    """The random numbers of one text: the same for the same seed and stream, unrelated for any other.

    O'Neill's seed sequence mixes the two; seed + stream would give seed 0 and seed 1 most of their streams in common.
    """
    mixed = np.random.SeedSequence((seed, stream)).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Raises LlucidError, naming the option, for a number that cannot be."""

    temperature: float = 0.8
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens; None for all."""
    top_p: float | None = 0.95
    """Only the likeliest tokens that together have this probability; None for all."""
    min_p: float | None = None
    """Only tokens at least this share as likely as the likeliest; None for all."""

    def __post_init__(self) -> None:
        t, k, p, share = self.temperature, self.top_k, self.top_p, self.min_p
        if not (t == 0 or 1e-6 <= t < math.inf):
            raise LlucidError(f"--temperature {t}: must be 0 (always the likeliest token) or a number of at least 1e-6")
        if k is not None and k < 1:
            raise LlucidError(f"--top-k {k}: must be at least 1; leave it out for all tokens")
        if p is not None and not 0 < p <= 1:
            raise LlucidError(f"--top-p {p}: must be more than 0 and at most 1; 1 is for all tokens")
        if share is not None and not 0 <= share <= 1:
            raise LlucidError(f"--min-p {share}: must be at least 0 and at most 1; 0 is for all tokens")

    def __call__(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
        """The logits whose softmax is drawn from: temperature, then top-k, top-p and min-p, in the wide dtype."""
        logits = wide(logits)
        if self.temperature == 0:
            best = logits.argmax(-1, keepdim=True)
            return torch.full_like(logits, -math.inf).scatter(-1, best, 0.0)
        logits = temperature(logits, self.temperature)
        if self.top_k is not None:
            logits = top_k(logits, self.top_k)
        if self.top_p is not None and self.top_p < 1:
            logits = top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = min_p(logits, self.min_p)
        return logits

    def choose(
        self, logits: Float[Tensor, "batch vocab"], generators: Sequence[torch.Generator]
    ) -> Int[Tensor, " batch"]:
        """The next token of each row: drawn with the row's generator, or at temperature 0 the first of the largest."""
        return logits.argmax(-1) if self.temperature == 0 else draw(self(logits), generators)
