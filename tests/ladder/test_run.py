"""The ladder command and `run_ladder`, on a corpus of a few sentences."""

import io
import json
import math
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from llucid.errors import LlucidError
from llucid.ladder import RUNGS
from llucid.ladder.run import EDGES, RECIPE, choose, is_inner, prepare, run_ladder
from llucid.training.muon import Muon
from llucid.training.optimizer import make_optimizers
from llucid.training.run import locked
from llucid.weights import leaves, named_leaves
from tests.ladder.test_rungs import CONFIG
from tests.training.test_run import TEXT, command, do
from tests.waiting import LIMIT


@pytest.fixture(scope="module")
def geese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "geese.txt"
    file.write_text(TEXT)
    return file


def test_the_command_trains_the_chosen_rungs(geese: Path, tmp_path: Path) -> None:
    out = tmp_path / "ladder"
    output = do("ladder", "--corpus", geese, "--rungs", 1, "3-4", "rope", "--steps", 6, "--out", out).stdout
    for words in ("1 Bigram table", "3 Cheating head", "✗ sees the future", "means nothing", "Noise: ", "ladder.png"):
        assert words in output
    assert output.count("✓ gradient reaches every array") == 4
    assert output.count("✓ causal") == 3
    metrics = json.loads((out / "metrics.json").read_text())
    assert [row["rung"] for row in metrics["rungs"]] == [1, 3, 4, 6]
    assert [row["baseline"] for row in metrics["rungs"]] == [None, 1, 1, 4]
    for row in metrics["rungs"]:
        assert len(row["curves"]) == len(row["losses"]) == 2
        assert row["sees_the_future"] == (row["rung"] == 3)
        for curve, loss in zip(row["curves"], row["losses"], strict=True):
            steps = [step for step, _ in curve]
            assert steps == sorted(set(steps))
            assert (steps[0], steps[-1]) == (0, 6)
            assert abs(curve[-1][1] - loss) < 0.1  # a sixth of the same split
        assert f"{row['loss']:.3f}" in output
    assert metrics["rungs"][0]["loss"] < math.log(metrics["config"]["vocab_size"])  # the loss of a uniform prediction
    assert (out / "ladder.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in out.iterdir()) == ["ladder.png", "metrics.json", "samples.txt"]
    assert (out / "samples.txt").read_text().count("-" * 60) == 4


def test_the_same_seed_the_same_ladder(geese: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llucid.ladder.run.SAMPLE", 20)
    monkeypatch.chdir(tmp_path)

    def taken_meanwhile(*arguments: Any) -> Any:
        Path("runs/ladder").mkdir(parents=True, exist_ok=True)
        return prepare(*arguments)

    monkeypatch.setattr("llucid.ladder.run.prepare", taken_meanwhile)
    console = Console(quiet=True)
    numbers: dict[str, Any] = {"corpus": [str(geese)], "rungs": ["10"], "steps": 2, "seeds": 1}
    kept = []
    for number, seed in enumerate((0, 0, 1), 2):
        out = run_ladder(console, **numbers, seed=seed)
        assert out == Path(f"runs/ladder-{number}")
        metrics = json.loads((out / "metrics.json").read_text())
        kept.append(([row["curves"] for row in metrics["rungs"]], (out / "samples.txt").read_text()))
    assert kept[0] == kept[1]
    assert kept[0] != kept[2]


def test_a_terminal_shows_a_live_table(geese: Path, tmp_path: Path) -> None:
    output = io.StringIO()
    console = Console(force_terminal=True, width=100, file=output)
    run_ladder(console, corpus=[str(geese)], rungs=["2"], steps=60, seeds=1, out=str(tmp_path / "out"))
    assert re.search(r"2 RNN, seed 0: step \d+", output.getvalue())


def test_ctrl_c_keeps_finished_rungs(geese: Path, tmp_path: Path) -> None:
    out = tmp_path / "ladder"
    words = command("ladder", "--corpus", geese, "--rungs", 1, 10, "--steps", 300, "--seeds", 1, "--out", out)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (out / "metrics.json").is_file() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=LIMIT)
    assert (process.returncode, errors) == (130, "interrupted\n")
    assert "stopped after 1 of 2 rungs" in output
    assert [row["rung"] for row in json.loads((out / "metrics.json").read_text())["rungs"]] == [1]
    assert (out / "ladder.png").is_file()


def test_bad_input_is_one_line() -> None:
    for arguments, words in ((["--rungs", "11"], "11: no such rung"), (["--steps", "many"], "steps")):
        done = do("ladder", *arguments, status=2)
        assert done.stdout == ""
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"rungs": ["lstm"]}, "names from: 1 Bigram table"),
        *(
            ({"rungs": [word]}, f"rungs={word}: no such rung")
            for word in ("12-14", "4-", "-4", "-", "6-4", "2-3-4", "")
        ),
        ({"steps": 0}, "steps=0"),
        ({"seeds": 0}, "seeds=0"),
        ({"corpus": []}, "there is no text in it"),
        ({"corpus": ["nowhere.txt"]}, "nowhere.txt: no such file"),
        ({"out": "."}, "is not empty"),
        ({"out": __file__}, "is a file; choose another folder"),
    ],
)
def test_bad_input_is_an_error_that_names_the_option(numbers: dict[str, Any], words: str) -> None:
    with pytest.raises(LlucidError, match=re.escape(words)):
        run_ladder(Console(quiet=True), **numbers)


