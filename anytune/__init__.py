"""anytune: train the exact GGUF you run, on whatever device you have, and prove the result in llama.cpp.

Everything public is here and is imported on first use, so `import anytune` costs milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {  # name: (module, attribute)
    "load": ("anytune.model", "load"),
    "Model": ("anytune.model", "Model"),
    "Lora": ("anytune.model", "Lora"),
    "Full": ("anytune.model", "Full"),
    "Adapter": ("anytune.adapter.adapter", "Adapter"),
    "finetune": ("anytune.train.finetune", "finetune"),
    "UserError": ("anytune.errors", "UserError"),
}
__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter as Adapter
    from anytune.errors import UserError as UserError
    from anytune.model import Full as Full
    from anytune.model import Lora as Lora
    from anytune.model import Model as Model
    from anytune.model import load as load
    from anytune.train.finetune import finetune as finetune


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'anytune' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    value = globals()[name] = getattr(importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
