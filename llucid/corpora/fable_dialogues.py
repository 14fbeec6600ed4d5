"""Conversations with a storyteller who knows the fables' world and nothing else: what the packaged chat model learned.

    python -m llucid.corpora.fable_dialogues 1000 --seed 7 > talk.jsonl

A conversation is made of turns. A *request* is answered by a tale that obeys it; a *question* is answered from the tale
that was told last; an *echo* says what it is told to say; *guests* are animals and names, none of them twice; *small
talk* has answers of its own, and what lies outside of the fables is declined. All words are templates of `fables`,
whose slots are the facts of the tale. Each turn keeps the *key* of its answer: the words that an answer must have to be
right, however it is put.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import NamedTuple, TypeVar

from llucid.corpora.fable_words import (
    AGAIN,
    ASK,
    BYE,
    DECLINE,
    DID,
    ECHO,
    GUESTS,
    KNOWN,
    MISSING_NAME,
    MISSING_THING,
    MORE,
    NAMING,
    NOBODY,
    OF_EVERY_TALE,
    OF_SOMEBODY,
    OF_THINGS,
    OUTSIDE,
    PLOT_SUBJECTS,
    QUESTIONS,
    SHORT,
    SUBJECTS,
    SYSTEM,
    TALK,
    TOPICS,
    UNTOLD,
    YES,
    Saying,
)
from llucid.corpora.fables import (
    KINDS,
    NAMES,
    SEASONS,
    THINGS,
    Row,
    Tale,
    draw_facts,
    parse_template,
    spell,
    tell,
)

T = TypeVar("T")


class Turn(NamedTuple):
    """What a person says, and the answer."""

    asked: str
    answer: str
    key: str
    """What a right answer contains, in small letters; parts that stand in any order are separated by " & "."""
    about: str
    """tale, question, again, none (there is no such thing in the tale), echo, guests, talk or outside."""


class Dialogue(NamedTuple):
    """A system text, or none, and turns."""

    system: str
    turns: tuple[Turn, ...]

    def messages(self) -> list[dict[str, str]]:
        """As `{"role": …, "content": …}`."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        pairs = [(("user", turn.asked), ("assistant", turn.answer)) for turn in self.turns]
        return system + [{"role": role, "content": content} for pair in pairs for role, content in pair]


# -------------------------------------------------------------------------------------------------------------- making


def pick(options: Sequence[T], rng: Random) -> T:
    """One of the options. Like all chance here it comes from `rng.random()`."""
    return options[int(rng.random() * len(options))]


def weighted(options: Sequence[tuple[int, T]], rng: Random) -> T:
    """One of the options, with a chance in proportion to its weight."""
    at = rng.random() * sum(weight for weight, _ in options)
    for weight, option in options:
        at -= weight
        if at < 0:
            return option
    return options[-1][1]


def say(template: str, rng: Random, facts: Mapping[str, Row] | None = None) -> str:
    """The template in words: an article fits what follows, and it begins with a capital letter."""
    text = spell(parse_template(f"[{template}]"), facts or {}, rng)
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return text[:1].upper() + text[1:]


def typed(text: str, rng: Random) -> str:
    """As people type: often without a full stop, sometimes without capitals."""
    if rng.random() < 0.25:
        text = text.rstrip("?.!")
    return text.lower() if rng.random() < 0.15 else text


def turn(asked: str, answer: str, key: str, about: str, rng: Random, facts: Mapping[str, Row] | None = None) -> Turn:
    """A turn from templates."""
    spelled = say(key, rng, facts).lower() if key else ""
    return Turn(typed(say(asked, rng, facts), rng), say(answer, rng, facts), spelled, about)


class Told(NamedTuple):
    """The tale that is talked about, and the facts it was made from."""

    tale: Tale
    facts: Mapping[str, Row]


def as_asked(plot: str, facts: Mapping[str, Row]) -> Mapping[str, Row]:
    """The facts of a tale in the words of a request, whose hero is whoever the tale begins with."""
    if plot != "stranger":
        return facts
    first = {"hero": "friend", "friend": "hero", "hero_kind": "friend_kind", "friend_kind": "hero_kind"}
    return {fact: facts[first.get(fact, fact)] for fact in facts}


