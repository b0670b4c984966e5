"""The architectures that anytune knows: one file each, named as llama.cpp names it."""

from .gemma3 import GEMMA3
from .llama import LLAMA
from .qwen2 import QWEN2
from .qwen3 import QWEN3
from .qwen35 import QWEN35

ARCHITECTURES = {arch.name: arch for arch in (LLAMA, QWEN2, QWEN3, QWEN35, GEMMA3)}
