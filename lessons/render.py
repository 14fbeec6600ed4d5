"""Runs the lessons and writes them as pages that need no network.

./dev lessons               runs all, and writes HTML pages to lessons/build (equations as MathML)
./dev lessons 03 07         some of them
./dev lessons --publish     also writes the Markdown pages and pictures of docs/lessons, and docs/look.html
./dev lessons --notebooks   runs nothing; writes a notebook beside each lesson, for you to run and change

A lesson is a Python file in jupytext's percent format. Tags of its cells:
    setup      imports, folded             exercise   a function to write; it raises NotImplementedError
    plot       draws a figure, folded;     check      tests the exercise above
               its first line is a comment, the text alternative of the figure
    picture    the plot that the table of contents shows
    answer     the solution, folded; it follows the check, and is run before it
"""

import argparse
import hashlib
import os
import re
import subprocess
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
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

LESSONS = Path(__file__).resolve().parent
BUILD = LESSONS / "build"
PAGE = LESSONS / "page"
ROOT = LESSONS.parent
PUBLISHED = ROOT / "docs" / "lessons"
STORYTELLER = ROOT / "llucid" / "chat" / "storyteller" / "model.safetensors"
LOOK_TEXT = "The fox rang the bell. The fox rang the"
"""What docs/look.html shows; lesson 13 follows the same text."""
INTRODUCTION = """\
From the question what a language model is to a Llama that you write, train, open and change yourself. You \
need Python, and some mathematics: vectors and the matrix product, $e^x$ and logarithms, derivatives from \
lesson 1 on, and for single sections variance, complex numbers and singular values. The lessons compute with \
PyTorch; half a page in lesson 0 shows what they use of it. Every number and picture was made by \
the code beside it."""
SECONDS = 600
"""Time limit of a cell: far more than any needs, also on a slow machine."""
NOTEBOOK = (".venv/bin/pip install notebook", ".venv/bin/jupyter notebook lessons")
"""Commands that open the notebooks in a browser."""
FOLDED = {"setup": "Imports", "plot": "Code of the figure", "answer": "An answer"}


class Lesson(NamedTuple):
    """What the table of contents says about a lesson."""

    name: str
    """Name of its file, without the suffix."""
    title: str
    about: str
    """Its first paragraph."""

    @property
    def number(self) -> str:
        """As in "03"."""
        return self.name[:2]

    @property
    def has_page(self) -> bool:
        """Whether its page has been written."""
        return (BUILD / f"{self.name}.html").is_file()

    @property
    def has_picture(self) -> bool:
        """Whether its picture has been drawn."""
        return (BUILD / f"{self.name}.svg").is_file()


def lessons() -> list[Lesson]:
    """All lessons, in order."""
    return [describe(file) for file in sorted(LESSONS.glob("[0-9][0-9]_*.py"))]


def describe(file: Path) -> Lesson:
    """The lesson in a file: its first cell is "# Title", an empty line, and a paragraph."""
    title, about = jupytext.read(file).cells[0].source.split("\n\n")[:2]
    return Lesson(file.stem, title.removeprefix("# "), about.replace("\n", " "))


def digest(lesson: Lesson) -> str:
    """A hash of what a published page depends on: the lesson, the code of its figures, the storyteller."""
    files = (
        LESSONS / f"{lesson.name}.py",
        LESSONS / "figures.py",
        LESSONS / "matplotlibrc",
        STORYTELLER,
    )
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()[
        :16
    ]


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def fold(cell: NotebookNode) -> str | None:
    """The title under which the code of a cell is folded away, or None."""
    return next((FOLDED[tag] for tag in tags(cell) if tag in FOLDED), None)


def read(lesson: Lesson) -> NotebookNode:
    """The lesson as a notebook without outputs, cells in the order of the file."""
    notebook = jupytext.read(LESSONS / f"{lesson.name}.py")
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    for cell in notebook.cells:
        if "picture" in tags(cell):
            cell.metadata["tags"] = ["plot", *tags(cell)]
    return notebook


