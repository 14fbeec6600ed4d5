"""The command line as users see it: output, and messages for bad input."""

import ast
import importlib.metadata
import json
import math
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest

import llucid
from llucid import __main__ as entry
from llucid.cli import COMMANDS, command_class, main, overview, read_command
from llucid.cli.arguments import options_of, spell_options
from llucid.generation.stream import Piece, stream
from llucid.weights import parameter_count
from tests.training.test_run import DEFAULT_HANGUP, TEXT, after, command, do

PROMPT = "the goose "


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a run in it."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "geese.txt").write_text(TEXT)
    short = ["--model.context", "32", "--batch", "8", "--steps", "30", "--evaluations", "1"]
    do("train", "--corpus", folder / "geese.txt", "--out", folder / "run", "--preset", "nano", *short)
    return folder


def test_generate_prints_text_and_nothing_else(made: Path) -> None:
    greedy = ("generate", made / "run", PROMPT, "--max-tokens", 60, "--temperature", 0)
    done = do(*greedy)
    model = llucid.load(made / "run", device="cpu")
    text = "".join(llucid.generate(model, PROMPT, max_tokens=60, temperature=0.0))
    assert done.stdout == f"{PROMPT}{text}\n"
    assert re.search(r"60 tokens in \d", done.stderr)
    assert "oldest half" in done.stderr  # 70 tokens into a context of 32
    assert do(*greedy, "--speculate").stdout == do(*greedy).stdout == done.stdout


def test_generate_several_at_once_with_a_seed(made: Path) -> None:
    many = ("generate", made / "run", PROMPT, "--max-tokens", 12, "--num", 3, "--seed", 5)
    done = do(*many)
    assert "oldest half" not in done.stderr  # 22 tokens of 32
    texts = done.stdout.split(f"\n{'-' * 40}\n")
    assert len(texts) == 3
    assert all(text.startswith(PROMPT) for text in texts)
    assert do(*many).stdout.split(f"\n{'-' * 40}\n") == texts
    assert do(*many[:-4], "--seed", 5).stdout.rstrip("\n") == texts[0].rstrip("\n")


