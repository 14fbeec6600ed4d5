"""The page as one file: it opens from disk, with the answers that fit into a size."""

import gzip
import html
import json
import math
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from llucid.errors import LlucidError
from llucid.files import write_atomically
from llucid.look.answers import LARGEST_MAP, Answer, Answers, Subject, address, as_json
from llucid.look.trace import Trace, Value
from llucid.look.watch import layer_of
from llucid.weights import named_leaves

PAGE = Path(__file__).parent / "page"
SUFFIXES = (".html", ".js", ".css", ".svg")
STARTS = ("", "/names", "/heads")
"""What the page must have of a reading."""
LIMIT = 5_000_000
"""Bytes of a file, unless another limit is given."""
WIDEST = (512, 256, 128, 64, 32)
"""Numbers along an axis of a value: the first of these with which the values fit is taken."""
PICTURE = 64
"""Numbers along an axis of a weight."""
WALL = 1_000_000
"""Numbers of all the maps on the wall."""
PICTURES = f"Weights are rounded to 8 bits; those wider than {PICTURE} numbers are shown smaller, as pictures."


def export(trace: Trace, path: str | Path, limit: int = LIMIT) -> list[str]:
    """Writes the page about a trace as one file of at most `limit` bytes, which opens without a server.

    Returns a sentence for each kind of thing that was left out. Raises LlucidError if not even the page fits, or if
    the trace kept only some values, and OSError if the file cannot be written.
    """
    made = page_of(trace, limit)
    write_atomically(Path(path), made.html)
    return made.left_out


def page_of(trace: Trace, limit: int = LIMIT) -> "Page":
    """The page about one trace."""
    answers = Answers([Subject("this model", lambda: trace.model)], trace)
    return page(answers, [answers.first], limit=limit)


def frame(trace: Trace) -> str | None:
    """The page in a frame, as HTML: how a notebook shows a trace. None for one that kept too little, or too much."""
    try:
        source = html.escape(page_of(trace).html.decode())
    except LlucidError:
        return None
    return f'<iframe srcdoc="{source}" title="llucid look" style="width: 100%; height: 720px; border: 0"></iframe>'


Trace._repr_html_ = frame  # pyright: ignore[reportPrivateUsage]


class Page(NamedTuple):
    """A page as one file."""

    html: bytes
    left_out: list[str]
    """A sentence for each kind of answer that is not in it, or only in part."""


def page(
    answers: Answers,
    readings: Sequence[str],
    *,
    urls: Sequence[str] = (),
    state: dict[str, Any] | None = None,
    limit: int = LIMIT,
) -> Page:
    """The page with the answers about these readings, the most informative first, until `limit` bytes are full.

    First comes what it opens with, in this state; then `urls`, then the other answers. Each kind of them may take half
    of the room that is left, and once all have had their turn, the rest of it. Raises LlucidError if not even the page
    itself fits, and for two readings of different tokens.
    """
    if len({tuple(answers.trace(reading).ids) for reading in readings}) > 1:
        raise LlucidError("readings of different tokens cannot be shown side by side")
    known = [url for url in urls if any(url.startswith(f"/look/{reading}") for reading in readings)]
    head = {"export": True, "readings": list(readings), "first": readings[-1]}
    packed = {"/look": _packed(as_json(answers.look() | head)), "/look/source": _packed(answers.get("/look/source"))}
    left_out: list[str] = []
    left = limit - len(_html({"answers": {}, "left_out": ["x" * 100] * 20, "state": state or {}}))
    left -= sum(len(json.dumps(each)) + 50 for each in packed.values())
    bodies: dict[str, str] = {}
    # Of two readings, there are the values of each, and the differences.
    widest = widest_of([value for each in (*readings, *readings[1:]) for value in answers.trace(each).names()], left)
    groups = [
        ("answers that it starts with", [address(f"{each}{path}") for path in STARTS for each in readings]),
        ("answers that it opens with", opening(answers, readings, state or {})),
        ("answers", known),
        *groups_of(answers, readings, widest),
    ]
    if widest < WIDEST[0]:
        left_out.append(f"Values wider than {widest} numbers are shown smaller, each number the largest of a block.")
    left_out.append(PICTURES)
    if len(answers.trace(readings[-1]).ids) > LARGEST_MAP:
        left_out.append(
            f"Attention of more than {LARGEST_MAP} places is shown smaller, without the rows of single places."
        )
    for share in (0.5, 1.0):
        for number, (_, wanted) in enumerate(groups):
            room, failed = left * (share if number else 1.0), 0
            for url in wanted:
                if url in packed or failed > 20:  # what follows is as large
                    continue
                answer = _packed(_smaller(answers, url, widest))
                if same := bodies.get(answer["body"]):
                    answer = {key: answer[key] for key in ("type", "headers")} | {"same": same}
                size = len(json.dumps({url: answer})) + 2
                if size > room:
                    failed += 1
                    continue
                room, left = room - size, left - size
                packed[url] = answer
                if "body" in answer:
                    bodies[answer["body"]] = url
            if failed and not number:
                raise LlucidError(f"{limit} bytes do not hold the page itself; allow more, or take a shorter text")
    for about, wanted in groups:
        if missing := len(set(wanted) - packed.keys()):
            left_out.append(f"{missing} of {len(set(wanted))} {about} are left out of this file for its size.")
    return Page(_html({"answers": packed, "left_out": left_out, "state": state or {}}), left_out)


