"""One recorded pass of llama.py: every value gets a name, can be replaced, and can be kept.

A function that is given a value and a part of the weights' tree is at that part: what `attention` computes for block 3
is named `blocks.3.attention.q` and so on, and what it returns is `blocks.3.attention`. A function without weights is
where its caller is. A variable is named as in the source, any other expression by its text. Where a name was taken
before, that of the function comes in front (`blocks.3.attention.attend.q`), or a number behind (`blocks.3.x.2`).
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llucid.arrays import Quantized
from llucid.arrays.devices import without_autocast
from llucid.look.instrument import Instrumented, widened
from llucid.weights import Weights

Change = Mapping[str, Callable[[Tensor], Tensor]]
"""From names of values to functions of them, which return a new value of the same shape."""
BLOCK = re.compile(r"blocks\.(\d+)(?:\.|$)")


def layer_of(name: str) -> int | None:
    """The block that a value belongs to."""
    return int(found[1]) if (found := BLOCK.match(name)) else None


def without_block(name: str) -> str:
    """The name of a value within its block."""
    return BLOCK.sub("", name)


def combined(change: Change | Sequence[Change] | None) -> dict[str, list[Callable[[Tensor], Tensor]]]:
    """The functions for each name, in the order in which they are applied."""
    functions: dict[str, list[Callable[[Tensor], Tensor]]] = {}
    for each in [change] if isinstance(change, Mapping) else change or []:
        for name, function in each.items():
            functions.setdefault(name, []).append(function)
    return functions


class Seen(NamedTuple):
    """One passage of a value through a place in the source."""

    site: int
    layer: int | None
    """The block that was running."""
    name: str
    """The value's name, or the path of an array of the weights."""
    is_weight: bool


class Call(NamedTuple):
    """How a block was called, for calling it again."""

    layer: int
    function: str
    arguments: dict[int | str, Any]
    """By position or name."""
    weights: int | str
    """Which argument the weights are; it is None here."""
    version: int
    """Of all its tensors, as in `version_of`."""


CALLS = "arguments"
"""Stands for the arguments of blocks among the names of what is copied."""


def version_of(value: object) -> int:
    """How often a tensor, or those in a tuple, were changed in place."""
    if isinstance(value, Tensor):
        return 0 if value.is_inference() else value._version  # pyright: ignore[reportPrivateUsage]
    return sum(map(version_of, value)) if isinstance(value, tuple) else 0  # pyright: ignore[reportUnknownArgumentType]


def copied(value: Any) -> Any:
    """A copy of a tensor, or of those in a tuple."""
    if isinstance(value, tuple):
        parts = [copied(part) for part in value]  # pyright: ignore[reportUnknownVariableType]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)  # pyright: ignore
    return value.clone() if isinstance(value, Tensor) else value


class _Frame(NamedTuple):
    scope: str
    """Path in the weights' tree."""
    function: str
    opened: bool
    """Whether the function was given that part of the tree, and its caller a larger one."""


