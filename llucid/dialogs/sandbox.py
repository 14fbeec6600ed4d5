"""Runs chat templates, which are programs that come with a model, in a process of limited time and memory.

jinja2's immutable sandbox keeps a template from the interpreter's internals, but not from looping forever or from
filling the memory. So this file is also a program: a process that renders. It imports jinja2 and nothing of ours, and
answers each line of JSON with a line of JSON.
"""

# Why so: a thread cannot be stopped, so it has to be a process; it keeps running, since starting one takes 0.1 s and
# training on dialogues renders thousands. It ends with ours, has its own limits in case ours is killed, and survives
# Ctrl-C, which stops an answer. A process that was forked starts its own: two must not share the pipes.

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from jinja2 import Template, nodes, pass_context
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 10.0
"""Limit of one rendering, which takes about a thousandth of it."""
MEMORY = 512 * 2**20
"""Limit of the address space in bytes; Windows has none."""
LONGEST = 2_000_000
"""Characters that a template may write in addition to the messages."""
STAND_INS = "stand-ins"
"""Name of the stand-ins among a template's values; no template can use it, because of the hyphen."""


class TemplateFailure(Exception):
    """What went wrong with a template, in one line."""


class TemplateTimeout(TemplateFailure):
    """It took too long, or too much memory, as it would for other messages."""


class Renderer:
    """The process: started when first needed, and again after it had to be killed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        self.owner = os.getpid()

    def render(
        self, template: str, values: dict[str, Any], hidden: dict[str, str], firsts: str
    ) -> tuple[str, list[str]]:
        """(what `template` makes of `values`, its own texts that have one of `firsts`, and those if it decodes).

        `hidden` has the characters for which others stand in the values. They also do in those of the template's texts
        that it compares with the values or searches for in them, if one of `firsts` is there.

        Raises TemplateFailure if the template is invalid, refuses the values, uses what is forbidden, or exceeds
        SECONDS, MEMORY or LONGEST.
        """
        request = json.dumps({"template": template, "values": values, "hidden": hidden, "firsts": firsts}) + "\n"
        line = ""
        with self.lock:
            process = self.started()
            timer = threading.Timer(SECONDS, process.kill)
            timer.start()
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(request)
                process.stdin.flush()
                line = process.stdout.readline()
            except OSError:  # it has ended
                pass
            finally:
                timer.cancel()
                if not line.endswith("\n"):  # after an interrupt, too: a late answer must not be read as the next one
                    self.close()
        if not line.endswith("\n"):
            raise TemplateTimeout(f"it did not end within {SECONDS:g} seconds, or took too much memory")
        answer = json.loads(line)
        if "error" in answer:
            raise TemplateFailure(answer["error"])
        return answer["text"], answer["own"]

    def started(self) -> "subprocess.Popen[str]":
        """The running process: a new one if there is none, or if it is that of the process we were forked from."""
        if self.process is None or self.process.poll() is not None or self.owner != os.getpid():
            self.close()
            self.process = subprocess.Popen(
                [sys.executable, "-P", __file__],  # -P: imports nothing from this folder
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="ascii",
                start_new_session=True,  # so that Ctrl-C in a terminal does not reach it
            )
            self.owner = os.getpid()
        return self.process

    def close(self) -> None:
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            with contextlib.suppress(OSError, ValueError):
                self.process.communicate()
        self.process = None


RENDERER = Renderer()
atexit.register(RENDERER.close)


# ------------------------------------------------------------------------------- inside the process


class Generation(Extension):
    """`{% generation %}`, which marks what training should learn: prints what is inside."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@pass_context
def tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON as in transformers' templates, without HTML escapes, and without escapes of the stand-ins."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    for character in context.get(STAND_INS, "") if ensure_ascii else "":
        text = text.replace(json.dumps(character)[1:-1], character)
    return text


def raise_exception(message: str) -> None:
    raise TemplateError(str(message))


def strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


@functools.cache
def environment() -> ImmutableSandboxedEnvironment:
    """What transformers offers to chat templates, and no more."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    filters: dict[str, Any] = made.filters
    filters["tojson"] = tojson
    names: dict[str, Any] = made.globals
    names.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return made


FINDING = "count endswith find get index lstrip partition rfind rindex rpartition rsplit rstrip split startswith strip"
SEARCHES = dict.fromkeys(FINDING.split(), 9) | {"replace": 1}
"""Methods that search for their arguments, and for how many of them."""
DECODING = {"striptags", "unescape", "decode"}
"""Filters and methods that make characters of others, such as `<` of `&lt;`."""


def compared(tree: nodes.Template) -> Iterator[nodes.Node]:
    """What a template compares with values, or searches for in them."""
    for comparison in tree.find_all(nodes.Compare):
        yield from (comparison.expr, *(operand.expr for operand in comparison.ops))
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr):
            yield from call.args[: SEARCHES.get(call.node.attr, 0)]
    for made in tree.find_all(nodes.Filter):
        yield from made.args[:1] if made.name == "replace" else []
    for item in tree.find_all(nodes.Getitem):
        yield item.arg


@functools.lru_cache(maxsize=16)
def compiled(template: str, hidden: tuple[tuple[str, str], ...], firsts: str) -> tuple[Template, list[str]]:
    """(the template, in which characters stand for others as `Renderer.render` says, its own texts)."""
    tree = environment().parse(template)

    def with_firsts(text: object) -> bool:
        return isinstance(text, str) and not set(firsts).isdisjoint(text)

    table = str.maketrans(dict(hidden))
    for node in compared(tree):
        for constant in (node, *node.find_all(nodes.Const)):
            if isinstance(constant, nodes.Const) and with_firsts(constant.value):
                constant.value = constant.value.translate(table)
    own = [node.value for node in tree.find_all(nodes.Const)]
    own += [node.data for node in tree.find_all(nodes.TemplateData)]
    used = {node.name for node in tree.find_all(nodes.Filter)} | {node.attr for node in tree.find_all(nodes.Getattr)}
    own += [] if used.isdisjoint(DECODING) else firsts
    return environment().from_string(tree), [text for text in own if with_firsts(text)]


def rendered(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request. Raises what the template raises, and ValueError if it writes too much."""
    template, own = compiled(request["template"], tuple(request["hidden"].items()), request["firsts"])
    values = {**request["values"], STAND_INS: [*request["hidden"].values()]}
    pieces: list[str] = []
    room = LONGEST + 8 * len(json.dumps(values))
    for piece in template.generate(values):
        room -= len(piece)
        if room < 0:
            raise ValueError("it writes more than a dialogue can be")
        pieces.append(piece)
    return {"text": "".join(pieces), "own": own}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What `rendered` answers, or the error."""
    try:
        return rendered(request)
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Exception as error:
        return {"error": " ".join(str(error).split())[:500] or type(error).__name__}


def serve() -> None:
    """Answers each line with a line, until there are no more."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        if hasattr(signal, "alarm"):  # ends this process if the parent, which has the timer, was killed
            signal.alarm(2 * round(SECONDS))
        response = answer(json.loads(line))
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        print(json.dumps(response), flush=True)


if __name__ == "__main__":
    serve()
