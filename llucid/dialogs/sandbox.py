"""Runs chat templates, which are programs that come with a model, in a process of limited time and memory.

jinja2's immutable sandbox keeps a template from the interpreter's internals, but not from looping forever or from
filling the memory. The process, which runs `rendering.py`, answers each line of JSON with a line of JSON.
"""

# Why so: a thread cannot be stopped, so it has to be a process; it keeps running, since starting one takes 0.1 s and
# training on dialogues renders thousands. It ends with ours, has its own limits in case ours is killed, and survives
# Ctrl-C, which stops an answer. A process that was forked starts its own: two must not share the pipes.

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("rendering.py")
SECONDS = 10.0
"""Limit of one rendering, which takes about a thousandth of it."""


class TemplateFailure(Exception):
    """What went wrong with a template, in one line."""


class TemplateTimeout(TemplateFailure):
    """It took too long, or too much memory, as it would for other messages."""


class Renderer:
    """The process: started when first needed, and again after it had to be killed."""

    def __init__(self) -> None:
        # A fork waits for a thread that has it, since only one goes on in the new process.
        self.lock = threading.RLock()
        self.process: subprocess.Popen[str] | None = None
        self.owner = os.getpid()

    def render(self, template: str, values: dict[str, Any], special: str) -> tuple[str, dict[int, str]]:
        """(what `template` makes of `values`, with stand-ins for characters that come from messages, tools and
        documents; these characters, by the code points of their stand-ins). `special` are those of special tokens.

        Raises TemplateFailure if the template is invalid, refuses the values, uses what is forbidden, exceeds SECONDS,
        takes too much memory or writes too much.
        """
        request = json.dumps({"template": template, "values": values, "special": special}) + "\n"
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
        return answer["text"], {int(stand_in): character for stand_in, character in answer["shown"].items()}

    def started(self) -> "subprocess.Popen[str]":
        """The running process: a new one if there is none, or if it is that of the process we were forked from."""
        if self.process is None or self.process.poll() is not None or self.owner != os.getpid():
            self.close()
            self.process = subprocess.Popen(
                [sys.executable, "-P", PROGRAM, str(SECONDS)],  # -P: imports nothing from this folder
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

    def leave(self) -> None:
        """Ends the process when ours ends, perhaps while a thread waits for it, which then closes it."""
        if self.lock.acquire(blocking=False):
            self.close()
        elif self.process is not None and self.owner == os.getpid():
            self.process.kill()


RENDERER = Renderer()
atexit.register(RENDERER.leave)
if hasattr(os, "register_at_fork"):  # not on Windows
    LOCK = RENDERER.lock
    os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)
