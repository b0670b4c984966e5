"""llama.cpp's C functions in xllamacpp's library: every position of a sequence in one decode.

Ten times faster than one server request a position. Only functions whose signatures have stood for years are
called; the places that are looked up inside a parameter struct are checked by what llama.cpp then reports.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from typing import Any

import numpy as np

POINTER, INT = ctypes.c_void_p, ctypes.c_int32
UNSET = -1082130432  # the bits of -1.0f, which stands for "from the model" in llama_context_params


class Unknown(Exception):
    """This build of the library is not laid out as this file knows it."""


class Struct(ctypes.Structure):
    """A parameter struct passed by value, larger than llama.cpp's: only its own bytes are read."""

    _fields_ = [("bytes", ctypes.c_uint8 * 512)]


class Batch(ctypes.Structure):
    """struct llama_batch of llama.h."""

    _fields_ = [
        ("n_tokens", INT),
        ("token", ctypes.POINTER(INT)),
        ("embd", POINTER),
        ("pos", ctypes.POINTER(INT)),
        ("n_seq_id", ctypes.POINTER(INT)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(INT))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, POINTER)
SIGNATURES = {
    "llama_log_set": (None, [Log, POINTER]),
    "llama_model_default_params": (Struct, []),
    "llama_context_default_params": (Struct, []),
    "llama_model_load_from_file": (POINTER, [ctypes.c_char_p, Struct]),
    "llama_init_from_model": (POINTER, [POINTER, Struct]),
    "llama_n_ctx": (ctypes.c_uint32, [POINTER]),
    "llama_n_ubatch": (ctypes.c_uint32, [POINTER]),
    "llama_set_n_threads": (None, [POINTER, INT, INT]),
    "llama_adapter_lora_init": (POINTER, [POINTER, ctypes.c_char_p]),
    "llama_set_adapters_lora": (
        INT,
        [POINTER, ctypes.POINTER(POINTER), ctypes.c_size_t, ctypes.POINTER(ctypes.c_float)],
    ),
    "llama_get_memory": (POINTER, [POINTER]),
    "llama_memory_clear": (None, [POINTER, ctypes.c_bool]),
    "llama_batch_init": (Batch, [INT, INT, INT]),
    "llama_decode": (INT, [POINTER, Batch]),
    "llama_get_logits": (ctypes.POINTER(ctypes.c_float), [POINTER]),
    "llama_model_get_vocab": (POINTER, [POINTER]),
    "llama_vocab_n_tokens": (INT, [POINTER]),
}


def logprobs(job: dict[str, Any]) -> np.ndarray:
    """float32 [positions, vocab] for a job of anytune.llamacpp.

    Raises Unknown, or SystemExit if a file is refused.
    """
    lib, log = library()
    model = lib.llama_model_load_from_file(job["model"].encode(), lib.llama_model_default_params())
    if not model:
        raise SystemExit("error: the model does not load")
    vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    if vocab != job["vocab"]:
        raise SystemExit(f"error: llama.cpp sees {vocab} tokens in the vocabulary, not {job['vocab']}")
    context = lib.llama_init_from_model(model, _context_params(lib, job["context"]))
    if not context:
        raise SystemExit("error: cannot create a context for the model")
    said = "".join(log)
    exact = "K (f32)" in said and "V (f32)" in said and "K (f16)" not in said
    if not exact or lib.llama_n_ubatch(context) < job["context"] or lib.llama_n_ctx(context) < job["context"]:
        raise Unknown("the parameters were not applied")
    lib.llama_set_n_threads(context, job["threads"], job["threads"])
    if job["adapter"]:
        adapter = lib.llama_adapter_lora_init(model, job["adapter"].encode())
        if not adapter:
            raise SystemExit("error: the adapter does not load")
        scale = (ctypes.c_float * 1)(job["scale"])
        if lib.llama_set_adapters_lora(context, (POINTER * 1)(adapter), 1, scale):
            raise SystemExit("error: the adapter cannot be applied")
    batch = lib.llama_batch_init(job["context"], 0, 1)
    rows = [
        _sequence(lib, context, batch, ids, places, vocab)
        for ids, places in zip(job["sequences"], job["positions"], strict=True)
        if places
    ]
    return np.concatenate(rows) if rows else np.zeros((0, vocab), np.float32)


def library(more: dict[str, tuple] | None = None) -> tuple[ctypes.CDLL, list[str]]:
    """The library with typed functions (SIGNATURES, and more of that form), and the growing list of what it logs.

    Raises Unknown if it does not export one of them.
    """
    import xllamacpp.xllamacpp as extension

    lib = ctypes.CDLL(extension.__file__)
    for name, (result, arguments) in {**SIGNATURES, **(more or {})}.items():
        function = getattr(lib, name, None)
        if function is None:
            raise Unknown(f"it does not export {name}")
        function.restype, function.argtypes = result, arguments
    log: list[str] = []

    def keep(level: int, text: bytes, _: Any) -> None:
        log.append(text.decode("utf-8", "replace"))
        if level in (3, 4):  # warnings and errors; 5 goes on with a line of any kind
            sys.stderr.write(log[-1])

    lib.keep = Log(keep)  # the library holds only a pointer: the callback must outlive the call
    lib.llama_log_set(lib.keep, None)
    return lib, log


def _context_params(lib: ctypes.CDLL, tokens: int) -> Struct:
    """Room for `tokens` in one batch, plain attention, float32 keys and values.

    n_ctx, n_batch and n_ubatch open the struct. The attention's kind is the last of the enumerations that
    are at -1 (automatic) ahead of rope's floats; the cache types are the neighbours of 1 (F16) behind.
    """
    params = lib.llama_context_default_params()
    words = struct.unpack("<64i", bytes(params.bytes)[:256])
    automatic = [i for i in range(24) if words[i] == -1]
    floats = [i for i in range(32) if words[i] == UNSET]
    if words[:3] != (512, 2048, 512) or not automatic or not floats:
        raise Unknown("llama_context_params differs")
    types = [i for i in range(floats[-1], 48) if words[i] == words[i + 1] == 1]
    if not types:
        raise Unknown("llama_context_params has no cache types")
    struct.pack_into("<III", params.bytes, 0, tokens, tokens, tokens)
    struct.pack_into("<i", params.bytes, 4 * automatic[-1], 0)
    struct.pack_into("<ii", params.bytes, 4 * types[0], 0, 0)
    return params


def _sequence(
    lib: ctypes.CDLL, context: int, batch: Batch, ids: list[int], places: list[int], vocab: int
) -> np.ndarray:
    """Log-probabilities after each of `places` (in the order given), from an empty cache."""
    lib.llama_memory_clear(lib.llama_get_memory(context), True)
    wanted = sorted(set(places))
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 0
        batch.seq_id[i][0] = 0
    for place in wanted:
        batch.logits[place] = 1
    if lib.llama_decode(context, batch):
        raise SystemExit("error: llama.cpp rejects the tokens")
    logits = np.ctypeslib.as_array(lib.llama_get_logits(context), (len(wanted), vocab))
    rows = {}
    for place, row in zip(wanted, logits, strict=True):  # a row at a time: a vocabulary can be large
        shifted = row.astype(np.float64) - row.max()
        rows[place] = (shifted - np.log(np.exp(shifted).sum())).astype(np.float32)
    return np.stack([rows[place] for place in places])
