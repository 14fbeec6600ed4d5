"""llama2.c's encoder as run.c has it, line by line: for each merge, one walk over all the pairs. Slow and plain."""

from collections.abc import Sequence


def encode(text: str, pieces: Sequence[bytes], scores: Sequence[float]) -> list[int]:
    """The ids of `text` with neither BOS nor EOS; of a piece that is there twice, the lowest id."""
    lookup: dict[bytes, int] = {}
    for token, piece in enumerate(pieces):
        lookup.setdefault(piece, token)
    if not text:
        return []
    tokens = [lookup[b" "]]
    for character in text:
        spelled = character.encode()
        if spelled in lookup:
            tokens.append(lookup[spelled])
        else:
            tokens.extend(byte + 3 for byte in spelled)
    while True:
        best_score, best_token, best_index = -1e10, -1, -1
        for index in range(len(tokens) - 1):
            token = lookup.get(pieces[tokens[index]] + pieces[tokens[index + 1]], -1)
            if token != -1 and scores[token] > best_score:
                best_score, best_token, best_index = scores[token], token, index
        if best_index == -1:
            return tokens
        tokens[best_index : best_index + 2] = [best_token]
