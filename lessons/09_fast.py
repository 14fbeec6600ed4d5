# %% [markdown]
# # Make it fast
#
# To write one token a model must read all of its weights, and do only two operations with each.
# So the speed of writing is the speed of memory, and everything that makes it faster is a way
# to read less, or to do more with what was read. We measure this machine, then each of these
# ways; and then you build a model of your own.

# %%
import math
import time
from collections.abc import Callable
from statistics import median

import matplotlib.pyplot as plt
import torch

from llucid import PRESETS
from llucid.config import Config
from llucid.fast import attention_fused
from llucid.llama import attention_written_out, empty_cache, llama
from llucid.weights import count, initialise, to

torch.set_grad_enabled(False)


def seconds(work: Callable[[], object], times: int = 5) -> float:
    """The median time of some calls, after one that warms up."""
    work()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return median(found)


print(f"{torch.get_num_threads()} threads")

# %% [markdown]
# ## How fast this machine reads, and how fast it computes
#
# A matrix times a vector reads each number of the matrix once and does two operations with it, a
# product and a sum. A matrix times a matrix of 512 columns does 1,024 operations with the same
# number. The first measures memory, the second arithmetic:

# %%
matrix = torch.randn(6000, 6000)
vector, columns = torch.randn(6000, 1), torch.randn(6000, 512)
size = matrix.numel() * 4  # bytes
reading = seconds(lambda: matrix @ vector)
computing = seconds(lambda: matrix @ columns, times=3)
bandwidth = size / reading
arithmetic = 2 * matrix.numel() * 512 / computing
uses = arithmetic / 2 / (bandwidth / 4)
print(
    f"memory:     {bandwidth / 1e9:6.1f} GB/s, {bandwidth / 4 / 1e9:.1f} billion numbers a second"
)
print(f"arithmetic: {arithmetic / 1e9:6.1f} billion operations a second")
print(f"in the time of reading a number it could be used {uses:.0f} times")

# %% [markdown]
# ## The bound, and how near we come
#
# A model with $P$ parameters of $b$ bytes each cannot write faster, one text at a time, than
#
# $$ \frac{\text{tokens}}{\text{second}} \le \frac{\text{bandwidth}}{P \cdot b} $$
#
# (A little faster where the output matrix is one of its own: then of the embedding only one row is
# read. In Llama 3 8B it is 6.5 % of $P$.)
#
# Here for models of three sizes, untrained, since weights take as long to read whatever they say.
# Small ones that stay in the processor's cache may even pass the bound of the memory; in the
# smallest, calling functions is most of the time.


# %%
def row(dim: int, layers: int) -> Config:
    """A Llama of this width and depth."""
    return Config(
        dim=dim, layers=layers, heads=dim // 32, kv_heads=dim // 64, head_dim=32,
        ffn_dim=8 * dim // 3 // 32 * 32, vocab_size=4096, context=1024, tied_embeddings=True,
    )  # fmt: skip


def decode_seconds(weights, config: Config, before: int = 64, batch: int = 1) -> float:
    """The time of one token after so many others, with a cache."""
    cache = empty_cache(config, batch, before + 1, weights)
    tokens = torch.zeros(batch, before, dtype=torch.long)
    _, cache = llama(tokens, weights, config, cache)
    return seconds(lambda: llama(tokens[:, :1], weights, config, cache))


shapes = {"small": (192, 4), "middle": (384, 8), "large": (640, 10)}
sizes = {name: row(dim, layers) for name, (dim, layers) in shapes.items()}
models = {name: initialise(config) for name, config in sizes.items()}
for name, config in sizes.items():
    measured, bound = 1 / decode_seconds(models[name], config), bandwidth / 4 / count(models[name])
    print(
        f"{name:7} {count(models[name]):11,} parameters: {measured:6.0f} tokens/s,",
        f"bound {bound:6.0f}, so {measured / bound:.0%}",
    )

# %% [markdown]
# And a model that does not fit into a lesson: with what this machine reads, at most so many
# tokens per second.

# %%
for name in ("llama-3.2-1b", "llama-3-8b", "llama-3-70b"):
    parameters = PRESETS[name].config.parameters
    bounds = {bits: bandwidth / (parameters * bits / 8) for bits in (32, 16, 8, 4)}
    print(f"{name:13}", "  ".join(f"{bits} bits: {bound:7.3f}" for bits, bound in bounds.items()))

# %% [markdown]
# ## Read it once: the cache
#
# Lesson 06 showed that the cache changes nothing. Here is what it saves. Without it, a token costs
# as much as reading everything before it; with it, little more at position 500 than at 10.

# %%
config, weights = sizes["small"], models["small"]
places = (8, 32, 64, 128, 256, 512)
cache_file = [1000 * decode_seconds(weights, config, before) for before in places]
texts = [torch.zeros(1, before + 1, dtype=torch.long) for before in places]
uncached = [1000 * seconds(lambda text=text: llama(text, weights, config), 3) for text in texts]
for before, with_cache, without in zip(places, cache_file, uncached, strict=True):
    print(f"position {before:3}: {with_cache:6.2f} ms with the cache, {without:7.2f} ms without")

