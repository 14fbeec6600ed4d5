"""The engine against the equations without a cache, with requests that come and go in any order."""

import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import CodeType, FrameType
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llucid.cache import PAGE, Memory
from llucid.config import Config
from llucid.errors import LlucidError
from llucid.generation import (
    Batch,
    Draft,
    Event,
    Request,
    Sampling,
    Statistics,
    generator,
    pages,
    reader,
    stream,
    torch_reader,
)
from llucid.generation import batch as batch_module
from llucid.generation.batch import CHUNK, window
from llucid.generation.pages import Part, common_prefix
from llucid.generation.reader import LARGEST, checked
from llucid.llama import llama
from llucid.model import Model
from llucid.tokenizers.characters import Characters
from llucid.weights import Weights, initialise, quantize, to, tree_map

CONFIG = Config(dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, vocab_size=40, context=24)
GREEDY = Sampling(temperature=0.0)


def distinct_weights(config: Config, seed: int = 0) -> Weights:
    """Random weights whose logits are far apart, in float64, so that no argmax depends on rounding."""
    return tree_map(lambda leaf: leaf.double() * (12 if leaf.ndim == 2 else 1), initialise(config, seed))


WEIGHTS = distinct_weights(CONFIG)
MODEL = Model(CONFIG, WEIGHTS, None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For matrices this small, more threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, CONFIG.vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def last_logits(row: Sequence[int]) -> Tensor:
    """The logits after a row, computed from the whole row."""
    return llama(torch.tensor([row]), WEIGHTS, CONFIG)[0, -1]


def never(token: int) -> bool:
    return False


def request(
    prompt: Sequence[int],
    max_tokens: int,
    stops: Callable[[int], bool] = never,
    sampling: Sampling = GREEDY,
    **more: Any,
) -> Request:
    return Request(prompt, sampling, generator(0), stops, max_tokens, **more)


def run(batch: Batch, *requests: Request) -> list[list[Event]]:
    """The events of each request; all are added at once."""
    numbers = [batch.add(each) for each in requests]
    events: list[Event] = []
    while batch.running or batch.waiting:
        events += batch.step()
    return [[event for event in events if event.number == number] for number in numbers]


def written(events: list[Event]) -> list[int]:
    return [event.token for event in events]


def write(prompt: Sequence[int], max_tokens: int, **more: Any) -> list[int]:
    return written(run(Batch(MODEL), request(prompt, max_tokens, **more))[0])


def without_cache(prompt: Sequence[int], max_tokens: int, keep: int = 0) -> list[int]:
    """Greedy decoding without cache or batch: calls `llama` on the whole window for every token."""
    row, found = list(prompt), []
    for _ in range(max_tokens):
        if len(row) > CONFIG.context:
            half = CONFIG.context // 2
            row = row[:keep] + row[-(half - keep) :]
        found.append(int(last_logits(row).argmax()))
        row.append(found[-1])
    return found


def leaks(batch: Batch) -> int:
    """The number of pages that belong to no sequence and are not in the tree, or whose users are counted wrongly."""
    pages, found = batch.pages, 0
    in_tree: dict[int, int] = {}
    waiting = list(pages.root.children.values())
    while waiting:
        for page in waiting.pop():
            in_tree[page.number] = page.users
            waiting += page.children.values()
    held = [page for text in batch.running if text.sequence for page in text.sequence.pages]
    for number, used in enumerate(pages.used):
        users = sum(page.number == number for page in held)
        found += number > 0 and bool(used) != (users > 0 or number in in_tree)
        found += in_tree.get(number, users) != users
    return found + len({*pages.kept} ^ {number for number, users in in_tree.items() if not users})


def test_the_random_model_has_varied_and_confident_predictions():
    assert len(set(without_cache(ids(3), 20))) > 5
    assert last_logits(ids(3)).softmax(-1).max() > 0.2


# --------------------------------------------------------------------------------------------- one text


def test_greedy_decoding_equals_that_without_cache():
    assert write(ids(5), 19) == without_cache(ids(5), 19)


@pytest.mark.parametrize("chunk", [1, 3, 4, 20, 512])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["PyTorch", "C"])
def test_a_prompt_read_in_chunks_has_the_same_logits(chunk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llucid.generation.batch.CHUNK", chunk)
    batch = Batch(MODEL._replace(weights=to(WEIGHTS, dtype)))
    for prompt in (ids(20, 1), ids(4, 2), [*ids(20, 1)[:9], *ids(9, 3)]):
        tolerance = {"atol": 2e-4, "rtol": 0} if dtype == torch.float32 else {}
        found = torch.from_numpy(batch.read(prompt))
        torch.testing.assert_close(found.double(), last_logits(prompt), check_dtype=False, **tolerance)
        assert leaks(batch) == 0


def test_long_prompts_are_read_in_chunks(monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    real = torch_reader.hidden

    def hidden(tokens: Tensor, *more: Any) -> Any:
        sizes.append(tokens.shape[1])
        return real(tokens, *more)

    monkeypatch.setattr(torch_reader, "hidden", hidden)
    batch = Batch(Model(replace(CONFIG, context=2 * CHUNK), WEIGHTS, None))
    run(batch, request(ids(CHUNK + 9), 1))
    assert sizes == [CHUNK, 9]


def test_texts_continue_while_a_long_prompt_is_read():
    batch = Batch(Model(replace(CONFIG, context=4 * CHUNK), WEIGHTS, None))
    first = batch.add(request(ids(3), 20))
    batch.step()
    second = batch.add(request(ids(3 * CHUNK, 1), 1))
    events = [[event.number for event in batch.step()] for _ in range(4)]
    assert events == [[first], [first], [first, second], [first]]


def test_only_scored_tokens_are_unembedded(monkeypatch: pytest.MonkeyPatch):
    shapes: list[tuple[int, ...]] = []
    real = torch_reader.unembed

    def unembed(x: Tensor, weights: Weights) -> Tensor:
        shapes.append(tuple(x.shape))
        return real(x, weights)

    monkeypatch.setattr(torch_reader, "unembed", unembed)
    run(Batch(MODEL), request(ids(20), 1), request(ids(7, 1), 1))
    assert shapes == [(2, CONFIG.dim)]


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_a_sliding_window_equals_recomputing_it(keep: int):
    batch = Batch(MODEL)
    batch.keep = keep
    (events,) = run(batch, request(ids(20, 7), 45))
    assert written(events) == without_cache(ids(20, 7), 45, keep)
    # After 5 tokens there are 24 + 1; then 12 remain, and 13 more fit.
    assert [number for number, event in enumerate(events) if event.slid] == [5, 18, 31, 44]
    assert batch.statistics.slid


def test_a_text_that_ends_when_its_context_is_full_has_not_slid():
    batch = Batch(MODEL)
    first, second = run(batch, request(ids(24, 7), 6, stops=lambda token: True), request(ids(5, 2), 6))
    assert not any(event.slid for event in (*first, *second))
    assert not batch.statistics.slid
    assert written(second) == without_cache(ids(5, 2), 6)


def test_a_full_context_can_end_the_text_instead():
    (events,) = run(Batch(MODEL), request(ids(20, 7), 45, past_context="stop"))
    assert written(events) == without_cache(ids(20, 7), 5)
    assert events[-1].reason == "context"
    (events,) = run(Batch(MODEL), request(ids(24, 7), 1, past_context="stop"))
    assert events[-1].reason == "length"


def test_the_window_keeps_the_first_and_the_newest_ids():
    assert window(range(9), 8, 0) == (5, 6, 7, 8)
    assert window(range(9), 8, 1) == (0, 6, 7, 8)
    assert window(range(3), 2, 1) == (2,)
    assert window(range(2), 1, 0) == (1,)


def test_log_probabilities_are_those_of_the_model():
    sampling = Sampling(temperature=3.0, top_k=5)
    (events,) = run(Batch(MODEL), request(ids(3), 9, sampling=sampling))
    row = ids(3)
    for event in events:
        assert event.logprob == pytest.approx(float(last_logits(row).log_softmax(-1)[event.token]))
        row.append(event.token)


# --------------------------------------------------------------------------------------------- many texts


def test_prompts_of_unequal_length_equal_separate_ones():
    prompts = [ids(3, 1), ids(17, 2), ids(1, 3), ids(9, 4)]
    texts = run(Batch(MODEL), *(request(prompt, 30) for prompt in prompts))  # all but the third slide
    for events, prompt in zip(texts, prompts, strict=True):
        assert written(events) == without_cache(prompt, 30)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1)])
