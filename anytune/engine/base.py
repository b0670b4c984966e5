"""The operations of an engine: all that a model may ask of a device.

An array is whatever the engine makes it; models only hand it on. Activations are float32 (or the engine's
compute type) of shape [T, n]: T tokens of packed examples, one after another, no batch dimension. What changes
from step to step (ids, positions, example boundaries, rates) goes in as small integer arrays or numbers.
Backwards are written out, each beside its forward; frozen weights get no gradient. Operations that say "given
up" may write their result over that argument.

An engine that passes tests/engine (every operation against float64) can run every model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

Array = Any
Number = Any


@dataclass(frozen=True)
class Heads:
    """Shape of an attention: query heads, key heads, width of a head, window (0: none), scale of scores; cap: scaled
    scores s become cap * tanh(s / cap), unless it is 0."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    window: int
    scale: float
    cap: float = 0.0

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.n_heads // self.n_kv_heads


@dataclass(frozen=True)
class DeltaHeads:
    """Shape of a gated delta net: key heads, value heads (number h reads key head h % keys), their widths, and the eps
    of its norms."""

    keys: int
    values: int
    key_size: int
    value_size: int
    eps: float

    @property
    def repeats(self) -> int:
        """Value heads per key head."""
        return self.values // self.keys

    @property
    def inner(self) -> int:
        """Columns of the values, and of the result."""
        return self.values * self.value_size

    @property
    def width(self) -> int:
        """Columns of queries, keys and values side by side."""
        return 2 * self.keys * self.key_size + self.inner


@dataclass(frozen=True)
class Router:
    """How tokens choose experts: `used` of `experts`, ties going to the lower number.

    kind: of the scores' weights: "softmax" over all, "sigmoid", or "chosen", a softmax over those of the chosen;
    normalized: whether those of the chosen are made to add up to 1; scale: what all are multiplied with.
    """

    experts: int
    used: int
    kind: str = "softmax"
    normalized: bool = True
    scale: float = 1.0


@dataclass(frozen=True)
class Stream:
    """One micro-batch: T tokens of n packed examples, of which M carry loss. Host arrays, or an engine's own.

    ids, positions int32 [T]; starts int32 [n+1], the examples' boundaries (always on the host); rows int32 [M],
    where the loss is; targets int32 [M]; scale: of the gradient, a number or an engine's own; capacity: the most
    tokens that any stream of the run has; key: (seed, step, micro-batch) for dropout.
    """

    ids: Any
    positions: Any
    starts: Any
    rows: Any
    targets: Any
    scale: Any
    capacity: int
    key: tuple[int, int, int] = (0, 0, 0)


