# %% [markdown]
# # Tokens and embedding
#
# A model computes with numbers. So text becomes ids, and each id becomes a vector. Where to cut
# the text is a choice: characters, bytes, or pairs that occur often. We make all three, and then
# look at the vectors that a trained model gave to foxes and bells.

# %% tags=["setup"]
from collections import Counter
from itertools import pairwise

import matplotlib.pyplot as plt
import torch

import llucid
from figures import boxes, whole_llama
from llucid import PRESETS, LlucidError
from llucid.chat import STORYTELLER
from llucid.corpora import open_corpus
from llucid.tokenizers.characters import Characters
from llucid.weights import parameter_count

text = "The fox rang the bell. The fox rang the"

# %% tags=["plot"]
# The whole Llama with tokens and embedding highlighted.
whole_llama("tokens", "embedding")

# %% [markdown]
# ## Characters
#
# The simplest vocabulary: all characters that occur, in order. The id of a character is its
# place in the list.

# %%
characters = Characters(text)
print("vocabulary:", characters.characters)
ids = characters.encode(text)
print(len(text), "characters,", len(ids), "ids:", ids[:12], "...")
assert characters.decode(ids) == text

# %% [markdown]
# Nothing is learned and nothing is hidden, which is good for experiments. There are two faults.
# What it has not seen it cannot write:

# %%
try:
    characters.encode("The ox rang")
    characters.encode("the owl")
except LlucidError as error:
    print(error)

# %% [markdown]
# And its texts are long. A Llama writes one id at a time, and attention compares each id with every
# earlier one: $n$ ids cost about $n^2/2$ comparisons.
#
# ## Bytes
#
# The first fault has a simple cure. Every text is bytes (in UTF-8), and there are 256 of them:

# %%
for example in ("fox", "é", "лис", "狐", "🦊"):
    print(f"{example:4} {len(example)} characters, bytes {list(example.encode())}")

# %% [markdown]
# Everything can be written with 256 ids now, but texts became even longer.
#
# ## Byte pairs
#
# *Byte-pair encoding* (Sennrich et al. 2016) makes them shorter. Count the pairs of neighbours,
# make the most frequent pair a new token, replace it everywhere, and repeat. By hand, on our text,
# with characters to begin with:


# %%
def most_frequent(pieces: list[str]) -> tuple[str, str]:
    """The pair of neighbours that occurs most often (of several, the first)."""
    return Counter(pairwise(pieces)).most_common(1)[0][0]


def merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """The pieces with every occurrence of the pair joined."""
    merged, at = [], 0
    while at < len(pieces):
        found = tuple(pieces[at : at + 2]) == pair
        merged.append("".join(pair) if found else pieces[at])
        at += 2 if found else 1
    return merged


pieces = list(text)
for round_ in range(1, 9):
    pair = most_frequent(pieces)
    pieces = merge(pieces, pair)
    print(f"{round_}. {pair[0]!r} + {pair[1]!r}: {len(pieces)} tokens left")
print(pieces)

# %% [markdown]
# On a large corpus, merging stops at word borders: words are counted, and pairs are merged inside
# of words. A word keeps the space before it. The storyteller learned its vocabulary in this way
# from conversations about fables, with bytes to begin with, so it can write any text:

# %%
model = llucid.load(STORYTELLER, dtype="float32", device="cpu")
tokenizer = model.tokenizer
print(f"{tokenizer.vocab_size:,} tokens")
for example in (text, "The ox rang the 鐘."):
    ids = tokenizer.encode(example)
    print(len(example), "characters,", len(ids), "tokens:", [tokenizer.decode([t]) for t in ids])
    assert tokenizer.decode(ids) == example

# %% [markdown]
# (A token that is only a part of a character cannot be shown alone.) More merges make texts
# shorter. Below, the same sentence by characters, after some merges on fables, and by the
# storyteller's vocabulary.

# %%
fables = next(open_corpus(["fables"]).text("train"))
words = Counter(" " + word for word in fables[:100_000].split())


