"""Texts in compressed and structured files, and where their documents begin and end."""

import gzip
import json
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from llucid.corpora import END, open_corpus, sources
from llucid.corpora.tokens import Tokens, make_tokenizer, tokenise, training_batch, validation_batches
from llucid.errors import LlucidError
from llucid.training import Settings
from llucid.training.prepare import read
from llucid.training.report import Report

TEXTS = ["The fox.\n\nIt ran.", "Ein Hase: é漢😀", "", 'a \\ "quoted" one', "nul\0inside"]
KEPT = [text.replace(END, "") for text in TEXTS]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path / "cache"))


def documents(path: Path, column: str = "text") -> list[str]:
    corpus = open_corpus([str(path)], column)
    pieces = [piece for split in ("train", "validation") for piece in corpus.pieces(split)]
    return "".join(pieces).removesuffix(END).removesuffix(END).split(END)


def json_lines(column: str = "text") -> bytes:
    rows = [json.dumps({"id": number, column: text or None}) for number, text in enumerate(TEXTS)]
    return ("\n".join(rows) + "\n\n").encode()


@pytest.mark.parametrize("column", ["text", "body"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.json"])
def test_json_lines_are_documents(tmp_path: Path, name: str, column: str) -> None:
    """Whatever the file is called, if the first two lines have a text in the column."""
    (tmp_path / name).write_bytes(json_lines(column))
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(json_lines(column)))
    assert documents(tmp_path / name, column) == documents(tmp_path / f"{name}.gz", column) == KEPT
    assert open_corpus([str(tmp_path / f"{name}.gz")], column).name == "a"
    if name == "a.json":
        assert documents(tmp_path / name, "id") == [json_lines(column).decode()]
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf\n  " + json_lines(column))
        assert documents(tmp_path / name, column) == KEPT
        prose = json_lines(column).decode().splitlines()[0] + "\nis how a line looks.\n"
        (tmp_path / name).write_text(prose)
        assert documents(tmp_path / name, column) == [prose]


def test_a_column_is_read_anew_when_another_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one", "body": "two"}\n')
    assert (documents(tmp_path / "a.jsonl"), documents(tmp_path / "a.jsonl", "body")) == (["one"], ["two"])


def test_a_file_that_changes_while_it_is_read_leaves_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changing(path: Path, column: str, zipped: bool) -> Iterator[str]:
        yield from read(path, column, zipped)
        path.write_bytes(json_lines("changed"))

    read = sources._json_lines  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(sources, "_json_lines", changing)
    (tmp_path / "a.jsonl").write_bytes(json_lines())
    with pytest.raises(LlucidError, match=r"a\.jsonl: changed while it was read; give the same command again$"):
        documents(tmp_path / "a.jsonl")
    assert not [*(tmp_path / "cache" / "texts").iterdir()]


def test_gzipped_text_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("The fox é.\n".encode() * 500_000))
    assert documents(tmp_path / "a.txt.gz") == ["The fox é.\n" * 500_000]


def test_a_parquet_file(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = {"id": range(5), "body": [text or None for text in TEXTS]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet", row_group_size=2)
    assert documents(tmp_path / "a.parquet", "body") == KEPT
    with pytest.raises(LlucidError, match="has no column 'text'; name one of these with column=: id, body"):
        open_corpus([str(tmp_path / "a.parquet")])
    with pytest.raises(LlucidError, match="column 'id' does not hold text"):
        open_corpus([str(tmp_path / "a.parquet")], "id")
    optional, unknown = b"\x25\x02\x18\x04body", b"\x25\x22\x18\x04body"
    damaged = (tmp_path / "a.parquet").read_bytes().replace(optional, unknown)
    for content in (damaged, b"PAR1" + b"x" * 99):
        (tmp_path / "a.parquet").write_bytes(content)
        with pytest.raises(LlucidError, match=r"a\.parquet: not a Parquet file that can be read"):
            open_corpus([str(tmp_path / "a.parquet")], "body")


def test_every_error_of_pyarrow_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some files of damaged metadata raise this one."""
    pyarrow = pytest.importorskip("pyarrow")

    def refuse(path: Path) -> None:
        raise pyarrow.lib.ArrowNotImplementedError("Integers with more than 64 bits not implemented")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile", refuse)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(LlucidError, match=r"not a Parquet file that can be read \(Integers with more than 64 bits"):
        open_corpus([str(tmp_path / "a.parquet")])


def test_small_files_of_large_documents_take_little_memory(tmp_path: Path) -> None:
    """Zipped zeros take a thousandth of their size, and a value that a Parquet file repeats is in it once."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["x" * 1_000_000] * 16}), tmp_path / "a.parquet", compression="zstd")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b" " * 30_000_000, 1))
    tracemalloc.start()
    assert open_corpus([str(tmp_path / "a.parquet")]).size() == 16 * 1_000_001
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    with pytest.raises(LlucidError, match=r"b\.jsonl\.gz, line 1: longer than .* bytes"):
        open_corpus([str(tmp_path / "b.jsonl.gz")])
    assert tracemalloc.get_traced_memory()[1] < 40_000_000
    tracemalloc.stop()


def test_small_files_of_endless_text_are_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    many, large = ["x" * 100_000] * 300, ["x" * 30_000_000]
    parquet.write_table(pyarrow.table({"text": many}), tmp_path / "many.parquet", row_group_size=100)
    parquet.write_table(pyarrow.table({"text": large}), tmp_path / "large.parquet", compression="gzip")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b" " * 30_000_000))
    for name in ("many.parquet", "large.parquet", "a.txt.gz"):
        with pytest.raises(LlucidError, match=f"{name}: its text is more than 300 times as large as the file"):
            open_corpus([str(tmp_path / name)])
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_parquet_file_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + b"x" * 99)
    with pytest.raises(LlucidError, match=r"needs pyarrow, which is not installed; pip install llucid\[data\]"):
        open_corpus([str(tmp_path / "a.parquet")])
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "a.parquet"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', "line 2: expected an object with a text under 'text'"),
        ("a.jsonl", b'\n["x"]\n', "line 2: expected an object"),
        ("a.jsonl", b'{"text": "x"\n', "line 1: not JSON"),
        ("a.jsonl", '{"text": "x"}\n{"text": "y"}\n'.encode("utf-16"), "a UTF-16 or binary file; save it as UTF-8"),
        ("a.gz", gzip.compress(b"text " * 99, mtime=0)[:-9], "not a whole gzip file"),
        ("a.gz", b"\x1f\x8b" + b"x" * 99, "not a whole gzip file"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LlucidError, match=says) as caught:
        open_corpus([str(tmp_path / name)])
    assert str(tmp_path / name) in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != name]


