"""Meta's folders: both kinds of shards, values in and missing from params.json, and pickles that would execute code."""

import json
import mmap
import os
import pickle
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llucid.checkpoints import Model, convert, describe, load, meta, save
from llucid.checkpoints.huggingface import halves_from_pairs, pairs_from_halves, read_entries
from llucid.checkpoints.pickles import read_pickle
from llucid.checkpoints.tensors import Stored, tensor_of
from llucid.config import Config, RopeScaling
from llucid.errors import LlucidError
from llucid.llama import llama
from llucid.presets import PRESETS
from llucid.tokenizers.sentencepiece_model import SentencePiece
from llucid.weights import leaves, parameter_count, shapes
from tests.checkpoints.models import model_of, same, write_shards
from tests.configs import CONFIGS
from tests.tokenizers.texts import TALE, sentencepiece_model, small_sentencepiece

# Every matrix can be split into eight shards.
SMALL = Config(dim=64, layers=2, heads=8, kv_heads=8, head_dim=8, ffn_dim=96, vocab_size=48, context=4096)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "model", model_of(SMALL), 2, 0)
    return tmp_path / "model"


def change_params(folder: Path, **changes: Any) -> None:
    file = folder / "params.json"
    params = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in params.items() if value is not ...}))


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("axis", [0, 1], ids=["embedding by vocabulary (Llama 3)", "by width (Llama 1 and 2)"])
def test_shards_are_concatenated(count: int, axis: int, tmp_path: Path) -> None:
    model = model_of(SMALL)
    write_shards(tmp_path / "model", model, count, axis)
    found = load(tmp_path / "model", device="cpu")
    assert found.config == SMALL
    assert same(found.weights, model.weights)
    assert describe(tmp_path / "model")["bytes"] == (
        f"{sum(file.stat().st_size for file in (tmp_path / 'model').glob('*.pth')):,}"
    )


def test_query_and_key_in_the_row_orders_of_meta_and_hugging_face(tmp_path: Path) -> None:
    """One model in both formats: equal logits, and Hugging Face has rows 0, 2, 4, … of a head before 1, 3, 5, …"""
    config = replace(CONFIGS["one for two"], context=2048)
    save(model_of(config), tmp_path / "meta", "meta")
    convert(tmp_path / "meta", tmp_path / "hf", "huggingface")
    one, two = load(tmp_path / "meta", device="cpu"), load(tmp_path / "hf", device="cpu")
    tokens = torch.arange(48).reshape(1, -1)
    assert torch.equal(llama(tokens, one.weights, config), llama(tokens, two.weights, config))

    pairs = torch.load(tmp_path / "meta" / "consolidated.00.pth", weights_only=True)
    halves = read_entries(tmp_path / "hf")
    row = [0, 2, 4, 6, 1, 3, 5, 7]
    for name, other_name, heads in (("wq", "q_proj", 4), ("wk", "k_proj", 2)):
        theirs = tensor_of(halves[f"model.layers.1.self_attn.{other_name}.weight"])
        ours = pairs[f"layers.1.attention.{name}.weight"]
        order = [8 * head + place for head in range(heads) for place in row]
        assert torch.equal(theirs, ours[order])
        assert torch.equal(halves_from_pairs(ours, heads), theirs)
        assert torch.equal(pairs_from_halves(theirs, heads), ours)
    value = tensor_of(halves["model.layers.1.self_attn.v_proj.weight"])
    assert torch.equal(value, pairs["layers.1.attention.wv.weight"])


def test_torch_opens_our_folder(tmp_path: Path) -> None:
    """With and without mmap; tensors are aligned to 64 bytes, and the zip archive is valid."""
    model = model_of(replace(SMALL, tied_embeddings=True), dtype=torch.bfloat16)
    save(model, tmp_path / "model", "meta")
    file = tmp_path / "model" / "consolidated.00.pth"
    state = torch.load(file, weights_only=True)
    assert torch.equal(state["tok_embeddings.weight"], model.weights.embedding)
    assert state["output.weight"].data_ptr() == state["tok_embeddings.weight"].data_ptr()
    assert all(tensor.data_ptr() % 64 == 0 for tensor in torch.load(file, weights_only=True, mmap=True).values())
    assert zipfile.ZipFile(file).testzip() is None
    assert file.stat().st_size < 2 * parameter_count(model.config) + 12_000  # the tied matrix is stored once


