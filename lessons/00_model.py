# %% [markdown]
# # What a language model is
#
# A language model answers one question: given a text so far, how likely is each possible next
# word? Everything else, chat and translation and code, is that question asked again and again.
# This lesson asks it of a small Llama and shows the whole of it in one drawing.

# %% tags=["setup"]
import math

import matplotlib.pyplot as plt
import torch

import llucid
from figures import whole_llama
from llucid.chat import STORYTELLER
from llucid.llama import llama
from llucid.weights import parameter_count

torch.set_grad_enabled(False)  # nothing is trained here, so PyTorch need not prepare derivatives

# %% [markdown]
# llucid comes with a Llama that was trained on fables, the *storyteller*. It is tiny, so that
# we can look at all of it, but its equations are those of the large ones. We load it onto the CPU,
# with every number in 32 bits. It has *parameters*, the numbers that were learned; *blocks*, its
# repeated part, drawn below; and *tokens*, the pieces of text that it knows. (If PyTorch is new to
# you: what you need of it stands before the exercises.)

# %%
model = llucid.load(STORYTELLER, dtype="float32", device="cpu")
config, weights, tokenizer = model.config, model.weights, model.tokenizer
print(f"{parameter_count(config):,} parameters, {config.layers} blocks, {tokenizer.vocab_size:,} tokens")

# %% [markdown]
# ## One question
#
# Here is the text that we follow from the first lesson to the last. What comes next?

# %%
text = "The fox rang the bell. The fox rang the"

# %% [markdown]
# You said *bell*, and you used something: you saw that the sentence begins again. A model has
# to find that out, too. It does not read letters or words but *tokens*, pieces of text from a
# fixed list. Each has a number, its *id*. Lesson 2 is about them; in this text every word and
# every full stop is one token. In front of them stands a token that is not text: it marks where a
# text begins (`bos`, begin of sequence), as it did in all texts that the model learned from.


# %%
def encode(text: str) -> list[int]:
    """The mark of the beginning, and the ids of the text."""
    return [tokenizer.bos, *tokenizer.encode(text)]


ids = encode(text)
print(ids)
print(["<begin>", *(tokenizer.decode([token]) for token in ids[1:])])

# %% [markdown]
# The model is a function. Ids go in; out comes, for every position, one score (*logit*) per
# token of the vocabulary. The scores of the last position are about the token that is not there
# yet. The *softmax* makes probabilities of them, positive and with sum 1:
#
# $$ p_i = \frac{e^{z_i}}{\sum_j e^{z_j}} $$
#
# The shape of the scores has three axes: `batch`, how many texts are read at once, `seq`, how many
# tokens a text has, and `vocab`, how many tokens there are to choose from.

# %%
logits = llama(torch.tensor([ids]), weights, config)
print("ids", [1, len(ids)], "-> logits", list(logits.shape), " batch seq vocab")
p = logits[0, -1].softmax(-1)
print(f"{len(p):,} probabilities, their sum is {p.sum():.4f}")
for chance, token in zip(*p.topk(5), strict=True):
    print(f"{chance:7.1%} {tokenizer.decode([token.item()])!r}")
best = tokenizer.decode([p.argmax().item()])
assert best == " bell"

# %% [markdown]
# The model says *bell*, and is not certain of it. No rule about foxes and bells was written
# into it. Its parameters are numbers that were adjusted, step by step, until the next tokens of
# many fables became likely (lesson 7). What do these numbers do?
#
# ## The whole Llama
#
# This drawing is the map; lessons 1 to 8 begin with it, and highlight the part that they explain.
# Read it from left to right. Every token becomes a vector, a list of `dim` numbers. The vector
# runs along the arrow, and blocks add to it: *attention* brings information from earlier tokens,
# the *feed-forward network* works on each token by itself. In the end the vector is compared with
# every token of the vocabulary, which gives the scores.

# %% tags=["picture"]
# The whole Llama: tokens, embedding, blocks of attention and feed-forward, output, softmax.
whole_llama(words=["<begin>", *text.split()], prediction=f"{best.strip()} {p.max():.0%}")

# %% [markdown]
# | part | what it does | lesson |
# |---|---|---|
# | softmax and loss | scores become probabilities; how wrong they were | 1 |
# | tokens, embedding | text becomes ids, ids become vectors | 2 |
# | attention | a token gathers from earlier tokens | 3 |
# | RoPE | attention is told who stands where | 4 |
# | RMSNorm, feed-forward, block | the rest of a block | 5 |
# | output matrix | the last vector becomes scores | 5 |
# | all of it | you write it yourself | 6 |
#
# Then you train one (7), let one write (8), chat with one and teach it (9), see the same in
# another language of arrays (10), open files that others made (11), make it small and fast
# (12), look inside with a tool (13), and try an idea of your own (14).
#
# ## Nothing is remembered
#
# A model does not know what you asked before. It sees the text that it is given, and the same text
# gives the same probabilities. To write, a program picks one token, appends it, and asks
# again. If we change one early word, the answer changes:


