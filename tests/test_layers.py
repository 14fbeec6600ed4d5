"""The package's layers: nothing imports upward, and there are no import cycles. Imports inside functions count too."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "llucid"
LAYERS = (
    "errors files properties",
    "config presets rope",
    "arrays",
    "weights",
    "fast cache",
    "llama llama_module llama_jax native",
    "tokenizers",
    "dialogs",
    "model",
    "checkpoints",
    "corpora",
    "generation",
    "training",
    "look",
    "chat ladder bench",
    "cli",
    "__init__ __main__",
)
"""The modules and folders of llucid/, lowest first."""
MODULES = {
    ".".join(("llucid", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in sorted(ROOT.rglob("*.py"))
}


def imports(module: str, source: str) -> Iterator[str]:
    """The modules of llucid that `module` imports, wherever in its source."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names):
                named = [alias.name for alias in names]
            case ast.ImportFrom(module=str(origin), names=names, level=0):
                named = [f"{origin}.{alias.name}" for alias in names]
            case ast.Call(func=ast.Name("import_module") | ast.Attribute(attr="import_module"), args=[argument]):
                # Of f"llucid.checkpoints.{name}", what stands before the first brace.
                parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
                named = [str(part.value) for part in parts[:1] if isinstance(part, ast.Constant)]
            case _:
                continue
        for name in named:
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            # What a folder's own modules import of it is not the folder's __init__.py.
            if name and name != module and not module.startswith(f"{name}."):
                yield name


def layer(module: str) -> int:
    """The number of the layer that `module` is in."""
    name = "__init__" if module == "llucid" else module.split(".")[1]
    [number] = [number for number, names in enumerate(LAYERS) if name in names.split()]
    return number


GRAPH = {module: set(imports(module, file.read_text(encoding="utf-8"))) for module, file in MODULES.items()}


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_imported_from_a_higher_layer(module: str) -> None:
    assert not {name for name in GRAPH[module] if layer(name) > layer(module)}


def test_there_are_no_import_cycles() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_imports_are_found_wherever_they_are() -> None:
    source = """
import llucid.chat.session
from llucid import errors
from llucid.fast import linear
def late():
    from llucid.tokenizers.text import replace_surrogates
    import_module("llucid.model"), importlib.import_module(f"llucid.checkpoints.{name}")
"""
    found = {"chat.session", "errors", "fast", "tokenizers.text", "model", "checkpoints"}
    assert set(imports("llucid.llama", source)) == {f"llucid.{name}" for name in found}


@pytest.mark.parametrize("jax", [True, False])
def test_pydoc_describes_the_package(jax: bool) -> None:
    """Also where JAX, an extra, is not installed."""
    code = "import sys\n" + ("" if jax else "sys.modules['jax'] = None\n")
    code += "import llucid, pydoc; print(len(pydoc.render_doc(llucid)), 'llama_jax' in dir(llucid))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    length, listed = done.stdout.split()
    assert (int(length) > 5000, listed) == (True, str(jax))
