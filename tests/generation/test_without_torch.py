"""C and NumPy without PyTorch give the same results as PyTorch on the same files; and PyTorch is not imported."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llucid.arrays import Mapped, Quantized
from llucid.chat import STORYTELLER
from llucid.chat.session import Session
from llucid.checkpoints import load, save
from llucid.config import Config
from llucid.errors import LlucidError
from llucid.generation import (
    Batch,
    Request,
    Sampling,
    Statistics,
    generate,
    generate_batch,
    generator,
    predict,
    reader,
    torch_reader,
)
from llucid.generation.sampling import draw, library_of, softmax, top_p
from llucid.llama import llama, rope_frequencies
from llucid.model import Model
from llucid.native import build
from llucid.rope import frequencies
from llucid.weights import leaves, parameter_count, tensors, to
from tests.checkpoints.models import model_of
from tests.configs import CONFIGS, RESCALED

CONFIG = Config(dim=64, layers=2, heads=4, kv_heads=2, head_dim=32, ffn_dim=96, vocab_size=53, context=48)
"""Rows are multiples of 32, so that they can be quantised. Two of the formats cannot hold this head_dim."""
FORMATS = {
    "huggingface": ("huggingface", "float32", "folder"),
    "huggingface, bfloat16": ("huggingface", "bfloat16", "folder"),
    "meta": ("meta", "float16", "folder"),
    "llama2c": ("llama2c", "float32", "model.bin"),
    "gguf": ("gguf", "float32", "model.gguf"),
    "gguf, bfloat16": ("gguf", "bfloat16", "model.gguf"),
    "gguf, Q8_0": ("gguf", "q8_0", "model.gguf"),
    "gguf, Q4_0": ("gguf", "q4_0", "model.gguf"),
}


@pytest.fixture(autouse=True)
def a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llucid.checkpoints.only_cpu", lambda: True)


def written(folder: Path, name: str, config: Config = CONFIG) -> Path:
    """A file or folder of this format."""
    format, dtype, file = FORMATS[name]
    if format in ("llama2c", "meta"):
        config = replace(config, head_dim=16)
    (folder / "of").mkdir(parents=True)
    model = model_of(config, dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    save(model, folder / "of" / file, format, dtype=dtype)
    return folder / "of" / file


def ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, count).tolist()


def mapped(path: Path) -> Model:
    """The model with memory-mapped weights."""
    model = load(path, quantize="file", mapped=True)
    assert {type(leaf) for leaf in leaves(model.weights)} <= {Mapped, Quantized}
    return model


# --------------------------------------------------------------------------------------------- the equations


def test_logits_equal_the_equations(tmp_path: Path) -> None:
    model, tokens = mapped(written(tmp_path, "huggingface")), ids(40)
    batch = Batch(model)
    batch.read(tokens[:37])
    scores = batch.read(tokens)
    assert batch.reader.weights is model.weights
    expected = llama(torch.tensor([tokens]), model_of(CONFIG).weights, CONFIG)[0, -1]
    torch.testing.assert_close(torch.from_numpy(scores), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", FORMATS)
def test_logits_equal_those_on_tensors(name: str, tmp_path: Path) -> None:
    """To the bit. Other tests compare the step on tensors with the equations."""
    model, tokens = mapped(written(tmp_path, name)), ids(40)
    plain = model._replace(weights=tensors(model.weights))
    assert any(isinstance(leaf, Quantized) for leaf in leaves(plain.weights)) == ("Q" in name)
    one_by_one = Batch(plain)
    for length in range(1, 41):
        expected = one_by_one.read(tokens[:length])
    assert np.array_equal(Batch(model).read(tokens), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_texts_equal_those_with_pytorch(name: str, tmp_path: Path) -> None:
    """C reads the prompts in both. In float32, where both round equally, also beyond the context."""
    path = written(tmp_path, name)
    model, helped = mapped(path), load(path, quantize="file", device="cpu")
    most = 80 if FORMATS[name][1] == "float32" else CONFIG.context - 3
    for sampling in ({"temperature": 0.0}, {"seed": 1}, {"seed": 2, "top_k": 5, "min_p": 0.01}):
        options: dict[str, Any] = sampling | {"max_tokens": most}
        statistics, other = Statistics(), Statistics()
        text = "".join(generate(model, "ABC", statistics=statistics, **options))
        assert text == "".join(generate(helped, "ABC", statistics=other, **options))
        assert (statistics.slid, statistics.prompt_tokens) == (other.slid, other.prompt_tokens) == (most == 80, 3)
        assert text == "".join(generate(model, "ABC", speculate=True, **options))
    prompts = ["ABC", "D", "EFGHI"]
    separate = ["".join(generate(model, prompt, seed=3, max_tokens=12)) for prompt in prompts]
    assert [completion.text for completion in generate_batch(model, prompts, seed=3, max_tokens=12)] == separate
    assert predict(model, "ABC", 3) == predict(helped, "ABC", 3)


@pytest.mark.parametrize("config", [*CONFIGS.values(), RESCALED], ids=[*CONFIGS, "another scaling"])
def test_frequencies_equal_the_equations(config: Config) -> None:
    """Up to the rounding of the power, of the quotient, and of a sum."""
    expected = rope_frequencies(config, torch.empty(1)).numpy()
    np.testing.assert_allclose(frequencies(config), expected, rtol=4 * 2**-24)
    assert frequencies(config).dtype == np.float32


@pytest.mark.parametrize("theta", [1e-300, 1e300])
@pytest.mark.parametrize("config", [CONFIGS["one for two"], RESCALED], ids=["plain", "another scaling"])
def test_a_base_beyond_float32_gives_no_warning(config: Config, theta: float) -> None:
    config = replace(config, rope_theta=theta)
    np.testing.assert_array_equal(frequencies(config), rope_frequencies(config, torch.empty(1)).numpy())


class CountedStep:
    """A step that counts the tokens that it reads and those that it scores."""

    def __init__(self, step: Any) -> None:
        self.step, self.tokens, self.scored = step, 0, 0

    def __call__(self, parts: Any, memory: Any, wanted: Any) -> Any:
        self.tokens += sum(len(new) for new, _, _ in parts)
        self.scored += len(wanted)
        return self.step(parts, memory, wanted)


def with_counted_step(model: Model) -> tuple[Batch, CountedStep]:
    batch = Batch(model)
    batch.reader.step = step = CountedStep(batch.reader.step)  # pyright: ignore[reportAttributeAccessIssue]
    return batch, step


def test_only_the_last_token_of_a_prompt_is_scored(tmp_path: Path) -> None:
    """The logits of all tokens would take much more memory: 0.5 MB per token with Llama 3's vocabulary."""
    batch, step = with_counted_step(mapped(written(tmp_path, "gguf")))
    batch.read(ids(40))
    assert (step.tokens, step.scored) == (40, 1)


