"""One prompt, several adapters, side by side: in a helper process, which holds the model between two calls.

Each column is headed by its adapter's hash and by how far that adapter is from the base on the very answer that it
gave: the mean KL divergence of its next-token distributions to the base's. A column that claims to be the base has
KL 0, computed like any other.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PIECE = 64  # positions compared at once


@functools.lru_cache(maxsize=1)
def _model(file: str, device: str, _stamp: int) -> Any:
    from anytune.model import load

    return load(file, device=device)


@functools.lru_cache(maxsize=4)
def _adapter(file: str, model: str, _stamp: int) -> tuple[Any, str]:
    from anytune.adapter.adapter import Adapter
    from anytune.gguf import GGUF

    with GGUF.open(model) as gguf:
        adapter = Adapter.load(file, gguf)
    with Path(file).open("rb") as opened:
        return adapter, hashlib.file_digest(opened, "sha256").hexdigest()


def compare(
    model: str,
    device: str,
    adapters: list[str | None],
    messages: list[dict[str, str]],
    system: str | None,
    sampling: dict[str, Any],
    max_tokens: int,
) -> Iterator[dict[str, Any]]:
    """Yields {column, text} as the answers come, then {column, hash, kl, tokens, finish} for each.

    adapters: files, None for the base alone; messages: the conversation so far, the last one the user's.
    """
    from anytune.generation.generate import decode
    from anytune.generation.prompts import context_length, prompt_ids
    from anytune.generation.sampling import Sampling

    loaded = _model(model, device, Path(model).stat().st_mtime_ns)
    found = [
        (None, None) if file is None else _adapter(file, model, Path(file).stat().st_mtime_ns) for file in adapters
    ]
    how, streams, replies = Sampling(**sampling), {}, {}
    for column, (adapter, _) in enumerate(found):
        ids = prompt_ids(loaded, messages, adapter=adapter, system=system)
        room = min(len(ids) + max_tokens, context_length(loaded))
        replies[column] = []
        streams[column] = decode(
            loaded.decoder(adapter=adapter, context=room),
            loaded.tokenizer,
            [ids],
            how,
            max_tokens=max_tokens,
            replies=replies[column],
        )
    while streams:  # a piece of each in turn, so that all are seen to grow
        for column in list(streams):
            piece = next(streams[column], None)
            if piece is None:
                del streams[column]
                adapter, digest = found[column]
                yield {"column": column, "hash": digest, **_ending(loaded, replies[column][0], adapter)}
            else:
                yield {"column": column, "text": piece[1]}


def _ending(model: Any, reply: Any, adapter: Any) -> dict[str, Any]:
    ids = np.array(reply.prompt + reply.ids[:512], np.int64)[: model.config.context]
    kl = divergence(model, ids, len(reply.prompt), adapter) if len(ids) > len(reply.prompt) else None
    return {"tokens": len(reply.ids), "finish": reply.finish, "kl": kl}


def divergence(model: Any, ids: np.ndarray, start: int, adapter: Any) -> float:
    """Mean KL(with adapter || base), nats, over the distributions that tokens `start`… of ids were drawn from."""
    ours, base = model.logits(ids, adapter)[start - 1 : -1], model.logits(ids, None)[start - 1 : -1]
    total = 0.0
    for at in range(0, len(ours), PIECE):
        p, q = _logs(ours[at : at + PIECE]), _logs(base[at : at + PIECE])
        total += float((np.exp(p) * (p - q)).sum())
    return max(0.0, total / len(ours))


def _logs(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
