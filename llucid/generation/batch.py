"""The engine (continuous batching): requests come and go, and each step adds a token to every running text.

    add(request)                                 a prompt, and how to continue it
    step():  parts   = a chunk of the prompt, or the newest token (and guesses), of each text
             logits  = read(parts)               by C or PyTorch, on one cache
             tokens  = choose(logits)            one per text, each with its own random numbers
    drop(number)                                 ends a text early

An exception, Ctrl-C for example, may end any of these at any line. The next call then starts again from the texts and
the tree of pages (`Pages.restore`).

The engine works on ids only. The tokens of a request do not depend on other requests: exactly where C computes, to
rounding where PyTorch does. Common prefixes are shared; when memory runs out, the newest texts wait.
"""

import math
from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from itertools import chain
from time import perf_counter
from typing import Any, Literal, NamedTuple

from numpy.random import Generator

from llucid.arrays.memory import memory_size
from llucid.config import Config
from llucid.errors import LlucidError, check_number
from llucid.generation.pages import Part, Sequence, common_prefix
from llucid.generation.reader import C_TOKENS, Reader
from llucid.generation.sampling import Sampling, log_probability
from llucid.generation.speculation import Draft
from llucid.model import Model

Reason = Literal["stop", "length", "context"]
"""Why a text ended: at a stop token or string, after max_tokens, or because the model's context was full."""
PastContext = Literal["slide", "stop"]
"""What happens when the context is full: `slide` drops the oldest half and continues, `stop` ends the text."""
CHUNK = 512
"""Prompt tokens per step: bounds the memory of a step, and how long running texts wait for it."""
ROOM = 256
"""Slots that are reserved at once for new tokens, where memory allows: adjacent pages are read faster."""
SCORES = 1 << 26
"""Scores of a step, 256 MB in float32: with large vocabularies they bound how many texts run at once."""
LOOK_AHEAD = 16
"""Waiting texts that are looked at although a step has enough to read: one that shares all it reads can start."""
WORTH_WAITING = 8
"""A request waits a step if another is just reading at least this many tokens that it could share."""


class Request(NamedTuple):
    """A text to continue."""

    ids: Ids[int]
    sampling: Sampling
    generator: Generator
    """Its random numbers, one for each token."""
    stops: Callable[[int], bool]
    """Called with each new id; returns whether the text ends with it."""
    max_tokens: int
    past_context: PastContext = "slide"
    draft: Draft | None = None
    """Makes guesses for speculation; None for no speculation."""


class Event(NamedTuple):
    """A new token of one text."""

    number: int
    """The request's, from `add`."""
    token: int
    logprob: float
    """The natural logarithm of its probability, before temperature and filters."""
    reason: Reason | None
    """Why the text ends with this token; None if it goes on."""
    slid: bool
    """Whether the oldest half of the context was dropped just before this token."""


@dataclass
class Statistics:
    """How much was read and written, and how fast; updated by each step. `str` gives a line for people."""

    rows: int = 0
    """Texts that were added."""
    prompt_tokens: int = 0
    """Prompt tokens that were read; shared ones are not counted."""
    prompt_seconds: float = 0.0
    """Duration of the steps that read a prompt."""
    tokens: int = 0
    """Tokens written, of all texts."""
    decoded: int = 0
    """Tokens written in steps that read no prompt."""
    seconds: float = 0.0
    """Duration of the steps that read no prompt; time between steps is not counted."""
    guessed: int = 0
    """Tokens that speculation guessed right, which cost no pass of the model."""
    slid: bool = False
    """Whether a context was full and its oldest half was dropped."""
    reason: Reason | None = None
    """Why the last text ended; None while one goes on."""

    @property
    def tokens_per_second(self) -> float:
        """Tokens written per second, in steps that read no prompt; 0 if there was none."""
        return self.decoded / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        prompt = f"prompt {self.prompt_tokens} tokens in {self.prompt_seconds:.2f} s"
        rate = f" ({self.tokens_per_second:.0f} tokens/s)" if self.seconds else ""
        guessed = f", {self.guessed} guessed" if self.guessed else ""
        # The first token of each text is written in the step that reads its prompt, and often tokens of other texts.
        others = f", {self.decoded} of them" if self.tokens - self.decoded > self.rows else ""
        return f"{prompt}, {self.tokens} tokens{others} in {self.seconds:.1f} s{rate}{guessed}"


