# %% [markdown]
# # Training
#
# Training changes every parameter a little, in the direction in which the loss falls, and
# repeats that thousands of times. We take the first step by hand, meet the optimizers SGD, AdamW
# and Muon, train a small Llama with each, and break the training in two instructive ways.

# %% tags=["setup"]
import math

import matplotlib.pyplot as plt
import torch

from figures import whole_llama
from llucid import Config
from llucid.corpora import open_corpus
from llucid.llama import llama
from llucid.training.muon import Muon
from llucid.weights import initialise, leaves, parameter_count

# %% tags=["plot"]
# The whole Llama with the loss highlighted.
whole_llama("loss")

# %% [markdown]
# ## The gradient, by hand
#
# The smallest model that predicts: two words, *fox* and *bell*, an input of one number $x$, and one
# parameter $w$ per word. Scores $z = w x$, probabilities $p = \mathrm{softmax}(z)$, loss
# $L = -\ln p_{\text{bell}}$. How does $L$ change with the scores? The answer is simple and is
# worth remembering, the probability minus the truth:
#
# $$ \frac{\partial L}{\partial z_i} = p_i - y_i \qquad y = (0, 1) $$
#
# And since $z = w x$, the chain rule multiplies by $x$: $\partial L / \partial w_i = (p_i - y_i)\,x$.

# %%
x, w = 2.0, [0.3, 0.1]
z = [number * x for number in w]
p = [math.exp(score) / sum(map(math.exp, z)) for score in z]
gradient = [(p[0] - 0) * x, (p[1] - 1) * x]
print(f"p(fox) {p[0]:.3f}, p(bell) {p[1]:.3f}, loss {-math.log(p[1]):.3f}")
print("gradient", [round(slope, 3) for slope in gradient])

# %% [markdown]
# Raising the first parameter makes the loss larger, raising the second makes it smaller. PyTorch
# does the same for every operation, backwards from the loss: each knows its own derivative, and
# `backward` multiplies them along the way.

# %%
w_torch = torch.tensor(w, requires_grad=True)
loss = -(w_torch * x).log_softmax(0)[1]
loss.backward()
print("backward", [round(slope, 3) for slope in w_torch.grad.tolist()])
assert torch.allclose(w_torch.grad, torch.tensor(gradient))

# %% [markdown]
# A step against the gradient, with a *learning rate* of 0.1, and the loss is smaller:

# %%
w = [number - 0.1 * slope for number, slope in zip(w, gradient, strict=True)]
z = [number * x for number in w]
after = -math.log(math.exp(z[1]) / sum(map(math.exp, z)))
print(f"loss {-math.log(p[1]):.3f} -> {after:.3f}")
assert after < -math.log(p[1])

# %% [markdown]
# ## Optimizers
#
# That was *gradient descent*, or SGD if the gradient comes from a random part of the text. Its
# trouble is a valley that is steep in one direction and flat in the other: a rate that is small
# enough for the steep walls makes hardly any progress along the floor.
#
# - **SGD**: $w \leftarrow w - \eta\, g$.
# - **AdamW** (Kingma & Ba 2015; Loshchilov & Hutter 2019) keeps a running mean $m$ of the
#   gradient and $v$ of its square. Each parameter moves by about the rate, whatever the size of its
#   gradient; and all weights shrink a little in each step (*weight decay* $\lambda$):
#
# $$ m \leftarrow \beta_1 m + (1-\beta_1)\,g \qquad v \leftarrow \beta_2 v + (1-\beta_2)\,g^2 \qquad
#    w \leftarrow (1 - \eta\lambda)\,w - \eta\,\frac{\hat m}{\sqrt{\hat v} + \epsilon} $$
#
# where $\hat m = m / (1-\beta_1^t)$ and $\hat v = v / (1-\beta_2^t)$ correct for the start at 0.
#
# - **Muon** (Jordan et al. 2024) treats a matrix as a matrix. It makes the step *orthogonal*: all
#   directions that the gradient points in get the same size. The gradient is first averaged over the
#   last steps (*momentum*, exercise 2). More below.


# %%
def adam_step(w, g, m, v, t, rate, betas=(0.9, 0.95), decay=0.0):
    """One step of AdamW: the new w, m and v. t counts steps from 1."""
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g**2
    m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    return (1 - rate * decay) * w - rate * m_hat / (v_hat.sqrt() + 1e-8), m, v


