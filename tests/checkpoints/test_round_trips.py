"""Writing and reading gives the same model, in every format; what a format cannot hold is refused."""

import errno
import importlib
import json
import math
import subprocess
import sys
import weakref
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGUFReader
from safetensors.torch import load_file

from llucid.arrays import Mapped
from llucid.checkpoints import (
    FORMATS,
    Model,
    convert,
    describe,
    gguf,
    gguf_blocks,
    gguf_file,
    huggingface,
    llama2c,
    load,
    only_cpu,
    save,
)
from llucid.checkpoints.format import Progress
from llucid.checkpoints.generation_config import sampling_defaults
from llucid.checkpoints.huggingface import pairs_from_halves
from llucid.checkpoints.tensors import Stored, equal_numbers, mapped
from llucid.config import Config, RopeScaling
from llucid.dialogs.formats import encode_dialog
from llucid.errors import LlucidError
from llucid.fast import dense
from llucid.files import OccupiedError
from llucid.generation import Sampling, sampling_of
from llucid.presets import PRESETS
from llucid.tokenizers import load_tokenizer
from llucid.tokenizers.byte_pairs import train_bpe
from llucid.tokenizers.comparison import first_difference
from llucid.tokenizers.folder import folder_config
from llucid.tokenizers.llama2c import Llama2cTokenizer
from llucid.tokenizers.sentencepiece_model import SentencePiece
from llucid.tokenizers.tokenizer_json import JsonTokenizer
from llucid.weights import count, leaves, parameter_count, tree_map
from tests.checkpoints.models import model_of, same
from tests.checkpoints.test_llama2c import checkpoint
from tests.configs import CONFIGS
from tests.tokenizers.texts import sentencepiece_model, small_llama2c, small_sentencepiece

# Values that llama2.c's format cannot hold.
PLAIN = dict(norm_eps=1e-5, rope_theta=10_000.0, rope_scaling=None)
TARGETS = [("huggingface", None), ("meta", None), ("gguf", None), ("llama2c", 0), ("llama2c", 1), ("llama2c", 2)]


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request: pytest.FixtureRequest) -> Config:
    return request.param


