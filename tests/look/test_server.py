"""The page's server over a real socket: what it answers equals the trace, and it answers nobody else."""

import http.client
import json
import math
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from llucid import LlucidError
from llucid.llama import rope_frequencies
from llucid.look import Trace, ablate, head_scores, patch, scale, trace, zero_frequency
from llucid.look import answers as look_answers
from llucid.look.answers import Answers, Subject, address, pooled
from llucid.look.server import LARGEST_BODY, Server, _Handler, _Refused
from llucid.model import Model
from llucid.weights import initialise, named_leaves, parameter_count, quantize
from tests.configs import CONFIGS
from tests.look.test_trace import GROUPED, random_model, some_ids
from tests.waiting import LIMIT

MODEL, IDS = random_model(GROUPED), some_ids(GROUPED)
OTHER = random_model(CONFIGS["explicit head_dim"])


class Client:
    def __init__(self, server: Server) -> None:
        self.port = server.server_port

    def ask(self, method: str, url: str, body: object = None, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        if body is not None:
            headers = {"Content-Type": "application/json"} | headers
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, url, body, {name.replace("_", "-"): text for name, text in headers.items()})
        answer = connection.getresponse()
        answer.content = answer.read()
        connection.close()
        return answer

    def get(self, path: str, **parameters: object) -> Any:
        answer = self.ask("GET", address(path, **parameters))
        assert answer.status == 200, answer.content
        if answer.headers["Content-Type"] == "application/json":
            return json.loads(answer.content)
        dtype = {"u8": np.uint8, "f16": "<f2", "f32": "<f4"}[answer.headers["x-dtype"]]
        numbers = np.frombuffer(answer.content, dtype).reshape(json.loads(answer.headers["x-shape"])).astype(float)
        if dtype is np.uint8:
            numbers = float(answer.headers["x-offset"]) + numbers * float(answer.headers["x-scale"])
        return torch.tensor(numbers)

    def post(self, path: str, body: object) -> Any:
        answer = self.ask("POST", address(path), body)
        assert answer.status == 200, answer.content
        return json.loads(answer.content)["id"]

    def error(self, method: str, url: str, body: object = None, **headers: str) -> tuple[int, str]:
        answer = self.ask(method, url, body, **headers)
        assert answer.headers["Cache-Control"] == "no-store"
        error = json.loads(answer.content)["error"]
        assert "\n" not in error
        return answer.status, error


@pytest.fixture(scope="module")
def answers() -> Answers:
    return Answers([Subject("a", lambda: MODEL), Subject("b", lambda: OTHER)], IDS)