@pytest.mark.parametrize(("name", "by_c"), [("gguf", 0), ("gguf, Q8_0", 40)])
def test_pytorch_reads_long_prompts_unless_weights_are_quantised(name: str, by_c: int, tmp_path: Path) -> None:
    model = mapped(written(tmp_path, name))
    batch, step = with_counted_step(model._replace(weights=tensors(model.weights)))
    batch.read(ids(40))
    assert step.tokens == by_c


@pytest.mark.parametrize(("name", "without_torch"), [("gguf", False), ("gguf, Q8_0", True)])
def test_pytorch_is_not_imported_for_quantised_weights(
    name: str, without_torch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "IMPORT_COST", 0)
    batch = Batch(mapped(written(tmp_path, name)))
    batch.read(ids(40))
    assert isinstance(batch.reader.weights.norm, Mapped) == without_torch


def test_logits_do_not_depend_on_the_chunk_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit."""
    model = mapped(written(tmp_path, "gguf"))
    whole = Batch(model).read(ids(40))
    monkeypatch.setattr(reader, "C_CHUNK", 8)
    assert np.array_equal(Batch(model).read(ids(40)), whole)


# --------------------------------------------------------------------------------------------- with PyTorch


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "without_torch"), [(10, 9, True), (11, 9, False), (5, 45, False), (5, 44, True)]
)
def test_pytorch_is_imported_for_long_prompts(
    prompt: int, max_tokens: int, without_torch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For more than ten tokens here; when the context is full, half of it is read again, which is more."""
    model = mapped(written(tmp_path, "gguf"))

    def texts() -> tuple[list[int], bool]:
        batch, tokens = Batch(model), list[int]()
        batch.add(Request(ids(prompt), Sampling(temperature=0.0), generator(0), lambda token: False, max_tokens))
        while events := batch.step():
            tokens += [event.token for event in events]
        return tokens, isinstance(batch.reader.weights.norm, Mapped)

    text, _ = texts()
    monkeypatch.setattr(reader, "IMPORT_COST", parameter_count(CONFIG) * 10)
    monkeypatch.setattr(reader, "C_TOKENS", 1)
    assert texts() == (text, without_torch)


