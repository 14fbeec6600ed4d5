"""The search for added tokens in a text."""

from collections.abc import Mapping

import tokenizers
from tokenizers import AddedToken, models

from llucid.tokenizers.folder import STRIPS

Part = int | str
"""The id of an added token, or ordinary text."""


class AddedTokens:
    """Tokens that are found in a text before it is split into words and pieces.

    The search is that of the tokenizers library: as in transformers, a token with `lstrip` or `rstrip` includes the
    white space beside it. Its time is linear in the text and in the number of tokens, which a regular expression's is
    not.
    """

    def __init__(self, tokens: Mapping[str, int], flags: Mapping[int, AddedToken]) -> None:
        self.names, self.ids = tokens, [*tokens.values()]
        self.characters = "".join(sorted({*"".join(tokens)}))
        self.library = tokenizers.Tokenizer(models.BPE())  # with an empty vocabulary: it only finds added tokens
        none = AddedToken("")
        like = {name: {key: getattr(flags.get(number, none), key) for key in STRIPS} for name, number in tokens.items()}
        self.library.add_tokens([AddedToken(name, normalized=False, **strips) for name, strips in like.items()])

    def split(self, text: str) -> list[Part]:
        """A text that UTF-8 can spell, as ids and the texts between them."""
        found = self.library.encode(text, add_special_tokens=False)
        parts: list[Part] = []
        at = 0
        for number, (start, end) in zip(found.ids, found.offsets, strict=True):
            parts += [text[at:start], self.ids[number]]
            at = end
        return [*parts, text[at:]]