@pytest.fixture(scope="module")
def client(answers: Answers) -> Iterator[Client]:
    with Server(answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield Client(server)
        server.shutdown()


@pytest.fixture(scope="module")
def first(client: Client) -> str:
    return client.get("")["first"]


@pytest.fixture(scope="module")
def found() -> Trace:
    return trace(MODEL, IDS)


def test_what_there_is(client: Client) -> None:
    reported = client.get("")
    assert [model["name"] for model in reported["models"]] == ["a", "b"]
    assert reported["models"][0]["config"]["kv_heads"] == 2
    assert reported["models"][0]["parameters"] == parameter_count(GROUPED)
    assert reported["export"] is False


def test_source_and_names_lead_from_a_place_to_its_values(client: Client, first: str, found: Trace) -> None:
    source, names = client.get("source"), client.get(f"{first}/names")
    lines = source["text"].splitlines()
    at = {(site["kind"], site["text"]): number for number, site in enumerate(source["sites"])}
    p = at["variable", "p"]
    line, start, _, end = source["sites"][p]["spans"][1]
    assert lines[line - 1][start:end] == "scores.softmax(-1)"
    [value] = [names["values"][value] for site, layer, value in names["seen"] if (site, layer) == (p, 1)]
    assert value["name"] == "blocks.1.attention.p"
    assert value["axes"] == ["batch", "kv_heads", "group", "seq", "slots"]
    assert value["shape"] == list(found["blocks.1.attention.p"].shape)
    gate = at["weight", "weights.gate"]
    assert [gate, 1, "blocks.1.feed_forward.gate"] in names["seen"]


def test_tokens(client: Client, first: str, found: Trace) -> None:
    reported = client.get(first)
    assert (reported["id"], reported["parent"], reported["changes"], reported["text"]) == (
        first,
        None,
        [],
        MODEL.tokenizer.decode(IDS),
    )
    assert [token["id"] for token in reported["tokens"]] == IDS
    assert [token["piece"] for token in reported["tokens"]] == found.tokens
    assert reported["tokens"][0]["surprise"] is None
    p = found.logits.double().softmax(-1)
    for at, token in enumerate(reported["tokens"][1:]):
        assert token["surprise"] == pytest.approx(-math.log(p[at, IDS[at + 1]]), rel=1e-4)
        assert token["rank"] == p[at].argsort(descending=True).tolist().index(IDS[at + 1])
    assert reported["tokens"][-1]["entropy"] == pytest.approx(-float((p[-1] * p[-1].log()).sum()), rel=1e-4)


def test_next(client: Client, first: str, found: Trace) -> None:
    reported = client.get(f"{first}/next", position=3, top=7)
    best = found.logits[3].softmax(-1).topk(7)
    assert [token["id"] for token in reported["tokens"]] == best.indices.tolist()
    assert [token["p"] for token in reported["tokens"]] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert reported["log_sum"] == pytest.approx(float(found.logits[3].logsumexp(-1)), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "slice_", "index"),
    [
        ("blocks.1.attention.q", None, ()),
        ("blocks.1.attention.p", "0,1,-1", (0, 1, 1)),
        ("blocks.0.attention.scores", "0,:,1,5", (0, slice(None), 1, 5)),
        ("logits", "0,-1", (0, -1)),
        ("tokens", None, ()),
        ("blocks.0.attention.mask", "0,0", (0, 0)),
        ("blocks.0.feed_forward.linear(x, weights.up, weights.up_bias)", "0", (0,)),
    ],
)
def test_values(
    client: Client, first: str, found: Trace, name: str, slice_: str | None, index: tuple[Any, ...]
) -> None:
    value = client.get(f"{first}/value", name=name, as_="f32", slice_=slice_)
    torch.testing.assert_close(value.float(), found[name][index].float(), rtol=0, atol=0)
    half = client.get(f"{first}/value", name=name, as_="f16", slice_=slice_)
    torch.testing.assert_close(half.float(), found[name][index].half().float(), rtol=0, atol=0)


def test_what_float16_does_not_hold_is_sent_in_float32() -> None:
    """Ids of a large vocabulary, squares of the huge vectors that Llamas begin with, and very small numbers."""
    model = random_model(replace(GROUPED, vocab_size=70_001))
    model.weights.embedding[70_000] *= 1e4
    model.weights.embedding[1] *= 1e-7
    square = "blocks.0.attention_norm.x_wide.square()"
    for ids, in_half in (([70_000, 2049, 65_520], {}), ([1, 1], {"tokens"}), ([3, 2048], {"tokens", "x", square})):
        answers = Answers([Subject("a", lambda: model)], ids)
        for name in ("tokens", "x", square):
            answer = answers.value(answers.first, name, "f16")
            kind = answer.headers["x-dtype"]
            assert kind == ("f16" if name in in_half else "f32") or (name, ids[0]) == ("x", 70_000)
            found = torch.tensor(np.frombuffer(answer.body, {"f16": "<f2", "f32": "<f4"}[kind]).astype(np.float32))
            exact = answers.trace(answers.first)[name].flatten().float()
            largest = float(exact.abs().max())
            torch.testing.assert_close(
                found, exact, rtol=0 if name == "tokens" else 2**-11, atol=largest * 2**-11 / 100
            )


