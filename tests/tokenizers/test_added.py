"""The files next to a tokenizer in published folders: added tokens, flags and roles."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers

from llucid.checkpoints import Model, convert, load, save
from llucid.dialogs.formats import encode_dialog, known_format
from llucid.errors import LlucidError
from llucid.tokenizers import Tokenizer, load_tokenizer
from llucid.tokenizers.gguf_export import write_vocabulary
from llucid.tokenizers.gguf_vocabulary import read_vocabulary
from llucid.tokenizers.prompts import prompt_ids
from llucid.tokenizers.sentencepiece_model import SentencePiece
from llucid.tokenizers.tiktoken_ranks import TiktokenRanks
from llucid.tokenizers.tokenizer_json import JsonTokenizer
from tests.checkpoints.models import model_of
from tests.configs import CONFIGS
from tests.dialogs.templates import CHATML, LLAMA2
from tests.tokenizers.texts import HOSTILE, TALE, rank_file, ranks, sentencepiece_model, small_sentencepiece

SIZE = small_sentencepiece().vocab_size
BYTES = [name for name in HOSTILE if name not in ("special tokens", "marks of others")]
LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | {
    "add_bos_token": True
}
CHAT = {"eos_token": "<|im_end|>", "chat_template": CHATML}
TURNS = {"<|im_start|>": SIZE + 1, "<|im_end|>": SIZE}
LISTED = {str(number): {"content": name, "special": True} for name, number in TURNS.items()}
NORMALIZED = {number: flags | {"normalized": True} for number, flags in LISTED.items()}
DIALOG = [{"role": "user", "content": "Who found the bell?"}]
LLAMA_TYPE = json.dumps({"model_type": "llama"})


def write(folder: Path, **files: Any) -> Path:
    """A folder with these files: `tokenizer_config` is `tokenizer_config.json`, and so on."""
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    (folder / "config.json").write_text(LLAMA_TYPE)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def as_json(folder: Path) -> None:
    """Replaces `tokenizer.model` by a `tokenizer.json` without the added tokens and roles."""
    (folder / "tokenizer.json").write_text(small_sentencepiece().json())
    (folder / "tokenizer.model").unlink()


def theirs_of(folder: Path) -> Any:
    """The tokenizer of transformers; without its Llama class, which changes a `tokenizer.json`."""
    written = (folder / "tokenizer.json").is_file()
    return (transformers.PreTrainedTokenizerFast if written else transformers.AutoTokenizer).from_pretrained(folder)


ADDED = {
    "in added_tokens.json": dict(
        tokenizer_config=LLAMA | CHAT | {"legacy": False},
        special_tokens_map={"eos_token": {"content": "<|im_end|>"}, "additional_special_tokens": ["<|im_start|>"]},
        added_tokens=TURNS,
    ),
    "of which one is not special": dict(tokenizer_config=LLAMA | CHAT | {"legacy": True}, added_tokens=TURNS),
    "in tokenizer_config.json": dict(
        tokenizer_config=LLAMA | CHAT | {"legacy": False, "added_tokens_decoder": LISTED},
        special_tokens_map={"eos_token": "</s>"},
    ),
    "normalized": dict(tokenizer_config=LLAMA | CHAT | {"legacy": True, "added_tokens_decoder": NORMALIZED}),
}


# If a `tokenizer.json` puts spaces before words, transformers includes a space in tokens that are not special.
@pytest.mark.parametrize(("case", "kind"), [*((case, "model") for case in ADDED), ("in tokenizer_config.json", "json")])
def test_added_tokens_of_a_folder(case: str, kind: str, tmp_path: Path) -> None:
    write(tmp_path, **ADDED[case])
    if kind == "json":
        as_json(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), theirs_of(tmp_path)
    assert ours.eos == theirs.eos_token_id == SIZE
    assert (ours.vocab_size, ours.stop_ids) == (SIZE + 2, {SIZE})
    expected = theirs.apply_chat_template(DIALOG, add_generation_prompt=True, return_dict=False)
    assert SIZE in expected
    assert encode_dialog(DIALOG, ours) == expected
    for text in [HOSTILE[name].lstrip() for name in BYTES]:  # their class drops a leading space
        assert not text or prompt_ids(ours, text) == theirs(text)["input_ids"]
    ours.save(tmp_path / "..")
    again = load_tokenizer(tmp_path / "..")
    assert encode_dialog(DIALOG, again) == expected
    assert (again.bos, again.eos, again.stop_ids) == (ours.bos, ours.eos, ours.stop_ids)
    again = theirs_of(tmp_path / "..")
    assert again.apply_chat_template(DIALOG, add_generation_prompt=True, return_dict=False) == expected


@pytest.mark.parametrize("kind", ["model", "json"])
def test_a_letter_that_a_folder_calls_special(kind: str, tmp_path: Path) -> None:
    """In a `tokenizer.json` it is found before anything is merged, as in transformers."""
    plain, text = small_sentencepiece(), "the bell rebels"
    added = {str(plain.ids["b"]): {"content": "b", "special": True}}
    write(tmp_path, tokenizer_config=LLAMA | {"pad_token": "b", "added_tokens_decoder": added})
    if kind == "json":
        as_json(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), theirs_of(tmp_path)
    ids = ours.encode(text)
    assert ids == (theirs.encode(text, add_special_tokens=False) if kind == "json" else plain.encode(text))
    assert ours.decode(ids).replace(" ", "") == "thebellrebels"
    ours.save(tmp_path / "..")
    assert load_tokenizer(tmp_path / "..").encode(text) == ids


def test_a_pad_token_keeps_the_sentencepiece_model(tmp_path: Path) -> None:
    roles = {"pad_token": "[PAD]"}
    write(tmp_path, tokenizer_config=LLAMA, special_tokens_map=roles, added_tokens={"[PAD]": SIZE})
    assert isinstance(load_tokenizer(tmp_path), SentencePiece)
    assert load_tokenizer(tmp_path).encode("[PAD]") == small_sentencepiece().encode("[PAD]")


ENDS = {str(SIZE): {"content": "<|im_end|>", "special": True}}
ALSO_PADS = {
    "EOS": dict(tokenizer_config=CHAT | {"pad_token": "<|im_end|>"}, added_tokens={"<|im_end|>": SIZE}),
    "EOS in tokenizer_config.json": dict(
        tokenizer_config=CHAT | dict(pad_token="<|im_end|>", added_tokens_decoder=ENDS)
    ),
    "another role": dict(
        tokenizer_config=CHAT
        | dict(eos_token="</s>", pad_token="<|im_end|>", additional_special_tokens=["<|im_end|>"]),
        added_tokens={"<|im_end|>": SIZE},
    ),
    "a part of the template": dict(
        tokenizer_config=CHAT | dict(eos_token="</s>", pad_token="<|im_end|>", added_tokens_decoder=ENDS)
    ),
    "a value of the template": dict(
        tokenizer_config=dict(pad_token="[PAD]", chat_template="{{ messages[0].content + pad_token }}"),
        added_tokens={"[PAD]": SIZE},
    ),
}


@pytest.mark.parametrize("kind", ["model", "json"])
@pytest.mark.parametrize("files", ALSO_PADS.values(), ids=ALSO_PADS)
def test_a_pad_token_that_is_also_something_else(files: dict[str, Any], kind: str, tmp_path: Path) -> None:
    write(tmp_path, **files | {"tokenizer_config": LLAMA | {"legacy": True} | files["tokenizer_config"]})
    if kind == "json":
        as_json(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), theirs_of(tmp_path)
    assert ours.eos == theirs.eos_token_id
    expected = theirs.apply_chat_template(DIALOG, return_dict=False, add_generation_prompt=True)
    assert SIZE in expected
    assert encode_dialog(DIALOG, ours) == expected


STRIPS = {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False, "rstrip": True, "single_word": False}
NO_ID = {
    "EOS": CHAT,
    "with the line break after it": CHAT | {"eos_token": STRIPS},
    "several": CHAT | {"pad_token": "[PAD]", "additional_special_tokens": ["<|im_start|>", "[PAD]", "<x>"]},
    "named": {"chat_template": CHATML, "extra_special_tokens": {"a": "<|im_start|>", "b_token": "<|im_end|>"}},
    "a role of its own": {"chat_template": CHATML, "x_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    "a role of the model": CHAT | {"model_specific_special_tokens": {"y_token": "<|im_start|>"}, "eos_token": "</s>"},
    "beside one with an id": CHAT | {"added_tokens_decoder": {str(SIZE): {"content": "<|im_start|>", "special": True}}},
}


@pytest.mark.parametrize("kind", ["model", "json"])
@pytest.mark.parametrize("config", NO_ID.values(), ids=NO_ID)
def test_a_token_with_a_role_and_without_an_id(config: dict[str, Any], kind: str, tmp_path: Path) -> None:
    """As in transformers, it gets the next id."""
    write(tmp_path, tokenizer_config=LLAMA | {"legacy": True} | config)
    if kind == "json":
        as_json(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), theirs_of(tmp_path)
    assert (ours.eos, ours.vocab_size) == (theirs.eos_token_id, len(theirs))
    expected = theirs.apply_chat_template(DIALOG, add_generation_prompt=True, return_dict=False)
    assert max(expected) >= SIZE
    assert encode_dialog(DIALOG, ours) == expected
    ours.save(tmp_path / "..")
    assert encode_dialog(DIALOG, load_tokenizer(tmp_path / "..")) == expected


def test_more_special_tokens_than_those_of_llama_3(tmp_path: Path) -> None:
    """Beside ranks, they get ids as beside the `tokenizer.json` of these ranks."""
    config = CHAT | {"additional_special_tokens": ["<|im_start|>"]}
    found = {}
    for kind in ("ranks", "json"):
        (folder := tmp_path / kind).mkdir()
        TiktokenRanks(ranks(), config={}).save(folder)
        if kind == "ranks":
            (folder / "tokenizer.json").unlink()
            TiktokenRanks(ranks()).write(folder / "tokenizer.model")
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        found[kind] = load_tokenizer(folder)
    assert found["ranks"].eos == found["json"].eos == TiktokenRanks(ranks()).vocab_size
    assert found["ranks"].stop_ids >= TiktokenRanks(ranks()).stop_ids | {found["ranks"].eos}
    theirs = theirs_of(tmp_path / "json").apply_chat_template(DIALOG, add_generation_prompt=True, return_dict=False)
    assert encode_dialog(DIALOG, found["ranks"]) == encode_dialog(DIALOG, found["json"]) == theirs
    assert isinstance(TiktokenRanks.from_bytes(rank_file(ranks()), tmp_path), TiktokenRanks)


def test_flags_in_tokenizer_config_win(tmp_path: Path) -> None:
    """Over those in `tokenizer.json`, as in transformers; `added_tokens.json` has none."""
    template = "{% for m in messages %}{{ m.content }} <|im_end|> \n{% endfor %}"
    for strips in (True, False):
        flags = {"lstrip": strips, "rstrip": strips, "single_word": False, "normalized": False, "special": True}
        config = LLAMA | {"chat_template": template, "eos_token": "<|im_end|>"}
        listed = {"added_tokens_decoder": {str(SIZE): flags | {"content": "<|im_end|>"}}}
        for number, files in enumerate(
            (dict(tokenizer_config=config | listed), dict(tokenizer_config=config, added_tokens={"<|im_end|>": SIZE}))
        ):
            (folder := tmp_path / f"{strips} {number}").mkdir()
            write(folder, **files)
            as_json(folder)
            content = json.loads((folder / "tokenizer.json").read_text())
            opposite = {"lstrip": not strips, "rstrip": not strips}
            content["added_tokens"].append(flags | opposite | {"id": SIZE, "content": "<|im_end|>"})
            (folder / "tokenizer.json").write_text(json.dumps(content))
            expected = theirs_of(folder).apply_chat_template(DIALOG, return_dict=False)
            assert encode_dialog(DIALOG, load_tokenizer(folder)) == expected
            assert (expected[-1] == SIZE) == (strips == (number == 0))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (dict(added_tokens={"x": "y"}), r"added_tokens\.json: its added tokens are not texts and ids"),
        (dict(tokenizer_config={"added_tokens_decoder": [1]}), r"tokenizer_config\.json: its added tokens"),
        (dict(tokenizer_config={"added_tokens_decoder": {"400": {"content": 7}}}), "its added tokens"),
        (dict(tokenizer_config={"added_tokens_decoder": {"400": "x"}}), "its added tokens"),
        (
            dict(added_tokens={"<x>": SIZE + 5}),
            rf"added token '<x>' has the id {SIZE} here and in transformers, but .* says {SIZE + 5}; correct it in",
        ),
        (dict(added_tokens={"the": "9" * 5000}), "its added tokens"),
        (dict(added_tokens={"<x>": []}), "its added tokens are not texts and ids"),
        (dict(added_tokens={"<x>": {}}), "its added tokens are not texts and ids"),
        (dict(added_tokens={"<x>": float("inf")}), "its added tokens are not texts and ids"),
        (dict(tokenizer_config={"added_tokens_decoder": {"400": {"content": None}}}), "its added tokens are not texts"),
        (dict(added_tokens={"": SIZE}), f"added token '' has the id None here and in transformers, but .* says {SIZE}"),
        (dict(special_tokens_map=[]), r"special_tokens_map\.json: expected a JSON object"),
    ],
)
def test_invalid_added_tokens(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path, **files)
    with pytest.raises(LlucidError, match=message) as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": False}, {"add_prefix_space": False}], ids=str)
def test_flags_beside_a_sentencepiece_model(flags: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, tokenizer_config=LLAMA | flags)
    ours, theirs = load_tokenizer(tmp_path), theirs_of(tmp_path)
    for text in [HOSTILE[name].lstrip() for name in BYTES]:
        ids = theirs(text)["input_ids"]
        assert not text or prompt_ids(ours, text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_add_prefix_space_beside_a_tokenizer_json(tmp_path: Path) -> None:
    """Transformers' Llama classes obey it; for other classes the file alone counts."""
    for name, config in (("llama", LLAMA), ("other", LLAMA | {"tokenizer_class": "PreTrainedTokenizerFast"})):
        (folder := tmp_path / name).mkdir()
        write(folder, tokenizer_config=config | {"add_prefix_space": False})
        as_json(folder)
        ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
        for text in [HOSTILE[name].lstrip() for name in BYTES]:
            ids = theirs(text, add_special_tokens=False)["input_ids"]
            assert not text or ours.encode(text) == ids
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert load_tokenizer(tmp_path / "llama").encode("a") != load_tokenizer(tmp_path / "other").encode("a")


