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
from functools import cache
from random import Random
from typing import Any, NamedTuple, TypeVar

from llucid.corpora.fable_words import Exchange, load, replace_all
from llucid.corpora.fables import (
    KINDS,
    LOOKS,
    NAMES,
    PLACES,
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

texts = load()


class Turn(NamedTuple):
    """A message of the user, and the answer."""

    message: str
    answer: str
    key: str
    """What a correct answer contains, in lower case; " & " separates parts whose order does not matter."""
    kind: str
    """tale, question, unsaid (the tale does not answer it), missing (it asks about what is not there), repeat, echo,
    friends, small talk, nonsense or out of scope."""


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


def ask(template: str, rng: Random, facts: Mapping[str, Row] | None = None) -> str:
    """A question from its template, as people type it: sometimes with some words before or behind it."""
    text = expand_sentence(template, rng, facts)
    if rng.random() < 0.12 and re.match("(Who|What|Where|When|Which|How|Why|Is|Was|Did|Does|Are|Can|Do) ", text):
        text = f"{choose(texts.lead_ins, rng)} {text[0].lower()}{text[1:]}"
    if rng.random() < 0.1 and text.endswith("?"):
        text = f"{text[:-1]}{choose(texts.lead_outs, rng)}?"
    return type_casually(text, rng)


def make_turn(
    message: str, answer: str, key: str, kind: str, rng: Random, facts: Mapping[str, Row] | None = None
) -> Turn:
    """A turn from templates."""
    expanded_key = expand_sentence(key, rng, facts).lower() if key else ""
    return Turn(ask(message, rng, facts), expand_sentence(answer, rng, facts), expanded_key, kind)


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
        message = f"{texts.requests} about [{texts.plot_subjects[plot]}]"
    elif chance < 0.25:
        message = choose_possible(texts.short_requests)
    elif more and rng.random() < 0.6:
        message = texts.requests_for_more + choose_possible(texts.subjects)
    else:
        message = texts.requests + choose_possible(texts.subjects)
    message = expand_sentence(message + "[2 .||[|?]]", rng, facts)
    return Turn(type_casually(message, rng), story.tale.text, "", "tale")


def name_of(row: Row, column: str = "name") -> str:
    """A word of a row."""
    return expand(row[column], {}, Random(0))


def questions_of(plot: str, about: str) -> Sequence[Exchange]:
    """Questions about a tale of this plot: those of the "plot" only, about the "characters", or about the "tale"."""
    if about == "plot":
        return texts.plot_questions[plot]
    if about == "tale":
        return [*texts.tale_questions, *(texts.thing_questions if plot != "patience" else ())]
    roles = list(texts.deeds[plot])
    return [row for role in roles for row in character_questions(plot, role, roles[roles.index(role) - 1])]


@cache
def character_questions(plot: str, role: str, other: str) -> list[Exchange]:
    """Questions about the character in this role; some of them mention `other`, too."""
    deed = texts.deeds[plot][role]
    marks = {"<asked>": deed.asked, "<title>": deed.title, "<start>": texts.start[plot]}
    marks |= {"<deed>": deed.past, "<do>": deed.infinitive}
    marks |= {"{who": f"{{{role}", "{other": f"{{{other}"}
    besides = [f"{{{one}}} the {{{one}_kind}}" for one in texts.deeds[plot] if one != other]
    marks |= {"<besides>": " and ".join(besides), "<besides names>": " & ".join(each.split()[0] for each in besides)}
    rows = [Exchange(row.weight, *(replace_all(cell, marks) for cell in row[1:])) for row in texts.character_questions]
    possible = [bool(deed.infinitive) or "<do>" not in row.message for row in texts.character_questions]
    return [row for row, fits in zip(rows, possible, strict=True) if fits]


def fill(row: Exchange, tale: Tale, rng: Random) -> Exchange:
    """The exchange with its marks replaced by templates about this tale."""
    roles = list(texts.deeds[tale.plot])
    *cast, last = [f"{{{role}}} the {{{role}_kind}}" for role in roles]
    events = texts.events[tale.plot]
    at = int(rng.random() * (len(events) - 1))
    fate, key = texts.fates[tale.plot].split(" / ")
    marks = {
        "<there>": texts.there[tale.plot],
        "<thing clause>": texts.thing_clause.get(tale.plot, ""),
        "<first>": events[0],
        "<last>": events[-1],
        "<event>": events[at],
        "<following>": events[at + 1],
        "<everyone>": f"{', '.join(cast)} and {last}",
        "<names>": " & ".join(f"{{{role}}}" for role in roles),
        "<count>": "two" if len(roles) == 2 else "three",
        "<moral>": tale.moral,
        **{f"<{role}>": texts.name_answers.replace("{who", f"{{{role}") for role in roles},
    }
    if row.answer == "<fate>":
        row = row._replace(answer=fate, key=key)
    by_kind = {f"{{{role}}}": f"the {{{role}_kind}}" for role in roles if row in texts.plot_questions[tale.plot]}
    message = replace_all(replace_all(row.message, marks), by_kind if rng.random() < 0.25 else {})
    return Exchange(row.weight, message, *(replace_all(cell, marks) for cell in row[2:]))


def with_absent(story: Story, rng: Random) -> Mapping[str, Row]:
    """The facts of the tale, and rows that are not in it: `absent_season` and so on."""
    tables = {"season": SEASONS, "place": PLACES, "look": LOOKS, "kind": KINDS}
    absent = {
        f"absent_{name}": choose([row for row in rows if not is_in(name_of(row), story.tale)], rng)
        for name, rows in tables.items()
    }
    return {**story.facts, **absent}


def is_in(word: str, tale: Tale) -> bool:
    """Whether the text of the tale has this word."""
    return re.search(rf"\b{word}\b", tale.text, re.IGNORECASE) is not None


def question(story: Story, rng: Random) -> Turn:
    """A question about the tale, with its answer."""
    tale, facts = story
    chance = rng.random()
    if chance < 0.07:
        return Turn(ask(texts.repeat, rng), tale.text, tale.text.lower(), "repeat")
    if chance < 0.19:
        return absent(story, rng)
    if chance < 0.31:
        return unsaid(story, rng)
    if chance < 0.41:
        return detail(story, rng)
    if chance < 0.43 and tale.plot != "patience":
        coloured = facts["look"] in LOOKS[:8]
        answer, key = ("It was {look}.", "{look}") if coloured else (texts.unsaid, "does not say")
        message = texts.colour.replace("<thing clause>", texts.thing_clause[tale.plot])
        return make_turn(message, answer, key, "question", rng, facts)
    rows = questions_of(tale.plot, choose_weighted(((18, "plot"), (24, "characters"), (15, "tale")), rng))
    row = choose_weighted([(row.weight, row) for row in rows], rng)
    _, message, answer, key = fill(row, tale, rng)
    if "{absent" in message:
        facts = with_absent(story, rng)
    if answer == tale.moral:
        return Turn(ask(message, rng, facts), tale.moral, tale.moral.lower(), "question")
    return make_turn(message, answer, key, "question", rng, facts)


def characters(story: Story, rng: Random) -> list[str]:
    """How each character can be called: by its name or its kind."""
    return [f"{{{role}}}" if rng.random() < 0.5 else f"the {{{role}_kind}}" for role in texts.deeds[story.tale.plot]]


def absent(story: Story, rng: Random) -> Turn:
    """A question about somebody or something that is not in the tale."""
    tale, facts = story
    while True:
        sort = choose_weighted(((5, "kind"), (4, "name"), (5, "thing"), (5, "outside"), (2, "person"), (2, "new")), rng)
        tables = {"kind": KINDS, "name": NAMES, "thing": THINGS}
        if sort in tables:
            word = name_of(choose(tables[sort], rng))
        elif sort == "new":
            word = invented_word(rng)
            word = word.title() if rng.random() < 0.4 else word
        else:
            word = expand_sentence(texts.outside_nouns if sort == "outside" else texts.outside_names, rng)
            word = word.lower() if sort == "outside" else word
        if not is_in(word, tale):
            break
    x = word if word[0].isupper() else f"the {word}"
    alive = sort in ("kind", "name", "person") or (sort in ("outside", "new") and rng.random() < 0.5)
    chance = rng.random()
    if chance < 0.15 and word.islower():
        answer = "No, " + texts.not_there[0].lower() + texts.not_there[1:]
        return make_turn(
            texts.presence.replace("<absent>", word), answer.replace("<absent>", word), f"no {word}", "missing", rng
        )
    if chance < 0.3:
        message = choose(texts.asked_of_both, rng).replace("{other}", choose(characters(story, rng), rng))
    elif alive:
        message = choose(texts.asked_of_absent_animal if rng.random() < 0.6 else texts.unsaid_about_animal, rng)
    else:
        message = choose(texts.asked_of_absent_thing if rng.random() < 0.7 else texts.unsaid_about_thing, rng)
    answer = texts.not_there.replace("<absent>", word)
    return make_turn(message.replace("{x}", x), answer, f"no {word.lower()}", "missing", rng, facts)


def unsaid(story: Story, rng: Random) -> Turn:
    """A question about what is in the tale, which the tale does not answer."""
    tale, facts = story
    chance = rng.random()
    if chance < 0.55:
        message = choose(texts.unsaid_about_animal, rng).replace("{x}", choose(characters(story, rng), rng))
    elif chance < 0.75:
        thing = {"patience": "{seed}", "stranger": choose(("{thing}", "{food}"), rng)}.get(tale.plot, "{thing}")
        other = f"Who {texts.other_deeds[tale.plot]} {{x}}?"
        message = (other if rng.random() < 0.3 else choose(texts.unsaid_about_thing, rng)).replace(
            "{x}", f"the {thing}"
        )
    else:
        message = choose(texts.unsaid_about_tale, rng)
    return make_turn(message, texts.unsaid, "does not say", "unsaid", rng, facts)


QUOTE = re.compile(
    r'"([^"]+)"(?: (?:said|whispered|sighed|murmured|muttered|hummed|cried|called|sniffed|laughed) ([A-Z]\w+))?'
)
TASK = re.compile(r"([A-Z]\w+) the \w+ \w+ stopped ([^.]+?)(?: and came to \w+)?\.")


def detail(story: Story, rng: Random) -> Turn:
    """A question about the wording of the tale, beyond its facts."""
    tale, facts = story
    role = choose(list(texts.deeds[tale.plot]), rng)
    who, kind = name_of(facts[role]), name_of(facts[f"{role}_kind"])
    x = who if rng.random() < 0.6 else f"the {kind}"
    text, sort = tale.text, choose(("trait", "trait", "trait", "quote", "quote", "task", "plot", "plot"), rng)
    if sort == "trait":
        trait = re.findall(rf"{who} the (\w+) {kind}", text)[0]
        _, message, answer, key = choose_weighted([(row.weight, row) for row in texts.trait_questions], rng)
        other = choose([each for each in texts.traits if not is_in(each, tale)], rng)
        marks = {"{x}": x, "{who}": who, "{kind}": kind, "{trait}": trait, "{other}": other}
        message, answer, key = (replace_all(cell, marks) for cell in (message, answer, key))
        return make_turn(message, answer, key, "question", rng, facts)
    if sort == "quote":
        quotes: list[tuple[str, str]] = QUOTE.findall(text)
        own = [words for words, speaker in quotes if speaker == who]
        if own and rng.random() < 0.3:
            words = re.sub("[,.]$", "", choose(own, rng))
            answer = texts.name_answers.replace("{who}", who).replace("{who_kind}", kind)
            return make_turn(f'Who said "{words}"?', answer, who, "question", rng)
        if own or all(speaker for _, speaker in quotes):
            words = " ".join(re.sub(",$", ".", each) for each in own)
            answer, key = (f'{who} said: "{words}"', words) if own else (f"{who} says nothing in this tale.", "nothing")
            return Turn(ask(texts.said.replace("{x}", x), rng), answer, key.lower(), "question")
    if sort == "task" and tale.plot != "patience" and f"By came {who}" not in text:
        task = dict(TASK.findall(text)).get(who)
        answer, key = (f"{who} was {task}.", task) if task else (texts.unsaid, "does not say")
        return Turn(ask(texts.doing.replace("{x}", x), rng), answer, key, "question")
    for message, pattern, answer in choose_order(texts.details, rng):
        if found := re.search(pattern, text):
            key = found[1].lower() if "<found>" in answer else answer.removesuffix(".")
            return make_turn(message, answer.replace("<found>", found[1]), key, "question", rng, facts)
    return unsaid(story, rng)


def choose_order(options: Sequence[T], rng: Random) -> list[T]:
    """The options in random order."""
    return sorted(options, key=lambda _: rng.random())


def follow_up(story: Story, rng: Random) -> list[Turn]:
    """Questions of which the later ones are understood only after the first."""
    tale, facts = story
    events = texts.events[tale.plot]
    if rng.random() < 0.5:
        turns = [make_turn(texts.ask_first, f"{events[0]}.", events[0], "question", rng, facts)]
        turns += [make_turn(texts.ask_next, f"{event}.", event, "question", rng, facts) for event in events[1:]]
        if rng.random() < 0.4:
            turns.append(make_turn(texts.ask_next, "That is the end of the tale.", "end of the tale", "question", rng))
        return turns
    role = choose(list(texts.deeds[tale.plot]), rng)
    who, deed = f"{{{role}}}", texts.deeds[tale.plot][role].past
    message, answer, key = choose(
        (
            (texts.pronoun_kind, f"[A {{{role}_kind}}|{who} is a {{{role}_kind}}].", f"{{{role}_kind}}"),
            (texts.pronoun_deed, f"{who} {deed}.", deed),
            (
                choose(texts.unsaid_about_animal[:-3], rng).replace("{x}'s", "<his>").replace("{x}", "<he>"),
                texts.unsaid,
                "does not say",
            ),
        ),
        rng,
    )
    message = message.replace("<he>", f"{{{role}.he}}").replace("<his>", f"{{{role}.his}}")
    first = make_turn(
        f"Who {texts.deeds[tale.plot][role].asked}?",
        texts.name_answers.replace("{who", f"{{{role}"),
        who,
        "question",
        rng,
        facts,
    )
    return [first, make_turn(message, answer, key, "unsaid" if answer == texts.unsaid else "question", rng, facts)]


def invented_word(rng: Random) -> str:
    """A word that means nothing."""
    syllables = 1 + int(rng.random() * 3)
    word = "".join(choose(texts.consonants, rng) + choose("aeiou", rng) for _ in range(syllables))
    return word + choose(texts.consonants, rng)


def nonsense(rng: Random) -> Turn:
    """Letters, words and signs without a meaning."""
    letters = "".join(choose("abcdefghijklmnopqrstuvwxyz" if rng.random() < 0.5 else "asdfjkl", rng) for _ in range(4))
    words = [
        choose((texts.outside_nouns, texts.outside_adjectives, texts.number, texts.outside_verbs), rng)
        for _ in range(2 + int(rng.random() * 4))
    ]
    message = choose(
        (
            letters * (1 + int(rng.random() * 3)),
            f"{letters} {letters[::-1]}{invented_word(rng)}",
            " ".join(invented_word(rng) for _ in range(1 + int(rng.random() * 5))) + choose((".", "?", "!", ""), rng),
            " ".join(expand_sentence(word, rng).lower() for word in words),
            choose(
                ("???", "...", "?", "!!!", "x", "1 2 3", ":)", "la la la", "hm hm hm", "...?", "abc", "blah blah blah"),
                rng,
            ),
            letters[0] * (2 + int(rng.random() * 7)),
            f"What is [a|the] {invented_word(rng)}?|Do you {invented_word(rng)}?|The {invented_word(rng)} is great.",
        ),
        rng,
    )
    return make_turn(message, texts.nonsense, "fables", "nonsense", rng)


def echo(rng: Random) -> Turn:
    """Words to repeat, in random order, so that the model can only copy them.

    A model that learns this learns induction heads (Olsson et al. 2022), which also copy the facts of a tale.
    """
    words = re.findall(r"\w+", new_story({}, rng).tale.text + out_of_scope(rng).message)
    repeated = " ".join(choose(words, rng) for _ in range(2 + int(rng.random() * 10)))
    return Turn(
        f"{type_casually(expand_sentence(texts.echo, rng), rng)}: {repeated}", repeated, repeated.lower(), "echo"
    )


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
    return Turn(type_casually(expand_sentence(texts.friends, rng), rng), answer, "", "friends")


def small_talk(rng: Random) -> Turn:
    """A greeting, thanks, a question about the storyteller itself, and so on."""
    row = choose_weighted([(row.weight, row) for row in texts.small_talk], rng)
    name = choose(
        (expand_sentence(texts.outside_names, rng), name_of(choose(NAMES, rng)), invented_word(rng).title()), rng
    )
    message, answer, key = (cell.replace("{name}", name) for cell in row[1:])
    return make_turn(message, answer, key, "small talk", rng)


def out_of_scope(rng: Random) -> Turn:
    """Something that the storyteller cannot know or do, which it declines."""
    chance = rng.random()
    if chance < 0.25:
        requests = (
            f"{texts.requests} [2 about|with|of] {texts.unknown_subjects}[|.|?]"
            if rng.random() < 0.8
            else f"a {texts.outside_nouns}" + choose(("", " in spring", " in winter"), rng)
        )
        return make_turn(requests, texts.decline_subject, "ask me for", "out of scope", rng)
    if chance < 0.4:
        return nonsense(rng)
    marks = {
        "{topic}": texts.topics,
        "{noun}": texts.outside_nouns if rng.random() < 0.85 else invented_word(rng),
        "{verb}": texts.outside_verbs if rng.random() < 0.85 else invented_word(rng),
        "{adjective}": texts.outside_adjectives,
        "{person}": texts.outside_names,
    }
    return make_turn(replace_all(choose(texts.out_of_scope, rng), marks), texts.decline, "fables", "out of scope", rng)


def question_too_early(rng: Random) -> Turn:
    """A question about a tale when none has been told yet."""
    story = new_story({}, rng)
    return question(story, rng)._replace(answer=expand_sentence(texts.no_tale_yet, rng), key="not told", kind="missing")


def system_text(rng: Random) -> tuple[str, dict[str, Row]]:
    """A system text, which may be empty, and the facts that it requires of every tale."""
    chance = rng.random()
    if chance < 0.86:
        return "", {}
    if chance < 0.92:
        return expand_sentence(texts.system_texts, rng), {}
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
    if rng.random() < 0.06:
        return Dialogue(system, tuple(small_talk(rng) if rng.random() < 0.5 else out_of_scope(rng) for _ in range(7)))
    if rng.random() < 0.35:
        turns.append(small_talk(rng))
    if rng.random() < 0.05:
        turns.append(question_too_early(rng))
    if rng.random() < 0.18:
        turns.append(out_of_scope(rng))
    if rng.random() < 0.2:
        turns.append(echo(rng))
    if rng.random() < 0.2:
        turns.append(friends(rng))
    for number in range(1 if rng.random() < 0.75 else 2):
        story = new_story(required, rng)
        made = request(story, number > 0, rng)
        offered = turns and turns[-1].answer.endswith("tale?")
        if required or (offered and rng.random() < 0.5):
            made = made._replace(
                message=type_casually(expand_sentence(texts.yes if offered else texts.requests + ".", rng), rng)
            )
        turns.append(made)
        for _ in range(5 + int(rng.random() * (7 if number == 0 else 2))):
            chance = rng.random()
            others = (0.08, small_talk), (0.16, out_of_scope), (0.21, echo), (0.25, friends)
            other = next((make for below, make in others if chance < below), None)
            if other:
                turns.append(other(rng))
            else:
                turns += follow_up(story, rng) if chance > 0.92 else [question(story, rng)]
    if rng.random() < 0.15:
        message, answer, key = texts.bye
        turns.append(make_turn(message, answer, key, "small talk", rng))
    return Dialogue(system, tuple(turns))


def dialogues(seed: int) -> Iterator[Dialogue]:
    """Endless conversations; the same seed gives the same conversations."""
    rng = Random(seed)
    while True:
        yield dialogue(rng)


def lines(count: int, seed: int = 0) -> Iterator[str]:
    """`count` conversations, each as a line of JSON that `llucid train --chat` reads.

    Tales are long, and soon learned. So every other conversation has them only to be read: their weight is 0, and what
    is learned there is to answer.
    """
    for number, made in zip(range(count), dialogues(seed), strict=False):
        messages: list[dict[str, Any]] = [*made.messages()]
        if number % 2:
            for turn, answer in zip(made.turns, messages[1 + bool(made.system) :: 2], strict=True):
                if turn.kind == "tale":
                    answer["weight"] = 0
        yield json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


def main() -> None:
    """Prints conversations to standard output."""
    parser = argparse.ArgumentParser(description="Prints conversations about fables, one JSON object per line.")
    parser.add_argument("count", type=int, nargs="?", default=1000, help="number of conversations")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same conversations")
    options = parser.parse_args()
    sys.stdout.writelines(lines(options.count, options.seed))


if __name__ == "__main__":
    main()