def test_a_tokenizer_of_metas_gets_no_additional_files(tmp_path: Path) -> None:
    config = replace(SMALL, vocab_size=400)
    for config_json in (None, {"eos_token": "</s>", "chat_template": "{{ messages }}"}):
        tokenizer = SentencePiece(sentencepiece_model(), config_json)
        save(Model(config, model_of(config).weights, tokenizer), tmp_path / f"{bool(config_json)}", "meta")
    names = {"consolidated.00.pth", "params.json", "tokenizer.model"}
    assert {file.name for file in (tmp_path / "False").iterdir()} == names
    assert {file.name for file in (tmp_path / "True").iterdir()} == names | {"tokenizer_config.json"}


def test_one_shard_is_mapped_and_several_are_concatenated_in_memory(tmp_path: Path) -> None:
    for count in (1, 2):
        write_shards(tmp_path / str(count), model_of(SMALL), count, 0)
        weights = meta.open_weights(tmp_path / str(count), SMALL)
        assert is_mapped(weights.norm)
        assert is_mapped(weights.embedding) == (count == 1)


def is_mapped(leaf: Any) -> bool:
    """Whether reading gives a view of the file's memory map."""
    array = leaf.read().numbers
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return isinstance(array, memoryview | mmap.mmap)


def test_matrices_equal_in_only_one_shard_are_not_tied(tmp_path: Path) -> None:
    model = model_of(SMALL)
    output = torch.cat((model.weights.embedding[:24], model.weights.embedding[24:] + 1))
    write_shards(tmp_path / "model", model._replace(weights=model.weights._replace(output=output)), 2, 0)
    found = load(tmp_path / "model", device="cpu").weights.output
    assert found is not None
    assert torch.equal(found, output)


def test_tensor_names_are_metas(tmp_path: Path) -> None:
    """Meta's code computes w2(silu(w1(x)) · w3(x)): llama-models, models/llama3/model.py, class FeedForward."""
    model = model_of(SMALL)
    save(model, tmp_path / "model", "meta")
    state = torch.load(tmp_path / "model" / "consolidated.00.pth", weights_only=True)
    block = model.weights.blocks[1]
    expected: dict[str, Any] = {
        "tok_embeddings": model.weights.embedding,
        "norm": model.weights.norm,
        "output": model.weights.output,
    }
    expected |= {"layers.1.attention_norm": block.attention_norm, "layers.1.ffn_norm": block.feed_forward_norm}
    for name, leaf in zip(("wq", "wk", "wv", "wo"), leaves(block.attention), strict=True):
        expected[f"layers.1.attention.{name}"] = leaf
    w1, w3, w2 = block.feed_forward.gate, block.feed_forward.up, block.feed_forward.down
    expected |= {f"layers.1.feed_forward.w{number}": leaf for number, leaf in enumerate((w1, w2, w3), 1)}
    assert len(state) == len(expected) + 9
    for name, leaf in expected.items():
        assert torch.equal(state[f"{name}.weight"], leaf), name


