"""Fables: an endless corpus of tiny tales from a small grammar, whose entropy is known exactly.

A tale first draws a plot, then its *facts*: a season, a place, a thing, a cast. Each fact is one row of a table, every
row equally likely, and no row is drawn twice in a tale. The plot's template then spells the tale out. In a template

    {hero} {thing.use}      a word of a fact: a name, what one does with a bell; the same in every sentence of the tale
    [mud|a button|a boot]   one of these, equally likely, whatever the facts and the choices before; may nest
    [3 One|Long ago]        the first three times as likely as the second
    {opening}               a fragment: its text in FRAGMENTS stands here; line breaks are spaces

**Entropy.** A tale has exactly one derivation (tests/corpora/test_fables.py proves it), so its probability is the
product of the probabilities of its choices, and H = E[-log p] is the expected sum of the entropies of these choices:

    H(a b)            = H(a) + H(b)                                      one after the other
    H([w1 a1|w2 a2])  = sum_i p_i (-log p_i + H(a_i)),    p_i = w_i / sum(w)
    H({fact.word})    = the mean of H(word) over the fact's table        by symmetry every row is equally likely
    H(facts)          = sum_k log(rows still undrawn)

Sums and means are enough, because expectation is linear and no choice depends on a fact. Expected length obeys the
same rules, with 1 for every character and nothing for a choice.

**Entropy per character.** The corpus is independent tales, each followed by a blank line. No tale contains one, so the
text of n tales and the n tales determine each other: the text's -log p is a sum of n independent terms of mean H, and
its length a sum of n independent terms of mean L. By the law of large numbers, applied to both, their ratio tends to
H / L (the renewal-reward theorem): no model that predicts the next character, however much it remembers, can have a
lower mean loss over the endless text. One that is shown a window cut out of it pays a little more, because the window
opens in the middle of a tale whose beginning is out of sight.
"""

import math
import re
from bisect import bisect
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import accumulate, product
from random import Random
from typing import NamedTuple

# ------------------------------------------------------------------------------------------------ the template language


class Slot(NamedTuple):
    """`{fact.word}`: to be filled in from the facts of the tale."""

    fact: str
    word: str


class Choice(NamedTuple):
    """`[2 this|that]`: one option, with a chance in proportion to its weight."""

    weights: tuple[int, ...]
    options: tuple["Parts", ...]

    @property
    def chances(self) -> list[float]:
        return [weight / sum(self.weights) for weight in self.weights]


Parts = tuple[str | Slot | Choice, ...]
Row = Mapping[str, Parts]
Table = tuple[Row, ...]


class Plot(NamedTuple):
    """One kind of tale: the tables its facts are drawn from, its words, and what a listener may ask afterwards."""

    tables: dict[str, Table]
    body: Parts
    moral: Parts
    questions: dict[str, str]


@cache
def parse_template(template: str) -> Parts:
    """The parts of a template, with its fragments put in; a space just inside `[`, `|` or `]` is layout."""
    for name, fragment in FRAGMENTS.items():
        template = template.replace(f"{{{name}}}", fragment)
    template = re.sub(r"(?<=\[) | (?=\])| ?(\|) ?", r"\1", " ".join(template.split()))
    tokens = re.findall(r"[\[|](?:\d+ )?|\]|\{[^}]*\}|[^\[|\]{}]+", template)[::-1]

    def sequence() -> Parts:
        parts: list[str | Slot | Choice] = []
        while tokens and tokens[-1][0] not in "|]":
            if tokens[-1][0] == "[":
                parts.append(choice())
            elif tokens[-1][0] == "{":
                fact, _, word = tokens.pop()[1:-1].partition(".")
                parts.append(Slot(fact, word or "name"))
            else:
                parts.append(tokens.pop())
        return tuple(parts)

    def choice() -> Choice:
        weights: list[int] = []
        options: list[Parts] = []
        while (mark := tokens.pop()) != "]":
            weights.append(int(mark[1:] or 1))
            options.append(sequence())
        return Choice(tuple(weights), tuple(options))

    return sequence()