def request(told: Told, more: bool, rng: Random) -> Turn:
    """A request that the tale obeys, and the tale."""
    plot = told.tale.plot
    facts = as_asked(plot, told.facts)
    possible = [(w, s) for w, s in SUBJECTS if all(slot in facts for slot in re.findall(r"\{(\w+)", s))]
    chance = rng.random()
    if chance < 0.1:
        asked = f"{ASK} about [{PLOT_SUBJECTS[plot]}]"
    elif chance < 0.25:
        asked = weighted([(w, s) for w, s in SHORT if all(x in facts for x in re.findall(r"\{(\w+)", s))], rng)
    elif more and rng.random() < 0.6:
        asked = MORE + weighted(possible, rng)
    else:
        asked = ASK + weighted(possible, rng)
    asked = say(asked + "[2 .||[|?]]", rng, facts)
    return Turn(typed(asked, rng), told.tale.text, "", "tale")


def questions_of(tale: Tale, plot_only: bool) -> list[Saying]:
    """What may be asked of the tale: what its plot alone has, or what every tale has."""
    if plot_only:
        rows = QUESTIONS[tale.plot]
    else:
        deeds = DID[tale.plot]
        about = [
            row._replace(answer=row.answer.replace("<deed>", deeds[role]))
            for role in deeds
            for row in about_role(role, list(deeds)[list(deeds).index(role) - 1])
        ]
        rows = [*OF_EVERY_TALE, *(OF_THINGS if tale.plot != "patience" else ()), *about]
    roles = list(DID[tale.plot])
    *cast, last = [f"{{{role}}} the {{{role}_kind}}" for role in roles]
    marks = {
        "<everyone>": f"{', '.join(cast)} and {last}",
        "<names>": " & ".join(f"{{{role}}}" for role in roles),
        "<moral>": tale.moral,
        **{f"<{role}>": NAMING.replace("{who", f"{{{role}") for role in roles},
    }
    found: list[Saying] = []
    for row in rows:
        for mark, meant in marks.items():
            row = row._replace(answer=row.answer.replace(mark, meant), key=row.key.replace(mark, meant))
        found.append(row)
    return found


def about_role(role: str, other: str) -> list[Saying]:
    """What may be asked of one of the cast, `other` being another."""
    return [
        Saying(row.weight, *(cell.replace("{who", f"{{{role}").replace("{other", f"{{{other}") for cell in row[1:]))
        for row in OF_SOMEBODY
    ]


def question(told: Told, rng: Random) -> Turn:
    """A question about the tale, with its answer."""
    tale, facts = told
    chance = rng.random()
    if chance < 0.12:
        return Turn(typed(say(AGAIN, rng), rng), tale.text, tale.text.lower(), "again")
    if chance < 0.2:
        names = [spell(row["name"], {}, rng) for row in (NAMES if rng.random() < 0.5 else THINGS)]
        missing = pick([name for name in names if not re.search(rf"\b{name}\b", tale.text)], rng)
        asked = MISSING_NAME if missing[0].isupper() else MISSING_THING
        answer = f"There is no {missing} in this tale."
        return turn(asked.replace("{missing}", missing), answer, f"no {missing}", "none", rng)
    _, asked, answer, key = weighted([(row.weight, row) for row in questions_of(tale, plot_only=chance < 0.65)], rng)
    if answer == tale.moral:
        return Turn(typed(say(asked, rng, facts), rng), tale.moral, tale.moral.lower(), "question")
    return turn(asked, answer, key, "question", rng, facts)


def echo(rng: Random) -> Turn:
    """Words to say after somebody: in no order, so that only copying will do.

    What copies these copies the facts of a tale as well: an induction head (Olsson et al. 2022).
    """
    words = re.findall(r"\w+", new_tale({}, rng).tale.text + outside(rng).asked)
    said = " ".join(pick(words, rng) for _ in range(2 + int(rng.random() * 10)))
    return Turn(f"{typed(say(ECHO, rng), rng)}: {said}", said, said.lower(), "echo")


def guests(rng: Random) -> Turn:
    """Some of the animals that there are, in no order, but no name and no kind twice: as it is with the cast of a tale,
    of which two or three are too few to learn that from."""
    count = 3 + int(rng.random() * 6)
    names, kinds = (sorted(range(len(rows)), key=lambda _: rng.random())[:count] for rows in (NAMES, KINDS))
    everybody = [
        f"{spell(NAMES[name]['name'], {}, rng)} the {spell(KINDS[kind]['name'], {}, rng)}"
        for name, kind in zip(names, kinds, strict=True)
    ]
    answer = f"{', '.join(everybody[:-1])} and {everybody[-1]}."
    return Turn(typed(say(GUESTS, rng), rng), answer, "", "guests")


