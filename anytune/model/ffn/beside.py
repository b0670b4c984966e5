"""A layer's own embedding of each token, gated by the residual stream: proj(act(gate(x)) * embedding)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from anytune.model.part import Part, Run

if TYPE_CHECKING:
    from anytune.model.build import LayerWeights
    from anytune.model.config import Config


@dataclass
class Beside(Part):
    """run: has the embeddings of all layers; layer: the number of this one."""

    activation: str
    run: Run
    layer: int

    READS = ("inp_gate",)
    WRITES = ("proj",)

    @classmethod
    def tensors(cls, c: Config, layer: int) -> dict[str, tuple[int, ...]]:
        return {"inp_gate.weight": (c.own, c.width), "proj.weight": (c.width, c.own), "post_norm.weight": (c.width,)}

    @classmethod
    def of(cls, w: LayerWeights, c: Config) -> Beside:
        return cls(
            norm=None,
            post=w.norm("post_norm"),
            eps=c.eps,
            reads=w.group(4, *cls.READS),
            writes=w.group(5, *cls.WRITES),
            activation=c.arch.activation,
            run=w.run,
            layer=w.layer,
        )

    def forward(self, e, x, rows=None):
        """x: [M, d] of the given rows (None: all) -> (x with what is mixed in, what the backward needs)."""
        own = self.run.beside[self.layer]
        own = own if rows is None else e.gather(own, rows)
        (gate,) = self.read(e, x)
        (y,) = e.linear(e.glu(gate, own, self.activation), self.writes)
        return self.add(e, x, y), (x, gate, own, rows, self.kept(y))

    def backward(self, e, dout, saved, below, need_dx: bool = True):
        """As in gated.py; the gradient by the embeddings waits in the run, if it is wanted."""
        x, gate, own, rows, y = saved
        dy = self.add_backward(e, dout, y)
        needed = need_dx or self.trains_reads or self.run.owes
        da = e.linear_backward((dy,), e.glu(gate, own, self.activation), self.writes, needed)
        if not needed:
            return None
        dgate, down = e.glu_backward(da, gate, own, self.activation)
        if self.run.owes:
            tokens = self.run.beside[self.layer].shape[0]
            self.run.owed_beside[self.layer] = e.scale(down, 1.0) if rows is None else e.scatter(down, rows, tokens)
        if not (need_dx or self.trains_reads):
            return None
        return self.read_backward(e, (dgate,), x, dout, below, need_dx)
