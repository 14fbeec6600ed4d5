"""Text and tokens: complete, without repetition, and reproducible."""

import gzip
import itertools
import json
import os
import re
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from llucid import corpora
from llucid.corpora import Corpus, open_corpus
from llucid.corpora.conversations import open_conversations
from llucid.corpora.tokens import (
    Tokens,
    characters_per_token,
    make_tokenizer,
    tokenise,
    training_batch,
    validation_batches,
)
from llucid.errors import LlucidError
from llucid.tokenizers import load_tokenizer
from llucid.tokenizers.byte_pairs import train_bpe
from llucid.tokenizers.protobuf import field
from llucid.tokenizers.sentencepiece_model import PIECE_TEXT, PIECES, SentencePiece
from llucid.tokenizers.tokenizer_json import JsonTokenizer
from llucid.training.dialogues import make_chat_tokenizer, tokenise_chat
from tests.tokenizers.test_sentencepiece_model import tied_model
from tests.tokenizers.texts import letters_and_unknown, sentencepiece_model


def corpus_of(folder: Path, *texts: str) -> Corpus:
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_bytes(text.encode())
    return open_corpus([str(folder)])


@pytest.mark.parametrize("texts", [("abc" * 30,), ("é漢😀x" * 25,), ("", "漢", "😀" * 9, "a\n\nb", "é" * 7)], ids=str)
def test_splits_together_are_the_text(tmp_path: Path, texts: tuple[str, ...]) -> None:
    corpus = corpus_of(tmp_path, *texts)
    train, validation = ("".join(corpus.text(split)) for split in ("train", "validation"))
    assert train + validation == "".join(texts)
    border = int(0.9 * corpus.size())
    assert border <= len(train.encode()) < border + 4  # at most the rest of a character more


@pytest.mark.parametrize("chunk", [1, 2, 1 << 20])
def test_line_endings_and_byte_order_marks_are_read_as_python_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Wherever the border of the splits is, also between a carriage return and its line feed."""
    monkeypatch.setattr("llucid.corpora.CHUNK", chunk)
    for length in range(40):
        text = "\ufeff" + "é" * length + "\r\n\r\n\rfour\ufeff\n\r\n" * 7 + "\r"
        (tmp_path / "a.txt").write_bytes(text.encode())
        corpus = open_corpus([str(tmp_path / "a.txt")])
        assert "".join(itertools.chain(corpus.text("train"), corpus.text("validation"))) == (
            (tmp_path / "a.txt").read_text(encoding="utf-8-sig")
        )


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("text", "at"),
    [
        (b"\xe9t\xe9", 0),
        ("漢字".encode() + b"ab\xff" + b"c" * 90, 8),
        (b"ab" * 9 + b"\xe6", 18),
        ("fox".encode("utf-16-le"), 1),
        ("é".encode() * 5 + b"\0fox", 10),
    ],
)
def test_an_error_names_the_byte_that_is_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, text: bytes, at: int
) -> None:
    """A NUL, of which UTF-16 has many, is not text either: it would end a document. A folder is read without it."""
    monkeypatch.setattr("llucid.corpora.sources.CHUNK", chunk)
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts").mkdir()
    for name, content in (("a.txt", text), ("b.gz", gzip.compress(text))):
        (tmp_path / "texts" / name).write_bytes(content)
        with pytest.raises(LlucidError, match=f"{name}: not a UTF-8 .* at byte {at}\\); save it as UTF-8"):
            open_corpus([str(tmp_path / "texts" / name)])
    (tmp_path / "texts" / "c").write_text("text")
    assert [path.name for path in open_corpus([str(tmp_path / "texts")]).skipped] == ["a.txt", "b.gz"]


def test_shakespeare_is_split_as_nanogpt_splits_it(data: Path) -> None:
    text = (data / "tinyshakespeare.txt").read_text(encoding="utf-8")
    corpus = open_corpus(["shakespeare"])
    assert "".join(corpus.text("train")) == text[: int(0.9 * len(text))]
    assert "".join(corpus.text("validation")) == text[int(0.9 * len(text)) :]


def test_fables_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("llucid.corpora.fables.write", lambda count: "A fox. A wren.\n")
    monkeypatch.setattr("llucid.corpora.fable_dialogues.lines", lambda count: iter(["{}\n"]))
    first = [
        open_fables().files for open_fables in (lambda: open_corpus(["fables"]), lambda: open_conversations("fables"))
    ]
    monkeypatch.setattr("llucid.corpora.fables.write", None)
    monkeypatch.setattr("llucid.corpora.fable_dialogues.lines", None)
    assert first == [open_corpus(["fables"]).files, open_conversations("fables").files]


def test_a_text_without_line_breaks_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then tokens end where the text is cut; in a text of short lines no token does."""
    monkeypatch.setattr("llucid.corpora.CHUNK", 10)
    monkeypatch.setattr("llucid.corpora.tokens.CHUNK", 10)
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text").mkdir()
    counts: list[int] = []
    corpus = corpus_of(tmp_path / "text", "ab" * 500)
    tokens = tokenise(corpus, make_tokenizer("characters", corpus), "train", counts.append)
    assert tokens.length == sum(counts) == 900
    assert max(counts) == 20  # the first piece that makes it more than one chunk


