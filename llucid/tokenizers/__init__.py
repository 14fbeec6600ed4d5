"""Text to token ids and back: what every tokenizer offers, and the door by which a saved one is opened.

characters.py            one id a character
tokenizer_json.py        `tokenizer.json`, and training one
tiktoken_ranks.py        Llama 3's `tokenizer.model`
sentencepiece_model.py   Llama 1's and 2's; protobuf.py: its file format
llama2c.py               llama2.c's `tokenizer.bin`; llama2c_export.py: others as such a file
gguf_vocabulary.py       what is inside a GGUF file; gguf_export.py: others as such keys
merges.py                the merges that a vocabulary implies
info.py                  what a tokenizer is, without building it
text.py                  strings that are not valid text
"""

import codecs
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from llucid.errors import LlucidError


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back. Special tokens are ids: no text, whatever it says, is encoded as one."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is less."""
        ...

    @property
    def bos(self) -> int | None:
        """The id that begins every sequence, where the model was trained with one."""
        ...

    @property
    def eos(self) -> int | None:
        """The id that ends a text."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids after which nothing more is to be generated."""
        ...

    @property
    def special(self) -> dict[str, int]:
        """The special tokens by name."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of ordinary text, with no BOS. Raises LlucidError for a character that has none."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens have none."""
        ...

    def json(self) -> str:
        """The content of its `tokenizer.json`."""
        ...

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which transformers' AutoTokenizer opens."""
        ...


class StreamingDecoder:
    """The text of ids that come one at a time, of which no piece ends within a character.

    A piece is what the newest id adds to the text of the ones before it. While that text ends in U+FFFD, the bytes of
    a character may still be arriving, and these U+FFFD wait. All pieces and what `finish` returns are the whole text,
    but where a run of bytes is no text: some tokenizers make U+FFFD of all of it, and so of what had been shown.
    """

    def __init__(self, tokenizer: Tokenizer, ids: Sequence[int] = ()) -> None:
        """Decodes what follows `ids`; a few of them are context enough for any tokenizer's spaces."""
        self.tokenizer = tokenizer
        start = max(0, len(ids) - 8)
        while start > 0 and tokenizer.decode(ids[start:]).startswith("\ufffd"):  # begins within a character
            start -= 1
        self.ids = list(ids[start:])
        self.whole = len(self.ids)  # so many ids end with a character
        self.shown = len(tokenizer.decode(self.ids))

    def push(self, token: int) -> str:
        """The text that is now complete: often a word, sometimes nothing."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        complete = text.rstrip("\ufffd")
        piece = complete[self.shown :]
        self.shown += len(piece)
        if complete == text and len(self.ids) - self.whole >= 8:
            # Decodes no more than some sixteen ids at a time, and never from within a character: a tokenizer that
            # falls back to bytes makes U+FFFD of a whole run of them if one is amiss.
            self.ids = self.ids[self.whole :]
            self.whole, self.shown = len(self.ids), len(self.tokenizer.decode(self.ids))
        return piece

    def finish(self) -> str:
        """What was still waiting when the last id had come."""
        rest = self.tokenizer.decode(self.ids)[self.shown :]
        self.shown += len(rest)
        return rest


FILES = ("tokenizer.json", "tokenizer.model", "tokenizer.bin")
"""What a folder's tokenizer may be called; what it is, its content tells."""


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer saved at `path`, a file of any kind that llucid knows, or a folder that holds one.

    The kinds are `tokenizer.json`, Llama 3's tiktoken ranks, Llama 2's SentencePiece model and llama2.c's
    `tokenizer.bin`, recognised by their content. Raises LlucidError if there is none or if it cannot be read.
    """
    file = tokenizer_file(Path(path))
    try:
        return _open(file)
    except LlucidError as error:
        told = " ".join(str(error).split())  # a library may quote a piece that is a line break
        raise LlucidError(told if str(file) in told else f"{file}: {told}") from error
    except OSError as error:
        raise LlucidError(f"{file}: cannot be read ({error.strerror})") from error


def tokenizer_file(path: Path) -> Path:
    """The file of the tokenizer that is saved at `path`, itself or a folder. Raises LlucidError if there is none."""
    file = next((path / name for name in FILES if (path / name).is_file()), path / FILES[0]) if path.is_dir() else path
    if not file.is_file():
        raise LlucidError(f"{file}: there is no tokenizer here; give the path of one with --tokenizer")
    return file


def _open(file: Path) -> Tokenizer:
    from llucid.tokenizers.characters import Characters, is_characters
    from llucid.tokenizers.llama2c import Llama2cTokenizer, is_llama2c
    from llucid.tokenizers.sentencepiece_model import is_sentencepiece, open_sentencepiece
    from llucid.tokenizers.tiktoken_ranks import TiktokenRanks, is_tiktoken
    from llucid.tokenizers.tokenizer_json import JsonTokenizer, read_json

    # Mapped, not read: the file may be a checkpoint of many gigabytes, given by mistake.
    with open(file, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    head = content[:1024]
    if head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{":
        told = read_json(file)
        return Characters.from_json(told) if is_characters(told) else JsonTokenizer(told, file.parent)
    if is_tiktoken(head):
        return TiktokenRanks.from_bytes(content[:])
    if is_sentencepiece(head):
        return open_sentencepiece(content[:], file.parent)
    if is_llama2c(content):
        return Llama2cTokenizer.from_bytes(content[:])
    raise LlucidError(
        "not a tokenizer that llucid knows; expected a tokenizer.json, Llama 3's tiktoken ranks, Llama 2's "
        "SentencePiece model, or a whole tokenizer.bin of llama2.c"
    )
