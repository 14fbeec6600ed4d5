# %% [markdown]
# # Training
#
# Training asks one question again and again: how surprised was the model by the next token,
# and how would each of its numbers have to change to be less so? We measure the surprise,
# take one step, then a few hundred, break it in three instructive ways, and compare the
# result with the best that any model could do.

# %%
import math

import matplotlib.pyplot as plt
import torch

from llucid.config import Config
from llucid.corpora import open_corpus
from llucid.corpora.tokens import make_tokenizer, tokenise, training_batch
from llucid.llama import llama
from llucid.training.optimizer import learning_rate, make_optimizers
from llucid.training.settings import Settings
from llucid.training.step import evaluate, loss_sum, train_step
from llucid.weights import initialise, leaves

corpus = open_corpus(["fables"])
tokenizer = make_tokenizer("characters", corpus)
training, validation = (tokenise(corpus, tokenizer, split) for split in ("train", "validation"))
print(f"{training.length:,} characters to train on, {validation.length:,} to validate with")
print(
    f"{tokenizer.vocab_size} different ones; the corpus's own entropy: {corpus.floor:.4f} nats each"
)

# %% [markdown]
# ## Surprise
#
# The model gives every token of the vocabulary a score, and the softmax of the scores is its
# probability. If the token that really came had probability $p$, the surprise is $-\log p$ (in
# nats, with the natural logarithm): nothing if it was certain, 0.69 for one of two equal chances.
# The loss, also called *cross-entropy*, is the mean over all tokens (Shannon 1948):
#
# $$ L = -\frac{1}{n}\sum_{t=1}^{n} \log p(x_{t+1} \mid x_1 \ldots x_t) $$
#
# Every position of a window is a question with an answer, so a batch of windows holds
# `rows · seq` of them. The targets are the inputs moved by one.

# %%
config = Config(
    dim=64, layers=2, heads=2, kv_heads=1, head_dim=32, ffn_dim=160,
    vocab_size=tokenizer.vocab_size, context=64,
)  # fmt: skip
inputs, targets = training_batch(training, rows=16, context=config.context, seed=0, step=0)
print("inputs", list(inputs.shape), "targets", list(targets.shape), " rows seq")
print("input  ", repr(tokenizer.decode(inputs[0, :40].tolist())))
print("target ", repr(tokenizer.decode(targets[0, :40].tolist())))

weights = initialise(config, seed=0)
logits = llama(inputs, weights, config)
surprise = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
print("logits", list(logits.shape), "-> surprise", list(surprise.shape))
print(f"mean surprise {surprise.mean():.4f}; log V is {math.log(config.vocab_size):.4f}")

# %% [markdown]
# An untrained model knows nothing and says so: it gives each of the $V$ characters about the
# same probability, and is surprised by $\log V$ every time. If a new model's first loss is much
# larger than that, its initial weights are wrong.
#
# ## One step
#
# The gradient says for each number of the model how fast the loss grows with it. The optimizer
# goes the other way. `train_step` is all of it: loss, gradient, a limit on the gradient's length
# (*gradient clipping*), the optimizers. Here sixty steps on one and the same batch:

# %%
settings = Settings(learning_rate=8e-3, muon_learning_rate=0.02)


def fresh(settings: Settings):
    """New weights, and the optimizers that will change them."""
    weights = initialise(config, seed=0)
    for leaf in leaves(weights):
        leaf.requires_grad_()
    return weights, make_optimizers(weights, settings)


weights, optimizers = fresh(settings)
for step in range(61):
    loss = train_step(inputs, targets, weights, config, optimizers)
    if step % 20 == 0:
        print(f"step {step:3}: loss {loss:.4f}")

# %% [markdown]
# The loss goes down far below anything that could be known about fables: the model learns
# these sixteen windows by heart. That it can is a good test of a new training loop. It is
# not what we want.
#
# ## A rate that rises and falls
#
# The learning rate says how far a step goes. At the start the optimizers know little about
# the landscape, so it rises from almost nothing; at the end, small steps settle what large ones
# have left noisy. `learning_rate` gives the share of its peak at each share of the run.

# %%
figure, ax = plt.subplots(figsize=(7.4, 2))
done = torch.linspace(0, 1, 500).tolist()
ax.plot(done, [learning_rate(at, warmup=0.05, final=0.0) for at in done])
ax.set(xlabel="share of the run", ylabel="share of the peak")
ax.grid()

# %% [markdown]
# ## The loop
#
# New windows at every step, the rate on its way up and down, and now and then the loss on text
# that is never trained on.


# %%
def train(settings: Settings, tokens, steps: int, every: int = 50):
    """The weights, the training loss of every step, and (step, validation loss) now and then."""
    weights, optimizers = fresh(settings)
    losses, measured = [], []
    for step in range(steps):
        inputs, targets = training_batch(tokens, 16, config.context, seed=0, step=step)
        share = learning_rate(step / steps, settings.warmup, settings.final)
        losses.append(train_step(inputs, targets, weights, config, optimizers, share=share).item())
        if (step + 1) % every == 0:
            measured.append((step + 1, evaluate(weights, config, held_out)))
    return weights, losses, measured