@pytest.mark.parametrize("kind", ["bpe:260", "llama2-tokenizer.model"])
def test_characters_that_windows_cut_count_once(
    kind: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three bytes and tokens each, they begin in one window and end in the next; so do words with their space."""
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text").mkdir()
    corpus = corpus_of(tmp_path / "text", "\n鸛鷺 two geese 鸛\n" * 99)
    tokenizer = make_tokenizer(kind if kind.startswith("bpe") else str(data / kind), corpus)
    tokens = tokenise(corpus, tokenizer, "validation")
    ids = tokens.read(np.array([0]), tokens.length)[0].tolist()
    first = len(tokenizer.decode(ids[:1])) if tokenizer.bos is None else -1  # after BOS comes SentencePiece's own space
    expected = len("".join(corpus.text("validation"))) - first
    for context in (5, 16, 1000):
        characters = characters_per_token(tokens, tokenizer, context) * (tokens.length - 1)
        assert characters == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["sentencepiece", "bytes"])
def test_the_space_before_a_document_is_no_character(
    data: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SentencePiece puts one there, but a document may also begin with one of its own."""
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path / "cache"))
    documents = [" Ada", "Bo", "Chris é", "日本", "Once upon a time"] * 30
    (tmp_path / "names.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents))
    corpus = open_corpus([str(tmp_path / "names.jsonl")])
    path = data / "llama2-tokenizer.model"
    tokenizer = load_tokenizer(path) if kind == "sentencepiece" else make_tokenizer("bpe:300", corpus)
    for split in ("train", "validation"):
        tokens = tokenise(corpus, tokenizer, split)._replace(bos=None)
        for context in (7, 5000):
            characters = characters_per_token(tokens, tokenizer, context) * (tokens.length - 1)
            assert characters == pytest.approx(len("".join(corpus.text(split))), rel=1e-12)


def test_an_unknown_token_is_one_character(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, "ab漢 " * 100)
    tokenizer = JsonTokenizer(letters_and_unknown("ab "))
    assert tokenizer.encode("ab漢 ") == [1, 2, 0, 3]
    assert characters_per_token(tokenise(corpus, tokenizer, "train"), tokenizer, 16) == 1


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_tokenising_in_chunks_equals_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("llucid.corpora.CHUNK", chunk)
    monkeypatch.setattr("llucid.corpora.tokens.CHUNK", max(chunk, 60))  # longer than what stands between two cuts
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path / "cache"))
    text = "One day, it rained.\n\n  Two geese\r\n\r\nsaid: 😀!\n" * 9
    (tmp_path / "text").mkdir()
    corpus = corpus_of(tmp_path / "text", text)
    for tokenizer in (make_tokenizer("characters", corpus), train_bpe([text], 300)):
        for split in ("train", "validation"):
            tokens = tokenise(corpus, tokenizer, split)
            ids = tokens.read(np.array([0]), tokens.length)[0].tolist()
            assert ids == tokenizer.encode("".join(corpus.text(split)))


@pytest.mark.parametrize("chunk", [7, 40])
def test_no_space_comes_in_where_the_text_is_cut(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """SentencePiece puts one before a text. The library reads the whole text."""
    for module in ("llucid.corpora", "llucid.corpora.tokens"):
        monkeypatch.setattr(f"{module}.CHUNK", chunk)
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text").mkdir()
    corpus = corpus_of(tmp_path / "text", "Two geese\nrained.\n\n  “One day”\n" * 9)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(data / "llama2-tokenizer.model"))
    ours = load_tokenizer(data / "llama2-tokenizer.model")
    tokens = tokenise(corpus, ours, "train")
    ids = tokens.read(np.array([0]), tokens.length)[0].tolist()
    text = "".join(corpus.text("train"))
    assert theirs.decode(ids) == text
    assert (ids == [1, *theirs.encode(text)]) == (chunk > 7)  # a chunk without a line break is cut anywhere


