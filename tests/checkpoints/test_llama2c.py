"""llama2.c's files, equal to its export byte for byte, and the story it documents."""

import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import llucid
from llucid.checkpoints import Model, convert, llama2c, load, meta, save
from llucid.checkpoints.llama2c import SIZES, parse_header, read_config
from llucid.config import Config
from llucid.errors import LlucidError
from llucid.weights import leaves, named_leaves
from tests.checkpoints.models import model_of, same
from tests.tokenizers.texts import small_sentencepiece

SMALL = Config(dim=64, layers=2, heads=8, kv_heads=4, head_dim=8, ffn_dim=96, vocab_size=50, context=32)

STORY = """\
Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, \
red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, "I want to play with \
your ball, but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so she"""


def exported(model: Model, version: int) -> bytes:
    """What llama2.c's export.py writes, array by array; an independent implementation."""
    config, leaves = model.config, dict(named_leaves(model.weights))
    tied = config.tied_embeddings
    layers = range(config.layers)

    def plain(tensor: torch.Tensor) -> bytes:
        return tensor.numpy().astype("<f4").tobytes()

    def int8(tensor: torch.Tensor) -> bytes:
        groups = tensor.numpy().reshape(-1, 32)  # 64, halved until it also divides 96
        scale = np.abs(groups).max(1) / np.float32(127)
        return np.round(groups / scale[:, None]).astype("<i1").tobytes() + scale.astype("<f4").tobytes()

    def all_layers(name: str, write: Any = plain) -> bytes:
        return b"".join(write(leaves[f"blocks.{layer}.{name}"]) for layer in layers)

    sizes = (config.dim, config.ffn_dim, config.layers, config.heads, config.kv_heads)
    attention = [f"attention.{name}" for name in ("query", "key", "value", "output")]
    w1_w2_w3 = [f"feed_forward.{name}" for name in ("gate", "down", "up")]
    if version == 0:
        angles = np.outer(np.arange(config.context), 10_000.0 ** -(np.arange(0, 8, 2) / 8))
        parts = [struct.pack("<7i", *sizes, 50 if tied else -50, config.context), plain(leaves["embedding"])]
        parts += [
            all_layers("attention_norm"),
            *map(all_layers, attention),
            all_layers("feed_forward_norm"),
            *map(all_layers, w1_w2_w3),
        ]
        parts += [plain(leaves["norm"]), bytes(angles.nbytes)]
    else:
        write = plain if version == 1 else int8
        header = b"24ka" + struct.pack("<8iB", version, *sizes, 50, config.context, tied)
        header += struct.pack("<i", 32) if version == 2 else b""
        parts = [header + bytes(256 - len(header)), all_layers("attention_norm"), all_layers("feed_forward_norm")]
        parts += [plain(leaves["norm"]), write(leaves["embedding"])]
        parts += [all_layers(name, write) for name in attention + w1_w2_w3]
    return b"".join(parts) + (b"" if tied else (int8 if version == 2 else plain)(leaves["output"]))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_written_files_equal_llama2cs_export(version: int, tied: bool, tmp_path: Path) -> None:
    model = model_of(replace(SMALL, tied_embeddings=tied))
    save(model, tmp_path / "out.bin", "llama2c", version=version)
    found, expected = (tmp_path / "out.bin").read_bytes(), exported(model, version)
    if version == 0:  # the RoPE tables, which readers skip, are equal up to float32 rounding
        end = len(expected) - (0 if tied else 50 * 64 * 4)
        begin = end - 32 * 8 * 4
        tables = np.frombuffer(found[begin:end], "<f4").reshape(2, 32, 4)
        angles = np.outer(np.arange(32), 10_000.0 ** -(np.arange(0, 8, 2) / 8))
        np.testing.assert_allclose(tables, [np.cos(angles), np.sin(angles)], atol=1e-5)
        found, expected = found[:begin] + found[end:], expected[:begin] + expected[end:]
    assert found == expected


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_llama2cs_exports_are_read(version: int, tied: bool, tmp_path: Path) -> None:
    """The matrices of version 2 are the int8 numbers times their scales."""
    model = model_of(replace(SMALL, tied_embeddings=tied))
    (tmp_path / "out.bin").write_bytes(exported(model, version))
    model.tokenizer.save(tmp_path)
    found = load(tmp_path / "out.bin", device="cpu")
    assert found.config == model.config
    for (path, leaf), read in zip(named_leaves(model.weights), leaves(found.weights), strict=True):
        expected = leaf.numpy()
        if version == 2 and leaf.dim() == 2:
            groups = expected.reshape(-1, 32)
            scale = np.abs(groups).max(1, keepdims=True) / np.float32(127)
            expected = (np.round(groups / scale) * scale).reshape(leaf.shape)
        assert np.array_equal(read.numpy(), expected), path


