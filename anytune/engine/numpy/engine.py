"""The NumPy engine: the reference of all others, and the engine of the smallest devices."""

from __future__ import annotations

import functools
import time

import numpy as np

from anytune.engine.algebra import HostAlgebra
from anytune.engine.base import Heads, Stream
from anytune.engine.composed import Composed
from anytune.engine.loads import Loads
from anytune.gguf import dequantize
from anytune.memory import peak_bytes

from . import layout as _layout
from . import rows as _rows
from . import attention as _attention
from . import convolution as _convolution
from . import decode as _decode
from . import delta as _delta
from . import experts as _experts
from . import gates as _gates
from . import gradients as _gradients
from . import latent as _latent
from . import linear as _linear
from . import loss as _loss
from . import optimizers as _optimizers
from . import routing as _routing
from . import plain
from .budget import NumpyBudget
from .buffers import Buffers
from .linear import Group, LoraPair
from .sizes import Sizes
from .trained import Trained
from .weights import ExpertWeights, Weight

FORGET = 64 << 20  # bytes of pooled buffers of passing sizes


class NumpyEngine(Buffers, Composed):
    """float32 on CPU threads. base.py says what the operations mean.

    threads: workers to split operations between. compiled: use the Numba kernels (None: if it is installed).
    """

    name = "numpy"
    steps_in_flight, tolerance, decode_rows = 0, 1e-4, 8
    offers = frozenset({"delta", "convolution", "experts", "expert scales", "sinks", "latent"})
    SMALL = 1 << 20  # multiply-adds that one core does in about the time that waking another takes

    def __init__(self, threads: int = 1, compiled: bool | None = None):
        from anytune.engine.probe import one_blas_thread

        one_blas_thread()
        super().__init__(threads)
        self.kernels, self.dequantizers = _kernels(compiled)
        self.sizes = Sizes()
        self.training = False  # dropout acts
        self.dropout_key = (0, 0, 0)
        self._tasks: dict[Heads, list] = {}
        self._starts = np.zeros(2, np.int32)
        self.loads = Loads()

    @property
    def compiled(self) -> bool:
        return self.kernels is not plain

    @functools.cached_property
    def algebra(self) -> HostAlgebra:
        def spread(work, pieces: int) -> None:
            self.workers.run([lambda _, piece=piece: work(piece) for piece in range(pieces)])

        return HostAlgebra(spread)

    # ---- steps ------------------------------------------------------------------------------------------

    def begin(self, starts: np.ndarray, capacity: int, key: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Announce a packed stream: example boundaries (int32 [n+1]), the most tokens that any stream will
        have, and (seed, step, micro-batch) for dropout."""
        # Without a capacity (generation) sizes follow each prompt's length and would pile up.
        if capacity != self.capacity or (not capacity and self.pool.bytes > FORGET):
            self.pool.clear()
        self.capacity, self._starts, self._tasks, self.dropout_key = capacity, starts, {}, key

    def budget(self, weights, memory: int | None) -> NumpyBudget:
        return NumpyBudget(self, weights, memory)

    def replay(self, kind: str, body, stream: Stream) -> float:
        self.begin(stream.starts, stream.capacity, stream.key)
        return body(stream)

    def peak(self) -> int:
        return peak_bytes()

    def explain(self, error: Exception, estimate: int | None = None) -> None:
        """Nothing here can fail that is not Python's own."""

    def flops_per_second(self) -> float:
        """All workers' matrix products, times the part of that speed which a training step usually reaches."""
        a = np.ones((384, 384), np.float32)
        a @ a
        started = time.perf_counter()
        for _ in range(4):
            a @ a
        return self.workers.count * 0.6 * 4 * 2 * 384**3 / max(time.perf_counter() - started, 1e-9)

    def identity(self) -> dict:
        return {"engine": self.name, "compiled": self.compiled}

    def prepare(self, groups: list, parameters: np.ndarray, gradients: np.ndarray) -> None:
        """Nothing is laid out beforehand: pairs are read where they lie."""

    @property
    def first(self) -> np.ndarray:
        """int32 [T]: where the example of each token of the announced stream begins."""
        return np.repeat(self._starts[:-1], np.diff(self._starts))

    def attention_tasks(self, heads: Heads) -> list:
        """Attention's chains of tasks for the announced stream, made once for all layers of one shape."""
        if heads not in self._tasks:
            self._tasks[heads] = _attention.tasks_of(self._starts, heads, self.sizes.scores, self.sizes.lanes)
        return self._tasks[heads]

    # ---- constants and transfers ------------------------------------------------------------------------

    def weight(self, gguf, name: str, hold: str = "blocks") -> Weight | ExpertWeights:
        kind = ExpertWeights if len(gguf.tensors[name].shape) == 3 else Weight
        return kind(gguf, name, "stream" if hold == "lookup" else hold, self.dequantizers)

    def trained(self, values: np.ndarray, gradient: np.ndarray | None) -> Trained:
        return Trained(values, gradient)

    def constant(self, gguf, name: str) -> np.ndarray:
        """A small tensor (norms, biases) as float32. Read, not mapped: mapped pages would stay in memory."""
        info = gguf.tensors[name]
        raw = np.empty(info.nbytes, np.uint8)
        gguf.read_into(name, 0, info.rows, raw)
        return dequantize(raw.reshape(info.rows, -1), info.type).reshape(info.shape)

    def take_loads(self) -> dict[str, float]:
        return self.loads.take()

    def vector(self, values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values, np.float32)

    def integers(self, values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values, np.int32)

    def zeros(self, size: int) -> np.ndarray:
        return np.zeros(size, np.float32)

    def group(
        self, weights, biases=None, pairs=None, dropout: float = 0.0, number: int = 0, bias_gradients=None
    ) -> Group:
        return Group(
            tuple(weights),
            tuple(biases or (None,) * len(weights)),
            tuple(pairs or ()),
            dropout,
            number,
            tuple(bias_gradients or ()),
        )

    def lora_pair(self, a, b, scale, grad_a=None, grad_b=None) -> LoraPair:
        return LoraPair(a, b, float(scale), grad_a, grad_b)

    def host(self, x: np.ndarray) -> np.ndarray:
        return np.array(x)

    def view(self, x: np.ndarray) -> np.ndarray:
        return x

    def load(self, x: np.ndarray, values: np.ndarray) -> None:
        x[...] = values

    # ---- operations -------------------------------------------------------------------------------------

    extend = _layout.extend
    joined = _layout.joined
    embed = _rows.embed
    gather = _rows.gather
    scatter = _rows.scatter
    rms_norm = _rows.rms_norm
    _norm = _rows._norm
    rms_norm_backward = _rows.rms_norm_backward
    _norm_backward = _rows._norm_backward
    qk_norm_rope = _rows.qk_norm_rope
    qk_norm_rope_backward = _rows.qk_norm_rope_backward
    _turn = _rows._turn
    glu = _rows.glu
    glu_backward = _rows.glu_backward
    add = _rows.add
    scale = _rows.scale
    linear = _linear.linear
    linear_backward = _linear.linear_backward
    linear_decode = _decode.linear_decode
    logits = _decode.logits
    attention = _attention.attention
    attention_backward = _attention.attention_backward
    attend_cache = _attention.attend_cache
    sink = _attention.sink
    sink_gradient = _attention.sink_gradient
    cross_entropy = _loss.cross_entropy
    delta = _delta.delta
    delta_backward = _delta.delta_backward
    delta_cached = _delta.delta_cached
    convolve = _convolution.convolve
    convolve_backward = _convolution.convolve_backward
    convolve_cached = _convolution.convolve_cached
    expert_group = _experts.expert_group
    route = _routing.route
    route_backward = _routing.route_backward
    dispatch = _routing.dispatch
    combine = _routing.combine
    weigh = _routing.weigh
    weigh_backward = _routing.weigh_backward
    weigh_bias = _routing.weigh_bias
    weigh_bias_backward = _routing.weigh_bias_backward
    latent_heads = _latent.latent_heads
    latent_heads_backward = _latent.latent_heads_backward
    resize_heads = _latent.resize_heads
    latent_matrix = _latent.latent_matrix
    head_product = _latent.head_product
    clamped_glu = _gates.clamped_glu
    clamped_glu_backward = _gates.clamped_glu_backward
    gate_rows = _gates.gate_rows
    gate_rows_backward = _gates.gate_rows_backward
    expert_linear = _experts.expert_linear
    expert_linear_backward = _experts.expert_linear_backward
    split_heads = _gates.split_heads
    join_heads = _gates.join_heads
    gated = _gates.gated
    gated_backward = _gates.gated_backward
    gain_gradient = _gradients.gain_gradient
    embed_backward = _gradients.embed_backward
    adamw = _optimizers.adamw
    norm = _optimizers.norm
    optimizer_state = _optimizers.optimizer_state
    optimize = _optimizers.optimize

    def dropout_mask(self, group: Group, tokens: int) -> np.ndarray:
        """bool [T, in], True where the input is kept; the same for a group within one micro-batch."""
        seed = np.random.SeedSequence([*(abs(int(k)) for k in self.dropout_key), group.number])
        draw = np.random.Generator(np.random.Philox(seed)).random((tokens, group.in_features), np.float32)
        return draw >= np.float32(group.dropout)

    # ---- generation -------------------------------------------------------------------------------------

    cache = _decode.cache
    state = _decode.state
    places = _decode.places
    store = _decode.store
    decode = _decode.decode

    def offload(self, x):
        return x

    def prefetch(self, ticket):
        return ticket


def _kernels(compiled: bool | None):
    """(elementwise kernels, block kernels or None): Numba's if wanted and installed, else plain NumPy's."""
    if compiled is False:
        return plain, None
    try:
        from anytune.gguf.kernels import KERNELS

        from . import fast

        return fast, KERNELS
    except ImportError:
        if compiled:
            raise
        return plain, None