def test_values_in_bytes_and_complex_ones(client: Client, first: str, found: Trace) -> None:
    name = "blocks.0.attention.pairs"
    value = client.get(f"{first}/value", name=name, as_="f32")
    assert torch.equal(value.float(), torch.view_as_real(found[name]))
    gate = found["blocks.1.feed_forward.gate"]
    coarse = client.get(f"{first}/value", name="blocks.1.feed_forward.gate", as_="u8")
    assert (coarse - gate).abs().max() <= (gate.max() - gate.min()) / 255 / 2 * 1.001
    scores = client.get(f"{first}/value", name="blocks.1.attention.scores", as_="u8")  # half of them −∞
    assert scores.isfinite().all()


def test_pooling_keeps_the_number_of_the_largest_magnitude(client: Client, first: str, found: Trace) -> None:
    x = torch.tensor([[1.0, -5, 2, 0, 3], [0, 0, 4, -1, -7]])
    assert pooled(x, [1, 2]).tolist() == [[-5, 2, 3], [0, 4, -7]]
    assert pooled(x, [2, 3]).tolist() == [[-5, -7]]
    value = client.get(f"{first}/value", name="blocks.0", as_="f32", max_=5)
    assert value.shape == (1, 4, 5)  # of 12 positions 3 each, of 32 numbers 7
    assert value[0, 3, 4] in found["blocks.0"][0, 9:, 28:]
    assert abs(value[0, 3, 4]) == found["blocks.0"][0, 9:, 28:].abs().max()


def test_weights(client: Client, first: str) -> None:
    for name, leaf in named_leaves(MODEL.weights):
        assert torch.equal(client.get(f"{first}/weight", name=name, as_="f32").float(), leaf)
    small = client.get(f"{first}/weight", name="embedding", as_="f32", max_=16)
    assert torch.equal(small.float(), pooled(MODEL.weights.embedding, [4, 2]))


def test_quantised_weights_are_shown_as_what_they_stand_for() -> None:
    """Some rows at a time."""
    held = MODEL._replace(weights=quantize(MODEL.weights, 8))
    answers = Answers([Subject("a", lambda: held)], IDS)
    [query] = [leaf for name, leaf in named_leaves(held.weights) if name == "blocks.0.attention.query"]
    sent = answers.get(address(f"{answers.first}/weight", name="blocks.0.attention.query", as_="f32"))
    assert torch.equal(torch.tensor(np.frombuffer(sent.body, "<f4").reshape(32, 32)), query.dense())


def test_attention(client: Client, first: str, found: Trace) -> None:
    wall = client.get(f"{first}/attention")
    assert (wall - found.attention).abs().max() <= 0.5 / 255 * 1.001
    small = client.get(f"{first}/attention", max_=4)
    assert (small - pooled(found.attention, [1, 1, 3, 3])).abs().max() <= 0.5 / 255 * 1.001
    one = client.get(f"{first}/attention", as_="f32", head=3, layer=1)
    assert torch.equal(one.float(), found.attention[1, 3])


def test_lens_and_stream(client: Client, first: str, found: Trace) -> None:
    lens, reported = found.logit_lens(), client.get(f"{first}/lens")
    assert reported["ids"] == lens.ids.tolist()
    torch.testing.assert_close(torch.tensor(reported["p"]), lens.p, rtol=1e-5, atol=1e-6)
    assert reported["pieces"][str(reported["ids"][0][1][2])] == lens.tokens[0][1][2]
    norms = client.get(f"{first}/stream")
    torch.testing.assert_close(torch.tensor(norms["stream"]), found.stream.norm(dim=-1), rtol=1e-5, atol=0)
    written = found["blocks.1.feed_forward"][0].norm(dim=-1)
    torch.testing.assert_close(torch.tensor(norms["feed_forward"][1]), written, rtol=1e-5, atol=0)


