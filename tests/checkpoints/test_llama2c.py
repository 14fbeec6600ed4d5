"""llama2.c's files, byte for byte as its export writes them, and its published story."""

import os
import re
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import llucid
from llucid.checkpoints import Model, convert, llama2c, load, meta, save
from llucid.config import Config
from llucid.errors import LlucidError
from llucid.weights import leaves, named_leaves
from tests.checkpoints.models import model_of, same

SMALL = Config(dim=64, layers=2, heads=8, kv_heads=4, head_dim=8, ffn_dim=96, vocab_size=50, context=32)

STORY = """\
Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, \
red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, "I want to play with \
your ball, but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so she"""


def exported(model: Model, version: int) -> bytes:
    """What llama2.c's export.py writes, array by array: an independent reading of it."""
    config, leaves = model.config, dict(named_leaves(model.weights))
    tied = config.tied_embeddings
    layers = range(config.layers)

    def plain(tensor: torch.Tensor) -> bytes:
        return tensor.numpy().astype("<f4").tobytes()

    def int8(tensor: torch.Tensor) -> bytes:
        groups = tensor.numpy().reshape(-1, 32)  # 64 halved until it divides 96 too
        scale = np.abs(groups).max(1) / np.float32(127)
        return np.round(groups / scale[:, None]).astype("<i1").tobytes() + scale.astype("<f4").tobytes()

    def every(name: str, write: Any = plain) -> bytes:
        return b"".join(write(leaves[f"blocks.{layer}.{name}"]) for layer in layers)

    sizes = (config.dim, config.ffn_dim, config.layers, config.heads, config.kv_heads)
    attention = [f"attention.{name}" for name in ("query", "key", "value", "output")]
    w1_w2_w3 = [f"feed_forward.{name}" for name in ("gate", "down", "up")]
    if version == 0:
        turns = np.outer(np.arange(config.context), 10_000.0 ** -(np.arange(0, 8, 2) / 8))
        parts = [struct.pack("<7i", *sizes, 50 if tied else -50, config.context), plain(leaves["embedding"])]
        parts += [every("attention_norm"), *map(every, attention), every("feed_forward_norm"), *map(every, w1_w2_w3)]
        parts += [plain(leaves["norm"]), bytes(turns.nbytes)]
    else:
        write = plain if version == 1 else int8
        head = b"24ka" + struct.pack("<8iB", version, *sizes, 50, config.context, tied)
        head += struct.pack("<i", 32) if version == 2 else b""
        parts = [head + bytes(256 - len(head)), every("attention_norm"), every("feed_forward_norm")]
        parts += [plain(leaves["norm"]), write(leaves["embedding"])]
        parts += [every(name, write) for name in attention + w1_w2_w3]
    return b"".join(parts) + (b"" if tied else (int8 if version == 2 else plain)(leaves["output"]))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_the_file_is_what_llama2c_exports(version: int, tied: bool, tmp_path: Path) -> None:
    model = model_of(replace(SMALL, tied_embeddings=tied))
    save(model, tmp_path / "out.bin", "llama2c", version=version)
    found, expected = (tmp_path / "out.bin").read_bytes(), exported(model, version)
    if version == 0:  # its tables of RoPE, which are passed over, are equal to float32 rounding
        end = len(expected) - (0 if tied else 50 * 64 * 4)
        begin = end - 32 * 8 * 4
        tables = np.frombuffer(found[begin:end], "<f4").reshape(2, 32, 4)
        turns = np.outer(np.arange(32), 10_000.0 ** -(np.arange(0, 8, 2) / 8))
        np.testing.assert_allclose(tables, [np.cos(turns), np.sin(turns)], atol=1e-5)
        found, expected = found[:begin] + found[end:], expected[:begin] + expected[end:]
    assert found == expected


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_what_llama2c_exports_is_read(version: int, tied: bool, tmp_path: Path) -> None:
    """Of version 2, the whole numbers times their scales."""
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


def test_checkpoints_of_its_training(tmp_path: Path) -> None:
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
    for changes, said in (
        (dict(vocab_size=51), "vocab_size is 51, but tok_embeddings.weight has 50 rows"),
        (dict(dim="64"), 'dim should be a whole number and is "64"'),
        (dict(n_layers=2**31 - 1), "layers, but there are only"),
    ):
        torch.save(checkpoint(model, **changes), tmp_path / "ckpt.pt")
        with pytest.raises(LlucidError, match=said):
            load(tmp_path / "ckpt.pt")
    for other in (["model_args"], {"model_args": 3, "model": {}}, {"model_args": {"dim": 64}}):
        torch.save(other, tmp_path / "ckpt.pt")
        with pytest.raises(LlucidError, match=r"not a checkpoint of llama2\.c, which has model_args and model"):
            load(tmp_path / "ckpt.pt")


