"""`generate`, `generate_batch` and `predict`."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from llucid.cache import PAGE
from llucid.checkpoints import Model
from llucid.config import Config
from llucid.errors import LlucidError
from llucid.generation import (
    Batch,
    Request,
    Sampling,
    Statistics,
    generate,
    generate_batch,
    generator,
    predict,
    prompt_ids,
)
from llucid.llama import llama
from llucid.tokenizers import Tokenizer
from llucid.tokenizers.byte_pairs import train_bpe
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.tokenizer_json import JsonTokenizer
from llucid.weights import initialise, tree_map
from tests.waiting import LIMIT

LETTERS = "\n abcdefghijklmnopqrstuvwxyz.,:"


def small_model(tokenizer: Tokenizer, vocab_size: int | None = None, context: int = 32) -> Model:
    """A random model with confident predictions, in float64."""
    vocab_size = vocab_size or tokenizer.vocab_size
    config = Config(
        dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, vocab_size=vocab_size, context=context
    )
    weights = tree_map(lambda leaf: leaf.double() * (10 if leaf.ndim == 2 else 1), initialise(config))
    return Model(config, weights, tokenizer)


class WithBos(Characters):
    """Characters whose ids 0 and 1, line break and space, are BOS and EOS."""

    bos = 0
    eos = 1
    stop_ids = frozenset({1})


MODEL = small_model(Characters(LETTERS))
BYTES = train_bpe(["plain words only, plain words"], 260)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For matrices this small, more threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model_that_writes(model: Model, script: list[int]) -> Model:
    """A model that writes `script`: its layer adds nothing, and its output matrix determines which token follows."""
    assert len(set(script)) == len(script)
    vocab = model.config.vocab_size
    config = Config(dim=vocab, layers=1, heads=1, kv_heads=1, head_dim=2, ffn_dim=1, vocab_size=vocab, context=64)
    follow = torch.zeros(vocab, vocab)
    for token, after in pairwise(script):
        follow[after, token] = 1.0
    zeros = tree_map(torch.zeros_like, initialise(config))
    weights = zeros._replace(embedding=torch.eye(vocab), norm=torch.ones(vocab), output=follow * 9)
    return Model(config, weights, model.tokenizer)


def test_texts_that_do_not_fit_into_memory_take_turns():
    page = PAGE * 2 * 2 * 2 * 8 * 8  # bytes
    texts = [
        [completion.text for completion in generate_batch(MODEL, ["a", "b", "c"], max_tokens=20, seed=1, memory=memory)]
        for memory in (None, 2 * page, 3 * page)
    ]
    assert texts[0] == texts[1] == texts[2]
    [short] = generate_batch(MODEL, ["a"], max_tokens=10**15, stop=list(LETTERS))  # memory grows on demand
    assert short.reason == "stop"


def test_the_continuation_is_streamed_without_the_prompt():
    pieces = generate(MODEL, "a man", max_tokens=20, temperature=0.0)
    assert isinstance(pieces, Iterator)
    row = MODEL.text().encode("a man")
    for piece in pieces:
        token = int(llama(torch.tensor([row]), MODEL.weights, MODEL.config)[0, -1].argmax())
        assert piece == MODEL.text().decode([token])
        row.append(token)
    assert len(row) == 5 + 20


def test_nothing_is_computed_before_the_first_piece():
    statistics = Statistics()
    pieces = generate(MODEL, "a", max_tokens=5, statistics=statistics)
    assert statistics.prompt_tokens == statistics.tokens == 0
    next(pieces)
    assert statistics.tokens == 1


@pytest.mark.parametrize(
    ("message", "prompt", "options"),
    [
        ("the prompt has 33 tokens, but the model's context is 32; shorten the prompt", "a" * 33, {}),
        ("'é' cannot be encoded", "é", {}),
        ("max_tokens=0: must be", "a", {"max_tokens": 0}),
        ("temperature=-1.0: must be", "a", {"temperature": -1.0}),
        ("top_k=-1: must be", "a", {"top_k": -1}),
        ("top_p=1.5: must be", "a", {"top_p": 1.5}),
        ("min_p=2.0: must be", "a", {"min_p": 2.0}),
        ("seed=-1: must be", "a", {"seed": -1}),
        ("max_tokens=3.5: must be a whole number", "a", {"max_tokens": 3.5}),
        ("max_tokens=None: must be a whole number", "a", {"max_tokens": None}),
        ("seed=1.5: must be a whole number", "a", {"seed": 1.5}),
        (r"logit_bias=\[\(3, 1.0\)\]: expected a dict", "a", {"logit_bias": [(3, 1.0)]}),
        ("stop='': a stop string", "a", {"stop": [""]}),
    ],
)
def test_invalid_options_are_refused_at_the_call(message: str, prompt: str, options: dict[str, Any]):
    with pytest.raises(LlucidError, match=message):
        generate(MODEL, prompt, **options)
    with pytest.raises(LlucidError, match=message):
        generate_batch(MODEL, ["a", prompt], **options)


def test_values_of_another_type_are_refused_at_the_call():
    """In a process of its own, since the types of arguments are checked in this one."""
    calls = {
        "generate(model, None)": "prompt=None: expected a text",
        "predict(model, b'a')": "prompt=b'a': expected a text",
        "generate(model, stop=['a', 5])": "stop=5: expected a text",
        "generate(model, stop=None)": "stop=None: expected a text",
        "generate(model, memory='1')": "memory='1': must be a number",
        "generate(model, temperature=None)": "temperature=None: must be a number",
        "generate(model, top_p='1')": "top_p='1': must be a number",
        "generate(model, top_k=2.5)": "top_k=2.5: must be a whole number",
        "generate(model, logit_bias={1.5: 1.0})": "logit_bias=1.5: must be a whole number",
        "generate(model, logit_bias={1: 'x'})": "logit_bias='x': must be a number",
        "predict(model, 'a', top_k=2.5)": "top_k=2.5: must be a whole number",
    }
    lines = ["import llucid", "from llucid.generation import generate, predict", "model = llucid.load('storyteller')"]
    for call in calls:
        lines += ["try:", f"    {call}", "except llucid.errors.LlucidError as error:", "    print(error)"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=LIMIT)
    assert done.stdout.splitlines() == [*calls.values()], done.stderr


def test_a_batch_of_no_samples_is_refused_and_of_no_prompts_is_empty():
    for samples in (0, 100_001, 10**12):
        with pytest.raises(LlucidError, match=f"num={samples}: must be from 1 to"):
            generate_batch(MODEL, ["a"], samples=samples)
    assert generate_batch(MODEL, []) == []


def test_the_same_seed_gives_the_same_text_and_another_does_not():
    def text(seed: int | None) -> str:
        return "".join(generate(MODEL, "once", max_tokens=40, temperature=1.0, seed=seed))

    assert text(1) == text(1)
    assert len({text(1), text(2), text(3), text(None), text(None)}) == 5


def test_settings_that_are_not_given_are_the_model_s_own():
    """As in transformers, whose `generate` reads them from the same file."""

    def text(**options: Any) -> str:
        [completion] = generate_batch(MODEL._replace(sampling=own), ["once"], max_tokens=40, seed=1, **options)
        return completion.text

    own: dict[str, Any] = {}
    usual, greedy = text(), text(temperature=0.0)
    assert usual != greedy
    own = {"temperature": 1e-6, "top_p": 1.0}
    assert text() == greedy
    assert text(temperature=0.8, top_p=0.95) == usual
    own = {"temperature": -1.0}  # impossible
    assert text() == usual


def test_ended_texts_get_no_more_tokens():
    """While others in the batch continue."""
    some = generate_batch(MODEL, ["a", "the", "of", "man"], max_tokens=40, temperature=1.0, seed=3, stop=["e"])
    assert len({len(completion.tokens) for completion in some}) > 1
    for completion in some:
        written = MODEL.text().decode(completion.tokens)
        assert written == completion.text + "e" * (completion.reason == "stop")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_equals_separate_prompts(temperature: float):
    prompts = ["a", "once upon a time there", "", "the man"]
    batch = generate_batch(MODEL, prompts, max_tokens=45, temperature=temperature, seed=3)
    for prompt, completion in zip(prompts, batch, strict=True):
        separate = "".join(generate(MODEL, prompt, max_tokens=45, temperature=temperature, seed=3))
        assert (completion.prompt, completion.text) == (prompt, separate)
        assert MODEL.text().decode(completion.tokens) == separate
        assert (completion.reason, completion.slid, len(completion.tokens)) == ("length", True, 45)


def test_samples_differ_and_the_first_equals_a_single_one():
    batch = generate_batch(MODEL, ["a", "b"], samples=4, max_tokens=20, temperature=1.0, seed=3)
    assert [completion.prompt for completion in batch] == [*"aaaabbbb"]
    assert len({completion.text for completion in batch}) == 8
    for completion in (batch[0], batch[4]):
        separate = generate(MODEL, completion.prompt, max_tokens=20, temperature=1.0, seed=3)
        assert completion.text == "".join(separate)
    repeated = generate_batch(MODEL, ["a", "b", "a"], max_tokens=20, temperature=1.0, seed=3)
    assert [completion.text for completion in repeated] == [batch[0].text, batch[4].text, batch[1].text]


def test_a_stop_string_ends_the_text_and_is_not_shown():
    whole = "".join(generate(MODEL, "once", max_tokens=30, seed=0, temperature=1.0))
    stop = whole[10:13]
    end = whole.index(stop)
    pieces = list(generate(MODEL, "once", max_tokens=30, seed=0, temperature=1.0, stop=["zzzz", stop]))
    assert "".join(pieces) == whole[:end]
    (completion,) = generate_batch(MODEL, ["once"], max_tokens=30, seed=0, temperature=1.0, stop=stop)
    assert (completion.text, completion.reason, len(completion.tokens)) == (whole[:end], "stop", end + 3)


def test_the_beginning_of_a_stop_string_is_shown_if_the_text_ends():
    whole = "".join(generate(MODEL, "once", max_tokens=12, seed=0, temperature=1.0))
    cut = list(generate(MODEL, "once", max_tokens=12, seed=0, temperature=1.0, stop=[whole[-2:] + "qqq"]))
    assert "".join(cut) == whole


def test_a_stop_id_ends_the_text_and_has_no_text():
    tokenizer = WithBos(LETTERS)
    script = tokenizer.encode("abcd e")
    model = model_that_writes(Model(MODEL.config, MODEL.weights, tokenizer), script)
    (completion,) = generate_batch(model, ["a"], max_tokens=30, temperature=0.0)
    assert (completion.text, completion.reason, completion.tokens) == ("bcd", "stop", tuple(script[1:5]))


def test_prompt_ids():
    assert prompt_ids(Characters("\nab"), "ab") == [1, 2]
    assert prompt_ids(Characters("\nab"), "") == [0]
    assert prompt_ids(Characters("ab\t"), "") == [0]
    assert prompt_ids(Characters("\t\nab"), "") == [1]
    assert prompt_ids(WithBos(LETTERS), "a") == [0, 5]
    assert prompt_ids(WithBos(LETTERS), "") == [0]
    assert prompt_ids(BYTES, "") == BYTES.encode("\n")


def test_the_id_before_an_empty_prompt_is_not_shown():
    model = model_that_writes(MODEL, MODEL.text().encode("\nabc"))
    assert list(generate(model, max_tokens=3, temperature=0.0)) == ["a", "b", "c"]


@pytest.mark.parametrize("with_bos", [True, False])
def test_bos_stays_when_the_window_slides(with_bos: bool, monkeypatch: pytest.MonkeyPatch):
    tokenizer = WithBos(LETTERS) if with_bos else Characters(LETTERS)
    monkeypatch.setattr(tokenizer, "stop_ids", frozenset(), raising=False)
    batch = Batch(small_model(tokenizer))
    batch.add(Request(prompt_ids(tokenizer, "abc"), Sampling(), generator(0), lambda token: False, 60))
    rows: list[tuple[bool, list[int]]] = []
    for _ in range(60):
        (text,) = [*batch.running, *batch.waiting]
        before = list(text.ids)
        rows += [(event.slid, before) for event in batch.step()]
    after = [row for slid, row in rows if slid]
    assert [len(row) for row in after] == [16, 16]
    assert not with_bos or all(row[0] == tokenizer.bos for row in after)


def test_past_context():
    for past_context, tokens, slid, reason in (("slide", 60, True, "length"), ("stop", 30, False, "context")):
        statistics = Statistics()
        text = "".join(
            generate(MODEL, "abc", max_tokens=60, past_context=past_context, statistics=statistics)  # pyright: ignore
        )
        assert (len(text), statistics.slid, statistics.reason) == (tokens, slid, reason)


def words_with_spaces() -> JsonTokenizer:
    """Words that include the space before them, which decoding removes from the first, as in SentencePiece."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "▁a": 1, "▁b": 2, "▁c": 3}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens(["<s>"])
    return JsonTokenizer(json.loads(tokenizer.to_str()))