def slope(w):
    """The gradient of 10 a² + 0.1 b², a steep and narrow valley."""
    return torch.tensor([20.0, 0.2]) * w


start = torch.tensor([0.5, 4.0])
paths = {"SGD, rate 0.09": [start], "AdamW, rate 0.1": [start]}
w, (m, v) = start, torch.zeros(2, 2)
for t in range(1, 61):
    last = paths["SGD, rate 0.09"][-1]
    paths["SGD, rate 0.09"].append(last - 0.09 * slope(last))
    w, m, v = adam_step(w, slope(w), m, v, t, rate=0.1)
    paths["AdamW, rate 0.1"].append(w)
for name, path in paths.items():
    print(f"{name}: after 60 steps at {[round(number, 2) for number in path[-1].tolist()]}")

# %% tags=["plot"]
# The paths of SGD and AdamW in a narrow valley: SGD jumps between the walls, AdamW goes along.
figure, ax = plt.subplots(figsize=(7.4, 2.4))
a, b = torch.meshgrid(torch.linspace(-0.6, 0.6, 80), torch.linspace(-1, 4.4, 80), indexing="ij")
ax.contour(b, a, 10 * a**2 + 0.1 * b**2, levels=12, colors="#dddddd", linewidths=0.8)
for name, path in paths.items():
    points = torch.stack(path)
    ax.plot(points[:, 1], points[:, 0], "o-", ms=2.5, lw=1, label=name)
ax.plot(0, 0, "+", color="black")
ax.legend()

# %% [markdown]
# ## Muon: all directions alike
#
# A matrix $G$ stretches space by different factors in different directions, its *singular values*.
# Gradients of matrices often have a few large ones and many small ones, so a step in their direction
# would teach a few directions and forget the rest. Muon replaces the singular values by 1,
# approximately, with five matrix polynomials (Newton–Schulz): $X \leftarrow aX + b(XX^\top)X +
# c(XX^\top)^2X$. By hand for one singular value $s$, a number:

# %%
values = [1.0, 0.3, 0.05]
for _ in range(5):
    values = [3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5 for s in values]
print("1, 0.3 and 0.05 become", [round(s, 2) for s in values])
assert all(0.6 < s < 1.3 for s in values)


# %%
def orthogonal(G: torch.Tensor) -> torch.Tensor:
    """The same with a matrix; first scaled so that no singular value is above 1."""
    X = G / G.norm()
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X - 4.7750 * A @ X + 2.0315 * A @ A @ X
    return X


G = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
G[0] *= 10  # one direction dominates
print("before", [round(s, 2) for s in torch.linalg.svdvals(G).tolist()])
print("after ", [round(s, 2) for s in torch.linalg.svdvals(orthogonal(G)).tolist()])

# %% [markdown]
# ## A small Llama
#
# Enough of valleys. A Llama of two blocks reads characters of fables. A batch is 16 windows of
# text, the targets are the inputs moved by one.

# %%
corpus = open_corpus(["fables"])
text, held_out = next(corpus.text("train")), next(corpus.text("validation"))[:8_000]
characters = sorted(set(text))
index = {character: at for at, character in enumerate(characters)}
train, validation = (torch.tensor([index[c] for c in part]) for part in (text, held_out))
config = Config(
    dim=64, layers=2, heads=2, kv_heads=1, head_dim=32, ffn_dim=160,
    vocab_size=len(characters), context=64,
)  # fmt: skip


def batch(tokens, generator, rows=16):
    """Inputs and targets: windows from random places."""
    starts = torch.randint(len(tokens) - config.context - 1, (rows, 1), generator=generator)
    windows = tokens[starts + torch.arange(config.context + 1)]
    return windows[:, :-1], windows[:, 1:]


def loss_of(weights, inputs, targets):
    """The mean surprise, as in lesson 1."""
    log_p = llama(inputs, weights, config).log_softmax(-1)
    return -log_p.gather(-1, targets[..., None]).mean()


