"""Which differences count as significant, and the labels of the plot."""

import math
from itertools import combinations

import pytest
from matplotlib.text import Text

from llucid.ladder import RUNGS
from llucid.ladder.comparison import Result, compare, noise, sentence
from llucid.ladder.plot import ladder_figure, spread_out


def result(number: int, *losses: float, sees_future: bool = False) -> Result:
    return Result(
        RUNGS[number - 1], 10, sees_future, tuple(((0, 4.0), (5, loss)) for loss in losses), losses, 1.0, "text"
    )


def test_a_change_is_significant_when_it_exceeds_the_noise_between_seeds() -> None:
    results = [
        result(1, 2.50, 2.52),
        result(2, 2.00, 2.04),  # by seed -0.50 -0.48
        result(3, 0.05, 0.04, sees_future=True),
        result(4, 2.20, 2.22),  # +0.20 +0.18, against 2
        result(5, 2.20, 2.21),  # 0 -0.01
    ]
    limit = noise(results)
    assert limit is not None
    # Deviations from their means: ±0.01 ±0.01 ±0.005, on three degrees of freedom, and means of two.
    assert limit == pytest.approx(2 * math.sqrt((4 * 0.01**2 + 2 * 0.005**2) / 3 / 2))
    found = compare(results)
    assert [each.verdict for each in found] == ["first", "better", "cheats", "worse", "noise"]
    assert [each.baseline and each.baseline.number for each in found] == [None, 1, 2, 2, 4]
    assert found[3].change == pytest.approx(0.19)
    assert [each.after_cheat for each in found] == [False, False, False, True, False]
    words = [sentence(*pair, limit, "tales") for pair in zip(results, found, strict=True)]
    assert "0.490 nats better than 1 Bigram table" in words[1]
    assert "can read the next character" in words[2]
    assert words[3].startswith("cannot see the answer any more: 0.190 nats worse than 2 RNN: no gain on tales")
    assert "no significant difference from 4 Causal mask on tales" in words[4]


def test_one_seed_gives_no_estimate_of_the_noise() -> None:
    results = [result(1, 2.5), result(2, 2.0)]
    assert noise(results) is None
    assert [each.verdict for each in compare(results)] == ["first", "unknown"]


def test_no_rung_is_compared_with_a_cheat() -> None:
    results = [result(3, 0.05, 0.05, sees_future=True), result(4, 2.2, 2.3), result(5, 2.1, 2.21)]
    assert [each.verdict for each in compare(results)] == ["cheats", "first", "better"]


def test_no_change_is_not_significant_without_noise() -> None:
    results = [result(1, 2.5, 2.6), result(2, 2.5, 2.6)]
    assert noise(results) == 0
    assert [each.verdict for each in compare(results)] == ["first", "noise"]


def test_of_two_cheats_neither_is_after_cheat() -> None:
    found = compare(
        [result(3, 0.1, sees_future=True), result(4, 0.1, sees_future=True), result(5, 2.2), result(6, 2.1)]
    )
    assert [each.after_cheat for each in found] == [False, False, True, False]


@pytest.mark.parametrize(
    "losses", [[4.0] * 10, [2.5, 1.9, 0.04, 2.2, 2.2, 2.16, 2.0, 1.8, 1.69, 1.7], [3.0, 3.01, 0.1]]
)
@pytest.mark.parametrize("floor", [None, 0.173, 3.0])
def test_labels_of_the_plot_do_not_overlap(losses: list[float], floor: float | None) -> None:
    """Also for a ladder of few steps, where all curves end at nearly the same loss."""
    results = [result(number, loss, sees_future=number == 3) for number, loss in enumerate(losses, start=1)]
    figure = ladder_figure(results, "a title", floor)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without the arrows
    assert len(boxes) == len(losses) + (floor is not None) + 1
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_labels_are_moved_no_further_than_needed() -> None:
    assert spread_out([1.0, 2.0, 3.0], 0.5, 0.0, 10.0) == [1.0, 2.0, 3.0]
    assert spread_out([1.0, 1.0, 3.0], 0.5, 0.0, 10.0) == [0.75, 1.25, 3.0]
    assert spread_out([-5.0, 0.1, 9.9, 10.0], 0.5, 0.0, 10.0) == [0, 0.5, 9.5, 10.0]
