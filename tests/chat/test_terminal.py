"""The chat in a pseudo-terminal and through a pipe."""

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from rich.console import Console

import llucid
from llucid.chat import NotAChatModel, Session
from llucid.chat import terminal as in_a_terminal
from llucid.chat.terminal import COMMANDS, answer_lines, history, line_editor, print_answer, respond, status_line, talk
from llucid.errors import LlucidError
from llucid.generation import Sampling
from llucid.tokenizers.characters import Characters
from tests.chat.models import LETTERS, reciter
from tests.chat.test_session import GREEDY
from tests.training.test_run import after, command
from tests.waiting import LIMIT

READY = "tokens of context"  # in the status line, which is shown with the prompt

# So that Ctrl-C is a signal to it.
OWN_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"


class Terminal:
    """A program in a pseudo-terminal."""

    def __init__(self, *arguments: object, cache: Path) -> None:
        self.keyboard, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            after(OWN_TERMINAL, *arguments),
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            env=environment | {"TERM": "xterm", "LLUCID_CACHE": str(cache)},
        )
        os.close(inside)
        self.screen = ""

    def see(self, text: str, seconds: float = LIMIT) -> str:
        """Waits until the program has written `text`; returns all output up to its end."""
        until = time.monotonic() + seconds
        while text not in self.screen:
            ready, _, _ = select.select([self.keyboard], [], [], max(0, until - time.monotonic()))
            try:
                more = os.read(self.keyboard, 65536).decode(errors="replace") if ready else ""
            except OSError:  # the program has ended
                more = ""
            assert more, f"{text!r} did not come, but {self.screen!r}"
            if "\x1b[6n" in more:  # it asks for the position of the cursor
                self.send("\x1b[1;1R")
            self.screen = re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>]|\][^\x07]*\x07)", "", self.screen + more)
        seen, _, self.screen = self.screen.partition(text)
        return seen + text

    def send(self, text: str) -> None:
        os.write(self.keyboard, text.encode())

    def ask(self, line: str) -> None:
        """Waits for the prompt, and sends a line."""
        self.see(READY)
        self.send(line + "\r")


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that recites the alphabet endlessly."""
    folder = tmp_path_factory.mktemp("endless")
    llucid.save(reciter(context=100_000, endless=True), folder)
    return folder


@pytest.fixture
def open_terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Opens terminals and closes them after the test."""
    opened: list[Terminal] = []

    def open_one(*arguments: object) -> Terminal:
        opened.append(Terminal(*arguments, cache=tmp_path))
        return opened[-1]

    yield open_one
    for terminal in opened:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.keyboard)


def test_a_conversation_in_a_terminal(endless: Path, tmp_path: Path, open_terminal: Callable[..., Terminal]) -> None:
    talk = tmp_path / "talk.json"
    terminal = open_terminal("chat", endless, "--system", "Be brief.", "--temperature", 0)
    begun = " ".join(terminal.see("/help lists the commands").split())
    assert "context of 100,000 tokens. It uses Llama 3's chat format." in begun

    terminal.ask("/set max_tokens 26")
    terminal.see("max_tokens is 26")
    terminal.ask("Who?")
    terminal.see(f"{LETTERS}\r\ncut off after 26 tokens")
    terminal.see(" tokens/s · ")

    terminal.ask("/set max_tokens 90000")
    terminal.see("max_tokens is 90000")
    terminal.ask("And\x1b\rwho else?")
    terminal.see(LETTERS * 2)
    terminal.send("\x03")
    terminal.see("stopped")

    terminal.see(READY)
    terminal.send("\x03")  # at the prompt it prints how to leave
    terminal.see("Ctrl-D leaves")
    terminal.ask("/stats")
    terminal.see("conversation: 4 messages, 0 of them forgotten")

    terminal.ask(f"/save {talk}")
    terminal.see(f"4 messages saved to {talk}")
    messages = json.loads(talk.read_text())["messages"]
    assert [message["content"] for message in messages[:4]] == ["Be brief.", "Who?", LETTERS, "And\nwho else?"]
    assert messages[4]["content"].startswith(LETTERS * 2)

    terminal.ask("\x1b[31m/reset")  # pasted with its colour, which looks like an event of the mouse
    assert "exception" not in terminal.see("a new conversation")
    terminal.ask("/stats")
    terminal.see("conversation: 0 messages")
    terminal.ask(f"/load {talk}")
    terminal.see("4 messages loaded")
    terminal.ask("/set max_tokens 3")
    terminal.see("max_tokens is 3")
    terminal.ask("/retry")
    terminal.see("abc\r\ncut off after 3 tokens")
    terminal.ask("/retyr")
    terminal.see("error: /retyr: unknown command")

    terminal.see(READY)
    terminal.send("\x1b[A" * 3 + "\r")  # three lines back in the history, past /retyr and /retry
    terminal.see("max_tokens is 3")
    terminal.see(READY)
    terminal.send("\x04")
    assert terminal.process.wait(timeout=LIMIT) == 0
    history = tmp_path / "chat_history"
    assert "+And\n+who else?\n" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_a_base_model_continues_the_text(tmp_path: Path, open_terminal: Callable[..., Terminal]) -> None:
    model = reciter(endless=True)
    llucid.save(model._replace(tokenizer=Characters(map(chr, range(128)))), tmp_path / "base")
    terminal = open_terminal("chat", tmp_path / "base", "--temperature", 0, "--max-tokens", 5)
    assert "it is probably not a chat model" in " ".join(terminal.see("/help lists the commands").split())
    terminal.ask("tell me of a, b and c")
    terminal.see("defgh\r\ncut off")
    terminal.ask("/quit")
    assert terminal.process.wait(timeout=LIMIT) == 0

    with pytest.raises(NotAChatModel):  # through a pipe
        talk(partial(Session, llucid.load(tmp_path / "base", device="cpu")), "base")


