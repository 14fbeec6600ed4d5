"""The classes against the functions, and with the tools of PyTorch that need classes."""

import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llucid.cache import empty_cache
from llucid.config import NOWHERE, Config
from llucid.errors import LlucidError
from llucid.llama import llama
from llucid.llama_module import Llama
from llucid.training.optimizer import make_optimizers
from llucid.training.settings import Settings
from llucid.training.step import train_step
from llucid.weights import Weights, initialise, leaves, named_leaves, parameter_count, to, tree_map
from tests.configs import CONFIGS
from tests.engine import greedy
from tests.test_llama import EXACT, FAR, random_weights, some_tokens
from tests.waiting import LIMIT


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request: pytest.FixtureRequest) -> Config:
    return request.param


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """Without shape checks, which a compiler cannot trace."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def copied(weights: Weights) -> Weights:
    return tree_map(lambda leaf: leaf.detach().clone().requires_grad_(), weights)


# --------------------------------------------------------------------------------------------- with the functions


@pytest.mark.parametrize("far", [False, True])
def test_equals_the_functions(config: Config, far: bool) -> None:
    """Values and gradients, in order and at far positions, in float64."""
    weights, tokens = random_weights(config, dtype=torch.float64), some_tokens(config, 2, len(FAR) + 1)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    positions = torch.tensor(FAR) if far else None
    module, weights = Llama.from_weights(copied(weights), config), copied(weights)
    found, expected = module(inputs, positions=positions), llama(inputs, weights, config, positions=positions)
    torch.testing.assert_close(found, expected, **EXACT)
    F.cross_entropy(found.flatten(0, 1), targets.flatten()).backward()
    F.cross_entropy(expected.flatten(0, 1), targets.flatten()).backward()
    for (path, parameter), leaf in zip(named_leaves(module.weights()), leaves(weights), strict=True):
        torch.testing.assert_close(parameter.grad, leaf.grad, **EXACT, msg=lambda text, path=path: f"{path}: {text}")


@torch.no_grad()
def test_bfloat16_is_within_its_rounding_of_float64(config: Config) -> None:
    """As for the functions: 2⁻⁹ per rounding (root mean square), some tens of roundings; also at far positions."""
    weights, tokens = random_weights(config, dtype=torch.bfloat16), some_tokens(config, 2, len(FAR))
    found = Llama.from_weights(weights, config)(tokens, positions=torch.tensor(FAR))
    exact = llama(tokens, to(weights, torch.float64), config, positions=torch.tensor(FAR))
    assert found.dtype == torch.bfloat16
    assert (found - exact).square().mean().sqrt() < 30 * 2**-9 * exact.std()


@pytest.mark.parametrize("sizes", [[1] * 24, [10, 1, 1, 7, 5]], ids=str)
def test_cached_equals_whole(config: Config, sizes: list[int]) -> None:
    weights, tokens = random_weights(config, dtype=torch.float64), some_tokens(config, 3, 24)
    module = Llama.from_weights(weights, config)
    cache, pieces = empty_cache(config, 3, 24, weights), []
    with torch.no_grad():
        for piece in tokens.split(sizes, dim=1):
            logits, cache = module(piece, cache)
            pieces.append(logits)
        assert cache.length == 24
        torch.testing.assert_close(torch.cat(pieces, 1), module(tokens), **EXACT)


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    config = CONFIGS["one for two"]
    weights, tokens = random_weights(config, dtype=torch.float64), some_tokens(config, 1, 8)
    module = Llama.from_weights(weights, config)
    positions = torch.tensor([[NOWHERE] * 3 + list(range(5))])
    padded, cache = module(tokens, empty_cache(config, 1, 8, weights), positions)
    torch.testing.assert_close(padded[:, 3:], module(tokens[:, 3:]), **EXACT)
    assert cache.next_positions(1).tolist() == [[5]]


def test_the_engine_writes_with_its_weights() -> None:
    """Greedy text by the common engine equals that of the module, called on the whole text each time."""
    config = CONFIGS["one for two"]
    module = Llama.from_weights(random_weights(config), config)
    texts = some_tokens(config, 4, 5)
    written = torch.tensor(greedy(module.weights(), config, texts.tolist(), 20))
    for _ in range(20):
        texts = torch.cat((texts, module(texts)[:, -1:].argmax(-1)), 1)
    assert torch.equal(texts[:, 5:], written)
    assert len(written.unique(dim=0)) == 4  # equal texts for all prompts would prove nothing


# --------------------------------------------------------------------------------------------- weights


def test_a_new_module_has_the_untrained_weights(config: Config) -> None:
    module = Llama(config, seed=3)
    assert sum(parameter.numel() for parameter in module.parameters()) == parameter_count(config)
    for (path, leaf), parameter in zip(named_leaves(initialise(config, 3)), leaves(module.weights()), strict=True):
        assert torch.equal(leaf, parameter), path
        assert parameter.requires_grad


def test_storage_is_shared_both_ways(config: Config) -> None:
    weights = random_weights(config)
    module = Llama.from_weights(weights, config)
    for (path, leaf), parameter in zip(named_leaves(weights), leaves(module.weights()), strict=True):
        assert leaf.data_ptr() == parameter.data_ptr(), path
    paths = {path for path, _ in named_leaves(weights)}
    paths = {f"{path[:-5]}.bias" if path.endswith("_bias") else f"{path}.weight" for path in paths}
    assert dict(module.named_parameters()).keys() == module.state_dict().keys() == paths
    with torch.no_grad():
        module.blocks[1].attention.key.weight.zero_()
    assert not weights.blocks[1].attention.key.any()


def test_a_functional_step_trains_the_module() -> None:
    """The optimizers and the step of `llucid.training` train a module by the tree of its parameters."""
    config = CONFIGS["one for all, tied"]
    settings = Settings(steps=1, learning_rate=0.01, optimizer="adamw")
    tokens, weights = some_tokens(config, 4, 13), copied(initialise(config))
    module = Llama(config)
    for tree in (weights, module.weights()):
        train_step(tokens[:, :-1], tokens[:, 1:], tree, config, make_optimizers(tree, settings))
    assert all(torch.equal(one, two) for one, two in zip(leaves(weights), leaves(module.weights()), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ffn_dim": 60}, r"feed_forward\.gate: expected shape \(60, 32\), found \(56, 32\)"),
        ({"layers": 3}, r"blocks\.2\.\S+: expected shape \(32,\), found None"),
        ({"tied_embeddings": True}, r"output: expected shape None, found \(50, 32\)"),
    ],
    ids=str,
)
def test_weights_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    config = CONFIGS["one key head a query head"]
    with pytest.raises(LlucidError, match=message):
        Llama.from_weights(initialise(config), replace(config, **change))


def test_state_dict_round_trip() -> None:
    """Through a file, into a module without storage."""
    config = CONFIGS["one for all, tied"]
    module, tokens = Llama.from_weights(random_weights(config), config), some_tokens(config, 1, 9)
    torch.save(module.state_dict(), file := io.BytesIO())
    file.seek(0)
    other = Llama(config, seed=None)
    assert all(parameter.is_meta for parameter in other.parameters())
    other.load_state_dict(torch.load(file, weights_only=True), assign=True)
    assert torch.equal(other(tokens), module(tokens))


# --------------------------------------------------------------------------------------------- dropout


def test_dropout_only_in_training() -> None:
    config = replace(CONFIGS["one for two"], dropout=0.25)
    weights, tokens = random_weights(config), some_tokens(config, 1, 16)
    module = Llama.from_weights(weights, config)
    torch.manual_seed(1)
    first = module(tokens)
    other = module(tokens)
    torch.manual_seed(1)
    again = module(tokens)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    module.eval()
    assert torch.equal(module(tokens), llama(tokens, weights, config))
    module.train()
    assert not torch.equal(module(tokens), llama(tokens, weights, config))


def test_dropout_is_in_the_same_places_as_in_the_functions() -> None:
    """After the embedding, the attention and the feed-forward network of each block: 1 + 2 · layers times."""
    config = replace(CONFIGS["one for two"], dropout=0.25)
    module = Llama(config)
    seen: list[str] = []
    for name, part in module.named_modules():
        if isinstance(part, nn.Dropout):
            part.register_forward_hook(lambda part, inputs, output, name=name: seen.append(name))
    module(some_tokens(config, 1, 4))
    assert seen == ["dropout", *["blocks.0.dropout"] * 2, *["blocks.1.dropout"] * 2]


# --------------------------------------------------------------------------------------------- hooks and adapters


def test_forward_hooks_see_every_part() -> None:
    config = CONFIGS["one for two"]
    module, tokens = Llama.from_weights(random_weights(config), config), some_tokens(config, 2, 6)
    seen: dict[str, Tensor] = {}
    handles = [
        part.register_forward_hook(lambda part, inputs, output, name=name: seen.__setitem__(name, output))
        for name, part in module.named_modules()
    ]
    logits = module(tokens)
    silent = {name for name, _ in module.named_modules()} - seen.keys()
    assert silent == {"blocks"}  # a list, which is not called
    assert seen[""] is logits
    assert seen["blocks.1.attention.query"].shape == (2, 6, config.heads * config.head_dim)
    assert seen["blocks.0.feed_forward.activation"].shape == (2, 6, config.ffn_dim)
    for handle in handles:
        handle.remove()

    handle = module.blocks[0].feed_forward.register_forward_hook(lambda part, inputs, output: output * 0)
    silenced = module(tokens)
    weights = copied(module.weights())
    weights.blocks[0].feed_forward.down.data.zero_()
    torch.testing.assert_close(silenced, llama(tokens, weights, config))
    handle.remove()
    assert torch.equal(module(tokens), logits)


LORA_TARGETS = ["query", "key", "value", "output", "gate", "up", "down"]


def test_lora_by_peft() -> None:
    """Adapters on every matrix: only they learn; after merging, `weights()` includes them."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = CONFIGS["one for two"]
    module, tokens = Llama.from_weights(random_weights(config), config), some_tokens(config, 2, 12)
    before, untouched = module(tokens).detach(), copied(module.weights())
    adapted = peft.get_peft_model(
        module, peft.LoraConfig(r=4, target_modules=r"blocks\..*\.(" + "|".join(LORA_TARGETS) + ")")
    )
    torch.testing.assert_close(adapted(tokens), before)  # a new adapter adds nothing
    learning = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert len(learning) == 2 * 7 * config.layers
    optimizer = torch.optim.SGD(learning, lr=1.0)
    for _ in range(3):
        loss = F.cross_entropy(adapted(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = adapted(tokens).detach()
    assert not torch.allclose(after, before, atol=1e-3)
    merged = adapted.merge_and_unload()
    assert merged is module
    torch.testing.assert_close(llama(tokens, module.weights(), config), after, rtol=1e-4, atol=1e-4)
    moved = {
        path
        for (path, leaf), parameter in zip(named_leaves(untouched), leaves(module.weights()), strict=True)
        if not torch.equal(leaf, parameter)
    }
    assert moved == {path for path, _ in named_leaves(untouched) if path.rpartition(".")[2] in LORA_TARGETS} - {
        "output"
    }


# --------------------------------------------------------------------------------------------- compilers and sharding


@pytest.mark.slow
@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # PyTorch's own, on first compiling
def test_compiled_equals_eager() -> None:
    """Logits and gradients, in one graph and with no warning of complex numbers; also of a Decoder by itself."""
    config = CONFIGS["scaling of Llama 3.1"]
    module, tokens = Llama.from_weights(random_weights(config), config), some_tokens(config, 2, 16)
    compiled = torch.compile(module, fullgraph=True)
    gradients = []
    for each in (compiled, module):
        logits = each(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        gradients.append([logits.detach(), *(parameter.grad for parameter in module.parameters())])
        module.zero_grad()
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


@pytest.mark.slow
@pytest.mark.usefixtures("without_shape_checks")
def test_exported_equals_eager(tmp_path: Path) -> None:
    """A program for any batch and length, through a file."""
    config = CONFIGS["one for two"]
    module = Llama.from_weights(random_weights(config), config).eval()
    batch, seq = torch.export.Dim("batch", max=64), torch.export.Dim("seq", max=config.context)
    program = torch.export.export(module, (some_tokens(config, 2, 8),), dynamic_shapes=({0: batch, 1: seq},))
    torch.export.save(program, tmp_path / "llama.pt2")
    loaded = torch.export.load(tmp_path / "llama.pt2").module()
    for rows, length in ((2, 8), (3, 21)):
        tokens = some_tokens(config, rows, length)
        torch.testing.assert_close(loaded(tokens), module(tokens))
    assert not any("complex" in str(node.target) for node in program.graph.nodes)


@pytest.mark.slow
@pytest.mark.usefixtures("without_shape_checks")
def test_exported_in_bfloat16_takes_any_length() -> None:
    """Also a length for which eager attention computes in pieces; equal within the rounding of bfloat16."""
    config = CONFIGS["one for two"]
    module = Llama.from_weights(random_weights(config, dtype=torch.bfloat16), config).eval()
    program = torch.export.export(
        module, (some_tokens(config, 2, 8),), dynamic_shapes=({1: torch.export.Dim("seq", max=512)},)
    )
    for length in (8, 300):
        tokens = some_tokens(config, 2, length)
        found, expected = program.module()(tokens), module(tokens)
        assert (found - expected).square().mean().sqrt() < 30 * 2**-9 * expected.std()


def train_sharded(rank: int, meeting: Path) -> None:
    """One of two processes, each of which keeps half of every parameter and learns from one of two rows."""
    from torch.distributed import barrier, destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    config = CONFIGS["one for all, tied"]
    weights, tokens = random_weights(config), some_tokens(config, 2, 12)
    whole, module = copied(weights), Llama.from_weights(copied(weights), config)
    init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for decoder in module.blocks:
        fully_shard(decoder, mesh=mesh)
    fully_shard(module, mesh=mesh)
    logits, expected = module(tokens[rank : rank + 1]), llama(tokens, whole, config)
    torch.testing.assert_close(logits, expected[rank : rank + 1])
    logits.square().mean().backward()
    expected.square().mean().backward()
    for (path, leaf), parameter in zip(named_leaves(whole), leaves(module.weights()), strict=True):
        assert 2 * parameter.to_local().numel() == leaf.numel(), path
        torch.testing.assert_close(parameter.grad.full_tensor(), leaf.grad)
    barrier()  # else the first to leave may cut the other's last exchange off
    destroy_process_group()


@pytest.mark.slow
def test_fully_sharded_equals_whole(tmp_path: Path) -> None:
    """Over two processes: logits of each one's row, and the gradients of the mean over both."""
    script = "import sys, pathlib; from tests.test_llama_module import *; train_sharded(int(sys.argv[1]), "
    words = [sys.executable, "-c", f"{script}pathlib.Path(sys.argv[2]))"]
    both = [
        subprocess.Popen([*words, str(rank), str(tmp_path / "meeting")], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in both:
        _, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, errors
