"""Pairs of operations that always come together, made of the single ones: for engines that do not fuse them."""

from __future__ import annotations


class Composed:
    """Mixed into an engine. base.py says what the operations mean."""

    keeps_turned = False

    def norm_linear(self, x, gain, eps: float, group):
        return self.linear(self.rms_norm(x, gain, eps), group)

    def norm_linear_backward(self, dys, x, gain, eps: float, group, residual, need_dx: bool = True, then=None,
                             into=None):
        dh = self.linear_backward(dys, self.rms_norm(x, gain, eps), group, need_dx or into is not None)
        if into is not None:
            self.gain_gradient(dh, x, eps, into)
        return self.rms_norm_backward(dh, x, gain, eps, residual) if need_dx else None

    def glu_linear(self, gate, up, activation: str, group):
        return self.linear(self.glu(gate, up, activation), group)

    def glu_linear_backward(self, dy, gate, up, activation: str, group, then, need_dx: bool = True):
        da = self.linear_backward((dy,), self.glu(gate, up, activation), group, need_dx)
        return self.glu_backward(da, gate, up, activation) if need_dx else None
