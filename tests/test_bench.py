"""`llucid bench`: its arithmetic, its rows, and both outputs. Times are not asserted."""

import importlib.util
import json
import math
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import torch

from llucid import bench
from llucid.arrays import Quantized
from llucid.bench import Limits, Row, work
from llucid.cache import empty_cache
from llucid.config import Config
from llucid.errors import LlucidError
from llucid.generation.reader import Reader
from llucid.llama import attention_written_out, llama
from llucid.presets import PRESETS
from llucid.weights import initialise, leaves, parameter_count, quantize, to
from tests.configs import CONFIGS
from tests.engine import greedy
from tests.training.test_run import do

ROOT = Path(__file__).resolve().parent.parent
FIGURES = {"name", "tokens", "seconds", "bytes", "operations", "limits", "tokens_per_second", "limit_seconds"}


def multiplications(config: Config, new: int, before: int) -> int:
    """Counted by PyTorch itself while `llama` runs with attention written out: twice the products, all scored."""
    from torch.utils.flop_counter import FlopCounterMode

    weights = initialise(config)
    with FlopCounterMode(display=False) as counter:
        cache = empty_cache(config, 1, before + new, weights)
        if before:
            _, cache = llama(torch.zeros(1, before, dtype=torch.long), weights, config, cache)
        earlier = counter.get_total_flops()
        llama(torch.zeros(1, new, dtype=torch.long), weights, config, cache)
        return counter.get_total_flops() - earlier


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_operations_equal_those_that_pytorch_counts(config: Config, monkeypatch: pytest.MonkeyPatch):
    """Except for scores that the causal mask hides, which PyTorch counts and a kernel need not compute."""
    monkeypatch.setattr("llucid.fast.attention_fused", attention_written_out)
    weights = initialise(config)
    for new, before in ((1, 7), (6, 0)):
        hidden_scores = 2 * 2 * config.layers * config.heads * config.head_dim * (new * (new - 1) // 2)
        assert work(weights, config, 1, new, before, new)[1] + hidden_scores == multiplications(config, new, before)
        # All counts grow with the rows; positions without logits save the head.
        head = 2 * config.vocab_size * config.dim
        assert work(weights, config, 3, new, before, new)[1] == 3 * work(weights, config, 1, new, before, new)[1]
        saved = work(weights, config, 1, new, before, new)[1] - work(weights, config, 1, new, before, 0)[1]
        assert saved == new * head


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("bits", [None, 8])
def test_bytes_equal_those_of_weights_and_cache(config: Config, bits: Literal[8] | None):
    weights = to(initialise(config), torch.bfloat16)
    weights = quantize(weights, bits) if bits else weights
    memory = Reader(weights, config).pages.memory
    slot = sum(array.nbytes for side in (memory.keys, memory.values) for array in side) // memory.slots

    def size(leaf: Any) -> int:
        arrays = (leaf.numbers, leaf.scales) if isinstance(leaf, Quantized) else (leaf,)
        return sum(array.numel() * array.itemsize for array in arrays)

    looked_up = 0 if config.tied_embeddings else size(weights.embedding)
    every = sum(map(size, leaves(weights)))
    assert work(weights, config, 2, 1, 8, 1)[0] == every - looked_up + 2 * 9 * slot


def test_the_fraction_refers_to_the_tighter_limit():
    limits = Limits(read=100.0, products=1000.0)
    row = Row("x", tokens=4, seconds=2.0, bytes=50, operations=1500, limits=limits)
    assert (row.rate, row.limit, row.fraction) == (2.0, 1.5, 0.75)
    assert row.json()["limit_by"] == "products"
    assert row._replace(bytes=160).fraction == 0.8
    assert row._replace(bytes=160).json()["limit_by"] == "read"


@pytest.fixture
def two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job runs only twice."""
    real = bench.seconds_of
    monkeypatch.setattr(bench, "seconds_of", lambda job, device, **_: real(job, device, budget=0.0, least=1))
    monkeypatch.setattr(bench, "measure_limits", lambda device, dtype: Limits(1e9, 1e9))
    monkeypatch.setattr(bench, "WRITTEN", 10)


@pytest.mark.usefixtures("two_runs")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_every_job_has_a_row(dtype: torch.dtype | None):
    names_reported: list[str] = []
    rows = list(bench.measure(None, "nano", torch.device("cpu"), dtype, names_reported.append))
    names = ["load", "prefill, 64", "decode, 1", "decode, 8", "train, 128"]
    assert [row.name for row in rows] == names
    assert all(row.seconds > 0 and row.limit > 0 for row in rows)
    assert [row.tokens for row in rows] == [0, 64, 1, 8, 128]
    assert len(names_reported) == 5
    numbers = parameter_count(PRESETS["nano"].config) * (2 if dtype else 4)
    assert 0 < rows[0].bytes - numbers < 10_000  # a header
    drawn = bench.table(rows)
    assert drawn.row_count == 5
    assert json.loads(json.dumps([row.json() for row in rows]))[1].keys() > FIGURES


@pytest.mark.usefixtures("two_runs")
def test_a_given_model_is_measured_in_its_own_dtype(tmp_path: Path):
    bench.save(bench.random_model("nano", torch.bfloat16), tmp_path / "model")
    (tmp_path / "model" / "state").mkdir()
    (tmp_path / "model" / "state" / "latest.safetensors").write_bytes(b"state of a run, not weights")
    rows = list(bench.measure(str(tmp_path / "model"), "no such", torch.device("cpu"), None, print))
    assert (
        rows[2].bytes
        == work(to(initialise(PRESETS["nano"].config), torch.bfloat16), PRESETS["nano"].config, 1, 1, 21, 1)[0]
    )
    assert rows[0].bytes == (tmp_path / "model" / "model.safetensors").stat().st_size


@pytest.mark.usefixtures("two_runs")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_quantised_matrices_are_measured_as_the_engine_holds_them(tmp_path: Path, dtype: torch.dtype | None):
    path, config = tmp_path / "model.gguf", PRESETS["nano"].config
    bench.save(bench.random_model("nano", torch.float32), path, "gguf", dtype="q8_0")
    rows = list(bench.measure(str(path), "no such", torch.device("cpu"), dtype, print))
    held = bench.load(path, dtype=dtype, device="cpu", quantize=None if dtype else "file").weights
    assert rows[2].bytes == work(held, config, 1, 1, 21, 1)[0]
    # Q8_0 takes 34 bytes for 32 numbers; norms and the cache add little.
    numbers = parameter_count(config) - math.prod(held.embedding.shape)
    assert rows[2].bytes == pytest.approx(numbers * (2 if dtype else 34 / 32), rel=0.15)


@pytest.mark.parametrize("context", [7, 8])
def test_a_context_without_room_to_write_is_refused(context: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "measure_limits", lambda device, dtype: Limits(1.0, 1.0))
    model = bench.random_model("nano", torch.float32)
    model = model._replace(config=replace(model.config, context=context))
    with (
        nullcontext() if context == 8 else pytest.raises(LlucidError, match="context is 7; measuring needs at least 8")
    ):
        assert bench.decoding(model, torch.device("cpu"), 2).seconds > 0


@pytest.mark.usefixtures("two_runs")
def test_training_is_left_out_without_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "free_memory", lambda device: 1e6)
    rows = list(bench.measure(None, "nano", torch.device("cpu"), None, lambda line: None))
    assert len(rows) == 4


def test_an_unknown_preset_is_refused():
    with pytest.raises(LlucidError, match="preset=huge: unknown; expected one of: nano, "):
        bench.random_model("huge", torch.float32)


@pytest.mark.slow
def test_the_command_prints_a_table_or_json():
    reported = json.loads(do("bench", "--preset", "nano", "--json").stdout)
    assert [row["name"].split(",")[0] for row in reported["rows"]] == ["load", "prefill", "decode", "decode", "train"]
    assert reported["prefetching"].keys() <= {"float32"}
    printed = do("bench", "--preset", "nano").stdout
    for word in ("random weights, nano", "prefill, 64", "tokens/s", "of the limit", "GB/s"):
        assert word in printed


def script(name: str) -> ModuleType:
    """A script of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tied", [False, True])
def test_the_step_for_gpus_equals_the_engine(tied: bool):
    gpu = script("gpu")
    config = replace(PRESETS["nano"].config, kv_heads=1, tied_embeddings=tied)
    weights = gpu.random_weights(config, torch.float64, torch.device("cpu"))
    prompts = torch.randint(config.vocab_size, (3, 6), generator=torch.Generator().manual_seed(1))
    expected = greedy(weights, config, prompts.tolist(), 9)
    for attend in (gpu.attention_fused, gpu.attention_written_out):
        found, seconds = gpu.write(weights, config, prompts, 9, attend, compiled=False)
        assert found.tolist() == expected
        assert seconds > 0
    # Eight bits: the same as the equations on the dequantised weights.
    packed = gpu.eight_bits(weights)
    rounded = gpu.plainly(packed)
    for old, new in zip(leaves(weights), leaves(rounded), strict=True):
        assert (old - new).abs().max() <= old.abs().max() / 127 / 2 * 1.001
    found, _ = gpu.write(packed, config, prompts, 9, gpu.attention_fused, compiled=False)
    same, _ = gpu.write(rounded, config, prompts, 9, gpu.attention_fused, compiled=False)
    assert torch.equal(found, same)
    each = sum(leaf.numel() + 8 * len(leaf) for leaf in leaves(weights) if leaf.ndim == 2)
    gains = sum(leaf.nbytes for leaf in leaves(weights) if leaf.ndim == 1)
    table = weights.embedding.numel() + 8 * len(weights.embedding)
    assert gpu.bytes_read(packed) == gains + each - table + (weights.embedding.nbytes if tied else 0)


@pytest.mark.slow
def test_the_script_for_gpus_runs_on_a_tiny_model(tmp_path: Path):
    out = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--tiny", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    printed_json = json.loads(out.read_text())
    assert len(printed_json["rows"]) == 3 + 3 + 2 + 1
    assert not [row for row in printed_json["rows"] if "failed" in row]
    assert all(0 < row.get("fraction_of_copy_bandwidth", 0.5) < 1 for row in printed_json["rows"])


def test_peers_are_in_one_table_and_one_chart(tmp_path: Path):
    peers = script("peers")
    known = {
        "decode, tiny, F32": {
            "on": "here",
            "date": "2000-01-01",
            "tokens_per_second": {
                "llucid": [10.0, 30.0, 20.0],
                "other": [10.0, 10.0, 40.0],
                "limit": [40.0, 40.0, 40.0],
            },
        }
    }
    # Pairs: 1, 3 and 0.5; of the limit: 0.25, 0.75 and 0.5.
    row = "| decode, tiny, F32 | 20.0 | 0.50 | other 10.0 (**1.00**) | here, 2000-01-01, 3 rounds |"
    assert peers.table(known).splitlines()[-1] == row
    peers.chart(known, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_peers_alternate():
    peers = script("peers")
    turns: list[str] = []

    def job(name: str) -> float:
        turns.append(name)
        return float(len(turns))

    found = peers.alternate({name: partial(job, name) for name in "ab"}, partial(job, "limit"), 2)
    assert turns == ["a", "b", "limit", "a", "b", "limit", "b", "a"]
    assert found == {"a": [4.0, 8.0], "b": [5.0, 7.0], "limit": [3.0, 6.0]}