def test_pytorch_reads_rows_on_any_pages(order: tuple[int, ...]):
    """Evenly spaced rows are views of the memory, others are gathered; a negative stride is never used."""
    batch = Batch(MODEL)
    sequences = [batch.pages.open([]) for _ in order]
    for sequence in sequences:
        batch.pages.extend(sequence, 20)
    rows = [ids(20, seed) for seed in range(3)]
    for count in (7, 13):
        parts = [Part(sequences[at], rows[at][:7] if count == 7 else rows[at][7:], 1, count) for at in order]
        scores = torch.from_numpy(batch.reader.read(parts))
        for part in parts:
            batch.pages.commit(part.sequence, part.ids)
    for at, found in zip(order, scores, strict=True):
        torch.testing.assert_close(found, last_logits(rows[at]))


def test_an_ended_text_has_no_more_events_and_others_continue():
    prompts, counts = [ids(3, 1), ids(7, 2), ids(5, 3)], [4, 2, 99]
    seen: list[list[int]] = [[], [], []]

    def stops(row: int) -> Callable[[int], bool]:
        return lambda token: seen[row].append(token) or len(seen[row]) == counts[row]

    batch = Batch(MODEL)
    texts = run(batch, *(request(prompt, 6, stops(row)) for row, prompt in enumerate(prompts)))
    assert [written(events) for events in texts] == seen
    assert seen == [without_cache(prompt, count) for prompt, count in zip(prompts, (4, 2, 6), strict=True)]
    assert [[event.reason for event in events][-1] for events in texts] == ["stop", "stop", "length"]
    assert not any(event.reason for events in texts for event in events[:-1])
    assert batch.statistics.tokens == 4 + 2 + 6
    assert batch.statistics.reason == "length"


