"""What is called a gain, and what is called chance."""

import math

import pytest

from llucid.ladder import RUNGS
from llucid.ladder.verdicts import Result, noise, sentence, verdicts


def result(number: int, *losses: float, peeks: bool = False) -> Result:
    return Result(RUNGS[number - 1], 10, peeks, tuple(((0, 4.0), (5, loss)) for loss in losses), losses, 1.0, "text")


def test_a_change_counts_when_it_is_beyond_what_seeds_differ_by() -> None:
    results = [
        result(1, 2.50, 2.52),
        result(2, 2.00, 2.04),  # by seed -0.50 -0.48
        result(3, 0.05, 0.04, peeks=True),
        result(4, 2.20, 2.22),  # +0.20 +0.18, against 2
        result(5, 2.20, 2.21),  # 0 -0.01
    ]
    limit = noise(results)
    assert limit is not None
    # Deviations from their means: ±0.01 ±0.01 ±0.005, on three degrees of freedom, and means of two.
    assert limit == pytest.approx(2 * math.sqrt((4 * 0.01**2 + 2 * 0.005**2) / 3 / 2))
    told = verdicts(results)
    assert [each.kind for each in told] == ["first", "better", "cheats", "worse", "chance"]
    assert [each.against and each.against.number for each in told] == [None, 1, 2, 2, 4]
    assert told[3].change == pytest.approx(0.19)
    assert [each.honest_again for each in told] == [False, False, False, True, False]
    words = [sentence(*pair, limit, "tales") for pair in zip(results, told, strict=True)]
    assert "0.490 nats better than 1" in words[1]
    assert "reads the next character" in words[2]
    assert words[3].startswith("no longer told the answer, and honest: 0.190 nats worse than 2 RNN: no gain on tales")
    assert "beyond chance on tales" in words[4]


def test_one_seed_tells_no_noise() -> None:
    results = [result(1, 2.5), result(2, 2.0)]
    assert noise(results) is None
    assert [each.kind for each in verdicts(results)] == ["first", "unknown"]


def test_a_cheat_is_no_measure_even_where_it_comes_first() -> None:
    results = [result(3, 0.05, 0.05, peeks=True), result(4, 2.2, 2.3), result(5, 2.1, 2.21)]
    assert [each.kind for each in verdicts(results)] == ["cheats", "first", "better"]


def test_no_change_is_chance_even_where_there_is_no_noise() -> None:
    results = [result(1, 2.5, 2.6), result(2, 2.5, 2.6)]
    assert noise(results) == 0
    assert [each.kind for each in verdicts(results)] == ["first", "chance"]


def test_of_two_cheats_neither_is_honest_again() -> None:
    told = verdicts([result(3, 0.1, peeks=True), result(4, 0.1, peeks=True), result(5, 2.2), result(6, 2.1)])
    assert [each.honest_again for each in told] == [False, False, True, False]
