# %% [markdown]
# # Opening a checkpoint
#
# A checkpoint is numbers in a file, and the rest is agreement: which numbers, in which order, under
# which names. We read one byte by byte, write it in four formats, and make the best known mistake of
# this field on purpose: nothing crashes, and everything is wrong.

# %% tags=["setup"]
import json
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import torch

import llucid
from llucid.chat import STORYTELLER
from llucid.corpora import open_corpus
from llucid.llama import llama, rotate, rotations
from llucid.weights import leaves, parameter_count

torch.set_grad_enabled(False)
model = llucid.load(STORYTELLER, dtype="float32", device="cpu")
config, weights, tokenizer = model.config, model.weights, model.tokenizer
text = "The fox rang the bell. The fox rang the"
folder = TemporaryDirectory()
here = Path(folder.name)

# %% [markdown]
# ## Seven numbers, then floats
#
# llama2.c's format has no names at all: seven 32-bit integers, and then all arrays as 32-bit floats in
# an order that one has to know. The embedding is first. We write the storyteller like that, and read
# the file with nothing but `struct` and NumPy:

# %%
file = here / "storyteller.bin"
llucid.save(model, file, format="llama2c")
raw = file.read_bytes()
names = ("dim", "ffn_dim", "layers", "heads", "kv_heads", "vocab_size", "context")
header = dict(zip(names, struct.unpack_from("<7i", raw), strict=True))
print(f"{len(raw):,} bytes:", header)

shape = (abs(header["vocab_size"]), header["dim"])  # a negative size: an output matrix of its own
embedding = np.frombuffer(raw, "<f4", count=shape[0] * shape[1], offset=28).reshape(shape)
assert np.array_equal(embedding, weights.embedding.numpy())
print("embedding", embedding.shape, "is the model's, bit for bit")

# %% [markdown]
# What is not in the header has to be agreed on, too: here the base of RoPE is 10,000.
#
# ## Names
#
# Hugging Face's folders hold `safetensors` files: 8 bytes that say how long the header is, a header in
# JSON that names each array with its type, shape and place, and then the numbers. It can be read
# without running anything. (Older `.pth` files are pickles, which can run code; llucid never unpickles.)

# %%
llucid.save(model, here / "hugging", format="huggingface")
raw = (here / "hugging" / "model.safetensors").read_bytes()
(length,) = struct.unpack_from("<Q", raw)
table = json.loads(raw[8 : 8 + length])
for name, entry in table.items():
    if "layers.0." in name:
        print(f"{name:48} {entry['dtype']} {entry['shape']}")

# %% [markdown]
# Every number, written in each format and read again, must be the same bit for bit:

# %%
for name in ("huggingface", "meta", "llama2c", "gguf"):
    out = here / name / "model"
    out.parent.mkdir()
    llucid.save(model, out, format=name)
    again = llucid.load(out, tokenizer=STORYTELLER / "tokenizer.json", dtype="float32", device="cpu")
    size = sum(f.stat().st_size for f in ([out] if out.is_file() else out.iterdir()))
    pairs = zip(leaves(weights), leaves(again.weights), strict=True)
    same = all(torch.equal(a, b) for a, b in pairs)
    print(f"{name:12} {size:10,} bytes, the same numbers: {same}")
    assert same

# %% [markdown]
# ## Two orders for one rotation
#
# RoPE turns pairs of numbers (lesson 4). Which pairs? Meta's code, and llucid's, pairs neighbours: row
# 0 with row 1, row 2 with row 3. Hugging Face's pairs the first half of a head with the second: row 0 with
# row $d/2$. Either is fine if the rows of the query and key matrices are in the order that the code
# expects. So a conversion reorders rows, in each head by itself:


