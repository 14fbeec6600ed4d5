"""The arrays of a Llama, as plain named tuples: a tree that PyTorch and JAX both walk without help from us.

Matrices are stored [out, in] and applied as x Wᵀ; q is heads · head_dim and kv is kv_heads · head_dim. Query and key
rows are in Meta's order: within a head, rows 2j and 2j + 1 are the pair that RoPE turns by the j-th frequency. Some
Llamas add a bias to x Wᵀ; where there is none it is None.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from jaxtyping import Float

from llucid.arrays import Quantized
from llucid.config import Config

if TYPE_CHECKING:  # importing PyTorch takes a second, and reading a model's header does not need it
    import torch

    from llucid.arrays.quantize import Bits

Tree = TypeVar("Tree")


class AttentionWeights(NamedTuple):
    query: Float[Any, "q dim"]
    key: Float[Any, "kv dim"]
    value: Float[Any, "kv dim"]
    output: Float[Any, "dim q"]
    query_bias: Float[Any, " q"] | None = None
    key_bias: Float[Any, " kv"] | None = None
    value_bias: Float[Any, " kv"] | None = None
    output_bias: Float[Any, " dim"] | None = None


class FeedForwardWeights(NamedTuple):
    gate: Float[Any, "ffn dim"]
    up: Float[Any, "ffn dim"]
    down: Float[Any, "dim ffn"]
    gate_bias: Float[Any, " ffn"] | None = None
    up_bias: Float[Any, " ffn"] | None = None
    down_bias: Float[Any, " dim"] | None = None


class BlockWeights(NamedTuple):
    attention_norm: Float[Any, " dim"]
    attention: AttentionWeights
    feed_forward_norm: Float[Any, " dim"]
    feed_forward: FeedForwardWeights


class Weights(NamedTuple):
    embedding: Float[Any, "vocab dim"]
    blocks: tuple[BlockWeights, ...]
    norm: Float[Any, " dim"]
    output: Float[Any, "vocab dim"] | None
    """None when the embedding is the output matrix too, so that a tied matrix is one leaf and one parameter."""

    @property
    def dtype(self) -> Any:
        """What the model computes in: the embedding's dtype, PyTorch's or the name that other arrays give it."""
        return self.embedding.dtype

    @property
    def device(self) -> Any:
        return self.embedding.device


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """The same tree with `function(leaf, *leaves at the same place of the others)` for each leaf; None stays None."""
    if tree is None:
        return tree
    if isinstance(tree, tuple):
        branches = [tree_map(function, *branch) for branch in zip(tree, *others, strict=True)]  # pyright: ignore
        return type(tree)(*branches) if hasattr(tree, "_fields") else tuple(branches)  # pyright: ignore
    return function(tree, *others)


def named_leaves(tree: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each array with its path, as in ("blocks.0.attention.query", array), in the order of the equations."""
    if isinstance(tree, tuple):
        names = getattr(tree, "_fields", range(len(tree)))  # pyright: ignore[reportUnknownArgumentType]
        for name, branch in zip(names, tree, strict=True):  # pyright: ignore[reportUnknownVariableType]
            yield from named_leaves(branch, f"{prefix}.{name}" if prefix else str(name))  # pyright: ignore
    elif tree is not None:
        yield prefix, tree


def leaves(tree: object) -> list[Any]:
    """The arrays of a tree, in the order of the equations."""
    return [leaf for _, leaf in named_leaves(tree)]


