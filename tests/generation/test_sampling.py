"""The filters against tables computed by hand, and draws against their probabilities."""

import ast
import math
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llucid import generation
from llucid.errors import LlucidError
from llucid.generation import Sampling, generator
from llucid.generation.sampling import draw, likeliest, log_probability, min_p, temperature, top_k, top_p

PROBABILITIES = [0.4, 0.05, 0.3, 0.2, 0.05]


def logits_of(probabilities: list[float]) -> torch.Tensor:
    return torch.tensor([probabilities]).log() + 3  # any constant: it does not change the softmax


def kept(logits: torch.Tensor) -> list[int]:
    assert len(logits) == 1
    return logits[0].isfinite().nonzero().flatten().tolist()


def test_temperature_raises_probabilities_to_a_power():
    found = temperature(logits_of(PROBABILITIES), 0.5).softmax(-1)[0]
    squares = [p**2 for p in PROBABILITIES]
    torch.testing.assert_close(found, torch.tensor([square / sum(squares) for square in squares]))


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [0]), (2, [0, 2]), (3, [0, 2, 3]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])]
)
def test_top_k_by_hand(k: int, expected: list[int]):
    assert kept(top_k(logits_of(PROBABILITIES), k)) == expected


def test_top_k_of_one_keeps_the_likeliest():
    assert kept(Sampling(temperature=1.0, top_k=1, top_p=None)(logits_of(PROBABILITIES))) == [
        PROBABILITIES.index(max(PROBABILITIES))
    ]


def test_top_k_keeps_ties_with_the_kth():
    assert kept(top_k(logits_of(PROBABILITIES), 4)) == [0, 1, 2, 3, 4]
    assert kept(top_k(torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]]), 1)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("p", "expected"),
    # The sums before the tokens, in order, are 0, 0.4, 0.7, 0.9 and 0.95.
    [
        (0.01, [0]),
        (0.39, [0]),
        (0.41, [0, 2]),
        (0.69, [0, 2]),
        (0.71, [0, 2, 3]),
        (0.92, [0, 1, 2, 3]),
        (0.96, [0, 1, 2, 3, 4]),
    ],
)
def test_top_p_keeps_the_token_that_crosses_p(p: float, expected: list[int]):
    assert kept(top_p(logits_of(PROBABILITIES), p)) == expected


def test_top_p_drops_tokens_with_more_than_p_before_them():
    # Exact in binary: the sums before the tokens are 0, 0.5 and 0.75; with p = 0.5, that of the second is not larger.
    assert kept(top_p(torch.tensor([[0.25, 0.5, 0.25]]).log2() * math.log(2), 0.5)) in ([0, 1], [1])
    assert kept(top_p(torch.zeros(1, 4), 0.5)) == [0, 1, 2]


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("vocabulary", [255, 256, 257, 3000])
def test_top_p_of_many_tokens_equals_sorting_all(vocabulary: int, spread: float):
    """Flat and steep distributions, also rounded to halves, so that hundreds of tokens are equally likely."""
    torch.manual_seed(0)
    for rounded in (False, True):
        logits = torch.randn(5, vocabulary) * spread
        logits = (2 * logits).round() / 2 if rounded else logits
        for p in (0.01, 0.5, 0.95, 0.999):
            found = top_p(logits, p).isfinite()
            for row, scores in zip(found, logits, strict=True):
                probabilities, sum_so_far, before = scores.double().softmax(-1), 0.0, dict[int, float]()
                for token in sorted(range(vocabulary), key=lambda token: (-float(scores[token]), token)):
                    before[token] = sum_so_far
                    sum_so_far += float(probabilities[token])
                expected = {token for token in before if before[token] <= p}
                different = expected ^ {int(token) for token in row.nonzero()}
                # Sums in float32 may cross p where sums in float64 are close to p.
                assert all(abs(before[token] - p) <= vocabulary * 2**-24 for token in different)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, [0, 1, 2, 3, 4]), (0.12, [0, 1, 2, 3, 4]), (0.13, [0, 2, 3]), (0.51, [0, 2]), (0.76, [0]), (1.0, [0])],
)
def test_min_p_by_hand(share: float, expected: list[int]):
    assert kept(min_p(logits_of(PROBABILITIES), share)) == expected


