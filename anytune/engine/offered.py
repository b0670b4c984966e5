"""Operations that some models need and some engines have: the gated delta net, and mixtures of experts."""

from __future__ import annotations

from typing import Any, Protocol

from .shapes import Array, DeltaHeads, LatentHeads, Router


class Offered(Protocol):
    """An engine says in `offers` which of these it has: "delta", "latent", "experts"."""

    # -- the gated delta net, and what comes with it. Engines say in `offers` which of these they have
    def delta(self, x, beta, alpha, weights, heads: DeltaHeads) -> tuple[Array, Any]:
        """The gated delta net within each example (numpy/chunk.py has the recurrence), each head's result through an
        RMSNorm -> ([T, inner], what the backward needs).

        x [T, width]: queries, keys and values side by side, the first two of which are brought to length 1; beta, alpha
        [T, values]: write strengths before their sigmoid, and steps before bias and softplus; weights (a [values], bias
        [values], gain [value_size]): the decay's logarithm is a softplus(alpha + bias).
        """

    def delta_backward(
        self, dy, x, beta, alpha, weights, heads: DeltaHeads, kept, into=(None, None, None)
    ) -> tuple[Array, Array, Array]:
        """(dx, dbeta, dalpha). into: what the gradients of the weights are added to, where they are trained."""

    def delta_cached(self, x, beta, alpha, weights, heads: DeltaHeads, cache, places) -> Array:
        """delta() of new tokens that go on from a state() of values * key_size * value_size numbers."""

    def convolve(self, x, weight, silu: bool) -> Array:
        """A causal convolution of each column for itself, within each example: y[t] = the sum over j of weight[:, j]
        x[t - kernel + 1 + j]; then silu, if it is asked for. x [T, n], weight [n, kernel]."""

    def convolve_backward(self, dy, x, weight, silu: bool, into=None) -> Array:
        """dx; the weight's gradient is added to `into`, where it is trained."""

    def convolve_cached(self, x, weight, silu: bool, cache, places) -> Array:
        """convolve() of new tokens that go on from a state() of (kernel - 1) * n numbers."""

    def split_heads(self, x, heads: int, first: int = 0) -> tuple[Array, Array]:
        """x [T, heads * size] -> the first columns of each head (0: half of them), and the others."""

    def join_heads(self, first, second, heads: int) -> Array:
        """The inverse of split_heads."""

    def gated(self, x, gate, activation: str) -> Array:
        """x * act(gate); activation sigmoid, silu or none."""

    def gated_backward(self, dy, x, gate, activation: str) -> tuple[Array, Array]:
        """(dx, dgate)."""

    def state(self, slots: int, size: int) -> Array:
        """A float32 buffer of `size` numbers for each of `slots` sequences. A sequence at position 0 starts over."""

    # -- latent attention
    def latent_heads(self, q, kv, shared, shape: LatentHeads) -> tuple[Array, Array, Array]:
        """q [T, heads * (nope + rope)], kv [T, heads * (nope + value)], shared [T, rope] -> what qk_norm_rope()
        and attention() take, [T, heads * size]: queries and keys with the columns that turn first, values."""

    def latent_heads_backward(self, dq, dk, dv, shape: LatentHeads) -> tuple[Array, Array, Array]:
        """(dq, dkv, dshared)."""

    def resize_heads(self, x, heads: int, size: int) -> Array:
        """x [T, heads * other size] with each head cut to `size` columns, or zeros behind it: its own backward."""

    def latent_matrix(self, k, v) -> Array:
        """k [heads, rank, nope], v [heads, value, rank] -> the matrix [heads * (nope + value), rank] whose product
        with the latent is kv."""

    def head_product(self, x, matrix, heads: int, low: int, high: int, back: bool) -> Array:
        """For a few rows, without a backward: rows low…high of each of the `heads` equal parts of the matrix (as
        weight() and trained() give it) times that head's columns of x; with `back` their transposes."""

    # -- mixtures of experts. A slot: a token at one of its experts; there are S = used * T, sorted by expert
    def expert_group(
        self, weights, biases=None, pairs=None, dropout: float = 0.0, number: int = 0, bias_gradients=None
    ):
        """As group(), of matrices [experts, out, in], biases [experts, out], and pairs a [experts, r, in],
        b [experts, out, r]."""

    def route(self, scores, bias, router: Router, scales=None) -> Any:
        """scores [T, experts] -> a Routing, which knows the slots and their weights, float32. bias [experts], or None:
        added to the weights for the choice alone; scales [experts], or None ("expert scales"): what those of each
        expert are multiplied with in the end. No token is dropped, whatever its expert gets."""

    def route_backward(self, dweights, routing, into=None) -> Array:
        """The gradient by the scores, [T, experts]; dweights as weigh_backward() gives them; that of the scales is
        added to `into`, where they are trained."""

    def dispatch(self, x, routing) -> Array:
        """x [T, n] -> each slot's token, [S, n]: the backward of combine()."""

    def combine(self, y, routing, beside: tuple = ()) -> Array:
        """y [S, n] -> each token's sum over its slots, [T, n]: the backward of dispatch(); plus the arrays [T, n] of
        `beside`."""

    def weigh(self, x, routing) -> Array:
        """x [S, n], each row times its slot's weight."""

    def weigh_backward(self, dy, x, routing) -> tuple[Array, Array]:
        """(dx, the gradient by the weights); dy is given up."""

    def weighed_glu(self, gate, up, activation: str, routing) -> Array:
        """weigh() of glu()."""

    def weighed_glu_backward(self, dy, gate, up, activation: str, routing) -> tuple[tuple[Array, Array], Array]:
        """((dgate, dup), the gradient by the weights); dy is given up."""

    def gate_rows(self, x, gate) -> Array:
        """x [T, n] * sigmoid(gate [T, 1])."""

    def gate_rows_backward(self, dy, x, gate) -> tuple[Array, Array]:
        """(dx, dgate)."""

    def weigh_bias(self, y, bias, routing) -> Array:
        """y [S, n] plus each slot's weight times its expert's row of bias [experts, n]; y is given up."""

    def weigh_bias_backward(self, dy, bias, routing, dweights, into=None) -> Array:
        """dweights of weigh_backward() plus those by the bias; its gradient is added to `into`, where it is trained."""

    def clamped_glu(self, gate, up) -> Array:
        """g sigmoid(1.702 g) (u + 1), g = min(gate, 7), u = up between -7 and 7 (gpt-oss)."""

    def clamped_glu_backward(self, dy, gate, up) -> tuple[Array, Array]:
        """(dgate, dup)."""

    def expert_linear(self, x, group, routing) -> tuple[Array, ...]:
        """linear() of x [S, in], each slot by its expert's matrices. An expert without a token is not touched."""

    def expert_linear_backward(self, dys: tuple, x, group, routing, need_dx: bool = True) -> Array | None:
        """As linear_backward(); x may be None where the group trains nothing."""
