# %% [markdown]
# # Small and fast
#
# To write one token a model must read all of its weights, and does only two operations with each.
# So the speed of writing is the speed of memory, and what makes it faster is reading less. We measure
# this machine, put the storyteller into 8 and 4 bits by hand, and see what that costs.

# %% tags=["setup"]
import math
import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch

import llucid
from llucid import PRESETS
from llucid.chat import STORYTELLER
from llucid.corpora import open_corpus
from llucid.llama import llama
from llucid.weights import parameter_count, tree_map

torch.set_grad_enabled(False)
model = llucid.load(STORYTELLER, dtype="float32", device="cpu")
config, weights, tokenizer = model.config, model.weights, model.tokenizer

# %% [markdown]
# ## Reading and computing
#
# A matrix times a vector reads each number once and does two operations with it, a product and a
# sum. A matrix times a matrix of 256 columns does 512 operations with the same number. The first
# measures memory, the second arithmetic.


# %%
def seconds(work: Callable[[], object], times: int = 20) -> float:
    """The shortest time of some calls: other programs can only make it longer."""
    work()
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


matrix = torch.randn(5000, 5000)
vector, columns = torch.randn(5000, 1), torch.randn(5000, 256)
bandwidth = matrix.numel() * 4 / seconds(lambda: matrix @ vector)  # four bytes each
arithmetic = 2 * matrix.numel() * 256 / seconds(lambda: matrix @ columns, times=3)
uses = arithmetic / 2 / (bandwidth / 4)
print(f"threads: {torch.get_num_threads()}; they read {bandwidth / 1e9:.0f} GB/s")
print(f"and compute {arithmetic / 1e9:.0f} billion operations per second:")
print(f"in the time of reading a number it could be used {uses:.0f} times")

# %% [markdown]
# ## The bound
#
# A model with $P$ parameters of $b$ bytes cannot write faster, one text at a time, than
#
# $$ \frac{\text{tokens}}{\text{second}} \le \frac{\text{bandwidth}}{P \cdot b} $$
#
# On this machine, in tokens per second:

# %%
print(f"{'':13}", *(f"{bits:>3} bits" for bits in (32, 16, 8, 4)))
for name in ("llama-3.2-1b", "llama-3-8b", "llama-3-70b"):
    parameters = parameter_count(PRESETS[name].config)
    bounds = (bandwidth / (parameters * bits / 8) for bits in (32, 16, 8, 4))
    print(f"{name:13}", *(f"{bound:8.2f}" for bound in bounds))

# %% [markdown]
# Half the bits, twice the speed. And what fits into memory changes as well:

# %%
for bits in (32, 16, 8, 4):
    size = parameter_count(PRESETS["llama-3-8b"].config) * bits / 8
    print(f"Llama 3 8B in {bits:2} bits: {size / 1e9:4.1f} GB")

# %% [markdown]
#
# ## Eight bits, by hand
#
# Take a group of numbers, find the largest magnitude, and divide by it so that it becomes 127. Round
# to whole numbers: each fits one byte. Keep the divisor, the *scale*. To read, multiply:

# %%
numbers = torch.tensor([0.31, -1.27, 0.004, 0.9])
scale = numbers.abs().max() / 127
whole = (numbers / scale).round()
print("whole numbers", whole.to(torch.int8).tolist(), f"scale {scale:.4f}")
print("read back    ", [round(number, 3) for number in (whole * scale).tolist()])
assert ((whole * scale) - numbers).abs().max() <= scale / 2 + 1e-6

# %% [markdown]
# Each number is wrong by at most half a scale. One large number makes the scale of its whole group
# large, so groups are small: 32 numbers in GGUF's Q8_0, which with a 16-bit scale is 8.5 bits per
# number.


# %%
def quantised(matrix: torch.Tensor, bits: int, group: int = 32) -> torch.Tensor:
    """The matrix as it is read back from so many bits per number and a scale per group."""
    top = 2 ** (bits - 1) - 1  # 127 for 8 bits, 7 for 4
    rows = matrix.view(-1, group)
    scale = rows.abs().amax(-1, keepdim=True) / top
    return ((rows / scale.clamp(min=1e-12)).round() * scale).view(matrix.shape)


