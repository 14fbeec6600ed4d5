"""The lessons run, their answers pass their checks, and their pages need no network."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jupytext
import pytest

LESSONS = Path(__file__).resolve().parents[2] / "lessons"
FILES = sorted(LESSONS.glob("0*.py"))
NAMES = [file.stem for file in FILES]


@pytest.fixture(scope="module")
def render() -> ModuleType:
    """lessons/render.py, which is of no package."""
    found = importlib.util.spec_from_file_location("render", LESSONS / "render.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_there_are_nine() -> None:
    assert [name[:2] for name in NAMES] == [f"{number:02}" for number in range(1, 10)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_lesson_runs(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = os.pathsep.join(filter(None, [str(LESSONS.parent), os.environ.get("PYTHONPATH")]))
    kept = tmp_path_factory.getbasetemp() / "lessons"  # one trained model for all
    told = {"PYTHONPATH": path, "MPLBACKEND": "agg", "LLUCID_CACHE": str(kept), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", f"{name}.py"]
    ran = subprocess.run(command, cwd=LESSONS, env=os.environ | told, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.count("holds") >= 3


@pytest.mark.parametrize("name", NAMES)
def test_lesson_has_the_parts_that_every_lesson_has(name: str, render: ModuleType) -> None:
    lesson = render.describe(LESSONS / f"{name}.py")
    cells = jupytext.read(LESSONS / f"{name}.py").cells
    tags = [tag for cell in cells for tag in cell.metadata.get("tags", [])]
    assert lesson.title
    assert 100 < len(lesson.about) < 400
    assert tags.count("answer") == tags.count("check") == 3
    assert tags.count("picture") == 1


@pytest.mark.parametrize("name", NAMES)
def test_page_needs_no_network_and_its_equations_are_mathml(name: str, render: ModuleType) -> None:
    everything = render.lessons()
    lesson = next(lesson for lesson in everything if lesson.name == name)
    html = render.page(render.notebook(lesson), lesson, everything)
    assert not re.search(r"<script|<link|@import|url\(|(src|href)=.?(https?:)?//", html)
    assert "$" not in re.sub(r"<pre.*?</pre>", "", html, flags=re.DOTALL), "an equation was not understood"
    assert "<merror" not in html
    for match in re.findall(r'href="(.*?)"', html):
        assert match == "index.html" or match.removesuffix(".html") in NAMES


def test_equation_becomes_mathml_and_answer_is_folded(render: ModuleType) -> None:
    cells = ["# %% [markdown]\n# $x_1$ and $$\\sqrt{x}$$", '# %% tags=["answer"]\nx = 1']
    html = render.page(jupytext.reads("\n\n".join(cells), "py:percent"), render.lessons()[0], render.lessons())
    assert "<msub>" in html
    assert re.search(r'<math[^>]*display="block"[^>]*>.*?<msqrt>', html, re.DOTALL)
    assert re.search(r"<details>.*class=\"cell\".*</details>", html, re.DOTALL)


def test_table_of_contents_names_every_lesson(render: ModuleType) -> None:
    html = render.contents(render.lessons())
    assert all(f'href="{name}.html"' in html for name in NAMES)


def test_unknown_lesson_is_one_line() -> None:
    command = [sys.executable, str(LESSONS / "render.py"), "17"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 2
    assert ran.stderr.strip() == f"error: there is no lesson 17; there are {', '.join(name[:2] for name in NAMES)}"


@pytest.mark.slow
def test_page_of_a_lesson_that_ran(render: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "BUILD", tmp_path)
    lesson = next(lesson for lesson in render.lessons() if lesson.name.startswith("02"))
    html = render.render(lesson, render.lessons(), pictures=False).read_text(encoding="utf-8")
    assert html.count("data:image/svg+xml;base64,") >= 3
    assert "holds: of 64 pairs" in html
    assert (tmp_path / f"{lesson.name}.svg").read_text(encoding="utf-8").startswith("<?xml")
