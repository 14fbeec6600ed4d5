"""The page of llucid look in a real browser: Chromium, driven by Playwright."""

import math
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llucid
from llucid.chat import STORYTELLER
from llucid.generation import sampling
from llucid.look import Trace, ablate, export, head_scores, patch, trace
from llucid.look.answers import Answers, Subject
from llucid.look.export import page as exported
from llucid.look.server import Server
from llucid.tokenizers.characters import Characters
from llucid.weights import initialise
from tests.waiting import LIMIT

CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium, or set CHROMIUM")
sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright here: pip install playwright")

TEXT = "Once upon a time a fox met a goat by the well. Once upon a time a fox met a goat by the well."
PICTURES = Path(__file__).parents[2] / "build" / "look"
"""Where the tests leave a picture of each pane."""


@pytest.fixture(scope="module")
def model() -> llucid.Model:
    return llucid.load(STORYTELLER)


@pytest.fixture(scope="module")
def seen(model: llucid.Model) -> Trace:
    return trace(model, TEXT)


@contextmanager
def serving(answers: Answers) -> Iterator[str]:
    server = Server(answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def answers(model: llucid.Model) -> Answers:
    return Answers([Subject("the storyteller", lambda: model)], TEXT)


@pytest.fixture(scope="module")
def url(answers: Answers) -> Iterator[str]:
    with serving(answers) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, url: str, expected: str = "nothing", **options: Any) -> Iterator[Any]:
    """The page; when it is done, it must have had no error but the expected one, and asked no other host."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 720}, "color_scheme": "light"} | options)
    page = context.new_page()
    page.set_default_timeout(1000 * LIMIT)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    host = url.split("/look/")[0]
    own = (host, "data:", "blob:") if url.startswith("http") else (url, "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(own) else problems.append(f"asks {request.url}"))
    try:
        page.goto(url)
        page.wait_for_selector("html[data-ready]", state="attached")
        yield page
        assert [problem for problem in problems if expected not in problem] == []
    finally:
        context.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    with opened(browser, url) as page:
        yield page


def until(page: Any, condition: str) -> None:
    """Waits until this JavaScript is true; `wait_for_function` would need eval, which the page does not allow."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never true: {condition}")


def settled(page: Any) -> None:
    """Waits until nothing is under way any more."""
    quiet = "!document.querySelector('.status').textContent.startsWith('reading') && !document.querySelector('.stale')"
    for _ in range(3):  # an answer may make the page ask for the next one
        until(page, f"{quiet} && !document.documentElement.hasAttribute('data-waiting')")
        page.wait_for_timeout(50)


def choose_token(page: Any, place: int) -> None:
    page.click(f'[data-place="{place}"]')
    page.wait_for_selector(f'[data-place="{place}"][aria-selected="true"]')
    settled(page)


def bars(page: Any) -> dict[int, float]:
    """Probability by token, as the distribution shows it."""
    rows = page.eval_on_selector_all(".bars .bar", "rows => rows.map(row => [+row.dataset.id, +row.dataset.p])")
    return {int(token): p for token, p in rows}


def tip(page: Any, selector: str, x: float, y: float) -> str:
    """The description of a point of a picture, given as shares of its width and height."""
    box = page.locator(selector).bounding_box()
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.wait_for_selector(".tip:not([hidden])")
    return page.inner_text(".tip")


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("%", "").replace(" ", ""))


def test_every_picture_has_a_question_a_sentence_and_a_text_alternative(page: Any) -> None:
    settled(page)
    page.wait_for_selector(".inspector .map")
    titles = page.locator(".pane h2, .pane h3").all_inner_texts()
    assert len(titles) >= 8
    assert [title for title in titles if not title.endswith("?")] == []
    assert all(text.strip() for text in page.locator(".pane .how").all_inner_texts())
    labels = page.eval_on_selector_all(
        ".body > * > canvas, .frame canvas, .window canvas, .inspector canvas",
        "all => all.map(one => one.getAttribute('aria-label'))",
    )
    assert len(labels) >= 4
    assert all(labels)


def test_nothing_overflows_a_small_screen(page: Any) -> None:
    settled(page)
    assert page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [1280, 720]
    for name in ("text", "code", "stream", "heads"):
        box = page.locator(f"#pane-{name}").bounding_box()
        assert box["width"] > 400
        assert box["height"] > 150
        assert box["x"] + box["width"] <= 1280
        assert box["y"] + box["height"] <= 720


COLOURS = """async () => {
    const { colours, ink } = await import("look/colour.js");
    const every = [...Array(256).keys()];
    return ["sequential", "diverging"].flatMap((kind) => [false, true].map((dark) => {
        const map = colours(kind, dark);
        return [kind, [...map.rgb], [...map.light], every.map((i) => ink(map, i / 255) === "#ffffff")];
    }));
}"""


def test_colour_maps_are_uniform_and_words_on_them_can_be_read(page: Any) -> None:
    for kind, rgb, light, white in page.evaluate(COLOURS):
        steps = np.abs(np.diff(light if kind == "sequential" else light[128:]))
        assert np.allclose(steps, steps.mean(), rtol=0.02)
        v = np.array(rgb).reshape(256, 3) / 255
        amount = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
        luminance = amount @ [0.2126, 0.7152, 0.0722]
        contrast = np.where(white, 1.05 / (luminance + 0.05), (luminance + 0.05) / 0.05)
        assert contrast.min() >= 4.5  # WCAG 2.2, 1.4.3


def test_counts_have_their_unit(page: Any) -> None:
    counts = [0, 999, 999.7, 100_000, 619_648, 999_700, 110_000_000, 8_030_261_248]
    sizes = page.evaluate('async (counts) => counts.map((await import("look/colour.js")).size)', counts)
    assert sizes == ["0 ", "999 ", "1 k", "100 k", "620 k", "1 M", "110 M", "8.03 G"]


