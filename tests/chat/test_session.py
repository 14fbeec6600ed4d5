"""Conversations: what a model remembers, forgets, and reads again."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from llucid.chat import Conversation, NotAChatModel, Session, encode_dialog
from llucid.chat import session as chat
from llucid.checkpoints import Model
from llucid.errors import LlucidError
from llucid.generation import Batch, Request, Sampling, generator, stream
from llucid.tokenizers.characters import Characters
from tests.chat.models import LETTERS, letters, rambler, reciter, successors
from tests.dialogs.templates import CHATML, LLAMA3
from tests.dialogs.test_formats import said

GREEDY = Sampling(temperature=0.0, top_p=None)


def printed(session: Session, question: str) -> str:
    return "".join(session.reply(question))


def fresh_answer(model: Model, messages: Sequence[dict[str, str]], max_tokens: int, format: str = "llama3") -> str:
    """The answer of a model that reads the whole dialogue again."""
    return continuation(model, encode_dialog(messages, model.tokenizer, format), max_tokens).lstrip()


def continuation(model: Model, ids: Sequence[int], max_tokens: int) -> str:
    request = Request(ids, GREEDY, generator(0), lambda token: False, max_tokens, "stop")
    return "".join(piece.text for piece in stream(Batch(model), [request], model.tokenizer))


def test_only_what_is_new_is_read() -> None:
    session = Session(reciter(), system="Be brief.", sampling=GREEDY)
    header = 1 + len("assistant") + 1 + 2
    assert printed(session, "Who?") == LETTERS
    first = 1 + (1 + 6 + 1 + 2 + len("Be brief.") + 1) + (1 + 4 + 1 + 2 + 4 + 1) + header
    assert session.statistics.prompt_tokens == first
    assert session.used == first + 26
    assert session.reason == "stop"
    for question in ("And who else?", "Nobody"):
        before = session.used
        assert printed(session, question) == LETTERS
        new = 1 + (1 + 4 + 1 + 2 + len(question) + 1) + header  # the first is the <|eot_id|> that ended the answer
        assert session.statistics.prompt_tokens == new
        assert session.used == before + new + 26
    session.resume(session.conversation)
    assert session.used == 0  # of which nothing has been read


def test_answers_equal_those_of_a_model_that_reads_everything_again() -> None:
    model = rambler(2000)
    session = Session(model, system="Be brief.", sampling=GREEDY, max_tokens=40)
    for question in ("Who?", "And who else?", "Nobody", "Who?"):
        asked = [*session.conversation.dialog(), {"role": "user", "content": question}]
        assert printed(session, question) == fresh_answer(model, asked, 40)
        assert len(session.conversation.messages[-1]["content"]) == 40
    session.conversation = session.conversation._replace(system="Be kind.")
    asked = [*session.conversation.dialog(), {"role": "user", "content": "Why?"}]
    assert printed(session, "Why?") == fresh_answer(model, asked, 40)


def test_a_seed_gives_the_same_conversation_and_retry_another_answer() -> None:
    def answers(seed: int) -> list[str]:
        session = Session(rambler(), sampling=Sampling(temperature=40.0), max_tokens=20, seed=seed)
        return [printed(session, "a"), printed(session, "b"), "".join(session.retry())]

    assert answers(1) == answers(1)
    assert answers(0) == answers(0)
    assert answers(1) != answers(2)
    assert answers(1)[1] != answers(1)[2]
    with pytest.raises(LlucidError, match="seed=-1: must be at least 0"):
        Session(rambler(), seed=-1)


def test_retry_replaces_the_last_answer() -> None:
    session = Session(reciter(), sampling=GREEDY)
    with pytest.raises(LlucidError, match="there is no question yet"):
        session.retry()
    printed(session, "Who?")
    printed(session, "And who else?")
    before = session.conversation
    session.max_tokens = 3
    assert "".join(session.retry()) == "abc"
    assert session.statistics.prompt_tokens == 1  # the last token of the question is read again for its logits
    assert session.conversation.messages == (*before.messages[:-1], {"role": "assistant", "content": "abc"})
    answer = session.retry()
    next(answer)
    answer.close()
    assert session.conversation.messages[-1]["content"] == "a"
    assert len(session.conversation.messages) == 4


def test_an_interrupted_answer_is_kept() -> None:
    session = Session(reciter(), sampling=GREEDY)
    answer = session.reply("Who?")
    assert [next(answer) for _ in range(5)] == list("abcde")
    assert session.conversation.messages == ()
    answer.close()
    assert session.conversation.messages == tuple(said("Who?", "abcde"))
    assert printed(session, "And?") == LETTERS
    assert session.statistics.prompt_tokens == len("e") + 1 + (1 + 4 + 1 + 2 + 4 + 1) + (1 + 9 + 1 + 2)

    silent = session.reply("?")
    silent.close()  # before it began
    assert len(session.conversation.messages) == 4


def test_an_interrupt_before_the_first_word_drops_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(reciter(), sampling=GREEDY)
    printed(session, "Who?")
    before = session.conversation

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "_stream", interrupted)
    for answer in (session.reply("And?"), session.retry()):
        with pytest.raises(KeyboardInterrupt):
            next(answer)
        assert session.conversation == before


def test_an_empty_answer_is_an_answer() -> None:
    model = reciter()
    model.weights.output[model.tokenizer.special["<|eot_id|>"], ord("\n")] = 2
    session = Session(model, sampling=GREEDY)
    assert printed(session, "Who?") == ""
    assert session.conversation.messages == tuple(said("Who?", ""))


def test_a_full_context_forgets_the_oldest_turns_but_not_the_system_text() -> None:
    context = 200
    model = reciter(context)
    session = Session(model, system="Be brief.", sampling=GREEDY)
    seen: list[int] = []
    for number in range(9):
        assert printed(session, f"Question {number}") == LETTERS
        assert session.reason == "stop"
        seen.append(session.conversation.forgotten)
        known = session.conversation.dialog()
        assert known[0] == {"role": "system", "content": "Be brief."}
        assert known[1]["role"] == "user"
        assert known[-1] == {"role": "assistant", "content": LETTERS}
        assert session.used <= context
        ids = encode_dialog([*known, *said("x")], model.tokenizer)[: session.used]
        assert session.batch.pages.shared(ids) == len(ids) == session.used
    assert seen[:2] == [0, 0]
    assert seen[-1] >= 12
    assert all(n % 2 == 0 for n in seen)
    assert seen == sorted(seen)
    assert len(session.conversation.messages) == 18


def test_questions_are_forgotten_with_their_answers() -> None:
    """Even if forgetting only the question would be enough."""
    conversation = Conversation("Be brief.")
    for role in ("user", "assistant", "user", "tool", "assistant", "user", "user"):
        conversation = conversation.said(role, "…")
    roles = [[message["role"] for message in shorter.dialog()] for shorter in conversation.shorter()]
    once, last = ["system", "user", "tool", "assistant", "user", "user"], ["system", "user"]
    assert roles == [once, ["system", "user", "user"], last]
    assert conversation.shorter()[-1].shorter() == []


def test_a_long_conversation_is_encoded_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of conversations may hold thousands of turns; as many of the last are kept as fit into three quarters."""
    encoded = list[int]()
    monkeypatch.setattr(
        chat, "encode_dialog", lambda *given, **more: encoded.append(1) or encode_dialog(*given, **more)
    )
    model = reciter(200)
    session = Session(model, system="Be brief.", sampling=GREEDY)
    session.resume(Conversation("Be brief.", tuple(said("hi", "ho")) * 1000))
    encoded.clear()
    assert printed(session, "Who?") == LETTERS
    assert len(encoded) < 15
    kept = session.conversation.dialog()[:-1]
    assert len(encode_dialog(kept, model.tokenizer)) <= 150
    assert len(encode_dialog([*kept[:1], *said("hi", "ho"), *kept[1:]], model.tokenizer)) > 150