def talk(rng: Random) -> Turn:
    """Small talk."""
    _, asked, answer, key = weighted([(row.weight, row) for row in TALK], rng)
    return turn(asked, answer, key, "talk", rng)


def outside(rng: Random) -> Turn:
    """What the storyteller cannot know."""
    if rng.random() < 0.3:
        return turn(f"{ASK} [2 about|with|of] {NOBODY}[|.|?]", KNOWN, "ask me for", "outside", rng)
    return turn(pick(OUTSIDE, rng).replace("{topic}", TOPICS), DECLINE, "fables", "outside", rng)


def untold(rng: Random) -> Turn:
    """A question about a tale before there is one."""
    name, facts = draw_facts(rng)
    asked = weighted([(row.weight, row.asked) for row in QUESTIONS[name]], rng)
    return turn(asked, UNTOLD, "not told", "none", rng, facts)


def system_text(rng: Random) -> tuple[str, dict[str, Row]]:
    """(a system text, the facts that it demands of every tale)."""
    chance = rng.random()
    if chance < 0.86:
        return "", {}
    if chance < 0.92:
        return say(SYSTEM, rng), {}
    if chance < 0.97:
        facts = {"season": pick(SEASONS, rng)}
        return say("[All your tales are|Every tale is|Your tales are] set in {season}.", rng, facts), facts
    facts = {"hero_kind": pick(KINDS, rng)}
    return say("[Every tale is|All your tales are] about a {hero_kind}.", rng, facts), facts


def new_tale(demanded: Mapping[str, Row], rng: Random) -> Told:
    """A tale with the facts that are demanded."""
    while True:
        plot, facts = draw_facts(rng)
        if all(as_asked(plot, facts)[name] is row for name, row in demanded.items()):
            return Told(tell(plot, facts, rng), facts)


def dialogue(rng: Random) -> Dialogue:
    """One conversation: a greeting perhaps, one or two tales with questions, something else in between."""
    system, demanded = system_text(rng)
    turns: list[Turn] = []
    if rng.random() < 0.04:
        return Dialogue(system, tuple(talk(rng) if rng.random() < 0.5 else outside(rng) for _ in range(5)))
    if rng.random() < 0.3:
        turns.append(talk(rng))
    if rng.random() < 0.08:
        turns.append(untold(rng))
    if rng.random() < 0.1:
        turns.append(outside(rng))
    if rng.random() < 0.3:
        turns.append(echo(rng))
    if rng.random() < 0.25:
        turns.append(guests(rng))
    for number in range(1 if rng.random() < 0.6 else 2):
        told = new_tale(demanded, rng)
        asked = request(told, number > 0, rng)
        offered = turns and turns[-1].answer.endswith("tale?")
        if demanded or (offered and rng.random() < 0.5):
            asked = asked._replace(asked=typed(say(YES if offered else ASK + ".", rng), rng))
        turns.append(asked)
        for _ in range(3 + int(rng.random() * (5 if number == 0 else 2))):
            chance = rng.random()
            others = (0.06, talk), (0.12, outside), (0.2, echo), (0.26, guests)
            other = next((make for below, make in others if chance < below), None)
            turns.append(other(rng) if other else question(told, rng))
    if rng.random() < 0.15:
        turns.append(turn(*BYE, "talk", rng))
    return Dialogue(system, tuple(turns))


def dialogues(seed: int) -> Iterator[Dialogue]:
    """Conversations without end, the same ones for the same seed."""
    rng = Random(seed)
    while True:
        yield dialogue(rng)


def lines(count: int, seed: int = 0) -> Iterator[str]:
    """So many conversations, each a line of JSON as `llucid train --chat` reads them."""
    for _, made in zip(range(count), dialogues(seed), strict=False):
        yield json.dumps({"messages": made.messages()}, ensure_ascii=False) + "\n"


def main() -> None:
    """Writes them to standard output."""
    parser = argparse.ArgumentParser(description="Conversations about fables, one JSON a line.")
    parser.add_argument("count", type=int, nargs="?", default=1000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same conversations")
    options = parser.parse_args()
    sys.stdout.writelines(lines(options.count, options.seed))


if __name__ == "__main__":
    main()