def test_chips_show_the_tokens_and_their_surprise(page: Any, seen: Trace) -> None:
    assert page.locator(".chip").count() == len(seen.ids)
    for place in (1, 8, len(seen.ids) - 1):
        page.hover(f'[data-place="{place}"]')
        reported = page.inner_text(".tip")
        assert f"id {seen.ids[place]}," in reported
        surprise = number(reported.split("surprise ")[1].split(" nats")[0])
        digits = 6e-3 if surprise >= 1e-3 else 0.05  # three digits are shown, of a small number two
        assert surprise == pytest.approx(float(seen.surprise[place]), rel=digits)


def test_probabilities_are_those_of_the_model(page: Any, seen: Trace) -> None:
    choose_token(page, 12)
    shown, p = bars(page), seen.logits[12].softmax(-1)
    assert list(shown) == p.topk(10).indices.tolist()
    assert list(shown.values()) == pytest.approx(p.topk(10).values.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.5},
        {"temperature": 1.6, "top_k": 4},
        {"top_p": 0.7},
        {"temperature": 1.5, "min_p": 0.1},
        {"temperature": 2, "top_k": 20, "top_p": 0.8, "min_p": 0.02},
    ],
)
def test_sliders_filter_as_the_sampler_does(page: Any, seen: Trace, settings: dict[str, float]) -> None:
    choose_token(page, 3)
    logits = seen.logits[3:4].numpy()
    for name in ("temperature", "top_k", "top_p", "min_p"):
        if name in settings:
            value = settings[name]
            page.fill(f'input[name="{name}"]', str(value))
            logits = getattr(sampling, name)(logits, int(value) if name == "top_k" else float(value))
    expected = sampling.softmax(logits)[0]
    until(page, f"Math.abs(document.querySelector('.bars .bar').dataset.p - {expected.max()}) < 1e-5")
    for token, p in bars(page).items():
        assert p == pytest.approx(expected[token], abs=1e-5)
    assert f"{int((expected > 0).sum()):,} left" in page.inner_text(".sliders .facts")


@pytest.mark.parametrize(
    "settings", [{"top_k": 1}, {"top_k": 4}, {"top_k": 2, "top_p": 0.3}, {"top_p": 0.5}, {"top_k": 4, "min_p": 0.05}]
)
def test_equal_logits_are_filtered_as_the_sampler_does(page: Any, settings: dict[str, Any]) -> None:
    logits = np.array([[1, 3, 0, 3, 1, 3, 1, -2]], np.float32)
    expected = sampling.softmax(sampling.Sampling(**{"temperature": 0.8, "top_p": None} | settings)(logits))[0]
    p, kept = page.evaluate(
        """async ([numbers, settings]) => {
            const { ranking, sample } = await import("look/sampling.js");
            const logits = Float32Array.from(numbers), { p, kept } = sample(logits, ranking(logits), settings);
            return [[...p], kept];
        }""",
        [logits[0].tolist(), {"temperature": 0.8, "top_k": 0, "top_p": 1, "min_p": 0} | settings],
    )
    assert p == pytest.approx(expected.tolist(), abs=1e-6)
    assert kept == (expected > 0).sum()


def test_every_token_that_is_left_can_be_drawn(page: Any) -> None:
    """Also those beyond the likeliest that are listed."""
    logits = np.random.default_rng(0).normal(size=500).astype(np.float32)
    drawn, p = page.evaluate(
        """async (numbers) => {
            const { draw, ranking, sample } = await import("look/sampling.js");
            const logits = Float32Array.from(numbers), order = ranking(logits);
            const { p, kept } = sample(logits, order, { temperature: 1, top_k: 400, top_p: 1, min_p: 0 });
            const drawn = new Array(numbers.length).fill(0);
            for (let i = 0; i <= 1e5; i++) drawn[draw(p, order, kept, i / 1e5)] += 1e-5;
            return [drawn, [...p]];
        }""",
        logits.tolist(),
    )
    assert drawn == pytest.approx(p, abs=2.1e-5)
    assert np.count_nonzero(drawn) == 400


def test_typed_text_is_read_at_once(page: Any, model: llucid.Model) -> None:
    text = "A fox found a bell."
    page.fill("#prompt", text)
    expected = trace(model, text)
    until(page, f"document.querySelectorAll('.chip').length === {len(expected.ids)}")
    settled(page)
    p = expected.logits[-1].softmax(-1)
    until(page, f"document.querySelector('.bars .bar')?.dataset.id === '{int(p.argmax())}'")
    assert list(bars(page).values()) == pytest.approx(p.topk(10).values.tolist(), abs=1e-5)


def test_clicking_an_alternative_continues_from_there(page: Any, seen: Trace) -> None:
    choose_token(page, 5)
    other = list(bars(page))[2]
    page.click(f'.bar[data-id="{other}"]')
    until(page, "document.querySelectorAll('.chip').length === 7")
    page.hover('[data-place="6"]')
    assert f"id {other}, place 6" in page.inner_text(".tip")
    assert page.input_value("#prompt").startswith(TEXT[:9])


def test_text_is_never_markup(page: Any) -> None:
    page.fill("#prompt", "<script>alert(1)</script><img src=x onerror=alert(2)>\x07")
    until(page, "document.querySelector('.chips').textContent.includes('script')")
    settled(page)
    chips = page.inner_text(".chips")
    assert "␇" in chips
    assert page.locator("#app img, .chips script").count() == 0


def test_a_text_that_is_too_long_is_refused_and_the_last_one_stays(browser: Any, url: str, seen: Trace) -> None:
    with opened(browser, url, expected="400 (Bad Request)") as page:
        page.fill("#prompt", "goat " * 2000)
        page.wait_for_selector(".status .error")
        assert "512" in page.inner_text(".status .error")
        assert page.locator(".chip").count() == len(seen.ids)


