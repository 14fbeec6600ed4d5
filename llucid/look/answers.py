"""Answers to the page's requests: the protocol of server.py without the network."""

import hashlib
import inspect
import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from threading import RLock
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote

import torch
import torch.nn.functional as F
from torch import Tensor

from llucid.arrays.quantized import Quantized
from llucid.errors import LlucidError, shown
from llucid.look.changes import ablate, patch, scale, zero_frequency
from llucid.look.heads import copying, head_scores
from llucid.look.instrument import AT_ONCE, instrument, rows
from llucid.look.trace import MODULE, Trace, encode, own_tensors, pieces_of, trace
from llucid.look.watch import Change
from llucid.model import Model
from llucid.weights import named_leaves, parameter_count

HELD = 8
"""Traces in memory; older readings are read again when they are asked for."""
HELD_BYTES = 1_000_000_000
"""Memory of the traces; the newest two are held whatever they take, since they may be compared."""
MOST_CHANGES = 1000
"""Of one edit: other requests wait while it is made."""
UNQUOTED = "!'()*~"
"""What JavaScript's encodeURIComponent leaves as it is, beside letters, digits, and what Python's quote leaves."""
CHANGES: dict[str, dict[str, type]] = {
    "ablate": {"layer": int, "head": int, "part": str},
    "scale": {"name": str, "factor": float},
    "patch": {"name": str, "from": str, "position": int},
    "zero_frequency": {"pair": int},
}
"""The kinds of changes, with their fields; head, part and position may be left out."""
MOST_NUMBERS = 10**7
"""In an answer about all layers, where the numbers of each can be asked for."""
LARGEST_MAP = 1024
"""Places along an axis of one head's attention."""
HALF = torch.finfo(torch.float16)
DTYPES = {"u8": torch.uint8, "f16": torch.float16, "f32": torch.float32}


class Subject(NamedTuple):
    """A model to look at."""

    name: str
    model: Callable[[], Model]
    """Opens it; called when it is first needed."""
    snapshot: int | None = None
    """The step of a training run after which it was kept."""


class Reading(NamedTuple):
    """A text, a model, and changes."""

    model: int
    ids: tuple[int, ...]
    text: str | None
    changes: tuple[dict[str, Any], ...]
    parent: str | None


class Answer(NamedTuple):
    """What is sent."""

    type: str
    headers: dict[str, str]
    body: bytes


class NotFound(LlucidError):
    """An unknown name or address."""


def address(path: str, /, **parameters: object) -> str:
    """The path below /look and its parameters, sorted by name, as the page writes them."""
    given = sorted((name.rstrip("_"), str(value)) for name, value in parameters.items() if value is not None)
    query = "&".join(f"{name}={quote(value, safe=UNQUOTED)}" for name, value in given)
    return f"/look{path and f'/{path}'}{query and f'?{query}'}"


