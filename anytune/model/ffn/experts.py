"""A mixture of experts (Shazeer et al. 2017): a router sends each token to a few gated products, whose results it
weighs; beside them perhaps one that all tokens go to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anytune.engine.base import Router
from anytune.model.part import Part

if TYPE_CHECKING:
    from anytune.model.build import LayerWeights
    from anytune.model.config import Config

Array = Any
SHARED = ("ffn_gate_shexp", "ffn_up_shexp"), ("ffn_down_shexp",)


@dataclass
class Shared:
    """The expert of all tokens. gate: a group of one row, by whose sigmoid it is weighed, or None: by 1."""

    reads: Any
    writes: Any
    gate: Any

    @property
    def named(self) -> list[tuple]:
        linears = (self.reads, SHARED[0]), (self.writes, SHARED[1]), (self.gate, ("ffn_gate_inp_shexp",))
        return [(group, names) for group, names in linears if group is not None]

    @property
    def trains(self) -> bool:
        return any(group.trains for group, _ in self.named)

    def forward(self, e, h, activation: str):
        """h [T, d], after the norm -> (result, what the backward needs)."""
        gate, up = e.linear(h, self.reads)
        (y,) = e.glu_linear(gate, up, activation, self.writes)
        if self.gate is None:
            return y, (gate, up, None, None)
        (by,) = e.linear(h, self.gate)
        return e.gate_rows(y, by), (gate, up, y, by)

    def backward(self, e, dy, h, saved, activation: str, need_dx: bool):
        """Parts of the gradient by h."""
        gate, up, y, by = saved
        parts = []
        if by is not None:
            dy, dby = e.gate_rows_backward(dy, y, by)
            parts.append(e.linear_backward((dby,), h, self.gate, need_dx))
        both = e.glu_linear_backward(dy, gate, up, activation, self.writes, None, need_dx or self.reads.trains)
        if both is not None:
            parts.append(e.linear_backward(both, h, self.reads, need_dx))
        return parts


@dataclass
class Experts(Part):
    """router: its scores' group; how: how experts are chosen; bias: for the choice alone, or None. The weights go onto
    what each expert's last product reads, so that results of experts need not be kept for the router's gradient."""

    router: Any
    how: Router
    bias: Array | None
    shared: Shared | None
    activation: str
    last_bias: Array | None = None  # [experts, d], of each expert's last product: weighed like its result
    last_bias_gradient: Array | None = None
    fused: bool = False  # gate and up are one matrix of each expert

    EXPERTS = ("ffn_gate_exps", "ffn_up_exps"), ("ffn_down_exps",)
    FUSED = ("ffn_gate_up_exps",)
    NEEDS = "experts"

    @classmethod
    def tensors(cls, c: Config, layer: int) -> dict[str, tuple[int, ...]]:
        n, d, inner = c.router.experts, c.width, c.expert_hidden
        shapes = {c.arch.ffn_norm: (d,), "ffn_gate_inp": (n, d), "ffn_down_exps": (n, d, inner)}
        shapes |= dict.fromkeys(cls.first(c), (n, inner * (2 if c.fused_experts else 1), d))
        if c.shared_hidden:
            shapes |= {
                "ffn_gate_shexp": (c.shared_hidden, d),
                "ffn_up_shexp": (c.shared_hidden, d),
                "ffn_down_shexp": (d, c.shared_hidden),
            }
            if c.arch.gated_shared:
                shapes["ffn_gate_inp_shexp"] = (d,)
        if c.arch.post_norms:
            shapes["post_ffw_norm"] = (d,)
        found = {f"{name}.weight": shape for name, shape in shapes.items()}
        return found | ({"exp_probs_b.bias": (n,)} if c.choice_bias else {})

    @classmethod
    def first(cls, c: Config) -> tuple[str, ...]:
        """The matrices of each expert's first product."""
        return cls.FUSED if c.fused_experts else cls.EXPERTS[0]

    @classmethod
    def of(cls, w: LayerWeights, c: Config) -> Experts:
        shared = None
        if c.shared_hidden:
            gate = w.group(6, "ffn_gate_inp_shexp") if c.arch.gated_shared else None
            shared = Shared(w.group(4, *SHARED[0]), w.group(5, *SHARED[1]), gate)
        return cls(
            norm=w.norm(c.arch.ffn_norm),
            post=w.norm("post_ffw_norm") if c.arch.post_norms else None,
            eps=c.eps,
            reads=w.group(2, *cls.first(c), experts=True),
            writes=w.group(3, *cls.EXPERTS[1], experts=True, biased=False),
            router=w.group(7, "ffn_gate_inp"),
            how=c.router,
            bias=w.vector("exp_probs_b.bias"),
            shared=shared,
            activation=c.arch.activation,
            last_bias=w.vector("ffn_down_exps.bias"),
            last_bias_gradient=w.gradient("ffn_down_exps.bias"),
            fused=c.fused_experts,
        )

    @classmethod
    def linears(cls, c: Config) -> tuple[tuple[str, ...], ...]:
        return SHARED if c.shared_hidden else ()

    @property
    def products(self) -> tuple:
        """Those that all tokens go through, as those take them who look at products one by one."""
        return tuple(self.shared.named[:2]) if self.shared else ()

    @property
    def named(self) -> tuple:
        first = self.FUSED if self.fused else self.EXPERTS[0]
        linears = (self.router, ("ffn_gate_inp",)), (self.reads, first), (self.writes, self.EXPERTS[1])
        return (*linears, *(self.shared.named if self.shared else ()))

    @property
    def reader(self) -> None:
        """Each slot reads the gradient for itself."""

    @property
    def trains_reads(self) -> bool:
        return super().trains_reads or self.router.trains or bool(self.shared and self.shared.trains)

    def _weighed(self, e, gate, up, routing):
        if self.activation == "clamped":
            return e.weigh(e.clamped_glu(gate, up), routing)
        return e.weighed_glu(gate, up, self.activation, routing)

    def _weighed_backward(self, e, dy, gate, up, routing):
        """((dgate, dup), the gradient by the slots' weights)"""
        if self.activation == "clamped":
            dy, dweights = e.weigh_backward(dy, e.clamped_glu(gate, up), routing)
            return e.clamped_glu_backward(dy, gate, up), dweights
        return e.weighed_glu_backward(dy, gate, up, self.activation, routing)

    def choose(self, e, x, h):
        """The routing of x [T, d], of which h is the norm."""
        (scores,) = e.linear(h, self.router)
        return e.route(scores, self.bias, self.how)

    def choose_backward(self, e, dweights, routing, x, h, residual, into_h: bool, need_dx: bool) -> tuple:
        """(the gradient by h or None, that by x: residual, and what the router adds to it past h)."""
        return e.linear_backward((e.route_backward(dweights, routing),), h, self.router, into_h), residual

    def _first(self, e, h, routing) -> tuple:
        """Gate and up of each slot."""
        parts = e.expert_linear(e.dispatch(h, routing), self.reads, routing)
        return e.split(parts[0], *[parts[0].shape[1] // 2] * 2) if self.fused else parts

    def compute(self, e, x, again: bool = False):
        """As in gated.py."""
        h = e.rms_norm(x, self.norm.gain, self.eps)
        routing = self.choose(e, x, h)
        gate, up = self._first(e, h, routing)
        beside, kept = (None, None) if self.shared is None else self.shared.forward(e, h, self.activation)
        if again and self.post is None:
            return None, (x, routing, gate, up, kept, None)
        (y,) = e.expert_linear(self._weighed(e, gate, up, routing), self.writes, routing)
        if self.last_bias is not None:
            y = e.weigh_bias(y, self.last_bias, routing)
        y = e.combine(y, routing, () if beside is None else (beside,))
        return y, (x, routing, gate, up, kept, self.kept(y))

    def forward(self, e, x, again: bool = False):
        """As in gated.py."""
        y, saved = self.compute(e, x, again)
        return y if y is None else self.add(e, x, y), saved

    def backward(self, e, dout, saved, below, need_dx: bool = True, residual=None):
        """As in gated.py."""
        x, routing, gate, up, kept, y = saved
        dy = self.add_backward(e, dout, y)
        needed = need_dx or self.trains_reads
        dslots = e.dispatch(dy, routing)
        weighed = self._weighed(e, gate, up, routing) if self.writes.trains else None
        dinner = e.expert_linear_backward((dslots,), weighed, self.writes, routing, needed)
        del weighed
        if not needed:
            return None
        both, dweights = self._weighed_backward(e, dinner, gate, up, routing)
        if self.last_bias is not None:
            how = self.last_bias, routing, dweights, self.last_bias_gradient
            dweights = e.weigh_bias_backward(dslots, *how)
        del dslots, dinner, gate, up
        h = e.rms_norm(x, self.norm.gain, self.eps)
        into_h = need_dx or self.norm.trains
        both = (e.join(both),) if self.fused else both
        read = e.dispatch(h, routing) if self.reads.trains else None
        dslots = e.expert_linear_backward(both, read, self.reads, routing, into_h)
        del both, read
        residual = dout if residual is None else residual
        first, residual = self.choose_backward(e, dweights, routing, x, h, residual, into_h, need_dx)
        parts = [] if first is None else [first]
        if self.shared is not None:
            parts += self.shared.backward(e, dy, h, kept, self.activation, into_h)
        if not into_h:
            return None
        dh = e.combine(dslots, routing, tuple(parts))
        if self.norm.trains:
            e.gain_gradient(dh, x, self.eps, self.norm.gradient)
        return e.rms_norm_backward(dh, x, self.norm.gain, self.eps, residual) if need_dx else None