def test_parts(client: Client, first: str, found: Trace) -> None:
    reported = client.get(f"{first}/parts", position=4)
    assert reported["token"] == int(found.logits[4].argmax())
    assert sum(part["value"] for part in reported["parts"]) == pytest.approx(reported["logit"], abs=1e-4)
    assert reported["parts"][0] == {
        "name": "embedding",
        "layer": None,
        "head": None,
        "value": reported["parts"][0]["value"],
    }
    heads = [(part["layer"], part["head"]) for part in reported["parts"] if part["head"] is not None]
    assert heads == [(layer, head) for layer in range(2) for head in range(4)]
    assert reported["parts"][-1]["name"] == "blocks.1.feed_forward"
    assert reported["parts"][-1]["layer"] == 1


def test_heads(client: Client) -> None:
    ids = [1, 2, 3, 1, 2, 3]
    reported, scores = client.get(f"{client.post('read', {'ids': ids})}/heads"), head_scores(trace(MODEL, ids))
    torch.testing.assert_close(torch.tensor(reported["induction"]), scores.induction, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.tensor(reported["copying"]), scores.copying, rtol=1e-4, atol=1e-6)
    assert client.get(f"{client.post('read', {'ids': [1, 2, 3]})}/heads")["induction"] is None


def test_clocks_add_up_to_the_score(client: Client, first: str, found: Trace) -> None:
    reported = client.get(f"{first}/clocks", layer=1, head=3, position=9, key=4)
    score = float(found["blocks.1.attention.scores"][0, 1, 1, 9, 4])
    assert reported["score"] == pytest.approx(score, rel=1e-4)
    assert sum(pair["value"] for pair in reported["pairs"]) == pytest.approx(score, rel=1e-4)
    assert [pair["frequency"] for pair in reported["pairs"]] == pytest.approx(found["theta"].tolist(), rel=1e-5)


@pytest.mark.parametrize("name", ["scaling of Llama 3.1", "theta of Llama 3"])
def test_the_frequencies_of_clocks_are_those_that_turn(name: str) -> None:
    config = CONFIGS[name]
    answers = Answers([Subject("m", lambda: Model(config, initialise(config), None))], [1, 2, 3])
    found = json.loads(answers.get(address(f"{answers.first}/clocks", layer=0, head=0, position=2, key=1)).body)
    expected = rope_frequencies(config, torch.empty(0)).tolist()
    assert [pair["frequency"] for pair in found["pairs"]] == pytest.approx(expected, rel=1e-5)


def test_summaries(client: Client, first: str, found: Trace) -> None:
    reported = client.get(f"{first}/summaries", layer=1)
    gate = found["blocks.1.feed_forward.gate"]
    assert reported["blocks.1.feed_forward.gate"]["mean"] == pytest.approx(float(gate.mean()), rel=1e-3)
    assert reported["blocks.1.feed_forward.gate"]["std"] == pytest.approx(float(gate.std(correction=0)), rel=1e-3)
    counts, _ = torch.histogram(gate.flatten(), 20)
    assert sum(reported["blocks.1.feed_forward.gate"]["histogram"]) == gate.numel()
    assert reported["blocks.1.feed_forward.gate"]["histogram"] == pytest.approx(
        counts.tolist(), abs=1
    )  # rounding at edges
    assert "logits" in client.get(f"{first}/summaries")