@pytest.mark.parametrize("version", [0, 1, 2])
def test_lengths_and_headers_that_lie(version: int, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    save(model_of(SMALL), file, "llama2c", version=version)
    whole = file.read_bytes()
    for damaged, said in (
        (whole[:-1], "truncated: its header's numbers make"),
        (whole + b"\0", "longer than it should be"),
        (whole[:200], "truncated|ends within its header"),
        (whole[:20], "not a model" if version == 0 else "ends within its header"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(LlucidError, match=said):
            load(file)
    at = 0 if version == 0 else 8
    for field in range(7):
        for value in (0, -1, 3, 2**31 - 1, -(2**31)):
            file.write_bytes(whole[: at + 4 * field] + struct.pack("<i", value) + whole[at + 4 * field + 4 :])
            if version and field == 6 and value > 0:  # a context changes no size; any is possible
                assert load(file, device="cpu").config.context == value
                continue
            with pytest.raises(LlucidError):
                load(file)


@pytest.mark.parametrize(
    ("at", "form", "value", "said"),
    [
        *((4, "<i", version, f"version {version} and shared=1 are not known") for version in (0, 3, -1)),
        (36, "<B", 2, "version 2 and shared=2 are not known"),
        *((37, "<i", group, f"groups of {group} do not divide every matrix") for group in (0, -32, 48)),
    ],
)
def test_marks_of_no_version(at: int, form: str, value: int, said: str, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    save(model_of(replace(SMALL, tied_embeddings=True)), file, "llama2c", version=2)
    head = bytearray(file.read_bytes())
    struct.pack_into(form, head, at, value)
    file.write_bytes(head)
    with pytest.raises(LlucidError, match=said):
        load(file)


def test_a_negative_vocabulary_means_untied(tmp_path: Path) -> None:
    for tied in (True, False):
        save(model_of(replace(SMALL, tied_embeddings=tied)), tmp_path / f"{tied}.bin", "llama2c")
        assert struct.unpack_from("<i", (tmp_path / f"{tied}.bin").read_bytes(), 20) == (50 if tied else -50,)
        assert llama2c.read_config(tmp_path / f"{tied}.bin").tied_embeddings == tied


@pytest.mark.parametrize("version", [0, 1, 2])
def test_one_head_and_an_odd_feed_forward(version: int, tmp_path: Path) -> None:
    """In version 2 each number is a group of its own, which int8 and a scale hold to float32 rounding."""
    model = model_of(replace(SMALL, heads=1, kv_heads=1, head_dim=64, ffn_dim=55))
    save(model, tmp_path / "a" / "b" / "model.bin", "llama2c", version=version)
    found = load(tmp_path / "a" / "b" / "model.bin", device="cpu")
    assert found.config == model.config
    for expected, read in zip(leaves(model.weights), leaves(found.weights), strict=True):
        torch.testing.assert_close(read, expected, rtol=1e-6, atol=0)


def test_groups_that_divide_some_matrices_only(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    save(model_of(replace(SMALL, tied_embeddings=True)), file, "llama2c", version=2)
    whole = file.read_bytes()
    for at, value in ((12, 95), (16 + 12, 51)):  # ffn_dim and vocab_size, after magic, version and dim
        assert (64 * value) % 128
        changed = whole[:at] + struct.pack("<i", value) + whole[at + 4 :]
        file.write_bytes(changed[:37] + struct.pack("<i", 128) + changed[41:])
        with pytest.raises(LlucidError, match="groups of 128 do not divide every matrix"):
            load(file)


def story(model: Model) -> str:
    return "".join(llucid.generate(model, "", max_tokens=200, temperature=0.0))


def test_the_story_of_llama2c(data: Path) -> None:
    """llama2.c documents what stories260K writes greedily in 200 steps, byte for byte."""
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
    if formats == ("llama2c 1",):  # on the way through other formats the scores become ranks
        assert at.with_name("tokenizer.bin").read_bytes() == (data / "tok512.bin").read_bytes()


def test_the_story_through_every_format_and_transformers(data: Path, tmp_path: Path) -> None:
    at, tokenizer = data / "stories260K.bin", data / "tok512.bin"
    for format in ("llama2c", "gguf", "meta", "huggingface"):
        convert(at, tmp_path / format / "model", format, tokenizer=tokenizer)
        at, tokenizer = tmp_path / format / "model", None
    theirs = transformers.AutoModelForCausalLM.from_pretrained(at)
    words = transformers.AutoTokenizer.from_pretrained(at)
    ids = theirs.generate(words("", return_tensors="pt").input_ids, max_new_tokens=200, do_sample=False)
    assert words.decode(ids[0], skip_special_tokens=True) == STORY


@pytest.mark.slow
def test_llama2cs_own_programs_run_our_files(data: Path, tmp_path: Path) -> None:
    """run.c reads version 0, runq.c version 2. Their source is not in this project: LLUCID_LLAMA2C names its folder."""
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
    # Its activations are int8 too, so that its story is its own; of the groups that are ours it makes sentences.
    assert written["runq"].startswith("Once upon a time, there was a little girl named Lily.")