matrix = weights.blocks[0].attention.query
for bits in (8, 6, 4, 3, 2):
    error = (quantised(matrix, bits) - matrix).norm() / matrix.norm()
    print(f"{bits} bits: the matrix changes by {error:.1%}")

# %% [markdown]
# Four bits have 16 values, and from −7 to 7 there are only 15. GGUF's Q4_0 uses all of them, from −8 to
# 7: it divides by a scale, which may be negative, that makes the number of largest magnitude −8.


# %%
def q4_0(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix as it is read back from Q4_0."""
    rows = matrix.view(-1, 32)
    scale = rows.gather(-1, rows.abs().argmax(-1, keepdim=True)) / -8  # the largest, with its sign
    inverse = torch.where(scale == 0, 0, 1 / scale)
    stored = (rows * inverse + 8.5).floor().clamp(0, 15)  # rounded, and without a sign
    return ((stored - 8) * scale.half().float()).view(matrix.shape)  # the scale has 16 bits


error = (q4_0(matrix) - matrix).norm() / matrix.norm()
print(f"Q4_0:   the matrix changes by {error:.1%}")

# %% [markdown]
# ## What it costs
#
# All matrices of the storyteller in fewer bits; norms stay. Its loss on fables, and what it says to
# our sentence:

# %%
tales = next(open_corpus(["fables"]).text("validation")).split("\n\n")
many = [[tokenizer.bos, *tokenizer.encode(tale)][:65] for tale in tales[1:400]]
tokens = torch.tensor([row for row in many if len(row) == 65][:80])
text = "The fox rang the bell. The fox rang the"
ids, bell = torch.tensor([[tokenizer.bos, *tokenizer.encode(text)]]), tokenizer.encode(" bell")[0]


def loss_of(weights) -> float:
    """Nats per token, without the first ten of each tale: what it will be about is a matter of luck."""
    scores = llama(tokens[:, :-1], weights, config).log_softmax(-1)
    return -scores.gather(-1, tokens[:, 1:, None])[:, 10:].mean().item()


def with_matrices(read_back: Callable[[torch.Tensor], torch.Tensor]):
    """The weights, all matrices as they are read back."""
    return tree_map(lambda leaf: read_back(leaf) if leaf.ndim == 2 else leaf, weights)


def measured(name: str, of) -> float:
    """The loss; prints it, and what the weights say to our text."""
    loss, p = loss_of(of), llama(ids, of, config)[0, -1].softmax(-1)
    best = tokenizer.decode([p.argmax().item()])
    print(f"{name}: loss {loss:.3f}, {best!r}, bell {p[bell]:.0%}")
    return loss


losses = {32: measured("32 bits", weights)}
for bits in (8, 6, 5, 4, 3, 2):
    of = with_matrices(lambda matrix, bits=bits: quantised(matrix, bits))
    losses[bits] = measured(f"{bits:2} bits", of)
loss_of_q4_0 = measured("   Q4_0", with_matrices(q4_0))
assert losses[8] < losses[32] + 0.01
assert losses[4] < losses[32] + 0.1
assert losses[2] > losses[8] + 0.5

# %% tags=["picture"]
# The loss over the bits per weight, from 8 to 3: almost flat down to 5 or 4, then steep.
figure, ax = plt.subplots(figsize=(5, 2.8))
points = sorted((bits, loss) for bits, loss in losses.items() if 2 < bits < 32)
ax.plot(*zip(*points, strict=True), "o-", ms=4, label="quantised")
ax.axhline(losses[32], ls="--", color="#999999", lw=1, label="32 bits")
ax.plot(4, loss_of_q4_0, "x", color="#3f7f4f", label="Q4_0")
ax.set(xlabel="bits per weight", ylabel="nats per token", xticks=[bits for bits, _ in points])
ax.set_title(f"2 bits, {losses[2]:.1f} nats, are far above", fontsize=9)
ax.grid(axis="y")
ax.legend()

# %% [markdown]
# In llucid, `quantize="int8"` does what `quantised` does with 8 bits, and `quantize="int4"` what `q4_0`
# does. It keeps only the whole numbers and scales in memory, and multiplies with them directly, in C:

# %%
for kind in (None, "int8", "int4"):
    loaded = llucid.load(STORYTELLER, quantize=kind, dtype=None if kind else "float32", device="cpu")
    written = "".join(llucid.generate(loaded, text, max_tokens=1, temperature=0))
    print(f"{kind or 'float32':8} {text}{written}")
    if kind == "int4":
        dense = loaded.weights.blocks[0].attention.query.dense()
        assert dense.equal(q4_0(matrix).to(dense.dtype))  # llucid's numbers are ours

# %% [markdown]
# ## Use it more often
#
# The other way to be fast: a weight that was read can serve several tokens. A prompt's tokens are
# all known, so they are read together, and several texts can be written at once. How long does a pass
# of the storyteller take for more and more texts?

# %%
counts = (1, 2, 4, 8, 16)
times = [seconds(lambda n=n: llama(tokens[:n, :1], weights, config)) for n in counts]
for count, spent in zip(counts, times, strict=True):
    print(f"{count:2} texts at once: {1000 * spent:5.2f} ms, {count / spent:7.0f} tokens/s")

# %% [markdown]
# Servers live on that, and so does *speculation*: guess several tokens cheaply, then read them all at
# once, and keep those that the model would have written (`llucid generate --speculate`).
#
# ## Exercises
#
# **1.** Write `most(parameters, bits, gigabytes)`: at most how many tokens per second of one text, on
# a machine that reads that many gigabytes ($10^9$ bytes) per second?

# %% tags=["exercise"]


def most(parameters: int, bits: float, gigabytes: float) -> float:
    """Bandwidth over the bytes of the weights."""
    raise NotImplementedError


# %% tags=["check"]
assert math.isclose(most(10**9, 8, 100), 100)
assert math.isclose(most(8 * 10**9, 16, 3200), 200)
llama_8b = PRESETS["llama-3-8b"].config
print(f"correct: Llama 3 8B, 16 bits, 100 GB/s: {most(parameter_count(llama_8b), 16, 100):.1f} tokens/s")


# %% tags=["answer"]
def most(parameters: int, bits: float, gigabytes: float) -> float:
    """Bandwidth over the bytes of the weights."""
    return gigabytes * 1e9 / (parameters * bits / 8)


# %% [markdown]
# **2.** Write `quantise(numbers, bits)` for one group: the whole numbers (a tensor) and the scale.
# A group of zeros must not divide by zero.

# %% tags=["exercise"]


def quantise(numbers: torch.Tensor, bits: int) -> tuple[torch.Tensor, float]:
    """Whole numbers from −(2^(bits−1) − 1) to 2^(bits−1) − 1, and the scale."""
    raise NotImplementedError


# %% tags=["check"]
found, scale = quantise(torch.tensor([0.5, -1.0, 0.25]), 8)
assert found.tolist() == [64, -127, 32]
assert math.isclose(scale, 1 / 127, rel_tol=1e-5)
found, scale = quantise(torch.tensor([3.0, -7.0]), 4)
assert found.tolist() == [3, -7]
assert quantise(torch.zeros(4), 8)[0].tolist() == [0, 0, 0, 0]
print("correct")


# %% tags=["answer"]
def quantise(numbers: torch.Tensor, bits: int) -> tuple[torch.Tensor, float]:
    """Whole numbers from −(2^(bits−1) − 1) to 2^(bits−1) − 1, and the scale."""
    scale = numbers.abs().max().item() / (2 ** (bits - 1) - 1)
    return (numbers / (scale or 1)).round(), scale


# %% [markdown]
# **3.** The cache is read for every token, too. At how many tokens of context is it as large as the
# weights, both with numbers of the same width? Write `as_large(config)`.

# %% tags=["exercise"]


def as_large(config: llucid.Config) -> float:
    """Parameters over the numbers that one token leaves in the cache."""
    raise NotImplementedError


# %% tags=["check"]
assert 122_000 < as_large(llama_8b) < 123_000
assert 25_000 < as_large(PRESETS["llama-2-7b"].config) < 26_000
print(f"correct: Llama 3 8B, {as_large(llama_8b):,.0f} tokens")


# %% tags=["answer"]
def as_large(config: llucid.Config) -> float:
    """Parameters over the numbers that one token leaves in the cache."""
    return parameter_count(config) / (2 * config.layers * config.kv_heads * config.head_dim)
