"""SmolLM3: Llama's layers, of which every fourth turns nothing by its position (NoPE)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from anytune.errors import UserError
from anytune.model.architecture import NEIGHBOURS, Architecture

if TYPE_CHECKING:
    from anytune.model.config import Config

PERIOD = 4  # llama.cpp's own: the file does not say it


def turns(layers: int) -> list[int]:
    """Whether each layer turns its heads, as config.json says it."""
    return [int((i + 1) % PERIOD != 0) for i in range(layers)]


def config(c: Config) -> dict:
    return {
        "no_rope_layers": turns(c.layers),
        "no_rope_layer_interval": PERIOD,
        "use_sliding_window": False,
        "layer_types": ["full_attention"] * c.layers,
    }


def metadata(number: Callable, config: Mapping) -> dict:
    if config.get("no_rope_layers") not in (None, turns(number("num_hidden_layers", int))):
        raise UserError("config.json has no_rope_layers in an order that llama.cpp's smollm3 cannot express.")
    return {}


SMOLLM3 = Architecture(
    "smollm3",
    neox=False,
    nope_period=PERIOD,
    biases=(),
    kind="smollm3",
    model_class="SmolLM3ForCausalLM",
    reordered=NEIGHBOURS,
    config=config,
    metadata=metadata,
)
