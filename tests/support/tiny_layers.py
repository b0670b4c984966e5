"""Tensors of tiny models' layers that are not the plain transformer's: as tiny.tensor_table has them."""

from __future__ import annotations

from typing import Any

Row = tuple[tuple[int, ...], float, str]  # shape, deviation, kind: matrix | norm | bias | constant | decay


def linear(out: int, width: int) -> Row:
    return (out, width), width**-0.5, "matrix"


def norm(n: int) -> Row:
    return (n,), 0.2, "norm"


def feed_forward(s: Any, i: int) -> dict[str, Row]:
    """A gated product, or experts where the metadata have some."""
    experts, dense = s.meta.get("expert_count", 0), s.meta.get("leading_dense_block_count", 0)
    if not experts or i < dense:
        return gated("", s.width, s.ff)
    inner = s.meta.get("expert_feed_forward_length", s.ff)
    rows = gated("_exps", s.width, inner)
    found = {"ffn_gate_inp.weight": ((experts, s.width), 2 * s.width**-0.5, "constant")}
    found |= {name: ((experts, *shape), scale, kind) for name, (shape, scale, kind) in rows.items()}
    if count := s.meta.get("expert_shared_count", 0):
        found |= gated("_shexp", s.width, count * inner)
    if s.meta.get("expert_gating_func") == 2:
        found["exp_probs_b.bias"] = ((experts,), 0.2, "bias")
    if shared := s.meta.get("expert_shared_feed_forward_length", 0):
        found |= gated("_shexp", s.width, shared)
        found["ffn_gate_inp_shexp.weight"] = ((s.width,), s.width**-0.5, "constant")
    return found


def fused_experts(experts: int, width: int, ff: int) -> dict[str, Row]:
    """Beside a gated product: gate and up as one matrix, the router and each expert with a scale."""
    return {
        "ffn_gate_inp.weight": ((experts, width), 2.0, "constant"),  # scores are divided by sqrt(width)
        "ffn_gate_inp.scale": norm(width),
        "ffn_gate_up_exps.weight": ((experts, 2 * ff, width), width**-0.5, "matrix"),
        "ffn_down_exps.weight": ((experts, width, ff), ff**-0.5, "matrix"),
        "ffn_down_exps.scale": norm(experts),
        **{f"{name}.weight": norm(width) for name in ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2")},
    }


def gated(end: str, width: int, ff: int) -> dict[str, Row]:
    return {
        f"ffn_gate{end}.weight": linear(ff, width),
        f"ffn_up{end}.weight": linear(ff, width),
        f"ffn_down{end}.weight": linear(width, ff),
    }


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
        **feed_forward(s, i),
    }


def gptoss(s: Any, i: int) -> dict[str, Row]:
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    rows = {
        "attn_norm.weight": norm(s.width),
        "attn_q.weight": linear(q, s.width),
        "attn_k.weight": linear(kv, s.width),
        "attn_v.weight": linear(kv, s.width),
        "attn_output.weight": linear(s.width, q),
        "attn_sinks.weight": ((s.heads,), 1.0, "bias"),
        "post_attention_norm.weight": norm(s.width),
        **feed_forward(s, i),
    }
    matrices = {name: shape for name, (shape, _, _) in rows.items() if len(shape) > 1}
    return rows | {name.replace(".weight", ".bias"): (shape[:-1], 0.5, "bias") for name, shape in matrices.items()}


def glm4moe(s: Any, i: int) -> dict[str, Row]:
    rows = {name: row for name, row in gptoss(s, i).items() if "ffn" not in name and "sinks" not in name}
    return {name: row for name, row in rows.items() if name != "attn_output.bias"} | feed_forward(s, i)