@pytest.mark.parametrize("config", [{}, {"eos_token": "", "bos_token": ""}], ids=str)
def test_bos_and_eos_of_a_model_with_added_tokens(config: dict[str, Any], tmp_path: Path) -> None:
    """Where `tokenizer_config.json` does not name them, they are the model's own, as without added tokens."""
    write(tmp_path, tokenizer_config={"tokenizer_class": "LlamaTokenizer"} | config, added_tokens={"<x>": SIZE})
    found = load_tokenizer(tmp_path)
    assert (found.vocab_size, found.bos, found.eos, found.stop_ids) == (SIZE + 1, 1, 2, {2})
    found.save(tmp_path / "..")
    again = load_tokenizer(tmp_path / "..")
    assert (again.vocab_size, again.bos, again.eos, again.stop_ids) == (SIZE + 1, 1, 2, {2})


@pytest.mark.parametrize("legacy", [False, True])
def test_text_after_a_special_token_of_a_template(legacy: bool, tmp_path: Path) -> None:
    """Without added tokens, too, as in Llama 2's format."""
    write(tmp_path, tokenizer_config=LLAMA | {"chat_template": LLAMA2, "legacy": legacy})
    talk = [*DIALOG, {"role": "assistant", "content": "The friend."}, *DIALOG]
    theirs = theirs_of(tmp_path).apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert encode_dialog(talk, load_tokenizer(tmp_path)) == theirs


