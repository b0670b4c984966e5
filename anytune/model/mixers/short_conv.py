"""A short convolution: out(c * convolution(b * x)), where b, c and x are the input's three projections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anytune.model.part import Part

if TYPE_CHECKING:
    from anytune.model.build import LayerWeights
    from anytune.model.config import Config


@dataclass
class ShortConv(Part):
    """kernel [d, tokens that it sees]; kernel_gradient: what its gradient is added to; None: it is frozen."""

    kernel: Any
    kernel_gradient: Any | None

    READS = ("shortconv.in_proj",)
    WRITES = ("shortconv.out_proj",)
    NEEDS = "convolution"
    REWINDS = False

    @classmethod
    def tensors(cls, c: Config, layer: int) -> dict[str, tuple[int, ...]]:
        return {
            "attn_norm.weight": (c.width,),
            "shortconv.in_proj.weight": (3 * c.width, c.width),
            "shortconv.conv.weight": (c.width, c.kernel),
            "shortconv.out_proj.weight": (c.width, c.width),
        }

    @classmethod
    def of(cls, w: LayerWeights, c: Config) -> ShortConv:
        return cls(
            **cls.around(w, c, "attn_norm"),
            kernel=w.vector("shortconv.conv.weight"),
            kernel_gradient=w.gradient("shortconv.conv.weight"),
        )

    @property
    def trains_reads(self) -> bool:
        return super().trains_reads or self.kernel_gradient is not None

    def forward(self, e, x, positions, attended=None):
        """x: [T, d] -> (x + the part's result, what the backward needs)."""
        (all_three,) = self.read(e, x)
        b, c, z = e.split(all_three, *[x.shape[1]] * 3)
        y = e.convolve(e.gated(b, z, "none"), self.kernel, False)
        (out,) = e.linear(e.gated(y, c, "none"), self.writes)
        return self.add(e, x, out), (x, b, c, z, y, self.kept(out))

    def attended(self, saved) -> None:
        """A second forward runs all of it again."""

    def backward(self, e, dout, saved, positions, below, need_dx: bool):
        """As in attention.py."""
        x, b, c, z, y, out = saved
        dout_part = self.add_backward(e, dout, out)
        needed = need_dx or self.trains_reads
        dy = e.linear_backward((dout_part,), e.gated(y, c, "none"), self.writes, needed)
        if not needed:
            return None
        dy, dc = e.gated_backward(dy, y, c, "none")
        dbz = e.convolve_backward(dy, e.gated(b, z, "none"), self.kernel, False, self.kernel_gradient)
        db, dz = e.gated_backward(dbz, b, z, "none")
        return self.read_backward(e, (e.join((db, dc, dz)),), x, dout, below, need_dx)

    def state(self, e, slots: int, context: int) -> tuple:
        """For decoding: the last inputs of the convolution."""
        return (e.state(slots, (self.kernel.shape[1] - 1) * self.kernel.shape[0]),)