@pytest.mark.parametrize(
    ("output", "expected"), [("missing", True), ("equal", True), ("a copy", True), ("differs late", False)]
)
def test_a_tied_output_is_missing_or_equal(output: str, expected: bool, tmp_path: Path) -> None:
    write_shards(
        tmp_path / "model", model_of(replace(SMALL, vocab_size=600)), 1, 0
    )  # rows are compared in groups of 256
    file = tmp_path / "model" / "consolidated.00.pth"
    state = torch.load(file, weights_only=True)
    embedding = state["tok_embeddings.weight"]
    state["output.weight"] = embedding if output == "equal" else embedding.clone()
    state["output.weight"][-1, -1] += output == "differs late"
    if output == "missing":
        del state["output.weight"]
    torch.save(state, file)
    found = load(tmp_path / "model", device="cpu")
    assert found.config.tied_embeddings == expected == (found.weights.output is None)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (dict(norm_eps=1e-6), dict(norm_eps=1e-6, context=2048)),
        (dict(), dict(context=4096)),
        (dict(rope_theta=5e5), dict(rope_theta=5e5, context=8192)),
        (dict(rope_theta=500000, use_scaled_rope=False), dict(rope_theta=5e5, context=8192)),
        (dict(rope_theta=1e6), dict(rope_theta=1e6, context=16384)),
        (dict(rope_theta=5e5, use_scaled_rope=True), dict(rope_theta=5e5, rope_scaling=RopeScaling(), context=131072)),
        (
            dict(rope_theta=5e5, use_scaled_rope=True, rope_scaling_factor=32),
            dict(rope_theta=5e5, rope_scaling=RopeScaling(factor=32.0), context=131072),
        ),
        (dict(n_kv_heads=..., vocab_size=48), dict(context=4096)),
        (dict(vocab_size=...), dict()),
        (dict(max_seq_len=512, max_batch_size=1), dict(context=512)),
        (dict(multiple_of=4096, ffn_dim_multiplier=1.3), dict()),  # ffn_dim follows from the tensors
    ],
)
def test_params_present_and_missing(params: dict[str, Any], expected: dict[str, Any], folder: Path) -> None:
    change_params(folder, **params)
    assert meta.read_config(folder) == replace(SMALL, **expected)


@pytest.mark.parametrize(("tied", "factor"), [(True, 32.0), (False, 8.0)])
def test_the_scaling_of_llama_3_2_is_inferred_from_tied_embeddings(tied: bool, factor: float, tmp_path: Path) -> None:
    """As in 3.1, its params.json has use_scaled_rope and no factor."""
    model = model_of(replace(SMALL, tied_embeddings=tied))
    write_shards(tmp_path / "model", model, 1, 0, rope_theta=5e5, use_scaled_rope=True)
    assert meta.read_config(tmp_path / "model").rope_scaling == RopeScaling(factor=factor)
    facts = describe(tmp_path / "model")
    assert facts["rope_scaling"] == f"{RopeScaling(factor=factor)} (inferred: not in any file)"
    assert facts["context"] == "131072 (inferred: not in any file)"
    assert facts["rope_theta"] == "500000.0"
    assert not convert(tmp_path / "model", tmp_path / "again", "meta")
    change_params(tmp_path / "model", rope_scaling_factor=4, max_seq_len=9)
    assert "inferred" not in str(describe(tmp_path / "model"))


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("llama-")])
def test_inferred_values_are_those_of_the_published_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From what Meta's files contain: params.json, and the shapes of the tensors."""
    expected = PRESETS[name].config
    params = dict(dim=expected.dim, n_layers=expected.layers, n_heads=expected.heads, n_kv_heads=expected.kv_heads)
    params |= dict(norm_eps=expected.norm_eps, rope_theta=expected.rope_theta, vocab_size=-1)
    params |= dict(use_scaled_rope=True) if expected.rope_scaling else {}
    entries = {meta.name_of(path): Stored(shape, "bfloat16", pytest.fail) for path, shape in shapes(expected).items()}
    monkeypatch.setattr(meta, "read_json", lambda file: params)
    monkeypatch.setattr(meta, "read_entries", lambda path, dim: entries)
    assert meta.read_config(Path("model")) == expected
    if expected.tied_embeddings:  # after more training, the output may differ from the embedding
        entries[meta.name_of("output")] = entries[meta.name_of("embedding")]
        assert meta.read_config(Path("model")) == replace(expected, tied_embeddings=False)


@pytest.mark.parametrize(("kv_heads", "context"), [(64, 2048), (8, 4096)])
def test_llama_1_65b_is_recognised_by_64_kv_heads(kv_heads: int, context: int, tmp_path: Path) -> None:
    """Its norm_eps is 1e-5, as in Llama 2, but Llama 2 70B has fewer KV heads."""
    write_shards(tmp_path / "model", model_of(replace(SMALL, dim=128, heads=64, kv_heads=kv_heads, head_dim=2)), 1, 0)
    assert meta.read_config(tmp_path / "model").context == context


