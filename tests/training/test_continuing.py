"""Runs that are stopped, killed, continued, or given unusual names and surroundings."""

import errno
import io
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import transformers
from rich.console import Console
from safetensors.torch import load_file

import llucid
from llucid.checkpoints import Model
from llucid.config import Config
from llucid.errors import LlucidError
from llucid.files import MOVING, locked_folder, temporary_name
from llucid.tokenizers import load_tokenizer
from llucid.tokenizers.sentencepiece_model import SentencePiece
from llucid.training import ModelNumbers, Settings, busy, logbook, loop, run, train
from llucid.training.backend_torch import TorchBackend
from llucid.training.report import Report
from llucid.training.run import Metrics, Progress
from llucid.training.settings import read_toml
from llucid.training.snapshots import Snapshots
from llucid.weights import initialise, leaves
from tests.checkpoints.models import model_of
from tests.checkpoints.test_hostile import TINY
from tests.tokenizers.test_sentencepiece_model import tied_model, tied_texts
from tests.tokenizers.texts import sentencepiece_model, small_llama2c
from tests.training.test_run import TEXT, after, ended, fresh, losses, progress

SMALL: dict[str, Any] = {"preset": "nano", "model": ModelNumbers(dim=16, context=16), "batch": 4, "dtype": "float32"}
RUINOUS = "abc" * 3000 + "cba" * 333
"""A text that ruins the model for its validation split."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "geese.txt"
    file.write_text(TEXT)
    return file


def small(corpus: Path | str, out: Path | str | None, **settings: Any) -> str:
    """Trains in this process and returns what was printed."""
    printed = io.StringIO()
    train(Settings(corpus=(str(corpus),), out=out and str(out), **SMALL | settings), Console(file=printed, width=200))
    return printed.getvalue()


def resumed(out: Path, **settings: Any) -> str:
    printed = io.StringIO()
    train(Settings(resume=True, out=str(out), **settings), Console(file=printed, width=200))
    return printed.getvalue()


def measured(out: Path) -> list[int]:
    return [row["step"] for row in losses(out) if "validation" in row]


# ------------------------------------------------------------------------------------------------------ resuming


def test_a_finished_run_continues_with_more_steps(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small(corpus, out, steps=6, evaluations=2)
    with pytest.raises(LlucidError, match=r"steps=5: the run in .* has done 6 already"):
        resumed(out, steps=5)
    with pytest.raises(LlucidError, match="seed=3: a resumed run keeps what it began with"):
        resumed(out, seed=3)
    resumed(out, steps=12, learning_rate=0.5, batch=2)
    assert [row["step"] for row in losses(out)] == list(range(1, 13))
    assert measured(out) == [3, 6, 12]
    settings = read_toml(out / "train.toml")
    assert (settings.steps, settings.learning_rate, settings.batch) == (12, 0.5, 2)
    resumed(out, minutes=1000.0, stop_after=1)
    assert (read_toml(out / "train.toml").steps, len(losses(out))) == (None, 13)


def test_a_run_resumes_in_another_working_directory(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where the text has been moved to another place."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path / "texts")
    small("a.txt", "../run", steps=4, stop_after=1)
    monkeypatch.chdir(tmp_path)
    resumed(tmp_path / "run", stop_after=1)
    (tmp_path / "texts").rename(tmp_path / "moved")
    with pytest.raises(LlucidError, match=r"texts/a\.txt: no such file or folder"):
        resumed(tmp_path / "run")
    resumed(tmp_path / "run", corpus=("moved/a.txt",))
    assert len(losses(tmp_path / "run")) == 4


def test_a_run_that_another_process_continues_meanwhile_is_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, prepare = tmp_path / "run", loop.prepare
    small(corpus, out, steps=4, stop_after=1)

    def overtaken(*arguments: Any) -> object:
        monkeypatch.setattr(loop, "prepare", prepare)
        found = prepare(*arguments)
        resumed(out, stop_after=1)
        return found

    monkeypatch.setattr(loop, "prepare", overtaken)
    with pytest.raises(
        LlucidError, match="another process has continued the run meanwhile; give the same command again"
    ):
        resumed(out)
    resumed(out)
    assert [row["step"] for row in losses(out)] == [1, 2, 3, 4]


def test_training_stops_when_it_does_not_improve(tmp_path: Path) -> None:
    out, corpus = tmp_path / "run", tmp_path / "text.txt"
    corpus.write_text(RUINOUS)
    printed = small(corpus, out, steps=100, evaluations=50, patience=3)
    found = [row["validation"] for row in losses(out) if "validation" in row]
    best = found.index(min(found))
    assert best == len(found) - 4
    assert len(losses(out)) < 100
    assert f"stopped early at step {len(losses(out))}: 3 measurements did not improve" in printed
    assert f"the model in the folder is that of step {2 * best + 2}, the best one measured" in printed
    said = f"the run stopped early, after {len(losses(out))} steps; to continue it, give another patience"
    assert said in resumed(out)
    resumed(out, patience=5)
    assert len(losses(out)) > 2 * len(found)


def test_measurements_on_shorter_windows_than_the_best_one_do_not_count(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small(corpus, out, steps=10, evaluations=1, length_warmup=0.7, model=ModelNumbers(dim=16, context=256))
    assert "stopped early" not in resumed(out, steps=40, evaluations=20, patience=1, stop_after=8)
    assert measured(out) == [10, 12, 14, 16, 18]
    assert [row["window"] for row in losses(out) if "window" in row] == [256, 64, 64, 64, 64]


def test_the_time_of_a_measurement_includes_the_curve(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logbook, "write_png", lambda *arguments: time.sleep(2))
    small(corpus, tmp_path / "run", steps=1)
    assert run.read_measured(tmp_path / "run", Progress(1)).took >= 2


def test_a_measurement_is_kept_before_its_curve_is_drawn(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And patience counts from 0 before other settings are kept: a kill may come between."""
    out = tmp_path / "run"
    monkeypatch.setattr(logbook, "write_png", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        small(corpus, out, steps=3, evaluations=1)
    kept = run.read_measured(out, Progress(3))
    assert kept.model_step == 3
    run.write_measured(out, kept._replace(worse=2))
    monkeypatch.setattr(run, "write_text_atomically", Mock(side_effect=MemoryError))
    monkeypatch.setattr(run, "write_measured", written := Mock())
    with pytest.raises(MemoryError):
        run.keep_settings(out, Settings(), Progress(3))
    assert written.call_args[0][1].worse == 0


def test_a_cache_that_is_cleared_costs_no_step(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cleared(*arguments: Any) -> object:
        if arguments[-1] == 3:
            shutil.rmtree(tmp_path / "cache" / "tokens")
        return take(*arguments)

    out, take = tmp_path / "run", loop.training_batch
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path / "cache"))
    small(corpus, tmp_path / "straight", steps=5)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_batch", cleared)
        with pytest.raises(
            LlucidError, match=r"No such file or directory; stopped at step 3; continue with resume=True"
        ):
            small(corpus, out, steps=5)
    assert progress(out)["step"] == 3
    resumed(out)
    assert losses(out) == losses(tmp_path / "straight")