def test_a_space_between_the_prompt_and_its_continuation_is_shown():
    model = model_that_writes(small_model(words_with_spaces()), [1, 2, 3])
    assert list(generate(model, "a", max_tokens=2, temperature=0.0)) == [" b", " c"]
    assert predict(model, "a", 1)[0].token == " b"


def test_special_tokens_are_predicted_by_name():
    tokenizer = words_with_spaces()
    assert {prediction.token for prediction in predict(small_model(tokenizer), "a", 9)} >= {"<s>", " a", " b", " c"}


@pytest.mark.parametrize("stop", [[], ["\ufffd"], ["zz"]])
def test_byte_tokens_never_show_half_a_character(stop: list[str]):
    ids = BYTES.encode("🎉é日")
    assert len(ids) == len("🎉é日".encode()) == 9
    assert len(set(ids)) == 9
    model = model_that_writes(small_model(BYTES), [*BYTES.encode("a"), *ids])
    pieces = list(generate(model, "a", max_tokens=9, temperature=0.0, stop=stop))
    assert pieces == ["🎉", "é", "日"]
    # The bytes of a character that is never complete are shown as decoding all ids shows them.
    pieces = list(generate(model, "a", max_tokens=8, temperature=0.0))
    assert "".join(pieces) == BYTES.decode(ids[:8]) == "🎉é\ufffd"
    assert not any("\ufffd" in piece for piece in pieces[:-1])


