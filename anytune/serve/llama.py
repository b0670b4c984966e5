"""The backend on llama.cpp, through the C functions in xllamacpp's library.

Its own server takes adapters only when it starts, and lets requests of different adapters share what they have
computed. Here the slots are ours: each belongs to one mix at a time, and one decode holds the tokens of one mix.

Its flash attention on a CPU has three kernels that round differently: for one row of a sequence, for up to 63, and for
more. So that an answer does not depend on its neighbours nor on what of its prompt was kept, prompts are fed ROWS or
fewer at a time, and never one row alone, and answers always one row at a time: then the bits are the same.
"""

from __future__ import annotations

import ctypes
import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anytune.llamacpp import library
from anytune.errors import UserError
from anytune.llamacpp.library import INT, POINTER, Unknown
from anytune.serve.backend import Mix, Piece

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter

ROWS = 62  # of a prompt in one decode
BATCH = 256  # tokens of one decode, of which an answer under way has one: as many as there can be sequences
FLOATS = ctypes.POINTER(ctypes.c_float)
SIGNATURES = {
    "llama_get_logits_ith": (FLOATS, [POINTER, INT]),
    "llama_get_embeddings_ith": (FLOATS, [POINTER, INT]),
    "llama_set_embeddings": (None, [POINTER, ctypes.c_bool]),
    "llama_memory_seq_rm": (ctypes.c_bool, [POINTER, INT, INT, INT]),
    "llama_n_seq_max": (ctypes.c_uint32, [POINTER]),
    "llama_n_ctx_seq": (ctypes.c_uint32, [POINTER]),
    "llama_model_n_embd": (INT, [POINTER]),
    "llama_adapter_lora_free": (None, [POINTER]),
    "llama_batch_free": (None, [library.Batch]),
    "llama_free": (None, [POINTER]),
    "llama_model_free": (None, [POINTER]),
}


