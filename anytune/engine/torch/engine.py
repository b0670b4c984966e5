"""The torch engine: base.py's operations on a torch device.
linear.py, loss.py, replay.py, optimizer.py hold the larger ones."""

from __future__ import annotations

import functools
import time

import numpy as np
import torch

from anytune.engine.algebra import HostAlgebra
from anytune.engine.base import Heads
from anytune.engine.composed import Composed

from . import layout as _layout
from . import rows as _rows
from . import convolution as _convolution
from . import decode as _decode
from . import delta as _delta
from . import experts as _experts
from . import fp8
from . import gates as _gates
from . import gradients as _gradients
from . import latent as _latent
from . import linear as _linear
from . import loss as _loss
from . import optimizers as _optimizers
from . import replay as _replay
from . import routing as _routing
from . import sinks as _sinks
from . import slices as _slices
from . import update as _update
from . import vendor
from .algebra import CardAlgebra
from .arrays import own, real
from .attention import WIDEST
from .budget import Budget
from .budget import peak as _budget_peak
from .devices import Device, has_fp8
from .experts import ExpertWeights
from .failures import explain
from .functions import functions
from .offload import Offloader, Ticket
from .pair_gradients import flush
from .sizes import Sizes
from .trained import Trained
from .transfers import Transfers
from .weights import Group, LoraPair, Weight, align

Tensor = torch.Tensor


