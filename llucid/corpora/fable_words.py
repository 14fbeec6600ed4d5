"""Templates of the storyteller's conversations, in the language of `fables`; `fable_dialogues` replaces `<…>`."""

import re
from collections.abc import Mapping
from typing import NamedTuple


class Exchange(NamedTuple):
    """Templates of a message and its answer."""

    weight: int
    """How often it is chosen, relative to the others of its table."""
    message: str
    answer: str
    key: str
    """What a correct answer contains."""


def exchanges(text: str) -> tuple[Exchange, ...]:
    """Parses rows of weight / message / answer / key. The key may be empty. A row may continue on the next lines."""
    rows = re.split(r"\n\s*(?=\d+ / )", text.strip())
    cells = ([cell.strip() for cell in " ".join(row.split()).split(" / ")] for row in rows)
    return tuple(Exchange(int(row[0]), row[1], row[2].removesuffix(" /"), row[3] if row[3:] else "") for row in cells)


# ----------------------------------------------------------------------------------------------------------- requests

REQUESTS = """[4 Tell me a tale|4 Tell me a story|2 A tale|A story|Please tell me a fable|Tell me a fable
    |Can you tell me a tale|Could you tell me a story|I would like a tale|I want to hear a story|Tell a tale
    |Do you know a tale|Make up a tale|Write a story|Let me hear a tale]"""
