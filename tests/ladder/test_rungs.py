"""Each rung by itself: shapes, gradients, causality, and what it must equal."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from llucid.config import Config
from llucid.ladder import RUNGS, Rung, rung_09_blocks, rung_10_llama
from llucid.ladder.checks import check, every_token
from llucid.llama import llama
from llucid.training.step import loss_sum
from llucid.weights import count, initialise, leaves, named_leaves, tree_map

CONFIG = Config(dim=16, layers=2, heads=4, kv_heads=2, head_dim=4, ffn_dim=24, vocab_size=11, context=12)
CHEAT = 3
each_rung = pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)


def grown(rung: Rung, config: Config = CONFIG) -> tuple[torch.Tensor, torch.Tensor, object]:
    """Inputs, targets, and weights in float64, large enough for every part to have an effect."""
    generator = torch.Generator().manual_seed(1)

    def grow(leaf: torch.Tensor) -> torch.Tensor:
        return (leaf + 0.3 * torch.randn(leaf.shape, generator=generator)).double().requires_grad_()

    tokens = every_token(config)
    return tokens[:, :-1], tokens[:, 1:], tree_map(grow, rung.init(config, 0))


def as_weights_of(rung: Rung, weights: tuple[object, ...]) -> object:
    """The weights of a rung with the same arrays, as this rung's type."""
    return type(rung.init(CONFIG, 0))(*weights)


@pytest.mark.parametrize("vocab_size", [7, 65, 70])
def test_the_checks_see_every_token(vocab_size: int) -> None:
    tokens = every_token(replace(CONFIG, vocab_size=vocab_size))
    assert tokens.shape[1] == CONFIG.context + 1
    assert sorted({*tokens.flatten().tolist()}) == [*range(vocab_size)]


@each_rung
def test_a_token_changes_only_the_logits_from_its_position_on(rung: Rung) -> None:
    """Position by position; the cheating head is the exception."""
    _, _, weights = grown(rung)
    tokens = torch.arange(CONFIG.context)[None] % CONFIG.vocab_size
    for place in range(CONFIG.context - 1):
        other = tokens.clone()
        other[0, place + 1] = (other[0, place + 1] + 1) % CONFIG.vocab_size
        before, after = (rung.logits(each, weights, CONFIG)[0] for each in (tokens, other))
        moved = (before[: place + 1] != after[: place + 1]).any().item()
        assert moved == (rung.number == CHEAT)
        assert (before[place + 1] != after[place + 1]).any()


@each_rung
def test_the_loss_is_the_cross_entropy_of_the_logits_and_reaches_every_array(rung: Rung) -> None:
    inputs, targets, weights = grown(rung)
    targets = targets.clone()
    targets[0, :5] = -100
    logits = rung.logits(inputs, weights, CONFIG)
    assert logits.shape == (*inputs.shape, CONFIG.vocab_size)
    loss = rung.loss(inputs, targets, weights, CONFIG)
    chosen = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(loss, -chosen[targets >= 0].sum())
    loss.backward()
    for path, leaf in named_leaves(weights):
        assert leaf.grad.abs().max() > 1e-6, path