def test_tokenizers_that_no_tokenizer_json_expresses(tmp_path: Path) -> None:
    """Each has a file of its own: also two whose `tokenizer.json` would be the same, but for equally good merges."""
    corpus = corpus_of(tmp_path, "我们是的我们的 " * 20)
    tied = tied_model()
    models = [tied, bytes(tied) + field(PIECES, field(PIECE_TEXT, "们的".encode() * 2)), sentencepiece_model("unigram")]
    files = set[Path]()
    for model in models:
        tokens = tokenise(corpus, SentencePiece(model), "train")
        files.add(tokens.file)
        ids = tokens.read(np.array([0]), tokens.length)[0].tolist()
        assert ids == [1, *SentencePiece(model).encode("".join(corpus.text("train")))]
    assert len(files) == len(models)


def test_no_document_is_cut_for_its_length(tmp_path: Path) -> None:
    """With spaces behind words, a part that begins with a line break has no token that is the line break's alone."""
    texts = ["One\ntwo", "To be\nor not\n\nto be", "geese\n"]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 40))
    tokenizer = SentencePiece(sentencepiece_model(treat_whitespace_as_suffix=True))
    tokens = tokenise(open_corpus([str(tmp_path / "corpus.jsonl")]), tokenizer, "train")
    ids = tokens.read(np.array([0]), tokens.length)[0].tolist()
    whole = [token for text in texts for token in (1, *tokenizer.encode(text), 2)]
    assert ids[: 30 * len(whole)] == whole * 30


def test_documents_are_separated_by_a_line_break_where_nothing_marks_their_ends(tmp_path: Path) -> None:
    texts = ["geese", "wren\n", "fox", "a\nb", "owl" * 9]
    characters = corpus_of(tmp_path, *texts)
    tokenizer = make_tokenizer("characters", characters)
    ids = [
        token
        for split in ("train", "validation")
        for tokens in [tokenise(characters, tokenizer, split)]
        for token in tokens.read(np.array([0]), tokens.length)[0].tolist()
    ]
    assert tokenizer.decode(ids) == "geese\nwren\nfox\na\nb\n" + "owl" * 9
    before = tokenise(characters, tokenizer, "train").file
    (tmp_path / "1.txt").write_text("n\n")
    (tmp_path / "0.txt").write_text("geesewre")  # the same bytes, other documents
    assert tokenise(replace(characters), tokenizer, "train").file != before


def test_tokens_are_made_once_per_text(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, "abcabc" * 20)
    tokenizer = make_tokenizer("characters", corpus)
    counts: list[int] = []
    first = tokenise(corpus, tokenizer, "train", counts.append)
    assert sum(counts) == 108
    assert tokenise(corpus, tokenizer, "train", lambda _: pytest.fail("made again")) == first
    assert tokenise(corpus_of(tmp_path, "cbacba" * 20), tokenizer, "train").file != first.file


