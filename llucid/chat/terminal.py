"""A conversation in a terminal, or through a pipe: one message per line, answers to standard output."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from rich.console import Console

from llucid.chat.session import Conversation, Session
from llucid.dialogs.formats import NotAChatModel
from llucid.errors import PRINTABLE, LlucidError, one_line
from llucid.files import cache_folder
from llucid.generation.screen import screen
from llucid.weights import parameter_count

Answer = Generator[str]

KEYS = "Enter sends, Alt-Enter starts a new line, Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands"


def talk(begin: Callable[..., Session], name: str, *, format: str | None = None, hint: str = "") -> None:
    """Runs a conversation with the model called `name`, until the user leaves or the input ends.

    `begin(format=…)` returns the session. A terminal shows `hint`, which says what the model can be asked. Without a
    chat format, the model continues what the user writes in a terminal; through a pipe that is NotAChatModel, and other
    bad input is a LlucidError.
    """
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    console = Console(highlight=False, markup=False, emoji=False)
    try:
        session = begin(format=format)
    except NotAChatModel:
        if not terminal:
            raise
        session = begin(format="plain")
    if terminal:
        for text, style in ((f"{name}: {description(session)}", ""), (hint, ""), (KEYS, "dim")):
            if text:
                console.print(text.translate(PRINTABLE), style=style)
        in_terminal(session, console)
    else:
        through_pipe(session)


def description(session: Session) -> str:
    """What a user should know of the model before the first message."""
    config, embedding = session.model.config, session.model.weights.embedding
    formats = {
        "plain": "It has no chat format, so it is probably not a chat model: it continues what you write. If it is "
        "one, name its format, as in --format llama3",
        "llama2": "It uses Llama 2's chat format, judging by its vocabulary; a base model has the same vocabulary: for "
        "one, try --format plain",
        "llama3": "It uses Llama 3's chat format",
    }
    size = (
        f"{parameter_count(config):,} parameters, {str(embedding.dtype).removeprefix('torch.')} on {embedding.device}"
    )
    return (
        f"{size}, context of {config.context:,} tokens. {formats.get(session.format, 'It uses its own chat template')}."
    )


# --------------------------------------------------------------------------------------------- commands


def help_(session: Session, rest: str) -> str:
    """shows this list"""
    width = max(len(usage) for _, usage in COMMANDS.values())
    lines = [f"{usage:<{width}}  {act.__doc__}" for act, usage in COMMANDS.values()]
    return "\n".join([*lines, "To send a message that begins with /, begin it with //.", KEYS + "."])


def system(session: Session, rest: str) -> str:
    """sets the instructions for the model; "" removes them, no text shows them"""
    if rest:
        session.conversation = session.conversation._replace(system="" if rest == '""' else rest)
    return f"system: {session.conversation.system or 'none'}"


def reset(session: Session, rest: str) -> str:
    """starts a new conversation with the same system text and tools"""
    session.reset()
    return "a new conversation"


def retry(session: Session, rest: str) -> Answer:
    """answers the last question again"""
    return session.retry()


def save(session: Session, rest: str) -> str:
    """writes the conversation to a file, as JSON"""
    file = file_of(rest, "/save")
    session.conversation.save(file)
    return f"{len(session.conversation.messages)} messages saved to {file}"


def load(session: Session, rest: str) -> str:
    """continues a saved conversation"""
    file = file_of(rest, "/load")
    session.resume(Conversation.load(file))
    return f"{len(session.conversation.messages)} messages loaded from {file}"


def file_of(rest: str, command: str) -> Path:
    if not rest:
        raise LlucidError(f"{command} needs a file name, as in: {command} talk.json")
    try:
        path = Path(os.path.abspath(Path(rest).expanduser()))
        os.path.realpath(path)  # raises for an impossible path
    except (RuntimeError, ValueError) as error:  # an unknown user's home, or a NUL character
        raise LlucidError(f"{command} {rest}: {one_line(error)}") from error
    return path


KINDS = {
    **dict.fromkeys(("temperature", "top_p", "min_p"), float),
    **dict.fromkeys(("repetition_penalty", "frequency_penalty", "presence_penalty"), float),
    **dict.fromkeys(("top_k", "max_tokens", "seed"), int),
}
CAN_BE_OFF = ("top_k", "top_p", "min_p", "seed")


def set_(session: Session, rest: str) -> str:
    """changes an option, as in /set temperature 0.7; without a name, shows all options"""
    if not rest:
        now = {**dataclasses.asdict(session.sampling), "max_tokens": session.max_tokens, "seed": session.seed}
        return "\n".join(f"{name} {'off' if value is None else value}" for name, value in now.items() if name in KINDS)
    name, _, value = rest.replace("=", " ").partition(" ")
    name, value = name.replace("-", "_"), value.strip()
    if name not in KINDS:
        raise LlucidError(f"/set {name}: unknown option; expected one of: {', '.join(KINDS)}")
    if not value:
        raise LlucidError(f"/set {name} needs a value; /set alone shows all options")
    try:
        number = None if value == "off" and name in CAN_BE_OFF else KINDS[name](value)
    except ValueError as error:
        raise LlucidError(f"/set {name} {value}: not {'a whole' if KINDS[name] is int else 'a'} number") from error
    if name == "max_tokens":
        if number is None or number < 1:
            raise LlucidError(f"/set max_tokens {value}: must be at least 1")
        session.max_tokens = int(number)
    elif name == "seed":
        session.reseed(None if number is None else int(number))
    else:
        session.sampling = dataclasses.replace(session.sampling, **{name: number})
    return f"{name} is {value}"


def stats(session: Session, rest: str) -> str:
    """shows figures of the last answer and of the context"""
    conversation = session.conversation
    return "\n".join(
        [
            f"last answer: {session.statistics}",
            f"context: {session.used:,} of {session.model.config.context:,} tokens",
            f"conversation: {len(conversation.messages)} messages, {conversation.forgotten} of them forgotten",
        ]
    )


def quit_(session: Session, rest: str) -> str:
    """leaves, like Ctrl-D"""
    raise EOFError


COMMANDS: dict[str, tuple[Callable[[Session, str], str | Answer], str]] = {
    "help": (help_, "/help"),
    "system": (system, "/system TEXT"),
    "reset": (reset, "/reset"),
    "retry": (retry, "/retry"),
    "save": (save, "/save FILE"),
    "load": (load, "/load FILE"),
    "set": (set_, "/set NAME VALUE"),
    "stats": (stats, "/stats"),
    "quit": (quit_, "/quit"),
}


def respond(session: Session, line: str) -> str | Answer:
    """The answer to a message, or the result of a command: text to show, or an answer.

    Raises EOFError for the command that leaves, and LlucidError or OSError for a command that fails.
    """
    if line.startswith("/") and not line.startswith("//"):
        name, _, rest = line[1:].partition(" ")
        if name not in COMMANDS:
            raise LlucidError(f"/{name}: unknown command; /help lists all; to send this as a message, begin it with //")
        return COMMANDS[name][0](session, rest.strip())
    return session.reply(line.removeprefix("/"))


# --------------------------------------------------------------------------------------------- in a terminal


def in_terminal(session: Session, console: Console) -> None:
    prompt = line_editor(session)
    while True:
        line = ""
        try:
            line = prompt.prompt("› ")
            if line.strip():
                response = respond(session, line)
                notes = [response] if isinstance(response, str) else print_answer(session, response)
                for note in notes:
                    console.print(note.translate(PRINTABLE), style="dim")
        except KeyboardInterrupt:  # while an answer is written, print_answer catches it
            console.print("\nstopped" if line else "Ctrl-D leaves", style="dim")
        except EOFError:
            return
        except (LlucidError, OSError) as error:
            if not line:  # the terminal has gone
                raise
            console.print(f"error: {one_line(error)}", style="red")


def print_answer(session: Session, answer: Answer, stoppable: bool = True) -> list[str]:
    """Prints an answer as it is written; if it is `stoppable`, Ctrl-C ends it. Returns notes about it for the user."""
    before, stopped, shown = session.conversation.forgotten, False, screen()
    with contextlib.closing(answer):
        try:
            for piece in answer:
                print(shown.push(piece), end="", flush=True)
        except KeyboardInterrupt:
            if not stoppable:
                raise
            stopped = True
    print(shown.finish(), flush=True)
    notes, context, forgotten = list[str](), session.model.config.context, session.conversation.forgotten
    if stopped:
        notes.append("stopped")
    elif session.reason == "length":
        most = session.max_tokens
        notes.append(f"cut off after {most} tokens; for more: /set max_tokens {2 * most}")
    elif session.reason == "context":
        notes.append(f"cut off: question and answer fill the context of {context} tokens")
    if forgotten > before:
        notes.append(f"the context of {context} tokens was full: the first {forgotten} messages are forgotten")
    return notes


def line_editor(session: Session) -> "PromptSession[str]":
    """Edits several lines, with a history, completion of commands and a status line."""
    keys = KeyBindings()
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    # A pasted colour looks like an event of the mouse, and is an error in the library.
    keys.add("<vt100-mouse-event>")(lambda event: None)
    return PromptSession(
        multiline=True,
        key_bindings=keys,
        history=history(),
        completer=WordCompleter(
            [f"/{name} " if " " in usage else usage for name, (_, usage) in COMMANDS.items()], sentence=True
        ),
        complete_while_typing=False,
        prompt_continuation="  ",
        enable_suspend=True,  # Ctrl-Z
        bottom_toolbar=lambda: status_line(session),
    )


def status_line(session: Session) -> str:
    speed, used, context = session.statistics.tokens_per_second, session.used, session.model.config.context
    facts = [f"{used:,} of {context:,} tokens of context", f"temperature {session.sampling.temperature:g}", "/help"]
    return " · ".join([f" {speed:.0f} tokens/s", *facts] if speed else [" " + facts[0], *facts[1:]])


class QuietHistory(FileHistory):
    """A history in a file; where that cannot be written, it lasts only as long as the program."""

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            super().store_string(string)


def history() -> History:
    """The lines sent before, from a file in the cache folder that only the user can read."""
    try:
        file = cache_folder() / "chat_history"
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError:
        return InMemoryHistory()
    return QuietHistory(str(file))


# --------------------------------------------------------------------------------------------- through a pipe


def through_pipe(session: Session) -> None:
    """Answers each line of standard input on standard output; everything else goes to standard error."""
    file = sys.stdin.fileno()
    with open(file, encoding="utf-8", errors="replace", closefd=False) as lines, contextlib.suppress(EOFError):
        answer_lines(session, lines)


def answer_lines(session: Session, lines: Iterable[str]) -> None:
    """Answers each line that is not empty. Raises EOFError for /quit."""
    for line in lines:
        if not line.strip():
            continue
        response = respond(session, line.removesuffix("\n"))
        notes = [response] if isinstance(response, str) else print_answer(session, response, stoppable=False)
        for note in notes:
            print(note.translate(PRINTABLE), file=sys.stderr)
