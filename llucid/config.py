"""The numbers that make a Llama."""

import math
from dataclasses import dataclass, fields

from llucid.errors import LlucidError

NOWHERE = (1 << 31) - 1
"""The position of padding and of empty cache slots: later than every token, so that none ever sees it."""


@dataclass(frozen=True, kw_only=True)
class _Scaling:
    """How RoPE is changed for a context longer than the original one. The formulas are in llucid/rope.py."""

    factor: float
    """How many times longer the context becomes; at least 1."""

    def __post_init__(self) -> None:
        for item in fields(self):
            number = getattr(self, item.name)
            if not 0 < number < 1 << 31:
                raise LlucidError(f"rope_scaling.{item.name}={number!r:.60} must be positive and less than 2^31")
        if self.factor < 1:
            raise LlucidError(f"rope_scaling.factor={self.factor} must be at least 1, and finite")


@dataclass(frozen=True, kw_only=True)
class RopeScaling(_Scaling):
    """Llama 3.1's: slow pairs turn `factor` times slower, fast pairs as before, and between the two it is gradual.

    In no paper; the rule and its numbers are those of `apply_scaling` in Meta's llama-models.
    """

    factor: float = 8.0
    """How many times slower the slow pairs turn: 8 in Llama 3.1, 32 in Llama 3.2."""
    low_freq_factor: float = 1.0
    """Pairs with fewer turns than this in the original context are slowed by the whole factor."""
    high_freq_factor: float = 4.0
    """Pairs with more turns than this in the original context keep their frequency."""
    original_context: int = 8192
    """Tokens of the context before stretching."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low_freq_factor < self.high_freq_factor:
            raise LlucidError(
                f"rope_scaling.low_freq_factor={self.low_freq_factor} must be less than "
                f"high_freq_factor={self.high_freq_factor}"
            )


@dataclass(frozen=True, kw_only=True)
class LinearScaling(_Scaling):
    """Every pair turns `factor` times slower. Chen et al. 2023, "Extending Context Window … via Positional
    Interpolation"."""


@dataclass(frozen=True, kw_only=True)
class DynamicScaling(_Scaling):
    """Only texts longer than the context slow the pairs, and the more the longer they are ("dynamic NTK").

    Frequencies then depend on the length of what is read in one pass, as in transformers. Generation stays within the
    context, since a text would depend on how it is read.
    """


@dataclass(frozen=True, kw_only=True)
class YarnScaling(_Scaling):
    """Fast pairs keep their frequency, slow ones turn `factor` times slower, and scores become larger. Peng et al.
    2023 (YaRN), §3.2–3.4."""

    original_context: int
    """Tokens of the context before stretching."""
    beta_fast: float = 32.0
    """Pairs with more turns than this in the original context keep their frequency."""
    beta_slow: float = 1.0
    """Pairs with fewer turns than this in the original context are slowed by the whole factor."""
    attention_factor: float
    """What queries and keys are multiplied by: 0.1 ln(factor) + 1 in the paper."""


Scaling = RopeScaling | LinearScaling | DynamicScaling | YarnScaling


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every number of one Llama. Raises LlucidError, by name, for an impossible combination."""

    dim: int
    """Width of the residual stream: numbers per token."""
    layers: int
    """Blocks, one after the other."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads; each serves heads / kv_heads query heads."""
    head_dim: int
    """Width of one head; even, since RoPE turns pairs."""
    ffn_dim: int
    """Width of the hidden layer of the feed-forward network."""
    vocab_size: int
    """Different tokens."""
    context: int
    """Longest sequence, in tokens, that the model is trained for."""
    norm_eps: float = 1e-5
    """Added to the mean square in RMSNorm: 1e-6 in Llama 1 up to 30B, 1e-5 in 65B and since."""
    rope_theta: float = 10_000.0
    """Base of RoPE's frequencies: 10,000 in Llama 1 and 2, 500,000 in Llama 3."""
    rope_scaling: Scaling | None = None
    """How RoPE is changed for a context longer than the original one; Llama 3.1 and 3.2 do that."""
    tied_embeddings: bool = False
    """Whether the output matrix is the embedding itself, as in Llama 3.2 1B and 3B."""
    attention_bias: bool = False
    """Whether the four matrices of attention have biases; Meta's Llamas have none."""
    mlp_bias: bool = False
    """Whether the three matrices of the feed-forward network have biases; Meta's Llamas have none."""
    dropout: float = 0.0
    """Probability of dropping an activation while training; never used in inference."""

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "kv_heads", "head_dim", "ffn_dim", "vocab_size", "context"):
            number = getattr(self, name)
            if not isinstance(number, int) or number < 1:
                raise LlucidError(f"{name}={number} must be a whole number of at least 1")
            if number >= 1 << 31:
                raise LlucidError(f"{name}={number} is more than any format can hold")
        if self.heads % self.kv_heads:
            raise LlucidError(f"heads={self.heads} is not divisible by kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise LlucidError(f"head_dim={self.head_dim} must be even, since RoPE turns pairs")
        if not 0 < self.norm_eps < math.inf:
            raise LlucidError(f"norm_eps={self.norm_eps} must be positive and finite")
        if not 0 < self.rope_theta < math.inf:
            raise LlucidError(f"rope_theta={self.rope_theta} must be positive and finite")
        if not 0 <= self.dropout < 1:
            raise LlucidError(f"dropout={self.dropout} must be at least 0 and less than 1")


def head_width(dim: int, heads: int) -> int:
    """dim / heads, the usual width of a head. Raises LlucidError if that is not a whole number."""
    if heads == 0 or dim % heads:
        raise LlucidError(f"dim={dim} is not divisible by heads={heads}")
    return dim // heads
