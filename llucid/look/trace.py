"""A forward pass with all its values, and what is worked out from them."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import lru_cache
from operator import index
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llucid.config import Config, RopeScaling
from llucid.errors import LlucidError
from llucid.look.instrument import Kind, Site, Span, instrument, rows
from llucid.look.watch import Change, Seen, Watch, combined, layer_of
from llucid.model import Model
from llucid.properties import cached_property
from llucid.tokenizers.prompts import prompt_ids
from llucid.weights import initialise, tensors, tree_map

MODULE = "llucid.llama"
KEPT = ("attention", "attention.attend", "feed_forward")
"""What is kept of every block beside the stream: values of the same size that are often asked for."""
LONGEST = 1000
"""Characters of a name or a pattern of names."""
SCORES = 2**25
"""Logits that the logit lens computes in one go."""


class Value(NamedTuple):
    """What is known of one value without looking at its numbers."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    """The name of each axis, as in llama.py's annotations; None for one of a fixed length. `group` is the query heads
    that share a key."""
    layer: int | None
    """The block that it is of."""
    function: str
    """The function of llama.py that computed it."""
    kind: Kind
    text: str
    """Its source: the variable's name, or the expression."""
    line: int
    """Of llama.py."""
    spans: tuple[Span, ...]
    site: int
    """Number of the place in the source, as in `Trace.sites`."""


class Lens(NamedTuple):
    """What each stream would predict if it were the last."""

    ids: Int[Tensor, "streams seq top"]
    """The likeliest tokens, the likeliest first; streams is layers + 1."""
    p: Float[Tensor, "streams seq top"]
    """Their probabilities."""
    tokens: list[list[list[str]]]
    """Their text."""


def trace(
    model: Model,
    text_or_ids: str | Sequence[int],
    *,
    change: Change | Sequence[Change] | None = None,
    only: Sequence[str] | None = None,
) -> "Trace":
    """Runs the model on a text (with BOS in front, where the tokenizer has one) or on ids, and returns every value.

    Computes in float32 (float64, if the weights are that) whatever the weights are stored in. The trace keeps the
    stream and little else: other values of a block are computed once more, from its stream, when they are asked for.
    64 tokens of Llama 3.2 1B in bfloat16 take 0.7 s and 0.3 GB beyond the weights (2 cores of an AMD EPYC, Zen 5), 2.5
    times a plain pass in bfloat16 (benchmarks/look.py).
    With `only`, names or patterns (`blocks.*.attention.p`), exactly those values are kept, and no others can be asked
    for. `change` maps names to functions whose results go on instead of the values; see `llucid.look.changes`. Without
    `only`, they are called again for a block whose values are asked for, so they must give the same again; and the
    weights must not be trained in between.

    Raises LlucidError for a text that is empty, longer than the context, or cannot be encoded, for names that no value
    has, for a change that returns another shape, and for a model whose scores are not numbers.
    """
    return Trace(model, encode(model, text_or_ids), combined(change), only)