def test_a_choice_in_one_pane_is_a_choice_in_all(page: Any, seen: Trace) -> None:
    choose_token(page, 6)
    piece = seen.tokens[6].strip()
    assert piece in page.inner_text(".next h3")
    until(
        page,
        f"document.querySelector('.window canvas').getAttribute('aria-label').includes('after')"
        f" && document.querySelector('.head').getAttribute('aria-label').includes({piece!r})",
    )
    page.keyboard.press("ArrowRight")
    page.wait_for_selector('[data-place="7"][aria-selected="true"]')
    page.evaluate("document.activeElement.blur()")
    start = page.inner_text(".opened h3")
    page.keyboard.press("]")
    until(page, f"document.querySelector('.opened h3').textContent !== {start!r}")
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    until(page, "document.querySelector('.opened h3').textContent.includes('head 0.')")
    assert "in block 0" in page.inner_text("#pane-code .how >> nth=0")
    page.wait_for_selector('.inspector[data-name="blocks.0.attention.p"]')


def test_a_click_on_the_wall_opens_a_head_that_looks_where_the_trace_says(page: Any, seen: Trace) -> None:
    settled(page)
    box = page.locator(".wall canvas").bounding_box()
    place = len(seen.ids) - 1
    for _ in range(30):  # rows of the wall are layers: any head but the chosen one
        page.mouse.click(box["x"] + 16 + 60, box["y"] + 16 + 60)
        if "head 1.1" in page.inner_text(".opened h3"):
            break
    layer, head = map(int, page.inner_text(".opened h3").split("head ")[1].split(" ")[0].rstrip("?").split("."))
    until(page, "document.querySelector('.looked button') !== null")
    settled(page)
    p = seen.attention_of(layer)[head, place]
    shown = page.eval_on_selector_all(".looked button", "all => all.map(one => +one.dataset.p)")
    assert shown == pytest.approx(p.topk(4).values.tolist(), abs=1e-4)
    reported = tip(page, ".head", 0.03, 0.03)
    assert "(0) looks at" in reported
    assert "p = 1.0000" in reported


def test_scores_and_sorting(page: Any, seen: Trace) -> None:
    settled(page)
    scores = head_scores(seen)
    best = int(scores.induction.argmax())
    layer, head = divmod(best, seen.model.config.heads)
    assert f"head {layer}.{head} look" in page.inner_text(".opened h3")
    shown = page.inner_text('[data-score="induction"]')
    assert number(shown) == pytest.approx(float(scores.induction.max()), abs=6e-3)
    page.select_option('select[name="sort"]', "previous")
    box = page.locator(".wall canvas").bounding_box()
    page.mouse.click(box["x"] + 8, box["y"] + 8)
    layer, head = divmod(int(scores.previous.argmax()), seen.model.config.heads)
    until(page, f"document.querySelector('.opened h3').textContent.includes('head {layer}.{head} look')")


def test_clocks_add_up_to_the_score(page: Any, seen: Trace) -> None:
    settled(page)
    page.wait_for_selector(".face")
    parts = page.eval_on_selector_all(".face", "all => all.map(one => +one.dataset.value)")
    assert len(parts) == seen.model.config.head_dim // 2
    assert sum(parts) == pytest.approx(number(page.inner_text("#score")), abs=1e-3)


def test_an_expression_shows_its_numbers(page: Any, seen: Trace) -> None:
    choose_token(page, 9)
    page.wait_for_selector('.inspector[data-name="blocks.3.attention.p"] .map')
    head = int(page.inner_text(".opened h3").split("3.")[1][0])
    expected = seen["blocks.3.attention.p"][0].flatten(0, 1)[head]
    settled(page)
    reported = tip(page, ".inspector .map", 0.5 / len(seen.ids), 9.5 / len(seen.ids))
    assert number(reported.split("= ")[1].split("\n")[0]) == pytest.approx(float(expected[9, 0]), rel=1e-4)
    assert "slots 0" in reported
    values = seen["blocks.3.attention.p"]
    numbers = page.inner_text(".inspector .numbers")
    assert number(numbers.split("…")[1].split("±")[0]) == pytest.approx(float(values.mean()), rel=6e-3)


def test_parts_of_an_expression_can_be_chosen(page: Any, seen: Trace) -> None:
    settled(page)
    page.locator(".x").filter(has_text=re.compile(r"^q @ k.*mT$")).dispatch_event("click")
    page.wait_for_selector('.inspector[data-name="blocks.3.attention.q @ k[:, :, None].mT"]')
    page.locator(".line.current .x").filter(has_text=re.compile(r"^m\[.*\]$")).dispatch_event("mouseover")
    until(page, "document.querySelector('.inspector h3').textContent.includes('m[:, :, None]')")


def test_the_parts_of_a_line_can_be_reached_by_keys(page: Any) -> None:
    settled(page)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_selector('.inspector[data-name="blocks.3.attention.p"]')
    page.keyboard.press("x")
    page.wait_for_selector('.inspector[data-name="blocks.3.attention.scores"]')
    assert page.locator(".line.current").inner_text().split()[1] == "p"
    page.keyboard.press("n")
    page.wait_for_selector('.inspector[data-name="blocks.3.attention.p"]')


def test_stepping_goes_through_the_forward_pass(page: Any) -> None:
    settled(page)
    page.evaluate("document.activeElement.blur()")
    names = []
    page.wait_for_selector('.inspector[data-name="blocks.3.attention.p"]')
    for key in ("p", "n", "n", "n", "n"):
        before = page.get_attribute(".inspector", "data-name")
        page.keyboard.press(key)
        until(page, f"document.querySelector('.inspector').dataset.name !== {before!r}")
        names.append(page.get_attribute(".inspector", "data-name"))
        assert page.locator(".line.current").count() == 1
    assert names == [
        "blocks.3.attention.scores",
        "blocks.3.attention.p",
        "blocks.3.attention.attention_written_out",
        "blocks.3.attention.attend",
        "blocks.3.attention",
    ]