def test_a_dropped_text_has_no_more_events():
    batch = Batch(MODEL)
    first, second = batch.add(request(ids(3), 20)), batch.add(request(ids(4, 1), 20))
    batch.step()
    batch.drop(first)
    batch.drop(first)
    assert {event.number for event in batch.step()} == {second}
    batch.drop(second)
    assert batch.step() == []
    assert leaks(batch) == 0


# --------------------------------------------------------------------------------------------- shared prefixes


def test_a_known_prefix_is_not_read_again():
    batch = Batch(MODEL)
    (first,) = run(batch, request(ids(4), 3))
    full = [*ids(4), *written(first), *ids(5, 8)]
    batch.statistics = statistics = Statistics()
    (second,) = run(batch, request(full, 4))
    assert written(second) == without_cache(full, 4)
    assert statistics.prompt_tokens == 5 + 1  # the newest token was written, but not yet read


def test_diverging_texts_share_their_common_prefix():
    batch = Batch(MODEL)
    run(batch, request(ids(8), 3))
    for prompt, new in (([*ids(6), *ids(4, 9)], 4), (ids(8), 1), (ids(3), 1), (ids(5, 11), 5)):
        batch.statistics = statistics = Statistics()
        (events,) = run(batch, request(prompt, 4))
        assert written(events) == without_cache(prompt, 4)
        assert statistics.prompt_tokens == new
        assert leaks(batch) == 0