class Trace:
    """What one forward pass computed. Values have a batch axis of 1; what is worked out from them has none."""

    _repr_html_: "ClassVar[Callable[[Trace], str | None]]"
    """The page in a frame, for notebooks: `export.frame`."""

    def __init__(
        self, model: Model, ids: list[int], change: Mapping[str, list[Any]], only: Sequence[str] | None
    ) -> None:
        model = own_tensors(model)
        for name in (*change, *(only or ())):
            refuse_longer(name)
        self.model, self.ids, self.only = model, ids, only
        self.sites: tuple[Site, ...] = instrument(MODULE).sites
        """The places in llama.py through which values pass."""
        self._change, self._changed = change, set[str]()
        self._block: tuple[int, dict[str, Tensor]] = (-1, {})
        self._copies = set[str]()
        tokens = torch.tensor([ids], device=model.weights.device)
        watch = self._watch(self._keeps, lambda watch: self._scored(watch, tokens))
        self._values, self._calls, self._found = watch.values, watch.calls if only is None else [], watch.found
        self._read = watch.read
        self.seen: list[Seen] = watch.seen
        """What passed each place, in order."""
        known = [name for name, *_ in self._found]
        for name in [*(name for name in change if name not in self._changed), *(only or ())]:
            if not any(name == each or fnmatchcase(each, name) for each in known):
                raise LlucidError(_unknown(name, known))
        for name in change:
            if name not in self._changed:
                raise LlucidError(f"change of {name}: give one value's name; a pattern changes nothing")
        if not change and (scores := self._values.get(self.output)) is not None and not scores.isfinite().all():
            raise LlucidError(f"this model's scores are not numbers, from {self._first_nan()} on; its file is damaged")

    def __repr__(self) -> str:
        changed = f", changed: {', '.join(self.changed)}" if self.changed else ""
        return f"<Trace of {len(self.ids)} tokens, {len(self._found)} values{changed}>"

    def _watch(self, keep: Callable[[str], bool], run: Callable[[Watch], object]) -> Watch:
        """What `run` leaves in a Watch: once more, if something was changed in place later, with copies of that."""
        while True:
            copies = frozenset(self._copies)  # another thread may find more meanwhile
            watch = Watch(instrument(MODULE), self.model.weights, self._apply, keep, copies)
            run(watch)
            spoiled = watch.spoiled() - copies
            watch.release()
            if not spoiled:
                return watch
            self._copies |= spoiled

    def _scored(self, watch: Watch, tokens: Tensor) -> None:
        found = watch.run("llama", tokens, watch.weights, self.model.config)
        self.output = watch.name_of(found[0] if isinstance(found, tuple) else found)
        """The name of the scores that llama() returned."""

    def _apply(self, name: str, value: Tensor) -> Tensor:
        for function in self._change.get(name, ()):
            self._changed.add(name)
            changed: Any = function(value)
            if not isinstance(changed, Tensor) or changed.shape != value.shape:
                found = list(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
                raise LlucidError(f"change of {name}: expected a tensor of shape {list(value.shape)}, found {found}")
            value = changed.to(value)
        return value

    def _keeps(self, name: str) -> bool:
        if self.only is not None:
            return any(name == each or fnmatchcase(name, each) for each in self.only)
        layer = layer_of(name)
        return layer is None or name == f"blocks.{layer}" or name.removeprefix(f"blocks.{layer}.") in KEPT

    def _first_nan(self) -> str:
        for value in self.names(expressions=True):
            if self[value.name].isnan().any():
                return value.name
        return "the output matrix"

    # ------------------------------------------------------------------------------------- values by name

    def names(self, expressions: bool = False) -> list[Value]:
        """What there is, in the order in which it was computed; `expressions` too, not only what has a name."""
        return [value for value in self.described.values() if expressions or value.kind != "expression"]

    @cached_property
    def described(self) -> dict[str, Value]:
        """What is known of every value, by its name."""
        axes = _axes(self.model.config.rope_scaling is not None)
        found: dict[str, Value] = {}
        for name, site, shape, _ in self._found:
            layer, (function, kind, text, spans) = layer_of(name), self.sites[site]
            alike = name if layer is None else f"blocks.0{name.removeprefix(f'blocks.{layer}')}"
            named = axes.get(alike, axes.get(site, ()))
            named = named if len(named) == len(shape) else (None,) * len(shape)
            found[name] = Value(name, shape, named, layer, function, kind, text, spans[0][0], spans, site)
        return found

    @property
    def changed(self) -> list[str]:
        """The names of the values that were changed."""
        return list(self._change)

    @property
    def nbytes(self) -> int:
        """Memory of the values that are held."""
        return sum(value.nbytes for values in (self._values, self._block[1]) for value in values.values())

    def __getitem__(self, name: str) -> Tensor:
        """The value of this name. Raises LlucidError if there is none, or if `only` left it out."""
        if name in self._values:
            return self._values[name]
        layer = layer_of(name)
        calls = [call for call in self._calls if call.layer == layer]
        if layer is not None and calls:
            at, values = self._block
            if at != layer:
                self._block = -1, {}
                values = self._watch(lambda name: True, lambda watch: [*map(watch.run_again, calls)]).values
                self._block = layer, values
            if name in values:
                return values[name]
        known = [each for each, *_ in self._found]
        if name in known:
            raise LlucidError(f"{name}: not kept; only={list(self.only or ())}")
        raise LlucidError(_unknown(name, known))

    def last(self, name: str) -> Tensor:
        """The value of this name, or the last of those that it was given to, which have numbers behind it."""
        return self[self._again.get(name, name)]

    @cached_property
    def _again(self) -> dict[str, str]:
        """The last of the names that begin with this one and end in a number."""
        return {name.rpartition(".")[0]: name for name, *_ in self._found if name.rpartition(".")[2].isdecimal()}

    # ------------------------------------------------------------------------------------- worked out from them

    @property
    def tokens(self) -> list[str]:
        return self.pieces(self.ids)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each of these ids, as `pieces_of` has it."""
        return pieces_of(self.model, ids)

    @property
    def logits(self) -> Float[Tensor, "seq vocab"]:
        """The scores of every next token at every position."""
        return self[self.output][0]

    @cached_property
    def stream(self) -> Float[Tensor, "streams seq dim"]:
        """The residual stream before each block, and after the last: layers + 1 of them.

        Where a reader's llama.py does more than one block after another: what each block read the first time, and what
        the last norm read."""
        layers = self.model.config.layers
        read = [self._read.get(f"blocks.{layer}", f"blocks.{layer - 1}" if layer else "x") for layer in range(layers)]
        return torch.cat([self[name] for name in (*read, self._read.get("norm", f"blocks.{layers - 1}"))])

    @property
    def attention(self) -> Float[Tensor, "layers heads seq seq"]:
        """How much each head looks, from each position (rows), at each position (columns)."""
        return torch.stack([self.attention_of(layer) for layer in range(self.model.config.layers)])

    def attention_of(self, layer: int) -> Float[Tensor, "heads seq seq"]:
        """The attention of one layer: the last p, should a reader's llama.py have several."""
        return self.last(f"blocks.{layer}.attention.p")[0].flatten(0, 1)

    @property
    def surprise(self) -> Float[Tensor, " seq"]:
        """−ln p of each token given those before it, in nats; NaN for the first."""
        seen = self.logits[:-1].log_softmax(-1).gather(-1, self._tokens[1:, None])[:, 0]
        return torch.cat([seen.new_full((1,), math.nan), -seen])

    @property
    def _tokens(self) -> Tensor:
        return torch.tensor(self.ids, device=self.model.weights.device)

    def lens(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocab"]:
        """The logits of vectors of the stream: through the last norm and the output matrix."""
        watch = Watch(instrument(MODULE), self.model.weights)
        normed = watch.run("rms_norm", x, watch.weights.norm, self.model.config.norm_eps)
        return watch.run("unembed", normed, watch.weights)

    @property
    def lens_logits(self) -> Float[Tensor, "streams seq vocab"]:
        """The logits of each stream. nostalgebraist 2020, "interpreting GPT: the logit lens"."""
        return torch.stack([self.lens(x) for x in self.stream])

    def logit_lens(self, top: int = 5) -> Lens:
        """The `top` likeliest tokens of each stream at each position, with their probabilities.

        Some vectors at a time, so that it needs little memory. Raises LlucidError for `top` below 1.
        """
        if top < 1:
            raise LlucidError(f"top={top}: must be at least 1")
        vocab, (streams, seq, _) = self.model.config.vocab_size, self.stream.shape
        some = self.stream.flatten(0, 1).split(max(1, SCORES // vocab))
        best = [self.lens(x).softmax(-1).topk(min(top, vocab)) for x in some]
        ids = torch.cat([each.indices for each in best]).unflatten(0, (streams, seq))
        p = torch.cat([each.values for each in best]).unflatten(0, (streams, seq))
        known = ids.unique().tolist()
        pieces = dict(zip(known, self.pieces(known), strict=True))
        return Lens(ids, p, [[[pieces[token] for token in row] for row in rows] for rows in ids.tolist()])

    def attribution(self, position: int, token: int) -> dict[str, float]:
        """What the embedding, each head and each feed-forward wrote towards a token's logit: they add up to it.

        The last norm's scale is held at what it was at this position (Elhage et al. 2021, "A Mathematical Framework
        for Transformer Circuits"). Names are `embedding`, `blocks.2.heads.3` and `blocks.2.feed_forward`; where the
        output matrix has a bias, which is no head's, `blocks.2.attention_bias`; where a value was changed, or a
        reader's llama.py adds up otherwise, `change`: what came from no part. Raises LlucidError for a position or
        token that is not there.
        """
        config, weights = self.model.config, self.model.weights
        if not -len(self.ids) <= position < len(self.ids):
            raise LlucidError(f"position={position}: the text has positions 0 to {len(self.ids) - 1}")
        if not 0 <= token < config.vocab_size:
            raise LlucidError(f"token={token}: this model has ids 0 to {config.vocab_size - 1}")
        output = rows(weights.embedding if weights.output is None else weights.output, token, token + 1)[0].double()
        last = self.stream[-1, position].double()
        towards = output * weights.norm.double() * torch.rsqrt(last.square().mean() + config.norm_eps)
        parts = {"embedding": float(self.stream[0, position].double() @ towards)}
        for layer, block in enumerate(weights.blocks):
            z = self[f"blocks.{layer}.attention.attend"][0, position].double()
            heads = z * (towards @ rows(block.attention.output, 0, config.dim).double())
            for head, part in enumerate(heads.unflatten(-1, (config.heads, -1)).sum(-1).tolist()):
                parts[f"blocks.{layer}.heads.{head}"] = part
            if block.attention.output_bias is not None:
                parts[f"blocks.{layer}.attention_bias"] = float(block.attention.output_bias.double() @ towards)
            written = self[f"blocks.{layer}.feed_forward"][0, position].double()
            parts[f"blocks.{layer}.feed_forward"] = float(written @ towards)
        rest = float(self.logits[position, token]) - sum(parts.values())
        if self._change or abs(rest) > 1e-4 * sum(map(abs, parts.values())):  # more than rounding
            parts["change"] = rest
        return parts


def own_tensors(model: Model) -> Model:
    """The model with tensors that are its own, one for each array of the weights, and need no gradients."""
    weights = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tensors(model.weights))
    return model._replace(weights=weights)


def encode(model: Model, text_or_ids: str | Sequence[int]) -> list[int]:
    """The ids of a text, with BOS in front where the tokenizer has one, or the ids. Raises LlucidError as `trace`."""
    if isinstance(text_or_ids, str):
        if not text_or_ids:
            raise LlucidError("the text is empty; give at least one character, or ids")
        if model.tokenizer is None:
            raise LlucidError("this model has no tokenizer: give ids instead of a text, or load it with tokenizer=")
        ids = prompt_ids(model.tokenizer, text_or_ids)
    else:
        try:
            ids = [index(token) for token in text_or_ids]
        except TypeError as error:
            raise LlucidError("the ids must be whole numbers in one list, not in a batch of several") from error
        if not ids:
            raise LlucidError("no ids are given; a pass needs at least one")
    if len(ids) > model.config.context:
        raise LlucidError(f"the text has {len(ids)} tokens, but the model's context is {model.config.context}")
    for token in ids:
        if not 0 <= token < model.config.vocab_size:
            raise LlucidError(f"id {token}: this model has ids 0 to {model.config.vocab_size - 1}")
    return ids


def pieces_of(model: Model, ids: Sequence[int]) -> list[str]:
    """The text of each token, the name of a special one, the bytes of a part of a character as `<0xE2 0x82>`, and
    `<123>` for one that has none of these."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return [f"<{token}>" for token in ids]
    special = {token: name for name, token in reversed(tokenizer.special.items())}

    def piece(token: int) -> str:
        if token in special or token >= tokenizer.vocab_size:
            return special.get(token, f"<{token}>")
        raw = tokenizer.piece(token)
        try:
            return raw.decode() or f"<{token}>"
        except UnicodeDecodeError:
            return f"<{' '.join(f'0x{byte:02X}' for byte in raw)}>"

    return [piece(token) for token in ids]


def refuse_longer(name: str) -> None:
    """A pattern takes time with the square of its length."""
    if len(name) > LONGEST:
        raise LlucidError(f"{name[:50]}…: a name of more than {LONGEST} characters")


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f"{name}: there is no value of this name{'; near are ' + ', '.join(near) if near else ''}"


@lru_cache
def _axes(scaled: bool) -> dict[str | int, tuple[str | None, ...]]:
    """The names of each value's axes, from a pass of a tiny model in which no two have the same length.

    By the value's name, and by its place in the source, for the streams of later layers (`x.3`, `x.4`, …).
    If a reader's llama.py needs equal ones, those of what it computes after that have no names.
    """
    lengths = dict(batch=13, seq=11, dim=17, heads=21, kv_heads=3, group=7, head_dim=8, half=4, q=168, kv=24)
    lengths |= dict(ffn=19, vocab=23)
    names = {length: name for name, length in lengths.items()}
    sizes: dict[str, Any] = dict(
        dim=17, heads=21, kv_heads=3, head_dim=8, ffn_dim=19, vocab_size=23, context=11, layers=1
    )
    config = Config(**sizes, rope_scaling=RopeScaling() if scaled else None)
    watch = Watch(instrument(MODULE), initialise(config))
    with suppress(Exception):
        watch.run("llama", torch.zeros(13, 11, dtype=torch.long, device="cpu"), watch.weights, config)
    axes: dict[str | int, tuple[str | None, ...]] = {}
    for name, site, shape, _ in watch.found:
        named = [names.get(length) for length in shape]
        if named.count("seq") == 2:
            named[len(named) - 1 - named[::-1].index("seq")] = "slots"
        axes[name] = axes[site] = tuple(named)
    return axes