def table(text: str) -> Table:
    """Rows of words: cells between slashes, a row a line, names in the first; `this, that` makes a row of each."""
    names, *lines = [re.split(r" +/ +", line.strip()) for line in text.strip().splitlines()]
    choices = [cells for line in lines for cells in product(*(cell.split(", ") for cell in line))]
    return tuple(dict(zip(names, map(parse_template, cells), strict=True)) for cells in choices)


def plot(tables: dict[str, Table], template: str, questions: dict[str, str]) -> Plot:
    """A plot from its template, whose last paragraph is the moral."""
    body, moral = template.rsplit("\n\n", 1)
    return Plot(tables, parse_template(body), parse_template(moral), questions)


# --------------------------------------------------------------------------------------------------------------- words

FRAGMENTS = {  # a fragment may use those below it
    "opening": """[5 One {season.mood} {season} {hour},|3 Late one {season} {hour},|2 Long ago, when {season.weather},
        |2 One {season} {hour}, when {season.weather},|It was {season}, and {season.weather}.
        |On the [first|last|best|longest] day of {season},]""",
    "hour": "[morning|evening|afternoon|night|noon|day]",
    "a_hero": "{hero} the {trait} {hero_kind}",
    "a_friend": "{friend} the {trait} {friend_kind}",
    "a_third": "{third} the {trait} {third_kind}",
    "trait": "[old|young|little|sleepy|clever|gentle|merry|shy|stout|grey|lame|proud|wise|kind|tall|quick]",
    "said": "[3 said|whispered|sighed|murmured|muttered|hummed]",
    "cried": "[cried|called|sniffed|laughed]",
    "softly": """[softly|gravely|kindly|slowly|sadly|gladly|at once|at last|with a bow|with a smile|with a yawn
        |with a sniff|with a wink|with a tear|out loud|over tea]""",
    "when": """[At dawn|At dusk|At noon|At last|By moonlight|By and by|That night|Next day|In time|In the end
        |After supper|After tea|On Sunday|One day later|Two days later|Three days later]""",
    "often": """[on Sundays|at dusk|at dawn|every {season}|when it rains|for luck|at weddings|all day|over tea
        |by moonlight]""",
    "task": """[making soup|baking bread|sweeping the step|warming milk|singing
        |5 [mending|drying|painting|hiding|washing|drawing|polishing] {trifle}]""",
    "trifle": """[a button|a feather|a spoon|a boot|a pin|a ribbon|a shell|a sock|a candle|a pear|a key|a leaf|a coin
        |a rope|a bit of string|three crumbs]""",
}

SEASONS = table("""
    name   / next   / mood                           / weather
    spring / summer / [wet|green|windy|bright|soft]  / [the brook ran high|the rain fell softly|the lambs were loud]
    summer / autumn / [hot|still|golden|dry|bright]  / [the bees were loud|the hay lay drying|the brook ran low]
    autumn / winter / [grey|misty|red|windy|golden]  / [the leaves were flying|the pears were ripe|the mist came early]
    winter / spring / [cold|white|dark|still|bitter] / [the snow lay deep|the brook was frozen|the wind had teeth]
""")

CORNERS = table("""
    name       / at                / door                  / corner
    mill       / at the mill       / by the mill door      / behind the flour sacks, under the wheel
    orchard    / in the orchard    / on the orchard gate   / in the hollow tree, under the ladder
    ferry      / at the ferry      / above the ferry step  / in the old boat, under the oars
    lighthouse / at the lighthouse / under the great lamp  / on the stair, behind the oil jars
    forge      / at the forge      / over the forge fire   / behind the bellows, under the anvil
    well       / by the well       / on a nail by the well / in the bucket, under the mossy stone
    inn        / at the inn        / over the inn door     / behind the clock, under the stairs
    bridge     / by the bridge     / on the bridge rail    / in the reeds, under the arch
""")

PLACES = CORNERS[::2]  # one row a place, for the tales that hide nothing

THINGS = table("""
    name     / use   / used    / noticed
    bell     / ring  / rang    / heard
    lantern  / light / lit     / saw
    whistle  / blow  / blew    / heard
    drum     / beat  / beat    / heard
    fiddle   / play  / played  / heard
    horn     / sound / sounded / heard
    scarf    / wear  / wore    / saw
    kettle   / fill  / filled  / saw
    kite     / fly   / flew    / saw
    clock    / wind  / wound   / saw
    umbrella / open  / opened  / saw
    hat      / wear  / wore    / saw
""")

