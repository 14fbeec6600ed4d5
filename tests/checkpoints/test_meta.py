"""Meta's folders: shards of both kinds, what params.json says and does not say, and pickles that would run code."""

import json
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
from llucid.checkpoints.tensors import Stored
from llucid.config import Config, RopeScaling
from llucid.errors import LlucidError
from llucid.llama import llama
from llucid.presets import PRESETS
from llucid.tokenizers.sentencepiece_model import SentencePiece
from llucid.weights import parameter_count, shapes
from tests.checkpoints.models import model_of, same, write_shards
from tests.configs import CONFIGS
from tests.tokenizers.texts import TALE, sentencepiece_model, small_sentencepiece

# Every matrix can be cut into eight.
SMALL = Config(dim=64, layers=2, heads=8, kv_heads=8, head_dim=8, ffn_dim=96, vocab_size=48, context=4096)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "model", model_of(SMALL), 2, 0)
    return tmp_path / "model"


def retell(folder: Path, **changes: Any) -> None:
    file = folder / "params.json"
    told = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in told.items() if value is not ...}))


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("axis", [0, 1], ids=["embedding by vocabulary (Llama 3)", "by width (Llama 1 and 2)"])
def test_shards_are_put_together(count: int, axis: int, tmp_path: Path) -> None:
    model = model_of(SMALL)
    write_shards(tmp_path / "model", model, count, axis)
    found = load(tmp_path / "model", device="cpu")
    assert found.config == SMALL
    assert same(found.weights, model.weights)
    assert describe(tmp_path / "model")["bytes"] == (
        f"{sum(file.stat().st_size for file in (tmp_path / 'model').glob('*.pth')):,}"
    )


def test_query_and_key_are_the_same_model_in_both_orders(tmp_path: Path) -> None:
    """One model as Meta and as Hugging Face: equal logits, and per head rows 0, 2, 4, … and then 1, 3, 5, …"""
    config = replace(CONFIGS["one for two"], context=2048)
    save(model_of(config), tmp_path / "meta", "meta")
    convert(tmp_path / "meta", tmp_path / "hf", "huggingface")
    one, two = load(tmp_path / "meta", device="cpu"), load(tmp_path / "hf", device="cpu")
    tokens = torch.arange(48).reshape(1, -1)
    assert torch.equal(llama(tokens, one.weights, config), llama(tokens, two.weights, config))

    pairs = torch.load(tmp_path / "meta" / "consolidated.00.pth", weights_only=True)
    halves = read_entries(tmp_path / "hf")
    row = [0, 2, 4, 6, 1, 3, 5, 7]
    for name, foreign, heads in (("wq", "q_proj", 4), ("wk", "k_proj", 2)):
        theirs = halves[f"model.layers.1.self_attn.{foreign}.weight"].read().tensor()
        ours = pairs[f"layers.1.attention.{name}.weight"]
        order = [8 * head + place for head in range(heads) for place in row]
        assert torch.equal(theirs, ours[order])
        assert torch.equal(halves_from_pairs(ours, heads), theirs)
        assert torch.equal(pairs_from_halves(theirs, heads), ours)
    value = halves["model.layers.1.self_attn.v_proj.weight"].read().tensor()
    assert torch.equal(value, pairs["layers.1.attention.wv.weight"])


def test_our_folder_is_what_torch_reads(tmp_path: Path) -> None:
    """By torch.load without a map too, numbers at multiples of 64, and a sound zip archive."""
    model = model_of(replace(SMALL, tied_embeddings=True), dtype=torch.bfloat16)
    save(model, tmp_path / "model", "meta")
    file = tmp_path / "model" / "consolidated.00.pth"
    state = torch.load(file, weights_only=True)
    assert torch.equal(state["tok_embeddings.weight"], model.weights.embedding)
    assert state["output.weight"].data_ptr() == state["tok_embeddings.weight"].data_ptr()
    assert all(tensor.data_ptr() % 64 == 0 for tensor in torch.load(file, weights_only=True, mmap=True).values())
    assert zipfile.ZipFile(file).testzip() is None
    assert file.stat().st_size < 2 * parameter_count(model.config) + 12_000  # the tied matrix is there once