def assemble(config: Config, leaf: Callable[[str, tuple[int, ...]], Any]) -> Weights:
    """A tree for `config` whose every array is `leaf(path, shape)`: how weights are drawn, read and described."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    dim, ffn, vocab = config.dim, config.ffn_dim, config.vocab_size

    def attention_bias(path: str, rows: int) -> Any:
        return leaf(path, (rows,)) if config.attention_bias else None

    def mlp_bias(path: str, rows: int) -> Any:
        return leaf(path, (rows,)) if config.mlp_bias else None

    def block(at: str) -> BlockWeights:
        return BlockWeights(
            attention_norm=leaf(f"{at}.attention_norm", (dim,)),
            attention=AttentionWeights(
                query=leaf(f"{at}.attention.query", (q, dim)),
                key=leaf(f"{at}.attention.key", (kv, dim)),
                value=leaf(f"{at}.attention.value", (kv, dim)),
                output=leaf(f"{at}.attention.output", (dim, q)),
                query_bias=attention_bias(f"{at}.attention.query_bias", q),
                key_bias=attention_bias(f"{at}.attention.key_bias", kv),
                value_bias=attention_bias(f"{at}.attention.value_bias", kv),
                output_bias=attention_bias(f"{at}.attention.output_bias", dim),
            ),
            feed_forward_norm=leaf(f"{at}.feed_forward_norm", (dim,)),
            feed_forward=FeedForwardWeights(
                gate=leaf(f"{at}.feed_forward.gate", (ffn, dim)),
                up=leaf(f"{at}.feed_forward.up", (ffn, dim)),
                down=leaf(f"{at}.feed_forward.down", (dim, ffn)),
                gate_bias=mlp_bias(f"{at}.feed_forward.gate_bias", ffn),
                up_bias=mlp_bias(f"{at}.feed_forward.up_bias", ffn),
                down_bias=mlp_bias(f"{at}.feed_forward.down_bias", dim),
            ),
        )

    return Weights(
        embedding=leaf("embedding", (vocab, dim)),
        blocks=tuple(block(f"blocks.{layer}") for layer in range(config.layers)),
        norm=leaf("norm", (dim,)),
        output=None if config.tied_embeddings else leaf("output", (vocab, dim)),
    )


def is_hidden_matrix(path: str, shape: Sequence[int]) -> bool:
    """Whether an array is a matrix inside a block; embedding, output matrix, gains and biases are not."""
    return path.startswith("blocks.") and len(shape) == 2


def initialise(config: Config, seed: int = 0) -> Weights:
    """Untrained weights, float32 on the CPU: the same for the same seed on every machine, to rounding.

    Gains are 1, biases 0. The embedding is standard normal, so that the residual stream begins at the scale that
    RMSNorm gives its readers, whose rows are normal with deviation 1/√dim. What writes into the stream and into the
    logits is small, 0.02, for the stream divided by √(2·layers) (Radford et al. 2019 (GPT-2), §2.3), so that an
    untrained block hardly changes anything and an untrained model guesses evenly; a tied embedding is therefore small,
    too.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def draw(path: str, shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1:
            return torch.full(shape, 0.0 if path.endswith("_bias") else 1.0, dtype=torch.float32, device="cpu")
        if path.endswith(("attention.output", "feed_forward.down")):
            deviation = 0.02 / math.sqrt(2 * config.layers)
        elif path == "output" or (config.tied_embeddings and path == "embedding"):
            deviation = 0.02
        else:
            deviation = 1.0 if path == "embedding" else 1 / math.sqrt(config.dim)
        return torch.empty(shape, dtype=torch.float32, device="cpu").normal_(0, deviation, generator=generator)

    return assemble(config, draw)


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every array of a Llama, by its path."""
    found: dict[str, tuple[int, ...]] = {}
    assemble(config, found.__setitem__)
    return found


def quantize(weights: Weights, bits: "Bits") -> Weights:
    """The same weights with their matrices quantised.

    What is quantised already stays as it is; so do norms, and matrices whose rows are not a multiple of 32 numbers.
    """
    from llucid.arrays.quantize import quantize_leaf

    return tree_map(lambda leaf: quantize_leaf(leaf, bits), weights)


def dequantize(weights: Weights) -> Weights:
    """The same weights with quantised matrices as ordinary tensors."""
    return tree_map(lambda leaf: leaf.dense() if isinstance(leaf, Quantized) else leaf, weights)


def parameter_count(config: Config) -> int:
    """How many numbers a Llama learns; a tied embedding counts once."""
    counts = [sum(map(math.prod, shapes(replace(config, layers=layers)).values())) for layers in (1, 2)]
    one, two = counts  # not all of them: a damaged file may claim 2³¹ layers
    return one + (config.layers - 1) * (two - one)


def count(weights: object) -> int:
    """How many numbers a tree of arrays holds; a tied embedding counts once."""
    return sum(leaf.numel() for leaf in leaves(weights))


def to(weights: Weights, dtype: "torch.dtype | None" = None, device: "torch.device | str | None" = None) -> Weights:
    """The same weights in another dtype, on another device, or both."""
    return tree_map(lambda leaf: leaf.to(device=device, dtype=dtype), weights)