def checkpoint(model: Model, **changes: Any) -> dict[str, Any]:
    """What llama2.c's train.py saves."""
    config = model.config
    state = {f"_orig_mod.{meta.name_of(path)}": leaf for path, leaf in named_leaves(model.weights)}
    state["_orig_mod.output.weight"] = state["_orig_mod.tok_embeddings.weight"]
    arguments = dict(dim=config.dim, n_layers=config.layers, n_heads=config.heads, n_kv_heads=config.kv_heads)
    arguments |= dict(vocab_size=config.vocab_size, multiple_of=32, max_seq_len=config.context, dropout=0.0) | changes
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 5e-4}]}
    rest = {"iter_num": 3, "best_val_loss": torch.tensor(1.5), "config": {"dataset": "tinystories"}}
    return {"model": state, "model_args": arguments, "optimizer": optimizer} | rest


def test_tables_for_an_endless_context_are_refused(tmp_path: Path) -> None:
    model = Model(replace(SMALL, context=2**30), model_of(SMALL).weights, None)
    with pytest.raises(LlucidError, match=r"version=0 has angles .* context of 1,073,741,824; use version=1"):
        llucid.save(model, tmp_path / "a.bin", "llama2c")
    assert not [*tmp_path.iterdir()]
    llucid.save(model, tmp_path / "a.bin", "llama2c", version=1)
    assert llucid.load(tmp_path / "a.bin").config.context == 2**30


