"""Files that hold text in another format: their documents are written to a text file in the cache, each with END."""

import codecs
import gzip
import hashlib
import importlib
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from llucid.corpora import CHUNK, END
from llucid.errors import LlucidError
from llucid.files import cached, first_bytes, json_value

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
"""The first bytes of these files. JSON lines are text, so they are recognised by their name or by the first line."""

SLACK = 2**24
"""Bytes of a line beyond four times the size of its file, and of a text beyond MOST_TIMES."""
MOST_TIMES = 300
"""How many times as large as its file a text may be: prose is 2 to 4 times as large, logs up to 200 times."""


def text_file(path: Path, column: str) -> Path:
    """`path` itself if it is a text file, or else one in the cache with the text of its documents.

    Raises NotTextError for a file that is not text, and LlucidError for a damaged one and for a document without a
    text in `column`.
    """
    if not path.stat().st_size:  # empty; or one of /proc, which may have no end
        return path
    head = first_bytes(path, 4)
    zipped, parquet = head[:2] == GZIP, head == PARQUET
    json_lines = not parquet and _has_json_lines(path, column, zipped)
    if not (zipped or parquet or json_lines):
        check_text(path, path)
        return path

    def digest() -> str:
        found = hashlib.sha256(f"{column}\n{json_lines}\n".encode())
        with open(path, "rb") as opened:
            while block := opened.read(CHUNK):
                found.update(block)
        return found.hexdigest()[:24]

    def write(file: Path) -> None:
        with open(file, "wb") as out:
            for part in _zipped_text(path) if zipped and not json_lines else documents():
                _check_growth(path, out.tell() + len(part))
                out.write(part)
        if zipped and not json_lines:
            check_text(file, path)
        if digest() != before:
            raise LlucidError(f"{path}: changed while it was read; give the same command again")

    def documents() -> Iterator[bytes]:
        for document in _parquet(path, column) if parquet else _json_lines(path, column, zipped):
            yield (document.replace(END, "") + END).encode("utf-8", "replace")

    before = digest()
    return cached(f"texts/{before}.txt", write)


def _has_json_lines(path: Path, column: str, zipped: bool) -> bool:
    """Whether it is called so, or its first two lines are objects with a text in `column`."""
    if path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        return True
    with _unzipped(path) if zipped else open(path, "rb") as opened, suppress(ValueError):
        head = opened.read(SLACK)
        lines = head.removeprefix(codecs.BOM_UTF8).splitlines()[: -1 if len(head) == SLACK else None]
        rows = [json_value(line) for line in [line for line in lines if line.strip()][:2]]
        return bool(rows) and all(isinstance(row, dict) and isinstance(row.get(column, 0), str | None) for row in rows)
    return False


@contextmanager
def _unzipped(path: Path) -> Generator[gzip.GzipFile]:
    try:
        with gzip.open(path) as content:
            yield content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise LlucidError(f"{path}: not a whole gzip file ({error})") from error


def _check_growth(path: Path, size: int) -> None:
    if size > SLACK + MOST_TIMES * path.stat().st_size:
        raise LlucidError(
            f"{path}: its text is more than {MOST_TIMES} times as large as the file, which no real text is"
        )


def _zipped_text(path: Path) -> Iterator[bytes]:
    with _unzipped(path) as content:
        yield from iter(lambda: content.read(CHUNK), b"")


def _json_lines(path: Path, column: str, zipped: bool) -> Iterator[str]:
    longest = SLACK + 4 * path.stat().st_size  # zipped, a line of zeros takes a thousand times as much
    with _unzipped(path) if zipped else open(path, "rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(longest + 1), b""), 1):
            if len(line) > longest:
                raise LlucidError(f"{path}, line {number}: longer than {longest:,} bytes; the file is damaged")
            if not line.removeprefix(codecs.BOM_UTF8).strip():
                continue
            try:
                row = json_value(line)
            except ValueError as error:
                if b"\0" in line[:4]:
                    raise LlucidError(f"{path}: a UTF-16 or binary file; save it as UTF-8") from error
                raise LlucidError(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(row, dict) or not isinstance(text := row.get(column, 0), str | None):
                raise LlucidError(
                    f"{path}, line {number}: expected an object with a text under {column!r}; name another key with "
                    "column="
                )
            yield text or ""


def _parquet(path: Path, column: str) -> Iterator[str]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise LlucidError(
            f"{path}: reading Parquet needs pyarrow, which is not installed; pip install llucid[data]"
        ) from error
    try:
        table = parquet.ParquetFile(path)
        names = table.schema_arrow.names
        # Of all columns: pyarrow's facts about one end the process if the metadata is damaged.
        sizes = [table.metadata.row_group(number).total_byte_size for number in range(table.num_row_groups)]
        _check_growth(path, sum(sizes))
        # A large value that occurs often takes space in the file only once. Reading row by row takes 60 times as long.
        rows = 64 if max(sizes, default=0) <= SLACK // 64 + 20 * path.stat().st_size else 1
        for batch in table.iter_batches(rows, columns=[column]) if column in names else []:
            for text in batch.column(0).to_pylist():
                if not isinstance(text, str | None):
                    raise LlucidError(f"{path}: column {column!r} does not hold text; name another with column=")
                yield text or ""
    except LlucidError:
        raise
    except Exception as error:  # pyarrow's have many types
        raise LlucidError(f"{path}: not a Parquet file that can be read ({error})") from error
    if column not in names:
        raise LlucidError(f"{path}: has no column {column!r}; name one of these with column=: {', '.join(names)}")


class NotTextError(LlucidError):
    """A file that is not UTF-8, or contains NUL."""


def check_text(path: Path, name: Path) -> None:
    """Raises NotTextError, naming the file `name`, unless all of `path` is UTF-8 without NUL, which would be END."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as opened:
        try:
            for block in chain(iter(lambda: opened.read(CHUNK), b""), [b""]):
                decoder.decode(block, final=not block)
                if (at := block.find(0)) >= 0:
                    raise UnicodeDecodeError("utf-8", block, at, at + 1, "NUL, as in UTF-16 and binary files,")
        except UnicodeDecodeError as error:
            at = opened.tell() - len(error.object) + error.start
            raise NotTextError(
                f"{name}: not a UTF-8 text file ({error.reason} at byte {at}); save it as UTF-8, or leave it out"
            ) from error
