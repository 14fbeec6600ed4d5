"""Every filter against its table worked out by hand, and the draw against the probabilities that it claims."""

import ast
import math
from copy import deepcopy
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
from llucid.generation.sampling import draw, log_probability, min_p, temperature, top_k, top_p

PROBABILITIES = [0.4, 0.05, 0.3, 0.2, 0.05]


def logits_of(probabilities: list[float]) -> torch.Tensor:
    return torch.tensor([probabilities]).log() + 3  # any constant: a softmax does not see it


def kept(logits: torch.Tensor) -> list[int]:
    assert len(logits) == 1
    return logits[0].isfinite().nonzero().flatten().tolist()


def test_temperature_raises_probabilities_to_its_inverse_power():
    found = temperature(logits_of(PROBABILITIES), 0.5).softmax(-1)[0]
    squares = [p**2 for p in PROBABILITIES]
    torch.testing.assert_close(found, torch.tensor([square / sum(squares) for square in squares]))


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [0]), (2, [0, 2]), (3, [0, 2, 3]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])]
)
def test_top_k_by_hand(k: int, expected: list[int]):
    assert kept(top_k(logits_of(PROBABILITIES), k)) == expected


def test_of_one_token_the_likeliest_is_left():
    assert kept(Sampling(temperature=1.0, top_k=1, top_p=None)(logits_of(PROBABILITIES))) == [
        PROBABILITIES.index(max(PROBABILITIES))
    ]


def test_top_k_keeps_what_ties_with_the_kth():
    assert kept(top_k(logits_of(PROBABILITIES), 4)) == [0, 1, 2, 3, 4]
    assert kept(top_k(torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]]), 1)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("p", "expected"),
    # Before the tokens in order stand 0, 0.4, 0.7, 0.9 and 0.95.
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


def test_top_p_drops_only_what_has_more_than_p_before_it():
    # Exact in binary: before the tokens stand 0, 0.5, 0.75; with p = 0.5 the second does not have MORE before it.
    assert kept(top_p(torch.tensor([[0.25, 0.5, 0.25]]).log2() * math.log(2), 0.5)) in ([0, 1], [1])
    assert kept(top_p(torch.zeros(1, 4), 0.5)) == [0, 1, 2]


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("vocabulary", [255, 256, 257, 3000])
def test_top_p_of_many_tokens_is_what_sorting_all_of_them_says(vocabulary: int, spread: float):
    """Flat and steep, with many ties: in halves, so that hundreds of tokens are equally likely."""
    torch.manual_seed(0)
    for rounded in (False, True):
        logits = torch.randn(5, vocabulary) * spread
        logits = (2 * logits).round() / 2 if rounded else logits
        for p in (0.01, 0.5, 0.95, 0.999):
            found = top_p(logits, p).isfinite()
            for row, alone in zip(found, logits, strict=True):
                probabilities, sum_so_far, before = alone.double().softmax(-1), 0.0, dict[int, float]()
                for token in sorted(range(vocabulary), key=lambda token: (-float(alone[token]), token)):
                    before[token] = sum_so_far
                    sum_so_far += float(probabilities[token])
                expected = {token for token in before if before[token] <= p}
                different = expected ^ {int(token) for token in row.nonzero()}
                # Sums of so many numbers in float32 cross p where those in float64 nearly do.
                assert all(abs(before[token] - p) <= vocabulary * 2**-24 for token in different)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, [0, 1, 2, 3, 4]), (0.12, [0, 1, 2, 3, 4]), (0.13, [0, 2, 3]), (0.51, [0, 2]), (0.76, [0]), (1.0, [0])],
)
def test_min_p_by_hand(share: float, expected: list[int]):
    assert kept(min_p(logits_of(PROBABILITIES), share)) == expected


