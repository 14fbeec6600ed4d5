"""Stop strings: the matcher against a search of the whole text, however the text is split."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llucid.errors import LlucidError
from llucid.generation import StopMatcher


def before_first_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition, by brute force: the shortest prefix that ends in a stop string, without the longest such one."""
    for end in range(len(text) + 1):
        matching = [stop for stop in stops if text[:end].endswith(stop)]
        if matching:
            return text[: end - max(map(len, matching))], True
    return text, False


def overlap(text: str, stops: list[str]) -> int:
    """The length of the longest suffix of `text` that begins a stop string."""
    return max((n for n in range(1, len(text) + 1) for stop in stops if stop.startswith(text[-n:])), default=0)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.text("ab\n", max_size=5), max_size=12),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
@example(["a", "a", "a", "b"], ["aab"])
@example(["abc"], ["b", "abc"])
def test_any_split_shows_exactly_the_text_before_the_first_stop(pieces: list[str], stops: list[str]):
    matcher = StopMatcher(stops)
    expected, stops_there = before_first_stop("".join(pieces), stops)
    shown, stopped = "", False
    for number, piece in enumerate(pieces, 1):
        more, stopped = matcher.push(piece)
        shown += more
        so_far = "".join(pieces[:number])
        allowed, _ = before_first_stop(so_far, stops)
        if stopped:
            assert shown == allowed
        else:  # shows everything except what may begin a stop string
            assert shown == so_far[: len(so_far) - overlap(so_far, stops)]
    shown += matcher.finish()
    assert (shown, stopped) == (expected, stops_there)
    assert matcher.finish() == ""


def test_a_stop_across_pieces():
    matcher = StopMatcher(["AB"])
    assert [matcher.push(piece) for piece in "xAAB"] == [("x", False), ("", False), ("A", False), ("", True)]
    assert matcher.push("more") == ("", True)
    assert matcher.finish() == ""


def test_overlapping_beginnings():
    matcher = StopMatcher(["aab"])
    assert [matcher.push(piece) for piece in "aaab"] == [("", False), ("", False), ("a", False), ("", True)]


def test_held_back_text_is_shown_at_the_end():
    matcher = StopMatcher(["\n\nUser:"])
    assert matcher.push("Yes.\n\nUse") == ("Yes.", False)
    assert matcher.finish() == "\n\nUse"


def test_the_stop_that_is_complete_first_counts_and_of_several_the_longest():
    assert StopMatcher(["cd", "b"]).push("abcd") == ("a", True)
    assert StopMatcher(["bc", "abc"]).push("xabc") == ("x", True)
    assert StopMatcher(["abcd", "b"]).push("abc") == ("a", True)


def test_a_single_string_is_one_stop():
    assert StopMatcher("xy").push("ax") == ("a", False)


def test_an_empty_stop_is_refused():
    with pytest.raises(LlucidError, match="stop='': a stop string must have at least one character"):
        StopMatcher(["a", ""])
