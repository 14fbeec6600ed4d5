"""Dialogues about fables: reproducible from the seed, with tales that fit their requests, and with correct answers."""

import itertools
import json
import re
import subprocess
import sys
from random import Random

import pytest

from llucid.corpora.fable_dialogues import Dialogue, dialogues, lines, texts
from llucid.corpora.fables import KINDS, SEASONS, derivations, expand

KIND_NAMES = [expand(row["name"], {}, Random(0)) for row in KINDS]
SEASON_NAMES = [expand(row["name"], {}, Random(0)) for row in SEASONS]


@pytest.fixture(scope="module")
def made() -> list[Dialogue]:
    return list(itertools.islice(dialogues(5), 800))


def test_the_same_seed_gives_the_same_dialogues() -> None:
    once = "".join(lines(20, seed=4))
    command = [sys.executable, "-m", "llucid.corpora.fable_dialogues", "20", "--seed", "4"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == once
    assert "".join(lines(20, seed=5)) != once
    for line in once.splitlines():
        roles = [message["role"] for message in json.loads(line)["messages"]]
        assert roles[roles[0] == "system" :] == ["user", "assistant"] * (len(roles) // 2)


def test_every_other_conversation_has_its_tales_only_to_be_read() -> None:
    for number, (made, line) in enumerate(zip(dialogues(4), lines(30, seed=4), strict=False)):
        answers = [message for message in json.loads(line)["messages"] if message["role"] == "assistant"]
        weights = [0 if number % 2 and turn.kind == "tale" else 1 for turn in made.turns]
        assert [answer.get("weight", 1) for answer in answers] == weights


def test_tales_have_what_the_request_names(made: list[Dialogue]) -> None:
    """The tale has the animals and the season of the request or the system text, and begins with the first animal."""
    named = 0
    for dialogue in made:
        for turn in dialogue.turns:
            if turn.kind != "tale":
                continue
            [(_, facts, _)] = derivations(turn.answer)
            words = re.findall(r"[a-z]+", f"{dialogue.system} {turn.message}".lower())
            kinds = [KIND_NAMES[KINDS.index(facts[role])] for role in facts if role.endswith("kind")]
            found = [word for word in re.findall(r"[a-z]+", turn.answer) if word in kinds]
            requested = [word for word in words if word in KIND_NAMES]
            assert requested[:1] in ([], found[:1]), turn
            for word in words:
                if word in KIND_NAMES:
                    assert word in kinds, turn
                    named += 1
                if word in SEASON_NAMES:
                    assert facts["season"] is SEASONS[SEASON_NAMES.index(word)], turn
                    named += 1
    assert named > 200


def test_answers_contain_their_keys_and_name_only_who_is_in_the_tale(made: list[Dialogue]) -> None:
    questions = unsaid = 0
    for dialogue in made:
        tale = ""
        for turn in dialogue.turns:
            assert all(part in turn.answer.lower() for part in turn.key.split(" & ")), turn
            if turn.kind == "echo":
                continue
            assert turn.answer[0].isupper(), turn
            assert not re.search(r"[\[\]{}|]|  | [.,?!]|\b[Aa] [aeiou]", turn.message + turn.answer), turn
            if turn.kind == "tale":
                tale = turn.answer
            elif turn.kind == "question":
                questions += 1
                assert tale, turn
                for name in re.findall(r"(?<=[a-z] )[A-Z][a-z]+", turn.answer):
                    assert name in tale, turn
            elif turn.kind == "repeat":
                assert turn.answer == tale
            elif turn.kind == "missing" and turn.key.startswith("no "):
                [absent] = re.findall("no (.+) in this tale", turn.answer)
                assert not re.search(rf"\b{absent}\b", tale), turn
            elif turn.kind == "unsaid":
                unsaid += 1
                assert turn.answer == "The tale does not say.", turn
    assert questions > 4000
    assert unsaid > 400


def test_every_quotation_is_closed(made: list[Dialogue]) -> None:
    for dialogue in made:
        for turn in dialogue.turns:
            assert turn.kind == "echo" or turn.answer.count('"') % 2 == 0, turn


def test_what_happened_first_and_last_is_told_in_order(made: list[Dialogue]) -> None:
    """The first answer of a series is what the tale begins with; the next questions follow it."""
    series = 0
    for dialogue in made:
        for turn, following in itertools.pairwise(dialogue.turns):
            if re.match("(?i)(and )?what happened (first|at the beginning)", turn.message):
                series += re.match("(?i)(and then|what happened (next|then))", following.message) is not None
                assert re.search(r"lost|lent|wanted|came to|planted|not told", turn.answer), turn
    assert series > 10


def test_a_question_about_the_wording_is_answered_from_it(made: list[Dialogue]) -> None:
    """Quotations are the words of that character, and a trait stands before its kind."""
    said = traits = 0
    for dialogue in made:
        tale = ""
        for turn in dialogue.turns:
            tale = turn.answer if turn.kind == "tale" else tale
            if found := re.fullmatch(r'(\w+) said: "(.+)"', turn.answer):
                said += 1
                assert re.search(rf'{re.escape(found[2][:-1].split(". ")[0])}[.,!?]*" \w+ {found[1]}\b', tale), turn
            if (found := re.fullmatch(r"(\w+) was a (\w+ \w+)\.", turn.answer)) and found[1] != "It":
                traits += 1
                assert f"{found[1]} the {found[2]}" in tale, turn
    assert said > 20
    assert traits > 50


def test_no_friend_is_named_twice(made: list[Dialogue]) -> None:
    lists = [turn.answer for dialogue in made for turn in dialogue.turns if turn.kind == "friends"]
    assert len(lists) > 100
    sizes = set[int]()
    for answer in lists:
        animals = [tuple(animal.split(" the ")) for animal in re.split(", | and ", answer.removesuffix("."))]
        names, kinds = zip(*animals, strict=True)
        assert len(set(names)) == len(set(kinds)) == len(animals)
        sizes.add(len(animals))
    assert sizes == set(range(3, 9))


def test_echoes_repeat_words_in_random_order(made: list[Dialogue]) -> None:
    """The answer is exactly the text after the colon, and most pairs of neighbouring words occur in no tale."""
    echoes = [turn for dialogue in made for turn in dialogue.turns if turn.kind == "echo"]
    assert len(echoes) > 200
    assert all(turn.message.partition(": ")[2] == turn.answer for turn in echoes)
    tales = " ".join(turn.answer for dialogue in made for turn in dialogue.turns if turn.kind == "tale")
    pairs = [pair for turn in echoes for pair in itertools.pairwise(turn.answer.split())]
    assert sum(" ".join(pair) in tales for pair in pairs) < 0.2 * len(pairs)


def test_the_storyteller_lists_all_its_animals() -> None:
    irregular = {"foxes": "fox", "mice": "mouse", "geese": "goose"}
    plurals = re.findall(r"\w+", texts.animals.replace(" and ", " "))
    assert [irregular.get(word, word.removesuffix("s")) for word in plurals] == KIND_NAMES
