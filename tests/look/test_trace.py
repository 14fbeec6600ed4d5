"""What a trace says, against transformers, against changed weights, and against itself."""

import gc
import importlib
import inspect
import math
import re
import subprocess
import sys
import weakref
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor

import llucid
from llucid import LlucidError, Model
from llucid import llama as equations
from llucid.chat import STORYTELLER
from llucid.config import Config, RopeScaling
from llucid.corpora.fables import tale
from llucid.llama import llama
from llucid.look import Trace, ablate, head_scores, patch, scale, trace, zero_frequency
from llucid.look.answers import Answers, Subject
from llucid.look.heads import copying
from llucid.look.instrument import instrument
from llucid.look.watch import Watch
from llucid.tokenizers import load_tokenizer
from llucid.weights import dequantize, quantize, to, tree_map
from tests.checkpoints.models import model_of
from tests.configs import CONFIGS, SIZES
from tests.test_llama import as_transformers, random_weights

SEQ = 12
GROUPED = CONFIGS["one for two"]


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def model(request: pytest.FixtureRequest) -> Model:
    return random_model(request.param)


def random_model(config: Config) -> Model:
    return model_of(config)._replace(weights=random_weights(config))


def some_ids(config: Config, seed: int = 1) -> list[int]:
    return torch.randint(config.vocab_size, (SEQ,), generator=torch.Generator().manual_seed(seed)).tolist()


def trace_of(model: Model, **options: object) -> Trace:
    return trace(model, some_ids(model.config), **options)


def logits_of(model: Model) -> Tensor:
    return llama(torch.tensor([some_ids(model.config)]), model.weights, model.config)[0]


# ------------------------------------------------------------------------------------------------ oracles


