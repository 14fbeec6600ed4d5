"""The fables' entropy is exact, their grammar is unambiguous, and their facts are true."""

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
    """How many standard errors lie between the mean of the values and the expected mean."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return abs(mean - expected) / math.sqrt(variance / len(values))


@pytest.fixture(scope="module")
def parsed() -> list[Derivations]:
    return [fables.derivations(tale.text) for tale in SAMPLE]


# ------------------------------------------------------------------------------------------------------------ entropy


def test_entropy_and_length_equal_those_of_a_sample(parsed: list[Derivations]):
    assert standard_errors([-log_p for [(_, _, log_p)] in parsed], fables.entropy()) < 4
    assert standard_errors([len(tale.text) + 2.0 for tale in SAMPLE], fables.mean_length()) < 4
    assert fables.entropy_per_character() == fables.entropy() / fables.mean_length()
    assert fables.log_probability(SAMPLE[0].text) == parsed[0][0][2]


@pytest.mark.parametrize("name", PLOTS)
def test_entropy_and_length_of_each_plot(name: str):
    rng, plots = Random(2), {name: PLOTS[name]}
    texts = [fables.tale(rng, plots).text for _ in range(150)]
    surprisals = [-log_p for text in texts for _, _, log_p in fables.derivations(text, plots)]
    assert standard_errors(surprisals, fables.entropy(plots)) < 4
    assert standard_errors([len(text) + 2.0 for text in texts], fables.mean_length(plots)) < 4


def expansions(parts: Parts, facts: dict[str, Row]) -> Iterator[tuple[str, float]]:
    """Every expansion of the parts with its probability, by brute force."""
    if not parts:
        yield "", 1.0
        return
    part, rest = parts[0], parts[1:]
    if isinstance(part, str):
        heads = [(part, 1.0)]
    elif isinstance(part, Slot):
        heads = list(expansions(facts[part.fact][part.word], facts))
    else:
        total = sum(part.weights)
        ways = zip(part.weights, part.options, strict=True)
        heads = [(text, w / total * p) for w, option in ways for text, p in expansions(option, facts)]
    for (head, p), (tail, q) in product(heads, list(expansions(rest, facts))):
        yield head + tail, p * q


def small_grammar() -> dict[str, Plot]:
    """A grammar of a few thousand texts that uses weights, nesting, choices in rows, and two facts from one table."""
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
        "slept": fables.plot({"hero": name, "season": season}, "{hero} [7 slept|woke].\n\nIt was {season}.", questions),
    }


def test_entropy_length_and_probability_by_brute_force():
    plots = small_grammar()
    probability: dict[str, float] = {}
    for plot in plots.values():
        rows = [dict(zip(plot.tables, choice, strict=True)) for choice in product(*plot.tables.values())]
        rows = [facts for facts in rows if facts.get("friend") is not facts["hero"]]
        for facts in rows:
            for text, p in expansions((*plot.body, "\n", *plot.moral), facts):
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
    for tale, [(name, facts, _)] in zip(SAMPLE, parsed, strict=True):
        assert name == tale.plot
        assert facts.keys() == PLOTS[name].tables.keys()
        assert facts["hero"]["name"] == (tale.hero,)
        assert facts["friend_kind"]["name"] == (tale.friend_kind,)


def test_no_text_has_two_derivations():
    """First half of the proof: all templates as one automaton of letters, where a slot may be any word of its table.

    Every letter of every option is a state, so two derivations of one text would be two paths with the same letters
    that diverge somewhere and both reach the end. No such pair of states exists.
    """
    letters, following = [""], [list[int]()]  # one entry per state; state 0 is the end of the tale

    def build(parts: Parts, tables: dict[str, fables.Table], after: list[int]) -> list[int]:
        for part in reversed(parts):
            if isinstance(part, str):
                for letter in reversed(part):
                    letters.append(letter)
                    following.append(after)
                    after = [len(letters) - 1]
            elif isinstance(part, Slot):
                expanded = [[text for text, _ in expansions(row[part.word], {})] for row in tables[part.fact]]
                assert all(len(set(texts)) == len(texts) for texts in expanded)
                after = [state for text in set().union(*expanded) for state in build((text,), tables, after)]
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


def words_used(parts: Parts, fact: str) -> set[frozenset[str]]:
    """For each expansion of the parts, which words of the fact it contains."""
    used = {frozenset[str]()}
    for part in parts:
        if isinstance(part, Slot) and part.fact == fact:
            used = {words | {part.word} for words in used}
        elif isinstance(part, fables.Choice):
            used = {words | more for words in used for option in part.options for more in words_used(option, fact)}
    return used


@pytest.mark.parametrize("name", PLOTS)
def test_every_fact_follows_from_the_text(name: str):
    """Second half of the proof: whatever the choices, a fact's words in the text identify its row."""
    plot = PLOTS[name]
    for fact, rows in plot.tables.items():
        expanded = [{word: {text for text, _ in expansions(parts, {})} for word, parts in row.items()} for row in rows]
        for words in words_used(plot.body + plot.moral, fact):
            for one, other in combinations(expanded, 2):
                assert any(one[word].isdisjoint(other[word]) for word in words), (fact, words, one["name"])


