# %% [markdown]
# # A table that predicts
#
# The smallest language model is a table: for each word, how often each other word followed it.
# We make one by hand from a sentence, measure how good it is with one number, the loss, and then
# find the same table by making the loss smaller. All training is of that kind.

# %% tags=["setup"]
import math
from collections import Counter
from itertools import pairwise

import matplotlib.pyplot as plt
import torch

from figures import whole_llama
from llucid.corpora import open_corpus

# %% tags=["plot"]
# The whole Llama with softmax and loss highlighted.
whole_llama("loss")

# %% [markdown]
# ## By hand
#
# Our text, in lower case and cut at spaces. Which word follows which?

# %%
words = "the fox rang the bell . the fox rang the bell .".split()
pairs = Counter(pairwise(words))
for (first, second), count in pairs.items():
    print(f"{first:5} -> {second:5} {count}")

# %% [markdown]
# Divide each count by the sum of its row, and the counts are probabilities: a *bigram* table
# (Shannon 1948). After *fox* always comes *rang*. After *the* come *fox* and *bell*, equally often:


# %%
def probability(first: str, second: str) -> float:
    """How often `second` followed `first`, as a share."""
    row = sum(count for (before, _), count in pairs.items() if before == first)
    return pairs[first, second] / row


for second in ("fox", "bell"):
    print(f"p({second} | the) = {probability('the', second):.2f}")
assert probability("the", "fox") == probability("the", "bell") == 0.5

# %% [markdown]
# So to "the fox rang the" the table answers *fox* or *bell*, a coin toss: it sees only the last
# word. You answer *bell* because you see more words. The following lessons are about seeing more.
#
# ## One number for how good it is
#
# If a model gave the token that really came the probability $p$, its *surprise* is $-\ln p$, in
# *nats*. If it was certain ($p = 1$), the surprise is 0. A coin toss costs 0.69. The smaller $p$, the
# larger the surprise, without limit. The *loss* is the mean over all tokens of a text:
#
# $$ L = -\frac{1}{n} \sum_{t=1}^{n} \ln p(x_{t+1} \mid x_1 \ldots x_t) $$

# %%
surprises = [math.log(1 / probability(first, second)) for first, second in pairwise(words)]
for (first, second), surprise in zip(pairwise(words), surprises, strict=True):
    print(f"{first:5} {second:5} {surprise:.3f}")
loss = sum(surprises) / len(surprises)
print(f"loss {loss:.4f} nats per word")
assert math.isclose(loss, 4 * math.log(2) / 11)

# %% [markdown]
# (The program computes $\ln \frac{1}{p}$, which is the same and prints no −0.) Four of the eleven
# words follow *the* and cost $\ln 2$ each, all others cost nothing. A model that knows nothing and
# gives each of the five words $\frac{1}{5}$ would pay $\ln 5 = 1.609$.
#
# ## Found by descent
#
# We counted. For a large model there is no way to count; we can only try to make the loss
# smaller. Let us do that with the table. Begin with a table of scores, all 0. The softmax of a row
# is a row of probabilities (lesson 0). PyTorch computes for every score how the loss changes with
# it: the *gradient*. Then change each score a little in the direction in which the loss falls. How
# much is a number to choose, the *learning rate* (lesson 7); here 10 does well, since each score
# has only a small part in a mean over eleven words:

# %%
vocabulary = sorted(set(words))
number = {word: at for at, word in enumerate(vocabulary)}
inputs = torch.tensor([number[word] for word in words[:-1]])
targets = torch.tensor([number[word] for word in words[1:]])

rate = 10
scores = torch.zeros(len(vocabulary), len(vocabulary), requires_grad=True)
for step in range(301):
    rows = scores[inputs]  # one row of scores for each input
    log_p = rows.log_softmax(-1)
    found = -log_p[torch.arange(len(targets)), targets].mean()
    if step in (0, 10, 100, 300):
        print(f"step {step:3}: loss {found.item():.4f}")
    found.backward()  # fills scores.grad
    with torch.no_grad():
        scores -= rate * scores.grad
        scores.grad = None

learned = scores.detach().softmax(-1)
print(f"learned p(bell | the) = {learned[number['the'], number['bell']]:.3f}")
assert abs(found.item() - loss) < 0.03

# %% [markdown]
# The first loss is $\ln 5$, the last near what counting gave. Nobody told the table the counts.
#
# ## The same on a real text
#
# Now characters instead of words, and a corpus of a few million characters: fables, which llucid
# makes up by a grammar. Counting is quick, so we count. The first million characters give the table.
# The loss is measured on the end of the corpus, which the table has not seen. There, a pair may come
# up that was never counted, and a probability of 0 would cost infinitely much; so we add 0.01 to all
# counts.

# %%
corpus = open_corpus(["fables"])
text = next(corpus.text("train"))
held_out = next(corpus.text("validation"))
characters = sorted(set(text + held_out))
index = {character: at for at, character in enumerate(characters)}


