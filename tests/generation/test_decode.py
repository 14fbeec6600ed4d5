"""The engine against recomputing everything: cached, chunked, batched and slid, it writes what the equations say."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llucid.config import Config
from llucid.errors import LlucidError
from llucid.generation import Context, Statistics, reading_torch
from llucid.generation.decode import LARGEST, Step, decode, scores, window
from llucid.generation.reading import CHUNK, empty_context, read, with_room
from llucid.generation.sampling import Sampling, generator
from llucid.llama import NOWHERE, Cache, llama
from llucid.weights import Weights, initialise, tree_map

CONFIG = Config(dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, vocab_size=40, context=24)


def spread(config: Config, seed: int = 0) -> Weights:
    """Random weights whose logits are far apart, in float64, so that no argmax hangs on rounding."""
    return tree_map(lambda leaf: leaf.double() * (12 if leaf.ndim == 2 else 1), initialise(config, seed))


WEIGHTS = spread(CONFIG)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small only wait for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, CONFIG.vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def last_logits(row: Sequence[int]) -> Tensor:
    """The scores after a row, by the equations over the whole of it."""
    return llama(torch.tensor([row]), WEIGHTS, CONFIG)[0, -1]


def greedy(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def run(prompts: Sequence[Sequence[int]], max_tokens: int, **options: Any) -> list[Step]:
    options = {"choose": greedy, "stops": lambda row, token: False} | options
    return list(decode(WEIGHTS, CONFIG, prompts, max_tokens=max_tokens, **options))


def written(steps: list[Step], row: int = 0) -> list[int]:
    return [token for step in steps if (token := step.tokens[row]) is not None]


def by_hand(prompt: Sequence[int], max_tokens: int, keep: int = 0) -> list[int]:
    """Greedy decoding with neither cache nor batch: the whole window through `llama` for every token."""
    row, found = list(prompt), []
    for _ in range(max_tokens):
        if len(row) > CONFIG.context:
            half = CONFIG.context // 2
            row = row[:keep] + row[-(half - keep) :]
        found.append(int(last_logits(row).argmax()))
        row.append(found[-1])
    return found


def test_the_random_model_is_worth_asking():
    assert len(set(by_hand(ids(3), 20))) > 5
    assert last_logits(ids(3)).softmax(-1).max() > 0.2


def test_cached_greedy_is_uncached_greedy():
    assert written(run([ids(5)], 19)) == by_hand(ids(5), 19)


@pytest.mark.parametrize("chunk", [1, 3, 4, 20, 512])
def test_a_prompt_read_in_chunks_is_the_prompt_read_whole(chunk: int):
    prompts = [ids(20, 1), ids(4, 2), ids(9, 3), []]
    start = empty_context(WEIGHTS, CONFIG, 4, 20)
    logits, context = read(WEIGHTS, CONFIG, start, prompts, chunk=chunk)
    for row, prompt in enumerate(prompts[:3]):
        torch.testing.assert_close(logits[row], last_logits(prompt))
    assert context.rows == tuple(map(tuple, prompts))
    more = [ids(2, 4), ids(3, 5), [], ids(1, 6)]
    logits, context = read(WEIGHTS, CONFIG, context, more, chunk=chunk)
    for row in (0, 1, 3):
        torch.testing.assert_close(logits[row], last_logits(prompts[row] + more[row]))


def test_a_prompt_of_any_length_goes_through_the_model_in_chunks(monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    real = reading_torch.hidden

    def hidden(tokens: Tensor, *more: Any) -> Any:
        sizes.append(tokens.shape[1])
        return real(tokens, *more)

    monkeypatch.setattr(reading_torch, "hidden", hidden)
    long = replace(CONFIG, context=2 * CHUNK)
    next(decode(WEIGHTS, long, [ids(CHUNK + 9), ids(5)], choose=greedy, stops=lambda row, token: False, max_tokens=1))
    assert sizes == [CHUNK, 9]
    sizes.clear()
    read(WEIGHTS, CONFIG, empty_context(WEIGHTS, CONFIG, 1, 20), [ids(20)], chunk=8)
    assert sizes == [8, 8, 4]


def test_only_the_last_position_is_unembedded(monkeypatch: pytest.MonkeyPatch):
    shapes: list[tuple[int, ...]] = []
    real = torch.nn.functional.linear

    def linear(x: Tensor, matrix: Tensor) -> Tensor:
        if matrix.shape[0] == CONFIG.vocab_size:
            shapes.append(tuple(x.shape))
        return real(x, matrix)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    run([ids(20)], 1)
    assert shapes == [(1, CONFIG.dim)]


def test_unequal_prompts_in_a_batch_are_each_alone():
    prompts = [ids(3, 1), ids(17, 2), ids(1, 3), ids(9, 4)]
    steps = run(prompts, 30)  # all but the third slide on the way, each at its own time
    for row, prompt in enumerate(prompts):
        assert written(steps, row) == written(run([prompt], 30)) == by_hand(prompt, 30)


def test_a_row_that_ends_is_reported_no_more_and_the_others_go_on():
    prompts = [ids(3, 1), ids(7, 2), ids(5, 3)]
    told: list[tuple[int, int]] = []

    def stops(row: int, token: int) -> bool:
        told.append((row, token))
        return len([seen for seen, _ in told if seen == row]) == (4, 2, 99)[row]

    statistics = Statistics()
    steps = run(prompts, 6, stops=stops, statistics=statistics)
    assert [written(steps, row) for row in range(3)] == [by_hand(p, n) for p, n in zip(prompts, (4, 2, 6), strict=True)]
    assert [step.reasons for step in steps] == [
        (None, None, None),
        (None, "stop", None),
        (None, None, None),
        ("stop", None, None),
        (None, None, None),
        (None, None, "length"),
    ]
    assert len(told) == statistics.tokens == 4 + 2 + 6
    # All was read but the newest token of each row, and for a row that had ended nothing more.
    read_rows = steps[-1].context.rows
    assert list(read_rows) == [(*prompt, *written(steps, row)[:-1]) for row, prompt in enumerate(prompts)]


def test_when_all_rows_have_ended_so_does_the_loop():
    assert len(run([ids(3), ids(4)], 50, stops=lambda row, token: True)) == 1


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_a_window_that_slides_is_the_one_recomputed_by_hand(keep: int):
    steps = run([ids(20, 7)], 45, keep=keep)
    assert written(steps) == by_hand(ids(20, 7), 45, keep)
    # 5 tokens until 24 + 1 are there, then 12 remain and 13 more fit.
    assert [number for number, step in enumerate(steps) if step.slid[0]] == [5, 18, 31, 44]


def test_a_row_that_ends_with_its_context_full_has_not_slid():
    statistics = Statistics()
    steps = run([ids(24, 7), ids(5, 2)], 6, stops=lambda row, token: row == 0, statistics=statistics)
    assert not any(step.slid[0] or step.slid[1] for step in steps)
    assert not statistics.slid
    assert written(steps, 1) == by_hand(ids(5, 2), 6)


def test_a_full_context_can_end_the_text_instead():
    steps = run([ids(20, 7)], 45, past_context="stop")
    assert written(steps) == by_hand(ids(20, 7), 5)
    assert steps[-1].reasons == ("context",)
    steps = run([ids(24, 7)], 1, past_context="stop")
    assert steps[-1].reasons == ("length",)


def test_the_window_keeps_the_first_and_the_newest():
    assert window(range(9), 8, 0) == (5, 6, 7, 8)
    assert window(range(9), 8, 1) == (0, 6, 7, 8)
    assert window(range(3), 2, 1) == (2,)
    assert window(range(2), 1, 0) == (1,)


def test_what_a_context_holds_is_not_read_again():
    first = run([ids(4)], 3)
    full = [*ids(4), *written(first), *ids(5, 8)]
    statistics = Statistics()
    second = run([full], 4, context=first[-1].context, statistics=statistics)
    assert written(second) == by_hand(full, 4)
    assert statistics.prompt_tokens == 5 + 1  # the newest token had been written and not yet read


def test_a_context_that_the_prompt_leaves_is_taken_back_to_where_they_agree():
    context = run([ids(8)], 3)[-1].context
    for prompt, new in (([*ids(6), *ids(4, 9)], 4), (ids(8), 2), (ids(3), 1), (ids(5, 11), 5)):
        statistics = Statistics()
        steps = run([prompt], 4, context=context, statistics=statistics)
        assert written(steps) == by_hand(prompt, 4)
        assert statistics.prompt_tokens == new
        context = steps[-1].context


def test_a_batch_goes_on_from_its_context_or_begins_anew():
    prompts = [ids(4, 1), ids(2, 2)]
    first = run(prompts, 3)
    full = [[*prompt, *written(first, row), 7] for row, prompt in enumerate(prompts)]
    read = [list(row) for row in first[-1].context.rows]  # of which something must be read again to say what follows
    cases = ((full, 4), ([full[0], ids(9, 3)], len(full[0]) + 9), ([full[0]], len(full[0])))
    for rows, new in (*cases, (read, len(read[0]) + len(read[1])), ([read[0], full[1]], len(read[0]) + len(full[1]))):
        statistics = Statistics()
        steps = run(rows, 3, context=first[-1].context, statistics=statistics)
        assert [written(steps, row) for row in range(len(rows))] == [by_hand(row, 3) for row in rows]
        assert statistics.prompt_tokens == new


def test_a_cache_finds_room():
    context: Context = empty_context(WEIGHTS, CONFIG, 2, 1)
    logits = torch.zeros(0)
    for token in range(9):
        logits, context = read(WEIGHTS, CONFIG, context, [[token], [token + 1]])
    torch.testing.assert_close(logits[1], last_logits(range(1, 10)))
    cache: Cache = context.cache
    assert with_room(cache, 9) is cache
    assert (cache.positions[:, cache.length :] == NOWHERE).all()
    assert cache.positions.shape[1] == cache.keys[0].shape[2] == 16


def test_inference_mode_does_not_leak_to_the_caller():
    for _ in decode(WEIGHTS, CONFIG, [[1]], choose=greedy, stops=lambda row, token: False, max_tokens=3):
        assert not torch.is_inference_mode_enabled()


def test_statistics_count_what_was_done():
    statistics = Statistics()
    assert str(statistics) == "prompt 0 tokens in 0.00 s, 0 tokens in 0.0 s"
    filled = Statistics(rows=1, prompt_tokens=3, prompt_seconds=0.5, tokens=11, seconds=2.0, guessed=4)
    assert str(filled) == "prompt 3 tokens in 0.50 s, 11 tokens in 2.0 s (5 tokens/s), 4 of them guessed"
    steps = decode(
        WEIGHTS,
        CONFIG,
        [ids(3), ids(20)],
        choose=greedy,
        stops=lambda row, token: False,
        max_tokens=10,
        statistics=statistics,
    )
    next(steps)
    assert (statistics.rows, statistics.prompt_tokens, statistics.tokens, statistics.seconds) == (2, 23, 2, 0.0)
    assert statistics.reason is None
    list(steps)
    assert (statistics.tokens, statistics.slid, statistics.reason) == (20, True, "length")
    assert statistics.prompt_seconds > 0
    assert statistics.tokens_per_second == pytest.approx(18 / statistics.seconds)


def test_prompts_that_cannot_be_are_refused_at_the_call():
    options: dict[str, Any] = {"choose": greedy, "stops": lambda row, token: False}
    with pytest.raises(LlucidError, match="the prompt has 25 tokens, but the model's context is 24; shorten"):
        decode(WEIGHTS, CONFIG, [[1], ids(25)], max_tokens=1, **options)
    with pytest.raises(LlucidError, match="the prompt has no tokens"):
        decode(WEIGHTS, CONFIG, [[1], []], max_tokens=1, **options)
    with pytest.raises(LlucidError, match="--max-tokens 0: must be"):
        decode(WEIGHTS, CONFIG, [[1]], max_tokens=0, **options)
    assert list(decode(WEIGHTS, CONFIG, [], max_tokens=1, **options)) == []


@pytest.mark.parametrize("damage", [math.nan, math.inf, 1e38])
def test_scores_of_damaged_weights_are_said_and_not_sampled(damage: float):
    broken = WEIGHTS._replace(norm=WEIGHTS.norm * damage)
    steps = decode(broken, CONFIG, [[1]], choose=greedy, stops=lambda row, token: False, max_tokens=3)
    with pytest.raises(LlucidError, match="scores are not finite, or far too large"):
        next(steps)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_scores_can_be_chosen_from_at_any_temperature(sign: int):
    logits = np.array([[1, -1, 0.5]], np.float32) * np.float32(sign * 0.999 * LARGEST)
    sampling = Sampling(temperature=1e-6, top_k=2, top_p=0.9, min_p=0.1)
    for given in (logits, torch.tensor(logits)):
        assert int(sampling.choose(scores(given), [generator(0)])[0]) == (0 if sign > 0 else 1)
