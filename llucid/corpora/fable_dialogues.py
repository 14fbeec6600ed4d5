"""Conversations with a storyteller who knows the fables' world and nothing else: what the packaged chat model learned.

    python -m llucid.corpora.fable_dialogues 1000 --seed 7 > talk.jsonl

A conversation is made of turns. A *request* is answered by a tale that obeys it; a *question* is answered from the tale
that was told last; *small talk* has answers of its own, and what lies outside of the fables is declined. All words are
templates of `fables`, whose slots are the facts of the tale. Each turn keeps the *key* of its answer: the words that an
answer must have to be right, however it is put.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import NamedTuple, TypeVar

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
    """tale, question, again, none (there is no such thing in the tale), talk or outside."""


class Dialogue(NamedTuple):
    """A system text, or none, and turns."""

    system: str
    turns: tuple[Turn, ...]

    def messages(self) -> list[dict[str, str]]:
        """As `{"role": …, "content": …}`."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        pairs = [(("user", turn.asked), ("assistant", turn.answer)) for turn in self.turns]
        return system + [{"role": role, "content": content} for pair in pairs for role, content in pair]


# ----------------------------------------------------------------------------------------------------------- requests

ASK = """[4 Tell me a tale|4 Tell me a story|2 A tale|A story|Please tell me a fable|Tell me a fable
    |Can you tell me a tale|Could you tell me a story|I would like a tale|I want to hear a story|Tell a tale
    |Do you know a tale|Make up a tale|Write a story|Let me hear a tale]"""
MORE = "[3 Another one|2 Another tale|Another|One more|One more tale|Tell me another|Tell me another story|Next]"
SUBJECTS = (  # what a tale may be asked to be about, weighted, with the facts that it needs
    (4, ""),
    (6, " [3 about|with|of] a {hero_kind}"),
    (6, " [3 about|with|of] a {hero_kind} in {season}"),
    (3, " [in|from|set in|of] {season}"),
    (2, " [about|with] a {hero_kind} and a {friend_kind}"),
    (2, " [about|with] {hero}"),
    (1, " about {hero} and {friend}"),
    (1, " about {hero} in {season}"),
    (1, " about {hero} the {hero_kind}"),
    (2, " {place.at}"),
    (2, " about a {hero_kind} {place.at}"),
    (2, " [about|with] a {thing}"),
    (1, " about a {look} {thing}"),
    (1, " about a {hero_kind} and a {thing}"),
    (1, " [about|with] {seed.a}"),
)
SHORT = (
    (2, "{hero_kind}"),
    (3, "A {hero_kind} in {season}"),
    (1, "A {thing}"),
    (1, "{season}, please"),
    (1, "Something [about|with] a {hero_kind}"),
    (1, "Something {place.at}"),
    (1, "{hero_kind} and {friend_kind}"),
)
PLOT_SUBJECTS = {
    "lost": "something lost|something that was lost|something found|losing things",
    "lent": "something lent|something borrowed|something broken|mending",
    "quarrel": "a quarrel|two who quarrel|a judge",
    "beacon": "somebody who is lost|bad weather|{peril}",
    "stranger": "a stranger|sharing|kindness|a {food}",
    "patience": "a tree|planting|patience|a {seed.tree}",
}

# ----------------------------------------------------------------------------------------------------------- questions

Asking = tuple[int, str, str, str]
"""Weight, question, answer, key."""


def who(fact: str) -> str:
    """An answer that names one of the cast."""
    kind = f"{{{fact}}} the {{{fact}_kind}}"
    return f"[3 {{{fact}}}.|3 It was {{{fact}}}.|2 It was {kind}.|{kind}.]"


