"""The page as one file, as a browser reads it: what is in it, what is not, and that nothing in it is code."""

import gzip
import html
import json
import re
import sys
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
import torch

import llucid
from llucid import LlucidError
from llucid.chat import STORYTELLER
from llucid.corpora.fables import write
from llucid.look import Trace, ablate, export, head_scores, trace
from llucid.look.answers import Answers, Subject, address, pooled
from llucid.look.export import PICTURES, page, page_files, widest_of
from llucid.model import Model
from llucid.weights import named_leaves, tree_map
from tests.look.test_trace import GROUPED, random_model, some_ids

MODEL, IDS = random_model(GROUPED), some_ids(GROUPED)


class File:
    """What a browser finds in an exported file."""

    def __init__(self, text: str) -> None:
        found = re.search(r'<script type="application/json" id="answers">(.*?)</script>', text, re.DOTALL)
        reported = json.loads(found[1])
        self.text, self.answers, self.left_out, self.state = (
            text,
            reported["answers"],
            reported["left_out"],
            reported["state"],
        )

    def body(self, url: str) -> bytes:
        kept = self.answers[self.answers[url].get("same", url)]
        body = b64decode(kept["body"])
        return gzip.decompress(body) if kept.get("gzip") else body

    def json(self, url: str) -> Any:
        return json.loads(self.body(url))

    def numbers(self, url: str) -> torch.Tensor:
        headers = self.answers[url]["headers"]
        dtype = {"u8": np.uint8, "f16": "<f2", "f32": "<f4"}[headers["x-dtype"]]
        x = np.frombuffer(self.body(url), dtype).reshape(json.loads(headers["x-shape"])).astype(np.float32)
        return torch.tensor(x * float(headers.get("x-scale", 1)) + float(headers.get("x-offset", 0)))


@pytest.fixture(scope="module")
def found() -> Trace:
    return trace(MODEL, IDS)


@pytest.fixture(scope="module")
def file(found: Trace, tmp_path_factory: pytest.TempPathFactory) -> File:
    path = tmp_path_factory.mktemp("export") / "look.html"
    assert export(found, path) == [PICTURES]
    return File(path.read_text(encoding="utf-8"))


def test_the_file_has_the_answers_of_the_trace(file: File, found: Trace) -> None:
    reported = file.json("/look")
    assert reported["export"] is True
    assert reported["readings"] == [reported["first"]]
    reading = reported["first"]
    assert [token["id"] for token in file.json(address(reading))["tokens"]] == IDS
    assert file.json("/look/source")["text"].startswith('"""The Llama as its equations')
    for position in range(len(IDS)):
        best = file.json(address(f"{reading}/next", position=position))["tokens"][0]
        assert best["id"] == int(found.logits[position].argmax())
    one = file.numbers(address(f"{reading}/attention", as_="f32", head=3, layer=1))
    torch.testing.assert_close(one, found.attention[1, 3], rtol=1e-3, atol=1e-6)
    exact = file.numbers(
        address(f"{reading}/value", as_="f32", max_=50, name="logits", slice_="0,-1".replace("-1", "11"))
    )
    assert torch.equal(exact, found.logits[11])


def test_every_value_is_in_the_file_head_by_head(file: File, found: Trace) -> None:
    """As the page cuts it: of the batch the first, of heads one."""
    heads: dict[str, int] = {}
    for url in file.answers:
        if "/value?" in url and "max=" not in url:
            query = dict(parse_qsl(urlsplit(url).query))
            index = [slice(None) if each == ":" else int(each) for each in query.get("slice", "").split(",") if each]
            value = found[query["name"]]
            value = torch.view_as_real(value) if value.is_complex() else value
            torch.testing.assert_close(file.numbers(url), value[tuple(index)].float(), rtol=1e-3, atol=1e-6)
            heads[query["name"]] = heads.get(query["name"], 0) + 1
    assert set(heads) == {value.name for value in found.names(expressions=True)}
    assert heads["blocks.0.attention.p"] == heads["blocks.1.attention.attend.q.2"] == 4
    assert heads["blocks.0.attention.attend.k.2"] == 2
    assert heads["blocks.0.attention"] == 1


