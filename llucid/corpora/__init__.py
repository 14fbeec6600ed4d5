"""Text to train on: Tiny Shakespeare, fables made by the package, or any files; as text, as tokens, as batches.

shakespeare.py       Tiny Shakespeare, found or downloaded
fables.py            tales from a grammar whose entropy is known
fable_dialogues.py   conversations about them; their texts: fable_words.toml, read by fable_words.py
sources.py           files that hold text in another format: .gz, .jsonl, .parquet
tokens.py            text as ids on disk, and batches of windows
conversations.py     files of conversations
dialogues.py         conversations as ids on disk, and batches of them
"""

import codecs
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llucid.errors import LlucidError
from llucid.files import cache_folder, cached, write_text_atomically
from llucid.tokenizers.text import replace_surrogates

CHUNK = 1 << 20
"""Bytes of text held at a time."""
TRAIN_SHARE = 0.9
"""The first nine tenths are the training split, the last tenth validates, as in nanoGPT, so that losses compare."""
FABLES = 4_000_000
"""Characters in the corpus of fables."""
BUILT_IN = ("shakespeare", "fables")
OWN_FOLDERS = (("train.toml", "state"), ("metrics.json", "samples.txt"))
"""Files by which the folder of a run, and that of a ladder, is recognised."""
END = "\0"
"""The character that ends a document within a file of several in the cache. The end of a file ends one, too."""


@dataclass(frozen=True)
class Corpus:
    """UTF-8 text files, read one after the other, and what is known about their language.

    As Python reads text, each line ends with a line feed, whatever ends it in the file, and a byte order mark at the
    start of a file is not part of the text.
    """

    name: str
    files: tuple[Path, ...]
    floor: float | None = None
    """Entropy in nats per character, where it is known: no model's validation loss can be lower."""
    skipped: tuple[Path, ...] = ()
    """Files in the given folders that are not text."""
    fingerprint: str = field(init=False)
    """SHA-256 of the bytes of all files when they were opened, and of where they end if there are several."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", self.fingerprint_now())

    def text(self, split: str) -> Iterator[str]:
        """The text of the "train" or "validation" split, at most a megabyte at a time."""
        return (piece for piece in self.pieces(split) if piece != END)

    def pieces(self, split: str) -> Iterator[str]:
        """Like `text`, with END after each document that ends within the split."""
        border = int(TRAIN_SHARE * self.size())
        start, stop = (0, border) if split == "train" else (border, self.size())
        try:
            for piece in _decoded(self.files, start, stop):
                first, *others = piece.split(END)
                yield from [first] if first else []
                for other in others:
                    yield from (END, other) if other else (END,)
        except UnicodeDecodeError as error:  # it was UTF-8 when it was opened
            raise self.changed() from error

    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def fingerprint_now(self) -> str:
        """What `fingerprint` would be if the files were opened now."""
        digest = hashlib.sha256()
        for file in self.files:
            with open(file, "rb") as opened:
                while block := opened.read(CHUNK):
                    digest.update(block)
        sizes = [size for file in self.files if (size := file.stat().st_size)]
        return hashlib.sha256(f"{digest.hexdigest()} {sizes}".encode()).hexdigest() if sizes[1:] else digest.hexdigest()

    def refuse_changed(self) -> None:
        """Raises LlucidError if the files have changed since they were opened."""
        if self.fingerprint_now() != self.fingerprint:
            raise self.changed()

    def changed(self) -> LlucidError:
        return LlucidError(f"{self.name}: the text changed while it was read; give the same command again")


def _decoded(files: Iterable[Path], start: int, stop: int) -> Iterator[str]:
    """The characters that begin at bytes start ≤ b < stop of all files in a row, and END after each file."""
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
            if first:  # a character that began before, or the second half of a line ending, belongs to the other split
                before = opened.read(1)
                while (head := opened.read(1)) and (0x80 <= head[0] < 0xC0 or before + head == b"\r\n"):
                    before = head
                opened.seek(-len(head), os.SEEK_CUR)
            while (at := opened.tell()) < last and (block := opened.read(min(CHUNK, last - at))):
                yield decoder.decode(block)
            while decoder.getstate()[0] and (byte := opened.read(1)):  # the last character, if the border cut it
                yield decoder.decode(byte)
            yield decoder.decode(b"", final=True)  # a carriage return that waited for a line feed
        if last == size:
            yield END


def open_corpus(names: Sequence[str], column: str = "text") -> Corpus:
    """The corpus called "shakespeare" or "fables", or else the named files, and all files in the named folders.

    Files are UTF-8 text, or gzip, JSON lines or Parquet, whose text is under the key, or in the column, `column`. In a
    folder, hidden files, files that are not text, and folders that llucid made are left out. Raises LlucidError for a
    file that does not exist or cannot be read, and if there is no text.
    """
    if list(names) == ["shakespeare"]:
        from llucid.corpora.shakespeare import find_shakespeare

        return Corpus("shakespeare", (find_shakespeare(cache_folder()),))
    if list(names) == ["fables"]:
        from llucid.corpora import fables

        source = hashlib.sha256(Path(fables.__file__).read_bytes()).hexdigest()[:12]
        file = cached(f"fables-{source}.txt", lambda file: write_text_atomically(file, fables.write(FABLES)))
        return Corpus("fables", (file,), floor=fables.entropy_per_character())
    from llucid.corpora.sources import NotTextError, text_file

    files: dict[Path, Path] = {}  # of each that is given, also by two names, the text
    skipped: list[Path] = []
    for name in names:
        path = Path(name)
        if not name or not path.exists():
            if len(names) > 1 and name in BUILT_IN:
                raise LlucidError(
                    f"corpus={' '.join(names)}: shakespeare and fables cannot be combined with others; give one of "
                    "them, or only paths"
                )
            raise LlucidError(f"corpus={name}: no such file or folder; expected shakespeare, fables, or a path")
        if not path.is_dir():
            if not path.is_file():  # reading a pipe may block forever
                raise LlucidError(f"corpus={name}: not a regular file; write the text into one")
            files.setdefault(path.resolve(), text_file(path, column))
            continue
        for inside in _inside(path):
            try:
                files.setdefault(inside.resolve(), text_file(inside, column))
            except NotTextError:
                skipped.append(inside)
    texts = tuple(file for file in files.values() if file.stat().st_size)
    if not texts:
        raise LlucidError(f"corpus={' '.join(names)}: there is no text in it")
    first = Path(os.path.abspath(names[0]))  # that of "." has a name
    name = first.name if first.is_dir() else Path(first.name.removesuffix(".gz")).stem
    return Corpus(replace_surrogates(name), texts, skipped=tuple(skipped))


def _inside(folder: Path) -> Iterator[Path]:
    """The files in a folder and in those below it, without what is hidden and what llucid made."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and not path.is_symlink() and not _is_own(path):
            yield from _inside(path)


def _is_own(folder: Path) -> bool:
    """Whether it is the folder of a run or of a ladder."""
    return any(all((folder / name).exists() for name in names) for names in OWN_FOLDERS)
