"""Conversations with a storyteller who knows only the world of the fables: the packaged chat model's training data.

    python -m llucid.corpora.fable_dialogues 1000 --seed 7 > talk.jsonl

A conversation is a list of turns. A *request* is answered with a tale that has the requested facts. A *question* is
answered from the latest tale. In an *echo* the user gives words to repeat. In *friends* the storyteller lists animals
with names, none of them twice. *Small talk* has fixed answers, and whatever lies outside the fables is declined. All
texts are templates in the language of `fables`, whose slots are the facts of the tale. Each turn has a *key*: the words
that a correct answer must contain, however it is phrased.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import NamedTuple, TypeVar

from llucid.corpora.fable_words import (
    BYE,
    CHARACTER_QUESTIONS,
    DECLINE,
    DECLINE_SUBJECT,
    DEEDS,
    ECHO,
    FRIENDS,
    MISSING_NAME,
    MISSING_THING,
    NAME_ANSWERS,
    NO_TALE_YET,
    OUT_OF_SCOPE,
    PLOT_QUESTIONS,
    PLOT_SUBJECTS,
    REPEAT,
    REQUESTS,
    REQUESTS_FOR_MORE,
    SHORT_REQUESTS,
    SMALL_TALK,
    SUBJECTS,
    SYSTEM_TEXTS,
    TALE_QUESTIONS,
    THING_QUESTIONS,
    TOPICS,
    UNKNOWN_SUBJECTS,
    YES,
    Exchange,
)
from llucid.corpora.fables import (
    KINDS,
    NAMES,
    SEASONS,
    THINGS,
    Row,
    Tale,
    draw_facts,
    expand,
    parse_template,
    write_tale,
)

T = TypeVar("T")


class Turn(NamedTuple):
    """A message of the user, and the answer."""

    message: str
    answer: str
    key: str
    """What a correct answer contains, in lower case; " & " separates parts whose order does not matter."""
    kind: str
    """tale, question, repeat, missing (the question cannot be answered), echo, friends, small talk or out of scope."""


class Dialogue(NamedTuple):
    """A system text, which may be empty, and turns."""

    system: str
    turns: tuple[Turn, ...]

    def messages(self) -> list[dict[str, str]]:
        """The dialogue as messages `{"role": …, "content": …}`."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        pairs = [(("user", turn.message), ("assistant", turn.answer)) for turn in self.turns]
        return system + [{"role": role, "content": content} for pair in pairs for role, content in pair]


# ----------------------------------------------------------------------------------------------------------- generating


def choose(options: Sequence[T], rng: Random) -> T:
    """One of the options, equally likely. All randomness in this module is from `rng.random()`."""
    return options[int(rng.random() * len(options))]


def choose_weighted(options: Sequence[tuple[int, T]], rng: Random) -> T:
    """One of the (weight, option), with a probability proportional to its weight."""
    at = rng.random() * sum(weight for weight, _ in options)
    for weight, option in options:
        at -= weight
        if at < 0:
            return option
    return options[-1][1]


def expand_sentence(template: str, rng: Random, facts: Mapping[str, Row] | None = None) -> str:
    """The template as a sentence: "a" becomes "an" before a vowel, and the first letter is a capital."""
    text = expand(parse_template(f"[{template}]"), facts or {}, rng)
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return text[:1].upper() + text[1:]


def type_casually(text: str, rng: Random) -> str:
    """Imitates how people type: sometimes without the final punctuation, sometimes without capitals."""
    if rng.random() < 0.25:
        text = text.rstrip("?.!")
    return text.lower() if rng.random() < 0.15 else text


def make_turn(
    message: str, answer: str, key: str, kind: str, rng: Random, facts: Mapping[str, Row] | None = None
) -> Turn:
    """A turn from templates."""
    expanded_key = expand_sentence(key, rng, facts).lower() if key else ""
    expanded = type_casually(expand_sentence(message, rng, facts), rng)
    return Turn(expanded, expand_sentence(answer, rng, facts), expanded_key, kind)


class Story(NamedTuple):
    """A tale, and the rows of the tables that are its facts."""

    tale: Tale
    facts: Mapping[str, Row]


def request_facts(plot: str, facts: Mapping[str, Row]) -> Mapping[str, Row]:
    """The facts of a tale as a request names them: its hero is the character who appears first in the tale."""
    if plot != "stranger":
        return facts
    swapped = {"hero": "friend", "friend": "hero", "hero_kind": "friend_kind", "friend_kind": "hero_kind"}
    return {fact: facts[swapped.get(fact, fact)] for fact in facts}