SIGNALS = THINGS[:6]  # those that can be heard or seen from far off

LOOKS = table("""
    name
    red, green, blue, white, black, brown, golden, silver
    painted, battered, crooked, patched, little, wooden, borrowed, tin
""")

FOODS = table("""
    name
    pie, loaf, pudding, cheese, cake, turnip
""")

SEEDS = table("""
    name     / a          / tree
    acorn    / an acorn   / oak
    chestnut / a chestnut / chestnut tree
    walnut   / a walnut   / walnut tree
    pear pip / a pear pip / pear tree
""")

PERILS = table("""
    name      / nights
    the fog   / foggy
    the mist  / misty
    the storm / stormy
    the rain  / rainy
    the wind  / windy
""")

NAMES = table("""
    name                                                / he  / He  / his
    Pip, Tilly, Hazel, Nettle, Ivy, May, Sorrel, Clover / she / She / her
    Bram, Moss, Ned, Rufus, Wick, Barnaby, Dab, Otto    / he  / He  / his
""")

KINDS = table("""
    name
    wren, badger, mole, hare, crow, fox, mouse, goose, toad, duck, goat, lamb, otter, heron, hen, owl
""")

CAST = {"hero": NAMES, "hero_kind": KINDS, "friend": NAMES, "friend_kind": KINDS}
THIRD = {"third": NAMES, "third_kind": KINDS}


# --------------------------------------------------------------------------------------------------------------- plots

