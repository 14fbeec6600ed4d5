"""Stop strings: the matcher against a search of the whole text, however the text is cut."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llucid.errors import LlucidError
from llucid.generation import StopMatcher


def before_the_first_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition, by brute force: the shortest beginning that ends in a stop string, without the longest such."""
    for end in range(len(text) + 1):
        matching = [stop for stop in stops if text[:end].endswith(stop)]
        if matching:
            return text[: end - max(map(len, matching))], True
    return text, False


def could_begin_a_stop(text: str, stops: list[str]) -> int:
    """Length of the longest end of `text` that begins a stop string."""
    return max((n for n in range(1, len(text) + 1) for stop in stops if stop.startswith(text[-n:])), default=0)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.text("ab\n", max_size=5), max_size=12),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
@example(["a", "a", "a", "b"], ["aab"])
@example(["abc"], ["b", "abc"])
def test_any_split_shows_the_text_before_the_first_stop_and_never_more(pieces: list[str], stops: list[str]):
    matcher = StopMatcher(stops)
    expected, stops_there = before_the_first_stop("".join(pieces), stops)
    shown, stopped = "", False
    for number, piece in enumerate(pieces, 1):
        more, stopped = matcher.push(piece)
        shown += more
        so_far = "".join(pieces[:number])
        allowed, _ = before_the_first_stop(so_far, stops)
        if stopped:
            assert shown == allowed
        else:  # all that is safe is shown at once, and what might begin a stop string is not
            assert shown == so_far[: len(so_far) - could_begin_a_stop(so_far, stops)]
    shown += matcher.finish()
    assert (shown, stopped) == (expected, stops_there)
    assert matcher.finish() == ""


def test_a_stop_that_straddles_pieces():
    matcher = StopMatcher(["AB"])
    assert [matcher.push(piece) for piece in "xAAB"] == [("x", False), ("", False), ("A", False), ("", True)]
    assert matcher.push("more") == ("", True)
    assert matcher.finish() == ""


def test_overlapping_beginnings():
    matcher = StopMatcher(["aab"])
    assert [matcher.push(piece) for piece in "aaab"] == [("", False), ("", False), ("a", False), ("", True)]


def test_what_waited_for_a_stop_that_never_came_is_shown_at_the_end():
    matcher = StopMatcher(["\n\nUser:"])
    assert matcher.push("Yes.\n\nUse") == ("Yes.", False)
    assert matcher.finish() == "\n\nUse"


def test_the_one_that_is_complete_first_wins_and_of_those_the_longest():
    assert StopMatcher(["cd", "b"]).push("abcd") == ("a", True)
    assert StopMatcher(["bc", "abc"]).push("xabc") == ("x", True)
    assert StopMatcher(["abcd", "b"]).push("abc") == ("a", True)


def test_a_single_string_is_one_stop_and_not_its_characters():
    assert StopMatcher("xy").push("ax") == ("a", False)


def test_an_empty_stop_is_refused():
    with pytest.raises(LlucidError, match="stop='': a stop string must have at least one character"):
        StopMatcher(["a", ""])
