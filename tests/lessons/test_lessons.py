"""The lessons run, their checks reject wrong answers, and the published pages are fresh and need no network."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jupytext
import nbformat
import pytest
from nbclient.exceptions import CellTimeoutError

from tests.lessons.wrong_answers import WRONG

ROOT = Path(__file__).resolve().parents[2]
LESSONS = ROOT / "lessons"
PUBLISHED = ROOT / "docs" / "lessons"
NAMES = [file.stem for file in sorted(LESSONS.glob("[0-9][0-9]_*.py"))]


@pytest.fixture(scope="module")
def render() -> ModuleType:
    """lessons/render.py, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("render", LESSONS / "render.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_lesson_runs_and_its_checks_reject_wrong_answers(name: str) -> None:
    environment = os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("exercises.py")), name]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert ran.returncode == 0, ran.stdout[-1000:] + ran.stderr[-3000:]
    assert ran.stdout.count("wrong answers fail, the answer passes") == len(WRONG[name])


def test_every_exercise_has_wrong_answers() -> None:
    assert sorted(WRONG) == NAMES
    for name in NAMES:
        assert len(WRONG[name]) >= 2
        assert all(len(wrong) >= 2 for wrong in WRONG[name]), name


@pytest.mark.parametrize("name", NAMES)
def test_lesson_has_the_parts_that_every_lesson_has(name: str, render: ModuleType) -> None:
    lesson = render.describe(LESSONS / f"{name}.py")
    cells = jupytext.read(LESSONS / f"{name}.py").cells
    tags = [cell.metadata.get("tags", []) for cell in cells]
    assert lesson.title
    assert 100 < len(lesson.about) < 400
    assert sum("picture" in each for each in tags) == 1
    exercises = [number for number, each in enumerate(tags) if "exercise" in each]
    assert [tags[number + 1] for number in exercises] == [["check"]] * len(WRONG[name])
    assert [tags[number + 2] for number in exercises] == [["answer"]] * len(WRONG[name])
    for cell, each in zip(cells, tags, strict=True):
        if "plot" in each or "picture" in each:
            assert cell.source.startswith("# "), "a figure has no text alternative"
        if "exercise" in each:
            assert "raise NotImplementedError" in cell.source
        if cell.cell_type == "code" and re.match(r"(import|from) ", cell.source):
            assert "setup" in each, f"imports belong in a folded cell:\n{cell.source}"


@pytest.mark.parametrize("name", NAMES)
def test_published_page_is_fresh_and_small(name: str, render: ModuleType) -> None:
    """If this fails, run `./dev lessons --publish` and commit docs/lessons."""
    lesson = render.describe(LESSONS / f"{name}.py")
    text = (PUBLISHED / f"{name}.md").read_text(encoding="utf-8")
    assert f"<!-- {render.digest(lesson)} -->" in text, f"docs/lessons/{name}.md is stale: ./dev lessons --publish"
    pictures = re.findall(r"!\[.+\]\((.+?\.png)\)", text)
    assert pictures
    assert sorted(pictures) == sorted(file.name for file in PUBLISHED.glob(f"{name}_*.png"))
    assert all((PUBLISHED / each).stat().st_size < 300_000 for each in pictures)
    assert len(text) < 100_000
    assert "Traceback" not in text


def test_published_contents_name_every_lesson(render: ModuleType) -> None:
    assert (PUBLISHED / "README.md").read_text(encoding="utf-8") == render.published_contents(render.lessons())
    assert sorted(file.stem for file in PUBLISHED.glob("[0-9]*.md")) == NAMES