def notebook_to_edit(lesson: Lesson) -> NotebookNode:
    """The lesson for a reader to run: answers are folded text, and a failing check does not stop the rest."""
    notebook = read(lesson)
    for number, cell in enumerate(notebook.cells):
        if "answer" in tags(cell):
            code = f"<details><summary>An answer</summary>\n\n```python\n{cell.source}\n```\n\n</details>"
            notebook.cells[number] = new_markdown_cell(code)
        elif "check" in tags(cell):
            cell.metadata["tags"] = [*tags(cell), "raises-exception"]
        elif fold(cell):
            cell.metadata["jupyter"] = {"source_hidden": True}
    return notebook


def swap_answers(cells: list[NotebookNode]) -> list[NotebookNode]:
    """The cells in the order in which they run: each answer before the check that it follows.

    Applied twice, it gives the order of the file again.
    """
    swapped = list(cells)
    for at in range(1, len(cells) - 1):
        if "exercise" in tags(swapped[at - 1]):
            swapped[at], swapped[at + 1] = swapped[at + 1], swapped[at]
    return swapped


def run(lesson: Lesson) -> NotebookNode:
    """The lesson with its outputs; figures as SVG and PNG.

    Raises CellExecutionError if a cell fails, CellTimeoutError if one takes more than SECONDS.
    """
    arguments = [
        "--InlineBackend.figure_formats={'svg', 'png'}",
        "--InlineBackend.print_figure_kwargs={}",  # figures are as large as they say
        "--InteractiveShell.ast_node_interactivity=none",  # cells print what is to be seen
        "--HistoryManager.enabled=False",
    ]
    # This checkout's llucid, whichever is installed; and no warning about a debugger that is not used.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    notebook = read(lesson)
    notebook.cells = swap_answers(notebook.cells)
    with TemporaryDirectory() as sockets:
        # Not over TCP, where other users of the machine could listen; Windows has nothing else.
        ipc = {"transport": "ipc", "ip": f"{sockets}/kernel"}
        settings = Config({"KernelManager": {} if os.name == "nt" else ipc})
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            extra_arguments=arguments,
            config=settings,
            coalesce_streams=True,
            resources={"metadata": {"path": str(LESSONS)}},
        )
        try:
            client.execute(env=environment)
        except AssertionError as error:  # nbclient's, while it cleans up after a kernel that died
            raise error.__context__ or error from None
    notebook.cells = swap_answers(notebook.cells)
    return notebook


class MathML(IPythonRenderer):
    """Markdown to HTML with LaTeX as MathML, which browsers draw by themselves."""

    def block_math(self, body: str) -> str:
        return convert(body.strip(), display="block")

    def inline_math(self, body: str) -> str:
        return convert(body.strip())


def one_folder_down(markdown: str) -> str:
    """The Markdown with its relative links changed for a page in docs/lessons or lessons/build."""
    return markdown.replace("](../", "](../../")


def html_of(markdown: str) -> str:
    """Markdown as HTML."""
    renderer = MathML(escape=False, exclude_anchor_links=True)
    return MarkdownWithMath(renderer=renderer).render(one_folder_down(markdown))


class Exporter(HTMLExporter):
    """nbconvert's, with our template and MathML."""

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        return html_of(source)


def style() -> str:
    """The stylesheet, and the colours of code."""
    colours = HtmlFormatter(style="friendly").get_style_defs(".highlight .highlight")
    return (PAGE / "style.css").read_text(encoding="utf-8") + colours.replace(
        ".highlight .highlight", ".highlight"
    )


def page(notebook: NotebookNode, lesson: Lesson, linked: list[Lesson]) -> str:
    """The HTML of a lesson, with links to the lessons before and after it in `linked`."""
    at = linked.index(lesson)
    for cell in notebook.cells:
        cell.metadata["fold"] = fold(cell)
    resources = {
        "title": lesson.title,
        "number": f"lesson {int(lesson.number)}",
        "before": linked[at - 1] if at else None,
        "after": linked[at + 1] if at + 1 < len(linked) else None,
        "style": style(),
    }
    exporter = Exporter(template_name="page", extra_template_basedirs=[str(LESSONS)])
    return exporter.from_notebook_node(notebook, resources=resources)[0]