def test_a_tokenizer_in_the_parent_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Meta's downloads of Llama 1 and 2; a tokenizer in the folder itself takes precedence."""
    own = load(folder, device="cpu").text()
    (folder / ".." / "tokenizer.model").write_bytes(sentencepiece_model())
    assert load(folder, device="cpu").text().vocab_size == own.vocab_size
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert meta.read_tokenizer(folder).vocab_size == 400
    monkeypatch.chdir(folder)
    assert meta.read_tokenizer(Path()).encode(TALE) == small_sentencepiece().encode(TALE)


def metas_ffn_dim(params: dict[str, Any]) -> int:
    """ffn_dim as Meta's code computes it (llama-models, models/llama3/model.py, class FeedForward)."""
    hidden = int(2 * 4 * params["dim"] / 3)
    if params.get("ffn_dim_multiplier") is not None:
        hidden = int(params["ffn_dim_multiplier"] * hidden)
    multiple = params["multiple_of"]
    return multiple * ((hidden + multiple - 1) // multiple)


def test_ffn_dim_is_written_with_metas_keys() -> None:
    """The params.json of Llama 1 7B only has multiple_of 256; that of Llama 3 8B also has a multiplier."""
    assert meta.ffn_recipe(4096, 11_008) == {"multiple_of": 256}
    assert meta.ffn_recipe(4096, 14_336).keys() == {"multiple_of", "ffn_dim_multiplier"}


def test_metas_code_computes_the_same_ffn_dim() -> None:
    widths = [(config.dim, config.ffn_dim) for config, _ in PRESETS.values()]
    for dim, ffn in [*widths, *((dim, ffn) for dim in (32, 34, 100) for ffn in range(1, 400))]:
        assert metas_ffn_dim({"dim": dim, **meta.ffn_recipe(dim, ffn)}) == ffn


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("norm.weight"), "norm.weight is in only one of consolidated"),
        (lambda s: s.update({"norm.weight": s["norm.weight"][1:]}), "shards of norm.weight differ"),
        (lambda s: s.update({"norm.weight": s["norm.weight"].half()}), "shards of norm.weight differ"),
        (lambda s: s.update({"norm.weight": 3}), "expected a dictionary of tensors"),
        (lambda s: s.clear(), "is in only one of consolidated"),
    ],
)
def test_a_damaged_shard_is_refused(damage: Any, message: str, folder: Path) -> None:
    state = torch.load(folder / "consolidated.01.pth", weights_only=True)
    damage(state)
    torch.save(state, folder / "consolidated.01.pth")
    with pytest.raises(LlucidError, match=re.escape(message)):
        load(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda s: s.pop("layers.1.attention.wo.weight"),
            "layers.1.attention.wo.weight is missing; expected a tensor of",
        ),
        (lambda s: s.pop("tok_embeddings.weight"), "tok_embeddings.weight is missing"),
        (
            lambda s: s.update({"layers.2.ffn_norm.weight": s["norm.weight"]}),
            "layers.2.ffn_norm.weight [64] is not part of the Llama",
        ),
        (lambda s: s.update({"norm.weight": torch.ones(63)}), "norm.weight has shape [63]; expected [64]"),
        (lambda s: s.update({"norm.weight": torch.ones(64).int()}), "norm.weight is int32; expected one of"),
        (lambda s: s.update({"norm.weight": torch.ones(1).expand(64 * 10**6)}), "its tensors are larger than the file"),
    ],
)
def test_wrong_tensors_are_refused(damage: Any, message: str, tmp_path: Path) -> None:
    write_shards(tmp_path / "model", model_of(SMALL), 1, 0)
    file = tmp_path / "model" / "consolidated.00.pth"
    state = torch.load(file, weights_only=True)
    damage(state)
    torch.save(state, file)
    with pytest.raises(LlucidError, match=re.escape(message)):
        load(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(vocab_size=49), "vocab_size is 49, but tok_embeddings.weight has 48 rows"),
        (dict(dim=63), "not divisible by heads=8"),
        (dict(n_layers=3), "layers.2.attention_norm.weight is missing"),
        (dict(n_layers=1), "is not part of the Llama"),
        (dict(n_layers=2**31 - 1), "layers, but there are only"),
        (dict(n_heads=0), "heads=0"),
        (dict(sliding_window=4096), "sliding_window is not a parameter"),
        (dict(quantization_args={"scheme": "int4"}), "quantization_args is not a parameter"),
        (dict(norm_eps=None), "norm_eps is missing; expected a number"),
    ],
)
def test_impossible_params_are_refused(changes: dict[str, Any], message: str, folder: Path) -> None:
    change_params(folder, **changes)
    with pytest.raises(LlucidError, match=re.escape(message)):
        load(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "consolidated.00.pth").unlink()
    with pytest.raises(LlucidError, match=r"consolidated\.00\.pth is missing"):
        load(folder)
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(LlucidError, match=r"no consolidated\.00\.pth"):
        load(folder)


