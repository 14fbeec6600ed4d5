"""One pass of the model: new ids of some sequences in, logits out; keys and values go into the cache.

Two implementations share the cache: C (native/step.py), which is faster for few tokens, and PyTorch (torch_reader.py),
which is faster for many. `Reader` chooses for each pass. With quantised weights C also reads all but very long prompts,
since PyTorch must dequantise them first; and until PyTorch is imported, C reads whatever takes less time than the
import.
"""

import os
import signal
import threading
from collections.abc import Generator
from collections.abc import Sequence as Ids
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from llucid.arrays import Mapped, Quantized
from llucid.arrays.dtypes import name_of_dtype, width_of
from llucid.config import Config
from llucid.errors import LlucidError
from llucid.generation.pages import Pages, Part
from llucid.generation.sampling import wide
from llucid.native.build import warn
from llucid.native.step import decode_step
from llucid.weights import Weights, dequantize, leaves, parameter_count, tensors

if TYPE_CHECKING:
    from llucid.generation.torch_reader import TorchReader

C_TOKENS, C_TOKENS_QUANTISED = 24, 4096
"""Up to this many tokens per pass, C is faster than PyTorch: with plain weights, with quantised ones."""
C_CHUNK = 64
"""Tokens per call of C, which bounds its memory."""
SHORT = 8
"""Unread tokens of a text that is being written, at most: the newest and guesses. More is a prompt."""
IMPORT_COST = 1 << 36
"""Multiplications that C performs in about the time that importing PyTorch takes."""

IMPORTING = threading.RLock()
"""Held during an import. A process that is forked meanwhile would wait for ever for Python's lock of the module."""
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=IMPORTING.acquire, after_in_parent=IMPORTING.release, after_in_child=IMPORTING.release)

LARGEST = 1e30
"""The largest valid logit: divided by the lowest temperature, it is still finite in float32."""


def has_quantised(weights: Weights) -> bool:
    """Whether a matrix is quantised."""
    return any(isinstance(leaf, Quantized) for leaf in leaves(weights))


def cache_dtype(weights: Weights) -> str:
    """The dtype of keys and values: that of the weights, or float16 beside quantised ones.

    Those are coarser than float16, and reading wider keys and values would take much of the time.
    """
    return "float16" if has_quantised(weights) else name_of_dtype(weights.dtype)


class Reader:
    """Runs passes by C or PyTorch, whichever is faster. `limit` bounds the memory of the cache, in bytes."""

    def __init__(self, weights: Weights, config: Config, limit: int | None = None) -> None:
        self.weights, self.config = weights, config
        self.step = decode_step(weights, config)
        self.quantised = has_quantised(weights)
        self.pages = Pages(config, cache_dtype(weights), str(weights.device), limit)
        self._torch: TorchReader | None = None

    def read(self, parts: Ids[Part]) -> Float[Any, "scored vocab"]:
        """The logits, part by part: a NumPy array on a CPU, else a tensor. Does not change the sequences' lengths.

        Raises LlucidError for logits that are not finite or absurdly large.
        """
        if self.step is None:
            return checked(self.torch.read(parts))
        most = C_TOKENS_QUANTISED if self.quantised else C_TOKENS
        imported = self._torch is not None or not isinstance(self.weights.norm, Mapped)
        unread = sum(part.unread for part in parts)
        if unread <= most or (not imported and unread * parameter_count(self.config) <= IMPORT_COST):
            return checked(self._read_by_c(parts))
        # PyTorch reads prompts, and C continues the texts that are being written, while these are few.
        prompts = [part.unread > SHORT for part in parts]
        written = [part for part, is_prompt in zip(parts, prompts, strict=True) if not is_prompt]
        if not written or sum(len(part.ids) for part in written) > most:
            return checked(self.torch.read(parts))
        by_torch = checked(self.torch.read([part for part, is_prompt in zip(parts, prompts, strict=True) if is_prompt]))
        return in_order(parts, prompts, by_torch, checked(self._read_by_c(written)))

    def _read_by_c(self, parts: Ids[Part]) -> Float[Any, "scored vocab"]:
        found: list[Any] = []
        pieces: list[tuple[Ids[int], int, Any]] = []
        wanted: list[int] = []
        count = 0

        def flush() -> None:
            nonlocal count
            assert self.step
            if pieces:
                found.append(self.step(pieces, self.pages.memory, wanted))
            pieces.clear()
            wanted.clear()
            count = 0

        for part in parts:
            start = 0
            while start < len(part.ids):
                if count == C_CHUNK:
                    flush()
                piece = part.ids[start : start + C_CHUNK - count]
                pieces.append((piece, part.sequence.length + start, part.sequence.numbers))
                unscored = max(0, len(part.ids) - part.scored - start)
                wanted += range(count + unscored, count + len(piece))
                start, count = start + len(piece), count + len(piece)
        flush()
        return found[0] if len(found) == 1 else np.concatenate(found)

    @property
    def torch(self) -> "TorchReader":
        """PyTorch's reader, created when first needed."""
        if self._torch is None:
            if self.step is None and self.quantised:
                dtype = name_of_dtype(self.weights.dtype)
                size = parameter_count(self.config) * width_of(dtype) / 1e9
                warn(f"llucid: without C, quantised matrices become {dtype}, {size:.1f} GB in memory")
            with delayed_interrupts(), IMPORTING:
                from llucid.generation.torch_reader import TorchReader

            weights = dequantize(tensors(self.weights)) if self.step is None else tensors(self.weights)
            if self.step is not None and weights is not self.weights:
                self.step = decode_step(weights, self.config)  # on the same tensors
            self.weights, self._torch = weights, TorchReader(weights, self.config, self.pages.memory)
        return self._torch


def checked(logits: Any) -> Any:
    """The logits in float32 or wider; on a CPU as a NumPy array. (PyTorch's threads would keep spinning after each
    operation, while C needs the cores.)

    Raises LlucidError for logits that are not finite or larger than LARGEST.
    """
    logits = wide(logits)
    if not isinstance(logits, np.ndarray) and logits.device.type == "cpu":
        logits = logits.numpy()
    if not bool((abs(logits) < LARGEST).all()):
        raise LlucidError(
            "the model's scores are not finite, or far too large; its weights may be damaged, or try dtype=float32"
        )
    return logits


def in_order(parts: Ids[Part], first: Ids[bool], scores_a: Any, scores_b: Any) -> Any:
    """The logits of all parts in order, merged from those of the `first` parts and those of the others."""
    sources = {True: iter(scores_a), False: iter(scores_b)}
    return np.stack([next(sources[side]) for part, side in zip(parts, first, strict=True) for _ in range(part.scored)])


@contextmanager
def delayed_interrupts() -> Generator[None]:
    """Delays Ctrl-C: a half-imported PyTorch cannot be imported again, and a chat should go on."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    caught: list[Any] = []
    signal.signal(signal.SIGINT, lambda *given: caught.append(given))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if caught:
        handler(*caught[-1])