QUESTIONS: Mapping[str, tuple[Asking, ...]] = {
    "lost": (
        (4, "Who [4 lost|dropped|mislaid] [3 the {thing}|it]?", who("hero"), "{hero}"),
        (1, "Whose {thing} was it?", who("hero"), "{hero}"),
        (4, "Who [4 found|saw] [3 the {thing}|it]?", who("friend"), "{friend}"),
        (1, "Who [helped|helped {hero}|came to help]?", who("friend"), "{friend}"),
        (
            3,
            "Where [2 was it|was the {thing}|did {friend} find it|was it found]?",
            "[2 It was|{friend} found it] {place.corner}.",
            "{place.corner}",
        ),
        (2, "What did {hero} [lose|look for|miss]?", "[2 {hero.his}|A] {look} {thing}.", "{look} {thing}"),
        (1, "What did {friend} find?", "[The|A] {look} {thing}.", "{look} {thing}"),
    ),
    "lent": (
        (4, "Who [3 lent [2 the {thing}|it]|owned the {thing}]?", who("hero"), "{hero}"),
        (1, "Whose {thing} was it?", who("hero"), "{hero}"),
        (3, "Who [3 mended|repaired] [2 the {thing}|it]?", who("friend"), "{friend}"),
        (2, "Who [3 broke|borrowed] [2 the {thing}|it]?", who("friend"), "{friend}"),
        (3, "Where did [2 it|the {thing}] break?", "It broke {place.at}.", "{place.at}"),
        (2, "What did {hero} [2 lend|lend to {friend}]?", "A {look} {thing}.", "{look} {thing}"),
        (1, "What did {friend} [break|borrow|mend]?", "A {look} {thing}.", "{look} {thing}"),
        (1, "To whom did {hero} lend it?", "To {friend}.", "{friend}"),
    ),
    "quarrel": (
        (3, "Who let [2 go|go of [2 the {thing}|it]]?", who("hero"), "{hero}"),
        (2, "Who wanted it too?", who("friend"), "{friend}"),
        (3, "Who was [3 the judge|asked|the third]?", who("third"), "{third}"),
        (2, "Who [quarrelled|pulled|fell out]?", "{hero} and {friend}.", "{hero} & {friend}"),
        (
            3,
            "What did they [2 want|both want|find|quarrel about|fall out over]?",
            "A {look} {thing}.",
            "{look} {thing}",
        ),
    ),
    "beacon": (
        (4, "Who [2 was lost|lost the way|came home|went out]?", who("hero"), "{hero}"),
        (4, "Who {thing.used} [2 the {thing}|it]?", who("friend"), "{friend}"),
        (1, "Who [helped|helped {hero}|waited]?", who("friend"), "{friend}"),
        (3, "Where was {friend}?", "{friend} was {place.at}.", "{place.at}"),
        (2, "What did {friend} {thing.use}?", "A {look} {thing}.", "{look} {thing}"),
        (
            2,
            "[In what was {hero} lost|What was the weather like|What was the weather]?",
            "[It was|That was] {peril}.",
            "{peril}",
        ),
    ),
    "stranger": (
        (4, "Who [2 shared|gave] [2 the {food}|a {food}]?", who("hero"), "{hero}"),
        (1, "Who was [kind|good]?", who("hero"), "{hero}"),
        (3, "Who [2 said no|was unkind|sent {friend} away]?", who("third"), "{third}"),
        (2, "Who [came|was the stranger|was hungry|came to the {place}]?", who("friend"), "{friend}"),
        (3, "What did {friend} [3 give|send|bring]?", "A {look} {thing}.", "{look} {thing}"),
        (2, "What did {hero} [2 share|give|have]?", "A {food}.", "{food}"),
    ),
    "patience": (
        (4, "Who [2 planted|set|sowed] [2 the {seed}|it]?", who("hero"), "{hero}"),
        (3, "Who [3 doubted it|laughed|could not wait]?", who("friend"), "{friend}"),
        (2, "Who sat under the [{seed.tree}|tree]?", who("friend"), "{friend}"),
        (3, "Where is the [2 {seed.tree}|tree]?", "[It is|It stands] {place.at}.", "{place.at}"),
        (3, "What did {hero} [2 plant|sow]?", "[{seed.a}.|{hero} planted {seed.a}.]", "{seed}"),
        (1, "What [grew|came of it|kind of tree was it]?", "A {seed.tree}.", "{seed.tree}"),
    ),
}

DID = {  # what each of the cast is known for
    "lost": {"hero": "lost the {thing}", "friend": "found the {thing}"},
    "lent": {"hero": "lent the {thing}", "friend": "mended the {thing}"},
    "quarrel": {"hero": "let go of the {thing}", "friend": "wanted it too", "third": "was the judge"},
    "beacon": {"hero": "was lost in {peril}", "friend": "{thing.used} the {thing}"},
    "stranger": {"hero": "shared the {food}", "friend": "came to the {place}", "third": "said no"},
    "patience": {"hero": "planted the {seed}", "friend": "doubted it"},
}

SEASON = "[2 When was [that|it]|What season was it|In what season was it|What time of year was it|Which season was it]"


