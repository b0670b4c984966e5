"""The gated product: down(act(gate(x)) * up(x)) (Shazeer 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anytune.model.part import Part

if TYPE_CHECKING:
    from anytune.model.build import LayerWeights
    from anytune.model.config import Config


@dataclass
class Gated(Part):
    """activation: as the engine's glu() names it."""

    activation: str

    READS = ("ffn_gate", "ffn_up")
    WRITES = ("ffn_down",)

    @classmethod
    def tensors(cls, c: Config, layer: int) -> dict[str, tuple[int, ...]]:
        hidden = c.hiddens[layer] if c.hiddens else c.hidden
        shapes = {"ffn_gate": (hidden, c.width), "ffn_up": (hidden, c.width), "ffn_down": (c.width, hidden)}
        if c.arch.pre_norms:
            shapes[c.arch.ffn_norm] = (c.width,)
        if c.arch.post_norms:
            shapes["post_ffw_norm"] = (c.width,)
        return {f"{name}.weight": shape for name, shape in shapes.items()}

    @classmethod
    def of(cls, w: LayerWeights, c: Config, first: int = 2) -> Gated:
        """first: the number of its first group."""
        return cls(**cls.around(w, c, c.arch.ffn_norm, "post_ffw_norm", first), activation=c.arch.activation)

    @property
    def between(self) -> Any:
        """The group whose backward reads the gradients of gate and up as they are."""
        return self.reads

    def write(self, e, gate, up) -> tuple:
        """The last product's result."""
        return e.glu_linear(gate, up, self.activation, self.writes)

    def write_backward(self, e, dy, gate, up, needed: bool):
        """(dgate, dup) of write(), whose gate and up are given up; None if they are not needed."""
        return e.glu_linear_backward(dy, gate, up, self.activation, self.writes, self.between, needed)

    def compute(self, e, x, again: bool = False):
        """The last product's result, None if it is left out, and what the backward needs. As forward()."""
        gate, up = self.read(e, x)
        if again and self.post is None:
            return None, (x, gate, up, None)
        (y,) = self.write(e, gate, up)
        return y, (x, gate, up, self.kept(y))

    def forward(self, e, x, again: bool = False):
        """x: [T, d] -> (x + mlp(x), what the backward needs).

        again: it ran before, and only the latter is wanted: then the last product is left out where nothing reads it.
        """
        y, saved = self.compute(e, x, again)
        return y if y is None else self.add(e, x, y), saved

    def backward(self, e, dout, saved, below, need_dx: bool = True, residual=None):
        """dout: [T, d] -> dx [T, d], or None if nothing below needs it. Adds to the gradients; below: as in mixers;
        residual: what goes past the part, None: dout."""
        x, gate, up, y = saved
        dy = self.add_backward(e, dout, y)
        del y
        needed = need_dx or self.trains_reads
        both = self.write_backward(e, dy, gate, up, needed)
        del dy, gate, up
        if not needed:
            return None
        return self.read_backward(e, both, x, dout if residual is None else residual, below, need_dx)
