"""Renders chat templates: a program that answers each line of JSON with a line of JSON.

The characters of messages are hidden: rare ones that occur nowhere stand in for them, so that what a template writes
shows where it is from. To the template itself each text is what it stands for: `Text` compares, searches and cuts it
so. Imports jinja2 and nothing of ours.
"""

import contextlib
import functools
import json
import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MEMORY = 512 * 2**20
"""Limit of the address space in bytes; Windows has none."""
LONGEST = 2_000_000
"""Characters that a template may write in addition to the messages."""
RARE = "".join(map(chr, range(0x20000, 0x2A6D7)))
"""Rare Chinese characters (CJK Extension B): printable, and without a case."""
SPACES = "".join(map(chr, (*range(0x2000, 0x200B), 0x1680, 0x202F, 0x205F, 0x3000)))
"""Rare spaces, which stand in for white space: tokens with `lstrip` or `rstrip` include what is beside them."""


# ------------------------------------------------------------------------------------- texts with stand-ins

TO_STAND_IN: dict[int, str] = {}
"""For the characters that are hidden in this request, by their code points; and the inverse."""
FROM_STAND_IN: dict[int, str] = {}


def hide(request: dict[str, Any]) -> None:
    """Chooses stand-ins for this request's messages, tools and documents. Raises ValueError if there are too few.

    All their characters are hidden, since a function may make any of any others: `<` of `&#60;`. White space stays
    white space, so only that of special tokens is.
    """
    values, special, said = request["values"], request["special"], list[str]()
    contents = [message["content"] for message in values.get("messages", [])]
    changed(said.append, [contents, values.get("tools"), values.get("documents")])
    characters, seen = {*"".join(said), *special}, {*json.dumps(request, ensure_ascii=False)}
    TO_STAND_IN.clear()
    for rare, wanted in (
        (SPACES, [character for character in special if character.isspace()]),
        (RARE, [character for character in characters if not character.isspace()]),
    ):
        free = [*islice((character for character in rare if character not in seen), len(wanted))]
        if len(free) < len(wanted):
            raise ValueError("the messages have too many different characters")
        TO_STAND_IN.update(zip(map(ord, wanted), free, strict=True))
    FROM_STAND_IN.clear()
    FROM_STAND_IN.update({ord(stand_in): chr(character) for character, stand_in in TO_STAND_IN.items()})


def changed(change: Callable[[Any], Any], value: Any) -> Any:
    """A value with all of its texts and bytes changed."""
    match value:
        case str() | bytes():
            return change(value)
        case dict():
            pairs = dict[Any, Any](value).items()
            return {changed(change, key): changed(change, inner) for key, inner in pairs}
        case list() | tuple():
            inside = [changed(change, inner) for inner in list[Any](value)]
            return tuple(inside) if type(value) is tuple else inside
        case _:
            return value


def shown(value: Any) -> Any:
    """A value with characters in place of their stand-ins."""
    return changed(plain, value)


def plain(text: Any) -> Any:
    """The same for a text, which keeps it, since a template may ask often; bytes as they are."""
    if type(text) is not Text:
        return text if isinstance(text, bytes) else str.translate(text, FROM_STAND_IN)
    kept = vars(text)
    if "_plain" not in kept:  # a name that the sandbox keeps from templates
        kept["_plain"] = str.translate(text, FROM_STAND_IN)
    return kept["_plain"]


def hidden(value: Any) -> Any:
    """A value with stand-ins in place of characters."""
    return changed(lambda text: as_text(text if isinstance(text, bytes) else str.translate(text, TO_STAND_IN)), value)


def has_stand_ins(value: Any) -> bool:
    """Whether a character is hidden in a text of a value, or it has bytes, which may be made of one."""
    found = list[bool]()
    changed(lambda text: found.append(isinstance(text, bytes) or str.__ne__(text, shown(text))), value)
    return any(found)


def as_text(value: Any) -> Any:
    """A plain text as `Text`, and bytes as `Bytes`; any other value as it is."""
    return Text(value) if type(value) is str else Bytes(value) if type(value) is bytes else value