def test_beside_a_tokenizer_of_metas_is_nothing_that_it_did_not_have(tmp_path: Path) -> None:
    config = replace(SMALL, vocab_size=400)
    for config_json in (None, {"eos_token": "</s>", "chat_template": "{{ messages }}"}):
        tokenizer = SentencePiece(sentencepiece_model(), config_json)
        save(Model(config, model_of(config).weights, tokenizer), tmp_path / f"{bool(config_json)}", "meta")
    names = {"consolidated.00.pth", "params.json", "tokenizer.model"}
    assert {file.name for file in (tmp_path / "False").iterdir()} == names
    assert {file.name for file in (tmp_path / "True").iterdir()} == names | {"tokenizer_config.json"}


def test_one_shard_alone_is_mapped_and_several_are_put_together_in_memory(tmp_path: Path) -> None:
    for count in (1, 2):
        write_shards(tmp_path / str(count), model_of(SMALL), count, 0)
        weights = meta.open_weights(tmp_path / str(count), SMALL)
        assert is_mapped(weights.norm)
        assert is_mapped(weights.embedding) == (count == 1)


def is_mapped(leaf: Any) -> bool:
    """Whether the array that is read is in the file's own memory."""
    array = leaf.read().numbers
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


def test_twins_in_one_shard_alone_are_not_tied(tmp_path: Path) -> None:
    model = model_of(SMALL)
    output = torch.cat((model.weights.embedding[:24], model.weights.embedding[24:] + 1))
    write_shards(tmp_path / "model", model._replace(weights=model.weights._replace(output=output)), 2, 0)
    found = load(tmp_path / "model", device="cpu").weights.output
    assert found is not None
    assert torch.equal(found, output)


def test_names_are_metas(tmp_path: Path) -> None:
    """Its code has w2(silu(w1(x)) · w3(x)): models/llama3/model.py of llama-models, class FeedForward."""
    model = model_of(SMALL)
    save(model, tmp_path / "model", "meta")
    state = torch.load(tmp_path / "model" / "consolidated.00.pth", weights_only=True)
    block = model.weights.blocks[1]
    every = {"tok_embeddings": model.weights.embedding, "norm": model.weights.norm, "output": model.weights.output}
    every |= {"layers.1.attention_norm": block.attention_norm, "layers.1.ffn_norm": block.feed_forward_norm}
    for name, leaf in zip(("wq", "wk", "wv", "wo"), block.attention, strict=True):
        every[f"layers.1.attention.{name}"] = leaf
    w1, w3, w2 = block.feed_forward.gate, block.feed_forward.up, block.feed_forward.down
    every |= {f"layers.1.feed_forward.w{number}": leaf for number, leaf in enumerate((w1, w2, w3), 1)}
    assert len(state) == len(every) + 9
    for name, leaf in every.items():
        assert torch.equal(state[f"{name}.weight"], leaf), name


@pytest.mark.parametrize(
    ("output", "expected"), [("absent", True), ("equal", True), ("a copy", True), ("differs late", False)]
)
def test_tied_is_absent_or_equal(output: str, expected: bool, tmp_path: Path) -> None:
    write_shards(tmp_path / "model", model_of(replace(SMALL, vocab_size=600)), 1, 0)  # compared some rows at a time
    file = tmp_path / "model" / "consolidated.00.pth"
    state = torch.load(file, weights_only=True)
    embedding = state["tok_embeddings.weight"]
    state["output.weight"] = embedding if output == "equal" else embedding.clone()
    state["output.weight"][-1, -1] += output == "differs late"
    if output == "absent":
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
        (dict(multiple_of=4096, ffn_dim_multiplier=1.3), dict()),  # the tensors decide
    ],
)
def test_what_params_say_and_do_not_say(params: dict[str, Any], expected: dict[str, Any], folder: Path) -> None:
    retell(folder, **params)
    assert meta.read_config(folder) == replace(SMALL, **expected)


