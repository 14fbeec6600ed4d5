"""llucid: a Llama you can see through.

`llucid.load`, `llucid.generate`, `llucid.save` and `llucid.Model` are here; the equations are in `llucid.llama`.
Names and modules are imported when first used, so that `import llucid` is fast.
"""

from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llucid.checkpoints import Model, load, save
    from llucid.config import Config, RopeScaling
    from llucid.errors import LlucidError
    from llucid.generation import generate, generate_batch, predict
    from llucid.presets import PRESETS
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

_MODULE_OF = {
    **dict.fromkeys(("Model", "load", "save"), "checkpoints"),
    **dict.fromkeys(("Config", "RopeScaling"), "config"),
    **dict.fromkeys(("generate", "generate_batch", "predict"), "generation"),
    "LlucidError": "errors",
    "PRESETS": "presets",
    "Weights": "weights",
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"llucid.{_MODULE_OF[name]}"), name)
    if find_spec(f"llucid.{name}"):
        return import_module(f"llucid.{name}")
    raise AttributeError(f"module 'llucid' has no attribute {name!r}")


def __dir__() -> list[str]:
    modules = {module.name for module in iter_modules(__path__)}
    lacking = set() if find_spec("jax") else {"llama_jax"}  # which cannot be imported then, as pydoc would
    return sorted({*globals(), *_MODULE_OF, *modules - lacking})