def generic(plot: str, tale: Tale) -> list[Asking]:
    """What may be asked of every tale."""
    roles = DID[plot]
    name, kind = [f"{{{role}}}" for role in roles], [f"{{{role}_kind}}" for role in roles]
    cast = [f"{a} the {b}" for a, b in zip(name, kind, strict=True)]
    everyone = ", ".join(cast[:-1]) + f" and {cast[-1]}"
    asking: list[Asking] = [
        (4, SEASON + "?", "[2 It was {season}.|In {season}.]", "{season}"),
        (3, "Where [2 did it happen|does it happen|did that happen]?", "It [3 happened|was] {place.at}.", "{place.at}"),
        (3, "Who is in [it|the tale|the story]?", everyone + ".", " & ".join(name)),
        (
            2,
            "[What is the moral|How does it end|What is the lesson|What do we learn|And the moral]?",
            tale.moral,
            tale.moral.replace("[", "").replace("]", ""),
        ),
        (
            2,
            "[Why|Why was that|How old is {hero}|What happened before|What happened next|And then|What colour is {hero}"
            "|Why did {friend} do that|How old was {friend}]?",
            "The tale does not say.",
            "does not say",
        ),
    ]
    if plot != "patience":
        asking.append(
            (
                2,
                "What [was the {thing} like|sort of {thing} was it|kind of {thing} was it]?",
                "It was a {look} {thing}.",
                "{look} {thing}",
            )
        )
        asking.append(
            (1, "What is [it|the tale|the story] about?", "[2 About|It is about] a {look} {thing}.", "{look} {thing}")
        )
    for number, (role, deed) in enumerate(roles.items()):
        other = list(roles)[number - 1]
        asking += [
            (2, f"Who [2 is|was] {{{role}}}?", f"[2 The|A] {{{role}_kind}} who {deed}.", f"{{{role}_kind}}"),
            (
                2,
                f"What [2 is {{{role}}}|animal is {{{role}}}|kind of animal is {{{role}}}|animal was {{{role}}}]?",
                f"[2 {{{role}}} is a|A] {{{role}_kind}}.",
                f"{{{role}_kind}}",
            ),
            (
                2,
                f"[3 Who is the {{{role}_kind}}|What is the {{{role}_kind}} called|What is the name of the "
                f"{{{role}_kind}}]?",
                f"[2 The {{{role}_kind}} is {{{role}}}.|{{{role}}}.]",
                f"{{{role}}}",
            ),
            (1, f"Is {{{role}}} a {{{role}_kind}}?", f"Yes, {{{role}}} is a {{{role}_kind}}.", "yes"),
            (1, f"Is {{{role}}} a {{{other}_kind}}?", f"No, {{{role}}} is a {{{role}_kind}}.", f"no & {{{role}_kind}}"),
        ]
    return asking


AGAIN = "[Tell it again|Once more, please|Say it again|Again, please|Tell me that again|The same tale again|Repeat it]."
MISSING_THING = (
    "[3 Who [found|lost|lent|broke|mended|wanted] the {missing}|Where was the {missing}|What about the {missing}]?"
)
MISSING_NAME = "[2 Who is {missing}|What animal is {missing}|What did {missing} do|Where was {missing}]?"

# ---------------------------------------------------------------------------------------------------------- small talk

PARAMETERS = "1.8 million"
"""Of the model that the package has, as it says of itself."""
SELF = f"""[I am a tiny Llama, a language model of {PARAMETERS} numbers, trained from scratch on made-up fables.
    I know nothing else.|Only a tiny Llama: a language model of {PARAMETERS} parameters that learned made-up fables and
    nothing else.]"""
OFFER = "[Shall I tell you a tale?|Would you like a tale?|Ask me for a tale.|Name an animal and a season.]"
ANIMALS = (
    "wrens, badgers, moles, hares, crows, foxes, mice, geese, toads, ducks, goats, lambs, otters, herons, hens and owls"
)