def test_the_lens_shows_each_layers_guess(page: Any, seen: Trace) -> None:
    settled(page)
    lens = seen.logit_lens(5)
    choose_token(page, 4)
    label = page.get_attribute(".window canvas", "aria-label")
    guesses = [row[4][0].strip() for row in lens.tokens]
    assert [part.split(" ")[-1].lstrip("·") for part in label.split(": ")[1].split(", ")] == guesses


def test_parts_add_up_to_the_logit(page: Any, seen: Trace) -> None:
    choose_token(page, 10)
    token = int(seen.logits[10].argmax())
    until(page, f"Math.abs(document.querySelector('#logit').textContent - {seen.logits[10, token]}) < 1e-2")
    parts = page.eval_on_selector_all(".part", "all => all.map(one => +one.dataset.value)")
    assert sum(parts) == pytest.approx(float(seen.logits[10, token]), abs=1e-3)
    other = list(bars(page))[1]
    page.click(f"li:has([data-id='{other}']) .why")
    until(page, f"Math.abs(document.querySelector('#logit').textContent - {seen.logits[10, other]}) < 1e-2")


def test_ablating_a_head_shows_what_changes(page: Any, model: llucid.Model, seen: Trace) -> None:
    choose_token(page, len(seen.ids) - 2)
    layer, head = map(int, page.inner_text(".opened h3").split("head ")[1].split(" ")[0].split("."))
    unchanged = bars(page)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("a")
    page.wait_for_selector(".change")
    settled(page)
    assert f"without head {layer}.{head}" in page.inner_text(".change")
    expected = trace(model, TEXT, change=ablate(layer, head=head)).logits[-2].softmax(-1)
    until(page, f"Math.abs(document.querySelector('.bars .bar').dataset.p - {expected.max()}) < 1e-5")
    changed = bars(page)
    assert changed != unchanged
    for token, p in changed.items():
        assert p == pytest.approx(float(expected[token]), abs=1e-5)
    page.wait_for_selector(".bars .ghost")
    page.click('[data-view="beside"]')
    until(page, f"Math.abs(document.querySelector('.bars .bar').dataset.p - {max(unchanged.values())}) < 1e-5")
    page.click('[data-view="difference"]')
    until(page, "document.querySelector('#title-text').textContent.includes('more surprising')")
    assert number(page.inner_text("#kl").removeprefix("KL").removesuffix("nats")) > 0
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("u")
    page.wait_for_selector(".change", state="detached")
    settled(page)
    assert bars(page) == unchanged


def test_layers_parts_and_frequencies_can_be_ablated(page: Any) -> None:
    settled(page)
    page.select_option(".ablate select", "feed_forward")
    page.wait_for_selector('.change:has-text("without feed-forward 3")')
    settled(page)
    page.click(".face >> nth=2")
    page.wait_for_selector('.change:has-text("clock 2 stopped")')
    settled(page)
    assert page.locator(".change").count() == 2


def test_what_is_asked_for_meanwhile_adds_up(page: Any) -> None:
    """Also before the page has read the text with what was asked for first."""
    settled(page)
    page.evaluate("document.activeElement.blur()")
    for key in ("a", "]", "a", "]", "a", "["):
        page.keyboard.press(key)
    settled(page)
    assert page.locator(".change").count() == 3
    page.evaluate("for (const name of ['ablate-head', 'ablate-head']) document.getElementById(name).click()")
    settled(page)
    assert page.locator(".change").count() == 3
    page.keyboard.press("a")
    page.keyboard.press("u")
    settled(page)
    assert page.locator(".change").count() == 0


def test_the_tour_has_eight_steps_that_choose_what_they_explain(page: Any, seen: Trace) -> None:
    page.click("#tour")
    reported = set()
    for step in range(8):
        page.wait_for_selector(f'.tour:has-text("{step + 1} of 8")')
        page.wait_for_selector(".pane.highlighted")
        settled(page)
        reported.add(page.inner_text(".tour h2"))
        if step == 6:
            layer, head = divmod(int(head_scores(seen).induction.argmax()), seen.model.config.heads)
            page.wait_for_selector(f'.opened h3:has-text("head {layer}.{head}")')
            assert f"Head {layer}.{head}" in page.inner_text(".tour")
        page.click("#tour-next")
    assert len(reported) == 8
    page.wait_for_selector(".tour", state="detached")


def faded(model: llucid.Model, share: float) -> llucid.Model:
    """The model with a part of its embedding, as if it had just begun to learn."""
    return model._replace(weights=model.weights._replace(embedding=model.weights.embedding * share))


def test_two_models_are_compared_token_by_token(browser: Any, model: llucid.Model) -> None:
    subjects = [
        Subject("float32", lambda: model),
        Subject("int4", lambda: llucid.load(STORYTELLER, quantize="int4")),
        *(Subject("", lambda share=step / 400: faded(model, share), step) for step in (100, 200)),
    ]
    ours, theirs = trace(model, TEXT), trace(subjects[1].model(), TEXT)
    with serving(Answers(subjects, TEXT)) as url, opened(browser, url) as page:
        page.select_option('select[name="compare"]', "1")
        page.wait_for_selector("#kl")
        kl = (ours.logits.softmax(-1) * (ours.logits.log_softmax(-1) - theirs.logits.log_softmax(-1))).sum(-1)
        shown = number(page.inner_text("#kl").removeprefix("KL").removesuffix("nats"))
        backward = (theirs.logits.softmax(-1) * (theirs.logits.log_softmax(-1) - ours.logits.log_softmax(-1))).sum(-1)
        assert any(shown == pytest.approx(float(each.mean()), rel=0.06) for each in (kl, backward))
        page.fill('input[name="snapshot"]', "0")
        until(page, "document.querySelector('.training .facts').textContent.includes('step 100')")
        settled(page)
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("a")
        page.wait_for_selector(".change")
        settled(page)
        assert page.evaluate("document.querySelector('.top').scrollWidth") <= 1280
        assert page.inner_text("#title-training").endswith("?")


