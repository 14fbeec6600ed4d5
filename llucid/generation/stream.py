"""Ids become text as they come: whole characters, nothing of a stop string, for one row or for many at once."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from numpy.random import Generator

from llucid.errors import LlucidError
from llucid.generation.decode import PastContext, Reason, Statistics, Step, decode
from llucid.generation.reading import Context, read
from llucid.generation.sampling import Sampling
from llucid.generation.speculation import ReadAhead
from llucid.generation.stopping import StopMatcher
from llucid.model import Model
from llucid.tokenizers import StreamingDecoder, Tokenizer


class Piece(NamedTuple):
    """What one new token adds to the text of one row."""

    row: int
    text: str
    """The text that can now be shown; often a word, sometimes nothing."""
    token: int
    reason: Reason | None
    """Why the row ends with this token; None if it goes on."""
    slid: bool
    """Whether the row forgot the oldest half of its context just before this token."""
    context: Context
    """What has been read so far: give it to the next `stream`, and only what is new is read."""


class Writer:
    """The text of one row, from its tokens."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self.stop_ids = tokenizer.stop_ids
        self.decoder = StreamingDecoder(tokenizer, prompt)
        self.matcher = StopMatcher(stop)
        self.ready = ""

    def push(self, token: int) -> bool:
        """Whether the text ends with this token; what it adds is ready to be taken."""
        if token in self.stop_ids:
            return True
        shown, stopped = self.matcher.push(self.decoder.push(token))
        self.ready += shown
        return stopped

    def take(self, ended: bool) -> str:
        """What has become ready since it was last asked for; with what was still waiting, if the text has ended."""
        if ended:
            self.ready += self.matcher.push(self.decoder.finish())[0] + self.matcher.finish()
        text, self.ready = self.ready, ""
        return text


def stream(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    generators: Sequence[Generator],
    max_tokens: int,
    stop: Sequence[str] = (),
    past_context: PastContext = "slide",
    context: Context | None = None,
    statistics: Statistics | None = None,
    speculate: bool = False,
) -> Iterator[Piece]:
    """The continuations of rows of ids, piece by piece, all rows at once; row i draws from `generators[i]`.

    Ids that the model has and the tokenizer has not are never chosen. To `speculate` changes nothing but the time that
    it takes. Raises LlucidError as `decode` does, and for several rows to speculate on, since they share their slots.
    """
    if speculate and len(prompts) > 1:
        raise LlucidError(f"--speculate: one text at a time, and here are {len(prompts)}; leave one of the two out")
    statistics = Statistics() if statistics is None else statistics
    writers = [Writer(model.text(), prompt, stop) for prompt in prompts]

    def choose(logits: Float[Any, "batch vocab"]) -> Int[Any, " batch"]:
        return sampling.choose(logits[:, : model.text().vocab_size], generators)

    steps = decode(
        model.weights,
        model.config,
        prompts,
        choose=choose,
        stops=lambda row, token: writers[row].push(token),
        max_tokens=max_tokens,
        past_context=past_context,
        keep=0 if model.text().bos is None else 1,
        context=context,
        statistics=statistics,
        reader=ReadAhead(statistics) if speculate else read,
    )
    return _pieces(steps, writers)


def _pieces(steps: Iterator[Step], writers: Sequence[Writer]) -> Iterator[Piece]:
    for step in steps:
        for row, token in enumerate(step.tokens):
            if token is not None:
                text = writers[row].take(ended=step.reasons[row] is not None)
                yield Piece(row, text, token, step.reasons[row], step.slid[row], step.context)