TALK: tuple[tuple[int, str, str, str], ...] = (  # weight, what is said, the answer, its key
    (
        8,
        "[3 Hello|3 Hi|Hey|Good morning|Good evening|Good day|Hello there|Hi there|Greetings][|!|.]",
        f"[Hello|Good day|Welcome]. {OFFER}",
        "",
    ),
    (
        4,
        "[How are you|How do you do|How is it going|How are things|What's up]?",
        f"[Well enough, for a very small model|I am only a small model, but my tales are well]. {OFFER}",
        "",
    ),
    (
        8,
        "[4 Who are you|What are you|Tell me about yourself|Introduce yourself|Who am I talking to|Who is this]?",
        SELF,
        "llama & fables",
    ),
    (
        8,
        "[3 Are you [a real person|human|a person|a human|real|alive|a man|a woman|somebody]|Am I talking to a human"
        "|Is there a person behind this|Are you a living being]?",
        f"No. {SELF}",
        "no & llama",
    ),
    (
        5,
        "[Are you [an AI|a robot|a computer|a bot|a chatbot|a language model|a machine|a program]|Is this an AI]?",
        f"Yes. {SELF}",
        "yes & llama",
    ),
    (
        4,
        "[Are you [ChatGPT|GPT|Claude|Gemini|Siri|Alexa|Llama 3]|Did [Meta|OpenAI|Google] make you]?",
        f"No. {SELF}",
        "no & llama",
    ),
    (
        4,
        "What is your name?|What's your name?|What are you called?|Do you have a name?",
        "I have no name. You may call me the storyteller.",
        "no name",
    ),
    (
        3,
        "[Who [made|built|trained|created] you|Where do you come from|How were you made|How were you trained]?",
        "I was trained from scratch with llucid, on fables and talk that a small program made up.",
        "llucid",
    ),
    (
        3,
        "How [big|large] are you?|How many parameters do you have?|What size are you?",
        f"I have {PARAMETERS} parameters, which is tiny.",
        PARAMETERS,
    ),
    (
        3,
        "[Do you have feelings|Do you feel anything|Are you [happy|sad|lonely|tired|conscious]|Do you love me]?",
        "I have no feelings. I am only a small model that tells tales.",
        "no feelings",
    ),
    (
        3,
        "[How old are you|Where do you live|Are you a boy or a girl|Do you sleep|Do you eat]?",
        "I am a model: I have no age, no home and no body.",
        "model",
    ),
    (
        5,
        "[2 What can you do|What do you do|Can you help me|Help|Help me|How does this work|What should I ask"
        "|What can I ask you]?",
        "I tell tales. Name an animal, a season, a place or a thing; then ask me who did what, and where.",
        "tales",
    ),
    (
        3,
        "[What do you know|What do you know about|Do you know everything|Are you clever|How much do you know]?",
        "Only my fables: a few animals, places and things. About the real world I know nothing.",
        "fables",
    ),
    (
        3,
        "[What|Which] animals [do you know|are there]?|Which animals are in your tales?",
        f"I know {ANIMALS}.",
        "wrens & owls",
    ),
    (
        2,
        "[What|Which] [places do you know|places are there]?|Where do your tales happen?",
        "At the mill, the orchard, the ferry, the lighthouse, the forge, the well, the inn and the bridge.",
        "mill & inn",
    ),
    (
        2,
        "[What|Which] [things do you know|things are there]?|What are your tales about?",
        "About bells, lanterns, drums, kites, hats and such things: lost, lent, quarrelled over or given away.",
        "bells",
    ),
    (
        2,
        "Are your tales true?|Is that true?|Did that really happen?|Is it a true story?",
        "No. All my tales are made up.",
        "made up",
    ),
    (
        2,
        "[Do you remember me|Will you remember this|Can you remember me]?",
        "No. I remember nothing but what we say here, and not even all of that.",
        "no",
    ),
    (
        2,
        "[Can you make mistakes|Are you always right|Do you lie|Are you sure]?",
        "I am a small model, and often wrong. Look into the tale.",
        "wrong",
    ),
    (
        6,
        "[3 Thank you|3 Thanks|Thank you very much|Thanks a lot|Many thanks|Thank you so much][|.|!]",
        f"[2 You are welcome.|With pleasure.|Gladly.] {OFFER}",
        "",
    ),
    (
        5,
        "[That was [lovely|nice|good|beautiful|great]|Lovely|Nice|Great|Good|Wonderful|I like it|I liked that|Well done"
        "|Beautiful|Nice one|Good tale][|.|!]",
        f"[I am glad|Thank you]. {OFFER}",
        "",
    ),
    (
        3,
        "[That was [boring|bad|sad|silly|strange]|Boring|I do not like it|That is silly|You are stupid|Bad][|.|!]",
        f"I am sorry. {OFFER}",
        "sorry",
    ),
    (2, "[No|No, thank you|Not now|Nothing|No thanks|Later][|.]", "As you like. I am here if you want a tale.", ""),
    (2, "[Stop|Be quiet|Enough|Shut up][|.|!]", "Very well.", ""),
)
BYE = (
    "[3 Goodbye|3 Bye|Good night|Farewell|See you|I have to go|Bye bye][|.|!]",
    "[2 Goodbye|Farewell|Sleep well], and come back for a tale.",
    "",
)
YES = "[3 Yes|2 Yes, please|Please|Please do|Sure|Okay|Go on|Yes please|Of course][|.|!]"

