"""A GGUF file's vocabulary: token texts, their kinds, and the special ids, by llama.cpp's rules."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from anytune.errors import UserError

# What a token is. The first six are GGUF's token types 1 to 6; a token can have several after the rules
# below.
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = (1 << k for k in range(6))
_SPECIAL = CONTROL | USER | UNKNOWN

# Texts that mark the end of a turn, in order of preference; then all that end a generation.
_EOT = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<end_of_utterance>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<｜end▁of▁sentence｜>",
]
_EOG = [
    *_EOT,
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "<|eom_id|>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
]
# Fill-in-the-middle markers; a model that begins the next file or repository has ended its answer.
_FIM = {
    "fim_pre": [
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ],
    "fim_suf": [
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ],
    "fim_mid": [
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ],
    "fim_pad": ["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    "fim_rep": ["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    "fim_sep": ["<|file_sep|>"],
}
_ENDING_FIM = ("fim_pad", "fim_rep", "fim_sep")
_HARMONY = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"]
_DEFAULT_IDS = {"llama": {"bos": 1, "eos": 2, "unknown": 0}, "gpt2": {"bos": 11, "eos": 11}, "gemma4": {}}


class Vocabulary:
    """tokens: list[str] [n] as the file spells them; ids: text -> id; kinds: uint8 [n] (bits above);
    special: ids that are cut out of text before anything else, longest text first; eog: frozenset of ids.
    """

    def __init__(self, metadata: Mapping) -> None:
        self.model = metadata.get("tokenizer.ggml.model")
        if self.model not in _DEFAULT_IDS:
            what = f"the tokenizer type {self.model!r}" if self.model else "no tokenizer"
            raise UserError(f"This GGUF file has {what}; only gpt2 and llama (SentencePiece) are supported.")
        tokens = metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
            raise UserError("This GGUF file has no list of tokens (tokenizer.ggml.tokens): convert it again.")
        if "" in tokens:
            tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
        self.tokens = tokens
        # Of equal texts the first keeps the id.
        self.ids = dict(zip(reversed(tokens), range(len(tokens) - 1, -1, -1), strict=True))
        self.kinds = _kinds(metadata, len(tokens))
        self._read_ids(metadata)
        self._mark_by_text()
        self._find_ends()
        self.special = sorted(np.flatnonzero(self.kinds & _SPECIAL).tolist(), key=lambda i: (-len(_utf8(tokens[i])), i))
        self.strip_after = self._strip_after(str(metadata.get("general.name", "")).lower())

    def __len__(self) -> int:
        return len(self.tokens)

    def array(self, metadata: Mapping, name: str) -> np.ndarray:
        """A number per token from tokenizer.ggml.<name>. Raises UserError if there are too few."""
        return _per_token(metadata, name, len(self.tokens))

    def _read_ids(self, metadata: Mapping) -> None:
        defaults = _DEFAULT_IDS[self.model]
        found = {}
        for name in ("bos", "eos", "eot", "eom", "unknown", "padding", *_FIM):
            for key in (name, {"unknown": "unk", "padding": "pad"}.get(name, name)):
                value = metadata.get(f"tokenizer.ggml.{key}_token_id", defaults.get(name))
                if isinstance(value, int | np.integer) and 0 <= value < len(self.tokens):
                    found.setdefault(name, int(value))
        self.bos, self.eos, self.eot = found.get("bos"), found.get("eos"), found.get("eot")
        self.unknown, self.padding = found.get("unknown"), found.get("padding")
        self._named = found

    def _mark_by_text(self) -> None:
        """Files often lack the ids of special tokens, or type them as text: their spelling decides."""
        if self.eot is None:
            self.eot = next((self.ids[text] for text in _EOT if text in self.ids), None)
        self._named.setdefault("eom", self.ids.get("<|eom_id|>"))
        for name, texts in _FIM.items():
            if name not in self._named:
                found = next((self.ids[text] for text in texts if text in self.ids), None)
                if found is not None:
                    self._named[name] = found
                    self.kinds[found] |= CONTROL

    def _find_ends(self) -> None:
        eog = {self._named[name] for name in _ENDING_FIM if name in self._named}
        for text in _EOG:
            if text in self.ids:
                eog.add(self.ids[text])
                self.kinds[self.ids[text]] |= CONTROL
        for text in _HARMONY:
            if text in self.ids:
                self.kinds[self.ids[text]] = USER
        eog |= {i for i in (self.eos, self.eot, self._named.get("eom")) if i is not None}
        texts = {self.tokens[i] for i in eog}
        # Where a model has separate marks for the end of its answer, <|end|> only ends a message.
        if "<|end|>" in texts and texts & {"<|call|>", "<|calls|>"} and texts & {"<|return|>", "<|flush|>"}:
            eog.discard(self.ids["<|end|>"])
            self.kinds[self.ids["<|end|>"]] = USER
        if {"<|tool_response>", "</s>"} <= texts:
            eog.discard(self.ids["</s>"])
            self.kinds[self.ids["</s>"]] = NORMAL
        self.eog = frozenset(eog)

    def _strip_after(self, name: str) -> frozenset[int]:
        """Special tokens after which white space is dropped: nearly all of Phi-3's."""
        if "phi-3" not in name and "phi3" not in name:
            return frozenset()
        kept = {self.ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
        return frozenset({*self.special, self.ids.get("</s>")} - kept - {None})


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _per_token(metadata: Mapping, name: str, count: int) -> np.ndarray:
    found = np.asarray(metadata.get(f"tokenizer.ggml.{name}", ()))
    if found.ndim != 1 or found.dtype.kind not in "iuf" or len(found) < count:
        raise UserError(
            f"tokenizer.ggml.{name} has fewer entries than the vocabulary's {count} tokens: "
            "the GGUF file is damaged, convert it again."
        )
    return found[:count]


def _kinds(metadata: Mapping, count: int) -> np.ndarray:
    if metadata.get("tokenizer.ggml.token_type") is None:
        return np.full(count, NORMAL, np.uint8)
    types = _per_token(metadata, "token_type", count)
    known = (types >= 1) & (types <= 6)
    return np.where(known, 1 << (np.where(known, types, 1).astype(np.uint8) - 1), 0).astype(np.uint8)