def gemma4(s: Any, i: int) -> dict[str, Row]:
    """Heads by the kind of layer; no keys and values where another's are read; own embeddings where the file has."""
    windowed, first = s.meta["attention.sliding_window_pattern"][i], s.layers - s.meta["attention.shared_kv_layers"]
    size = s.meta["attention.key_length_swa"] if windowed else s.head_dim
    keys, ff = s.meta.get("attention.head_count_kv", s.kv_heads), s.meta.get("feed_forward_length", s.ff)
    keys, ff = (x[i] if isinstance(x, list) else x for x in (keys, ff))
    own = s.meta["embedding_length_per_layer_input"]
    layer = {
        "attn_norm.weight": norm(s.width),
        "attn_q.weight": linear(s.heads * size, s.width),
        "attn_q_norm.weight": ((size,), 0.1, "small"),  # scores are not divided by the size
        "attn_output.weight": linear(s.width, s.heads * size),
        "post_attention_norm.weight": norm(s.width),
        "ffn_norm.weight": norm(s.width),
        "ffn_gate.weight": linear(ff, s.width),
        "ffn_up.weight": linear(ff, s.width),
        "ffn_down.weight": linear(s.width, ff),
        "post_ffw_norm.weight": norm(s.width),
        "layer_output_scale.weight": ((1,), 0.2, "norm"),
    }
    if experts := s.meta.get("expert_count", 0):
        layer |= fused_experts(experts, s.width, s.meta["expert_feed_forward_length"])
    if i < first:
        layer |= {"attn_k.weight": linear(keys * size, s.width), "attn_k_norm.weight": ((size,), 0.1, "small")}
        if windowed or own:
            layer["attn_v.weight"] = linear(keys * size, s.width)
    if own:
        layer |= {
            "inp_gate.weight": linear(own, s.width),
            "proj.weight": linear(s.width, own),
            "post_norm.weight": norm(s.width),
        }
    return layer


def lfm2(s: Any, i: int) -> dict[str, Row]:
    """Short convolutions but in layers that have key heads."""
    q, kv = s.heads * s.head_dim, s.meta["attention.head_count_kv"][i] * s.head_dim
    if kv:
        mixer = {
            "attn_q.weight": linear(q, s.width),
            "attn_k.weight": linear(kv, s.width),
            "attn_v.weight": linear(kv, s.width),
            "attn_q_norm.weight": norm(s.head_dim),
            "attn_k_norm.weight": norm(s.head_dim),
            "attn_output.weight": linear(s.width, q),
        }
    else:
        mixer = {
            "shortconv.in_proj.weight": linear(3 * s.width, s.width),
            "shortconv.conv.weight": ((s.width, s.meta["shortconv.l_cache"]), 0.5, "constant"),
            "shortconv.out_proj.weight": linear(s.width, s.width),
        }
    return {"attn_norm.weight": norm(s.width), **mixer, "ffn_norm.weight": norm(s.width), **feed_forward(s, i)}


def deepseek2(s: Any, i: int) -> dict[str, Row]:
    """Latent attention: what makes keys and values is split where the metadata have widths of whole heads."""
    rank, turned, queries = (
        s.meta[key] for key in ("attention.kv_lora_rank", "rope.dimension_count", "attention.q_lora_rank")
    )
    split = "attention.key_length_mla" in s.meta
    keys, values = (
        s.meta[f"attention.{x}_length_mla"]
        if split
        else {"key": s.head_dim, "value": s.meta["attention.value_length"]}[x]
        for x in ("key", "value")
    )
    plain = keys - turned
    rows = {
        "attn_norm.weight": norm(s.width),
        "attn_kv_a_mqa.weight": linear(rank + turned, s.width),
        "attn_kv_a_norm.weight": norm(rank),
        "attn_output.weight": linear(s.width, s.heads * values),
        "ffn_norm.weight": norm(s.width),
        **feed_forward(s, i),
    }
    if queries:
        rows |= {"attn_q_a.weight": linear(queries, s.width), "attn_q_a_norm.weight": norm(queries)}
    rows["attn_q_b.weight" if queries else "attn_q.weight"] = linear(s.heads * keys, queries or s.width)
    if split:
        rows["attn_k_b.weight"] = ((s.heads, rank, plain), rank**-0.5, "matrix")
        rows["attn_v_b.weight"] = ((s.heads, values, rank), rank**-0.5, "matrix")
    else:
        rows["attn_kv_b.weight"] = linear(s.heads * (plain + values), rank)
    return rows


LAYERS = {
    "deepseek2": deepseek2,
    "glm4moe": glm4moe,
    "gpt-oss": gptoss,
    "qwen35": qwen35,
    "qwen35moe": qwen35,
    "gemma4": gemma4,
    "lfm2": lfm2,
    "lfm2moe": lfm2,
}