class Watch:
    """Runs functions of an instrumented module on weights; values are in float32 at least.

    `change(name, value)` returns the value to continue with. `keep(name)` says whether to hold a value in `values`, or
    a copy if `copies` has its name without the block, since what comes later changes it in place; see `spoiled`.
    """

    def __init__(
        self,
        instrumented: Instrumented,
        weights: Weights,
        change: Callable[[str, Tensor], Tensor] = lambda name, value: value,
        keep: Callable[[str], bool] = lambda name: False,
        copies: Collection[str] = (),
    ) -> None:
        self.sites = instrumented.sites
        self.change, self.keep, self.copies = change, keep, copies
        self.values: dict[str, Tensor] = {}
        """Those that are kept."""
        self.found: list[tuple[str, int, tuple[int, ...], torch.dtype]] = []
        """Name, site, shape and dtype of every value, in the order in which they were computed."""
        self.seen: list[Seen] = []
        self.calls: list[Call] = []
        """Of the blocks."""
        self.read: dict[str, str] = {}
        """By paths of the weights' tree: the first name of what a function read from the stream there, the first time
        if it is a block, else the last time."""
        self.weights = weights._replace(blocks=_Blocks(weights.blocks, self))  # pyright: ignore[reportArgumentType]
        self._paths: dict[int, tuple[str, object]] = {}
        self._register(self.weights, "")
        self._names: dict[int, tuple[str, Tensor, int, str]] = {}
        self._versions: dict[str, int] = {}
        self._owners: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._frames = [_Frame("", "", True)]
        self._namespace = instrumented.run(self.see, self.enter)

    def run(self, function: str, *arguments: Any, **named: Any) -> Any:
        """What the module's function returns."""
        # In inference mode, PyTorch does not count changes in place.
        with torch.inference_mode(False), torch.no_grad(), without_autocast():
            return self._namespace[function](*arguments, **named)

    def run_again(self, call: Call) -> Any:
        """Runs a block again with the recorded arguments, which do not count as new values."""
        given = {key: copied(value) if CALLS in self.copies else value for key, value in call.arguments.items()}
        for argument in given.values():
            for value in argument if isinstance(argument, tuple) else (argument,):
                if isinstance(value, Tensor):
                    self._names[id(value)] = "", value, version_of(value), ""
        given[call.weights] = self.weights.blocks[call.layer]
        named = {key: value for key, value in given.items() if isinstance(key, str)}
        return self.run(call.function, *(value for key, value in given.items() if isinstance(key, int)), **named)

    def name_of(self, value: Tensor) -> str:
        """The newest name of a value that was seen."""
        return self._names[id(value)][0]

    def spoiled(self) -> set[str]:
        """The names, without the block, of what is kept and was changed in place later; CALLS for arguments."""
        values = {name for name, version in self._versions.items() if version_of(self.values[name]) != version}
        calls = {CALLS for call in self.calls if version_of(tuple(call.arguments.values())) != call.version}
        return {without_block(name) for name in values} | calls

    def release(self) -> None:
        """Frees all but the results now: the watch and its functions refer to one another."""
        self._namespace.clear()
        del self.weights, self._paths, self._names

    def see(self, site: int, value: Any) -> Any:
        """Names, changes and records a value; returns the one to continue with."""
        if not isinstance(value, Tensor | Quantized):
            return value
        _, kind, text, _ = self.sites[site]
        scope, function, opened = self._frames[-1]
        if id(value) in self._paths:
            self.seen.append(Seen(site, layer_of(scope), self._paths[id(value)][0], True))
            return value
        assert isinstance(value, Tensor), f"{site=}"
        known = self._names.get(id(value))
        if known and known[2] != version_of(value):  # it was changed in place
            known = kind = None
        named = kind == "variable" or (kind == "result" and opened and scope)
        if known and not named:
            self.seen.append(Seen(site, layer_of(scope), known[0], False))
            return value
        if kind == "use":  # a value from outside of the instrumented code
            return value
        if kind == "result":
            name = scope if opened and scope else _join(scope, function)
        else:
            name = _join(scope, text)
            if self._owners.setdefault(name, function) != function:
                name = _join(scope, f"{function}.{text}")
        self._counts[name] += 1
        if (count := self._counts[name]) > 1:
            name = f"{name}.{count}"
        if value.is_floating_point():
            value = widened(value)
        value = self.change(name, value)
        self._names[id(value)] = name, value, version_of(value), known[3] if known and known[1] is value else name
        self.found.append((name, site, tuple(value.shape), value.dtype))
        self.seen.append(Seen(site, layer_of(scope), name, False))
        if self.keep(name):
            held = self.values[name] = value.clone() if without_block(name) in self.copies else value
            self._versions[name] = version_of(held)
        return value

    def enter(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, at the part of the weights that it is given."""
        return wraps(function)(lambda *arguments, **named: self._entered(function, arguments, named))

    def _entered(self, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        scope = self._frames[-1].scope
        values: dict[int | str, Any] = {**dict(enumerate(arguments)), **named}
        given = {key: self._paths[id(value)][0] for key, value in values.items() if id(value) in self._paths}
        path = next(iter(given.values()), scope)
        if not any(isinstance(value, Tensor) and id(value) not in self._paths for value in values.values()):
            path = scope  # an array of which only the dtype is asked
        self._frames.append(_Frame(path, function.__name__, path != scope))
        known = (self._names.get(id(value)) for value in values.values())
        reads = [entry[3] for entry in known if entry and entry[1].shape[-1:] == self.weights.norm.shape]
        if path != scope and reads:
            self.read[path] = self.read.get(path, reads[0]) if BLOCK.fullmatch(path) else reads[0]
        if path != scope and (block := BLOCK.fullmatch(path)):
            at = next(iter(given))
            held = {key: copied(value) if CALLS in self.copies else value for key, value in values.items()}
            held[at] = None
            version = version_of(tuple(held.values()))
            self.calls.append(Call(int(block[1]), function.__name__, held, at, version))
        try:
            return function(*arguments, **named)
        finally:
            self._frames.pop()
            if path != scope and BLOCK.fullmatch(path):
                self._forget(f"{path}.")

    def open_block(self, layer: int, block: Any) -> Any:
        """A block's weights, known by their paths until the next block is opened."""
        self._paths = {key: entry for key, entry in self._paths.items() if not entry[0].startswith("blocks.")}
        self._register(block, f"blocks.{layer}")
        return block

    def _register(self, tree: object, path: str) -> None:
        self._paths[id(tree)] = path, tree
        if isinstance(tree, tuple):
            for name in getattr(tree, "_fields", ()):
                branch = getattr(tree, name)
                if isinstance(branch, tuple | Tensor | Quantized):
                    self._register(branch, _join(path, name))

    def _forget(self, prefix: str) -> None:
        """Frees the values of a block that is done, except those that are kept."""
        self._names = {key: entry for key, entry in self._names.items() if not entry[0].startswith(prefix)}


class _Blocks(Sequence[Any]):
    """The blocks of a tree, each registered when it is asked for."""

    def __init__(self, blocks: Sequence[Any], watch: Watch) -> None:
        self.blocks, self.watch = blocks, watch

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, layer: Any) -> Any:
        return self.watch.open_block(layer, self.blocks[layer])

    def __iter__(self) -> Iterator[Any]:
        return (self[layer] for layer in range(len(self)))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
