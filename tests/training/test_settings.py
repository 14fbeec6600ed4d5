"""Settings: their limits, and how `train.toml` keeps them."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest

from llucid.cli import read_command
from llucid.errors import LlucidError
from llucid.presets import PRESETS
from llucid.training.settings import ModelNumbers, Settings, read_toml, write_toml


@pytest.fixture(autouse=True)
def _own_checks() -> Iterator[None]:
    """Without the checks of types that only tests have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_settings_survive_toml(tmp_path: Path) -> None:
    settings = Settings(
        corpus=('a "b"\\c\n\x7f\x01', "é😀"), minutes=1.5, model=ModelNumbers(layers=3, tied_embeddings=True)
    )
    file = tmp_path / "train.toml"
    file.write_text(write_toml(settings), encoding="utf-8")
    assert read_toml(file) == settings
    kept = write_toml(settings).split("\n\n[model]")[0]
    file.write_text(kept)
    assert read_toml(file) == replace(settings, model=ModelNumbers())
    with pytest.raises(LlucidError, match=r"cannot be read \(Is a directory\)"):
        read_toml(file.parent)
    for name, value in (
        *(("speed", "3"), ("steps", "'many'"), ("seed", "true"), ("seed", "1 and"), ("seed", "9" * 5000)),
        *(("steps", "9" * 400), ("minutes", "9" * 400), ("warmup", "9" * 400), ("weight_decay", "9" * 400)),
        *(("seed", "[" * 3000), ("optimizer", "'sgd'"), ("backend", "'tpu'"), ("dtype", "'int8'"), ("steps", "1.5")),
        *(("corpus", "'abc'"), ("corpus", "[1, 2]"), ("model", "3"), ("model", "{wings = 2}")),
        *(("corpus", "[]"), ("model", "{tied_embeddings = 1}"), ("given", "[]")),
    ):
        others = [line for line in kept.splitlines() if not line.startswith(f"{name} =")]
        file.write_text("\n".join([*others, f"{name} = {value}"]))
        with pytest.raises(LlucidError, match=rf"^{re.escape(str(file))}: "):
            read_toml(file)


TRIPLES = ("'" * 3, '"' * 3)
DOTTED = "a" + ".a" * 20_000


@pytest.mark.parametrize(
    "text",
    [
        f"{DOTTED} = 1",
        '"a"' + ".'a'" * 20_000 + " = 1",
        *(f'corpus = [{quotes} \n {quotes}, {{{DOTTED} = 1}}, "b"]' for quotes in TRIPLES),
        f"x = 1 # '\n[{DOTTED}] # '",
        *(f"# {quotes}\n[{DOTTED}]\n# {quotes}" for quotes in TRIPLES),
        '"' + '\\"' * 400_000,
        "seed = " + "9" * (1 << 18),
        "".join(f"[a{number}]\n" for number in range(40_000)),
        " " * (1 << 22) + "x",
    ],
    ids=range(11),
)
def test_keys_of_very_many_parts_are_refused(text: str, tmp_path: Path) -> None:
    """The parser would keep all of their beginnings: gigabytes for 64 kB."""
    file = tmp_path / "train.toml"
    file.write_text(text)
    with pytest.raises(LlucidError, match=r"train\.toml: (not the settings of a training run|larger than)"):
        read_toml(file)
    many = Settings(corpus=tuple(f"a.b.c/{number}#{''.join(TRIPLES)}.txt" for number in range(20_000)))
    file.write_text(write_toml(many) + "# don't\n")
    assert read_toml(file) == many
    for long in (("a" * 1000,) * 20_000, ("/a",) * 200_000):
        with pytest.raises(LlucidError, match="the names of its files are too long to be kept; name their folder"):
            write_toml(Settings(corpus=long))


