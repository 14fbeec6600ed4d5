"""Runs lessons and lays them out as pages that need no network: all is inside, equations as MathML.

./dev lessons               all of them, into lessons/build
./dev lessons 03 07         some of them
./dev lessons --notebooks   writes each as a notebook beside it, not run: yours to run and change
./dev lessons --pictures    draws the README's pictures, too, into docs

A lesson is a Python file in the percent format of jupytext. A cell may have a tag: "picture" (its
figure stands in the table of contents), "answer" (folded away) or "check" (what checks an answer).
"""

import argparse
import os
import sys
import time
from base64 import b64decode
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jupytext
import nbformat
from jinja2 import Environment, FileSystemLoader, pass_context
from latex2mathml.converter import convert
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

LESSONS = Path(__file__).resolve().parent
BUILD = LESSONS / "build"
PAGE = LESSONS / "page"
ROOT = LESSONS.parent
PICTURES = {"02_position": "rope.png", "03_attention": "attention.png"}
"""The lessons whose pictures the README shows."""
SECONDS = 600
"""Longest that a cell may run: much more than any needs, even on a slow machine."""


class Lesson(NamedTuple):
    """What the table of contents says of a lesson."""

    name: str
    """Of its file, without the suffix."""
    title: str
    about: str
    """Its first paragraph."""

    @property
    def pictured(self) -> bool:
        """Whether its picture has been drawn."""
        return (BUILD / f"{self.name}.svg").is_file()


def lessons() -> list[Lesson]:
    """All lessons, in order."""
    return [describe(file) for file in sorted(LESSONS.glob("[0-9][0-9]_*.py"))]


def describe(file: Path) -> Lesson:
    """The lesson in a file: its first cell is "# Title", an empty line, and a paragraph."""
    title, about = jupytext.read(file).cells[0].source.split("\n\n")[:2]
    return Lesson(file.stem, title.removeprefix("# "), about.replace("\n", " "))


def notebook(lesson: Lesson) -> NotebookNode:
    """The lesson as a notebook, not yet run; answers are folded in JupyterLab, too."""
    read = jupytext.read(LESSONS / f"{lesson.name}.py")
    read.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    for cell in read.cells:
        if "answer" in cell.metadata.get("tags", []):
            cell.metadata["jupyter"] = {"source_hidden": True}
    return read


def run(lesson: Lesson, pictures: bool = False) -> NotebookNode:
    """The lesson with what its cells printed and drew, as SVG; with `pictures` as large PNG, too.

    Raises CellExecutionError if a cell fails.
    """
    formats = {"svg", "retina"} if pictures else {"svg"}
    arguments = [
        f"--InlineBackend.figure_formats={formats}",
        "--InlineBackend.print_figure_kwargs={}",  # figures are as large as they say
        "--InteractiveShell.ast_node_interactivity=none",  # cells print what is to be seen
        "--HistoryManager.enabled=False",
    ]
    # This checkout's llucid, whichever is installed; and no warning of a debugger that nobody uses.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    read = notebook(lesson)
    with TemporaryDirectory() as sockets:
        # Not over TCP, where other users of the machine could listen; Windows has nothing else.
        ipc = {"transport": "ipc", "ip": f"{sockets}/kernel"}
        settings = Config({"KernelManager": {} if os.name == "nt" else ipc})
        client = NotebookClient(
            read,
            timeout=SECONDS,
            kernel_name="python3",
            extra_arguments=arguments,
            config=settings,
            coalesce_streams=True,
            resources={"metadata": {"path": str(LESSONS)}},
        )
        return client.execute(env=environment)


class MathML(IPythonRenderer):
    """Markdown to HTML with LaTeX as MathML, which browsers draw by themselves."""

    def block_math(self, body: str) -> str:
        return convert(body.strip(), display="block")

    def inline_math(self, body: str) -> str:
        return convert(body.strip())


def html_of(markdown: str) -> str:
    """Markdown as HTML."""
    renderer = MathML(escape=False, exclude_anchor_links=True)
    return MarkdownWithMath(renderer=renderer).render(markdown)


