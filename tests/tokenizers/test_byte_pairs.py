"""Learning a byte-pair vocabulary from texts of every shape, and stopping while it is learned."""

import random
import signal
import threading
from types import FrameType

import pytest

from llucid.tokenizers.byte_pairs import LONGEST_WORD, train_bpe


def test_long_words_are_cut_before_merges_are_learned() -> None:
    """As one word, 200,000 letters of DNA take minutes. The vocabulary encodes what it was not cut for, too."""
    rng = random.Random(0)
    word = "".join(rng.choices("ACGT", k=200_000))
    whole = train_bpe([word], 400)
    assert (
        whole.json()
        == train_bpe([word[at : at + LONGEST_WORD] for at in range(0, len(word), LONGEST_WORD)], 400).json()
    )
    assert whole.decode(whole.encode(word[:1000])) == word[:1000]
    assert len(whole.encode(word[:1000])) < 400


def test_signals_are_handled_while_a_vocabulary_is_learned() -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    rng = random.Random(0)
    text = " ".join("".join(rng.choices("abcdefghijkl", k=9)) for _ in range(100_000))
    begun = threading.Event()

    def texts() -> object:
        yield text
        begun.set()
        signal.raise_signal(signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            train_bpe(texts(), 5000)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert begun.is_set()
    learning = [thread for thread in threading.enumerate() if thread.daemon and "run" in thread.name]
    assert learning  # and has not ended
    for thread in learning:
        thread.join()


def test_an_error_in_the_texts_is_raised() -> None:
    def texts() -> object:
        yield "a text"
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        train_bpe(texts(), 300)
