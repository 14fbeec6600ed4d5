"""The fables' entropy is exact, their grammar unambiguous, and their facts true."""

import hashlib
import math
import re
from collections.abc import Iterator
from itertools import combinations, islice, product
from random import Random

import pytest

from llucid.corpora import fables
from llucid.corpora.fables import PLOTS, Parts, Plot, Row, Slot, Tale

SAMPLE = list(islice(fables.tales(seed=1), 1000))

Derivations = list[tuple[str, dict[str, Row], float]]


def standard_errors(values: list[float], expected: float) -> float:
    """How many standard errors the mean of the values lies from what was expected."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return abs(mean - expected) / math.sqrt(variance / len(values))


@pytest.fixture(scope="module")
def parsed() -> list[Derivations]:
    return [fables.derivations(told.text) for told in SAMPLE]


# ------------------------------------------------------------------------------------------------------ the exact floor


def test_entropy_and_length_are_those_of_the_sample(parsed: list[Derivations]):
    assert standard_errors([-log_p for [(_, _, log_p)] in parsed], fables.entropy()) < 4
    assert standard_errors([len(told.text) + 2.0 for told in SAMPLE], fables.mean_length()) < 4
    assert fables.entropy_per_character() == fables.entropy() / fables.mean_length()
    assert fables.log_probability(SAMPLE[0].text) == parsed[0][0][2]


@pytest.mark.parametrize("name", PLOTS)
def test_entropy_and_length_of_each_plot(name: str):
    rng, plots = Random(2), {name: PLOTS[name]}
    told = [fables.tale(rng, plots).text for _ in range(150)]
    surprisals = [-log_p for text in told for _, _, log_p in fables.derivations(text, plots)]
    assert standard_errors(surprisals, fables.entropy(plots)) < 4
    assert standard_errors([len(text) + 2.0 for text in told], fables.mean_length(plots)) < 4


def spellings(parts: Parts, facts: dict[str, Row]) -> Iterator[tuple[str, float]]:
    """Every text of the parts with its probability, by brute force."""
    if not parts:
        yield "", 1.0
        return
    part, rest = parts[0], parts[1:]
    if isinstance(part, str):
        heads = [(part, 1.0)]
    elif isinstance(part, Slot):
        heads = list(spellings(facts[part.fact][part.word], facts))
    else:
        total = sum(part.weights)
        ways = zip(part.weights, part.options, strict=True)
        heads = [(text, w / total * p) for w, option in ways for text, p in spellings(option, facts)]
    for (head, p), (tail, q) in product(heads, list(spellings(rest, facts))):
        yield head + tail, p * q


def small_grammar() -> dict[str, Plot]:
    """A few thousand texts that use everything: weights, nesting, choices in rows, two facts from one table."""
    season = fables.table("name / mood\nspring / [2 wet|green]\nwinter / [cold|5 white|dark]\nautumn / grey")
    name = fables.table("name / he\nPip, Tilly / she\nBram, Old Moss / he")
    facts = {"season": season, "hero": name, "friend": name}
    questions: dict[str, str] = {}
    return {
        "met": fables.plot(
            facts,
            """One {season.mood} {season} {hero} [met|3 saw] {friend}. [{hero.he} ran|[2 sat|stood] still].

            [So {friend} [sang|3 left].|2 They [4 ate|slept].]""",
            questions,
        ),
        "alone": fables.plot({"hero": name, "season": season}, "{hero} [7 slept|woke].\n\nIt was {season}.", questions),
    }


def test_entropy_length_and_probability_by_brute_force():
    plots = small_grammar()
    probability: dict[str, float] = {}
    for plot in plots.values():
        rows = [dict(zip(plot.tables, choice, strict=True)) for choice in product(*plot.tables.values())]
        rows = [facts for facts in rows if facts.get("friend") is not facts["hero"]]
        for facts in rows:
            for text, p in spellings((*plot.body, "\n", *plot.moral), facts):
                assert text not in probability, f"two derivations of {text!r}"
                probability[text] = p / len(rows) / len(plots)
    assert len(probability) > 1000
    assert math.isclose(sum(probability.values()), 1)
    assert math.isclose(fables.entropy(plots), -sum(p * math.log(p) for p in probability.values()))
    assert math.isclose(fables.mean_length(plots), sum(p * (len(text) + 2) for text, p in probability.items()))
    for text, p in probability.items():
        [(_, _, log_p)] = fables.derivations(text, plots)
        assert math.isclose(log_p, math.log(p))


# ---------------------------------------------------------------------------------------------------------- unambiguity


def test_every_tale_has_one_derivation_and_it_is_the_right_one(parsed: list[Derivations]):
    for told, [(name, facts, _)] in zip(SAMPLE, parsed, strict=True):
        assert name == told.plot
        assert facts.keys() == PLOTS[name].tables.keys()
        assert facts["hero"]["name"] == (told.hero,)
        assert facts["friend_kind"]["name"] == (told.friend_kind,)


def test_no_text_spells_two_ways():
    """Proof of one half: all templates, with slots free to be any word of their table, as one automaton of letters.

    Every letter of every option is a state of its own, so two derivations of one text would be two paths side by side
    that spell the same, part somewhere, and both reach the end. No such pair of states exists.
    """
    letters, following = [""], [list[int]()]  # by state; 0 is the end of the tale

    def build(parts: Parts, tables: dict[str, fables.Table], after: list[int]) -> list[int]:
        for part in reversed(parts):
            if isinstance(part, str):
                for letter in reversed(part):
                    letters.append(letter)
                    following.append(after)
                    after = [len(letters) - 1]
            elif isinstance(part, Slot):
                spelled = [[text for text, _ in spellings(row[part.word], {})] for row in tables[part.fact]]
                assert all(len(set(texts)) == len(texts) for texts in spelled)
                after = [state for text in set().union(*spelled) for state in build((text,), tables, after)]
            else:
                after = [state for option in part.options for state in build(option, tables, after)]
        return after

    start = [s for p in PLOTS.values() for s in build((*p.body, "\n", *p.moral), p.tables, [0])]

    def pairs(states: list[int], others: list[int]) -> set[tuple[int, int]]:
        return {(a, b) if a < b else (b, a) for a in states for b in others if letters[a] == letters[b]}

    seen = pairs(start, start)
    before: dict[tuple[int, int], list[tuple[int, int]]] = {}
    agenda = list(seen)
    while agenda:
        a, b = pair = agenda.pop()
        for later in pairs(following[a], following[b]) if pair != (0, 0) else ():
            before.setdefault(later, []).append(pair)
            if later not in seen:
                seen.add(later)
                agenda.append(later)
    agenda, finishing = [(0, 0)], {(0, 0)}
    while agenda:
        for pair in before.get(agenda.pop(), []):
            if pair not in finishing:
                finishing.add(pair)
                agenda.append(pair)
    assert len(letters) > 10_000
    assert len(finishing) > 10_000
    assert [letters[a] for a, b in finishing if a != b] == []


def words_told(parts: Parts, fact: str) -> set[frozenset[str]]:
    """The sets of the fact's words that the spellings of the parts can tell."""
    told = {frozenset[str]()}
    for part in parts:
        if isinstance(part, Slot) and part.fact == fact:
            told = {words | {part.word} for words in told}
        elif isinstance(part, fables.Choice):
            told = {words | more for words in told for option in part.options for more in words_told(option, fact)}
    return told


