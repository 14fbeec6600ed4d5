"""Each kind of tokenizer is recognised by its content; a damaged file gives an error of one line."""

import contextlib
import json
import random
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llucid.checkpoints import load, save
from llucid.errors import LlucidError, NoTokenizer
from llucid.tokenizers import Tokenizer, load_tokenizer
from llucid.tokenizers.byte_pairs import train_bpe
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.llama2c import Llama2cTokenizer
from llucid.tokenizers.sentencepiece_model import SentencePiece
from llucid.tokenizers.tiktoken_ranks import TiktokenRanks
from llucid.tokenizers.tokenizer_json import JsonTokenizer
from tests.checkpoints.models import model_of
from tests.configs import CONFIGS
from tests.tokenizers.texts import (
    HOSTILE,
    TALE,
    rank_file,
    ranks,
    sentencepiece_model,
    small_llama2c,
    small_sentencepiece,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[type[Tokenizer], bytes]:
    out = tmp_path_factory.mktemp("files") / "tokenizer.bin"
    small_llama2c().write(out)
    return {
        Llama2cTokenizer: out.read_bytes(),
        SentencePiece: sentencepiece_model(),
        TiktokenRanks: rank_file(ranks()),
        JsonTokenizer: train_bpe([TALE], 300).json().encode(),
        Characters: Characters(TALE).json().encode(),
    }


KINDS = [Llama2cTokenizer, SentencePiece, TiktokenRanks, JsonTokenizer, Characters]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "tokenizer.bin", "anything"])
def test_the_kind_is_recognised_by_content(
    files: dict[type[Tokenizer], bytes], tmp_path: Path, kind: type[Tokenizer], name: str
) -> None:
    (tmp_path / name).write_bytes(files[kind])
    assert type(load_tokenizer(tmp_path / name)) is kind
    if name != "anything":
        assert type(load_tokenizer(tmp_path)) is kind


@pytest.mark.parametrize("vocabulary", [{"b": 0, "a": 1}, {"a": 0, "ab": 1}, {"a": 0, "b": 2}])
def test_other_word_level_vocabularies_keep_their_ids(vocabulary: dict[str, int], tmp_path: Path) -> None:
    content = json.loads(Characters("ab").json())
    content["model"]["vocab"] = vocabulary
    content["pre_tokenizer"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    assert {word: tokenizer.encode(word) for word in vocabulary} == {word: [id] for word, id in vocabulary.items()}


@pytest.mark.parametrize("name", ["llama2-tokenizer.model", "llama3-tokenizer.model"])
def test_published_tokenizers(data: Path, name: str) -> None:
    expected = {"2": ("SentencePiece", 32_000, 1, 2), "3": ("TiktokenRanks", 128_256, 128_000, 128_001)}
    found = load_tokenizer(data / name)
    assert (type(found).__name__, found.vocab_size, found.bos, found.eos) == expected[name[5]]


def test_order_of_files_in_a_folder(files: dict[type[Tokenizer], bytes], tmp_path: Path) -> None:
    for name, kind in [
        ("tokenizer.bin", Llama2cTokenizer),
        ("tokenizer.model", SentencePiece),
        ("tokenizer.json", JsonTokenizer),
    ]:
        (tmp_path / name).write_bytes(files[kind])
        assert type(load_tokenizer(tmp_path)) is kind


@pytest.mark.parametrize(
    "name", ["tok512.bin", "llama2-tokenizer.bin", "llama2-tokenizer.model", "llama3-tokenizer.model"]
)
def test_published_files_open(data: Path, name: str) -> None:
    kinds = {"tok512.bin": Llama2cTokenizer, "llama2-tokenizer.bin": Llama2cTokenizer}
    kinds |= {"llama2-tokenizer.model": SentencePiece, "llama3-tokenizer.model": TiktokenRanks}
    assert type(load_tokenizer(data / name)) is kinds[name]


def test_other_files_are_not_tokenizers(data: Path) -> None:
    for name in ("stories260K.bin", "tinyshakespeare.txt"):
        with pytest.raises(LlucidError, match="not a tokenizer that llucid knows"):
            load_tokenizer(data / name)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"[]", "not a tokenizer that llucid knows"),
        (b"\xff" * 100, "not a tokenizer that llucid knows"),
        (b"\x00" * 4, "not a tokenizer that llucid knows"),
        (b"plain text\n" * 100, "not a tokenizer that llucid knows"),
        (b'{"model": ', "not a JSON file"),
        (b'{"\xff": 1}', "not a JSON file"),
        (b'{"a":' * 100_000, "mostly empty lists or objects"),
        (b'{"abcdefgh":' * 100_000, "not a JSON file"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not a JSON file"),
        (b"{}", "cannot be read"),
        (b'{"model": {"type": "BPE", "vocab": {}, "merges": [["a\\n", "b"]]}}', "Token `a ` out of vocabulary"),
        (b"IQ== 0\nIg== 2\n", "line 2 should end with the rank 1"),
        (b"\n\x05\n\x03<s>\x12", "the sentencepiece library refuses it"),
    ],
)
def test_invalid_files_give_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(LlucidError, match=says) as raised:
        load_tokenizer(tmp_path)
    assert str(raised.value).startswith(str(tmp_path / "tokenizer.model"))
    assert "\n" not in str(raised.value)


