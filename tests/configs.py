"""The table of small Llamas that every spelling and every format is held to."""

from dataclasses import replace

from llucid.config import Config, RopeScaling

SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)
SIZES = dict(dim=32, layers=2, heads=4, kv_heads=4, head_dim=8, ffn_dim=56, vocab_size=50, context=64)

CONFIGS = {
    "one key head a query head": Config(**SIZES),
    "one for two": Config(**SIZES | dict(kv_heads=2), norm_eps=1e-6),
    "one for all, tied": Config(**SIZES | dict(kv_heads=1), tied_embeddings=True),
    "explicit head_dim": Config(**SIZES | dict(head_dim=12, kv_heads=2), norm_eps=0.125),  # not lost in the squares
    "theta of Llama 3": Config(**SIZES | dict(kv_heads=2), rope_theta=500_000.0),
    "scaling of Llama 3.1": Config(
        **SIZES | dict(kv_heads=2, head_dim=16, context=32_768), rope_theta=500_000.0, rope_scaling=SCALING
    ),
    "scaling of Llama 3.2, tied": Config(
        **SIZES | dict(layers=3, kv_heads=1, head_dim=16, context=32_768),
        rope_theta=500_000.0,
        rope_scaling=RopeScaling(factor=32.0),
        tied_embeddings=True,
    ),
    "biases": Config(**SIZES | dict(kv_heads=2), attention_bias=True, mlp_bias=True),
}

OTHER_SCALING = RopeScaling(factor=16.0, low_freq_factor=2.0, high_freq_factor=8.0, original_context=4096)
"""None of its numbers is Llama 3.1's or 3.2's, so that none can be taken for granted. GGUF and Meta cannot say them."""
RESCALED = replace(CONFIGS["scaling of Llama 3.1"], rope_scaling=OTHER_SCALING)
