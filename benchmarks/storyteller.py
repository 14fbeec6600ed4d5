"""How often the storyteller is right: `./dev bench storyteller`, or `python benchmarks/storyteller.py MODEL`.

Three tables. Held-out conversations come from the training grammar with another seed; each answer is greedy and follows
the true conversation before it. For its own tales, the model is asked for a tale about an animal in a season, then
questions about it, then to tell it again; the correct answers follow from its tale by the grammar of fables. An answer
is right if it contains the required words and, if it must name a character, names no other. The questions that were
written by hand, with their rule, are in storyteller_questions.toml; the wrong answers to these are printed.
"""

import re
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from llucid import load
from llucid.chat import STORYTELLER, Conversation, Session
from llucid.corpora.fable_dialogues import Story, Turn, dialogues, expand_sentence, question, request_facts
from llucid.corpora.fables import KINDS, NAMES, SEASONS, Row, derivations, expand, write_tale
from llucid.generation import Sampling

HELD_OUT = 1_000_003
"""A seed that no training uses."""


def right(answer: str, turn: Turn, cast: set[str]) -> bool:
    """Whether an answer contains the key of its turn and, if that is a character, names no other character."""
    said = answer.lower()
    named = {name for name in cast if name.lower() in said}
    return all(part in said for part in turn.key.split(" & ")) and (turn.key.title() not in cast or len(named) == 1)


def cast_of(facts: Mapping[str, Row]) -> set[str]:
    """The names of the characters of a tale."""
    return {expand_sentence(f"{{{role}}}", Random(0), facts) for role in ("hero", "friend", "third") if role in facts}


def held_out(session: Session, count: int) -> Counter[tuple[str, bool]]:
    """How many answers of each kind were right, and how many wrong, in `count` conversations."""
    session.sampling = Sampling(temperature=0.0)
    counts: Counter[tuple[str, bool]] = Counter()
    names = {expand(row["name"], {}, Random(0)) for row in NAMES}
    for _, made in zip(range(count), dialogues(HELD_OUT), strict=False):
        messages = made.messages()[bool(made.system) :]
        tale = ""
        for number, turn in enumerate(made.turns):
            if turn.kind == "tale":
                tale = turn.answer
            elif turn.key:
                session.conversation = Conversation(made.system, tuple(messages[: 2 * number]))
                answer = "".join(session.reply(turn.message))
                counts[turn.kind, right(answer, turn, {name for name in names if name in tale})] += 1
    return counts


def own_tales(session: Session, count: int) -> Counter[tuple[str, bool]]:
    """Counts of right and wrong: its tales by the grammar and by the request, answers about them, and repetitions."""
    session.sampling = Sampling()
    session.reseed(0)
    rng, counts = Random(HELD_OUT), Counter[tuple[str, bool]]()
    for _ in range(count):
        wanted = {"hero_kind": KINDS[int(16 * rng.random())], "season": SEASONS[int(4 * rng.random())]}
        session.reset()
        text = "".join(session.reply(expand_sentence("Tell me a tale about a {hero_kind} in {season}.", rng, wanted)))
        try:
            [(plot, facts, _)] = derivations(text)
        except ValueError:
            counts["a tale by the grammar", False] += 1
            continue
        counts["a tale by the grammar", True] += 1
        named = request_facts(plot, facts)
        counts[
            "has the animal and the season of the request", all(named[name] is row for name, row in wanted.items())
        ] += 1
        story = Story(write_tale(plot, facts, rng)._replace(text=text, moral=text.partition("\n")[2]), facts)
        for _ in range(3):
            turn = question(story, rng)
            while turn.kind != "question":
                turn = question(story, rng)
            counts["answer about its own tale", right("".join(session.reply(turn.message)), turn, cast_of(facts))] += 1
        counts["repeats its own tale", "".join(session.reply("Tell it again.")) == text] += 1
    for _ in range(count):
        session.reset()
        animals = re.split(", | and ", "".join(session.reply("Whom do you know?")))
        friends = [animal.split(" the ") for animal in animals]
        different = all(len(column) == len(set(column)) for column in zip(*friends, strict=False))
        counts["lists friends, none twice", different and all(len(friend) == 2 for friend in friends)] += 1
    return counts


class Asked(NamedTuple):
    """A question that was written by hand, and what the model said."""

    kind: str
    question: str
    answer: str
    right: bool


def by_hand() -> list[tuple[str, dict[str, Any]]]:
    """Pairs of a tale, which may be empty, and a question about it with its rule."""
    tales = tomllib.loads(Path(__file__).with_name("storyteller_questions.toml").read_text(encoding="utf-8"))["tale"]
    return [(tale["text"].strip(), question) for tale in tales for question in tale["questions"]]


def follows_rule(answer: str, question: Mapping[str, Any]) -> bool:
    """Whether an answer has all that the question `needs` and nothing that is `never` right."""
    said = f"{answer.lower()} "
    needed = all(any(option in said for option in part.split("|")) for part in question["needs"])
    return needed and not any(part in said for part in question.get("never", ()))


def ask_by_hand(session: Session) -> list[Asked]:
    """The greedy answers to all questions that were written by hand, each asked right after its tale."""
    session.sampling = Sampling(temperature=0.0)
    found: list[Asked] = []
    for tale, asked in by_hand():
        told = ({"role": "user", "content": "Tell me a tale."}, {"role": "assistant", "content": tale})
        session.conversation = Conversation("", told if tale else ())
        answer = "".join(session.reply(asked["ask"]))
        found.append(Asked(asked["kind"], asked["ask"], answer, follows_rule(answer, asked)))
    return found


def show(counts: Counter[tuple[str, bool]], rows: Mapping[str, list[str]]) -> None:
    """Prints the share of each row's kinds that was right."""
    for row, kinds in rows.items():
        yes, no = (sum(counts[kind, value] for kind in set(kinds)) for value in (True, False))
        print(f"| {row} | {yes} | {yes + no} | {100 * yes / (yes + no):.1f} % |", flush=True)


def measure(name: str, held: int = 100, own: int = 100) -> None:
    """Prints the tables."""
    session = Session(load(name, device="cpu", dtype="float32"), max_tokens=200, seed=0)
    print("| | right | of | share |\n|---|---|---|---|")
    counts = held_out(session, held)
    rows = {f"held-out conversations: {kind}": [kind] for kind, _ in counts}
    rows = {"held-out conversations: all": [kind for kind, _ in counts], **rows}
    show(counts, rows)
    counts = own_tales(session, own)
    show(counts, {kind: [kind] for kind, _ in counts})
    asked = ask_by_hand(session)
    counts = Counter((each.kind, each.right) for each in asked)
    kinds = list(dict.fromkeys(each.kind for each in asked))
    show(counts, {"written by hand: all": kinds, **{f"written by hand: {kind}": [kind] for kind in kinds}})
    for each in asked:
        if not each.right:
            print(f"wrong ({each.kind}): {each.question} → {each.answer}")


if __name__ == "__main__":
    measure(*(sys.argv[1:2] or [str(STORYTELLER)]), *map(int, sys.argv[2:4]))