@pytest.mark.parametrize(
    ("reported", "change"),
    [
        ({"kind": "ablate", "layer": 1, "head": 2}, lambda other: ablate(1, head=2)),
        ({"kind": "ablate", "layer": 0, "part": "feed_forward"}, lambda other: ablate(0, part="feed_forward")),
        ({"kind": "ablate", "layer": 0, "head": None, "part": None}, lambda other: ablate(0)),
        ({"kind": "scale", "name": "blocks.0.attention", "factor": 3}, lambda other: scale("blocks.0.attention", 3.0)),
        ({"kind": "zero_frequency", "pair": 1}, lambda other: zero_frequency(1)),
        ({"kind": "patch", "name": "blocks.0", "position": -1}, lambda other: patch("blocks.0", other, position=-1)),
    ],
)
def test_changes(client: Client, first: str, reported: dict[str, Any], change: Any) -> None:
    other = [*IDS[:-1], 0]
    if reported["kind"] == "patch":
        reported = reported | {"from": client.post("read", {"ids": other})}
    edited = client.post(f"{first}/edit", {"changes": [reported]})
    reading = client.get(edited)
    assert (reading["parent"], reading["changes"]) == (first, [reported])
    expected = trace(MODEL, IDS, change=change(trace(MODEL, other)))
    assert torch.equal(client.get(f"{edited}/value", name="logits", as_="f32").float()[0], expected.logits)
    assert not torch.equal(expected.logits, trace(MODEL, IDS).logits)
    assert client.post(f"{first}/edit", {"changes": [reported]}) == edited


def test_several_changes_and_forgotten_traces(client: Client, first: str) -> None:
    """More readings than traces are held: the first is read once more."""
    changes = [{"kind": "ablate", "layer": 0, "head": head} for head in (0, 3)]
    expected = trace(MODEL, IDS, change=ablate(0, head=[0, 3])).logits[-1].softmax(-1).topk(3)
    edited = client.post(f"{first}/edit", {"changes": changes})
    for token in range(10):
        client.post("read", {"ids": [token, 1]})
    reported = client.get(f"{edited}/next", top=3)
    assert [token["p"] for token in reported["tokens"]] == pytest.approx(expected.values.tolist(), rel=1e-4)
    assert client.get(first)["tokens"][3]["id"] == IDS[3]


def test_large_traces_are_given_up_and_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """But the newest two, which may be compared."""
    answers = Answers([Subject("a", lambda: MODEL)], IDS)
    size = answers.trace(answers.first).nbytes
    assert size > len(IDS) * (GROUPED.vocab_size + GROUPED.layers * GROUPED.dim) * 4
    monkeypatch.setattr(look_answers, "HELD_BYTES", int(3.5 * size))
    names = [
        answers.first,
        *(answers.edit(answers.first, [{"kind": "ablate", "layer": 0, "head": at}]) for at in (0, 1, 2)),
    ]
    held = answers._traces  # pyright: ignore[reportPrivateUsage]
    assert [*held] == names[-3:]
    monkeypatch.setattr(look_answers, "HELD_BYTES", 0)
    before = answers.next(names[0])
    assert [*held] == [names[-1], names[0]]
    assert before == Answers([Subject("a", lambda: MODEL)], IDS).next(names[0])


def test_another_model_is_compared(client: Client, first: str) -> None:
    other = client.post("read", {"ids": IDS, "model": 1})
    reported = client.get(f"{first}/compare", with_=other)
    ours, theirs = trace(MODEL, IDS), trace(OTHER, IDS)
    p, q = (found.logits.double().softmax(-1) for found in (ours, theirs))
    assert reported["kl"] == pytest.approx((p * (p / q).log()).sum(-1).tolist(), rel=1e-3)
    cosine = torch.nn.functional.cosine_similarity(ours.stream, theirs.stream, dim=-1)
    torch.testing.assert_close(torch.tensor(reported["cosine"]), cosine, rtol=1e-4, atol=1e-5)
    assert client.get(f"{first}/compare", with_=first)["kl"] == pytest.approx([0] * len(IDS), abs=1e-5)


def test_text_is_encoded_as_the_model_does(client: Client) -> None:
    reported = client.get(client.post("read", {"text": "0A<"}))
    assert reported["text"] == "0A<"
    assert [token["piece"] for token in reported["tokens"]] == ["0", "A", "<"]


# ------------------------------------------------------------------------------------------------ caching


def test_a_browser_keeps_no_answer(client: Client, first: str) -> None:
    """The next server at this port may have other weights."""
    for url in (address(f"{first}/heads"), "/look", "/look/app.js"):
        assert client.ask("GET", url).headers["Cache-Control"] == "no-store"