PLOTS: Mapping[str, Plot] = {
    "lost": plot(
        {"season": SEASONS, "place": CORNERS, "look": LOOKS, "thing": THINGS, **CAST},
        """{opening} {a_hero} [lost|dropped|mislaid|could not find] {hero.his} {look} {thing} {place.at}.
        [{hero.He} looked [high and low|by candle|everywhere|under the bed], and found only {trifle}.
        |"I had it [at breakfast|at dawn|at tea|this morning|a moment ago|in my dream|in bed|on Sunday],"
            {said} {hero} {softly}.
        |The [wind|moon|rain|mist] had not seen it, and the [brook|stars|trees|hay] would not say.
        |{hero.He} could not [eat|sleep|sing|sew|smile|sit down|bake bread|go home] without it.]
        [{a_friend} stopped {task} and came to [help|look].
        |"[Lost things are shy|Look slowly|Two see better|Look up|Ask the wind|Follow me|Sit still|Hush],"
            {said} {a_friend} {softly}.
        |By came {a_friend}, [humming|yawning|singing|dancing|2 with {trifle}].]
        {when} {friend} [found|saw|felt] it {place.corner}.

        [Now they [both|all] {thing.use} it {often}.
        |So it hangs {place.door} now, and {friend} may {thing.use} it {often}.
        |What one has lost, [two|friends|shy eyes|slow feet] will find.]""",
        {"Who lost the {thing}?": "{hero}", "Who found the {thing}?": "{friend}", "Where was it?": "{place.corner}"},
    ),
    "lent": plot(
        {"season": SEASONS, "place": PLACES, "look": LOOKS, "thing": THINGS, **CAST},
        """{opening} {a_hero} lent {hero.his} {look} {thing} to {a_friend}.
        ["[Keep it dry|Be kind to it|Bring it home|It is old|It is shy|It was my mother's]," {said} {hero} {softly}.
        |{friend} left {trifle} in thanks.]
        [{when} {friend} [sat on it|dropped it|fell on it|broke it] {place.at}.
        |{when} {friend} had it {place.at}, and it came to pieces.]
        {friend.He} [wept|sighed|hid|sat down|ran home], and mended it with
            [patience|thread|glue|3 {trifle}|3 {trifle} and {trifle}].
        ["[Better than new|I like it more now|It is ours now|Stay to supper|Thank you|Good as gold],"
            {said} {hero} {softly}.
        |{hero} [laughed|wept|smiled|looked twice], and {thing.used} it {softly}.]

        [The mend still shows, and {hero} is proud of it.
        |What is mended is [twice loved|twice ours|better than new].
        |That is why {friend} may {thing.use} it {often}.]""",
        {"Who lent the {thing}?": "{hero}", "Who mended the {thing}?": "{friend}", "Where did it break?": "{place.at}"},
    ),
    "quarrel": plot(
        {"season": SEASONS, "place": PLACES, "look": LOOKS, "thing": THINGS, **CAST, **THIRD},
        """{opening} {a_hero} and {a_friend} [found|saw|fell out over|both wanted] a {look} {thing} {place.at}.
        ["[I saw it|I heard it|I was] first!" {cried} {hero}. "[Mine|Never|I did|I was|Let go|Go away]!"
            {cried} {friend}.
        |{hero} pulled left and {friend} pulled right, [all day|all night|till dawn|till supper|till it rained].]
        ["[Cut it in two|Half each|I shall keep it|Ask the wind|Let go|Pull harder]," {said} {a_third} {softly}.
        |{a_third} stopped {task}. "[Cut it in two|Half each|Let go|Pull harder]," {said} {third}.]
        {hero} let go {softly}, and {friend} [wept|went red|let go too|gave it back|sat down].

        [Now they {thing.use} it together {often}.
        |It hangs {place.door} now, and belongs to [both|nobody|everyone].
        |When two quarrel {place.at}, [somebody|the shy one|the proud one] runs for {third}.]""",
        {"Who wanted it too?": "{friend}", "Who let go of the {thing}?": "{hero}", "Who was the judge?": "{third}"},
    ),
    "beacon": plot(
        {"season": SEASONS, "place": PLACES, "peril": PERILS, "look": LOOKS, "thing": SIGNALS, **CAST},
        """{opening} {a_hero} went for [wood|milk|pears|bread|salt|tea|{trifle}]
            and lost the [way|path|road] in {peril}.
        Back {place.at}, {a_friend} stopped {task}.
        ["[Somebody is lost|Somebody is late|One cup is left over|{hero} is not home]," {friend.he} {said}, and
        |{friend.He} looked out, and then {friend.he}]
        {thing.used} {friend.his} {look} {thing} [till dawn|all night|3 {softly}].
        [At last|At dawn|By and by|Far off] {hero} {thing.noticed} it, and came home
            [hungry|wet|singing|3 with {trifle}].

        [On {peril.nights} nights they {thing.use} it still.
        |What is [a friend|home|gold]? A {thing} in {peril}.
        |That is why a {thing} hangs {place.door}.]""",
        {"Who was lost?": "{hero}", "Who {thing.used} the {thing}?": "{friend}", "Where was {friend}?": "{place.at}"},
    ),
    "stranger": plot(
        {"season": SEASONS, "place": PLACES, "food": FOODS, "look": LOOKS, "thing": THINGS, **CAST, **THIRD},
        """{opening} {a_friend} came to the {place}, [cold|wet|lame|hungry|lost], with only {trifle}.
        "[No room|Not today|Come on Sunday|Wipe your feet|Go away|Hush]," {said} {a_third} {softly}.
        [But {a_hero} had one {food}, and [cut it in two|gave half of it|gave away the bigger half].
        |{a_hero} stopped {task}. "[Sit down|Come in]. One {food}, two of us."]
        [When {season.next} came, so did {friend}, with a {look} {thing} for {hero}.
        |In {season.next} {friend} sent {hero} a {look} {thing} and {trifle}.]

        [{hero} {thing.used} it {often}, and {third} [had none|was sorry|only looked].
        |Half a {food} well given is [a whole friend|never lost|more than a {food}].
        |And {third}? {third} [bakes a {food}|leaves the door open|looks down the road] {often}.]""",
        {"Who shared the {food}?": "{hero}", "Who said no?": "{third}", "What did {friend} give?": "a {look} {thing}"},
    ),
    "patience": plot(
        {"season": SEASONS, "place": PLACES, "seed": SEEDS, **CAST},
        """{opening} {a_hero} [planted|set|sowed] {seed.a} {place.at}.
        "[You will be [old|grey|lame|deaf] before it is tall!|Who can wait so long?|Why not plant [soup|tea|{trifle}]?]"
        {cried} {a_friend} {softly}.
        "Then [somebody|a stranger|a lost bird|the moon] will [sit under it|thank me|sleep in it]," {said} {hero}
        {softly}.
        [Two|Three|Six|Seven|Ten|Many] {season}s later {friend} [sat|slept|was {task}] under the {seed.tree},
        [old and glad|old and sorry|grey and wise|deaf and smiling].

        [They call the {seed.tree} Old {hero} now, and [dance under it|sing under it|hang {trifle} in it] {often}.
        |And {friend}? {friend} planted [another|one more] {seed}, for [somebody|a stranger|the moon].
        |Plant early, they say {place.at}, and let [a stranger|somebody|the moon] sit down.]""",
        {"Who planted the {seed}?": "{hero}", "Who doubted it?": "{friend}", "Where is the {seed.tree}?": "{place.at}"},
    ),
}