@pytest.mark.parametrize("kind", ["model", "json"])
def test_roles_in_special_tokens_map(kind: str, tmp_path: Path) -> None:
    roles = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer", "chat_template": LLAMA2}
    write(tmp_path, tokenizer_config=config, special_tokens_map=roles)
    if kind == "json":
        as_json(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert (ours.bos, ours.eos, ours.stop_ids) == (1, 2, {2})
    talk = [*DIALOG, {"role": "assistant", "content": "The friend."}, *DIALOG]
    assert 2 in encode_dialog(talk, ours)
    ours.save(tmp_path / "..")
    assert encode_dialog(talk, load_tokenizer(tmp_path / "..")) == encode_dialog(talk, ours)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "..").eos_token == "</s>"


def test_several_templates_beside_a_sentencepiece_model(tmp_path: Path) -> None:
    several = [{"name": "default", "template": CHATML}, {"name": "rag", "template": LLAMA2}]
    tokenizer = load_tokenizer(write(tmp_path, tokenizer_config=LLAMA | {"chat_template": several}))
    assert known_format(None, tokenizer) == CHATML
    assert known_format("rag", tokenizer) == LLAMA2


def sized(tokenizer: Any, size: int) -> Model:
    """A model with this many ids and this tokenizer."""
    return model_of(replace(CONFIGS["one for two"], vocab_size=size))._replace(tokenizer=tokenizer)