# %% [markdown]
# ## Use it more often: batches and prompts
#
# A weight that was read can serve several tokens. So several texts at once take less time than one
# after the other, until arithmetic is what limits. A prompt is the same case, since all its tokens
# are known: it is read much faster than it could be written.

# %%
config, weights = sizes["large"], models["large"]
batches = (1, 2, 4, 8, 16)
rates = [batch / decode_seconds(weights, config, batch=batch) for batch in batches]
for batch, rate in zip(batches, rates, strict=True):
    print(f"{batch:2} texts at once: {rate:6.0f} tokens/s in all")
prompt = torch.zeros(1, 256, dtype=torch.long)
prefill = 256 / seconds(lambda: llama(prompt, weights, config), times=3)
print(f"a prompt of 256: {prefill:6.0f} tokens/s")

# %% tags=["picture"]
figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.1))
left.plot(places, uncached, "o-", ms=4, color="#d1622b", label="everything again")
left.plot(places, cache_file, "o-", ms=4, color="#2f5f9e", label="with the cache")
left.set(xlabel="position", ylabel="milliseconds a token", ylim=(0, None), title="one more token")
right.plot(batches, rates, "o-", ms=4, color="#2f5f9e", label="measured")
bound = bandwidth / 4 / count(weights)
bounds = [bound * batch for batch in batches]
right.plot(batches, bounds, "--", color="#999999", label="bound of memory")
limit = arithmetic / 2 / count(weights)
right.axhline(limit, ls=":", color="#3f7f4f", label="bound of arithmetic")
right.set(xlabel="texts at once", ylabel="tokens a second", title="several texts")
right.set(xlim=(0, 17), xticks=batches, ylim=(0, 1.6 * max(*rates, limit)))
for ax in (left, right):
    ax.grid()
    ax.legend(loc="upper left")

# %% [markdown]
# ## Read half: 16 bits
#
# bfloat16 keeps the exponent of a 32-bit float and drops 16 bits of its precision. The weights
# are half as large. Whether that is faster depends on the processor: without instructions for
# bfloat16 it must convert, and may be slower. Either way the result changes a little:

# %%
half = to(weights, torch.bfloat16)
full_rate, half_rate = 1 / decode_seconds(weights, config), 1 / decode_seconds(half, config)
print(f"32 bits: {full_rate:5.0f} tokens/s | 16 bits: {half_rate:5.0f} tokens/s")
tokens = torch.arange(64)[None]
exact, rounded = llama(tokens, weights, config), llama(tokens, half, config).float()
print(f"logits differ by {(exact - rounded).norm() / exact.norm():.2%} of their size")

# %% [markdown]
# ## Never write it down: fused attention
#
# Attention of $n$ tokens has $n^2$ scores in each head. Written out, they go to memory and come
# back, twice. The fused kernel (Dao et al. 2022) goes over the keys in pieces, keeps a running
# maximum and a running sum, and never holds them all. It computes the same:

# %%
for n in (256, 1024, 2048):
    qkv = torch.randn(3, 1, 4, n, 64)
    plain = seconds(lambda qkv=qkv: attention_written_out(*qkv, None), times=3)
    fused = seconds(lambda qkv=qkv: attention_fused(*qkv, None), times=3)
    difference = (attention_written_out(*qkv, None) - attention_fused(*qkv, None)).abs().max()
    print(
        f"{n:5} tokens: scores take {4 * 4 * n * n / 2**20:5.0f} MiB; written out",
        f"{1000 * plain:6.1f} ms, fused {1000 * fused:6.1f} ms, difference {difference:.0e}",
    )

# %% [markdown]
# ## Your own rung
#
# You now know every part of a Llama and what it costs. `llucid ladder` builds one up in ten rungs,
# from a table of pairs, and measures what each idea brings. A rung is two functions:
#
# - `init(config, seed)` returns untrained weights, any named tuple of arrays;
# - `logits(tokens, weights, config)` scores every next token at every position.
#
# Here is one of our own, with a single idea and no attention. It adds up the vectors of all
# characters so far, and each is worth less with every step, by a factor that is learned, one for
# each coordinate:
#
# $$ h_t = \sum_{s \le t} \sigma(f)^{\,t-s} \odot x_s $$
#
# The scores are $O \tanh(h_t)$.

# %%
from typing import NamedTuple

from llucid.corpora import open_corpus
from llucid.corpora.tokens import make_tokenizer, tokenise, training_batch, validation_batches
from llucid.ladder import RUNGS, Rung
from llucid.ladder.checks import check
from llucid.weights import leaves

torch.set_grad_enabled(True)