def test_temperature_comes_first_and_top_p_sees_what_top_k_left():
    logits = logits_of(PROBABILITIES)
    # At T = 1/2 the probabilities are 16 : 0.25 : 9 : 4 : 0.25 of 29.5, so 0.54 and 0.85 are reached by one and two.
    assert kept(Sampling(temperature=0.5, top_p=0.5)(logits)) == [0]
    assert kept(Sampling(temperature=1.0, top_p=0.5)(logits)) == [0, 2]
    # Of the two that top-k leaves, the first has 4/7 = 0.57 > 0.5; of all, only 0.4.
    assert kept(Sampling(temperature=1.0, top_k=2, top_p=0.5)(logits)) == [0]
    assert kept(Sampling(temperature=0.5, top_p=1.0, min_p=0.3)(logits)) == [0, 2]


@pytest.mark.parametrize("library", [np, torch], ids=["numpy", "torch"])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_callers_logits_are_left_alone(rows: int, library: Any):
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


def test_temperature_zero_is_the_first_of_the_largest_and_draws_nothing():
    logits = torch.tensor([[0.0, 5.0, 5.0, 1.0], [9.0, 9.0, 9.0, 9.0]])
    assert Sampling(temperature=0.0).choose(logits, []).tolist() == [1, 0]
    assert kept(Sampling(temperature=0.0)(logits[:1])) == [1]


def test_filters_are_exact_in_bfloat16_too():
    # 1,000 equal tokens: in bfloat16 their probabilities, 1/1000 each, could not be added up to 0.5.
    kept_tokens = Sampling(temperature=1.0, top_p=0.5)(torch.zeros(1, 1000, dtype=torch.bfloat16))
    assert kept_tokens.dtype == torch.float32
    assert abs(len(kept(kept_tokens)) - 501) <= 1


