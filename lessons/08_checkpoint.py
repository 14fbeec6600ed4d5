# %% [markdown]
# # Opening a real checkpoint
#
# A checkpoint is numbers in a file, and the rest is agreement: which numbers, in which order,
# under which names. We read one byte by byte, write it in every format the field uses, and
# then make its best known mistake on purpose: rows of two matrices in the wrong order, so that
# nothing crashes and everything is wrong.

# %%
import os
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import torch

import llucid
from llucid.checkpoints import huggingface, meta
from llucid.checkpoints.huggingface import halves_from_pairs, pairs_from_halves
from llucid.generation import prompt_ids
from llucid.llama import llama
from llucid.weights import named_leaves
from trained import fables_model

torch.set_grad_enabled(False)

# %% [markdown]
# `stories260K` is a model of 260 thousand parameters that Andrej Karpathy trained on tiny
# stories and published with llama2.c. If `LLUCID_DATA` names a folder that has it, it is opened
# here; otherwise our own model of fables is written as such a file, and opened just the same.

# %%
folder = TemporaryDirectory()
here = Path(folder.name)
data = Path(os.environ.get("LLUCID_DATA", "nowhere"))
file, vocabulary = data / "stories260K.bin", data / "tok512.bin"
if not file.is_file():
    (here / "ours").mkdir()
    file, vocabulary = here / "ours" / "fables.bin", None
    llucid.save(fables_model(), file, "llama2c")
print(f"{file.name}: {file.stat().st_size:,} bytes")

# %% [markdown]
# ## Seven numbers, then floats
#
# llama2.c's first format has no names at all. It begins with seven 32-bit integers, and then
# all arrays follow as 32-bit floats, in an order that one has to know. The embedding is first.

# %%
raw = file.read_bytes()
names = ("dim", "ffn_dim", "layers", "heads", "kv_heads", "vocab_size", "context")
header = dict(zip(names, struct.unpack_from("<7i", raw), strict=True))
print(header)

tied = header["vocab_size"] > 0  # a negative size says that there is an output matrix of its own
shape = (abs(header["vocab_size"]), header["dim"])
embedding = np.frombuffer(raw, "<f4", count=shape[0] * shape[1], offset=28).reshape(shape)
print("embedding", embedding.shape, "| tied:", tied)

# %% [markdown]
# `llucid.load` does the same for every array, and refuses a file whose length is not exactly
# what its header says. What is not in the header has to be agreed on, too: the base of RoPE is
# 10,000, the epsilon 1e-5.

# %%
model = llucid.load(file, tokenizer=vocabulary, device="cpu")
config, weights = model.config, model.weights
assert np.array_equal(weights.embedding.numpy(), embedding)
print(
    f"{config.parameters:,} parameters, rope_theta {config.rope_theta:g}, eps {config.norm_eps:g}"
)
opening = "Once upon a time" if vocabulary else "One"
print("".join([opening, *llucid.generate(model, opening, max_tokens=60, temperature=0)]))

# %% [markdown]
# ## Names
#
# The other formats name their arrays, each in its own way. Here are the arrays of the first
# block, as llucid, Meta and Hugging Face call them, after `blocks.0.`, `layers.0.` and
# `model.layers.0.`:

# %%
for path, leaf in named_leaves(weights):
    if path.startswith("blocks.0."):
        of_meta = meta.name_of(path).removeprefix("layers.0.")
        of_hugging_face = huggingface.name_of(path).removeprefix("model.layers.0.")
        print(f"{list(leaf.shape)!s:10} {path[9:]:20} {of_meta:24} {of_hugging_face}")

# %% [markdown]
# Meta's $w_1$, $w_2$ and $w_3$ are gate, down and up, in this order: the sort of thing that is
# only found out by reading code.
#
# Written in each format and read again, every number must be the same bit for bit.

# %%
for name in ("huggingface", "meta", "llama2c", "gguf"):
    out = here / name / "model"
    out.parent.mkdir()
    llucid.save(model, out, name)
    again = llucid.load(out, tokenizer=vocabulary, device="cpu")
    size = sum(f.stat().st_size for f in ([out] if out.is_file() else out.iterdir()))
    same = all(
        torch.equal(a, b)
        for (_, a), (_, b) in zip(named_leaves(weights), named_leaves(again.weights), strict=True)
    )
    print(f"{name:12} {size:10,} bytes, the same numbers: {same}")
    assert same

# %% [markdown]
# ## Two orders for one rotation
#
# RoPE turns pairs of numbers (lesson 02). Which pairs? Meta's code pairs neighbours: $x_0$ with
# $x_1$, $x_2$ with $x_3$. Hugging Face's pairs the first half of a head with the second: $x_0$ with
# $x_{d/2}$. Either is fine, if the rows of the query and key matrices are in the order that the
# code expects. So a conversion reorders rows, in each head by itself:

# %%
rows = torch.arange(8)[:, None]  # one head of 8 rows; each row holds its own number
reordered = halves_from_pairs(rows, heads=1)[:, 0].tolist()
print("neighbours, as Meta has them:         ", rows[:, 0].tolist())
print("halves, as Hugging Face has the rows: ", reordered)
assert pairs_from_halves(halves_from_pairs(rows, 1), 1).equal(rows)

# %% [markdown]
# Only query and key are turned, so only they are reordered; the key by the number of *key*
# heads. Value, output and all the rest stay.
#
# ## The mistake
#
# Now forget it. Take the matrices as a Hugging Face file has them and use them as they are. All
# shapes fit. No error is raised. At position 0 nothing is turned, so the first prediction is even
# right; then the wrong pairs turn by the wrong angles, more and more.


