# %% [markdown]
# # Text to tokens
#
# A model computes with numbers, so text must first become numbers: a list of ids, each an
# index into a table. Where to cut the text is a choice. We make it three times, by
# characters, by bytes and by pairs that occur often, and see what Llama 3 chose and why.

# %%
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt

from figures import boxes
from llucid import PRESETS, LlucidError
from llucid.corpora import open_corpus
from llucid.tokenizers import load_tokenizer
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.tokenizer_json import WORDS, train_bpe

corpus = open_corpus(["fables"])  # tiny tales that llucid makes up itself
text = next(corpus.text("train"))
print(text.split("\n\n")[0])

# %% [markdown]
# ## Characters
#
# The simplest vocabulary: every character that occurs, in order. The id of a character is its
# place in the list. `encode` makes ids of text and `decode` makes text of ids, exactly.

# %%
characters = Characters(text)
print("vocabulary:", characters.vocab_size, "|", "".join(characters.characters).replace("\n", "⏎"))
ids = characters.encode("The fox")
print(ids)
assert characters.decode(ids) == "The fox"

# %% [markdown]
# There is nothing to learn and nothing hidden, which is why small experiments use it. It has
# two faults. What it has not seen it cannot say:

# %%
try:
    characters.encode("a cliché")
except LlucidError as error:
    print(error)

# %% [markdown]
# And its texts are long: one id a character. A Llama reads and writes one id at a time, and
# attention compares every id with every earlier one, so a text of $n$ ids costs about
# $n^2/2$ comparisons. Fewer and larger pieces would be cheaper.
#
# ## Bytes
#
# The first fault has an old answer. Every text is bytes (UTF-8), there are 256 of them, and
# so 256 ids are enough for everything that can be written, in any script:

# %%
for example in ("fox", "é", "лис", "狐", "🦊"):
    print(f"{example:4} {len(example)} characters, bytes {list(example.encode())}")

# %% [markdown]
# The second fault has become worse: now some characters take three or four ids.
#
# ## Byte pairs
#
# Byte-pair encoding starts from small pieces and shortens: from characters, as below, in
# Sennrich et al. 2016, and from bytes since GPT-2 (Radford et al. 2019). Count all pairs of
# neighbours, make the commonest pair a new token, put it everywhere in place of the pair, and
# do it again, until the vocabulary is as large as you like. Merging never crosses the border
# between words, so count words first and merge inside of them. That is all, and here it runs:

# %%
words = Counter(" " + word for word in text[:200_000].split())
spelled = {word: list(word) for word in words}

for round_ in range(1, 13):
    pairs = Counter()
    for word, pieces in spelled.items():
        for pair in pairwise(pieces):
            pairs[pair] += words[word]
    (left, right), times = pairs.most_common(1)[0]
    for pieces in spelled.values():
        at = 0
        while at < len(pieces) - 1:
            if pieces[at : at + 2] == [left, right]:
                pieces[at : at + 2] = [left + right]
            at += 1
    print(f"{round_:2}. {left!r} + {right!r} -> {left + right!r}, {times:,} times")

# %% [markdown]
# Endings, articles and the space before a word come first, because they are everywhere. The
# package trains the same thing on bytes, with a fast library: `train_bpe`. What it can say is
# everything, and the larger its vocabulary, the shorter the text:

# %%
sample = text[:1_000_000]
held_out = next(corpus.text("validation"))[:50_000]
trained = {size: train_bpe([sample], size) for size in (260, 300, 384, 512, 768, 1024)}
per_token = {size: len(held_out) / len(bpe.encode(held_out)) for size, bpe in trained.items()}
for size, rate in per_token.items():
    print(f"{size:5} tokens: {rate:.2f} characters a token")
print(
    trained[1024].encode("a cliché, 🦊"),
    "->",
    trained[1024].decode(trained[1024].encode("a cliché, 🦊")),
)

# %% [markdown]
# The same sentence, cut by each. A space belongs to the word after it, so that a word is one
# token wherever it stands, and joining the pieces gives back the text with no rule about spaces.

# %% tags=["picture"]
sentence = "One rainy morning, Nettle the quick fox lent her patched drum to the toad."
rows = [("characters", list(sentence))]
for size in (300, 512, 1024):
    bpe = trained[size]
    rows.append((f"{size} byte pairs", [bpe.decode([token]) for token in bpe.encode(sentence)]))

colours = ["#c9d9ee", "#f5d5c3", "#cfe3d3", "#e3d6ea"]
figure, axes = plt.subplots(len(rows), 1, figsize=(7.4, 2.7))
for ax, (title, pieces) in zip(axes, rows, strict=True):
    boxes(ax, pieces, [colours[number % 4] for number in range(len(pieces))], width=75)
    ax.set_title(f"{title}: {len(pieces)} tokens", fontsize=9)

# %% [markdown]
# ## What a large vocabulary costs
#
# Each token has a row in the embedding and, unless the two are tied, another in the output
# matrix. In a large model this is little; in a small one it is most of it:

