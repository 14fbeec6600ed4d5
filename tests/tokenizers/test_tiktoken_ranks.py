"""Llama 3's ranks give the ids of Meta's own code, in each format that they are saved in."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiktoken
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe

from llucid.checkpoints import Model, load, save
from llucid.dialogs.templates import template_of
from llucid.errors import LlucidError
from llucid.tokenizers import load_tokenizer
from llucid.tokenizers.comparison import first_difference
from llucid.tokenizers.gguf_export import write_vocabulary
from llucid.tokenizers.gguf_vocabulary import read_vocabulary
from llucid.tokenizers.tiktoken_ranks import TiktokenRanks, split
from llucid.tokenizers.tokenizer_json import JsonTokenizer
from llucid.weights import initialise
from tests.configs import CONFIGS
from tests.tokenizers.texts import HOSTILE, LONG, MARK, any_text, rank_file, ranks, small_ranks

# Meta's construction, llama_models/llama3/api/tokenizer.py.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Meta:
    """Meta's Tokenizer, with special tokens that it does not parse."""

    def __init__(self, path: Path) -> None:
        mergeable = load_tiktoken_bpe(str(path))
        special = {f"special {n}": len(mergeable) + n for n in range(256)}
        special["<|eot_id|>"] = special.pop("special 9")
        self.model = tiktoken.Encoding("meta", pat_str=PATTERN, mergeable_ranks=mergeable, special_tokens=special)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for start in range(0, len(text), 400_000):
            for part in meta_cut(text[start : start + 400_000], 25_000):
                ids.extend(self.model.encode(part, allowed_special=set(), disallowed_special=()))
        return ids


def meta_cut(text: str, most: int) -> Iterator[str]:
    """Meta's _split_whitespaces_or_nonwhitespaces, character by character."""
    length, start = 0, 0
    is_space = text[0].isspace() if text else False
    for index, character in enumerate(text):
        if character.isspace() != is_space:
            length, is_space = 1, character.isspace()
        else:
            length += 1
            if length > most:
                yield text[start:index]
                start, length = index, 1
    yield text[start:]


@pytest.fixture(scope="module")
def meta(data: Path) -> Meta:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")  # so that the library keeps no copy of the file
        return Meta(data / "llama3-tokenizer.model")


@pytest.fixture(scope="module")
def llama3(data: Path) -> TiktokenRanks:
    tokenizer = load_tokenizer(data / "llama3-tokenizer.model")
    assert isinstance(tokenizer, TiktokenRanks)
    return tokenizer


@pytest.fixture(scope="module")
def saved(llama3: TiktokenRanks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama3")
    llama3.save(folder)
    return folder


@pytest.fixture(scope="module")
def opened(saved: Path) -> JsonTokenizer:
    tokenizer = load_tokenizer(saved)
    assert isinstance(tokenizer, JsonTokenizer)
    return tokenizer


LENGTHS = {
    "400,000": LONG,
    "over 400,000": LONG[:-4] + " understood, and cut within that word",
    "letters": "a" * 60_001,
    "spaces": "x" + " " * 25_001 + "x",
    "just not": "x" * 25_000 + "\n" * 25_000 + "x" * 25_000,
    "both": ("é" * 25_002 + "\u3000\x1c \n" * 13_000) * 5,
}


@pytest.mark.parametrize("text", [*HOSTILE.values(), MARK], ids=[*HOSTILE, "mark"])
def test_ids_equal_those_of_meta_and_of_the_saved_tokenizer(
    llama3: TiktokenRanks, meta: Meta, opened: JsonTokenizer, text: str
) -> None:
    ids = meta.encode(text)
    assert llama3.encode(text) == ids
    assert opened.encode(text) == ids
    assert llama3.decode(ids) == opened.decode(ids) == text


@pytest.mark.parametrize("text", LENGTHS.values(), ids=LENGTHS)
def test_ids_of_long_texts_equal_those_of_meta(llama3: TiktokenRanks, meta: Meta, text: str) -> None:
    ids = meta.encode(text)
    assert llama3.encode(text) == ids
    assert llama3.decode(ids) == text


def test_400_000_characters_with_the_saved_tokenizer(llama3: TiktokenRanks, opened: JsonTokenizer) -> None:
    assert opened.encode(LONG) == llama3.encode(LONG)


@settings(max_examples=100, deadline=None)
@given(text=any_text)
def test_ids_of_any_text_equal_those_of_meta(
    llama3: TiktokenRanks, meta: Meta, opened: JsonTokenizer, text: str
) -> None:
    assert llama3.encode(text) == meta.encode(text) == opened.encode(text)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("a \n\x1c\x85é"), st.sampled_from([1, 2, 24_999, 25_000, 25_001, 50_001]))))
def test_texts_are_split_as_in_metas_code(runs: list[tuple[str, int]]) -> None:
    text = "".join(character * length for character, length in runs)[:400_000]
    if text:
        assert list(split(text)) == list(meta_cut(text, 25_000))


