"""What an architecture's file says: how it differs from the plain transformer, and what others call its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .ffn.experts import Experts
from .ffn.gated import Gated
from .mixers.attention import Attention

if TYPE_CHECKING:
    from .config import Config

LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SHARED = {  # the expert that all tokens go to
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
ROUTERS = {"ffn_gate_inp": "mlp.gate"}
NORMS = {
    "attn_norm": "input_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
}
WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
LAYER_TYPES = "sliding_attention", "full_attention"  # config.json's words
# (order of the rows, order of the columns): Hugging Face's number i is the GGUF's number order[i]; None: the same
Orders = tuple[np.ndarray | None, np.ndarray | None]
Order = Callable[[tuple[int, ...], Callable[..., int]], Orders]  # (shape, number by metadata keys) -> Orders


def layer_types(c: Config) -> list[str]:
    """Which layers see a window only, in config.json's words."""
    return [LAYER_TYPES[not c.windowed(i)] for i in range(c.layers)]


@dataclass(frozen=True)
class Other:
    """A tensor of a layer that Hugging Face stores in another form. name: whole, within the layer; there, here: its
    numbers as there, and back; shape: of the array as there."""

    name: str
    there: Callable[[np.ndarray], np.ndarray] = lambda x: x
    here: Callable[[np.ndarray], np.ndarray] = lambda x: x
    shape: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda shape: shape


ROUTED = {  # what few mixtures have
    "exp_probs_b.bias": Other("mlp.gate.e_score_correction_bias"),
    "ffn_gate_inp_shexp.weight": Other("mlp.shared_expert_gate.weight", shape=lambda shape: (1, *shape)),
}
BESIDE = {  # norms of two feed-forwards beside each other
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
}
SCALES = {  # of experts, and of what their router reads
    "ffn_gate_inp.scale": Other("router.scale"),
    "ffn_down_exps.scale": Other("router.per_expert_scale"),
}


@dataclass(frozen=True)
class ExpertNames:
    """What Hugging Face calls a layer's experts. transformers has two parameters for all of them, gate_up_proj
    [experts, 2 · hidden, d] and down_proj [experts, d, hidden].

    module: with these parameters; block: what checkpoints call "mlp"; each: what they call an expert's gate, up and
    down; (): they have the two parameters. turned: gate and up by turns, and matrices the other way round; fused: a
    converter leaves the two parameters as they are.
    """

    module: str = "mlp.experts"
    block: str = "mlp"
    each: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    turned: bool = False
    fused: bool = False


def plain(c: Config, layer: int) -> tuple[type, ...]:
    return Attention, c.arch.ffn(c, layer)