def fitting(config: Config, format: str) -> Config:
    """The config without the values that this format cannot hold."""
    if format in ("huggingface", "gguf"):
        return config
    changes = dict(head_dim=config.dim // config.heads, attention_bias=False, mlp_bias=False)
    return replace(config, **changes | (PLAIN if format == "llama2c" else {}))


def comparable(config: Config, format: str) -> Config:
    """The config without the context for Meta's format, which has none."""
    return replace(config, context=1) if format == "meta" else config


@pytest.mark.parametrize(("format", "version"), TARGETS)
def test_save_and_load_are_exact(config: Config, format: str, version: int | None, tmp_path: Path) -> None:
    model = model_of(fitting(config, format))
    save(model, tmp_path / "one", format, version=version)
    once = load(tmp_path / "one", device="cpu")
    assert comparable(once.config, format) == comparable(model.config, format)
    assert version == 2 or same(once.weights, model.weights)
    assert once.tokenizer.encode("0123AB") == model.tokenizer.encode("0123AB")

    (tmp_path / "again").mkdir()
    save(once, tmp_path / "again" / "one", format, version=version)
    one = tmp_path / "one"
    files = sorted(one.iterdir()) if one.is_dir() else [one]
    for file in files:
        assert (tmp_path / "again" / file.relative_to(tmp_path)).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("format", ["huggingface", "meta"])
def test_dtypes_are_kept_or_converted(format: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = model_of(fitting(CONFIGS["one for two"], format), dtype=dtype)
    save(model, tmp_path / "own", format)
    assert same(load(tmp_path / "own", device="cpu").weights, model.weights)
    assert same(load(tmp_path / "own", dtype="float32").weights, tree_map(torch.Tensor.float, model.weights))
    for wrong in (torch.int8, torch.float8_e4m3fn):
        with pytest.raises(LlucidError, match=f"dtype={wrong}: expected floating-point numbers of at least 16 bits"):
            load(tmp_path / "own", dtype=wrong)
    save(model, tmp_path / "half", format, dtype="float16")
    assert same(load(tmp_path / "half", device="cpu").weights, tree_map(torch.Tensor.half, model.weights))


def test_loading_does_not_change_the_file(tmp_path: Path) -> None:
    """Although the weights are mapped and writable."""
    for format in ("huggingface", "meta", "llama2c", "gguf"):
        save(model_of(fitting(CONFIGS["one for two"], format)), tmp_path / format / "model", format)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    before = {file: file.read_bytes() for file in files}
    for format in ("huggingface", "meta", "llama2c", "gguf"):
        weights = load(tmp_path / format / "model", device="cpu").weights
        tree_map(lambda leaf: leaf.zero_(), weights)
    assert before == {file: file.read_bytes() for file in files}


@pytest.mark.parametrize("source", TARGETS[:5])
@pytest.mark.parametrize("target", TARGETS)
def test_convert_every_format_to_every_format(
    source: tuple[str, int | None], target: tuple[str, int | None], tmp_path: Path
) -> None:
    model = model_of(fitting(CONFIGS["one for all, tied"], "llama2c"))
    steps: list[tuple[int, int]] = []
    save(model, tmp_path / "from" / "a", source[0], version=source[1])
    differences = convert(
        tmp_path / "from" / "a",
        tmp_path / "to" / "b",
        target[0],
        version=target[1],
        progress=lambda done, total: steps.append((done, total)),
    )
    assert differences.keys() <= {"context"}
    found = load(tmp_path / "to" / "b", device="cpu")
    assert target[1] == 2 or same(found.weights, model.weights)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1][0] <= steps[-1][1] == steps[0][1]
    assert not [file for file in tmp_path.rglob("*") if "partial" in file.name]


def test_convert_returns_what_is_lost_and_refuses_to_overwrite(tmp_path: Path) -> None:
    save(model_of(CONFIGS["one for two"]), tmp_path / "hf")
    assert convert(tmp_path / "hf", tmp_path / "meta", "meta") == {"context": (64, 2048)}
    with pytest.raises(LlucidError, match="something is there already"):
        convert(tmp_path / "hf", tmp_path / "meta", "huggingface")
    with pytest.raises(LlucidError, match="format='onnx': expected one of huggingface, meta, llama2c, gguf"):
        convert(tmp_path / "hf", tmp_path / "out", "onnx")


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
@pytest.mark.parametrize("format", FORMATS)
def test_what_appears_while_a_model_is_converted_is_kept(
    format: str, there: bool, stopped: bool, tmp_path: Path
) -> None:
    """Another process may write to the same place, and files beside it."""
    config = replace(TINY, vocab_size=small_llama2c().vocab_size)
    save(model_of(config)._replace(tokenizer=small_llama2c()), tmp_path / "from")
    out = tmp_path / "to" / "out"
    if there:
        (out if format in ("huggingface", "meta") else out.parent).mkdir(parents=True)
    made = [out / "config.json"] if format in ("huggingface", "meta") else [out, out.with_name("tokenizer.json")]

    def appear(done: int, total: int) -> None:
        made[0].parent.mkdir(parents=True, exist_ok=True)
        for file in made:
            file.write_text("other")
        if stopped:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt if stopped else OccupiedError):
        convert(tmp_path / "from", out, format, progress=appear)
    assert sorted(path for path in out.parent.rglob("*") if path.is_file()) == made
    assert {file.read_text() for file in made} == {"other"}
    assert not list(tmp_path.rglob("*.partial"))


def test_an_empty_name_is_not_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LlucidError, match="out='': is empty"):
        save(model_of(CONFIGS["one for two"]), "")
    assert not any(tmp_path.iterdir())