def test_an_answer_continues_when_it_fills_the_context() -> None:
    model = reciter(200, endless=True)
    session = Session(model, sampling=GREEDY, max_tokens=50)
    printed(session, "first")
    printed(session, "second")
    assert session.conversation.forgotten == 0
    session.max_tokens = 100
    assert printed(session, "third") == (LETTERS * 9)[:100]
    assert session.conversation.forgotten == 4
    assert session.reason == "length"
    session.max_tokens = 1000
    answer = printed(session, "fourth")
    assert session.reason == "context"
    assert session.conversation.forgotten == 6
    begun = encode_dialog(said("fourth"), model.tokenizer)
    assert len(begun) + len(answer) == 200 + 1  # the last token is not read
    assert answer == (LETTERS * 9)[: len(answer)]


@pytest.mark.parametrize("context", [120, 121])
def test_a_context_that_ends_within_a_character_does_not_break_it(context: int) -> None:
    """Two tokens a character: in one of the two contexts, the second is read in the next."""
    e, acute = "é".encode()
    session = Session(successors({ord("\n"): e, e: acute, acute: e}, context), sampling=GREEDY, max_tokens=70)
    assert printed(session, "?") == "é" * 35
    begun = session.reply("?")
    assert next(begun) == "é"
    assert session.used > 70
    assert "é" + "".join(begun) == "é" * 35
    assert session.conversation.forgotten == 2
    assert session.conversation.messages[-1]["content"] == "é" * 35