def test_prompts_come_from_a_file_and_texts_go_out_as_json(made: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_bytes(b"the goose \r\n\nthe fox\n")
    (tmp_path / "lines.jsonl").write_text('{"prompt": "the goose "}\n\n{"id": 7, "prompt": "the fox"}\n')
    same = ("--max-tokens", 5, "--seed", 3)
    rows = [
        [
            json.loads(line)
            for line in do("generate", made / "run", "--prompts", file, "--json", *same).stdout.splitlines()
        ]
        for file in (tmp_path / "lines.txt", tmp_path / "lines.jsonl")
    ]
    assert rows[0] == rows[1]
    assert [row["prompt"] for row in rows[0]] == ["the goose ", "the fox"]
    assert [(len(row["tokens"]), row["reason"], row["slid"]) for row in rows[0]] == [(5, "length", False)] * 2
    texts = do("generate", made / "run", "--prompts", tmp_path / "lines.txt", "--num", 2, *same).stdout
    whole = texts.removesuffix("\n").split(f"\n{'-' * 40}\n")
    assert [text[: len(prompt)] for prompt, text in zip(["the goose "] * 2 + ["the fox"] * 2, whole, strict=True)] == [
        "the goose ",
        "the goose ",
        "the fox",
        "the fox",
    ]
    assert [whole[0], whole[2]] == [row["prompt"] + row["text"] for row in rows[0]]
    [one] = do("generate", made / "run", "the fox", "--json", "--logprobs", *same).stdout.splitlines()
    assert json.loads(one)["text"] == rows[0][1]["text"]
    assert len(json.loads(one)["logprobs"]) == 5
    assert max(json.loads(one)["logprobs"]) < 0
    assert "logprobs" not in rows[0][1]


def test_the_model_s_own_numbers_for_sampling_are_the_defaults(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    file, words = tmp_path / "run" / "generation_config.json", ("generate", tmp_path / "run", PROMPT, "--seed", 4)
    usual, greedy = do(*words), do(*words, "--temperature", 0)
    file.write_text(json.dumps({"do_sample": True, "temperature": 1e-6, "top_k": 10**8, "top_p": "no"}))
    done = do(*words)
    assert (done.stdout, usual.stdout != greedy.stdout) == (greedy.stdout, True)
    assert done.stderr.startswith(
        f'note: {file}: top_p is ignored: it should be a number of at least 0 and is "no"\n'
        "from the model's own settings: temperature 1e-06, top_k 100000000\n"
    )
    assert do(*words, "--temperature", 0.8).stdout == usual.stdout
    huge = f'{{"do_sample": true, "temperature": {"9" * 400}}}'
    for ignored, notes in (
        ('{"do_sample": false, "temperature": 1e-6, "top_p": "no"}', 0),
        ("{", 0),
        (huge, 1),
        ('{"do_sample": true, "top_p": 7, "top_k": 1000000}', 1),
        ('{"do_sample": true, "temperature": 1e-9}', 1),
    ):
        file.write_text(ignored)
        done = do(*words)
        assert done.stdout == usual.stdout
        assert done.stderr.count("ignored") == notes
    place = "the model's own settings"
    assert f"note: {place}: temperature=1e-09: must be 0 " in done.stderr
    assert "a number from 1e-6 to 1e6; ignored\n" in done.stderr


def test_generate_with_penalties_and_biases(made: Path) -> None:
    words = ("generate", made / "run", PROMPT, "--temperature", 0, "--max-tokens", 6)
    model = llucid.load(made / "run", device="cpu")
    [z] = model.text().encode("w")
    assert do(*words, "--logit-bias", f"{z}=100").stdout == f"{PROMPT}wwwwww\n"
    both = ("--logit-bias", f"{z}=50", "--presence-penalty", 99, "--frequency-penalty", 0, "--repetition-penalty", 1.1)
    assert do(*words, *both).stdout.count("w") == PROMPT.count("w") + 1


def test_generate_stops_before_a_stop_text(made: Path) -> None:
    text = do("generate", made / "run", PROMPT, "--max-tokens", 200, "--seed", 1, "--stop", "e", "--stop", "zz").stdout
    assert "e" not in text.removeprefix(PROMPT)


def test_predict_shows_probabilities(made: Path) -> None:
    shown = json.loads(do("predict", made / "run", PROMPT, "--top-k", 4, "--json").stdout)
    assert len(shown) == 4
    probabilities = [row["probability"] for row in shown]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0 < sum(probabilities) <= 1
    assert math.fsum(probabilities) < 1
    table = do("predict", made / "run", PROMPT, "--top-k", 4).stdout
    for row in shown:
        assert f"{100 * row['probability']:.2f} %" in table
    assert "█" in table
    narrow = do("predict", made / "run", PROMPT, "--top-k", 4, env={**os.environ, "COLUMNS": "4"}).stdout
    assert narrow.split() == table.split()


def test_predict_toy_shows_each_step() -> None:
    shown = do("predict", "--toy", "the brown fox", "--top-k", 3).stdout
    for word in ("1 vocabulary", "2 ids", "3 logits", "4 softmax", "5 top-k", "the → ", "add up to 1.00"):
        assert word in shown
    assert len(re.findall(r"\d+\.\d\d %", shown)) == 3
    bracketed = do("predict", "--toy", "[bold] \x1b fox", env={**os.environ, "COLUMNS": "40"}).stdout
    assert "[bold] → 1  ␛ → 0" in bracketed
    assert re.search(r"\[bold\] [+-]\d\.\d\d", bracketed)
    assert re.search(r"\[bold\] 0\.\d\d\d", bracketed)
    assert "10 over" in bracketed  # on one line, however narrow


def test_info_prints_every_number(made: Path) -> None:
    shown = dict(re.split(r" {2,}", line) for line in do("info", made / "run").stdout.splitlines())
    model = llucid.load(made / "run", device="cpu")
    assert shown["parameters"] == f"{parameter_count(model.config):,}"
    assert shown["bytes"] == f"{(made / 'run' / 'model.safetensors').stat().st_size:,}"
    assert {name: shown[name] for name in ("dim", "context", "rope_theta")} == {
        "dim": "64",
        "context": "32",
        "rope_theta": "10000.0",
    }
    assert "22 ids" in shown["tokenizer"] or f"{model.text().vocab_size} ids" in shown["tokenizer"]


def broken(made: Path, out: Path, change: str) -> Path:
    """A copy of the run with something wrong with it."""
    shutil.copytree(made / "run", out)
    file = out / "model.safetensors"
    whole = file.read_bytes()
    if change == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    elif change == "foreign":
        header = json.dumps({"wings": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    elif change == "config":
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 3, "num_attention_heads": 4}))
    return out


TRAIN = ("train", "--steps", "1", "--preset", "nano", "--corpus")
BAD_INPUT: dict[str, tuple[tuple[str, ...], str]] = {
    "no such model": (("generate", "{tmp}/none", "x"), "{tmp}/none: there is no such file or folder"),
    "not a model": (("generate", "{made}", "x"), "{made}: not a"),
    "no such corpus": ((*TRAIN, "{tmp}/none.txt"), "--corpus {tmp}/none.txt: no such file or folder"),
    "empty corpus": ((*TRAIN, "{tmp}/empty.txt"), "--corpus {tmp}/empty.txt: there is no text in it"),
    "short corpus": ((*TRAIN, "{tmp}/short.txt"), "split has 10 tokens and one context needs 66"),
    "no text": ((*TRAIN, "{tmp}/binary"), "{tmp}/binary: not a UTF-8 text file"),
    "unknown character": (("generate", "{made}/run", "the fïsh"), "'ï' cannot be encoded"),
    "prompt too long": (("generate", "{made}/run", "the goose " * 9), "90 tokens"),
    "impossible numbers": (
        (*TRAIN, "{made}/geese.txt", "--model.heads", "3"),
        "--model.dim 64 is not divisible by --model.heads 3",
    ),
    "impossible config": (("info", "{config}"), "heads=4 is not divisible by kv_heads=3"),
    "truncated weights": (("generate", "{truncated}", "x"), "not a complete safetensors file"),
    "foreign weights": (("generate", "{foreign}", "x"), "expected 2 layers, but there are only 1 tensors"),
    "unwritable folder": ((*TRAIN, "{made}/geese.txt", "--out", "/proc/run"), "/proc"),
    "out is taken": ((*TRAIN, "{made}/geese.txt", "--out", "{made}/run"), "something is there already"),
    "resume of nothing": (("train", "--resume", "--out", "{tmp}/none"), "{tmp}/none"),
    "resume of something else": (("train", "--resume", "--out", "{tmp}"), "not the settings of a training run"),
    "resume with settings": (
        ("train", "--resume", "--out", "{made}/run", "--seed", "9"),
        "--seed 9: a resumed run keeps what it began with",
    ),
    "resume without out": (("train", "--resume"), "--resume: name the folder of the run to continue with --out"),
    "folder below a file": (
        (*TRAIN, "{made}/geese.txt", "--out", "{made}/geese.txt/run"),
        "geese.txt/run: Not a directory",
    ),
    "file in no folder": (("convert", "{made}/run", "/proc/model.gguf", "--to", "gguf"), "/proc/model.gguf: No such"),
    "unknown option": (
        ("train", "--stepz", "3"),
        "--stepz: there is no such option; did you mean --steps?; see: llucid train",
    ),
    "another's option": (("info", "{made}/run", "--json"), "--json: there is no such option; see: llucid info --help"),
    "no number": (("train", "--steps", "many"), "--steps: invalid int value: 'many'; see: llucid train --help"),
    "no fraction": (("train", "--minutes", "a"), "--minutes: invalid float value: 'a'; see: llucid train --help"),
    "no value": (("generate", "{made}/run", "--seed"), "--seed: expected one argument; see: llucid generate --help"),
    "a number after --": (
        ("generate", "{made}/run", "--presence-penalty", "--", "-2"),
        "--presence-penalty: expected one argument; see",
    ),
    "neither": (
        ("train", "--model.tied-embeddings", "yes"),
        "--model.tied-embeddings: invalid boolean value: 'yes'; see: llucid train --help",
    ),
    "words without quotation marks": (
        ("generate", "{made}/run", "the", "goose", "found"),
        "goose, found: not expected here; put a text of several words in quotation marks; see: llucid generate",
    ),
    "nothing to continue": (
        ("train", "--resume", "--out", "{tmp}/none"),
        "--out {tmp}/none: there is no run here to continue; leave out --resume to begin one",
    ),
    "unknown command": (("fly",), "fly: there is no such command; expected one of: train, generate, chat,"),
    "unknown choice": (
        ("generate", "{made}/run", "--quantize", "3"),
        "--quantize: invalid choice: '3' (choose from 'int8', 'int4'); see",
    ),
    "missing": (("convert", "{made}/run"), "error: missing: OUT, --to; see: llucid convert --help"),
    "toy and a model": (
        ("predict", "{made}/run", "--toy", "the fox"),
        "--toy the fox: takes no model; leave that out",
    ),
    "predict without a model": (("predict",), "missing: MODEL; see: llucid predict --help"),
    "no run of that name": (("info", "{made}/none"), "{made}/none: there is no such file or folder; train a model"),
    "a name with a dash": (
        ("info", "./-none"),
        "error: -none: there is no such file or folder; train a model with: llucid train --out ./-none",
    ),
    "a text with a dash": (
        ("generate", "{made}/run", "-hello"),
        "-hello: there is no such option; a name or a text that begins with a dash goes to the end, after --",
    ),
    "an option after --": (("info", "--", "{made}/none", "--tokens"), "--tokens: not expected here"),
    "toy and json": (("predict", "--toy", "a", "--json"), "--toy a: takes no --json; leave that out"),
    "no file of prompts": (
        ("generate", "{made}/run", "--prompts", "{tmp}/none"),
        "{tmp}/none: cannot be read (No such",
    ),
    "no prompts": (
        ("generate", "{made}/run", "--prompts", "{tmp}/empty.txt"),
        "--prompts {tmp}/empty.txt: there is no",
    ),
    "no text of prompts": (("generate", "{made}/run", "--prompts", "{tmp}/binary"), "{tmp}/binary: not a UTF-8 text"),
    "prompts in UTF-16": (
        ("generate", "{made}/run", "--prompts", "{tmp}/utf16"),
        "{tmp}/utf16: a UTF-16 or binary file",
    ),
    "no prompt": (("generate", "{made}/run", "--prompts", "{tmp}/wrong.jsonl"), "wrong.jsonl: line 4: expected {{"),
    "too many prompts": (
        ("generate", "{made}/run", "--prompts", "/dev/zero"),
        "/dev/zero: not a regular file",
    ),
    "no tools": (
        ("chat", "{made}/run", "--tools", "{tmp}/wrong.jsonl"),
        "wrong.jsonl: expected a JSON list of objects",
    ),
    "no documents": (("chat", "{made}/run", "--documents", "{tmp}/none"), "{tmp}/none: cannot be read"),
    "logprobs without json": (("generate", "{made}/run", "--logprobs"), "--logprobs: printed only with --json;"),
    "no bias": (("generate", "{made}/run", "--logit-bias", "a=b"), "--logit-bias a=b: expected an id and a number, as"),
    "two kinds of prompts": (("generate", "{made}/run", "x", "--prompts", "y"), "--prompts: leave out the PROMPT, or"),
    "unknown preset": (("train", "--preset", "huge"), "--preset huge: unknown; expected one of: nano"),
    "more than there is": ((*TRAIN, "{made}/geese.txt", "--model.dim", "2000000000"), "there is not enough memory"),
    "more layers than there is room for": (
        (*TRAIN, "{made}/geese.txt", "--model.layers", "2000000000"),
        "there is not enough memory",
    ),
    "more than can be": (
        (*TRAIN, "{made}/geese.txt", "--model.ffn-dim", f"1{'0' * 30}"),
        "more than any format can hold",
    ),
    "batch of all": (
        (*TRAIN, "{made}/geese.txt", "--batch", f"1{'0' * 30}"),
        "--batch 1000000000000000000000000000000: must be less than 2^31",
    ),
    "vocabulary of all": ((*TRAIN, "{made}/geese.txt", "--tokenizer", f"bpe:1{'0' * 30}"), "as in bpe:1024"),
    "endless": (("train", "--minutes", "inf"), "--minutes inf: must be more than 0, and less than 1e35"),
    "seed": ((*TRAIN, "{made}/geese.txt", "--seed", "-1"), "--seed -1: must be at least 0"),
    "seed of the ladder": (("ladder", "--corpus", "{made}/geese.txt", "--seed", "-1"), "--seed -1: must be at least 0"),
    "no heads": (
        (*TRAIN, "{made}/geese.txt", "--model.heads", "0"),
        "--model.dim 64 is not divisible by --model.heads 0",
    ),
    "device without numbers": (("generate", "{made}/run", "x", "--device", "meta"), "--device meta: there is no such"),
    "two lengths": (("train", "--steps", "3", "--minutes", "1"), "give one of them"),
    "tokenizer": ((*TRAIN, "{made}/geese.txt", "--tokenizer", "bpe:x"), "as in bpe:1024"),
    "small bpe": ((*TRAIN, "{made}/geese.txt", "--tokenizer", "bpe:9"), "more than its 256 bytes"),
    "temperature": (("generate", "{made}/run", "x", "--temperature", "-1"), "--temperature -1"),
    "top-p": (("generate", "{made}/run", "x", "--top-p", "1.5"), "--top-p 1.5"),
    "top-k of predict": (("predict", "{made}/run", "x", "--top-k", "0"), "--top-k 0"),
    "device": (("generate", "{made}/run", "x", "--device", "abacus"), "--device abacus: there is no such device"),
    "another's tokenizer": (
        ("generate", "{made}/run", "x", "--tokenizer", "{big}"),
        "is the tokenizer of another model",
    ),
}


MIXED_LINES = b'\n{"prompt": "a"}\n\n{"prompt": 3}\n'


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_line_and_status_2(
    case: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, says = BAD_INPUT[case]
    for name, content in {
        "empty.txt": b"",
        "short.txt": b"x" * 99,
        "binary": b"\xff\xfe" * 500,
        "utf16": "Once".encode("utf-16-le"),
        "wrong.jsonl": MIXED_LINES,
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "train.toml").write_text("wings = 2\n")
    places = {"made": made, "tmp": tmp_path}
    for change in ("truncated", "foreign", "config"):
        if f"{{{change}}}" in arguments:
            places[change] = broken(made, tmp_path / change, change)
    if "{big}" in arguments:
        from llucid.tokenizers.characters import Characters

        (tmp_path / "big").mkdir()
        Characters(map(chr, range(32, 127))).save(tmp_path / "big")
        places["big"] = tmp_path / "big"
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["llucid", *(argument.format(**places) for argument in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "[Errno" not in err
    assert says.format(**places) in err
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before  # nothing half-written


def test_options_become_the_fields_of_a_command() -> None:
    command = read_command(["train", "--corpus", "a", "b", "--corpus=c", "--model.kv-heads", "2", "--steps", "3"])
    assert (command.corpus, command.model.kv_heads, command.model.dim, command.steps) == (("a", "b", "c"), 2, None, 3)
    command = read_command(["generate", "--stop", "x", "run", "--stop", "-- y", "--temperature", "-1", "--", "--text"])
    assert (command.model, command.prompt, command.stop, command.temperature) == ("run", "--text", ("x", "-- y"), -1)
    assert read_command(["train", "--corpus", "a", "--", "-dash.txt", "--b"]).corpus == ("a", "-dash.txt", "--b")
    assert read_command(["generate", "run", "a text", "--stop", "--", "-e"]).stop == ("-e",)
    for words in (["--", "-dash", "--top-k"], ["--top-k", "3", "--", "-dash", "--"]):
        command = read_command(["generate", *words])
        assert (command.model, command.prompt) == ("-dash", words[-1])


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("max_tokens=0: must be at least 1", "--max-tokens 0: must be at least 1"),
        ("too large; or try dtype=bfloat16", "too large; or try --dtype bfloat16"),
        ("speculate=True: leave out num= or stop=, seed=", "--speculate: leave out --num or --stop, --seed"),
        ("dim=64 is not divisible by heads=3", "dim=64 is not divisible by heads=3"),  # no options of generate's
        ("runs/seed=3: no such file", "runs/seed=3: no such file"),
        ("a (seed=3) and top_seed=4", "a (--seed 3) and top_seed=4"),
    ],
)
def test_messages_of_the_library_spell_options_as_typed(message: str, shown: str) -> None:
    assert spell_options(message, command_class("generate")) == shown


def test_a_switch_that_is_off_is_spelled_as_typed() -> None:
    message = spell_options("wandb=True: use wandb=False; tensorboard=False", command_class("train"))
    assert message == "--wandb: use --no-wandb; --no-tensorboard"


def test_a_cache_that_cannot_be_made_is_reported(made: Path, tmp_path: Path) -> None:
    nowhere = os.environ | {"LLUCID_CACHE": "/proc/none"}
    message = do(*TRAIN, made / "geese.txt", "--model.context", 32, status=2, cwd=tmp_path, env=nowhere).stderr
    assert message == (
        "error: /proc/none/tokens: cannot be made (No such file or directory); "
        "set LLUCID_CACHE to another folder for llucid's cache\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_user_without_a_home_folder_can_generate(made: Path, tmp_path: Path) -> None:
    """As in a container whose user is only a number: nothing is cached, and training says what to do."""
    unknown = "import os, pathlib, pwd; pwd.getpwuid = lambda user: {}[user]"
    env = {name: os.environ[name] for name in os.environ.keys() - {"HOME", "XDG_CACHE_HOME", "LLUCID_CACHE"}}
    message = "this user has no home folder; set LLUCID_CACHE to a folder for llucid's cache"
    words = after(unknown, "generate", made / "run", PROMPT, "--seed", 1, "--max-tokens", 5)
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    assert (done.returncode, len(done.stdout)) == (0, len(PROMPT) + 6)
    assert done.stderr.startswith(
        f"llucid: PyTorch computes instead of C, more slowly: llama.c could not be built ({message})\n"
    )
    words = after(unknown, "train", "--corpus", made / "geese.txt", "--out", tmp_path / "run")
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")


def test_a_library_without_memory_is_reported_in_one_line(made: Path, tmp_path: Path) -> None:
    words = ("convert", made / "run", tmp_path / "out.gguf", "--to", "gguf")
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 * 10**8, 3 * 10**8))"
    done = subprocess.run(
        after(limited, *words), capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert (done.returncode, done.stderr) == (2, "error: there is not enough memory\n")
    assert not (tmp_path / "out.gguf").exists()


def test_only_a_size_that_overflows_is_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler, for example, warns of overflows."""
    monkeypatch.setattr(sys, "argv", ["llucid", "info", "storyteller"])
    error = RuntimeError("warning: overflow in conversion from 'int' to 'char'")
    monkeypatch.setattr(command_class("info"), "run", Mock(side_effect=error))
    with pytest.raises(RuntimeError, match=r"^warning: overflow"):
        main()


def test_names_that_are_not_utf_8_are_printed_as_they_are(made: Path, tmp_path: Path) -> None:
    words = [
        os.fsencode(word) for word in command("convert", made / "run", f"{tmp_path}/\udcff", "--to", "huggingface")
    ]
    done = subprocess.run(words, capture_output=True)
    assert done.stdout == b"the model is in " + os.fsencode(tmp_path) + b"/\xff\n"
    done = subprocess.run([*words[:3], b"info", os.fsencode(tmp_path) + b"/\xfe"], capture_output=True)
    assert done.returncode == 2
    assert b"\\udcfe: there is no such file or folder" in done.stderr


def test_texts_are_utf_8_in_any_locale(made: Path) -> None:
    """Where Python decodes arguments as ASCII, too; a text that is not UTF-8 is refused, not replaced."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    predict = (*command("predict", "storyteller"), "--json")
    [one, two] = (
        subprocess.run([*predict, "Ünï 漢"], capture_output=True, env=os.environ | more)
        for more in ({"PYTHONUTF8": "1"}, plain)
    )
    assert (one.stdout, one.returncode) == (two.stdout, 0)
    refused = [*map(os.fsencode, predict), b"a\xff"], [*map(os.fsencode, predict), b"-"]
    generate = command("generate", made / "run", "the", "--max-tokens", 1, "--stop")
    refused += [*map(os.fsencode, generate), b"\xff"], [*map(os.fsencode, command("predict", "--toy")), b"a \xff"]
    refused += ([*map(os.fsencode, command("chat", "--system")), b"\xff"],)
    for words in refused:
        done = subprocess.run(words, input=b"a\xff\n", capture_output=True, env=os.environ | {"PYTHONUTF8": "1"})
        assert (done.returncode, done.stdout) == (2, b""), words
        assert re.fullmatch(rb"error: '.*\\udcff': not UTF-8 text\n", done.stderr), done.stderr


def test_debug_after_two_dashes_is_text(made: Path) -> None:
    """Of which this vocabulary lacks the dashes."""
    assert "'-' cannot be encoded" in do("generate", made / "run", "--", "--debug", status=2).stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    failed = subprocess.run(command("info", tmp_path / "none", "--debug"), capture_output=True, text=True)
    assert "Traceback" in failed.stderr
    assert "LlucidError" in failed.stderr


def test_the_list_of_commands_has_a_line_for_each() -> None:
    lines = overview().splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [*COMMANDS]
    assert len(lines) == len(COMMANDS) + 8


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    """So that `import llucid` and `llucid --help` are fast."""
    heavy = "{'torch', 'numpy', 'matplotlib', 'tokenizers', 'safetensors', 'jinja2', 'huggingface_hub'}"
    for code in ("import llucid", "from llucid.cli import overview; overview()"):
        probe = f"{code}; import sys; print(sorted({heavy} & sys.modules.keys()))"
        assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout == "[]\n"


def test_ctrl_c_during_the_import(tmp_path: Path) -> None:
    """As just after Enter."""
    (tmp_path / "argparse.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(command("--help"), capture_output=True, text=True, env=os.environ | {"PYTHONPATH": tmp_path})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_signal_while_the_command_line_is_read() -> None:
    kill = "argparse.ArgumentParser.parse_known_args = lambda *_: os.kill(os.getpid(), 15)"
    code = f"import argparse, os; {kill}; from llucid.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "info", "x"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")


def test_a_signal_whose_exception_was_caught_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """After more than the second in which those of one session's end change nothing."""
    monkeypatch.setattr(entry, "left", float("-inf"))
    for second, exits in ((0, True), (0.5, False), (1.5, True)):
        monkeypatch.setattr(entry, "time", Mock(monotonic=lambda second=second: 1e9 + second))
        with pytest.raises(SystemExit, match="143") if exits else nullcontext():
            entry.leave(signal.SIGTERM, None)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_waits_until_pytorch_is_imported(name: str, status: int, tmp_path: Path) -> None:
    """Its exception could end the process in C++, or be taken for a library that is not installed. So with NumPy."""
    (tmp_path / "torch.py").write_text(
        f"import os, signal, time\nos.kill(os.getpid(), signal.{name})\ntime.sleep(0.1)\nprint('imported')"
    )
    wait = "argparse.ArgumentParser.parse_known_args = lambda *_: (__import__('torch'), time.sleep(60))"
    code = f"{DEFAULT_HANGUP}; import argparse, time; {wait}; from llucid.__main__ import main; main()"
    given = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", code, "info", "x"], capture_output=True, text=True, env=given)
    assert (done.returncode, done.stdout) == (status, "imported\n")


def test_no_constant_is_a_product_of_large_integers() -> None:
    """Python looks for signals in such a product, and while it compiles, it drops the exception that one raises."""
    files = [*(Path(llucid.__file__).parent).rglob("*.py")]
    large = [
        f"{file.name}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.Mult)
        if isinstance(node.left, ast.Constant) and isinstance(node.right, ast.Constant)
        if isinstance(value := eval(ast.unparse(node)), int) and value >= 1 << 30
    ]
    assert len(files) > 100
    assert large == []


@pytest.mark.parametrize(("name", "status", "error"), [("SIGINT", 130, "interrupted\n"), ("SIGTERM", 143, "")])
def test_a_signal_where_python_ignores_exceptions(name: str, status: int, error: str) -> None:
    """As at the end of each import, in a function that is called when the module's lock is deleted."""
    ignoring = f"class Lock: __del__ = lambda _: os.kill(os.getpid(), signal.{name})"
    wait = "argparse.ArgumentParser.parse_known_args = lambda *_: (bool(Lock()), time.sleep(60))"
    code = f"import argparse, os, signal, time\n{ignoring}\n{wait}\nfrom llucid.__main__ import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code, "info", "x"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", error)


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129), ("nohup", 0)])
def test_a_signal_leaves_nothing_half_written(made: Path, tmp_path: Path, name: str, status: int) -> None:
    """It comes twice, as at the end of a session, when the files are written but not yet renamed."""
    number, out = getattr(signal, name, signal.SIGHUP), tmp_path / "out"
    handled = DEFAULT_HANGUP.replace("DFL", "IGN") if name == "nohup" else DEFAULT_HANGUP
    kill = f"import os; os.fsync = lambda file: [os.kill(os.getpid(), {number:d}) for _ in 'ab']"
    code = f"{handled}; {kill}; from llucid.__main__ import main; main()"
    words = [sys.executable, "-c", code, *map(str, ("convert", made / "run", out, "--to", "huggingface"))]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "")
    assert list(tmp_path.iterdir()) == [out] * (name == "nohup")