@pytest.mark.parametrize(
    ("place", "error", "kind", "message"),
    [
        ((Report, "busy"), OSError(errno.EIO, "a reason"), LlucidError, "^a reason; stopped at step 1; continue with"),
        ((Report, "busy"), SystemExit(1), SystemExit, "1"),
        ((Snapshots, "take"), OSError(errno.ENOSPC, "no room"), LlucidError, "^no room; stopped at step 1; continue"),
    ],
    ids=["terminal", "pipe", "disk"],
)
def test_output_that_fails_costs_no_step(
    place: tuple[type, str],
    error: BaseException,
    kind: type[BaseException],
    message: str,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a terminal that has closed, a pipe whose reader has ended (rich raises SystemExit), or on a full disk."""
    monkeypatch.setattr(logbook, "WATCH_EVERY", 0)
    monkeypatch.setattr(logbook, "HIGHEST_SHARE", -1)
    monkeypatch.setattr(*place, Mock(side_effect=error))
    with pytest.raises(kind, match=message):
        small(corpus, tmp_path / "run", steps=5, snapshots=5, evaluations=1)
    assert progress(tmp_path / "run")["step"] == 1 == len(losses(tmp_path / "run"))


# ------------------------------------------------------------------------------------------------------ stopping


def test_a_stopped_run_keeps_what_it_has_learned(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    printed = small(corpus, out, steps=100, evaluations=1, stop_after=5)
    assert "step 5 " in printed
    assert "the model in the folder is" not in printed
    latest = load_file(out / "state" / "latest.safetensors")["weights.embedding"]
    assert torch.equal(llucid.load(out, device="cpu").weights.embedding, latest)
    assert not measured(out)


def test_a_worse_model_does_not_replace_a_better_one_when_stopped(tmp_path: Path) -> None:
    out, corpus = tmp_path / "run", tmp_path / "text.txt"
    corpus.write_text(RUINOUS)
    printed = small(corpus, out, steps=24, evaluations=12, stop_after=23)
    found = [row["validation"] for row in losses(out) if "validation" in row]
    best = 2 * found.index(min(found)) + 2
    assert f"the model in the folder is that of step {best}, the best one measured" in printed
    latest = load_file(out / "state" / "latest.safetensors")["weights.embedding"]
    assert not torch.equal(llucid.load(out, device="cpu").weights.embedding, latest)


@pytest.mark.parametrize("last", [2.0, *(pytest.param(last, marks=pytest.mark.slow) for last in (1.2, 0.5))])
def test_a_stop_leaves_no_trace_in_the_run_that_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: float
) -> None:
    """It stops four times: the better models of steps 5 and 7 are in the folder until the next measurement."""
    out, straight, steps = tmp_path / "run", tmp_path / "straight", {"steps": 12, "evaluations": 3}
    validation = iter([1.5, 1.4, last, *(1.5, 1.0), *(1.2,), *(0.9,), *(1.4, 1.45), *(last,)])
    monkeypatch.setattr(TorchBackend, "evaluate", lambda *_: next(validation))
    small(corpus, straight, **steps)

    def held() -> bool:
        latest = load_file(out / "state" / "latest.safetensors")["weights.embedding"]
        return torch.equal(llucid.load(out, device="cpu").weights.embedding, latest)

    small(corpus, out, stop_after=5, **steps)
    assert held()
    assert "the model in the folder is that of step 5, the best one measured" in resumed(out, stop_after=1)
    assert "the model in the folder is" not in resumed(out, stop_after=1)
    assert held()
    assert "the model in the folder is that of step 8, the best one measured" in resumed(out, stop_after=2)
    printed = resumed(out)
    assert ("the model in the folder is that of step 8, the best one measured" in printed) == (last == 2.0)
    assert losses(out) == losses(straight)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert {path.name for path in (out / "state").iterdir()} == {path.name for path in (straight / "state").iterdir()}


@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_interrupts_after_saving(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """A second one ends the measurement. A message says that the model is untrained."""
    out, printed = tmp_path / "run", io.StringIO()
    take, evaluate = loop.training_batch, TorchBackend.evaluate

    def interrupting(*arguments: Any) -> object:
        if arguments[-1] == 2:
            signal.raise_signal(signal.SIGINT)
        return take(*arguments)

    def interrupted(*arguments: Any) -> float:
        if again:
            signal.raise_signal(signal.SIGINT)
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "training_batch", interrupting)
    monkeypatch.setattr(TorchBackend, "evaluate", interrupted)
    settings = Settings(corpus=(str(corpus),), out=str(out), steps=50, evaluations=1, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        train(settings, Console(file=printed, width=200))
    assert progress(out)["step"] == 3
    assert "stopped at step 3; continue with: llucid train --resume" in printed.getvalue()
    assert ("the model in the folder is untrained" in printed.getvalue()) == again


def test_a_second_ctrl_c_while_the_state_is_saved(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed is what was saved."""
    out, printed, save = tmp_path / "run", io.StringIO(), TorchBackend.save

    def interrupted(backend: TorchBackend, folder: Path, state: Any, progress: Progress) -> None:
        if progress.step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        save(backend, folder, state, progress)

    monkeypatch.setattr(TorchBackend, "save", interrupted)
    settings = Settings(corpus=(str(corpus),), out=str(out), steps=50, evaluations=25, stop_after=3, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        train(settings, Console(file=printed, width=200))
    assert progress(out)["step"] == 2
    assert "stopped at step 2; continue with: llucid train --resume" in printed.getvalue()


def test_a_state_is_saved_before_it_is_measured(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If measuring fails, as without enough memory, the resumed run measures first; the result is that of any run."""
    out, straight = tmp_path / "run", tmp_path / "straight"
    how = {"steps": 8, "evaluations": 2}
    small(corpus, straight, **how)

    def failing(*arguments: Any) -> float:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(TorchBackend, "evaluate", failing)
        with pytest.raises(MemoryError):
            small(corpus, out, **how)
    assert progress(out)["step"] == 4
    assert not measured(out)
    resumed(out)
    assert losses(out) == losses(straight)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_samples_and_curve_that_a_kill_prevented_are_made(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small(corpus, out, steps=4, evaluations=2)
    before = (out / "samples.txt").read_bytes()
    (out / "samples.txt").write_text("half")
    (out / "curve.png").unlink()
    resumed(out)
    assert (out / "samples.txt").read_bytes() == before
    assert (out / "curve.png").is_file()


# --------------------------------------------------------------------------------------------- when it is measured


@pytest.mark.parametrize(("minutes", "expected"), [(2.0, 3), (20.0, 6)])
def test_measuring_begins_early_and_takes_a_tenth_of_the_time(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, expected: int
) -> None:
    """A step takes one second and a measurement four, on a clock that the test replaces."""
    now, take, evaluate, out = 0.0, loop.training_batch, TorchBackend.evaluate, tmp_path / "run"

    def batch(*arguments: Any) -> object:
        nonlocal now
        now += 1
        return take(*arguments)

    def slowly(*arguments: Any) -> float:
        nonlocal now
        now += 4
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "training_batch", batch)
    monkeypatch.setattr(TorchBackend, "step", lambda self, batch, state, rate: (torch.tensor(1.0), state))
    monkeypatch.setattr(TorchBackend, "evaluate", slowly)
    monkeypatch.setattr(logbook, "write_png", lambda *_: None)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    small(corpus, out, minutes=minutes)
    steps = measured(out)
    assert len(steps) == expected
    assert steps[0] <= 24
    assert steps[-1] == len(losses(out))
    assert 4 * len(steps) <= 0.1 * now


@pytest.mark.parametrize("steps", [10, 2000])
def test_time_does_not_decide_which_steps_are_measured(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """With a number of steps. Measuring takes a minute or nothing, on a clock that the test replaces."""
    found, evaluate = list[list[int]](), TorchBackend.evaluate
    monkeypatch.setattr(TorchBackend, "step", lambda self, batch, state, rate: (torch.tensor(1.0), state))
    monkeypatch.setattr(logbook, "write_png", lambda *_: None)
    now, took = 0.0, 0.0

    def slowly(*arguments: Any) -> float:
        nonlocal now
        now += took
        return evaluate(*arguments)

    monkeypatch.setattr(TorchBackend, "evaluate", slowly)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    for took in (0.0, 60.0):
        small(corpus, tmp_path / f"{took}", steps=steps)
        found.append(measured(tmp_path / f"{took}"))
    assert found[0] == found[1]
    assert len(found[0]) == (1 if steps == 10 else 6)


def test_a_run_of_steps_is_measured_in_a_tenth_of_its_steps() -> None:
    """A measurement of 9600 tokens costs as much as 20 steps and as evaluating 9600 tokens, which is 100 / 3 steps."""
    for steps, parts, early in ((1, 1, 0), (1066, 1, 0), (1067, 2, 0), (3199, 5, 0), (3200, 5, 534)):
        assert logbook.planned(Settings(steps=steps, batch=6), 16, 9600) == (parts, early)
    assert logbook.planned(Settings(steps=9999, batch=6, evaluations=3), 16, 9600) == (3, 0)


def test_measuring_needs_no_more_memory_than_a_step(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, sizes = TorchBackend.evaluate, list[int]()

    def seen(self: TorchBackend, batches: Any, state: Any) -> float:
        kept = list(batches)
        sizes.extend(inputs.numel() for inputs, _ in kept)
        return evaluate(self, iter(kept), state)

    monkeypatch.setattr(TorchBackend, "evaluate", seen)
    small(corpus, tmp_path / "run", steps=1, accumulate=2)
    assert max(sizes) == 4 * 16 // 2


# ------------------------------------------------------------------------------------------------------ fine-tuning


def test_a_base_that_nothing_improves_is_kept(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, out, losses_found = tmp_path / "base", tmp_path / "run", iter([1.0, 1.5, 2.0])
    small(corpus, base, steps=20)
    (base / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6}')
    monkeypatch.setattr(TorchBackend, "evaluate", lambda *_: next(losses_found))
    settings = {"base": str(base), "steps": 4, "evaluations": 2, "preset": None, "model": ModelNumbers()}
    printed = small(corpus, out, **settings, length_warmup=1.0)
    assert measured(out)[0] == 0
    assert "the weights in the folder are the base's, unchanged" in printed
    windows = {row["window"] for row in losses(out) if "window" in row}  # also while training windows are shorter
    found = llucid.load(out, device="cpu")
    assert windows == {found.config.context}
    assert found.sampling == {"temperature": 0.6}  # which is the base's, too
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, base))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_base_whose_tokenizer_has_no_end_goes_on_without_one(corpus: Path, tmp_path: Path) -> None:
    """Its file is kept as it is, as one of transformers' Llama class, which would have BOS and EOS."""
    tokenizer = SentencePiece(sentencepiece_model("unigram", bos_id=-1, eos_id=-1))
    sizes = dict(dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn_dim=16, context=16)
    for more in (0, 8):
        base, out = tmp_path / f"base{more}", tmp_path / f"run{more}"
        config = Config(**sizes, vocab_size=tokenizer.vocab_size + more)
        llucid.save(Model(config, initialise(config, 0), tokenizer), base)
        settings = {"base": str(base), "steps": 4, "preset": None, "model": ModelNumbers()}
        small(corpus, out, **settings, stop_after=2)
        resumed(out)
        small(corpus, whole := tmp_path / f"whole{more}", **settings)
        ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        for folder in (base, out):
            found = llucid.load(folder, device="cpu").text()
            assert (found.bos, found.eos, found.vocab_size) == (None, None, tokenizer.vocab_size)
        assert transformers.AutoTokenizer.from_pretrained(out).eos_token is None


@pytest.mark.parametrize("kind", ["padding", "without an end", "without a beginning", "added", "llama2.c"])
def test_a_run_with_a_tokenizer_from_elsewhere_goes_on(kind: str, corpus: Path, tmp_path: Path) -> None:
    """Of files that name tokens in no vocabulary, and that transformers' Llama class gives such tokens. Its samples are
    decoded alike before and after, also bytes that are not UTF-8."""
    files = tmp_path / "tokenizer"
    files.mkdir()
    choice = {"without an end": {"bos_id": -1, "eos_id": -1}, "without a beginning": {"bos_id": -1}}.get(kind)
    model = sentencepiece_model("bpe" if choice is None else "unigram", **choice or {})
    (files / "tokenizer.model").write_bytes(model)
    size = SentencePiece(model).vocab_size
    if kind in ("padding", "added"):
        config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]"}
        (files / "tokenizer_config.json").write_text(json.dumps(config))
    if kind == "added":
        (files / "added_tokens.json").write_text(json.dumps({"[PAD]": size}))
    if kind == "llama2.c":
        small_llama2c().write(files := tmp_path / "tokenizer.bin")
    settings = {"tokenizer": str(files), "steps": 4, "evaluations": 2}
    small(corpus, out := tmp_path / "run", **settings, stop_after=2)
    resumed(out)
    small(corpus, whole := tmp_path / "whole", **settings)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (out / "samples.txt").read_text() == (whole / "samples.txt").read_text()
    resumed(out, steps=6)
    one, two = load_tokenizer(files), llucid.load(out, device="cpu").text()
    assert (one.vocab_size, one.bos, one.eos, one.stop_ids) == (two.vocab_size, two.bos, two.eos, two.stop_ids)


def test_a_tokenizer_that_would_change_is_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, out = tmp_path / "base", tmp_path / "run"
    small(corpus, base, steps=1)
    change = "llucid.checkpoints.first_difference"
    monkeypatch.setattr(change, lambda one, two: "as if")
    for settings in ({"base": str(base), "preset": None, "model": ModelNumbers()}, {"tokenizer": str(base)}):
        with pytest.raises(LlucidError, match=f"{out}: not written, since the tokenizer would change: as if"):
            small(corpus, out, steps=1, **settings)
    assert not out.exists()


def test_no_snapshot_is_of_weights_that_are_not_numbers(corpus: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 1e30, "clip": 1e34, "warmup": 0.0, "optimizer": "adamw", "steps": 20}
    with pytest.raises(LlucidError, match=r"are not finite|is nan|is inf"):
        small(corpus, out := tmp_path / "run", **settings, snapshots=20, evaluations=1)
    for snapshot in (out / "snapshots").glob("*"):
        assert all(leaf.isfinite().all() for leaf in leaves(llucid.load(snapshot, device="cpu").weights))


def test_snapshots_keep_the_sampling_settings_of_the_base(corpus: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "run"
    small(corpus, base, steps=2)
    (base / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6, "top_k": 5}')
    settings = {"base": str(base), "steps": 4, "preset": None, "model": ModelNumbers()}
    small(corpus, out, **settings, snapshots=2, stop_after=2)
    resumed(out)
    snapshots = [*(out / "snapshots").iterdir()]
    assert len(snapshots) == 2
    for path in (out, *snapshots):
        assert llucid.load(path, device="cpu").sampling == {"temperature": 0.6, "top_k": 5}


def test_a_kill_before_the_first_step_does_not_measure_the_base_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured twice, it would count as one that did not improve, and end a run with patience=1."""
    base, out = tmp_path / "base", tmp_path / "run"
    small(corpus, base, steps=2)

    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(TorchBackend, "step", killed)
        with pytest.raises(SystemExit):
            small(corpus, out, base=str(base), steps=4, patience=1, preset=None, model=ModelNumbers())
        with pytest.raises(SystemExit):
            resumed(out)
    assert run.read_measured(out, Progress()).worse == 0
    assert measured(out) == [0]


def test_a_base_without_a_tokenizer_takes_one(
    data: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of llama2.c's .bin is another file. The same may be given to go on, even when it is gone."""
    numbers: dict[str, Any] = {"preset": None, "model": ModelNumbers(context=16)}
    bare = tmp_path / "model.bin"
    bare.write_bytes((data / "stories260K.bin").read_bytes())
    (tmp_path / "tok.bin").write_bytes((data / "tok512.bin").read_bytes())
    monkeypatch.chdir(tmp_path)
    small(corpus, "run", base="model.bin", tokenizer="tok.bin", steps=2, **numbers)
    bare.unlink()
    (tmp_path / "tok.bin").unlink()
    monkeypatch.chdir("run")
    resumed(tmp_path / "run", base="../model.bin", tokenizer="../tok.bin", steps=3)
    with pytest.raises(LlucidError, match=r"tokenizer=tok\.bin: a resumed run keeps"):
        resumed(tmp_path / "run", tokenizer="tok.bin")
    assert llucid.load(tmp_path / "run", device="cpu").config.context == 16
    with pytest.raises(LlucidError, match="tokenizer=bpe:300: base= already has its own"):
        Settings(base=str(bare), tokenizer="bpe:300")


# ------------------------------------------------------------------------------------------------ folders and names


def test_a_base_that_no_tokenizer_json_expresses_resumes_with_its_ids(tmp_path: Path) -> None:
    """With pieces of equal scores, as extended Llamas have them, of which SentencePiece takes the leftmost."""
    tokenizer = SentencePiece(tied_model())
    config = replace(TINY, vocab_size=tokenizer.vocab_size, context=64)
    llucid.save(model_of(config)._replace(tokenizer=tokenizer), tmp_path / "base")
    corpus = tmp_path / "text.txt"
    corpus.write_text("\n".join(tied_texts() * 20), encoding="utf-8")
    given = dict(base=str(tmp_path / "base"), steps=4, evaluations=2, preset=None, model=ModelNumbers())
    small(corpus, tmp_path / "straight", **given)
    small(corpus, tmp_path / "run", stop_after=2, **given)
    resumed(tmp_path / "run")
    values = [[row.get("loss") for row in losses(tmp_path / name)] for name in ("run", "straight")]
    assert values[0] == values[1]
    again = load_tokenizer(tmp_path / "run")
    assert all(again.encode(text) == tokenizer.encode(text) for text in tied_texts())


def test_runs_with_the_same_name_are_numbered(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others appear between the choice of a name and the end of making the folder."""
    monkeypatch.chdir(tmp_path)
    free, others = run.free_name, [Path("runs/geese"), Path("runs/geese-2")]

    def raced(name: str) -> Path:
        found = free(name)
        if others and found == others[0]:
            other = others.pop(0)
            save = TorchBackend.save

            def late(*arguments: Any) -> None:
                save(*arguments)
                monkeypatch.setattr(TorchBackend, "save", save)
                (other / "state").mkdir(parents=True)

            monkeypatch.setattr(TorchBackend, "save", late)
        return found

    monkeypatch.setattr(run, "free_name", raced)
    small(corpus, None, steps=1)
    assert len(losses(Path("runs/geese-3"))) == 1
    assert not list(tmp_path.rglob("*.partial"))


def test_a_killed_creation_can_begin_again(corpus: Path, tmp_path: Path) -> None:
    """A kill between two moves into an existing folder, or before a new one; files of running processes stay."""
    out, other = tmp_path / "run", tmp_path / ("o[r]" * 60)
    small(corpus, out, steps=1)
    (out / ".run.4194999.partial").mkdir()
    (out / "train.toml").rename(out / ".run.4194999.partial" / "train.toml")
    for name in ("curve.png", "samples.txt"):
        (out / name).unlink()
    moved = [(path.name, path.stat()) for path in out.iterdir() if path.suffix != ".partial"]
    moving = {name: (found.st_ino, found.st_mtime_ns) for name, found in moved} | {"train.toml": (1, 1)}
    (out / ".run.4194999.partial" / MOVING).write_text(json.dumps(moving))
    with pytest.raises(LlucidError, match="there is no run here to continue"):
        resumed(out)
    small(corpus, out, steps=2)
    assert len(losses(out)) == 2
    left, running = (tmp_path / temporary_name(other.name, f"{os.getpid()}-{number}") for number in range(2))
    (left / "state").mkdir(parents=True)
    running.mkdir()
    with locked_folder(running):
        small(corpus, other, steps=1)
    assert [*tmp_path.glob(".*")] == [running]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "train.toml").touch()
    (tmp_path / "notes" / ".notes.4194999.partial").mkdir()
    with pytest.raises(LlucidError, match="something is there already"):
        small(corpus, tmp_path / "notes", steps=1)


NAMES = ["a$b_$c.txt", "exp[lr=3e-4]", "x[/y]", ":smile: %s {0}", "漢😀", os.fsdecode(b"caf\xe9.txt")]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_are_printed_and_drawn_as_they_are(tmp_path: Path, name: str) -> None:
    utf8 = "caf" not in name  # another corpus cannot be named in train.toml
    text, out = tmp_path / name, tmp_path / "runs" / name
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text(TEXT)
    printed = small(text, out, steps=2, stop_after=1)
    assert os.fsencode(out.name).decode(errors="replace") in printed.split("continue with")[1]
    again: dict[str, Any] = {} if utf8 else {"corpus": (str(text),)}
    resumed(out, **again)
    assert len(losses(out)) == 2
    assert (out / "curve.png").is_file()


def test_a_full_disk_names_the_file_of_the_figures(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0, Settings())
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        metrics.add([{"step": 1, "loss": 1.0, "rate": 1.0}])
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")


# ------------------------------------------------------------------------------------------------------ surroundings


def test_pytorchs_defaults_are_the_callers(corpus: Path, tmp_path: Path) -> None:
    small(corpus, tmp_path / "plain", steps=3)
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("meta")
    try:
        with torch.inference_mode(), torch.autocast("cpu"):
            small(corpus, tmp_path / "odd", steps=3)
        assert (torch.get_default_dtype(), torch.get_default_device().type) == (torch.bfloat16, "meta")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    states = [load_file(tmp_path / name / "state" / "latest.safetensors") for name in ("plain", "odd")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_snapshots_are_models(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small(corpus, out, steps=16, snapshots=5, stop_after=9)
    assert sorted(path.name for path in (out / "snapshots").iterdir()) == ["step-1", "step-2", "step-4", "step-8"]
    (out / "snapshots" / "step-12").mkdir()  # beyond the state
    resumed(out)
    found = {int(path.name.removeprefix("step-")): path for path in (out / "snapshots").iterdir()}
    assert sorted(found) == [1, 2, 4, 8, 16]
    last = llucid.load(found[16], device="cpu")
    assert last.weights.embedding.dtype == torch.bfloat16
    latest = load_file(out / "state" / "latest.safetensors")["weights.embedding"]
    assert torch.equal(last.weights.embedding, latest.bfloat16())
    assert last.text().encode("fox")


@pytest.mark.parametrize("lost", [4, 8])
def test_a_kill_between_state_and_snapshot_loses_no_snapshot(lost: int, corpus: Path, tmp_path: Path) -> None:
    """The state of step 4 is within the run, that of step 8 is its end."""
    out = tmp_path / "run"
    small(corpus, out, steps=8, snapshots=4, stop_after=lost)
    shutil.rmtree(out / "snapshots" / f"step-{lost}")
    resumed(out)
    assert sorted(path.name for path in (out / "snapshots").iterdir()) == ["step-1", "step-2", "step-4", "step-8"]


def test_snapshots_are_spread_also_where_the_number_of_steps_is_a_guess(tmp_path: Path) -> None:
    for count, expected in ((0, []), (1, [100]), (2, [1, 100]), (4, [1, 5, 22, 100])):
        snapshots = Snapshots(tmp_path, count, 0)
        for step in range(1, 101):
            if snapshots.due(step, 100.0):
                snapshots.steps.append(step)
        assert snapshots.steps == expected
    growing = Snapshots(tmp_path, 4, 0)
    for step in range(1, 101):
        if growing.due(step, min(100.0, 20.0 + step)):
            growing.steps.append(step)
    assert len(growing.steps) in (3, 4)
    assert growing.steps[-1] <= 100


def test_weights_and_biases_gets_the_figures(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[dict[str, float], int]] = []
    begun: list[dict[str, Any]] = []
    ended: list[int] = []

    def init(**options: Any) -> object:
        begun.append(options)
        return SimpleNamespace(log=lambda figures, step: logged.append((figures, step)), finish=ended.append)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    small(corpus, tmp_path / "run", steps=2, evaluations=1, wandb=True)
    assert [step for _, step in logged] == [1, 2, 2]
    assert logged[-1][0] == {"validation": losses(tmp_path / "run")[-1]["validation"]}
    resumed(tmp_path / "run", steps=3)
    assert begun[0]["id"] == begun[1]["id"]
    assert json.dumps(begun[0]["config"])
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    resumed(tmp_path / "copy", steps=4)
    shutil.rmtree(tmp_path / "run")
    small(corpus, tmp_path / "run", steps=1, wandb=True)
    assert len({options["id"] for options in begun}) == 3
    assert len(ended) == len(begun)


def test_a_missing_library_is_named_before_anything_is_written(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was begun with it continues without it."""
    libraries = {"wandb": "wandb", "tensorboard": "torch.utils.tensorboard.writer"}
    for module in libraries.values():
        monkeypatch.setitem(sys.modules, module, None)
    for name in libraries:
        with pytest.raises(LlucidError, match=f"^{name}=True: .* is not installed; .*, or use {name}=False$"):
            small(corpus, tmp_path / "run", steps=2, **{name: True})
    assert not list(tmp_path.iterdir())
    small(corpus, tmp_path / "run", steps=2)
    before = (tmp_path / "run" / "train.toml").read_text()
    with pytest.raises(LlucidError, match="wandb=True: Weights & Biases is not installed"):
        resumed(tmp_path / "run", steps=3, wandb=True)
    assert (tmp_path / "run" / "train.toml").read_text() == before
    (tmp_path / "run" / "train.toml").write_text(before.replace("wandb = false", "wandb = true"))
    with pytest.raises(LlucidError, match="wandb=True: Weights & Biases is not installed"):
        resumed(tmp_path / "run", steps=3)
    resumed(tmp_path / "run", steps=3, wandb=False)
    assert len(losses(tmp_path / "run")) == 3


# ------------------------------------------------------------------------------------------------------ busy machines


def test_a_busy_machine_is_reported_once(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread waits for a core in 30 % of the time, on clocks that the test replaces."""
    now, take = 0.0, loop.training_batch

    def batch(*arguments: Any) -> object:
        nonlocal now
        now += 1
        return take(*arguments)

    monkeypatch.setattr(loop, "training_batch", batch)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(busy, "waited", lambda: {"1": 0.3 * now, "2": 0.1 * now})
    printed = small(corpus, tmp_path / "run", steps=40, evaluations=1)
    assert printed.count("this machine is busy: 64 of about 91 tokens a second") == 1
    monkeypatch.setattr(busy, "waited", lambda: {"1": 0.1 * now})
    assert "busy" not in small(corpus, tmp_path / "quiet", steps=40, evaluations=1)


def test_threads_wait_passively_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    for load, set_before, expected in ((0.2, None, None), (1.7, None, "passive"), (1.7, "active", "active")):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if set_before:
            monkeypatch.setenv("OMP_WAIT_POLICY", set_before)
        monkeypatch.setattr(busy, "other_load", lambda load=load: load)
        busy.wait_passively_if_busy()
        assert os.environ.get("OMP_WAIT_POLICY") == expected


def test_the_command_decides_how_to_wait_before_it_imports_pytorch(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text('import os, sys; sys.exit(os.environ.get("OMP_WAIT_POLICY", "default"))')
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
    for load, expected in ((0.0, "default"), (2.0, "passive")):
        busy_machine = f"from llucid.training import busy; busy.other_load = lambda: {load}"
        done = ended(after(busy_machine, *fresh(corpus, tmp_path / "run")), status=1, env=environment)
        assert done.stderr == f"{expected}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts it")
def test_waiting_is_counted() -> None:
    assert busy.waited()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the ticks of processors in /proc/stat")
def test_the_load_of_others_is_measured_and_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    for used in (0, 1, 30):  # seconds of all cores, while this program sleeps
        counted = iter([7, 7 + used * ticks])
        monkeypatch.setattr(busy, "processor_ticks", lambda counted=counted: next(counted))
        load = busy.other_load(0.01)
        assert 0 <= load <= used / 0.01
        assert (load > 0) == (used > 0)
    monkeypatch.undo()
    assert busy.processor_ticks() > 0
    assert 0 <= busy.Watch().share(1.0) <= 1


def test_too_few_steps_are_reported(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, take = 0.0, loop.training_batch

    def batch(*arguments: Any) -> object:
        nonlocal now
        now += 20
        return take(*arguments)

    monkeypatch.setattr(loop, "training_batch", batch)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    printed = small(corpus, tmp_path / "run", minutes=1.0)
    assert "only 3 steps fitted into 1 minutes" in printed


def test_a_report_prints_its_lines_without_markup() -> None:
    printed = io.StringIO()
    Report(Console(file=printed, width=40)).say("[bold]" + "x" * 60 + ":smile:\x1b[31m\ud800")
    assert printed.getvalue() == "[bold]" + "x" * 60 + ":smile:␛[31m\ufffd\n"
    assert Progress() == Progress(0, 0.0)
