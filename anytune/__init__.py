"""anytune: train the exact GGUF you run, on whatever device you have, and prove the result in llama.cpp.

Everything public is named here and imported on first use, so `import anytune` costs milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {  # name: module that has it
    "load": "anytune.hub.load",
    "pull": "anytune.hub.pull",
    "Model": "anytune.model",
    "Lora": "anytune.model",
    "Full": "anytune.model",
    "Adapter": "anytune.adapter.adapter",
    "finetune": "anytune.train.api",
    "Callbacks": "anytune.train.callbacks",
    "Run": "anytune.train.outcome",
    "generate": "anytune.generating",
    "stream": "anytune.generating",
    "Conversation": "anytune.generating",
    "verify": "anytune.api",
    "quantize": "anytune.api",
    "merge": "anytune.export.call",
    "export": "anytune.export.call",
    "perplexity": "anytune.api",
    "evaluate": "anytune.api",
    "UserError": "anytune.errors",
}
__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter as Adapter
    from anytune.api import evaluate as evaluate
    from anytune.export.call import export as export
    from anytune.export.call import merge as merge
    from anytune.api import perplexity as perplexity
    from anytune.api import quantize as quantize
    from anytune.api import verify as verify
    from anytune.errors import UserError as UserError
    from anytune.generating import Conversation as Conversation
    from anytune.generating import generate as generate
    from anytune.generating import stream as stream
    from anytune.hub.load import load as load
    from anytune.hub.pull import pull as pull
    from anytune.model import Full as Full
    from anytune.model import Lora as Lora
    from anytune.model import Model as Model
    from anytune.train.api import finetune as finetune
    from anytune.train.callbacks import Callbacks as Callbacks
    from anytune.train.outcome import Run as Run


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'anytune' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_PUBLIC[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