@pytest.mark.parametrize(("count", "axis", "vocab_size"), [(2, 0, -1), (2, 1, 48), (4, 0, 48)])
def test_the_last_shard_is_missed(count: int, axis: int, vocab_size: int, tmp_path: Path) -> None:
    """Not the tokenizer of another model, nor a shape."""
    folder = tmp_path / "model"
    write_shards(folder, model_of(SMALL), count, axis, vocab_size=vocab_size)
    (folder / f"consolidated.{count - 1:02}.pth").unlink()
    reason = rf"consolidated\.{count - 1:02}\.pth is missing: a query matrix of 64 rows is in {count} shards"
    for opened in (load, describe):
        with pytest.raises(LlucidError, match=reason):
            opened(folder)


class Malicious:
    """Python's own unpickler would call `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda mark: Malicious(os.mkdir, str(mark)), "mkdir"),
        (lambda mark: Malicious(eval, f"open({str(mark)!r}, 'w')"), "builtin"),
        (lambda mark: Malicious(bytearray, 10**12), "bytearray"),
        (lambda mark: Malicious(torch.UntypedStorage, 10**12), "UntypedStorage"),
    ],
)
def test_a_pickle_executes_nothing(make: Any, name: str, folder: Path) -> None:
    mark, file = folder.parent / "executed", folder / "consolidated.00.pth"
    torch.save({"norm.weight": make(mark)}, file)
    with pytest.raises(LlucidError, match=f"refused, because opening it would call .*{name}"):
        load(folder)
    file.write_bytes(pickle.dumps(make(mark)))
    with pytest.raises(LlucidError, match=r"not a PyTorch file of version 1\.6 or later"):
        read_pickle(file)
    assert not mark.exists()


VIEWS = torch.arange(48, dtype=torch.float32)


@pytest.mark.parametrize(
    "state",
    [
        *({"a": torch.arange(-3, 9).to(dtype)} for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.bool)),
        *(
            {"a": torch.arange(12).to(dtype)}
            for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
        ),
        {"part": VIEWS[5:9], "turned": VIEWS.view(6, 8).T, "steps": VIEWS[1::3], "again": VIEWS[:2].expand(3, 2)},
        {"number": torch.tensor(2.5), "none": torch.empty(0, 7), "parameter": torch.nn.Parameter(torch.ones(2, 3))},
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict(),
        {"step": 70_000, "rate": 0.1, "args": {"dim": -1, "x": None}, "on": [True, False], "sizes": torch.Size((2, 3))},
        {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "groups": [{"betas": (0.9, 0.99), "l": [0]}]}},
        {"big": 2**40, "name": "Ä" * 300, "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), "lists": [[], [1]]},
    ],
)
def test_reading_gives_what_torch_reads(state: dict[str, Any], tmp_path: Path) -> None:
    """Tensors bit for bit, and all other objects."""

    def equal(a: Any, b: Any) -> bool:
        if isinstance(b, torch.Tensor):
            read, b = a.read(), b.detach()
            assert read.shape == a.shape == b.shape
            assert read.numbers.dtype.itemsize == b.itemsize
            return a.dtype == str(b.dtype)[6:] and read.tensor().is_contiguous() and torch.equal(read.tensor(), b)
        if isinstance(b, dict):
            return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in b)
        if isinstance(b, list | tuple):
            return len(a) == len(b) and all(map(equal, a, b))
        return type(a) is type(b) and a == b

    torch.save(state, tmp_path / "file")
    assert equal(read_pickle(tmp_path / "file"), torch.load(tmp_path / "file", weights_only=True))


def rewritten(file: Path, **changes: bytes) -> Path:
    """Replaces the contents of some members of the archive."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, changes.get(name.rpartition("/")[2].partition(".")[0], content))
    return file


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
NESTED = b"\x80\x02})q\x00" + b"h\x00h\x00\x86q\x00" * 99


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (NESTED + b"h\x00K\x01s.", "a dictionary with keys of another type"),  # hashing it takes 2⁹⁹ steps
        (NESTED + b"(h\x00K\x01u.", "a dictionary with keys of another type"),
        (b"\x80\x02}\x8a\x08" + ((1 << 61) - 1).to_bytes(8, "little") + b"K\x01s.", "keys of another type"),  # hash 0
        (NESTED + b"h\x00X\x01\x00\x00\x00a\x93.", "a name that is not text"),  # whose text has 2⁹⁹ characters
        (NESTED + STORAGE + b"h\x00tQ.", "a storage without a name"),
        (b"\x80\x02" + b"]" * 2**20 + b".", "its pickle is too large"),
        (b"\x80\x02\x8f.", "its pickle has the opcode EMPTY_SET, which torch.save does not write"),
        (b"\x80\x02\x8e" + b"\xff" * 8 + b".", "not a complete PyTorch file"),  # bytes of 2⁶⁴
        (b"\x80\x02ctorch\nSize\n)R.", "refused, because opening it would call torch.Size"),
        (b"\x80\x02ctorch\nfloat32\n)R.", "refused, because opening it would call torch.float32"),
        (b"\x80\x02ctorch\nfloat32\n}R.", "refused, because opening it would call torch.float32"),
        (b"\x80\x02cposix\nsystem\n.", r"refused, because opening it would call posix\.system"),
        (b"\x80\x02ctorch\nSizes\n.", r"refused, because opening it would call torch\.Sizes"),
    ],
)
def test_hostile_pickles(pickled: bytes, message: str, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "file")
    file = rewritten(
        tmp_path / "file", data=b"\x80\x02}r\xff\xff\xff\x7f."
    )  # memo index 2³¹; no memo of that size is allocated
    assert read_pickle(file) == {}
    with pytest.raises(LlucidError, match=message):
        read_pickle(rewritten(file, data=pickled))