def test_models_with_different_tokenizers_read_the_same_text(browser: Any, model: llucid.Model) -> None:
    """Not the same ids; and are not compared."""
    subjects: list[Subject] = []
    for letters, layers in (("abcdef", 1), ("ABCabc", 2)):
        config = replace(model.config, vocab_size=6, layers=layers)
        made = model._replace(config=config, weights=initialise(config), tokenizer=Characters(letters))
        subjects.append(Subject(letters, lambda made=made: made))
    with serving(Answers(subjects, "abc")) as url, opened(browser, url, "400") as page:
        page.select_option('select[name="compare"]', "1")
        page.wait_for_selector(".error")
        assert "different tokenizers" in page.inner_text(".error")
        assert page.locator(".views").count() == 0
        page.select_option('select[name="compare"]', "")
        page.select_option('select[name="model"]', "1")
        until(page, "document.querySelector('.about').textContent.startsWith('2 layers')")
        settled(page)
        assert page.input_value("#prompt") == "abc"
        assert page.eval_on_selector_all(".chip", "chips => chips.map(chip => chip.textContent)") == ["a", "b", "c"]
        page.click(".why >> nth=2")
        page.wait_for_selector('.why[aria-pressed="true"]')
        page.select_option('select[name="model"]', "0")
        until(page, "document.querySelector('.about').textContent.startsWith('1 layers')")
        settled(page)
        assert page.locator('.why[aria-pressed="true"]').count() == 0  # the id was of another token


def test_a_difference_from_what_is_late_is_faded(browser: Any, model: llucid.Model) -> None:
    subjects = [Subject("float32", lambda: model), Subject("faded", lambda: faded(model, 0.5))]
    with serving(Answers(subjects, TEXT)) as url, opened(browser, url) as page:
        page.select_option('select[name="compare"]', "1")
        page.click('[data-view="difference"]')
        settled(page)
        beside = page.evaluate(
            "performance.getEntriesByType('resource').map(one => one.name).find(one => /with=/.test(one))"
        )
        held, holding = list[Any](), True
        name = re.search("with=([0-9a-f]+)", beside)[1]
        page.route(f"**/{name}/**", lambda route: held.append(route) if holding else route.continue_())
        page.keyboard.press("ArrowUp" if "5." in page.inner_text(".opened h3") else "ArrowDown")
        page.click('[data-place="4"]')
        for part in (".opened .columns", ".parts", ".bars"):
            until(page, f"!!document.querySelector('{part}.stale')")
        holding = False
        for route in held:
            route.continue_()
        settled(page)


def test_typing_goes_on_while_another_model_reads(browser: Any, model: llucid.Model) -> None:
    """Of another size, so that other panes begin anew: the text and the focus stay."""
    config = replace(model.config, layers=1)
    small = model._replace(config=config, weights=initialise(config))
    subjects = [Subject("large", lambda: model), Subject("small", lambda: small)]
    # Where typing takes longer than the page waits for more, it asks for the empty text, which is refused.
    with serving(Answers(subjects, TEXT)) as url, opened(browser, url, "400") as page:
        held, holding = list[Any](), True
        page.route("**/read", lambda route: held.append(route) if holding else route.continue_())
        page.select_option('select[name="model"]', "1")
        page.fill("#prompt", "")
        page.type("#prompt", "a fo")
        holding = False
        for route in held:
            route.continue_()
        until(page, "document.querySelector('.about').textContent.startsWith('1 layers')")
        page.keyboard.type("x ate")
        assert page.input_value("#prompt") == "a fox ate"
        settled(page)
        until(page, "document.querySelector('.chips').textContent.endsWith('ate')")
        assert page.evaluate("document.activeElement.id") == "prompt"
        assert page.locator(".change").count() == 0


def test_a_place_without_exact_scores_is_shown_again(browser: Any, model: llucid.Model) -> None:
    """As in a saved page of a large vocabulary, or after a request that failed."""
    with serving(Answers([Subject("", lambda: model)], TEXT)) as url, opened(browser, url, "400") as page:
        refused = {"status": 400, "content_type": "application/json", "body": '{"error": "no"}'}
        page.route("**/value?**name=logits**", lambda route: route.fulfill(**refused))
        for place in (3, 4, 3, 4):
            choose_token(page, place)
        scores = trace(model, TEXT).logits[4].log_softmax(-1)  # of all tokens, not of those that are listed
        assert bars(page) == pytest.approx({i: math.exp(scores[i]) for i in scores.topk(10).indices.tolist()}, abs=1e-4)
        assert f"{float(-scores.exp() @ scores):.2g} nats" in page.inner_text(".sliders .facts")
        page.keyboard.press("g")
        until(page, "document.querySelectorAll('.chip').length === 6")
        settled(page)


def test_nothing_is_drawn_from_what_follows_another_place(browser: Any, model: llucid.Model) -> None:
    with serving(Answers([Subject("", lambda: model)], TEXT)) as url, opened(browser, url) as page:
        settled(page)
        held, holding = list[Any](), True
        page.route("**/next?**", lambda route: held.append(route) if holding else route.continue_())
        page.click('[data-place="3"]')
        until(page, "!!document.querySelector('.bars.stale')")
        before = page.input_value("#prompt")
        page.keyboard.press("g")
        page.click(".bars .bar")
        page.wait_for_timeout(300)
        assert page.input_value("#prompt") == before
        holding = False
        for route in held:
            route.continue_()
        settled(page)
        page.keyboard.press("g")
        until(page, "document.querySelectorAll('.chip').length === 5")
        settled(page)


