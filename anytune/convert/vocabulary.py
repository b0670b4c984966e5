"""The tokenizer of a Hugging Face folder as GGUF metadata.

Byte-level BPE comes from tokenizer.json. SentencePiece comes from tokenizer.model, or, where that is missing, from the
BPE with byte fallback that Hugging Face made of it: a token's score is then minus the rank of its merge, which chooses
the same pairs in the same order.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from anytune.errors import UserError
from anytune.files import read_json
from anytune.text.pretokenizers import PRE

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
SPACE = "\u2581"
KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding"}  # sic: GGUF's spelling
_SPECIAL_LOOKING = re.compile(r"<\|.*\|>|<｜.*｜>")
_SPECIAL_TEXTS = {"<pad>", "<mask>", "<2mass>", "[@BOS@]"}
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT4 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2, DIGITS = "ByteLevel's own", "digits one by one"
# (what tokenizer.json splits with, whether it takes words that are tokens whole) -> llama.cpp's name for it
PRE_TOKENIZERS = {
    ((_GPT4 % "{1,3}",), True): "llama-bpe",
    ((_GPT4 % "{1,3}",), False): "dbrx",
    ((_GPT4 % "",), False): "qwen2",
    ((DIGITS, GPT2), False): "smollm",
    ((GPT2,), False): "gpt-2",
}


def vocabulary(folder: Path, architecture: str, config: dict[str, Any], pre: str | None = None) -> dict[str, Any]:
    """tokenizer.ggml.* of a folder. pre: llama.cpp's name of the pre-tokenizer, where it cannot be told. Raises
    UserError."""
    settings = _optional(folder / "tokenizer_config.json")
    size = config.get("vocab_size")
    size = size if type(size) is int and 0 < size < 1 << 28 else None
    if (folder / "tokenizer.model").is_file():
        found = _sentencepiece(folder, settings, size)
    elif (folder / "tokenizer.json").is_file():
        described = read_json(folder / "tokenizer.json")
        model = described.get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
            raise UserError(f"{folder / 'tokenizer.json'} is not BPE, and only BPE and SentencePiece can be converted.")
        found = _fallback(described, size) if model.get("byte_fallback") else _bytes(described, size, pre)
    else:
        raise UserError(f"{folder} has neither tokenizer.json nor tokenizer.model: a model needs its tokenizer.")
    return (
        found
        | _special(folder, found["tokenizer.ggml.tokens"], settings, config, architecture)
        | _templates(folder, settings)
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _bytes(described: dict[str, Any], size: int | None, pre: str | None) -> dict[str, Any]:
    tokens, kinds, _ = _table(described, size)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre or _pre(described),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.merges": [
            " ".join(part.replace(" ", "\u0120") for part in pair) for pair in _merges(described)
        ],
    }


def _fallback(described: dict[str, Any], size: int | None) -> dict[str, Any]:
    """SentencePiece's scores from the ranks of merges; tokens that no merge makes come after all others."""
    tokens, kinds, ids = _table(described, size)
    merges = _merges(described)
    scores = np.full(len(tokens), -float(len(merges) + 1), np.float32)
    for rank, (left, right) in reversed(list(enumerate(merges))):
        if (made := ids.get(left + right)) is not None:
            scores[made] = -float(rank)
    unknown = ids.get(described["model"].get("unk_token"))
    for i, text in enumerate(tokens):
        if kinds[i] == NORMAL and re.fullmatch(r"<0x[0-9A-F]{2}>", text):
            kinds[i] = BYTE
    if unknown is not None:
        kinds[unknown] = UNKNOWN
    scores[[i for i, kind in enumerate(kinds) if kind in (CONTROL, USER)]] = -1000.0
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.add_space_prefix": _prepends(described.get("normalizer")),
    }


def _prepends(normalizer: Any) -> bool:
    parts = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else []
    return any(isinstance(part, dict) and part.get("type") == "Prepend" for part in parts)