def test_help_of_every_command() -> None:
    listed = do("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in listed
        shown = do(name, "--help").stdout
        assert do(name, "--help", env=os.environ | {"COLUMNS": "4"}).stdout.split()[:2] == ["usage:", "llucid"]
        assert shown.startswith(f"usage: llucid {name} ")
        for option in options_of(command_class(name)):
            assert option.spelling in shown


def test_help_marks_optional_arguments_and_has_sections() -> None:
    assert "chat [MODEL] [options]\n" in do("chat", "--help").stdout
    assert "generate MODEL [PROMPT] [options]\n" in do("generate", "--help").stdout
    shown = do("train", "--help").stdout
    assert "--model.tied-embeddings {True,False}" in shown
    assert "--seed N " in shown
    assert "(default: 0)" in shown
    assert "None" not in shown
    sections = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    assert sections[:-1] == ["data", "size and length", "output", "optimisation", "computing"]
    assert sections[-1].startswith("Numbers of the model")
    assert re.findall(r"^  --(\S+)", shown, re.MULTILINE)[:4] == ["corpus", "chat", "base", "tokenizer"]


ADDITIONS = ("steps", "stop_after", "html", "compare")
"""Options that only add something."""


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_says_what_happens_without_an_option(name: str) -> None:
    for option in options_of(command_class(name)):
        assert len(option.help) > 5, option.name
        if option.field.default is None and not option.name.startswith("model.") and option.name not in ADDITIONS:
            assert re.search("default: |[Ii]nstead|unless given|preset.s", option.help), option.name


def test_version() -> None:
    assert do("--version").stdout == f"llucid {importlib.metadata.version('llucid')}\n"


def test_a_text_can_come_from_standard_input(made: Path) -> None:
    """Without the line break at its end, which a file has but a prompt does not."""
    for words in (("generate", "--seed", 1, "--max-tokens", 9), ("predict",)):
        named = do(*words, made / "run", PROMPT).stdout
        assert do(*words, made / "run", "-", input=f"{PROMPT}\n").stdout == named
    assert do("generate", made / "run", "-", "--max-tokens", 1, input="a\n\n").stdout.startswith("a\n")


def test_output_closed_early_is_no_error(made: Path) -> None:
    """As in `llucid generate … | head -1`."""
    shell = " ".join(command("generate", made / "run", "the", "--max-tokens", 3000)) + " | head -c 5"
    done = subprocess.run(shell, shell=True, capture_output=True, text=True, env=os.environ)
    assert done.stdout == "the" + done.stdout[3:]
    assert "Traceback" not in done.stderr


def test_ctrl_c_prints_what_was_written_of_several_texts(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any) -> Iterator[Piece]:
        for number, piece in enumerate(stream(*arguments)):
            if number > 10:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr("llucid.generation.completions.stream", interrupted)
    monkeypatch.setattr(sys, "argv", ["llucid", "generate", str(made / "run"), PROMPT, "--num", "2", "--seed", "1"])
    main()
    first, second = capsys.readouterr().out.removesuffix("\n").split(f"\n{'-' * 40}\n")
    texts = do("generate", made / "run", PROMPT, "--num", 2, "--seed", 1).stdout.split(f"\n{'-' * 40}\n")
    for some, whole in ((first, texts[0]), (second, texts[1])):
        assert whole.startswith(some)
        assert len(PROMPT) < len(some) < len(whole)


def test_a_path_in_an_existing_folder_is_not_fetched(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made.parent)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("fetched"))
    monkeypatch.setattr(sys, "argv", ["llucid", "info", f"{made.name}/none"])
    with pytest.raises(SystemExit):
        main()
    assert f"{made.name}/none: there is no such file or folder" in capsys.readouterr().err