def chi_squared(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_draws_have_the_probabilities_they_claim():
    n = 20_000
    one = generator(0)
    tokens = draw(logits_of(PROBABILITIES).expand(n, -1), [one] * n)
    counts = torch.bincount(tokens, minlength=5)
    # With 4 degrees of freedom, chance exceeds 23.5 once in 10,000 seeds.
    assert chi_squared(counts, torch.tensor(PROBABILITIES)) < 23.5


def test_streams_of_neighbouring_seeds_are_uniform_together():
    # Each of 40 seeds and 50 streams draws once: were they correlated, the counts would not be those of chance.
    tokens = draw(torch.zeros(2000, 10), [generator(seed, stream) for seed in range(40) for stream in range(50)])
    # 9 degrees of freedom: 33.7 is exceeded once in 10,000.
    assert chi_squared(torch.bincount(tokens, minlength=10), torch.full((10,), 0.1)) < 33.7
    first = [generator(seed, stream).random() for seed in range(40) for stream in range(50)]
    assert len(set(first)) == 2000


class Given(np.random.Generator):
    """A generator whose every number is this one."""

    def __init__(self, number: float) -> None:
        super().__init__(np.random.PCG64())
        self.number = number

    def random(self) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.number


def test_the_rarest_tokens_have_their_turn():
    # A thousandth of the mass is spread over a million tokens: each is far below the last bit of a float32 near 1.
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
def test_a_row_draws_the_same_in_any_batch(row: list[float], seed: int):
    others = torch.randn(2, len(row), generator=torch.Generator().manual_seed(0))
    sampling = Sampling(temperature=0.7, top_k=7, top_p=0.9, min_p=0.01)
    alone = sampling.choose(torch.tensor([row]), [generator(seed)])
    batch = torch.stack([others[0], torch.tensor(row), others[1]])
    together = sampling.choose(batch, [generator(5), generator(seed), generator(6)])
    assert together[1] == alone[0]


@pytest.mark.parametrize(
    ("option", "numbers"),
    [
        ("temperature=", {"temperature": -0.1}),
        ("temperature=", {"temperature": math.nan}),
        ("temperature=", {"temperature": math.inf}),
        ("temperature=", {"temperature": 1e-50}),
        ("top_k=0", {"top_k": 0}),
        ("top_p=1.5", {"top_p": 1.5}),
        ("top_p=0", {"top_p": 0.0}),
        ("top_p=nan", {"top_p": math.nan}),
        ("min_p=-1", {"min_p": -1.0}),
        ("min_p=1.1", {"min_p": 1.1}),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_name(option: str, numbers: dict[str, float]):
    with pytest.raises(LlucidError, match=rf"^{option}.*: must be"):
        Sampling(**numbers)


def test_penalties_by_hand():
    """A repetition penalty for all that the model sees; the other two for what was written, by count or at all."""
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
        ("frequency_penalty=nan: must be", {"frequency_penalty": math.nan}),
        ("presence_penalty=inf: must be", {"presence_penalty": math.inf}),
        ("logit_bias: each must be", {"logit_bias": ((-1, 0.0),)}),
        ("logit_bias: each must be", {"logit_bias": ((1, 101.0),)}),
    ],
)
def test_penalties_out_of_range_are_refused_by_name(message: str, numbers: dict[str, Any]):
    with pytest.raises(LlucidError, match=message):
        Sampling(**numbers)


def test_log_probabilities_are_those_of_a_softmax():
    logits = np.array([3.0, 900.0, -5.0, 899.0])
    for x in (logits, torch.from_numpy(logits)):
        expected = torch.from_numpy(logits).log_softmax(-1)
        assert [log_probability(x, token) for token in range(4)] == pytest.approx(expected.tolist())


def test_no_function_here_has_more_than_seven_parameters():
    """Options travel as one `Options`, `Sampling` or `Request`."""
    for file in Path(generation.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                given = node.args
                count = (
                    len([*given.posonlyargs, *given.args, *given.kwonlyargs]) + bool(given.vararg) + bool(given.kwarg)
                )
                assert count <= 7, f"{file.name}: {node.name}"


def test_numbers_at_their_limits_are_taken():
    for numbers in ({"temperature": 0.0}, {"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1.0}, {"min_p": 0.0}):
        assert Sampling(**numbers)
    assert kept(Sampling(temperature=1.0, top_p=None, min_p=1.0)(logits_of(PROBABILITIES))) == [0]


class Fixed(np.random.Generator):
    """Whose numbers are all the same one."""

    def __init__(self, number: float) -> None:
        super().__init__(np.random.PCG64())
        self.number = number

    def random(self, *_: object, **__: object) -> Any:
        return self.number


def test_a_top_p_of_one_is_for_all_tokens_however_their_sum_rounds():
    for seed in range(20):
        logits = 8 * torch.randn(1, 3000, generator=torch.Generator().manual_seed(seed))
        assert len(kept(Sampling(temperature=1.0, top_p=1.0)(logits))) == 3000


@pytest.mark.parametrize("library", [np, torch], ids=["numpy", "torch"])
def test_a_token_is_drawn_by_numbers_from_where_it_begins_to_just_before_it_ends(library: Any):
    for probabilities, number, token in (
        *(([0.5, 0.5], 0.0, 0), ([0.5, 0.5], 0.5 - 2**-30, 0), ([0.5, 0.5], 0.5, 1)),
        *(([0.0, 0.25, 0.75], 0.0, 1), ([0.0, 0.25, 0.75], 0.25, 2)),
    ):
        logits = torch.tensor([probabilities]).log2() * math.log(2)
        assert draw(logits.numpy() if library is np else logits, [Fixed(number)]).tolist() == [token]


@pytest.mark.parametrize("library", [np, torch], ids=["numpy", "torch"])
def test_the_largest_random_number_draws_the_last_token(library: Any):
    """Also where rounding makes the probabilities sum to less than that number."""
    for seed in range(20):
        logits = torch.randn(1, 3000, generator=torch.Generator().manual_seed(seed))
        logits[0, -1] = -math.inf
        ours = logits.numpy() if library is np else logits
        assert draw(ours, [Fixed(1 - 2**-53)]).tolist() == [2998]


def test_the_coldest_temperature_allowed_is_still_finite():
    probabilities = Sampling(temperature=1e-6, top_p=None)(torch.tensor([[1e4, -1e4, 9e3]])).softmax(-1)
    assert probabilities.tolist() == [[1.0, 0.0, 0.0]]
