"""Answers in OpenAI's forms."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from anytune.serve.answer import Answer
from anytune.serve.choosing import Chosen


class Words:
    """Tokens as OpenAI shows them: text and bytes."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def piece(self, token: int) -> bytes:
        """Its bytes, none for a row of the model's that no token belongs to."""
        return self.tokenizer.piece(token) if token < self.tokenizer.size else b""

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        piece = self.piece(token)
        return {"token": piece.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(piece)}

    def chat_logprobs(self, tokens: Sequence[Chosen]) -> dict[str, Any]:
        return {
            "content": [
                {**self._token(made.token, made.logprob), "top_logprobs": [self._token(*pair) for pair in made.top]}
                for made in tokens
            ],
            "refusal": None,
        }

    def text_logprobs(self, tokens: Sequence[Chosen], offset: int) -> dict[str, Any]:
        """offset: where in the answer's text the first of them begins."""
        shown = [self._token(made.token, made.logprob) for made in tokens]
        offsets = [offset]
        for token in shown:
            offsets.append(offsets[-1] + len(token["token"]))
        top = [
            {token["token"]: token["logprob"] for token in (self._token(*pair) for pair in made.top)} for made in tokens
        ]
        return {
            "tokens": [token["token"] for token in shown],
            "token_logprobs": [token["logprob"] for token in shown],
            "top_logprobs": top,
            "text_offset": offsets[:-1],
        }


def usage(answers: Sequence[Answer], prompts: Sequence[Answer]) -> dict[str, Any]:
    """prompts: one answer for each prompt, which counts once however many answers it has."""
    read, made = sum(len(a.request.prompt) for a in prompts), sum(len(a.reply.ids) for a in answers)
    return {
        "prompt_tokens": read,
        "completion_tokens": made,
        "total_tokens": read + made,
        "prompt_tokens_details": {"cached_tokens": sum(a.cached for a in prompts)},
    }


def head(identifier: str, kind: str, label: str) -> dict[str, Any]:
    return {"id": identifier, "object": kind, "created": int(time.time()), "model": label, "system_fingerprint": None}


def embeddings(
    vectors: Sequence[np.ndarray], counts: Sequence[int], label: str, encoding: str | None
) -> dict[str, Any]:
    def shown(vector: np.ndarray) -> Any:
        if encoding == "base64":
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return vector.tolist()

    data = [{"object": "embedding", "index": i, "embedding": shown(vector)} for i, vector in enumerate(vectors)]
    return {
        "object": "list",
        "data": data,
        "model": label,
        "usage": {"prompt_tokens": sum(counts), "total_tokens": sum(counts)},
    }


def error(
    sentence: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    return {"error": {"message": sentence, "type": kind, "param": param, "code": code}}


def encoded(value: Any) -> bytes:
    """JSON whose text may hold what UTF-8 cannot."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + encoded(value) + b"\n\n"
