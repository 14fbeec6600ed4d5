"""What `llucid train --resume` makes of files in the folder of a run."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

from llucid.errors import LlucidError
from llucid.files import LARGEST_JSON, locked_folder, temporary_name
from llucid.training.curve import learning_curve, write_png
from llucid.training.run import Measured, Progress, locked, read_measured
from tests.training.test_continuing import corpus, resumed, small

__all__ = ["corpus"]


def test_hidden_files_of_the_user_stay(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in (".gitkeep", "state/.notes", "snapshots/.notes.partial")]
    left = [tmp_path / name for name in (".curve.png.7.partial", "state/.a.7.partial", "snapshots/.step-1.7.partial")]
    for path in (*kept, *left):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    folders = [tmp_path / temporary_name(tmp_path.name, f"{os.getpid()}-{number}") for number in range(2)]
    for folder in folders:
        (folder / "state").mkdir(parents=True)
    with locked_folder(folders[0]), locked(tmp_path):  # as by a process that is running, even in a container
        assert [path.exists() for path in (*kept, *left, *folders)] == [True] * 3 + [False] * 3 + [True, False]


def test_measurements_are_not_read_from_a_huge_file(tmp_path: Path) -> None:
    """Nor from a device without an end."""
    (tmp_path / "state").mkdir()
    file = tmp_path / "state" / "measured.json"
    file.write_text('{"step": 1}')
    assert read_measured(tmp_path, Progress(3)) == Measured(step=1)
    file.write_text('{"step": 1}'.ljust(LARGEST_JSON + 1))
    assert read_measured(tmp_path, Progress(3)) == Measured()


def test_a_damaged_config_is_written_anew(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small(corpus, out, steps=2, stop_after=1)
    whole = (out / "config.json").read_bytes()
    (out / "config.json").write_text("{")
    resumed(out)
    assert (out / "config.json").read_bytes() == whole


def test_pictures_are_not_drawn_by_a_matplotlibrc(tmp_path: Path) -> None:
    """One in the working directory may even ask for TeX, which few have."""
    rows = [{"step": step, "loss": 1 / step, "rate": 0.1, "validation": 2 / step, "window": 8} for step in range(1, 9)]
    given = (learning_curve, rows, "a_title", 0.1)
    write_png(tmp_path / "plain.png", *given)
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "red", "figure.dpi": 30}):
        write_png(tmp_path / "same.png", *given)
    assert (tmp_path / "same.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


def test_a_damaged_style_of_the_user_costs_no_picture(tmp_path: Path) -> None:
    (tmp_path / "stylelib").mkdir()
    (tmp_path / "stylelib" / "mine.mplstyle").write_bytes("# Schöne Farben".encode("latin-1"))
    rows = [{"step": 1, "loss": 1, "rate": 1}]
    code = f"from llucid.training.curve import *; write_png(Path('curve.png'), learning_curve, {rows}, '')"
    subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"MPLCONFIGDIR": str(tmp_path)}, cwd=tmp_path, check=True
    )
    assert (tmp_path / "curve.png").is_file()


@pytest.mark.parametrize(("backend", "matplotlibrc"), [("none", b""), ("agg", b"# \xff\n")])
def test_matplotlib_that_does_not_start_costs_only_the_picture(
    tmp_path: Path, backend: str, matplotlibrc: bytes
) -> None:
    (tmp_path / "matplotlibrc").write_bytes(matplotlibrc)
    code = "from llucid.training.curve import *; write_png(Path('curve.png'), learning_curve, [], '')"
    environment = os.environ | {"MPLBACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1].startswith("note: curve.png: not drawn, as matplotlib refuses its settings: ")
    assert not (tmp_path / "curve.png").exists()


def test_a_run_that_cannot_continue_is_left_as_it_is(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small(corpus, out, steps=2, stop_after=1)
    toml = out / "train.toml"
    toml.write_text(toml.read_text().replace("[model]\n", "[model]\nlayers = 7\n"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(LlucidError, match="not a state that the run of"):
        resumed(out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