# %%
def top(text: str) -> str:
    """The likeliest next token."""
    ids = torch.tensor([encode(text)])
    return tokenizer.decode([llama(ids, weights, config)[0, -1].argmax().item()])


for thing in ("bell", "drum", "lantern"):
    start = f"The fox rang the {thing}. The fox rang the"
    print(f"{start!r} -> {top(start)!r}")

# %% [markdown]
# And where does it see what to say? We take the words away one by one from the front:

# %%
shorter = [text.split(" ", count)[-1] for count in range(8)]
chances = []
for start in shorter:
    scores = llama(torch.tensor([encode(start)]), weights, config)[0, -1]
    chances.append(scores.softmax(-1)[tokenizer.encode(" bell")[0]].item())

# %% tags=["plot"]
# The probability of "bell" as words are removed from the front of the text.
figure, ax = plt.subplots(figsize=(7.4, 2.6))
ax.barh(range(len(shorter)), chances)
ax.set_yticks(range(len(shorter)), shorter, fontsize=8)
ax.invert_yaxis()
ax.set(xlabel='probability of "bell"', xlim=(0, 1))

# %%
print(f"whole text {chances[0]:.0%}, without the first sentence {chances[5]:.0%}")
assert chances[0] > 3 * chances[5]

# %% [markdown]
# Once the first sentence is gone there is nothing to repeat, and the guess is gone, too; a small rest of
# it is not enough. Before that the bars need not shrink: every word changes what the model makes of the
# later ones, so *bell* can even become likelier when one of them is missing. How a model looks back is
# the subject of lesson 3, and which part of this one does it, of lesson 6.
#
# ## The PyTorch of these lessons
#
# A *tensor* is an array of numbers with a shape and one type of number. Nearly all that the lessons
# do with tensors is here; what else they need is explained where it comes up.

# %%
a = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
lines = """
a.shape, a.dtype
a[1]                              # a row
a[:, -1]                          # the last column
a[torch.tensor([1, 1])]           # rows by number
a * a                             # coordinate by coordinate
a @ a.T                           # matrix product with a, transposed
a.sum(0)                          # along axis 0, for each column
a.mean(-1)                        # along the last axis, for each row
a.mean(-1, keepdim=True)          # the axis remains, of length 1
a - a.mean(-1, keepdim=True)      # and 1 is repeated as needed
a.softmax(-1)
a.max(), a.argmax()               # argmax counts through all rows
a.max().item()                    # a Python number
a.masked_fill(a > 4, 0.0)
a.view(3, 2)                      # the same numbers in another shape
a[None].shape                     # one more axis, in front
"""
for line in lines.strip().splitlines():
    print(f"{line.split('#')[0].strip():30}", " ".join(str(eval(line)).split()))

# %% [markdown]
# Derivatives begin in lesson 1: a tensor with `requires_grad=True` remembers what was computed from
# it, and after `loss.backward()` its `.grad` says how the loss changes with each of its numbers.
#
# ## Exercises
#
# In a notebook (`./dev lessons --notebooks`), write your own function where it says
# `raise NotImplementedError`, and run the check below it. An answer is folded away.
#
# **1.** Write `softmax(z)` for a list of numbers, with `math.exp` only. Subtract the largest
# score first: nothing changes in exact arithmetic, and $e^{1000}$ is avoided.


# %% tags=["exercise"]
def softmax(z: list[float]) -> list[float]:
    """e to each score, divided by their sum."""
    raise NotImplementedError


# %% tags=["check"]
assert softmax([0.0, 0.0]) == [0.5, 0.5]
assert math.isclose(softmax([math.log(3), 0.0])[0], 0.75)
assert softmax([1000.0, 0.0])[0] == 1.0
assert torch.allclose(torch.tensor(softmax(logits[0, -1].tolist())), p, atol=1e-5)
print("correct")


# %% tags=["answer"]
def softmax(z: list[float]) -> list[float]:
    """e to each score, divided by their sum."""
    largest = max(z)
    powers = [math.exp(score - largest) for score in z]
    total = sum(powers)
    return [power / total for power in powers]


# %% [markdown]
# **2.** Write `continued(text, count)`: the text with `count` more tokens, each the likeliest.
# Use `top`.

# %% tags=["exercise"]


def continued(text: str, count: int) -> str:
    """The text and `count` tokens more."""
    raise NotImplementedError


# %% tags=["check"]
assert continued(text, 0) == text
assert continued(text, 1) == text + " bell"
assert continued(text, 2) == text + " bell" + top(text + " bell")
print(f"correct: {continued(text, 1)!r}")


# %% tags=["answer"]
def continued(text: str, count: int) -> str:
    """The text and `count` tokens more."""
    for _ in range(count):
        text += top(text)
    return text
