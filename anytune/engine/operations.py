"""The operations of every model: the stream of tokens, products, attention, the loss. See base.py for the terms."""

from __future__ import annotations

from typing import Protocol

from .shapes import Array, Heads, Number


class Operations(Protocol):
    """Forward and backward of each."""

    # -- the stream
    def embed(self, ids: Array, table, scale: float) -> Array:
        """ids int32 [T] -> scale * table[ids], [T, d]."""

    def gather(self, x: Array, rows: Array) -> Array:
        """x[rows]: [n, d]."""

    def scatter(self, y: Array, rows: Array, tokens: int) -> Array:
        """The backward of gather: [tokens, d], zero but for y in `rows`."""

    def add(self, x: Array, y: Array) -> Array:
        """x + y; y is given up."""

    def split(self, x: Array, *widths: int) -> tuple[Array, ...]:
        """x's columns in parts, which may share its memory."""

    def join(self, parts: tuple[Array, ...]) -> Array:
        """Parts side by side, which may share the memory of those that lie so already."""

    def scale(self, x: Array, factor: float | Array) -> Array:
        """x * factor, which is a number, or one for each row: [T, 1]."""

    def rms_norm(self, x: Array, gain: Array, eps: float) -> Array:
        """x / sqrt(mean x² + eps) * gain over each row."""

    def rms_norm_backward(self, dy, x, gain, eps: float, residual=None) -> Array:
        """dx, plus `residual` if given."""

    def gain_gradient(self, dy, x, eps: float, into) -> None:
        """Add the gradient of rms_norm's gain to `into` [n]; rows [T, h n] are h heads of width n."""

    def embed_backward(self, dx, ids: Array, scale: float, into) -> None:
        """into[ids] += scale * dx: the backward of embed for a trained table's gradient [vocab, d]."""

    def qk_norm_rope(self, q, k, gains, eps: float, table, positions, heads: Heads, neox: bool) -> tuple[Array, Array]:
        """Queries and keys ready for attention: RMSNorm over each head (gains (q, k), or None: none), then each head
        turned by its token's angle; table (cos, sin) [context, pairs]. Without gains q and k are given up."""

    def qk_norm_rope_backward(
        self, dq, dk, q, k, gains, eps: float, table, positions, heads: Heads, neox: bool, into=(None, None)
    ) -> tuple[Array, Array]:
        """(dq, dk) before qk_norm_rope(), whose q and k matter with gains only; the given dq and dk are given up.
        into: what the gradients of the gains are added to."""

    def head_norm(self, x, gain, eps: float, heads: int, still, positions) -> Array:
        """rms_norm of each of `heads` heads of x; still: a table of angles that turns nothing. composed.py has it in
        terms of qk_norm_rope()."""

    def head_norm_backward(self, dy, x, gain, eps: float, heads: int, still, positions) -> Array:
        """dx; dy is given up."""

    def glu(self, gate, up, activation: str) -> Array:
        """act(gate) * up; activation silu or gelu (tanh form)."""

    def glu_backward(self, dy, gate, up, activation: str) -> tuple[Array, Array]:
        """(dgate, dup)."""

    # -- products
    def linear(self, x, group) -> tuple[Array, ...]:
        """x [T, in] -> for each linear W x + bias + s B A x."""

    def linear_backward(self, dys: tuple, x, group, need_dx: bool = True) -> Array | None:
        """dx [T, in] (None if not needed); adds the gradients of the group's low-rank pairs,
        trained matrices and biases."""

    # -- products of what is cheap to make: their backwards make it again. composed.py has them in terms of the others
    def norm_linear(self, x, gain, eps: float, group) -> tuple[Array, ...]:
        """linear(rms_norm(x))."""

    def norm_linear_backward(
        self, dys: tuple, x, gain, eps: float, group, residual, need_dx=True, then=None, into=None
    ) -> Array | None:
        """dx [T, d] of norm_linear, plus residual; adds the group's gradients, and the gain's to `into` if given. then:
        the group whose backward reads the result next, a hint."""

    def glu_linear(self, gate, up, activation: str, group) -> tuple[Array, ...]:
        """linear(glu(gate, up)); the group is one linear."""

    def glu_linear_backward(
        self, dy, gate, up, activation: str, group, then, need_dx=True
    ) -> tuple[Array, Array] | None:
        """(dgate, dup) of glu_linear, whose gate and up are given up; adds the group's gradients. then: as above."""

    def attention(self, q, k, v, heads: Heads) -> tuple[Array, Array]:
        """Causal attention within each example -> (o, log-sum-exp of each row for the backward)."""

    def sink(self, out, lse, sinks, heads: Heads) -> tuple[Array, Array]:
        """What attention() would give if each query head also saw a score of sinks [n_heads] with no value behind it;
        its backward is attention_backward() of these results."""

    def attention_with(self, q, k, v, heads: Heads, sinks) -> tuple[Array, Array]:
        """attention(), then sink(). composed.py has it."""

    def sink_gradient(self, dout, out, lse, sinks, heads: Heads, into) -> None:
        """Add the gradient of sinks to `into` [n_heads]; out, lse: sink()'s, dout: of that out."""

    def attention_backward(self, dout, q, k, v, out, lse, heads: Heads) -> tuple[Array, Array, Array]:
        """(dq, dk, dv)."""

    def cross_entropy(self, h, head, targets, scale, gradient: bool) -> tuple[Number, Array | None]:
        """h [M, d], targets int32 [M] -> (sum of losses in nats, scale * its gradient [M, d] or None). With the
        gradient those of the head's pair and matrix are added, where they are trained."""

    # -- what waits for its backward
    def offload(self, x: Array):
        """Put away a layer's input -> a ticket for prefetch(). Last in, first out; an engine may just keep it."""

    def prefetch(self, ticket) -> Array:
        """What offload() put away."""
