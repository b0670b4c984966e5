"""The transformer's blocks, forward and backward, on a flat stream of packed tokens.

Each block's forward returns what its backward needs, so what is kept is in plain sight: norms, gated products
and rotations are cheap and made again; the products' inputs are kept, or the whole layer is run again (keep).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .config import Config

Array = Any


@dataclass
class Layer:
    """One layer's norms (vectors), linears (engine groups), attention shape and rope table.

    gradients: {name of a norm: what its gain's gradient is added to}, of the norms that are trained.
    """

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
    gradients: Mapping[str, Array] = field(default_factory=dict)

    @property
    def head_norms(self) -> tuple[Array, Array] | None:
        """Gains of the RMSNorm over each query and key head, where there is one."""
        return None if self.q_norm is None else (self.q_norm, self.k_norm)

    def gain(self, name: str) -> Array | None:
        """Where the gradient of a norm's gain goes; None: it is frozen."""
        return self.gradients.get(name)

    def _any(self, *names: str) -> bool:
        return any(name in self.gradients for name in names)

    @property
    def trains_qkv(self) -> bool:
        """Whether anything before attention's scores is trained."""
        return self.qkv.trains or self._any("attn_norm", "q_norm", "k_norm")

    @property
    def trains_attention(self) -> bool:
        return self.trains_qkv or self.out.trains or self._any("post_attn_norm")

    @property
    def trains_gates(self) -> bool:
        """Whether anything before the gated product is trained."""
        return self.gate_up.trains or self._any("ffn_norm")

    @property
    def trains(self) -> bool:
        return self.trains_attention or self.trains_gates or self.down.trains or self._any("post_ffn_norm")


def attention_block(e, x, layer: Layer, config: Config, positions, attended=None):
    """x: [T, d] -> (x + attention(x), what the backward needs). attended: what e.attention() gave before, or None."""
    q, k, v = e.norm_linear(x, layer.attn_norm, config.eps, layer.qkv)
    # without head norms q and k are turned where they lie; with them they stay, for the backward
    turned_q, turned_k = e.qk_norm_rope(
        q, k, layer.head_norms, config.eps, layer.rope, positions, layer.heads, config.arch.neox
    )
    if layer.head_norms is None:
        q, k = turned_q, turned_k
    o, lse = attended or e.attention(turned_q, turned_k, v, layer.heads)
    turned = (turned_q, turned_k) if e.keeps_turned and layer.head_norms else None
    del turned_q, turned_k
    (y,) = e.linear(o, layer.out)
    if layer.post_attn_norm is None:
        return e.add(x, y), (x, q, k, v, turned, o, lse, None)
    return e.add(x, e.rms_norm(y, layer.post_attn_norm, config.eps)), (x, q, k, v, turned, o, lse, y)


def norm_backward(e, dout, y, layer: Layer, name: str, config: Config):
    """Back through the norm `name` of a block's result y: [T, d]; dout itself where there is no such norm (y None)."""
    if y is None:
        return dout
    if layer.gain(name) is not None:
        e.gain_gradient(dout, y, config.eps, layer.gain(name))
    return e.rms_norm_backward(dout, y, getattr(layer, name), config.eps)


def attention_block_backward(
    e, dout, saved, layer: Layer, config: Config, positions, below: Layer | None, need_dx: bool
):
    """dout: [T, d] -> dx [T, d], or None if it is not needed. Adds to the gradients.

    below: the layer whose backward is next.
    """
    x, q, k, v, turned, o, lse, y = saved
    dy = norm_backward(e, dout, y, layer, "post_attn_norm", config)
    del y
    needed = need_dx or layer.trains_qkv
    do = e.linear_backward((dy,), o, layer.out, needed)
    del dy
    if not needed:
        return None
    how = (layer.head_norms, config.eps, layer.rope, positions, layer.heads, config.arch.neox)
    if turned is None:
        turned = e.qk_norm_rope(q, k, *how) if layer.head_norms else (q, k)
    dq, dk, dv = e.attention_backward(do, *turned, v, o, lse, layer.heads)
    del do, o, v, turned
    dq, dk = e.qk_norm_rope_backward(dq, dk, q, k, *how, (layer.gain("q_norm"), layer.gain("k_norm")))
    del q, k
    return e.norm_linear_backward(
        (dq, dk, dv),
        x,
        layer.attn_norm,
        config.eps,
        layer.qkv,
        dout,
        need_dx,
        below.down if below and below.post_ffn_norm is None else None,
        layer.gain("attn_norm"),
    )


def mlp_block(e, x, layer: Layer, config: Config, again: bool = False):
    """x: [T, d] -> (x + mlp(x), what the backward needs).

    again: it ran before, and only the latter is wanted: then the last product is left out where nothing reads it.
    """
    gate, up = e.norm_linear(x, layer.ffn_norm, config.eps, layer.gate_up)
    if again and layer.post_ffn_norm is None:
        return None, (x, gate, up, None)
    (y,) = e.glu_linear(gate, up, config.arch.activation, layer.down)
    if layer.post_ffn_norm is None:
        return e.add(x, y), (x, gate, up, None)
    return e.add(x, e.rms_norm(y, layer.post_ffn_norm, config.eps)), (x, gate, up, y)


def mlp_block_backward(e, dout, saved, layer: Layer, config: Config, need_dx: bool = True):
    """dout: [T, d] -> dx [T, d], or None if nothing below needs it. Adds to the gradients."""
    x, gate, up, y = saved
    dy = norm_backward(e, dout, y, layer, "post_ffn_norm", config)
    del y
    needed = need_dx or layer.trains_gates
    both = e.glu_linear_backward(dy, gate, up, config.arch.activation, layer.down, layer.gate_up, needed)
    del dy, gate, up
    if not needed:
        return None
    return e.norm_linear_backward(
        both,
        x,
        layer.ffn_norm,
        config.eps,
        layer.gate_up,
        dout,
        need_dx,
        layer.out if layer.post_attn_norm is None else None,
        layer.gain("ffn_norm"),
    )


def layer_forward(e, x, layer: Layer, config: Config, positions, rows=None, again: bool = False, attended=None):
    """x -> (next x, (saved by attention, saved by the MLP)).

    rows: the only ones that are wanted, int32 [M], or None: all. again: as in mlp_block; attended: as in
    attention_block.
    """
    x, attention_saved = attention_block(e, x, layer, config, positions, attended)
    if rows is not None:  # nothing after attention looks at another row
        x = e.gather(x, rows)
    x, mlp_saved = mlp_block(e, x, layer, config, again)
    return x, (attention_saved, mlp_saved)


def layer_backward(
    e, dx, saved, layer: Layer, config: Config, positions, below: Layer | None, rows=None, bottom: bool = False
):
    """dx of the layer's output -> dx of its input (None without a trained layer `below`, unless it is wanted at the
    `bottom`)."""
    attention_saved, mlp_saved = saved
    need_dx = below is not None or bottom
    into_attention = need_dx or layer.trains_attention
    dx = mlp_block_backward(e, dx, mlp_saved, layer, config, into_attention)
    del mlp_saved
    if not into_attention:
        return None
    if rows is not None:
        dx = e.scatter(dx, rows, len(positions))
    return attention_block_backward(e, dx, attention_saved, layer, config, positions, below, need_dx)


def forward(e, layers: list[Layer], x, config: Config, positions, rows, lowest: int, keep: int):
    """Run all layers.

    -> (x [M, d] of the given rows, tape): per layer what its backward needs, its input alone, or None.

    Layers below `lowest` keep nothing (no backward goes there). Of the others the last `keep` keep all, the
    rest only their input, from which the backward runs them again, and if the engine says so what attention gave.
    """
    tape: list = []
    for number, layer in enumerate(layers):
        full = number >= max(lowest, len(layers) - keep)
        before = x
        x, saved = layer_forward(e, x, layer, config, positions, rows if number == len(layers) - 1 else None)
        attended = saved[0][5:7] if e.keeps_attended and number >= lowest else None
        tape.append(saved if full else (e.offload(before), attended) if number >= lowest else None)
        del before, saved, attended
    return x, tape


def backward(
    e,
    layers: list[Layer],
    dx,
    config: Config,
    positions,
    rows,
    lowest: int,
    keep: int,
    tape: list,
    bottom: bool = False,
):
    """Walk back from dx [M, d] of the last layer's rows to the lowest trained layer; consumes the tape.

    Gradients are added in place. -> dx [T, d] of the lowest layer's input with `bottom`, else None.
    """
    for number in range(len(layers) - 1, lowest - 1, -1):
        saved, wanted = tape.pop(), rows if number == len(layers) - 1 else None
        if number < len(layers) - keep:
            before, attended = saved
            del saved
            before = e.prefetch(before)
            saved = layer_forward(e, before, layers[number], config, positions, wanted, True, attended)[1]
            del before, attended
        below = layers[number - 1] if number > lowest else None
        dx = layer_backward(e, dx, saved, layers[number], config, positions, below, wanted, bottom)
        del saved
    return dx