def test_the_other_run_is_shown_in_all_panes(page: Any, model: llucid.Model) -> None:
    """With its own attention, scores and clocks; and what is then changed is the run that can be changed."""
    page.select_option(".ablate select", "layer")
    page.wait_for_selector(".change")
    ablated = int(page.inner_text(".change").split("layer ")[1].split(" ")[0])
    runs = {"beside": trace(model, TEXT), "run": trace(model, TEXT, change=ablate(ablated))}
    for view, seen in runs.items():
        page.click(f'[data-view="{view}"]')
        choose_token(page, 30)
        page.click(".part:not([disabled])")
        settled(page)
        layer, head = map(int, page.inner_text(".opened h3").split("head ")[1].split(" ")[0].split("."))
        row = seen.attention_of(layer)[head, 30]
        until(page, f"Math.abs(document.querySelector('.looked button').dataset.p - {row.max()}) < 1e-4")
        at, kv = f"blocks.{layer}.attention.attend", head * model.config.kv_heads // model.config.heads
        score = float(seen[f"{at}.q.2"][0, head, 30] @ seen[f"{at}.k.2"][0, kv, row.argmax()])
        score /= math.sqrt(model.config.head_dim)
        until(page, f"Math.abs(document.querySelector('#score').textContent.replace('−', '-') - {score}) < 1e-2")
        for name, scores in head_scores(seen)._asdict().items():
            shown = page.query_selector(f'[data-score="{name}"]')
            assert shown is None or number(shown.inner_text()) == pytest.approx(float(scores[layer, head]), abs=6e-3)
    page.click('[data-view="beside"]')
    page.click(".change")
    page.wait_for_selector(".change", state="detached")
    assert page.locator(".views").count() == 0


@pytest.mark.parametrize(
    "smaller",
    [{"layers": 2, "heads": 3, "kv_heads": 1}, pytest.param({"kv_heads": 2}, marks=pytest.mark.slow)],
    ids=str,
)
def test_models_of_different_sizes_are_compared(
    browser: Any, model: llucid.Model, tmp_path: Path, smaller: dict[str, int]
) -> None:
    """Each with its own layers and heads, also in a file; the difference is that of the text."""
    config = replace(model.config, **smaller)
    small = model._replace(config=config, weights=initialise(config))
    subjects = [Subject("large", lambda: model), Subject("small", lambda: small)]
    sizes = [f"{each.config.layers} layers with {each.config.heads} heads each" for each in (model, small)]
    with serving(Answers(subjects, TEXT)) as url, opened(browser, url) as page:
        for here, there in ((0, 1), (1, 0)):
            for name, choice in (("compare", ""), ("model", str(here)), ("compare", str(there))):
                page.select_option(f'select[name="{name}"]', choice)
            settled(page)
            for view, size in (("difference", here), ("beside", there), ("run", here)):
                page.click(f'[data-view="{view}"]')
                settled(page)
                assert sizes[size] in page.get_attribute(".wall canvas", "aria-label")
                assert ("more surprising" in page.inner_text("#title-text")) == (view == "difference")
                assert page.inner_text("#title-heads") == "What does each head look at?"
                page.select_option('select[name="sort"]', "first")
                page.evaluate("document.activeElement.blur()")
                for _ in range(8):
                    page.keyboard.press("ArrowDown")
                settled(page)
                assert f"head {(model, small)[size].config.layers - 1}." in page.inner_text(".opened h3")
        page.click('[data-view="beside"]')
        settled(page)
        kl, surprise = page.inner_text("#kl"), bars(page)
        with page.expect_download() as download:
            page.click("#save")
        download.value.save_as(tmp_path / "look.html")
    with opened(browser, (tmp_path / "look.html").as_uri(), offline=True) as page:
        assert page.get_attribute('[data-view="beside"]', "aria-checked") == "true"
        settled(page)
        assert (page.inner_text("#kl"), list(bars(page))) == (kl, list(surprise))
        assert sizes[0] in page.get_attribute(".wall canvas", "aria-label")
        assert page.locator(".empty").count() == 0


def test_the_differences_are_also_of_what_only_the_other_run_finds_likely(browser: Any, model: llucid.Model) -> None:
    blank = model._replace(weights=initialise(model.config))
    subjects = [Subject("blank", lambda: blank), Subject("usual", lambda: model)]
    ours, theirs = (trace(each, "A fox found").logits[-1].softmax(-1) for each in (blank, model))
    with serving(Answers(subjects, "A fox found")) as url, opened(browser, url) as page:
        page.select_option('select[name="compare"]', "1")
        settled(page)
        page.click('[data-view="difference"]')
        settled(page)
        assert list(bars(page)) == (ours - theirs).abs().topk(10).indices.tolist()
        shown = page.locator(".next .number").first.inner_text()
    assert float(shown.replace("−", "-").removesuffix("%")) == pytest.approx(
        -100 * float((theirs - ours).max()), rel=0.02
    )


def test_models_with_vocabularies_of_different_sizes_are_saved(
    browser: Any, model: llucid.Model, tmp_path: Path
) -> None:
    """Together and then alone: that there is no divergence of the two is no reason against either."""
    config = replace(model.config, vocab_size=model.config.vocab_size + 8)
    weights = initialise(config)
    weights.embedding[-1] *= 100  # a likely guess, which the smaller model lacks
    more = model._replace(config=config, weights=weights)
    subjects = [Subject("usual", lambda: model), Subject("more", lambda: more)]
    with serving(Answers(subjects, "A fox found")) as url, opened(browser, url) as page:
        for name, choice in (("both", "1"), ("one", "")):
            page.select_option('select[name="compare"]', choice)
            settled(page)
            with page.expect_download() as download:
                page.click("#save")
            download.value.save_as(tmp_path / f"{name}.html")
    for name, views in (("both", 1), ("one", 0)):
        with opened(browser, (tmp_path / f"{name}.html").as_uri(), offline=True) as page:
            settled(page)
            assert page.locator(".views").count() == views
            assert page.locator(".empty").count() == 0
            if views:
                page.click('[data-view="difference"]')
                settled(page)
                page.select_option('select[aria-label="go to a function"]', "unembed")
                page.wait_for_selector('.inspector[data-name="unembed"] .empty')
                assert "there is no difference" in page.inner_text(".inspector")
                assert page.locator(".inspector canvas").count() == 0


