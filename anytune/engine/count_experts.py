"""Mixtures of experts on shapes alone, for the engines that count: a row a slot, whoever the expert is."""

from __future__ import annotations

from types import SimpleNamespace

from .numpy.experts import expert_group


class ExpertShapes:
    """Mixed into a counting engine. Needs array(rows, columns)."""

    expert_group = expert_group

    def route(self, scores, bias, router, scales=None):
        return SimpleNamespace(router=router, tokens=scores.shape[0], slots=scores.shape[0] * router.used)

    def route_backward(self, dweights, routing, into=None):
        return self.array(routing.tokens, routing.router.experts)

    def dispatch(self, x, routing):
        return self._slots(routing, x.shape[1])

    def combine(self, y, routing, beside=()):
        return self.array(routing.tokens, y.shape[1])

    def weigh(self, x, routing):
        return self._slots(routing, x.shape[1])

    def weigh_backward(self, dy, x, routing):
        return dy, None

    def sink(self, out, lse, sinks, heads):
        return self.array(*out.shape), lse

    def sink_gradient(self, dout, out, lse, sinks, heads, into):
        pass

    def weigh_bias(self, y, bias, routing):
        return y

    def weigh_bias_backward(self, dy, bias, routing, dweights, into=None):
        return dweights

    def clamped_glu(self, gate, up):
        return self.glu(gate, up, "silu")

    def clamped_glu_backward(self, dy, gate, up):
        return self.glu_backward(dy, gate, up, "silu")

    def gate_rows(self, x, gate):
        return self.array(*x.shape)

    def gate_rows_backward(self, dy, x, gate):
        return self.array(*x.shape), self.array(*gate.shape)

    def expert_linear(self, x, group, routing):
        self.flops += 2.0 * routing.slots * group.in_features * (group.width + group.rank)
        self._expert_products(group, False, False)
        y = self._slots(routing, group.width, 0)
        return tuple(y.part(w.expert_features) for w in group.weights)

    def expert_linear_backward(self, dys, x, group, routing, need_dx=True):
        self.flops += 2.0 * routing.slots * 2 * group.rank * (group.in_features + group.width)
        self.flops += 2.0 * routing.slots * group.in_features * (group.width if need_dx else 0)
        self._expert_products(group, True, need_dx)
        return self._slots(routing, group.in_features, 0) if need_dx else None

    def _expert_products(self, group, back: bool, need_dx: bool) -> None:
        """What an engine takes for them besides their results."""

    def _slots(self, routing, columns: int, row_padding: int | None = None):
        return self.array(routing.slots, columns, row_padding)