def validation_loss(weights):
    """The loss on text that is never trained on."""
    windows = validation[: len(validation) // 65 * 65].view(-1, 65)
    with torch.no_grad():
        return loss_of(weights, windows[:, :-1], windows[:, 1:]).item()


weights = initialise(config, seed=0)
print(f"{parameter_count(config):,} parameters; untrained loss {validation_loss(weights):.3f},")
print(f"ln {config.vocab_size} = {math.log(config.vocab_size):.3f}, the entropy {corpus.floor:.3f}")

# %% [markdown]
# The untrained model gives all characters nearly the same probability. If a first loss is much
# larger than $\ln V$, the initial weights are wrong.
#
# A training loop is short. The rate rises at the beginning, when the optimizer knows little, and
# falls to 0 at the end, so that the last steps settle:


# %%
def train_llama(make_optimizers, steps=100, tokens=train, rate_scale=1.0, every=25):
    """The loss of every step, and (step, validation loss) now and then."""
    weights = initialise(config, seed=0)
    for leaf in leaves(weights):
        leaf.requires_grad_()
    optimizers = make_optimizers(weights)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(0)
    losses, measured = [], []
    for step in range(steps):
        share = min((step + 1) / 10, 1 - step / steps)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = rate_scale * share * peak
        loss = loss_of(weights, *batch(tokens, generator))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(leaves(weights), 1.0)  # no gradient longer than 1
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % every == 0:
            measured.append((step + 1, validation_loss(weights)))
    return losses, measured


def adamw_of(parameters):
    """AdamW; weight decay is 0 for all optimizers here, since 100 steps do not need it."""
    return torch.optim.AdamW(parameters, lr=8e-3, betas=(0.9, 0.95), weight_decay=0.0)


def sgd(weights):
    """SGD for all, without momentum."""
    return [torch.optim.SGD(leaves(weights), lr=1.0)]


def adamw(weights):
    """AdamW for all."""
    return [adamw_of(leaves(weights))]


def muon(weights):
    """Muon for the matrices of the blocks, AdamW for embedding, output and gains."""
    matrices = [leaf for block in weights.blocks for leaf in leaves(block) if leaf.ndim == 2]
    chosen = {id(leaf) for leaf in matrices}
    rest = [leaf for leaf in leaves(weights) if id(leaf) not in chosen]
    return [Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.0), adamw_of(rest)]


results = {f.__name__: train_llama(f) for f in (sgd, adamw, muon)}
for name, (losses, measured) in results.items():
    print(f"{name:6} validation loss {measured[-1][1]:.3f} after {len(losses)} steps")
assert results["muon"][1][-1][1] < results["sgd"][1][-1][1]

# %% [markdown]
# All three saw the same batches, but each has a rate of its own, for which there may be a better one;
# so this is a glimpse and no verdict. `llucid train` uses Muon in this way: for the matrices
# inside of blocks, which turn one vector into another. The rows of an embedding are looked up one by
# one, and gains are no matrices; they stay with AdamW.
#
# ## Too fast
#
# A rate that is a hundred times too high does not learn a hundred times as much:

# %%
wild, _ = train_llama(adamw, steps=40, rate_scale=100)
tame, _ = train_llama(adamw, steps=40)
print(f"loss after 40 steps: {sum(wild[-10:]) / 10:.2f}, with the usual rate {sum(tame[-10:]) / 10:.2f}")
assert sum(wild[-10:]) > 1.2 * sum(tame[-10:])

# %% [markdown]
# ## Overfitting
#
# Now the same model with 1,000 characters instead of a million. The training loss falls below the
# entropy of the corpus, which is impossible for an honest model of fables, and the validation loss
# rises again: the model remembers the text instead of learning the language.

# %%
remembered, forgot = train_llama(muon, steps=150, tokens=train[:1000], every=15)
best = min(loss for _, loss in forgot)
print(f"training loss {sum(remembered[-10:]) / 10:.3f}, the entropy is {corpus.floor:.3f}")
print(f"validation loss {best:.3f} at its best and {forgot[-1][1]:.3f} at the end")
assert sum(remembered[-10:]) / 10 < corpus.floor < best < forgot[-1][1]

# %% tags=["picture"]
# Training curves of three optimizers, and of a model that overfits.
figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3), sharey=True)
for name, (losses, measured) in results.items():
    (line,) = left.plot(losses, lw=0.8, alpha=0.7)
    left.plot(*zip(*measured, strict=True), "o", ms=4, color=line.get_color(), label=name)