def test_a_continued_answer_is_read_correctly() -> None:
    """With a model for which every token matters: after a turn is forgotten, the answer is as if it had never been."""
    model = rambler(200)
    session = Session(model, sampling=GREEDY, max_tokens=60)
    printed(session, "first")
    begun = encode_dialog([*session.conversation.messages, *said("second")], model.tokenizer)
    session.max_tokens = 140
    answer = printed(session, "second")
    assert session.conversation.forgotten == 2
    room = 200 - len(begun) + 1
    ids = [*encode_dialog(said("second"), model.tokenizer), *model.tokenizer.encode(answer[:room])]
    assert continuation(model, ids, 140 - room) == answer[room:]
    assert len(answer) == 140


def test_a_question_that_is_too_long_is_refused() -> None:
    session = Session(reciter(200), system="Be brief.", sampling=GREEDY)
    printed(session, "Who?")
    before = session.conversation
    with pytest.raises(
        LlucidError, match=r"the question has \d{3} tokens together with the system's text, but .* is 200"
    ):
        printed(session, "x" * 250)
    assert session.conversation == before
    assert printed(session, "Who?") == LETTERS
    room = 200 - len(encode_dialog(said(""), session.model.tokenizer))
    assert printed(Session(reciter(200), sampling=GREEDY), "x" * room) == "a"
    with pytest.raises(LlucidError, match="the question has 201 tokens"):
        printed(Session(reciter(200), sampling=GREEDY), "x" * (room + 1))


def test_save_and_load(tmp_path: Path) -> None:
    session = Session(reciter(200), system="Be brief. 🦙", sampling=GREEDY)
    for question in ("Who?", " And\nwho? ", "Ünd \ud83e\udd99?", "So?", "Ah"):
        printed(session, question)
    assert session.conversation.forgotten
    file = tmp_path / "talk.json"
    session.conversation.save(file)
    messages = json.loads(file.read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 5]
    assert messages[5]["content"] == "Ünd 🦙?"
    assert '\n      "content": "Ünd 🦙?"\n' in file.read_text(encoding="utf-8")  # readable for people
    loaded = Conversation.load(file)
    assert loaded == session.conversation._replace(forgotten=0)
    again = Session(reciter(200), sampling=GREEDY)
    again.conversation = loaded
    assert printed(again, "Now?") == LETTERS
    assert again.conversation.forgotten
    for short in (Conversation(), Conversation("Be brief."), Conversation(messages=tuple(said("Who?", "abc")))):
        short.save(str(file))
        assert Conversation.load(str(file)) == short


