"""Published sizes and our own, each with the source of its numbers."""

from typing import Any, NamedTuple

from llucid.config import Config, RopeScaling, head_width


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
    "mini": Preset(_row(256, 6, 8, 8, 704, 65, 256), "twenty minutes, by default"),
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