@pytest.mark.parametrize(("tied", "factor"), [(True, 32.0), (False, 8.0)])
def test_the_scaling_of_llama_3_2_is_told_apart_by_its_tied_embeddings(
    tied: bool, factor: float, tmp_path: Path
) -> None:
    """Its params.json says use_scaled_rope and no factor, as that of 3.1 does."""
    model = model_of(replace(SMALL, tied_embeddings=tied))
    write_shards(tmp_path / "model", model, 1, 0, rope_theta=5e5, use_scaled_rope=True)
    assert meta.read_config(tmp_path / "model").rope_scaling == RopeScaling(factor=factor)
    facts = describe(tmp_path / "model")
    assert facts["rope_scaling"] == f"{RopeScaling(factor=factor)} (inferred: no file says it)"
    assert facts["context"] == "131072 (inferred: no file says it)"
    assert facts["rope_theta"] == "500000.0"
    found = convert(tmp_path / "model", tmp_path / "again", "meta")
    assert not found
    retell(tmp_path / "model", rope_scaling_factor=4, max_seq_len=9)
    assert "inferred" not in str(describe(tmp_path / "model"))


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("llama-")])
def test_what_is_inferred_is_that_of_the_published_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From all that Meta's own files say: params.json, and the shapes of the tensors."""
    expected = PRESETS[name].config
    told = dict(dim=expected.dim, n_layers=expected.layers, n_heads=expected.heads, n_kv_heads=expected.kv_heads)
    told |= dict(norm_eps=expected.norm_eps, rope_theta=expected.rope_theta, vocab_size=-1)
    told |= dict(use_scaled_rope=True) if expected.rope_scaling else {}
    entries = {meta.name_of(path): Stored(shape, "bfloat16", pytest.fail) for path, shape in shapes(expected).items()}
    monkeypatch.setattr(meta, "read_json", lambda file: told)
    monkeypatch.setattr(meta, "read_entries", lambda path, dim: entries)
    assert meta.read_config(Path("model")) == expected


@pytest.mark.parametrize(("kv_heads", "context"), [(64, 2048), (8, 4096)])
def test_64_heads_with_keys_of_their_own_are_llama_1_65b(kv_heads: int, context: int, tmp_path: Path) -> None:
    """Its epsilon is 1e-5, as of Llama 2, whose 70B shares keys."""
    write_shards(tmp_path / "model", model_of(replace(SMALL, dim=128, heads=64, kv_heads=kv_heads, head_dim=2)), 1, 0)
    assert meta.read_config(tmp_path / "model").context == context


def test_one_tokenizer_above_the_sizes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Meta's downloads of Llama 1 and 2 have it; what is in the folder itself counts first."""
    own = load(folder, device="cpu").tokenizer
    (folder / ".." / "tokenizer.model").write_bytes(sentencepiece_model())
    assert load(folder, device="cpu").tokenizer.vocab_size == own.vocab_size
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert meta.read_tokenizer_info(folder)[:2] == ("SentencePiece", 400)
    monkeypatch.chdir(folder)
    assert meta.read_tokenizer(Path()).encode(TALE) == small_sentencepiece().encode(TALE)