def test_a_prefix_of_simultaneous_requests_is_read_once():
    config = replace(CONFIG, context=200)
    batch = Batch(Model(config, WEIGHTS, None))
    prompt = ids(3 * PAGE + 5)
    texts = run(batch, *(request([*prompt, row], 5) for row in range(8)))
    assert batch.statistics.prompt_tokens == len(prompt) + 8
    for row, events in enumerate(texts):
        assert written(events) == written(run(Batch(Model(config, WEIGHTS, None)), request([*prompt, row], 5))[0])


# --------------------------------------------------------------------------------------------- random requests

FORMS: dict[str, Callable[[Weights], Weights]] = {
    "float64, PyTorch": lambda weights: weights,
    "float32, C": lambda weights: to(weights, torch.float32),
    "int8, C": lambda weights: quantize(to(weights, torch.float32), 8),
}
LONG = Config(**vars(CONFIG) | {"context": 3 * PAGE, "head_dim": 32})  # matrices of multiples of 32 numbers
LONG_WEIGHTS = distinct_weights(LONG, 1)


@pytest.fixture
def c_reads_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """C reads prompts of any length where it can, so that results are equal to the bit."""
    monkeypatch.setattr(reader, "C_TOKENS", 10**9)


PIECES = [ids(count, seed) for seed, count in enumerate((3, PAGE - 1, PAGE, 2 * PAGE + 4))]