def other_llama2c() -> Llama2cTokenizer:
    """`small_llama2c` with its last pieces preferred in the opposite order."""
    pieces, scores = small_llama2c().pieces, small_llama2c().scores
    return Llama2cTokenizer(pieces, [*scores[:300], *reversed(scores[300:])])


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
@pytest.mark.parametrize("format", ["huggingface", "meta", "llama2c", "gguf"])
@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (small_llama2c, other_llama2c, "the ids of"),
        (small_llama2c, lambda: None, "only the old model has a tokenizer"),
        (lambda: None, small_llama2c, "only the new model has a tokenizer"),
    ],
)
def test_a_conversion_that_changes_the_tokenizer_is_refused(
    before: Any, after: Any, message: str, format: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves nothing behind."""
    config = replace(TINY, vocab_size=small_llama2c().vocab_size)
    save(model_of(config)._replace(tokenizer=before()), tmp_path / "from")
    out = tmp_path / "out" if format in ("huggingface", "meta") else tmp_path / "out" / "model"
    if there:
        (tmp_path / "out").mkdir()
    module = importlib.import_module(f"llucid.checkpoints.{format}")
    write = module.write
    other = after()
    monkeypatch.setattr(
        module, "write", lambda out, model, *rest, **more: write(out, model._replace(tokenizer=other), *rest, **more)
    )
    with pytest.raises(LlucidError, match=f"out.*: not written, since the tokenizer would change: {message}"):
        convert(tmp_path / "from", out, format)
    assert not list((tmp_path / "out").rglob("*"))
    assert out.is_dir() == (there and out.parent == tmp_path)


def test_a_conversion_that_loses_the_chat_format_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = "{{ bos_token }}{% for message in messages %}{{ message.content }}</s>{% endfor %}"
    tokenizer = SentencePiece(sentencepiece_model(), {"chat_template": template})
    save(model_of(replace(TINY, vocab_size=400))._replace(tokenizer=tokenizer), tmp_path / "a")
    for format in ("huggingface", "meta", "gguf"):
        convert(tmp_path / "a", tmp_path / format / "b", format)
        assert capsys.readouterr().err == ""
        assert load(tmp_path / format / "b", device="cpu").tokenizer.config["chat_template"] == template
    convert(tmp_path / "a", tmp_path / "b.bin", "llama2c")
    message = f"note: {tmp_path / 'b.bin'}: chat differs from the original: the format of dialogues is lost\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("name", ["llama2", pytest.param("llama3", marks=pytest.mark.slow)])
def test_metas_chat_models_get_a_template(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other programs find no sign of their dialogues elsewhere. Not a story model with the same vocabulary."""
    tokenizer = load_tokenizer(data / f"{name}-tokenizer.model")
    model = model_of(replace(TINY, vocab_size=tokenizer.vocab_size), dtype=torch.bfloat16)
    save(model._replace(tokenizer=tokenizer), tmp_path / "meta", "meta")
    messages = [{"role": "system", "content": "Be  brief."}, {"role": "user", "content": " 2+2?\n"}]
    expected = encode_dialog(messages, tokenizer)
    for format in ("huggingface", "gguf", "meta"):
        out = tmp_path / format / "b"
        convert(tmp_path / "meta", out, format)
        says = f"note: {out}: gets the chat template of {name}; a base model should have none\n"
        assert capsys.readouterr().err == ("" if format == "meta" else says)
        found = load(out, device="cpu").tokenizer
        assert encode_dialog(messages, found) == expected
        assert ("chat_template" in found.config) == (format != "meta")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "huggingface" / "b")
    assert theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == expected
    if name == "llama2":
        convert(tmp_path / "meta", tmp_path / "a.bin", "llama2c")
        convert(tmp_path / "a.bin", tmp_path / "hf", "huggingface")
        assert "chat_template" not in folder_config(tmp_path / "hf")


