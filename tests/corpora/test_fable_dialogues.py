"""Dialogues about fables: the same from the same seed, obedient, true, and in the words of the world."""

import itertools
import json
import re
import subprocess
import sys
from random import Random

import pytest

from llucid.corpora.fable_dialogues import Dialogue, dialogues, lines
from llucid.corpora.fable_words import ANIMALS
from llucid.corpora.fables import KINDS, SEASONS, derivations, spell

KIND_NAMES = [spell(row["name"], {}, Random(0)) for row in KINDS]
SEASON_NAMES = [spell(row["name"], {}, Random(0)) for row in SEASONS]


@pytest.fixture(scope="module")
def made() -> list[Dialogue]:
    return list(itertools.islice(dialogues(5), 400))


def test_the_same_seed_the_same_dialogues() -> None:
    once = "".join(lines(20, seed=4))
    command = [sys.executable, "-m", "llucid.corpora.fable_dialogues", "20", "--seed", "4"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == once
    assert "".join(lines(20, seed=5)) != once
    for line in once.splitlines():
        roles = [message["role"] for message in json.loads(line)["messages"]]
        assert roles[roles[0] == "system" :] == ["user", "assistant"] * (len(roles) // 2)


def test_tales_obey(made: list[Dialogue]) -> None:
    """The tale is of the animals and the season that the request or the system's text names, and opens so."""
    named = 0
    for dialogue in made:
        for turn in dialogue.turns:
            if turn.about != "tale":
                continue
            [(_, facts, _)] = derivations(turn.answer)
            words = re.findall(r"[a-z]+", f"{dialogue.system} {turn.asked}".lower())
            kinds = [KIND_NAMES[KINDS.index(facts[role])] for role in facts if role.endswith("kind")]
            seen = [word for word in re.findall(r"[a-z]+", turn.answer) if word in kinds]
            asked = [word for word in words if word in KIND_NAMES]
            assert asked[:1] in ([], seen[:1]), turn
            for word in words:
                if word in KIND_NAMES:
                    assert word in kinds, turn
                    named += 1
                if word in SEASON_NAMES:
                    assert facts["season"] is SEASONS[SEASON_NAMES.index(word)], turn
                    named += 1
    assert named > 200


def test_answers_hold_their_keys_and_are_of_the_tale(made: list[Dialogue]) -> None:
    """Names in an answer about a tale are names in the tale told last, and the plot's own questions say the same."""
    asked = 0
    for dialogue in made:
        tale = ""
        for turn in dialogue.turns:
            assert all(part in turn.answer.lower() for part in turn.key.split(" & ")), turn
            if turn.about == "echo":
                continue
            assert turn.answer[0].isupper(), turn
            assert not re.search(r"[\[\]{}|]|  | [.,?!]|\b[Aa] [aeiou]", turn.asked + turn.answer), turn
            if turn.about == "tale":
                tale = turn.answer
            elif turn.about == "question":
                asked += 1
                assert tale, turn
                for name in re.findall(r"(?<=[a-z] )[A-Z][a-z]+", turn.answer):
                    assert name in tale, turn
            elif turn.about == "again":
                assert turn.answer == tale
            elif turn.about == "none" and turn.key.startswith("no "):
                assert not re.search(rf"\b{turn.answer.split()[3]}\b", tale), turn
    assert asked > 800


def test_of_guests_none_is_named_twice(made: list[Dialogue]) -> None:
    lists = [turn.answer for dialogue in made for turn in dialogue.turns if turn.about == "guests"]
    assert len(lists) > 100
    sizes = set[int]()
    for answer in lists:
        guests = [tuple(guest.split(" the ")) for guest in answer.removesuffix(".").replace(" and ", ", ").split(", ")]
        names, kinds = zip(*guests, strict=True)
        assert len(set(names)) == len(set(kinds)) == len(guests)
        sizes.add(len(guests))
    assert sizes == set(range(3, 9))


def test_echoes_are_the_words_to_be_said_and_no_sentence(made: list[Dialogue]) -> None:
    """All that is after the colon, to the letter; what follows what there is no habit of the tales."""
    echoes = [turn for dialogue in made for turn in dialogue.turns if turn.about == "echo"]
    assert len(echoes) > 200
    assert all(turn.asked.partition(": ")[2] == turn.answer for turn in echoes)
    told = " ".join(turn.answer for dialogue in made for turn in dialogue.turns if turn.about == "tale")
    pairs = [pair for turn in echoes for pair in itertools.pairwise(turn.answer.split())]
    assert sum(" ".join(pair) in told for pair in pairs) < 0.2 * len(pairs)


def test_all_animals_are_told_of() -> None:
    irregular = {"foxes": "fox", "mice": "mouse", "geese": "goose"}
    plurals = re.findall(r"\w+", ANIMALS.replace(" and ", " "))
    assert [irregular.get(word, word.removesuffix("s")) for word in plurals] == KIND_NAMES