# -------------------------------------------------------------------------------------------------------------- telling


class Tale(NamedTuple):
    """A tale and what is true in it; a fact that its plot has no use for is empty."""

    text: str
    plot: str
    season: str
    place: str
    corner: str  # where the thing was found: "under the wheel"
    thing: str  # "red bell", "acorn"
    hero: str
    hero_kind: str
    friend: str
    friend_kind: str
    third: str
    third_kind: str
    moral: str  # the last sentence or two
    questions: dict[str, str]  # what a listener may ask, with the answers


def draw(weights: tuple[int, ...], rng: Random) -> int:
    """An index, with a chance in proportion to its weight."""
    return bisect(list(accumulate(weights)), rng.random() * sum(weights))


def spell(parts: Parts, facts: Mapping[str, Row], rng: Random) -> str:
    """The parts in words: slots from the facts, choices by chance."""
    words: list[str] = []
    for part in parts:
        if isinstance(part, str):
            words.append(part)
        elif isinstance(part, Slot):
            words.append(spell(facts[part.fact][part.word], facts, rng))
        else:
            words.append(spell(part.options[draw(part.weights, rng)], facts, rng))
    return "".join(words)


def undrawn(rows: Table, facts: Mapping[str, Row]) -> list[Row]:
    """The rows that are none of the facts yet."""
    drawn = {id(row) for row in facts.values()}
    return [row for row in rows if id(row) not in drawn]


def tale(rng: Random, plots: Mapping[str, Plot] = PLOTS) -> Tale:
    """One tale. Its only source of chance is `rng.random()`, which every version of Python computes alike."""
    return tell(*draw_facts(rng, plots), rng, plots)


def draw_facts(rng: Random, plots: Mapping[str, Plot] = PLOTS) -> tuple[str, dict[str, Row]]:
    """(the name of a plot, the facts of a tale of it)."""
    name = list(plots)[int(rng.random() * len(plots))]
    facts: dict[str, Row] = {}
    for fact, rows in plots[name].tables.items():
        rows = undrawn(rows, facts)
        facts[fact] = rows[int(rng.random() * len(rows))]
    return name, facts


def tell(name: str, facts: Mapping[str, Row], rng: Random, plots: Mapping[str, Plot] = PLOTS) -> Tale:
    """The tale of a plot and its facts, in words that `rng` chooses."""
    plot = plots[name]
    names = {fact: spell(row["name"], facts, rng) for fact, row in facts.items()}
    body, moral = spell(plot.body, facts, rng), spell(plot.moral, facts, rng)
    return Tale(
        text=f"{body}\n{moral}",
        plot=name,
        season=names["season"],
        place=names["place"],
        corner=spell(facts["place"]["corner"], facts, rng) if plot.tables["place"] is CORNERS else "",
        thing=names.get("seed") or f"{names['look']} {names['thing']}",
        hero=names["hero"],
        hero_kind=names["hero_kind"],
        friend=names["friend"],
        friend_kind=names["friend_kind"],
        third=names.get("third", ""),
        third_kind=names.get("third_kind", ""),
        moral=moral,
        questions={
            spell(parse_template(question), facts, rng): spell(parse_template(answer), facts, rng)
            for question, answer in plot.questions.items()
        },
    )


