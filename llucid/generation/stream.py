"""Turns the engine's ids into text as they arrive: whole characters, and nothing of a stop string."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from llucid.generation.batch import Batch, Reason, Request
from llucid.generation.stopping import StopMatcher
from llucid.tokenizers import StreamingDecoder, Tokenizer


class Piece(NamedTuple):
    """What one new token adds to one text."""

    row: int
    """The index of the request."""
    text: str
    """The text that can be shown now; may be empty."""
    token: int
    logprob: float
    """As in `batch.Event`."""
    reason: Reason | None
    """Why the text ends with this token; None if it goes on."""
    slid: bool
    """Whether the text forgot the oldest half of its context just before this token."""


class Writer:
    """Decodes the tokens of one text."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self.stop_ids = tokenizer.stop_ids
        self.decoder = StreamingDecoder(tokenizer, prompt)
        self.matcher = StopMatcher(stop)
        self.ready: list[str] = []
        """What each token added, until it is taken."""

    def push(self, token: int) -> bool:
        """Decodes a token; returns whether the text ends with it."""
        if token in self.stop_ids:
            self.ready.append("")
            return True
        shown, stopped = self.matcher.push(self.decoder.push(token))
        self.ready.append(shown)
        return stopped

    def take(self, ended: bool) -> str:
        """What the next token added; if the text ended with it, also what was still held back."""
        text = self.ready.pop(0)
        return text + self.matcher.push(self.decoder.finish())[0] + self.matcher.finish() if ended else text


def stream(
    batch: Batch, requests: Sequence[Request], tokenizer: Tokenizer, stop: Sequence[str] = ()
) -> Iterator[Piece]:
    """The continuations of some requests, piece by piece, all at once; sets their `stops`.

    Closing the iterator drops the requests, and a new stream drops all that are still in the batch. Raises LlucidError
    at the call for invalid requests, and later as `Batch.step` does.
    """
    batch.clear()
    writers = [Writer(tokenizer, request.ids, stop) for request in requests]
    rows: dict[int, int] = {}
    for row, (request, writer) in enumerate(zip(requests, writers, strict=True)):
        rows[batch.add(request._replace(stops=writer.push))] = row
    return _pieces(batch, rows, writers)


def _pieces(batch: Batch, rows: dict[int, int], writers: Sequence[Writer]) -> Iterator[Piece]:
    try:
        while rows:
            assert batch.busy, "another stream of this batch has begun"
            for number, token, logprob, reason, slid in batch.step():
                row = rows[number]
                if reason:
                    del rows[number]
                yield Piece(row, writers[row].take(ended=reason is not None), token, logprob, reason, slid)
    finally:
        for number in rows:
            batch.drop(number)