def test_archives_with_wrong_metadata(tmp_path: Path) -> None:
    """Byte order, and the offset of a member."""
    torch.save({"a": VIEWS}, tmp_path / "file")
    assert torch.equal(read_pickle(tmp_path / "file")["a"].read().tensor(), VIEWS)
    content, at = (
        (tmp_path / "file").read_bytes(),
        zipfile.ZipFile(tmp_path / "file").getinfo("file/data/0").header_offset,
    )
    (tmp_path / "none").write_bytes(content[:at] + b"X" + content[at + 1 :])
    with pytest.raises(LlucidError, match=r"truncated: file/data/0 is incomplete"):
        read_pickle(tmp_path / "none")["a"].read()
    with pytest.raises(LlucidError, match="big-endian"):
        read_pickle(rewritten(tmp_path / "file", byteorder=b"big"))


def test_a_view_that_exceeds_its_storage(tmp_path: Path) -> None:
    """Shape, stride and offset that are one too large, negative, or not integers."""
    torch.save({"a": VIEWS[3:43].view(5, 8)}, tmp_path / "file")
    with zipfile.ZipFile(tmp_path / "file") as archive:
        pickled = archive.read("file/data.pkl")
    place = b"K\x03K\x05K\x08\x86"  # offset and shape, then the strides
    assert pickled.count(place) == 1
    for change, fits in (
        (place.replace(b"\x03", b"\x08"), True),
        (place.replace(b"\x03", b"\x09"), False),
        (place.replace(b"\x05", b"\x06"), False),
        (place.replace(b"K\x08", b"K\x0e"), False),
        (place.replace(b"K\x08", b"J\xff\xff\xff\xff"), False),
        (place.replace(b"K\x08", b"N"), False),
    ):
        file = rewritten(tmp_path / "file", data=pickled.replace(place, change))
        if fits:
            assert torch.equal(read_pickle(file)["a"].read().tensor(), VIEWS[8:48].view(5, 8))
            continue
        with pytest.raises(LlucidError, match=r"exceeds its numbers in the file|impossible shape"):
            read_pickle(file)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    """A few kilobytes could decompress to gigabytes."""
    file = tmp_path / "bomb.pth"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**7))
    with pytest.raises(LlucidError, match="compressed"):
        read_pickle(file)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(protocol: int, tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "a": VIEWS,
        "again": VIEWS,
        "b": torch.nn.Parameter(VIEWS[:4].half()),
        "sizes": torch.Size((2, 3)),
    }
    torch.save(state, tmp_path / "file", pickle_protocol=protocol)
    found = read_pickle(tmp_path / "file")
    assert found["sizes"] == (2, 3)
    for name in ("a", "again", "b"):
        assert torch.equal(found[name].read().tensor(), state[name].detach())
    torch.save({"a": Malicious(os.mkdir, "never")}, tmp_path / "file", pickle_protocol=protocol)
    with pytest.raises(LlucidError, match=r"refused, because opening it would call .*mkdir"):
        read_pickle(tmp_path / "file")


