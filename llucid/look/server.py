"""The page's server, on loopback, and the protocol between it and the page.

A *reading* is one forward pass: a model, a text and a list of changes. Its id is a hash of the three, so that the page
asks for each answer once. The browser keeps none of them (`Cache-Control: no-store`): the next server at this port may
have other weights or another llama.py. A page that was exported as one file has the same answers in a map from URL to
answer, so the page asks for both in the same way:

- A URL is its path, and its parameters sorted by name and written as `encodeURIComponent` writes them, none of them at
  its default: `/look/0f3a/attention?head=3&layer=2`. That string is the key of the export's map.
- The export is one element `<script type="application/json" id="answers">` with `{"answers": {URL: {"type": content
  type, "headers": {name: text}, "body": base64, "gzip": true if the body is compressed}}, "left_out": [sentence, …],
  "state": {…}}`. Instead of a body there may be `"same": URL`, whose body it is. A URL that is not there was left out
  for its size, and the page says so. There is no POST there.

Positions count tokens from 0 and may be negative, from the end. Layers count from 0. Numbers that are not finite are
null in JSON. Every error is JSON, `{"error": one line}`, with status 400 (bad request), 403 (foreign Host or Origin),
404 (no such thing), 413 (body too large) or 500.

**JSON**

GET /look                               what there is to look at
    {"models": [{"name", "parameters", "config": {…}, "has_tokenizer", "snapshot": step or null}, …],
     "first": id of the first reading, "tour": bool, "export": bool, "readings": [id, …] that an export holds}
    models[0] is the model; then the one it is compared with, and the snapshots of its training run, by step.
POST /look/read  {"text": …} or {"ids": […]} or {"of": id}, and "model": 0
                                        -> {"id"}; the text is encoded with BOS in front, as `llucid generate` does
    of a reading, the model reads the same ids, or the same text if its tokenizer has others for it.
    Both may name the "first" reading that the page knows: a server of another model or text answers 404.
POST /look/{id}/edit  {"changes": [change, …]}
                                        -> {"id"} of the same text with these changes (and not those of {id})
    change is one of {"kind": "ablate", "layer", "head": n, or "part": "attention" or "feed_forward", or neither},
    {"kind": "scale", "name", "factor"}, {"kind": "patch", "name", "from": id, "position": n or null},
    {"kind": "zero_frequency", "pair"}
POST /look/export  {"id", "beside": id of the reading beside it, or null, "urls": [URL, …], "state": {…}}
                                        -> text/html: the page as one file, with the answers to these URLs
GET /look/{id}                          the reading
    {"id", "model": 0, "parent": id without changes, or null, "changes": […], "text": or null, "scores": a value's name,
     "tokens": [{"id", "piece", "surprise", "rank", "entropy"}, …]}
    text is what was given, or else that of the ids. surprise is -ln p of the token given those before it, in nats, rank
    0 the likeliest; null for the first token.
    entropy is that of the distribution of what follows the token, in nats.
GET /look/{id}/next?position=-1&top=200     what may follow this position, the likeliest first
    {"tokens": [{"id", "piece", "logit", "p"}, …], "log_sum": ln Σ exp(logit) over all, "vocab": n}
    p is at temperature 1; for another, or top-k, top-p and min-p, the page works from the logits.
GET /look/source                        llama.py
    {"file", "text", "sites": [{"function", "kind", "text", "spans": [[line, column, end line, end column], …]}, …]}
    lines count from 1, columns (of characters) from 0, the end is exclusive. kind is "variable" (spans: the name, and
    the expression where it is the name's own), "parameter", "result" (of the function, spans: the return's expression),
    "expression", "use" (of a variable or parameter: what it holds there), or "weight".
GET /look/{id}/names                    every value, in the order in which they were computed
    {"values": [{"name", "shape", "axes", "site", "layer": n or null}, …],
     "seen": [[site, layer or null, value], …]}
    axes has a name or null for each axis. `seen` says for every site what stood there, as an index into values; a site
    that was passed several times in a layer (a norm) is there several times. The site of a weight, such as
    `weights.gate`, gives the weight's path: [site, layer, "blocks.3.feed_forward.gate"].
GET /look/{id}/summaries?layer=3        of every value of this layer; without layer, of those outside the blocks
    {name: {"min", "max", "mean", "std", "histogram": [20 counts from min to max]}, …}
GET /look/{id}/lens?top=5               the logit lens: each stream through the last norm and the output matrix
    {"ids": [layers+1][seq][top], "p": the same, "pieces": {id: piece}}
GET /look/{id}/stream                   norms of vectors, each [layers][seq], but stream [layers+1][seq]
    {"stream", "attention", "feed_forward"}
GET /look/{id}/parts?position=-1&token=123  where a logit comes from; token, if not given, is the likeliest there
    {"token", "piece", "logit", "parts": [{"name", "layer": n or null, "head": n or null, "value"}, …]}
    the parts add up to the logit: 1 + layers · (heads + 1) of them, and those that `Trace.attribution` names.
GET /look/{id}/heads                    scores of heads, each [layers][heads], or null if the text is too short
    {"previous", "first", "same", "induction", "copying"}
GET /look/{id}/clocks?head=3&key=4&layer=2&position=9
                                        a score before the softmax as a sum over RoPE's pairs
    {"score", "pairs": [{"frequency": radians per position, "value"}, …]}
GET /look/{id}/compare?with=id          two readings of the same tokens, token by token
    {"kl": [seq] of the other's next tokens from these, "cosine": [layers+1][seq] of the streams}
    null where the two have not the same size.

**Binary**: numbers in C order, little-endian; `x-shape` and `x-axes` are JSON lists, `x-dtype` is u8, f16 or f32,
which is sent for f16 where that does not hold the numbers. Of u8, a number is `x-offset` + byte · `x-scale`. Where an
axis was longer than `max`, each number is the one of the largest magnitude in a block of `x-pool` (a JSON list, one
length an axis). With `minus=id`, another reading, they are the differences from it, of which the blocks are made then.

GET /look/{id}/value?as=f32&max=512&name=blocks.2.attention.q&slice=0,:,3
    a value by its name; slice picks by index or keeps (:) each leading axis. Complex numbers gain a last axis of 2.
    `as` has no default here. An export may send fewer bits than `as` says; the headers tell.
GET /look/{id}/weight?as=f32&max=512&name=blocks.2.attention.query      likewise
GET /look/{id}/attention?as=u8&max=64               [layers heads seq seq], for the wall; max less if there are many
GET /look/{id}/attention?as=u8&head=3&layer=2&max=1024  [seq seq], one head

The page is /look/, and the files of page/ are beside it; / leads there.
"""

