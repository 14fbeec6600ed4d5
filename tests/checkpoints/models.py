"""Small random Llamas, and their shards in Meta's format."""

import json
from pathlib import Path

import torch
from torch import Tensor

from llucid.checkpoints import Model, meta
from llucid.config import Config
from llucid.tokenizers.characters import Characters
from llucid.weights import Weights, initialise, leaves, named_leaves, tree_map


def model_of(config: Config, seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    """A model with eight times the initial weights, norms that are not 1, and a tokenizer of characters."""
    generator = torch.Generator().manual_seed(seed)

    def draw(leaf: Tensor) -> Tensor:
        noise = torch.empty_like(leaf).uniform_(0.5, 1.5, generator=generator)
        return (noise if leaf.dim() == 1 else leaf * 8).to(dtype)

    characters = Characters(chr(ord("0") + number) for number in range(config.vocab_size))
    return Model(config, tree_map(draw, initialise(config, seed)), characters)


def same(a: Weights, b: Weights) -> bool:
    """Whether two trees are equal bit for bit, with equal dtypes."""
    pairs = zip(leaves(a), leaves(b), strict=True)
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


def write_shards(folder: Path, model: Model, count: int, embedding_axis: int, **params: object) -> None:
    """Writes the model as `count` model-parallel shards of Meta's, with the embedding split along this axis."""
    axes = {"query": 0, "key": 0, "value": 0, "output": 0, "gate": 0, "up": 0, "down": 1, "embedding": embedding_axis}
    folder.mkdir(exist_ok=True)
    for number in range(count):
        state = {}
        for path, leaf in named_leaves(model.weights):
            last = path.rpartition(".")[2]
            axis = 1 if path.endswith("attention.output") else axes.get(last)
            part = leaf if axis is None else leaf.chunk(count, axis)[number]
            assert axis is None or leaf.shape[axis] % count == 0
            state[meta.name_of(path)] = part.clone()
        for name in ("rope.freqs", "layers.0.attention.inner_attention.rope.freqs"):
            state[name] = torch.ones(model.config.head_dim // 2)
        torch.save(state, folder / f"consolidated.{number:02}.pth")
    config = model.config
    values = dict(dim=config.dim, n_layers=config.layers, n_heads=config.heads, n_kv_heads=config.kv_heads)
    values |= dict(vocab_size=-1, multiple_of=256, norm_eps=config.norm_eps) | params
    (folder / "params.json").write_text(json.dumps(values))
    model.tokenizer.save(folder)