@pytest.mark.parametrize("name", PLOTS)
def test_every_fact_can_be_told_from_the_words(name: str):
    """The other half of the proof: whatever the choices, what is told of a fact tells its row from every other row."""
    plot = PLOTS[name]
    for fact, rows in plot.tables.items():
        spelled = [{word: {text for text, _ in spellings(parts, {})} for word, parts in row.items()} for row in rows]
        for words in words_told(plot.body + plot.moral, fact):
            for one, other in combinations(spelled, 2):
                assert any(one[word].isdisjoint(other[word]) for word in words), (fact, words, one["name"])


# --------------------------------------------------------------------------------------------------------- the parser


def test_parser_refuses_what_the_grammar_cannot_write():
    rng = Random(4)
    for told in SAMPLE[:100]:
        at = int(rng.random() * len(told.text))
        for text in (told.text[:at], told.text + "\n\n", told.text[:at] + "z" + told.text[at + 1 :], f" {told.text}"):
            if text != told.text:
                with pytest.raises(ValueError, match="not a fable"):
                    fables.log_probability(text)


def test_parser_names_the_place():
    text = SAMPLE[0].text
    at = text.index(".") + 1
    with pytest.raises(ValueError, match="not a fable") as error:
        fables.log_probability(text[:at] + "#" + text[at:])
    assert f"{text[:at]!r} could be" in str(error.value)
    assert "'#" in str(error.value)