def test_through_a_pipe(endless: Path, tmp_path: Path) -> None:
    """Only answers go to standard output. A template in its own file is used."""
    lines = "Who?\n\n/set max_tokens 3\n//\udcff\udcfe\n/quit\nnot read\n"  # two bytes that are not UTF-8
    arguments = command("chat", endless, "--temperature", 0, "--max-tokens", 5)
    done = subprocess.run(arguments, input=lines, capture_output=True, text=True, errors="surrogateescape")
    assert (done.stdout, done.returncode) == ("abcde\nabc\n", 0)
    assert "max_tokens is 3" in done.stderr

    (endless / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[-1].content }}")
    try:
        done = subprocess.run(arguments, input="x\nb\n", capture_output=True, text=True)
    finally:
        (endless / "chat_template.jinja").unlink()
    assert done.stdout == "yzabc\ncdefg\n"


def test_values_for_a_chat_template(endless: Path, tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text('[{"name": "a"}]')
    template = "{{ tools[0].name }}{{ documents[0].text }}{{ 'y' if enable_thinking else 'n' }}"
    (endless / "chat_template.jinja").write_text(template)
    files = ("--tools", tmp_path / "tools.json", "--documents", tmp_path / "texts.json")
    (tmp_path / "texts.json").write_text('[{"text": "b"}]')
    try:
        for thinking, answer in (("True", "zab\n"), ("False", "opq\n")):
            words = command(
                "chat", endless, "--temperature", 0, "--max-tokens", 3, *files, "--enable-thinking", thinking
            )
            assert subprocess.run(words, input="x\n", capture_output=True, text=True).stdout == answer
    finally:
        (endless / "chat_template.jinja").unlink()
    refused = subprocess.run(command("chat", endless, *files), input="", capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith('error: --tools [{"name": "a"}]: the format llama3 has no place for it')


@pytest.fixture
def session() -> Session:
    return Session(reciter(), sampling=GREEDY, max_tokens=5)


def test_lines_are_answered_and_commands_run(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    answer_lines(session, ["Who?\n", "\n", "/set temperature 0.5\n", "/set\n", "//quit\n"])
    out, err = capsys.readouterr()
    assert out == "abcde\nabcde\n"
    assert session.conversation.messages[2]["content"] == "/quit"
    assert "temperature is 0.5\ntemperature 0.5\ntop_k off\ntop_p off\nmin_p off\nrepetition_penalty 1.0\n" in err
    assert "presence_penalty 0.0\nmax_tokens 5\n" in err
    assert "cut off after 5 tokens; for more: /set max_tokens 10" in err
    with pytest.raises(EOFError):
        answer_lines(session, ["/quit\n", "never read"])


def test_notes_follow_the_line_of_the_answer(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where both go to one place, as in `2>&1`."""
    monkeypatch.setattr(sys, "stdout", place := io.StringIO())
    monkeypatch.setattr(sys, "stderr", place)
    answer_lines(session, ["Who?\n"])
    assert place.getvalue() == "abcde\ncut off after 5 tokens; for more: /set max_tokens 10\n"


def test_a_complete_answer_has_no_notes() -> None:
    session = Session(reciter(), sampling=GREEDY)
    assert print_answer(session, session.reply("Who?")) == []


def test_ctrl_c_outside_an_answer_does_not_leave(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the prompt, in a command, and while the last word of an answer is printed."""
    lines = iter(["Who?", None, "/stats", "/quit"])
    prompt = SimpleNamespace(prompt=lambda _: next(lines) or _raise(KeyboardInterrupt))
    monkeypatch.setattr(in_a_terminal, "line_editor", lambda _: prompt)
    monkeypatch.setattr(
        in_a_terminal, "screen", lambda: SimpleNamespace(push=str, finish=lambda: _raise(KeyboardInterrupt))
    )
    monkeypatch.setitem(COMMANDS, "stats", (lambda *_: _raise(KeyboardInterrupt), "/stats"))
    in_a_terminal.in_terminal(session, Console())
    assert capsys.readouterr().out == "abcde\nstopped\nCtrl-D leaves\n\nstopped\n"
    assert len(session.conversation.messages) == 2


def _raise(error: type[BaseException]) -> Any:
    raise error


def test_a_full_context_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(reciter(200, endless=True), sampling=GREEDY, max_tokens=50)
    answer_lines(session, ["1\n", "2\n", "3\n"])
    assert "the context of 200 tokens was full: the first 2 messages are forgotten" in capsys.readouterr().err
    session.max_tokens = 500
    assert print_answer(session, session.reply("4")) == [
        "cut off: question and answer fill the context of 200 tokens",
        "the context of 200 tokens was full: the first 6 messages are forgotten",
    ]


def test_options_are_set_or_refused(session: Session) -> None:
    for line in ("/set top_k 7", "/set top-p 0.5", "/set min_p=0.1", "/set seed 3", "/set max_tokens 1"):
        assert " is " in str(respond(session, line))
    assert session.sampling == Sampling(temperature=0.0, top_k=7, top_p=0.5, min_p=0.1)
    assert session.max_tokens == 1
    assert respond(session, "/set top_k  off") == "top_k is off"
    assert session.sampling.top_k is None
    assert "seed 3" in str(respond(session, "/set")).splitlines()
    respond(session, "/set seed off")
    assert "seed off" in str(respond(session, "/set")).splitlines()
    for line, says in {
        "/set wings 2": "/set wings: unknown option; expected one of: temperature",
        "/set temperature": "/set temperature needs a value",
        "/set temperature off": "not a number",
        "/set temperature -1": "temperature=-1.0: must be",
        "/set top_k 1.5": "/set top_k 1.5: not a whole number",
        "/set max_tokens 0": "must be at least 1",
        "/set seed -1": "seed=-1",
        "/save": "/save needs a file name",
        "/load": "/load needs a file name",
        "/load /none/none.json": "cannot be read",
        "/save ~nobody-of-this-name/talk.json": "/save ~nobody-of-this-name/talk.json: Could not determine home",
        "/save a\0b": "embedded null byte",
        "/fly": "/fly: unknown command",
    }.items():
        with pytest.raises(LlucidError, match=re.escape(says)):
            respond(session, line)


def test_folders_and_devices_are_refused(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in ("/load .", "/load /dev/zero"):
        with pytest.raises(LlucidError, match=r"not a regular file|directory"):
            respond(session, line)
    with pytest.raises(OSError, match="directory"):
        respond(session, "/save .")
    assert not list(tmp_path.iterdir())


def test_system_is_shown_set_and_removed(session: Session) -> None:
    assert respond(session, "/system") == "system: none"
    assert respond(session, "/system Be  brief. ") == "system: Be  brief."
    assert session.conversation.system == "Be  brief."
    assert respond(session, "/system") == "system: Be  brief."
    assert respond(session, '/system ""') == "system: none"


def test_help_lists_every_command(session: Session) -> None:
    shown = str(respond(session, "/help"))
    assert all(f"/{name}" in shown for name in COMMANDS)
    assert len({shown.index(act.__doc__ or "-") - shown.index(usage) for act, usage in COMMANDS.values()}) == 1
    assert "None" not in shown


def test_the_status_line(session: Session) -> None:
    assert status_line(session) == " 0 of 400 tokens of context · temperature 0 · /help"
    list(session.reply("Who?"))
    assert re.fullmatch(r" \d+ tokens/s · \d\d of 400 tokens of context · temperature 0 · /help", status_line(session))


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("writes", [True, False])
def test_a_terminal_needs_both_input_and_output(reads: bool, writes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    for name in ("in_terminal", "through_pipe"):
        monkeypatch.setattr(f"llucid.chat.terminal.{name}", lambda *_, name=name: used.append(name))
    for name, is_one in (("stdin", reads), ("stdout", writes)):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda is_one=is_one: is_one)
        monkeypatch.setattr(sys, name, stream)
    talk(partial(Session, reciter()), "a model")
    assert used == ["in_terminal" if reads and writes else "through_pipe"]


def test_a_history_that_cannot_be_written_lasts_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLUCID_CACHE", "/proc/none")
    assert isinstance(history(), InMemoryHistory)
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path))
    kept = history()
    kept.store_string("Who?")
    assert list(history().load_history_strings()) == ["Who?"]
    (tmp_path / "chat_history").unlink()
    (tmp_path / "chat_history").mkdir()
    kept.store_string("And?")
    assert list(tmp_path.rglob("*")) == [tmp_path / "chat_history"]


def test_commands_are_completed(session: Session) -> None:
    completer = line_editor(session).completer
    for start, completions in {
        "/st": {"/stats"},
        "/se": {"/set "},
        "/re": {"/reset", "/retry"},
        "a /st": set(),
    }.items():
        assert completer
        found = completer.get_completions(Document(start), CompleteEvent())
        assert {completion.text for completion in found} == completions


def test_output_is_flushed_after_each_piece(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """For users, and for programs that wait for an answer before they ask again."""
    seen, raw = list[bytes](), io.BytesIO()

    def answer(question: str) -> Generator[str]:
        for letter in "abc":
            yield letter
            seen.append(raw.getvalue())

    def questions() -> Iterator[str]:
        yield "Who?\n"
        seen.append(raw.getvalue())

    monkeypatch.setattr(session, "reply", answer)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw))
    answer_lines(session, questions())
    print_answer(session, answer("Who?"))
    monkeypatch.undo()
    assert seen == [b"a", b"ab", b"abc", b"abc\n", b"abc\na", b"abc\nab", b"abc\nabc"]


def test_an_interrupt_stops_only_the_answer(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> Generator[str]:
        for piece in session.reply("Who?"):
            yield piece
            if piece == "c":
                signal.raise_signal(signal.SIGINT)

    assert print_answer(session, interrupted()) == ["stopped"]
    assert capsys.readouterr().out == "abc\n"


def test_lines_wrap_between_words(tmp_path: Path, open_terminal: Callable[..., Terminal]) -> None:
    """In a terminal of 120 cells; a saved conversation has the text as the model wrote it."""
    model = reciter(context=1000)
    assert model.weights.output is not None
    model.weights.output[ord(" "), ord("z")] = 2  # a space after z, so it recites word after word
    llucid.save(model, tmp_path / "words")
    options, saved = ("--temperature", 0, "--max-tokens", 140), tmp_path / "talk.json"
    line = " ".join([LETTERS] * 4)
    terminal = open_terminal("chat", tmp_path / "words", *options)
    terminal.ask("Who?")
    terminal.see(f"\r\n{line}\r\n{LETTERS} abcde\r\n")
    terminal.ask(f"/save {saved}")
    terminal.see("2 messages saved")
    terminal.ask(f"/{'f' * 40}")
    terminal.see("message, begin it \r\nwith //")
    assert json.loads(saved.read_text())["messages"][1]["content"] == f"{line} {LETTERS} abcde"

    terminal = open_terminal("generate", tmp_path / "words", "see a", *options)
    terminal.see(f"see {line}\r\n{LETTERS}")


def test_control_characters_of_a_file_do_not_reach_the_terminal(
    endless: Path, tmp_path: Path, open_terminal: Callable[..., Terminal]
) -> None:
    messages = [{"role": "system", "content": "Be \x1b]0;title\x07\x9b31m red"}]
    (tmp_path / "talk.json").write_text(json.dumps({"messages": messages}))
    terminal = open_terminal("chat", endless)
    terminal.ask(f"/load {tmp_path / 'talk.json'}")
    terminal.see("0 messages loaded")
    terminal.ask("/system")
    terminal.see("system: Be ␛]0;title␇\ufffd31m red")
    words = command("chat", endless)
    done = subprocess.run(words, input=f"/load {tmp_path / 'talk.json'}\n/system\n", capture_output=True, text=True)
    assert done.stderr.endswith("system: Be ␛]0;title␇\ufffd31m red\n")


def test_ctrl_z_is_not_part_of_a_message(endless: Path, tmp_path: Path, open_terminal: Callable[..., Terminal]) -> None:
    """It suspends the program; here it does nothing, since there is no shell to resume it."""
    terminal = open_terminal("chat", endless, "--max-tokens", 3)
    terminal.ask(" ")  # sends nothing
    terminal.ask("\x1aWho?")
    terminal.see("cut off")
    terminal.ask("/save /proc/none/talk.json")
    terminal.see("error: /proc/none")
    terminal.ask(f"/save {tmp_path / 'talk.json'}")
    terminal.see("2 messages saved")
    assert json.loads((tmp_path / "talk.json").read_text())["messages"][0]["content"] == "Who?"
