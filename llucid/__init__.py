"""llucid: a Llama you can see through.

`llucid.load`, `llucid.generate`, `llucid.save` and `llucid.Model` are here; the equations are in `llucid.llama`.
Nothing is imported before it is used, so that `import llucid` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llucid.checkpoints import Model, load, save
    from llucid.config import PRESETS, Config, RopeScaling
    from llucid.errors import LlucidError
    from llucid.generation import generate, generate_batch, predict
    from llucid.weights import Weights

__all__ = [
    "PRESETS",
    "Config",
    "LlucidError",
    "Model",
    "RopeScaling",
    "Weights",
    "generate",
    "generate_batch",
    "load",
    "predict",
    "save",
]

_HOMES = {
    "Model": "checkpoints",
    "load": "checkpoints",
    "save": "checkpoints",
    "PRESETS": "config",
    "Config": "config",
    "RopeScaling": "config",
    "LlucidError": "errors",
    "generate": "generation",
    "generate_batch": "generation",
    "predict": "generation",
    "Weights": "weights",
}
_ROOMS = {
    *("chat", "checkpoints", "config", "corpora", "generation", "ladder", "llama", "llama_jax", "llama_module"),
    *("look", "quantize", "tokenizers", "training", "weights"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"llucid.{_HOMES[name]}"), name)
    if name in _ROOMS:
        return import_module(f"llucid.{name}")
    raise AttributeError(f"module 'llucid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})
