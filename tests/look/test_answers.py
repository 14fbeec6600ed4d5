"""Requests that the page does not make: each is refused in words."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import llucid
from llucid import LlucidError
from llucid.chat import STORYTELLER
from llucid.look.answers import Answers, Subject, summary
from llucid.tokenizers.characters import Characters
from tests.look.test_trace import GROUPED, random_model, some_ids


@pytest.fixture(scope="module")
def answers() -> Answers:
    return Answers([Subject("a", lambda: random_model(GROUPED))], some_ids(GROUPED))


@pytest.mark.parametrize("slice_", ["--1", "-", "1-", "0,,2", "9" * 5000, "x"])
def test_slices_that_are_no_numbers(answers: Answers, slice_: str) -> None:
    with pytest.raises(LlucidError, match="expected at most 3 whole numbers or colons"):
        answers.get(f"/look/{answers.first}/value?as=f32&name=logits&slice={slice_}")


def test_what_cannot_be_scaled(answers: Answers) -> None:
    change = {"kind": "scale", "name": "tokens", "factor": 2}
    with pytest.raises(LlucidError, match="tokens: does not hold numbers that can be scaled"):
        answers.post(f"/look/{answers.first}/edit", {"changes": [change]})


@pytest.mark.parametrize("body", [{"ids": [True, False]}, {"ids": [0, 1], "model": False}])
def test_truth_values_are_no_numbers(answers: Answers, body: dict[str, Any]) -> None:
    with pytest.raises(LlucidError, match="whole number"):
        answers.post("/look/read", body)


def test_a_model_with_another_tokenizer_reads_the_text() -> None:
    """The ids of one are another text to the other, unless only a special token has another name."""
    config = replace(GROUPED, vocab_size=6)
    latin, greek = (random_model(config)._replace(tokenizer=Characters(letters)) for letters in ("abcdef", "abαβγδ"))
    renamed = latin._replace(tokenizer=Characters("abcdef"))
    renamed.tokenizer.special = {"<s>": 2}
    answers = Answers([Subject("", lambda each=each: each) for each in (latin, greek, renamed)], "abc")
    both = answers.read(0, "ab")
    assert answers.trace(answers.read_again(1, both)).tokens == ["a", "b"]
    with pytest.raises(LlucidError, match="'c' cannot be encoded"):
        answers.read_again(1, answers.first)
    story = llucid.load(STORYTELLER)  # has special tokens where the other has letters
    both = Answers([Subject("", lambda each=each: each) for each in (latin, story)], "ab")
    assert both.trace(both.read_again(1, both.first)).tokens == ["<|begin_of_text|>", "ab"]
    other = answers.read(1, "αβ")
    assert answers.trace(other).ids == [2, 3]
    with pytest.raises(LlucidError, match="'α', 'β' cannot be encoded"):
        answers.post("/look/read", {"of": other})
    assert answers.trace(answers.read_again(2, answers.first)).tokens == ["a", "b", "<s>"]
    with pytest.raises(LlucidError, match="no reading of this name"):
        answers.post("/look/read", {"of": "x"})


def test_two_models_are_told_apart_by_more_than_their_first_rows() -> None:
    """Only these are hashed, since models are large."""
    one = random_model(GROUPED)
    key = one.weights.blocks[0].attention.key.clone()
    key[1:] *= 2
    attention = one.weights.blocks[0].attention._replace(key=key)
    blocks = (one.weights.blocks[0]._replace(attention=attention), *one.weights.blocks[1:])
    other = one._replace(weights=one.weights._replace(blocks=blocks))
    answers = Answers([Subject("a", lambda: one), Subject("b", lambda: other)], some_ids(GROUPED))
    beside = answers.read(1, some_ids(GROUPED))
    assert beside != answers.first
    assert not answers.trace(beside).logits.equal(answers.trace(answers.first).logits)


@pytest.mark.parametrize("factor", [0.0, 1e-44, 1e-40, 1e-38, 1e38])
def test_numbers_that_are_nearly_equal_have_a_histogram(factor: float) -> None:
    x = torch.tensor([0.0, 1.0, 2.0, 2.0]) * factor
    histogram = summary(x)["histogram"]
    assert sum(histogram) == 4
    assert histogram[0] == (4 if factor == 0 else 1)


@pytest.mark.parametrize(("top", "reason"), [(10**9, "the answer would be too large"), (0, "must be at least 1")])
def test_the_size_of_an_answer_is_bounded(answers: Answers, top: int, reason: str) -> None:
    with pytest.raises(LlucidError, match=f"top={top}: {reason}"):
        answers.get(f"/look/{answers.first}/lens?top={top}")


def test_values_of_other_sizes_have_no_difference() -> None:
    models = [random_model(replace(GROUPED, ffn_dim=width)) for width in (24, 40)]
    answers = Answers([Subject("", lambda each=each: each) for each in models], some_ids(GROUPED))
    other = answers.read(1, some_ids(GROUPED))
    for path, name in (("value", "blocks.0.feed_forward.gate"), ("weight", "blocks.0.feed_forward.gate")):
        with pytest.raises(LlucidError, match="values of other sizes cannot be compared"):
            answers.get(f"/look/{answers.first}/{path}?as=f32&minus={other}&name={name}")
    with pytest.raises(
        LlucidError, match="values of other sizes cannot be compared"
    ):  # though what is cut out is alike
        answers.get(f"/look/{answers.first}/value?as=f32&minus={other}&name=blocks.0.feed_forward.gate&slice=0,0,0")
