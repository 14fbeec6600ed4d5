"""Speculation against plain decoding: whatever is guessed, the same text, from fewer passes where guesses are right."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llucid.errors import LlucidError
from llucid.generation import Sampling, Statistics, generate, generator, speculation, stream
from llucid.generation.decode import decode
from llucid.generation.reading import empty_context, read
from llucid.generation.speculation import LONGEST, MOST, SHORTEST, ReadAhead, guess
from llucid.weights import to
from tests.generation.test_decode import CONFIG, WEIGHTS, greedy, ids, last_logits, written
from tests.generation.test_generate import MODEL

AGAIN = [*range(10, 18), *range(10, 14)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small only wait for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("abcdeab", 3, "cde"),
        ("abcdeab", 2, "cd"),
        ("abcdeab", 9, "cdeabcdea"),  # what was found reaches the end, and so is its own continuation
        ("aaa", 4, "aaaa"),
        ("abxabyab", 1, "y"),  # the newest of the longest
        ("xabc-yab+xab", 1, "c"),  # the longest before the newest
        ("abcb", 3, ""),  # one id alone is no reason
        ("abcd", 3, ""),
        ("a", 3, ""),
        ("", 3, ""),
    ],
)
def test_a_guess_by_hand(text: str, most: int, expected: str):
    assert guess([ord(letter) for letter in text], most) == tuple(map(ord, expected))


def test_ids_beyond_the_last_character_are_not_searched():
    """A vocabulary of more than 1,114,112."""
    assert guess([1, 0x10FFFF, 1, 0x10FFFF], 1) == (1,)
    assert guess([1, 0x110000, 1, 0x110000], 1) == ()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, 55_555, 200_000]), max_size=40), st.integers(1, 12))
def test_a_guess_is_what_its_definition_says(row: list[int], most: int):
    def followed(row: Sequence[int]) -> int | None:
        """One id more, by going through all places and lengths."""
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


def steps(prompt: list[int], max_tokens: int, speculate: bool, **options: Any) -> tuple[list[int], list[Any]]:
    """The ids that are written, and all that is told on the way."""
    statistics = Statistics()
    options = {"choose": greedy, "stops": lambda row, token: False} | options
    if speculate:
        options["reader"] = ReadAhead(statistics)
    found = list(decode(WEIGHTS, CONFIG, [prompt], max_tokens=max_tokens, statistics=statistics, **options))
    for step in found[-1:]:  # the keys of all that was read are those that reading it plainly leaves
        context = step.context
        _, plain = read(WEIGHTS, CONFIG, empty_context(WEIGHTS, CONFIG, 1, 24), context.rows)
        assert context.cache.length == plain.cache.length
        for old, new in zip(plain.cache.keys, context.cache.keys, strict=True):
            torch.testing.assert_close(new[:, :, : plain.cache.length], old[:, :, : plain.cache.length])
    return written(found), [(step.reasons, step.slid, step.context.rows) for step in found]


def oracle(monkeypatch: pytest.MonkeyPatch, right: Sequence[bool]) -> list[tuple[int, ...]]:
    """Guesses are greedy decoding's own ids, spoiled where `right`, in turn, is false; returns all of them."""
    made: list[tuple[int, ...]] = []
    turn = iter(right * 1000)

    def told(row: Sequence[int], most: int) -> tuple[int, ...]:
        row, found = list(row), []
        for _ in range(most):
            best = int(last_logits(row).argmax())
            found.append(best if next(turn) else (best + 1) % CONFIG.vocab_size)
            row.append(best)
        made.append(tuple(found))
        return made[-1]

    monkeypatch.setattr(speculation, "guess", told)
    return made


PATTERNS = {
    "right": [True],
    "wrong": [False],
    "some": [True, True, False],
    "most": [True] * 7 + [False],
    "few": [False] * 4 + [True] * 2,
}