def test_links_of_lessons_lead_somewhere() -> None:
    for name in NAMES:
        for link in re.findall(r"\]\(([^)#]+)\)", (PUBLISHED / f"{name}.md").read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (PUBLISHED / link).exists(), f"{name}: {link}"


@pytest.mark.parametrize("name", NAMES)
def test_page_needs_no_network_and_its_equations_are_mathml(name: str, render: ModuleType) -> None:
    everything = render.lessons()
    lesson = next(lesson for lesson in everything if lesson.name == name)
    html = render.page(render.read(lesson), lesson, everything)
    assert not re.search(r"<script|<link|@import|url\(|(src|href)=.?(https?:)?//", html)
    assert "$" not in re.sub(r"<pre.*?</pre>", "", html, flags=re.DOTALL), "an equation was not understood"
    assert "<merror" not in html
    assert html.count("<summary>An answer</summary>") == len(WRONG[name])


def test_equation_becomes_mathml_and_code_is_folded(render: ModuleType) -> None:
    cells = [
        "# %% [markdown]\n# $x_1$ and $$\\sqrt{x}$$",
        '# %% tags=["exercise"]\nx = 0',
        '# %% tags=["check"]\nassert x == 1',
        '# %% tags=["answer"]\nx = 1',
        '# %% tags=["setup"]\nimport os',
    ]
    notebook = jupytext.reads("\n\n".join(cells), "py:percent")
    html = render.page(notebook, render.lessons()[0], render.lessons())
    assert "<msub>" in html
    assert re.search(r'<math[^>]*display="block"[^>]*>.*?<msqrt>', html, re.DOTALL)
    assert [re.sub("<.*?>", "", each) for each in re.findall(r"<summary>.*?</summary>", html)] == [
        "An answer",
        "Imports",
    ]


def test_answers_run_before_their_checks_and_stand_after_them(render: ModuleType) -> None:
    text = "\n\n".join(f'# %% tags=["{tag}"]\n{tag} = 1' for tag in ("exercise", "check", "answer", "plot"))
    cells = jupytext.reads(text, "py:percent").cells
    order = [cell.source.split()[0] for cell in render.swap_answers(cells)]
    assert order == ["exercise", "answer", "check", "plot"]
    assert render.swap_answers(render.swap_answers(cells)) == cells


def test_math_for_code_hosts(render: ModuleType) -> None:
    given = "A $x_1$, `a $b$ c` and\n\n$$ y \\\\ z $$\n\nend $\\{1\\}$"
    assert render.github_math(given) == "A $`x_1`$, `a $b$ c` and\n\n```math\ny \\\\ z\n```\n\nend $`\\{1\\}`$"


def test_table_of_contents_names_every_lesson_and_links_those_that_were_built(
    render: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "BUILD", tmp_path)
    (tmp_path / f"{NAMES[3]}.html").touch()
    html = render.contents(render.lessons())
    assert all(lesson.title in html for lesson in render.lessons())
    assert re.findall(r'href="(.+?)"', html) == [f"{NAMES[3]}.html"]
    for name in NAMES:
        (tmp_path / f"{name}.html").touch()
    assert re.findall(r'href="(.+?)"', render.contents(render.lessons())) == [f"{name}.html" for name in NAMES]


def test_page_links_only_to_pages_that_were_built(render: ModuleType) -> None:
    everything = render.lessons()
    for linked, expected in ((everything, [NAMES[2], NAMES[4]]), (everything[3:], [NAMES[4]]), (everything[3:4], [])):
        html = render.page(render.read(everything[3]), everything[3], linked)
        assert re.findall(r'href="(\d.+?)\.html"', html) == expected


def test_notebooks_are_written_and_how_to_open_them_is_said(
    render: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(LESSONS / f"{NAMES[0]}.py", tmp_path)
    monkeypatch.setattr(render, "LESSONS", tmp_path)
    monkeypatch.setattr(render, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["render.py", "--notebooks"])
    render.main()
    nbformat.validate(nbformat.read(tmp_path / f"{NAMES[0]}.ipynb", as_version=4))
    printed = capsys.readouterr().out
    for command in render.NOTEBOOK:
        assert command in printed
        assert command in (PUBLISHED / "README.md").read_text(encoding="utf-8")


def test_notebook_to_edit_does_not_run_answers(render: ModuleType) -> None:
    notebook = render.notebook_to_edit(render.lessons()[0])
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any("answer" in render.tags(cell) for cell in code)
    assert sum("<summary>An answer</summary>" in cell.source for cell in notebook.cells) == len(WRONG[NAMES[0]])
    assert all("raises-exception" in render.tags(cell) for cell in code if "check" in render.tags(cell))


def test_unknown_lesson_is_one_line() -> None:
    command = [sys.executable, str(LESSONS / "render.py"), "77"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 2
    assert ran.stderr.strip() == f"error: there is no lesson 77; there are {', '.join(name[:2] for name in NAMES)}"


def test_a_cell_over_its_limit_is_an_error_in_one_line(
    render: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "01_slow.py").write_text(
        "# %% [markdown]\n# # Slow\n#\n# It sleeps.\n\n# %%\nimport time\n\ntime.sleep(99)\n"
    )
    monkeypatch.setattr(render, "LESSONS", tmp_path)
    monkeypatch.setattr(render, "SECONDS", 1)
    lesson = render.lessons()[0]
    with pytest.raises(CellTimeoutError):
        render.run(lesson)
    monkeypatch.setattr(sys, "argv", ["render.py", "01"])
    with pytest.raises(SystemExit) as stopped:
        render.main()
    capsys.readouterr()
    message = str(stopped.value)
    assert message.strip() == (
        "error: lessons/01_slow.py: a cell took more than 1 seconds; close other programs and run it again"
    )


@pytest.mark.slow
def test_page_of_a_lesson_that_ran(render: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "BUILD", tmp_path)
    lesson = next(lesson for lesson in render.lessons() if lesson.number == "04")
    html = render.render(lesson, render.lessons(), render.lessons()).read_text(encoding="utf-8")
    assert html.count("data:image/svg+xml;base64,") >= 3
    assert "correct: of 64 pairs" in html
    assert (tmp_path / f"{lesson.name}.svg").read_text(encoding="utf-8").startswith("<?xml")
