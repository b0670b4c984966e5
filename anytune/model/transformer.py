"""The transformer's blocks, forward and backward, on a flat stream of packed tokens.

Each block's forward returns what its backward needs, so what is kept is in plain sight: norms, gated products
and rotations are cheap and made again; the products' inputs are kept, or the whole layer is run again (keep).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .config import Config

Array = Any


@dataclass
class Layer:
    """One layer's norms (vectors), linears (engine groups), attention shape and rope table."""
    attn_norm: Array
    qkv: Any
    q_norm: Array | None
    k_norm: Array | None
    out: Any
    post_attn_norm: Array | None
    ffn_norm: Array
    gate_up: Any
    down: Any
    post_ffn_norm: Array | None
    heads: Any
    rope: Any

    @property
    def head_norms(self) -> tuple[Array, Array] | None:
        """Gains of the RMSNorm over each query and key head, where there is one."""
        return None if self.q_norm is None else (self.q_norm, self.k_norm)

    @property
    def trains_attention(self) -> bool:
        return bool(self.qkv.rank or self.out.rank)

    @property
    def trains(self) -> bool:
        return bool(self.trains_attention or self.gate_up.rank or self.down.rank)


def attention_block(e, x, layer: Layer, config: Config, positions):
    """x: [T, d] -> (x + attention(x), what the backward needs)."""
    q, k, v = e.norm_linear(x, layer.attn_norm, config.eps, layer.qkv)
    # without head norms q and k are turned where they lie; with them they stay, for the backward
    turned_q, turned_k = e.rotate(q, k, layer.head_norms, config.eps, layer.rope, positions, layer.heads,
                                  config.arch.halves)
    if layer.head_norms is None:
        q, k = turned_q, turned_k
    o, sums = e.attention(turned_q, turned_k, v, layer.heads)
    turned = (turned_q, turned_k) if e.keeps_turned and layer.head_norms else None
    del turned_q, turned_k
    (y,) = e.linear(o, layer.out)
    if layer.post_attn_norm is None:
        return e.add(x, y), (x, q, k, v, turned, o, sums, None)
    return e.add(x, e.rms_norm(y, layer.post_attn_norm, config.eps)), (x, q, k, v, turned, o, sums, y)


def attention_block_backward(e, dout, saved, layer: Layer, config: Config, positions, below: Layer | None):
    """dout: [T, d] -> dx [T, d], or None without a layer below that is trained. Adds to the low-rank gradients."""
    x, q, k, v, turned, o, sums, y = saved
    dy = dout if y is None else e.rms_norm_backward(dout, y, layer.post_attn_norm, config.eps)
    del y
    needed = below is not None or bool(layer.qkv.rank)
    do = e.linear_backward((dy,), o, layer.out, needed)
    del dy
    if not needed:
        return None
    how = (layer.head_norms, config.eps, layer.rope, positions, layer.heads, config.arch.halves)
    if turned is None:
        turned = e.rotate(q, k, *how) if layer.head_norms else (q, k)
    dq, dk, dv = e.attention_backward(do, *turned, v, o, sums, layer.heads)
    del do, o, v, turned
    dq, dk = e.rotate_backward(dq, dk, q, k, *how)
    del q, k
    return e.norm_linear_backward((dq, dk, dv), x, layer.attn_norm, config.eps, layer.qkv, dout, below is not None,
                                  below.down if below and below.post_ffn_norm is None else None)


def mlp_block(e, x, layer: Layer, config: Config):
    """x: [T, d] -> (x + mlp(x), what the backward needs)."""
    gate, up = e.norm_linear(x, layer.ffn_norm, config.eps, layer.gate_up)
    (y,) = e.glu_linear(gate, up, config.arch.activation, layer.down)
    if layer.post_ffn_norm is None:
        return e.add(x, y), (x, gate, up, None)
    return e.add(x, e.rms_norm(y, layer.post_ffn_norm, config.eps)), (x, gate, up, y)


def mlp_block_backward(e, dout, saved, layer: Layer, config: Config, need_dx: bool = True):
    """dout: [T, d] -> dx [T, d], or None if nothing below needs it. Adds to the low-rank gradients."""
    x, gate, up, y = saved
    dy = dout if y is None else e.rms_norm_backward(dout, y, layer.post_ffn_norm, config.eps)
    del y
    needed = need_dx or bool(layer.gate_up.rank)
    both = e.glu_linear_backward(dy, gate, up, config.arch.activation, layer.down, layer.gate_up, needed)
    del dy, gate, up
    if not needed:
        return None
    return e.norm_linear_backward(both, x, layer.ffn_norm, config.eps, layer.gate_up, dout, need_dx,
                                  layer.out if layer.post_attn_norm is None else None)


def layer_forward(e, x, layer: Layer, config: Config, positions, rows=None):
    """x -> (next x, (saved by attention, saved by the MLP)). rows: the only ones that are wanted, int32 [M], or None: all."""
    x, attention_saved = attention_block(e, x, layer, config, positions)
    if rows is not None:    # nothing after attention looks at another row
        x = e.take(x, rows)
    x, mlp_saved = mlp_block(e, x, layer, config)
    return x, (attention_saved, mlp_saved)


def layer_backward(e, dx, saved, layer: Layer, config: Config, positions, below: Layer | None, rows=None):
    """dx of the layer's output -> dx of its input (None if there is no trained layer `below`)."""
    attention_saved, mlp_saved = saved
    into_attention = below is not None or layer.trains_attention
    dx = mlp_block_backward(e, dx, mlp_saved, layer, config, into_attention)
    del mlp_saved
    if not into_attention:
        return None
    if rows is not None:
        dx = e.put(dx, rows, len(positions))
    return attention_block_backward(e, dx, attention_saved, layer, config, positions, below)


def forward(e, layers: list[Layer], x, config: Config, positions, rows, lowest: int, keep: int):
    """Run all layers. -> (x [M, d] of the given rows, tape): per layer what its backward needs, its input alone, or None.

    Layers below `lowest` keep nothing (no backward goes there). Of the others the last `keep` keep all, the
    rest only their input, from which the backward runs them again.
    """
    tape: list = []
    for number, layer in enumerate(layers):
        full = number >= max(lowest, len(layers) - keep)
        before = x
        x, saved = layer_forward(e, x, layer, config, positions, rows if number == len(layers) - 1 else None)
        tape.append(saved if full else e.park(before) if number >= lowest else None)
        del before, saved
    return x, tape


def backward(e, layers: list[Layer], dx, config: Config, positions, rows, lowest: int, keep: int, tape: list) -> None:
    """Walk back from dx [M, d] of the last layer's rows to the lowest trained layer; consumes the tape. Gradients are added in place."""
    for number in range(len(layers) - 1, lowest - 1, -1):
        saved, wanted = tape.pop(), rows if number == len(layers) - 1 else None
        if number < len(layers) - keep:
            saved = layer_forward(e, e.fetch(saved), layers[number], config, positions, wanted)[1]
        below = layers[number - 1] if number > lowest else None
        dx = layer_backward(e, dx, saved, layers[number], config, positions, below, wanted)
        del saved