def test_other_weights_give_other_ids() -> None:
    changed = random_model(GROUPED)
    changed.weights.blocks[1].attention.query[0, 5] += 1
    ids = {Answers([Subject("a", lambda model=model: model)], IDS).first for model in (MODEL, changed)}
    assert len(ids) == 2
    assert ids & {Answers([Subject("z", lambda: random_model(GROUPED))], IDS).first}


def test_the_wall_of_very_many_heads_has_coarser_maps() -> None:
    config = replace(MODEL.config, layers=80, heads=64, kv_heads=1, head_dim=2, dim=4, ffn_dim=4, context=64)
    deep = Model(config, initialise(config, 1), None)
    answers = Answers([Subject("70B", lambda: deep)], [0] * 64)
    answer = answers.get(f"/look/{answers.first}/attention")
    assert json.loads(answer.headers["x-shape"]) == [80, 64, 32, 32]  # 64 x 64 would be more than MOST_NUMBERS
    assert json.loads(answer.headers["x-pool"]) == [1, 1, 2, 2]


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example:{port}"}, 403),  # DNS rebinding: the name leads here, but the browser sends it
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Host": "127.0.0.1:{port}", "Origin": "http://evil.example"}, 403),
        ({"Host": "127.0.0.1:{port}", "Origin": "null"}, 403),
        ({"Host": "localhost:{port}", "Origin": "http://localhost:{port}"}, 200),
        ({"Host": "127.0.0.1:{port}"}, 200),
    ],
)
def test_only_the_own_page_is_answered(client: Client, headers: dict[str, str], status: int) -> None:
    headers = {name: text.format(port=client.port) for name, text in headers.items()}
    answer = client.ask("GET", "/look", **headers)
    assert answer.status == status
    if status == 403:
        assert re.fullmatch(r"only (http://127.0.0.1:\d+ is served|this page itself is answered)", error_in(answer))
    assert client.ask("POST", "/look/read", {"ids": [1]}, **headers).status == status


@pytest.mark.parametrize(
    ("port", "headers", "answered"),
    [
        (80, {"Host": "127.0.0.1", "Origin": "http://127.0.0.1"}, True),
        (80, {"Host": "localhost"}, True),
        (80, {"Host": "evil.example"}, False),
        (8000, {"Host": "127.0.0.1"}, False),
        (8000, {"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1"}, False),
    ],
)
def test_a_browser_leaves_out_port_80(port: int, headers: dict[str, str], answered: bool) -> None:
    """Only root may listen on it in most systems, so no real server is asked."""
    connection = SimpleNamespace(getsockname=lambda: ("127.0.0.1", port))
    check = partial(_Handler.check_caller, SimpleNamespace(connection=connection, headers=headers))
    if answered:
        check()
    else:
        with pytest.raises(_Refused):
            check()


def test_a_page_of_an_earlier_server_is_told_to_load_again(client: Client, first: str) -> None:
    assert client.ask("POST", "/look/read", {"ids": [1], "first": first}).status == 200
    message = "the server was started again, with another model or text; load the page again"
    assert client.error("POST", "/look/read", {"ids": [1], "first": "0f3a"}) == (404, message)


@pytest.mark.parametrize("method", ["PUT", "OPTIONS", "G\"'<>\\ET"])
def test_other_methods_are_refused_in_json(client: Client, method: str) -> None:
    answer = client.ask(method, "/look")
    assert (answer.status, error_in(answer)) == (501, "Server does not support this operation")
    assert answer.headers["Content-Type"] == "application/json"


def error_in(answer: http.client.HTTPResponse) -> str:
    return json.loads(answer.content)["error"]


def test_only_loopback_is_listened_on(answers: Answers) -> None:
    with Server(answers) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        with pytest.raises(LlucidError, match=rf"port={server.server_port}: cannot be listened on"):
            Server(answers, server.server_port)
    with pytest.raises(LlucidError, match="port=70000"):
        Server(answers, 70_000)


