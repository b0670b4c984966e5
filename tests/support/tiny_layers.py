"""Tensors of tiny models' layers that are not the plain transformer's: as tiny.tensor_table has them."""

from __future__ import annotations

from typing import Any

Row = tuple[tuple[int, ...], float, str]  # shape, deviation, kind: matrix | norm | bias | constant | decay


def linear(out: int, width: int) -> Row:
    return (out, width), width**-0.5, "matrix"


def norm(n: int) -> Row:
    return (n,), 0.2, "norm"


def qwen35(s: Any, i: int) -> dict[str, Row]:
    """Three of four layers a gated delta net; the feed-forward's norm has another name."""
    own = {key: s.meta[f"ssm.{key}"] for key in ("group_count", "time_step_rank", "state_size", "conv_kernel")}
    values, size = own["time_step_rank"], own["state_size"]
    width, inner = (2 * own["group_count"] + values) * size, values * size
    if (i + 1) % s.meta["full_attention_interval"]:
        mixer = {
            "attn_qkv.weight": linear(width, s.width),
            "attn_gate.weight": linear(inner, s.width),
            "ssm_conv1d.weight": ((width, own["conv_kernel"]), 0.5, "constant"),
            "ssm_dt.bias": ((values,), 0.5, "bias"),
            "ssm_a": ((values,), 1.0, "decay"),
            "ssm_beta.weight": linear(values, s.width),
            "ssm_alpha.weight": linear(values, s.width),
            "ssm_norm.weight": norm(size),
            "ssm_out.weight": linear(s.width, inner),
        }
    else:
        q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        mixer = {
            "attn_q.weight": linear(2 * q, s.width),
            "attn_k.weight": linear(kv, s.width),
            "attn_v.weight": linear(kv, s.width),
            "attn_output.weight": linear(s.width, q),
            "attn_q_norm.weight": norm(s.head_dim),
            "attn_k_norm.weight": norm(s.head_dim),
        }
    return {
        "attn_norm.weight": norm(s.width),
        **mixer,
        "post_attention_norm.weight": norm(s.width),
        "ffn_gate.weight": linear(s.ff, s.width),
        "ffn_up.weight": linear(s.ff, s.width),
        "ffn_down.weight": linear(s.width, s.ff),
    }


LAYERS = {"qwen35": qwen35}