@pytest.mark.parametrize("text", ["short", "a" * 5000])
def test_a_corpus_that_is_too_small_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "little.txt").write_text(text)
    with pytest.raises(LlucidError, match="the ladder needs 128 in each, and 2 different"):
        run_ladder(Console(quiet=True), corpus=[str(tmp_path / "little.txt")], out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of folders")
def test_two_ladders_at_one_place(geese: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ladder = partial(run_ladder, Console(quiet=True), corpus=[str(geese)], steps=1, seeds=1, rungs=["1"])
    with locked(tmp_path), pytest.raises(LlucidError, match="another process is training there"):
        ladder(out=str(tmp_path))

    def overtaken(*arguments: Any) -> Any:
        (tmp_path / "metrics.json").touch()
        return prepare(*arguments)

    monkeypatch.setattr("llucid.ladder.run.prepare", overtaken)
    with pytest.raises(LlucidError, match="is not empty; choose another folder"):
        ladder(out=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_fables_where_there_is_no_shakespeare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llucid import corpora
    from llucid.corpora import shakespeare

    def unreachable(cache: Path) -> Path:
        raise LlucidError("no network")

    monkeypatch.setattr(shakespeare, "find_shakespeare", unreachable)
    monkeypatch.setattr(corpora, "FABLES", 20_000)
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path))
    assert prepare(None, 1, Console(quiet=True)).corpus.name == "fables"
    with pytest.raises(LlucidError, match="no network"):
        prepare(("shakespeare",), 1, Console(quiet=True))


def test_rungs_are_chosen_by_number_range_and_name() -> None:
    assert [rung.number for rung in choose([])] == list(range(1, 11))
    assert [rung.number for rung in choose(["swiglu", "2-3", "3", "1"])] == [1, 2, 3, 8]


def test_every_array_has_one_optimizer_and_inner_matrices_have_muon() -> None:
    for rung in RUNGS:
        weights = rung.init(CONFIG, 0)
        muon, adam = make_optimizers(weights, RECIPE, is_inner)
        assert isinstance(muon, Muon)
        held = [[id(leaf) for group in each.param_groups for leaf in group["params"]] for each in (muon, adam)]
        assert sorted(held[0] + held[1]) == sorted(map(id, leaves(weights)))
        inner = {id(leaf) for path, leaf in named_leaves(weights) if leaf.ndim == 2 and path not in EDGES}
        assert set(held[0]) == inner
        assert bool(inner) == (rung.number > 1)
        assert torch.is_tensor(leaves(weights)[0])


def test_a_ladder_whose_output_closes_at_once_leaves_nothing(
    geese: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise SystemExit(1)  # as rich does for a pipe whose reader has ended

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llucid.ladder.run.train_rung", closed)
    with pytest.raises(SystemExit):
        run_ladder(Console(quiet=True), corpus=[str(geese)], steps=1, seeds=1, rungs=["1"])
    assert not list(tmp_path.glob("runs/*"))
