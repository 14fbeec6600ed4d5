"""Texts of the storyteller's conversations: fable_words.toml, read and parsed."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

FILE = Path(__file__).with_suffix(".toml")


class Exchange(NamedTuple):
    """Templates of a message and its answer."""

    weight: int
    """How often it is chosen, relative to the others of its table."""
    message: str
    answer: str
    key: str
    """What a correct answer contains."""


class Deed(NamedTuple):
    """What a character does."""

    past: str
    asked: str
    infinitive: str
    title: str


def replace_all(text: str, marks: Mapping[str, str]) -> str:
    """The text with each mark replaced."""
    for mark, replacement in marks.items():
        text = text.replace(mark, replacement)
    return text


def exchanges(text: str) -> tuple[Exchange, ...]:
    """Parses rows of weight / message / answer / key. The key may be empty. A row may continue on the next lines."""
    rows = re.split(r"\n\s*(?=\d+ / )", text.strip())
    cells = ([cell.strip() for cell in " ".join(row.split()).split(" / ")] for row in rows)
    return tuple(Exchange(int(row[0]), row[1], row[2].removesuffix(" /"), row[3] if row[3:] else "") for row in cells)


def load() -> SimpleNamespace:
    """The entries of the file as attributes: references replaced, exchanges parsed, lines joined, lists as tuples."""
    entries = tomllib.loads(FILE.read_text(encoding="utf-8"))

    def insert(text: str) -> str:
        """The text with each `<name>` that names a text replaced by it."""
        names = {name for name in re.findall(r"<(\w+)>", text) if isinstance(entries.get(name), str)}
        return replace_all(text, {f"<{name}>": insert(entries[name]) for name in names})

    def parse(value: Any) -> Any:
        if isinstance(value, dict):
            parsed = {name: parse(each) for name, each in value.items()}
            return Deed(**parsed) if "past" in parsed else parsed
        if isinstance(value, list):
            return tuple(map(parse, value))
        if not isinstance(value, str):
            return value
        value = insert(value)
        if re.match(r"\s*\d+ / ", value):
            return exchanges(value)
        return " ".join(value.split()) if "\n" in value else value

    return SimpleNamespace(**{name: parse(value) for name, value in entries.items()})