def test_transformers_opens_the_saved_tokenizer(llama3: TiktokenRanks, saved: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(saved)
    for text in HOSTILE.values():
        ids = llama3.encode(text)
        assert theirs(text, split_special_tokens=True, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert theirs("a")["input_ids"] == [llama3.bos, *llama3.encode("a")]
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (128000, 128001, 128256)
    assert transformers.GenerationConfig.from_pretrained(saved).eos_token_id == [128001, 128008, 128009]


def test_the_special_ids(llama3: TiktokenRanks, opened: JsonTokenizer, data: Path) -> None:
    assert (llama3.vocab_size, llama3.bos, llama3.eos) == (128256, 128000, 128001)
    assert llama3.stop_ids == {128001, 128008, 128009}
    assert (opened.vocab_size, opened.bos, opened.eos) == (128256, 128000, 128001)
    assert opened.stop_ids == llama3.stop_ids
    assert opened.special == llama3.special
    assert len(llama3.special) == 256
    names = {number: name for name, number in llama3.special.items()}
    assert [names[128000 + n] for n in range(12)] == [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|step_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
        "<|reserved_special_token_2|>",
    ]
    assert names[128255] == "<|reserved_special_token_246|>"


def test_the_special_ids_of_3_0() -> None:
    first = TiktokenRanks(ranks(), "3.0")
    base = len(ranks())
    names = {number - base: name for name, number in first.special.items()}
    assert (names[4], names[5], names[8], names[9], names[10]) == (
        "<|reserved_special_token_2|>",
        "<|reserved_special_token_3|>",
        "<|reserved_special_token_4|>",
        "<|eot_id|>",
        "<|reserved_special_token_5|>",
    )
    assert names[255] == "<|reserved_special_token_250|>"
    assert first.stop_ids == {base + 1, base + 9}


def test_special_tokens_and_text() -> None:
    tokenizer = small_ranks()
    for name in tokenizer.special:
        assert max(tokenizer.encode(name)) < len(ranks())
    assert tokenizer.decode([tokenizer.bos, *tokenizer.encode("a bell"), tokenizer.eos, 10**6]) == "a bell"


@settings(deadline=None)
@given(text=any_text)
def test_round_trip_of_small_ranks(text: str) -> None:
    ids = small_ranks().encode(text)
    assert small_ranks().decode(ids) == text
    assert SMALL_SAVED.encode(text) == ids


SMALL_SAVED = JsonTokenizer(json.loads(small_ranks().json()))


def test_lone_surrogates() -> None:
    tokenizer = small_ranks()
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb") == SMALL_SAVED.encode("a\ud800b")
    assert tokenizer.encode("\ud83d\ude80") == tokenizer.encode("🚀") == SMALL_SAVED.encode("\ud83d\ude80")
    assert tokenizer.decode(tokenizer.encode("🚀")[:2] + tokenizer.encode("x")) == "\ufffdx"


def test_write_and_read(tmp_path: Path) -> None:
    small_ranks().write(tmp_path / "tokenizer.model")
    assert (tmp_path / "tokenizer.model").read_bytes() == rank_file(ranks())
    again = load_tokenizer(tmp_path)
    assert isinstance(again, TiktokenRanks)
    assert again.ranks == small_ranks().ranks


def test_a_config_beside_the_ranks(tmp_path: Path) -> None:
    """Its templates, also named ones, its names of special tokens and their roles; kept when saved."""
    base = len(ranks())
    templates = [{"name": "rag", "template": "{{ messages[0].content }}"}]
    config = {"chat_template": templates, "eos_token": "<|end|>", "bos_token": "<|begin_of_text|>"}
    names = {0: "<|begin_of_text|>", 4: "<|eom_id|>", 5: "<|end|>"}
    decoder = {str(base + n): {"content": name, "special": True} for n, name in names.items()}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": decoder}))
    small_ranks().write(tmp_path / "tokenizer.model")
    found = load_tokenizer(tmp_path)
    assert isinstance(found, TiktokenRanks)
    assert template_of(found, "rag") == "{{ messages[0].content }}"
    named = {number - base: name for name, number in found.special.items()}
    assert len(named) == 256
    assert [named[n] for n in (0, 1, 4, 5, 9)] == [
        *("<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|end|>", "<|eot_id|>")
    ]
    assert (found.bos, found.eos) == (base, base + 5)
    assert found.stop_ids == {base + 1, base + 4, base + 5, base + 9}
    config = replace(CONFIGS["one for two"], vocab_size=found.vocab_size, head_dim=8)
    save(Model(config, initialise(config), found), tmp_path / "meta", "meta")
    kept = load(tmp_path / "meta", device="cpu").tokenizer
    assert isinstance(kept, TiktokenRanks)
    assert first_difference(found, kept) is None
    assert template_of(kept, "rag") == "{{ messages[0].content }}"
    (tmp_path / "saved").mkdir()
    found.save(tmp_path / "saved")
    for again in (load_tokenizer(tmp_path / "saved"), read_vocabulary(write_vocabulary(found, found.vocab_size))):
        assert first_difference(found, again) is None
        assert template_of(again, "rag") == "{{ messages[0].content }}"


def test_write_reproduces_metas_file(llama3: TiktokenRanks, data: Path, tmp_path: Path) -> None:
    llama3.write(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (data / "llama3-tokenizer.model").read_bytes()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (rank_file(ranks()[:200]), "the byte 0x.. has no rank"),
        (rank_file([*ranks(), b"a"]), "two ranks have the same bytes"),
        (rank_file(ranks()).replace(b" 17\n", b" 18\n"), "line 18 should end with the rank 17"),
        (rank_file(ranks()) + b"a*== %d\n" % len(ranks()), "line 313 is not base64"),
        (rank_file(ranks()) + b"IQ==", "line 313 should end with the rank 312"),
    ],
)
def test_truncated_files(content: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(LlucidError, match=says):
        TiktokenRanks.from_bytes(content, tmp_path)