@pytest.mark.parametrize("changed", [b"more words " * 99, b"\xff" * 999, b"some"])
def test_a_text_that_changes_while_it_is_read_leaves_no_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: bytes
) -> None:
    file, text = tmp_path / "a.txt", "some words " * 99
    file.write_text(text)
    corpus = open_corpus([str(file)])
    tokenizer = make_tokenizer("characters", corpus)
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path / "cache"))
    file.write_bytes(changed)
    with pytest.raises(LlucidError, match=r"^a: the text changed while it was read; give the same command again$"):
        tokenise(corpus, tokenizer, "train")
    assert not [*tmp_path.rglob("*train*")]
    file.write_text(text)
    assert tokenise(corpus, tokenizer, "train").length == len("".join(corpus.text("train")))


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-7], lambda content: b"", lambda content: b"\xff" * len(content)]
)
def test_a_damaged_file_in_the_cache_is_made_again(
    damage: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"Two geese. " * 30))
    talk = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Two geese."}]}
    (tmp_path / "talk.jsonl").write_text(f"{json.dumps(talk)}\n" * 9)

    def read() -> list[object]:
        corpus, conversations = (
            open_corpus([str(tmp_path / "a.txt.gz")]),
            open_conversations(str(tmp_path / "talk.jsonl")),
        )
        tokens = tokenise(corpus, make_tokenizer("characters", corpus), "train")
        dialogues = tokenise_chat(conversations, make_chat_tokenizer("bpe:270", conversations), "train", 64)
        batches = tokens.read(np.arange(9), 9), dialogues.read(dialogues.kept, 64)[1]
        return [tokens.file, tokens.length, dialogues.file, *(batch.tolist() for batch in batches)]

    first = read()
    files = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert len(files) == 3
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    assert read() == first
    assert files == [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def test_a_full_disk_names_the_file_of_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And why it could not be written; no unfinished file stays behind."""
    (tmp_path / "a.txt").write_text("text " * 2000)
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path / "cache"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    corpus = open_corpus([str(tmp_path / "a.txt")])
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            tokenise(corpus, make_tokenizer("characters", corpus), "train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert Path(caught.value.filename).parent == tmp_path / "cache" / "tokens"
    assert not list((tmp_path / "cache" / "tokens").iterdir())


def test_a_large_vocabulary_is_not_cut_to_sixteen_bits(tmp_path: Path) -> None:
    """The smallest vocabulary that needs more."""
    corpus = corpus_of(tmp_path, "".join(map(chr, range(0x10000, 0x10000 + 65_537))))
    tokens = tokenise(corpus, make_tokenizer("characters", corpus), "validation")
    assert tokens.dtype == "uint32"
    assert tokens.read(np.array([tokens.length - 1]), 1).item() == 65_536


def test_lines_that_begin_with_white_space_take_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was searched for the line at which it could be cut is not searched again while there is none."""
    searched: list[int] = []

    class Counting:
        def finditer(self, text: str) -> Iterator[re.Match[str]]:
            searched.append(len(text))
            return pattern.finditer(text)

    pattern = corpora.tokens.NEXT_LINE
    monkeypatch.setattr(corpora.tokens, "NEXT_LINE", Counting())
    monkeypatch.setattr(corpora.tokens, "CHUNK", 200)
    pieces = [f" tale {number}\n" for number in range(1000)] + ["the end\n", " of", "\n", "it"]
    found = [*corpora.tokens._whole_documents(iter(pieces))]
    assert "".join(found) == "".join(pieces)
    assert max(map(len, found)) < 220
    assert sum(searched) <= sum(map(len, pieces))


def counting(length: int, folder: Path) -> Tokens:
    file = folder / "counting"
    np.arange(length).astype("uint16").tofile(file)
    return Tokens(file, "uint16", length)


def test_batches_depend_only_on_seed_and_step(tmp_path: Path) -> None:
    tokens = counting(1000, tmp_path)
    inputs, targets = training_batch(tokens, 8, 16, seed=3, step=5)
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs[:, 1:], inputs[:, :-1] + 1)
    again = training_batch(tokens, 8, 16, seed=3, step=5)
    assert torch.equal(again[0], inputs)
    for seed, step in ((3, 6), (4, 5)):
        assert not torch.equal(training_batch(tokens, 8, 16, seed, step)[0], inputs)


def test_batches_reach_both_ends(tmp_path: Path) -> None:
    tokens = counting(20, tmp_path)
    seen = torch.cat([training_batch(tokens, 64, 16, 0, step)[1] for step in range(4)])
    assert (seen.min().item(), seen.max().item()) == (1, 19)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("length", [2, 9, 16, 17, 18, 33, 100, 2000])
def test_every_token_but_the_first_is_evaluated_once(tmp_path: Path, length: int, overlap: bool) -> None:
    tokens = counting(length, tmp_path)
    seen: list[int] = []
    for inputs, targets in validation_batches(tokens, 16, overlap):
        counted = targets != -100
        assert torch.equal(targets[counted], inputs[counted] + 1)
        before = counted.int().argmax(1)  # tokens of text before the first that counts
        assert ((before >= 8) | (inputs[:, 0] == 0)).all() if overlap else (before == 0).all()
        seen += targets[counted].tolist()
    assert sorted(seen) == list(range(1, length))


def test_a_long_validation_split_is_sampled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llucid.corpora.tokens.EVALUATED", 320)
    rows = [row.tolist() for inputs, _ in validation_batches(counting(10_000, tmp_path), 16) for row in inputs]
    assert len(rows) == 20
    assert (rows[0][0], rows[-1][-1]) == (0, 9998)
    gaps = [after[0] - before[0] for before, after in itertools.pairwise(rows)]
    assert max(gaps) - min(gaps) <= 16


