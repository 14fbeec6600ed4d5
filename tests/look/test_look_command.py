"""`llucid look` as a user meets it."""

import json
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path

import pytest

import llucid
from llucid.chat import STORYTELLER
from llucid.cli import main, read_command
from llucid.cli.look import TEXTS
from llucid.errors import LlucidError
from llucid.tokenizers.prompts import prompt_ids
from llucid.training.snapshots import snapshots_of
from tests.look.test_export import File
from tests.training.test_run import command, do
from tests.waiting import LIMIT


def test_it_serves_until_ctrl_c() -> None:
    words = command("look", "", "Once upon a time", "--no-browser", "--compare", "int8", "--tour")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout
        url = running.stdout.readline().strip()
        try:
            reported = json.load(urllib.request.urlopen(url.removesuffix("/"), timeout=LIMIT))
            assert [model["name"] for model in reported["models"]] == ["the storyteller", "the storyteller, int8"]
            assert reported["tour"] is True
            reading = json.load(urllib.request.urlopen(url + reported["first"], timeout=LIMIT))
            assert reading["text"] == "Once upon a time"
            with urllib.request.urlopen(url, timeout=LIMIT) as page:
                assert page.headers["Content-Type"].startswith("text/html")
        finally:
            running.send_signal(signal.SIGINT)
        out, errors = running.communicate(timeout=LIMIT)
    assert (running.returncode, out, errors.strip()) == (0, "", "")


@pytest.mark.parametrize(("numbers", "status"), [([signal.SIGINT] * 2, 0), ([signal.SIGTERM], 143)])
def test_signals_while_it_answers(numbers: list[int], status: int) -> None:
    """No thread computes any more when the process ends, which would abort it."""
    words = command("look", "", "Once upon a time " * 10, "--no-browser")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout
        url = running.stdout.readline().strip()
        first = json.load(urllib.request.urlopen(url.removesuffix("/"), timeout=LIMIT))["first"]

        def ask(what: str) -> None:
            with suppress(OSError, HTTPException):  # most are not answered
                urllib.request.urlopen(f"{url}{first}/{what}", timeout=LIMIT).read()

        asked = ["heads", "lens", "parts", *(f"summaries?layer={layer}" for layer in range(5))] * 3
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = [pool.submit(ask, what) for what in asked]
            wait(answers, return_when=FIRST_COMPLETED)
            for number in numbers:
                running.send_signal(number)
            out, errors = running.communicate(timeout=LIMIT)
    assert (running.returncode, out, errors.strip()) == (status, "", "")


def test_it_writes_one_file(tmp_path: Path) -> None:
    done = do("look", "--html", tmp_path / "look.html", "--size", 2)
    size, *left_out = done.stderr.splitlines()
    file = File((tmp_path / "look.html").read_text(encoding="utf-8"))
    assert size == f"{tmp_path / 'look.html'}: {len(file.text.encode()) / 1e6:.1f} MB"
    assert left_out == file.left_out != []
    assert len(file.text.encode()) <= 2_000_000


def test_it_writes_two_models_into_one_file(tmp_path: Path) -> None:
    do("look", "", "Once upon a time", "--html", tmp_path / "look.html", "--compare", "int8")
    file = File((tmp_path / "look.html").read_text(encoding="utf-8"))
    reported = file.json("/look")
    other, first = reported["readings"]
    assert reported["first"] == first
    assert [file.json(f"/look/{reading}")["model"] for reading in (other, first)] == [1, 0]
    assert max(file.json(f"/look/{first}/compare?with={other}")["kl"]) > 0
    assert f"/look/{other}/heads" in file.answers


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ids", "1,x"], "--ids 1,x: expected whole numbers"),
        (["--ids", "1,99999"], "id 99999: this model has ids 0 to 1535"),
        (["", "a", "--ids", "1"], "--ids: give a text or ids, not both"),
        (["", "", "--no-browser"], "the text is empty"),
        (["--port", "99999", "--no-browser"], "--port 99999: cannot be listened on"),
        (["--no-browser", "--compare", "runs/none"], "runs/none: there is no such"),
        (["--html", "x.html", "--size", "0"], "--size 0.0: must be positive"),
        (["--html", "x.html", "--size", "0.01"], "10000 bytes do not hold the page itself"),
        (["--html", "missing/x.html"], "missing/x.html: No such file or directory"),
        (["", "a " * 600, "--html", "x.html"], "tokens, but the model's context is 512"),
        (["nowhere"], "nowhere: there is no such file or folder"),
    ],
)
def test_bad_input(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["llucid", "look", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert list(tmp_path.iterdir()) == []


def test_the_default_text_is_cut_to_a_short_context(tmp_path: Path) -> None:
    model = llucid.load("storyteller")
    llucid.save(model._replace(config=replace(model.config, context=8)), tmp_path / "short")
    look = read_command(["look", str(tmp_path / "short")])
    assert look.given(look.open(look.model)) == prompt_ids(model.text(), TEXTS[0])[:8]


def test_snapshots_of_a_run_are_found_by_step(tmp_path: Path) -> None:
    for name in ("step-144", "step-1", "step-12", "step-x", "other"):
        (tmp_path / "snapshots" / name).mkdir(parents=True)
    assert [step for step, _ in snapshots_of(tmp_path)] == [1, 12, 144]
    assert snapshots_of(STORYTELLER) == []


def test_a_model_with_another_vocabulary_is_refused(data: Path, tmp_path: Path) -> None:
    other = data / "stories260K.bin"
    words = ["look", "", "Once", "--html", str(tmp_path / "x.html"), "--compare", str(other)]
    with pytest.raises(LlucidError, match=f"compare={other}: id 1239: this model has ids 0 to 511"):
        read_command(words).run()
    assert not [*tmp_path.iterdir()]
