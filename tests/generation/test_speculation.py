"""Speculation against plain decoding: the same text for any guesses, with fewer passes where guesses are right."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llucid.config import Config
from llucid.generation import Batch, Draft, Request, Sampling, Statistics, generate, generator, speculation
from llucid.generation.speculation import LONGEST, MOST, SHORTEST, guess
from llucid.model import Model
from llucid.weights import to
from tests.generation.test_batch import CONFIG, WEIGHTS, ids, last_logits, leaks, request, run
from tests.generation.test_batch import MODEL as MODEL_OF_IDS
from tests.generation.test_generate import MODEL

AGAIN = [*range(10, 18), *range(10, 14)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For matrices this small, more threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("abcdeab", 3, "cde"),
        ("abcdeab", 2, "cd"),
        ("abcdeab", 9, "cdeabcdea"),  # the match reaches the end, so it repeats
        ("aaa", 4, "aaaa"),
        ("abxabyab", 1, "y"),  # of the longest matches, the newest
        ("xabc-yab+xab", 1, "c"),  # a longer match, although another is newer
        ("abcb", 3, ""),  # a match of one id is too short
        ("abcd", 3, ""),
        ("a", 3, ""),
        ("", 3, ""),
    ],
)
def test_guesses(text: str, most: int, expected: str):
    assert guess([ord(letter) for letter in text], most) == tuple(map(ord, expected))


def test_ids_that_are_not_code_points_are_not_searched():
    """A vocabulary of more than 1,114,112."""
    assert guess([1, 0x10FFFF, 1, 0x10FFFF], 1) == (1,)
    assert guess([1, 0x110000, 1, 0x110000], 1) == ()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, 55_555, 200_000]), max_size=40), st.integers(1, 12))
def test_guesses_equal_their_definition(row: list[int], most: int):
    def followed(row: Sequence[int]) -> int | None:
        """Where the continuation is, searched at all places and lengths."""
        for size in range(min(LONGEST, len(row) - 1), SHORTEST - 1, -1):
            for at in range(len(row) - size - 1, -1, -1):
                if row[at : at + size] == row[len(row) - size :]:
                    return at + size
        return None

    at = followed(row)
    grown = list(row)
    if at is not None:
        for step in range(most):
            grown.append(grown[at + step])
    assert list(guess(row, most)) == grown[len(row) :]


def events(prompt: list[int], max_tokens: int, speculate: bool, keep: int = 0, **options: Any) -> list[tuple[Any, ...]]:
    """The events of a text, with log-probabilities rounded."""
    batch = Batch(MODEL_OF_IDS)
    batch.keep = keep
    (found,) = run(batch, request(prompt, max_tokens, **options, draft=Draft() if speculate else None))
    assert leaks(batch) == 0
    return [(event.token, round(event.logprob, 9), event.reason, event.slid) for event in found]


def oracle(monkeypatch: pytest.MonkeyPatch, right: Sequence[bool]) -> list[tuple[int, ...]]:
    """Makes guesses that are greedy decoding's ids, or wrong where `right`, in turn, is false; returns all of them."""
    made: list[tuple[int, ...]] = []
    turn = iter(right * 1000)

    def statistics(row: Sequence[int], most: int) -> tuple[int, ...]:
        row, found = list(row), []
        for _ in range(most):
            best = int(last_logits(row).argmax())
            found.append(best if next(turn) else (best + 1) % CONFIG.vocab_size)
            row.append(best)
        made.append(tuple(found))
        return made[-1]

    monkeypatch.setattr(speculation, "guess", statistics)
    return made


PATTERNS = {
    "right": [True],
    "wrong": [False],
    "some": [True, True, False],
    "most": [True] * 7 + [False],
    "mostly wrong": [False] * 4 + [True] * 2,
}


@pytest.mark.parametrize("right", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("past_context", ["slide", "stop"])
@pytest.mark.parametrize("prompt", [ids(3), ids(20, 7)], ids=["short", "long"])
def test_any_guesses_give_the_ids_of_plain_decoding(
    monkeypatch: pytest.MonkeyPatch, right: list[bool], past_context: str, prompt: list[int]
):
    plain = events(prompt, 45, False, past_context=past_context, keep=1)
    made = oracle(monkeypatch, right)
    assert events(prompt, 45, True, past_context=past_context, keep=1) == plain
    assert made


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 6, 12, 19])
def test_the_text_ends_as_with_plain_decoding(monkeypatch: pytest.MonkeyPatch, max_tokens: int):
    def stops(token: int) -> bool:
        return token == last

    last = events(ids(4), 20, False)[max_tokens][0]
    oracle(monkeypatch, [True] * 5 + [False])
    for options in ({}, {"stops": stops}):
        assert events(ids(4), max_tokens, True, **options) == events(ids(4), max_tokens, False, **options)


def test_several_texts_have_separate_guesses(monkeypatch: pytest.MonkeyPatch):
    plain = [events(ids(3, seed), 40, False) for seed in range(4)]
    oracle(monkeypatch, [True] * 7 + [False])
    batch = Batch(MODEL_OF_IDS)
    texts = run(batch, *(request(ids(3, seed), 40, draft=Draft()) for seed in range(4)))
    found = [[(e.token, round(e.logprob, 9), e.reason, e.slid) for e in text] for text in texts]
    assert found == plain
    assert batch.statistics.guessed > 60