def test_paths_and_numbers_of_numpy_and_large_integers_are_kept(tmp_path: Path) -> None:
    numbers: dict[str, Any] = {"dim": np.int64(32), "dropout": np.float32(0.25), "rope_theta": 10**20}
    given: dict[str, Any] = {"corpus": [Path("a.txt")], "tokenizer": Path("b"), "steps": np.int64(3)}
    given |= {"clip": np.float32(0.5), "weight_decay": 10**20, "model": ModelNumbers(**numbers)}
    (tmp_path / "train.toml").write_text(write_toml(Settings(**given)))
    plain: dict[str, Any] = {"corpus": ("a.txt",), "tokenizer": "b", "steps": 3, "clip": 0.5, "weight_decay": 1e20}
    model = ModelNumbers(dim=32, dropout=0.25, rope_theta=1e20)
    assert read_toml(tmp_path / "train.toml") == Settings(**given) == Settings(**plain, model=model)
    assert type(Settings(**given).model.dim) is int


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("dim", "x"), ("dim", 32.0), ("dim", np.float64(32)), ("context", True), ("heads", [2])),
        *(("dropout", "0.1"), ("dropout", True), ("rope_theta", 10**400), ("norm_eps", [])),
        *(("tied_embeddings", 1), ("tied_embeddings", "False"), ("tied_embeddings", np.True_)),
    ],
)
def test_numbers_of_the_model_of_another_type_are_refused(name: str, value: Any) -> None:
    with pytest.raises(LlucidError) as caught:
        ModelNumbers(**{name: value})
    kind = {"tied_embeddings": "bool"}.get(name, "int" if name in ("dim", "context", "heads") else "float")
    assert str(caught.value) == f"model.{name}={value!r}: must be of type {kind} | None"