def test_order_of_the_filters():
    logits = logits_of(PROBABILITIES)
    # At T = 1/2 the probabilities are 16 : 0.25 : 9 : 4 : 0.25 of 29.5, so 0.54 and 0.85 are reached by one and two.
    assert kept(Sampling(temperature=0.5, top_p=0.5)(logits)) == [0]
    assert kept(Sampling(temperature=1.0, top_p=0.5)(logits)) == [0, 2]
    # Of the two that top-k leaves, the first has 4/7 = 0.57 > 0.5; of all, only 0.4.
    assert kept(Sampling(temperature=1.0, top_k=2, top_p=0.5)(logits)) == [0]
    assert kept(Sampling(temperature=0.5, top_p=1.0, min_p=0.3)(logits)) == [0, 2]


@pytest.mark.parametrize("library", [np, torch], ids=["numpy", "torch"])
@pytest.mark.parametrize("rows", [1, 3])
def test_logits_of_the_caller_do_not_change(rows: int, library: Any):
    logits = library.asarray(logits_of(PROBABILITIES).repeat(rows, 1))
    before = deepcopy(logits)
    for function in (
        lambda x: temperature(x, 2.0),
        lambda x: top_k(x, 2),
        lambda x: top_p(x, 0.5),
        lambda x: min_p(x, 0.5),
    ):
        assert not (function(logits) == before).all()
        assert (logits == before).all()
    for sampling in (
        Sampling(temperature=1.0, top_k=2, top_p=0.5, min_p=0.2),
        Sampling(temperature=0.0),
        Sampling(temperature=1.0, top_p=None),
    ):
        sampling(logits)
        sampling.choose(logits, [generator(0, row) for row in range(rows)])
        assert (logits == before).all()


def test_temperature_zero_takes_the_first_of_the_largest():
    logits = torch.tensor([[0.0, 5.0, 5.0, 1.0], [9.0, 9.0, 9.0, 9.0]])
    assert Sampling(temperature=0.0).choose(logits, []).tolist() == [1, 0]
    assert kept(Sampling(temperature=0.0)(logits[:1])) == [1]


def test_filters_of_bfloat16_compute_in_float32():
    # 1,000 equal tokens: in bfloat16 their probabilities, 1/1000 each, could not be added up to 0.5.
    kept_tokens = Sampling(temperature=1.0, top_p=0.5)(torch.zeros(1, 1000, dtype=torch.bfloat16))
    assert kept_tokens.dtype == torch.float32
    assert abs(len(kept(kept_tokens)) - 501) <= 1


def chi_squared(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_draws_have_the_right_probabilities():
    n = 20_000
    one = generator(0)
    tokens = draw(logits_of(PROBABILITIES).expand(n, -1), [one] * n)
    counts = torch.bincount(tokens, minlength=5)
    # With 4 degrees of freedom, chance exceeds 23.5 once in 10,000 seeds.
    assert chi_squared(counts, torch.tensor(PROBABILITIES)) < 23.5


def test_neighbouring_seeds_and_streams_are_independent():
    # Each of 40 seeds and 50 streams draws once: if they were correlated, the counts would be less uniform.
    tokens = draw(torch.zeros(2000, 10), [generator(seed, stream) for seed in range(40) for stream in range(50)])
    # With 9 degrees of freedom, 33.7 is exceeded once in 10,000.
    assert chi_squared(torch.bincount(tokens, minlength=10), torch.full((10,), 0.1)) < 33.7
    first = [generator(seed, stream).random() for seed in range(40) for stream in range(50)]
    assert len(set(first)) == 2000


class Given(np.random.Generator):
    """A generator that always returns this number."""

    def __init__(self, number: float) -> None:
        super().__init__(np.random.PCG64())
        self.number = number

    def random(self) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.number


def test_the_rarest_tokens_can_be_drawn():
    # A million tokens share a probability of 0.001: each is far below the last bit of a float32 near 1.
    logits = torch.zeros(1, 1_000_001)
    logits[0, 0] = math.log(999 * 1_000_000)
    tokens: list[int] = []
    for number in range(20):
        tokens += draw(logits, [Given(0.9995 + number * 1e-9)]).tolist()
    assert len(set(tokens)) >= 19
    assert tokens == sorted(tokens)
    assert abs(tokens[0] - 500_000) < 1000


def test_dropped_tokens_are_never_drawn():
    dropped = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]).expand(500, -1)
    assert set(draw(dropped, [generator(0)] * 500).tolist()) == {1, 3}
    for scale in torch.linspace(0, 5, 200).tolist():
        logits = torch.tensor([[-math.inf, 0.0, scale, scale / 2, -math.inf]])
        for uniform, expected in ((1 - 2**-53, 3), (0.0, 1)):
            assert draw(logits, [Given(uniform)]).tolist() == [expected]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=20), st.integers(0, 2**32))