@pytest.mark.parametrize("offset", [3, 2**31 - 1])
def test_an_empty_tensor_at_any_offset(offset: int, tmp_path: Path) -> None:
    """It needs no numbers, so its offset may exceed the storage; as in torch.load, it has its shape and dtype."""
    torch.save({"a": VIEWS[3:43].view(5, 8)}, tmp_path / "file")
    with zipfile.ZipFile(tmp_path / "file") as archive:
        pickled = archive.read("file/data.pkl")
    changed = pickled.replace(b"K\x03K\x05K\x08\x86", b"J" + offset.to_bytes(4, "little") + b"K\x00K\x08\x86")
    found = read_pickle(rewritten(tmp_path / "file", data=changed))["a"]
    assert (found.shape, found.dtype) == ((0, 8), "float32")
    assert found.read().tensor().shape == (0, 8)


@pytest.mark.parametrize("before", [9, 60])
def test_a_negative_member_offset_is_refused(before: int, tmp_path: Path) -> None:
    """zipfile adds a number, which a false offset of the directory makes negative, to the offset of each member. Here
    data/0 is `before` bytes before the file, where Python's slices see the end of the file: a copy of a header."""
    torch.save({"a": VIEWS}, tmp_path / "file")
    content = bytearray(rewritten(tmp_path / "file").read_bytes())
    end = content.rindex(b"PK\x05\x06")
    directory = int.from_bytes(content[end + 16 : end + 20], "little")
    for name in zipfile.ZipFile(tmp_path / "file").namelist():
        at = content.index(name.encode(), directory) - 4
        offset = 0 if name == "file/data/0" else int.from_bytes(content[at : at + 4], "little") + before
        content[at : at + 4] = offset.to_bytes(4, "little")
    content[end + 16 : end + 22] = (directory + before).to_bytes(4, "little") + before.to_bytes(2, "little")
    (tmp_path / "file").write_bytes(content + b"PK\x03\x04".ljust(before, b"\0"))
    assert zipfile.ZipFile(tmp_path / "file").getinfo("file/data/0").header_offset == -before
    with pytest.raises(LlucidError, match="truncated: file/data/0 is incomplete"):
        read_pickle(tmp_path / "file")["a"].read()


def test_archives_with_too_many_or_too_large_members_are_refused(tmp_path: Path) -> None:
    """An empty member takes 12 times its size in memory; members that overlap claim more than the file has."""
    file = tmp_path / "file"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        for number in range(5):
            archive.writestr(f"a/{number:065000}", b"")
    assert read_pickle(file) == {}
    with zipfile.ZipFile(file, "a") as archive:
        for number in range(5, 70):
            archive.writestr(f"a/{number:065000}", b"")
    with pytest.raises(LlucidError, match=r"its directory has 4,\d+,\d+ bytes; the file is damaged"):
        read_pickle(file)

    torch.save({"a": VIEWS}, file)
    content = bytearray(rewritten(file).read_bytes())
    directory = int.from_bytes(content[-6:-2], "little")
    at = content.index(b"file/data/0", directory) - 46
    content[at + 20 : at + 28] = 2 * len(content).to_bytes(4, "little")
    file.write_bytes(content)
    with pytest.raises(LlucidError, match="its members are compressed"):
        read_pickle(file)