def test_pieces_of_any_bytes_join_to_the_whole_text():
    model = small_model(BYTES)
    for completion in generate_batch(model, ["a", "👩", ""], samples=3, max_tokens=50, temperature=1.0, seed=0):
        before = BYTES.encode(completion.prompt or "\n")
        after = BYTES.decode([*before, *completion.tokens])
        assert (completion.prompt or "\n") + completion.text == after


def test_ids_beyond_the_tokenizer_are_never_chosen():
    model = small_model(Characters("abcd"), vocab_size=64)
    for temperature in (0.0, 2.0):
        text = "".join(generate(model, "a", max_tokens=30, temperature=temperature, top_p=None, seed=0))
        assert len(text) == 30
    assert sum(prediction.probability for prediction in predict(model, "a", 64)) == pytest.approx(1, abs=1e-5)
    assert "<token 63>" in {prediction.token for prediction in predict(model, "a", 64)}


def test_predictions_are_the_softmax_in_descending_order():
    logits = llama(torch.tensor([MODEL.text().encode("once")]), MODEL.weights, MODEL.config)[0, -1]
    probabilities = logits.softmax(-1)
    found = predict(MODEL, "once", top_k=4)
    assert len(found) == 4
    assert [prediction.id for prediction in found] == probabilities.argsort(descending=True)[:4].tolist()
    for prediction in found:
        assert prediction.token == LETTERS_IN_ORDER[prediction.id]
        assert prediction.probability == pytest.approx(float(probabilities[prediction.id]))
    assert len(predict(MODEL, "once", top_k=999)) == MODEL.config.vocab_size


