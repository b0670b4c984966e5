"""llama.cpp beside it: what llama-bench does, through the C functions in xllamacpp's library.

Its own defaults (16-bit keys and values, batches of 512 tokens), random tokens, logits of the last token of each
sequence.
"""

from __future__ import annotations

import ctypes
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np

from anytune.llamacpp import judge, library
from anytune.errors import UserError
from anytune.llamacpp.library import INT, POINTER, Batch, Struct, Unknown

from .cases import PEER, Settings, Test

UBATCH = 512  # tokens that are computed at once
SIGNATURES = {
    "llama_synchronize": (None, [POINTER]),
    "llama_n_seq_max": (ctypes.c_uint32, [POINTER]),
    "llama_model_n_ctx_train": (INT, [POINTER]),
    "llama_memory_seq_rm": (ctypes.c_bool, [POINTER, INT, INT, INT]),
    "llama_memory_seq_pos_max": (INT, [POINTER, INT]),
}


class LlamaCpp:
    """llama.cpp's side of a measurement; it is its own task."""

    estimate = None

    def __init__(self, path: Path, device: str, threads: int | None, test: Test, settings: Settings):
        judge.need_llamacpp()
        from anytune.engine.probe import cores

        self.path, self.threads, self.test = path, threads or cores(), test
        self.task = self
        self.started, self.times = 0.0, []  # of the last round

    def start(self) -> None:
        try:
            lib, self.log = library.library(SIGNATURES)
            self._open(lib)
        except Unknown as error:
            raise UserError(f"this build of xllamacpp cannot be measured ({error}): try another version.") from None

    def _open(self, lib: ctypes.CDLL) -> None:
        test = self.test
        self.lib, model = lib, lib.llama_model_load_from_file(str(self.path).encode(), lib.llama_model_default_params())
        if not model:
            raise UserError("llama.cpp cannot load the model.")
        if test.context > lib.llama_model_n_ctx_train(model):
            raise UserError(
                f"{test.name} needs a context of {test.context} tokens and the model has "
                f"{lib.llama_model_n_ctx_train(model)}: ask for fewer tokens."
            )
        # each sequence gets an equal share of the context, rounded up to what llama.cpp rounds to
        tokens = test.examples * -(-test.context // 256) * 256
        self.context = lib.llama_init_from_model(model, _params(lib, tokens, test.examples))
        if not self.context or lib.llama_n_seq_max(self.context) < test.examples:
            raise UserError(f"llama.cpp cannot create a context of {test.examples} x {test.context} tokens.")
        lib.llama_set_n_threads(self.context, self.threads, self.threads)
        self.held = lib.llama_get_memory(self.context)
        self.batch = lib.llama_batch_init(max(UBATCH, test.examples), 0, 1)
        vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self.ids = np.random.default_rng(1).integers(0, vocab, (test.examples, test.context)).tolist()
        if test.depth:
            self._prompts(0, test.depth)

    def facts(self) -> dict[str, Any]:
        import xllamacpp

        described = [str(d.get("description") or d.get("name")) for d in xllamacpp.get_device_info()]
        return {
            "engine": PEER,
            "hardware": ", ".join(described) or None,
            "threads": self.threads,
            "identity": {},
            "estimate_bytes": None,
            "how": None,
        }

    def memory(self) -> dict[str, int]:
        from anytune.memory import peak_bytes

        host = peak_bytes()
        return {"peak_bytes": host, "host_peak_bytes": host}

    def explain(self, error: Exception) -> None:
        return None

    def warm(self) -> None:
        self.round()

    def round(self) -> float:
        """Seconds, from `depth` tokens in each sequence on."""
        depth, lib = self.test.depth, self.lib
        for sequence in range(self.test.examples):
            if not lib.llama_memory_seq_rm(self.held, sequence, depth, -1):
                raise UserError("llama.cpp cannot remove tokens from such a model's cache, so it cannot be measured.")
        lib.llama_synchronize(self.context)
        self.times = []
        self.started = time.perf_counter()
        if self.test.kind == "prompt":
            self._prompts(depth, self.test.context)
        else:
            for at in range(depth, self.test.context):
                self._run([(ids[at], at, n, True) for n, ids in enumerate(self.ids)])
                lib.llama_synchronize(self.context)  # a sampler needs each token's logits before the next
                self.times.append(time.perf_counter())
        lib.llama_synchronize(self.context)
        self.times = self.times or [time.perf_counter()]
        return time.perf_counter() - self.started

    def _prompts(self, low: int, high: int) -> None:
        """Tokens low…high of every sequence, UBATCH at a time."""
        for number, ids in enumerate(self.ids):
            for at in range(low, high, UBATCH):
                self._run([(ids[p], p, number, p == high - 1) for p in range(at, min(at + UBATCH, high))])

    def _run(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        """(id, position, sequence, whether its logits are wanted) of each."""
        batch: Batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        if self.lib.llama_decode(self.context, batch):
            raise UserError("llama.cpp rejects the tokens.")


def _params(lib: ctypes.CDLL, tokens: int, sequences: int) -> Struct:
    """Defaults but for n_ctx, n_batch, n_ubatch and n_seq_max, which open the struct."""
    params = lib.llama_context_default_params()
    if struct.unpack("<4I", bytes(params.bytes)[:16]) != (512, 2048, 512, 1):
        raise Unknown("llama_context_params differs")
    struct.pack_into("<4I", params.bytes, 0, tokens, max(2048, sequences), UBATCH, sequences)
    return params