def tokenizer_in(path: Path) -> Tokenizer:
    """The tokenizer of a model."""
    return load(path, device="cpu").text()


@pytest.mark.parametrize("special", [True, False])
def test_a_pad_token_beyond_the_model_is_dropped(special: bool, tmp_path: Path) -> None:
    content = json.loads(small_sentencepiece().json())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"].append({"id": SIZE, "content": "<pad>", "special": special} | flags)
    save(sized(small_sentencepiece(), SIZE), tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(content))
    opened = tokenizer_in(tmp_path / "m")
    assert opened.vocab_size == SIZE
    assert opened.encode("a <pad>") == small_sentencepiece().encode("a <pad>")
    assert (opened.bos, opened.eos, opened.stop_ids) == (1, 2, {2})
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(LLAMA | {"eos_token": "<no id in a file>"}))
    opened = tokenizer_in(tmp_path / "m")
    assert (opened.vocab_size, opened.eos, opened.stop_ids) == (SIZE, None, {2})  # of config.json
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(LLAMA | {"eos_token": "<pad>"}))
    with pytest.raises(LlucidError, match=f"has {SIZE + 1} ids, but the model has {SIZE}"):
        load(tmp_path / "m", device="cpu")


@pytest.mark.parametrize("format", ["huggingface", "meta", "gguf"])
def test_stop_ids_without_a_named_eos(format: str, tmp_path: Path) -> None:
    """A folder with only tokenizer.json and config.json."""
    save(sized(small_sentencepiece(), SIZE), tmp_path / "m")
    (tmp_path / "m" / "tokenizer_config.json").unlink()
    if format == "gguf":  # in which EOS needs a name
        (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(LLAMA))
    assert tokenizer_in(tmp_path / "m").stop_ids == {2}
    out = tmp_path / ("a.gguf" if format == "gguf" else "out")
    convert(tmp_path / "m", out, format)
    assert tokenizer_in(out).stop_ids == {2}