def opening(answers: Answers, readings: Sequence[str], state: Mapping[str, Any]) -> list[str]:
    """What the page asks for in this state, or else at the last token, and at the head that looks most at what came
    after an earlier copy of it, as app.js chooses."""
    urls: list[str] = []
    for reading in readings:
        found = answers.trace(reading)
        config = found.model.config
        scores = json.loads(answers.get(address(f"{reading}/heads")).body)
        grid = scores["induction"] or scores["previous"] or [[0]]
        most = max(chain(*grid))
        best = next(((layer, row.index(most)) for layer, row in enumerate(grid) if most in row), (0, 0))

        def chosen(name: str, count: int, other: int) -> int:
            value = state.get(name)
            return value if type(value) is int and 0 <= value < count else other

        layer, head = chosen("layer", config.layers, best[0]), chosen("head", config.heads, best[1])
        place = chosen("token", len(found.ids), len(found.ids) - 1)
        key = chosen("key", place + 1, int(found.attention_of(layer)[head, place].argmax()))
        row = {"max_": config.vocab_size, "name": found.output, "slice_": f"0,{place}"}
        values = [value for value in found.names(expressions=True) if value.layer in (layer, None)]
        weights = [seen.name for seen in found.seen if seen.is_weight and layer_of(seen.name) in (layer, None)]
        urls += [
            *(address(f"{reading}/{name}") for name in ("attention", "lens", "stream", "summaries")),
            address(f"{reading}/attention", as_="f32", head=head, layer=layer),
            address(f"{reading}/next", position=place),
            address(f"{reading}/parts", position=place),
            address(f"{reading}/clocks", head=head, key=key, layer=layer, position=place),
            address(f"{reading}/summaries", layer=layer),
            *(value_url(reading, value, config.heads, head) for value in values if value.kind != "expression"),
            address(f"{reading}/value", as_="f32", **row),
            *(address(f"{reading}/weight", as_="f32", name=name) for name in weights),
        ]
    return list(dict.fromkeys(urls))


