"""The arrays of a Llama, as plain named tuples: a tree that JAX walks without help from us.

Matrices are stored [out, in] and applied as x Wᵀ; q is heads · head_dim and kv is kv_heads · head_dim. Query and key
rows are in Meta's order: within a head, rows 2j and 2j + 1 are the pair that RoPE turns by the j-th frequency. Some
Llamas add a bias to x Wᵀ; where there is none it is None. That is no leaf for JAX, but one for PyTorch: what
`torch.func` walks is `dict(named_leaves(weights))`, and `assemble(config, lambda path, shape: arrays[path])` makes the
tree of it again.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args

from jaxtyping import Float

from llucid.arrays import Mapped, Quantized
from llucid.arrays.dtypes import dtype_of, name_of_dtype, widest
from llucid.arrays.memory import memory_size
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


@cache
def axes_of(kind: type[Any]) -> tuple[tuple[str, type[Any] | tuple[str, ...]], ...]:
    """Each field of a named tuple with the axes of its array, or with its own kind if it is a named tuple."""

    def axes(hint: Any) -> Any:
        array = get_args(hint)[0] if NoneType in get_args(hint) else hint
        return hint if hasattr(hint, "_fields") else tuple(array.dim_str.split())

    return tuple((name, axes(hint)) for name, hint in kind.__annotations__.items())


def tree_of(
    kind: type[Tree], sizes: Mapping[str, int], leaf: Callable[[str, tuple[int, ...]], Any], prefix: str = ""
) -> Tree:
    """A named tuple whose every array is `leaf(path, shape)`; `sizes` has the length of each axis that is annotated."""
    return kind(
        *(
            leaf(prefix + name, tuple([sizes[axis] for axis in axes]))
            if isinstance(axes, tuple)
            else tree_of(axes, sizes, leaf, f"{prefix}{name}.")
            for name, axes in axes_of(kind)
        )
    )


def assemble(config: Config, leaf: Callable[[str, tuple[int, ...]], Any]) -> Weights:
    """A tree for `config` whose every array is `leaf(path, shape)`: how weights are drawn, read and described."""
    dim, vocab = config.dim, config.vocab_size
    sizes = {"q": config.heads * config.head_dim, "kv": config.kv_heads * config.head_dim}
    sizes |= {"dim": dim, "ffn": config.ffn_dim}

    def present(path: str, shape: tuple[int, ...]) -> Any:
        has_biases = config.attention_bias if ".attention." in path else config.mlp_bias
        return None if path.endswith("_bias") and not has_biases else leaf(path, shape)

    return Weights(
        embedding=leaf("embedding", (vocab, dim)),
        blocks=tuple(tree_of(BlockWeights, sizes, present, f"blocks.{layer}.") for layer in range(config.layers)),
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

    if 4 * parameter_count(config) > (memory_size() or math.inf):
        raise MemoryError(f"{parameter_count(config):,} parameters")  # before the system runs out of it
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


def tensors(weights: Weights) -> Weights:
    """Mapped weights as tensors of the dtype that holds all matrices, without a copy where they have it; others as they
    are."""
    if not isinstance(weights.norm, Mapped):
        return weights
    return to(weights, dtype_of(widest(name_of_dtype(leaf.dtype) for leaf in leaves(weights) if leaf.ndim == 2)))


def parameter_count(config: Config) -> int:
    """How many numbers a Llama learns; a tied embedding counts once."""
    counts = [sum(map(math.prod, shapes(replace(config, layers=layers)).values())) for layers in (1, 2)]
    one, two = counts  # not all of them: a damaged file may claim 2³¹ layers
    return one + (config.layers - 1) * (two - one)


def count(weights: object) -> int:
    """How many numbers a tree of arrays holds; a tied embedding counts once."""
    return sum(leaf.numel() for leaf in leaves(weights))


def to(weights: Tree, dtype: "torch.dtype | None" = None, device: "torch.device | str | None" = None) -> Tree:
    """The same tree of arrays in another dtype, on another device, or both."""
    return tree_map(lambda leaf: leaf.to(device=device, dtype=dtype), weights)