def test_a_row_draws_the_same_token_in_any_batch(row: list[float], seed: int):
    others = torch.randn(2, len(row), generator=torch.Generator().manual_seed(0))
    sampling = Sampling(temperature=0.7, top_k=7, top_p=0.9, min_p=0.01)
    single = sampling.choose(torch.tensor([row]), [generator(seed)])
    batch = torch.stack([others[0], torch.tensor(row), others[1]])
    together = sampling.choose(batch, [generator(5), generator(seed), generator(6)])
    assert together[1] == single[0]


@pytest.mark.parametrize(
    ("option", "numbers"),
    [
        ("temperature=", {"temperature": -0.1}),
        ("temperature=", {"temperature": math.nan}),
        ("temperature=", {"temperature": math.inf}),
        ("temperature=", {"temperature": 1e-50}),
        ("temperature=", {"temperature": 1e39}),  # infinite in float32
        ("top_k=-1", {"top_k": -1}),
        ("top_p=1.5", {"top_p": 1.5}),
        ("top_p=0", {"top_p": 0.0}),
        ("top_p=nan", {"top_p": math.nan}),
        ("min_p=-1", {"min_p": -1.0}),
        ("min_p=1.1", {"min_p": 1.1}),
    ],
)
def test_invalid_numbers_are_refused_by_name(option: str, numbers: dict[str, float]):
    with pytest.raises(LlucidError, match=rf"^{option}.*: must be"):
        Sampling(**numbers)


@pytest.mark.parametrize("vocabulary", [40, 5000])
@pytest.mark.parametrize("more", [{"top_p": None}, {"top_p": 0.3}, {"min_p": 0.01}], ids=str)
def test_top_k_0_is_all_tokens(vocabulary: int, more: dict[str, Any]):
    """Also for a model whose own settings have another; transformers and llama.cpp write it so."""
    logits = np.random.default_rng(0).normal(size=(50, vocabulary)).astype(np.float32)
    zero, none = Sampling(top_k=0, **more), Sampling(top_k=None, **more)
    assert np.array_equal(zero(logits), none(logits))
    chosen = [each.choose(logits, [generator(row) for row in range(50)]).tolist() for each in (zero, none)]
    assert chosen[0] == chosen[1]


def test_penalties_by_hand():
    """The repetition penalty applies to all ids in the context, the other two to written ones, per count or once."""
    logits = np.array([[2.0, -1.0, 3.0, 0.5]], np.float32)
    history = [([0, 1, 1], [1, 3, 3])]
    for library in (np.asarray, torch.tensor):
        found = Sampling(repetition_penalty=2.0).penalise(library(logits), history)
        assert found.tolist() == [[1.0, -2.0, 3.0, 0.5]]
        found = Sampling(frequency_penalty=0.5, presence_penalty=1.0).penalise(library(logits), history)
        assert found.tolist() == [[2.0, -2.5, 3.0, -1.5]]
        found = Sampling(logit_bias=((2, -100.0), (9, 5.0))).penalise(library(logits), history)
        assert found.tolist() == [[2.0, -1.0, -97.0, 0.5]]
    assert logits.tolist() == [[2.0, -1.0, 3.0, 0.5]]
    assert Sampling().penalise(logits, history) is logits


@pytest.mark.parametrize(
    ("message", "numbers"),
    [
        ("repetition_penalty=0.0: must be", {"repetition_penalty": 0.0}),
        ("repetition_penalty=1e-30: must be from 0.01 to 100", {"repetition_penalty": 1e-30}),
        ("repetition_penalty=1e\\+30: must be", {"repetition_penalty": 1e30}),
        ("frequency_penalty=1e\\+300: must be from -100 to 100", {"frequency_penalty": 1e300}),
        ("frequency_penalty=nan: must be", {"frequency_penalty": math.nan}),
        ("presence_penalty=inf: must be", {"presence_penalty": math.inf}),
        ("logit_bias=-1=0: must be", {"logit_bias": ((0, 1.0), (-1, 0.0))}),
        ("logit_bias=1=101: must be", {"logit_bias": ((1, 101.0),)}),
    ],
)
def test_penalties_out_of_range_are_refused_by_name(message: str, numbers: dict[str, Any]):
    with pytest.raises(LlucidError, match=message):
        Sampling(**numbers)