class TorchEngine(Transfers, Composed):
    """base.py says what the operations mean.

    dtype: of matrix products and of what lies between operations: bfloat16; float16 products keep float32 between
    them (safe for models whose activations pass 65,504); float32. Sums, LoRA parameters, gradients, moments: float32.
    row_padding: spare columns behind every activation, where low-rank products ride (see linear.py).
    """

    decode_rows = 64  # rows up to which a product dequantizes weights in registers
    offers = frozenset({"delta", "convolution", "experts", "expert scales", "sinks", "latent"})

    def __init__(self, where: Device, tf32: bool = False):
        self.where, self.device, self.dtype = where, where.device, where.dtype
        self.name = where.kind
        self.act = torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32
        self.tolerance = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(self.dtype, 5e-3 if tf32 else 1e-4)
        self.f = functions(where.triton, tf32)
        self.row_padding, self.training = 0, False
        self.sizes = Sizes()
        self.starts = np.zeros(2, np.int32)  # of the stream under way, on the host
        self.whole = False  # whether that is one example
        self.first = self.end = self.key = None  # of each token's example, on the device; dropout's key
        self.gradients: Tensor | None = None  # flat, that trained pairs' gradients are views of
        self.scratch: Tensor | None = None  # the matrix of a group that is not held dense
        self.fp8 = where.fp8  # input gradients pass frozen weights in fp8; see fp8.py
        self.scratch_fp8: Tensor | None = None
        self.slices: _slices.Slices | None = None  # their parts, where they do
        self.offloader = Offloader(self.device)
        self.pending: list[tuple] = []  # operands of gradients that are made together; see linear.py
        self.recorder = _replay.Recorder(self)
        self.updater = _update.Updater(self)
        self.tokens = _decode.TokenGraphs(self)
        self.grouped = _experts.can_group(self)  # all experts' products as one
        self.loads: Tensor | None = None  # of routers: how often they ran, the sums of peaks and of idle shares
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = tf32
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False

    @property
    def compiled(self) -> bool:
        """Whether Triton's kernels run."""
        return self.where.triton

    @property
    def steps_in_flight(self) -> int:
        return int(self.graphs)

    @property
    def graphs(self) -> bool:
        """Whether a step can be recorded: experts that are taken one by one ask the host which have tokens."""
        wide = self.widest > WIDEST  # then attention is plain torch's, which reads boundaries on the host
        return self.where.graphs and not wide and not (self.loads is not None and not self.grouped)

    # ---- memory and transfers ---------------------------------------------------------------------------

    def budget(self, weights, memory: int | None) -> Budget:
        return Budget(self, weights, memory)

    def begin(self, starts, capacity: int, key=(0, 0, 0)) -> None:
        starts = np.asarray(starts, np.int32)
        lengths = np.diff(starts)
        self.starts, self.whole = starts, len(starts) == 2
        self.first = self.integers(np.repeat(starts[:-1], lengths))
        self.end = self.integers(np.repeat(starts[1:], lengths))
        self.key = self.integers(np.array(key, np.int64).astype(np.int32))

    def array(self, rows: int, columns: int, row_padding: int | None = None) -> Tensor:
        """[rows, columns], content undefined, with `row_padding` columns behind, in rows of whole cache lines."""
        stride = align(columns + (self.row_padding if row_padding is None else row_padding))
        return torch.empty((rows, stride), dtype=self.act, device=self.device)[:, :columns]

    def release(self) -> None:
        self.scratch = self.scratch_fp8 = None
        self.recorder.clear()
        self.tokens.clear()
        self.offloader.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Free graphs before their pool, then what they worked on. The engine is of no use from then on."""
        self.recorder.close()
        self.release()
        self.gradients = self.first = self.end = self.key = None
        self.updater = _update.Updater(self)

    def weight(self, gguf, name: str, hold: str = "blocks") -> Weight:
        kind = ExpertWeights if len(gguf.tensors[name].shape) == 3 else Weight
        return kind(self, gguf, name, "blocks" if hold == "lookup" else hold)

    def trained(self, values: Tensor, gradient: Tensor | None) -> Trained:
        return Trained(values, gradient)

    @functools.cached_property
    def algebra(self) -> HostAlgebra | CardAlgebra:
        return HostAlgebra() if self.device.type == "mps" else CardAlgebra(self.device)  # mps has no float64

    def settle(self) -> None:
        flush(self)

    def group(
        self, weights, biases=None, pairs=None, dropout: float = 0.0, number: int = 0, bias_gradients=None
    ) -> Group:
        return Group(weights, biases, pairs, dropout, number, bias_gradients)

    def lora_pair(self, a, b, scale, grad_a=None, grad_b=None) -> LoraPair:
        return LoraPair(a, b, float(scale), grad_a, grad_b)

    def dequantize(self, raw: Tensor, name: str, out: Tensor) -> None:
        """uint8 [rows, row_bytes] -> out [rows, n]."""
        self.f.dequantize(raw, name, out)

    def lookup(self, raw: Tensor, ids: Tensor, name: str, out: Tensor, scale: float) -> None:
        self.f.gather(raw, ids, name, out, scale)

    def peak(self) -> int:
        return _budget_peak(self)

    def explain(self, error: Exception, estimate: int | None = None) -> str | None:
        return explain(self, error, estimate)

    def flops_per_second(self) -> float:
        """Of one large product, times the part of that speed which a training step usually reaches."""
        size = 4096 if self.device.type != "cpu" else 384
        a = torch.randn((size, size), device=self.device).to(self.dtype)
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            float((a @ a)[0, 0])  # waits for the device
            times.append(time.perf_counter() - begin)
        return 0.6 * 2 * size**3 / min(times)

    def identity(self) -> dict:
        return {
            "engine": self.name,
            "dtype": str(self.dtype).removeprefix("torch."),
            "compiled": self.compiled,
            **({"gradients": "fp8"} if self.fp8 else {}),
        }

    @property
    def has_fp8(self) -> bool:
        return has_fp8(self.device)

    eight = staticmethod(fp8.Eight)

    def fp8_error(self) -> float:
        return fp8.check(self)

    @property
    def keeps_turned(self) -> bool:
        return self.sizes.turned

    @property
    def keeps_attended(self) -> bool:
        return self.sizes.attended

    # ---- operations -------------------------------------------------------------------------------------

    extend = _layout.extend
    joined = _layout.joined
    embed = _rows.embed
    gather = _rows.gather
    scatter = _rows.scatter
    add = _rows.add
    scale = _rows.scale
    rms_norm = _rows.rms_norm
    rms_norm_backward = _rows.rms_norm_backward
    qk_norm_rope = _rows.qk_norm_rope
    qk_norm_rope_backward = _rows.qk_norm_rope_backward
    glu = _rows.glu
    _riding = _rows._riding
    glu_backward = _rows.glu_backward
    prepare = _linear.prepare
    linear = _linear.linear
    linear_backward = _linear.linear_backward
    norm_linear = _linear.norm_linear
    norm_linear_backward = _linear.norm_linear_backward
    glu_linear = _linear.glu_linear
    glu_linear_backward = _linear.glu_linear_backward
    linear_decode = _decode.linear_decode
    qk_norm_rope_store = _decode.qk_norm_rope_store
    logits = _decode.logits
    cache = _decode.cache
    places = _decode.places
    store = _decode.store
    attend_cache = _decode.attend_cache
    delta = _delta.delta
    delta_backward = _delta.delta_backward
    delta_cached = _delta.delta_cached
    convolve = _convolution.convolve
    convolve_backward = _convolution.convolve_backward
    convolve_cached = _convolution.convolve_cached
    expert_group = _experts.expert_group
    take_loads = _routing.take_loads
    route = _routing.route
    route_backward = _routing.route_backward
    dispatch = _routing.dispatch
    combine = _routing.combine
    weigh = _routing.weigh
    weigh_backward = _routing.weigh_backward
    weighed_glu = _routing.weighed_glu
    weighed_glu_backward = _routing.weighed_glu_backward
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
    state = _convolution.state
    sink = _sinks.sink
    sink_gradient = _sinks.sink_gradient
    cross_entropy = _loss.cross_entropy
    gain_gradient = _gradients.gain_gradient
    embed_backward = _gradients.embed_backward
    norm = _optimizers.norm
    optimizer_state = _optimizers.optimizer_state
    optimize = _optimizers.optimize

    def decode(self, body, ids, spans, rows):
        made = self.tokens.run(body, ids, spans, rows, 0)
        return None if made is None else self.tokens.fetch(made)

    def decode_best(self, body, ids, spans, rows, most: int):
        made = self.tokens.run(body, ids, spans, rows, most)
        return None if made is None else _decode.unpacked(self.tokens.fetch(made))

    def replay(self, kind: str, body, stream):
        return self.recorder.run(kind, body, stream)

    def adamw(self, *args):
        return self.updater.adamw(*args)

    def offload(self, x):
        return self.offloader.offload(real(x)) if self.sizes.offload and self.where.offloads else x

    def prefetch(self, ticket):
        return own(self.offloader.prefetch(ticket)) if isinstance(ticket, Ticket) else ticket

    def attention(self, q, k, v, heads: Heads):
        out = own(self.array(q.shape[0], heads.n_heads * heads.head_dim))
        if self.compiled and vendor.suits(q, heads, self.whole):
            return out, vendor.attention(q, k, v, heads, out)
        return out, self.f.attention(q, k, v, self.first, self.end, self.starts, heads, out)

    def attention_backward(self, dout, q, k, v, out, lse, heads: Heads):
        wide, narrow = heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim
        both = self.array(q.shape[0], wide + 2 * narrow)
        dq, dk, dv = both[:, :wide], both[:, wide : wide + narrow], own(both[:, wide + narrow :])
        self.f.attention_backward(dout, q, k, v, out, lse, self.first, self.end, self.starts, heads, dq, dk, dv)
        return dq, dk, dv