class Engine(Protocol):
    """What numpy.NumpyEngine implements, and every other engine must.

    A Number is a float, or something that becomes one with float() once the device is done.
    """

    # -- set by callers
    row_padding: int  # spare columns behind activations, for the low-rank products of linear()
    training: bool  # dropout acts, and what backwards need is kept
    sizes: Any  # of temporary pieces, from a way of its budget(); an engine begins with what is fastest
    process_group: Any  # the processes that train one model together (distributed/process_group.py), or None
    proved: bool | None  # whether known answers were checked, those of training the model's own weights too; None: no

    # -- its own
    name: str
    device: Any  # torch's or WebGPU's; None: the host
    workers: Any  # threads that operations are split between (workers.count; use_threads() changes it), or None
    adapters_only: bool  # a model's own weights cannot be trained
    fp8: bool  # gradients pass frozen weights in 8-bit floats
    has_fp8: bool  # and whether the device could; then fp8_error() says how exact it is
    tolerance: float  # relative error of an operation that its number format explains
    decode_rows: int  # rows up to which a product is bound by reading weights, so that linear_decode() pays
    keeps_turned: bool  # queries and keys after rope are kept for the backward, where they could be made again
    keeps_attended: bool  # what attention gave is kept of layers whose forward runs twice
    steps_in_flight: int  # steps of training that may be asked for before the first one's Numbers are looked at
    offers: frozenset[
        str
    ]  # operations that it has beyond those that every engine must have: "delta", "experts", "sinks"

    def own_answers(self) -> list:
        """Answers (answers.py) to known questions that only this engine has."""

    def enter(self, layer: int) -> None:
        """The operations that follow are of that layer: for engines whose caches are a layer's (model/decoder.py)."""

    # -- memory and transfers
    def begin(self, starts, capacity: int, key: tuple[int, int, int]) -> None:
        """Announce a stream: example boundaries int32 [n+1], the most tokens any stream has, dropout's key."""

    def replay(self, kind: str, body, stream: Stream) -> Number:
        """body(stream on the engine) -> loss, with begin() before it. An engine may record body's first run for a
        kind and repeat it on other data of the same sizes, so body must hold no state of its own."""

    def weight(self, gguf, name: str, hold: str):
        """A frozen matrix [out, in], left in its GGUF blocks. hold: a name that the engine's budget knows, or lookup: a
        table of which a few rows at a time are read."""

    def constant(self, gguf, name: str) -> Array:
        """A small tensor of the file (norms, biases) as float32."""

    def trained(self, values: Array, gradient: Array):
        """A matrix [out, in] that is trained, usable where a weight() is: float32 `values` that change between steps,
        to whose `gradient`, of the same shape, the backwards of its products add."""

    def vector(self, values) -> Array: ...
    def integers(self, values) -> Array: ...
    def zeros(self, size: int) -> Array: ...
    def host(self, x: Array):
        """A float32 NumPy copy."""

    def view(self, x: Array):
        """As host(), but may share the engine's memory: to be read at once, not kept."""

    def settle(self) -> None:
        """Make the gradients that backwards have left for later; replay() does so itself."""

    def take_loads(self) -> dict[str, float]:
        """How evenly routers spread tokens in training since this was last asked (loads.py); {} if none ran."""

    # -- sums over tokens
    algebra: Any  # what adds them up and solves with them, in float64; see algebra.py

    def lift(self, x: Array) -> Any:
        """An activation as a float32 array of `algebra`, which may share the engine's memory: to be used at once."""

    def lower(self, values) -> Array:
        """float32 host values [rows, columns] as an activation."""

    def load(self, x: Array, values) -> None:
        """Write float32 host values of the same shape over x."""

    def group(self, weights, biases=None, pairs=None, dropout: float = 0.0, number: int = 0, bias_gradients=None):
        """Linears that share an input, so that they can be one product. `rank`: columns that their low-rank products
        take, 0 if none has a pair; `trains`: whether a backward adds to any gradient. number tells groups apart
        (dropout); that of the output head is negative. bias_gradients: None for each bias that is frozen. A head's
        attribute cap, 0 at first, may be set: cross_entropy() and logits() then take cap * tanh(y / cap) of results
        y."""

    def prepare(self, groups: list, parameters: Array, gradients: Array) -> None:
        """All groups that will be used, and the flat vectors that their trained pairs and gradients are views of: what
        an engine lays out beforehand it lays out now, and pairs again after each adamw()."""

    def lora_pair(self, a: Array, b: Array, scale: float, grad_a: Array | None, grad_b: Array | None):
        """A low-rank pair a [r, in], b [out, r]; gradients are added to grad_a and grad_b."""

    def release(self) -> None:
        """Give buffers back to the system."""

    def close(self) -> None:
        """Free all that the engine holds of the device, in an order that is safe. An engine is also a context manager
        that ends so."""

    def budget(self, weights, memory: int | None):
        """What can be given up for memory (see budget.py); memory: bytes allowed, None: what is free."""

    def peak(self) -> int:
        """The most bytes so far of the memory that the budget counts."""

    def flops_per_second(self) -> float:
        """What training will reach here, about: a short probe."""

    def explain(self, error: Exception, estimate: int | None = None) -> str | None:
        """A sentence for a failure of the device (out of memory, lost), None for any other error."""

    def identity(self) -> dict:
        """What decides how sums are rounded, besides the machine: JSON-able, with `engine`. Threads do not."""

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

    def attention_backward(self, dout, q, k, v, out, lse, heads: Heads) -> tuple[Array, Array, Array]:
        """(dq, dk, dv)."""

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

    def split_heads(self, x, heads: int) -> tuple[Array, Array]:
        """x [T, heads * 2 size] -> the first and the second half of each head, [T, heads * size]."""

    def join_heads(self, first, second, heads: int) -> Array:
        """The inverse of split_heads."""

    def gated(self, x, gate, activation: str) -> Array:
        """x * act(gate); activation sigmoid or silu."""

    def gated_backward(self, dy, x, gate, activation: str) -> tuple[Array, Array]:
        """(dx, dgate)."""

    def state(self, slots: int, size: int) -> Array:
        """A float32 buffer of `size` numbers for each of `slots` sequences. A sequence at position 0 starts over."""

    # -- mixtures of experts. A slot: a token at one of its experts; there are S = used * T, sorted by expert
    def expert_group(
        self, weights, biases=None, pairs=None, dropout: float = 0.0, number: int = 0, bias_gradients=None
    ):
        """As group(), of matrices [experts, out, in], biases [experts, out], and pairs a [experts, r, in],
        b [experts, out, r]."""

    def route(self, scores, bias, router: Router) -> Any:
        """scores [T, experts] -> a Routing, which knows the slots and their weights, float32. bias [experts], or None:
        added to the weights for the choice alone. No token is dropped, whatever its expert gets."""

    def route_backward(self, dweights, routing) -> Array:
        """The gradient by the scores, [T, experts]; dweights as weigh_backward() gives them."""

    def dispatch(self, x, routing) -> Array:
        """x [T, n] -> each slot's token, [S, n]: the backward of combine()."""

    def combine(self, y, routing, beside: tuple = ()) -> Array:
        """y [S, n] -> each token's sum over its slots, [T, n]: the backward of dispatch(); plus the arrays [T, n] of
        `beside`."""

    def weigh(self, x, routing) -> Array:
        """x [S, n], each row times its slot's weight."""

    def weigh_backward(self, dy, x, routing) -> tuple[Array, Array]:
        """(dx, the gradient by the weights); dy is given up."""

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
        """As linear_backward()."""

    def cross_entropy(self, h, head, targets, scale, gradient: bool) -> tuple[Number, Array | None]:
        """h [M, d], targets int32 [M] -> (sum of losses in nats, scale * its gradient [M, d] or None). With the
        gradient those of the head's pair and matrix are added, where they are trained."""

    # -- generation. A span: (slot, first row, last row, position of the first) of a sequence's new tokens
    def decode(self, body, ids, spans, rows):
        """body(ids, positions, places, rows or None) -> logits, as float32 NumPy [len(rows), vocab] (None without
        rows). ids: new tokens of all spans, end to end; rows: those whose logits are wanted. As replay(): it may be
        recorded."""

    def decode_best(self, body, ids, spans, rows, most: int):
        """decode() -> (ids int64, logits float32) [len(rows), most] of the largest logits, largest first; what is no
        number counts as larger than any. Where the device chooses, no row of logits crosses to the host."""

    def places(self, spans):
        """Spans in the engine's own form, for store() and attend_cache()."""

    def linear_decode(self, x, group) -> tuple[Array, ...]:
        """linear() for a few rows, no backward."""

    def qk_norm_rope_store(
        self, qkv: tuple, gains, eps: float, table, positions, heads: Heads, neox, caches: tuple, places
    ) -> Array:
        """qk_norm_rope() of queries and keys; stores keys and values in the two caches -> the queries."""

    def logits(self, h, head) -> Array:
        """h [n, d] -> float32 [n, vocab]."""

    def cache(self, slots: int, context: int, width: int) -> Array:
        """Room for keys or values of `slots` sequences of up to `context` tokens."""

    def store(self, cache, places, rows: Array) -> None:
        """Write new rows [T, width] at their places."""

    def attend_cache(self, q, keys, values, places, heads: Heads, sinks=None) -> Array:
        """Attention of new tokens against caches that hold theirs already; sinks as in sink(), where engines offer
        "sinks"."""

    # -- what waits for its backward
    def offload(self, x: Array):
        """Put away a layer's input -> a ticket for prefetch(). Last in, first out; an engine may just keep it."""

    def prefetch(self, ticket) -> Array:
        """What offload() put away."""

    # -- optimizer, on flat float32 vectors
    def adamw(
        self,
        p,
        g,
        m,
        v,
        cut: int,
        rates: tuple[float, float],
        step: int,
        beta1: float,
        beta2: float,
        eps: float,
        decay: float,
        max_norm: float,
    ) -> Number:
        """One AdamW step in place, at rates[0] up to `cut` and rates[1] behind it -> the gradients' Euclidean norm.

        Gradients are clipped to max_norm (0: not), used and zeroed. If the norm is not finite nothing changes, now or
        in later steps that were already asked for.
        """

    # -- optimizers of whole weights, a tensor at a time (engine/optimizers.py says what each does)
    def norm(self, gradients: list) -> float:
        """The Euclidean norm of all gradients (flat vectors) together;
        with a process group, of their sums, which they become."""

    def optimizer_state(self, kind: str, shape: tuple[int, ...]) -> dict[str, Array]:
        """What the optimizer `kind` keeps for a tensor of this shape, at its start.
        host(), view() and load() take each."""

    def optimize(self, kind: str, p, g, state: dict[str, Array], shape: tuple[int, ...], rule) -> None:
        """One step of `kind` by `rule` (optimizers.Rule): p and state change in place,
        g (both flat float32) is zeroed."""