@pytest.mark.parametrize(
    ("url", "status", "message"),
    [
        ("/", 302, None),
        ("/other", 404, "no such address"),
        ("other", 404, "other: there is no such address"),
        ("//[/x", 404, "no such address"),
        ("/look/0123456789abcdef", 404, "there is no reading"),
        ("/look/../../etc/passwd", 404, "such file|such address|no reading"),
        ("/look/..%2fserver.py", 404, "no such file"),
        ("/look/{id}/nothing", 404, "no such address"),
        ("/look/{id}/heads/more", 404, "no such address"),
        ("/look/{id}/source", 404, "no such address"),
        ("/look/{id}/next?position=12", 400, "position=12: there are 0 to 11"),
        ("/look/{id}/next?position=1.5", 400, 'position="1.5": must be a whole number'),
        ("/look/{id}/next?top=0", 400, "top=0: must be at least 1"),
        ("/look/{id}/next?bottom=0", 400, "bottom=: unknown here; expected position, top"),
        ("/look/{id}/value?as=f32", 400, "name=: missing"),
        ("/look/{id}/value?as=f64&name=logits", 400, 'as="f64": expected one of'),
        ("/look/{id}/value?as=f32&name=logit", 400, "no value of this name; near are logits"),
        ("/look/{id}/value?as=f32&name=logits&slice=0,x", 400, "slice=0,x: expected at most 3"),
        ("/look/{id}/value?as=f32&name=logits&slice=0,0,0,0", 400, "expected at most 3"),
        ("/look/{id}/value?as=f32&name=logits&slice=3", 400, "slice=3: there are 0 to 0"),
        ("/look/{id}/value?as=f32&name=logits&max=0", 400, "max=0"),
        ("/look/{id}/weight?as=f32&name=blocks.0.attention.q", 404, "no weights of this name"),
        ("/look/{id}/attention?layer=1", 400, "give layer and head"),
        ("/look/{id}/attention?head=4&layer=1", 400, "head=4: there are 0 to 3"),
        ("/look/{id}/parts?token=50", 400, "token=50"),
        ("/look/{id}/clocks?head=0&key=0&layer=9&position=0", 400, "layer=9: there are 0 to 1"),
        ("/look/{id}/summaries?layer=2", 400, "layer=2"),
        ("/look/{id}/lens?top=-1", 400, "top=-1: must be at least 1"),
        ("/look/{id}/compare?with=x", 404, "no reading"),
    ],
)
def test_bad_addresses(client: Client, first: str, url: str, status: int, message: str | None) -> None:
    url = url.replace("{id}", first)
    if message is None:
        assert client.ask("GET", url).status == status
        return
    found = client.error("GET", url)
    assert found[0] == status
    with pytest.raises(LlucidError, match=message):
        raise LlucidError(found[1])


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("read", {}, "give text, ids or of, and only one of them"),
        ("read", {"text": "0", "ids": [1]}, "give text, ids or of, and only one of them"),
        ("read", {"text": ""}, "the text is empty"),
        ("read", {"text": "~"}, "'~'"),
        ("read", {"ids": [1] * 65}, "65 tokens, but the model's context is 64"),
        ("read", {"ids": ["1"]}, "ids a list of whole numbers"),
        ("read", {"ids": [1], "model": 7}, "model=7: there are models 0 to 1"),
        ("read", {"ids": [1], "model": "b"}, 'model="b": must be a whole number'),
        ("read", [1], "must be a JSON object"),
        ("read", b"{", "not valid JSON"),
        ("read", b"[" * 100_000, "nested too deeply"),
        ("{id}/edit", {"changes": [{"kind": []}]}, "kind is one of ablate, scale"),
        ("{id}/edit", {"changes": [{"kind": "scale", "name": "logits", "factor": 10**309}]}, "factor must be finite"),
        ("{id}/edit", {"changes": {}}, "changes must be a list of objects"),
        ("{id}/edit", {"changes": [{"kind": "zero_frequency", "pair": 0}] * 1001}, "changes: at most 1000"),
        ("{id}/edit", {"changes": [{}]}, "kind is one of ablate, scale"),
        ("{id}/edit", {"changes": [{"kind": "ablate"}]}, "layer is missing"),
        ("{id}/edit", {"changes": [{"kind": "ablate", "layer": "1"}]}, "layer must be of type int"),
        ("{id}/edit", {"changes": [{"kind": "ablate", "layer": 1, "part": "x"}]}, "part is attention or feed_forward"),
        ("{id}/edit", {"changes": [{"kind": "ablate", "layer": 1, "head": 9}]}, "head=9"),
        ("{id}/edit", {"changes": [{"kind": "scale", "name": "x", "factor": True}]}, "factor must be of type float"),
        ("{id}/edit", {"changes": [{"kind": "scale", "name": "nothing", "factor": 1}]}, "no value of this name"),
        ("{id}/edit", {"changes": [{"kind": "zero_frequency", "pair": 4}]}, "pair=4"),
        ("{id}/edit", {"changes": [{"kind": "patch", "name": "x", "from": "y"}]}, "there is no reading"),
        ("0123456789abcdef/edit", {"changes": []}, "there is no reading"),
        ("nothing", {}, "no such address"),
        ("export", {"id": "{id}", "urls": ["/look/{id}/value?path=x"]}, "path=: unknown here"),
    ],
)
def test_bad_questions(client: Client, first: str, path: str, body: object, message: str) -> None:
    if isinstance(body, dict):
        body = json.dumps(body).replace("{id}", first).encode()
    status, error = client.error("POST", address(path.replace("{id}", first)), body)
    assert status in (400, 404)
    with pytest.raises(LlucidError, match=message):
        raise LlucidError(error)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("read", '{"text": "0", "model": [[]]}'),
        ("{id}/edit", '{"changes": [{"kind": [[]]}]}'),
        ("{id}/edit", '{"changes": [{"kind": "ablate", "layer": [[]]}]}'),
        ("export", '{"id": [[]]}'),
        ("export", '{"id": "{id}", "urls": [[]], "state": {}}'),
    ],
)
def test_nested_questions(client: Client, first: str, path: str, body: str) -> None:
    """However deep, near Python's recursion limit too."""
    for depth in (*range(2, 900, 100), *range(900, 1000, 7), 100_000):
        nested = body.replace("{id}", first).replace("[[]]", "[" * depth + "]" * depth).encode()
        assert client.error("POST", address(path.replace("{id}", first)), nested)[0] in (400, 404)