def contents(everything: list[Lesson]) -> str:
    """The HTML of the table of contents; lessons whose page has not been built are not links."""
    template = Environment(loader=FileSystemLoader(PAGE), autoescape=False).get_template("contents.html.j2")
    return template.render(lessons=everything, intro=html_of(INTRODUCTION), style=style(), html_of=html_of)


def figures(notebook: NotebookNode, kind: str) -> list[str]:
    """The figures of a lesson that was run, as MIME type `kind`, one per cell that has one."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


def picture(notebook: NotebookNode) -> str | None:
    """The figure of the cell tagged "picture", as SVG."""
    for cell in notebook.cells:
        if "picture" in tags(cell):
            return next(iter(figures(NotebookNode(cells=[cell]), "image/svg+xml")), None)
    return None


def github_math(markdown: str) -> str:
    """LaTeX in the notation that code hosts do not confuse with Markdown: $`x`$, and fences of `math`."""
    parts = re.split(r"(```.*?```|`[^`]*`)", markdown, flags=re.DOTALL)
    for number, part in enumerate(parts):
        if not part.startswith("`"):
            part = re.sub(r"\$\$(.*?)\$\$", lambda m: f"```math\n{m[1].strip()}\n```", part, flags=re.DOTALL)
            blocks = re.split(r"(```math.*?```)", part, flags=re.DOTALL)
            parts[number] = "".join(
                block if block.startswith("```") else re.sub(r"\$([^$]+)\$", r"$`\1`$", block)
                for block in blocks
            )
    return "".join(parts)


def markdown_page(
    notebook: NotebookNode, lesson: Lesson, everything: list[Lesson]
) -> tuple[str, dict[str, bytes]]:
    """A lesson that was run as Markdown with LaTeX, as code hosts show it, and its pictures by file name."""
    pictures: dict[str, bytes] = {}
    parts: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(github_math(one_folder_down(cell.source)))
            continue
        code = "```python\n" + cell.source.strip("\n") + "\n```"
        title = fold(cell)
        parts.append(f"<details><summary>{title}</summary>\n\n{code}\n\n</details>" if title else code)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                parts.append(f"```text\n{output.text.rstrip()}\n```")
            elif "image/png" in output.get("data", {}):
                name = f"{lesson.name}_{len(pictures) + 1}.png"
                pictures[name] = b64decode(output.data["image/png"])
                parts.append(f"![{figure_text(cell)}]({name})")
    at = everything.index(lesson)
    links = ["[All lessons](README.md)"]
    if at:
        links.insert(0, f"← [{everything[at - 1].title}]({everything[at - 1].name}.md)")
    if at + 1 < len(everything):
        links.append(f"[{everything[at + 1].title}]({everything[at + 1].name}.md) →")
    source = f"Source: [`lessons/{lesson.name}.py`](../../lessons/{lesson.name}.py)"
    end = [
        "---",
        " · ".join(links),
        f"{source}, run by `./dev lessons --publish`.",
        f"<!-- {digest(lesson)} -->",
    ]
    return "\n\n".join([*parts, *end]) + "\n", pictures


def figure_text(cell: NotebookNode) -> str:
    """The text alternative of a figure: the comment in the first line of its cell."""
    return cell.source.split("\n")[0].removeprefix("# ")


def published_contents(everything: list[Lesson]) -> str:
    """The table of contents as Markdown."""
    head = (
        f"# Lessons\n\n{github_math(INTRODUCTION)}\n\n"
        "`./dev lessons` writes the lessons as web pages that need no network. `./dev lessons --notebooks` "
        "writes them as notebooks for you to run and change. Open these in VS Code with its Jupyter "
        "extension, with the Python of `.venv` as their kernel, or in a browser with Jupyter:\n\n"
        "```\n" + "\n".join(NOTEBOOK) + "\n```"
    )
    rows = [f"- **{int(e.number)} · [{e.title}]({e.name}.md)** {github_math(e.about)}" for e in everything]
    return "\n\n".join([head, "\n".join(rows)]) + "\n"


def render(lesson: Lesson, everything: list[Lesson], linked: list[Lesson], publish: bool = False) -> Path:
    """Runs a lesson and writes its page and its picture; returns the path of the page.

    The page links to lessons in `linked`, the published one to those in `everything`.
    """
    notebook = run(lesson)
    BUILD.mkdir(exist_ok=True)
    if drawn := picture(notebook):
        (BUILD / f"{lesson.name}.svg").write_text(drawn, encoding="utf-8")
    if publish:
        text, pictures = markdown_page(notebook, lesson, everything)
        PUBLISHED.mkdir(parents=True, exist_ok=True)
        for old in PUBLISHED.glob(f"{lesson.name}_*.png"):
            old.unlink()
        for name, content in pictures.items():
            (PUBLISHED / name).write_bytes(content)
        (PUBLISHED / f"{lesson.name}.md").write_text(text, encoding="utf-8")
    file = BUILD / f"{lesson.name}.html"
    file.write_text(page(notebook, lesson, linked), encoding="utf-8")
    return file


def failure(error: Exception, lesson: Lesson) -> str:
    """What to print when a lesson cannot be run: one line, and the traceback of a cell that failed."""
    where = f"error: lessons/{lesson.name}.py"
    if isinstance(error, CellTimeoutError):
        return f"{where}: a cell took more than {SECONDS} seconds; close other programs and run it again"
    if isinstance(error, DeadKernelError):
        return f"{where}: Python stopped without a message, perhaps for want of memory; close other programs"
    return f"{where}: a cell failed\n{error}"


def main() -> None:
    """The command line of `./dev lessons`."""
    parser = argparse.ArgumentParser(
        prog="./dev lessons",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("number", nargs="*", help="of a lesson, as in 03; all by default")
    parser.add_argument("--notebooks", action="store_true", help="write notebooks, and run nothing")
    parser.add_argument("--publish", action="store_true", help="also write the pages of docs/lessons")
    options = parser.parse_args()
    everything = lessons()
    numbers = {lesson.number: lesson for lesson in everything}
    wanted = [number.zfill(2) for number in options.number] or list(numbers)
    if unknown := [number for number in wanted if number not in numbers]:
        print(
            f"error: there is no lesson {unknown[0]}; there are {', '.join(numbers)}",
            file=sys.stderr,
        )
        sys.exit(2)
    linked = [lesson for lesson in everything if lesson.number in wanted or lesson.has_page]
    for lesson in (numbers[number] for number in wanted):
        if options.notebooks:
            file = LESSONS / f"{lesson.name}.ipynb"
            nbformat.write(notebook_to_edit(lesson), file)
            print(f"{lesson.number} {lesson.title:<38} {file.relative_to(ROOT)}")
            continue
        started = time.perf_counter()
        print(f"{lesson.number} {lesson.title:<38} ", end="", flush=True)
        try:
            file = render(lesson, everything, linked, options.publish)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            sys.exit("\n" + failure(error, lesson))
        print(f"{time.perf_counter() - started:5.1f} s   {file.relative_to(ROOT)}", flush=True)
    if options.notebooks:
        print("open them in VS Code (with its Jupyter extension and the Python of .venv), or in a browser:")
        print(*(f"    {command}" for command in NOTEBOOK), sep="\n")
        return
    index = BUILD / "index.html"
    index.write_text(contents(everything), encoding="utf-8")
    if options.publish:
        (PUBLISHED / "README.md").write_text(published_contents(everything), encoding="utf-8")
        look = [
            sys.executable,
            "-m",
            "llucid",
            "look",
            "",
            LOOK_TEXT,
            "--html",
            str(ROOT / "docs" / "look.html"),
        ]
        subprocess.run(look, check=True)
    print(f"open {index.relative_to(ROOT)} in a browser")


if __name__ == "__main__":
    main()