def tales(seed: int) -> Iterator[Tale]:
    """Tales without end, the same ones for the same seed."""
    rng = Random(seed)
    while True:
        yield tale(rng)


def write(characters: int, seed: int = 0) -> str:
    """Whole tales, each followed by a blank line, until there are at least so many characters."""
    texts: list[str] = []
    for told in tales(seed):
        if characters <= 0:
            break
        texts.append(told.text + "\n\n")
        characters -= len(texts[-1])
    return "".join(texts)


# ------------------------------------------------------------------------------------------------------------- measure


def facts_entropy(plot: Plot) -> float:
    """Nats in drawing the plot's facts: the log of how many rows were left, summed over the facts."""
    tables = list(plot.tables.values())
    return sum(math.log(len(rows) - sum(rows is earlier for earlier in tables[:k])) for k, rows in enumerate(tables))


def expectation(parts: Parts, tables: Mapping[str, Table]) -> tuple[float, float]:
    """(entropy in nats, expected characters) of the parts, by the rules at the top of this file."""
    nats = characters = 0.0
    for part in parts:
        if isinstance(part, str):
            characters += len(part)
            continue
        if isinstance(part, Slot):
            rows = tables[part.fact]
            chances, options = [1 / len(rows)] * len(rows), [row[part.word] for row in rows]
        else:
            chances, options = part.chances, part.options
            nats -= sum(chance * math.log(chance) for chance in chances)
        for chance, option in zip(chances, options, strict=True):
            more_nats, more_characters = expectation(option, tables)
            nats += chance * more_nats
            characters += chance * more_characters
    return nats, characters


def entropy(plots: Mapping[str, Plot] = PLOTS) -> float:
    """Nats per tale, exactly."""
    spelled = [facts_entropy(p) + expectation(p.body + p.moral, p.tables)[0] for p in plots.values()]
    return math.log(len(plots)) + sum(spelled) / len(plots)


def mean_length(plots: Mapping[str, Plot] = PLOTS) -> float:
    """Expected characters of a tale, the blank line after it included."""
    lengths = [expectation((*p.body, "\n", *p.moral, "\n\n"), p.tables)[1] for p in plots.values()]
    return sum(lengths) / len(plots)


def entropy_per_character() -> float:
    """Nats per character of the endless corpus: the least mean loss that any model of its characters can reach."""
    return entropy() / mean_length()


def derivations(text: str, plots: Mapping[str, Plot] = PLOTS) -> list[tuple[str, dict[str, Row], float]]:
    """Every way (plot, facts, log-probability) in which the grammar can have written the text, found from it alone."""
    found: list[tuple[str, dict[str, Row], float]] = []
    furthest = 0
    agenda: list[tuple[str, int, Parts, dict[str, Row], float]] = [
        (name, 0, (*plot.body, "\n", *plot.moral), {}, -math.log(len(plots)) - facts_entropy(plot))
        for name, plot in plots.items()
    ]
    while agenda:
        name, at, parts, facts, log_p = agenda.pop()
        if not parts:
            furthest = max(furthest, at)
            found += [(name, facts, log_p)] if at == len(text) else []
            continue
        part, rest = parts[0], parts[1:]
        if isinstance(part, str):
            matched = next((i for i, letter in enumerate(part) if text[at + i : at + i + 1] != letter), len(part))
            furthest = max(furthest, at + matched)
            if matched == len(part):
                agenda.append((name, at + matched, rest, facts, log_p))
        elif isinstance(part, Slot):
            rows = [facts[part.fact]] if part.fact in facts else undrawn(plots[name].tables[part.fact], facts)
            agenda += [(name, at, row[part.word] + rest, {**facts, part.fact: row}, log_p) for row in rows]
        else:
            ways = zip(part.chances, part.options, strict=True)
            agenda += [(name, at, option + rest, facts, log_p + math.log(chance)) for chance, option in ways]
    if not found:
        raise ValueError(f"not a fable: {text[:furthest]!r} could be, but not with {text[furthest:][:20]!r} after it")
    return found


def log_probability(text: str) -> float:
    """log p of a tale (without its blank line) in nats, from the text alone; ValueError says where it is no tale."""
    [(_, _, log_p)] = derivations(text)
    return log_p
