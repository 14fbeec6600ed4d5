"""Runs by the command line: what they write, how they resume, and what they survive."""

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rich.cells import cell_len
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import llucid
from llucid.cli import read_command
from llucid.corpora import open_corpus
from llucid.corpora.tokens import tokenise, validation_batches
from llucid.errors import LlucidError
from llucid.llama import llama
from llucid.training import logbook, loop, prepare, run
from llucid.training.backend_torch import TorchBackend
from llucid.training.interrupts import interruption
from llucid.training.optimizer import learning_rate
from llucid.training.report import Report, clock, excerpt
from llucid.training.run import Measured, Metrics, Progress, read_measured, read_state, refuse_links
from llucid.training.settings import ModelNumbers, Settings, read_toml
from llucid.training.step import mean_loss
from llucid.weights import initialise, leaves
from tests.tokenizers.texts import letters_and_unknown
from tests.waiting import LIMIT, wait_for

TEXT = "The fox said to the goose: who found the bell? I found it, said the goose, and hid it by the mill.\n" * 60
SMALL = ["--preset", "nano", "--model.dim", "16", "--model.context", "16", "--batch", "4", "--evaluations", "4"]


DROPOUT = ("--steps", 40, "--model.dropout", 0.1)
DEFAULT_HANGUP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"
"""Undoes the nohup under which the tests may run, which child processes inherit."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "geese.txt"
    file.write_text(TEXT)
    return file


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "llucid", *map(str, arguments)]


def after(statements: str, *arguments: object) -> list[str]:
    """llucid in a process that first executes some statements (`preexec_fn` would fork, of which JAX warns)."""
    return [sys.executable, "-c", f"{statements}; from llucid.cli import main; main()", *map(str, arguments)]


def do(*arguments: object, status: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs llucid to its end, as a user would."""
    return ended(command(*arguments), status, **options)


def ended(words: list[str], status: int, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, **options)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def here(*arguments: object) -> None:
    """Runs a command in this process, which is faster."""
    read_command([str(argument) for argument in arguments]).run()


def fresh(corpus: Path, out: Path | str, *more: object) -> tuple[object, ...]:
    return ("train", "--corpus", corpus, "--out", out, *SMALL, *more)