class Fading(NamedTuple):
    """A model that remembers, less and less."""

    embedding: torch.Tensor  # vocab dim
    fade: torch.Tensor  # dim
    output: torch.Tensor  # vocab dim


def init(config: Config, seed: int) -> Fading:
    """Random vectors; half of each is left at the next step."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(config.vocab_size, config.dim, generator=generator)
    output = torch.randn(config.vocab_size, config.dim, generator=generator) * 0.02
    return Fading(embedding, torch.zeros(config.dim), output)


def logits(tokens: torch.Tensor, weights: Fading, config: Config) -> torch.Tensor:
    """What is remembered, by a matrix of powers, scored against every character."""
    at = torch.arange(tokens.shape[1])
    distance = (at[:, None] - at)[..., None]
    powers = weights.fade.sigmoid() ** distance.clamp(min=0) * (distance >= 0)  # seq seq dim
    h = torch.einsum("tsd,bsd->btd", powers, weights.embedding[tokens])
    return h.tanh() @ weights.output.T


mine = Rung(11, "Fading memory", "All before counts, less and less.", "it fades", init, logits)

# %% [markdown]
# The ladder's own checks look at it: shapes, an untrained loss of log V, a gradient in every
# array, and no look at the future.

# %%
corpus = open_corpus(["fables"])
tokenizer = make_tokenizer("characters", corpus)
training, held_out = (tokenise(corpus, tokenizer, split) for split in ("train", "validation"))
held_out = held_out._replace(length=20_000)
config = Config(
    dim=96, layers=1, heads=1, kv_heads=1, head_dim=96, ffn_dim=256,
    vocab_size=tokenizer.vocab_size, context=32,
)  # fmt: skip
for found in check(mine, config, seed=0):
    print("passed:" if found.passed else "failed:", found.finding)
    assert found.passed


# %%
def climb(rung: Rung, steps: int = 300) -> float:
    """Trains a rung, on the same batches as any other; returns its validation loss."""
    weights = rung.init(config, 0)
    for leaf in leaves(weights):
        leaf.requires_grad_()
    optimizer = torch.optim.AdamW(leaves(weights), lr=0.02, weight_decay=0.0)
    for step in range(steps):
        inputs, targets = training_batch(training, 16, config.context, 0, step)
        (rung.loss(inputs, targets, weights, config) / targets.numel()).backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        batches = list(validation_batches(held_out, config.context))
        total = sum(rung.loss(*batch, weights, config).item() for batch in batches)
        return total / sum(targets.numel() for _, targets in batches)


for rung in (RUNGS[0], mine):
    print(f"{rung.name}: {climb(rung):.3f} nats a character")
print(f"the corpus's own entropy: {corpus.floor:.3f}")

# %% [markdown]
# ## Exercises
#
# **1.** Write `most(parameters, bits, gigabytes)`: at most how many tokens per second, of one
# text, on a machine that reads so many gigabytes (10⁹ bytes) per second?


# %% tags=["answer"]
def most(parameters: int, bits: float, gigabytes: float) -> float:
    """Bandwidth over the bytes of the weights."""
    return gigabytes * 1e9 / (parameters * bits / 8)


# %% tags=["check"]
assert math.isclose(most(10**9, 8, 100), 100)
assert math.isclose(most(8 * 10**9, 16, 3200), 200)
llama_8b = PRESETS["llama-3-8b"].config
rate = most(llama_8b.parameters, 16, 100)
print(f"holds: Llama 3 8B in 16 bits at 100 GB/s, {rate:.1f} tokens/s")

# %% [markdown]
# **2.** The cache is read, too. At how many tokens of context is it as large as the weights? Write
# `as_large(config)`, both in numbers of the same width.


# %% tags=["answer"]
def as_large(config: Config) -> float:
    """Parameters over the numbers that one token leaves in the cache."""
    return config.parameters / (2 * config.layers * config.kv_heads * config.head_dim)


# %% tags=["check"]
assert 122_000 < as_large(llama_8b) < 123_000
assert as_large(PRESETS["llama-2-7b"].config) < 26_000
print(f"holds: {as_large(llama_8b):,.0f} tokens; without shared keys it would be a quarter")

# %% [markdown]
# **3.** The check that matters most, by hand: when the last input changes, no score before it may.
# Write `peeks(score, weights)` that says whether a function like `logits` lets an earlier position
# see a later one.


# %% tags=["answer"]
def peeks(score, weights) -> bool:
    """Whether another last token changes anything before it."""
    tokens = torch.arange(10)[None]
    other = tokens.clone()
    other[0, -1] = 11
    before, after = (score(each, weights, config)[:, :-1] for each in (tokens, other))
    return not before.equal(after)


# %% tags=["check"]
weights = init(config, 0)
assert not peeks(logits, weights)
assert peeks(
    lambda tokens, weights, config: logits(tokens.flip(1), weights, config).flip(1), weights
)
print("holds: what is remembered is the past. Now change one thing, and see what it brings.")
