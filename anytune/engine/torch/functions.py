"""Which functions compute: Triton's kernels where they run, their plain torch twins elsewhere.
Same names, same signatures."""

from __future__ import annotations

import functools
from types import SimpleNamespace


def functions(triton: bool, tf32: bool = False) -> SimpleNamespace:
    """The engine's functions by name. tf32: kernels may round float32 operands of products to 10 bits of mantissa.

    small_rows: tokens up to which glu_backward is faster than glu_gradients, most: ranks of a pair which that can take.
    """
    from . import attention, blocks, plain, plain_convolution, plain_delta, plain_fp8, plain_low, plain_optimizer
    from . import plain_slots

    found = {"dequantize": blocks.dequantize_into, "gather": blocks.gather_into, "small_rows": 0, "most": 1 << 30}
    for module, names in (
        (
            plain,
            (
                "rms_norm",
                "rms_norm_backward",
                "qk_norm_rope",
                "qk_norm_rope_backward",
                "glu",
                "glu_backward",
                "glu_gradients",
                "gated",
                "gated_backward",
                "loss_rows",
                "dropout",
            ),
        ),
        (plain_low, ("low", "low_fp8", "gradients", "gradients_of_groups", "place")),
        (plain_convolution, ("convolve", "convolve_backward")),
        (plain_slots, ("spread", "collect", "weigh_backward", "weighed", "weighed_backward")),
        (plain_delta, ("delta", "delta_backward")),
        (plain_fp8, ("quantize", "turn", "product_fp8")),
        (plain_optimizer, ("square_sum", "adamw")),
        (attention, ("attention", "attention_backward", "attend_cache")),
    ):
        found |= {name: getattr(module, name) for name in names}
    if triton:
        found |= _triton(tf32)
    return SimpleNamespace(**found)


def _triton(tf32: bool) -> dict:
    from . import blocks
    from .kernels import (
        attention,
        attention_backward,
        convolution,
        decode_attention,
        delta,
        delta_backward,
        dequant,
        dropout,
        small_gradients,
        fp8,
        gates,
        gemv,
        glu,
        glu_backward,
        glu_gradients,
        loss,
        low,
        low_gradients,
        norm,
        optimizer,
        place,
        qk_norm_rope,
        qk_norm_rope_backward,
        qk_norm_rope_store,
        slots,
        whole,
    )

    def dequantize(raw, name, out):
        (dequant.dequantize if name in dequant.SUPPORTED else blocks.dequantize_into)(raw, name, out)

    def gather(raw, ids, name, out, scale):
        (dequant.gather if name in dequant.SUPPORTED else blocks.gather_into)(raw, ids, name, out, scale)

    return {
        "small_rows": glu_backward.SMALL,
        "most": glu_gradients.MOST,
        "dequantize": dequantize,
        "gather": gather,
        "gemv": gemv.gemv,
        "gemv_types": gemv.SUPPORTED,
        "rms_norm": norm.rms_norm,
        "rms_norm_backward": norm.rms_norm_backward,
        "qk_norm_rope": qk_norm_rope.qk_norm_rope,
        "qk_norm_rope_backward": qk_norm_rope_backward.qk_norm_rope_backward,
        "qk_norm_rope_store": qk_norm_rope_store.qk_norm_rope_store,
        "glu": glu.glu,
        "glu_backward": glu.glu_backward,
        "glu_gradients": glu_gradients.glu_gradients,
        "low": low.low,
        "low_fp8": low.low_fp8,
        "gradients": low_gradients.gradients,
        "quantize": fp8.quantize,
        "turn": fp8.turn,
        "gradients_of_groups": small_gradients.gradients_of_groups,
        "place": place.place,
        "loss_rows": loss.loss_rows,
        "square_sum": optimizer.square_sum,
        "adamw": optimizer.adamw,
        "whole_adamw": whole.whole_adamw,
        "dropout": dropout.dropout,
        "attend_rows": decode_attention.attend_cache,
        "convolve": convolution.convolve,
        "convolve_backward": convolution.convolve_backward,
        "gated": gates.gated,
        "gated_backward": gates.gated_backward,
        "spread": slots.spread,
        "collect": slots.collect,
        "weigh_backward": slots.weigh_backward,
        "weighed": slots.weighed,
        "weighed_backward": slots.weighed_backward,
        "delta": delta.delta,
        "delta_backward": delta_backward.delta_backward,
        "attention": functools.partial(attention.attention, tf32=tf32),
        "attention_backward": functools.partial(attention_backward.attention_backward, tf32=tf32),
    }
