"""Common mistakes with files get an error that names the cause; models without a tokenizer open."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import filter_repo_objects

from llucid import generate
from llucid.checkpoints import convert, describe, find, load, save
from llucid.checkpoints.hub import STORYTELLER, choose_file
from llucid.cli import read_command
from llucid.errors import LlucidError
from llucid.files import LARGEST_JSON
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.folder import folder_config
from llucid.weights import leaves, parameter_count
from tests.checkpoints.models import model_of, same
from tests.configs import CONFIGS
from tests.tokenizers.texts import small_sentencepiece

CONFIG = replace(CONFIGS["one key head a query head"])
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4\n"
FORMATS = {"huggingface": "model", "meta": "model", "llama2c": "model.bin", "gguf": "model.gguf"}


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "consolidated.00.pth", "model.bin", "model.gguf"),
        *("config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    ],
)
def test_stand_ins_for_a_file(name: str, tmp_path: Path) -> None:
    path = tmp_path
    if name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        save(model_of(CONFIG), path)
        if name == "tokenizer.model":
            (path / "tokenizer.json").unlink()
    elif name == "consolidated.00.pth":
        save(model_of(CONFIG), path, "meta")
    else:
        path = tmp_path / name
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(LlucidError, match=rf"{name}: only a Git LFS pointer .* fetch the file with: git lfs pull"):
        load(path, device="cpu")
    for page in ("<!DOCTYPE html><html>", '<?xml version="1.0"?><Error><Code>AccessDenied</Code>'):
        (tmp_path / name).write_text(f"\n{page}")
        with pytest.raises(LlucidError, match=rf"{name}: a web page, not the file; download the file again"):
            load(path, device="cpu")


@pytest.mark.parametrize("magic", [b"lmgg", b"fmgg", b"tjgg\x03\0\0\0"])
def test_files_from_before_gguf(magic: bytes, tmp_path: Path) -> None:
    (tmp_path / "ggml-model-q4_0.bin").write_bytes(magic + bytes(64))
    with pytest.raises(LlucidError, match=r"a file of llama\.cpp from before GGUF .*; convert the original to GGUF"):
        load(tmp_path / "ggml-model-q4_0.bin")


def test_a_part_of_a_download_is_named(tmp_path: Path) -> None:
    save(model_of(CONFIG), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "blob")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")  # as in a cache whose blobs were deleted
    with pytest.raises(LlucidError, match=r"model\.safetensors: a link to a file that does not exist; fetch"):
        load(tmp_path)
    (tmp_path / "blob").rename(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(LlucidError, match=r"no weights; .*; found only model-00001-of-00002\.safetensors$"):
        load(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").rename(tmp_path / "flax_model.msgpack")
    with pytest.raises(LlucidError, match=r"no weights; .*; found only flax_model\.msgpack$"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"Entry not found", b'{"error": "gated"}' * 9, b"GGUF" + bytes(99)])
def test_something_else_than_safetensors_is_told(content: bytes, tmp_path: Path) -> None:
    save(model_of(CONFIG), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(LlucidError, match=r"model\.safetensors: not a complete .* \(it is no safetensors file\)"):
        load(tmp_path, device="cpu")


def test_a_chat_template_that_is_another_file_is_told(tmp_path: Path) -> None:
    save(model_of(CONFIG), tmp_path)
    for content, reason in (
        ("<!DOCTYPE html><style>p {}</style>{{ messages }}", "a web page, not the file"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "only a Git LFS pointer to the file"),
    ):
        (tmp_path / "chat_template.jinja").write_text(content)
        with pytest.raises(LlucidError, match=rf"chat_template\.jinja: {reason}"):
            load(tmp_path, device="cpu")


def test_a_safetensors_header_is_bounded(tmp_path: Path) -> None:
    """As Python objects it takes 30 times its size, and safetensors allows 100 MB."""
    save(model_of(CONFIG), tmp_path)
    file = tmp_path / "model.safetensors"
    size = int.from_bytes(file.read_bytes()[:8], "little")
    header = file.read_bytes()[8 : 8 + size] + b" " * LARGEST_JSON
    file.write_bytes(len(header).to_bytes(8, "little") + header + file.read_bytes()[8 + size :])
    with pytest.raises(
        LlucidError, match=r"model\.safetensors: not a complete .* \(its header has 16,77\d,\d+ bytes\)"
    ):
        load(tmp_path, device="cpu")


def test_a_folder_with_models_in_it(tmp_path: Path) -> None:
    """As a download of GGUF files is, or Hugging Face's own cache."""
    for name in ("a.gguf", "b.gguf"):
        save(model_of(CONFIG), tmp_path / "files" / name, "gguf")
    save(model_of(CONFIG), tmp_path / "cache" / "snapshots" / "0123")
    for folder, inside in (("files", "files/a.gguf, .*files/b.gguf"), ("cache", "cache/snapshots/0123")):
        with pytest.raises(LlucidError, match=rf"{folder}: not a model itself; give one that is in it: .*{inside}$"):
            load(tmp_path / folder)