def test_parser_holds_the_facts_together():
    """A newcomer in the last sentence makes it no tale, though each sentence could stand in one."""
    told = next(t for t in SAMPLE if t.plot == "stranger" and t.moral.startswith("And"))
    stranger = "Ivy" if "Ivy" not in told.text else "Ned"
    with pytest.raises(ValueError, match="not a fable"):
        fables.log_probability(told.text.removesuffix(told.moral) + told.moral.replace(told.third, stranger))


# ------------------------------------------------------------------------------------------------------ what is written


def test_write_is_whole_tales_and_the_same_everywhere():
    text = fables.write(1000)
    assert text[:1000] == fables.write(5000)[:1000] != fables.write(1000, seed=1)[:1000]
    assert text.endswith("\n\n")
    assert len(text) >= 1000 > len("".join(re.findall(r".+\n.+\n\n", text)[:-1]))
    assert text == "".join(told.text + "\n\n" for told in islice(fables.tales(0), text.count("\n\n")))
    assert fables.write(0) == ""
    assert hashlib.sha256(text[:1000].encode()).hexdigest()[:16] == "e8a75a1b9c03e1f1"


def test_characters_words_and_lengths():
    texts = [told.text for told in SAMPLE]
    assert set("".join(texts)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ \n.,;'\"!?")
    assert not re.search(r"  | [.,!?|]|[.,!?]{2}| \n|\n | a [aeiou]| an [^aeiou]", "\n".join(texts))
    assert all("\n\n" not in text and text.count("\n") == 1 and text.count('"') % 2 == 0 for text in texts)
    assert 150 < min(map(len, texts)) < max(map(len, texts)) < 450
    assert len({word.lower() for text in texts for word in re.findall(r"[A-Za-z']+", text)}) < 500


def test_there_are_tens_of_thousands_of_sentences():
    """Of the sentences of 1,000 tales most occur once, though a corpus of a few thousand would repeat itself."""
    told = [sentence for told in SAMPLE for sentence in re.split(r"(?<=[.!?])\s+", told.text)]
    assert len(told) > 5000
    assert len(set(told)) > 0.7 * len(told)
    assert len({told.text for told in SAMPLE}) == len(SAMPLE)


def test_facts_are_in_the_text():
    for told in SAMPLE:
        assert told.text.endswith(f"\n{told.moral}")
        for fact in (told.place, told.corner, told.thing, told.hero, told.friend, told.third):
            assert fact in told.text
        assert f"{told.hero} the " in told.text
        assert re.search(rf"{told.friend} the \w+ {told.friend_kind}", told.text)
        assert len({told.hero, told.friend, told.third}) == 3
        assert len({told.hero_kind, told.friend_kind, told.third_kind}) == 3
        assert len(told.questions) == 3
        assert all("{" not in question + answer and answer in told.text for question, answer in told.questions.items())


def asked(told: Tale, question: str) -> str | None:
    return next((answer for asked, answer in told.questions.items() if asked.startswith(question)), None)


def test_who_did_what_is_answered_by_the_tale():
    for told in SAMPLE:
        if finder := asked(told, "Who found"):
            assert re.search(rf"{finder} (found|saw|felt) it {told.corner}\.", told.text)
            loser = asked(told, "Who lost")
            his = "his" if loser in ("Bram", "Moss", "Ned", "Rufus", "Wick", "Barnaby", "Dab", "Otto") else "her"
            lost = rf"{loser} the \w+ \w+ (lost|dropped|mislaid|could not find) {his} {told.thing}"
            assert re.search(lost, told.text)
        if judge := asked(told, "Who was the judge"):
            assert re.search(rf"{judge} the \w+ {told.third_kind}", told.text)
            assert f"{asked(told, 'Who let go')} let go" in told.text
