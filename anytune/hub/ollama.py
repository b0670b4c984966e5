"""Ollama's store: manifests/<host>/<namespace>/<model>/<tag> is JSON that names blobs/sha256-<hex>."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anytune.errors import UserError, did_you_mean
from anytune.hub.stored import Stored

HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
WORD = re.compile(r"[\w.-]+")
LONGEST = 4 << 20  # bytes of a manifest


def folders() -> list[Path]:
    """Where models are: $OLLAMA_MODELS alone if it is set."""
    if own := os.environ.get("OLLAMA_MODELS"):
        return [Path(own).expanduser()]
    return [
        Path.home() / ".ollama/models",
        Path("/usr/share/ollama/.ollama/models"),
        Path("/var/lib/ollama/.ollama/models"),
    ]


def models() -> Iterator[Stored]:
    """Every model whose weights are there as GGUF."""
    for folder in folders():
        for manifest in _manifests(folder / "manifests"):
            paths = _weights(folder, manifest)
            if paths:
                name = _short(manifest.relative_to(folder / "manifests").parts)
                yield Stored(f"ollama:{name}", "ollama", paths)


def find(name: str) -> Path:
    """The file of "qwen3:1.7b", "user/model", "host/user/model:tag". Raises UserError."""
    parts = _long(name)
    for folder in folders():
        manifest = folder.joinpath("manifests", *parts)
        if manifest.is_file():
            paths = _weights(folder, manifest)
            if not paths:
                raise UserError(
                    f"ollama:{name} has no GGUF file in {folder}: it is a cloud model, or its download is "
                    f"incomplete; `ollama pull {name}` fetches it."
                )
            if len(paths) > 1:
                raise UserError(
                    f"ollama:{name} is in {len(paths)} parts, which anytune does not read: use one in a single file."
                )
            return paths[0]
    raise UserError(
        f"There is no model {name} in Ollama's store ({', '.join(map(str, folders()))}): `ollama pull {name}` "
        "fetches it, and `anytune models` lists the available ones."
        + did_you_mean(f"ollama:{name}", [model.name for model in models()])
    )


def _long(name: str) -> tuple[str, str, str, str]:
    """(host, namespace, model, tag) of a name as Ollama takes them."""
    rest, _, tag = name.rpartition(":") if ":" in name.rsplit("/", 1)[-1] else (name, "", TAG)
    words = rest.split("/")
    if not 1 <= len(words) <= 3 or not all(WORD.fullmatch(word) and word.strip(".") for word in (*words, tag)):
        raise UserError(f"{name!r} is not an Ollama model name, such as qwen3:1.7b.")
    words = [HOST, NAMESPACE][: 3 - len(words)] + words
    return words[0], words[1], words[2], tag


def _short(parts: tuple[str, ...]) -> str:
    host, namespace, model, tag = parts
    if host != HOST:
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == NAMESPACE else f"{namespace}/{model}:{tag}"


def _manifests(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.glob("*/*/*/*") if path.is_file() and not path.name.startswith("."))
    except OSError:
        return []


def _weights(folder: Path, manifest: Path) -> tuple[Path, ...]:
    """The blobs that a manifest names as the model's weights, if all are there and begin as a GGUF does."""
    paths = []
    for layer in _layers(manifest):
        digest = DIGEST.fullmatch(str(layer.get("digest")))
        if str(layer.get("mediaType")).endswith(".model") and digest:
            path = next(
                (path for sign in "-:" if (path := folder / "blobs" / f"sha256{sign}{digest[1]}").is_file()), None
            )
            if path is None or not _is_gguf(path):
                return ()
            paths.append(path)
    return tuple(paths)


def _layers(manifest: Path) -> list[dict[str, Any]]:
    try:
        if manifest.stat().st_size > LONGEST:
            return []
        found = json.loads(manifest.read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    layers = found.get("layers") if isinstance(found, dict) else None
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False