def learn(count: int) -> list[tuple[str, str]]:
    """That many merges, learned from `words`."""
    spelled, merges = {word: list(word) for word in words}, []
    for _ in range(count):
        pairs = Counter()
        for word, pieces in spelled.items():
            for pair in pairwise(pieces):
                pairs[pair] += words[word]
        merges.append(pairs.most_common(1)[0][0])
        spelled = {word: merge(pieces, merges[-1]) for word, pieces in spelled.items()}
    return merges


merges = learn(60)
print("the first merges:", ["".join(pair) for pair in merges[:12]])


def encode(text: str, merges: list[tuple[str, str]]) -> list[str]:
    """The pieces of a text after these merges, in order."""
    pieces = list(" " + text)
    for pair in merges:
        pieces = merge(pieces, pair)
    return pieces


rows = {f"{n} merges": encode(text, merges[:n]) for n in (0, 10, 60)}
rows["storyteller"] = [tokenizer.decode([token]) for token in tokenizer.encode(text)]

# %% tags=["picture"]
# One sentence cut into tokens by four vocabularies; larger vocabularies need fewer tokens.
colours = ["#c9d9ee", "#f5d5c3", "#cfe3d3", "#e3d6ea"]
figure, axes = plt.subplots(len(rows), 1, figsize=(7.4, 2.7))
for ax, (title, pieces) in zip(axes, rows.items(), strict=True):
    boxes(ax, pieces, [colours[number % 4] for number in range(len(pieces))], width=60)
    ax.set_title(f"{title}: {len(pieces)} tokens", fontsize=9)

# %% [markdown]
# Llama 3 has 128,000 such tokens and 256 special ones, of which lesson 9 tells more. Its paper
# (2024, §3.2) says what a larger vocabulary gives: on English text a token stands for 3.94
# characters instead of Llama 2's 3.17.
#
# ## A row for each token
#
# An id is only a name; 629 is not more than 264. So the model has a table, the *embedding* $E$,
# with one row of `dim` numbers for each token. The row is what the model works with, and it
# is learned. By hand, with a vocabulary of three tokens and two numbers each:

# %%
E = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])  # the, fox, bell
x = E[torch.tensor([0, 1, 0, 2])]  # the fox the bell
print(x)

# %% [markdown]
# Looking up a row is the same as multiplying with a vector that is 1 at the id and 0 elsewhere
# (*one-hot*), which is why the embedding can be trained like any matrix. In the storyteller:

# %%
E = model.weights.embedding
ids = torch.tensor(tokenizer.encode(text))
x = E[ids]
one_hot = torch.nn.functional.one_hot(ids, tokenizer.vocab_size).float()
assert torch.allclose(x, one_hot @ E)
print("E", list(E.shape), " vocab dim;  ids", list(ids.shape), "-> x", list(x.shape), " seq dim")

# %% [markdown]
# What did training put there? Two vectors are alike if they point in the same direction: their
# *cosine*, the dot product divided by both lengths, is near 1. For each of these words, the three
# tokens whose rows are most alike:

# %%
direction = E / E.norm(dim=-1, keepdim=True)


def alike(word: str, count: int = 3) -> list[tuple[str, float]]:
    """The tokens with the largest cosine, but for the word itself."""
    cosine = direction @ direction[tokenizer.encode(word)[0]]
    best = cosine.topk(count + 1)
    found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(tokenizer.decode([t]), round(c, 2)) for t, c in found][1:]


for word in (" fox", " bell", " rang", " winter", " said"):
    print(f"{word!r:10} {alike(word)}")

# %% tags=["plot"]
# Cosines of the rows of five animals, five things and four seasons.
groups = [
    " fox toad owl mouse crow",
    " bell drum lantern kettle fiddle",
    " spring summer autumn winter",
]
chosen = [" " + word for group in groups for word in group.split()]
chosen = [word for word in chosen if len(tokenizer.encode(word)) == 1]
rows_of = direction[[tokenizer.encode(word)[0] for word in chosen]]
figure, ax = plt.subplots(figsize=(5, 4.2))
image = ax.imshow(rows_of @ rows_of.T, cmap="RdBu", vmin=-1, vmax=1, interpolation="none")
ax.set_xticks(range(len(chosen)), chosen, rotation=90, fontsize=8)
ax.set_yticks(range(len(chosen)), chosen, fontsize=8)
figure.colorbar(image, label="cosine")