def groups_of(answers: Answers, readings: Sequence[str], widest: int) -> Iterator[tuple[str, list[str]]]:
    """What the page asks for, the most informative first: what the answers are, in the plural, and their URLs.

    Of two readings it takes the second from the first, but in what is `coarse` it asks for the differences."""
    traces = {reading: answers.trace(reading) for reading in readings}
    configs = {reading: found.model.config for reading, found in traces.items()}
    places = range(len(traces[readings[-1]].ids))
    heads = [
        (reading, layer, head)
        for reading, config in configs.items()
        for layer in range(config.layers)
        for head in range(config.heads)
    ]

    def of(path: str, **parameters: object) -> list[str]:
        return [address(f"{reading}{path}", **parameters) for reading in readings]

    main, others = readings[-1], readings[:-1]
    named = {other: {value.name: value.shape for value in traces[other].names(expressions=True)} for other in others}

    def values(expressions: bool) -> list[str]:
        found = ((reading, value) for reading in readings for value in traces[reading].names(expressions=True))
        chosen = [(reading, value) for reading, value in found if (value.kind == "expression") == expressions]
        urls = [url for reading, value in chosen for url in value_urls(reading, value, configs[reading].heads)]
        apart = [
            (value, other)
            for reading, value in chosen
            for other in others
            if reading == main and max(value.shape, default=1) > widest and named[other].get(value.name) == value.shape
        ]
        return [*urls, *(url for value, other in apart for url in value_urls(main, value, configs[main].heads, other))]

    sizes = (configs[main].layers, configs[main].heads)
    overviews = [url for path in ("/names", "/stream", "/heads", "/attention", "/lens") for url in of(path)]
    alike = [other for other in others if (configs[other].layers, configs[other].heads) == sizes]
    walls = [address(f"{main}/attention", minus=other) for other in alike]
    yield "overviews", [*overviews, *(address(f"{main}/compare", with_=other) for other in others), *walls]
    yield "next-token distributions", [url for at in places for url in of("/next", position=at)]
    maps = [address(f"{each}/attention", as_="f32", head=head, layer=layer) for each, layer, head in heads]
    apart = [
        address(f"{main}/attention", as_="f32", head=head, layer=layer, minus=other)
        for other in alike
        for reading, layer, head in heads
        if reading == main and len(places) > LARGEST_MAP
    ]
    yield "maps of single heads", maps + apart
    # Of two readings, each also shows what wrote the logit of the other's guess.
    guesses = {reading: found.logits.argmax(-1).tolist() for reading, found in traces.items()}
    pairs = [(one, other) for one in readings for other in readings if one != other]
    asked = [(one, at, guesses[other][at]) for at in places for one, other in pairs]
    known = [(one, at, token) for one, at, token in asked if token < configs[one].vocab_size]
    parts = [address(f"{one}/parts", position=at, token=token) for one, at, token in known]
    yield "attributions", [*(url for at in places for url in of("/parts", position=at)), *parts]
    blocks = [(each, layer) for each, config in configs.items() for layer in (None, *range(config.layers))]
    yield "statistics", [address(f"{each}/summaries", layer=layer) for each, layer in blocks]
    last = places[-1]
    keys = [int(traces[each].attention_of(layer)[head, last].argmax()) for each, layer, head in heads]
    clocks = [
        address(f"{each}/clocks", head=head, key=key, layer=layer, position=last)
        for (each, layer, head), key in zip(heads, keys, strict=True)
    ]
    yield "scores split by RoPE's pairs", clocks
    yield "values", values(expressions=False)
    weights = {(each, seen.name): None for each, found in traces.items() for seen in found.seen if seen.is_weight}
    shapes = {each: {path: leaf.shape for path, leaf in named_leaves(traces[each].model.weights)} for each in readings}
    pictures = [address(f"{each}/weight", as_="f32", name=name) for each, name in weights]
    apart = [
        address(f"{main}/weight", as_="f32", minus=other, name=name)
        for other in others
        for each, name in weights
        if each == main and shapes[other].get(name) == shapes[main][name]
    ]
    yield "pictures of weights", pictures + apart
    scores = [
        address(f"{each}/value", as_="f32", max_=configs[each].vocab_size, name=found.output, slice_=f"0,{at}")
        for at in places
        for each, found in traces.items()
    ]
    yield "exact next-token scores", scores
    yield "values of expressions", values(expressions=True)


