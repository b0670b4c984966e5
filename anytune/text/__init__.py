"""Everything between a user's words and the flat token stream:
tokenizer and chat template from GGUF metadata, loss masks, data formats, packing into micro-batches.
Nothing here knows of models or devices; names below are loaded when first used."""

from __future__ import annotations

import importlib

_HOMES = {
    "Tokenizer": "tokenizer",
    "StreamDecoder": "tokenizer",
    "ChatTemplate": "chat",
    "encode_chat": "mask",
    "Record": "formats",
    "read_records": "formats",
    "build_dataset": "build",
    "Dataset": "dataset",
    "MicroBatch": "packing",
    "pack": "packing",
    "make_batch": "packing",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