def test_it_needs_nothing_but_itself(file: File) -> None:
    """Every module is in the import map, nothing is fetched, and nothing that is shown can end the script."""
    imports = json.loads(re.search(r'<script type="importmap">(.*?)</script>', file.text)[1])["imports"]
    assert set(imports) == {f"look/{name}" for name in page_files() if name.endswith(".js")}
    assert all(url.startswith("data:text/javascript;base64,") for url in imports.values())
    assert not re.search(r'(src|href)="(?!data:)', file.text)
    assert len(re.findall("</script>", file.text)) == 3


def test_text_that_looks_like_code_stays_text() -> None:
    tokenizer = llucid.load(STORYTELLER, device="cpu").tokenizer
    config = llucid.Config(**vars(GROUPED) | {"vocab_size": tokenizer.vocab_size})
    model = random_model(config)._replace(tokenizer=tokenizer)
    text = '</script><script>alert("\x1b[31m\x00")</script><!--'
    answers = Answers([Subject("</script>", lambda: model)], text)
    made = File(page(answers, [answers.first], state={"text": text}).html.decode())
    assert made.json(address(answers.first))["text"] == made.state["text"] == text
    assert len(re.findall("<script", made.text)) == len(re.findall("</script>", made.text)) == 3


def test_changes_and_their_origin_are_exported() -> None:
    answers = Answers([Subject("a", lambda: MODEL)], IDS)
    edited = answers.edit(answers.first, [{"kind": "ablate", "layer": 0, "head": 1}])
    asked = [address(f"{answers.first}/compare", with_=edited), "/look/elsewhere"]
    made = page(answers, [answers.first, edited], urls=asked, state={"layer": 1})
    file = File(made.html.decode())
    assert file.state == {"layer": 1}
    assert file.json("/look")["readings"] == [answers.first, edited]
    assert max(file.json(asked[0])["kl"]) > 1e-3
    assert asked[1] not in file.answers
    assert address(f"{edited}/heads") in file.answers


def test_a_trace_with_changes_in_code_says_what_was_changed(tmp_path: Path) -> None:
    found = trace(MODEL, IDS, change=ablate(0, part="attention"))
    assert export(found, tmp_path / "a.html") == [PICTURES]
    file = File((tmp_path / "a.html").read_text(encoding="utf-8"))
    reported = file.json(address(file.json("/look")["first"]))
    assert reported["changes"] == [{"kind": "code", "name": "blocks.0.attention"}]


def test_answers_that_do_not_fit_are_left_out_and_reported() -> None:
    answers = Answers([Subject("a", lambda: MODEL)], IDS)
    whole = page(answers, [answers.first])
    limit = len(whole.html) * 2 // 3
    cut = page(answers, [answers.first], limit=limit)
    assert len(cut.html) <= limit
    assert len(cut.html) > 0.9 * limit
    assert any(re.fullmatch(r"\d+ of \d+ values of expressions are left out.*", line) for line in cut.left_out)
    assert File(cut.html.decode()).left_out == cut.left_out
    assert whole.left_out == [PICTURES]
    with pytest.raises(LlucidError, match="20000 bytes do not hold the page itself"):
        page(answers, [answers.first], limit=20_000)