def answers(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that sees what its texts stand for, and makes no text."""

    @functools.wraps(function)
    def made(*values: Any, **named: Any) -> Any:
        return function(*shown(values), **shown(named))

    return made


def hides(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that sees what its texts stand for, and whose result is hidden if anything in them is."""

    @functools.wraps(function)
    def made(*values: Any, **named: Any) -> Any:
        result = function(*shown(values), **shown(named))
        return hidden(result) if has_stand_ins([values, named]) else result

    return made


def keeps(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that only uses methods of `Text`, or joins texts."""

    @functools.wraps(function)
    def made(*values: Any, **named: Any) -> Any:
        return as_text(function(*map(as_text, values), **named))

    return made


def keeps_texts(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that uses methods of `Text`; of what is no text, it makes one."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0
    of_text, of_others = keeps(function), hides(function)

    @functools.wraps(function)
    def made(*values: Any, **named: Any) -> Any:
        return (of_text if isinstance(values[first], str) else of_others)(*values, **named)

    return made


class Text(str):
    """A text with stand-ins, which is the same to a template as the text that it stands for."""

    def __str__(self) -> str:
        return self

    def __hash__(self) -> int:
        return hash(shown(self))

    def __getitem__(self, key: Any) -> "Text":
        return Text(super().__getitem__(key))

    def __iter__(self) -> Iterator["Text"]:
        return map(Text, super().__iter__())

    def __add__(self, other: str) -> "Text":
        return Text(super().__add__(other))

    def __mod__(self, values: Any) -> "Text":
        """Text that says how to format is hidden with all that it formats."""
        return hidden(shown(self) % shown(values)) if has_stand_ins(self) else Text(super().__mod__(values))

    def _parts(self, parts: Iterable[str], between: int = 0) -> list[str]:
        """Parts of what this text stands for, in their order and at least so far from each other, as cut from it."""
        plain, cut, at = shown(self), list[str](), 0
        for part in parts:
            at = plain.index(part, at)
            cut.append(self[at : at + len(part)])
            at += len(part) + between
        return cut

    def split(self, sep: Any = None, maxsplit: Any = -1) -> list[str]:
        return self._parts(shown(self).split(shown(sep), maxsplit), len(sep or ""))

    def rsplit(self, sep: Any = None, maxsplit: Any = -1) -> list[str]:
        return self._parts(shown(self).rsplit(shown(sep), maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._parts(shown(self).splitlines(keepends))

    def partition(self, sep: str) -> tuple[str, str, str]:
        before, at, after = self._parts(shown(self).partition(shown(sep)))
        return before, at, after

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        before, at, after = self._parts(shown(self).rpartition(shown(sep)))
        return before, at, after

    def lstrip(self, chars: Any = None) -> "Text":
        return self[len(self) - len(shown(self).lstrip(shown(chars))) :]

    def rstrip(self, chars: Any = None) -> "Text":
        return self[: len(shown(self).rstrip(shown(chars)))]

    def strip(self, chars: Any = None) -> "Text":
        plain = shown(self).rstrip(shown(chars))
        return self[len(plain) - len(plain.lstrip(shown(chars))) : len(plain)]

    def removeprefix(self, prefix: str) -> "Text":
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str) -> "Text":
        return self[: len(self) - len(suffix)] if self.endswith(suffix) else self

    def replace(self, old: str, new: str, count: Any = -1) -> "Text":
        if not old:
            return Text(super().replace(old, new, count))
        return Text(str.join(new, self.split(old, count)))


class Bytes(bytes):
    """Bytes that were made of texts: all that is made of them is hidden."""

    def __repr__(self) -> str:
        return hidden(super().__repr__())

    __str__ = __repr__

    def __getitem__(self, key: Any) -> Any:
        return as_text(super().__getitem__(key))


ANSWERS = """count encode endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric
isprintable isspace istitle isupper rfind rindex startswith __contains__ __eq__ __ge__ __gt__ __le__ __lt__ __ne__"""
HIDES = "capitalize casefold expandtabs lower swapcase title translate upper zfill __repr__"
for names, kind in ((ANSWERS, answers), (HIDES, hides)):
    for name in names.split():
        setattr(Text, name, kind(getattr(str, name)))


# ------------------------------------------------------------------------------------------------- the sandbox


class Generation(Extension):
    """`{% generation %}`, which marks what training should learn: prints what is inside."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        return [nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)]


class Expressions(NodeTransformer):
    """Expresses what jinja2 does outside of its environment's methods by filters, which the environment has."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """`a ~ b`"""
        self.generic_visit(node)
        return filtered(nodes.List(node.nodes, lineno=node.lineno), "join", node)

    def visit_Operand(self, node: nodes.Operand) -> nodes.Node:
        """`in b`, where b may be a text without stand-ins"""
        self.generic_visit(node)
        if node.op in ("in", "notin"):
            node.expr = filtered(node.expr, TEXT, node)
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        """`{% set x %}...{% endset %}`"""
        self.generic_visit(node)
        node.filter = filtered(node.filter, "string", node)
        return node


def filtered(inner: nodes.Expr | None, name: str, at: nodes.Node) -> nodes.Filter:
    return nodes.Filter(inner, name, [], [], None, None, lineno=at.lineno)


KEEPS = """attr batch count d default dictsort first groupby items join last length list map max min random reject
rejectattr reverse safe select selectattr slice sort string sum unique"""
"""Filters that use none of a text's characters, or compare them."""
KEEPS_TEXTS = "center format indent lower replace trim truncate upper"
"""Filters that use methods of texts."""
TEXT = "a text"
"""The filter `as_text`; no template can use it, because of the space."""


class Environment(ImmutableSandboxedEnvironment):
    """What transformers offers to chat templates, and no more, for texts with stand-ins."""

    intercepted_binops = frozenset("+*%")

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
        filters: dict[str, Any] = self.filters
        filters |= {"tojson": tojson, "safe": filters["string"]}
        for name, function in filters.items():
            texts, others = name in KEEPS_TEXTS.split(), name in KEEPS.split()
            filters[name] = (keeps_texts if texts else keeps if others else hides)(function)
        filters[TEXT] = as_text
        tests: dict[str, Any] = self.tests
        tests["in"] = lambda value, values: value in as_text(values)
        tests |= {name: answers(tests[name]) for name in ("lower", "upper")}
        names: dict[str, Any] = self.globals
        names.update(raise_exception=raise_exception, strftime_now=strftime_now)

    def getattr(self, obj: Any, attribute: str) -> Any:
        return super().getattr(as_text(obj), attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(as_text(obj), argument)

    def wrap_str_format(self, value: Any) -> Any:
        """The method `format` or `format_map` of a text; None for anything else."""
        made = super().wrap_str_format(value)
        if made is None or not has_stand_ins(value.__self__):
            return made
        plain: Any = super().wrap_str_format(getattr(shown(value.__self__), value.__name__))
        return lambda *values, **named: hidden(plain(*shown(values), **shown(named)))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return as_text(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, /, *values: Any, **named: Any) -> Any:
        result = super().call(context, function, *values, **named)
        return hidden(result) if isinstance(getattr(function, "__self__", None), bytes) else as_text(result)


def tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as in transformers' templates, without HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    raise TemplateError(str(message))


def strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


@functools.cache
def environment() -> Environment:
    return Environment()


@functools.lru_cache(maxsize=16)
def compiled(template: str) -> Template:
    tree = Expressions().visit(environment().parse(template))
    return environment().from_string(tree.set_environment(environment()))


# ------------------------------------------------------------------------------------------------- the program


def rendered(request: dict[str, Any]) -> str:
    """The text for a request. Raises what the template raises, and ValueError if it writes too much."""
    hide(request)
    values = changed(Text, request["values"])
    values |= {name: hidden(values[name]) for name in ("tools", "documents") if name in values}
    for message in values.get("messages", []):
        message["content"] = hidden(message["content"])
    pieces: list[str] = []
    room = LONGEST + 8 * len(json.dumps(request["values"]))
    for piece in compiled(request["template"]).generate(values):
        room -= len(piece)
        if room < 0:
            raise ValueError("it writes more than a dialogue can be")
        pieces.append(piece)
    return "".join(pieces)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What `rendered` returns and the characters by their stand-ins, or the error."""
    try:
        return {"text": rendered(request), "shown": FROM_STAND_IN}
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Exception as error:
        return {"error": shown(str.join(" ", str.split(str(error)))[:500]) or type(error).__name__}


def serve(seconds: float) -> None:
    """Answers each line with a line, until there are no more. `seconds` are the limit of one answer."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        if hasattr(signal, "alarm"):  # ends this process if the parent, which has the timer, was killed
            signal.alarm(2 * math.ceil(seconds))
        response = answer(json.loads(line))
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        print(json.dumps(response), flush=True)


if __name__ == "__main__":
    serve(float(sys.argv[1]))