class Answers:
    """Readings of some models, and every answer about them. One pass at a time, also for several callers."""

    def __init__(self, subjects: Sequence[Subject], first: str | Sequence[int] | Trace, tour: bool = False) -> None:
        """The first reading is of a text, of ids, or a trace, all of the first model. Raises LlucidError as `trace`."""
        self.subjects, self.tour = subjects, tour
        self.readings: dict[str, Reading] = {}
        self._models: dict[int, Model] = {}
        self._fingerprints: dict[int, str] = {}
        self._copying: dict[int, Tensor] = {}
        self._traces: OrderedDict[str, Trace] = OrderedDict()
        self._adopted: dict[str, Trace] = {}
        self.lock = RLock()
        """Held while anything is computed."""
        self.first = self.adopt(first) if isinstance(first, Trace) else self.read(0, first)

    # ------------------------------------------------------------------------------------- readings

    def model(self, number: int) -> Model:
        """The model, opened once; of the snapshots, only the last that was asked for is held."""
        if not 0 <= number < len(self.subjects):
            raise LlucidError(f"model={number}: there are models 0 to {len(self.subjects) - 1}")
        if number not in self._models:
            opened = own_tensors(self.subjects[number].model())
            self._models = {at: model for at, model in self._models.items() if self.subjects[at].snapshot is None}
            self._models[number], self._fingerprints[number] = opened, fingerprint(opened)
        return self._models[number]

    def read(self, model: int, text_or_ids: str | Sequence[int], changes: Sequence[dict[str, Any]] = ()) -> str:
        """Reads a text with these changes; returns the reading's id."""
        with self.lock:
            opened = self.model(model)
            text = text_or_ids if isinstance(text_or_ids, str) else None
            ids = encode(opened, text_or_ids)
            parent = self.read(model, text_or_ids) if changes else None
            key = [model, self._fingerprints[model], ids, list(changes)]  # the first rows of two models may be equal
            name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
            held = Reading(model, tuple(ids), text, tuple(changes), parent)
            if name not in self.readings:
                self._run(name, held)
            if name not in self.readings or text is not None:
                self.readings[name] = held
            return name

    def read_again(self, model: int, name: str) -> str:
        """Reads what a reading reads, by another model: its ids, or its text if these ids are another text to that."""
        reading = self._reading(name)
        one, other = self.model(reading.model), self.model(model)
        if one.tokenizer is None or other.tokenizer is None or agree(one, other, reading.ids):
            return self.read(model, reading.ids)
        return self.read(model, one.tokenizer.decode(reading.ids) if reading.text is None else reading.text)

    def adopt(self, held: Trace) -> str:
        """Adds an existing trace as a reading of the first model; returns the reading's id."""
        changes = [{"kind": "code", "name": name} for name in held.changed]
        key = json.dumps([0, fingerprint(held.model), held.ids, changes])
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        self.readings[name] = Reading(0, tuple(held.ids), None, tuple(changes), None)
        self._adopted[name] = held
        return name

    def edit(self, name: str, changes: Sequence[dict[str, Any]]) -> str:
        """Reads the same text with these changes instead. Raises LlucidError for more than MOST_CHANGES."""
        if len(changes) > MOST_CHANGES:
            raise LlucidError(f"changes: at most {MOST_CHANGES}")
        reading = self._reading(name)
        return self.read(reading.model, reading.ids if reading.text is None else reading.text, changes)

    def trace(self, name: str) -> Trace:
        if name in self._adopted:
            return self._adopted[name]
        if name not in self._traces:
            self._run(name, self._reading(name))
        self._traces.move_to_end(name)
        return self._traces[name]

    def _reading(self, name: str) -> Reading:
        if name not in self.readings:
            raise NotFound(f"{shown(name)}: there is no reading of this name; load the page again")
        return self.readings[name]

    def _run(self, name: str, reading: Reading) -> None:
        changes = [self._change(change) for change in reading.changes]
        self._traces[name] = trace(self.model(reading.model), reading.ids, change=changes)
        held = self._traces
        while len(held) > HELD or (len(held) > 2 and sum(each.nbytes for each in held.values()) > HELD_BYTES):
            held.popitem(last=False)

    def _change(self, body: Mapping[str, Any]) -> Change:
        kind = str(body.get("kind"))
        if kind not in CHANGES:
            raise LlucidError(f"change {shown(body)}: kind is one of {', '.join(CHANGES)}")
        expected = CHANGES[kind]
        fields: dict[str, Any] = {name: value for name, value in body.items() if name != "kind" and value is not None}
        for name in expected.keys() - fields.keys() - {"head", "part", "position"}:
            raise LlucidError(f"change {shown(body)}: {name} is missing")
        for name, value in fields.items():
            if name not in expected:
                raise LlucidError(f"change {shown(body)}: {name} is unknown; expected {', '.join(expected)}")
            kinds = (int, float) if expected[name] is float else (expected[name],)
            if type(value) not in kinds:
                raise LlucidError(f"change {shown(body)}: {name} must be of type {expected[name].__name__}")
            if not isinstance(value, str) and not abs(value) < 1e300:
                raise LlucidError(f"change {shown(body)}: {name} must be finite")
        if fields.get("part", "attention") not in ("attention", "feed_forward"):
            raise LlucidError(f"change {shown(body)}: part is attention or feed_forward")
        match kind:
            case "ablate":
                return ablate(**fields)
            case "scale":
                return scale(fields["name"], float(fields["factor"]))
            case "patch":
                return patch(fields["name"], self.trace(fields["from"]), fields.get("position"))
            case _:
                return zero_frequency(**fields)

    # ------------------------------------------------------------------------------------- answers
    # server.py describes what each address answers.

    def get(self, url: str) -> Answer:
        """The answer to a GET of this path, which begins with /look, and its parameters.

        Raises NotFound for what is not there, and LlucidError for a parameter that is wrong.
        """
        place, _, query = url.partition("?")
        method: Callable[..., Any] = self.tokens
        match place.removeprefix("/").split("/"):
            case ["look"]:
                given, method = [], self.look
            case ["look", "source"]:
                given, method = [], self.source
            case ["look", *given] if len(given) == 1:
                pass
            case ["look", *given, name] if len(given) == 1 and name in OF_READINGS:
                method = getattr(self, name)
            case _:
                raise NotFound(f"{place}: there is no such address")
        with self.lock, torch.no_grad():
            for reading in given:
                self._reading(reading)
            answer = method(*given, **parameters(method, query))
        return answer if isinstance(answer, Answer) else as_json(answer)

    def post(self, path: str, body: Mapping[str, Any]) -> Answer:
        """The answer to a POST of this path: the id of a reading. Raises as `get`.

        A page that is older than this server names another `first` reading."""
        if body.get("first", self.first) != self.first:
            raise NotFound("the server was started again, with another model or text; load the page again")
        match path.removeprefix("/").split("/"):
            case ["look", "read"]:
                model, text, ids, of = (body.get(key) for key in ("model", "text", "ids", "of"))
                given: list[Any] = [each for each in (text, ids, of) if each is not None]
                if len(given) != 1:
                    raise LlucidError("give text, ids or of, and only one of them")
                if not isinstance(given[0], str) and not _are_numbers(ids):
                    raise LlucidError("text and of must be a string, ids a list of whole numbers")
                if type(model) not in (int, type(None)):
                    raise LlucidError(f"model={shown(model)}: must be a whole number")
                with self.lock:
                    return as_json({"id": (self.read if of is None else self.read_again)(model or 0, given[0])})
            case ["look", reading, "edit"]:
                changes = body.get("changes")
                if not isinstance(changes, list) or not all(isinstance(change, dict) for change in changes):
                    raise LlucidError("changes must be a list of objects")
                with self.lock:
                    return as_json({"id": self.edit(reading, changes)})
            case _:
                raise NotFound(f"{path}: there is no such address")

    def look(self) -> dict[str, Any]:
        models: list[dict[str, Any]] = []
        for number, subject in enumerate(self.subjects):
            model = self.model(0 if subject.snapshot is not None else number)
            config = asdict(model.config)
            row = {"name": subject.name, "parameters": parameter_count(model.config), "config": config}
            row |= {"has_tokenizer": model.tokenizer is not None, "snapshot": subject.snapshot}
            models.append(row)
        return {"models": models, "first": self.first, "tour": self.tour, "export": False}

    def source(self) -> dict[str, Any]:
        """llama.py and the places in it."""
        code = instrument(MODULE)
        sites = [site._asdict() for site in code.sites]
        weights = {seen.site for seen in self.trace(self.first).seen if seen.is_weight}
        for number in weights:
            sites[number]["kind"] = "weight"
        return {"file": MODULE.replace(".", "/") + ".py", "text": code.text, "sites": sites}

    def tokens(self, reading: str) -> dict[str, Any]:
        held, found = self._reading(reading), self.trace(reading)
        body = held._asdict() | {"id": reading, "scores": found.output}
        del body["ids"]
        if held.text is None and found.model.tokenizer is not None:
            body["text"] = found.model.text().decode(held.ids)
        log_p = found.logits.log_softmax(-1)
        entropy = -(log_p.exp() * log_p).nan_to_num(0).sum(-1)
        ids = torch.tensor(held.ids[1:], device=log_p.device)
        own = log_p[:-1].gather(-1, ids[:, None])
        rank = [None, *(log_p[:-1] > own).sum(-1).tolist()]
        rows = zip(held.ids, found.tokens, found.surprise.tolist(), rank, entropy.tolist(), strict=True)
        keys = ("id", "piece", "surprise", "rank", "entropy")
        return body | {"tokens": [dict(zip(keys, row, strict=True)) for row in rows]}

    def next(self, reading: str, position: int = -1, top: int = 200) -> dict[str, Any]:
        found = self.trace(reading)
        logits = found.logits[_within("position", position, len(found.ids))]
        best = logits.topk(min(_at_least_one("top", top), len(logits)))
        total = logits.logsumexp(-1)
        ids, scores, p = best.indices.tolist(), best.values.tolist(), (best.values - total).exp().tolist()
        tokens = zip(ids, found.pieces(ids), scores, p, strict=True)
        named = [dict(zip(("id", "piece", "logit", "p"), token, strict=True)) for token in tokens]
        return {"tokens": named, "log_sum": float(total), "vocab": len(logits)}

    def names(self, reading: str) -> dict[str, Any]:
        found = self.trace(reading)
        values = found.names(expressions=True)
        index = {value.name: number for number, value in enumerate(values)}
        body = [{key: getattr(value, key) for key in ("name", "shape", "axes", "site", "layer")} for value in values]
        seen = [[at, layer, path if weight else index[path]] for at, layer, path, weight in found.seen]
        return {"values": body, "seen": seen}

    def summaries(self, reading: str, layer: int | None = None) -> dict[str, Any]:
        """Statistics of the values of a layer, or of those outside the blocks."""
        found = self.trace(reading)
        if layer is not None:
            _within("layer", layer, found.model.config.layers)
        values = (value.name for value in found.names(expressions=True) if value.layer == layer)
        return {each: summary(found[each]) for each in values}

    def lens(self, reading: str, top: int = 5) -> dict[str, Any]:
        found = self.trace(reading)
        if top * found.stream.shape[:-1].numel() > MOST_NUMBERS:
            raise LlucidError(f"top={top}: the answer would be too large")
        lens = found.logit_lens(top)
        known = sorted(set(lens.ids.flatten().tolist()))
        pieces = dict(zip(known, found.pieces(known), strict=True))
        return {"ids": lens.ids.tolist(), "p": lens.p.tolist(), "pieces": pieces}

    def stream(self, reading: str) -> dict[str, Any]:
        found = self.trace(reading)
        layers = range(found.model.config.layers)
        written = {
            part: [found[f"blocks.{layer}.{part}"][0].norm(dim=-1).tolist() for layer in layers]
            for part in ("attention", "feed_forward")
        }
        return {"stream": found.stream.norm(dim=-1).tolist()} | written

    def parts(self, reading: str, position: int = -1, token: int | None = None) -> dict[str, Any]:
        found = self.trace(reading)
        logits = found.logits[_within("position", position, len(found.ids))]
        token = int(logits.argmax()) if token is None else token
        body: list[dict[str, Any]] = []
        for part, value in found.attribution(position, token).items():
            _, layer, _, head = [*part.split("."), None, None, None][:4]
            numbers = {"layer": layer and int(layer), "head": head and int(head)}
            body.append({"name": part, **numbers, "value": value})
        return {"token": token, "piece": found.pieces([token])[0], "logit": float(logits[token]), "parts": body}

    def heads(self, reading: str) -> dict[str, Any]:
        found, model = self.trace(reading), self._reading(reading).model
        if model not in self._copying:
            self._copying[model] = copying(found.model)
        scores = head_scores(found, self._copying[model])._asdict()
        return {kind: None if score.isnan().all() else score.tolist() for kind, score in scores.items()}

    def clocks(self, reading: str, layer: int, head: int, position: int, key: int) -> dict[str, Any]:
        found = self.trace(reading)
        config, at = found.model.config, f"blocks.{_within('layer', layer, found.model.config.layers)}.attention"
        kv, group = divmod(_within("head", head, config.heads), config.heads // config.kv_heads)
        _within("position", position, len(found.ids))
        _within("key", key, len(found.ids))
        q = found.last(f"{at}.attention_written_out.q")[0, kv, group, position]  # already divided by √head_dim
        k = found.last(f"{at}.attend.k")[0, kv, key]
        pairs = (q * k).unflatten(-1, (-1, 2)).sum(-1).tolist()
        score = float(found.last(f"{at}.scores")[0, kv, group, position, key])
        if key <= position and abs(math.fsum(pairs) - score) > 1e-4 * math.fsum(map(abs, pairs)):
            raise LlucidError("this llama.py makes its scores in another way than of pairs that RoPE turns")
        body = [{"frequency": each, "value": value} for each, value in zip(found["theta"].tolist(), pairs, strict=True)]
        return {"score": math.fsum(pairs), "pairs": body}

    def compare(self, reading: str, with_: str) -> dict[str, Any]:
        ours, theirs = self.trace(reading), self.trace(self._reading(with_) and with_)
        if ours.ids != theirs.ids:
            raise LlucidError("readings of different tokens cannot be compared: they need the same text and tokenizer")
        kl = cosine = None
        if ours.logits.shape == theirs.logits.shape:
            p, q = ours.logits.log_softmax(-1), theirs.logits.log_softmax(-1).to(ours.logits)
            kl = F.kl_div(q, p, reduction="none", log_target=True).sum(-1).tolist()
        if ours.stream.shape == theirs.stream.shape:
            cosine = F.cosine_similarity(ours.stream, theirs.stream.to(ours.stream), dim=-1).tolist()
        return {"kl": kl, "cosine": cosine}

    # ------------------------------------------------------------------------------------- numbers
    # With `minus`, another reading, they are the differences from it: taken before the largest of a block is.

    def value(self, reading: str, name: str, as_: str, slice_: str = "", max_: int = 512, minus: str = "") -> Answer:
        found = self.trace(reading)
        value = found[name]
        other = self.trace(minus)[name] if minus else None
        axes = list(found.described[name].axes)
        if value.is_complex():
            value, axes = torch.view_as_real(value), [*axes, None]
            other = None if other is None else torch.view_as_real(other)
        if other is not None:
            refuse_other_sizes(value.shape, other.shape)
        index: list[Any] = []
        for at, each in enumerate(slice_.split(",") if slice_ else []):
            if at >= value.dim() or not re.fullmatch(r":|-?\d{1,18}", each):
                raise LlucidError(f"slice={slice_}: expected at most {value.dim()} whole numbers or colons")
            index.append(slice(None) if each == ":" else _within("slice", int(each), value.shape[at]))
        left = [axis for at, axis in enumerate(axes) if at >= len(index) or isinstance(index[at], slice)]
        value = value[tuple(index)]
        pool = blocks(value.shape, max_)
        if other is not None:
            value = apart(value, other[tuple(index)])
        return numbers(pooled(value, pool), pool, left, as_)

    def weight(self, reading: str, name: str, as_: str, max_: int = 512, minus: str = "") -> Answer:
        """An array of the weights by its path, some rows at a time."""
        leaf, other = self._leaf(reading, name), self._leaf(minus, name) if minus else None
        if other is not None:
            refuse_other_sizes(leaf.shape, other.shape)
        pool = blocks(leaf.shape, max_)
        step = max(1, AT_ONCE // math.prod(leaf.shape[1:]) // pool[0]) * pool[0]
        parts = [
            pooled(x if other is None else apart(x, rows(other, at, at + step)), pool)
            for at in range(0, leaf.shape[0], step)
            for x in [rows(leaf, at, at + step)]
        ]
        return numbers(torch.cat(parts), pool, [None] * len(leaf.shape), as_)

    def _leaf(self, reading: str, name: str) -> Tensor | Quantized:
        leaf = dict(named_leaves(self.model(self._reading(reading).model).weights)).get(name)
        if leaf is None:
            raise NotFound(f"{shown(name)}: there are no weights of this name")
        return leaf

    def attention(
        self,
        reading: str,
        as_: str = "u8",
        layer: int | None = None,
        head: int | None = None,
        position: int | None = None,
        max_: int | None = None,
        minus: str = "",
    ) -> Answer:
        """The attention of all heads, small, or of one; or the row of one position, which is always whole."""
        found = self.trace(reading)
        other = self.trace(minus) if minus else None
        config, axes = found.model.config, ["layers", "heads", "seq", "slots"]
        if (layer is None) != (head is None):
            raise LlucidError("attention: give layer and head, or neither")
        if max_ is None:  # of the wall fewer, where there are very many heads
            most = math.isqrt(MOST_NUMBERS // (config.layers * config.heads))
            max_ = max(1, min(64, most)) if layer is None else LARGEST_MAP
        pool = blocks((len(found.ids),) * 2, max_)
        limits = (0.0, 1.0) if other is None else None

        def maps(layer: int) -> Tensor:
            p = found.attention_of(layer)
            return p if other is None else apart(p, other.attention_of(layer))

        if layer is not None and head is not None:
            p = maps(_within("layer", layer, config.layers))[_within("head", head, config.heads)]
            if position is not None:
                return numbers(p[_within("position", position, len(p))], [1], axes[3:], as_, of=limits)
            return numbers(pooled(p, pool), pool, axes[2:], as_, of=limits)
        pool = [1, *pool]
        if config.layers * config.heads * math.ceil(len(found.ids) / pool[1]) ** 2 > MOST_NUMBERS:
            raise LlucidError(f"max={max_}: the answer would be too large")
        p = torch.stack([pooled(maps(each), pool) for each in range(config.layers)])
        return numbers(p, [1, *pool], axes, as_, of=limits)


OF_READINGS = (
    *("next", "names", "summaries", "lens", "stream", "parts", "heads", "clocks", "compare"),
    *("value", "weight", "attention"),
)
"""The methods that answer /look/READING/NAME."""


def parameters(method: Callable[..., Any], query: str) -> dict[str, Any]:
    """The method's arguments from a URL's parameters, whole numbers where it wants them."""
    expected = {name.rstrip("_"): each for name, each in inspect.signature(method).parameters.items()}
    expected = {name: each for name, each in expected.items() if name != "reading"}
    given: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in expected:
            raise LlucidError(f"{name}=: unknown here; expected {', '.join(expected) or 'no parameters'}")
        whole = expected[name].annotation is not str
        if whole and not text.removeprefix("-").isdecimal():
            raise LlucidError(f"{name}={shown(text)}: must be a whole number")
        given[expected[name].name] = int(text[:20]) if whole else text
    for name, each in expected.items():
        if each.default is inspect.Parameter.empty and each.name not in given:
            raise LlucidError(f"{name}=: missing")
    return given


def as_json(value: object) -> Answer:
    """JSON; numbers to 6 digits, those that are not finite as null."""
    text = json.dumps(_rounded(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Answer("application/json", {}, text.encode("utf-8", "replace"))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


def numbers(
    x: Tensor, pool: Sequence[int], axes: Sequence[str | None], as_: str, of: tuple[float, float] | None = None
) -> Answer:
    """Numbers as bytes; `of` is the range that 0 to 255 stand for, if not that of the finite numbers. Where float16
    does not hold the numbers, they are sent in float32."""
    if as_ not in DTYPES:
        raise LlucidError(f"as={shown(as_)}: expected one of {', '.join(DTYPES)}")
    headers = {"x-shape": json.dumps(list(x.shape)), "x-axes": json.dumps(list(axes)), "x-pool": json.dumps(list(pool))}
    headers["x-dtype"] = as_ = "f32" if as_ == "f16" and not fits_half(x) else as_
    x = x.float()
    if as_ == "u8":
        finite = x[x.isfinite()]
        low, high = of or ((float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0))
        step = (high - low) / 255 or 1.0
        headers |= {"x-offset": str(low), "x-scale": str(step)}
        x = ((x.nan_to_num(low) - low) / step).round().clamp(0, 255)
    return Answer("application/octet-stream", headers, x.to(DTYPES[as_]).contiguous().cpu().numpy().tobytes())


def fits_half(x: Tensor) -> bool:
    """Whether float16 holds whole numbers exactly, others to 11 bits from the largest down to a hundredth of it."""
    if not x.is_floating_point():
        return torch.equal(x.half().double(), x.double())
    largest = x[x.isfinite()].abs().amax().item() if x.isfinite().any() else 0
    return largest == 0 or HALF.smallest_normal * 100 <= largest <= HALF.max


def blocks(shape: Sequence[int], limit: int) -> list[int]:
    """How many neighbours of each axis become one number, so that none is longer than `limit`."""
    return [max(1, -(-size // _at_least_one("max", limit))) for size in shape]


def pooled(x: Tensor, pool: Sequence[int]) -> Tensor:
    """The number of the largest magnitude in each block."""
    for axis, block in enumerate(pool):
        if block > 1:
            x = F.pad(x.float(), [*([0, 0] * (x.dim() - axis - 1)), 0, -x.shape[axis] % block])
            x = x.unflatten(axis, (-1, block))
            high, low = x.amax(axis + 1), x.amin(axis + 1)  # ten times as fast as to gather the largest of x.abs()
            x = torch.where(high >= -low, high, low)
    return x


def apart(x: Tensor, other: Tensor) -> Tensor:
    """The differences of two values. Equal infinities are not apart. Raises LlucidError for other sizes."""
    refuse_other_sizes(x.shape, other.shape)
    x, other = x.float(), other.to(x.device).float()
    return torch.where(x == other, 0.0, x - other)


def refuse_other_sizes(one: Sequence[int], other: Sequence[int]) -> None:
    if tuple(one) != tuple(other):
        raise LlucidError(f"values of other sizes cannot be compared: {tuple(one)} and {tuple(other)}")


def summary(x: Tensor) -> dict[str, Any]:
    """Statistics of the finite numbers of a value; of complex numbers, of their absolute values."""
    x = (x.abs() if x.is_complex() else x).float().flatten()
    x = x[x.isfinite()]
    if not len(x):
        return {"min": None, "max": None, "mean": None, "std": None, "histogram": [0] * 20}
    low, high = float(x.min()), float(x.max())
    bins = ((x - low) / (high - low or 1) * 20).long().clamp(max=19)
    figures = {"min": low, "max": high, "mean": float(x.mean()), "std": float(x.std(correction=0))}
    return figures | {"histogram": bins.bincount(minlength=20).tolist()}


def fingerprint(model: Model) -> str:
    """A hash that tells most models apart: of llama.py, the Config, and the first row of each array."""
    digest = hashlib.sha256(f"{instrument(MODULE).text}{model.config}".encode())
    for path, leaf in named_leaves(model.weights):
        digest.update(path.encode())
        digest.update(rows(leaf, 0, 1).cpu().numpy().tobytes())
    return digest.hexdigest()


def agree(one: Model, other: Model, ids: Sequence[int]) -> bool:
    """Whether these ids are the same text in two tokenizers, whose special tokens may have other names."""
    special = {*one.text().special.values()}.intersection(other.text().special.values())
    ordinary = [token for token in ids if token not in special]
    return pieces_of(one, ordinary) == pieces_of(other, ordinary)


def _are_numbers(given: object) -> bool:
    return isinstance(given, list) and all(type(each) is int for each in given)  # pyright: ignore


def _within(name: str, index: int, length: int) -> int:
    if not -length <= index < length:
        raise LlucidError(f"{name}={index}: there are 0 to {length - 1}")
    return index % length


def _at_least_one(name: str, number: int) -> int:
    if number < 1:
        raise LlucidError(f"{name}={number}: must be at least 1")
    return number