def encode(text: str) -> torch.Tensor:
    """The ids of the characters."""
    return torch.tensor([index[character] for character in text])


seen, new = encode(text), encode(held_out)
counts = torch.zeros(len(characters), len(characters))
counts.index_put_((seen[:-1], seen[1:]), torch.ones(len(seen) - 1), accumulate=True)
p = (counts + 0.01) / (counts + 0.01).sum(-1, keepdim=True)
bigram_loss = -p[new[:-1], new[1:]].log().mean().item()
print(f"uniform {math.log(len(characters)):.3f}, bigram {bigram_loss:.3f} nats per character")
assert bigram_loss < 0.6 * math.log(len(characters))

# %% tags=["picture"]
# The bigram table of letters in fables: rows are a letter, columns the one after it.
letters = [c for c in characters if c.islower()] + [" "]
at = [index[c] for c in letters]
figure, ax = plt.subplots(figsize=(5, 4.4))
ax.imshow(p[at][:, at].sqrt(), interpolation="none")
shown = [c.replace(" ", "␣") for c in letters]
ax.set_xticks(range(len(at)), shown, fontsize=7)
ax.set_yticks(range(len(at)), shown, fontsize=7)
ax.set(xlabel="next character", ylabel="character")

# %% [markdown]
# Dark cells are frequent pairs. After *q* there is only *u*. What does a text look like that was
# drawn from this table, one character after the other?

# %%
assert counts[index["q"], index["u"]] == counts[index["q"]].sum()
generator = torch.Generator().manual_seed(0)
written = encode("T").tolist()
for _ in range(100):
    written.append(torch.multinomial(p[written[-1]], 1, generator=generator).item())
print("".join(characters[at] for at in written))

# %% [markdown]
# Letters of the right kind, hardly a word. The grammar that made the fables is known, so the best
# possible loss is known as well, the *entropy* of the corpus:

# %%
print(f"bigram {bigram_loss:.3f}, best possible {corpus.floor:.3f} nats per character")
assert corpus.floor < bigram_loss / 5

# %% [markdown]
# Between these two numbers lies everything that a Llama does better than a table. `llucid
# ladder` goes that way in ten steps; its first rung is our table,
# [`rung_01_bigram.py`](../llucid/ladder/rung_01_bigram.py).
#
# ## Exercises
#
# **1.** Write `loss_of(p)`: the loss of a model that gave the true next tokens the probabilities
# in the list `p`.

# %% tags=["exercise"]


def loss_of(p: list[float]) -> float:
    """The mean surprise in nats."""
    raise NotImplementedError


# %% tags=["check"]
assert loss_of([1.0, 1.0]) == 0
assert math.isclose(loss_of([0.5]), math.log(2), rel_tol=1e-5)
assert math.isclose(loss_of([0.5, 0.25]), 1.5 * math.log(2), rel_tol=1e-5)
print("correct")


# %% tags=["answer"]
def loss_of(p: list[float]) -> float:
    """The mean surprise in nats."""
    return sum(-math.log(chance) for chance in p) / len(p)


# %% [markdown]
# **2.** *Perplexity* is $e^L$: among how many equally likely tokens would one have to guess, to be
# as surprised? Write `perplexity(loss)`, and `bits(loss)`, the loss in bits instead of nats.

# %% tags=["exercise"]


def perplexity(loss: float) -> float:
    """e to the loss."""
    raise NotImplementedError


def bits(loss: float) -> float:
    """The loss with the logarithm to base 2."""
    raise NotImplementedError


# %% tags=["check"]
assert math.isclose(perplexity(math.log(5)), 5, rel_tol=1e-5)
assert math.isclose(bits(math.log(8)), 3, rel_tol=1e-5)
assert perplexity(0) == 1
print(f"correct: the table's is {perplexity(bigram_loss):.1f}, {bits(bigram_loss):.2f} bits")


# %% tags=["answer"]
def perplexity(loss: float) -> float:
    """e to the loss."""
    return math.exp(loss)


def bits(loss: float) -> float:
    """The loss with the logarithm to base 2."""
    return loss / math.log(2)


# %% [markdown]
# **3.** A *trigram* table looks at the last two words. Write `trigram(words, a, b)`: the
# probabilities of the words after `a b`, as a dictionary.

# %% tags=["exercise"]


def trigram(words: list[str], a: str, b: str) -> dict[str, float]:
    """The share of each word among those that follow a and b."""
    raise NotImplementedError


# %% tags=["check"]
assert trigram(words, "rang", "the") == {"bell": 1.0}
assert trigram("a b c a b d a b c".split(), "a", "b") == {"c": 2 / 3, "d": 1 / 3}
print("correct: two words are enough to know that the fox rang the bell")


# %% tags=["answer"]
def trigram(words: list[str], a: str, b: str) -> dict[str, float]:
    """The share of each word among those that follow a and b."""
    triples = zip(words, words[1:], words[2:], strict=False)
    after = Counter(third for first, second, third in triples if (first, second) == (a, b))
    return {word: count / after.total() for word, count in after.items()}
