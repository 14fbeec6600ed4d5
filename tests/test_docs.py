"""README and docs: length, links, quotations of code, and a map that matches the tree."""

import base64
import gzip
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *ROOT.glob("benchmarks/*.md"),
]


def links(page: Path) -> list[str]:
    """The relative links of a page, without what is in code."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text)
    return [link for link in found if not re.match(r"\w+:", link)]


def test_readme_is_one_page() -> None:
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        assert (page.parent / link).exists(), link


def test_every_page_is_reachable_from_the_readme() -> None:
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        waiting += [page.parent / link for link in links(page)]
    assert {page.resolve() for page in PAGES} <= seen


def test_the_readme_quotes_the_code_as_it_is() -> None:
    """Every line of the quotation that is not shortened is a line of llama.py."""
    quoted = re.search(r"```python\n(def .*?)```", README, re.DOTALL)
    assert quoted
    lines = {line.strip() for line in (ROOT / "llucid" / "llama.py").read_text(encoding="utf-8").splitlines()}
    for line in filter(None, map(str.strip, quoted[1].splitlines())):
        assert line in lines or "…" in line, line


def test_the_exported_page_shows_the_code_as_it_is() -> None:
    """`./dev lessons --publish 13` writes it again."""
    page = (ROOT / "docs" / "look.html").read_text(encoding="utf-8")
    answers = re.search(r'<script[^>]*id="answers"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert answers
    source = json.loads(answers[1])["answers"]["/look/source"]
    shown = json.loads(gzip.decompress(base64.b64decode(source["body"])))["text"]
    assert shown == (ROOT / "llucid" / "llama.py").read_text(encoding="utf-8")


def test_the_map_matches_the_tree() -> None:
    map_ = README.split("```\nllucid/\n")[1].split("```")[0]
    names = {
        name.strip().rstrip("/")
        for line in map_.splitlines()
        for name in re.split(r",\s*", re.split(r"\s{2,}", line.strip())[0])
        if line.startswith("  ")
    }
    tree = {
        path.name
        for path in (ROOT / "llucid").iterdir()
        if not path.name.startswith("_") and path.suffix in ("", ".py", ".c")
    }
    assert names == tree