def test_bodies_of_other_kinds_and_sizes(client: Client, first: str) -> None:
    assert client.error("POST", "/look/read", b'{"ids": [1]}', Content_Type="text/plain")[0] == 400
    status, _ = client.error("POST", "/look/read", b"", Content_Length=str(LARGEST_BODY + 1))
    assert status == 413
    assert client.error("POST", "/look/read", b"", Content_Length="9" * 5000)[0] == 413
    assert client.error("POST", "read", {"ids": [1]})[0] == 404
    answer = client.ask("POST", "/look/export", {"id": first, "state": {"text": "\ud800"}})
    assert answer.status == 200
    assert b"</html>" in answer.content
    shorter = client.post("read", {"ids": [1, 2]})
    status, error = client.error("POST", "/look/export", {"id": first, "beside": shorter})
    assert (status, "readings of different tokens" in error) == (400, True)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you …")])
def test_a_full_memory_is_said_in_one_line(
    client: Client, answers: Answers, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(answers, "trace", full)
    reported = client.error("GET", address(f"{answers.first}/stream"))
    assert reported == (500, "there is not enough memory for this; a shorter text needs less")


def test_a_client_that_goes_away_leaves_no_trace(client: Client, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", client.port)) as gone:
        gone.sendall(b"GET /look HTTP/1.1\r\nHost:")
    assert client.ask("GET", "/look").status == 200
    assert capfd.readouterr().err == ""
