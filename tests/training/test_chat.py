"""Training on conversations: what is read, what is learned, and the run that it leaves."""

import gzip
import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console
from safetensors.torch import load_file

import llucid
from llucid.chat import Session, encode_dialog, encode_learned
from llucid.config import Config
from llucid.corpora.conversations import open_conversations, parse_conversation, read_conversations
from llucid.corpora.dialogues import dialogue_batch, dialogue_validation_batches, open_dialogues, write_dialogues
from llucid.dialogs import sandbox
from llucid.errors import LlucidError
from llucid.generation import Sampling
from llucid.model import Model
from llucid.tokenizers import load_tokenizer
from llucid.tokenizers.tokenizer_json import JsonTokenizer
from llucid.training import loop
from llucid.training.dialogues import make_chat_tokenizer, read_chat_tokens, tokenise_chat
from llucid.training.report import Report
from llucid.weights import initialise
from tests.training.test_run import do, here, losses

NAMES, THINGS = ["Wick", "May", "Ivy", "Otto", "Pip", "Ned"], ["bell", "hat", "kite", "drum"]
SMALL = ["--preset", "nano", "--tokenizer", "bpe:320", "--evaluations", "2", "--batch", "4", "--model.dim", "32"]


def conversation(number: int) -> dict[str, Any]:
    name, other = NAMES[number % 6], NAMES[(number // 6 + number + 1) % 6]
    thing = THINGS[number % 4]
    printed = ["A tale!", f"{name} lost a {thing}, and {other} found it.", f"Who lost the {thing}?", f"{name} did."]
    roles = ["user", "assistant"] * 2
    messages = [{"role": role, "content": text} for role, text in zip(roles, printed, strict=True)]
    return {"messages": messages, "source": "a test"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("dialogues") / "talk.jsonl"
    made.write_text("".join(json.dumps(conversation(number)) + "\n" for number in range(60)) + "\n")
    return made


@pytest.fixture(scope="module")
def straight(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "straight"
    do("train", "--chat", file, "--out", out, *SMALL, "--steps", 120, "--model.dropout", 0.1)
    return out


def test_a_chat_model_learns_to_answer(straight: Path, file: Path) -> None:
    rows: Any = losses(straight)
    measured = [row["validation"] for row in rows if "validation" in row]
    assert measured[-1] < rows[0]["loss"] / 4
    assert measured[-1] < measured[0]
    model = llucid.load(straight, device="cpu")
    session = Session(model, sampling=Sampling(temperature=0.0), max_tokens=60)
    tale = "".join(session.reply("A tale!"))
    assert tale.split()[1:3] == ["lost", "a"]
    assert session.reason == "stop"
    assert "› A tale!" in (straight / "samples.txt").read_text()


def test_the_speed_counts_the_tokens_of_conversations(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of whole contexts, and not what pads the shorter ones. The test replaces the clock."""
    now, tokens, speeds, take = 0.0, list[int](), list[float](), loop.training_batch

    def batch(*arguments: Any) -> Any:
        nonlocal now
        now += 0.5
        taken = take(*arguments)
        tokens.append(sum(max(at for at, to in enumerate(row, 1) if to >= 0) for row in taken[1].tolist()))
        return taken

    monkeypatch.setattr(loop, "training_batch", batch)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(Report, "measured", lambda *figures: speeds.append(figures[-2]))
    here("train", "--chat", file, "--out", tmp_path / "out", *SMALL, "--steps", 4, "--model.context", 1024)
    assert speeds[-1] == sum(tokens) / 2 < 4 * 1024


def test_transformers_uses_the_run_as_a_chat_model(straight: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(straight)
    messages = conversation(1)["messages"]
    model = llucid.load(straight, device="cpu")
    ids, _ = encode_learned(messages, model.text())
    assert theirs.apply_chat_template(messages, tokenize=True, return_dict=False) == ids
    asked = theirs.apply_chat_template(messages[:3], tokenize=True, add_generation_prompt=True, return_dict=False)
    assert encode_dialog(messages[:3], model.text()) == asked == ids[: len(asked)]
    assert theirs.eos_token_id == model.text().eos == model.text().special["<|eot_id|>"]


def test_resumed_equals_straight_bit_for_bit(file: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "halves"
    steps = ("--steps", 120, "--model.dropout", 0.1, "--stop-after", 47)
    do("train", "--chat", file, "--out", out, *SMALL, *steps)
    do("train", "--resume", "--out", out)
    assert losses(out) == losses(straight)
    once, halves = (load_file(run / "state" / "latest.safetensors") for run in (straight, out))
    assert once.keys() == halves.keys()
    assert all(torch.equal(once[name], halves[name]) for name in once)


def test_resume_refuses_conversations_that_have_changed(file: Path, tmp_path: Path) -> None:
    out, talk = tmp_path / "run", tmp_path / "talk.jsonl"
    talk.write_text(file.read_text())
    here("train", "--chat", talk, "--out", out, *SMALL, "--steps", 4, "--stop-after", 1)
    talk.write_text(file.read_text() + GOOD + "\n")
    with pytest.raises(LlucidError, match=f"chat={talk}: no longer the text .* llucid train --base {out} --chat"):
        here("train", "--resume", "--out", out)
    talk.write_text(file.read_text())
    here("train", "--resume", "--out", out)
    assert len(losses(out)) == 4


def test_fine_tuning_begins_with_the_base_and_resumes(file: Path, straight: Path, tmp_path: Path) -> None:
    """Step 0 has the base's validation loss; the first training loss is near it. Resuming is exact here, too."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    given = ("train", "--chat", file, "--base", straight, "--steps", 12, "--evaluations", 1, "--model.dropout", 0.1)
    here(*given, "--out", whole)
    here(*given, "--out", halves, "--stop-after", 5)
    here("train", "--resume", "--out", halves)
    assert losses(whole) == losses(halves)
    base: Any = losses(straight)[-1]
    first, second, *_ = losses(whole)
    assert first.keys() == {"step", "validation", "window", "sample"}  # the base's
    assert first["validation"] == pytest.approx(base["validation"], rel=1e-4)
    assert second["loss"] < 2 * base["validation"]
    assert llucid.load(whole, device="cpu").config == llucid.load(straight, device="cpu").config
    with pytest.raises(LlucidError, match=r"model\.layers=3: base= already has its own"):
        here(*given, "--out", tmp_path / "x", "--model.layers", 3)


def test_a_base_without_a_chat_format_is_refused(file: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the goose and the fox " * 99)
    here("train", "--corpus", text, "--out", tmp_path / "base", "--preset", "nano", "--steps", 1)
    with pytest.raises(LlucidError, match="this tokenizer has no chat template"):
        here("train", "--chat", file, "--base", tmp_path / "base", "--out", tmp_path / "chat")
    # But it can learn more text, in float32 whatever it was kept in.
    llucid.save(llucid.load(tmp_path / "base", device="cpu", dtype="bfloat16"), tmp_path / "half")
    here("train", "--corpus", text, "--base", tmp_path / "half", "--out", tmp_path / "more", "--steps", 2)
    assert {leaf.dtype for leaf in load_file(tmp_path / "more" / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize(
    "name",
    [
        "llama2-tokenizer.model",
        pytest.param("llama3-tokenizer.model", marks=pytest.mark.slow),
        pytest.param("llama2-tokenizer.bin", marks=pytest.mark.slow),
    ],
)
def test_a_base_whose_format_its_tokenizer_tells(name: str, data: Path, file: Path, tmp_path: Path) -> None:
    """A folder of Meta's has no chat template; the run's has one, so that it remains a chat model."""
    tokenizer, talk = load_tokenizer(data / name), conversation(0)["messages"]
    config = Config(
        dim=8, layers=1, heads=2, kv_heads=1, head_dim=4, ffn_dim=8, vocab_size=tokenizer.vocab_size, context=128
    )
    llucid.save(Model(config, initialise(config), tokenizer), tmp_path / "base", "meta")
    out = tmp_path / "run"
    given = ("train", "--chat", file, "--base", tmp_path / "base", "--tokenizer", data / name)
    here(*given, "--steps", 2, "--batch", 2, "--stop-after", 1, "--out", out)
    here("train", "--resume", "--out", out)
    found = llucid.load(out, device="cpu").text()
    assert encode_learned(talk, found) == encode_learned(talk, tokenizer)
    theirs: Any = transformers.AutoTokenizer.from_pretrained(out)
    ids = theirs.apply_chat_template(talk[:-1], add_generation_prompt=True, return_dict=False)
    assert ids == encode_dialog(talk[:-1], tokenizer)
    llucid.save(Model(config, initialise(config), tokenizer), tmp_path / "saved")
    assert encode_dialog(talk[:-1], llucid.load(tmp_path / "saved", device="cpu").text()) == ids


GOOD = json.dumps(conversation(0))
WRONG: dict[str, tuple[str, str]] = {
    "cut off": (GOOD[:-9], "line 2: not JSON"),
    "too long a number": ("9" * 5000, "line 2: not JSON"),
    "not an object": ("12", 'line 2: expected {"messages"'),
    "not messages": ("[1, 2]", 'line 2: messages[0]: expected {"role"'),
    "no messages": ('{"text": "x"}', 'line 2: expected {"messages"'),
    "no list": ('{"messages": "x"}', "line 2: messages: expected a list"),
    "unknown role": (
        '{"messages": [{"role": "critic", "content": "x"}]}',
        "line 2: messages[0]: role 'critic' is not known",
    ),
    "no content": ('{"messages": [{"role": "user"}]}', "line 2: messages[0]: expected a role and a content"),
    "no text": ('{"messages": [{"role": "user", "content": 3}]}', "line 2: messages[0]: the content should be a text"),
    "not UTF-8": ("\udcff", "line 2: not JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_bad_line_is_named(case: str, tmp_path: Path) -> None:
    wrong, says = WRONG[case]
    file = tmp_path / "talk.jsonl"
    file.write_bytes("\n".join([GOOD, wrong, GOOD, ""]).encode("utf-8", "surrogateescape"))
    with pytest.raises(LlucidError) as raised:
        list(read_conversations(open_conversations(str(file))))
    assert str(raised.value).startswith(f"{file}, ")
    assert says in str(raised.value)


def test_the_sample_answers_a_short_question(tmp_path: Path) -> None:
    """The first one of the validation split in half a context, with the system's text before it."""
    long, short, later = "tale " * 40, "A tale?", "Another?"
    file = tmp_path / "talk.jsonl"
    with open(file, "w") as out:
        for number in range(30):
            asked = {27: long, 28: short, 29: later}.get(number, "x")
            messages = [{"role": "system", "content": "Tell."}, {"role": "user", "content": asked}]
            out.write(json.dumps({"messages": [*messages, {"role": "assistant", "content": "Yes."}]}) + "\n")
    corpus = open_conversations(str(file))
    tokenizer = make_chat_tokenizer("bpe:280", corpus)
    *_, opening = read_chat_tokens(corpus, tokenizer, 128, Report(Console(file=io.StringIO())))
    assert opening.messages == [{"role": "system", "content": "Tell."}, {"role": "user", "content": short}]


def test_bad_input_of_the_command(file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "talk.jsonl.gz").write_bytes(gzip.compress(GOOD.encode()))
    (tmp_path / "one.jsonl").write_text(GOOD)
    (tmp_path / "bad.jsonl").write_text(GOOD + "\n{\n")
    (tmp_path / "asked.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n' * 9)
    silent = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]})
    (tmp_path / "silent.jsonl").write_text((GOOD + "\n") * 9 + silent)
    printed = do("train", "--chat", tmp_path / "bad.jsonl", status=2, cwd=tmp_path).stderr
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    for arguments, says in {
        (str(tmp_path / "none.jsonl"),): "none.jsonl: no such file; expected fables, or a file of conversations",
        (str(tmp_path),): f"{tmp_path}: not a regular file; expected fables, or a file of conversations",
        (str(tmp_path / "talk.jsonl.gz"),): "talk.jsonl.gz: a gzip or Parquet file, which is not read here; expected",
        (str(tmp_path / "empty.jsonl"),): "empty.jsonl: there is no conversation in it",
        (str(tmp_path / "one.jsonl"),): "one.jsonl: there is one conversation in it",
        (str(tmp_path / "bad.jsonl"),): "bad.jsonl, line 2: not JSON",
        (str(tmp_path / "silent.jsonl"),): "all answers of its validation split are empty",
        (str(file), "--tokenizer", "characters"): "with chat=, expected bpe:N",
        (str(file), "--tokenizer", "bpe:260"): "more than its 260 bytes and special tokens",
        (str(file), "--corpus", "fables"): "corpus= and chat= both say what to learn from",
        (str(file), "--model.context", "2"): (
            "no conversation of its train split can be learned; line 1: it has no answer to learn within the context "
            "of 2 tokens (model.context)"
        ),
        (str(tmp_path / "asked.jsonl"),): (
            "no conversation of its train split can be learned; line 1: it has no message of the assistant"
        ),
        (str(file), "--length-warmup", "0.5"): "conversations are not cut into windows",
    }.items():
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(LlucidError) as raised:
            here("train", "--chat", *arguments, "--out", tmp_path / "run", "--steps", 1, "--preset", "nano")
        assert says in str(raised.value)
        assert sorted(tmp_path.rglob("*")) == before


def test_splits_together_are_the_file(file: Path) -> None:
    corpus = open_conversations(str(file))
    train, validation = (list(read_conversations(corpus, split)) for split in ("train", "validation"))
    assert train + validation == list(read_conversations(corpus))
    assert len(validation) == 6
    assert train[0] == ("line 1", parse_conversation(json.loads(GOOD)))


def test_a_batch_has_a_dialogue_per_row(tmp_path: Path) -> None:
    """Each comes once in an epoch; cut at the context, filled up at the end, −100 where nothing is learned. What is
    learned has the last ids of Llama 3's vocabulary."""
    rows = [
        ([9, number, *range(128_246, 128_246 + number)], [False, False, *[True] * number]) for number in range(1, 11)
    ]
    rows.append(([1, 2, 3, 4, 5, 6], [False] * 5 + [True]))  # has nothing to learn within four tokens
    rows.append(([0, 0], [False, True]))  # the id 0 is learned, too
    file = tmp_path / "some.dialogues"
    write_dialogues(rows, file)
    dialogues = open_dialogues(file, context=4)
    assert dialogues.kept.tolist() == [*range(10), 11]
    seen: list[int] = []
    for step in range(5):
        inputs, targets = dialogue_batch(dialogues, 2, 4, seed=3, step=step)
        again = dialogue_batch(dialogues, 2, 4, seed=3, step=step)
        assert torch.equal(inputs, again[0])
        assert torch.equal(targets, again[1])
        for asked, learned in zip(inputs.tolist(), targets.tolist(), strict=True):
            number = asked[1] if asked[0] else 11
            seen.append(number)
            whole, own = rows[11] if number == 11 else rows[number - 1]
            width = min(len(whole) - 1, 4)
            expected = [token if mine else -100 for token, mine in zip(whole[1:5], own[1:5], strict=True)]
            assert asked[:width] == whole[:width]
            assert learned == expected + [-100] * (len(learned) - len(expected))
    assert len(set(seen)) == 10
    other = [dialogue_batch(dialogues, 2, 4, seed=3, step=step)[0] for step in range(5, 10)]
    assert sorted(np.concatenate([batch[:, 1:2].numpy() for batch in other]).ravel().tolist()) != seen
    evaluated = list(dialogue_validation_batches(dialogues, 4))
    assert sum(len(inputs) for inputs, _ in evaluated) == 11
    assert sum(int((targets >= 0).sum()) for _, targets in evaluated) == 1 + 2 + 8 * 3 + 1


@pytest.mark.parametrize(("unanswered", "left"), [([29], 28), ([27, 28], 20)])
def test_conversations_that_vanish_while_they_are_read(
    unanswered: list[int], left: int, file: Path, tmp_path: Path
) -> None:
    rows = [conversation(number) for number in range(30)]
    for number in unanswered:
        rows[number]["messages"] = rows[number]["messages"][:1]
    talk = tmp_path / "talk.jsonl"
    talk.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = open_conversations(str(talk))
    tokenizer = make_chat_tokenizer("bpe:320", corpus)
    report = Report(Console(quiet=True))
    read_chat_tokens(corpus, tokenizer, 200, report)
    talk.write_text("".join(json.dumps(row) + "\n" for row in rows[:left]))
    with pytest.raises(LlucidError, match=r"^talk: the text changed while it was read; give the same command again$"):
        read_chat_tokens(corpus, tokenizer, 200, report)


def test_answers_of_weight_0_are_not_learned(file: Path, tmp_path: Path) -> None:
    """Nor the ends of their turns. A conversation without another answer is left out, which a line reports."""
    talk = tmp_path / "talk.jsonl"
    rows = [conversation(number) for number in range(30)]
    for row in rows:
        row["messages"][1]["weight"] = 0
    rows[3]["messages"][3]["weight"] = 0
    rows[5]["messages"][3]["content"] = "0123456789" * 60
    talk.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = open_conversations(str(talk))
    tokenizer = make_chat_tokenizer("bpe:320", corpus)
    printed = io.StringIO()
    training, *_ = read_chat_tokens(corpus, tokenizer, 200, Report(Console(file=printed, width=200)))
    assert printed.getvalue().splitlines() == [
        "1 of 30 conversations are left out; the first is line 4: none of its answers is to be learned",
        "1 of 30 conversations are longer than the context of 200 tokens and are cut",
    ]
    assert 3 not in training.kept.tolist()
    inputs, targets = training.read(np.array([0]), 200)
    ids = targets[targets >= 0].tolist()
    assert tokenizer.decode(ids) == rows[0]["messages"][3]["content"]
    assert ids[-1] == tokenizer.eos
    assert ids.count(tokenizer.eos) == 1
    assert inputs[0].tolist().count(tokenizer.eos) >= 3


def test_a_template_whose_answers_have_no_end(file: Path) -> None:
    corpus, printed = open_conversations(str(file)), io.StringIO()
    made = make_chat_tokenizer("bpe:320", corpus)
    assert isinstance(made, JsonTokenizer)
    template = "{% for m in messages %}{{ m.role ~ ':\n' ~ m.content ~ '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
    for text in (template, template.replace("m.content ~", "m.content ~ '<|eot_id|>' ~")):
        tokenizer = JsonTokenizer(json.loads(made.json()), config=made.config | {"chat_template": text})
        read_chat_tokens(corpus, tokenizer, 200, Report(Console(file=printed, width=200)))
    assert printed.getvalue() == (
        "the chat template ends an answer with no token that stops the model: it will not learn to stop\n"
    )


def test_tools_go_to_the_template_of_the_base(file: Path, straight: Path, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "find"}}]
    talk = tmp_path / "talk.jsonl"
    talk.write_text("".join(json.dumps(conversation(number) | {"tools": tools}) + "\n" for number in range(20)))
    steps = ("--chat", talk, "--base", tmp_path / "base", "--steps", 1, "--batch", 2)
    shutil.copytree(straight, tmp_path / "base")
    with pytest.raises(LlucidError, match=r"talk\.jsonl: no conv.* line 1: tools=.*: the format llama3 has no place"):
        here("train", *steps, "--out", tmp_path / "none")
    config = json.loads((straight / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ tools | tojson }}" + config["chat_template"]
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(config))
    here("train", *steps, "--out", tmp_path / "run")
    tokenizer = llucid.load(tmp_path / "run", device="cpu").text()
    expected = encode_dialog(conversation(18)["messages"][:1], tokenizer, tools=tools)
    corpus = open_conversations(str(talk))
    training, _, opening = read_chat_tokens(corpus, tokenizer, 128, Report(Console(file=io.StringIO())))
    inputs, _ = training.read(np.array([0]), 128)
    assert tokenizer.decode(inputs[0, :9].tolist()).startswith('[{"type":')
    assert encode_dialog(opening.messages, tokenizer, tools=opening.tools) == expected


def test_conversations_that_do_not_fit_are_reported(tmp_path: Path) -> None:
    talk = tmp_path / "talk.jsonl"
    with open(talk, "w") as out:
        for number in range(20):
            question = "why " * 99 if number % 2 else "why"
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "So."}]
            out.write(json.dumps({"messages": messages}) + "\n")
    corpus = open_conversations(str(talk))
    printed = io.StringIO()
    tokenizer = make_chat_tokenizer("bpe:270", corpus)
    read_chat_tokens(corpus, tokenizer, 64, Report(Console(file=printed, width=200)))
    assert printed.getvalue() == (
        "10 of 20 conversations are left out; the first is line 2: it has no answer to learn within the context of 64 "
        "tokens (model.context)\n"
    )


def test_a_base_trained_on_text_needs_the_tokenizer_of_a_chat_model(file: Path, straight: Path, tmp_path: Path) -> None:
    text, steps = tmp_path / "text.txt", ("--steps", 1, "--evaluations", 1)
    text.write_text("Wick lost a bell, and May found it.\n" * 99)
    words = ("train", "--corpus", text, "--preset", "nano", "--model.context", 32, *steps)
    here(*words, "--tokenizer", "bpe:300", "--out", tmp_path / "own")
    with pytest.raises(
        LlucidError, match=r"base=.*own: this tokenizer has no .*; take a chat model, or .*tokenizer=PATH"
    ):
        here("train", "--chat", file, "--base", tmp_path / "own", *steps)
    here(*words, "--tokenizer", straight, "--out", tmp_path / "chats")
    here(
        "train", "--chat", file, "--base", tmp_path / "chats", "--model.context", 256, *steps, "--out", tmp_path / "run"
    )
    assert llucid.load(tmp_path / "run", device="cpu").chat_format == llucid.load(straight, device="cpu").chat_format


def test_conversations_that_cannot_be_learned_are_left_out(straight: Path, tmp_path: Path) -> None:
    """Counted, with the place and the reason of the first, also when they are read again from the cache."""
    base, talk, rows = tmp_path / "base", tmp_path / "talk.jsonl", [conversation(number) for number in range(40)]
    shutil.copytree(straight, base)
    config = json.loads((straight / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% set first = messages[0].role %}" + config["chat_template"]
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = llucid.load(base, device="cpu").text()
    for number in (2, 38):
        rows[number]["messages"] = rows[number]["messages"][1:]
    rows[5]["messages"] = rows[5]["messages"][:1]
    rows[36]["messages"] = []
    talk.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = open_conversations(str(talk))
    first, again = io.StringIO(), io.StringIO()
    read_chat_tokens(corpus, tokenizer, 128, Report(Console(file=first)))
    training, validation, opening = read_chat_tokens(corpus, tokenizer, 128, Report(Console(file=again)))
    assert first.getvalue() == again.getvalue()
    assert again.getvalue() == (
        "4 of 40 conversations are left out; the first is line 3: it begins with an answer; the model's chat "
        "template: list object has no element 0\n"
    )
    assert training.kept.tolist() == [number for number in range(36) if number not in (2, 5)]
    assert validation.kept.tolist() == [1, 3]
    assert opening.messages == rows[37]["messages"][:1]
    for row in rows:
        row["messages"] = row["messages"][:1]
    for row in rows[-4:]:
        row["messages"] = conversation(1)["messages"][1:]
    talk.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(LlucidError, match=r"of its train split can be learned; line 1: it has no message of the assi"):
        read_chat_tokens(open_conversations(str(talk)), tokenizer, 128, Report(Console(file=io.StringIO())))


def test_a_template_that_refuses_all_is_tried_on_a_hundred(straight: Path, tmp_path: Path) -> None:
    talk = tmp_path / "talk.jsonl"
    row = {"messages": [{"role": "user", "content": "x"}]}
    talk.write_text("".join(json.dumps(one) + "\n" for one in [*[row] * 100, *[conversation(1)] * 20]))
    tokenizer = llucid.load(straight, device="cpu").text()
    with pytest.raises(
        LlucidError, match=r"none of its first 100 conversations can be learned; line 1: it has no mess"
    ):
        tokenise_chat(open_conversations(str(talk)), tokenizer, "train", 128)
    talk.write_text("".join(json.dumps(one) + "\n" for one in [*[row] * 99, *[conversation(1)] * 20]))
    assert tokenise_chat(open_conversations(str(talk)), tokenizer, "train", 128).kept.tolist() == [*range(99, 108)]


def test_ids_in_the_cache_are_of_this_end_token(straight: Path, file: Path) -> None:
    """Of what a template is given beside the messages; also if only tokenizer_config.json says it."""
    opened = llucid.load(straight, device="cpu").text()
    content, ends = json.loads(opened.json()), ("<|eot_id|>", "<|end_header_id|>")
    template = "{% for message in messages %}{{ message.role + ': ' + message.content + eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    for end in ends:
        tokenizer = JsonTokenizer(content, config={"chat_template": template, "eos_token": end})
        dialogues = tokenise_chat(open_conversations(str(file)), tokenizer, "train", 128)
        _, learned = dialogues.read(dialogues.kept[:1], 128)
        assert learned[learned >= 0][-1] == tokenizer.special[end]


def test_a_template_that_does_not_end_is_tried_once(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.5)
    opened = llucid.load(straight, device="cpu").text()
    endless = "{% for n in range(99999) %}{% for m in range(99999) %}{% endfor %}{% endfor %}"
    tokenizer = JsonTokenizer(json.loads(opened.json()), config={"chat_template": endless})
    talk = tmp_path / "talk.jsonl"
    talk.write_text("".join(json.dumps(conversation(number)) + "\n" for number in range(20)))
    started = vars(sandbox.Renderer)["started"]
    processes = list[int]()
    monkeypatch.setattr(sandbox.Renderer, "started", lambda self: (processes.append(1), started(self))[1])
    with pytest.raises(LlucidError, match="the model's chat template: it did not end within"):
        tokenise_chat(open_conversations(str(talk)), tokenizer, "train", 128)
    sandbox.RENDERER.close()
    assert len(processes) == 2  # to find the token that ends a turn, and then for the first conversation
