# %% [markdown]
# # Normalisation and position
#
# Two small functions stand in front of attention in every block of a Llama. RMSNorm
# brings each token's vector to one length. RoPE turns queries and keys by an angle that
# says where the token stands. Both are a line of arithmetic, and both can be drawn.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch.linalg import vector_norm

from llucid import PRESETS
from llucid.llama import rms_norm, rope_frequencies, rotate, rotations

generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## RMSNorm: one length for all
#
# A token travels through the model as a vector of `dim` numbers. Every block adds
# something to it, so it grows, and how large it is by now should not matter to the next
# block. RMSNorm (Zhang & Sennrich 2019) divides by the root of the mean square:
#
# $$ \mathrm{rms}(x) = \sqrt{\frac{1}{d}\sum_{i=1}^{d} x_i^2 + \varepsilon}
#    \qquad y = \frac{x}{\mathrm{rms}(x)} \odot g $$
#
# The gain $g$ is learned, one number for each coordinate. The $\varepsilon$ keeps a vector
# of zeros from being divided by zero. Unlike LayerNorm, no mean is taken off.

# %%
x = torch.tensor([[3.0, 4.0], [30.0, 40.0], [-0.3, 0.4]])
gain = torch.ones(2)
y = rms_norm(x, gain, eps=1e-5)
print("x", list(x.shape), "->", list(y.shape))
print(y)

# %% [markdown]
# The first two rows point the same way and come out the same: only the direction is left.
# Three vectors or three thousand, each is normalised by itself; `rms_norm` looks at the
# last axis alone.
#
# In two dimensions we can see it. A cloud of points of all lengths lands on a circle of
# radius $\sqrt{d}$, and the gain then stretches the circle into an ellipse: the model
# decides which coordinates its readers should notice.

# %%
cloud = torch.randn(300, 2, generator=generator) * 1.5
gained = rms_norm(cloud, torch.tensor([1.4, 0.5]), eps=1e-5)
normed = rms_norm(cloud, gain, eps=1e-5)

figure, axes = plt.subplots(1, 3, figsize=(7.4, 2.6), sharex=True, sharey=True)
titles = ("x", "x / rms(x)", "x / rms(x) ⊙ g,  g = (1.4, 0.5)")
colour = torch.atan2(cloud[:, 1], cloud[:, 0])
for ax, points, title in zip(axes, (cloud, normed, gained), titles, strict=True):
    ax.scatter(*points.T, c=colour, cmap="twilight", s=6)
    ax.set(title=title, aspect="equal", xlim=(-3.4, 3.4), ylim=(-3.4, 3.4))
    ax.axhline(0, color="#dddddd", lw=0.8, zorder=0)
    ax.axvline(0, color="#dddddd", lw=0.8, zorder=0)

# %% [markdown]
# ## RoPE: a clock for every pair
#
# Attention compares a query with a key by their dot product, and a dot product does not
# know where the two tokens stand. RoPE (Su et al. 2021) tells it without adding anything:
# the numbers of a query are taken in pairs, each pair is read as a complex number, and at
# position $m$ pair $j$ is turned by the angle $m\,\theta_j$:
#
# $$ (x_{2j} + i\,x_{2j+1}) \cdot e^{\,i\,m\,\theta_j} \qquad
#    \theta_j = b^{-2j/d} $$
#
# The base $b$ is 10,000 in Llama 1 and 2 and 500,000 in Llama 3; $d$ is `head_dim`. The
# first pair turns by one radian a token. The last hardly moves: it is the hour hand.

# %%
config = PRESETS["llama-2-7b"].config
theta = rope_frequencies(config, torch.empty(0))
print("head_dim", config.head_dim, "-> pairs", list(theta.shape))
print("radians per token, first and last pair:", theta[0].item(), theta[-1].item())
print("tokens per full turn:", (2 * math.pi / theta[[0, 16, 32, 48, 63]]).round().tolist())

# %% [markdown]
# Below, six of the 64 pairs as clocks: the hand of pair $j$ at positions 0, 1, 2, … 15,
# from light to dark. Under them every pair and the first 200 positions; the colour is the
# angle. A position is the whole column, read at once: fast pairs tell neighbours apart,
# slow pairs tell far from near.

# %% tags=["picture"]
positions = torch.arange(200)
angles = positions[:, None] * theta
print("angles", list(angles.shape), " seq half")

figure = plt.figure(figsize=(7.4, 4.9))
grid = figure.add_gridspec(2, 6, height_ratios=(1, 1.75))
chosen = (0, 4, 8, 16, 24, 40)
shades = plt.get_cmap("Blues")(torch.linspace(0.25, 1, 16).numpy())
for column, pair in enumerate(chosen):
    ax = figure.add_subplot(grid[0, column])
    ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="#bbbbbb"))
    for position in range(16):
        angle = angles[position, pair]
        ax.plot([0, angle.cos()], [0, angle.sin()], color=shades[position], lw=1.5)
    ax.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
    ax.set_title(f"pair {pair}", loc="center", fontsize=9.5)
    ax.axis("off")
ax = figure.add_subplot(grid[1, :])
image = ax.imshow(
    torch.atan2(angles.sin(), angles.cos()).T.numpy(),  # between −π and π
    cmap="twilight_shifted",
    vmin=-math.pi,
    vmax=math.pi,
    aspect="auto",
    interpolation="none",
)
ax.set(xlabel="position", ylabel="pair", title="the angle of every pair at every position")
bar = figure.colorbar(image, ax=ax, ticks=[-math.pi, 0, math.pi], pad=0.01)
bar.ax.set_yticklabels(["−π", "0", "π"])