def test_closed_streams_and_ascii_output(made: Path) -> None:
    talk = " ".join(command("chat", made / "run", "--format", "plain"))
    closed = subprocess.run(f"{talk} <&-", shell=True, capture_output=True, text=True)
    assert (closed.returncode, closed.stdout, closed.stderr) == (0, "", "")
    words = command("predict", made / "run", "the", "--top-k", 2)
    few = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert few.returncode == 2
    assert few.stderr == "error: '\\u2588' cannot be encoded as ascii; set PYTHONIOENCODING=utf-8\n"
    assert subprocess.run(f"{' '.join(words)} >&-", shell=True).returncode == 0


def test_convert_reports_dequantised_weights(made: Path, tmp_path: Path) -> None:
    do("convert", made / "run", tmp_path / "8.gguf", "--to", "gguf", "--dtype", "q8_0")
    output = do("convert", tmp_path / "8.gguf", tmp_path / "32.gguf", "--to", "gguf").stderr
    assert "Q8_0 weights were written as float32; --dtype chooses another type\n" in output
    output = do("convert", made / "run", tmp_path / "2.bin", "--to", "llama2c", "--version", 2).stderr
    assert "weights were written" not in output
    output = do("convert", tmp_path / "2.bin", tmp_path / "hf", "--to", "huggingface").stderr
    assert re.search("int8 in groups of .* weights were written as float32; --dtype chooses another type\n", output)
    assert (
        "weights were written"
        not in do("convert", tmp_path / "8.gguf", tmp_path / "b", "--to", "gguf", "--dtype", "q8_0").stderr
    )