def metas_ffn_dim(told: dict[str, Any]) -> int:
    """The width that Meta's code computes (llama-models, models/llama3/model.py, class FeedForward)."""
    hidden = int(2 * 4 * told["dim"] / 3)
    if told.get("ffn_dim_multiplier") is not None:
        hidden = int(told["ffn_dim_multiplier"] * hidden)
    multiple = told["multiple_of"]
    return multiple * ((hidden + multiple - 1) // multiple)


def test_the_width_of_llama_1_is_told_in_metas_own_words() -> None:
    """The params.json of its 7B says multiple_of 256 and no more; that of Llama 3's 8B has a multiplier, as ours."""
    assert meta.ffn_recipe(4096, 11_008) == {"multiple_of": 256}
    assert meta.ffn_recipe(4096, 14_336).keys() == {"multiple_of", "ffn_dim_multiplier"}


def test_metas_code_finds_the_width_of_the_feed_forward() -> None:
    widths = [(config.dim, config.ffn_dim) for config, _ in PRESETS.values()]
    for dim, ffn in [*widths, *((dim, ffn) for dim in (32, 34, 100) for ffn in range(1, 400))]:
        assert metas_ffn_dim({"dim": dim, **meta.ffn_recipe(dim, ffn)}) == ffn


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda s: s.pop("norm.weight"), "norm.weight is in consolidated"),
        (lambda s: s.update({"norm.weight": s["norm.weight"][1:]}), "shards of norm.weight differ"),
        (lambda s: s.update({"norm.weight": s["norm.weight"].half()}), "shards of norm.weight differ"),
        (lambda s: s.update({"norm.weight": 3}), "expected a dictionary of tensors"),
        (lambda s: s.clear(), "is in consolidated"),
    ],
)
def test_strict_about_one_shard(damage: Any, said: str, folder: Path) -> None:
    state = torch.load(folder / "consolidated.01.pth", weights_only=True)
    damage(state)
    torch.save(state, folder / "consolidated.01.pth")
    with pytest.raises(LlucidError, match=re.escape(said)):
        load(folder)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda s: s.pop("layers.1.attention.wo.weight"),
            "layers.1.attention.wo.weight is missing; expected a tensor of",
        ),
        (lambda s: s.pop("tok_embeddings.weight"), "tok_embeddings.weight is missing"),
        (
            lambda s: s.update({"layers.2.ffn_norm.weight": s["norm.weight"]}),
            "layers.2.ffn_norm.weight [64] is no tensor",
        ),
        (lambda s: s.update({"norm.weight": torch.ones(63)}), "norm.weight has shape [63]; expected [64]"),
        (lambda s: s.update({"norm.weight": torch.ones(64).int()}), "norm.weight is int32; expected one of"),
        (lambda s: s.update({"norm.weight": torch.ones(1).expand(64 * 10**6)}), "claim to be larger than the file"),
    ],
)
def test_strict_about_tensors(damage: Any, said: str, tmp_path: Path) -> None:
    write_shards(tmp_path / "model", model_of(SMALL), 1, 0)
    file = tmp_path / "model" / "consolidated.00.pth"
    state = torch.load(file, weights_only=True)
    damage(state)
    torch.save(state, file)
    with pytest.raises(LlucidError, match=re.escape(said)):
        load(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(vocab_size=49), "vocab_size is 49, but tok_embeddings.weight has 48 rows"),
        (dict(dim=63), "not divisible by heads=8"),
        (dict(n_layers=3), "layers.2.attention_norm.weight is missing"),
        (dict(n_layers=1), "is no tensor of the Llama"),
        (dict(n_layers=2**31 - 1), "layers are promised"),
        (dict(n_heads=0), "heads=0"),
        (dict(sliding_window=4096), "sliding_window is no number"),
        (dict(quantization_args={"scheme": "int4"}), "quantization_args is no number"),
        (dict(norm_eps=None), "norm_eps should be a number and is null"),
    ],
)
def test_params_that_cannot_be(changes: dict[str, Any], said: str, folder: Path) -> None:
    retell(folder, **changes)
    with pytest.raises(LlucidError, match=re.escape(said)):
        load(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "consolidated.00.pth").unlink()
    with pytest.raises(LlucidError, match=r"consolidated\.00\.pth is missing"):
        load(folder)
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(LlucidError, match=r"no consolidated\.00\.pth"):
        load(folder)


