"""Answers that must have a form: at each token, which tokens may follow. llguidance computes that, the library that
llama.cpp uses for the same; here it serves both backends."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np

from anytune.errors import UserError
from anytune.extras import install

LONGEST = 1 << 18  # characters of a schema or grammar


class Grammars:
    """Grammars over one tokenizer. size: of the vocabulary that the model's logits have."""

    def __init__(self, tokenizer: Any, size: int):
        self.tokenizer, self.size = tokenizer, size

    @functools.cached_property
    def _vocabulary(self) -> Any:
        try:
            import llguidance
        except ImportError:
            raise UserError(f"Constrained answers need the llguidance package: {install('serve')}.") from None
        return llguidance.LLTokenizer(_Words(self.tokenizer, self.size), eos_token=sorted(self.tokenizer.eog))

    def json(self, schema: Any) -> str:
        """The grammar of what a JSON schema allows."""
        return f"%llguidance {{}}\nstart: {json_rule(schema)}"

    def matcher(self, grammar: str) -> Matcher:
        """Follows one answer. Raises UserError for a grammar that cannot be used."""
        vocabulary = self._vocabulary
        from llguidance import LLMatcher

        if len(grammar) > LONGEST:
            raise UserError(f"A schema may have {LONGEST:,} characters at most.")
        made = LLMatcher(vocabulary, grammar, log_level=0)
        if made.is_error():
            raise UserError(f"The schema or grammar cannot be used: {_first(made.get_error())}")
        return Matcher(made, self.size)


def json_rule(schema: Any) -> str:
    """What a JSON schema allows, as a part of a Lark grammar; white space only where it is written for people."""
    if isinstance(schema, dict):
        schema = {**schema, "x-guidance": {"whitespace_pattern": "[ \\n]{0,8}"}}
    return f"%json {json.dumps(schema)}"


class Matcher:
    """One answer under way. Raises UserError where the library gives up, on a grammar that is too large."""

    def __init__(self, made: Any, size: int):
        self.made = made
        self.bits = np.zeros(-(-size // 32), np.int32)

    def restrict(self, logits: np.ndarray) -> None:
        """Set the logits of tokens that may not come to minus infinity. logits: float32 [vocab]."""
        self.made.unsafe_compute_mask_ptr(self.bits.ctypes.data, self.bits.nbytes)
        self._check()
        allowed = np.unpackbits(self.bits.view(np.uint8), bitorder="little")[: logits.size]
        logits[allowed == 0] = -np.inf

    def accept(self, token: int) -> None:
        self.made.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self.made.is_error():
            raise UserError(f"The answer cannot satisfy its schema: {_first(self.made.get_error())}")


class _Words:
    """A tokenizer as llguidance takes one. Control tokens are marked, so that none can come where text is asked for."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Any, size: int):
        self._encode = functools.partial(tokenizer.encode, special=False, bos=False)
        self.eos_token_id = min(tokenizer.eog)
        self.bos_token_id = tokenizer.bos
        every = range(tokenizer.size)
        self.special_token_ids = [token for token in every if tokenizer.is_control(token)]
        self.tokens = [tokenizer.piece(token) for token in every] + [b""] * (size - tokenizer.size)

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


def _first(text: str) -> str:
    return (text.strip().splitlines() or ["it does not say why"])[0][:300].rstrip(".") + "."
