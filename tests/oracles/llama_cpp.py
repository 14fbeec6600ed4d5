"""llama.cpp itself, from the package xllamacpp: its server opens a GGUF file within this process."""

import json
import math
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

library = pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install xllamacpp")


class LlamaCpp:
    """A GGUF file in llama.cpp, computed by one thread, with a cache in float32."""

    def __init__(self, path: Path, context: int = 512) -> None:
        settings = library.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = context, 1, 0
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.cache_type_k = settings.cache_type_v = library.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.verbosity, settings.warmup, settings.fit_params = -1, False, False
        self.server: Any = library.Server(settings)

    def asked(self, path: str, **content: object) -> dict[str, Any]:
        """The server's answer to this content as JSON."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.server.listening_address + path, json.dumps(content).encode(), headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return json.load(answer)

    def encode(self, text: str, special: bool = False, bos: bool = False) -> list[int]:
        return self.asked("/tokenize", content=text, parse_special=special, add_special=bos)["tokens"]

    def write(self, ids: list[int], count: int) -> str:
        """The `count` likeliest next tokens, each after the one before, as text."""
        return self.asked("/completion", prompt=ids, n_predict=count, temperature=0)["content"]

    def log_probabilities(self, ids: list[int], vocab_size: int) -> NDArray[np.float64]:
        """Of every token after these ids."""
        answer = self.asked("/completion", prompt=ids, n_predict=1, n_probs=vocab_size)
        found = np.full(vocab_size, -math.inf)
        for token in answer["completion_probabilities"][0]["top_logprobs"]:
            found[token["id"]] = token["logprob"]
        return found