@each_rung
def test_the_same_seed_gives_the_same_weights(rung: Rung) -> None:
    first, again, other = (rung.init(CONFIG, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(leaves(first), leaves(again), strict=True))
    assert not torch.equal(leaves(first)[0], leaves(other)[0])


@each_rung
def test_the_checks_pass_and_find_the_cheat(rung: Rung) -> None:
    *others, causal = check(rung, CONFIG, seed=0)
    assert all(each.passed for each in others), others
    assert causal.passed == (rung.number != CHEAT)


def test_the_checks_find_an_unused_array_and_a_wrong_shape() -> None:
    rung = RUNGS[3]

    def dead(tokens: torch.Tensor, weights: object, config: Config) -> torch.Tensor:
        return rung.logits(tokens, weights._replace(position=weights.position.detach()), config)

    found = check(rung._replace(logits=dead), CONFIG, seed=0)
    assert [each.passed for each in found] == [True, True, False, True]
    assert "position" in found[2].finding
    for change in (lambda x: 0 * x.sum(), lambda x: (x - x).sum().sqrt()):  # a gradient of nothing, and one of NaN

        def changed(tokens: torch.Tensor, weights: object, config: Config) -> torch.Tensor:
            return dead(tokens, weights, config) + change(weights.position)  # noqa: B023

        found = check(rung._replace(logits=changed), CONFIG, seed=0)
        assert [each.passed for each in found] == [True, True, False, True]
    transposed = rung._replace(logits=lambda *given: rung.logits(*given).mT)
    assert [each.passed for each in check(transposed, CONFIG, seed=0)] == [False]
    one_row = rung._replace(logits=lambda tokens, *given: rung.logits(tokens[:1], *given))
    assert [each.passed for each in check(one_row, CONFIG, seed=0)] == [False]
    sure = rung._replace(logits=lambda *given: 99 * rung.logits(*given))
    assert not check(sure, CONFIG, seed=0)[1].passed
    after = lambda tokens: F.one_hot((tokens + 1) % CONFIG.vocab_size)  # noqa: E731  as every_token continues
    knowing = rung._replace(logits=lambda tokens, *given: rung.logits(tokens, *given) + 99 * after(tokens))
    assert not check(knowing, CONFIG, seed=0)[1].passed


@pytest.mark.parametrize(("ahead", "change"), [(1, 2e-5), (1, -2e-5), (2, 2e-5)])
def test_the_checks_find_a_small_leak_of_one_later_token(ahead: int, change: float) -> None:
    def peeking(tokens: torch.Tensor, weights: object, config: Config) -> torch.Tensor:
        future = F.pad(tokens, (0, ahead))[:, ahead:, None]
        return RUNGS[3].logits(tokens, weights, config) + change * future

    *others, causal = check(RUNGS[3]._replace(logits=peeking), CONFIG, seed=0)
    assert all(each.passed for each in others)
    assert not causal.passed


def test_the_cheating_head_is_the_masked_one_without_its_mask() -> None:
    """At the last position, which has no future, both agree."""
    inputs, _, weights = grown(RUNGS[2])
    cheating, masked = (rung.logits(inputs, as_weights_of(rung, weights), CONFIG) for rung in RUNGS[2:4])
    torch.testing.assert_close(cheating[:, -1], masked[:, -1])
    assert (cheating[:, 0] - masked[:, 0]).abs().max() > 1e-3


def test_one_head_equals_heads_with_a_count_of_one() -> None:
    one = replace(CONFIG, heads=1, kv_heads=1, head_dim=CONFIG.dim)
    inputs, _, weights = grown(RUNGS[5])
    single, several = (rung.logits(inputs, as_weights_of(rung, weights), one) for rung in RUNGS[5:7])
    torch.testing.assert_close(single, several)


def test_one_block_equals_blocks_with_a_count_of_one() -> None:
    config = replace(CONFIG, layers=1)
    inputs, _, weights = grown(rung_of(rung_09_blocks), config)
    block = weights.blocks[0]
    single = RUNGS[7].init(config, 0)._replace(**block._asdict(), **{n: getattr(weights, n) for n in EDGES})
    torch.testing.assert_close(RUNGS[7].logits(inputs, single, config), RUNGS[8].logits(inputs, weights, config))


EDGES = ("embedding", "norm", "output")


def rung_of(module: object) -> Rung:
    return next(rung for rung in RUNGS if rung.init is module.init)


def test_the_blocks_are_a_llama_with_as_many_key_heads_as_query_heads() -> None:
    inputs, _, weights = grown(rung_of(rung_09_blocks))
    whole = llama(inputs, weights, replace(CONFIG, kv_heads=CONFIG.heads))
    torch.testing.assert_close(rung_09_blocks.logits(inputs, weights, CONFIG), whole)


def test_the_last_rung_is_llama_with_the_same_weights() -> None:
    inputs, targets, weights = grown(rung_of(rung_10_llama))
    assert torch.equal(rung_10_llama.logits(inputs, weights, CONFIG), llama(inputs, weights, CONFIG))
    assert torch.equal(
        RUNGS[9].loss(inputs, targets, weights, CONFIG),
        loss_sum(inputs, targets, weights, CONFIG, torch.float64),
    )
    assert all(map(torch.equal, leaves(rung_10_llama.init(CONFIG, 3)), leaves(initialise(CONFIG, 3))))


def test_each_rung_adds_what_it_says() -> None:
    """Splitting a head adds nothing, RoPE takes the table of positions away, sharing heads takes keys and values."""
    numbers = [count(rung.init(CONFIG, 0)) for rung in RUNGS]
    d, v, c, f = CONFIG.dim, CONFIG.vocab_size, CONFIG.context, CONFIG.ffn_dim
    block = 4 * d * d + 3 * d * f + 2 * d
    assert numbers[:2] == [v * v, 2 * v * d + d * d]
    assert numbers[2] == numbers[3] == 2 * v * d + c * d + 4 * d * d
    assert [b - a for a, b in pairwise(numbers[3:])] == [
        2 * d,
        -c * d,
        0,
        3 * d * f + d,
        (CONFIG.layers - 1) * block,
        -CONFIG.layers * d * d,  # half of keys and of values
    ]


def test_the_rnn_is_its_equation() -> None:
    inputs, _, weights = grown(RUNGS[1])
    state = torch.zeros(CONFIG.dim, dtype=torch.float64)
    for place, token in enumerate(inputs[1]):
        state = torch.tanh(weights.embedding[token] + weights.recurrent @ state)
        torch.testing.assert_close(RUNGS[1].logits(inputs, weights, CONFIG)[1, place], weights.output @ state)


def test_the_bigram_table_can_hold_the_counts() -> None:
    """Scores of log(count + tiny) give each token the chances that it was counted with."""
    inputs, targets = every_token(CONFIG)[:, :-1], every_token(CONFIG)[:, 1:]
    counts = torch.zeros(CONFIG.vocab_size, CONFIG.vocab_size).index_put_(
        (inputs.flatten(), targets.flatten()), torch.ones(inputs.numel()), accumulate=True
    )
    chances = (
        RUNGS[0].logits(inputs, RUNGS[0].init(CONFIG, 0)._replace(table=(counts + 1e-9).log()), CONFIG).softmax(-1)
    )
    torch.testing.assert_close(chances, F.normalize(counts, p=1)[inputs], atol=1e-5, rtol=0)
