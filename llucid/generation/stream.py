"""Ids become text as they come: whole characters, nothing of a stop string, for one text or for many at once."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from llucid.generation.batch import Batch, Reason, Request
from llucid.generation.stopping import StopMatcher
from llucid.tokenizers import StreamingDecoder, Tokenizer


class Piece(NamedTuple):
    """What one new token adds to one text."""

    row: int
    """Which of the requests."""
    text: str
    """The text that can now be shown; often a word, sometimes nothing."""
    token: int
    logprob: float
    """As in `batch.Event`."""
    reason: Reason | None
    """Why the text ends with this token; None if it goes on."""
    slid: bool
    """Whether the text forgot the oldest half of its context just before this token."""


class Writer:
    """One text, from its tokens."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self.stop_ids = tokenizer.stop_ids
        self.decoder = StreamingDecoder(tokenizer, prompt)
        self.matcher = StopMatcher(stop)
        self.ready: list[str] = []
        """What each token added that has not been taken yet."""

    def push(self, token: int) -> bool:
        """Whether the text ends with this token; what it adds is ready to be taken."""
        if token in self.stop_ids:
            self.ready.append("")
            return True
        shown, stopped = self.matcher.push(self.decoder.push(token))
        self.ready.append(shown)
        return stopped

    def take(self, ended: bool) -> str:
        """What the next token added; with what was still waiting, if the text has ended with it."""
        text = self.ready.pop(0)
        return text + self.matcher.push(self.decoder.finish())[0] + self.matcher.finish() if ended else text


def stream(
    batch: Batch, requests: Sequence[Request], tokenizer: Tokenizer, stop: Sequence[str] = ()
) -> Iterator[Piece]:
    """The continuations of some requests, piece by piece, all at once; their `stops` are set here.

    If it is closed before its end, the requests are dropped. Raises LlucidError at the call for requests that cannot
    be, and while it runs as `Batch.step` does.
    """
    writers = [Writer(tokenizer, request.ids, stop) for request in requests]
    rows: dict[int, int] = {}
    try:
        for row, (request, writer) in enumerate(zip(requests, writers, strict=True)):
            rows[batch.add(request._replace(stops=writer.push))] = row
    except BaseException:
        for number in rows:
            batch.drop(number)
        raise
    return _pieces(batch, rows, writers)


def _pieces(batch: Batch, rows: dict[int, int], writers: Sequence[Writer]) -> Iterator[Piece]:
    try:
        while rows:
            for number, token, logprob, reason, slid in batch.step():
                row = rows[number]
                if reason:
                    del rows[number]
                yield Piece(row, writers[row].take(ended=reason is not None), token, logprob, reason, slid)
    finally:
        for number in rows:
            batch.drop(number)