def test_a_folder_of_gguf_files_with_a_config_json(tmp_path: Path) -> None:
    """As in many repositories of GGUF files; of a split model, only the first part opens it."""
    model = model_of(CONFIG)
    save(model, tmp_path / "a-Q4_K_M.gguf", "gguf")
    for number in (1, 2):
        shutil.copy(tmp_path / "a-Q4_K_M.gguf", tmp_path / f"b-0000{number}-of-00002.gguf")
    (tmp_path / "config.json").write_text('{"model_type":"llama"}')
    inside = f"{tmp_path / 'a-Q4_K_M.gguf'}, {tmp_path / 'b-00001-of-00002.gguf'}"
    for open_ in (load, describe):
        with pytest.raises(LlucidError) as caught:
            open_(tmp_path)
        assert str(caught.value) == f"{tmp_path}: not a model itself; give one that is in it: {inside}"
    save(model, tmp_path, "huggingface")
    assert same(load(tmp_path, device="cpu").weights, model.weights)


def test_weights_without_a_config_json(tmp_path: Path) -> None:
    save(model_of(CONFIG), tmp_path)
    (tmp_path / "config.json").unlink()
    for path in (tmp_path / "model.safetensors", tmp_path):
        with pytest.raises(LlucidError, match=f"^{tmp_path}: config.json is missing; fetch all files of the model"):
            load(path)


def test_a_tokenizer_without_ids_is_refused(tmp_path: Path) -> None:
    save(model_of(CONFIG), tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}, "merges": []}}')
    with pytest.raises(LlucidError, match=f"{tmp_path}: this tokenizer has no ids"):
        load(tmp_path, device="cpu")
    assert "has no ids" in describe(tmp_path)["tokenizer"]


