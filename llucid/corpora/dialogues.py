"""Conversations as token ids on disk, and the batches that training takes from them: one per row, from its start."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

EVALUATED = 1 << 17
"""Tokens of the validation split that are evaluated: all if there are fewer, else this many, evenly spread."""
ROW_TOKENS = 1 << 12
"""Most tokens in one batch of evaluation: enough to keep a processor busy, few enough for its cache."""
GATHERED = 16
"""Batches whose dialogues are sorted by length together, so that each batch needs little padding."""
WIDTH = 64
"""Rows have a multiple of this length, since each new shape costs time to plan products and memory."""


class Dialogues(NamedTuple):
    """Dialogues one after the other, at the beginning of a file, in int32. An id to be learned is stored as its
    complement, ~id."""

    file: Path
    ends: NDArray[np.int64]
    """Where each dialogue ends."""
    kept: NDArray[np.int64]
    """Numbers of those that have something to learn."""

    @property
    def length(self) -> int:
        """Tokens of all of them."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def read(self, numbers: NDArray[np.int64], context: int) -> tuple[Int[Tensor, "rows seq"], Int[Tensor, "rows seq"]]:
        """Inputs and the tokens that follow them, one dialogue per row, cut to `context`; −100 where there is
        nothing to learn.

        Shorter rows are padded at their end, to which no token before attends.
        """
        mapped = np.memmap(self.file, np.int32, "r", shape=(self.length,))
        starts = np.concatenate([[0], self.ends])[numbers]
        lengths = np.minimum(self.ends[numbers] - starts, context + 1)
        width = min(context, -(-(int(lengths.max()) - 1) // WIDTH) * WIDTH)
        kept = np.zeros((len(numbers), width + 1), np.int64)
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            kept[row, :length] = mapped[start : start + length]
        ids = torch.from_numpy(kept)
        return torch.where(ids < 0, ~ids, ids)[:, :-1], torch.where(ids < 0, ~ids, -100)[:, 1:]


def write_dialogues(dialogues: Iterable[tuple[list[int], list[bool]]], file: Path) -> None:
    """Writes pairs of ids and whether each is learned, then where each pair ends, then how many there are."""
    ends = [0]
    with open(file, "wb") as out:
        for ids, learned in dialogues:
            row = np.asarray(ids, np.int32)
            np.where(learned, ~row, row).tofile(out)
            ends.append(ends[-1] + len(row))
        np.asarray([*ends[1:], len(ends) - 1], np.int64).tofile(out)


def open_dialogues(file: Path, context: int) -> Dialogues:
    """What `write_dialogues` wrote, without those that have nothing to learn within `context` tokens."""
    [count] = np.fromfile(file, np.int64, offset=file.stat().st_size - 8)
    ends = np.fromfile(file, np.int64, count, offset=file.stat().st_size - 8 * (count + 1))
    learned = np.flatnonzero(np.fromfile(file, np.int32, ends[-1] if count else 0) < 0)
    starts = np.concatenate([[0], ends[:-1]])
    first = np.append(learned, np.iinfo(np.int64).max)[np.searchsorted(learned, starts + 1)]
    return Dialogues(file, ends, np.flatnonzero(first < np.minimum(ends, starts + context + 1)))


def longer(dialogues: Dialogues, context: int) -> int:
    """How many of those kept have more tokens than a context, and so are cut."""
    return int((np.diff(dialogues.ends, prepend=0)[dialogues.kept] > context + 1).sum())


def dialogue_batch(
    dialogues: Dialogues, rows: int, context: int, seed: int, step: int
) -> tuple[Int[Tensor, "rows seq"], Int[Tensor, "rows seq"]]:
    """Inputs and targets of some dialogues, the same for the same seed and step.

    Each epoch goes through them once, in a new order; it leaves out those that would not fill a last batch. Those in
    one batch have about the same length.
    """
    rows = min(rows, len(dialogues.kept))
    batches = len(dialogues.kept) // rows
    lengths = np.diff(dialogues.ends, prepend=0)[dialogues.kept]
    order = _order(lengths.tobytes(), rows, seed, step // batches)
    return dialogues.read(dialogues.kept[order[step % batches]], context)


@lru_cache(maxsize=1)
def _order(lengths: bytes, rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The dialogues of each batch of an epoch."""
    sizes, rng = np.frombuffer(lengths, np.int64), np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(len(sizes))[: len(sizes) // rows * rows]
    groups = [shuffled[at : at + rows * GATHERED] for at in range(0, len(shuffled), rows * GATHERED)]
    batches = np.concatenate([group[np.argsort(sizes[group], kind="stable")] for group in groups]).reshape(-1, rows)
    return rng.permutation(batches)


def dialogue_validation_batches(
    dialogues: Dialogues, context: int, rows: int | None = None
) -> Iterator[tuple[Int[Tensor, "rows seq"], Int[Tensor, "rows seq"]]]:
    """Inputs and targets of all dialogues or, if they have more than EVALUATED tokens, of evenly spaced ones."""
    kept = dialogues.kept
    most = max(1, EVALUATED * len(dialogues.ends) // max(1, dialogues.length))
    if len(kept) > most:
        kept = kept[np.linspace(0, len(kept) - 1, most).astype(np.int64)]
    rows = rows or max(1, ROW_TOKENS // context)
    for at in range(0, len(kept), rows):
        yield dialogues.read(kept[at : at + rows], context)