class Exporter(HTMLExporter):
    """nbconvert's, with our template and MathML."""

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        return html_of(source)


def style() -> str:
    """The one stylesheet, and the colours of code."""
    colours = HtmlFormatter(style="friendly").get_style_defs(".highlight .highlight")
    return (PAGE / "style.css").read_text(encoding="utf-8") + colours.replace(
        ".highlight .highlight", ".highlight"
    )


def page(ran: NotebookNode, lesson: Lesson, everything: list[Lesson]) -> str:
    """The HTML of a lesson that was run."""
    at = everything.index(lesson)
    beside = {
        "title": lesson.title,
        "number": f"{at + 1} of {len(everything)}",
        "before": everything[at - 1] if at else None,
        "after": everything[at + 1] if at + 1 < len(everything) else None,
        "style": style(),
    }
    exporter = Exporter(template_name="page", extra_template_basedirs=[str(LESSONS)])
    return exporter.from_notebook_node(ran, resources=beside)[0]


def contents(everything: list[Lesson]) -> str:
    """The HTML of the table of contents."""
    template = Environment(loader=FileSystemLoader(PAGE), autoescape=False).get_template(
        "contents.html.j2"
    )
    return template.render(lessons=everything, style=style(), html_of=html_of)


def picture(ran: NotebookNode) -> dict[str, str]:
    """The figure of the cell tagged "picture", by its MIME type; nothing if there is none."""
    for cell in ran.cells:
        if "picture" in cell.metadata.get("tags", []):
            drawn = (output.data for output in cell.outputs if "data" in output)
            return next((data for data in drawn if "image/svg+xml" in data), {})
    return {}


def render(lesson: Lesson, everything: list[Lesson], pictures: bool) -> Path:
    """Runs a lesson and writes its page and its picture; returns the page's path."""
    ran = run(lesson, pictures)
    BUILD.mkdir(exist_ok=True)
    drawn = picture(ran)
    if drawn:
        (BUILD / f"{lesson.name}.svg").write_text(drawn["image/svg+xml"], encoding="utf-8")
    if pictures and lesson.name in PICTURES:
        (ROOT / "docs" / PICTURES[lesson.name]).write_bytes(b64decode(drawn["image/png"]))
    file = BUILD / f"{lesson.name}.html"
    file.write_text(page(ran, lesson, everything), encoding="utf-8")
    return file


def main() -> None:
    """The command line of `./dev lessons`."""
    parser = argparse.ArgumentParser(
        prog="./dev lessons",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("number", nargs="*", help="of a lesson, as in 03; all when left out")
    parser.add_argument("--notebooks", action="store_true", help="write notebooks, and run nothing")
    parser.add_argument("--pictures", action="store_true", help="draw the README's pictures, too")
    options = parser.parse_args()
    everything = lessons()
    numbers = {lesson.name[:2]: lesson for lesson in everything}
    wanted = [number.zfill(2) for number in options.number] or list(numbers)
    if unknown := [number for number in wanted if number not in numbers]:
        told = f"error: there is no lesson {unknown[0]}; there are {', '.join(numbers)}"
        print(told, file=sys.stderr)
        sys.exit(2)
    for lesson in (numbers[number] for number in wanted):
        if options.notebooks:
            file = LESSONS / f"{lesson.name}.ipynb"
            nbformat.write(notebook(lesson), file)
            print(f"{lesson.name[:2]} {lesson.title:<32} {file.relative_to(ROOT)}")
            continue
        began = time.perf_counter()
        print(f"{lesson.name[:2]} {lesson.title:<32} ", end="", flush=True)
        try:
            file = render(lesson, everything, options.pictures)
        except CellExecutionError as error:
            sys.exit(f"\nerror: a cell of lessons/{lesson.name}.py failed:\n{error}")
        print(f"{time.perf_counter() - began:5.1f} s   {file.relative_to(ROOT)}", flush=True)
    if not options.notebooks:
        index = BUILD / "index.html"
        index.write_text(contents(everything), encoding="utf-8")
        print(f"open {index.relative_to(ROOT)} in a browser")


if __name__ == "__main__":
    main()