class LlamaBackend:
    """One sequence of llama.cpp's a slot. Raises UserError if the model does not load."""

    name = "llama.cpp"

    def __init__(self, model: Path, vocabulary: int, slots: int, context: int, threads: int):
        self.slots, self.vocabulary = slots, vocabulary
        try:
            self.lib, self.log = library.library(SIGNATURES)
            self._open(model, context, threads)
        except Unknown as error:
            raise UserError(
                f"This build of xllamacpp cannot be used ({error}): try another version, or --backend anytune."
            ) from None
        self.lengths = [0] * slots
        self.adapters: dict[str, int] = {}
        self.applied: Mix = ()

    def _open(self, model: Path, context: int, threads: int) -> None:
        lib = self.lib
        self.model = lib.llama_model_load_from_file(os.fspath(model).encode(), lib.llama_model_default_params())
        if not self.model:
            raise UserError(f"llama.cpp cannot load {model.name}: {self._said()}")
        if (found := lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))) != self.vocabulary:
            raise UserError(f"llama.cpp sees {found} tokens in the vocabulary, not {self.vocabulary}.")
        each = -(-context // 256) * 256  # what llama.cpp rounds to
        params = _context_params(lib, each * self.slots, self.slots)
        self.state = lib.llama_init_from_model(self.model, params)
        if not self.state:
            raise UserError(
                f"llama.cpp cannot create a context of {self.slots} x {context} tokens: {self._said()} Use a "
                "smaller -c or --parallel."
            )
        if lib.llama_n_seq_max(self.state) != self.slots or lib.llama_n_ctx_seq(self.state) < context:
            raise Unknown("the parameters were not applied")
        self.context = context
        lib.llama_set_n_threads(self.state, threads, threads)
        self.memory = lib.llama_get_memory(self.state)
        self.width = lib.llama_model_n_embd(self.model)
        self.batch = batch = lib.llama_batch_init(BATCH, 0, 1)
        self.token, self.place, self.count = (
            np.ctypeslib.as_array(part, (BATCH,)) for part in (batch.token, batch.pos, batch.n_seq_id)
        )
        self.asked = np.ctypeslib.as_array(batch.logits, (BATCH,))
        self.count[:] = 1

    def feed(self, pieces: Sequence[Piece]) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for mix in dict.fromkeys(piece.mix for piece in pieces):
            self._apply(mix)
            own = [piece for piece in pieces if piece.mix == mix]
            found |= self._decode([piece for piece in own if len(piece.ids) == 1])
            for piece in own:
                if len(piece.ids) > 1:
                    found |= self._prompt(piece)
        return found

    def _prompt(self, piece: Piece) -> dict[int, np.ndarray]:
        at, found = 0, {}
        while at < len(piece.ids):
            left = len(piece.ids) - at
            count = min(ROWS, left) - (left == ROWS + 1)  # no row is left alone
            last = count == left
            found = self._decode([Piece(piece.slot, piece.ids[at : at + count], piece.mix, piece.wanted and last)])
            at += count
        return found

    def _decode(self, pieces: Sequence[Piece]) -> dict[int, np.ndarray]:
        at, rows = 0, {}
        for piece in pieces:
            self._put(at, piece.slot, piece.ids)
            at += len(piece.ids)
            if piece.wanted:
                rows[piece.slot] = at - 1
        if not at:
            return {}
        self.asked[:at] = 0
        self.asked[list(rows.values())] = 1
        self._run(at)
        for piece in pieces:
            self.lengths[piece.slot] += len(piece.ids)
        return {
            slot: np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.state, row), (self.vocabulary,)).copy()
            for slot, row in rows.items()
        }

    def _put(self, at: int, slot: int, ids: Sequence[int]) -> None:
        """Tokens into the batch from row `at` on, behind what the slot holds; a slot comes once in a batch."""
        first = self.lengths[slot]
        self.token[at : at + len(ids)] = ids
        self.place[at : at + len(ids)] = np.arange(first, first + len(ids))
        for row in range(at, at + len(ids)):
            self.batch.seq_id[row][0] = slot

    def _run(self, tokens: int) -> None:
        self.batch.n_tokens = tokens
        self.log.clear()
        if code := self.lib.llama_decode(self.state, self.batch):
            raise UserError(f"llama.cpp cannot compute this ({code}): {self._said()}")

    def _apply(self, mix: Mix) -> None:
        if mix == self.applied:
            return
        pointers = (POINTER * max(1, len(mix)))(*(self.adapters[digest] for digest, _ in mix))
        scales = (ctypes.c_float * max(1, len(mix)))(*(scale for _, scale in mix))
        if self.lib.llama_set_adapters_lora(self.state, pointers, len(mix), scales):
            raise UserError("llama.cpp cannot apply these adapters together.")
        self.applied = mix

    def truncate(self, slot: int, length: int) -> None:
        if length >= self.lengths[slot]:
            return
        if length and self.lib.llama_memory_seq_rm(self.memory, slot, length, -1):
            self.lengths[slot] = length
            return
        self.lib.llama_memory_seq_rm(self.memory, slot, -1, -1)  # all of it, which every kind of memory can
        self.lengths[slot] = 0

    def add(self, digest: str, adapter: Adapter) -> None:
        with tempfile.TemporaryDirectory(prefix="anytune-serve-") as folder:
            # rewritten by us: whatever form it came in, and nothing in it that we have not read
            file = Path(folder) / "adapter.gguf"
            adapter.save(file)
            made = self.lib.llama_adapter_lora_init(self.model, os.fspath(file).encode())
        if not made:
            raise UserError(f"llama.cpp rejects the adapter: {self._said()}")
        self.adapters[digest] = made

    def remove(self, digest: str) -> None:
        made = self.adapters.pop(digest, None)
        if made is None:
            return
        if digest in dict(self.applied):
            self._apply(())
        self.lib.llama_adapter_lora_free(made)

    def embed(self, ids: Sequence[int], mix: Mix, slot: int) -> np.ndarray:
        total = np.zeros(self.width, np.float32)
        self._apply(mix)
        self.truncate(slot, 0)
        self.lib.llama_set_embeddings(self.state, True)
        try:
            for at in range(0, len(ids), BATCH):
                some = ids[at : at + BATCH]
                self._put(0, slot, some)
                self.asked[: len(some)] = 1
                self._run(len(some))
                self.lengths[slot] += len(some)
                for row in range(len(some)):
                    total += np.ctypeslib.as_array(self.lib.llama_get_embeddings_ith(self.state, row), (self.width,))
        finally:
            self.lib.llama_set_embeddings(self.state, False)
            self.truncate(slot, 0)
        return total

    def close(self) -> None:
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.state)
        self.lib.llama_model_free(self.model)

    def _said(self) -> str:
        """The last that llama.cpp said of an error."""
        telling = [line.strip() for line in self.log if "error" in line.lower() or "fail" in line.lower()]
        return (telling or ["it does not say why"])[-1][:200].rstrip(".") + "."


def _context_params(lib: ctypes.CDLL, tokens: int, sequences: int) -> library.Struct:
    """Defaults but for n_ctx, n_batch, n_ubatch and n_seq_max, which open the struct."""
    params = lib.llama_context_default_params()
    if struct.unpack("<4I", bytes(params.bytes)[:16]) != (512, 2048, 512, 1):
        raise Unknown("llama_context_params differs")
    struct.pack_into("<4I", params.bytes, 0, tokens, BATCH, BATCH, sequences)
    return params