def test_given_numbers_replace_those_of_the_preset() -> None:
    micro = PRESETS["micro"].config
    config = Settings(model=ModelNumbers(dim=96, heads=3)).config("micro", vocab_size=77)
    assert (config.dim, config.heads, config.kv_heads, config.head_dim, config.vocab_size) == (96, 3, 3, 32, 77)
    assert (config.layers, config.ffn_dim) == (micro.layers, micro.ffn_dim)
    grouped = Settings(model=ModelNumbers(kv_heads=2)).config("micro", 65)
    assert (grouped.heads, grouped.kv_heads, grouped.head_dim) == (micro.heads, 2, micro.head_dim)
    halved = Settings(model=ModelNumbers(heads=2 * micro.heads)).config("micro", 65)
    assert (halved.dim, halved.heads, halved.kv_heads) == (micro.dim, 2 * micro.heads, 2 * micro.heads)
    assert 2 * halved.head_dim == micro.dim // micro.heads
    wider = Settings(model=ModelNumbers(dim=2 * micro.dim)).config("micro", 65)
    assert (wider.heads, wider.kv_heads, wider.head_dim) == (micro.heads, micro.kv_heads, 2 * micro.dim // micro.heads)
    base = Settings(base="a model")
    assert base.rebased(micro) == micro
    longer = replace(base, model=ModelNumbers(context=999, dropout=0.5)).rebased(micro)
    assert longer == replace(micro, context=999, dropout=0.5)


WHOLE_SHARES = {"warmup": 0.0, "final": 1.0, "length_warmup": 1.0, "weight_decay": 0.0}


@pytest.mark.parametrize(
    "numbers",
    [
        *({"steps": 1}, {"batch": 2**31 - 1}, {"seed": 2**63 - 1}, {"seed": 0}, {"accumulate": 1, "evaluations": 1}),
        *({name: number} for name, number in WHOLE_SHARES.items()),
        *({"final": 0.0}, {"length_warmup": 0.0}, {"chat": "fables", "length_warmup": 0.0}),
        {"base": "a model", "model": ModelNumbers(context=9, dropout=0.5)},
    ],
)
def test_settings_at_their_limits_are_accepted(numbers: dict[str, Any]) -> None:
    settings = Settings(**numbers)
    assert {name: getattr(settings, name) for name in numbers} == numbers


@pytest.mark.parametrize(
    ("message", "numbers"),
    [
        *(
            (f"{name}={number}: must be more than 0, and less than 1e35", {name: number})
            for names, impossible in (
                (("steps", "stop_after", "batch"), (0, -1)),
                (("minutes", "learning_rate", "muon_learning_rate", "clip"), (0.0, -1.0, math.inf, math.nan)),
            )
            for name in names
            for number in impossible
        ),
        *((f"{name}={2**31}: must be less than 2^31", {name: 2**31}) for name in ("steps", "batch", "snapshots")),
        ("muon_learning_rate=1e+35: must be more than 0, and less than 1e35", {"muon_learning_rate": 1e35}),
        *((f"seed={seed}: must be at least 0 and less than 2^63", {"seed": seed}) for seed in (-1, 2**63)),
        *((f"{name}=0: must be at least 1", {name: 0}) for name in ("accumulate", "evaluations", "patience")),
        ("snapshots=-1: must be at least 0", {"snapshots": -1}),
        ("steps= and minutes= both", {"steps": 1, "minutes": 1.0}),
        *(
            (f"{name}={number}: must be a share between 0 and 1", {name: number})
            for name, most in (("warmup", 1.0), ("final", 1.001), ("length_warmup", 1.001))
            for number in (most, -0.001, math.nan)
        ),
        *((f"weight_decay={number}: must", {"weight_decay": number}) for number in (-0.1, math.inf, math.nan)),
        ("preset=huge: unknown", {"preset": "huge"}),
        *((f"{name}='': is empty", {name: ""}) for name in ("chat", "base", "tokenizer", "out")),
        *(("corpus=(): is empty", {"corpus": empty}) for empty in ((), [])),
        ("steps=20.0: must be of type int | None", {"steps": 20.0}),
        ("compile=1: must be of type bool", {"compile": 1}),
        ("corpus='a.txt': must be of type tuple[str, ...] | None", {"corpus": "a.txt"}),
        ("dtype='int8': must be of type ", {"dtype": "int8"}),
        (f"weight_decay={10**400}: must be of type float", {"weight_decay": 10**400}),
        ("resume=True: name the folder", {"resume": True}),
        *(("corpus= and chat= both", {"chat": "fables", "corpus": (name,)}) for name in ("fables", "shakespeare")),
        ("length_warmup=0.5: conversations", {"chat": "fables", "length_warmup": 0.5}),
        ("preset=nano: base= already has its own", {"base": "a model", "preset": "nano"}),
        ("tokenizer=characters: base= already has its own", {"base": "a model", "tokenizer": "characters"}),
        ("model.head_dim=4: base= already has its own", {"base": "a model", "model": ModelNumbers(head_dim=4)}),
    ],
)
def test_impossible_settings_are_refused_by_name(message: str, numbers: dict[str, Any]) -> None:
    with pytest.raises(LlucidError) as caught:
        Settings(**numbers)
    assert message in str(caught.value)


KEPT: dict[str, Any] = {
    "corpus": ("a.txt",),
    "column": "body",
    "seed": 3,
    "weight_decay": 0.5,
    "warmup": 0.1,
    "final": 0.5,
    "clip": 2.0,
    "accumulate": 2,
    "snapshots": 4,
    "compile": True,
    "tensorboard": True,
    "wandb": True,
    "steps": 9,
}
"""Settings of a run, none of them llucid's default."""


def resumed(**given: Any) -> Settings:
    return Settings(resume=True, out="x", **given)


def typed(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{'' if value else 'no-'}{name}"]
    return [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]


@pytest.mark.parametrize("name", [name for name in KEPT if name not in ("seed", "column", "warmup", "steps")])
def test_a_resumed_run_uses_what_is_given_also_where_it_is_the_default(name: str) -> None:
    """In Python and on the command line; what is not given stays."""
    value = ("shakespeare",) if name == "corpus" else getattr(Settings(), name)
    in_python = resumed(**{name: value}).continuing(Settings(**KEPT))
    assert in_python == resumed(**KEPT | {name: value})
    assert (
        read_command(["train", "--resume", "--out", "x", *typed(name, value)]).continuing(Settings(**KEPT)) == in_python
    )
    assert resumed().continuing(Settings(**KEPT)) == resumed(**KEPT)


@pytest.mark.parametrize("name", ["seed", "column", "warmup"])
def test_a_resumed_run_refuses_another_value_also_where_it_is_the_default(name: str) -> None:
    value = getattr(Settings(), name)
    with pytest.raises(LlucidError, match=f"^{name}={value}: a resumed run keeps what it began with; leave this out$"):
        read_command(["train", "--resume", "--out", "x", *typed(name, value)]).continuing(Settings(**KEPT))
    assert resumed(**{name: KEPT[name]}).continuing(Settings(**KEPT))


def test_a_resumed_run_keeps_its_kind_of_text_and_its_model() -> None:
    model = ModelNumbers(layers=2, heads=2)
    text, chat = Settings(corpus=("a.txt",), preset="nano", model=model), Settings(chat="a.jsonl")
    with pytest.raises(LlucidError, match="chat=fables: a resumed run keeps"):
        resumed(chat="fables").continuing(text)
    with pytest.raises(LlucidError, match="corpus=shakespeare: a resumed run keeps"):
        resumed(corpus=("shakespeare",)).continuing(chat)
    with pytest.raises(LlucidError, match=r"model\.layers=3: a resumed run keeps"):
        resumed(model=ModelNumbers(layers=3)).continuing(text)
    with pytest.raises(LlucidError, match=r"model\.kv_heads=1: a resumed run keeps"):
        resumed(model=ModelNumbers(kv_heads=1)).continuing(text)
    for same in (ModelNumbers(layers=2), ModelNumbers(kv_heads=2, context=PRESETS["nano"].config.context)):
        assert resumed(model=same).continuing(text).model == text.model
    assert resumed(chat="b.jsonl").continuing(chat).chat == "b.jsonl"
