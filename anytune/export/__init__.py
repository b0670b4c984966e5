"""A trained model for other programs: one GGUF file, peft and Hugging Face folders, Ollama, LM Studio, MLX.

adapters.py makes one adapter of several; merge.py puts it into a file, distance.py measures what that costs, absorb.py
holds what rounding lost in a small adapter; chat.py turns a template into Ollama's; huggingface.py, config.py and
tokenizer.py write a folder for transformers and MLX; checks.py loads each result in the program that it is for.
"""

import sys
import types
from typing import Any


class _Export(types.ModuleType):
    """anytune.export is this package, and also the call of the Python API."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        from anytune.export.call import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _Export
