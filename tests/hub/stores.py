"""Stores of other programs as they lie on disk, made small."""

import hashlib
import json
from pathlib import Path

MEDIA = "application/vnd.ollama.image."


def ollama(folder: Path, name: tuple[str, str, str, str], weights: bytes, *extra: tuple[str, bytes], sign: str = "-"):
    """A model in Ollama's store; extra: further layers (kind, content). Returns the weights' blob."""
    layers, blobs = [], folder / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    for kind, content in (("model", weights), *extra):
        digest = hashlib.sha256(content).hexdigest()
        (blobs / f"sha256{sign}{digest}").write_bytes(content)
        layers.append({"mediaType": MEDIA + kind, "digest": f"sha256:{digest}", "size": len(content)})
    manifest = folder.joinpath("manifests", *name)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "config": {}, "layers": layers}))
    return blobs / f"sha256{sign}{hashlib.sha256(weights).hexdigest()}"


def hub(folder: Path, repo: str, files: dict[str, bytes], revision: str = "a" * 40, main: bool = True):
    """A repository in Hugging Face's cache: blobs, and links to them in a snapshot."""
    home = folder / f"models--{repo.replace('/', '--')}"
    for name, content in files.items():
        blob = home / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = home / "snapshots" / revision / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    if main:
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs/main").write_text(revision)