# %% [markdown]
# ## Only the distance counts
#
# Why turn, and not add? The dot product of a turned query and a turned key is the real part
# of a product of complex numbers, one of them conjugated, and so the angles subtract:
#
# $$ \langle q\,e^{im\theta},\; k\,e^{in\theta} \rangle
#    = \mathrm{Re}\left( q\,\bar{k}\; e^{\,i(m-n)\theta} \right) $$
#
# The positions $m$ and $n$ are gone; $m - n$ is left. Move both tokens and nothing changes:

# %%
q = torch.randn(1, 1, 1, config.head_dim, generator=generator)  # batch heads seq head_dim
k = torch.randn(1, 1, 1, config.head_dim, generator=generator)


def turned(x: torch.Tensor, position: int) -> torch.Tensor:
    """x as it is at this position."""
    return rotate(x, rotations(torch.tensor([[position]]), theta))


for m, n in ((5, 2), (105, 102), (1005, 1002), (5, 4)):
    score = (turned(q, m) * turned(k, n)).sum().item()
    print(f"query at {m:4}, key at {n:4}, distance {m - n}: score {score:+.4f}")

# %% [markdown]
# Lengths do not change either, since a rotation keeps them. What a rotation does change is
# agreement: a query that equals its key fits it perfectly at distance 0 and less, on the
# whole, further away. The mean of $\cos(\Delta\,\theta_j)$ over the pairs shows how fast; a larger
# base slows the clocks, and the fit reaches further. That is why longer contexts came with
# larger bases.

# %%
distances = torch.arange(0, 4000)
figure, ax = plt.subplots(figsize=(7.4, 2.7))
for base, label in ((10_000, "Llama 1 and 2"), (500_000, "Llama 3")):
    frequencies = base ** (-torch.arange(0, 128, 2) / 128)
    fit = torch.cos(distances[:, None] * frequencies).mean(-1)
    ax.plot(distances, fit, label=f"base {base:,}, {label}", lw=1.1)
ax.set(xlabel="distance in tokens", ylabel="fit of equal q and k", xlim=(0, 4000))
ax.grid(axis="y")
ax.legend()

# %% [markdown]
# ## Longer still: Llama 3.1
#
# A model that was trained on 8,192 tokens has never seen the angles that its slow pairs
# reach beyond them. Llama 3.1 slows exactly these pairs, by a factor of 8, leaves the fast
# ones alone, and mixes between. `rope_frequencies` does so where the config says so.

# %%
before = rope_frequencies(PRESETS["llama-3-8b"].config, torch.empty(0))
after = rope_frequencies(PRESETS["llama-3.1-8b"].config, torch.empty(0))
ratio = before / after
print("pairs left alone:", int((ratio == 1).sum()))
print("pairs slowed by 8:", int((ratio > 7.999).sum()))
print("pairs between:", int(((ratio > 1) & (ratio <= 7.999)).sum()))

# %% [markdown]
# ## Exercises
#
# In a notebook, write your own function in a cell below the question and run the check. On
# a page, an answer is folded away under each.
#
# **1.** Write `rms(x)`, the root mean square of the last axis. What is it, for every row
# that comes out of `rms_norm` with a gain of one?


# %% tags=["answer"]
def rms(x: torch.Tensor) -> torch.Tensor:
    """√(mean(x²)) of the last axis."""
    return x.square().mean(-1).sqrt()


# %% tags=["check"]
assert rms(torch.tensor([3.0, 4.0])).isclose(torch.tensor(12.5).sqrt())
assert rms(normed).allclose(torch.ones(300), atol=1e-3)
print("holds: every row has length √d, here", vector_norm(normed[0]).item())

# %% [markdown]
# **2.** Write `slow_pairs(base, head_dim, context)`: how many pairs make less than one full
# turn in `context` tokens? These are the pairs that can tell any two places of the context
# apart by themselves.


# %% tags=["answer"]
def slow_pairs(base: float, head_dim: int, context: int) -> int:
    """Pairs with context · θ < 2π."""
    theta = base ** (-torch.arange(0, head_dim, 2) / head_dim)
    return int((context * theta < 2 * math.pi).sum())


# %% tags=["check"]
assert slow_pairs(10_000, 128, 4096) == 18  # Llama 2
assert slow_pairs(500_000, 128, 8192) == 29  # Llama 3
assert slow_pairs(10_000, 128, 1) == 64
print("holds: of 64 pairs,", slow_pairs(500_000, 128, 8192), "in Llama 3 8B")

# %% [markdown]
# **3.** Turning by $m$ and then by $n$ is turning by $m + n$. Write `twice(x, m, n)` that
# turns `x` (of shape `[1, 1, 1, head_dim]`) two times with `turned`, and let the check
# compare.


# %% tags=["answer"]
def twice(x: torch.Tensor, m: int, n: int) -> torch.Tensor:
    """x, turned by m positions and then by n."""
    return turned(turned(x, m), n)


# %% tags=["check"]
assert twice(q, 3, 4).allclose(turned(q, 7), atol=1e-5)
assert twice(q, 9, -9).allclose(q, atol=1e-5)
print("holds: rotations add up, so a token can be moved without knowing where it was")
