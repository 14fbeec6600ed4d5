# %% [markdown]
# # Write llama yourself
#
# You have met every part. Now put them together: the whole Llama in twenty lines of your own, from
# ids to scores, with the weights of the storyteller. If it is right, it gives the same numbers as
# llama.py, and says *bell*.

# %% tags=["setup"]
import matplotlib.pyplot as plt
import torch

import llucid
from figures import whole_llama
from llucid.chat import STORYTELLER
from llucid.llama import Placement, attention, llama, rope_frequencies, rotations

torch.set_grad_enabled(False)
model = llucid.load(STORYTELLER, dtype="float32", device="cpu")
config, weights, tokenizer = model.config, model.weights, model.tokenizer

# %% tags=["plot"]
# The whole Llama, everything highlighted.
whole_llama("tokens", "embedding", "block", "norm", "attention", "position", "feed-forward", "output")

# %% [markdown]
# ## What you are given
#
# The weights are a tree of named tuples, and the config holds the numbers. Matrices are stored as
# `[out, in]`, so a row vector goes through one as `x @ W.T`.

# %%
print("weights.embedding", list(weights.embedding.shape))
print("weights.blocks   ", len(weights.blocks), "of them; in each:")
one = weights.blocks[0]
for name, array in (
    ("attention_norm", one.attention_norm),
    *((f"attention.{field}", getattr(one.attention, field)) for field in one.attention._fields),
    ("feed_forward_norm", one.feed_forward_norm),
    *((f"feed_forward.{f}", getattr(one.feed_forward, f)) for f in one.feed_forward._fields),
):
    print(f"    {name:18} {list(array.shape)}")
print("weights.norm     ", list(weights.norm.shape))
print("weights.output   ", "None: the embedding is used" if weights.output is None else "a matrix")
print({name: getattr(config, name) for name in ("heads", "kv_heads", "head_dim", "rope_theta")})

# %% [markdown]
# ## The parts
#
# You may use what you wrote in the lessons before. Here it is again, in one line each, for one text
# (no batch axis).


# %%
def norm(x, gain):
    """RMSNorm, lesson 5."""
    return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * gain


def turn(x):
    """RoPE, lesson 4, for x of shape [heads, seq, head_dim] at positions 0, 1, 2 and so on."""
    half = torch.arange(config.head_dim // 2, dtype=x.dtype)
    theta = config.rope_theta ** (-2 * half / config.head_dim)
    angle = torch.arange(x.shape[1])[:, None] * theta
    a, b = x[..., 0::2], x[..., 1::2]
    pairs = (a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos())
    return torch.stack(pairs, -1).flatten(-2)


def heads_of(x, count):
    """[seq, count · head_dim] -> [count, seq, head_dim]."""
    return x.unflatten(-1, (count, config.head_dim)).transpose(0, 1)


# %% [markdown]
# ## Exercises
#
# **1.** Write `my_attention(x, w)`: queries, keys and values of all heads, RoPE on queries and keys,
# scores divided by $\sqrt{d}$, the mask, softmax, the mixture, and the output matrix. If there are
# fewer key heads than query heads, `repeat_interleave` repeats each of them.

# %% tags=["exercise"]


def my_attention(x, w):
    """[seq, dim] -> [seq, dim], with the weights w (query, key, value, output)."""
    raise NotImplementedError


# %% tags=["check"]
x = torch.randn(9, config.dim, generator=torch.Generator().manual_seed(0))
rotation = rotations(torch.arange(9)[None], rope_frequencies(config, x))
expected = attention(x[None], one.attention, config, Placement(rotation))[0]
assert torch.allclose(my_attention(x, one.attention), expected, atol=1e-4)
print("correct:", list(x.shape), "->", list(expected.shape))


# %% tags=["answer"]
def my_attention(x, w):
    """[seq, dim] -> [seq, dim], with the weights w (query, key, value, output)."""
    q = turn(heads_of(x @ w.query.T, config.heads))
    k = turn(heads_of(x @ w.key.T, config.kv_heads))
    v = heads_of(x @ w.value.T, config.kv_heads)
    k, v = (t.repeat_interleave(config.heads // config.kv_heads, 0) for t in (k, v))
    later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    scores = (q @ k.mT / config.head_dim**0.5).masked_fill(later, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(-2) @ w.output.T


# %% [markdown]
# **2.** Write `my_llama(ids)`: the embedding, all blocks (use `my_attention`, and write SwiGLU in
# place), the last norm, the output matrix.

# %% tags=["exercise"]


def my_llama(ids):
    """[seq] -> [seq, vocab]: the scores of every next token."""
    raise NotImplementedError


# %% tags=["check"]
text = "The fox rang the bell. The fox rang the"
ids = torch.tensor(tokenizer.encode(text))
mine, real = my_llama(ids), llama(ids[None], weights, config)[0]
print(f"largest difference {(mine - real).abs().max():.1e}, of scores up to {real.abs().max():.1f}")
assert torch.allclose(mine, real, atol=2e-3)
assert tokenizer.decode([mine[-1].argmax().item()]) == " bell"
print("correct: The fox rang the bell. The fox rang the bell")


# %% tags=["answer"]
def my_llama(ids):
    """[seq] -> [seq, vocab]: the scores of every next token."""
    x = weights.embedding[ids]
    for w in weights.blocks:
        x = x + my_attention(norm(x, w.attention_norm), w.attention)
        y, f = norm(x, w.feed_forward_norm), w.feed_forward
        x = x + (torch.nn.functional.silu(y @ f.gate.T) * (y @ f.up.T)) @ f.down.T
    output = weights.embedding if weights.output is None else weights.output
    return norm(x, weights.norm) @ output.T


# %% [markdown]
# That is a Llama. The same code with larger matrices is Llama 3 405B. Now read
# [`llucid/llama.py`](../llucid/llama.py): it has the same functions, with a batch axis, a cache, and
# the papers and equation numbers that they come from.
#
# ## Where the difference comes from
#
# The two are not equal bit for bit. The same sums in another order are rounded differently; in 64
# bits the difference almost disappears:

# %%
ids = torch.tensor(tokenizer.encode("The fox rang the bell. The fox rang the"))
differences = []
for dtype in (torch.float32, torch.float64):
    weights = llucid.load(STORYTELLER, dtype=dtype, device="cpu").weights
    real = llama(ids[None], weights, config)[0]
    differences.append((my_llama(ids) - real).abs().max().item())
    print(f"{dtype!s:14} largest difference {differences[-1]:.1e}")
assert differences[1] < 1e-3 * differences[0]

# %% tags=["picture"]
# Your scores and those of llama.py for all tokens at the last position lie on one line.
figure, ax = plt.subplots(figsize=(3.6, 3.4))
ax.scatter(real[-1], my_llama(ids)[-1], s=3)
ax.set(xlabel="score by llama.py", ylabel="score by my_llama", aspect="equal")
ax.grid()
