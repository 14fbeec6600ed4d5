"""A corpus as token ids on disk, and the batches that training takes from it."""

import hashlib
import re
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from llucid.corpora import CHUNK, Corpus
from llucid.corpora.dialogues import EVALUATED, ROW_TOKENS, Dialogues, dialogue_batch, dialogue_validation_batches
from llucid.errors import LlucidError
from llucid.files import atomic_file, cache_file
from llucid.tokenizers import Tokenizer, load_tokenizer
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.tokenizer_json import train_bpe

BPE_SAMPLE = 64
"""Chunks of the training text that a BPE vocabulary is made from."""


class Tokens(NamedTuple):
    """Token ids in a file, as many as there are; nothing is read before it is asked for."""

    file: Path
    dtype: str
    length: int

    def read(self, starts: NDArray[np.int64], length: int) -> Int[Tensor, "rows length"]:
        """One row of `length` ids from each start."""
        # Mapped anew each time, so that the pages of a large file do not stay with the process.
        mapped = np.memmap(self.file, self.dtype, "r", shape=(self.length,))
        return torch.from_numpy(np.stack([mapped[start : start + length] for start in starts]).astype(np.int64))


def make_tokenizer(kind: str, corpus: Corpus) -> Tokenizer:
    """The tokenizer that `--tokenizer` names: "characters" or "bpe:N", made from the corpus, or a saved one's path."""
    if kind == "characters":
        found: set[str] = set()
        for split in ("train", "validation"):
            for piece in corpus.text(split):
                found.update(piece)
        return Characters(found)
    if kind.startswith("bpe:"):
        if not re.fullmatch(r"\d{1,9}", kind[4:]):
            raise LlucidError(f"--tokenizer {kind}: expected a number of tokens, as in bpe:1024")
        return train_bpe(islice(corpus.text("train"), BPE_SAMPLE), int(kind[4:]))
    if not Path(kind).exists():
        raise LlucidError(f"--tokenizer {kind}: no such file or folder; expected characters, bpe:1024 or a path")
    return load_tokenizer(kind)


def tokenise(
    corpus: Corpus, tokenizer: Tokenizer, split: str, progress: Callable[[int], None] = lambda characters: None
) -> Tokens:
    """The ids of a split, from the cache or else made, in constant memory, and kept there.

    `progress` hears of the characters done. The file is found again by the content of corpus and tokenizer.
    """
    key = hashlib.sha256((corpus.fingerprint() + tokenizer.json()).encode()).hexdigest()[:24]
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    file = cache_file(f"tokens/{key}.{split}.{dtype}")
    if not file.is_file():
        with atomic_file(file) as temporary, open(temporary, "wb") as out:
            for piece in _whole_lines(corpus.text(split)):
                ids = tokenizer.encode_array(piece) if isinstance(tokenizer, Characters) else tokenizer.encode(piece)
                out.write(np.asarray(ids, dtype).data)
                progress(len(piece))
    return Tokens(file, dtype, file.stat().st_size // np.dtype(dtype).itemsize)


def _whole_lines(pieces: Iterator[str]) -> Iterator[str]:
    """The same text, cut where a line does not begin with white space, since no token goes across there; anywhere,
    where there is no such line for long."""
    rest = ""
    for piece in chain(pieces, [""]):
        rest += piece
        last = len(rest) if not piece or len(rest) > 4 * CHUNK else 0
        cut = max((line.end() for line in re.finditer(r"\n(?=\S)", rest)), default=0)
        if last or cut:
            yield rest[: last or cut]
            rest = rest[last or cut :]


def training_batch(
    tokens: Tokens | Dialogues, rows: int, context: int, seed: int, step: int
) -> tuple[Int[Tensor, "rows seq"], Int[Tensor, "rows seq"]]:
    """Inputs and the tokens that follow them: windows at random places, the same for the same seed and step."""
    if isinstance(tokens, Dialogues):
        return dialogue_batch(tokens, rows, context, seed, step)
    starts = np.random.default_rng([seed, step]).integers(0, tokens.length - context, rows)
    windows = tokens.read(starts, context + 1)
    return windows[:, :-1], windows[:, 1:]


def validation_batches(
    tokens: Tokens | Dialogues, context: int, overlap: bool = False
) -> Iterator[tuple[Int[Tensor, "rows seq"], Int[Tensor, "rows seq"]]]:
    """Inputs and targets in which every token but the first is a target once, if there are at most EVALUATED; else
    about as many, evenly spread. −100 marks targets that do not count.

    Windows of `context` tokens follow one another, so that a window's first tokens are predicted from little
    text, as in nanoGPT. With `overlap` they advance by half a context and only what is new counts: each token is
    predicted from at least half a context of text, which is what an entropy of the language is about.
    """
    if isinstance(tokens, Dialogues):
        yield from dialogue_validation_batches(tokens, context)
        return
    stride = max(1, context // 2) if overlap else context
    starts = np.arange(0, max(1, tokens.length - 1 - (context - stride)), stride)
    most = max(1, EVALUATED // stride)
    if len(starts) > most:
        starts = starts[np.linspace(0, len(starts) - 1, most).astype(np.int64)]
    whole = starts[starts + context < tokens.length]
    rows = max(1, ROW_TOKENS // context)
    groups = [whole[at : at + rows] for at in range(0, len(whole), rows)]
    for group in [*groups, starts[len(whole) :]]:
        if len(group):
            read = tokens.read(group, min(context + 1, tokens.length - int(group[0])))
            inputs, targets = read[:, :-1], read[:, 1:].clone()
            targets[torch.from_numpy(group > 0), : context - stride] = -100
            yield inputs, targets


def characters_per_token(tokens: Tokens | Dialogues, tokenizer: Tokenizer, context: int) -> float:
    """How many characters an evaluated token stands for on the average: nats per token / this = nats per character."""
    if isinstance(tokenizer, Characters):
        return 1.0
    characters, counted = 0, 0
    for inputs, targets in validation_batches(tokens, context):
        rows = [row[row >= 0] for row in targets] if isinstance(tokens, Dialogues) else inputs
        characters += sum(len(tokenizer.decode(row.tolist())) for row in rows)
        counted += sum(len(row) for row in rows)
    return characters / counted