@pytest.mark.parametrize("name", FORMATS)
def test_pytorch_takes_over_in_every_dtype(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GGUF's gains are always float32. Many texts, a long prompt, and without C."""
    path = written(tmp_path, name)
    model, helped = mapped(path), load(path, quantize="file", device="cpu")
    options: dict[str, Any] = dict(max_tokens=6, seed=1)
    monkeypatch.setattr(reader, "IMPORT_COST", 0)
    for limit in ("C_TOKENS", "C_TOKENS_QUANTISED"):
        monkeypatch.setattr(reader, limit, 4)
    many = [[text.text for text in generate_batch(it, ["AB"], samples=5, **options)] for it in (model, helped)]
    assert many[0] == many[1]
    monkeypatch.setattr(reader, "IMPORT_COST", 0)
    prompt = "ABCDE" * 5
    assert list(generate(model, prompt, **options)) == list(generate(helped, prompt, **options))
    monkeypatch.setenv("LLUCID_C", "0")
    assert list(generate(model, prompt, **options)) == list(generate(helped, prompt, **options))


def test_ctrl_c_is_delayed_while_pytorch_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interrupted answer a chat goes on, and a half-imported PyTorch would fail then."""
    model, late = mapped(written(tmp_path, "gguf")), "llucid.generation.torch_reader"

    class Pressed:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == late:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(reader, "IMPORT_COST", 0)
    monkeypatch.delitem(sys.modules, late)
    monkeypatch.setattr("llucid.generation.torch_reader", torch_reader)  # restored afterwards
    monkeypatch.setattr(sys, "meta_path", [Pressed(), *sys.meta_path])
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        next(generate(model, "ABCDE" * 5))
    assert late in sys.modules
    assert signal.getsignal(signal.SIGINT) is handler
    assert next(generate(model, "ABCDE" * 5))


def test_other_threads_do_not_handle_signals() -> None:
    done: list[int] = []

    def work() -> None:
        with reader.delayed_interrupts():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]


def test_pytorch_continues_on_the_cache_of_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, tokens = Batch(mapped(written(tmp_path, "gguf"))), ids(30)
    batch.read(tokens[:20])
    monkeypatch.setattr(reader, "C_TOKENS", 1)
    monkeypatch.setattr(reader, "IMPORT_COST", 0)
    read: list[int] = []
    real = torch_reader.TorchReader.read
    monkeypatch.setattr(
        torch_reader.TorchReader, "read", lambda self, parts: read.append(len(parts[0].ids)) or real(self, parts)
    )
    scores = torch.from_numpy(batch.read(tokens))
    assert read == [10]
    assert isinstance(batch.reader.weights.norm, torch.Tensor)
    expected = llama(torch.tensor([tokens]), model_of(CONFIG).weights, CONFIG)[0, -1]
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_without_c_pytorch_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = mapped(written(tmp_path, "gguf, Q8_0"))
    monkeypatch.setenv("LLUCID_C", "0")
    build.warn.cache_clear()
    batch = Batch(model)
    batch.read([1])
    assert capsys.readouterr().err == "llucid: without C, quantised matrices become float32, 0.0 GB in memory\n"
    assert batch.reader.step is None
    assert all(type(leaf) is torch.Tensor for leaf in leaves(batch.reader.weights))
    assert len("".join(generate(model, "ABC", max_tokens=5, temperature=0.0))) == 5


def test_pytorch_ignores_the_callers_autocast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(written(tmp_path, "gguf"), device="cpu")
    monkeypatch.setenv("LLUCID_C", "0")
    [once] = generate_batch(model, ["ABCDE"], max_tokens=5, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        [again] = generate_batch(model, ["ABCDE"], max_tokens=5, seed=0)
    assert again.logprobs == once.logprobs


def test_weights_that_c_cannot_read_are_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(CONFIG)
    save(model._replace(weights=to(model.weights, torch.float64)), tmp_path / "wide")
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves(load(tmp_path / "wide", mapped=True).weights))
    save(model, tmp_path / "runq.bin", "gguf", dtype="q8_0")
    asked: dict[str, Any]
    for asked in ({"dtype": "float16"}, {"quantize": "int8"}):
        found = load(tmp_path / "runq.bin", device="cpu", mapped=True, **asked)
        assert all(isinstance(leaf, torch.Tensor | Quantized) for leaf in leaves(found.weights))
    found = load(tmp_path / "runq.bin", device="cpu", mapped=True)
    assert {(type(leaf), leaf.dtype) for leaf in leaves(found.weights)} == {(Mapped, "float32")}  # dequantised
    monkeypatch.setattr("llucid.checkpoints.only_cpu", lambda: False)
    save(model, tmp_path / "plain")
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves(load(tmp_path / "plain", mapped=True).weights))
    assert all(isinstance(leaf, Mapped) for leaf in leaves(load(tmp_path / "plain", device="cpu", mapped=True).weights))


# --------------------------------------------------------------------------------------------- parts


def test_logits_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    model = mapped(written(tmp_path, "gguf"))
    broken = model.weights._replace(norm=Mapped("float32", model.weights.norm.numbers * 0 + 0x7FC00000))
    with pytest.raises(LlucidError, match="scores are not finite"):
        list(generate(model._replace(weights=broken), "ABC", max_tokens=1))


@pytest.mark.parametrize("spread", [0.3, 3.0, 30.0])
def test_numpy_samples_as_pytorch_does(spread: float) -> None:
    """The same filters keep the same tokens, except where a sum that is rounded differently crosses p."""
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((64, 700)) * spread).astype(np.float32)
    logits[:32] = np.round(logits[:32])  # with many ties
    tensor = torch.from_numpy(logits)
    for sampling in (
        Sampling(temperature=0.0),
        Sampling(temperature=0.7, top_k=9, top_p=None),
        Sampling(temperature=1.3, top_p=None, min_p=0.03),
        Sampling(temperature=1.0, top_k=300, top_p=None, min_p=0.001),
    ):
        found, expected = sampling(logits), sampling(tensor)
        assert (library_of(found), library_of(expected)) == (np, torch)
        assert np.array_equal(found, expected.numpy())
    np.testing.assert_allclose(softmax(logits), tensor.softmax(-1).numpy(), rtol=1e-5, atol=1e-37)
    kept = [np.isfinite(np.asarray(top_p(x, 0.9))) for x in (logits, tensor)]
    assert (kept[0] != kept[1]).sum() <= 2
    generators = [[np.random.default_rng((row, 0)) for row in range(64)] for _ in "ab"]
    chosen = [np.asarray(draw(x, some)) for x, some in zip((logits, tensor), generators, strict=True)]
    assert (chosen[0] != chosen[1]).sum() <= 1


def probe(code: str, given: str = "", **environment: str) -> str:
    """What a new process prints that runs this code; `given` is its standard input."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("threads", ["", "1", "3"])
def test_the_number_of_threads_is_that_of_pytorch(threads: str) -> None:
    code = "from llucid.native.step import threads; n = threads(); import torch; print(n, torch.get_num_threads())"
    ours, theirs = probe(code, OMP_NUM_THREADS=threads).split()
    assert ours == theirs


@pytest.mark.parametrize("command", ["generate", "chat", "predict"])
def test_pytorch_is_not_imported(command: str, tmp_path: Path) -> None:
    """The packaged storyteller, from the first import to the last word."""
    words = [command, str(STORYTELLER), *(["--seed", "1"] if command != "predict" else [])]
    code = (
        "import sys; from llucid.__main__ import main; import llucid.checkpoints as c; c.only_cpu = lambda: True; "
        f"sys.argv = ['llucid', *{words}, *({command!r} != 'chat') * ['One day']]; "
        "main(); print({'torch', 'typeguard'} & sys.modules.keys())"
    )
    *text, imported = probe(code, "Who are you?\n").splitlines()
    assert imported == "set()"
    assert len("".join(text)) > 20


def test_a_conversation_without_pytorch_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three turns; what was read in one is not read again in the next."""
    talks = []
    for model in (load(STORYTELLER, mapped=True), load(STORYTELLER, device="cpu", dtype="bfloat16")):
        session = Session(model, seed=3, sampling=Sampling(temperature=0.0))
        given = ["".join(session.reply(question)) for question in ("Tell me a tale", "Who is in it?", "Thank you")]
        talks.append((given, session.statistics.prompt_tokens))
    assert talks[0] == talks[1]


FORK = """
import os, signal, sys, threading, time, warnings
from llucid.checkpoints import load
from llucid.generation import generate

warnings.simplefilter("ignore")  # Python warns of forking with threads
imported = threading.Event()


class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "llucid.generation.torch_reader":
            imported.set()
            time.sleep(0.5)


model = load(sys.argv[1], device="cpu")
sys.meta_path.insert(0, Slow())
prompt = "the fox " * 30
thread = threading.Thread(target=lambda: list(generate(model, prompt, max_tokens=1)))
thread.start()
imported.wait()
child = os.fork()
if not child:
    signal.alarm(30)
    import llucid.generation.torch_reader

    os._exit(0)
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_that_forks_while_a_thread_imports() -> None:
    """The child has none of its parent's threads, and would wait for ever for the import to end."""
    assert probe(FORK.replace("sys.argv[1]", repr(str(STORYTELLER)))) == "0\n"
