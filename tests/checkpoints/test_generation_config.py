"""The settings in generation_config.json, as transformers uses them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llucid.checkpoints import Model, convert, load, save
from llucid.checkpoints.generation_config import sampling_defaults
from llucid.generation import generate_batch
from tests.checkpoints.models import model_of
from tests.configs import CONFIGS


def greedy(model: Model) -> list[int]:
    (text,) = generate_batch(model, ["012"], max_tokens=30, temperature=0.0)
    return list(text.tokens)


def test_a_repetition_penalty_also_changes_greedy_text_as_in_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without `do_sample`, which the other settings need; conversions keep both as they are."""
    plain = model_of(CONFIGS["one for two"])
    save(plain, tmp_path / "a")
    file = tmp_path / "a" / "generation_config.json"
    values = {"repetition_penalty": 1.75, "temperature": 0.5, "no_repeat_ngram_size": 0, "typical_p": 0.5}
    file.write_text(json.dumps(values))
    theirs: Any = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "a")
    expected = theirs.generate(torch.tensor([[0, 1, 2]]), max_new_tokens=30)[0, 3:].tolist()
    capsys.readouterr()  # what transformers wrote
    for format in ("huggingface", "gguf"):
        convert(tmp_path / "a", tmp_path / format, format)
    convert(tmp_path / "gguf", tmp_path / "back", "huggingface")
    for path in (tmp_path / "a", tmp_path / "huggingface", tmp_path / "gguf", tmp_path / "back"):
        model = load(path, device="cpu")
        assert model.sampling == {"repetition_penalty": 1.75}
        assert greedy(model) == expected
    assert greedy(plain) != expected
    assert json.loads((tmp_path / "huggingface" / "generation_config.json").read_text()) == values
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text()) == {"repetition_penalty": 1.75}
    assert not capsys.readouterr().err


def test_settings_that_llucid_lacks_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "generation_config.json"
    theirs: Any = transformers.GenerationConfig
    neutral = theirs().to_dict() | theirs._get_default_generation_params()
    changed = {"no_repeat_ngram_size": 3, "suppress_tokens": [5], "typical_p": 0.9, "num_beams": 4, "bad_words_ids": []}
    for sample, lacking in ((False, ""), (True, ", typical_p")):
        file.write_text(json.dumps(neutral | {"do_sample": sample}))
        assert sampling_defaults(tmp_path) == ({"temperature": 1, "top_k": 50, "top_p": 1} if sample else {})
        assert not capsys.readouterr().err
        file.write_text(json.dumps(neutral | changed | {"do_sample": sample}))
        sampling_defaults(tmp_path)
        names = f"no_repeat_ngram_size, num_beams, suppress_tokens{lacking}"
        assert capsys.readouterr().err == f"note: {file}: settings that llucid does not have, and ignores: {names}\n"
