"""Text to train on: Tiny Shakespeare, tales made on the spot, or any files; as text, as tokens, as batches.

shakespeare.py       Tiny Shakespeare, found or fetched
fables.py            tales from a grammar, whose entropy is known
fable_dialogues.py   conversations about them; fable_words.py: their words
tokens.py            text as ids on disk, and batches of windows
dialogues.py         the same of dialogues: a row a dialogue
"""

import codecs
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from llucid.errors import LlucidError
from llucid.files import cache_file, cache_folder, write_text_atomically

CHUNK = 1 << 20
"""Bytes of text held at a time."""
TRAIN_SHARE = 0.9
"""The first nine tenths are trained on, the last tenth validates: nanoGPT's split, so that losses compare."""
FABLES = 4_000_000
"""Characters in the corpus of fables."""
MADE = (("train.toml", "state"), ("ladder.png", "metrics.json"))
"""What a folder that llucid made has in it: a run's, and that of a ladder."""


class Corpus(NamedTuple):
    """Files of UTF-8 text, read as one, and what is known about their language.

    As Python reads text, each line ends with a line feed, whatever ends it in the file; and a file's byte order mark,
    with which some editors begin it, is no text.
    """

    name: str
    files: tuple[Path, ...]
    floor: float | None = None
    """Entropy in nats per character, where it is known: no model's validation loss can be lower."""

    def text(self, split: str) -> Iterator[str]:
        """The text of the "train" or "validation" split, a megabyte at a time.

        Raises LlucidError if a file cannot be read as UTF-8.
        """
        border = int(TRAIN_SHARE * self.size())
        start, stop = (0, border) if split == "train" else (border, self.size())
        return _decoded(self.files, start, stop)

    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def fingerprint(self) -> str:
        """SHA-256 of the bytes of all files."""
        digest = hashlib.sha256()
        for file in self.files:
            with open(file, "rb") as opened:
                while block := opened.read(CHUNK):
                    digest.update(block)
        return digest.hexdigest()


def _decoded(files: Iterable[Path], start: int, stop: int) -> Iterator[str]:
    """The characters that begin at bytes start ≤ b < stop of the files as one."""
    offset = 0
    for file in files:
        size = file.stat().st_size
        first, last = max(start - offset, 0), min(stop - offset, size)
        offset += size
        if first >= last:
            continue
        characters = codecs.getincrementaldecoder("utf-8" if first else "utf-8-sig")()
        decoder = io.IncrementalNewlineDecoder(characters, translate=True)
        with open(file, "rb") as opened:
            opened.seek(max(first - 1, 0))
            if first:  # a character that began before, or a line's end, belongs to the other split
                before = opened.read(1)
                while (head := opened.read(1)) and (0x80 <= head[0] < 0xC0 or before + head == b"\r\n"):
                    before = head
                opened.seek(-len(head), os.SEEK_CUR)
            try:
                while (at := opened.tell()) < last:
                    if piece := decoder.decode(opened.read(min(CHUNK, last - at))):
                        yield piece
                while decoder.getstate()[0] and (byte := opened.read(1)):  # the last character, if the border cut it
                    if piece := decoder.decode(byte):
                        yield piece
                if piece := decoder.decode(b"", final=True):  # a line's end that might have been half of one
                    yield piece
            except UnicodeDecodeError as error:
                at = opened.tell() - len(error.object) + error.start
                raise LlucidError(
                    f"{file}: not a UTF-8 text file ({error.reason} at byte {at}); save it as UTF-8, or leave it out"
                ) from error


def open_corpus(names: Sequence[str]) -> Corpus:
    """The corpus called "shakespeare" or "fables", or else the text files, and the files in the folders, named.

    In a folder, what is hidden is left out, and so are folders that llucid made. Raises LlucidError if there is no such
    file, or no text in it.
    """
    if list(names) == ["shakespeare"]:
        from llucid.corpora.shakespeare import find_shakespeare

        return Corpus("shakespeare", (find_shakespeare(cache_folder()),))
    if list(names) == ["fables"]:
        from llucid.corpora import fables

        source = hashlib.sha256(Path(fables.__file__).read_bytes()).hexdigest()[:12]
        file = cache_file(f"fables-{source}.txt")
        if not file.is_file():
            write_text_atomically(file, fables.write(FABLES))
        return Corpus("fables", (file,), floor=fables.entropy_per_character())
    files: list[Path] = []
    for name in names:
        path = Path(name)
        if not name or not path.exists():
            if len(names) > 1 and name in ("shakespeare", "fables"):
                raise LlucidError(
                    f"--corpus {' '.join(names)}: shakespeare and fables stand alone; give one of them, or only paths"
                )
            raise LlucidError(f"--corpus {name}: no such file or folder; expected shakespeare, fables, or a path")
        files += _inside(path) if path.is_dir() else [path]
    if not sum(file.stat().st_size for file in files):
        raise LlucidError(f"--corpus {' '.join(names)}: there is no text in it")
    first = Path(os.path.abspath(names[0]))  # that of "." has a name
    return Corpus(first.name if first.is_dir() else first.stem, tuple(files))


def _inside(folder: Path) -> Iterator[Path]:
    """The files in a folder and in those below it, but for what is hidden and what llucid made."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and not path.is_symlink() and not _made(path):
            yield from _inside(path)


def _made(folder: Path) -> bool:
    """Whether it is a run or the folder of a ladder."""
    return any(all((folder / name).exists() for name in names) for names in MADE)