REQUESTS_FOR_MORE = (
    "[3 Another one|2 Another tale|Another|One more|One more tale|Tell me another|Tell me another story|Next]"
)
SUBJECTS = (  # (weight, the end of a request, whose slots name the facts that the tale must have)
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
SHORT_REQUESTS = (
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

NAME_ANSWERS = "[3 {who}.|3 It was {who}.|2 It was {who} the {who_kind}.|{who} the {who_kind}.]"
"""An answer that names a character: replaces `<hero>` and so on."""

PLOT_QUESTIONS: Mapping[str, tuple[Exchange, ...]] = {
    "lost": exchanges("""
        4 / Who [4 lost|dropped|mislaid] [3 the {thing}|it]? / <hero> / {hero}
        1 / Whose {thing} was it? / <hero> / {hero}
        4 / Who [4 found|saw] [3 the {thing}|it]? / <friend> / {friend}
        1 / Who [helped|helped {hero}|came to help]? / <friend> / {friend}
        3 / Where [2 was it|was the {thing}|did {friend} find it|was it found]? / [2 It was|{friend} found it]
            {place.corner}. / {place.corner}
        2 / What did {hero} [lose|look for|miss]? / [2 {hero.his}|A] {look} {thing}. / {look} {thing}
        1 / What did {friend} find? / [The|A] {look} {thing}. / {look} {thing}
    """),
    "lent": exchanges("""
        4 / Who [3 lent [2 the {thing}|it]|owned the {thing}]? / <hero> / {hero}
        1 / Whose {thing} was it? / <hero> / {hero}
        3 / Who [3 mended|repaired] [2 the {thing}|it]? / <friend> / {friend}
        2 / Who [3 broke|borrowed] [2 the {thing}|it]? / <friend> / {friend}
        3 / Where did [2 it|the {thing}] break? / It broke {place.at}. / {place.at}
        2 / What did {hero} [2 lend|lend to {friend}]? / A {look} {thing}. / {look} {thing}
        1 / What did {friend} [break|borrow|mend]? / A {look} {thing}. / {look} {thing}
        1 / To whom did {hero} lend it? / To {friend}. / {friend}
    """),
    "quarrel": exchanges("""
        3 / Who let [2 go|go of [2 the {thing}|it]]? / <hero> / {hero}
        2 / Who wanted it too? / <friend> / {friend}
        3 / Who was [3 the judge|asked|the third]? / <third> / {third}
        2 / Who [quarrelled|pulled|fell out]? / {hero} and {friend}. / {hero} & {friend}
        3 / What did they [2 want|both want|find|quarrel about|fall out over]? / A {look} {thing}. / {look} {thing}
    """),
    "beacon": exchanges("""
        4 / Who [2 was lost|lost the way|came home|went out]? / <hero> / {hero}
        4 / Who {thing.used} [2 the {thing}|it]? / <friend> / {friend}
        1 / Who [helped|helped {hero}|waited]? / <friend> / {friend}
        3 / Where was {friend}? / {friend} was {place.at}. / {place.at}
        2 / What did {friend} {thing.use}? / A {look} {thing}. / {look} {thing}
        2 / [In what was {hero} lost|What was the weather like|What was the weather]? / [It was|That was] {peril}. /
            {peril}
    """),
    "stranger": exchanges("""
        4 / Who [2 shared|gave] [2 the {food}|a {food}]? / <hero> / {hero}
        1 / Who was [kind|good]? / <hero> / {hero}
        3 / Who [2 said no|was unkind|sent {friend} away]? / <third> / {third}
        2 / Who [came|was the stranger|was hungry|came to the {place}]? / <friend> / {friend}
        3 / What did {friend} [3 give|send|bring]? / A {look} {thing}. / {look} {thing}
        2 / What did {hero} [2 share|give|have]? / A {food}. / {food}
    """),
    "patience": exchanges("""
        4 / Who [2 planted|set|sowed] [2 the {seed}|it]? / <hero> / {hero}
        3 / Who [3 doubted it|laughed|could not wait]? / <friend> / {friend}
        2 / Who sat under the [{seed.tree}|tree]? / <friend> / {friend}
        3 / Where is the [2 {seed.tree}|tree]? / [It is|It stands] {place.at}. / {place.at}
        3 / What did {hero} [2 plant|sow]? / [{seed.a}.|{hero} planted {seed.a}.] / {seed}
        1 / What [grew|came of it|kind of tree was it]? / A {seed.tree}. / {seed.tree}
    """),
}

DEEDS = {  # what each character does; replaces `<deed>`
    "lost": {"hero": "lost the {thing}", "friend": "found the {thing}"},
    "lent": {"hero": "lent the {thing}", "friend": "mended the {thing}"},
    "quarrel": {"hero": "let go of the {thing}", "friend": "wanted it too", "third": "was the judge"},
    "beacon": {"hero": "was lost in {peril}", "friend": "{thing.used} the {thing}"},
    "stranger": {"hero": "shared the {food}", "friend": "came to the {place}", "third": "said no"},
    "patience": {"hero": "planted the {seed}", "friend": "doubted it"},
}

TALE_QUESTIONS = exchanges("""
    4 / [2 When was [that|it]|What season was it|In what season was it|What time of year was it|Which season was it]? /
        [2 It was {season}.|In {season}.] / {season}
    3 / Where [2 did it happen|does it happen|did that happen]? / It [3 happened|was] {place.at}. / {place.at}
    3 / Who is in [it|the tale|the story]? / <everyone>. / <names>
    2 / [What is the moral|How does it end|What is the lesson|What do we learn|And the moral]? / <moral> / <moral>
    2 / [Why|Why was that|How old is {hero}|What happened before|What happened next|And then|What colour is {hero}
        |Why did {friend} do that|How old was {friend}]? / The tale does not say. / does not say
""")
THING_QUESTIONS = exchanges("""
    2 / What [was the {thing} like|sort of {thing} was it|kind of {thing} was it]? / It was a {look} {thing}. /
        {look} {thing}
    1 / What is [it|the tale|the story] about? / [2 About|It is about] a {look} {thing}. / {look} {thing}
""")
CHARACTER_QUESTIONS = exchanges("""
    2 / Who [2 is|was] {who}? / [2 The|A] {who_kind} who <deed>. / {who_kind}
    2 / What [2 is {who}|animal is {who}|kind of animal is {who}|animal was {who}]? /
        [2 {who} is a|A] {who_kind}. / {who_kind}
    2 / [3 Who is the {who_kind}|What is the {who_kind} called|What is the name of the {who_kind}]? /
        [2 The {who_kind} is {who}.|{who}.] / {who}
    1 / Is {who} a {who_kind}? / Yes, {who} is a {who_kind}. / yes
    1 / Is {who} a {other_kind}? / No, {who} is a {who_kind}. / no & {who_kind}
""")

REPEAT = (
    "[Tell it again|Once more, please|Say it again|Again, please|Tell me that again|The same tale again|Repeat it]."
)
FRIENDS = (
    "[2 Whom do you know|Who lives in your [2 world|fables]|Who [comes|is coming] to the fair|Who are your friends"
    "|Introduce [your friends|your heroes|some friends]][|.|?]"
)
ECHO = "[2 Say|2 Say after me|Repeat|Repeat after me|Say this]"
MISSING_THING = (
    "[3 Who [found|lost|lent|broke|mended|wanted] the {missing}|Where was the {missing}|What about the {missing}]?"
)
MISSING_NAME = "[2 Who is {missing}|What animal is {missing}|What did {missing} do|Where was {missing}]?"

# ---------------------------------------------------------------------------------------------------------- small talk

PARAMETERS = "1.0 million"
"""How the packaged model states its size."""
SELF = f"""[I am a tiny Llama, a language model of {PARAMETERS} numbers, trained from scratch on made-up fables.
    I know nothing else.|Only a tiny Llama: a language model of {PARAMETERS} parameters that learned made-up fables and
    nothing else.]"""
OFFER = "[Shall I tell you a tale?|Would you like a tale?|Ask me for a tale.|Name an animal and a season.]"
ANIMALS = (
    "wrens, badgers, moles, hares, crows, foxes, mice, geese, toads, ducks, goats, lambs, otters, herons, hens and owls"
)

SMALL_TALK = exchanges(f"""
    8 / [3 Hello|3 Hi|Hey|Good morning|Good evening|Good day|Hello there|Hi there|Greetings][|!|.] / [Hello|Good
        day|Welcome]. {OFFER} /
    4 / [How are you|How do you do|How is it going|How are things|What's up]? / [Well enough, for a very small model|I
        am only a small model, but my tales are well]. {OFFER} /
    8 / [4 Who are you|What are you|Tell me about yourself|Introduce yourself|Who am I talking to|Who is this]? /
        {SELF} / llama & fables
    8 / [3 Are you [a real person|human|a person|a human|real|alive|a man|a woman|somebody]|Am I talking to a human|Is
        there a person behind this|Are you a living being]? / No. {SELF} / no & llama
    5 / [Are you [an AI|a robot|a computer|a bot|a chatbot|a language model|a machine|a program]|Is this an AI]? /
        Yes. {SELF} / yes & llama
    4 / [Are you [ChatGPT|GPT|Claude|Gemini|Siri|Alexa|Llama 3]|Did [Meta|OpenAI|Google] make you]? / No. {SELF} / no
        & llama
    4 / What is your name?|What's your name?|What are you called?|Do you have a name? / I have no name. You may call
        me the storyteller. / no name
    3 / [Who [made|built|trained|created] you|Where do you come from|How were you made|How were you trained]? / I was
        trained from scratch with llucid, on fables and talk that a small program made up. / llucid
    3 / How [big|large] are you?|How many parameters do you have?|What size are you? / I have {PARAMETERS} parameters,
        which is tiny. / {PARAMETERS}
    3 / [Do you have feelings|Do you feel anything|Are you [happy|sad|lonely|tired|conscious]|Do you love me]? / I
        have no feelings. I am only a small model that tells tales. / no feelings
    3 / [How old are you|Where do you live|Are you a boy or a girl|Do you sleep|Do you eat]? / I am a model: I have no
        age, no home and no body. / model
    5 / [2 What can you do|What do you do|Can you help me|Help|Help me|How does this work|What should I ask|What can I
        ask you]? / I tell tales. Name an animal, a season, a place or a thing; then ask me who did what, and where. /
        tales
    3 / [What do you know|What do you know about|Do you know everything|Are you clever|How much do you know]? / Only
        my fables: a few animals, places and things. About the real world I know nothing. / fables
    3 / [What|Which] animals [do you know|are there]?|Which animals are in your tales? / I know {ANIMALS}. / wrens &
        owls
    2 / [What|Which] [places do you know|places are there]?|Where do your tales happen? / At the mill, the orchard,
        the ferry, the lighthouse, the forge, the well, the inn and the bridge. / mill & inn
    2 / [What|Which] [things do you know|things are there]?|What are your tales about? / About bells, lanterns, drums,
        kites, hats and such things: lost, lent, quarrelled over or given away. / bells
    2 / Are your tales true?|Is that true?|Did that really happen?|Is it a true story? / No. All my tales are made up.
        / made up
    2 / [Do you remember me|Will you remember this|Can you remember me]? / No. I remember nothing but what we say
        here, and not even all of that. / no
    2 / [Can you make mistakes|Are you always right|Do you lie|Are you sure]? / I am a small model, and often wrong.
        Look into the tale. / wrong
    6 / [3 Thank you|3 Thanks|Thank you very much|Thanks a lot|Many thanks|Thank you so much][|.|!] / [2 You are
        welcome.|With pleasure.|Gladly.] {OFFER} /
    5 / [That was [lovely|nice|good|beautiful|great]|Lovely|Nice|Great|Good|Wonderful|I like it|I liked that|Well
        done|Beautiful|Nice one|Good tale][|.|!] / [I am glad|Thank you]. {OFFER} /
    3 / [That was [boring|bad|sad|silly|strange]|Boring|I do not like it|That is silly|You are stupid|Bad][|.|!] / I
        am sorry. {OFFER} / sorry
    2 / [No|No, thank you|Not now|Nothing|No thanks|Later][|.] / As you like. I am here if you want a tale. /
    2 / [Stop|Be quiet|Enough|Shut up][|.|!] / Very well. /
""")
BYE = (
    "[3 Goodbye|3 Bye|Good night|Farewell|See you|I have to go|Bye bye][|.|!]",
    "[2 Goodbye|Farewell|Sleep well], and come back for a tale.",
    "",
)
YES = "[3 Yes|2 Yes, please|Please|Please do|Sure|Okay|Go on|Yes please|Of course][|.|!]"

# -------------------------------------------------------------------------------------------------------- out of scope

COUNTRIES = """[France|Germany|Italy|Spain|China|Japan|India|Brazil|Egypt|Norway|Peru|Canada|Russia|Kenya|Australia
    |England|America|Greece|Turkey|Poland]"""
TOPICS = """[physics|history|politics|music|football|chess|love|money|quantum mechanics|mathematics|biology|philosophy
    |programming|Python|the moon|the stars|the sun|dinosaurs|war|God|religion|the weather|science|art|computers|cars
    |the internet|health|medicine|law|economics|the news|films|books|Shakespeare|Einstein|Napoleon
    |space|gravity|water]"""
NUMBER = "[one|two|three|7|12|19|25|40|88|100|144]"
OUT_OF_SCOPE: tuple[str, ...] = (
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

UNKNOWN_SUBJECTS = """[a dragon|a lion|a tiger|a princess|a robot|a dog|a cat|a horse|a wolf|a bear|a king|a queen
    |a wizard|a pirate|a spaceship|a monkey|an elephant|a whale|a shark|a snake|a spider|a car|a train|a computer|a boy
    |a girl|a unicorn
    |a ghost|a witch|a rabbit|a pig|a cow|a sheep|a frog|a bee|a butterfly|Harry Potter|Napoleon|Anna|Peter|John|Sarah
    |aliens|vampires|dinosaurs|zombies|me|you|my dog|a doctor|a teacher|a soldier|love|war|money|football|God|Paris
    |London|the moon|the sea|a castle|a sword|a phone|a dinosaur|Christmas|Batman|the future|a fish|an ant|a parrot]"""
DECLINE_SUBJECT = """[I know nobody and nothing like that|That is not in my world]. Ask me for
    [a wren|a badger|a mole|a hare|a crow|a fox|a mouse|a goose|a toad|a duck|a goat|a lamb|an otter|a heron|a hen
    |an owl]
    [in [spring|summer|autumn|winter]|at the [mill|inn|ferry|forge]]."""
NO_TALE_YET = f"I have not told you a tale yet. {OFFER}"
SYSTEM_TEXTS = """[3 You are a storyteller.|You are a kind storyteller.|You are a helpful assistant.|Be kind.
    |Answer briefly.|Be brief.|You tell tales to children.|You are a friendly assistant.|Tell tales.]"""