@pytest.mark.parametrize("form", FORMS)
@settings(
    max_examples=5,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(plan=st.data())
def test_other_requests_do_not_change_a_text(form: str, c_reads_all: None, plan: st.DataObject):
    """With shared prefixes, sliding contexts, speculation and eviction; no page is lost."""
    model = Model(LONG, FORMS[form](LONG_WEIGHTS), None)
    bytes_per_page = PAGE * Memory.bytes_per_slot(LONG, Batch(model).pages.memory.dtype)
    batch = Batch(model, memory=bytes_per_page * plan.draw(st.sampled_from([6, 9, 50]), "pages"))
    asked: dict[int, tuple[list[int], dict[str, Any]]] = {}
    events: list[Event] = []
    dropped: set[int] = set()

    def options() -> dict[str, Any]:
        chosen = plan.draw(st.sampled_from(ALL_OPTIONS), "options")
        return chosen | ({"draft": Draft()} if plan.draw(st.booleans(), "draft") else {})

    for _ in range(plan.draw(st.integers(3, 25), "steps")):
        for _ in range(plan.draw(st.integers(0, 2), "requests")):
            prompt = [*plan.draw(st.sampled_from(PIECES), "prompt"), *plan.draw(st.sampled_from([[], [1], [2, 3]]))]
            given_options = options()
            asked[batch.add(Request(prompt, generator=generator(len(prompt)), stops=never, **given_options))] = (
                prompt,
                given_options,
            )
        if asked and plan.draw(st.integers(0, 9), "drop") == 0:
            dropped.add(number := plan.draw(st.sampled_from(sorted(asked))))
            batch.drop(number)
        events += batch.step()
        assert leaks(batch) == 0
    while batch.running or batch.waiting:
        events += batch.step()
    assert leaks(batch) == 0
    for number, (prompt, given_options) in asked.items():
        found = [event[1:] for event in events if event.number == number]
        separate = expected(form, tuple(prompt), ALL_OPTIONS.index({**given_options, "draft": None} | {}))
        if number in dropped:
            separate = separate[: len(found)]
        assert [(token, reason, slid) for token, _, reason, slid in found] == [
            (token, reason, slid) for token, _, reason, slid in separate
        ]
        if "C" in form:  # to the bit
            assert found == separate


ALL_OPTIONS: list[dict[str, Any]] = [
    dict(sampling=GREEDY, max_tokens=9, past_context="slide", draft=None),
    dict(sampling=Sampling(temperature=1.0), max_tokens=70, past_context="slide", draft=None),
    dict(sampling=Sampling(temperature=0.7, repetition_penalty=1.3), max_tokens=40, past_context="stop", draft=None),
]
SEPARATE: dict[Any, list[tuple[Any, ...]]] = {}


def expected(form: str, prompt: tuple[int, ...], options: int) -> list[tuple[Any, ...]]:
    """The events of a request in an engine of its own."""
    if (form, prompt, options) not in SEPARATE:
        batch = Batch(Model(LONG, FORMS[form](LONG_WEIGHTS), None))
        given_options = ALL_OPTIONS[options]
        (events,) = run(batch, Request(prompt, generator=generator(len(prompt)), stops=never, **given_options))
        SEPARATE[form, prompt, options] = [event[1:] for event in events]
    return SEPARATE[form, prompt, options]


def test_engines_in_different_threads_are_independent():
    model = Model(LONG, to(LONG_WEIGHTS, torch.float32), None)
    asked = [request(prompt, 60) for prompt in PIECES]
    separate = [written(events) for events in run(Batch(model), *asked)]
    found: list[list[list[int]]] = []
    work = lambda: found.append([written(events) for events in run(Batch(model), *asked)])  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [separate] * 3


def test_texts_that_do_not_fit_into_memory_take_turns():
    bytes_per_page = PAGE * Memory.bytes_per_slot(LONG, "float64")
    model = Model(LONG, LONG_WEIGHTS, None)
    batch = Batch(model, memory=5 * bytes_per_page)
    prompts = [ids(PAGE, seed) for seed in range(5)]
    texts = run(batch, *(request(prompt, 40) for prompt in prompts))
    assert batch.pages.memory.slots <= 5 * PAGE
    for prompt, events in zip(prompts, texts, strict=True):
        assert written(events) == written(run(Batch(model), request(prompt, 40))[0])


def test_a_text_too_large_for_the_memory_is_an_error():
    batch = Batch(MODEL, memory=PAGE)
    with pytest.raises(LlucidError, match="no memory for the keys and values of one text"):
        run(batch, request([1], 3))


def test_an_exception_at_any_line_spoils_no_later_text():
    """Ctrl-C, for example: raised where a line of the engine is executed for the first time, line by line."""
    model = Model(LONG, to(LONG_WEIGHTS, torch.float32), Characters(map(chr, range(LONG.vocab_size))))
    memory = 4 * PAGE * Memory.bytes_per_slot(LONG, "float32")
    before, prompt = ids(PAGE + 30), [*ids(PAGE + 20), *ids(PAGE, 1)]  # a page is shared, one copied, one evicted
    lines: set[tuple[CodeType, int]] = set()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and (line := (frame.f_code, frame.f_lineno)) not in lines:
            lines.add(line)
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace if frame.f_code.co_filename.endswith(("n/batch.py", "n/pages.py", "n/stream.py")) else None

    def write(batch: Batch, prompt: list[int], tracer: Any = None) -> list[int] | None:
        sys.settrace(tracer)
        try:
            return [piece.token for piece in stream(batch, [request(prompt, 2)], model.text())]
        except KeyboardInterrupt:
            return None
        finally:
            sys.settrace(None)

    expected = write(Batch(model), prompt)
    more = True
    while more:
        batch, more = Batch(model, memory), False
        write(batch, ids(PAGE + 9, 2))
        write(batch, before)
        while write(batch, prompt, trace) is None:
            more = True
            assert write(batch, prompt) == expected
            assert leaks(batch) == 0
    assert len(lines) > 100


def test_a_text_ends_even_if_an_exception_came_before_its_end(monkeypatch: pytest.MonkeyPatch):
    batch = Batch(MODEL)
    batch.add(request([1], 3))
    monkeypatch.setattr(batch, "_end", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(batch)
    monkeypatch.undo()
    assert batch.busy
    batch.step()
    assert not batch.busy


# --------------------------------------------------------------------------------------------- statistics and errors


def test_inference_mode_does_not_leak_to_the_caller():
    batch = Batch(MODEL)
    batch.add(request([1], 3))
    while batch.step():
        assert not torch.is_inference_mode_enabled()


def test_statistics():
    statistics = Statistics()
    assert str(statistics) == "prompt 0 tokens in 0.00 s, 0 tokens in 0.0 s"
    filled = Statistics(rows=1, prompt_tokens=3, prompt_seconds=0.5, tokens=11, decoded=10, seconds=2.0, guessed=4)
    assert str(filled) == "prompt 3 tokens in 0.50 s, 11 tokens in 2.0 s (5 tokens/s), 4 guessed"
    busy = Statistics(rows=2, prompt_tokens=9, prompt_seconds=0.5, tokens=12, decoded=9, seconds=2.0)
    assert str(busy) == "prompt 9 tokens in 0.50 s, 12 tokens, 9 of them in 2.0 s (4 tokens/s)"
    batch = Batch(MODEL, statistics=statistics)
    batch.add(request(ids(3), 10))
    batch.add(request(ids(20), 10))
    batch.step()
    assert (statistics.rows, statistics.prompt_tokens, statistics.tokens, statistics.seconds) == (2, 23, 2, 0.0)
    assert statistics.reason is None
    while batch.step():
        pass
    assert (statistics.tokens, statistics.decoded, statistics.slid, statistics.reason) == (20, 18, True, "length")
    assert statistics.prompt_seconds > 0
    assert statistics.tokens_per_second == pytest.approx(18 / statistics.seconds)


def test_invalid_requests_are_refused_at_once():
    batch = Batch(MODEL)
    with pytest.raises(LlucidError, match="the prompt has 25 tokens, but the model's context is 24; shorten"):
        batch.add(request(ids(25), 1))
    with pytest.raises(LlucidError, match="the prompt has no tokens"):
        batch.add(request([], 1))
    with pytest.raises(LlucidError, match="max_tokens=0: must be"):
        batch.add(request([1], 0))
    with pytest.raises(LlucidError, match="past_context=forget: expected 'slide' or 'stop'"):
        batch.add(request([1], 1, past_context="forget"))
    outside = MODEL.config.vocab_size
    with pytest.raises(LlucidError, match=rf"logit_bias={outside}=1: this model has ids 0 to {outside - 1}"):
        batch.add(request([1], 1, sampling=Sampling(logit_bias=((outside, 1.0),))))
    assert batch.step() == []


@pytest.mark.parametrize("damage", [math.nan, math.inf, 1e38])
def test_scores_of_damaged_weights_are_an_error(damage: float):
    batch = Batch(MODEL._replace(weights=WEIGHTS._replace(norm=WEIGHTS.norm * damage)))
    with pytest.raises(LlucidError, match="scores are not finite, or far too large"):
        run(batch, request([1], 3))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_scores_work_at_any_temperature(sign: int):
    logits = np.array([[1, -1, 0.5]], np.float32) * np.float32(sign * 0.999 * LARGEST)
    sampling = Sampling(temperature=1e-6, top_k=2, top_p=0.9, min_p=0.1)
    for scores in (logits, torch.tensor(logits)):
        assert int(sampling.choose(checked(scores), [generator(0)])[0]) == (0 if sign > 0 else 1)


def test_pytorch_reads_long_prompts_while_c_writes(monkeypatch: pytest.MonkeyPatch):
    """Both get the tokens that they get in an engine of their own."""
    model = Model(LONG, to(LONG_WEIGHTS, torch.float32), None)
    batch = Batch(model)
    first = batch.add(request(ids(3), 12))
    batch.step()
    second = batch.add(request(ids(50, 1), 4))
    read: list[int] = []
    step = batch.reader.step
    assert step
    monkeypatch.setattr(
        batch.reader, "step", lambda parts, *rest: read.extend(len(new) for new, _, _ in parts) or step(parts, *rest)
    )
    events = batch.step()
    assert [event.number for event in events] == [first, second]
    assert read == [1]
    while batch.running:
        events += batch.step()
    assert [event.token for event in events if event.number == second] == written(
        run(Batch(model), request(ids(50, 1), 4))[0]
    )
    assert reader.C_TOKENS < 50


@pytest.mark.parametrize(("same", "length"), [(True, 9), (False, 9), (False, 150)])
def test_each_of_many_texts_is_compared_with_few(monkeypatch: pytest.MonkeyPatch, same: bool, length: int):
    """Or else the time would grow with the square of their number."""
    compared: list[int] = []
    for module in (pages, batch_module):
        monkeypatch.setattr(module, "common_prefix", lambda a, b: compared.append(1) or common_prefix(a, b))
    rng, counts = np.random.default_rng(0), list[int]()
    model = Model(LONG, to(LONG_WEIGHTS, torch.float32), None)
    for count in (100, 400):
        compared.clear()
        batch = Batch(model)
        prompts = [[1, *ids(length)] if same else [1, *rng.integers(0, 40, length).tolist()] for _ in range(count)]
        for prompt in prompts:
            batch.add(request(prompt, 2))
        while batch.busy:
            batch.step()
        counts.append(len(compared))
    assert counts[1] < 8 * counts[0]


def test_a_full_page_is_found_among_many(monkeypatch: pytest.MonkeyPatch):
    """Not only among the newest that begin with the same id; and not after it was evicted."""
    model = Model(LONG, to(LONG_WEIGHTS, torch.float32), None)
    memory = 110 * PAGE * Memory.bytes_per_slot(LONG, "float32")
    batch = Batch(model, memory=memory)
    prompt = ids(PAGE + 5)
    texts = [prompt, *([prompt[0], *ids(PAGE + 4, seed)] for seed in range(1, 50))]
    for text in texts:
        batch.read(text)
    assert batch.pages.shared(prompt[:-1]) == PAGE + 4
    for seed in range(50, 150):
        batch.read(ids(PAGE + 5, seed))
    assert batch.pages.shared(prompt[:-1]) < PAGE


@pytest.mark.parametrize("memory", [-1, math.inf, math.nan, 1e400])
def test_impossible_memory(memory: float):
    with pytest.raises(LlucidError, match="memory="):
        Batch(MODEL, memory=memory)


def test_memory_may_be_written_as_a_float():
    memory = 2.5 * PAGE * Memory.bytes_per_slot(CONFIG, "float64")
    batch = Batch(MODEL, memory=memory)
    for seed in range(3):
        batch.add(request(ids(9, seed), 3))
    while batch.busy:
        batch.step()
    assert batch.statistics.tokens == 9


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64])
def test_max_tokens_may_be_a_number_of_numpy(kind: Any):
    """Of few bits, too: what is computed with it must not overflow."""
    batch = Batch(Model(LONG, to(LONG_WEIGHTS, torch.float32), None))
    batch.add(request(ids(5), kind(120)))
    while batch.busy:
        batch.step()
    assert batch.statistics.tokens == 120


