"""From logits to a token: filters, which are pure functions of logits, then one draw with an explicit generator.

A filter excludes a token by setting its logit to −∞; it returns new logits and does not change the caller's.
Logits are NumPy arrays on a CPU, where the overhead of PyTorch's operations would exceed their work, and tensors
elsewhere. Both libraries have the functions used here under the same names, except in `largest` and `draw`.
"""

import importlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.random import Generator
from numpy.typing import NDArray

from llucid.errors import LlucidError, check_number, note
from llucid.model import Model


def sampling_of(model: Model, **given: Any) -> "Sampling":
    """The settings given, else the model's own, else `Sampling`'s. An impossible one of the model's is ignored, with a
    note."""
    own: dict[str, Any] = {}
    for name in sorted(model.sampling.keys() - given.keys()):
        try:
            Sampling(**{name: model.sampling[name]})
            own[name] = model.sampling[name]
        except LlucidError as error:
            _note_once(f"the model's own settings: {error}; ignored")
    return Sampling(**own, **given)


_note_once = cache(note)


def library_of(array: Any) -> Any:
    """The library that `array` belongs to: NumPy or PyTorch."""
    return np if isinstance(array, np.ndarray) else importlib.import_module("torch")


def wide(logits: Float[Any, "batch vocab"]) -> Float[Any, "batch vocab"]:
    """The logits in float32 or wider: `llucid.llama.wide`; NumPy's as they are, since they are never narrower."""
    return logits if isinstance(logits, np.ndarray) else importlib.import_module("llucid.llama").wide(logits)


