"""Text for a terminal: whole words, however the text is split, and no control characters."""

import re
import textwrap
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from llucid.generation.screen import Screen

WORDS = st.lists(st.text("abé.,", min_size=1, max_size=12), min_size=1)
ANY = st.text("ab é\n\t語🦙\u0301")


def shown(pieces: list[str], width: int | None) -> str:
    """Everything that is printed for the pieces."""
    screen = Screen(width)
    return "".join(map(screen.push, pieces)) + screen.finish()


@given(WORDS, st.integers(12, 30))
def test_lines_equal_those_of_textwrap(words: list[str], width: int) -> None:
    text = " ".join(words)
    lines = textwrap.wrap(text, width, break_on_hyphens=False)
    # There is no line break at the end of the text; spaces at a line break are not printed.
    assert shown([text], width).split("\n") == lines


@given(ANY, st.lists(st.integers(0, 40)), st.integers(2, 12))
def test_any_split_gives_the_same_text(text: str, cuts: list[int], width: int) -> None:
    at = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[start:end] for start, end in pairwise(at)]
    assert shown(pieces, width) == shown([text], width)


@given(ANY, st.integers(2, 12))
def test_only_white_space_changes(text: str, width: int) -> None:
    reported = shown([text], width)
    assert re.sub(r"\s", "", reported) == re.sub(r"\s", "", text)
    assert reported.count("\n") >= text.count("\n")
    if text.isascii():
        assert shown([text], 10_000) == text.expandtabs(8)
    assert shown([text], None) == text


@given(st.text("ab語🦙 "), st.integers(4, 12))
def test_no_line_is_wider_than_the_terminal(text: str, width: int) -> None:
    """Except for a word longer than a line, and spaces at the end of a line."""
    for line in shown([text], width).split("\n"):
        assert cell_len(line.rstrip(" ")) <= width or re.search(f"[ab]{{{width + 1}}}", line) or line.startswith(" ")


def test_long_words_and_wide_characters() -> None:
    assert shown(["see ", "https://example.org/llama", " now"], 10) == "see https://example.org/llama\nnow"
    assert shown(["a ", "語" * 7], 6) == "a 語語\n語語語\n語語"
    assert shown(["語語語b"], 6) == "語語語\nb"
    assert shown(["    indented"], 10) == "    indented"
    assert shown(["ab\tcd\tefg"], 17) == "ab      cd\nefg"


def test_a_word_is_printed_when_it_is_complete() -> None:
    screen = Screen(8)
    assert [screen.push(piece) for piece in ("the", " bra", "ve fo", "x\n", "o")] == [
        "",
        "the",
        "\nbrave",
        "\nfox\n",
        "",
    ]
    assert screen.finish() == "o"


def test_control_characters_have_no_effect() -> None:
    assert shown(["\x1b[2Jé\r\n\x9b\x7f"], 80) == "␛[2Jé␍\n\ufffd␡"