def test_missing_empty_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LlucidError, match="no such file"):
        open_corpus([str(tmp_path / "nothing")])
    with pytest.raises(LlucidError, match="no such file"):
        open_corpus([""])
    with pytest.raises(LlucidError, match="there is no text"):
        open_corpus([str(tmp_path)])
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n" * 20)
    with pytest.raises(LlucidError, match=r"image\.png: not a UTF-8 text file"):
        list(open_corpus([str(tmp_path / "image.png")]).text("train"))
    with pytest.raises(LlucidError, match="there is no text"):
        open_corpus([str(tmp_path)])


def test_files_of_a_folder_that_are_not_text_are_skipped_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n" * 20)
    (tmp_path / "c.txt").write_bytes(b"x" * (3 << 20) + b"\xe9")
    corpus = open_corpus([str(tmp_path)])
    assert corpus.files == (tmp_path / "a.txt",)
    assert corpus.skipped == (tmp_path / "b.png", tmp_path / "c.txt")
    (tmp_path / "d.txt").symlink_to("a.txt")
    assert open_corpus([str(tmp_path / "a.txt"), str(tmp_path)]).files == corpus.files  # else it would validate itself


def test_hidden_files_below_the_given_folder_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / ".hidden" / "texts"
    for name in ("a.txt", "b/c.txt", ".d.txt", ".git/e.txt", "b/.f/g.txt"):
        (given / name).parent.mkdir(parents=True, exist_ok=True)
        (given / name).write_text(name)
    (given.parent / "here").mkdir()
    monkeypatch.chdir(given.parent / "here")
    for way in (str(given), "../texts", "../../.hidden/texts"):
        assert "".join(file.read_text() for file in open_corpus([way]).files) == "a.txtb/c.txt"


def test_a_corpus_is_named_after_its_folder_or_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts" / "old").mkdir(parents=True)
    (tmp_path / "texts" / "old" / "a.txt").write_text("abc")
    monkeypatch.chdir(tmp_path / "texts" / "old")
    for way, name in {".": "old", "..": "texts", "../..": tmp_path.name, "a.txt": "a", "../old/": "old"}.items():
        assert open_corpus([way]).name == name


def test_runs_in_a_folder_of_texts_are_not_read(tmp_path: Path) -> None:
    """A folder counts as a run or a ladder only if it has all of its files."""
    made = ["runs/texts/train.toml", "runs/texts/state/b", "runs/ladder/metrics.json", "runs/ladder/samples.txt"]
    for name in ("a.txt", "runs/c.txt", "own/train.toml", *made):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [str(file.relative_to(tmp_path)) for file in open_corpus([str(tmp_path)]).files] == [
        "a.txt",
        "own/train.toml",
        "runs/c.txt",
    ]


def test_built_in_corpora_cannot_be_combined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("abc")
    for names in (["fables", "texts"], ["texts", "shakespeare"], ["shakespeare", "fables"]):
        with pytest.raises(LlucidError, match=f"corpus={' '.join(names)}: shakespeare and fables cannot be combined"):
            open_corpus(names)
    (tmp_path / "fables").mkdir()
    (tmp_path / "fables" / "b.txt").write_text("def")
    assert "".join(file.read_text() for file in open_corpus(["texts", "fables"]).files) == "abcdef"


def test_shakespeare_without_file_or_network_says_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.delenv("LLUCID_DATA", raising=False)
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path))
    with pytest.raises(LlucidError, match=f"put the file from .* at {tmp_path}/tinyshakespeare.txt.*corpus=fables"):
        open_corpus(["shakespeare"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_named_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("text")
    for name in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(LlucidError, match="not a regular file"):
            open_corpus([str(name)])
    assert open_corpus([str(tmp_path)]).files == (tmp_path / "text",)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="there is no /proc here")
def test_files_without_a_size_are_not_read(tmp_path: Path) -> None:
    """Some of /proc have no end, and reading them waits for ever."""
    with pytest.raises(LlucidError, match="corpus=/proc/self/maps: there is no text in it"):
        open_corpus(["/proc/self/maps"])
    (tmp_path / "text").write_text("text")
    alone = open_corpus([str(tmp_path)])
    (tmp_path / "empty").touch()
    both = open_corpus([str(tmp_path)])
    assert both.files == alone.files
    assert both.fingerprint == alone.fingerprint_now()