left.set(title="three optimizers", xlabel="step", ylabel="nats per character")
right.plot(remembered, lw=0.8, label="training, 1,000 characters")
right.plot(*zip(*forgot, strict=True), "o-", ms=3.5, label="validation")
right.axhline(corpus.floor, color="#3f7f4f", ls="--", lw=1.2, label="entropy of the corpus")
right.set(title="overfitting", xlabel="step", ylim=(0, None))
for ax in (left, right):
    ax.grid(axis="y")
    ax.legend(fontsize=7.5)

# %% [markdown]
# More text, a smaller model, or stopping at the lowest validation loss are the cures.
#
# ## Exercises
#
# **1.** Write `numeric(f, w, h)`: the derivative of a function of one number at `w`, from two values of
# `f`, at `w − h` and `w + h`. With it one can check any gradient.

# %% tags=["exercise"]


def numeric(f, w: float, h: float = 1e-4) -> float:
    """(f(w + h) − f(w − h)) / 2h."""
    raise NotImplementedError


# %% tags=["check"]
assert math.isclose(numeric(lambda w: w**2, 3.0), 6, rel_tol=1e-6)
assert abs(numeric(lambda w: w**2, 0.0)) < 1e-9  # symmetric: a one-sided difference gives h
surprise = lambda w: -math.log(math.exp(2 * w) / (math.exp(0.6) + math.exp(2 * w)))  # noqa: E731
assert math.isclose(numeric(surprise, 0.1), gradient[1], rel_tol=1e-6)
print("correct: the gradient from above is confirmed")


# %% tags=["answer"]
def numeric(f, w: float, h: float = 1e-4) -> float:
    """(f(w + h) − f(w − h)) / 2h."""
    return (f(w + h) - f(w - h)) / (2 * h)


# %% [markdown]
# **2.** SGD with *momentum* keeps a running sum of gradients: $u \leftarrow \beta u + g$, then
# $w \leftarrow w - \eta u$. Write `momentum_step(w, g, u, rate, beta)` that returns the new `w` and `u`.

# %% tags=["exercise"]


def momentum_step(w, g, u, rate, beta):
    """One step of SGD with momentum."""
    raise NotImplementedError


# %% tags=["check"]
parameter = torch.tensor([1.0, -2.0], requires_grad=True)
reference = torch.optim.SGD([parameter], lr=0.01, momentum=0.9)
w, u = parameter.detach().clone(), torch.zeros(2)
for _ in range(5):
    parameter.grad = slope(parameter.detach())
    reference.step()
    w, u = momentum_step(w, slope(w), u, 0.01, 0.9)
assert torch.allclose(w, parameter)
print("correct: the same as torch.optim.SGD")


# %% tags=["answer"]
def momentum_step(w, g, u, rate, beta):
    """One step of SGD with momentum."""
    u = beta * u + g
    return w - rate * u, u


# %% [markdown]
# **3.** Is memory too small for a batch? Its gradient can be added up from parts (*gradient
# accumulation*). Write `gradient_in_parts(weights, inputs, targets, parts)`: the gradient of
# the mean loss over *all* tokens with respect to `weights.embedding`, by a `backward` for each of
# `inputs.chunk(parts)`. Parts may be unequal: it is not the mean of means.

# %% tags=["exercise"]


def gradient_in_parts(weights, inputs, targets, parts: int) -> torch.Tensor:
    """The gradient of the embedding, one part of the rows at a time."""
    raise NotImplementedError


# %% tags=["check"]
new = initialise(config, seed=0)
for leaf in leaves(new):
    leaf.requires_grad_()
rows = batch(train, torch.Generator().manual_seed(1))
whole = torch.autograd.grad(loss_of(new, *rows), new.embedding)[0]
for parts in (1, 3, 16):  # 16 rows in 3 parts: 6, 6 and 4
    new.embedding.grad = None
    assert torch.allclose(gradient_in_parts(new, *rows, parts), whole, atol=1e-6), parts
print("correct: parts change the memory, not the result")


# %% tags=["answer"]
def gradient_in_parts(weights, inputs, targets, parts: int) -> torch.Tensor:
    """The gradient of the embedding, one part of the rows at a time."""
    for some, goals in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
        (loss_of(weights, some, goals) * len(some) / len(inputs)).backward()
    return weights.embedding.grad