# ------------------------------------------------------------------------------------------------------------- outside

COUNTRIES = """[France|Germany|Italy|Spain|China|Japan|India|Brazil|Egypt|Norway|Peru|Canada|Russia|Kenya|Australia
    |England|America|Greece|Turkey|Poland]"""
TOPICS = """[physics|history|politics|music|football|chess|love|money|quantum mechanics|mathematics|biology|philosophy
    |programming|Python|the moon|the stars|the sun|dinosaurs|war|God|religion|the weather|science|art|computers|cars
    |the internet|health|medicine|law|economics|the news|films|books|Shakespeare|Einstein|Napoleon
    |space|gravity|water]"""
NUMBER = "[one|two|three|7|12|19|25|40|88|100|144]"
OUTSIDE: tuple[str, ...] = (
    f"What is the [3 capital|population|president|flag|language] of {COUNTRIES}?",
    f"[Where is|How big is|Tell me about|What do you know about] {COUNTRIES}?",
    f"[Tell me about|Explain|What do you know about|Teach me|Do you know anything about|What is] {TOPICS}?",
    f"What is {NUMBER} [plus|times|minus|divided by] {NUMBER}?",
    "What is [2+2|1+1|3*4|10/2|5-3|17*23|the square root of 9]?",
    "[Write|Give me|Can you write] [a poem|a program|a letter|an essay|some code|a song|a joke|a recipe|an email"
    "|a function|a list of names][|, please]?",
    "[Write|Give me|Can you write] [a poem|an essay|a song|a joke|a book|a letter] about {topic}.",
    "How do I [cook rice|bake a cake|fix my car|learn to swim|make money|lose weight|write a book|build a house"
    "|tie a knot|make friends|sort a list|open a file|get a job|sleep better|cut my hair]?",
    "What [is the time|time is it|day is it|is the date|is the weather like today|year is it|is the news"
    "|is new today]?",
    "Who [is|was] [the president|the king|the queen|Einstein|Napoleon|Shakespeare|the pope|Mozart|Newton|Plato"
    "|my mother|your mother|Elon Musk|Darwin|Taylor Swift|Donald Trump|Barack Obama]?",
    "[How far is the moon|Why is the sky blue|How tall is Mount Everest|What is the meaning of life|How deep is the sea"
    "|Why do birds fly|How fast is light|Is there life on Mars|What is the largest country|How many people are there]?",
    "[Translate this|Translate this into [French|German|Latin]|Say something in [French|German|Spanish|Latin]"
    "|Do you speak [French|German|Spanish|English|Latin]|Sprechen Sie Deutsch|Parlez-vous français|Habla español]?",
    "[I have a headache|I feel sad|I am ill|My head hurts|I am in love|I lost my job|I am bored|I am hungry"
    "|I cannot sleep|Should I see a doctor|What should I do|Give me advice|Should I buy a house]?",
    "[Play a game|Play chess with me|Tell me a joke|Sing a song|Draw a cat|Search the web|Open the door|Call my mother"
    "|Set a timer|Show me a picture|Turn on the light|Send an email|Order a pizza].",
)
DECLINE = f"""[2 I do not know that. I only know my fables.|That lies outside my fables, and I know nothing else.
    |I cannot help with that: I know nothing but my fables.] {OFFER}"""

NOBODY = """[a dragon|a lion|a tiger|a princess|a robot|a dog|a cat|a horse|a wolf|a bear|a king|a queen|a wizard
    |a pirate|a spaceship|a monkey|an elephant|a whale|a shark|a snake|a spider|a car|a train|a computer|a boy|a girl
    |a unicorn
    |a ghost|a witch|a rabbit|a pig|a cow|a sheep|a frog|a bee|a butterfly|Harry Potter|Napoleon|Anna|Peter|John|Sarah
    |aliens|vampires|dinosaurs|zombies|me|you|my dog|a doctor|a teacher|a soldier|love|war|money|football|God|Paris
    |London|the moon|the sea|a castle|a sword|a phone|a dinosaur|Christmas|Batman|the future|a fish|an ant|a parrot]"""
