"""Files that Ollama's own converters wrote: GGUF by form, but with names and keys that only Ollama reads.

Which ones: Ollama's llama/compat, which translates them for llama.cpp. They are refused rather than translated, as an
adapter trained on one could be checked and served by nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anytune.errors import UserError

# architectures of Ollama's alone -> llama.cpp's name of it
RENAMED = {
    "gptoss": "gpt-oss",
    "qwen25vl": "qwen2vl",
    "mllama": "none",
    "olmo3": "olmo2",
    "glm4moelite": "deepseek2",
    "deepseekocr": "deepseek2-ocr",
    "glmocr": "glm4",
    "nemotron_h_omni": "nemotron_h_moe",
}
OWN_KEYS = ("mm.tokens_per_image", "rope.global.freq_base", "rope.local.freq_base", "vision.block_count")


def ollamas_own(metadata: Mapping[str, Any], tensors: Any) -> str | None:
    """What only Ollama understands in a file, as a clause; None: nothing."""
    name = metadata.get("general.architecture")
    if name in RENAMED:
        return f"its architecture is called {name}"
    key = next((key for key in OWN_KEYS if f"{name}.{key}" in metadata), None)
    if key is not None:
        return f"it has the key {name}.{key}"
    if name == "gemma3" and "gemma3.attention.layer_norm_rms_epsilon" not in metadata:
        return "it lacks the key gemma3.attention.layer_norm_rms_epsilon"
    if name == "llama" and metadata.get("tokenizer.ggml.model") == "gpt2" and "tokenizer.ggml.pre" not in metadata:
        return "it does not name its pre-tokenizer"
    if any(tensor.startswith(("v.", "mm.")) for tensor in tensors):
        return "it holds a vision model too"
    return None


def sentence(what: str) -> str:
    return (
        f"This file was written by Ollama's own converter in a form that llama.cpp does not read ({what}): pull a "
        "newer build of the model, or its GGUF from Hugging Face (ollama pull hf.co/OWNER/REPO, or anytune pull "
        "hf:OWNER/REPO)."
    )


def refused_dialect(path: Path, name: str) -> Path:
    """`path`, unless it is a file that only Ollama reads. Raises UserError."""
    from anytune.gguf import GGUF

    with GGUF.open(path) as gguf:
        what = ollamas_own(gguf.metadata, gguf.tensors)
    if what is not None:
        raise UserError(f"{name}: {sentence(what)}")
    return path
