"""tokenizer.json and its companions, from a GGUF file's vocabulary.

Byte-level BPE keeps the file's merges and the pre-tokenizer's patterns. SentencePiece becomes BPE with byte fallback,
whose merges are all pairs of tokens that make a token, the best score first, as Hugging Face's conversions have it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.files import atomic_write
from anytune.gguf import GGUF
from anytune.text.chat import ChatTemplate
from anytune.text.served import named_templates, own_template, template_changes
from anytune.text.pretokenizers import PRE
from anytune.text.tokenizer import Tokenizer
from anytune.text.vocabulary import CONTROL, UNKNOWN, USER

SPACE = "\u2581"


def write_tokenizer(base: GGUF, folder: Path, template: str | None = None) -> None:
    """Write tokenizer.json, tokenizer_config.json and, if there is one, chat_template.jinja.

    template: in place of the file's own, and then of those that it has for special uses too, which otherwise go to
    additional_chat_templates. Raises UserError for a tokenizer that has no such form.
    """
    tokenizer = Tokenizer(base.metadata)
    metadata = {
        key: value
        for key, value in (base.metadata | template_changes(base.metadata, template)).items()
        if value is not None
    }
    template = own_template(metadata)
    others = named_templates(metadata) if template is not None else {}
    if template is not None:
        template, *rest = (with_bos(source, tokenizer) for source in (template, *others.values()))
        others = dict(zip(others, rest, strict=True))
    texts = {
        "tokenizer.json": json.dumps(tokenizer_json(base, tokenizer), ensure_ascii=False),
        "tokenizer_config.json": json.dumps(_settings(base, tokenizer, template), indent=2, ensure_ascii=False),
    }
    if template is not None:
        texts["chat_template.jinja"] = template
    for name, source in others.items():
        if not re.fullmatch(r"\w{1,64}", name):
            raise UserError(f"{base.path.name} has a chat template for {name!r:.60}, which is not a valid file name.")
        texts[f"additional_chat_templates/{name}.jinja"] = source
        (folder / "additional_chat_templates").mkdir(exist_ok=True)
    for name, text in texts.items():
        with atomic_write(folder / name, "wb") as file:
            file.write(text.encode("utf-8", "replace"))


def with_bos(source: str, tokenizer: Tokenizer) -> str:
    """The template, with BOS in front if the model's rules put it there and the template does not: transformers adds
    nothing to what a template says."""
    if not tokenizer.add_bos or tokenizer.bos is None:
        return source
    bos = tokenizer.vocabulary.tokens[tokenizer.bos]
    try:
        said = ChatTemplate(source, tokenizer).render([{"role": "user", "content": "x"}], add_generation_prompt=True)
    except UserError:
        return source
    return source if said.startswith(bos) else "{{- bos_token }}" + source


def tokenizer_json(base: GGUF, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """The tokenizers library's description of the file's tokenizer."""
    tokenizer = tokenizer or Tokenizer(base.metadata)
    vocabulary = tokenizer.vocabulary
    kinds = vocabulary.kinds
    strip = vocabulary.strip_after
    added = [
        {
            "id": i,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": i in strip,
            "normalized": False,
            "special": bool(kinds[i] & (CONTROL | UNKNOWN)),
        }
        for i, text in enumerate(vocabulary.tokens)
        if kinds[i] & (CONTROL | UNKNOWN | USER) and text
    ]
    parts = _sentencepiece(base, tokenizer) if vocabulary.model == "llama" else _bytes(base, tokenizer)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": _around(tokenizer, parts.pop("post_processor", None)),
        **parts,
    }


def _ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Text -> id, the first of equal ones; all ids must have a text of their own."""
    tokens = tokenizer.vocabulary.tokens
    found: dict[str, int] = {}
    for i, text in enumerate(tokens):
        found.setdefault(text, i)
    if len(found) != len(tokens):  # padding of odd files: ids must stay what they are
        for i, text in enumerate(tokens):
            if found[text] != i:
                found[f"<|same_as_{found[text]}_{i}|>"] = i
    return found


def _bytes(base: GGUF, tokenizer: Tokenizer) -> dict[str, Any]:
    name = base.metadata.get("tokenizer.ggml.pre", "default")
    pre = PRE.get(name)
    if pre is None or not pre.bytes_:
        raise UserError(
            f"The pre-tokenizer {str(name)[:40]!r} of {base.path.name} cannot be written to tokenizer.json yet."
        )
    ids = _ids(tokenizer)
    merges = [
        pair
        for text in base.metadata["tokenizer.ggml.merges"]
        if len(pair := text.split(" ", 1)) == 2 and pair[0] in ids and pair[1] in ids and "".join(pair) in ids
    ]  # the library refuses others
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in pre.patterns
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, level]},
        "post_processor": level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre.ignore_merges,
            "vocab": ids,
            "merges": merges,
        },
    }


def _sentencepiece(base: GGUF, tokenizer: Tokenizer) -> dict[str, Any]:
    ids = _ids(tokenizer)
    unknown = tokenizer.vocabulary.unknown
    prefix = bool(base.metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    before = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    after = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, spaces]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *after,
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "unk_token": None if unknown is None else tokenizer.vocabulary.tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": _merges(base, tokenizer, ids),
        },
    }


def _merges(base: GGUF, tokenizer: Tokenizer, ids: dict[str, int]) -> list[tuple[str, str]]:
    """All (left, right) whose parts and whole are tokens, by the whole's score, best first."""
    scores = tokenizer.vocabulary.array(base.metadata, "scores")
    kinds = tokenizer.vocabulary.kinds
    found = []
    for text, i in ids.items():
        if len(text) < 2 or kinds[i] & (CONTROL | UNKNOWN):
            continue
        for cut in range(1, len(text)):
            left, right = ids.get(text[:cut]), ids.get(text[cut:])
            if left is not None and right is not None:
                found.append((-float(scores[i]), left, right, cut, text))
    found.sort(key=lambda entry: entry[:3])
    return [(text[:cut], text[cut:]) for *_, cut, text in found]


def _around(tokenizer: Tokenizer, inner: dict[str, Any] | None) -> dict[str, Any] | None:
    """BOS and EOS around a text, as the model's rules say."""
    tokens = tokenizer.vocabulary.tokens
    first = [tokenizer.bos] if tokenizer.add_bos else []
    last = [tokenizer.eos] if tokenizer.add_eos else []
    if not first and not last:
        return inner

    def mark(i: int, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": tokens[i], "type_id": kind}}

    def text(name: str, kind: int) -> list[dict[str, Any]]:
        words = {"Sequence": {"id": name, "type_id": kind}}
        return [*(mark(i, kind) for i in first), words, *(mark(i, kind) for i in last)]

    marks = {tokens[i]: {"id": tokens[i], "ids": [i], "tokens": [tokens[i]]} for i in first + last}
    template = {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": text("A", 0) + text("B", 1),
        "special_tokens": marks,
    }
    return {"type": "Sequence", "processors": [inner, template]} if inner else template


def _settings(base: GGUF, tokenizer: Tokenizer, template: str | None) -> dict[str, Any]:
    vocabulary = tokenizer.vocabulary
    ids = {
        "bos_token": vocabulary.bos,
        "eos_token": vocabulary.eos,
        "unk_token": vocabulary.unknown,
        "pad_token": vocabulary.padding,
    }
    arch = base.metadata.get("general.architecture")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": base.metadata.get(f"{arch}.context_length"),
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": tokenizer.add_eos,
        **{name: vocabulary.tokens[i] for name, i in ids.items() if i is not None},
        **({"chat_template": template} if template is not None else {}),
    }