def test_tables_of_angles_are_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model may have an enormous context."""
    save(model_of(SMALL), tmp_path / "whole.bin", "llama2c")
    monkeypatch.setattr(llama2c, "ROWS", 5)
    save(model_of(SMALL), tmp_path / "parts.bin", "llama2c")
    assert max(part.nbytes for part in llama2c.angles(SMALL)) == 5 * SMALL.head_dim // 2 * 4
    assert (tmp_path / "whole.bin").read_bytes() == (tmp_path / "parts.bin").read_bytes()


def test_checkpoints_of_llama2cs_training(tmp_path: Path) -> None:
    model = model_of(replace(SMALL, tied_embeddings=True))
    torch.save(checkpoint(model), tmp_path / "ckpt.pt")
    model.tokenizer.save(tmp_path)
    found = load(tmp_path / "ckpt.pt", device="cpu")
    assert found.config == model.config
    assert same(found.weights, model.weights)
    untied = model_of(SMALL)
    state = checkpoint(untied)
    state["model"]["_orig_mod.output.weight"] = untied.weights.output
    torch.save(state, tmp_path / "ckpt.pt")
    assert same(load(tmp_path / "ckpt.pt", device="cpu").weights, untied.weights)
    torch.save(checkpoint(model, n_kv_heads=None), tmp_path / "ckpt.pt")
    with pytest.raises(LlucidError, match=re.escape("attention.wk.weight has shape [32, 64]; expected [64, 64]")):
        load(tmp_path / "ckpt.pt")
    for changes, message in (
        (dict(vocab_size=51), "vocab_size is 51, but tok_embeddings.weight has 50 rows"),
        (dict(dim="64"), 'dim should be a whole number and is "64"'),
        (dict(n_layers=2**31 - 1), "layers, but there are only"),
    ):
        torch.save(checkpoint(model, **changes), tmp_path / "ckpt.pt")
        with pytest.raises(LlucidError, match=message):
            load(tmp_path / "ckpt.pt")
    for other in (["model_args"], {"model_args": 3, "model": {}}, {"model_args": {"dim": 64}}):
        torch.save(other, tmp_path / "ckpt.pt")
        with pytest.raises(LlucidError, match=r"not a llama2\.c checkpoint: expected model_args and model"):
            load(tmp_path / "ckpt.pt")


@pytest.mark.parametrize("version", [0, 1, 2])
def test_wrong_lengths_and_sizes_are_refused(version: int, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    save(model_of(SMALL), file, "llama2c", version=version)
    content = file.read_bytes()
    for damaged, message in (
        (content[:-1], "truncated: by its header it should have"),
        (content + b"\0", "too long: by its header it should have"),
        (content[:200], "truncated|ends within its header"),
        (content[:20], "not a model" if version == 0 else "ends within its header"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(LlucidError, match=message):
            load(file)
    at = 0 if version == 0 else 8
    for field in range(7):
        for value in (0, -1, 3, 2**31 - 1, -(2**31)):
            file.write_bytes(content[: at + 4 * field] + struct.pack("<i", value) + content[at + 4 * field + 4 :])
            if version and field == 6 and value > 0:  # the context changes no size, so any is valid
                assert load(file, device="cpu").config.context == value
                continue
            with pytest.raises(LlucidError):
                load(file)


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        *((4, "<i", version, f"version {version} with shared=1 is not supported") for version in (0, 3, -1)),
        (36, "<B", 2, "version 2 with shared=2 is not supported"),
        *((37, "<i", group, f"its group size {group} does not divide") for group in (0, -32, 48)),
    ],
)
def test_unknown_versions_and_group_sizes_are_refused(
    at: int, form: str, value: int, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "model.bin"
    save(model_of(replace(SMALL, tied_embeddings=True)), file, "llama2c", version=2)
    header = bytearray(file.read_bytes())
    struct.pack_into(form, header, at, value)
    file.write_bytes(header)
    with pytest.raises(LlucidError, match=message):
        load(file)


def test_a_negative_vocab_size_means_untied(tmp_path: Path) -> None:
    for tied in (True, False):
        save(model_of(replace(SMALL, tied_embeddings=tied)), tmp_path / f"{tied}.bin", "llama2c")
        assert struct.unpack_from("<i", (tmp_path / f"{tied}.bin").read_bytes(), 20) == (50 if tied else -50,)
        assert llama2c.read_config(tmp_path / f"{tied}.bin").tied_embeddings == tied


@pytest.mark.parametrize("version", [0, 1, 2])
def test_one_head_and_an_odd_feed_forward(version: int, tmp_path: Path) -> None:
    """In version 2 each number is a group of its own: int8 times its scale is exact up to float32 rounding."""
    model = model_of(replace(SMALL, heads=1, kv_heads=1, head_dim=64, ffn_dim=55))
    save(model, tmp_path / "a" / "b" / "model.bin", "llama2c", version=version)
    found = load(tmp_path / "a" / "b" / "model.bin", device="cpu")
    assert found.config == model.config
    for expected, read in zip(leaves(model.weights), leaves(found.weights), strict=True):
        torch.testing.assert_close(read, expected, rtol=1e-6, atol=0)


def test_group_sizes_that_divide_only_some_matrices_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    save(model_of(replace(SMALL, tied_embeddings=True)), file, "llama2c", version=2)
    content = file.read_bytes()
    for at, value in ((12, 95), (16 + 12, 51)):  # ffn_dim and vocab_size, after magic, version and dim
        assert (64 * value) % 128
        changed = content[:at] + struct.pack("<i", value) + content[at + 4 :]
        file.write_bytes(changed[:37] + struct.pack("<i", 128) + changed[41:])
        with pytest.raises(LlucidError, match="its group size 128 does not divide"):
            load(file)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_memory_for_very_many_layers_is_bounded(version: int, tmp_path: Path) -> None:
    """Tiny layers take 100 bytes in the file and 14,000 as Python objects, so their number is limited."""
    from tests.checkpoints.test_hostile import SLACK, limited  # which imports this module

    file = tmp_path / "model.bin"
    tiny = Config(**SMALL.__dict__ | dict(dim=2, heads=1, kv_heads=1, head_dim=2, ffn_dim=1, vocab_size=1, context=1))
    for layers in (1025, 2**31 - 1, 1024):
        header = llama2c.BinHeader(version, replace(tiny, layers=layers), 1)
        size = header.size if layers < 2**20 else 256
        file.write_bytes(llama2c.encode_header(header).ljust(size, b"\0"))
        with limited(2 * size + SLACK):
            if layers > 1024:
                with pytest.raises(LlucidError, match="not a model" if version == 0 else f"layers={layers}"):
                    load(file, device="cpu")
            else:
                assert len(llama2c.open_weights(file, llama2c.read_config(file)).blocks) == layers


def story(model: Model) -> str:
    return "".join(llucid.generate(model, "", max_tokens=200, temperature=0.0))


def test_the_story_of_llama2c(data: Path) -> None:
    """Greedy decoding of stories260K for 200 steps gives the text that llama2.c documents."""
    model = load(data / "stories260K.bin", tokenizer=data / "tok512.bin", dtype="float32", device="cpu")
    assert story(model) == STORY


@pytest.mark.parametrize(
    "formats",
    [("huggingface",), ("meta",), ("gguf",), ("llama2c 1",), ("huggingface", "meta", "gguf", "llama2c 1", "llama2c 0")],
    ids=str,
)
def test_the_story_through_every_format(formats: tuple[str, ...], data: Path, tmp_path: Path) -> None:
    at, tokenizer = data / "stories260K.bin", data / "tok512.bin"
    for format in formats:
        name, _, version = format.partition(" ")
        out = tmp_path / f"{name}{version}" / "model"
        convert(at, out, name, version=int(version) if version else None, tokenizer=tokenizer)
        at, tokenizer = out, None
    model = load(at, device="cpu")
    assert model.tokenizer.bos == 1
    assert story(model) == STORY
    if formats == ("llama2c 1",):  # other formats turn the tokenizer's scores into ranks
        assert at.with_name("tokenizer.bin").read_bytes() == (data / "tok512.bin").read_bytes()


def test_the_story_through_every_format_and_transformers(data: Path, tmp_path: Path) -> None:
    at, tokenizer = data / "stories260K.bin", data / "tok512.bin"
    for format in ("llama2c", "gguf", "meta", "huggingface"):
        convert(at, tmp_path / format / "model", format, tokenizer=tokenizer)
        at, tokenizer = tmp_path / format / "model", None
    model = transformers.AutoModelForCausalLM.from_pretrained(at)
    tokenizer = transformers.AutoTokenizer.from_pretrained(at)
    ids = model.generate(tokenizer("", return_tensors="pt").input_ids, max_new_tokens=200, do_sample=False)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == STORY


def test_a_tokenizer_has_a_piece_for_each_row(tmp_path: Path) -> None:
    """run.c reads as many as the model's header says."""
    model = model_of(replace(SMALL, vocab_size=420))
    save(model._replace(tokenizer=small_sentencepiece()), tmp_path / "x.bin", "llama2c")
    tokenizer = load(tmp_path / "x.bin", device="cpu").tokenizer
    assert tokenizer
    assert (small_sentencepiece().vocab_size, tokenizer.vocab_size) == (400, 420)