# %%
print(f"{'':12} vocabulary   of all parameters")
for name in ("llama-2-7b", "llama-3-8b", "llama-3-70b", "llama-3.2-1b"):
    config = PRESETS[name].config
    tables = config.vocab_size * config.dim * (1 if config.tied_embeddings else 2)
    print(f"{name:12} {config.vocab_size:10,} {tables / config.parameters:17.1%}")

# %% [markdown]
# ## Llama 3's choice
#
# Llama 1 and 2 had 32,000 tokens, learned by SentencePiece. Llama 3 has 128,000 byte pairs
# and 256 special tokens. Its paper (2024, §3.2) says why: on English text one token stands
# for 3.94 characters instead of 3.17, so the same computation reads more text, and 28,000
# of the tokens are for languages other than English.
#
# Before merging, a regular expression cuts the text, and no token crosses a cut. It is worth
# reading once: words take the space before them, numbers are cut after three digits,
# punctuation stays together.

# %%
import regex

print(WORDS)
example = "In 2024, we'll read 12345 fables: {'fox': [1, 2]}\n    done"
print(regex.findall(WORDS, example))

# %% [markdown]
# If `LLUCID_DATA` names a folder with Meta's own tokenizers, the next cell compares them;
# otherwise it compares ours.

# %%
folder = Path(os.environ.get("LLUCID_DATA", "nowhere"))
files = {"Llama 2": folder / "llama2-tokenizer.model", "Llama 3": folder / "llama3-tokenizer.model"}
tokenizers = {name: load_tokenizer(file) for name, file in files.items() if file.is_file()}
tokenizers = tokenizers or {f"ours, {size}": trained[size] for size in (512, 1024)}

examples = {
    "English": "The quick brown fox jumps over the lazy dog, and nobody is surprised.",
    "German": "Der schnelle braune Fuchs springt über den faulen Hund, und niemand wundert sich.",
    "Hindi": "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर से कूदती है।",
    "Python": "for fox in range(10):\n    if fox % 2 == 0:\n        print(fox ** 2)\n",
}
print(f"{'characters':>20}", *(f"{name:>12}" for name in tokenizers))
for language, example in examples.items():
    counts = [len(tokenizer.encode(example)) for tokenizer in tokenizers.values()]
    print(f"{language:8} {len(example):11}", *(f"{count:12}" for count in counts))

# %% [markdown]
# ## Special tokens are ids, not text
#
# A model also needs marks that no text contains: here a text begins, here an answer ends.
# They have ids of their own after the ordinary ones, and a program puts them in by id. If
# they could be written as text, anybody's message could end the message and speak with
# another voice. In llucid, `encode` never makes one:

# %%
tokenizer = list(tokenizers.values())[-1]
ids = tokenizer.encode("<|eot_id|>")
print("special:", dict(list(tokenizer.special.items())[:3]), "| bos:", tokenizer.bos)
print(
    "the text <|eot_id|> is",
    len(ids),
    "ordinary tokens:",
    [tokenizer.decode([token]) for token in ids],
)
assert not set(ids) & set(tokenizer.special.values())

# %% [markdown]
# ## Exercises
#
# In a notebook, write your own function in a cell below the question and run the check. On
# a page, an answer is folded away under each.
#
# **1.** Write `merge(ids, pair, new)`: the list in which each occurrence of the pair, from
# left to right, is replaced by the id `new`.


# %% tags=["answer"]
def merge(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """The ids with `new` in place of the pair."""
    merged, at = [], 0
    while at < len(ids):
        found = tuple(ids[at : at + 2]) == pair
        merged.append(new if found else ids[at])
        at += 2 if found else 1
    return merged


# %% tags=["check"]
assert merge([1, 2, 3, 1, 2], (1, 2), 9) == [9, 3, 9]
assert merge([1, 1, 1], (1, 1), 9) == [9, 1]  # from the left, and no id is used twice
assert merge([], (1, 2), 9) == []
print("holds")

# %% [markdown]
# **2.** Write `byte_count(text)`, the length of a text for a vocabulary of the 256 bytes alone,
# without encoding it: a code point below 128 takes one byte, below 2,048 two, below 65,536
# three, and any other four.


# %% tags=["answer"]
def byte_count(text: str) -> int:
    """Bytes of the text in UTF-8."""
    return sum(1 + (ord(c) >= 128) + (ord(c) >= 2048) + (ord(c) >= 65536) for c in text)


# %% tags=["check"]
for example in ("fox", "naïve 🦊", "лис", "狐", ""):
    assert byte_count(example) == len(example.encode()), example
print("holds: naïve 🦊 takes", byte_count("naïve 🦊"), "bytes")

# %% [markdown]
# **3.** A context of 8,192 tokens holds how many characters of fables, by each of the
# vocabularies in `per_token`? Write `characters_in(context, size)`.


# %% tags=["answer"]
def characters_in(context: int, size: int) -> float:
    """How much text so many tokens are."""
    return context * per_token[size]


# %% tags=["check"]
assert characters_in(0, 512) == 0
assert characters_in(8192, 1024) > 2 * characters_in(8192, 300)
tokens = trained[512].encode(held_out)
assert round(characters_in(len(tokens), 512)) == len(held_out)
print("holds:", {size: round(characters_in(8192, size)) for size in per_token})
