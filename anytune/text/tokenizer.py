"""Text to token ids and back from GGUF metadata alone, with the very ids that llama.cpp gives.

BPE (tokenizer.ggml.model = gpt2) and SentencePiece (llama) are both few rules and one merge loop; words are
remembered, so that encoding costs a dictionary look-up for most of them.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping

from anytune.errors import UserError
from anytune.text.merge import merge
from anytune.text.special import Partition
from anytune.text.pretokenizers import PRE, Splitter
from anytune.text.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER, Vocabulary, _utf8

_SPACE = "\u2581"  # SentencePiece's visible space
_CACHED_WORDS = 1 << 16  # then the cache starts over: about 20 MB at most
_CACHED_LENGTH = 64  # characters
_SURROGATES = re.compile("[\ud800-\udfff]")

# GPT-2 spells a byte as a printable character: itself, or one from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_SPELL = {b: chr(b) for b in _PRINTABLE}
_SPELL.update((b, chr(256 + k)) for k, b in enumerate(b for b in range(256) if b not in _SPELL))
_UNSPELL = {char: byte for byte, char in _SPELL.items()}


class Tokenizer:
    """encode() and decode(), and the ids that mean something: bos, eos, eot (int or None), eog (frozenset).

    add_bos, add_eos: whether the model's rules put those around every text. Raises UserError if the metadata
    holds no tokenizer that can be used.
    """

    def __init__(self, metadata: Mapping) -> None:
        self.vocabulary = vocabulary = Vocabulary(metadata)
        self.bos, self.eos, self.eot, self.eog = (vocabulary.bos, vocabulary.eos, vocabulary.eot, vocabulary.eog)
        self.padding = vocabulary.padding
        self._ids, self._cache = vocabulary.ids, {}
        if vocabulary.model == "llama":
            self.kind, self._escape, self._add_space = "SentencePiece", True, True
            self._bytes, add_bos = False, True
            self._prepare_sentencepiece(metadata)
        else:
            name = "gemma4" if vocabulary.model == "gemma4" else metadata.get("tokenizer.ggml.pre", "default")
            if name not in PRE:
                raise UserError(
                    f"The pre-tokenizer {str(name)[:40]!r} of this GGUF file is unknown: use a file with one of "
                    f"{', '.join(sorted(PRE))}."
                )
            pre = PRE[name]
            self.kind, self._escape, self._add_space = f"BPE ({name})", pre.escape, False
            self._bytes, add_bos = pre.bytes_, pre.add_bos or name == "gemma4"
            self._prepare_bpe(metadata, pre)
        self._add_space = bool(metadata.get("tokenizer.ggml.add_space_prefix", self._add_space))
        self.add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos)) and self.bos is not None
        self.add_eos = bool(metadata.get("tokenizer.ggml.add_eos_token", False)) and self.eos is not None
        self._partition = Partition(vocabulary)

    @classmethod
    def from_gguf(cls, gguf) -> Tokenizer:
        """gguf: anything with a `metadata` mapping."""
        return cls(gguf.metadata)

    @property
    def size(self) -> int:
        """Number of tokens in the vocabulary."""
        return len(self.vocabulary)

    # Encoding

    def encode(self, text: str, special: bool = False, bos: bool | None = None) -> list[int]:
        """Token ids of `text`.

        special: read control tokens such as <|im_end|> out of the text (else they are plain characters).
        bos: put the BOS token in front; None does as the model's rules say, for BOS and for EOS.
        Lone surrogates become U+FFFD. Time is O(n log n) at worst.
        """
        ids = self._encode(text, special, None)
        if self.bos is not None and (self.add_bos if bos is None else bos):
            ids.insert(0, self.bos)
        if bos is None and self.add_eos:
            ids.append(self.eos)
        return ids

    def special_pieces(self, text: str) -> list[tuple[int, str | int]]:
        """(index in the text, plain text or a special token's id) of the pieces that encode(special=True) sees."""
        return self._partition(text, True)

    def encode_spans(self, text: str, special: bool = False) -> tuple[list[int], list[int]]:
        """(ids, starts): starts[k] is the index in `text` of the character in which token k begins.

        Neither BOS nor EOS is added.
        """
        starts: list[int] = []
        return self._encode(text, special, starts), starts

    def _encode(self, text: str, special: bool, starts: list[int] | None) -> list[int]:
        if not text.isascii():
            text = _SURROGATES.sub("\ufffd", text)
        ids: list[int] = []
        after_special = True
        for at, piece in self._partition(text, special):
            if isinstance(piece, int):
                ids.append(piece)
                if starts is not None:
                    starts.append(at)
            else:
                self._encode_plain(piece, at, self._add_space and after_special, ids, starts)
            after_special = isinstance(piece, int)
        return ids

    def _encode_plain(self, text: str, at: int, prefix: bool, ids: list[int], starts: list[int] | None) -> None:
        """Append the ids of text without special tokens; `at` is its place in the whole."""
        if self._escape:
            text = (_SPACE if prefix else "") + text.replace(" ", _SPACE)
        at -= prefix
        cache = self._cache
        for word in self._split(text):
            known = cache.get(word)
            if known is None:
                known = self._encode_word(word)
                if len(word) <= _CACHED_LENGTH:
                    if len(cache) >= _CACHED_WORDS:
                        cache.clear()
                    cache[word] = known
            ids += known[0]
            if starts is not None:
                starts += [max(at + k, 0) for k in known[1]]
            at += len(word)

    def _encode_word(self, word: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(ids, index of the character of `word` in which each begins)."""
        text = word.encode().decode("latin-1").translate(_SPELL) if self._bytes else word
        whole = self._ignore_merges or self._whole_lines and not word.strip("\n")
        if whole and text in self._ids:
            parts = [text]
        else:
            parts = merge(list(text), self._cost)
        found: list[int] = []
        starts: list[int] = []
        at = 0
        for part in parts:
            token = self._ids.get(part)
            for one in self._fallback(part) if token is None else (token,):
                found.append(one)
                starts.append(at)
            at += len(part)
        if self._bytes and not word.isascii():
            of_byte = [i for i, char in enumerate(word) for _ in char.encode()]
            starts = [of_byte[k] for k in starts]
        return tuple(found), tuple(starts)

    def _fallback(self, part: str) -> list[int]:
        """Ids of a part that is no token: one per byte. BPE leaves out a byte that has no token, as
        llama.cpp does;
        SentencePiece, where llama.cpp then gives up, takes the unknown token."""
        if self._bytes:
            return [self._ids[char] for char in part if char.isascii() and char in self._ids]
        found = [self._ids.get(f"<0x{byte:02X}>") for byte in _utf8(part)]
        if self._merges:
            return [token for token in found if token is not None]
        if None in found:  # a vocabulary without byte tokens
            found = [self.vocabulary.unknown if token is None else token for token in found]
        return [token for token in found if token is not None]

    def _prepare_bpe(self, metadata: Mapping, pre) -> None:
        merges = metadata.get("tokenizer.ggml.merges")
        if not isinstance(merges, list):
            raise UserError("This GGUF file has no merges (tokenizer.ggml.merges), which BPE needs: convert it again.")
        # A merge's text "left right" is itself the key: no part holds a space. Of equals the first counts.
        ranks = dict(zip(reversed(merges), range(len(merges) - 1, -1, -1), strict=True))
        self._cost = lambda left, right: ranks.get(f"{left} {right}")
        self._split, self._ignore_merges, self._merges = Splitter(pre), pre.ignore_merges, True
        self._whole_lines = pre.whole_lines

    def _prepare_sentencepiece(self, metadata: Mapping) -> None:
        ids = self._ids
        scores = self.vocabulary.array(metadata, "scores").astype("float32", copy=False)

        def cost(left: str, right: str) -> float | None:
            token = ids.get(left + right)
            return None if token is None else -float(scores[token])

        self._cost, self._ignore_merges, self._whole_lines, self._merges = cost, False, False, False
        # Merges never cross a place where no token has these two characters side by side. So text can be cut
        # before a space, unless the character before it is before a space in some token.
        joined = "\0".join(self.vocabulary.tokens)
        inside = {pair[0] for pair in re.findall(f"[^{_SPACE}]{_SPACE}", joined)}
        inside |= {"\0", _SPACE}
        kept = "".join(map(re.escape, sorted(inside)))
        self._split = re.compile(f"(?<=[^{kept}])(?={_SPACE})").split

    # Decoding

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; control tokens give their name. Unused tokens give b""."""
        if not 0 <= token < self.size:
            raise ValueError(f"token {token} is outside the vocabulary of {self.size}")
        text, kind = self.vocabulary.tokens[token], int(self.vocabulary.kinds[token])
        if kind & (CONTROL | UNKNOWN | USER):
            return _utf8(text)
        if kind & NORMAL:
            if self._escape:
                return _utf8(text.replace(_SPACE, " "))
            if self._bytes:
                return b"".join(bytes((_UNSPELL[c],)) if c in _UNSPELL else _utf8(c) for c in text)
            return _utf8(text)
        if kind & BYTE and re.fullmatch("<0x[0-9A-Fa-f]{2}>", text):
            return bytes((int(text[3:5], 16),))
        return b""

    def is_control(self, token: int) -> bool:
        """Whether decode() leaves the token out: control and unknown tokens."""
        return bool(self.vocabulary.kinds[token] & (CONTROL | UNKNOWN))

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD.

        The space that SentencePiece puts before a text is taken away again: decode(encode(x)) == x. To decode
        the continuation of a text, which may begin with a space of its own, use StreamDecoder.
        """
        out, after_special = [], True
        for token in ids:
            token = int(token)
            piece = self.piece(token)
            kind = self.vocabulary.kinds[token]
            if kind & (CONTROL | UNKNOWN | USER):
                if not (skip_special and kind & (CONTROL | UNKNOWN)):
                    out.append(piece)
                after_special = True
                continue
            if after_special and self._add_space and piece.startswith(b" "):
                piece = piece[1:]
            out.append(piece)
            after_special = False
        return b"".join(out).decode("utf-8", "replace")


class StreamDecoder:
    """Decodes a continuation token by token, holding back bytes until their character is complete."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that has become certain with this token, often "" in the middle of a character. A row of the
        model's that no token belongs to says nothing."""
        if token >= self._tokenizer.size:
            return ""
        if self._skip and self._tokenizer.is_control(token):
            return ""
        return self._decoder.decode(self._tokenizer.piece(token))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