@pytest.mark.parametrize("right", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("past_context", ["slide", "stop"])
@pytest.mark.parametrize("prompt", [ids(3), ids(20, 7)], ids=["short", "long"])
def test_any_guesses_give_the_ids_of_plain_decoding(
    monkeypatch: pytest.MonkeyPatch, right: list[bool], past_context: str, prompt: list[int]
):
    plain = steps(prompt, 45, False, past_context=past_context, keep=1)
    made = oracle(monkeypatch, right)
    assert steps(prompt, 45, True, past_context=past_context, keep=1) == plain
    assert made


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 6, 12, 19])
def test_it_ends_where_plain_decoding_ends(monkeypatch: pytest.MonkeyPatch, max_tokens: int):
    def stops(row: int, token: int) -> bool:
        return token == last

    everything, _ = steps(ids(4), 20, False)
    last = everything[max_tokens]
    oracle(monkeypatch, [True] * 5 + [False])
    for options in ({}, {"stops": stops}):
        assert steps(ids(4), max_tokens, True, **options) == steps(ids(4), max_tokens, False, **options)


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many ids each pass of the model reads, as they happen."""
    lengths: list[int] = []
    real = speculation.read_each

    def counted(weights: Any, config: Any, context: Any, new: Sequence[Sequence[int]], step: Any) -> Any:
        lengths.append(len(new[0]))
        return real(weights, config, context, new, step)

    monkeypatch.setattr(speculation, "read_each", counted)
    return lengths


def test_right_guesses_grow_and_cost_no_pass(monkeypatch: pytest.MonkeyPatch):
    lengths = passes(monkeypatch)
    oracle(monkeypatch, [True])
    statistics = Statistics()
    config, weights = CONFIG, WEIGHTS
    context = empty_context(weights, config, 1, 24)
    _, context = read(weights, config, context, [ids(2)])
    reader, row = ReadAhead(statistics), ids(2)
    for _ in range(22):
        token = int(last_logits(row).argmax())
        logits, context = reader(weights, config, context, [[token]])
        row.append(token)
        torch.testing.assert_close(logits[0], last_logits(row))
        assert context.rows == (tuple(row),)
    assert lengths == [1 + 4, 1 + MOST, 1 + 7]  # then the context of 24 is full
    assert statistics.guessed == 4 + 7 + 7


def test_guesses_that_are_right_again_are_twice_as_many_each_time(monkeypatch: pytest.MonkeyPatch):
    """After four that were wrong, and four passes without any."""
    lengths = passes(monkeypatch)
    oracle(monkeypatch, [False] * 4 + [True] * 99)
    _, context = read(WEIGHTS, CONFIG, empty_context(WEIGHTS, CONFIG, 1, 24), [ids(2)])
    reader, row = ReadAhead(Statistics()), ids(2)
    for _ in range(21):
        row.append(int(last_logits(row).argmax()))
        _, context = reader(WEIGHTS, CONFIG, context, [row[-1:]])
    assert lengths == [1 + 4, 1 + 2, 1 + 4, 1 + MOST]


def test_wrong_guesses_become_rare(monkeypatch: pytest.MonkeyPatch):
    """Of 400 ids, five passes carry wrong guesses: after 0, 4, 16 and then 64 passes without any, and fewer each."""
    lengths = passes(monkeypatch)
    config = CONFIG.__class__(**{**CONFIG.__dict__, "context": 1000})
    _, context = read(WEIGHTS, config, empty_context(WEIGHTS, config, 1, 1000), [[1]])
    monkeypatch.setattr(speculation, "guess", lambda row, most: (39,) * most)
    reader, statistics = ReadAhead(Statistics()), Statistics()
    at = []
    for number in range(220):
        before = len(lengths)
        _, context = reader(WEIGHTS, config, context, [[number % 30]])
        at += [number] if len(lengths) > before else []
    assert at == [0, 5, 22, 87, 152, 217]
    assert lengths == [5, 3, 3, 3, 3, 3]
    assert statistics.guessed == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop", [(), ("e",), ("th", "q")])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_text_is_the_same_and_so_is_its_end(stop: Sequence[str], temperature: float, dtype: torch.dtype):
    """In float64, PyTorch verifies; in the others, C."""
    guessed = 0
    model = MODEL._replace(weights=to(MODEL.weights, dtype))
    for seed in range(12):
        told = [Statistics(), Statistics()]
        plain, quick = (
            list(
                generate(
                    model,
                    "the cat, the cat, the",
                    max_tokens=40,
                    temperature=temperature,
                    seed=seed,
                    stop=stop,
                    statistics=told[speculate],
                    speculate=bool(speculate),
                )
            )
            for speculate in (0, 1)
        )
        assert plain == quick
        assert (told[0].tokens, told[0].reason, told[0].slid) == (told[1].tokens, told[1].reason, told[1].slid)
        guessed += told[1].guessed
    assert guessed > 0 or stop


def test_what_is_drawn_has_the_probabilities_of_the_model(monkeypatch: pytest.MonkeyPatch):
    """With the likeliest id guessed, the next two ids are distributed as p(first) · p(second | first)."""
    config, sampling = CONFIG, Sampling(temperature=30.0, top_k=3, top_p=None)
    _, start = read(WEIGHTS, config, empty_context(WEIGHTS, config, 1, 24), [AGAIN[:-1]])
    one, n = generator(0), 1000
    best = int(last_logits(AGAIN).argmax())
    monkeypatch.setattr(speculation, "guess", lambda row, most: (best,))
    counts: dict[tuple[int, int], int] = {}
    guessed = 0
    for _ in range(n):
        statistics = Statistics()
        reader = ReadAhead(statistics)
        logits, context = reader(WEIGHTS, config, start, [AGAIN[-1:]])
        first = int(sampling.choose(logits, [one]))
        logits, _ = reader(WEIGHTS, config, context, [[first]])
        pair = first, int(sampling.choose(logits, [one]))
        counts[pair] = counts.get(pair, 0) + 1
        guessed += statistics.guessed
    distance, cells = 0.0, 0
    for first, p in enumerate(sampling(last_logits(AGAIN)[None]).softmax(-1)[0].tolist()):
        if p > 0:
            for second, q in enumerate(sampling(last_logits([*AGAIN, first])[None]).softmax(-1)[0].tolist()):
                if q > 0:
                    distance += (counts.pop((first, second), 0) - n * p * q) ** 2 / (n * p * q)
                    cells += 1
    assert not counts
    assert n / 3 < guessed < n
    assert cells == 9
    assert distance < 31.8  # exceeded once in 10,000 seeds with 8 degrees of freedom


def test_several_rows_are_refused():
    with pytest.raises(LlucidError, match="--speculate: one text at a time, and here are 2"):
        stream(
            MODEL,
            [[1], [2]],
            sampling=Sampling(),
            generators=[generator(0), generator(1)],
            max_tokens=3,
            speculate=True,
        )