@pytest.mark.parametrize("names", [["rag", "tool_use"], ["default", "rag"]], ids=str)
def test_named_templates_are_kept_or_missed(
    names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if none of them is the default."""
    templates = [{"name": name, "template": f"{name}: {{{{ messages[0].content }}}}"} for name in names]
    tokenizer = SentencePiece(sentencepiece_model(), {"chat_template": templates})
    save(model_of(replace(TINY, vocab_size=400))._replace(tokenizer=tokenizer), tmp_path / "a")
    for format in ("huggingface", "meta", "gguf"):
        convert(tmp_path / "a", tmp_path / format / "b", format)
        assert capsys.readouterr().err == ""
        found = load(tmp_path / format / "b", device="cpu").tokenizer.config["chat_template"]
        assert sorted(found, key=str) == sorted(templates, key=str)
    convert(tmp_path / "a", tmp_path / "b.bin", "llama2c")
    assert "chat differs from the original: the format of dialogues is lost\n" in capsys.readouterr().err


@pytest.mark.parametrize("before", ["huggingface", "meta"])
@pytest.mark.parametrize("after", ["huggingface", "meta"])
def test_a_saved_model_replaces_the_one_in_its_folder(
    before: str, after: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all of its shards, its tokenizer, its templates and its settings; other files stay."""
    out, tokenizer = tmp_path / "out", small_sentencepiece()
    model = model_of(replace(TINY, vocab_size=400))._replace(tokenizer=tokenizer)
    other = JsonTokenizer(json.loads(train_bpe(["other words"], 300).json()), config={"chat_template": "{{ 1 }}"})
    save(model_of(replace(TINY, vocab_size=300), seed=1)._replace(tokenizer=other, sampling={"top_k": 3}), out, before)
    for name in ("consolidated.01.pth", "model-00001-of-00002.safetensors", "added_tokens.json", "chat_template.jinja"):
        (out / name).write_text("{}")
    (out / "additional_chat_templates").mkdir()
    (out / "additional_chat_templates" / "rag.jinja").write_text("{{ 2 }}")
    others = {"notes.txt", "story.bin", "tokenizer.bin", "model-old-of-mine.safetensors"}
    for name in others:
        (out / name).touch()
    (out / "pytorch_model.bin").mkdir()
    kept = out / ("config.json" if before == "huggingface" else "params.json")
    kept.chmod(0o600)
    save(model, out, after)
    assert before != after or kept.stat().st_mode & 0o777 == 0o600
    save(model, tmp_path / "fresh", after)
    fresh = {path.name for path in (tmp_path / "fresh").iterdir()}
    assert {path.name for path in out.iterdir()} == fresh | others | {"additional_chat_templates", "pytorch_model.bin"}
    found, expected = load(out, device="cpu"), load(tmp_path / "fresh", device="cpu")
    assert same(found.weights, expected.weights)
    assert found.tokenizer is not None
    assert first_difference(found.tokenizer, tokenizer) is None
    assert (found.sampling, found.chat_format) == (expected.sampling, expected.chat_format)

    capsys.readouterr()
    own = out / "generation_config.json"
    said = own.read_text() if own.is_file() else None
    save(model._replace(tokenizer=None, sampling={"temperature": 0.5}), out, after)
    assert said == (own.read_text() if own.is_file() else None)
    assert (
        capsys.readouterr().err
        == f"note: {out}: keeps the tokenizer and generation_config.json that are there: the model has no tokenizer\n"
    )
    assert first_difference(load(out, device="cpu").text(), tokenizer) is None


def test_a_model_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    save(model_of(TINY), tmp_path / "out")
    with pytest.raises(OSError, match="No space left"):
        save(model_of(TINY, seed=1), tmp_path / "out", progress=fail)
    assert same(load(tmp_path / "out", device="cpu").weights, model_of(TINY).weights)


def test_sampling_settings_are_kept_or_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By `save` and by `convert`."""
    save(model_of(TINY)._replace(sampling={"temperature": 0.6, "top_k": 5}), tmp_path / "a")
    written = json.loads((tmp_path / "a" / "generation_config.json").read_text())
    assert written == {"do_sample": True, "temperature": 0.6, "top_k": 5}
    model = load(tmp_path / "a", device="cpu")
    assert model.sampling == {"temperature": 0.6, "top_k": 5}
    save(model, tmp_path / "b")
    assert load(tmp_path / "b", device="cpu", mapped=True).sampling == model.sampling
    assert capsys.readouterr().err == ""
    convert(tmp_path / "a", tmp_path / "a.gguf", "gguf")
    convert(tmp_path / "a.gguf", tmp_path / "c", "huggingface")
    for path in (tmp_path / "a.gguf", tmp_path / "c"):
        assert load(path, device="cpu").sampling == model.sampling
    assert capsys.readouterr().err == ""
    keys = GGUFReader(tmp_path / "a.gguf").fields
    assert keys["general.sampling.temp"].contents() == np.float32(0.6)
    assert keys["general.sampling.top_k"].contents() == 5
    for format in ("meta", "llama2c"):
        out = tmp_path / format / "model"
        convert(tmp_path / "a", out, format)
        message = "this format has no place for the model's sampling settings: temperature 0.6, top_k 5"
        assert capsys.readouterr().err == f"note: {out}: {message}\n"
        assert load(out, device="cpu").sampling == {}


def test_impossible_sampling_settings_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text('{"do_sample": true, "temperature": "hot", "top_k": 2.5, "min_p": null, "top_p": 7.25}')
    assert sampling_defaults(tmp_path) == {"top_p": 7.25}
    assert capsys.readouterr().err == (
        f'note: {file}: temperature is ignored: it should be a number of at least 0 and is "hot"\n'
        f"note: {file}: top_k is ignored: it should be a whole number and is 2.5\n"
    )
    file.write_text('{"do_sample": true, "temperature": -1, "top_k": -1, "top_p": 7.25}')
    assert sampling_defaults(tmp_path) == {"top_p": 7.25, "top_k": 0}
    assert "temperature is ignored: it should be a number of at least 0 and is -1" in capsys.readouterr().err
    file.rename(tmp_path / "config.json")  # where old versions of transformers wrote them
    assert sampling_defaults(tmp_path) == {"top_p": 7.25, "top_k": 0}
    capsys.readouterr()
    model = model_of(TINY)._replace(sampling={"top_p": 7.25, "temperature": 0.5})
    assert sampling_of(model, top_p=0.5) == Sampling(temperature=0.5, top_p=0.5)
    assert capsys.readouterr().err == ""
    assert sampling_of(model) == sampling_of(model) == Sampling(temperature=0.5)
    message = "top_p=7.25: must be more than 0 and at most 1; 1 is for all tokens; ignored"
    assert capsys.readouterr().err == f"note: the model's own settings: {message}\n"


def test_the_dtype_may_be_one_of_pytorch(tmp_path: Path) -> None:
    save(model_of(TINY), tmp_path / "a", dtype=torch.bfloat16)
    assert load(tmp_path / "a", device="cpu").weights.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"temperature": 1, "top_k": 0}, {"temperature": 0.5, "top_k": 3}], ids=str
)
def test_transformers_samples_as_the_model_says(sampling: dict[str, Any], tmp_path: Path) -> None:
    """Greedy, or from all tokens: without a top_k, transformers would take 50 of them. And it takes floats only."""
    save(
        model_of(replace(TINY, vocab_size=400))._replace(tokenizer=small_sentencepiece(), sampling=sampling),
        tmp_path / "a",
    )
    convert(tmp_path / "a", tmp_path / "a.gguf", "gguf")
    convert(tmp_path / "a.gguf", tmp_path / "b", "huggingface")
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert load(folder, device="cpu").sampling == sampling
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert theirs.generation_config.do_sample == (sampling["temperature"] > 0)
        found = theirs.generate(
            torch.tensor([[1, 5]]), max_new_tokens=2, output_scores=True, return_dict_in_generate=True
        )
        left = int(found.scores[0].isfinite().sum())
        assert left == (3 if sampling.get("top_k") else 400)


@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.5}], ids=str)
@pytest.mark.parametrize("how", ["save", "convert", "gguf", "tokenizer"])
def test_transformers_stops_at_the_same_ids(how: str, sampling: dict[str, Any], tmp_path: Path) -> None:
    """It takes them from generation_config.json alone, if there is one."""
    made = model_of(replace(TINY, vocab_size=400))._replace(tokenizer=small_sentencepiece())
    save(made, tmp_path / "a")
    file = tmp_path / "a" / "generation_config.json"
    file.write_text(json.dumps({"do_sample": True, "bos_token_id": 1, "eos_token_id": 2, "max_length": 99} | sampling))
    match how:
        case "save":
            save(load(tmp_path / "a", device="cpu"), tmp_path / "b")
        case "gguf":
            convert(tmp_path / "a", tmp_path / "a.gguf", "gguf")
            convert(tmp_path / "a.gguf", tmp_path / "b", "huggingface")
        case _:
            tokenizer = tmp_path / "a" / "tokenizer.json" if how == "tokenizer" else None
            convert(tmp_path / "a", tmp_path / "b", "huggingface", tokenizer=tokenizer)
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b").generation_config
    assert (found.bos_token_id, found.eos_token_id) == (made.text().bos, made.text().eos)
    assert found.top_p == sampling.get("top_p")


@pytest.mark.parametrize("ends", [2, [2, 5]])
def test_generation_config_survives_between_hugging_face_folders(ends: int | list[int], tmp_path: Path) -> None:
    save(model_of(replace(TINY, vocab_size=400))._replace(tokenizer=small_sentencepiece()), tmp_path / "a")
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    file = tmp_path / "a" / "generation_config.json"
    file.write_text(json.dumps(sampling | {"bos_token_id": 1, "eos_token_id": ends}))
    convert(tmp_path / "a", tmp_path / "b", "huggingface", dtype="float16")
    found = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert found == sampling | {"bos_token_id": 1, "eos_token_id": ends}
    assert sampling_defaults(tmp_path / "b") == {"temperature": 0.6, "top_p": 0.9}
    small_sentencepiece().write(tmp_path / "other.model")
    convert(tmp_path / "a", tmp_path / "c", "huggingface", tokenizer=tmp_path / "other.model")
    found = json.loads((tmp_path / "c" / "generation_config.json").read_text())
    assert found == sampling | {"bos_token_id": 1, "eos_token_id": 2}  # the tokenizer's
    file.write_text("{")
    convert(tmp_path / "a", tmp_path / "d", "huggingface")
    assert not (tmp_path / "d" / "generation_config.json").exists()


def test_token_ids_survive_between_hugging_face_folders_without_a_tokenizer(tmp_path: Path) -> None:
    save(model_of(TINY)._replace(tokenizer=None), tmp_path / "a")
    file, ids = tmp_path / "a" / "config.json", {"bos_token_id": 0, "eos_token_id": [1, 5], "pad_token_id": 3}
    values = json.loads(file.read_text()) | ids
    file.write_text(json.dumps(values))
    convert(tmp_path / "a", tmp_path / "b", "huggingface")
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == values


TINY = Config(dim=32, layers=1, heads=4, kv_heads=4, head_dim=8, ffn_dim=56, vocab_size=50, context=64)


@pytest.mark.parametrize(
    ("format", "change", "message"),
    [
        ("llama2c", dict(rope_theta=5e5), "rope_theta=500000"),
        ("llama2c", dict(rope_scaling=RopeScaling()), "rope_scaling="),
        ("llama2c", dict(head_dim=12), "head_dim=12"),
        ("llama2c", dict(norm_eps=1e-6), "norm_eps=1e-06"),
        ("llama2c", dict(layers=1025, dim=4, head_dim=2, heads=2, kv_heads=1, ffn_dim=1), "layers=1025"),
        ("llama2c", dict(attention_bias=True), "attention_bias=True"),
        ("llama2c", dict(mlp_bias=True), "mlp_bias=True"),
        ("meta", dict(attention_bias=True), "attention_bias=True"),
        ("meta", dict(mlp_bias=True), "mlp_bias=True"),
        ("meta", dict(head_dim=12), "head_dim: 12"),
        ("meta", dict(rope_scaling=RopeScaling(original_context=4096)), "original_context=4096"),
    ],
)
def test_values_that_a_format_cannot_hold_are_refused(
    format: str, change: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(LlucidError, match=message):
        save(model_of(replace(TINY, **change)), tmp_path / "out", format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("llama2c", dict(version=3), "version=3"),
        ("llama2c", dict(dtype="float16"), "dtype=float16"),
        ("huggingface", dict(version=1), "only the format llama2c"),
        ("meta", dict(dtype="int8"), "dtype=int8"),
    ],
)
def test_impossible_options_are_refused(format: str, options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(LlucidError, match=message):
        save(model_of(TINY), tmp_path / "out", format, **options)
    assert not list(tmp_path.iterdir())


def test_the_tokenizer_of_another_model_is_not_overwritten(tmp_path: Path) -> None:
    save(model_of(TINY), tmp_path / "a.bin", "llama2c")
    save(model_of(TINY, seed=1), tmp_path / "b.bin", "llama2c")
    kept = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(LlucidError, match="belongs to the tokenizer of another model, or to this one in another form"):
        save(model_of(replace(TINY, vocab_size=49)), tmp_path / "c.bin", "llama2c")
    assert kept == {file: file.read_bytes() for file in tmp_path.iterdir()}


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        if done > total / 2:
            raise OSError(28, "No space left on device")

    for format, out in (("huggingface", "hf"), ("meta", "meta"), ("llama2c", "model.bin"), ("gguf", "a.gguf")):
        with pytest.raises(OSError, match="No space"):
            save(model_of(TINY), tmp_path / format / out, format, progress=fail)
        left = [file.name for file in (tmp_path / format).iterdir()]
        assert set(left) <= {"tokenizer.json", "tokenizer_config.json", "tokenizer.bin"}


@pytest.mark.parametrize(("format", "version"), TARGETS)
def test_mapped_and_quantised_weights_can_be_saved(format: str, version: int | None, tmp_path: Path) -> None:
    model = model_of(replace(TINY, dim=64, head_dim=16, ffn_dim=96))
    save(model, tmp_path / "hf")
    save(model, tmp_path / "a.gguf", "gguf", dtype="Q8_0")
    for number, (path, how) in enumerate([("hf", None), ("a.gguf", "file")]):
        mapped = load(tmp_path / path, quantize=how, mapped=True, device="cpu")
        assert count(mapped.weights) == parameter_count(model.config)
        out = tmp_path / f"out{number}" / "model"
        save(mapped, out, format, version=version)
        found, expected = load(out, device="cpu").weights, tree_map(dense, mapped.weights)
        if version == 2:
            assert [leaf.shape for leaf in leaves(found)] == [leaf.shape for leaf in leaves(expected)]
        else:
            assert same(found, expected)


def test_large_matrices_are_compared_to_the_last_row() -> None:
    numbers = np.arange(600 * 3, dtype=np.float32).reshape(600, 3)

    def entry(array: np.ndarray) -> Stored:
        return mapped(array.shape, "float32", lambda: array.view(np.int32))

    assert equal_numbers(entry(numbers), entry(numbers.copy()))
    for row in (0, 255, 256, 599):
        other = numbers.copy()
        other[row, 2] += 1
        assert not equal_numbers(entry(numbers), entry(other))


@pytest.mark.parametrize(("format", "version"), TARGETS)
def test_progress_is_reported_in_bytes(format: str, version: int | None, tmp_path: Path) -> None:
    config = fitting(CONFIGS["one for two"], format)
    reports: list[tuple[int, int]] = []
    save(model_of(config), tmp_path / "out", format, version=version, progress=lambda *report: reports.append(report))
    done = [so_far for so_far, _ in reports]
    assert len(reports) == 21  # matrices and norms
    assert done == sorted(set(done))
    assert {total for _, total in reports} == {done[-1]}
    if version in (None, 1):
        assert done[-1] - done[0] == 4 * (parameter_count(config) - config.dim * (1 if version else config.vocab_size))


def test_describe_reads_headers(tmp_path: Path) -> None:
    for format, version in TARGETS:
        config = fitting(CONFIGS["one for all, tied"], format)
        out = tmp_path / f"{format}{version}" / "model"
        save(model_of(config, dtype=torch.bfloat16), out, format, version=version)
        facts = describe(out)
        assert facts["format"] == format
        assert facts["parameters"] == f"{parameter_count(config):,}"
        dtypes = {"llama2c 2": "float32, int8 in groups of 8", "gguf None": "bfloat16, float32"}
        own = "float32" if format == "llama2c" else "bfloat16"
        assert facts["dtype"] == dtypes.get(f"{format} {version}", own)
        assert facts["tied_embeddings"] == "True"
        assert facts["tokenizer"] == "characters, 50 ids"
        for item in fields(config):
            assert item.name == "context" or facts[item.name] == str(getattr(config, item.name)).replace("None", "none")
    for name, config in (("nano", PRESETS["nano"].config), (None, CONFIGS["one for two"])):
        save(model_of(config), tmp_path / str(name))
        facts = describe(tmp_path / str(name))
        assert facts["family"] == (f"Llama, size {name}" if name else "Llama")
    for file in (tmp_path / "llama2c0").glob("tokenizer*"):
        file.unlink()
    assert "give the path of one, as in tokenizer=PATH" in describe(tmp_path / "llama2c0" / "model")["tokenizer"]


@pytest.mark.parametrize(("format", "version"), [*TARGETS, ("pytorch_model.bin", None), ("pt", None)])
def test_describe_does_not_import_pytorch(format: str, version: int | None, tmp_path: Path) -> None:
    """PyTorch's import takes longer than the rest."""
    out, model = tmp_path / "model", model_of(TINY)
    if format == "pt":
        torch.save(checkpoint(model_of(replace(TINY, tied_embeddings=True))), out)
    else:
        save(model, out, "huggingface" if format == "pytorch_model.bin" else format, version=version)
    if format == "pytorch_model.bin":
        torch.save(load_file(out / "model.safetensors"), out / format)
        (out / "model.safetensors").unlink()
    code = "import sys; from llucid.checkpoints import describe; describe(sys.argv[1]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, out], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("group", [1, 4, 64])
def test_quantising_is_that_of_llama2c_and_idempotent(group: int) -> None:
    """As in llama2.c's export.py: scale = max|w|/127, then round half to even."""
    matrix = torch.randn(512, 192, generator=torch.Generator().manual_seed(0))
    matrix[0] = 0
    small, scale = llama2c.quantize_groups(matrix, group)
    groups = matrix.view(-1, group)
    assert torch.equal(scale, groups.abs().max(1).values / 127)
    nonzero = scale > 0
    assert torch.equal(small[nonzero], torch.round(groups / scale[:, None]).to(torch.int8)[nonzero])
    assert not small[~nonzero].any()
    opened = small.float() * scale[:, None]
    assert (opened - groups).abs().max() <= scale.max() * (0.5 + 1e-4)
    again = llama2c.quantize_groups(opened.view(matrix.shape), group)
    assert torch.equal(again[0].float() * again[1][:, None], opened)


def test_the_group_size_divides_the_rows_of_every_matrix(tmp_path: Path) -> None:
    """runq.c needs complete groups in rows of dim and of ffn_dim numbers."""
    for dim, ffn, group in ((64, 192, 64), (64, 172, 4), (32, 56, 8)):
        config = replace(TINY, dim=dim, head_dim=dim // 4, ffn_dim=ffn)
        save(model_of(config), tmp_path / f"{ffn}.bin", "llama2c", version=2)
        assert llama2c.read_bin_header(tmp_path / f"{ffn}.bin").group == group == math.gcd(64, dim, ffn)


@pytest.mark.parametrize(("format", "version"), TARGETS)
def test_dequantised_matrices_are_freed_one_by_one(
    format: str, version: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converting, or loading in another dtype than float32, holds at most two of them in memory."""
    config = replace(TINY, layers=4, ffn_dim=64, vocab_size=50)
    save(model_of(config), tmp_path / "a.gguf", "gguf", dtype="Q8_0")
    arrays: list[weakref.ref[Mapped]] = []
    counts: list[int] = []

    def watched(*arguments: Any) -> Mapped:
        array = gguf_blocks.dequantize_blocks(*arguments)
        arrays.append(weakref.ref(array.numbers))
        counts.append(sum(one() is not None for one in arrays))
        return array

    monkeypatch.setattr(gguf_file, "dequantize_blocks", watched)
    convert(tmp_path / "a.gguf", tmp_path / "out" / "b", format, version=version)
    assert len(counts) == 4 * 7 + 2
    assert max(counts) <= 2
    counts.clear()
    load(tmp_path / "a.gguf", device="cpu", dtype="bfloat16")
    assert len(counts) == 4 * 7 + 2
    assert max(counts) <= 2
    load(tmp_path / "a.gguf", device="cpu")
    assert max(counts) == 4 * 7 + 2  # otherwise this test could not fail


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"quantize": "int8"}], ids=str)
def test_permuted_matrices_are_freed_one_by_one(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Query and key of a Hugging Face folder, loaded in another dtype or quantised."""
    save(model_of(replace(TINY, layers=4)), tmp_path / "hf")
    arrays: list[weakref.ref[Any]] = []
    counts: list[int] = []

    def watched(*arguments: Any) -> Any:
        array = pairs_from_halves(*arguments)
        arrays.append(weakref.ref(array))
        counts.append(sum(one() is not None for one in arrays))
        return array

    monkeypatch.setattr(huggingface, "pairs_from_halves", watched)
    load(tmp_path / "hf", device="cpu", **options)
    assert len(counts) == 4 * 2
    assert max(counts) <= 2
    load(tmp_path / "hf", device="cpu")
    assert max(counts) == 4 * 2  # otherwise this test could not fail


@pytest.mark.parametrize("given", ["Q8_0", "q8_0", "BF16", "bfloat16", "f16", "FP16", "F32", "Float32"])
def test_other_spellings_of_dtypes(given: str, tmp_path: Path) -> None:
    full = {"b": "bfloat16", "q": "Q8_0", "f": "float16"}[given[0].lower()]
    full = "float32" if "32" in given else full
    save(model_of(replace(TINY, ffn_dim=64)), tmp_path / "a.gguf", "gguf", dtype=given)
    assert gguf.read_header(tmp_path / "a.gguf")["token_embd.weight"][1] == full
    if full != "Q8_0":
        save(model_of(TINY), tmp_path / "hf", dtype=given)
        assert describe(tmp_path / "hf")["dtype"] == full


def test_only_one_tensor_is_read_at_a_time(tmp_path: Path) -> None:
    """Progress is reported once per tensor."""
    model: Model = model_of(replace(TINY, layers=6))
    for format in ("huggingface", "meta", "llama2c", "gguf"):
        steps: list[int] = []
        watch: Progress = lambda done, total, steps=steps: steps.append(done)  # noqa: E731
        save(model, tmp_path / format / "out", format, progress=watch)
        assert len(steps) == 6 * 9 + 3


def test_gpus_are_detected_by_their_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch is only imported if a GPU cannot be ruled out."""
    existing: set[str] = set()
    monkeypatch.setattr("os.path.exists", lambda path: path in existing)
    for system, driver, expected in (
        ("linux", "", True),
        ("linux", "/proc/driver/nvidia", False),  # NVIDIA's
        ("linux", "/dev/nvmap", False),  # NVIDIA's Jetson
        ("linux", "/dev/kfd", False),  # AMD's
        ("linux", "/dev/dxg", False),  # WSL
        ("darwin", "", False),
    ):
        existing.clear()
        existing.add(driver)
        monkeypatch.setattr("sys.platform", system)
        assert only_cpu() == expected, (system, driver)
