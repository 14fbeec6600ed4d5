"""A corpus as token ids on disk, and the batches that training takes from it."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from llucid.corpora import CHUNK, END, Corpus
from llucid.corpora.dialogues import EVALUATED, ROW_TOKENS, Dialogues, dialogue_batch, dialogue_validation_batches
from llucid.errors import LlucidError
from llucid.files import cached
from llucid.tokenizers import Tokenizer, load_tokenizer
from llucid.tokenizers.byte_pairs import train_bpe
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.comparison import identity

BPE_SAMPLE = 1 << 26
"""Characters of the training text that a BPE vocabulary is learned from."""
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
"""Special tokens of a vocabulary learned from several documents; Llama 3's names."""


NEXT_LINE = re.compile(r"\n(?=\S)")


class Tokens(NamedTuple):
    """Token ids in a file, `length` of them, which are read only when they are asked for."""

    file: Path
    dtype: str
    length: int
    bos: int | None = None
    """The id that begins every window, as it begins every text that is generated; None to leave windows as they are."""

    def begin_documents(self, window: int) -> bool:
        """Whether one window in 100 holds a BOS that begins a document, so that a model learns there what BOS means."""
        starts = np.linspace(1, self.length - window, min(1000, self.length // window)).astype(np.int64)
        return bool((self._replace(bos=None).read(starts, window) == self.bos).any(1).float().mean() >= 0.01)

    def read(self, starts: NDArray[np.int64], length: int) -> Int[Tensor, "rows length"]:
        """One row of `length` ids from each start, the first replaced by BOS if there is one."""
        # Mapped again each time, so that the pages of a large file do not stay with the process.
        mapped = np.memmap(self.file, self.dtype, "r", shape=(self.length,))
        rows = torch.from_numpy(np.stack([mapped[start : start + length] for start in starts]).astype(np.int64))
        if self.bos is not None:
            rows[:, 0] = self.bos
        return rows


def make_tokenizer(kind: str, corpus: Corpus) -> Tokenizer:
    """The tokenizer of this kind: "characters" or "bpe:N", made from the corpus, or the path of a saved one.

    A vocabulary learned from several documents has a BOS and an EOS, so that a model learns where they end.
    """
    if kind == "characters":
        found: set[str] = set()
        for piece in _joined(chain(corpus.pieces("train"), corpus.pieces("validation"))):
            found.update(piece)
        return Characters(found)
    if kind.startswith("bpe:"):
        if not re.fullmatch(r"\d{1,9}", kind[4:]):
            raise LlucidError(f"tokenizer={kind}: expected a number of tokens, as in bpe:1024")
        texts = first_characters(corpus.text("train"), BPE_SAMPLE)
        if any(piece == END for piece, _ in pairwise(chain(corpus.pieces("train"), corpus.pieces("validation")))):
            return train_bpe(texts, int(kind[4:]), (BOS, EOS), {"bos_token": BOS, "eos_token": EOS})
        return train_bpe(texts, int(kind[4:]))
    if not Path(kind).exists():
        raise LlucidError(f"tokenizer={kind}: no such file or folder; expected characters, bpe:1024 or a path")
    return load_tokenizer(kind)


def first_characters(texts: Iterable[str], count: int) -> Iterator[str]:
    """The texts up to the one with which there are `count` characters."""
    for text in texts:
        if count <= 0:
            break
        count -= len(text)
        yield text


def tokenise(
    corpus: Corpus, tokenizer: Tokenizer, split: str, progress: Callable[[int], None] = lambda characters: None
) -> Tokens:
    """The ids of a split, read from the cache or else made, in constant memory, and kept there.

    Each document begins with BOS and ends with EOS if the tokenizer has these; if the splits share a document, its
    second part begins with BOS, too. With neither, there is a line break between documents. `progress` is called with
    the number of characters just done. The file in the cache is named after the content of corpus and tokenizer.
    Raises LlucidError if the text changes meanwhile.
    """
    bos, eos = tokenizer.bos, tokenizer.eos
    content = f"4 {corpus.fingerprint} {bos} {eos} {identity(tokenizer)}"
    key = hashlib.sha256(content.encode()).hexdigest()[:24]
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"

    line_break = list[int]()
    with suppress(LlucidError):  # a vocabulary of characters may have none
        line_break = tokenizer.encode("\n")

    def encode(piece: str, begun: bool) -> NDArray[np.int32] | list[int]:
        """The ids of a piece; if the document has begun, without the space that SentencePiece puts before a text."""
        if isinstance(tokenizer, Characters):
            return tokenizer.encode_array(piece)
        if begun and line_break:
            ids = tokenizer.encode("\n" + piece)
            if ids[: len(line_break)] == line_break:
                return ids[len(line_break) :]
        return tokenizer.encode(piece)

    def write(file: Path) -> None:
        with open(file, "wb") as out:
            begun = False
            pieces = corpus.pieces(split)
            for piece in _whole_documents(_joined(pieces) if bos is None and eos is None and line_break else pieces):
                if piece == END:
                    ids = [eos] if begun and eos is not None else []
                    begun = False
                else:
                    if not begun and bos is not None:
                        out.write(np.asarray([bos], dtype).data)
                    ids = encode(piece, begun)
                    begun = True
                    progress(len(piece))
                out.write(np.asarray(ids, dtype).data)
        corpus.refuse_changed()

    file = cached(f"tokens/{key}.{split}.{dtype}", write)
    return Tokens(file, dtype, file.stat().st_size // np.dtype(dtype).itemsize, bos)


def _joined(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces without END, and with a line break between documents where the text does not end in one."""
    last, ended = "\n", False
    for piece in pieces:
        if piece == END:
            ended = True
            continue
        if ended and last != "\n":
            yield "\n"
        yield piece
        last, ended = piece[-1], False


def _whole_documents(pieces: Iterator[str]) -> Iterator[str]:
    """The same text in whole documents. Those over a megabyte are cut where no usual token spans the cut: before a line
    that does not begin with white space. Without such a line they are cut anywhere."""
    rest = ""
    for piece in chain(pieces, [""]):
        if piece in ("", END):
            yield from [rest] if rest else []
            yield from [END] if piece else []
            rest = ""
            continue
        rest += piece
        if len(rest) > CHUNK:
            cut = max((line.end() for line in NEXT_LINE.finditer(rest)), default=len(rest))
            yield rest[:cut]
            rest = rest[cut:]


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
    tokens: Tokens | Dialogues, context: int, overlap: bool = False, batch_tokens: int = ROW_TOKENS
) -> Iterator[tuple[Int[Tensor, "rows seq"], Int[Tensor, "rows seq"]]]:
    """Inputs and targets in which every token but the first is a target once, if there are at most EVALUATED; else
    about as many, evenly spread. −100 marks targets that do not count.

    A batch has at most `batch_tokens` tokens, or one row. Windows of `context` tokens follow one another, so that a
    window's first tokens are predicted from little text, as in nanoGPT. With `overlap` they advance by half a context
    and only what is new counts: each token is predicted from at least half a context of text, as an entropy of the
    language requires.
    """
    rows = max(1, min(batch_tokens, ROW_TOKENS) // context)
    if isinstance(tokens, Dialogues):
        yield from dialogue_validation_batches(tokens, context, rows)
        return
    stride = max(1, context // 2) if overlap else context
    starts = np.arange(0, max(1, tokens.length - 1 - (context - stride)), stride)
    most = max(1, EVALUATED // stride)
    if len(starts) > most:
        starts = starts[np.linspace(0, len(starts) - 1, most).astype(np.int64)]
    whole = starts[starts + context < tokens.length]
    groups = [whole[at : at + rows] for at in range(0, len(whole), rows)]
    for group in [*groups, starts[len(whole) :]]:
        if len(group):
            read = tokens.read(group, min(context + 1, tokens.length - int(group[0])))
            inputs, targets = read[:, :-1], read[:, 1:].clone()
            targets[torch.from_numpy(group > 0), : context - stride] = -100
            yield inputs, targets


def characters_per_token(tokens: Tokens | Dialogues, tokenizer: Tokenizer, context: int) -> float:
    """Mean number of characters per evaluated token: nats per token / this = nats per character.

    A character counts where its first byte is: tokens may be parts of one, and so may a window's first and last. The
    space that SentencePiece puts before a document is none of its characters. An unknown token of a text counts as one;
    where there is nothing else, there are 0."""
    if isinstance(tokenizer, Characters):
        return 1.0
    counts, begins = Counter[int](), Counter[int]()
    real = not isinstance(tokens, Dialogues) and tokens.bos is None and tokenizer.bos is not None
    for inputs, targets in validation_batches(tokens, context):
        counts.update(targets[targets >= 0].tolist())
        if real:  # else a BOS may stand before any place
            begins.update(targets[(inputs == tokenizer.bos) & (targets >= 0)].tolist())
    first_bytes = {token: sum(byte & 0xC0 != 0x80 for byte in tokenizer.piece(token)) for token in counts}
    characters = sum(first_bytes[token] * count for token, count in counts.items())
    if not characters:
        return 0.0
    spaces = sum(max(0, first_bytes[token] - len(tokenizer.decode([token]))) * begins[token] for token in begins)
    unknown = 0
    if not isinstance(tokens, Dialogues):  # which have other tokens without characters, such as the end of a turn
        ends = (tokenizer.bos, tokenizer.eos)
        unknown = sum(counts[token] for token in counts if not tokenizer.piece(token) and token not in ends)
    return (characters - spaces + unknown) / counts.total()