def _table(described: dict[str, Any], size: int | None) -> tuple[list[str], list[int], dict[str, int]]:
    """(tokens, kinds, text -> id) of tokenizer.json, filled up to `size` with unused ones."""
    vocab = described["model"].get("vocab")
    added = [entry for entry in described.get("added_tokens") or [] if isinstance(entry, dict)]
    if not isinstance(vocab, dict) or not all(type(i) is int and i >= 0 for i in vocab.values()):
        raise UserError("tokenizer.json has no valid vocabulary.")
    ids = dict(vocab) | {
        entry["content"]: entry["id"]
        for entry in added
        if isinstance(entry.get("content"), str) and type(entry.get("id")) is int and entry["id"] >= 0
    }
    count = max(ids.values(), default=-1) + 1
    if size is not None and size < count:
        raise UserError(
            f"tokenizer.json has {count} tokens and config.json a vocab_size of {size}: they belong to "
            "different models."
        )
    if count > 2 * len(ids) + 1024:
        raise UserError("tokenizer.json has ids far beyond its number of tokens: it is damaged.")
    size = size or count
    if size > count + (1 << 20):
        raise UserError(f"config.json has a vocab_size of {size}, and tokenizer.json {count} tokens: one is damaged.")
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for text, i in ids.items():
        tokens[i], kinds[i] = text, NORMAL
    for entry in added:
        text, i = entry.get("content"), entry.get("id")
        if ids.get(text) == i:
            special = bool(entry.get("special")) or _looks_special(text)
            tokens[i], kinds[i] = text if special else text.replace(SPACE, " "), CONTROL if special else USER
    return tokens, kinds, ids


def _looks_special(text: str) -> bool:
    """Of a token that tokenizer.json does not mark: by llama.cpp's rule, so that both files agree."""
    return text in _SPECIAL_TEXTS or bool(_SPECIAL_LOOKING.fullmatch(text))