@pytest.mark.parametrize("changed", [False, True])
def test_the_page_as_one_file_opens_from_disk(browser: Any, model: llucid.Model, tmp_path: Path, changed: bool) -> None:
    text = "A fox found a bell. A fox found"
    subjects = [Subject("the storyteller", lambda: model), Subject("step 100", lambda: faded(model, 0.25), 100)]
    answers, seen = Answers(subjects, text), trace(model, text)
    readings = [answers.first]
    if changed:
        readings.append(answers.edit(answers.first, [{"kind": "ablate", "layer": 3, "head": 2}]))
    file = tmp_path / "look.html"
    file.write_bytes(exported(answers, readings).html)
    with opened(browser, file.as_uri(), offline=True) as page:
        settled(page)
        assert page.evaluate("document.querySelector('.grid').scrollLeft") > 0  # the last token, which is chosen
        choose_token(page, 5)
        if not changed:
            expected = seen.logits[5].softmax(-1)
            assert list(bars(page).values()) == pytest.approx(expected.topk(10).values.tolist(), abs=5e-3)  # in float16
        page.wait_for_selector(".inspector .map")
        for key in ("ArrowUp", "]", "n", "2", "3", "4", "0", "d", "d"):
            page.keyboard.press(key)
            page.wait_for_timeout(100)
        page.click("#tour")
        for _ in range(8):
            page.click("#tour-next")
        assert page.locator(".empty").count() == 0
        assert page.locator("#ablate-head, #save, .training").count() == 0
        settled(page)
        for asked in page.locator(".why:enabled").all():  # which of two readings are the other's guess
            asked.click()
            assert page.locator(".parts li").count() > 0
        assert changed or page.locator(".why:enabled").count() == 0


def test_what_the_server_did_not_answer_is_asked_again(browser: Any, url: str) -> None:
    with opened(browser, url, expected="Failed to load resource") as page:
        settled(page)
        for path in ("next", "parts"):
            page.route(f"**/{path}?*", lambda route: route.abort())
        choose_token(page, 3)
        for pane in (".bars", ".attribution"):
            page.wait_for_selector(f'{pane} .empty:has-text("llucid look does not answer")')
        page.unroute_all()
        choose_token(page, 4)
        choose_token(page, 3)
        settled(page)
        assert page.locator(".bars .empty, .attribution .empty").count() == 0
        assert len(bars(page)) == 10
        assert page.locator(".parts li").count() > 0


def test_what_is_on_the_screen_is_never_forgotten(page: Any) -> None:
    """The page keeps 800 answers; here 5, so that few presses make it forget those of panes that ask nothing new."""
    settled(page)
    kept = page.locator(".stale").count(), page.locator(".inspector canvas").count()
    page.route("**/api.js", lambda route: route.fulfill(response=(got := route.fetch()), body=small(got.text())))
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    settled(page)
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
        settled(page)
    assert (page.locator(".stale").count(), page.locator(".inspector canvas").count()) == kept


def small(api: str) -> str:
    assert "REMEMBERED = 800;" in api
    return api.replace("REMEMBERED = 800;", "REMEMBERED = 5;")


def test_as_many_numbers_as_long_texts_have(page: Any) -> None:
    """Some 100,000 numbers, as those of 4,096 tokens and 16 layers, are more than a call in JavaScript may be given."""
    settled(page)

    def longer(route: Any) -> None:
        norms = (got := route.fetch()).json()
        norms["attention"] *= 200_000 // (len(norms["attention"]) * len(norms["attention"][0]))
        route.fulfill(response=got, json=norms)

    page.route("**/stream", longer)
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    settled(page)
    assert page.locator(".grid canvas").count() == 1


def test_changes_in_code_have_names(browser: Any, model: llucid.Model, tmp_path: Path) -> None:
    """Of very many, the first twelve."""
    for other, shown in ((ablate(2, head=0), 1), (patch("*", trace(model, "A fox")), 12)):
        found = trace(model, "A fox", change=other)
        export(found, tmp_path / "look.html")
        with opened(browser, (tmp_path / "look.html").as_uri(), offline=True) as page:
            chips = [chip.inner_text() for chip in page.locator(".change").all()]
            assert chips == [f"{name} changed" for name in found.changed[:12]]
            assert len(chips) == shown
            more = len(found.changed) - shown
            assert (f"and {more} more" in page.inner_text(".changes")) == (more > 0)


def test_the_button_saves_what_is_on_the_screen(browser: Any, page: Any, tmp_path: Path) -> None:
    """Of the other places, what was not asked for is not there: what wrote the likeliest token's logit is shown."""
    choose_token(page, 7)
    settled(page)
    page.locator(".why").nth(3).click()
    settled(page)
    heading, parts = page.inner_text(".attribution h3"), page.locator(".parts li").count()
    assert page.locator(".bar .piece").nth(3).inner_text().removesuffix("●") in heading
    with page.expect_download() as download:
        page.click("#save")
    file = tmp_path / "look.html"
    download.value.save_as(file)
    with opened(browser, file.as_uri(), offline=True) as copy:
        copy.wait_for_selector('[data-place="7"][aria-selected="true"]')
        settled(copy)
        assert copy.inner_text(".attribution h3") == heading
        choose_token(copy, 8)
        settled(copy)
        assert copy.inner_text(".attribution h3") != heading
        assert copy.locator(".parts li").count() == parts


