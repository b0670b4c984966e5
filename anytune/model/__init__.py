"""Models: what an architecture is (a file each), its forward and backward, LoRA, and what is asked of them.

Nothing here knows a device: every operation goes through an engine (anytune.engine.base). config.py reads a GGUF's
metadata, mixers/ and ffn/ are the halves of a layer, stack.py runs layers, passes.py a micro-batch of training,
lora_trainee.py and full_trainee.py hold what is trained, decoder.py generates, plan.py fits memory.
"""

from .full import Full  # noqa: F401
from .lora import Lora  # noqa: F401
from .model import Model, load  # noqa: F401