def test_log_probabilities_equal_log_softmax():
    logits = np.array([3.0, 900.0, -5.0, 899.0])
    for x in (logits, torch.from_numpy(logits)):
        expected = torch.from_numpy(logits).log_softmax(-1)
        assert [log_probability(x, token) for token in range(4)] == pytest.approx(expected.tolist())


def test_no_function_of_generation_has_more_than_seven_parameters():
    """Options travel as one `Options`, `Sampling` or `Request`."""
    for file in Path(generation.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                given = node.args
                count = (
                    len([*given.posonlyargs, *given.args, *given.kwonlyargs]) + bool(given.vararg) + bool(given.kwarg)
                )
                assert count <= 7, f"{file.name}: {node.name}"


def test_numbers_at_their_limits_are_accepted():
    for numbers in (
        {"temperature": 0.0},
        {"temperature": 1e-6},
        {"temperature": 1e6},
        {"top_k": 1},
        {"top_p": 1.0},
        {"min_p": 0.0},
    ):
        assert Sampling(**numbers)
    assert kept(Sampling(temperature=1.0, top_p=None, min_p=1.0)(logits_of(PROBABILITIES))) == [0]


def test_top_p_of_one_keeps_all_tokens():
    for seed in range(20):
        logits = 8 * torch.randn(1, 3000, generator=torch.Generator().manual_seed(seed))
        assert len(kept(Sampling(temperature=1.0, top_p=1.0)(logits))) == 3000


@pytest.mark.parametrize("library", [np, torch], ids=["numpy", "torch"])
def test_draws_at_the_limits_of_a_token(library: Any):
    for probabilities, number, token in (
        *(([0.5, 0.5], 0.0, 0), ([0.5, 0.5], 0.5 - 2**-30, 0), ([0.5, 0.5], 0.5, 1)),
        *(([0.0, 0.25, 0.75], 0.0, 1), ([0.0, 0.25, 0.75], 0.25, 2)),
    ):
        logits = torch.tensor([probabilities]).log2() * math.log(2)
        assert draw(logits.numpy() if library is np else logits, [Given(number)]).tolist() == [token]


@pytest.mark.parametrize("library", [np, torch], ids=["numpy", "torch"])
def test_the_largest_random_number_draws_the_last_token(library: Any):
    """Also where rounding makes the probabilities sum to less than that number."""
    for seed in range(20):
        logits = torch.randn(1, 3000, generator=torch.Generator().manual_seed(seed))
        logits[0, -1] = -math.inf
        ours = logits.numpy() if library is np else logits
        assert draw(ours, [Given(1 - 2**-53)]).tolist() == [2998]


def test_the_lowest_temperature_is_finite():
    probabilities = Sampling(temperature=1e-6, top_p=None)(torch.tensor([[1e4, -1e4, 9e3]])).softmax(-1)
    assert probabilities.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0, 8.0, "ties", "many ties", "one"])
def test_looking_at_the_likeliest_tokens_only_draws_what_looking_at_all_draws(spread: float | str):
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((6, 5000)) * (spread if isinstance(spread, float) else 4)
    if isinstance(spread, str):
        logits = {"ties": np.round(logits), "many ties": np.round(logits / 8), "one": np.eye(6, 5000) * 50}[spread]
    logits = logits.astype(np.float32)
    for t, k, p, share in product((0.3, 1.0, 2.5), (None, 1, 40, 300, 1000), (None, 0.1, 0.95), (None, 0.02, 0.7)):
        sampling = Sampling(temperature=t, top_k=k, top_p=p, min_p=share)
        found = sampling.choose(logits, [generator(row) for row in range(6)])
        whole = draw(sampling(logits), [generator(row) for row in range(6)])
        assert found.tolist() == whole.tolist(), sampling


def test_the_likeliest_are_at_least_so_many_and_few_more():
    for size in (100, 2048, 5000, 128_256):
        row = np.random.default_rng(size).standard_normal(size).astype(np.float32)
        ids = likeliest(row, 256)
        assert min(size, 256) <= len(ids) < 600
        assert set(np.argsort(-row)[:256].tolist()) <= set(ids.tolist())
