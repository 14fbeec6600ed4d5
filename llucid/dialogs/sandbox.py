"""Runs chat templates, which come with a model and are somebody else's programs, where they can do no harm.

jinja2's immutable sandbox keeps them from the interpreter's insides, but not from looping for ever or from filling the
memory. So this file is also a program: a process that renders, may take so much memory, and is ended when it takes too
long. It imports jinja2 and nothing of ours, answers a line of JSON with a line of JSON, and is started once.
"""

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from datetime import datetime
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 10.0
"""What a rendering may take; one takes a thousandth of it."""
MEMORY = 512 * 2**20
"""Bytes of address space, where the system can limit it (not on Windows)."""
LONGEST = 2_000_000
"""Characters that a template may write beside what was said."""
SAID, QUOTED = "\U00100000", "\U00100001"
"""What follows a mark that stands for a message, and for one in JSON."""
MARK = "the mark"
"""Its name among a template's values; with a space in it, so that no template can ask for it."""


class TemplateFailure(Exception):
    """What went wrong with a template, in one line."""


class Renderer:
    """The process: started when first needed, and again after a template had to be ended with it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        self.owner = os.getpid()

    def render(self, template: str, values: dict[str, Any], mark: str) -> str:
        """The text that `template` makes of `values`; after `tojson`, `mark` and SAID are `mark` and QUOTED.

        Raises TemplateFailure if the template is wrong, refuses the values, reaches for what it must not, or takes
        more than SECONDS, MEMORY or LONGEST.
        """
        request = json.dumps({"template": template, "values": {**values, MARK: mark}}) + "\n"
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
                if not line.endswith("\n"):  # also when we are interrupted: its answer would be taken for the next one
                    self.close()
        if not line.endswith("\n"):
            raise TemplateFailure(f"it did not end within {SECONDS:g} seconds, or took too much memory")
        answer = json.loads(line)
        if "error" in answer:
            raise TemplateFailure(answer["error"])
        return answer["text"]

    def started(self) -> "subprocess.Popen[str]":
        """The running process: a new one if there is none, or if it is that of the process we were forked from."""
        if self.process is None or self.process.poll() is not None or self.owner != os.getpid():
            self.close()
            self.process = subprocess.Popen(
                [sys.executable, "-P", __file__],  # which keeps this folder from standing in for the library
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="ascii",
                start_new_session=True,  # Ctrl-C in a terminal is not meant for it
            )
            self.owner = os.getpid()
        return self.process

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            with contextlib.suppress(OSError, ValueError):
                self.process.communicate()
        self.process = None


RENDERER = Renderer()
atexit.register(RENDERER.close)


# ------------------------------------------------------------------------------- inside of the process


class Generation(Extension):
    """`{% generation %}`, which marks what training is to learn, and prints what is inside of it."""

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
    """JSON as transformers' templates have it, that is without HTML's escapes."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    mark = str(context.get(MARK))
    return text.replace(json.dumps(mark + SAID, ensure_ascii=ensure_ascii)[1:-1], mark + QUOTED)


def raise_exception(message: str) -> None:
    raise TemplateError(str(message))


def strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


@functools.cache
def environment() -> ImmutableSandboxedEnvironment:
    """What transformers gives to chat templates, and no more."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    filters: dict[str, Any] = made.filters
    filters["tojson"] = tojson
    names: dict[str, Any] = made.globals
    names.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return made


compiled = functools.lru_cache(maxsize=16)(lambda template: environment().from_string(template))


def rendered(template: str, values: dict[str, Any]) -> str:
    """The text of a template. Raises whatever the template does, and ValueError if it writes too much."""
    pieces: list[str] = []
    room = LONGEST + 8 * len(json.dumps(values))
    for piece in compiled(template).generate(values):
        room -= len(piece)
        if room < 0:
            raise ValueError("it writes more than a dialogue can be")
        pieces.append(piece)
    return "".join(pieces)


def answer(request: dict[str, Any]) -> dict[str, str]:
    """The text of what was asked for, or the error."""
    try:
        return {"text": rendered(request["template"], request["values"])}
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
        if hasattr(signal, "alarm"):  # ends it also when there is nobody left who would
            signal.alarm(2 * round(SECONDS))
        told = answer(json.loads(line))
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    serve()
