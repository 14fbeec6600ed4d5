"""The model that comes with the package: its files, its size, and its answers about its own tales."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

import llucid
from llucid.chat import STORYTELLER, Session
from llucid.cli.chat import HINT
from llucid.corpora.fable_dialogues import dialogues, expand_sentence, request_facts, texts
from llucid.corpora.fables import KINDS, NAMES, derivations, expand
from llucid.generation import Sampling
from llucid.weights import parameter_count
from tests.training.test_run import command, do
from tests.waiting import LIMIT

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "storyteller.py"


def benchmark() -> ModuleType:
    """benchmarks/storyteller.py, which scores it."""
    spec = importlib.util.spec_from_file_location("storyteller", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["storyteller"] = module
    spec.loader.exec_module(module)
    return module


def test_the_package_contains_all_files_in_6_megabytes() -> None:
    files = {file.name: file.stat().st_size for file in STORYTELLER.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "train.toml"} <= set(files)
    assert sum(files.values()) < 6_000_000
    root = Path(llucid.__file__).parents[1]
    packed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["llucid"]
    assert {file.name for pattern in packed for file in (root / "llucid").glob(pattern)} >= set(files)


def test_it_has_the_stated_number_of_parameters() -> None:
    model = llucid.load(STORYTELLER, device="cpu")
    assert f"{parameter_count(model.config) / 1e6:.1f} million" == texts.parameters
    assert str(model.weights.norm.dtype) == "torch.bfloat16"


def test_chat_without_a_model_answers_about_its_own_tale() -> None:
    """Through a pipe: the tale has what the question asked for, and the next answer names who is in it."""
    lines = "Tell me a tale about a goat in winter.\nWho is in it?\nAre you a real person?\n"
    done = subprocess.run(
        command("chat", "--temperature", 0, "--seed", 0), input=lines, capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr
    *tale, cast, honest = done.stdout.splitlines()
    text = "\n".join(tale)
    assert "goat" in text
    assert "winter" in text
    names = {expand(row["name"], {}, Random(0)) for row in NAMES}
    assert {name for name in names if name in text} == {name for name in names if name in cast} != set()
    assert texts.parameters in honest


@pytest.mark.parametrize("question", ["Who are you?", "What is the capital of France?", "Thank you."])
def test_it_answers_questions_that_are_not_about_a_tale(question: str) -> None:
    session = Session(llucid.load(STORYTELLER, device="cpu"), sampling=Sampling(temperature=0.0), max_tokens=80)
    answer = "".join(session.reply(question))
    assert session.reason == "stop"
    wanted = {"Who are you?": texts.parameters, "Thank you.": "."}.get(question, "fables")
    assert wanted in answer


def test_it_repeats_words_from_the_message() -> None:
    """In an order that no tale has, so they must be copied."""
    session = Session(llucid.load(STORYTELLER, device="cpu"), sampling=Sampling(temperature=0.0), max_tokens=20)
    assert "".join(session.reply("Say after me: lantern goat under winter Hazel")) == "lantern goat under winter Hazel"


def test_most_tales_are_fables_that_it_can_repeat() -> None:
    """With the default sampling, which sometimes makes errors."""
    session = Session(llucid.load(STORYTELLER, device="cpu"), max_tokens=200, seed=0)
    fables = again = 0
    for row in KINDS:
        session.reset()
        tale = "".join(session.reply(f"Tell me a tale about a {expand(row['name'], {}, Random(0))}."))
        with suppress(ValueError):
            fables += len(derivations(tale))
        again += "".join(session.reply("Tell it again.")) == tale
    assert fables >= 9
    assert again >= 9


def test_its_settings_are_kept() -> None:
    settings = tomllib.loads((STORYTELLER / "train.toml").read_text())
    assert settings["chat"] == "talk.jsonl"
    assert json.loads((STORYTELLER / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert "--chat" in do("train", "--help").stdout


def test_the_hint_of_the_chat_works_for_a_dozen_seeds() -> None:
    """With the default sampling: a fable with that animal and that season, everybody in it, and the fable again."""
    wish, cast, again = (line.strip() for line in HINT.splitlines()[1:])
    session = Session(llucid.load(STORYTELLER, device="cpu"), max_tokens=200)
    for seed in range(12):
        session.reset()
        session.reseed(seed)
        tale = "".join(session.reply(wish))
        [(plot, facts, _)] = derivations(tale)
        named = request_facts(plot, facts)
        words = [expand(named[fact]["name"], {}, Random(0)) for fact in ("hero_kind", "season")]
        assert words == ["goat", "winter"], tale
        answer = "".join(session.reply(cast))
        for role in texts.deeds[plot]:
            assert expand_sentence(f"{{{role}}} the {{{role}_kind}}", Random(0), facts) in answer, tale
        assert "".join(session.reply(again)) == tale


def test_it_answers_as_many_questions_written_by_hand_as_the_documentation_says() -> None:
    """Which is at least four of five."""
    session = Session(llucid.load(STORYTELLER, device="cpu"), max_tokens=100)
    asked = benchmark().ask_by_hand(session)
    documented = (BENCHMARK.parents[1] / "docs" / "storyteller.md").read_text(encoding="utf-8")
    right, count = map(int, re.findall(r"\| all \| (\d+) \| (\d+) \|", documented)[0])
    assert count == len(asked) == 60
    assert right >= 48
    assert abs(sum(each.right for each in asked) - right) <= 2, "another processor may round a few answers otherwise"


@pytest.mark.parametrize(("count", "seed"), [(300, 0), pytest.param(60_000, 8, marks=pytest.mark.slow)])
def test_the_training_has_not_seen_the_questions_that_were_written_by_hand(count: int, seed: int) -> None:
    """The slow one looks at all of its last stage."""

    def words(text: str) -> str:
        return " ".join(re.findall(r"\w+", text.lower()))

    made = {
        words(turn.message)
        for _, dialogue in zip(range(count), dialogues(seed), strict=False)
        for turn in dialogue.turns
    }
    assert not made & {words(question["ask"]) for _, question in benchmark().by_hand()}