LETTERS_IN_ORDER = sorted(LETTERS)
DAMAGED = tree_map(lambda leaf: leaf * math.nan, MODEL.weights)


def test_equally_likely_predictions_are_sorted_by_id():
    flat = tree_map(torch.zeros_like, MODEL.weights)
    found = predict(MODEL._replace(weights=flat), "a", top_k=3)
    assert [(prediction.id, prediction.probability) for prediction in found] == [
        (number, pytest.approx(1 / MODEL.config.vocab_size)) for number in range(3)
    ]


def test_predictions_of_partial_characters_have_a_name():
    model = small_model(BYTES)
    names = {prediction.id: prediction.token for prediction in predict(model, "a", 999)}
    (half, *_) = BYTES.encode("é")
    assert names[half] == f"<token {half}>"
    assert names[BYTES.encode("b")[0]] == "b"


@pytest.mark.parametrize(
    ("message", "ask"),
    [
        (
            "scores are not finite",
            lambda: predict(MODEL._replace(weights=tree_map(lambda leaf: leaf * math.nan, MODEL.weights)), "a"),
        ),
        ("top_k=0: must be", lambda: predict(MODEL, "a", 0)),
        ("the prompt has 33 tokens", lambda: predict(MODEL, "a" * 33)),
    ],
)
def test_invalid_predictions_are_refused(message: str, ask: Callable[[], object]):
    with pytest.raises(LlucidError, match=message):
        ask()