class Malicious:
    """Unpickled by Python's own unpickler, this makes a file."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda mark: Malicious(os.system, f"touch {mark}"), "system"),
        (lambda mark: Malicious(eval, f"open({str(mark)!r}, 'w')"), "builtin"),
        (lambda mark: Malicious(bytearray, 10**12), "bytearray"),
        (lambda mark: Malicious(torch.UntypedStorage, 10**12), "UntypedStorage"),
    ],
)
def test_a_pickle_runs_nothing(make: Any, name: str, folder: Path) -> None:
    mark, file = folder.parent / "executed", folder / "consolidated.00.pth"
    torch.save({"norm.weight": make(mark)}, file)
    with pytest.raises(LlucidError, match=f"refused, because opening it would call .*{name}"):
        load(folder)
    file.write_bytes(pickle.dumps(make(mark)))
    with pytest.raises(LlucidError, match="not a file of PyTorch's since version"):
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
def test_what_is_read_is_what_torch_reads(state: dict[str, Any], tmp_path: Path) -> None:
    """Each tensor bit for bit, and all else."""

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
    """The archive with other contents under some of its names."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, changes.get(name.rpartition("/")[2].partition(".")[0], content))
    return file


NESTED = b"\x80\x02})q\x00" + b"h\x00h\x00\x86q\x00" * 99


@pytest.mark.parametrize(
    ("pickled", "said"),
    [
        (NESTED + b"h\x00K\x01s.", "a dictionary of keys that are no text"),  # whose hash takes 2⁹⁹ steps
        (NESTED + b"(h\x00K\x01u.", "a dictionary of keys that are no text"),
        (b"\x80\x02" + b"]" * 2**20 + b".", "its pickle is too large"),
        (b"\x80\x02\x8f.", "its pickle has EMPTY_SET, which torch.save does not write"),
        (b"\x80\x02\x8e" + b"\xff" * 8 + b".", "not a whole PyTorch file"),  # bytes of 2⁶⁴
        (b"\x80\x02ctorch\nSize\n)R.", "refused, because opening it would call torch.Size"),
        (b"\x80\x02ctorch\nfloat32\n)R.", "refused, because opening it would call torch.float32"),
        (b"\x80\x02ctorch\nfloat32\n}R.", "refused, because opening it would call torch.float32"),
        (b"\x80\x02cposix\nsystem\n.", r"refused, because opening it would call posix\.system"),
        (b"\x80\x02ctorch\nSizes\n.", r"refused, because opening it would call torch\.Sizes"),
    ],
)
def test_hostile_pickles(pickled: bytes, said: str, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "file")
    file = rewritten(
        tmp_path / "file", data=b"\x80\x02}r\xff\xff\xff\x7f."
    )  # a place in a memo of 2³¹, of which none is made
    assert read_pickle(file) == {}
    with pytest.raises(LlucidError, match=said):
        read_pickle(rewritten(file, data=pickled))


def test_archives_that_lie(tmp_path: Path) -> None:
    """About the order of bytes, and about the place of numbers."""
    torch.save({"a": VIEWS}, tmp_path / "file")
    assert torch.equal(read_pickle(tmp_path / "file")["a"].read().tensor(), VIEWS)
    whole, at = (
        (tmp_path / "file").read_bytes(),
        zipfile.ZipFile(tmp_path / "file").getinfo("file/data/0").header_offset,
    )
    (tmp_path / "none").write_bytes(whole[:at] + b"X" + whole[at + 1 :])
    with pytest.raises(LlucidError, match=r"truncated: file/data/0 is not all there"):
        read_pickle(tmp_path / "none")["a"].read()
    with pytest.raises(LlucidError, match="big-endian"):
        read_pickle(rewritten(tmp_path / "file", byteorder=b"big"))


def test_a_view_of_more_than_there_is(tmp_path: Path) -> None:
    """Length, step and offset: one number further, or of no whole number."""
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
        with pytest.raises(LlucidError, match=r"more numbers than are in the file|impossible shape"):
            read_pickle(file)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    """A few kilobytes could unfold to gigabytes."""
    file = tmp_path / "bomb.pth"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**7))
    with pytest.raises(LlucidError, match="compressed"):
        read_pickle(file)