def losses(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def progress(out: Path) -> dict[str, float]:
    """The progress in the saved state."""
    with safe_open(out / "state" / "latest.safetensors", framework="pt") as opened:
        return json.loads(opened.metadata()["progress"])


def assert_same_run(out: Path, straight: Path) -> None:
    assert losses(out) == losses(straight)
    assert [row["step"] for row in losses(out)] == list(range(1, 41))
    for file in ("state/latest.safetensors", "model.safetensors"):
        once, halves = load_file(straight / file), load_file(out / file)
        assert once.keys() == halves.keys()
        for name in once:
            assert torch.equal(once[name], halves[name]), name
    assert (out / "samples.txt").read_text() == (straight / "samples.txt").read_text()


@pytest.fixture(scope="module")
def straight(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps without interruption."""
    out = tmp_path_factory.mktemp("runs") / "straight"
    do(*fresh(corpus, out, *DROPOUT))
    return out


@pytest.mark.parametrize(
    "how", [(), ("--dtype", "float32", "--optimizer", "adamw", "--accumulate", "2")], ids=["default", "float32, adamw"]
)
def test_resumed_equals_straight_bit_for_bit(
    corpus: Path, straight: Path, tmp_path: Path, how: tuple[str, ...]
) -> None:
    """Weights, optimizer states, dropout's generator, all losses and measurements; the first in three processes."""
    out, runs = tmp_path / "halves", here if how else do
    if how:
        straight = tmp_path / "straight"
        runs(*fresh(corpus, straight, *DROPOUT, *how))
    printed = runs(*fresh(corpus, out, *DROPOUT, *how, "--stop-after", 17))
    if not how:
        assert f"stopped at step 17; continue with: llucid train --resume --out {out}" in printed.stdout
    runs("train", "--resume", "--out", out)
    assert_same_run(out, straight)


@pytest.mark.parametrize("reached", [pytest.param(0, marks=pytest.mark.slow), 17])
def test_killed_between_measurements_and_resumed_equals_straight(
    corpus: Path, straight: Path, tmp_path: Path, reached: int
) -> None:
    """Saved at every step, killed before one; the measurements are at 10, 20, 30 and 40."""
    out = tmp_path / "killed"
    hasty = "import os, llucid.training.loop as loop; loop.Logbook.save_due = lambda self: True"
    killed = f"lambda *a: os.kill(os.getpid(), 9) if a[-1] == {reached} else batch(*a)"
    before = f"{hasty}; batch = loop.training_batch; loop.training_batch = {killed}"
    ended(after(before, *fresh(corpus, out, *DROPOUT)), status=-signal.SIGKILL)
    assert progress(out)["step"] == len(losses(out)) == reached
    (out / "state" / ".tmpX1").touch()  # as a kill leaves it, while a state is written
    do("train", "--resume", "--out", out)
    assert_same_run(out, straight)
    assert not list((out / "state").glob(".*"))


def test_a_run_without_a_name_gets_the_next_free_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("fables", "fables-2", "fables-4"):
        assert run.free_name("fables") == Path("runs") / ("fables-3" if name == "fables-4" else name)
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert run.free_name("fables") == Path("runs/fables-3")


def test_an_occupied_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.7.partial").mkdir()  # what a kill left
    run.refuse_occupied(tmp_path / "run")
    run.refuse_occupied(tmp_path / "new")
    (tmp_path / "run" / "notes.txt").touch()
    (tmp_path / "file").touch()
    for taken in ("run", "file"):
        with pytest.raises(LlucidError, match=f"{taken}: something is there already"):
            run.refuse_occupied(tmp_path / taken)


def test_saving_takes_at_most_a_hundredth_of_the_time(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that takes half a second is saved at the start, once early, at each measurement, and then not again for
    fifty seconds."""
    saved: list[int] = []

    def slowly(*state: Any) -> None:
        time.sleep(0.5)
        saved.append(state[-1].step)

    monkeypatch.setattr(logbook, "SAVE_EVERY", 0)
    monkeypatch.setattr(TorchBackend, "save", slowly)
    here(*fresh(corpus, tmp_path / "slow", "--steps", 20))
    assert saved == [0, 1, 5, 10, 15, 20]


def test_a_state_that_saves_fast_is_saved_often(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(logbook, "SAVE_EVERY", 0)
    monkeypatch.setattr(logbook, "SAVE_SHARE", 1e3)
    monkeypatch.setattr(TorchBackend, "save", lambda *state: saved.append(state[-1].step))
    here(*fresh(corpus, tmp_path / "often", "--steps", 8))
    assert saved == [*range(9)]


def test_transformers_opens_the_folder(straight: Path) -> None:
    model = llucid.load(straight)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(straight)
    tokenizer = transformers.AutoTokenizer.from_pretrained(straight)
    ids = model.text().encode("who found the bell?")
    assert tokenizer("who found the bell?")["input_ids"] == ids
    with torch.no_grad():
        ours = llama(torch.tensor([ids]), model.weights, model.config)
        torch.testing.assert_close(ours, theirs(torch.tensor([ids])).logits, rtol=1e-5, atol=1e-5)


def test_the_best_model_is_kept_beside_the_latest(tmp_path: Path) -> None:
    """The validation split has the letters in another order, so training ruins the model there. What is opened is the
    best one, with the loss that was printed. A resumed process knows of it, and of the time already spent."""
    out, corpus = tmp_path / "ruined", tmp_path / "turns.txt"
    corpus.write_text("abc" * 3000 + "cba" * 333)
    here(*fresh(corpus, out, "--steps", 24, "--dtype", "float32", "--stop-after", 23))
    seconds = progress(out)["seconds"]
    here("train", "--resume", "--out", out)
    assert progress(out)["seconds"] > seconds
    measured = [row["validation"] for row in losses(out) if "validation" in row]
    assert len(measured) == 4
    assert measured[-1] > min(measured)
    model = llucid.load(out, device="cpu")
    tokens = tokenise(open_corpus([str(corpus)]), model.text(), "validation")
    assert mean_loss(validation_batches(tokens, model.config.context), model.weights, model.config) == pytest.approx(
        min(measured), rel=1e-5
    )
    latest = load_file(out / "state" / "latest.safetensors")["weights.embedding"]
    assert not torch.equal(latest, model.weights.embedding)


def test_what_a_run_leaves(straight: Path) -> None:
    names = {path.name for path in straight.iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "train.toml", "state"),
        *("metrics.jsonl", "curve.png", "samples.txt"),
    }
    assert (straight / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (straight / "samples.txt").read_text().count("---------- step") == 4
    settings = read_toml(straight / "train.toml")
    assert (settings.steps, settings.model.dropout, settings.preset) == (40, 0.1, "nano")
    rates = [learning_rate(step / 40, settings.warmup, settings.final) for step in range(40)]
    assert [row["rate"] for row in losses(straight)] == rates


def test_a_damaged_log_is_cut_at_the_step_of_the_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"step": step, "loss": 3e38, "rate": 1.0} for step in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "lo')
    assert Metrics(tmp_path, 3, Settings()).rows == rows[:3]
    assert losses(tmp_path) == rows[:3]
    assert capsys.readouterr().err == ""  # a kill cuts the last line short
    strange_rows = [
        *("3", "{}", '{"step": null}', "[]", "9" * 5000, "[" * 5000, '{"step": 2, "loss": 1}', '{"step": "2"}'),
        *('{"step": 2, "validation": "x"}', '{"step": 2, "loss": NaN, "rate": 1}', '{"step": 2, "sample": 1}'),
    ]
    for strange in strange_rows:
        (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(rows[0])}\n{strange}\n")
        assert Metrics(tmp_path, 3, Settings()).rows == rows[:1]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "sample": "\\ud800x"}\n')
    assert Metrics(tmp_path, 3, Settings()).samples() == "---------- step 1\n\ufffdx\n"


@pytest.mark.parametrize(("number", "change"), [(1, "\ufeff{}"), (2, "oops"), (3, "\0\0\0{}"), (4, "{}{}")])
def test_a_damaged_line_of_the_log_costs_no_other(
    number: int, change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"step": step, "loss": 1.0, "rate": 1.0} for step in range(1, 6)]
    lines = [json.dumps(row) + "\n" for row in rows]
    lines[number - 1] = change.replace("{}", lines[number - 1].strip()) + "\n"
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    bom = change.startswith("\ufeff")
    assert Metrics(tmp_path, 4, Settings()).rows == [row for row in rows[:4] if bom or row["step"] != number]
    says = f"note: {tmp_path}/metrics.jsonl: left out damaged lines: {number}\n"
    assert capsys.readouterr().err == ("" if bom else says)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "curve.png", "state/measured.json"])
def test_a_named_pipe_in_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    """A run would wait there without a word."""
    (tmp_path / "state").mkdir()
    (tmp_path / "train.toml").touch()
    os.mkfifo(tmp_path / name)
    with pytest.raises(LlucidError, match=f"{tmp_path / name}: a named pipe"):
        here("train", "--resume", "--out", tmp_path)


@pytest.mark.parametrize("name", ["samples.txt", "metrics.jsonl", "state/measured.json", "snapshots", "train.toml"])
def test_a_link_in_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    """A run from elsewhere would write its text into the user's own files."""
    out, own = tmp_path / "out", tmp_path / "own"
    (out / "state").mkdir(parents=True)
    own.write_text("mine")
    (out / "train.toml").touch()
    (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(own)
    with pytest.raises(LlucidError, match=f"{out / name}: a link, through which a run would write elsewhere"):
        here("train", "--resume", "--out", out)
    assert own.read_text() == "mine"
    refuse_links(tmp_path / "linked")  # there is none
    (tmp_path / "linked").symlink_to(out)
    (out / name).unlink()
    (out / "wandb").mkdir()
    (out / "wandb" / "latest-run").symlink_to(out / "state")
    refuse_links(tmp_path / "linked")


def test_a_folder_that_moves_while_it_trains_is_reported(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(logbook.Logbook, "save_due", lambda *_: bool(out.exists() and out.rename(tmp_path / "moved")))
    with pytest.raises(LlucidError, match=f"{out}: the folder of the run was moved or removed"):
        here(*fresh(corpus, out, "--steps", 9))
    do("train", "--resume", "--out", tmp_path / "moved")


def test_a_state_with_impossible_progress_is_refused(tmp_path: Path) -> None:
    impossible = ('{"step": Infinity}', '{"step": -1}', '{"step": 1, "seconds": NaN}', '{"step": 1e999}', "[]", "1")
    for progress in (*impossible, f'{{"step": 1, "seconds": {10**400}}}'):
        save_file({}, tmp_path / "latest.safetensors", {"progress": progress})
        with (
            pytest.raises(LlucidError, match="not a state that the run of"),
            read_state(tmp_path),
        ):
            pass


@pytest.mark.parametrize(
    "measured",
    [
        *('{"step": 1, "best": "x"}', '{"took": null}', '{"model_step": []}', "[" * 5000, '{"best": NaN}'),
        *('{"best": -2}', '{"took": NaN}', '{"seconds": Infinity}', f'{{"total": {10**400}}}', '{"step": -2}'),
    ],
)
def test_a_damaged_measurement_is_forgotten(measured: str, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "measured.json").write_text(measured)
    assert read_measured(tmp_path, Progress(3)) == Measured()


def test_ctrl_c_stops_cleanly_and_resume_finishes(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    running = subprocess.Popen(command(*fresh(corpus, out, "--steps", 4000)), stdout=subprocess.PIPE, text=True)
    wait_for(out / "curve.png")  # the first measurement is done
    running.send_signal(signal.SIGINT)
    printed, _ = running.communicate(timeout=LIMIT)
    assert running.returncode == 130
    assert f"continue with: llucid train --resume --out {out}" in printed
    reached = len(losses(out))
    assert 0 < reached < 4000
    assert "the model in the folder is untrained" not in printed
    here("train", "--resume", "--out", out, "--stop-after", 3)
    assert len(losses(out)) == reached + 3


def test_a_terminal_that_closes_stops_cleanly(corpus: Path, tmp_path: Path) -> None:
    """As at the end of an ssh session: printing fails from then on. The state is that of the last step, and no
    measurement is recorded."""
    out, (terminal, inside) = tmp_path / "closed", os.openpty()
    own = f"{DEFAULT_HANGUP}; import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
    words = after(own, *fresh(corpus, out, "--steps", 100_000))
    running = subprocess.Popen(words, stdin=inside, stdout=inside, stderr=inside, start_new_session=True)
    os.close(inside)
    shown = b""
    while b"step 1" not in shown:
        shown += os.read(terminal, 1 << 16)
    os.close(terminal)
    assert running.wait(timeout=LIMIT) == -signal.SIGHUP
    assert 0 < progress(out)["step"] == len(losses(out))
    here("train", "--resume", "--out", out, "--stop-after", 3)
    assert not any("validation" in row for row in losses(out))


@pytest.mark.parametrize("way", ["twice", "ignored"])
def test_a_second_hangup_does_not_interrupt_and_nohup_ignores_both(corpus: Path, tmp_path: Path, way: str) -> None:
    """A shell that ends sends one to its jobs, and the terminal that closes sends another."""
    out = tmp_path / way
    handled = DEFAULT_HANGUP.replace("DFL", "IGN") if way == "ignored" else DEFAULT_HANGUP
    twice = "batch, hang_up = loop.training_batch, lambda: os.kill(os.getpid(), 1)"
    each_step = "loop.training_batch = lambda *a: (hang_up(), hang_up(), batch(*a))[2]"
    statements = f"{handled}; import os, llucid.training.loop as loop; {twice}; {each_step}"
    printed = ended(
        after(statements, *fresh(corpus, out, "--steps", 5, "--evaluations", 1)), status=-1 if way == "twice" else 0
    ).stdout
    assert ("stopped at step 1" in printed) == (way == "twice")
    assert progress(out)["step"] == (1 if way == "twice" else 5)


def test_signals_are_caught_inside_and_handled_as_before_afterwards() -> None:
    """SIGTERM like Ctrl-C; the second one interrupts; other threads catch none."""
    first = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    before = signal.getsignal(signal.SIGINT), signal.SIG_DFL
    numbers: list[int] = []

    def stopped() -> None:
        with interruption() as interrupted:
            numbers.append(interrupted())
            signal.raise_signal(signal.SIGTERM)
            numbers.append(interrupted())
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        stopped()
    afterwards = signal.getsignal(signal.SIGINT), signal.signal(signal.SIGTERM, first)
    assert numbers == [0, signal.SIGTERM]
    assert afterwards == before

    def in_other_thread() -> int:
        with interruption() as interrupted:
            return interrupted()

    with ThreadPoolExecutor(1) as other:
        assert not other.submit(in_other_thread).result()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_ignored_signal_stays_ignored(number: int) -> None:
    """A shell's script ignores SIGINT for its background jobs."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with interruption() as interrupted:
            signal.raise_signal(number)
            signal.raise_signal(number)
            assert not interrupted()
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_stopped_before_its_first_step(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "none"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "interruption", lambda: nullcontext(lambda: signal.SIGUSR1))
        patch.setattr(signal, "raise_signal", lambda number: None)
        here(*fresh(corpus, out, "--steps", 5, "--seed", 3))
    assert progress(out)["step"] == 0
    begun = llucid.load(out, device="cpu")
    assert torch.equal(begun.weights.embedding, initialise(begun.config, 3).embedding)
    here("train", "--resume", "--out", out)
    assert len(losses(out)) == 5


@pytest.mark.parametrize("delay", [0.0, 0.1, *(pytest.param(delay, marks=pytest.mark.slow) for delay in (0.01, 0.4))])
def test_a_kill_leaves_a_folder_that_opens(corpus: Path, tmp_path: Path, delay: float) -> None:
    """It measures, saves and draws at every step, so the kill hits one of these; the run can continue."""
    out = tmp_path / "killed"
    arguments = fresh(corpus, out, "--steps", 500, "--evaluations", 500)
    running = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(out)
    time.sleep(delay)
    running.kill()
    running.wait()
    model = llucid.load(out, device="cpu")
    assert all(leaf.isfinite().all() for leaf in leaves(model.weights))
    here("train", "--resume", "--out", out, "--stop-after", 2)


def test_one_process_at_a_time_trains_in_a_folder(corpus: Path, tmp_path: Path) -> None:
    """A second process changes nothing, not even unfinished files; the next one removes what a kill left."""
    out = tmp_path / "shared"
    here(*fresh(corpus, out, "--steps", 40, "--stop-after", 5))
    with run.locked(out):
        for unfinished in (out / ".curve.png.7.partial", out / "state" / ".latest.safetensors.7.partial"):
            unfinished.write_text("half")
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        printed = do("train", "--resume", "--out", out, status=2).stderr
    assert printed.startswith("error: ")
    assert printed.endswith(f"{out}: another process is training there; stop it, or wait\n")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    here("train", "--resume", "--out", out, "--stop-after", 3)
    assert len(losses(out)) == 8
    assert not list(out.rglob("*.partial"))


def test_resuming_a_complete_run_changes_nothing(straight: Path) -> None:
    before = {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()}
    printed = do("train", "--resume", "--out", straight).stdout
    assert printed.startswith(
        "the run is complete, after 40 steps; to continue it, give more steps or minutes\nthe model is in"
    )
    assert {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()} == before


def test_a_loss_that_is_not_finite_is_a_clear_error(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "exploded"
    printed = do(*fresh(corpus, out, "--steps", 40, "--optimizer", "adamw", "--learning-rate", 1e30), status=2).stderr
    assert printed.startswith("error: the loss at step")
    assert "begin again, or resume, with a lower --learning-rate or --muon-learning-rate" in printed
    assert all(leaf.isfinite().all() for leaf in leaves(llucid.load(out, device="cpu").weights))
    assert len(losses(out)) > 0
    assert all(math.isfinite(row["loss"]) for row in losses(out))
    assert (out / "curve.png").is_file()


def test_a_first_step_that_ruins_the_model_is_an_error(corpus: Path, tmp_path: Path) -> None:
    """The loss of a step is that before it, so only the validation loss shows it. The state before is put back."""
    out = tmp_path / "exploded"
    printed = do(*fresh(corpus, out, "--steps", 1, "--learning-rate", 1e30), status=2).stderr
    assert printed.startswith("error: the validation loss at step 1 is nan; the model in")
    assert "begin again, or resume, with a lower --learning-rate or --muon-learning-rate" in printed
    assert progress(out)["step"] == 0
    assert load_file(out / "state" / "latest.safetensors")["weights.embedding"].isfinite().all()
    do("train", "--resume", "--out", out, "--learning-rate", 1e-3)
    assert progress(out)["step"] == 1


def test_resume_refuses_a_text_that_has_changed(tmp_path: Path) -> None:
    """Also one with unknown characters. With the old text it continues, and where no fingerprint was kept."""
    out, folder = tmp_path / "run", tmp_path / "texts"
    folder.mkdir()
    (folder / "geese.txt").write_text(TEXT)
    here(*fresh(folder, out, "--steps", 4, "--stop-after", 1))
    instead = f"llucid train --base {out} --corpus {folder}"
    says = f"^corpus={folder}: no longer the text that {out} began with.*: {instead}$"
    for change in ("more.txt", "geese.txt"):
        (folder / change).write_text("é" * 99)
        with pytest.raises(LlucidError, match=says):
            here("train", "--resume", "--out", out)
    (folder / "more.txt").unlink()
    (folder / "geese.txt").write_text(TEXT)
    here("train", "--resume", "--out", out, "--stop-after", 1)
    (out / "state" / "corpus.sha256").unlink()
    (folder / "more.txt").write_text(TEXT)
    here("train", "--resume", "--out", out)
    assert len(losses(out)) == 4


def test_a_text_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changing(*arguments: Any) -> object:
        file.write_text(TEXT + " ")
        return make(*arguments)

    file, make = tmp_path / "geese.txt", prepare.make_tokenizer
    file.write_text(TEXT)
    monkeypatch.setattr(prepare, "make_tokenizer", changing)
    with pytest.raises(LlucidError, match=r"^geese: the text changed while it was read; give the same command again$"):
        here(*fresh(file, tmp_path / "run", "--steps", 4))
    assert [path.name for path in tmp_path.iterdir()] == ["geese.txt"]


def test_resume_without_a_state_says_what_to_do(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "stateless"
    here(*fresh(corpus, out, "--steps", 4, "--stop-after", 1))
    (out / "state" / "latest.safetensors").unlink()
    says = f"^{out}/state/latest.safetensors: there is no such file.*: llucid train --base {out} --corpus {corpus}$"
    with pytest.raises(LlucidError, match=says):
        here("train", "--resume", "--out", out)


@pytest.mark.parametrize("out", [".", "link"])
def test_an_empty_folder_is_filled(
    corpus: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """It is not replaced, since a shell may be in it. What a killed process left does not count."""
    folder = tmp_path / "empty"
    (folder / ".empty.4194999.partial").mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder if out == "." else tmp_path)
    before = folder.stat().st_ino
    here(*fresh(corpus, out, "--steps", 4, "--stop-after", 1))
    assert folder.stat().st_ino == before
    names = {path.name for path in straight.iterdir()}
    assert {path.name for path in folder.iterdir()} == names
    here("train", "--resume", "--out", out)
    assert len(losses(folder)) == 4


def test_a_full_disk_is_a_clear_error(corpus: Path, straight: Path, tmp_path: Path) -> None:
    """Files are limited to 40 kB, and the state is larger."""
    out = tmp_path / "full"
    do(*fresh(corpus, out, "--steps", 40, "--stop-after", 5))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(before[out / "state" / "latest.safetensors"]) > 40_000
    no_room = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))"
    printed = ended(after(no_room, "train", "--resume", "--out", out), status=2).stderr
    assert printed.startswith("error: ")
    assert f"{out}/" in printed
    assert "too large" in printed.lower()
    assert "partial" not in printed
    assert printed.count("\n") == 1
    for name in ("state/latest.safetensors", "model.safetensors", "config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == before[out / name]
    assert not list(out.rglob("*.partial"))
    llucid.load(out, device="cpu")


def test_the_shortest_text(tmp_path: Path) -> None:
    """It has one window of 16 tokens, the token after it, and a second place where a window can begin."""
    text = tmp_path / "text.txt"
    text.write_text("abcdefghij" * 17)
    with pytest.raises(LlucidError, match="its validation split has 17 tokens and one context needs 18"):
        here(*fresh(text, tmp_path / "run", "--steps", 1))
    text.write_text("abcdefghij" * 18)
    here(*fresh(text, tmp_path / "run", "--steps", 1))
    assert len(losses(tmp_path / "run")) == 1


def test_a_split_that_the_tokenizer_cannot_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("ab " * 300 + "漢字" * 50)
    (tmp_path / "tokenizer.json").write_text(json.dumps(letters_and_unknown("ab ")))
    with pytest.raises(LlucidError, match="its validation split has no characters that this tokenizer has tokens for"):
        here(*fresh(tmp_path / "text.txt", tmp_path / "run", "--tokenizer", tmp_path / "tokenizer.json"))
    assert not (tmp_path / "run").exists()


def test_bpe_losses_are_in_nats_per_character(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "bpe"
    printed = do(*fresh(corpus, out, "--steps", 2, "--tokenizer", "bpe:300")).stdout
    model = llucid.load(out, device="cpu")
    tokens = tokenise(open_corpus([str(corpus)]), model.text(), "validation")
    text = "".join(open_corpus([str(corpus)]).text("validation"))
    a_character = (tokens.length - 1) / (len(text) - 1)
    expected = mean_loss(validation_batches(tokens, model.config.context), model.weights, model.config) * a_character
    assert losses(out)[-1]["validation"] == pytest.approx(expected, rel=0.02)
    assert f"val {losses(out)[-1]['validation']:.3f} nats" in printed
    blind = math.log(model.config.vocab_size) * a_character  # as at the first step, when nothing has been learned
    assert losses(out)[0]["loss"] == pytest.approx(blind, rel=0.1)


def test_each_split_has_its_own_characters_per_token(corpus: Path, tmp_path: Path) -> None:
    """A text whose last tenth is in another alphabet has several tokens a character there, and others before."""
    english, out = corpus.read_text(), tmp_path / "mixed"
    (tmp_path / "mixed.txt").write_text(english + "гусь и лиса " * (len(english) // 100))
    do(*fresh(tmp_path / "mixed.txt", out, "--steps", 1, "--tokenizer", "bpe:300"))
    model, text = llucid.load(out, device="cpu"), open_corpus([str(tmp_path / "mixed.txt")])
    for split, key in (("train", "loss"), ("validation", "validation")):
        a_character = tokenise(text, model.text(), split).length / len("".join(text.text(split)))
        blind = math.log(model.config.vocab_size) * a_character
        assert losses(out)[-1][key] == pytest.approx(blind, rel=0.1), split


def test_training_from_python_prints_what_it_measures(corpus: Path, tmp_path: Path) -> None:
    from llucid.training.loop import train

    console = Console(record=True, width=200)
    model = ModelNumbers(dim=16, context=16)
    settings = Settings(
        corpus=(str(corpus),), preset="nano", model=model, steps=4, evaluations=2, out=str(tmp_path / "a")
    )
    assert train(settings, console) == tmp_path / "a"
    lines = [line for line in console.export_text().splitlines() if not line.startswith("    ")]
    assert len(lines) == 3
    assert re.fullmatch(r"training nano, [\d,]+ parameters, on \w+ for 4 steps; losses are in nats .*", lines[0])
    assert re.fullmatch(r"step 4 +train \d\.\d+  val \d\.\d+ nats \d\.\d+ bits  .* tokens/s  0:00 left", lines[2])


def test_clock() -> None:
    expected = {0.4: "0:00", 59.6: "1:00", 83.0: "1:23", 3599.4: "59:59", 3600.0: "1:00:00", 36_123.0: "10:02:03"}
    assert {seconds: clock(seconds) for seconds in expected} == expected
    assert clock(-1.0) == "0:00"


def test_a_measurement_fits_a_terminal() -> None:
    """Of 80 columns. Samples are cut to its width, and their control characters are replaced."""
    printed, narrow = io.StringIO(), io.StringIO()
    report = Report(Console(file=printed, force_terminal=True, width=80, color_system=None))
    report.context = 256
    report.measured(1500, 1.6, 1.7, 64, "\n\n" + "漢" * 60 + "\n[bold]\t:smile:\x1b[31m\x0e\r\nc\nd", 142_876.0, 72.0)
    first, *sample = printed.getvalue().splitlines()
    assert first == "step 1500  train 1.600  val 1.700 nats 2.453 bits  window 64  142,876 tokens/s"
    assert sample == ["    " + "漢" * 38, "    [bold]  :smile:␛[31m␎␍", "    c"]
    Report(Console(file=narrow, force_terminal=True, width=20, color_system=None)).measured(
        15, 1.6, 1.7, 64, "漢" * 60, 142_876.0, 72.0
    )
    assert max(cell_len(line) for line in narrow.getvalue().splitlines()) <= 20


def test_lines_that_no_terminal_shows_are_left_out() -> None:
    """Of zero-width spaces and joiners, accents and signs of direction alone."""
    assert excerpt("\u200b\na\u200b\n\u202e\n\u200d\ufe0f\n\u0301\n\n漢\nb\nc", 20) == ["a\u200b", "漢", "b"]
    assert excerpt("\u200b", 20) == []


def test_a_sample_that_the_console_cannot_print_stops_nothing() -> None:
    """Neither one with surrogates, nor the name of a folder."""
    written = io.BytesIO()
    printed = io.TextIOWrapper(written, encoding="ascii")
    report = Report(Console(file=printed, width=80))
    report.measured(2, 1.6, 1.7, 64, "fox 🦊\ud800 漢", 142.0, 72.0)
    report.say("stopped: runs/café")
    printed.flush()
    _, sample, said = written.getvalue().decode().splitlines()
    assert (sample, said) == ("    fox ?? ?", "stopped: runs/caf?")


def test_measuring_does_not_count_in_the_training_speed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens per second exclude measuring; the time left includes it. Both count this process only. The test replaces
    the clock."""
    now, printed = 0.0, list[tuple[float, float]]()
    take, measure = loop.training_batch, TorchBackend.evaluate

    def batch(*arguments: Any) -> object:
        nonlocal now
        now += 0.5
        return take(*arguments)

    def slowly(*arguments: Any) -> float:
        nonlocal now
        now += 10
        return measure(*arguments)

    monkeypatch.setattr(loop, "training_batch", batch)
    monkeypatch.setattr(TorchBackend, "evaluate", slowly)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(Report, "measured", lambda *figures: printed.append(figures[-2:]))
    here(*fresh(corpus, tmp_path / "out", "--steps", 10, "--evaluations", 5, "--stop-after", 6))
    here("train", "--resume", "--out", tmp_path / "out")
    speeds, left = zip(*printed, strict=True)
    assert speeds == (4 * 16 / 0.5,) * 5
    assert left == pytest.approx([1 / 2 * 8, 12 / 4 * 6, 23 / 6 * 4, 1 / 2 * 2, 0])


def test_minutes_are_counted_while_it_trains(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With half a second per step, on a clock that the test replaces, and a pause between two processes."""
    now, take, out = 0.0, loop.training_batch, tmp_path / "out"

    def batch(*arguments: Any) -> object:
        nonlocal now
        now += 0.5
        return take(*arguments)

    monkeypatch.setattr(loop, "training_batch", batch)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    here(*fresh(corpus, out, "--minutes", 0.1, "--stop-after", 5))
    now += 1000
    here("train", "--resume", "--out", out)
    assert [row["step"] for row in losses(out)] == list(range(1, 13))
    assert [row["step"] for row in losses(out) if "validation" in row] == [3, 6, 9, 12]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows stops no process")
def test_the_time_in_which_a_process_is_stopped_is_no_training(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a step, and in a measurement."""
    now, handler = 0.0, signal.getsignal(signal.SIGTSTP)
    take, measure = loop.training_batch, TorchBackend.evaluate

    def stop(number: int) -> None:
        nonlocal now
        assert number == signal.SIGTSTP
        assert signal.getsignal(number) == signal.SIG_DFL
        now += 1000

    def stopped() -> None:
        os.kill(os.getpid(), signal.SIGTSTP)

    def batch(*arguments: Any) -> object:
        nonlocal now
        now += 0.5
        if arguments[-1] == 3:
            stopped()
        return take(*arguments)

    def evaluate(*arguments: Any) -> float:
        stopped()
        return measure(*arguments)

    monkeypatch.setattr(loop, "training_batch", batch)
    monkeypatch.setattr(TorchBackend, "evaluate", evaluate)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(signal, "raise_signal", stop)
    here(*fresh(corpus, tmp_path / "out", "--minutes", 0.1))
    assert [row["step"] for row in losses(tmp_path / "out")] == list(range(1, 13))
    assert run.read_measured(tmp_path / "out", Progress(12)).total == 0
    assert signal.getsignal(signal.SIGTSTP) == handler == signal.SIG_DFL


def test_a_step_that_cannot_be_compiled_is_reported_in_one_line(corpus: Path, tmp_path: Path) -> None:
    broken = {"CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = do(*fresh(corpus, tmp_path / "run", "--steps", 1, "--compile"), status=2, env=os.environ | broken)
    expected = r"error: --compile: torch.compile failed \(.*No working C\+\+ compiler.*\); use --no-compile\n"
    assert re.fullmatch(expected, done.stderr)


@pytest.mark.slow
def test_a_compiled_step_learns_the_same(corpus: Path, tmp_path: Path) -> None:
    """With torch.compile losses differ by float32 rounding, which grows a little over twenty steps. There are no
    warnings, as PyTorch would give for complex numbers."""
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    how = ("--steps", 20, "--dtype", "float32")
    do(*fresh(corpus, plain, *how))
    pytorchs_own = "ignore:`torch.jit.script_method`:DeprecationWarning"
    words = [sys.executable, "-W", "error", "-W", pytorchs_own, "-m", "llucid"]
    ended([*words, *map(str, fresh(corpus, compiled, *how, "--compile"))], status=0)
    pairs = zip(losses(plain), losses(compiled), strict=True)
    assert max(abs(float(a["loss"]) - float(b["loss"])) for a, b in pairs) < 1e-3


def test_tensorboard_gets_the_same_figures(corpus: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "watched"
    do(*fresh(corpus, out, "--steps", 8, "--tensorboard"))
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    for name in ("loss", "validation", "rate"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        kept = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in losses(out) if name in row]
        assert logged == kept


def test_measured_on_windows_as_long_as_those_trained_on(tmp_path: Path) -> None:
    """Training ruins the model for this validation split, so the short windows at the start have the lowest loss. The
    model that is kept is still the best of those measured at full length."""
    out, corpus = tmp_path / "grown", tmp_path / "turns.txt"
    corpus.write_text("abc" * 3000 + "cba" * 333)
    grown = ("--model.context", 256, "--length-warmup", 0.5, "--steps", 24, "--dtype", "float32")
    printed = do(*fresh(corpus, out, *grown)).stdout
    assert "the first 50 % in windows of 64 tokens, which is faster, the rest in windows of 256" in printed
    assert [" window 64  " in line for line in printed.splitlines() if line.startswith("step ")] == [True, *[False] * 3]

    measured = [row for row in losses(out) if "validation" in row]
    assert [row["window"] for row in measured] == [64, 256, 256, 256]
    short, *full = [float(str(row["validation"])) for row in measured]
    assert short < min(full)
    assert full[-1] > min(full)
    model = llucid.load(out, device="cpu")
    tokens = tokenise(open_corpus([str(corpus)]), model.text(), "validation")
    assert mean_loss(validation_batches(tokens, model.config.context), model.weights, model.config) == pytest.approx(
        min(full), rel=1e-5
    )


def test_short_windows_are_trained_on_first(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, take = list[tuple[int, int]](), loop.training_batch

    def batch(tokens: Any, rows: int, length: int, *more: Any) -> object:
        sizes.append((rows, length))
        return take(tokens, rows, length, *more)

    monkeypatch.setattr(loop, "training_batch", batch)
    grown = ("--model.context", 256, "--length-warmup", 0.5, "--steps", 4)
    here(*fresh(corpus, tmp_path / "grown", *grown))
    assert sizes == [(16, 64)] * 2 + [(4, 256)] * 2


def test_a_short_window_is_measured_as_one(tmp_path: Path) -> None:
    """The recorded loss is that of the kept model on short windows."""
    out, corpus = tmp_path / "short", tmp_path / "geese.txt"
    corpus.write_text(TEXT)
    grown = ("--model.context", 256, "--length-warmup", 0.5, "--steps", 24, "--dtype", "float32")
    do(*fresh(corpus, out, *grown, "--stop-after", 6))
    [measured] = [row for row in losses(out) if "validation" in row]
    model = llucid.load(out, device="cpu")
    tokens = tokenise(open_corpus([str(corpus)]), model.text(), "validation")
    at = {length: mean_loss(validation_batches(tokens, length), model.weights, model.config) for length in (64, 256)}
    assert measured["validation"] == pytest.approx(at[64], rel=1e-6)
    assert at[256] != pytest.approx(at[64], rel=1e-5)