def reads_per_pass(prompt: list[int], max_tokens: int, config: Config = CONFIG) -> tuple[list[int], Statistics]:
    """How many ids each pass reads, after the first pass, which reads the prompt; and the statistics."""
    lengths: list[int] = []
    batch = Batch(Model(config, WEIGHTS, None))
    real = batch.reader.read
    batch.reader.read = lambda parts: lengths.append(len(parts[0].ids)) or real(parts)
    run(batch, request(prompt, max_tokens, draft=Draft()))
    return lengths[1:], batch.statistics


def test_right_guesses_save_passes_and_become_more(monkeypatch: pytest.MonkeyPatch):
    oracle(monkeypatch, [True])
    lengths, statistics = reads_per_pass(ids(2), 22)
    assert lengths == [1 + 4, 1 + MOST, 1 + 7]  # then the context of 24 is full
    assert statistics.guessed == 4 + 7 + 7


def test_the_number_of_guesses_doubles_when_they_are_right(monkeypatch: pytest.MonkeyPatch):
    """After four wrong ones, and four passes without guesses."""
    oracle(monkeypatch, [False] * 4 + [True] * 99)
    lengths, _ = reads_per_pass(ids(2), 22)
    assert lengths == [1 + 4, 1, 1, 1, 1, 1 + 2, 1 + 4, 1 + MOST]


def test_wrong_guesses_become_rare(monkeypatch: pytest.MonkeyPatch):
    """For 220 ids, six passes have wrong guesses, after 0, 4, 16 and then 64 passes without, and fewer each time."""
    monkeypatch.setattr(speculation, "guess", lambda row, most: (39,) * most)
    monkeypatch.setattr(Sampling, "choose", lambda self, logits, generators: np.zeros(len(logits), int))
    lengths, statistics = reads_per_pass([1, 2], 221, replace(CONFIG, context=1000))
    assert [at for at, length in enumerate(lengths) if length > 1] == [0, 5, 22, 87, 152, 217]
    assert [length for length in lengths if length > 1] == [5, 3, 3, 3, 3, 3]
    assert statistics.guessed == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop", [(), ("e",), ("th", "q")])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_text_and_reason_equal_those_of_plain_decoding(stop: Sequence[str], temperature: float, dtype: torch.dtype):
    """In float64, PyTorch computes; in the others, C."""
    guessed = 0
    model = MODEL._replace(weights=to(MODEL.weights, dtype))
    for seed in range(12):
        statistics = [Statistics(), Statistics()]
        plain, speculative = (
            list(
                generate(
                    model,
                    "the cat, the cat, the",
                    max_tokens=40,
                    temperature=temperature,
                    seed=seed,
                    stop=stop,
                    statistics=statistics[speculate],
                    speculate=bool(speculate),
                )
            )
            for speculate in (0, 1)
        )
        assert plain == speculative
        assert (statistics[0].tokens, statistics[0].reason, statistics[0].slid) == (
            statistics[1].tokens,
            statistics[1].reason,
            statistics[1].slid,
        )
        guessed += statistics[1].guessed
    assert guessed > 0 or stop


def test_drawn_tokens_have_the_probabilities_of_the_model(monkeypatch: pytest.MonkeyPatch):
    """With the likeliest id guessed, the next two ids are distributed as p(first) · p(second | first)."""
    sampling, n = Sampling(temperature=30.0, top_k=3, top_p=None), 400
    batch, one = Batch(MODEL_OF_IDS), generator(0)
    newest = int(last_logits(AGAIN[:-1]).argmax())
    best = int(last_logits([*AGAIN[:-1], newest]).argmax())
    begun = [*AGAIN[:-1], newest]
    monkeypatch.setattr(speculation, "guess", lambda row, most: (best,)[:most] if row == begun else ())
    counts: dict[tuple[int, int], int] = {}
    for _ in range(n):
        # The first token is drawn from the prompt; to have the next two from one pass, it is the likeliest.
        (found,) = run(batch, Request(AGAIN[:-1], FirstGreedy(sampling), one, lambda token: False, 3, draft=Draft()))
        pair = found[1].token, found[2].token
        assert found[0].token == newest
        counts[pair] = counts.get(pair, 0) + 1
    distance, cells = 0.0, 0
    for first, p in enumerate(sampling(last_logits(begun)[None]).softmax(-1)[0].tolist()):
        if p > 0:
            for second, q in enumerate(sampling(last_logits([*begun, first])[None]).softmax(-1)[0].tolist()):
                if q > 0:
                    distance += (counts.pop((first, second), 0) - n * p * q) ** 2 / (n * p * q)
                    cells += 1
    assert not counts
    assert n / 3 < batch.statistics.guessed < n
    assert cells == 9
    assert distance < 31.8  # exceeded once in 10,000 seeds with 8 degrees of freedom


class FirstGreedy:
    """Sampling in which the first token is the likeliest."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling, self.calls, self.logit_bias = sampling, 0, sampling.logit_bias

    def penalise(self, logits: Any, histories: Any) -> Any:
        return logits

    def choose(self, logits: Any, generators: Any) -> Any:
        self.calls += 1
        return logits.argmax(-1) if self.calls == 1 else self.sampling.choose(logits, generators)