def test_lone_surrogates_in_a_config_can_be_saved(tmp_path: Path) -> None:
    train_bpe([TALE], 320).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(r'{"chat_template": "\ud83d\ude00 \ud800x \ud7ff", "\udfff": 1}')
    opened = load_tokenizer(tmp_path)
    assert isinstance(opened, JsonTokenizer)
    assert opened.config == {"chat_template": "\U0001f600 \ufffdx \ud7ff", "\ufffd": 1}
    opened.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, JsonTokenizer)
    assert again.config.items() >= opened.config.items()
    (tmp_path / "tokenizer_config.json").write_bytes(b'{"chat_template": "\xed\xa0\x80"}')
    with pytest.raises(LlucidError, match="not a JSON file"):
        load_tokenizer(tmp_path)


def test_the_roles_of_a_lone_surrogate(tmp_path: Path) -> None:
    train_bpe([TALE], 300).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"eos_token": "\\ud800", "additional_special_tokens": ["\\udfff"]}'
    )
    found = load_tokenizer(tmp_path)
    assert found.eos == found.special["\ufffd"] == 300  # a token that no vocabulary has gets the next id


@pytest.mark.parametrize(
    ("change", "size"),
    [
        ({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 3}, "unk_token": "a"}}, 4),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0, "": 1}, "unk_token": "a"}}, 4),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0, "<s>": 9}, "unk_token": "a"}}, 10),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0], ["a", 0.0]], "unk_id": 0}}, 4),
    ],
)
def test_odd_ids(change: dict[str, object], size: int, tmp_path: Path) -> None:
    content = json.loads(train_bpe([TALE], 300).json()) | {"pre_tokenizer": None, "decoder": None} | change
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] = [
        {"id": 7 + n, "content": name, "special": True, **flags} for n, name in enumerate(["<s>", "b"])
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": ""}')
    found = load_tokenizer(tmp_path)
    assert found.vocab_size == size
    assert (found.eos or 0) < size


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(LlucidError, match="no tokenizer here"):
            load_tokenizer(path)


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(LlucidError, match=r"cannot be read \(Permission denied\)"):
        load_tokenizer(tmp_path)


def try_file(path: Path, content: bytes) -> bool:
    """Whether the file opens. If not, the error has one line; if it does, it has to work."""
    path.write_bytes(content)
    try:
        tokenizer = load_tokenizer(path)
    except LlucidError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return False
    for text in (HOSTILE["special tokens"], HOSTILE["emoji"], HOSTILE["spaces"]):
        try:
            ids = tokenizer.encode(text)
        except LlucidError:  # a character that lost its id
            continue
        assert all(0 <= token < tokenizer.vocab_size for token in ids)
        if not isinstance(tokenizer, JsonTokenizer):  # in which a word may now be special
            assert not set(ids) & set(tokenizer.special.values()) - {0}
        tokenizer.decode(ids)
    try:
        assert tokenizer.json()
    except LlucidError as error:
        assert "\n" not in str(error)  # noqa: PT017
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_files_truncated_anywhere(files: dict[type[Tokenizer], bytes], tmp_path: Path, kind: type[Tokenizer]) -> None:
    content = files[kind]
    ends = {*range(200), *random.Random(0).sample(range(len(content)), 60), len(content) - 1}
    whole = sum(try_file(tmp_path / "cut", content[:end]) for end in sorted(ends))
    # A few prefixes are valid files: whole entries, whole pieces, or all but the final line break.
    assert whole < len(ends) / 4
    assert try_file(tmp_path / "cut", content)


def mutations(length: int) -> st.SearchStrategy[Sequence[tuple[int, bytes, int]]]:
    """Up to four places, the bytes written there, and the number of bytes removed."""
    numbers = st.sampled_from(
        [b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff\x0f", b"\x00\x00\x00\x80", b"\x00", b"9999999999"]
    )
    one = st.tuples(st.integers(0, length - 1), numbers | st.binary(min_size=1, max_size=3), st.integers(0, 4))
    return st.lists(one, min_size=1, max_size=4)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, deadline=None)
@given(draw=st.data())
def test_bytes_changed_anywhere(
    files: dict[type[Tokenizer], bytes],
    tmp_path_factory: pytest.TempPathFactory,
    kind: type[Tokenizer],
    draw: st.DataObject,
) -> None:
    content = bytearray(files[kind])
    for place, written, removed in draw.draw(mutations(len(content))):
        content[place : place + removed] = written
    try_file(tmp_path_factory.getbasetemp() / kind.__name__, bytes(content))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_take_no_more_memory(
    files: dict[type[Tokenizer], bytes], tmp_path: Path, kind: type[Tokenizer]
) -> None:
    content = files[kind]
    path = tmp_path / "file"
    path.write_bytes(content)
    load_tokenizer(path)
    tracemalloc.start()
    load_tokenizer(path)
    whole = tracemalloc.get_traced_memory()[1]
    for place in random.Random(1).sample(range(len(content)), 40):
        path.write_bytes(content[:place] + b"\xff\xff\xff\x7f" + content[place + 4 :])
        tracemalloc.reset_peak()
        with contextlib.suppress(LlucidError):
            load_tokenizer(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * whole + 1_000_000
    tracemalloc.stop()


def test_a_saved_tokenizer_has_the_same_ids(tmp_path: Path) -> None:
    small_sentencepiece().save(tmp_path)
    assert load_tokenizer(tmp_path).encode(TALE) == small_sentencepiece().encode(TALE)


def test_the_file_is_named_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if its message contains the name of the folder, such as "."."""
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LlucidError, match=r"^tokenizer\.json: tokenizer\.json cannot be read"):
        load_tokenizer(".")
    (folder := tmp_path / "be").mkdir()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(LlucidError, match=r"^be/tokenizer\.json: tokenizer\.json cannot be read"):
        load_tokenizer("be")
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(LlucidError, match=r"^be/tokenizer_config\.json: expected a JSON object"):
        load_tokenizer("be")


def test_a_vocabulary_without_its_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As of older models with byte pairs: the message says what to do, and so does the note when a model is opened."""
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(NoTokenizer, match=r"vocab\.json is not a whole tokenizer; write a tokenizer\.json with"):
        load_tokenizer(tmp_path)
    save(model_of(CONFIGS["one for two"])._replace(tokenizer=None), tmp_path / "m")
    (tmp_path / "m" / "vocab.json").write_text("{}")
    assert load(tmp_path / "m", device="cpu").tokenizer is None
    assert "vocab.json is not a whole tokenizer" in capsys.readouterr().err
