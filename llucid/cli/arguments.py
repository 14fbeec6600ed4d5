"""From a command line to a dataclass: each field is an option, its type is the option's, its docstring the help.

By argparse: tyro draws its errors in boxes; with typer, cyclopts or click, training's settings would be declared twice.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, is_dataclass
from itertools import pairwise
from types import NoneType
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from llucid.errors import LlucidError

T = TypeVar("T")


def positional(metavar: str, default: Any = MISSING) -> Any:
    """A field that is given without a name; it may be left out if it has a default."""
    return dataclasses.field(default=default, metadata={"positional": True, "metavar": metavar})


def option(metavar: str, *, repeated: bool = False) -> Any:
    """An optional field that the help shows as `metavar`; a `repeated` one takes one text each time it is given."""
    return dataclasses.field(default=() if repeated else None, metadata={"repeated": repeated, "metavar": metavar})


class Option(NamedTuple):
    """One field of a command's dataclass."""

    name: str
    """The field's, or `model.dim` for the field `dim` of the dataclass in the field `model`."""
    field: "Field[Any]"
    hint: Any
    section: str
    """The help's section that it is in."""
    help: str

    @property
    def positional(self) -> bool:
        return "positional" in self.field.metadata

    @property
    def required(self) -> bool:
        return self.field.default is MISSING and self.field.default_factory is MISSING

    @property
    def spelling(self) -> str:
        """What the user types."""
        return self.field.metadata["metavar"] if self.positional else f"--{self.name.replace('_', '-')}"


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LlucidError(f"{message}; see: {self.prog} --help")