import json
import re
import sys
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from llucid.errors import LlucidError, one_line, shown
from llucid.look.answers import Answer, Answers, NotFound, as_json
from llucid.look.export import page, page_files

TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
LARGEST_BODY = 2**22
"""Bytes that a POST may have."""


class Server(ThreadingHTTPServer):
    """Serves the page and the answers on 127.0.0.1 until `shutdown`; `serve_forever` runs it."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answers: Answers, port: int = 0) -> None:
        """Port 0 is a free one. Raises LlucidError if the port is taken."""
        try:
            super().__init__(("127.0.0.1", port), partial(_Handler, answers))
        except (OSError, OverflowError) as error:
            raise LlucidError(f"port={port}: cannot be listened on ({error}); 0 takes a free one") from error

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores connections that a browser closed or left unfinished."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/look/"


class _Refused(Exception):
    """A request that is not answered, with its status."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "llucid", ""
    error_content_type, error_message_format = "application/json", '{"error": "%(explain)s"}'  # of other methods
    timeout = 60

    def __init__(self, answers: Answers, *rest: Any) -> None:
        self.answers = answers
        super().__init__(*rest)

    def do_GET(self) -> None:
        self.reply(self.got)

    def do_POST(self) -> None:
        self.reply(self.posted)

    def reply(self, answer: Any) -> None:
        """Sends what `answer` returns, or one line on what is wrong."""
        status = HTTPStatus.OK
        try:
            self.check_caller()
            try:
                sent: Answer = answer()
            except RecursionError as error:
                raise LlucidError("the request is nested too deeply") from error
        except Exception as error:
            status, text = _status(error), one_line(error) or type(error).__name__
            if isinstance(error, MemoryError) or re.search("allocate memory|out of memory", text):
                text = "there is not enough memory for this; a shorter text needs less"
            self.close_connection = True  # its body may not have been read
            sent = as_json({"error": text})
        if "Location" in sent.headers:
            status = HTTPStatus.FOUND
        self.send_response(status)
        for name, value in {
            "Content-Type": sent.type,
            "Content-Length": str(len(sent.body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "SAMEORIGIN",
            **sent.headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent.body)

    def check_caller(self) -> None:
        """Refuses requests of other sites' pages, also by another host name for this address (DNS rebinding)."""
        port = self.connection.getsockname()[1]
        own = {f"127.0.0.1:{port}", f"localhost:{port}", *(("127.0.0.1", "localhost") if port == 80 else ())}
        if self.headers.get("Host") not in own:
            raise _Refused(HTTPStatus.FORBIDDEN, f"only http://127.0.0.1:{port} is served")
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://") not in own:
            raise _Refused(HTTPStatus.FORBIDDEN, "only this page itself is answered")

    def got(self) -> Answer:
        path = self.path.partition("?")[0]
        if path == "/":
            return Answer("text/html", {"Location": "/look/"}, b"")
        name = path.removeprefix("/look/") or "index.html"
        if path.startswith("/look/") and "." in name:
            if (body := page_files().get(name)) is None:
                raise NotFound(f"{name}: the page has no such file")
            return Answer(f"{TYPES[Path(name).suffix]}; charset=utf-8", {}, body)
        return self.answers.get(self.path)

    def posted(self) -> Answer:
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "application/json" or not length.isdecimal():
            raise LlucidError("expected JSON (Content-Type: application/json) and its Content-Length")
        if len(length) > 20 or int(length) > LARGEST_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {LARGEST_BODY} bytes")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except ValueError as error:
            raise LlucidError("the request is not valid JSON") from error
        if not isinstance(body, dict):
            raise LlucidError("the request must be a JSON object")
        return exported(self.answers, body) if self.path == "/look/export" else self.answers.post(self.path, body)

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing: the terminal shows only the address."""


def _status(error: Exception) -> HTTPStatus:
    if isinstance(error, _Refused):
        return error.status
    if isinstance(error, NotFound):
        return HTTPStatus.NOT_FOUND
    return HTTPStatus.BAD_REQUEST if isinstance(error, LlucidError) else HTTPStatus.INTERNAL_SERVER_ERROR


def exported(answers: Answers, body: dict[str, Any]) -> Answer:
    """The page as a file, as the browser asks for it: with a reading, the one beside it, and these answers."""
    name, beside, urls, state = body.get("id"), body.get("beside"), body.get("urls", []), body.get("state", {})
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls) or not isinstance(state, dict):
        raise LlucidError("urls must be a list of strings, state an object")
    both = [str(each) for each in ([name] if beside is None else [beside, name])]
    for each in both:
        if each not in answers.readings:
            raise NotFound(f"{shown(each)}: there is no reading of this name; load the page again")
    with answers.lock:
        made = page(answers, both, urls=urls, state=state)
    return Answer("text/html", {"Content-Disposition": 'attachment; filename="look.html"'}, made.html)