def test_lora_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        with pytest.raises(LlucidError, match=f"{tmp_path}: a LoRA adapter, not a model; merge it"):
            load(path)
    with pytest.raises(LlucidError, match=f"{tmp_path}: holds a LoRA adapter, which would be applied to the model; ch"):
        save(model_of(CONFIG), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    (tmp_path / "adapter_config.json").unlink()
    save(model_of(CONFIG), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    load(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter_model.safetensors")
    with pytest.raises(LlucidError, match="a LoRA adapter, not a model; merge it"):
        load(tmp_path)


def test_model_quantised_by_mlx(tmp_path: Path) -> None:
    save(model_of(CONFIG), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization": {"group_size": 64, "bits": 4}}))
    with pytest.raises(LlucidError, match="was quantised by MLX"):
        load(tmp_path)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("to", FORMATS)
def test_model_without_a_tokenizer(format: str, to: str, tmp_path: Path) -> None:
    """It can be opened, described and converted; only functions that need text raise an error."""
    model = model_of(CONFIG)._replace(tokenizer=None)
    save(model, tmp_path / "a" / FORMATS[format], format)
    path = tmp_path / "a" / FORMATS[format]
    convert(path, tmp_path / "b" / FORMATS[to], to)
    for place in (path, tmp_path / "b" / FORMATS[to]):
        found = load(place, device="cpu")
        assert found.tokenizer is None
        assert same(found.weights, model.weights)
        assert "no tokenizer" in describe(place)["tokenizer"]
        with pytest.raises(LlucidError, match="no tokenizer; give the path of one, as in tokenizer=PATH"):
            list(generate(found, "a"))


@pytest.mark.parametrize("first", [True, False])
def test_llama2c_models_with_different_tokenizers_cannot_share_a_folder(first: bool, tmp_path: Path) -> None:
    """The folder has one tokenizer file, so one of the models would get the tokenizer of the other."""
    config = replace(CONFIG, vocab_size=400)
    tokenizers: Any = (small_sentencepiece(), Characters("abc"))
    one, two = (model_of(config)._replace(tokenizer=it) for it in (tokenizers if first else tokenizers[::-1]))
    save(one, tmp_path / "one.bin", "llama2c")
    with pytest.raises(LlucidError, match="belongs to the tokenizer of another model"):
        save(two, tmp_path / "two.bin", "llama2c")
    save(one, tmp_path / "two.bin", "llama2c")


def test_files_do_not_depend_on_the_global_state_of_pytorch(tmp_path: Path) -> None:
    """Nothing differs in inference mode, under autocast, and with another default dtype or device."""
    config = replace(CONFIG, ffn_dim=64)
    save(model_of(config), tmp_path)
    expected = load(tmp_path, device="cpu", quantize="int8")

    def written(name: str) -> list[bytes]:
        save(model_of(config)._replace(tokenizer=None), tmp_path / name / "pth", "meta")
        save(model_of(config)._replace(tokenizer=None), tmp_path / name / "x.bin", "llama2c")
        return [
            file.read_bytes() for file in (tmp_path / name / "pth" / "consolidated.00.pth", tmp_path / name / "x.bin")
        ]

    files = written("plain")
    for state in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta")):
        with state:
            assert written(str(state)) == files
            found = load(tmp_path, device="cpu", quantize="int8")
            plain = load(tmp_path, device="cpu").weights
            assert found.weights.blocks[0].attention.query.dense().dtype == torch.float32
        pairs = zip(*(leaves(model.weights.blocks[0].attention) for model in (expected, found)), strict=True)
        assert all(torch.equal(one.numbers, two.numbers) and two.form == "Q8_0" for one, two in pairs)
        assert same(plain, model_of(config).weights)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert load(tmp_path, device="cpu").weights.dtype == torch.float32
        assert model_of(config).weights.dtype == torch.float32
        assert written("bfloat16") == files
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fakes a hub with one repository of GGUF files; returns the patterns that are requested."""
    files = ["README.md", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"]
    requested: list[str] = []

    def download(repository: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        requested.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repository: files)
    return requested


def test_repository_of_gguf_files(hub: list[str], tmp_path: Path) -> None:
    assert find("org/name:q4_k_m") == tmp_path / "m-Q4_K_M.gguf"
    assert hub == ["m-Q4_K_M.gguf"]
    assert find("org/name:Q8_0") == tmp_path / "m-Q8_0-00001-of-00002.gguf"
    assert hub[1:] == ["m-Q8_0-*-of-00002.gguf"]
    for address in (
        "https://huggingface.co/org/name",
        "hf://org/name",
        "http://hf.co/org/name/",
        "hf.co/org/name/tree/main",
    ):
        with pytest.raises(LlucidError, match=r"^org/name: name one of its files"):
            find(address)
    page = "https://huggingface.co/org/name"
    for name in (f"{page}/blob/main/x.gguf", f"{page}/resolve/main/x.gguf", "org/name@main", "org/name/m-Q4_K_M.gguf"):
        with pytest.raises(LlucidError) as caught:
            find(name)
        expected = "a Hugging Face repository is called org/name, and one of its GGUF files org/name:Q4_K_M"
        assert str(caught.value) == f"{name}: there is no such file or folder; {expected}"
    assert find("org/name:m-Q4_K_M.gguf") == find("org/name:Q4_K_M")
    for name in ("org/name", "org/name:Q4", "org/name:Q5", "org/name:4_K_M", "org/name:Q4_K"):
        with pytest.raises(LlucidError, match=r"name one of its files, as in org/name:Q4_K_M; there are m-Q4_K_M"):
            find(name)


@pytest.mark.parametrize(
    ("files", "variant", "chosen"),
    [
        (["M-BF16.gguf", "M-Q8_0.gguf"], "F16", None),
        (["M-IQ4_XS.gguf", "M-Q8_0.gguf"], "Q4_XS", None),
        (["M-F16.gguf", "M-BF16.gguf"], "f16", 0),
        (["tiny_Q4_K_M.gguf", "tiny_Q8_0.gguf"], "Q4_K_M", 0),
        (["M-Q4_K_M-imat.gguf", "M-Q8_0-imat.gguf"], "Q8_0", 1),
        (["M-Q4_K_M-imat.gguf", "M-Q4_K_M.gguf"], "Q4_K_M", 1),
        (["Q4_K_M/model.gguf", "Q8_0/model.gguf"], "Q4_K_M", 0),
        (["M-Q4_K_M-imatrix.gguf", "M-imatrix.gguf", "imatrix_M.gguf"], None, 0),
        (["a/model.gguf", "b/model.gguf"], "a/model.gguf", 0),
    ],
    ids=str,
)
def test_the_file_that_is_named_is_chosen(
    files: list[str], variant: str | None, chosen: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repository: files)
    if chosen is not None:
        assert choose_file("org/name", variant) == files[chosen]
        return
    with pytest.raises(LlucidError, match=f"name one of its files, as in org/name:{files[0]}; there are {files[0]}, "):
        choose_file("org/name", variant)


def a_repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes a hub with one repository, which has the files of this folder."""
    files = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]

    def download(repository: str, **patterns: Any) -> Path:
        (copy := folder.parent / "copy").mkdir(exist_ok=True)
        for name in filter_repo_objects(files, **patterns):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, copy / name)
        return copy

    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repository: files)


@pytest.mark.parametrize(("format", "name"), [("meta", ""), ("llama2c", "a15M.bin"), ("gguf", "Q8_0/a-Q8_0.gguf")])
def test_a_repository_of_any_format(format: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = model_of(CONFIG), tmp_path / "there"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    save(model, folder / name, format)
    for more in ("original/params.json", "a.imatrix.gguf", "mmproj-a-f16.gguf") if format == "gguf" else ():
        (folder / more).parent.mkdir(exist_ok=True)
        (folder / more).write_bytes(b"x")
    if format == "llama2c":
        shutil.copy(folder / name, folder / "a42M.bin")
    a_repository(folder, monkeypatch)
    if format == "llama2c":
        with pytest.raises(LlucidError, match=r"^org/x: name one of its files, as in org/x:a(15|42)M\.bin; there are"):
            find("org/x")
        assert find("org/x:a15m") == tmp_path / "copy" / name
    else:
        assert find("org/x") == tmp_path / "copy" / name
    if format == "gguf":
        assert find("org/x:q8_0") == find(f"org/x:{name}") == tmp_path / "copy" / name
    opened = load(tmp_path / "copy" / name, device="cpu")
    assert same(opened.weights, model.weights)
    assert opened.text().encode("10") == model.text().encode("10")
    assert not (tmp_path / "copy" / "original").exists()


def test_a_repository_is_converted_to_a_folder_that_hides_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(CONFIG)
    save(model, tmp_path / "there")
    a_repository(tmp_path / "there", monkeypatch)
    read_command(["convert", "org/x", "org/new.gguf", "--to", "gguf"]).run()
    assert same(load("org/new.gguf", device="cpu").weights, model.weights)
    with pytest.raises(LlucidError, match="no such file or folder; a repository of this name is called hf://org/x; tr"):
        load("org/x")
    assert find("hf://org/x") == tmp_path / "copy"
    (tmp_path / "runs").mkdir()
    with pytest.raises(LlucidError, match="runs/x: there is no such file or folder; train a model"):
        load("runs/x")


def test_a_repository_that_was_fetched_before_opens_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    for name, format in (("x", "huggingface"), ("y", "gguf")):
        cached = tmp_path / f"models--org--{name}"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("0123")
        (cached / "snapshots").mkdir()
        at = cached / "snapshots" / "0123"
        save(model_of(CONFIG), at / "a-F32.gguf" if format == "gguf" else at, format)
        assert find(f"org/{name}") == (at / "a-F32.gguf" if format == "gguf" else at)
    assert find("org/y:f32") == tmp_path / "models--org--y" / "snapshots" / "0123" / "a-F32.gguf"
    with pytest.raises(LlucidError, match="no repository of that name could be fetched"):
        find("org/z")


def test_a_repository_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "there").mkdir()
    for name in ("adapter_config.json", "training_args.bin"):
        (folder / name).write_text("{}")
    a_repository(folder, monkeypatch)
    with pytest.raises(LlucidError, match=r"^org/x: this repository holds no weights that llucid opens"):
        find("org/x")
    with pytest.raises(LlucidError, match=r"^org/x: this repository holds no GGUF file, so leave :main out"):
        find("org/x:main")


def test_all_chat_templates_of_a_repository_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "there"
    save(model_of(CONFIG), folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    for name in ("additional_chat_templates/tool_use.jinja", "original/params.json", "onnx/model.safetensors"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("{{ tools }}")
    a_repository(folder, monkeypatch)
    copy = find("org/x")
    assert {one["name"] for one in folder_config(copy)["chat_template"]} == {"default", "tool_use"}
    assert not (copy / "original").exists()
    assert not (copy / "onnx").exists()


def test_the_storyteller_has_a_name_unless_something_here_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("storyteller") == STORYTELLER
    model = load("storyteller", mapped=True)
    assert repr(model) == f"<Model of {parameter_count(model.config):,} parameters, bfloat16, cpu>"
    (tmp_path / "storyteller").mkdir()
    assert find("storyteller") == Path("storyteller")


def test_a_path_in_runs_is_never_a_repository(hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        LlucidError, match="or not: there is no such file or folder; if it is a text, name a model before"
    ):
        load("To be, or not")
    with pytest.raises(LlucidError, match="runs/x: there is no such file or folder; train a model"):
        load("runs/x")
    for name in ("./models/x", Path("models/x")):
        with pytest.raises(LlucidError, match="models/x: there is no such file or folder; train a model"):
            load(find(name))
    save(model_of(CONFIG), tmp_path)
    with pytest.raises(LlucidError, match="the name of the model is empty"):
        load("")
    assert not hub


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "params.json", "tokenizer.json", "model.gguf"])
def test_a_named_pipe_does_not_block(name: str, tmp_path: Path) -> None:
    save(model_of(CONFIG), tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    if name == "tokenizer.json":
        assert load(tmp_path, device="cpu").tokenizer is None
    elif name == "params.json":
        load(tmp_path, device="cpu")
    else:
        with pytest.raises(LlucidError):
            load(tmp_path / name if name == "model.gguf" else tmp_path, device="cpu")