def test_log_probabilities_are_of_the_whole_vocabulary():
    """Also of a model whose vocabulary is padded, although nothing of that is chosen."""
    model = MODEL._replace(tokenizer=Characters(map(chr, range(CONFIG.vocab_size - 9))))
    batch = Batch(model)
    batch.add(request(ids(7), 3))
    row = ids(7)
    while batch.busy:
        for event in batch.step():
            logits = last_logits(row)
            assert event.token == int(logits[:-9].argmax())
            assert event.logprob == pytest.approx(float(logits.log_softmax(-1)[event.token]), abs=1e-6)
            row.append(event.token)
    assert len(row) == 10


def test_the_scores_of_a_step_are_bounded(monkeypatch: pytest.MonkeyPatch):
    """So that many texts of a large vocabulary do not fill the memory; each is the same as alone."""
    written: list[dict[int, list[int]]] = []
    for scores in (1 << 26, 3 * CONFIG.vocab_size, 1):
        monkeypatch.setattr(batch_module, "SCORES", scores)
        batch, found = Batch(MODEL), dict[int, list[int]]()
        for seed in range(8):
            batch.add(request(ids(9, seed), 4))
        while batch.busy:
            for event in batch.step():
                found.setdefault(event.number, []).append(event.token)
            assert len(batch.running) <= max(1, scores // CONFIG.vocab_size)
        written.append(found)
    assert written[0] == written[1] == written[2]