@pytest.mark.slow
def test_llama2cs_own_programs_run_our_files(data: Path, tmp_path: Path) -> None:
    """run.c reads version 0, runq.c version 2. LLUCID_LLAMA2C names the folder with their source."""
    source = Path(os.environ.get("LLUCID_LLAMA2C", "/nowhere"))
    if not (source / "run.c").is_file():
        pytest.skip("LLUCID_LLAMA2C does not name a folder with llama2.c's source")
    written = {}
    for program, version in (("run", 0), ("runq", 2)):
        out = tmp_path / program / "model.bin"
        convert(data / "stories260K.bin", out, "llama2c", version=version, tokenizer=data / "tok512.bin")
        built = tmp_path / program / "program"
        subprocess.run(["gcc", "-O2", "-o", built, source / f"{program}.c", "-lm"], check=True)
        command = [built, out, "-z", out.with_name("tokenizer.bin"), "-t", "0", "-n", "200"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        written[program] = done.stdout
    assert written["run"].strip() == STORY
    # runq.c also quantises activations, so its story differs; wrong groups would not give sentences.
    assert written["runq"].startswith("Once upon a time, there was a little girl named Lily.")


def calls_of(function: Callable[[], object]) -> int:
    """How many calls of Python functions it takes."""
    count = 0

    def hook(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(hook)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def test_a_header_of_very_many_layers_takes_little_time(tmp_path: Path) -> None:
    layers, file = 1024, tmp_path / "a.bin"
    header = SIZES.pack(4, 4, layers, 1, 1, 300, 16)
    size = parse_header(header, file).size
    file.write_bytes(header.ljust(size, b"\0"))
    assert calls_of(lambda: read_config(file)) < 20 * layers
    file.write_bytes(header.ljust(size - 4, b"\0"))

    def refuse() -> None:
        with pytest.raises(LlucidError, match="truncated"):
            read_config(file)

    assert calls_of(refuse) < 20 * layers
