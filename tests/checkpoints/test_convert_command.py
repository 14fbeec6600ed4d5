"""`llucid convert` on the command line."""

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest

from llucid.checkpoints import FORMATS, convert, load, save
from llucid.cli import main
from llucid.cli.convert import progress_bar
from llucid.errors import LlucidError
from llucid.files import temporary_name
from tests.checkpoints.models import model_of, same
from tests.configs import CONFIGS
from tests.tokenizers.kinds import metaspace
from tests.training.test_run import after, ended


def run(*words: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["llucid", *map(str, words)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of(CONFIGS["one for two"])
    save(model, tmp_path / "hf")
    left = tmp_path / temporary_name("meta", 4194999)  # by a process that was killed
    left.mkdir()
    assert run("convert", tmp_path / "hf", tmp_path / "meta", "--to", "meta", monkeypatch=monkeypatch) == 0
    assert not left.exists()
    out, err = capsys.readouterr()
    assert out == f"the model is in {tmp_path / 'meta'}\n"
    assert err == "meta does not hold context: it was 64 and will be read as 2048\n"
    assert same(load(tmp_path / "meta", device="cpu").weights, model.weights)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("change", ["overwritten", "removed"])
def test_a_model_that_changes_while_it_is_read(change: str, to: str, tmp_path: Path) -> None:
    """One that is removed is still mapped; the other would be a mixture of two models."""
    first, other = (model_of(dataclasses.replace(CONFIGS["one for two"], norm_eps=1e-5), seed) for seed in (0, 1))
    file, out = tmp_path / "first" / "model.safetensors", tmp_path / "out"
    save(first, tmp_path / "first")
    save(other, tmp_path / "other")

    def progress(done: int, total: int) -> None:
        if change == "removed":
            file.unlink(missing_ok=True)
        else:
            shutil.copyfile(tmp_path / "other" / "model.safetensors", file)

    if change == "removed":
        convert(tmp_path / "first", out, to, progress=progress)
        assert same(load(out, device="cpu").weights, first.weights)
    else:
        with pytest.raises(LlucidError, match=f"^{file}: changed while it was read; give the same command again$"):
            convert(tmp_path / "first", out, to, progress=progress)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "other"]


def test_the_tokenizer_beside_a_bin_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control characters in a name do not reach the terminal."""
    save(model_of(dataclasses.replace(CONFIGS["one for two"], norm_eps=1e-5)), tmp_path / "hf")
    assert run("convert", tmp_path / "hf", tmp_path / "\x1b[31m", "--to", "llama2c", monkeypatch=monkeypatch) == 0
    shown = tmp_path / "␛[31m"
    assert capsys.readouterr().out == f"the model is in {shown}, its tokenizer beside it, in tokenizer.json\n"


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_the_spaces_that_llama_cpp_adds_are_reported(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = metaspace(scheme)
    config = dataclasses.replace(CONFIGS["one for two"], vocab_size=tokenizer.vocab_size)
    save(model_of(config)._replace(tokenizer=tokenizer), tmp_path / "hf")
    assert run("convert", tmp_path / "hf", tmp_path / "a.gguf", "--to", "gguf", monkeypatch=monkeypatch) == 0
    out, err = capsys.readouterr()
    assert out == f"the model is in {tmp_path / 'a.gguf'}\n"
    note = (
        "llama.cpp encodes some texts differently: it adds a space before them where this tokenizer adds none, as "
        "before a text that begins with a space. llucid does not: it reads the tokenizer.json in the file\n"
    )
    assert err == ("" if scheme == "never" else note)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "llama2c"), "error: llama2.c's format cannot hold norm_eps=1e-06; its programs have 1e-05\n"),
        (("--to", "meta", "--version", "1"), "error: --version 1: only the format llama2c has versions\n"),
    ],
)
def test_errors_take_one_line(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(model_of(CONFIGS["one for two"]), tmp_path / "hf")
    assert run("convert", tmp_path / "hf", tmp_path / "out", *words, monkeypatch=monkeypatch) == 2
    assert capsys.readouterr() == ("", message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
@pytest.mark.parametrize(
    ("to", "out", "room", "file"),
    [
        ("llama2c", "out/model.bin", 20_000, "out/model.bin: File too large"),
        ("llama2c", "out/model.bin", 100, "out/tokenizer.json: File too large"),
        ("huggingface", "out", 20_000, "out/model.safetensors: File too large"),
        ("meta", "out", 20_000, "out/consolidated.00.pth cannot be written: the disk may be full"),
        ("gguf", "out/model.gguf", 20_000, "out/model.gguf: File too large"),
    ],
)
def test_a_full_disk_leaves_nothing(to: str, out: str, room: int, file: str, there: bool, tmp_path: Path) -> None:
    """Files are limited to 20 kB, enough for a tokenizer but not for the weights, or to 100 bytes."""
    model = model_of(dataclasses.replace(CONFIGS["one for two"], norm_eps=1e-5))
    save(model, tmp_path / "hf")
    if there:
        (tmp_path / "out").mkdir()
    before = sorted(tmp_path.rglob("*"))
    no_room = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))"
    words = ("convert", tmp_path / "hf", tmp_path / out, "--to", to)
    assert ended(after(no_room, *words), status=2).stderr == f"error: {tmp_path / file}\n"
    left = [path for path in tmp_path.rglob("*") if path not in before and path != tmp_path / "out"]
    assert left == []


def test_the_error_of_a_library_for_a_full_disk_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a message but no errno and no file name."""

    def full(out: Path, *rest: object) -> None:
        raise OSError(f"{out / 'model.safetensors'} cannot be written: no room")

    monkeypatch.setattr("llucid.checkpoints.huggingface.write", full)
    with pytest.raises(OSError, match=f"^{tmp_path / 'out' / 'model.safetensors'} cannot be written: no room$"):
        save(model_of(CONFIGS["one for two"]), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_progress_bar_appears_after_two_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    now = 100.0
    monkeypatch.setattr("llucid.cli.convert.time.monotonic", lambda: now)
    with progress_bar() as update:
        update(1, 4)
        assert capsys.readouterr().err == ""
        now = 103.0
        update(2, 4)
    assert "50%" in capsys.readouterr().err