# --------------------------------------------------------------------------------------------------------- the parser


def test_the_parser_refuses_other_texts():
    rng = Random(4)
    for tale in SAMPLE[:100]:
        at = int(rng.random() * len(tale.text))
        for text in (tale.text[:at], tale.text + "\n\n", tale.text[:at] + "z" + tale.text[at + 1 :], f" {tale.text}"):
            if text != tale.text:
                with pytest.raises(ValueError, match="not a fable"):
                    fables.log_probability(text)


def test_the_parser_names_the_place():
    text = SAMPLE[0].text
    at = text.index(".") + 1
    with pytest.raises(ValueError, match="not a fable") as error:
        fables.log_probability(text[:at] + "#" + text[at:])
    assert f"{text[:at]!r} can begin one" in str(error.value)
    assert "'#" in str(error.value)


def test_the_parser_checks_that_facts_agree():
    """A new character in the last sentence is refused, although each sentence by itself is possible."""
    tale = next(t for t in SAMPLE if t.plot == "stranger" and t.moral.startswith("And"))
    stranger = "Ivy" if "Ivy" not in tale.text else "Ned"
    with pytest.raises(ValueError, match="not a fable"):
        fables.log_probability(tale.text.removesuffix(tale.moral) + tale.moral.replace(tale.third, stranger))


# ------------------------------------------------------------------------------------------------------ what is written


def test_write_gives_whole_tales_and_the_same_on_every_machine():
    text = fables.write(1000)
    assert text[:1000] == fables.write(5000)[:1000] != fables.write(1000, seed=1)[:1000]
    assert text.endswith("\n\n")
    assert len(text) >= 1000 > len("".join(re.findall(r".+\n.+\n\n", text)[:-1]))
    assert text == "".join(tale.text + "\n\n" for tale in islice(fables.tales(0), text.count("\n\n")))
    assert fables.write(0) == ""
    assert hashlib.sha256(text[:1000].encode()).hexdigest()[:16] == "e8a75a1b9c03e1f1"


def test_characters_words_and_lengths():
    texts = [tale.text for tale in SAMPLE]
    assert set("".join(texts)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ \n.,;'\"!?")
    assert not re.search(r"  | [.,!?|]|[.,!?]{2}| \n|\n | a [aeiou]| an [^aeiou]", "\n".join(texts))
    assert all("\n\n" not in text and text.count("\n") == 1 and text.count('"') % 2 == 0 for text in texts)
    assert 150 < min(map(len, texts)) < max(map(len, texts)) < 450
    assert len({word.lower() for text in texts for word in re.findall(r"[A-Za-z']+", text)}) < 500


def test_there_are_tens_of_thousands_of_sentences():
    """Most sentences of 1,000 tales occur once; a language of only a few thousand sentences would repeat them."""
    sentences = [sentence for tale in SAMPLE for sentence in re.split(r"(?<=[.!?])\s+", tale.text)]
    assert len(sentences) > 5000
    assert len(set(sentences)) > 0.7 * len(sentences)
    assert len({tale.text for tale in SAMPLE}) == len(SAMPLE)


def test_facts_are_in_the_text():
    for tale in SAMPLE:
        assert tale.text.endswith(f"\n{tale.moral}")
        for fact in (tale.place, tale.corner, tale.thing, tale.hero, tale.friend, tale.third):
            assert fact in tale.text
        assert f"{tale.hero} the " in tale.text
        assert re.search(rf"{tale.friend} the \w+ {tale.friend_kind}", tale.text)
        assert len({tale.hero, tale.friend, tale.third}) == 3
        assert len({tale.hero_kind, tale.friend_kind, tale.third_kind}) == 3
        assert len(tale.questions) == 3
        assert all("{" not in question + answer and answer in tale.text for question, answer in tale.questions.items())


def answer_to(question: str, tale: Tale) -> str | None:
    """The answer to the tale's question that begins so."""
    return next((answer for each, answer in tale.questions.items() if each.startswith(question)), None)


def test_answers_agree_with_the_tale():
    for tale in SAMPLE:
        if finder := answer_to("Who found", tale):
            assert re.search(rf"{finder} (found|saw|felt) it {tale.corner}\.", tale.text)
            loser = answer_to("Who lost", tale)
            his = "his" if loser in ("Bram", "Moss", "Ned", "Rufus", "Wick", "Barnaby", "Dab", "Otto") else "her"
            lost = rf"{loser} the \w+ \w+ (lost|dropped|mislaid|could not find) {his} {tale.thing}"
            assert re.search(lost, tale.text)
        if judge := answer_to("Who was the judge", tale):
            assert re.search(rf"{judge} the \w+ {tale.third_kind}", tale.text)
            assert f"{answer_to('Who let go', tale)} let go" in tale.text