held_out = validation._replace(length=8_000)  # the first 8,000 characters of the validation split
weights, losses, measured = train(settings, training, steps=300, every=60)
print(f"validation loss {measured[-1][1]:.3f} nats a character; the floor is {corpus.floor:.3f}")

# %% [markdown]
# Most corpora have no known floor. Fables have one: they are made by a grammar whose entropy
# is computed exactly, and no model can have a lower loss on endless text. What remains between
# the curve and the line is what this small model in a short time has not learned.
#
# ## Too slow, too fast
#
# The same run with a rate much too low and one much too high, with AdamW
# alone, whose rate is easier to get wrong:

# %%
rates = {}
for rate in (3e-4, 8e-3, 0.8):
    plain = Settings(optimizer="adamw", learning_rate=rate)
    rates[rate] = train(plain, training, steps=100, every=100)[1]
    print(f"rate {rate:<6}: loss at the end {sum(rates[rate][-10:]) / 10:.3f}")

# %% [markdown]
# ## Overfitting on purpose
#
# Now the same model, but only 2,000 characters to learn from. The training loss passes under
# the floor, which no honest model of the language could, while the validation loss turns
# and climbs: the model remembers instead of understanding, and is sure of itself.

# %%
little = training._replace(length=2_000)
_, remembered, forgot = train(settings, little, steps=300, every=30)
print(f"training loss {remembered[-1]:.3f}, validation loss {forgot[-1][1]:.3f}")
assert sum(remembered[-20:]) / 20 < corpus.floor < measured[-1][1] < forgot[-1][1]

# %% tags=["picture"]
figure, axes = plt.subplots(1, 3, figsize=(7.4, 3), sharey=True)
for ax, (train_losses, points), title in zip(
    axes[::2],
    ((losses, measured), (remembered, forgot)),
    (f"{training.length:,} characters", f"{little.length:,} characters"),
    strict=True,
):
    ax.plot(train_losses, color="#9db8d9", lw=0.8, label="training")
    ax.plot(*zip(*points, strict=True), "o-", color="#d1622b", ms=3.5, label="validation")
    ax.axhline(corpus.floor, color="#3f7f4f", ls="--", lw=1.2, label="entropy of the corpus")
    ax.set(title=title, xlabel="step", ylim=(0, 4.4))
    ax.grid(axis="y")
for rate, curve in rates.items():
    axes[1].plot(curve, lw=1, label=f"rate {rate:g}")
axes[1].set(title="AdamW, three rates", xlabel="step")
axes[1].grid(axis="y")
axes[0].set_ylabel("nats per character")
for ax in axes:
    ax.legend(fontsize=7.5)

# %% [markdown]
# More text, a smaller model, or stopping where the validation loss is lowest are the cures.
# With as much text as there is on the internet, and each piece read about once, a large model
# hardly overfits at all.
#
# ## Exercises
#
# **1.** Write `perplexity(loss)`: among how many equally likely tokens would one have to guess, to
# be as surprised as the model is?


# %% tags=["answer"]
def perplexity(loss: float) -> float:
    """e to the loss."""
    return math.exp(loss)


# %% tags=["check"]
assert perplexity(0.0) == 1.0
assert math.isclose(perplexity(math.log(50)), 50)
print(f"holds: ours is {perplexity(measured[-1][1]):.2f}, an untrained one's {config.vocab_size}")

# %% [markdown]
# **2.** Papers give bits per character. Our loss is in nats per token, and a token stands for $c$
# characters on average. Write `bits_per_character(nats_per_token, c)`.


# %% tags=["answer"]
def bits_per_character(nats_per_token: float, c: float) -> float:
    """A bit is log 2 nats, and a token's surprise is shared by its characters."""
    return nats_per_token / math.log(2) / c


# %% tags=["check"]
assert math.isclose(bits_per_character(math.log(2), 1), 1)
assert math.isclose(bits_per_character(4 * math.log(2), 4), 1)
print(f"holds: the floor of fables is {bits_per_character(corpus.floor, 1):.3f} bits a character")

# %% [markdown]
# **3.** Memory too small for a batch? Its gradient is a sum, so it can be taken in parts
# (*gradient accumulation*). Write `gradient_in_parts(weights, parts)`, the gradient of the mean
# loss of `inputs` and `targets` with respect to `weights.embedding`, from a `backward` for each
# part of the rows (`inputs.chunk(parts)`). Beware: the mean of all tokens, not a mean of means.
# `loss_sum` gives the sum.


# %% tags=["answer"]
def gradient_in_parts(weights, parts: int) -> torch.Tensor:
    """The gradients of the parts' sums, each divided by the number of all tokens, added up."""
    weights.embedding.grad = None
    for some_inputs, some_targets in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
        (loss_sum(some_inputs, some_targets, weights, config) / targets.numel()).backward()
    return weights.embedding.grad.clone()


# %% tags=["check"]
new, _ = fresh(settings)
whole = gradient_in_parts(new, 1)
assert whole.abs().max() > 0
for parts in (2, 3, 16):
    assert gradient_in_parts(new, parts).allclose(whole, atol=1e-6), parts
print("holds: the parts change the memory it takes, not the result")
