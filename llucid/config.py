"""The numbers that make a Llama, and the sizes that people have given it."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from llucid.errors import LlucidError

NOWHERE = 2**31 - 1
"""The position of padding and of empty cache slots: later than every token, so that none ever sees it."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How Llama 3.1 stretches RoPE over a context longer than the one it was pre-trained on.

    A pair that turns more than `high_freq_factor` times in the original context keeps its frequency, one that turns
    less than `low_freq_factor` times is slowed by `factor`, and between the two the change is gradual.
    In no paper; the rule and its numbers are `apply_scaling`'s, in Meta's llama-models.
    """

    factor: float = 8.0
    """How many times slower the slow pairs turn: 8 in Llama 3.1, 32 in Llama 3.2."""
    low_freq_factor: float = 1.0
    """Pairs with fewer turns than this in the original context are slowed by the whole factor."""
    high_freq_factor: float = 4.0
    """Pairs with more turns than this in the original context are left alone."""
    original_context: int = 8192
    """Tokens of the context before stretching."""

    def __post_init__(self) -> None:
        if not 1 <= self.factor < math.inf:
            raise LlucidError(f"rope_scaling.factor={self.factor} must be at least 1, and finite")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise LlucidError(
                f"rope_scaling: low_freq_factor={self.low_freq_factor} must be positive and less than "
                f"high_freq_factor={self.high_freq_factor}"
            )
        if self.original_context < 1:
            raise LlucidError(f"rope_scaling.original_context={self.original_context} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every number of one Llama. Raises LlucidError, by name, for a combination that cannot be."""

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
    rope_scaling: RopeScaling | None = None
    """How RoPE is stretched beyond the original context; Llama 3.1 and 3.2 do."""
    tied_embeddings: bool = False
    """Whether the output matrix is the embedding itself, as in Llama 3.2 1B and 3B."""
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

    @property
    def parameters(self) -> int:
        """Numbers to learn; a tied embedding counts once."""
        attention = 2 * self.dim * self.head_dim * (self.heads + self.kv_heads)
        block = attention + 3 * self.dim * self.ffn_dim + 2 * self.dim
        embeddings = self.vocab_size * self.dim * (1 if self.tied_embeddings else 2)
        return embeddings + self.layers * block + self.dim


def head_width(dim: int, heads: int) -> int:
    """dim / heads, the usual width of a head. Raises LlucidError if that is not a whole number."""
    if heads == 0 or dim % heads:
        raise LlucidError(f"dim={dim} is not divisible by heads={heads}")
    return dim // heads


class Preset(NamedTuple):
    """A named size: its numbers, and where they are from or what they are for."""

    config: Config
    about: str


def _row(dim: int, layers: int, heads: int, kv_heads: int, ffn: int, vocab: int, context: int, **rest: Any) -> Config:
    sizes = dict(dim=dim, layers=layers, heads=heads, kv_heads=kv_heads, ffn_dim=ffn, vocab_size=vocab)
    return Config(**sizes, head_dim=head_width(dim, heads), context=context, **rest)


_LLAMA_1 = "LLaMA (Touvron et al. 2023a), table 2; ffn from Meta's multiple_of=256"
_LLAMA_2 = "Llama 2 (Touvron et al. 2023b), table 1 and Meta's params.json"
_LLAMA_3 = "The Llama 3 Herd of Models (2024), table 3, and Meta's params.json"
_LLAMA_32 = "Meta's params.json of Llama 3.2; scaling factor 32 as in its Hugging Face config.json"
_STORIES = "llama2.c's README, trained on TinyStories with Llama 2's recipe"
_V3: dict[str, Any] = {"rope_theta": 500_000.0}
_V31: dict[str, Any] = _V3 | {"rope_scaling": RopeScaling(factor=8.0)}
_V32: dict[str, Any] = _V3 | {"rope_scaling": RopeScaling(factor=32.0), "tied_embeddings": True}

# Columns: dim, layers, heads, kv_heads, ffn, vocab, context. Our own sizes get their vocabulary from their tokenizer;
# 65 is that of Shakespeare's characters.
PRESETS: dict[str, Preset] = {
    "nano": Preset(_row(64, 2, 2, 2, 192, 65, 64), "seconds: tests, and watching every step"),
    "micro": Preset(_row(128, 3, 4, 4, 352, 65, 256), "a minute and a half on two CPU cores: the default there"),
    "mini": Preset(_row(256, 6, 8, 8, 704, 65, 256), "twenty minutes, unless told otherwise"),
    "small": Preset(
        _row(384, 6, 6, 6, 992, 65, 256, dropout=0.2), "as large as nanoGPT's Shakespeare run: minutes on a GPU"
    ),
    "stories260K": Preset(_row(64, 5, 8, 4, 172, 512, 512, tied_embeddings=True), _STORIES),
    "stories15M": Preset(_row(288, 6, 6, 6, 768, 32000, 256, tied_embeddings=True), _STORIES),
    "stories42M": Preset(_row(512, 8, 8, 8, 1376, 32000, 1024, tied_embeddings=True), _STORIES),
    "stories110M": Preset(_row(768, 12, 12, 12, 2048, 32000, 1024, tied_embeddings=True), _STORIES),
    "llama-1-7b": Preset(_row(4096, 32, 32, 32, 11008, 32000, 2048, norm_eps=1e-6), _LLAMA_1),
    "llama-1-13b": Preset(_row(5120, 40, 40, 40, 13824, 32000, 2048, norm_eps=1e-6), _LLAMA_1),
    "llama-1-30b": Preset(_row(6656, 60, 52, 52, 17920, 32000, 2048, norm_eps=1e-6), _LLAMA_1),
    "llama-1-65b": Preset(_row(8192, 80, 64, 64, 22016, 32000, 2048), _LLAMA_1),
    "llama-2-7b": Preset(_row(4096, 32, 32, 32, 11008, 32000, 4096), _LLAMA_2),
    "llama-2-13b": Preset(_row(5120, 40, 40, 40, 13824, 32000, 4096), _LLAMA_2),
    "llama-2-70b": Preset(_row(8192, 80, 64, 8, 28672, 32000, 4096), _LLAMA_2),
    "llama-3-8b": Preset(_row(4096, 32, 32, 8, 14336, 128256, 8192, **_V3), _LLAMA_3),
    "llama-3-70b": Preset(_row(8192, 80, 64, 8, 28672, 128256, 8192, **_V3), _LLAMA_3),
    "llama-3.1-8b": Preset(_row(4096, 32, 32, 8, 14336, 128256, 131072, **_V31), _LLAMA_3),
    "llama-3.1-70b": Preset(_row(8192, 80, 64, 8, 28672, 128256, 131072, **_V31), _LLAMA_3),
    "llama-3.1-405b": Preset(_row(16384, 126, 128, 8, 53248, 128256, 131072, **_V31), _LLAMA_3),
    "llama-3.2-1b": Preset(_row(2048, 16, 32, 8, 8192, 128256, 131072, **_V32), _LLAMA_32),
    "llama-3.2-3b": Preset(_row(3072, 28, 24, 8, 8192, 128256, 131072, **_V32), _LLAMA_32),
}
"""Sizes by name. The numbers of Meta's models are stored, not the recipes that Meta computed them by."""