# %%
def mean_cosine(a: str, b: str) -> float:
    """The mean cosine of different words of two lists."""
    found = [
        direction[tokenizer.encode(" " + one)[0]] @ direction[tokenizer.encode(" " + two)[0]]
        for one in a.split()
        for two in b.split()
        if one != two
    ]
    return torch.stack(found).mean().item()


animals, seasons = "fox toad owl mouse crow", "spring summer autumn winter"
print(f"animals and animals {mean_cosine(animals, animals):+.2f}")
print(f"animals and seasons {mean_cosine(animals, seasons):+.2f}")
assert mean_cosine(animals, animals) > mean_cosine(animals, seasons) + 0.1

# %% [markdown]
# Words that can stand in the same places have similar rows. Nobody told the model what an animal is.
# Words that often stand near each other, as *bell* and *rang*, can be alike, too. And a token that
# training hardly ever met keeps a nearly random row, which is near to some word by chance.
#
# ## What a vocabulary costs
#
# Each token has a row in the embedding and, unless both are *tied* (one and the same), another in
# the output matrix, with which the last vector is compared (lesson 5):

# %%
print(f"{'':13} vocabulary   share of all parameters")
shares = {}
for name in ("llama-2-7b", "llama-3-8b", "llama-3-70b", "llama-3.2-1b"):
    config = PRESETS[name].config
    tables = config.vocab_size * config.dim * (1 if config.tied_embeddings else 2)
    shares[name] = tables / parameter_count(config)
    print(f"{name:13} {config.vocab_size:10,} {shares[name]:12.1%}")
tied = tokenizer.vocab_size * model.config.dim / parameter_count(model.config)
print(f"{'storyteller':13} {tokenizer.vocab_size:10,} {tied:12.1%}")
assert shares["llama-3-70b"] < shares["llama-3-8b"] < shares["llama-3.2-1b"]

# %% [markdown]
# With one and the same vocabulary, the smaller the model, the larger is its share.
#
# ## Exercises
#
# **1.** Write `byte_count(text)`, the number of bytes of a text in UTF-8, without encoding it: a
# code point (`ord`) below 128 takes one byte, below 2,048 two, below 65,536 three, any other four.

# %% tags=["exercise"]


def byte_count(text: str) -> int:
    """Bytes of the text in UTF-8."""
    raise NotImplementedError


# %% tags=["check"]
for example in ("fox", "naïve 🦊", "лис", "狐", "", "\x7f\x80\u07ff\u0800\uffff\U00010000"):
    assert byte_count(example) == len(example.encode()), example
print("correct: naïve 🦊 takes", byte_count("naïve 🦊"), "bytes")


# %% tags=["answer"]
def byte_count(text: str) -> int:
    """Bytes of the text in UTF-8."""
    return sum(1 + (ord(c) >= 128) + (ord(c) >= 2048) + (ord(c) >= 65536) for c in text)


# %% [markdown]
# **2.** Write `most_alike(matrix, row)`: the number of the other row with the largest cosine.

# %% tags=["exercise"]


def most_alike(matrix: torch.Tensor, row: int) -> int:
    """The row of the matrix, but for `row` itself, that points most in the same direction."""
    raise NotImplementedError


# %% tags=["check"]
example = torch.tensor([[1.0, 0.0], [0.0, 9.0], [2.0, 3.0], [0.1, 0.01]])
assert most_alike(example, 0) == 3  # the length does not matter
assert most_alike(example, 1) == 2
fox = tokenizer.encode(" fox")[0]
assert tokenizer.decode([most_alike(E, fox)]) == alike(" fox")[0][0]
print("correct")


# %% tags=["answer"]
def most_alike(matrix: torch.Tensor, row: int) -> int:
    """The row of the matrix, but for `row` itself, that points most in the same direction."""
    unit = matrix / matrix.norm(dim=-1, keepdim=True)
    cosine = unit @ unit[row]
    cosine[row] = -2
    return int(cosine.argmax())