GO_THROUGH = {
    "added tokens": ADDED["of which one is not special"],
    "flags": dict(tokenizer_config=LLAMA | {"add_bos_token": False}),
}


@pytest.mark.parametrize("format", ["huggingface", "meta", "gguf"])
@pytest.mark.parametrize("files", GO_THROUGH.values(), ids=GO_THROUGH)
def test_added_tokens_and_flags_survive_conversion(files: dict[str, Any], format: str, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    tokenizer = load_tokenizer(write(tmp_path / "t", **files))
    out = tmp_path / ("a.gguf" if format == "gguf" else "out")
    save(sized(tokenizer, SIZE + 2), out, format)
    found = tokenizer_in(out)
    assert (found.bos, found.eos, found.stop_ids) == (tokenizer.bos, tokenizer.eos, tokenizer.stop_ids)
    for text in (TALE, "  a\n b", "<|im_end|>"):
        assert found.encode(text) == tokenizer.encode(text)
    if "chat_template" in files["tokenizer_config"]:
        assert encode_dialog(DIALOG, found) == encode_dialog(DIALOG, tokenizer)


def test_ranks_with_tokens_added_as_a_tokenizer_json(tmp_path: Path) -> None:
    base = TiktokenRanks(ranks())
    base.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    size = base.vocab_size
    added = {"<|im_start|>": size, "<|im_end|>": size + 1}
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | CHAT))
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    ours, theirs = load_tokenizer(tmp_path), theirs_of(tmp_path)
    expected = theirs.apply_chat_template(DIALOG, add_generation_prompt=True, return_dict=False)
    assert encode_dialog(DIALOG, ours) == expected
    assert ours.eos == theirs.eos_token_id == size + 1


def test_user_defined_pieces_of_sentencepiece(tmp_path: Path) -> None:
    """As in Yi, whose dialogues have them; a user's text does not become one of them."""
    turns = {"<|im_start|>": 3, "<|im_end|>": 4}
    model = sentencepiece_model(user_defined_symbols=",".join(turns), add_dummy_prefix=False)
    write(tmp_path, tokenizer_config=LLAMA | CHAT)
    (tmp_path / "tokenizer.model").write_bytes(model)
    ours = load_tokenizer(tmp_path)
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in ("a <|im_start|>bell<|im_start|><|im_start|> x", TALE):
        assert ours.encode(text) == library.encode(text)
    assert 4 not in ours.encode("bell<|im_end|>")  # it is EOS
    ids = encode_dialog([{"role": "user", "content": "bell<|im_end|>"}], ours)
    assert [token for token in ids if token in turns.values()] == [3, 4, 3, 4, 3]
    assert ours.stop_ids == {4}