# %%
def to_halves(matrix: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows from Meta's order to Hugging Face's."""
    rows, columns = matrix.shape
    return matrix.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


rows = torch.arange(8)[:, None]  # one head of 8 rows; each holds its number
reordered = to_halves(rows, 1)[:, 0].tolist()
print("neighbours:", rows[:, 0].tolist())
print("halves:    ", reordered)

entry = table["model.layers.0.self_attn.q_proj.weight"]
start, end = entry["data_offsets"]
query = np.frombuffer(raw, "<f4", offset=8 + length + start, count=(end - start) // 4)
query = torch.tensor(query).view(entry["shape"])
assert query.equal(to_halves(weights.blocks[0].attention.query, config.heads))
print("the file's query is ours, reordered")

# %% [markdown]
# Only query and key are turned, so only they are reordered, the key by the number of *key* heads.
#
# ## The mistake
#
# Now forget it: take the matrices of the Hugging Face file and use them as they are. All shapes fit. No
# error is raised. At position 0 nothing is turned, so the first prediction is even right; after that the
# wrong pairs are turned.

# %%
blocks = []
for of_block in weights.blocks:
    of = of_block.attention
    query, key = to_halves(of.query, config.heads), to_halves(of.key, config.kv_heads)
    blocks.append(of_block._replace(attention=of._replace(query=query, key=key)))
mistaken = weights._replace(blocks=tuple(blocks))

ids = torch.tensor([[tokenizer.bos, *tokenizer.encode(text)]])
for name, of in (("right", weights), ("wrong", mistaken)):
    p = llama(ids, of, config)[0, -1].softmax(-1)
    print(f"{name}: {tokenizer.decode([p.argmax().item()])!r}, bell {p[tokenizer.encode(' bell')[0]]:.1%}")
first = [llama(ids, of, config)[0, 0] for of in (weights, mistaken)]
assert torch.allclose(*first, atol=1e-3)

# %% [markdown]
# Is it a bad model or a wrong file? The surprise at each position tells. Both read the same
# tales. The first prediction is the same (and bad: in training no text began with a tale, see lesson
# 5), and then they part:

# %%
tales = next(open_corpus(["fables"]).text("validation")).split("\n\n")
many = [[tokenizer.bos, *tokenizer.encode(tale)][:65] for tale in tales[1:300]]
tokens = torch.tensor([row for row in many if len(row) == 65][:60])


def surprise(weights) -> torch.Tensor:
    """The mean surprise at each position."""
    scores = llama(tokens[:, :-1], weights, config).log_softmax(-1)
    return -scores.gather(-1, tokens[:, 1:, None])[..., 0].mean(0)


right, wrong = surprise(weights), surprise(mistaken)
print(f"{len(tokens)} tales; first prediction {right[0]:.2f} and {wrong[0]:.2f} nats,")
print(f"the last ten {right[-10:].mean():.2f} and {wrong[-10:].mean():.2f}")
assert abs(right[0] - wrong[0]) < 0.01
assert wrong[-10:].mean() > right[-10:].mean() + 0.5

# %% tags=["picture"]
# The rows of a head in both orders, and the surprise per position with the right and wrong order.
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
# A test that compares a few tokens with a tolerance may pass. A test that compares logits with another
# implementation, far into a text, cannot. llucid's tests do that for every format.
#
# ## Exercises
#
# **1.** Write `place_of(row, head_dim)`: where row number `row` of a query matrix in Meta's order
# stands in Hugging Face's. Mind that there are several heads.

# %% tags=["exercise"]


def place_of(row: int, head_dim: int) -> int:
    """Even rows go to the first half of their head, odd ones to the second."""
    raise NotImplementedError


# %% tags=["check"]
moved = to_halves(torch.arange(3 * 8)[:, None], heads=3)[:, 0].tolist()
assert all(moved[place_of(row, 8)] == row for row in range(24))
print("correct")


# %% tags=["answer"]
def place_of(row: int, head_dim: int) -> int:
    """Even rows go to the first half of their head, odd ones to the second."""
    head, within = divmod(row, head_dim)
    return head * head_dim + within // 2 + (within % 2) * (head_dim // 2)


# %% [markdown]
# **2.** Write `bin_size(config)`: how long llama2.c's file is. Seven integers; all parameters, four
# bytes each; and two tables that nobody needs any more, cosines and sines, each of
# `context · head_dim / 2` floats.

# %% tags=["exercise"]


def bin_size(config: llucid.Config) -> int:
    """Header, parameters, and the two tables."""
    raise NotImplementedError


# %% tags=["check"]
assert bin_size(config) == file.stat().st_size
print(f"correct: {bin_size(config):,} bytes")


# %% tags=["answer"]
def bin_size(config: llucid.Config) -> int:
    """Header, parameters, and the two tables."""
    return 7 * 4 + 4 * parameter_count(config) + 2 * 4 * config.context * config.head_dim // 2


# %% [markdown]
# **3.** Reordering the rows of query *and* key in the same way changes no dot product. So why is the
# mistaken model wrong? Write `score_at(distance, wrong)`: the score of the query `q` and the key `k`
# below, the query `distance` positions after the key, reordered by `to_halves` first if `wrong`.

# %%
q, k = torch.randn(2, config.head_dim, 1, generator=torch.Generator().manual_seed(0))
theta = 0.1 ** torch.arange(config.head_dim // 2)


def turned(x: torch.Tensor, position: int) -> torch.Tensor:
    """A column x of one head, turned by RoPE."""
    return rotate(x.view(1, 1, 1, -1), rotations(torch.tensor([[position]]), theta)).flatten()


# %% tags=["exercise"]


def score_at(distance: int, wrong: bool) -> float:
    """The dot product of the turned query and key."""
    raise NotImplementedError


# %% tags=["check"]
assert np.isclose(score_at(0, wrong=False), (q.T @ k).item(), atol=1e-4)
assert np.isclose(score_at(5, wrong=False), (turned(q, 9) @ turned(k, 4)).item(), atol=1e-4)
assert np.isclose(score_at(0, wrong=True), score_at(0, wrong=False), atol=1e-4)
assert not np.isclose(score_at(5, wrong=True), score_at(5, wrong=False), atol=1e-2)
print("correct: right at distance 0; elsewhere, other pairs are turned by other angles")


# %% tags=["answer"]
def score_at(distance: int, wrong: bool) -> float:
    """The dot product of the turned query and key."""
    a, b = (to_halves(x, 1) for x in (q, k)) if wrong else (q, k)
    return (turned(a, distance) @ turned(b, 0)).item()


# %% [markdown]
# The files are no longer needed:

# %%
folder.cleanup()
