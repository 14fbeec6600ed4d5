"""The conversation in a terminal, or through a pipe: a message a line, and the answers to standard output."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console

from llucid.chat.session import Conversation, Session
from llucid.checkpoints import Model
from llucid.dialogs.formats import NotAChatModel
from llucid.errors import LlucidError, one_line
from llucid.files import cache_folder
from llucid.generation import Sampling
from llucid.generation.screen import screen

Answer = Generator[str]

KEYS = "Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer, Ctrl-D leaves, /help tells the rest"


def talk(
    model: Model,
    name: str,
    *,
    system: str = "",
    format: str | None = None,
    sampling: Sampling | None = None,
    max_tokens: int = 1024,
    seed: int | None = None,
    hint: str = "",
) -> None:
    """Has a conversation with the model called `name`, until the user leaves or the input ends.

    `hint` says, in a terminal, what the model can be asked. With a model that was taught no dialogues it offers, in a
    terminal, to go on with what the user writes. Through a pipe that is NotAChatModel, and whatever goes wrong is a
    LlucidError.
    """
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    console = Console(highlight=False, markup=False, emoji=False)

    def begin(format: str | None) -> Session:
        return Session(model, system=system, format=format, sampling=sampling, max_tokens=max_tokens, seed=seed)

    try:
        session = begin(format)
    except NotAChatModel:
        if not terminal:
            raise
        session = begin("plain")
    if terminal:
        for told, style in ((f"{name}: {told_of(session)}", ""), (hint, ""), (KEYS, "dim")):
            if told:
                console.print(told, style=style)
        in_terminal(session, console)
    else:
        through_pipe(session)


def told_of(session: Session) -> str:
    """What a user should know of the model before the first word."""
    config, embedding = session.model.config, session.model.weights.embedding
    formats = {
        "plain": "This is not a chat model, as far as can be told: it was taught no dialogues. So it writes on from "
        "what you write. If it was taught some, give their format, as in --format llama3",
        "llama2": "It is spoken to in Llama 2's chat format, by its vocabulary; if it is a base model, which has the "
        "same, try --format plain",
        "llama3": "It is spoken to in Llama 3's chat format",
    }
    size = f"{config.parameters:,} parameters, {str(embedding.dtype).removeprefix('torch.')} on {embedding.device}"
    told = formats.get(session.format, "It is spoken to as its own chat template says")
    return f"{size}, a context of {config.context:,} tokens. {told}."


# --------------------------------------------------------------------------------------------- commands


def help_(session: Session, rest: str) -> str:
    """shows this"""
    width = max(len(usage) for _, usage in COMMANDS.values())
    lines = [f"{usage:<{width}}  {act.__doc__}" for act, usage in COMMANDS.values()]
    return "\n".join([*lines, "A message that begins with / is sent by beginning it with //.", KEYS + "."])


def system(session: Session, rest: str) -> str:
    """tells the model how to behave, from now on; "" takes it back, nothing shows it"""
    if rest:
        session.conversation = session.conversation._replace(system="" if rest == '""' else rest)
    return f"system: {session.conversation.system or 'nothing'}"


def reset(session: Session, rest: str) -> str:
    """begins a new conversation, with the same system text"""
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
    """goes on with a conversation that was saved"""
    file = file_of(rest, "/load")
    session.conversation = Conversation.load(file)
    return f"{len(session.conversation.messages)} messages loaded from {file}"


def file_of(rest: str, command: str) -> Path:
    """The file that a command names."""
    if not rest:
        raise LlucidError(f"{command} needs the name of a file, as in: {command} talk.json")
    try:
        path = Path(os.path.abspath(Path(rest).expanduser()))
        os.path.realpath(path)  # raises for what is no path at all
    except (RuntimeError, ValueError) as error:  # no such user's home, or NUL in it
        raise LlucidError(f"{command} {rest}: {one_line(error)}") from error
    return path


KINDS = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "max_tokens": int, "seed": int}
CAN_BE_OFF = ("top_k", "top_p", "min_p", "seed")


def set_(session: Session, rest: str) -> str:
    """changes how answers are chosen, as in /set temperature 0.7; nothing shows all"""
    if not rest:
        now = {**dataclasses.asdict(session.sampling), "max_tokens": session.max_tokens}
        return "\n".join(f"{name} {'off' if value is None else value}" for name, value in now.items())
    name, _, value = rest.replace("=", " ").partition(" ")
    name, value = name.replace("-", "_"), value.strip()
    if name not in KINDS:
        raise LlucidError(f"/set {name}: not known; expected one of: {', '.join(KINDS)}")
    if not value:
        raise LlucidError(f"/set {name} needs a value; /set alone shows all of them")
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
    """tells of the last answer and of the context"""
    conversation = session.conversation
    return "\n".join(
        [
            f"last answer: {session.statistics}",
            f"context: {session.used:,} of {session.model.config.context:,} tokens",
            f"conversation: {len(conversation.messages)} messages, {conversation.forgotten} of them forgotten",
        ]
    )


def quit_(session: Session, rest: str) -> str:
    """leaves, as Ctrl-D does"""
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


def heard(session: Session, line: str) -> str | Answer:
    """What a line brings about: an answer or, for a command, perhaps something to be told.

    Raises EOFError for the command that leaves, and LlucidError or OSError for what cannot be done.
    """
    if line.startswith("/") and not line.startswith("//"):
        name, _, rest = line[1:].partition(" ")
        if name not in COMMANDS:
            raise LlucidError(f"/{name} is not a command; /help tells what is; to send it as a message, begin with //")
        return COMMANDS[name][0](session, rest.strip())
    return session.reply(line.removeprefix("/"))


# --------------------------------------------------------------------------------------------- in a terminal


def in_terminal(session: Session, console: Console) -> None:
    """Prompts, obeys and answers until the user leaves."""
    prompt = prompting(session)
    while True:
        try:
            line = prompt.prompt("› ")
        except KeyboardInterrupt:
            console.print("Ctrl-D leaves", style="dim")
            continue
        except EOFError:
            return
        if not line.strip():
            continue
        try:
            told = heard(session, line)
            if isinstance(told, str):
                console.print(told, style="dim")
            else:
                for note in written(session, told):
                    console.print(note, style="dim")
        except EOFError:
            return
        except (LlucidError, OSError) as error:
            console.print(f"error: {one_line(error)}", style="red")


def written(session: Session, answer: Answer) -> list[str]:
    """Writes an answer to the terminal as it comes, until its end or Ctrl-C; returns what is to be said about it."""
    forgotten, stopped, shown = session.conversation.forgotten, False, screen()
    with contextlib.closing(answer):
        try:
            for piece in answer:
                print(shown.push(piece), end="", flush=True)
        except KeyboardInterrupt:
            stopped = True
    print(shown.finish())
    return [*(["stopped"] if stopped else notes(session)), *forgetting(session, forgotten)]


def notes(session: Session) -> list[str]:
    """Why an answer ended that did not end by itself."""
    if session.reason == "length":
        return [f"cut off after {session.max_tokens} tokens; for more: /set max_tokens {2 * session.max_tokens}"]
    if session.reason == "context":
        return [f"cut off: question and answer fill the context of {session.model.config.context} tokens"]
    return []


def forgetting(session: Session, before: int) -> list[str]:
    """What is said when messages had to leave the context since `before` of them were forgotten."""
    now = session.conversation.forgotten
    context = session.model.config.context
    return [f"the context of {context} tokens was full: the first {now} messages are forgotten"] if now > before else []


def prompting(session: Session) -> "PromptSession[str]":
    """The line editor: several lines, history, completion of commands, and the bottom line."""
    keys = KeyBindings()
    keys.add("enter")(send)
    keys.add("escape", "enter")(break_line)
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
        bottom_toolbar=lambda: bottom(session),
    )


def send(event: KeyPressEvent) -> None:
    event.current_buffer.validate_and_handle()


def break_line(event: KeyPressEvent) -> None:
    event.current_buffer.insert_text("\n")


def bottom(session: Session) -> str:
    """The bottom line."""
    speed, used, context = session.statistics.tokens_per_second, session.used, session.model.config.context
    facts = [f"{used:,} of {context:,} tokens of context", f"temperature {session.sampling.temperature:g}", "/help"]
    return " · ".join([f" {speed:.0f} tokens/s", *facts] if speed else [" " + facts[0], *facts[1:]])


class QuietHistory(FileHistory):
    """A history in a file; where that cannot be written, it is lost with the program and nothing is said."""

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            super().store_string(string)


def history() -> History:
    """What was sent before, in a file of the user's cache folder that only they can read."""
    try:
        file = cache_folder() / "chat_history"
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError:
        return InMemoryHistory()
    return QuietHistory(str(file))


# --------------------------------------------------------------------------------------------- through a pipe


def through_pipe(session: Session) -> None:
    """Answers each line of standard input on standard output; all else goes to standard error."""
    file = sys.stdin.fileno()
    with open(file, encoding="utf-8", errors="replace", closefd=False) as lines, contextlib.suppress(EOFError):
        answer_lines(session, lines)


def answer_lines(session: Session, lines: Iterable[str]) -> None:
    """Answers each line that is not empty. Raises EOFError if one of them says to leave."""
    for line in lines:
        if not line.strip():
            continue
        forgotten = session.conversation.forgotten
        told = heard(session, line.removesuffix("\n"))
        if isinstance(told, str):
            print(told, file=sys.stderr)
            continue
        shown = screen()
        for piece in told:
            print(shown.push(piece), end="", flush=True)
        print(shown.finish(), flush=True)
        for note in [*notes(session), *forgetting(session, forgotten)]:
            print(note, file=sys.stderr)