# %%
def forgetful(weights):
    """The weights of a Hugging Face file, taken for Meta's order."""

    def wrong(of_block):
        of = of_block.attention
        query = halves_from_pairs(of.query, config.heads)
        key = halves_from_pairs(of.key, config.kv_heads)
        return of_block._replace(attention=of._replace(query=query, key=key))

    return weights._replace(blocks=tuple(map(wrong, weights.blocks)))


mistaken = model._replace(weights=forgetful(weights))
text = "".join(llucid.generate(model, opening, max_tokens=180, temperature=0.7, seed=2))
print("right:", opening + text[:200])
text = "".join(llucid.generate(mistaken, opening, max_tokens=180, temperature=0.7, seed=2))
print("\nwrong:", opening + text[:200])

# %% [markdown]
# Is it a bad model or a wrong file? The surprise at each position tells: at the first token the
# two are equal. We let the right one write some texts, and both read them.

# %% tags=["picture"]
length = min(config.context, 120)
prompts = [opening] * 24
texts = llucid.generate_batch(model, prompts, max_tokens=length, temperature=0.9, seed=0)
begun = prompt_ids(model.tokenizer, opening)
long = [(*begun, *text.tokens)[:100] for text in texts if len(text.tokens) >= 100]
tokens = torch.tensor(long)


def surprise(weights) -> torch.Tensor:
    """The mean surprise at each position."""
    scores = llama(tokens[:, :-1], weights, config).log_softmax(-1)
    return -scores.gather(-1, tokens[:, 1:, None])[..., 0].mean(0)


right, wrong = surprise(weights), surprise(mistaken.weights)
print("texts", list(tokens.shape), "-> surprise", list(right.shape))

figure, (lines, curve) = plt.subplots(1, 2, figsize=(7.4, 3.2), width_ratios=(1, 1.5))
for row, to in enumerate(map(reordered.index, range(8))):
    lines.plot([0, 1], [row, to], color=plt.get_cmap("tab10")(row // 2), lw=2)
    lines.text(-0.08, row, str(row), ha="right", va="center")
    lines.text(1.08, to, str(row), ha="left", va="center")
lines.set(ylim=(7.6, -0.6), xlim=(-0.3, 1.3), title="rows of a head: a colour turns together")
lines.set_xticks([0, 1], ["neighbours", "halves"])
lines.set_yticks([])
lines.spines[:].set_visible(False)
curve.plot(range(1, len(right) + 1), right, label="rows in order")
curve.plot(range(1, len(wrong) + 1), wrong, label="rows in the other order")
curve.set(xlabel="position", ylabel="surprise in nats", ylim=(0, None))
curve.grid(axis="y")
curve.legend()

# %% [markdown]
# So a test that compares five tokens with a tolerance may pass. A test that compares logits with
# another implementation, far into a text, cannot. That is why llucid's tests do that, for
# every format, with random weights, too.
#
# ## Exercises
#
# **1.** Write `to_halves(row, head_dim)`: where row number `row` of a query matrix in Meta's
# order stands in Hugging Face's. Mind that there is more than one head.


# %% tags=["answer"]
def to_halves(row: int, head_dim: int) -> int:
    """Even rows go to the first half of their head, odd ones to the second."""
    head, within = divmod(row, head_dim)
    return head * head_dim + within // 2 + (within % 2) * (head_dim // 2)


# %% tags=["check"]
matrix = torch.arange(3 * 8)[:, None]  # three heads of 8 rows
moved = halves_from_pairs(matrix, heads=3)[:, 0].tolist()
assert all(moved[to_halves(row, 8)] == row for row in range(24))
print("holds")

# %% [markdown]
# **2.** Write `bin_size(config)`: how long llama2.c's file is. Seven integers; all parameters, 4
# bytes each; and two tables that nobody needs any more, cosines and sines, each of
# `context · head_dim / 2` floats.


# %% tags=["answer"]
def bin_size(config) -> int:
    """Header, parameters, and the two tables."""
    return 7 * 4 + 4 * config.parameters + 2 * 4 * config.context * config.head_dim // 2


# %% tags=["check"]
assert bin_size(config) == file.stat().st_size
print(f"holds: {bin_size(config):,} bytes")

# %% [markdown]
# **3.** Reordering the rows of query *and* key in the same way changes no score: a dot product
# does not mind the order of its terms. So why is the mistaken model wrong at all? Write
# `score_at(distance, wrong)`: the score of one query and key (use `q` and `k` below), the query
# `distance` positions after the key, with rows reordered by `halves_from_pairs` if `wrong`.

# %%
from llucid.llama import rotate, rotations

q, k = torch.randn(2, config.head_dim, 1, generator=torch.Generator().manual_seed(0))
theta = 0.1 ** torch.arange(config.head_dim // 2)


# %% tags=["answer"]
def score_at(distance: int, wrong: bool) -> float:
    """The dot product of the turned query and key; turning comes after reordering."""

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        x = halves_from_pairs(x, heads=1) if wrong else x
        return rotate(x.view(1, 1, 1, -1), rotations(torch.tensor([[position]]), theta))

    return (turned(q, distance) * turned(k, 0)).sum().item()


# %% tags=["check"]
assert np.isclose(score_at(0, wrong=True), score_at(0, wrong=False), atol=1e-4)
assert not np.isclose(score_at(5, wrong=True), score_at(5, wrong=False), atol=1e-2)
print("holds: right where nothing is turned, wrong where other pairs are turned by other angles")

# %%
folder.cleanup()