@dataclass(eq=False)
class Text:
    """The state of a request."""

    number: int
    request: Request
    ids: list[int]
    """What the model sees of the text: all of it, or the window after sliding."""
    sequence: Sequence | None = None
    """None while it waits."""
    written: list[int] = field(default_factory=list[int])
    slid: bool = False
    guesses: tuple[int, ...] = field(default=())
    """The guesses that this step reads."""

    @property
    def unread(self) -> int:
        return len(self.ids) - (self.sequence.length if self.sequence else 0)


class Batch:
    """An engine for one model. `memory` bounds the cache, in bytes; None for half of the machine's memory.

    It may be used by one thread at a time; several engines may share a model.
    """

    def __init__(self, model: Model, memory: int | float | None = None, statistics: Statistics | None = None) -> None:
        self.config = model.config
        on_cpu = str(model.weights.device) == "cpu"
        if memory is None and on_cpu and (size := memory_size()):
            memory = size // 2
        if memory is not None:
            check_number("memory", memory)
            if not 0 <= memory < math.inf:
                raise LlucidError(f"memory={memory}: must be a number of bytes")
            memory = int(memory)  # also of 4e9
        self.reader = Reader(model.weights, model.config, memory)
        self.pages = self.reader.pages
        self.vocabulary = model.tokenizer.vocab_size if model.tokenizer else model.config.vocab_size
        self.keep = 1 if model.tokenizer and model.tokenizer.bos is not None else 0
        """How many first ids stay when a text slides: BOS."""
        self.statistics = statistics or Statistics()
        self.waiting: list[Text] = []
        self.running: list[Text] = []
        self.count = 0
        self.incomplete = False
        """Whether a call that changes sequences is running, or was ended by an exception."""

    def add(self, request: Request) -> int:
        """Adds a request; returns its number, which its events carry. Raises LlucidError if it is invalid."""
        check_number("max_tokens", request.max_tokens, whole=True)
        if request.max_tokens < 1:
            raise LlucidError(f"max_tokens={request.max_tokens}: must be at least 1")
        if request.past_context not in ("slide", "stop"):
            raise LlucidError(f"past_context={request.past_context}: expected 'slide' or 'stop'")
        for token, bias in request.sampling.logit_bias:
            if token >= self.config.vocab_size:
                raise LlucidError(f"logit_bias={token}={bias:g}: this model has ids 0 to {self.config.vocab_size - 1}")
        check_prompt(request.ids, self.config)
        self.count += 1
        request = request._replace(max_tokens=int(request.max_tokens))  # NumPy's have few bits
        self.waiting.append(Text(self.count - 1, request, list(request.ids)))
        self.statistics.rows += 1
        self.statistics.reason = None
        return self.count - 1

    def drop(self, number: int) -> None:
        """Ends a text early; does nothing if it has ended already."""
        text = next((text for text in chain(self.running, self.waiting) if text.number == number), None)
        if text:
            self._begin()
            self._end(text)
            self.incomplete = False

    def clear(self) -> None:
        """Ends all texts early."""
        for text in (*self.running, *self.waiting):
            self.drop(text.number)

    @property
    def busy(self) -> bool:
        """Whether there are requests that have not ended."""
        return bool(self.running or self.waiting)

    def step(self) -> list[Event]:
        """One pass: a new token for each text whose prompt has been read, several where guesses were right.

        A step that reads only prompts has no events, and neither has one when there are no requests. Raises LlucidError
        for logits of a damaged model, and if a single text does not fit into memory. Any other exception may lose
        tokens.
        """
        began = perf_counter()
        self._begin()
        self._admit()
        events: list[Event] = []
        if parts := self._parts():
            prompt = any(not text.written for text, _ in parts)
            events = self._write(parts, self.reader.read([part for _, part in parts]))
            spent = perf_counter() - began
            if prompt:
                self.statistics.prompt_seconds += spent
            else:
                self.statistics.seconds += spent
                self.statistics.decoded += len(events)
            self.statistics.tokens += len(events)
        self.incomplete = False
        return events

    def read(self, ids: Ids[int]) -> Any:
        """The logits [vocab] after `ids`, in float32 or wider. Raises LlucidError as `step` does."""
        check_prompt(ids, self.config)
        self._begin()
        sequence = self.pages.open(ids[:-1])
        while True:
            unread = ids[sequence.length :]
            if not self.pages.extend(sequence, len(ids)):
                raise no_memory()
            chunk = unread[:CHUNK]
            whole = len(chunk) == len(unread)
            logits = self.reader.read([Part(sequence, chunk, int(whole), len(unread))])
            self.pages.commit(sequence, chunk)
            if whole:
                self.pages.close(sequence)
                self.incomplete = False
                return logits[0]

    def _begin(self) -> None:
        """Begins a call that changes sequences; if an exception ended the one before, all texts wait again."""
        if self.incomplete:
            texts = dict.fromkeys((*self.running, *self.waiting))  # a text that was being moved is in both
            for text in texts:
                text.sequence = None
            self.pages.restore()
            self.waiting, self.running = [*texts], []
        self.incomplete = True

    # ------------------------------------------------------------------------------------- what a step reads

    def _admit(self) -> None:
        """Starts waiting texts, as many as this step can read, except those that can soon share what another reads."""
        reading = [other.ids for other in self.running if other.unread > 1]
        room, more = CHUNK - sum(other.unread for other in self.running if other.unread > 1), LOOK_AHEAD
        for text in list(self.waiting):
            if room <= 0 and (more := more - 1) < 0:
                return
            if self.running and (len(self.running) + 1) * self.config.vocab_size > SCORES:
                return
            shared = self.pages.shared(text.ids[:-1])
            if room <= 0 and shared < len(text.ids) - 1:
                continue
            if any(common_prefix(ids, text.ids[:-1]) >= shared + WORTH_WAITING for ids in reading):
                continue
            text.sequence = self.pages.open(text.ids[:-1])
            if not self.pages.extend(text.sequence, len(text.ids), min(text.request.max_tokens, ROOM)):
                self._wait(text)
                if not self.running:
                    raise no_memory()
                return
            self.running.append(text)
            self.waiting.remove(text)
            if text.unread > 1:
                reading.append(text.ids)
                room -= text.unread
            if not text.written:
                self.statistics.prompt_tokens += text.unread

    def _parts(self) -> list[tuple[Text, Part]]:
        """What this step reads of each text."""
        parts: list[tuple[Text, Part]] = []
        room, guesses = CHUNK, max(0, C_TOKENS - len(self.running))
        for text in list(self.running):
            if text.sequence is None:
                continue  # it was suspended for another
            text.guesses = ()
            unread = text.unread
            if unread == 1 and text.request.draft:
                left = min(text.request.max_tokens - len(text.written) - 1, self.config.context - len(text.ids))
                text.guesses = text.request.draft.guess(text.ids, min(left, guesses))
                guesses -= len(text.guesses)
            count = min(unread, room) if unread > 1 else 1
            if not count or not self._make_room(text, text.sequence.length + count + len(text.guesses)):
                continue
            room -= count if unread > 1 else 0
            start = text.sequence.length
            ids = [*text.ids[start : start + count], *text.guesses]
            scored = 1 + len(text.guesses) if count == unread else 0
            parts.append((text, Part(text.sequence, ids, scored, unread + len(text.guesses))))
        return [(text, part) for text, part in parts if text.sequence is part.sequence]

    def _make_room(self, text: Text, length: int) -> bool:
        """Finds room for a text's next tokens, suspending newer texts if need be; False if it was suspended itself."""
        assert text.sequence
        while not self.pages.extend(text.sequence, length, ROOM if length > text.sequence.room else 0):
            newest = self.running[-1]
            if newest is text and len(self.running) == 1:
                raise no_memory()
            self._wait(newest)
            if newest is text:
                return False
        return True

    def _wait(self, text: Text) -> None:
        """Suspends a text: its pages are freed, and it is read again when there is room."""
        assert text.sequence
        self.pages.close(text.sequence)
        text.sequence = None
        if text in self.running:
            self.waiting.insert(0, text)
            self.running.remove(text)

    # ---------------------------------------------------------------------------------- what a step writes

    def _write(self, parts: list[tuple[Text, Part]], logits: Any) -> list[Event]:
        """Records what was read, and chooses the next token of each text; more where guesses were right."""
        events: list[Event] = []
        rows: list[tuple[Text, int]] = []
        first = 0
        for text, part in parts:
            assert text.sequence
            self.pages.commit(text.sequence, part.ids[: len(part.ids) - len(text.guesses)])
            if part.scored:
                rows.append((text, first))
            first += part.scored
        while rows:
            wanted = [at for _, at in rows]
            scores = logits if wanted == [*range(len(logits))] else logits[wanted]  # without a copy
            chosen = self._choose([text for text, _ in rows], scores[:, : self.vocabulary])
            goes_on: list[tuple[Text, int]] = []
            for (text, at), token, row in zip(rows, chosen, scores, strict=True):
                events.append(self._event(text, token, log_probability(row, token)))
                if text.sequence and text.guesses and text.guesses[0] == token and not events[-1].reason:
                    text.guesses = text.guesses[1:]
                    self.pages.commit(text.sequence, [token])
                    self.statistics.guessed += 1
                    goes_on.append((text, at + 1))
            rows = goes_on
        for text, _ in parts:
            if text.request.draft:
                text.request.draft.learn(len(text.guesses))
            if text.sequence and len(text.ids) > self.config.context:
                self._slide(text)
        return events

    def _choose(self, texts: list[Text], scores: Any) -> list[int]:
        """The next token of each text; texts with equal sampling are done together."""
        chosen = [0] * len(texts)
        groups: dict[Sampling, list[int]] = {}
        for row, text in enumerate(texts):
            groups.setdefault(text.request.sampling, []).append(row)
        for sampling, members in groups.items():
            some = scores if len(members) == len(texts) else scores[members]
            some = sampling.penalise(some, [(texts[row].ids, texts[row].written) for row in members])
            tokens = sampling.choose(some, [texts[row].request.generator for row in members]).tolist()
            for row, token in zip(members, tokens, strict=True):
                chosen[row] = token
        return chosen

    def _event(self, text: Text, token: int, logprob: float) -> Event:
        full = len(text.ids) == self.config.context
        reason: Reason | None = None
        if text.request.stops(token):
            reason = "stop"
        elif len(text.written) + 1 >= text.request.max_tokens:  # more if an exception came before its end
            reason = "length"
        elif full and text.request.past_context == "stop":
            reason = "context"
        event = Event(text.number, token, logprob, reason, text.slid)
        self.statistics.slid |= text.slid
        text.slid = False
        text.written.append(token)
        text.ids.append(token)
        if reason:
            self._end(text)
            self.statistics.reason = reason
        return event

    def _slide(self, text: Text) -> None:
        """Starts the text again with its window, since cached keys are rotated by positions that now change."""
        assert text.sequence
        text.ids = list(window(text.ids, self.config.context, self.keep))
        text.slid = True
        self.pages.close(text.sequence)
        text.sequence = self.pages.open(text.ids[:-1])

    def _end(self, text: Text) -> None:
        if text.sequence:
            self.pages.close(text.sequence)
        text.sequence, text.guesses = None, ()
        (self.running if text in self.running else self.waiting).remove(text)


def window(ids: Ids[int], context: int, keep: int) -> tuple[int, ...]:
    """What is kept of a text that has outgrown the context: its first `keep` ids and its newest, half in all."""
    size = max(1, context // 2)
    keep = min(keep, size - 1)
    return (*ids[:keep], *ids[len(ids) - (size - keep) :])


def check_prompt(ids: Ids[int], config: Config) -> None:
    """Raises LlucidError for a prompt of no tokens, or of more than the context holds."""
    if not len(ids):
        raise LlucidError("the prompt has no tokens; a model can only continue at least one, such as its BOS")
    if len(ids) > config.context:
        raise LlucidError(
            f"the prompt has {len(ids)} tokens, but the model's context is {config.context}; shorten the prompt, "
            "or take a model with a longer context"
        )


def no_memory() -> LlucidError:
    return LlucidError("there is no memory for the keys and values of one text; take a shorter prompt or more memory")