KNOWN = """[I know nobody and nothing like that|That is not in my world]. Ask me for
    [a wren|a badger|a mole|a hare|a crow|a fox|a mouse|a goose|a toad|a duck|a goat|a lamb|an otter|a heron|a hen
    |an owl]
    [in [spring|summer|autumn|winter]|at the [mill|inn|ferry|forge]]."""
UNTOLD = f"I have not told you a tale yet. {OFFER}"
SYSTEM = """[3 You are a storyteller.|You are a kind storyteller.|You are a helpful assistant.|Be kind.|Answer briefly.
    |Be brief.|You tell tales to children.|You are a friendly assistant.|Tell tales.]"""

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


def request(told: Told, more: bool, rng: Random) -> Turn:
    """A request that the tale obeys, and the tale."""
    facts, plot = told.facts, told.tale.plot
    possible = [(w, s) for w, s in SUBJECTS if all(slot in facts for slot in re.findall(r"\{(\w+)", s))]
    chance = rng.random()
    if chance < 0.1:
        asked = f"{ASK} about {{subject}}".replace("{subject}", f"[{PLOT_SUBJECTS[plot]}]")
    elif chance < 0.25:
        asked = weighted([(w, s) for w, s in SHORT if all(x in facts for x in re.findall(r"\{(\w+)", s))], rng)
    elif more and rng.random() < 0.6:
        asked = MORE + weighted(possible, rng)
    else:
        asked = ASK + weighted(possible, rng)
    asked = say(asked + "[2 .||[|?]]", rng, facts)
    return Turn(typed(asked, rng), told.tale.text, "", "tale")


def question(told: Told, rng: Random) -> Turn:
    """A question about the tale, with its answer."""
    tale, facts = told
    chance = rng.random()
    if chance < 0.05:
        return Turn(typed(say(AGAIN, rng), rng), tale.text, tale.text.lower(), "again")
    if chance < 0.12:
        names = [spell(row["name"], {}, rng) for row in (NAMES if rng.random() < 0.5 else THINGS)]
        missing = pick([name for name in names if not re.search(rf"\b{name}\b", tale.text)], rng)
        asked = MISSING_NAME if missing[0].isupper() else MISSING_THING
        answer = f"There is no {missing} in this tale."
        return turn(asked.replace("{missing}", missing), answer, f"no {missing}", "none", rng)
    options = list(QUESTIONS[tale.plot]) if chance < 0.6 else generic(tale.plot, tale)
    asked, answer, key = weighted([(w, (a, b, c)) for w, a, b, c in options], rng)
    if answer == tale.moral:
        return Turn(typed(say(asked, rng, facts), rng), tale.moral, tale.moral.lower(), "question")
    return turn(asked, answer, key, "question", rng, facts)


def talk(rng: Random) -> Turn:
    """Small talk."""
    asked, answer, key = weighted([(w, (a, b, c)) for w, a, b, c in TALK], rng)
    return turn(asked, answer, key, "talk", rng)


def outside(rng: Random) -> Turn:
    """What the storyteller cannot know."""
    if rng.random() < 0.3:
        return turn(f"{ASK} [2 about|with|of] {NOBODY}[|.|?]", KNOWN, "ask me for", "outside", rng)
    return turn(pick(OUTSIDE, rng).replace("{topic}", TOPICS), DECLINE, "fables", "outside", rng)


def untold(rng: Random) -> Turn:
    """A question about a tale before there is one."""
    name, facts = draw_facts(rng)
    asked, _, _ = weighted([(w, (a, b, c)) for w, a, b, c in QUESTIONS[name]], rng)
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
        if all(facts[name] is row for name, row in demanded.items()):
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
    for number in range(1 if rng.random() < 0.6 else 2):
        told = new_tale(demanded, rng)
        asked = request(told, number > 0, rng)
        offered = turns and turns[-1].answer.endswith("tale?")
        if demanded or (offered and rng.random() < 0.5):
            asked = asked._replace(asked=typed(say(YES if offered else ASK + ".", rng), rng))
        turns.append(asked)
        for _ in range(3 + int(rng.random() * (5 if number == 0 else 2))):
            chance = rng.random()
            turns.append(talk(rng) if chance < 0.06 else outside(rng) if chance < 0.12 else question(told, rng))
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