def value_urls(reading: str, value: Value, heads: int, minus: str | None = None) -> list[str]:
    """What the page asks of a value at each head: the same of all, where it has none."""
    return list(dict.fromkeys(value_url(reading, value, heads, head, minus) for head in range(heads)))


def value_url(reading: str, value: Value, heads: int, head: int, minus: str | None = None) -> str:
    """What the page asks of a value, or of its difference: the first of the batch, and this head."""
    kv = value.shape[value.axes.index("kv_heads")] if "kv_heads" in value.axes else heads
    numbers = {"batch": 0, "heads": head, "kv_heads": head * kv // heads, "group": head % max(1, heads // kv)}
    picks = [
        ":" if at == len(value.shape) - 1 else str(0 if size == 1 else numbers.get(axis or "", ":"))
        for at, (axis, size) in enumerate(zip(value.axes, value.shape, strict=True))
    ]
    while picks and picks[-1] == ":":
        picks.pop()
    return address(f"{reading}/value", as_="f32", minus=minus, name=value.name, slice_=",".join(picks) or None)


def widest_of(values: Sequence[Value], limit: int) -> int:
    """How many numbers along an axis values may have, so that they fill two thirds of the limit; as in `max`."""
    for widest in WIDEST:
        size = sum(math.prod(min(length, widest) for length in value.shape) for value in values)
        if size * 2 * 4 / 3 < limit * 2 / 3:
            return widest
    return WIDEST[-1]


def _smaller(answers: Answers, url: str, widest: int) -> Answer:
    """The answer, values in fewer bits and no wider than this, and weights small; exact what the page computes with."""
    path, query = urlsplit(url).path.rpartition("/")[2], dict(parse_qsl(urlsplit(url).query))
    config = answers.trace(url.split("/")[2]).model.config
    wall = {"as": "u8", "max": str(max(1, min(64, math.isqrt(WALL // (config.layers * config.heads)))))}
    fewer = {"value": {"as": "f16", "max": str(widest)}, "attention": {"as": "f16"} if "head" in query else wall}
    fewer |= {"weight": {"as": "u8", "max": str(PICTURE)}}
    if path == "value" and query.get("name") in ("theta", answers.trace(url.split("/")[2]).output):
        fewer["value"]["as"] = "f32"
    if path not in fewer:
        return answers.get(url)
    return answers.get(
        address(url.split("?")[0].removeprefix("/look/"), **fewer[path] | query | {"as": fewer[path]["as"]})
    )


def _packed(answer: Answer) -> dict[str, Any]:
    small = gzip.compress(answer.body, mtime=0)
    packed: dict[str, Any] = {"type": answer.type, "headers": answer.headers}
    if len(small) < 0.9 * len(answer.body):
        return packed | {"body": b64encode(small).decode(), "gzip": True}
    return packed | {"body": b64encode(answer.body).decode()}


def page_files() -> dict[str, bytes]:
    """The files of the page by their paths, as in `vendor/preact.js`."""
    files = sorted(file for file in PAGE.rglob("*") if file.suffix in SUFFIXES)
    return {file.relative_to(PAGE).as_posix(): file.read_bytes() for file in files}


def _html(content: dict[str, Any]) -> bytes:
    """index.html with the modules as data: URLs, the style and the answers in it."""
    files = page_files()
    whole = files["index.html"].decode()
    modules = {
        f"look/{name}": f"data:text/javascript;base64,{b64encode(body).decode()}"
        for name, body in files.items()
        if name.endswith(".js")
    }
    imports = f'<script type="importmap">{json.dumps({"imports": modules})}</script>'
    answers = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    for pattern, text in (
        (r'<script type="importmap">.*?</script>', imports),
        (r'<link rel="stylesheet"[^>]*>', f"<style>{files['style.css'].decode()}</style>"),
        (r'(?=<script type="module">)', f'<script type="application/json" id="answers">{answers}</script>\n'),
    ):
        whole, found = re.subn(pattern, lambda match, text=text: text, whole, count=1, flags=re.DOTALL)
        assert found, pattern
    return whole.encode("utf-8", "replace")