def request(story: Story, more: bool, rng: Random) -> Turn:
    """A request for which the tale is a correct answer, and the tale. `more`: it may ask for another one."""
    plot = story.tale.plot
    facts = request_facts(plot, story.facts)

    def choose_possible(options: Sequence[tuple[int, str]]) -> str:
        """One of the options whose slots are facts of the tale."""
        possible = [option for option in options if all(slot in facts for slot in re.findall(r"\{(\w+)", option[1]))]
        return choose_weighted(possible, rng)

    chance = rng.random()
    if chance < 0.1:
        message = f"{REQUESTS} about [{PLOT_SUBJECTS[plot]}]"
    elif chance < 0.25:
        message = choose_possible(SHORT_REQUESTS)
    elif more and rng.random() < 0.6:
        message = REQUESTS_FOR_MORE + choose_possible(SUBJECTS)
    else:
        message = REQUESTS + choose_possible(SUBJECTS)
    message = expand_sentence(message + "[2 .||[|?]]", rng, facts)
    return Turn(type_casually(message, rng), story.tale.text, "", "tale")


def questions_of(tale: Tale, plot_only: bool) -> list[Exchange]:
    """Questions about the tale: those of its plot only, or those that fit every plot."""
    if plot_only:
        rows = PLOT_QUESTIONS[tale.plot]
    else:
        deeds = DEEDS[tale.plot]
        about_characters = [
            row._replace(answer=row.answer.replace("<deed>", deeds[role]))
            for role in deeds
            for row in character_questions(role, list(deeds)[list(deeds).index(role) - 1])
        ]
        rows = [*TALE_QUESTIONS, *(THING_QUESTIONS if tale.plot != "patience" else ()), *about_characters]
    roles = list(DEEDS[tale.plot])
    *cast, last = [f"{{{role}}} the {{{role}_kind}}" for role in roles]
    marks = {
        "<everyone>": f"{', '.join(cast)} and {last}",
        "<names>": " & ".join(f"{{{role}}}" for role in roles),
        "<moral>": tale.moral,
        **{f"<{role}>": NAME_ANSWERS.replace("{who", f"{{{role}") for role in roles},
    }
    found: list[Exchange] = []
    for row in rows:
        for mark, replacement in marks.items():
            row = row._replace(answer=row.answer.replace(mark, replacement), key=row.key.replace(mark, replacement))
        found.append(row)
    return found


def character_questions(role: str, other: str) -> list[Exchange]:
    """Questions about the character in this role; some of them mention `other`, too."""
    return [
        Exchange(row.weight, *(cell.replace("{who", f"{{{role}").replace("{other", f"{{{other}") for cell in row[1:]))
        for row in CHARACTER_QUESTIONS
    ]


def question(story: Story, rng: Random) -> Turn:
    """A question about the tale, with its answer."""
    tale, facts = story
    chance = rng.random()
    if chance < 0.12:
        return Turn(type_casually(expand_sentence(REPEAT, rng), rng), tale.text, tale.text.lower(), "repeat")
    if chance < 0.2:
        names = [expand(row["name"], {}, rng) for row in (NAMES if rng.random() < 0.5 else THINGS)]
        missing = choose([name for name in names if not re.search(rf"\b{name}\b", tale.text)], rng)
        message = MISSING_NAME if missing[0].isupper() else MISSING_THING
        answer = f"There is no {missing} in this tale."
        return make_turn(message.replace("{missing}", missing), answer, f"no {missing}", "missing", rng)
    rows = questions_of(tale, plot_only=chance < 0.65)
    _, message, answer, key = choose_weighted([(row.weight, row) for row in rows], rng)
    if answer == tale.moral:
        message = type_casually(expand_sentence(message, rng, facts), rng)
        return Turn(message, tale.moral, tale.moral.lower(), "question")
    return make_turn(message, answer, key, "question", rng, facts)


def echo(rng: Random) -> Turn:
    """Words to repeat, in random order, so that the model can only copy them.

    A model that learns this learns induction heads (Olsson et al. 2022), which also copy the facts of a tale.
    """
    words = re.findall(r"\w+", new_story({}, rng).tale.text + out_of_scope(rng).message)
    repeated = " ".join(choose(words, rng) for _ in range(2 + int(rng.random() * 10)))
    return Turn(f"{type_casually(expand_sentence(ECHO, rng), rng)}: {repeated}", repeated, repeated.lower(), "echo")


def friends(rng: Random) -> Turn:
    """A list of animals in random order, no name and no kind twice.

    The characters of a tale also differ in both, but they are only two or three: too few to learn that from tales only.
    """
    count = 3 + int(rng.random() * 6)
    names, kinds = (sorted(range(len(rows)), key=lambda _: rng.random())[:count] for rows in (NAMES, KINDS))
    animals = [
        f"{expand(NAMES[name]['name'], {}, rng)} the {expand(KINDS[kind]['name'], {}, rng)}"
        for name, kind in zip(names, kinds, strict=True)
    ]
    answer = f"{', '.join(animals[:-1])} and {animals[-1]}."
    return Turn(type_casually(expand_sentence(FRIENDS, rng), rng), answer, "", "friends")


