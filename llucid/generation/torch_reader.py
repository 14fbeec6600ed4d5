"""A pass of the model by PyTorch, on any device, on the same cache as C."""

from collections.abc import Sequence as Ids
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from llucid.arrays.devices import without_autocast
from llucid.cache import PAGE, Cache, Memory
from llucid.config import NOWHERE, Config
from llucid.generation.pages import Part
from llucid.llama import hidden, unembed
from llucid.weights import Weights


class TorchReader:
    """Runs llama.py on the engine's cache: each part is a row of a batch, padded on the right."""

    def __init__(self, weights: Weights, config: Config, memory: Memory) -> None:
        self.weights, self.config, self.memory = weights, config, memory

    @torch.inference_mode()
    @without_autocast()
    def read(self, parts: Ids[Part]) -> Float[Any, "scored vocab"]:
        """`Reader.read`. The output matrix is applied only where logits are wanted."""
        tokens, positions, cache = self.side_by_side(parts)
        x, _ = hidden(tokens, self.weights, self.config, cache, positions)
        wanted = [
            (row, at)
            for row, part in enumerate(parts)
            for at in range(max(0, len(part.ids) - part.scored), len(part.ids))
        ]
        rows, columns = torch.tensor(wanted, dtype=torch.long, device=tokens.device).reshape(-1, 2).unbind(1)
        return unembed(x[rows, columns], self.weights)

    def side_by_side(self, parts: Ids[Part]) -> tuple[torch.Tensor, torch.Tensor, Cache]:
        """(the new ids, their positions, a cache of the tokens before them), one row per part."""
        old, new = max(part.sequence.length for part in parts), max(len(part.ids) for part in parts)
        tokens = np.zeros((len(parts), new), np.int64)
        places = np.full((len(parts), old + new), NOWHERE, np.int64)
        slots = np.zeros((len(parts), old + new), np.int64)  # page 0 is for padding
        for row, (sequence, ids, _, _) in enumerate(parts):
            length, count = sequence.length, len(ids)
            tokens[row, :count] = ids
            at = np.arange(length + count)
            own = sequence.numbers[at // PAGE].astype(np.int64) * PAGE + at % PAGE
            places[row, :length], places[row, old : old + count] = at[:length], at[length:]
            slots[row, :length], slots[row, old : old + count] = own[:length], own[length:]
        device = self.memory.device
        keys, values = self.memory.tensors
        placed = torch.from_numpy(places).to(device)
        first = slots[:, 0]
        stride = int(first[1] - first[0]) if len(parts) > 1 else old + new
        even = first[0] + stride * np.arange(len(parts))[:, None] + np.arange(old + new)
        if stride > 0 and (slots == even).all():
            cache = Cache(keys, values, placed, old, int(first[0]), stride)  # adjacent slots: views instead of gathers
        else:
            cache = Cache(keys, values, placed, old, slots=torch.from_numpy(slots).to(device))
        return torch.from_numpy(tokens).to(device), placed[:, old:].clone(), cache