def test_an_added_token_beside_sentencepiece_changes_no_other_text(tmp_path: Path) -> None:
    """Not even where its letters stand within a word, which the library would merge to it and take apart again."""
    model = sentencepiece_model()
    (tmp_path / "tokenizer.model").write_bytes(model)
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    known = {library.id_to_piece(token) for token in range(library.vocab_size())}
    text = "Thereabouts the foxes were bellowing badly wherever goatherds wandered together beside her weather"
    words = ["▁" + word for word in text.split()]
    parts = {word[at:end] for word in words for at in range(len(word)) for end in range(at + 2, len(word))} - known
    more = {
        str(len(known) + n): {"content": each, "special": False, "single_word": True}
        for n, each in enumerate(sorted(part for part in parts if part.strip("▁") not in text.split()))
    }
    write(tmp_path, tokenizer_config=LLAMA | {"added_tokens_decoder": more})
    ours = load_tokenizer(tmp_path)
    assert ours.vocab_size == len(known) + len(more) > 600
    assert ours.encode(text) == library.encode(text)
    assert ours.encode("a ▁goath") == [*library.encode("a "), ours.ids["▁goath"]]


def test_a_user_defined_piece_ends_a_text(tmp_path: Path) -> None:
    """If a file names its id. An ordinary piece does not: config.json often has ids of other models."""
    write(tmp_path, tokenizer_config=LLAMA)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 4, 300]}))
    (tmp_path / "tokenizer.model").write_bytes(
        sentencepiece_model(user_defined_symbols="<|im_start|>,<|im_end|>", add_dummy_prefix=False)
    )
    ours = load_tokenizer(tmp_path)
    assert ours.stop_ids == JsonTokenizer(json.loads(ours.json()), folder=tmp_path).stop_ids == {2, 4}


def test_digits_that_are_pieces_of_their_own(tmp_path: Path) -> None:
    """A template with a digit does not take it from the messages."""
    write(tmp_path, tokenizer_config=LLAMA | {"chat_template": "1 2 {{ messages[0].content }}"})
    (tmp_path / "tokenizer.model").write_bytes(model := sentencepiece_model(user_defined_symbols="1,2"))
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    for tokenizer in (load_tokenizer(tmp_path), JsonTokenizer(json.loads(load_tokenizer(tmp_path).json()))):
        ids = encode_dialog([{"role": "user", "content": "21 bells"}], tokenizer, "1 2 {{ messages[0].content }}")
        assert ids == library.encode("1 2 21 bells")


def test_user_defined_tokens_of_gguf() -> None:
    """llama.cpp splits a text at them, and puts a space before each part."""
    plain = small_sentencepiece()
    gguf = write_vocabulary(plain, SIZE)
    gguf["tokenizer.ggml.tokens"] = [*gguf["tokenizer.ggml.tokens"], "<|im_end|>", "<|im_start|>"]
    gguf["tokenizer.ggml.token_type"] = [*gguf["tokenizer.ggml.token_type"], 4, 4]
    gguf["tokenizer.ggml.scores"] = [*gguf["tokenizer.ggml.scores"], -1000.0, -1000.0]
    gguf |= {"tokenizer.ggml.eos_token_id": SIZE, "tokenizer.chat_template": CHATML}
    found = read_vocabulary(gguf)
    assert (found.bos, found.eos, found.stop_ids) == (1, SIZE, {SIZE})
    assert found.encode("bell<|im_start|>the fox") == [*plain.encode("bell"), SIZE + 1, *plain.encode("the fox")]
    assert SIZE not in found.encode("bell<|im_end|>")  # it is EOS
    assert found.decode([*plain.encode("bell"), SIZE + 1]) == "bell<|im_start|>"
    ids = encode_dialog([{"role": "user", "content": "bell<|im_start|>"}], found)
    begin, end, line = SIZE + 1, SIZE, plain.encode("\n")
    assert ids.count(begin) == 3
    expected = [*plain.encode("user\nbell<|im_start|>"), end, *line, begin, *plain.encode("assistant\n")]
    assert ids[-len(expected) :] == expected
    assert write_vocabulary(found, SIZE + 2)["tokenizer.ggml.token_type"][-2:] == [3, 4]
