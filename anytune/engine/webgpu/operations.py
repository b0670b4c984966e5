"""Where each operation of base.py is."""

from __future__ import annotations

from anytune.engine.composed import Composed

from . import attention as _attention
from . import convolution as _convolution
from . import decode as _decode
from . import delta as _delta
from . import delta_backward as _delta_backward
from . import experts as _experts
from . import gates as _gates
from . import gradients as _gradients
from . import heads as _heads
from . import linear as _linear
from . import loss as _loss
from . import rope as _rope
from . import routing as _routing
from . import rows as _rows
from . import sinks as _sinks


class Operations(Composed):
    """The operations as methods of the engine, `e` in their files."""

    split = _rows.split
    join = _rows.join
    joined = _rows.joined
    embed = _rows.embed
    gather = _rows.gather
    scatter = _rows.scatter
    add = _rows.add
    scale = _rows.scale
    rms_norm = _rows.rms_norm
    rms_norm_backward = _rows.rms_norm_backward

    qk_norm_rope = _rope.qk_norm_rope
    qk_norm_rope_backward = _rope.qk_norm_rope_backward

    glu = _gates.glu
    glu_backward = _gates.glu_backward
    glu_linear_backward = _gates.glu_linear_backward
    gated = _gates.gated
    gated_backward = _gates.gated_backward
    gate_rows = _gates.gate_rows
    gate_rows_backward = _gates.gate_rows_backward
    clamped_glu = _gates.clamped_glu
    clamped_glu_backward = _gates.clamped_glu_backward

    linear = _linear.linear
    linear_backward = _linear.linear_backward

    attention = _attention.attention
    attention_backward = _attention.attention_backward

    sink = _sinks.sink
    sink_gradient = _sinks.sink_gradient

    cross_entropy = _loss.cross_entropy

    linear_decode = _decode.linear_decode
    logits = _decode.logits
    cache = _decode.cache
    places = _decode.places
    store = _decode.store
    attend_cache = _decode.attend_cache

    convolve = _convolution.convolve
    convolve_backward = _convolution.convolve_backward
    convolve_cached = _convolution.convolve_cached
    state = _convolution.state

    delta = _delta.delta
    delta_cached = _delta.delta_cached

    delta_backward = _delta_backward.delta_backward

    split_heads = _heads.split_heads
    join_heads = _heads.join_heads
    resize_heads = _heads.resize_heads
    latent_heads = _heads.latent_heads
    latent_heads_backward = _heads.latent_heads_backward
    latent_matrix = _heads.latent_matrix
    head_product = _heads.head_product

    gain_gradient = _gradients.gain_gradient
    embed_backward = _gradients.embed_backward

    expert_group = _experts.expert_group
    expert_linear = _experts.expert_linear
    expert_linear_backward = _experts.expert_linear_backward

    route = _routing.route
    route_backward = _routing.route_backward
    take_loads = _routing.take_loads
    dispatch = _routing.dispatch
    combine = _routing.combine
    weigh = _routing.weigh
    weigh_backward = _routing.weigh_backward
    weigh_bias = _routing.weigh_bias
    weigh_bias_backward = _routing.weigh_bias_backward