@torch.no_grad()
def test_stream_and_attention_equal_those_of_transformers(model: Model) -> None:
    """Both round to float32 after each of some hundred operations: 1e-5 is some 170 roundings."""
    found = trace_of(model)
    theirs = as_transformers(model.config, model.weights)(
        torch.tensor([found.ids]), output_hidden_states=True, output_attentions=True
    )
    *streams, normed = theirs.hidden_states  # transformers normalises the last one
    torch.testing.assert_close(found.stream[:-1], torch.cat(streams), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["llama.x"], normed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.attention, torch.cat(theirs.attentions), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.logits, theirs.logits[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "state", [torch.autocast("cpu", torch.bfloat16), torch.device("meta")], ids=["autocast", "device"]
)
def test_the_callers_global_state_is_ignored(state: AbstractContextManager[object]) -> None:
    model = random_model(replace(GROUPED, rope_scaling=RopeScaling()))
    ids = some_ids(model.config)
    expected = trace(model, ids)
    with state:
        found = trace(model, ids)
        scores = head_scores(found)
    assert torch.equal(found.logits, expected.logits)
    torch.testing.assert_close(scores, head_scores(expected), rtol=0, atol=0, equal_nan=True)


def test_parts_add_up_to_every_logit(model: Model) -> None:
    """Parts in float64 of values in float32: the sum differs from the logit by the roundings of the pass."""
    found = trace_of(model)
    for position, token in ((0, 3), (5, 0), (-1, model.config.vocab_size - 1)):
        parts = found.attribution(position, token)
        assert len(parts) == 1 + model.config.layers * (model.config.heads + 1 + model.config.attention_bias)
        assert math.fsum(parts.values()) == pytest.approx(float(found.logits[position, token]), abs=1e-4)


def test_parts_of_a_changed_pass_add_up_too() -> None:
    changes = [scale("blocks.0.attention", 2.0), scale("blocks.1", 0.5), ablate(1, head=2)]
    found = trace_of(random_model(GROUPED), change=changes)
    parts = found.attribution(-1, 7)
    assert math.fsum(parts.values()) == pytest.approx(float(found.logits[-1, 7]), abs=1e-4)
    assert abs(parts["change"]) > 1e-3
    assert parts["blocks.1.heads.2"] == 0


@pytest.mark.parametrize("heads", [[1], [0, 3]])
def test_ablating_heads_equals_zeroing_columns_of_the_output_matrix(model: Model, heads: list[int]) -> None:
    found = trace_of(model, change=ablate(1, head=heads[0] if len(heads) == 1 else heads))
    output = model.weights.blocks[1].attention.output
    for head in heads:
        output[:, head * model.config.head_dim : (head + 1) * model.config.head_dim] = 0
    torch.testing.assert_close(found.logits, logits_of(model), rtol=1e-5, atol=1e-5)
    assert not torch.equal(found.logits, trace_of(random_model(model.config)).logits)


def test_heads_may_be_numbers_of_libraries() -> None:
    """As `np.unravel_index` gives them, and as tensors."""
    model = random_model(GROUPED)
    expected = trace_of(model, change=ablate(1, head=2)).logits
    for kind in (np.int64, np.array, torch.tensor):
        assert trace_of(model, change=ablate(kind(1), head=kind(2))).logits.equal(expected)
        assert trace_of(model, change=ablate(1, head=[kind(2)])).logits.equal(expected)
    both = trace_of(model, change=ablate(1, head=[0, 2])).logits
    for kind in (np.array, torch.tensor):
        assert trace_of(model, change=ablate(1, head=kind([0, 2]))).logits.equal(both)
    with pytest.raises(LlucidError, match="head=1: a feed-forward has no heads"):
        ablate(0, head=1, part="feed_forward")


def test_what_is_no_list_of_ids() -> None:
    """In a process whose annotations are not checked, as at a user's."""
    code = (
        "import llucid, llucid.look, numpy, torch; model = llucid.load('storyteller')\n"
        "for kind in (list, numpy.array, torch.tensor): assert llucid.look.trace(model, kind([1, 2])).ids == [1, 2]\n"
        "for wrong in ([1.7, 2.0], torch.tensor([[1, 2]]), numpy.array([[1, 2]]), torch.ones(2)):\n"
        "    try: llucid.look.trace(model, wrong)\n"
        "    except llucid.LlucidError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "the ids must be whole numbers in one list, not in a batch of several\n" * 4


@pytest.mark.parametrize("part", ["attention", "feed_forward", None])
def test_ablating_a_part_equals_zeroing_its_last_matrix(part: str | None) -> None:
    model = random_model(GROUPED)
    found = trace_of(model, change=ablate(0, part=part))
    block = model.weights.blocks[0]
    if part != "feed_forward":
        block.attention.output.zero_()
    if part != "attention":
        block.feed_forward.down.zero_()
    torch.testing.assert_close(found.logits, logits_of(model), rtol=1e-5, atol=1e-5)


def test_scaling_equals_scaled_weights() -> None:
    model = random_model(GROUPED)
    found = trace_of(model, change=scale("blocks.1.attention.v", 3.0))
    model.weights.blocks[1].attention.value.mul_(3)
    torch.testing.assert_close(found.logits, logits_of(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["one for two", "scaling of Llama 3.1"])
def test_without_frequencies_the_order_of_earlier_tokens_does_not_matter(name: str) -> None:
    """In one layer; with RoPE it does."""
    config = replace(CONFIGS[name], layers=1)
    model, ids = random_model(config), some_ids(config)
    swapped = [ids[1], ids[0], *ids[2:]]
    still = [zero_frequency(pair) for pair in range(config.head_dim // 2)]
    without = [trace(model, each, change=still).logits[-1] for each in (ids, swapped)]
    torch.testing.assert_close(*without, rtol=1e-5, atol=1e-5)
    assert (trace(model, ids).logits[-1] - trace(model, swapped).logits[-1]).abs().max() > 1e-3


def test_patching_everything_gives_the_others_logits(model: Model) -> None:
    one, other = trace(model, some_ids(model.config, 1)), trace(model, some_ids(model.config, 2))
    patched = trace(model, one.ids, change=patch("*", other))
    assert torch.equal(patched.logits, other.logits)
    assert not torch.equal(one.logits, other.logits)
    stream = trace(model, one.ids, change=patch("blocks.1", other))  # the last: nothing else reaches the logits
    assert torch.equal(stream.logits, other.logits)


def test_a_pattern_of_names_is_short() -> None:
    """It takes time with the square of its length."""
    one = trace_of(random_model(GROUPED))
    with pytest.raises(LlucidError, match="a…: a name of more than 1000 characters"):
        patch("[a-" * 400, one)
    for options in ({"change": scale("[a-" * 400, 2.0)}, {"only": ["x", "[a-" * 400]}):
        with pytest.raises(LlucidError, match="a…: a name of more than 1000 characters"):
            trace(one.model, one.ids, **options)


def test_patching_one_position_changes_only_later_ones() -> None:
    model = random_model(GROUPED)
    one, other = trace(model, some_ids(GROUPED, 1)), trace(model, some_ids(GROUPED, 2))
    patched = trace(model, one.ids, change=patch("blocks.0", other, position=5))
    assert torch.equal(patched["blocks.0"][0, 5], other["blocks.0"][0, 5])
    assert torch.equal(patched.logits[:5], one.logits[:5])
    assert not torch.isclose(patched.logits[5:], one.logits[5:]).all(-1).any()


# ------------------------------------------------------------------------------------------------ names and shapes


def test_values_have_the_shapes_of_their_annotations(model: Model) -> None:
    """Every parameter and every result, and what is said of axes."""
    found, config, checked = trace_of(model), model.config, set()
    values = {value.name: value for value in found.names(expressions=True)}
    for seen in found.seen:
        site = found.sites[seen.site]
        if site.kind in ("parameter", "result") and not seen.is_weight:
            signature = inspect.signature(getattr(equations, site.function))
            annotation = signature.return_annotation
            if site.kind == "parameter":
                annotation = signature.parameters[site.text].annotation
            with jaxtyping.jaxtyped("context"):
                assert isinstance(found[seen.name], annotation), (seen.name, annotation)
            checked.add((site.function, site.kind))
    assert {("rms_norm", "result"), ("attend", "parameter"), ("llama", "result")} <= checked
    lengths = dict(batch=1, seq=SEQ, slots=SEQ, dim=config.dim, heads=config.heads, kv_heads=config.kv_heads)
    lengths |= dict(group=config.heads // config.kv_heads, head_dim=config.head_dim, half=config.head_dim // 2)
    lengths |= dict(q=config.heads * config.head_dim, kv=config.kv_heads * config.head_dim)
    lengths |= dict(ffn=config.ffn_dim, vocab=config.vocab_size)
    for value in values.values():
        assert value.shape == tuple(found[value.name].shape)
        assert len(value.axes) == len(value.shape)
        assert all(lengths[axis] == size for axis, size in zip(value.axes, value.shape, strict=True) if axis)


def test_names() -> None:
    """The names in llama.py: renaming a variable there renames it here, and in lessons and notebooks."""
    block = """
        attention_norm.x_wide attention_norm normed attention.q attention.k attention.v attention.attend.q
        attention.attend.k attention.attend.v attention.pairs attention.pairs.2 attention.attend.q.2
        attention.attend.k.2 attention.mask attention.m attention.attention_written_out.q attention.scores attention.p
        attention.attention_written_out attention.attend attention x feed_forward_norm.x_wide feed_forward_norm normed.2
        feed_forward.gate feed_forward
    """
    first = [f"blocks.0.{name}" for name in block.split()]
    second = [name.replace("blocks.0", "blocks.1") for name in first]
    assert [value.name for value in trace_of(random_model(GROUPED)).names()] == [
        *("tokens positions j rope_frequencies theta angles rotations rotation x".split()),
        *(*first, "blocks.0", "x.2", *second, "blocks.1", "x.3"),
        *("norm.x_wide norm llama.x unembed logits".split()),
    ]


def test_the_streams_of_all_layers_have_named_axes() -> None:
    found = trace_of(random_model(replace(GROUPED, layers=3)))
    axes = {value.name: value.axes for value in found.names()}
    assert [axes[name] for name in ("x", "x.2", "x.3", "x.4")] == 4 * [("batch", "seq", "dim")]
    patch("x.3", found, 1)


def test_every_name_shows_where_it_is_in_the_source() -> None:
    lines = inspect.getsource(equations).splitlines()
    found = trace_of(random_model(GROUPED))
    for value in found.names(expressions=True):
        line, start, last, end = value.spans[0]
        assert line == value.line
        if line == last and value.kind != "result":
            assert lines[line - 1][start:end] == value.text
    p = next(value for value in found.names() if value.name == "blocks.1.attention.p")
    assert (p.function, p.text, p.layer) == ("attention_written_out", "p", 1)
    assert p.axes == ("batch", "kv_heads", "group", "seq", "slots")
    assert [lines[line - 1][start:end] for line, start, _, end in p.spans] == ["p", "scores.softmax(-1)"]


def test_recomputed_values_are_equal() -> None:
    """Also after changes; `only` keeps what the pass itself computed."""
    model, changes = random_model(GROUPED), [ablate(0, head=1), scale("blocks.1.attention.scores", 2.0)]
    again, kept = trace_of(model, change=changes), trace_of(model, change=changes, only=["*"])
    names = [value.name for value in kept.names(expressions=True)]
    assert len(names) > 100
    for name in reversed(names):
        assert torch.equal(again[name], kept[name]), name


def test_scores_stay_as_they_were_before_the_mask_is_added_in_place() -> None:
    found = trace_of(random_model(GROUPED))
    assert found["blocks.0.attention.q @ k[:, :, None].mT"].isfinite().all()
    assert found["blocks.0.attention.scores"].isinf().any()


RESIDUAL = "x = x + drop(attention(normed, weights.attention, config, at), config.dropout, dropout)"
SCORES = "scores = (q @ k[:, :, None].mT).add_(m[:, :, None])"
GATE = "gate = F.silu(linear(x, weights.gate, weights.gate_bias))"
PASS = """        x = block(x, block_weights, config, Placement(rotation, mask, cache, layer), dropout)"""
LOGITS = "logits = unembed(x, weights)"
MORE = "        given = dict(config=config, at=Placement(rotation, mask, cache, layer))\n"
OUTPUT = "return linear(attend(q, k, v, config.head_dim, at), weights.output, weights.output_bias)"
LAYERS, TURN, P = "    for layer, block_weights", "    turn = rotate_real", "p = scores.softmax(-1)"
EDITS = {
    "augmented": (RESIDUAL, RESIDUAL.replace("x = x +", "x +=")),
    "augmented twice": (RESIDUAL, f"{RESIDUAL}\n    before = x\n    x *= 0.5\n    x = x + 0.1 * before"),
    "item": (RESIDUAL, f"{RESIDUAL}\n    x[:, 0] = 1.0\n    x[:, 1:, 2] *= 3"),
    "method": (RESIDUAL, f"{RESIDUAL}\n    x.mul_(0.5)"),
    "method of a part": (RESIDUAL, f"{RESIDUAL}\n    x[..., 0].zero_()"),
    "view": (RESIDUAL, f"{RESIDUAL}\n    part = x[..., :3]\n    part.zero_()"),
    "copy": (RESIDUAL, f"total = torch.zeros_like(x)\n    total.copy_({RESIDUAL[4:]})\n    x = total"),
    "out": (RESIDUAL, f"added = {RESIDUAL[8:]}\n    torch.add(x, added, out=added)\n    x = added"),
    "mask": (SCORES, "scores = q @ k[:, :, None].mT\n    scores.masked_fill_(~mask[:, :, None], -math.inf)"),
    "function": (GATE, f"{GATE.replace('F.silu(', '(')}\n    torch.relu_(gate)"),
    "option": (GATE, f"{GATE.replace('F.silu(', '(')}\n    F.silu(gate, inplace=True)"),
    "in the block": ("    return x + drop(swiglu", "    x *= 2\n    return x + drop(swiglu"),
    "what is given": ("    normed = rms_norm(x, weights.attent", "    x += 1\n    normed = rms_norm(x, weights.attent"),
    "names": (PASS, PASS.replace("config, ", "config=config, at=").replace(", dropout)", ", dropout=dropout)")),
    "only names": (PASS, f"{MORE}        x = block(weights=block_weights, x=x, **given)"),
    "twice": (PASS, f"        for _ in range(2):\n    {PASS}"),
    "own linear": ("def wide(", "def linear(x, w, bias=None):\n    return 0.9 * (x @ w.T)\n\n\ndef wide("),
    "class": (RESIDUAL, f"match at:\n        case Placement(layer=0):\n            {RESIDUAL}\n"
              f"        case _:\n            x = x - {RESIDUAL[8:]}"),
    "list": ("    q, k, v = linear_each(", "    [q, k, v] = linear_each("),
    "cap": (LOGITS, f"{LOGITS}\n    logits = 3 * torch.tanh(logits / 3)"),
    "scale": (RESIDUAL, RESIDUAL.replace("x = x +", "x = 0.5 * x +")),
    "PyTorch's linear": (GATE, GATE.replace("linear(x, weights.gate", "F.linear(x, weights.gate")),
    "a product of two": (GATE, "gate = F.silu((weights.gate @ x.mT).mT)"),
    "einsum": (GATE, 'gate = F.silu(torch.einsum("bsd,fd->bsf", *(x, weights.gate.to(x.dtype))))'),
    "einsum of options": (GATE, 'gate = F.silu(torch.einsum("...d,fd->...f", x, weights.gate))'),
    "embedding scaled": (LAYERS, f"    x = x * math.sqrt(config.dim)\n{LAYERS}"),
    "after each block": (PASS, f"{PASS}\n        x = x * 0.5"),
    "attention again": (P, f"{P}\n    p = p * (p > 0.01)\n    p = p / p.sum(-1, keepdim=True)"),
    "norms of queries": (TURN, f"    q, k = (F.rms_norm(each, (head_dim,)) for each in (q, k))\n{TURN}"),
    "sharper": ("q = (q / ", "q = (3 * q / "),
    "capped scores": (SCORES, SCORES.replace("(q @ k[:, :, None].mT)", "(2 * torch.tanh(q @ k[:, :, None].mT / 2))")),
    "no output matrix": (OUTPUT, "return attend(q, k, v, config.head_dim, at)"),
}  # fmt: skip
"""What a reader might write in llama.py instead."""


@pytest.mark.parametrize("name", EDITS)
def test_a_llama_that_was_changed_in_its_source(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes what the module computes, and every value is what it was when it was seen."""
    text, (old, new) = inspect.getsource(equations), EDITS[name]
    assert old in text
    (tmp_path / "edited_llama.py").write_text(text.replace(old, new))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "edited_llama", raising=False)
    edited = importlib.import_module("edited_llama")
    monkeypatch.setattr(edited, "attention_fast", lambda q, k, v, mask, written_out: written_out(q, k, v, mask))
    monkeypatch.setattr(importlib.import_module("llucid.look.trace"), "MODULE", "edited_llama")
    instrument.cache_clear()
    model, ids = random_model(GROUPED), some_ids(GROUPED)
    names = {seen.name for seen in trace(model, ids).seen if not seen.is_weight}
    then: dict[str, Tensor] = {}

    def noted(value: Tensor, name: str) -> Tensor:
        then[name] = value.clone()
        return value

    found = trace(model, ids, change={each: partial(noted, name=each) for each in names})
    before = dict(then)
    given: list[Tensor] = []
    block = edited.block

    def noted_block(*arguments: Any, **named: Any) -> Tensor:
        given.append(named.get("x", *arguments[:1]).clone())
        return block(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(edited, "block", noted_block)
        logits = edited.llama(torch.tensor([ids]), model.weights, model.config)[0]
    torch.testing.assert_close(found.logits, logits, rtol=1e-5, atol=1e-5)
    first = torch.cat(given[:: len(given) // GROUPED.layers])
    torch.testing.assert_close(found.stream[:-1], first, rtol=1e-5, atol=1e-5)
    if name != "cap":
        torch.testing.assert_close(found.lens_logits[-1], logits, rtol=1e-5, atol=1e-5)
    for each in sorted(names, reverse=True):
        assert torch.equal(found[each], before[each]), each
    narrow = to(model.weights, torch.bfloat16)
    wide = edited.llama(torch.tensor([ids]), to(narrow, torch.float32), model.config)[0]
    torch.testing.assert_close(trace(model._replace(weights=narrow), ids).logits, wide, rtol=1e-5, atol=1e-5)
    plain = trace(model, ids)
    assert torch.equal(plain.logits, found.logits)
    [q] = (value for value in plain.names() if value.name == "blocks.0.attention.attend.q")
    assert q.axes == ("batch", "heads", "seq", "head_dim")
    at, answers = "blocks.1.attention", Answers([Subject("a", lambda: model)], plain)
    v = plain.last(f"{at}.attend.v")[0].repeat_interleave(2, 0)
    torch.testing.assert_close(plain.attention_of(1) @ v, plain.last(f"{at}.attention_written_out")[0])
    if name == "capped scores":
        with pytest.raises(LlucidError, match="makes its scores in another way"):
            answers.clocks(answers.first, 1, 2, 4, 3)
    else:
        score = float(plain.last(f"{at}.scores")[0].flatten(0, 1)[2, 4, 3])
        assert answers.clocks(answers.first, 1, 2, 4, 3)["score"] == pytest.approx(score, rel=1e-4, abs=1e-5)
    parts = plain.attribution(4, 7)
    assert sum(parts.values()) == pytest.approx(float(logits[4, 7]), rel=1e-3, abs=1e-3)


def test_weights_with_gradients_and_one_array_for_two_gains() -> None:
    """What the lessons train; and, by hand, the same gain in all norms."""
    model = random_model(GROUPED)
    plain, ids = trace(model, some_ids(GROUPED)), some_ids(GROUPED)
    gain = model.weights.norm
    blocks = [block._replace(attention_norm=gain, feed_forward_norm=gain) for block in model.weights.blocks]
    shared = model._replace(weights=model.weights._replace(blocks=tuple(blocks)))
    named = {value.name for value in plain.names(expressions=True)}
    assert {value.name for value in trace(shared, ids).names(expressions=True)} == named
    trained = trace(model._replace(weights=tree_map(lambda leaf: leaf.clone().requires_grad_(), model.weights)), ids)
    assert trained.attribution(4, 7) == plain.attribution(4, 7)
    answers = Answers([Subject("a", lambda: trained.model)], trained)
    for path in ("", "/heads", "/stream", "/summaries", "/weight?as=f32&name=norm", "/value?as=f32&name=logits"):
        assert answers.get(f"/look/{answers.first}{path}").body


def test_a_value_that_is_changed_later_is_right_on_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread finds meanwhile that it must be copied."""
    found, spoiled = trace_of(random_model(GROUPED)), Watch.spoiled

    def meanwhile(watch: Watch) -> set[str]:
        names = spoiled(watch)
        found._copies |= names
        return names

    monkeypatch.setattr(Watch, "spoiled", meanwhile)
    assert found["blocks.0.attention.q @ k[:, :, None].mT"].isfinite().all()  # before the mask is added in place


def test_only_named_values_are_kept() -> None:
    found = trace_of(random_model(GROUPED), only=["blocks.*.attention.p", "logits"])
    assert found.attention.shape == (2, 4, SEQ, SEQ)
    assert found.logits.shape == (SEQ, GROUPED.vocab_size)
    with pytest.raises(LlucidError, match=r"blocks\.0: not kept"):
        found["blocks.0"]


# ------------------------------------------------------------------------------------------------ what is worked out


def test_the_last_lens_is_the_prediction(model: Model) -> None:
    found = trace_of(model)
    torch.testing.assert_close(found.lens_logits[-1], found.logits, rtol=1e-6, atol=1e-6)
    lens = found.logit_lens(top=3)
    best = found.lens_logits.softmax(-1).topk(3)
    assert torch.equal(lens.ids, best.indices)
    torch.testing.assert_close(lens.p, best.values)
    assert lens.tokens[-1][4][0] == model.tokenizer.decode([int(found.logits[4].argmax())])


def test_repr_of_a_trace() -> None:
    assert re.fullmatch(r"<Trace of 12 tokens, \d\d\d values>", repr(trace_of(random_model(GROUPED))))
    changed = trace_of(random_model(GROUPED), change=scale("blocks.0", 2.0))
    assert repr(changed).endswith(" values, changed: blocks.0>")


def test_surprise_is_the_loss_of_each_token() -> None:
    found = trace_of(random_model(GROUPED))
    p = found.logits.double().softmax(-1)
    expected = [-math.log(p[at, token]) for at, token in enumerate(found.ids[1:])]
    assert found.surprise[0].isnan()
    assert found.surprise[1:].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_are_shown_dequantised(bits: int) -> None:
    model = random_model(Config(**SIZES | dict(ffn_dim=64)))
    held = model._replace(weights=quantize(model.weights, bits))
    found = trace_of(held)
    plain = trace_of(model._replace(weights=dequantize(held.weights)))
    torch.testing.assert_close(found.logits, plain.logits, rtol=1e-5, atol=1e-5)
    assert found.attribution(-1, 3) == pytest.approx(plain.attribution(-1, 3), abs=1e-4)
    torch.testing.assert_close(copying(held), copying(model._replace(weights=dequantize(held.weights))))


@pytest.mark.parametrize("dtype", [None, "float16", "q8_0"])
def test_mapped_weights_are_taken_as_tensors(dtype: str | None, tmp_path: Path) -> None:
    model = random_model(Config(**SIZES | dict(ffn_dim=64)))
    llucid.save(model, tmp_path / "a.gguf", "gguf", dtype=dtype)
    plain = llucid.load(tmp_path / "a.gguf", device="cpu", quantize="file")
    mapped = llucid.load(tmp_path / "a.gguf", device="cpu", quantize="file", mapped=True)
    assert not isinstance(mapped.weights.norm, Tensor)
    assert torch.equal(trace_of(mapped).logits, trace_of(plain).logits)
    assert torch.equal(copying(mapped), copying(plain))
    answers = [Answers([Subject("a", lambda model=model: model)], some_ids(plain.config)) for model in (mapped, plain)]
    assert answers[0].first == answers[1].first  # it has the fingerprint of the weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_computed_in_float32(dtype: torch.dtype) -> None:
    model = random_model(GROUPED)
    narrow = model._replace(weights=to(model.weights, dtype))
    found, wide = trace_of(narrow), trace_of(model._replace(weights=to(narrow.weights, torch.float32)))
    assert found["blocks.1.attention.p"].dtype == torch.float32
    torch.testing.assert_close(found.logits, wide.logits, rtol=1e-6, atol=1e-6)


def test_matrices_are_widened_some_rows_at_a_time_and_let_go_of_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when Python next collects cycles: a block of a large model is hundreds of megabytes."""
    model = random_model(GROUPED)
    narrow = model._replace(weights=to(model.weights, torch.bfloat16))
    whole = trace_of(narrow).logits
    module = importlib.import_module("llucid.look.instrument")
    widened, made = module.widened, list[weakref.ref[Tensor]]()

    def noted(leaf: Tensor) -> Tensor:
        wide = widened(leaf)
        assert wide.numel() <= 5 * leaf.shape[-1]
        made.append(weakref.ref(wide))
        return wide

    monkeypatch.setattr(module, "widened", noted)
    monkeypatch.setattr(module, "AT_ONCE", 5 * GROUPED.dim)
    gc.collect()
    gc.disable()
    try:
        found = trace_of(narrow)
        assert found.attention.shape[0] == 2
        assert len(made) > 2 * 7 * 2
        assert [reference for reference in made if reference() is not None] == []
    finally:
        gc.enable()
    torch.testing.assert_close(found.logits, whole, rtol=1e-6, atol=1e-6)


def test_the_attention_of_one_layer_at_a_time_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of all layers may have gigabytes."""
    found, alive, most = trace_of(random_model(GROUPED)), list[weakref.ref[Tensor]](), list[int]()
    attention_of = Trace.attention_of

    def noted(self: Trace, layer: int) -> Tensor:
        p = attention_of(self, layer)
        most.append(sum(reference() is not None for reference in alive))
        alive.append(weakref.ref(self[f"blocks.{layer}.attention.p"]))
        return p

    monkeypatch.setattr(Trace, "attention_of", noted)
    gc.collect()
    gc.disable()
    try:
        head_scores(found)
        assert len(most) == GROUPED.layers > 1
        assert max(most) == 0
    finally:
        gc.enable()


# ------------------------------------------------------------------------------------------------ heads


def test_copying_is_the_sum_of_eigenvalues_of_the_whole_circuit() -> None:
    """From embeddings to logits, vocab by vocab, for one head that shares its values with another."""
    model = random_model(GROUPED)
    block, hd = model.weights.blocks[1], GROUPED.head_dim
    e = model.weights.embedding
    e = e / (e.square().mean(-1, keepdim=True) + GROUPED.norm_eps).sqrt() * block.attention_norm
    through = block.attention.output[:, 3 * hd :] @ block.attention.value[hd:]
    whole = e @ through.T @ (model.weights.output * model.weights.norm).T
    eigenvalues = torch.linalg.eigvals(whole.double())
    expected = eigenvalues.real.sum() / eigenvalues.abs().sum()
    assert float(copying(model)[1, 3]) == pytest.approx(float(expected), abs=1e-3)


def test_scores_by_hand() -> None:
    """Of a pass in which attention is what we say: 0.7 to the token before, 0.2 to the first, 0.1 to itself."""
    model, ids = random_model(GROUPED), [5, 6, 7, 5, 6, 7]

    def said(p: Tensor) -> Tensor:
        p = torch.zeros_like(p)
        for at in range(len(ids)):
            p[..., at, max(at - 1, 0)] += 0.7
            p[..., at, 0] += 0.2
            p[..., at, at] += 0.1
        return p

    scores = head_scores(trace(model, ids, change={"blocks.1.attention.p": said}))
    previous, first, same, induction, _ = (score[1, 2].item() for score in scores)
    assert previous == pytest.approx((0.9 + 4 * 0.7) / 5)
    assert first == pytest.approx((0.9 + 4 * 0.2) / 5)
    assert same == pytest.approx(0.2 / 3)  # of the three, only the first's copy is the first token
    assert induction == pytest.approx(0)  # what followed stands two or more before


def test_the_storyteller_has_an_induction_circuit() -> None:
    """On a fable that is repeated: a head attends to the previous token, and heads of the next layer attend to what
    followed last time and copy it. Without the first head the others do not work, and the repetition is surprising."""
    model = llucid.load(STORYTELLER, device="cpu")
    text = tale(Random(0)).text
    twice = trace(model, f"{text}\n\n{text}")
    scores = head_scores(twice)
    layer, head = divmod(int(scores.previous.argmax()), model.config.heads)
    assert scores.previous[layer, head] > 0.5
    found = (scores.induction > 0.1).nonzero().tolist()
    assert found
    assert all(at == layer + 1 and scores.copying[at, each] > 0.9 for at, each in found)
    without = llucid.look.trace(model, twice.ids, change=ablate(layer, head=head))
    assert all(head_scores(without).induction[at, each] < scores.induction[at, each] / 3 for at, each in found)
    second = slice(len(twice.ids) // 2 + 1, None)
    assert without.surprise[second].mean() > twice.surprise[second].mean() + 0.2


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("", {}, "the text is empty"),
        ([], {}, "no ids are given"),
        ([50], {}, "id 50: this model has ids 0 to 49"),
        ([-1], {}, "id -1: this model has ids 0 to 49"),
        ([1] * 65, {}, "the text has 65 tokens, but the model's context is 64"),
        ("~", {}, "'~'"),
        ([1], {"only": ["blocks.7"]}, "blocks.7: there is no value of this name"),
        ([1], {"change": scale("blocks.0.atention", 2.0)}, "near are blocks.0.attention"),
        ([1], {"change": scale("blocks.*", 2.0)}, "a pattern changes nothing"),
        ([1], {"change": {"blocks.0": lambda x: x[0]}}, r"expected a tensor of shape \[1, 1, 32\], found \[1, 32\]"),
        ([1], {"change": {"blocks.0": lambda x: None}}, "found NoneType"),
        ([1], {"change": ablate(0, head=4)}, "head=4: this model has heads 0 to 3"),
        ([1], {"change": ablate(2, head=1)}, r"blocks\.2\.attention\.attention_written_out: there is no value"),
        ([1], {"change": zero_frequency(4)}, "pair=4: this model has pairs 0 to 3"),
    ],
)
def test_bad_input(given: str | list[int], options: dict[str, object], message: str) -> None:
    with pytest.raises(LlucidError, match=message) as error:
        trace(random_model(GROUPED), given, **options)
    assert "\n" not in str(error.value)


def test_bad_questions() -> None:
    found = trace_of(random_model(GROUPED))
    for ask, message in [
        (lambda: found["blocks.1.attention.o"], r"no value of this name; near are blocks\.1\.attention\.[qkvmp]"),
        (lambda: found.attribution(SEQ, 0), "position=12: the text has positions 0 to 11"),
        (lambda: found.attribution(0, 50), "token=50: this model has ids 0 to 49"),
        (lambda: found.logit_lens(top=0), "top=0: must be at least 1"),
        (lambda: patch("blocks.9", found), r"blocks\.9: there is no value"),
        (lambda: patch("theta", found, position=0), "theta: it has no positions"),
        (lambda: ablate(0, head=[False, True]), r"head=\[False, True\]: expected numbers of heads, not a mask"),
        (
            lambda: trace_of(found.model, change=patch("blocks.0.attention.p", trace(found.model, [5]), position=0)),
            r"position=0: blocks.0.attention.p has [\dx ]+ x 1 numbers there and [\dx ]+ x \d+ here",
        ),
        (lambda: trace_of(found.model, change=patch("blocks.0", found, position=99)), "position=99: blocks.0 has"),
    ]:
        with pytest.raises(LlucidError, match=message):
            ask()


def test_a_model_without_a_tokenizer_takes_ids() -> None:
    model = random_model(GROUPED)._replace(tokenizer=None)
    assert trace(model, [3, 1]).tokens == ["<3>", "<1>"]
    with pytest.raises(LlucidError, match="this model has no tokenizer: give ids"):
        trace(model, "a")


def test_tokens_have_their_spaces_names_and_bytes(data: Path) -> None:
    """Of SentencePiece: spaces stand before words, and a character that is no token is several of bytes."""
    tokenizer = load_tokenizer(data / "tok512.bin")
    model = model_of(replace(GROUPED, vocab_size=tokenizer.vocab_size))._replace(tokenizer=tokenizer)
    found = trace(model, "a fox ☃")
    assert "".join(found.tokens[1:]).startswith(" a fox ")
    assert found.tokens[0] == "<s>"
    assert found.tokens[-3:] == ["<0xE2>", "<0x98>", "<0x83>"]
    assert found.pieces([511]) == [tokenizer.decode([400, 511])[len(tokenizer.decode([400])) :]]


def test_a_model_that_computes_nan_says_where() -> None:
    model = random_model(GROUPED)
    model.weights.blocks[1].feed_forward.up[3, 4] = math.nan
    with pytest.raises(
        LlucidError, match=r"not numbers, from blocks\.1\.feed_forward\.linear\(x, weights\.up, weights\.up_bias\) on"
    ):
        trace_of(model)