def parse(kind: type[T], words: list[str], prog: str) -> T:
    """An instance of the dataclass `kind`, filled from the words of a command line; --help prints its help and exits.

    Raises LlucidError, in one line, for words that do not fit.
    """
    options = list(options_of(kind))
    usage = [option.spelling for option in options if option.positional]
    usage += [
        f"{option.spelling} {option.name.upper()}" for option in options if option.required and not option.positional
    ]
    parser = Parser(
        prog=prog,
        usage=" ".join([prog, *usage, "[options]"]),
        description=inspect.getdoc(kind),
        allow_abbrev=False,
        exit_on_error=False,
        add_help=False,
    )
    parser.add_argument("--help", action="help", help=argparse.SUPPRESS)
    sections = {title: parser.add_argument_group(title) for title in dict.fromkeys(each.section for each in options)}
    for option in options:
        names = {} if option.positional else {"dest": option.name}
        sections[option.section].add_argument(
            option.name if option.positional else option.spelling,
            help=option.help.replace("%", "%%"),
            default=argparse.SUPPRESS,
            **names,
            **argparse_type(option),
        )
    # argparse takes words after -- for options in some places, and every -hello for -h.
    end = words.index("--") if "--" in words else len(words)
    literal = {f"\0{number}": word for number, word in enumerate(words[end + 1 :])}
    words = [{"-h": "--help"}.get(word, word) for word in words[:end]]
    try:
        values, unknown = parser.parse_known_intermixed_args([*words, *literal])
    except argparse.ArgumentError as error:
        message = "expected one argument" if "\\x00" in error.message else error.message
        parser.error(f"{error.argument_name}: {message}")
    if names := [word.split("=")[0] for word in unknown if word.startswith("-") and word != "-"]:
        near = difflib.get_close_matches(names[0].replace("_", "-"), [option.spelling for option in options], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if usage and not re.match("--[a-z]", names[0]):
            hint = "; a name or a text that begins with a dash goes to the end, after --"
        parser.error(f"{names[0]}: there is no such option{hint}")
    if unknown:
        shown = ", ".join(literal.get(word, word) for word in unknown)
        parser.error(f"{shown}: not expected here; put a text of several words in quotation marks")
    if missing := [option.spelling for option in options if option.required and option.name not in values]:
        parser.error(f"missing: {', '.join(missing)}")

    def typed(value: Any) -> Any:
        if isinstance(value, list):
            return [*map(typed, value)]  # pyright: ignore[reportUnknownArgumentType]
        return literal.get(value, value) if isinstance(value, str) else value

    return fill(kind, {name: typed(value) for name, value in vars(values).items()})


def fill(kind: type[T], values: dict[str, Any], prefix: str = "") -> T:
    """An instance of `kind`; fields that are not among `values` have their defaults."""
    hints = get_type_hints(kind)
    given = {name: values[prefix + name] for name in hints if prefix + name in values}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    nested = {
        name: fill(hint, values, f"{prefix}{name}.")
        for name, hint in hints.items()
        if isinstance(hint, type) and is_dataclass(hint)
    }
    return kind(**given, **nested)


def options_of(kind: type[Any]) -> Iterator[Option]:
    """The options of a dataclass, in sections: those that its SECTIONS names, the class's own, then the inherited ones.

    A class's TITLE is the title of the section of its own fields.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints, helps = get_type_hints(kind), docstrings(kind)
    arguments = [name for name, field in fields.items() if "positional" in field.metadata]
    sections: list[tuple[str, Any]] = [("arguments", arguments), *getattr(kind, "SECTIONS", {}).items()]
    sections += [(vars(base).get("TITLE", "options"), inspect.get_annotations(base)) for base in kind.__mro__]
    for section, name in ((title, name) for title, names in sections for name in names):
        if (field := fields.pop(name, None)) is None:
            continue
        if is_dataclass(hints[name]):
            title = str(inspect.getdoc(hints[name])).rstrip(".")
            yield from (each._replace(name=f"{name}.{each.name}", section=title) for each in options_of(hints[name]))
            continue
        default = " ".join(field.default) if isinstance(field.default, tuple) else field.default
        says = "(default" in helps[name] or default in (MISSING, "") or isinstance(default, bool | NoneType)
        text = helps[name] if says else f"{helps[name].removesuffix('.')} (default: {default})."
        yield Option(name, field, hints[name], section, text)


def docstrings(kind: type[Any]) -> dict[str, str]:
    """The texts below the fields of a dataclass and of those that it inherits from, by the fields' names."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        [tree] = ast.parse(inspect.getsource(base)).body
        for pair in pairwise(getattr(tree, "body", [])):
            match pair:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    found[name] = " ".join(text.split())
                case _:
                    pass
    return found


def argparse_type(option: Option) -> dict[str, Any]:
    """What argparse must know of an option's type. None among its types only means that it may be left out."""
    hint, metavar = option.hint, option.field.metadata.get("metavar")
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction if option.field.metadata.get("switch") else "store_true"}
    [kind] = [each for each in get_args(hint) if each is not NoneType] if NoneType in get_args(hint) else [hint]
    if get_origin(kind) is tuple:
        repeated = option.field.metadata.get("repeated")
        return {"metavar": metavar} | ({"action": "append"} if repeated else {"action": "extend", "nargs": "+"})
    if get_origin(kind) is Literal:
        return {"type": type(get_args(kind)[0]), "choices": get_args(kind)}
    if kind is bool:
        return {"type": boolean, "metavar": "{True,False}"}
    shown = {"type": kind, "metavar": metavar or {int: "N", float: "X"}.get(kind)}
    return shown | ({"nargs": "?"} if option.positional else {})


def boolean(word: str) -> bool:
    if word not in ("True", "False"):
        raise ValueError
    return word == "True"


def spell_options(message: str, kind: type[Any]) -> str:
    """A message of the library with the options of `kind` as they are typed.

    `top_k=0: …` becomes `--top-k 0: …`, `debug=True` becomes `--debug`, and `debug=False` `--no-debug`.
    """
    typed = [option for option in options_of(kind) if not option.positional]
    names = "|".join(re.escape(option.name) for option in typed)
    switches = "|".join(option.name for option in typed if "switch" in option.field.metadata)
    message = re.sub(rf"(?<![^\s(])({switches or '(?!)'})=False\b", r"--no-\1", message)
    return re.sub(
        rf"(?<![^\s(])({names})=(True\b)?(?=([^\s;,:)]?))",
        lambda found: f"--{found[1].replace('_', '-')}{' ' if found[3] and not found[2] else ''}",
        message,
    )