@pytest.mark.parametrize("state", [{}, {"layer": 7, "head": 2, "token": 40, "key": 3}], ids=["command", "button"])
def test_a_full_file_has_what_it_opens_with(state: dict[str, Any]) -> None:
    """Maps of 64 heads alone are more than the file holds, also those that the browser asked for meanwhile."""
    config = replace(GROUPED, layers=8, heads=8, kv_heads=2, head_dim=8, context=64)
    ids = torch.randint(3, config.vocab_size, (32,), generator=torch.Generator().manual_seed(1)).tolist() * 2
    answers = Answers([Subject("a", lambda: random_model(config))], ids)
    one, found = answers.first, answers.trace(answers.first)
    scores = head_scores(found).induction
    assert scores is not None
    layer, head = (7, 2) if state else divmod(int(scores.argmax()), 8)
    place, key = (40, 3) if state else (63, int(found.attention[layer, head, 63].argmax()))
    maps = [address(f"{one}/attention", as_="f32", head=n % 8, layer=n // 8) for n in range(64)]
    file = File(page(answers, [one], urls=maps if state else (), state=state, limit=700_000).html.decode())
    assert maps[-1 if state else 0] not in file.answers or maps[20] not in file.answers
    for url in (
        *(address(f"{one}/{name}") for name in ("names", "heads", "attention", "lens", "stream", "summaries")),
        maps[8 * layer + head],
        address(f"{one}/next", position=place),
        address(f"{one}/parts", position=place),
        address(f"{one}/clocks", head=head, key=key, layer=layer, position=place),
        address(f"{one}/summaries", layer=layer),
        address(f"{one}/value", as_="f32", name=f"blocks.{layer}.attention.p", slice_=f"0,{head // 4},{head % 4}"),
        address(f"{one}/value", as_="f32", max_=50, name="logits", slice_=f"0,{place}"),
    ):
        assert url in file.answers


def test_values_of_wide_models_are_smaller(found: Trace) -> None:
    values = found.names()
    assert [widest_of(values, limit) for limit in (5_000_000, 150_000, 60_000, 1)] == [512, 512, 32, 32]
    answers = Answers([Subject("a", lambda: MODEL)], IDS)
    cut = page(answers, [answers.first], state={"layer": 0}, limit=317_000)
    assert cut.left_out[0] == "Values wider than 32 numbers are shown smaller, each number the largest of a block."
    file = File(cut.html.decode())
    name = "blocks.0.feed_forward.gate"
    gate = file.numbers(address(f"{answers.first}/value", as_="f32", name=name, slice_="0"))
    torch.testing.assert_close(gate, pooled(found[name][0], [1, 2]), rtol=1e-3, atol=1e-6)


def test_differences_are_taken_before_the_largest_of_a_block_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """And before rounding to 8 bits. The largest numbers of two blocks stand at different places in them."""
    monkeypatch.setattr(sys.modules[page.__module__], "WIDEST", (32,))
    other = Model(MODEL.config, tree_map(lambda leaf: leaf + 0.05 * leaf.roll(1, 0), MODEL.weights), MODEL.tokenizer)
    answers = Answers([Subject("a", lambda: other), Subject("b", lambda: MODEL)], IDS)
    one, two = answers.first, answers.read(1, IDS)
    file = File(page(answers, [one, two]).html.decode())
    ours, theirs = answers.trace(two), answers.trace(one)
    name, key = "blocks.0.feed_forward.gate", "blocks.0.feed_forward.up"
    apart = file.numbers(address(f"{two}/value", as_="f32", minus=one, name=name, slice_="0"))
    right = pooled((ours[name] - theirs[name])[0], [1, 2])
    torch.testing.assert_close(apart, right, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(apart, pooled(ours[name][0], [1, 2]) - pooled(theirs[name][0], [1, 2]), atol=1e-3)
    weights = [dict(named_leaves(model.weights))[key] for model in (MODEL, other)]
    apart = file.numbers(address(f"{two}/weight", as_="f32", minus=one, name=key))
    right = weights[0] - weights[1]
    torch.testing.assert_close(apart, right, rtol=0, atol=float(right.max() - right.min()) / 255)
    wall = file.numbers(address(f"{two}/attention", minus=one))
    right = torch.stack([ours.attention_of(0) - theirs.attention_of(0)])
    torch.testing.assert_close(wall[:1], right, rtol=0, atol=float(wall.max() - wall.min()) / 255)


def test_a_text_of_64_tokens_fits_into_the_size(storyteller_trace: Trace) -> None:
    answers = Answers([Subject("a", lambda: storyteller_trace.model)], storyteller_trace)
    made = page(answers, [answers.first])
    assert len(made.html) <= 5_000_000
    says = "Values wider than 64 numbers are shown smaller, each number the largest of a block."
    assert made.left_out == [says, PICTURES]


@pytest.fixture(scope="module")
def storyteller_trace() -> Trace:
    model: Model = llucid.load(STORYTELLER, device="cpu")
    return trace(model, model.tokenizer.encode(write(2000))[:64])


def test_a_notebook_shows_the_page_in_a_frame(found: Trace) -> None:
    assert trace(MODEL, IDS, only=["logits"])._repr_html_() is None
    [source] = re.findall(r'^<iframe srcdoc="([^"]*)"', found._repr_html_())
    assert File(html.unescape(source)).json("/look")["export"] is True


def test_no_partial_file_stays(found: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.html").write_text("old")
    with pytest.raises(LlucidError, match="bytes do not hold"):
        export(found, tmp_path / "a.html", limit=1)
    with pytest.raises(LlucidError, match="not kept"):
        export(trace(MODEL, IDS, only=["logits"]), tmp_path / "a.html")
    with pytest.raises(OSError, match="missing"):
        export(found, tmp_path / "missing" / "a.html")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]
