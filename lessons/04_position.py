# %% [markdown]
# # Position
#
# Attention compares vectors and does not know where they stand: "the fox rang the bell" and "the
# bell rang the fox" would be the same to it. RoPE tells it, by turning queries and keys like the
# hands of clocks. We turn one hand by hand, then all of them.

# %% tags=["setup"]
import math

import matplotlib.pyplot as plt
import torch

import llucid
from figures import whole_llama
from llucid import PRESETS
from llucid.chat import STORYTELLER
from llucid.llama import llama, rope_frequencies, rotate, rotations

torch.set_grad_enabled(False)

# %% tags=["plot"]
# The whole Llama with RoPE highlighted.
whole_llama("position")

# %% [markdown]
# ## Order is invisible
#
# After "the fox rang the bell", the full stop gathers from all words before it. Exchange *fox* and
# *bell*: their keys and values move together, and what the full stop gathers is the same, to rounding.


# %%
def attend(q, k, v):
    """Attention of one query."""
    return (q @ k.T / math.sqrt(len(q))).softmax(-1) @ v


generator = torch.Generator().manual_seed(0)
k, v = torch.randn(2, 6, 8, generator=generator)  # of: the fox rang the bell .
q = torch.randn(8, generator=generator)  # of the full stop
order = torch.tensor([0, 4, 2, 3, 1, 5])  # the bell rang the fox .
print("difference:", (attend(q, k, v) - attend(q, k[order], v[order])).abs().max().item())
assert torch.allclose(attend(q, k, v), attend(q, k[order], v[order]), atol=1e-6)

# %% [markdown]
# One remedy is a second table: a row for each position, added to the embedding. The ladder's rungs
# 3 to 5 do that. Then position 7 and position 8 are as unrelated as two words, and there is no row
# for a position that was not trained.
#
# ## One hand of a clock
#
# Take two numbers of a query and read them as a point in the plane. At position $m$, turn it
# by $m$ times an angle $\theta$. Do the same with the key. By hand, with a quarter turn
# ($\theta = 90°$):

# %%
quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])  # (a, b) becomes (−b, a)
q = torch.tensor([1.0, 0.0])
for m in range(5):
    print(f"position {m}:", q.tolist())
    q = quarter @ q

# %% [markdown]
# What does that do to scores? A dot product depends on the angle between the two. Query at $m$ and
# key at $n$ were turned by $m\theta$ and $n\theta$; the difference is $(m-n)\theta$. With complex
# numbers, where turning is multiplying by $e^{im\theta}$:
#
# $$ \langle q\,e^{im\theta},\; k\,e^{in\theta} \rangle
#    = \mathrm{Re}\left( q\,\bar{k}\; e^{\,i(m-n)\theta} \right) $$
#
# Positions are gone, and distance is left. Move both tokens, and nothing changes:


# %%
def turned(x: complex, position: int, theta: float = 0.5) -> complex:
    """The point x at this position."""
    return x * complex(math.cos(position * theta), math.sin(position * theta))


def score(a: complex, b: complex) -> float:
    """The dot product of two points."""
    return a.real * b.real + a.imag * b.imag


for m, n in ((5, 2), (105, 102), (5, 4)):
    print(f"positions {m:3} and {n:3}: score {score(turned(1 + 2j, m), turned(2 + 1j, n)):+.4f}")

# %% [markdown]
# ## Many clocks
#
# One hand shows the same time again after a turn. So a head of `head_dim` numbers has
# `head_dim / 2` pairs, and each turns at its own speed (Su et al. 2021):
#
# $$ \theta_j = b^{-2j/d} \qquad j = 0, 1, \ldots, d/2 - 1 $$
#
# The base $b$ is 10,000 in Llama 1 and 2 and 500,000 in Llama 3. The first pair turns by one radian
# per token, the last hardly moves: it is the hour hand. In llama.py these are `rope_frequencies`,
# `rotations` and `rotate`.

# %%
config = PRESETS["llama-2-7b"].config
theta = rope_frequencies(config, torch.empty(0))
print("head_dim", config.head_dim, "-> pairs", list(theta.shape))
print("tokens per full turn:", (2 * math.pi / theta[[0, 16, 32, 48, 63]]).round().tolist())

x = torch.tensor([[[[3.0, 4.0, 1.0, 0.0]]]])  # batch heads seq head_dim: two pairs
angles = torch.tensor([0.5, 0.05])
result = rotate(x, rotations(torch.tensor([[2]]), angles))[0, 0, 0]
by_hand = [turned(3 + 4j, 2, 0.5), turned(1 + 0j, 2, 0.05)]
print("rotate:", [round(number, 4) for number in result.tolist()])
assert torch.allclose(torch.view_as_complex(result.view(2, 2)), torch.tensor(by_hand))

# %% tags=["picture"]
# Six pairs as clocks at positions 0 to 15, and below the angle of every pair at 200 positions.
positions = torch.arange(200)
angles = positions[:, None] * theta
figure = plt.figure(figsize=(7.4, 4.6))
grid = figure.add_gridspec(2, 6, height_ratios=(1, 1.75))
shades = plt.get_cmap("Blues")(torch.linspace(0.25, 1, 16).numpy())
for column, pair in enumerate((0, 4, 8, 16, 24, 40)):
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
    torch.atan2(angles.sin(), angles.cos()).T.numpy(),
    cmap="twilight_shifted", vmin=-math.pi, vmax=math.pi, aspect="auto", interpolation="none",
)  # fmt: skip
ax.set(xlabel="position", ylabel="pair", title="the angle of every pair at every position")
bar = figure.colorbar(image, ax=ax, pad=0.015, ticks=(-math.pi, 0, math.pi))
bar.ax.set_yticklabels(("−π", "0", "π"))