# ------------------------------------------------------------------------------------------------- documents as tokens


def test_documents_begin_with_bos_and_end_with_eos(tmp_path: Path) -> None:
    """Of a vocabulary learned from several; the one that the splits share begins in both and ends in one."""
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text(f"tale {number}: the goose and the fox. " * 20)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "9.txt").write_text((tmp_path / "9.txt").read_text() * 3)
    files = [str(tmp_path / f"{number}.txt") for number in range(10)]
    corpus = open_corpus([*files[:5], str(tmp_path / "empty.txt"), *files[5:]])
    tokenizer = make_tokenizer("bpe:300", corpus)
    assert tokenizer.bos is not None
    assert tokenizer.eos is not None
    assert tokenizer.eos in tokenizer.stop_ids
    train, validation = (tokenise(corpus, tokenizer, split) for split in ("train", "validation"))
    ids = np.fromfile(train.file, train.dtype)
    assert (ids == tokenizer.bos).sum() == 10
    assert (ids == tokenizer.eos).sum() == 9
    assert ids[0] == tokenizer.bos
    ends = np.flatnonzero(ids == tokenizer.eos)
    assert (ids[ends + 1] == tokenizer.bos).all()
    ids = np.fromfile(validation.file, validation.dtype)
    assert (ids[0], ids[-1]) == (tokenizer.bos, tokenizer.eos)
    assert np.isin(ids, (tokenizer.bos, tokenizer.eos)).sum() == 2


def test_one_document_needs_no_bos(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the goose and the fox. " * 99)
    tokenizer = make_tokenizer("bpe:300", open_corpus([str(tmp_path / "a.txt")]))
    assert (tokenizer.bos, tokenizer.eos) == (None, None)


def test_every_window_begins_with_bos(tmp_path: Path) -> None:
    """As all that is generated does; what is predicted does not change."""
    np.arange(100, 400).astype("uint16").tofile(tmp_path / "ids")
    plain = Tokens(tmp_path / "ids", "uint16", 300)
    begun = plain._replace(bos=7)
    batches = [(training_batch(plain, 5, 16, 0, 3), training_batch(begun, 5, 16, 0, 3))]
    batches += zip(validation_batches(plain, 16), validation_batches(begun, 16), strict=True)
    for (inputs, targets), (with_bos, same) in batches:
        assert (with_bos[:, 0] == 7).all()
        assert (with_bos[:, 1:] == inputs[:, 1:]).all()
        assert (same == targets).all()


@pytest.mark.parametrize(("words", "expected"), [(20, True), (3000, False)])
def test_what_follows_bos_begins_a_document(tmp_path: Path, words: int, expected: bool) -> None:
    """Unless documents are so long that hardly a window would hold a BOS: then it begins every window."""
    lines = [json.dumps({"text": f"{number} the goose " + "and the fox " * words}) for number in range(40)]
    (tmp_path / "tales.jsonl").write_text("\n".join(lines))
    corpus = open_corpus([str(tmp_path / "tales.jsonl")])
    tokenizer = make_tokenizer("bpe:270", corpus)
    training, validation, _ = read(Settings(), corpus, tokenizer, 16, Report(Console()))
    inputs, targets = training_batch(training, 5000, 16, 0, 1)
    digits = {tokenizer.encode(str(digit))[0] for digit in range(10)}
    assert (set(targets[inputs == tokenizer.bos].tolist()) <= digits) == expected
    for windows in (inputs, *(inputs for inputs, _ in validation_batches(validation, 16))):
        assert bool((windows[:, 0] == tokenizer.bos).all()) != expected


def test_batches_of_evaluation_are_no_larger_than_asked(tmp_path: Path) -> None:
    np.zeros(5000, "uint16").tofile(tmp_path / "ids")
    tokens = Tokens(tmp_path / "ids", "uint16", 5000)
    sizes = [inputs.numel() for inputs, _ in validation_batches(tokens, 64, batch_tokens=150)]
    assert max(sizes) == 128
    assert max(inputs.numel() for inputs, _ in validation_batches(tokens, 64, batch_tokens=5)) == 64
