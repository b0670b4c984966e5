"""A gated product and experts that read the same stream, each between norms of its own; their sum is normed and added.

The router reads the stream through a norm of its own, and each expert has a scale of what it gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anytune.model.part import Norm, Part, norm_backward

from .experts import Experts
from .gated import Gated

if TYPE_CHECKING:
    from anytune.model.build import LayerWeights
    from anytune.model.config import Config


@dataclass
class ScaledExperts(Experts):
    """router_norm: what the router reads through; scales [experts], or None: what their weights are multiplied with."""

    router_norm: Norm | None = None
    scales: Any = None
    scales_gradient: Any = None

    NEEDS = "expert scales"

    @classmethod
    def of(cls, w: LayerWeights, c: Config) -> ScaledExperts:
        made = super().of(w, c)
        made.norm, made.post = w.norm("pre_ffw_norm_2"), w.norm("post_ffw_norm_2")
        made.router_norm = Norm(w.vector("ffn_gate_inp.scale"), w.gradient("ffn_gate_inp.scale"))
        made.scales, made.scales_gradient = w.vector("ffn_down_exps.scale"), w.gradient("ffn_down_exps.scale")
        return made

    @property
    def trains_reads(self) -> bool:
        return super().trains_reads or self.router_norm.trains or self.scales_gradient is not None

    def choose(self, e, x, h):
        """Scores are divided by sqrt(d)."""
        (scores,) = e.linear(e.rms_norm(x, self.router_norm.gain, self.eps), self.router)
        return e.route(e.scale(scores, x.shape[1] ** -0.5), None, self.how, self.scales)

    def choose_backward(self, e, dweights, routing, x, h, residual, into_h: bool, need_dx: bool) -> tuple:
        """As in experts.py: nothing reaches h."""
        dscores = e.scale(e.route_backward(dweights, routing, self.scales_gradient), x.shape[1] ** -0.5)
        needed, seen = need_dx or self.router_norm.trains, e.rms_norm(x, self.router_norm.gain, self.eps)
        dseen = e.linear_backward((dscores,), seen, self.router, needed)
        if not needed:
            return None, residual
        return None, norm_backward(e, dseen, x, self.router_norm, self.eps, residual)


@dataclass
class DenseBesideExperts(Part):
    """dense, experts: its halves. norm, reads and writes are theirs."""

    dense: Gated
    experts: ScaledExperts

    READS, WRITES, NEEDS = Gated.READS, Gated.WRITES, ScaledExperts.NEEDS

    @classmethod
    def tensors(cls, c: Config, layer: int) -> dict[str, tuple[int, ...]]:
        norms = ("pre_ffw_norm_2.weight", "post_ffw_norm_1.weight", "post_ffw_norm_2.weight", "ffn_gate_inp.scale")
        return Experts.tensors(c, layer) | Gated.tensors(c, layer) | dict.fromkeys(norms, (c.width,))

    @classmethod
    def optional(cls, c: Config) -> dict[str, tuple[int, ...]]:
        return {"ffn_down_exps.scale": (c.router.experts,)}

    @classmethod
    def of(cls, w: LayerWeights, c: Config) -> DenseBesideExperts:
        dense = Gated.of(w, c, 8)
        post, dense.post = dense.post, w.norm("post_ffw_norm_1")
        return cls(None, post, c.eps, None, None, dense, ScaledExperts.of(w, c))

    @property
    def products(self) -> tuple:
        return self.dense.products

    @property
    def named(self) -> tuple:
        return self.dense.named + self.experts.named

    @property
    def trains_reads(self) -> bool:
        return self.dense.trains or self.experts.trains

    @property
    def trains(self) -> bool:
        return self.trains_reads or self.post.trains

    def forward(self, e, x, again: bool = False):
        """As in gated.py."""
        dense, first = self.dense.compute(e, x)
        y, second = self.experts.compute(e, x)
        y = e.scale(e.add(self.dense.posted(e, dense), self.experts.posted(e, y)), 1.0)
        return self.add(e, x, y), (first, second, y)

    def backward(self, e, dout, saved, below, need_dx: bool = True):
        """As in gated.py."""
        first, second, y = saved
        dy = self.add_backward(e, dout, y)
        del y
        past = self.dense.backward(e, dy, first, None, need_dx, dout)
        return self.experts.backward(e, dy, second, below, need_dx, past)