def _merges(described: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for merge in described["model"].get("merges") or []:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise UserError(f"tokenizer.json has a merge that is not a pair ({str(merge)[:60]!r}).")
        found.append((pair[0], pair[1]))
    return found


def _pre(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name of what tokenizer.json splits text with. UserError with the way out for an unknown one."""
    described, parts = tokenizer.get("pre_tokenizer"), []
    steps = described.get("pretokenizers", [described]) if isinstance(described, dict) else []
    for step in steps:
        kind = step.get("type")
        if kind == "Split" and isinstance(step.get("pattern"), dict):
            parts.append(step["pattern"].get("Regex") or step["pattern"].get("String"))
        elif kind == "Digits" and step.get("individual_digits"):
            parts.append(DIGITS)
        elif kind == "ByteLevel":
            parts += [GPT2] if step.get("use_regex", True) else []
        else:
            parts.append(f"a step of type {kind}")
    key = tuple(parts), bool(tokenizer["model"].get("ignore_merges"))
    # as `anytune export hf` writes them
    own = {(pre.patterns, pre.ignore_merges): name for name, pre in reversed(PRE.items())}
    if found := PRE_TOKENIZERS.get(key) or own.get(key):
        return found
    raise UserError(
        f"The pre-tokenizer of tokenizer.json is unknown ({'; '.join(map(str, parts))[:120]}): name llama.cpp's "
        "pre-tokenizer with --pre, such as llama-bpe, qwen2, gpt-4o or tekken."
    )


def _sentencepiece(folder: Path, settings: dict[str, Any], size: int | None) -> dict[str, Any]:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise UserError(
            "tokenizer.model needs the sentencepiece library: pip install 'sentencepiece>=0.2,<0.3'."
        ) from None
    try:
        pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    except (RuntimeError, OSError) as error:
        raise UserError(f"{folder / 'tokenizer.model'} is damaged: {error}.") from None
    count = pieces.get_piece_size()
    size = max(size or count, count)
    tokens, scores, kinds = [f"[PAD{i}]" for i in range(size)], [-10000.0] * size, [UNUSED] * size
    for i in range(count):
        tokens[i], scores[i] = pieces.id_to_piece(i), pieces.get_score(i)
        kinds[i] = (
            UNKNOWN
            if pieces.is_unknown(i)
            else CONTROL
            if pieces.is_control(i)
            else UNUSED
            if pieces.is_unused(i)
            else BYTE
            if pieces.is_byte(i)
            else NORMAL
        )
    for text, i in _optional(folder / "added_tokens.json").items():
        if type(i) is int and 0 <= i < size:
            tokens[i], scores[i], kinds[i] = text, -1000.0, USER
    decoder = settings.get("added_tokens_decoder")
    for key, entry in decoder.items() if isinstance(decoder, dict) else ():
        i = int(key) if str(key).isdigit() else size
        if i < size and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            special = bool(entry.get("special")) or _looks_special(entry["content"])
            tokens[i] = entry["content"] if special else entry["content"].replace(SPACE, " ")
            scores[i], kinds[i] = -1000.0, CONTROL if special else USER
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
    }


def _special(
    folder: Path, tokens: list[str], settings: dict[str, Any], config: dict[str, Any], architecture: str
) -> dict[str, Any]:
    """Ids of the special tokens, and what is put around every text."""
    ids = {text: i for i, text in reversed(list(enumerate(tokens)))}
    found: dict[str, Any] = {}
    for name, key in KEYS.items():
        token = settings.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        number = ids.get(token) if isinstance(token, str) else None
        if number is None and type(config.get(f"{name}_token_id")) is int:
            number = config[f"{name}_token_id"]
        if number is not None and 0 <= number < len(tokens):
            found[f"tokenizer.ggml.{key}_token_id"] = number
    first, last = _around(_optional(folder / "tokenizer.json").get("post_processor"))
    for name, text in (("bos", first), ("eos", last)):
        said = settings.get(f"add_{name}_token")
        if text is not None:
            said = text == tokens[found.get(f"tokenizer.ggml.{name}_token_id", 0)]
        if isinstance(said, bool):
            found[f"tokenizer.ggml.add_{name}_token"] = said
    if architecture.startswith("gemma") and (folder / "tokenizer.model").is_file():
        found["tokenizer.ggml.add_space_prefix"] = False
    elif isinstance(settings.get("add_prefix_space"), bool):
        found["tokenizer.ggml.add_space_prefix"] = settings["add_prefix_space"]
    return found


def _around(processor: Any) -> tuple[str | None, str | None]:
    """(token before, token after) a single text, as a TemplateProcessing says."""
    for part in processor.get("processors", [processor]) if isinstance(processor, dict) else ():
        single = part.get("single") if isinstance(part, dict) and part.get("type") == "TemplateProcessing" else None
        if isinstance(single, list) and single:
            marks = [piece.get("SpecialToken", {}).get("id") for piece in (single[0], single[-1])]
            return (marks[0], marks[1] if len(single) > 1 else None)
    return None, None


def _templates(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The chat template, and others by name."""
    own = settings.get("chat_template")
    named: dict[str, str] = {}
    if isinstance(own, str):
        named["default"] = own
    elif isinstance(own, list):
        named = {
            t["name"]: t["template"]
            for t in own
            if isinstance(t, dict) and isinstance(t.get("name"), str) and isinstance(t.get("template"), str)
        }
    if (folder / "chat_template.json").is_file():
        text = read_json(folder / "chat_template.json").get("chat_template")
        named |= {"default": text} if isinstance(text, str) else {}
    try:
        if (folder / "chat_template.jinja").is_file():
            named["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            named[path.stem] = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"A chat template in {folder} is not UTF-8 text.") from None
    found: dict[str, Any] = {}
    if "default" in named:
        found["tokenizer.chat_template"] = named.pop("default")
    names = {re.sub(r"[^a-z0-9_]", "_", name.lower()): text for name, text in named.items()}
    if names:
        found["tokenizer.chat_templates"] = list(names)
        found |= {f"tokenizer.chat_template.{name}": text for name, text in names.items()}
    return found