def test_many_tokens_of_as_many_heads_as_in_llama_3_8b(browser: Any) -> None:
    """No frame is measured, since machines differ: the page must answer keys with all its pictures drawn.

    In one row, the maps of the wall would be wider than a browser's pictures can be.
    """
    config = llucid.Config(
        dim=32, layers=32, heads=32, kv_heads=4, head_dim=8, ffn_dim=64, vocab_size=300, context=256, norm_eps=1e-5,
        rope_theta=10000.0, rope_scaling=None, tied_embeddings=True, dropout=0.0,
    )  # fmt: skip
    weights = initialise(config)
    large = llucid.Model(config, weights, None, None)  # pyright: ignore
    ids = np.random.default_rng(0).integers(0, 300, 256).tolist()
    with serving(Answers([Subject("random", lambda: large)], ids)) as url, opened(browser, url) as page:
        assert page.locator(".chip").count() == 256
        assert page.input_value("#prompt") == " ".join(map(str, ids))  # there is no tokenizer
        page.evaluate("document.activeElement.blur()")
        for _ in range(20):
            page.keyboard.press("ArrowLeft")
        page.wait_for_selector('[data-place="235"][aria-selected="true"]')
        settled(page)
        colours = page.evaluate("""() => {
            const wall = document.querySelector(".wall canvas"), pen = wall.getContext("2d");
            return new Set(new Uint32Array(pen.getImageData(0, 0, wall.width, wall.height).data.buffer)).size;
        }""")
        assert colours > 500  # 100 of the labels alone
        page.select_option('select[name="sort"]', "first")
        settled(page)
        box = page.locator(".wall canvas").bounding_box()
        width, height = box["width"], box["height"]
        pitch, across = max((min((width - 2) / n, (height - 2) / math.ceil(1024 / n)), n) for n in range(1, 1025))
        row, column = divmod(1023, across)  # the last of all heads is on the wall too
        page.mouse.click(box["x"] + (column + 0.5) * pitch, box["y"] + (row + 0.5) * pitch)
        layer, head = divmod(int(head_scores(trace(large, ids)).first.argmin()), 32)
        until(page, f"document.querySelector('.opened h3').textContent.includes('head {layer}.{head} look')")


def test_a_text_with_more_tokens_than_the_map_has_rows(browser: Any, model: llucid.Model) -> None:
    """The arcs and the clocks are of the chosen token all the same, and a tip says which places a number stands for."""
    long = model._replace(config=replace(model.config, context=2048))
    ids = [model.text().bos, *model.text().encode(f"{TEXT} " * 40)][:1200]
    answers = Answers([Subject("long", lambda: long)], ids)
    found = answers.trace(answers.first)
    assert len(found.ids) == 1200
    with serving(answers) as url, opened(browser, url) as page:
        for place in (20, 300, 1198):
            page.evaluate(f"document.querySelector('[data-place=\"{place}\"]').click()")
            page.wait_for_selector(f'[data-place="{place}"][aria-selected="true"]')
            settled(page)
            layer, head = map(int, re.findall(r"head (\d+)\.(\d+)", page.inner_text(".opened h3"))[0])
            p = found.attention_of(layer)[head, place]
            assert f", {place - int(p.argmax())} back" in page.inner_text(".clocks .how")
            assert page.locator(".arcs path").count() == int((p >= 0.02).sum())
        assert re.search(r"from \d+ to \d+ at \d+ to \d+\n", tip(page, ".opened .frame canvas", 0.05, 0.5))
        page.wait_for_selector(".inspector .map")
        shown = re.search(r"\[(\d+) to (\d+), (\d+) to (\d+)\] = (\S+)", tip(page, ".inspector .map", 0.001, 0.6))
        assert shown is not None
        top, bottom, left, right = map(int, shown.groups()[:4])
        p = found[page.get_attribute(".inspector", "data-name")][0].flatten(0, 1)[head]
        largest = float(p[top : bottom + 1, left : right + 1].max())
        assert number(shown[5]) == pytest.approx(largest, rel=1e-4 if largest >= 1e-3 else 0.05)  # then of two digits


def test_a_difference_of_pooled_values_is_the_largest_of_the_block(
    browser: Any, model: llucid.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here in a file, which holds values less wide."""
    monkeypatch.setattr(sys.modules[exported.__module__], "WIDEST", (64,))
    text = "A fox found a bell. A fox found"
    answers = Answers([Subject("the storyteller", lambda: model)], text)
    readings = [answers.first, answers.edit(answers.first, [{"kind": "ablate", "layer": 1, "part": "attention"}])]
    file = tmp_path / "look.html"
    file.write_bytes(exported(answers, readings).html)
    one, other = answers.trace(readings[1]), answers.trace(readings[0])
    with opened(browser, file.as_uri(), offline=True) as page:
        page.click('[data-view="difference"]')
        page.wait_for_selector('[data-view="difference"][aria-checked="true"]')
        compared = 0
        for _ in range(12):
            page.keyboard.press("n")
            settled(page)
            name = page.get_attribute(".inspector", "data-name")
            if page.locator(".inspector .map").count() == 0 or one[name].dim() != 3:
                continue
            shown = re.search(r"\[(\d+), (\d+) to (\d+)\] = (\S+)", tip(page, ".inspector .map", 0.4, 0.5))
            if not shown:
                continue
            place, left, right = map(int, shown.groups()[:3])
            block = (one[name] - other[name])[0, place, left : right + 1]
            expected = float(block[block.abs().argmax()])
            assert number(shown[4]) == pytest.approx(expected, rel=2e-3, abs=1e-6)
            compared += expected != 0
            header = "document.querySelector('.pane.code > header')"
            assert page.evaluate(f"{header}.scrollWidth <= {header}.clientWidth")  # with all of its buttons
        assert compared > 3


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (1920, 1080)])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pictures_of_all_panes_are_kept(browser: Any, url: str, width: int, height: int, theme: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    options, pictures = {"viewport": {"width": width, "height": height}, "color_scheme": theme}, set[bytes]()
    with opened(browser, url, **options) as page:
        for key, name in (("0", "all"), ("2", "code"), ("3", "stream"), ("4", "heads")):
            page.keyboard.press(key)
            settled(page)
            pictures.add(page.screenshot(path=PICTURES / f"{name}-{theme}-{width}.png"))
            assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    assert len(pictures) == 4