def test_speed_is_printed_after_the_text(made: Path) -> None:
    """Also where both go to one file."""
    words = command("generate", made / "run", PROMPT, "--max-tokens", 9, "--seed", 1)
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    text = "".join(llucid.generate(llucid.load(made / "run", device="cpu"), PROMPT, max_tokens=9, seed=1))
    assert done.stdout.startswith(f"{PROMPT}{text}\nprompt 10 tokens in ")
    several = subprocess.run([*words, "--num", "2"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert several.stdout.startswith(f"{PROMPT}{text}\n{'-' * 40}\n{PROMPT}")
    assert re.search(r"\nprompt \d+ tokens in .*\n$", several.stdout)


def test_train_says_where_the_model_is_and_what_to_try(made: Path, tmp_path: Path) -> None:
    (tmp_path / "geese\x1b").write_bytes((made / "geese.txt").read_bytes())
    short = (*TRAIN, tmp_path / "geese\x1b", "--model.context", 32, "--batch", 2, "--evaluations", 1)
    output = do(*short, cwd=tmp_path).stdout
    assert "the model is in runs/geese␛, its learning curve in runs/geese␛/curve.png\ntry:\n" in output
    assert "    llucid generate 'runs/geese␛'\n" in output
    assert "    llucid predict 'runs/geese␛' \"the \"\n" in output
    named = do(*short, "--out", "mine", cwd=tmp_path).stdout
    assert named.endswith("the model is in mine, its learning curve in mine/curve.png\n")


def test_what_to_try_can_be_typed(tmp_path: Path) -> None:
    """Also where the folder's name needs quotation marks and the vocabulary has no letters of "the "."""
    (tmp_path / "my genes.txt").write_text("GATTACA" * 99)
    short = ("train", "--corpus", "my genes.txt", "--preset", "nano", "--steps", 1)
    output = do(*short, cwd=tmp_path).stdout
    tries = re.findall(r"^    llucid (.*'runs/my genes'.*)$", output, re.MULTILINE)
    assert len(tries) == 3
    for tried in tries:
        do(*shlex.split(tried), cwd=tmp_path)
