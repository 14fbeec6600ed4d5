"""The Llama as `nn.Module` classes, for the tools of PyTorch that expect them: hooks, adapters, quantisers, sharding.

Each class holds its parameters and calls the functions of `llucid.llama`, where the equations are explained. Every
matrix is an `nn.Linear` or `nn.Embedding`, and is applied by calling it:

    module = Llama.from_weights(weights, config)            shares the storage of the weights
    logits = module(tokens)                                 batch seq -> batch seq vocab
    module.weights()                                        for `llucid.llama` and the generation engine

A parameter has the path of its array in `Weights` plus ".weight", as in "blocks.0.attention.query.weight"; its bias, if
there is one, is "blocks.0.attention.query.bias". There are no buffers: a module on the meta device needs nothing but
its parameters. To shard a module over several devices:

    for decoder in module.blocks: fully_shard(decoder)
    fully_shard(module)

Shapes are those of `llucid.llama`. Dropout uses PyTorch's global generator (`torch.manual_seed`).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from llucid import llama as equations
from llucid.config import Config
from llucid.errors import LlucidError
from llucid.fast import dense
from llucid.llama import Cache, Placement
from llucid.rope import attention_factor, dynamic_length
from llucid.weights import Weights, assemble, initialise, named_leaves, shapes


def parameter_path(path: str) -> tuple[str, str]:
    """The module that holds the array at a path in `Weights`, and the name of its parameter."""
    module = path.removesuffix("_bias")
    return module, "weight" if module == path else "bias"


class RMSNorm(nn.Module):
    """`llama.rms_norm`: scales each vector to length √dim and multiplies it by a learned gain (`weight`)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return equations.rms_norm(x, self.weight, self.eps)


class RotaryPositionalEmbedding(nn.Module):
    """`llama.rotations`: the rotation of every pair at the given positions, computed once for all layers."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, positions: Int[Tensor, "batch seq"], x: Float[Tensor, "batch seq dim"]
    ) -> Float[Tensor, "batch 1 seq half 2"]:
        """On the device of x; in float32, or float64 if x is that."""
        theta = equations.rope_frequencies(self.config, x, dynamic_length(self.config, positions))
        return equations.rotations(positions, theta, attention_factor(self.config))


class GroupedQueryAttention(nn.Module):
    """`llama.attention`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.query = nn.Linear(config.dim, q, bias=config.attention_bias)
        self.key = nn.Linear(config.dim, kv, bias=config.attention_bias)
        self.value = nn.Linear(config.dim, kv, bias=config.attention_bias)
        self.output = nn.Linear(q, config.dim, bias=config.attention_bias)

    def forward(self, x: Float[Tensor, "batch seq dim"], at: Placement) -> Float[Tensor, "batch seq dim"]:
        # The number of heads follows from the projections: tensor parallelism gives each device some of them.
        q, k, v = self.query(x), self.key(x), self.value(x)
        return self.output(equations.attend(q, k, v, self.head_dim, at))


class SwiGLU(nn.Module):
    """silu(gate) ⊙ up."""

    def forward(
        self, gate: Float[Tensor, "batch seq ffn"], up: Float[Tensor, "batch seq ffn"]
    ) -> Float[Tensor, "batch seq ffn"]:
        return F.silu(gate) * up


class FeedForward(nn.Module):
    """`llama.swiglu`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate = nn.Linear(config.dim, config.ffn_dim, bias=config.mlp_bias)
        self.up = nn.Linear(config.dim, config.ffn_dim, bias=config.mlp_bias)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=config.mlp_bias)
        self.activation = SwiGLU()

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        return self.down(self.activation(self.gate(x), self.up(x)))


class Decoder(nn.Module):
    """`llama.block`: attention and feed-forward, each after a norm, each added to its input."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = GroupedQueryAttention(config)
        self.feed_forward_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "batch seq dim"], at: Placement) -> Float[Tensor, "batch seq dim"]:
        x = x + self.dropout(self.attention(self.attention_norm(x), at))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Llama(nn.Module):
    """`llama.llama` with its weights. A new module is in training mode, in which dropout is active; see `eval()`."""

    def __init__(self, config: Config, seed: int | None = 0) -> None:
        """With the untrained weights of `initialise(config, seed)`; for `seed=None` on the meta device, without
        storage, to be sharded and then loaded."""
        super().__init__()
        self.config = config
        with torch.device("meta"):
            self.embedding = nn.Embedding(config.vocab_size, config.dim)
            self.dropout = nn.Dropout(config.dropout)
            self.rope = RotaryPositionalEmbedding(config)
            self.blocks = nn.ModuleList(Decoder(config) for _ in range(config.layers))
            self.norm = RMSNorm(config.dim, config.norm_eps)
            self.output = None if config.tied_embeddings else nn.Linear(config.dim, config.vocab_size, bias=False)
        if seed is not None:
            self.adopt(initialise(config, seed))

    @classmethod
    def from_weights(cls, weights: Weights, config: Config) -> "Llama":
        """A module whose parameters are these arrays, not copies. Quantised matrices are dequantised first.

        Raises LlucidError if the shapes do not fit.
        """
        module = cls(config, seed=None)
        module.adopt(weights)
        return module

    def adopt(self, weights: Weights) -> None:
        """Makes these arrays the parameters. Raises LlucidError if their shapes do not fit the config."""
        expected = shapes(self.config)
        found = {path: tuple(leaf.shape) for path, leaf in named_leaves(weights)}
        for path in expected | found:
            if expected.get(path) != found.get(path):
                raise LlucidError(f"{path}: expected shape {expected.get(path)}, found {found.get(path)}")
        for path, leaf in named_leaves(weights):
            module, name = parameter_path(path)
            setattr(self.get_submodule(module), name, nn.Parameter(dense(leaf).detach()))

    def weights(self) -> Weights:
        """The parameters as `Weights`, not copies: both see the same values and gradients."""
        return assemble(self.config, lambda path, shape: self.get_parameter(".".join(parameter_path(path))))

    def forward(
        self,
        tokens: Int[Tensor, "batch seq"],
        cache: Cache | None = None,
        positions: Int[Tensor, "*batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq vocab"] | tuple[Float[Tensor, "batch seq vocab"], Cache]:
        """The logits of every next token at every position, as `llama.llama`; with a cache, `(logits, cache)`."""
        positions, mask, cache = equations.place(tokens, cache, positions)
        x = self.dropout(self.embedding(tokens))
        rotation = self.rope(positions, x)
        for layer, decoder in enumerate(self.blocks):
            x = decoder(x, Placement(rotation, mask, cache, layer))
        x = self.norm(x)
        logits = F.linear(x, self.embedding.weight) if self.output is None else self.output(x)
        return logits if cache is None else (logits, cache)
