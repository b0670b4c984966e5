"""The architectures that anytune knows: one file each, named as llama.cpp names it."""

from .bitnet import BITNET
from .deepseek2 import DEEPSEEK2
from .gemma2 import GEMMA2
from .gemma3 import GEMMA3
from .glm4moe import GLM4MOE
from .gptoss import GPTOSS
from .gemma4 import GEMMA4
from .granite import GRANITE
from .lfm2 import LFM2
from .lfm2moe import LFM2MOE
from .llama import LLAMA
from .mistral3 import MISTRAL3
from .olmo2 import OLMO2
from .phi3 import PHI3
from .qwen2 import QWEN2
from .qwen3 import QWEN3
from .qwen3moe import QWEN3MOE
from .qwen35 import QWEN35
from .qwen35moe import QWEN35MOE
from .smollm3 import SMOLLM3

ARCHITECTURES = {
    arch.name: arch
    for arch in (
        LLAMA,
        QWEN2,
        QWEN3,
        QWEN3MOE,
        QWEN35,
        QWEN35MOE,
        GPTOSS,
        GEMMA2,
        GLM4MOE,
        GEMMA3,
        GEMMA4,
        SMOLLM3,
        GRANITE,
        MISTRAL3,
        OLMO2,
        PHI3,
        BITNET,
        LFM2,
        LFM2MOE,
        DEEPSEEK2,
    )
}