# %% [markdown]
# A position is a whole column. Fast pairs tell neighbours apart, slow pairs tell far from near.
#
# ## Does the storyteller use it?
#
# `llama` takes positions as an argument. Move the whole text, and the answer stays. Stretch it, so
# that neighbours seem to be three places apart, and the model does not recognise the sentence that
# repeats:

# %%
model = llucid.load(STORYTELLER, dtype="float32", device="cpu")
text = "The fox rang the bell. The fox rang the"
ids = torch.tensor([[model.tokenizer.bos, *model.tokenizer.encode(text)]])
target = model.tokenizer.encode(" bell")[0]
at = torch.arange(ids.shape[1])
chances = {}
for name, positions in {"0 1 2 …": at, "100 101 102 …": at + 100, "0 3 6 …": 3 * at}.items():
    scores = llama(ids, model.weights, model.config, positions=positions)[0, -1]
    chances[name] = scores.softmax(-1)[target].item()
    print(f"positions {name:14} bell {chances[name]:.1%}")
assert abs(chances["0 1 2 …"] - chances["100 101 102 …"]) < 1e-3
assert chances["0 3 6 …"] < 0.5 * chances["0 1 2 …"]

# %% [markdown]
# ## How far a fit reaches
#
# A query that equals its key fits it perfectly at distance 0, and on the whole less further away:
# the mean of $\cos(\Delta\,\theta_j)$ over all pairs. A larger base slows the clocks, and the fit
# reaches further. That is why longer contexts came with larger bases.

# %% tags=["plot"]
# The fit of equal queries and keys over their distance, for the bases 10,000 and 500,000.
distances = torch.arange(0, 4000)
figure, ax = plt.subplots(figsize=(7.4, 2.7))
for base, label in ((10_000, "Llama 1 and 2"), (500_000, "Llama 3")):
    frequencies = base ** (-torch.arange(0, 128, 2) / 128)
    fit = torch.cos(distances[:, None] * frequencies).mean(-1)
    ax.plot(distances, fit, label=f"base {base:,}, {label}", lw=1.1)
ax.set(xlabel="distance in tokens", ylabel="fit", xlim=(0, 4000))
ax.grid(axis="y")
ax.legend()

# %% [markdown]
# ## Longer contexts: Llama 3.1
#
# A model that was trained on 8,192 tokens has never seen the angles that its slow pairs reach
# beyond. Llama 3.1 slows exactly these pairs by a factor of 8, leaves the fast ones alone, and
# mixes between.

# %%
before = rope_frequencies(PRESETS["llama-3-8b"].config, torch.empty(0))
after = rope_frequencies(PRESETS["llama-3.1-8b"].config, torch.empty(0))
ratio = before / after
unchanged, slowed = int((ratio < 1.001).sum()), int((ratio > 7.999).sum())
print(f"of {len(ratio)} pairs {unchanged} are unchanged, {slowed} are 8 times slower,")
print(f"and {len(ratio) - unchanged - slowed} lie between")

# %% [markdown]
# ## Exercises
#
# **1.** Write `slow_pairs(base, head_dim, context)`: how many pairs make less than one full turn
# in `context` tokens? Each of these can tell any two positions of the context apart by itself.

# %% tags=["exercise"]


def slow_pairs(base: float, head_dim: int, context: int) -> int:
    """Pairs with context · θ < 2π."""
    raise NotImplementedError


# %% tags=["check"]
assert slow_pairs(10_000, 128, 4096) == 18  # Llama 2
assert slow_pairs(500_000, 128, 8192) == 29  # Llama 3
assert slow_pairs(10_000, 128, 1) == 64
print("correct: of 64 pairs,", slow_pairs(500_000, 128, 8192), "in Llama 3 8B")


# %% tags=["answer"]
def slow_pairs(base: float, head_dim: int, context: int) -> int:
    """Pairs with context · θ < 2π."""
    theta = base ** (-torch.arange(0, head_dim, 2) / head_dim)
    return int((context * theta < 2 * math.pi).sum())


# %% [markdown]
# **2.** Write `turn(x, position, theta)` without complex numbers: `x` has shape `[d]`, `theta`
# `[d / 2]`; neighbours are a pair. `(a, b)` becomes `(a cos − b sin, a sin + b cos)`.

# %% tags=["exercise"]


def turn(x: torch.Tensor, position: int, theta: torch.Tensor) -> torch.Tensor:
    """x, with each pair of neighbours turned by position · theta."""
    raise NotImplementedError


# %% tags=["check"]
x, theta = torch.randn(8, generator=generator), torch.tensor([1.0, 0.5, 0.1, 0.02])
for position in (0, 1, 7, 300):
    expected = rotate(x.view(1, 1, 1, 8), rotations(torch.tensor([[position]]), theta)).flatten()
    assert torch.allclose(turn(x, position, theta), expected, atol=1e-4), position
assert torch.allclose(turn(x, 9, theta).norm(), x.norm())
print("correct: lengths stay the same")


# %% tags=["answer"]
def turn(x: torch.Tensor, position: int, theta: torch.Tensor) -> torch.Tensor:
    """x, with each pair of neighbours turned by position · theta."""
    (a, b), angle = x.view(-1, 2).T, position * theta
    return torch.stack((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), -1).flatten()