def softmax(logits: Float[Any, "*batch vocab"]) -> Float[Any, "*batch vocab"]:
    """eˣ / Σ eˣ."""
    library = library_of(logits)
    powers = library.exp(logits - library.amax(logits, axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def largest(x: Float[Any, "batch vocab"], count: int) -> Float[Any, "batch count"]:
    """The `count` largest numbers of each row, in descending order."""
    if isinstance(x, np.ndarray):
        less = -x
        return -np.sort(less if count == x.shape[-1] else np.partition(less, count - 1)[:, :count])
    return x.topk(count).values


def likeliest(row: Float[NDArray[Any], " vocab"], count: int) -> Int[NDArray[Any], " some"]:
    """The ids of at least the `count` largest numbers, in ascending order: all those that are not below some number.

    That is the median of the largest numbers of 2 · `count` pieces of the row, which takes much less time than sorting.
    """
    size = len(row) // (2 * count)
    if size < 2:
        return np.arange(len(row))
    most = row[: 2 * count * size].reshape(2 * count, size).max(1)
    return np.flatnonzero(row >= np.partition(most, count)[count])


def temperature(logits: Float[Any, "batch vocab"], t: float) -> Float[Any, "batch vocab"]:
    """logits / t: t < 1 makes likely tokens likelier, t > 1 flattens the distribution. Ackley et al. 1985, eq. 5."""
    return logits / t


def top_k(logits: Float[Any, "batch vocab"], k: int) -> Float[Any, "batch vocab"]:
    """Keeps the k largest logits, and any that equal the k-th, so that ties are not broken by the order of ids.

    Fan et al. 2018, §5.4.
    """
    kth = largest(logits, min(k, logits.shape[-1]))[:, -1:]
    return library_of(logits).where(logits < kth, -math.inf, logits)


NUCLEUS = 256
"""Tokens that `top_p` sorts first: they nearly always have enough probability, and sorting all takes much longer."""


def mass(logits: Float[Any, "batch vocab"], t: float = 1.0) -> Float[Any, "batch 1"]:
    """Σ exp((x − max x) / t). NumPy adds in float64, so that leaving out or reordering zeros changes nothing."""
    library = library_of(logits)
    powers = library.exp((logits - library.amax(logits, axis=-1, keepdims=True)) / t)
    if isinstance(powers, np.ndarray):
        return powers.sum(axis=-1, keepdims=True, dtype=np.float64).astype(powers.dtype)
    return powers.sum(axis=-1, keepdims=True)


def top_p(
    logits: Float[Any, "batch vocab"], p: float, total: Float[Any, "batch 1"] | None = None
) -> Float[Any, "batch vocab"]:
    """Keeps the likeliest tokens up to and including the one that crosses p: drops those with more than p before them.

    Holtzman et al. 2020 (nucleus sampling), §3.1; where a sum equals p exactly, one token more, as in Meta's code. Of
    equally likely tokens, the one with the lower id comes first. `total` is the `mass` of the whole vocabulary where
    `logits` are only its likeliest tokens.
    """
    library, vocabulary = library_of(logits), logits.shape[-1]
    most = library.amax(logits, axis=-1, keepdims=True)
    total = mass(logits) if total is None else total
    for count in (NUCLEUS, vocabulary):
        likeliest = largest(logits, min(count, vocabulary))
        probabilities = library.exp(likeliest - most) / total
        before = probabilities.cumsum(axis=-1)
        before = library.concatenate((0 * before[:, :1], before[:, :-1]), axis=-1)
        if bool((before[:, -1] > p).all()):
            break  # the threshold is among these
    kept = before <= p
    least = library.amin(library.where(kept, likeliest, math.inf), axis=-1, keepdims=True)
    dropped = logits < least
    if bool(((~dropped).sum(axis=-1) > kept.sum(axis=-1)).any()):
        ties, room = logits == least, (kept & (likeliest == least)).sum(axis=-1, keepdims=True)
        dropped |= ties & (ties.cumsum(axis=-1) > room)
    return library.where(dropped, -math.inf, logits)


def min_p(logits: Float[Any, "batch vocab"], share: float) -> Float[Any, "batch vocab"]:
    """Keeps tokens that are at least `share` times as likely as the likeliest: logit ≥ max + ln share.

    Nguyen et al. 2024, §3.
    """
    if share == 0:
        return logits
    library = library_of(logits)
    least = library.amax(logits, axis=-1, keepdims=True) + math.log(share)
    return library.where(logits < least, -math.inf, logits)


def penalised(logits: Float[Any, " vocab"], seen: Iterable[int], repetition: float) -> Float[Any, " vocab"]:
    """Divides the logits of tokens that were seen by `repetition` where they are positive, multiplies them elsewhere.

    Keskar et al. 2019 (CTRL), §4.1, as transformers has it.
    """
    ids = sorted({token for token in seen if token < logits.shape[-1]})
    logits = copy_of(logits)
    some = logits[ids]
    logits[ids] = library_of(logits).where(some > 0, some / repetition, some * repetition)
    return logits


def log_probability(logits: Float[Any, " vocab"], token: int) -> float:
    """ln softmax(logits)[token]."""
    library = library_of(logits)
    most = logits.max()
    return float(logits[token] - most - library.log(library.exp(logits - most).sum()))


def copy_of(array: Any) -> Any:
    """A copy of NumPy's array or of a tensor."""
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


def draw(logits: Float[Any, "batch vocab"], generators: Sequence[Generator]) -> Int[Any, " batch"]:
    """One token per row from softmax(logits): the first whose cumulative probability exceeds a uniform number.

    Row i takes one number from `generators[i]`, on any device, so its token does not depend on the other rows. Sums are
    in float64: in float32, tokens rarer than 2⁻²⁴ could never be drawn.
    """
    uniform = [[generator.random()] for generator in generators]
    # uniform ≤ 1 − 2⁻⁵³, so uniform · total < total even when rounded: there is always such a token.
    if isinstance(logits, np.ndarray):
        tokens: list[int] = []
        for row, (share,) in zip(logits, uniform, strict=True):
            ids = np.flatnonzero(row > -math.inf)  # summing excluded tokens would take most of the time
            cumulative = softmax(row[ids]).cumsum(dtype=np.float64)
            tokens.append(int(ids[np.searchsorted(cumulative, share * cumulative[-1], side="right")]))
        return np.array(tokens)
    probabilities = softmax(wide(logits))
    if probabilities.device.type == "mps":  # has no float64
        probabilities = probabilities.cpu()
    library = library_of(logits)
    cumulative = probabilities.cumsum(-1, dtype=library.float64)
    total = cumulative[:, -1:]
    return library.searchsorted(cumulative, total.new_tensor(uniform) * total, right=True)[:, 0]


def generator(seed: int, stream: int = 0) -> Generator:
    """The random numbers of one text: equal for equal seed and stream, independent for any other pair.

    NumPy's SeedSequence mixes the two; with seed + stream, seeds 0 and 1 would share most of their streams.
    """
    return np.random.default_rng((seed, stream))


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Raises LlucidError, naming the option, for a value out of range."""

    temperature: float = 0.8
    """Divides the logits; 0 always takes the likeliest token (greedy)."""
    top_k: int | None = None
    """Only the k likeliest tokens; None or 0 for all."""
    top_p: float | None = 0.95
    """Only the likeliest tokens that together have this probability; None for all."""
    min_p: float | None = None
    """Only tokens at least this share as likely as the likeliest; None for all."""
    repetition_penalty: float = 1.0
    """More than 1 makes tokens that the model has before it less likely; 1 changes nothing."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that it was written in this text."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of a token that was written in this text."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(id, number that is added to its logit)."""

    def __post_init__(self) -> None:
        t, k, p, share = self.temperature, self.top_k, self.top_p, self.min_p
        optional = {"top_k": k or 1, "top_p": 1 if p is None else p, "min_p": share or 0, "logit_bias": 0}
        for name, number in (vars(self) | optional).items():
            check_number(name, number, whole=name == "top_k")
        if not (t == 0 or 1e-6 <= t <= 1e6):
            raise LlucidError(f"temperature={t}: must be 0 (always the likeliest token) or a number from 1e-6 to 1e6")
        if k is not None and k < 0:
            raise LlucidError(f"top_k={k}: must be at least 0; 0 is for all tokens")
        if p is not None and not 0 < p <= 1:
            raise LlucidError(f"top_p={p}: must be more than 0 and at most 1; 1 is for all tokens")
        if share is not None and not 0 <= share <= 1:
            raise LlucidError(f"min_p={share}: must be at least 0 and at most 1; 0 is for all tokens")
        # Within these bounds no logit that a reader returns becomes infinite in float32.
        if not 0.01 <= self.repetition_penalty <= 100:
            raise LlucidError(
                f"repetition_penalty={self.repetition_penalty}: must be from 0.01 to 100; 1 changes nothing"
            )
        for name in ("frequency_penalty", "presence_penalty"):
            if not abs(number := getattr(self, name)) <= 100:
                raise LlucidError(f"{name}={number}: must be from -100 to 100; 0 changes nothing")
        for token, bias in self.logit_bias:
            check_number("logit_bias", token, whole=True)
            check_number("logit_bias", bias)
            if not (token >= 0 and abs(bias) <= 100):
                raise LlucidError(f"logit_bias={token}={bias:g}: must be an id and a number from -100 to 100")

    def penalise(
        self, logits: Float[Any, "batch vocab"], histories: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> Float[Any, "batch vocab"]:
        """The logits after penalties and biases; a history is (the ids that the model has before it, those written)."""
        counted = self.frequency_penalty != 0 or self.presence_penalty != 0
        if self.repetition_penalty == 1 and not counted and not self.logit_bias:
            return logits
        rows: list[Any] = []
        for row, (seen, written) in zip(wide(logits), histories, strict=True):
            row = penalised(row, seen, self.repetition_penalty)
            for token, count in Counter(written).items() if counted else ():
                row[token] -= count * self.frequency_penalty + self.presence_penalty
            for token, bias in self.logit_bias:
                if token < row.shape[-1]:
                    row[token] += bias
            rows.append(row)
        return library_of(logits).stack(rows)

    def __call__(
        self, logits: Float[Any, "batch vocab"], total: Float[Any, "batch 1"] | None = None
    ) -> Float[Any, "batch vocab"]:
        """The logits whose softmax is drawn from: temperature, then top-k, top-p and min-p, in the wide dtype.

        `total` as for `top_p`, where there is no top-k.
        """
        logits = wide(logits)
        if self.temperature == 0:
            library = library_of(logits)
            best = logits == library.amax(logits, axis=-1, keepdims=True)
            first = best & (best.cumsum(axis=-1) == 1)
            return library.where(first, library.zeros_like(logits), -math.inf)
        logits = temperature(logits, self.temperature)
        if self.top_k:
            logits = top_k(logits, self.top_k)
        if self.top_p is not None and self.top_p < 1:
            logits = top_p(logits, self.top_p, total)
        if self.min_p is not None:
            logits = min_p(logits, self.min_p)
        return logits

    def choose(self, logits: Float[Any, "batch vocab"], generators: Sequence[Generator]) -> Int[Any, " batch"]:
        """The next token of each row: drawn with the row's generator, or at temperature 0 the first of the largest."""
        if self.temperature == 0:
            return logits.argmax(-1)
        if not isinstance(logits, np.ndarray) or logits.shape[-1] < 8 * NUCLEUS:
            return draw(self(logits), generators)
        return np.array([self._choose_likely(row, one) for row, one in zip(logits, generators, strict=True)])

    def _choose_likely(self, row: Float[NDArray[Any], " vocab"], generator: Generator) -> int:
        """`choose` for one row. It looks at the likeliest tokens only where the filters exclude all others, since the
        operations on a large vocabulary would take longer than the model.
        """
        filtered = bool(self.top_k) or bool(self.min_p) or (self.top_p or 1) < 1
        by_mass = not self.top_k and (self.top_p or 1) < 1
        total = mass(row[None], self.temperature) if by_mass else None
        if filtered:
            ids = likeliest(row, max(NUCLEUS, self.top_k or 0))
            left = self(row[None, ids], total)
            if (left[left > -math.inf] > row[ids].min() / self.temperature).all():  # so it and all others are excluded
                return int(ids[draw(left, [generator])[0]])
        return int(draw(self(row[None], total), [generator])[0])