@dataclass(frozen=True)
class Architecture:
    """The plain transformer (pre-norm, attention with rope, gated product, RMSNorm), except as stated here."""

    name: str  # as llama.cpp has it
    neox: bool  # rope pairs i with i + n/2 (GPT-NeoX order), else neighbours
    # a layer's mixer and feed-forward, and what else it has
    parts: Callable[[Config, int], tuple[type, ...]] = plain
    activation: str = "silu"
    head_norms: bool = False  # RMSNorm on every query and key head
    wide_norms: bool = False  # RMSNorm on all queries, and on all keys, together
    pre_norms: bool = True  # RMSNorm on what each part reads
    post_norms: bool = False  # RMSNorm on each part's output too
    output_norm: str = "output_norm"  # the tensor of the last norm
    ffn_norm: str = "ffn_norm"  # the tensor of the feed-forward's norm
    sinks: bool = False  # a score without a value in the softmax of each query head
    gated_shared: bool = False  # a sigmoid gate on the expert of all tokens
    choice_bias: str = ""  # a bias for the choice of experts alone: "all" files have it, "some", or none
    # "all": in every layer but the first few that the file says; "some": in files that have them, "beside": in these
    # beside the dense feed-forward
    experts: str = ""
    gating: str = "softmax"  # Router.kind, unless the file says otherwise
    normalized: bool = True  # Router.normalized, unless the file says otherwise
    latent: bool = False  # keys and values are made of a latent, in which they have other widths
    gated_attention: bool = False  # a sigmoid gate beside each query head
    scaled_embedding: bool = False  # embeddings times sqrt(d)
    nope_period: int = 0  # every n-th layer turns nothing by its position; 0: all turn
    window_period: int = 0  # every n-th layer sees everything, the others a window, unless the file says otherwise
    window: int = 0  # tokens of one, unless the file says otherwise
    local_base: float | None = None  # rope base of the windowed layers, unless the file says otherwise
    # tensors with divisors of the angles that a file may have: Llama 3's, or for short and for long contexts
    rope_factors: tuple[str, ...] = ()
    needs_factors: bool = False  # whether llama.cpp loads no file without them
    biases: tuple[str, ...] = ("attn_q", "attn_k", "attn_v")  # linears whose bias llama.cpp reads
    optional: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # further tensors that a layer may have
    unadapted: tuple[str, ...] = ()  # linears that llama.cpp multiplies with without looking for an adapter
    constants: tuple[str, ...] = ()  # tensors of a layer that have two dimensions, and are no linears
    lists: tuple[str, ...] = ()  # keys that may have a value for each layer
    still: bool = False  # whether heads are normed without being turned
    keys: tuple[str, ...] = ()  # further keys that are used (keys.py)
    zero: tuple[str, ...] = ()  # keys that llama.cpp uses for it, and anytune only where they are 0
    read: Callable[[Callable, Config], dict[str, Any]] | None = None  # (get, config) -> fields of it that differ

    # -- Hugging Face: model_type and class of config.json, further classes that are the same, names, numbers
    kind: str = ""
    model_class: str = ""
    other_classes: tuple[str, ...] = ()
    modules: Mapping[str, str] = field(default_factory=lambda: MODULES)
    norms: Mapping[str, str] = field(default_factory=lambda: NORMS)
    routers: Mapping[str, str] = field(default_factory=lambda: ROUTERS)  # frozen matrices that choose experts
    expert_names: ExpertNames = ExpertNames()
    unit_norms: tuple[str, ...] = ()  # norms whose gain is stored as 1 + w here, and as w there; ("*",): all
    reordered: Mapping[str, Order] = field(default_factory=dict)  # parts whose rows or columns a converter moves
    others: Mapping[str, Other] = field(default_factory=dict)  # by the tensor's whole name within the layer
    activation_key: str = "hidden_act"
    attention_bias: bool = True  # whether config.json says if attention has biases
    partial_rope: bool = False  # whether it can say that only a part of a head turns
    config: Callable[[Config], dict[str, Any]] = lambda c: {}  # what it says besides
    settings: tuple[str, ...] = ()  # of config.json that few architectures have: convert/metadata.py
    # the other way: (number of config.json by name and type, all of it) -> further keys of the file
    metadata: Callable[[Callable, Mapping[str, Any]], dict[str, Any]] = lambda number, config: {}

    def ffn(self, c: Config, layer: int) -> type:
        """A layer's feed-forward, where it is a gated product or experts."""
        return Gated if c.router is None or layer < c.dense else Experts

    def is_constant(self, tensor: str) -> bool:
        return tensor.startswith("blk.") and tensor.split(".", 2)[2].rpartition(".")[0] in self.constants

    def stores_unit(self, tensor: str) -> bool:
        """Whether a tensor is a norm's gain that Hugging Face stores less 1."""
        stem = tensor.removesuffix(".weight")
        return stem.endswith("_norm") and (self.unit_norms == ("*",) or stem.split(".")[-1] in self.unit_norms)


def interleaved(*keys: str) -> Order:
    """Rows that a converter has turned from halves of each head to neighbours, as llama's queries and keys.

    keys: that say how many heads there are, the first that the file has.
    """

    def order(shape: tuple[int, ...], get: Callable) -> Orders:
        return np.arange(shape[0]).reshape(get(*keys), -1, 2).swapaxes(1, 2).reshape(-1), None

    return order


# llama's queries and keys, whose halves the converter interleaves
NEIGHBOURS = {
    "attn_q": interleaved("attention.head_count"),
    "attn_k": interleaved("attention.head_count_kv", "attention.head_count"),
}
