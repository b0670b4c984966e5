"""The names of linears: what trainers' flags call them, and the tensors that they are."""

from __future__ import annotations

# The names that llama.cpp-style trainers use -> the tensor's name within its layer (or of the head).
MODULES = {
    "attn_q": "attn_q",
    "attn_k": "attn_k",
    "attn_v": "attn_v",
    "attn_o": "attn_output",
    "attn_qkv": "attn_qkv",
    "attn_gate": "attn_gate",
    "attn_q_a": "attn_q_a",
    "attn_q_b": "attn_q_b",
    "attn_kv_a_mqa": "attn_kv_a_mqa",
    "ssm_out": "ssm_out",
    "conv_in": "shortconv.in_proj",
    "conv_out": "shortconv.out_proj",
    "ssm_alpha": "ssm_alpha",
    "ssm_beta": "ssm_beta",
    "ffn_gate": "ffn_gate",
    "ffn_up": "ffn_up",
    "ffn_down": "ffn_down",
    "ffn_gate_shexp": "ffn_gate_shexp",
    "ffn_up_shexp": "ffn_up_shexp",
    "ffn_down_shexp": "ffn_down_shexp",
    "ffn_gate_exps": "ffn_gate_exps",
    "ffn_up_exps": "ffn_up_exps",
    "ffn_gate_up_exps": "ffn_gate_up_exps",
    "ffn_down_exps": "ffn_down_exps",
    "inp_gate": "inp_gate",
    "proj": "proj",
    "output": "output",
}
ALIASES = {  # other trainers' names
    "attn_output": "attn_o",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_o",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "lm_head": "output",
    "all-linear": "all",
}
EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps", "ffn_down_exps")
NOT_ALL = ("ssm_alpha", "ssm_beta", "inp_gate", "proj", *EXPERTS, "output")  # narrow ones, a pair an expert, the head
ALL = tuple(name for name in MODULES if name not in NOT_ALL)
GROUPS = {"all": ALL, "experts": EXPERTS}  # words for several
DENSE = ("ffn_gate", "ffn_up", "ffn_down")  # that files with experts may lack
USUAL = ("attn_q", "attn_k", "attn_v", "attn_o", *DENSE)
RARE = tuple(name for name in ALL if name not in USUAL)  # that few architectures have


def module_tensor(name: str) -> str:
    """The value in MODULES of a base tensor: "blk.0.attn_q.weight" -> "attn_q"."""
    return (name.split(".", 2)[2] if name.startswith("blk.") else name).removesuffix(".weight")


def is_expert(name: str) -> bool:
    """Whether a base tensor holds the matrices of a layer's experts."""
    return module_tensor(name) in EXPERTS