def test_tools_of_a_saved_conversation_are_used(tmp_path: Path) -> None:
    """The answer begins with what the template takes from the tools."""
    template = "{{ tools[0].name if tools else 'x' }}"
    file = tmp_path / "talk.json"
    session = Session(
        reciter(), format=template, sampling=GREEDY, max_tokens=1, template_values={"tools": [{"name": "b"}]}
    )
    assert printed(session, "Who?") == "c"
    session.conversation.save(file)
    assert json.loads(file.read_text())["tools"] == [{"name": "b"}]
    again = Session(reciter(), format=template, sampling=GREEDY, max_tokens=1)
    assert printed(again, "Who?") == "y"
    again.resume(Conversation.load(file))
    assert printed(again, "Who?") == "c"
    again.reset()
    assert printed(again, "Who?") == "c"
    model, named = reciter(), {"default": "{{ 'x' }}", "tool_use": template}
    model.text().config["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
    tools = {"tools": [{"name": "b"}]}
    assert printed(Session(model, sampling=GREEDY, max_tokens=1, template_values=tools), "Who?") == "c"
    resumed = Session(model, sampling=GREEDY, max_tokens=1)
    assert printed(resumed, "Who?") == "y"
    resumed.resume(Conversation.load(file))
    assert printed(resumed, "Who?") == "c"
    other = Session(reciter(), system="Be brief.")
    with pytest.raises(LlucidError, match=r"tools=.*: the format llama3 has no place for it"):
        other.resume(Conversation.load(file))
    assert other.conversation == Conversation("Be brief.")


WRONG = {
    "nothing": ("", "the file is empty"),
    "a list": ("[]", "expected a JSON object"),
    "no messages": ("{}", "expected a list under 'messages'"),
    "no dialogue": ('{"messages": [{"role": "user"}]}', r"messages\[0\]: expected a role and a content"),
    "no tools": ('{"messages": [], "tools": ["f"]}', "tools: expected a list of objects"),
    "a question": ('{"messages": [{"role": "user", "content": "x"}]}', "ends with its answer"),
    "a question after the system's text": (
        '{"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]}',
        "ends with its answer",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_invalid_files_are_refused(case: str, tmp_path: Path) -> None:
    content, message = WRONG[case]
    (tmp_path / "talk.json").write_text(content)
    with pytest.raises(LlucidError, match=f"talk.json: .*{message}"):
        Conversation.load(tmp_path / "talk.json")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LlucidError, match=r"none\.json: cannot be read"):
        Conversation.load(tmp_path / "none.json")


def test_reset_keeps_the_system() -> None:
    session = Session(reciter(), system="Be brief.")
    printed(session, "Who?")
    session.reset()
    assert session.conversation == Conversation("Be brief.")


def test_answers_end_at_the_end_of_turn_of_a_template() -> None:
    """The answer ends at the template's token, although it is not among the tokenizer's stop ids."""
    model = reciter()
    model.tokenizer.stop_ids = frozenset({999})
    session = Session(model, format=LLAMA3, sampling=GREEDY)
    assert printed(session, "Who?") == LETTERS
    assert session.reason == "stop"
    assert model.tokenizer.stop_ids == {999}
    with pytest.raises(LlucidError, match="format=chatml: not a format of dialogues"):
        Session(model, format="chatml")
    assert printed(Session(model, format=CHATML, sampling=GREEDY, max_tokens=3), "Who?") == "abc"


def test_white_space_before_an_answer_is_removed() -> None:
    session = Session(reciter(begins=" "), sampling=GREEDY)
    assert printed(session, "Who?") == LETTERS
    assert session.conversation.messages[-1]["content"] == LETTERS


def test_plain_format_continues_a_text() -> None:
    model = reciter(endless=True)
    base = model._replace(tokenizer=Characters(map(chr, range(128))))
    with pytest.raises(NotAChatModel):
        Session(base)
    session = Session(base, format="plain", sampling=GREEDY, max_tokens=4)
    assert printed(session, "once a") == "bcde"
    assert printed(session, " x") == "yzab"
    read = base.tokenizer.encode("once abcde\n xyza")
    assert session.batch.pages.shared(read) == len(read) == session.used


def test_each_text_has_one_encoding() -> None:
    tokenizer = letters()
    assert tokenizer.encode("the bell") == list(b"the bell")


def test_the_model_s_own_settings_are_the_default() -> None:
    """Impossible ones are ignored."""
    model = rambler(200)
    assert Session(model).sampling == Sampling()
    assert Session(model._replace(sampling={"temperature": 0.1})).sampling == Sampling(temperature=0.1)
    assert Session(model._replace(sampling={"temperature": -1.0})).sampling == Sampling()
    assert Session(model._replace(sampling={"temperature": 0.1}), sampling=GREEDY).sampling == GREEDY
