"""Decoding ids that arrive one at a time."""

from collections.abc import Sequence

from llucid.tokenizers.tokenizer import Tokenizer


class StreamingDecoder:
    """Decodes ids one at a time, in pieces that never end within a character.

    A piece is what the newest id adds to the text before it. While that text ends in U+FFFD, the bytes of a character
    may still be arriving, and the piece waits. All pieces and what `finish` returns are the whole text, unless a run
    of bytes is not UTF-8: some tokenizers then decode the whole run as U+FFFD, including what was already shown.
    """

    def __init__(self, tokenizer: Tokenizer, ids: Sequence[int] = ()) -> None:
        """Decodes what follows `ids`, of which the last few are enough context."""
        self.tokenizer = tokenizer
        count = 8
        while count < len(ids) and (not (text := tokenizer.decode(ids[-count:])) or text.startswith("\ufffd")):
            # It begins within a character, of at most 4 bytes, or is nothing, which a space may still follow.
            count += 1 if count < 12 else count
        self.ids = list(ids[-count:])
        self.whole = len(self.ids)  # number of ids that end with a character
        self.shown = len(tokenizer.decode(self.ids))

    def push(self, token: int) -> str:
        """The text that is now complete: often a word, sometimes nothing."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        complete = text.rstrip("\ufffd")
        piece = complete[self.shown :]
        self.shown += len(piece)
        if complete == text and len(self.ids) - self.whole >= 8:
            # Decodes about sixteen ids at a time, and never starts within a character: a tokenizer that falls back to
            # bytes decodes a whole run of them as U+FFFD if one is wrong.
            rest = self.ids[self.whole :]
            if begun := self.tokenizer.decode(rest):
                self.ids, self.whole, self.shown = rest, len(rest), len(begun)
        return piece

    def finish(self) -> str:
        """What is still waiting after the last id."""
        rest = self.tokenizer.decode(self.ids)[self.shown :]
        self.shown += len(rest)
        return rest