def small_talk(rng: Random) -> Turn:
    """A greeting, thanks, a question about the storyteller itself, and so on."""
    _, message, answer, key = choose_weighted([(row.weight, row) for row in SMALL_TALK], rng)
    return make_turn(message, answer, key, "small talk", rng)


def out_of_scope(rng: Random) -> Turn:
    """Something that the storyteller cannot know or do, which it declines."""
    if rng.random() < 0.3:
        message = f"{REQUESTS} [2 about|with|of] {UNKNOWN_SUBJECTS}[|.|?]"
        return make_turn(message, DECLINE_SUBJECT, "ask me for", "out of scope", rng)
    return make_turn(choose(OUT_OF_SCOPE, rng).replace("{topic}", TOPICS), DECLINE, "fables", "out of scope", rng)


def question_too_early(rng: Random) -> Turn:
    """A question about a tale when none has been told yet."""
    name, facts = draw_facts(rng)
    message = choose_weighted([(row.weight, row.message) for row in PLOT_QUESTIONS[name]], rng)
    return make_turn(message, NO_TALE_YET, "not told", "missing", rng, facts)


def system_text(rng: Random) -> tuple[str, dict[str, Row]]:
    """A system text, which may be empty, and the facts that it requires of every tale."""
    chance = rng.random()
    if chance < 0.86:
        return "", {}
    if chance < 0.92:
        return expand_sentence(SYSTEM_TEXTS, rng), {}
    if chance < 0.97:
        facts = {"season": choose(SEASONS, rng)}
        return expand_sentence("[All your tales are|Every tale is|Your tales are] set in {season}.", rng, facts), facts
    facts = {"hero_kind": choose(KINDS, rng)}
    return expand_sentence("[Every tale is|All your tales are] about a {hero_kind}.", rng, facts), facts


def new_story(required: Mapping[str, Row], rng: Random) -> Story:
    """A random tale that has the required facts."""
    while True:
        plot, facts = draw_facts(rng)
        if all(request_facts(plot, facts)[name] is row for name, row in required.items()):
            return Story(write_tale(plot, facts, rng), facts)


def dialogue(rng: Random) -> Dialogue:
    """One conversation: one or two tales with questions, mixed with small talk and turns of the other kinds."""
    system, required = system_text(rng)
    turns: list[Turn] = []
    if rng.random() < 0.04:
        return Dialogue(system, tuple(small_talk(rng) if rng.random() < 0.5 else out_of_scope(rng) for _ in range(5)))
    if rng.random() < 0.3:
        turns.append(small_talk(rng))
    if rng.random() < 0.08:
        turns.append(question_too_early(rng))
    if rng.random() < 0.1:
        turns.append(out_of_scope(rng))
    if rng.random() < 0.3:
        turns.append(echo(rng))
    if rng.random() < 0.25:
        turns.append(friends(rng))
    for number in range(1 if rng.random() < 0.6 else 2):
        story = new_story(required, rng)
        made = request(story, number > 0, rng)
        offered = turns and turns[-1].answer.endswith("tale?")
        if required or (offered and rng.random() < 0.5):
            made = made._replace(message=type_casually(expand_sentence(YES if offered else REQUESTS + ".", rng), rng))
        turns.append(made)
        for _ in range(3 + int(rng.random() * (5 if number == 0 else 2))):
            chance = rng.random()
            others = (0.06, small_talk), (0.12, out_of_scope), (0.2, echo), (0.26, friends)
            other = next((make for below, make in others if chance < below), None)
            turns.append(other(rng) if other else question(story, rng))
    if rng.random() < 0.15:
        turns.append(make_turn(*BYE, "small talk", rng))
    return Dialogue(system, tuple(turns))


def dialogues(seed: int) -> Iterator[Dialogue]:
    """Endless conversations; the same seed gives the same conversations."""
    rng = Random(seed)
    while True:
        yield dialogue(rng)


def lines(count: int, seed: int = 0) -> Iterator[str]:
    """`count` conversations, each as a line of JSON that `llucid train --chat` reads."""
    for _, made in zip(range(count), dialogues(seed), strict=False):
        yield json.dumps({"messages": made.messages()}, ensure_ascii=False) + "\n"


def main() -> None:
    """Prints conversations to standard output."""
    parser = argparse.ArgumentParser(description="Prints conversations about fables, one JSON object per line.")
    parser.add_argument("count", type=int, nargs="?", default=1000, help="number of conversations")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same conversations")
    options = parser.parse_args()
    sys.stdout.writelines(lines(options.count, options.seed))


if __name__ == "__main__":
    main()
