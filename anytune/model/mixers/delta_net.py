"""A gated delta net: a convolution over queries, keys and values, then a state that tokens decay, read and write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anytune.engine.base import DeltaHeads
from anytune.model.part import Norm, Part

if TYPE_CHECKING:
    from anytune.model.build import LayerWeights
    from anytune.model.config import Config

Array = Any


@dataclass
class DeltaNet(Part):
    """heads: its shape; convolution [width, kernel]; decay, bias [values]: of the steps; result: the norm of each
    head's result. convolution_gradient, decay_gradient, bias_gradient: what theirs are added to; None: frozen."""

    heads: DeltaHeads
    convolution: Array
    decay: Array
    bias: Array
    result: Norm
    convolution_gradient: Array | None
    decay_gradient: Array | None
    bias_gradient: Array | None

    READS = ("attn_qkv", "attn_gate", "ssm_beta", "ssm_alpha")
    WRITES = ("ssm_out",)
    NEEDS = "delta"
    REWINDS = False

    @classmethod
    def tensors(cls, c: Config, layer: int) -> dict[str, tuple[int, ...]]:
        h = c.delta
        return {
            "attn_norm.weight": (c.width,),
            "attn_qkv.weight": (h.width, c.width),
            "attn_gate.weight": (h.inner, c.width),
            "ssm_conv1d.weight": (h.width, c.kernel),
            "ssm_beta.weight": (h.values, c.width),
            "ssm_alpha.weight": (h.values, c.width),
            "ssm_a": (h.values,),
            "ssm_dt.bias": (h.values,),
            "ssm_norm.weight": (h.value_size,),
            "ssm_out.weight": (c.width, h.inner),
        }

    @classmethod
    def of(cls, w: LayerWeights, c: Config) -> DeltaNet:
        return cls(
            **cls.around(w, c, "attn_norm"),
            heads=c.delta,
            convolution=w.vector("ssm_conv1d.weight"),
            decay=w.vector("ssm_a"),
            bias=w.vector("ssm_dt.bias"),
            result=w.norm("ssm_norm"),
            convolution_gradient=w.gradient("ssm_conv1d.weight"),
            decay_gradient=w.gradient("ssm_a"),
            bias_gradient=w.gradient("ssm_dt.bias"),
        )

    @property
    def _into(self) -> tuple:
        return self.decay_gradient, self.bias_gradient, self.result.gradient

    @property
    def trains_reads(self) -> bool:
        return super().trains_reads or any(g is not None for g in (*self._into, self.convolution_gradient))

    @property
    def _weights(self) -> tuple:
        return self.decay, self.bias, self.result.gain

    def forward(self, e, x, positions, attended=None):
        """x: [T, d] -> (x + the net's result, what the backward needs)."""
        qkv, gate, beta, alpha = self.read(e, x)
        y, kept = e.delta(e.convolve(qkv, self.convolution, True), beta, alpha, self._weights, self.heads)
        (out,) = e.linear(e.gated(y, gate, "silu"), self.writes)
        return self.add(e, x, out), (x, qkv, gate, beta, alpha, y, kept, self.kept(out))

    def attended(self, saved) -> None:
        """A second forward runs all of it again."""

    def backward(self, e, dout, saved, positions, below, need_dx: bool):
        """As in attention.py."""
        x, qkv, gate, beta, alpha, y, kept, out = saved
        dout_part = self.add_backward(e, dout, out)
        needed = need_dx or self.trains_reads
        dy = e.linear_backward((dout_part,), e.gated(y, gate, "silu"), self.writes, needed)
        del dout_part, out
        if not needed:
            return None
        dy, dgate = e.gated_backward(dy, y, gate, "silu")
        del gate, y
        inner = e.convolve(qkv, self.convolution, True)
        dinner, dbeta, dalpha = e.delta_backward(dy, inner, beta, alpha, self._weights, self.heads, kept, self._into)
        del dy, inner, beta, alpha, kept
        dqkv = e.convolve_backward(dinner, qkv, self.convolution, True, self.convolution_gradient)
        del dinner, qkv
        return self.read_backward(e, (dqkv, dgate, dbeta, dalpha), x, dout, below, need_dx)

    def state(self, e, slots: int, context: int) -> tuple:
        """For decoding: the last inputs of the convolution, and what the heads remember."""
        h, before = self.heads, self.convolution.shape[1] - 1
        return e.state(slots, before * h.width), e.state(slots, h.values * h.key_size * h.value_size)
