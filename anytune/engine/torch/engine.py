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

from . import convolution as _convolution
from . import decode as _decode
from . import delta as _delta
from . import experts as _experts
from . import fp8
from . import gradients as _gradients
from . import linear as _linear
from . import loss as _loss
from . import optimizers as _optimizers
from . import replay as _replay
from . import slices as _slices
from . import update as _update
from . import vendor
from .algebra import CardAlgebra
from .arrays import Sum, own, padding_behind, real, same_buffer
from .budget import Budget
from .budget import peak as _budget_peak
from .devices import Device, has_fp8
from .failures import explain
from .functions import functions
from .offload import Offloader, Ticket
from .pair_gradients import flush
from .sizes import Sizes
from .trained import Trained
from .experts import ExpertWeights
from .weights import Group, LoraPair, Weight, align

Tensor = torch.Tensor


class TorchEngine(Composed):
    """base.py says what the operations mean.

    dtype: of matrix products and of what lies between operations: bfloat16; float16 products keep float32 between
    them (safe for models whose activations pass 65,504); float32. Sums, LoRA parameters, gradients, moments: float32.
    row_padding: spare columns behind every activation, where low-rank products ride (see linear.py).
    """

    decode_rows = 64  # rows up to which a product dequantizes weights in registers
    offers = frozenset({"delta", "experts"})

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
        return self.where.graphs and not (self.loads is not None and not self.grouped)

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

    def extend(self, x: Tensor, columns: int) -> Tensor:
        """x [T, n] with `columns` more: in place if room lies behind x in its buffer, else a copy."""
        width = x.shape[1] + columns
        if padding_behind(x) >= columns:
            return x.as_strided((x.shape[0], width), x.stride())
        wider = self.array(x.shape[0], x.shape[1], columns)
        wider.copy_(x)
        return wider.as_strided((x.shape[0], width), wider.stride())

    def joined(self, parts: tuple[Tensor, ...]) -> Tensor:
        """The parts [T, n_i] side by side: one view if they lie so, else a copy."""
        if len(parts) == 1:
            return parts[0]
        first, at = parts[0], parts[0].storage_offset()
        width = sum(p.shape[1] for p in parts)
        for part in parts:
            if not same_buffer(part, first) or part.stride() != first.stride() or part.storage_offset() != at:
                out = own(self.array(first.shape[0], width))
                return own(out.copy_(torch.cat(parts, dim=1)))
            at += part.shape[1]
        out = first.as_strided((first.shape[0], width), first.stride())
        for name in ("ends", "low_of", "row_scale"):
            setattr(out, name, getattr(parts[-1], name, None))
        return out

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

    def constant(self, gguf, name: str) -> Tensor:
        return self.vector(gguf.float32(name))

    def vector(self, values) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values, np.float32)).to(self.device)

    def integers(self, values) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values, np.int32)).to(self.device)

    def zeros(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.float32, device=self.device)

    def host(self, x: Tensor) -> np.ndarray:
        x = real(x)
        return x.to("cpu", _numbers(x), copy=True).numpy()

    def view(self, x: Tensor) -> np.ndarray:
        x = real(x)
        return x.to("cpu", _numbers(x)).numpy()

    @functools.cached_property
    def algebra(self) -> HostAlgebra | CardAlgebra:
        return HostAlgebra() if self.device.type == "mps" else CardAlgebra(self.device)  # mps has no float64

    def settle(self) -> None:
        flush(self)

    def lift(self, x: Tensor) -> Tensor | np.ndarray:
        return self.view(x) if self.device.type == "mps" else real(x).float()

    def lower(self, values) -> Tensor:
        return own(self.array(*values.shape)).copy_(self.vector(values))

    def load(self, x: Tensor, values) -> None:
        # a copy, since a checkpoint's arrays are read-only maps, of which torch warns
        x.copy_(torch.from_numpy(np.array(values, np.uint8 if x.dtype == torch.uint8 else np.float32)).view(x.shape))
        self.updater.loaded()

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
    take_loads = _experts.take_loads
    route = _experts.route
    route_backward = _experts.route_backward
    dispatch = _experts.dispatch
    combine = _experts.combine
    weigh = _experts.weigh
    weigh_backward = _experts.weigh_backward
    gate_rows = _experts.gate_rows
    gate_rows_backward = _experts.gate_rows_backward
    expert_linear = _experts.expert_linear
    expert_linear_backward = _experts.expert_linear_backward
    split_heads = _convolution.split_heads
    join_heads = _convolution.join_heads
    gated = _convolution.gated
    gated_backward = _convolution.gated_backward
    state = _convolution.state
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

    def embed(self, ids: Tensor, table: Weight, scale: float) -> Tensor:
        x = own(self.array(ids.shape[0], table.in_features))
        table.gather(ids, x, scale)
        return x

    def gather(self, x, rows: Tensor) -> Tensor:
        x = real(x)
        out = own(self.array(rows.shape[0], x.shape[1]))
        # a padded row's number is past the end: it takes any row, and its target says that it does not count
        out.copy_(x.index_select(0, rows.clamp(max=x.shape[0] - 1)))
        return out

    def scatter(self, y: Tensor, rows: Tensor, tokens: int) -> Tensor:
        """As a gather, since it runs the same way every time: row t is y's row place[t], or zero."""
        count = rows.shape[0]
        place = torch.full((tokens + 1,), count, dtype=torch.int64, device=self.device)
        place.index_copy_(0, rows.clamp(max=tokens).long(), torch.arange(count, device=self.device))
        place = place[:tokens]
        out = own(self.array(tokens, y.shape[1]))
        torch.mul(
            real(y).index_select(0, place.clamp(max=count - 1)), (place < count).unsqueeze(1).to(y.dtype), out=out
        )
        return out

    def add(self, x, y):
        """Waits for the norm that follows, so that sum and norm are one pass over memory; see Sum."""
        return Sum(self, x, y)

    def scale(self, x, factor: float | Tensor) -> Tensor:
        return torch.mul(real(x), factor, out=own(self.array(*x.shape)))

    def rms_norm(self, x, gain, eps: float, into: Group | None = None, m: Tensor | None = None) -> Tensor:
        """into: a group that reads the result, m: its matrix;
        its low-rank product is then made on the way, if it can be."""
        tokens, width = x.shape
        out = own(self.array(tokens, width))
        low = self._riding(out, into, m)
        if isinstance(x, Sum) and x.value is None:
            a, b = real(x.x), real(x.y)
            total = own(self.array(tokens, width))
            self.f.rms_norm(a, gain, eps, out, add=b, total=total, **low)
            x.settle(total)
        else:
            self.f.rms_norm(real(x), gain, eps, out, **low)
        return out

    def rms_norm_backward(self, dy, x, gain, eps: float, residual=None) -> Tensor:
        out = own(self.array(*x.shape))
        self.f.rms_norm_backward(real(dy), real(x), gain, eps, real(residual), out)
        return out

    def qk_norm_rope(self, q, k, gains, eps: float, table, positions, heads: Heads, neox: bool):
        out_q, out_k = (q, k)
        if gains is not None:
            both = self.array(q.shape[0], q.shape[1] + k.shape[1], 0)
            out_q, out_k = both[:, : q.shape[1]], both[:, q.shape[1] :]
        self.f.qk_norm_rope(
            q, k, *(gains or (None, None)), eps, *table, positions, heads.n_heads, heads.n_kv_heads, neox, out_q, out_k
        )
        return out_q, out_k

    def qk_norm_rope_backward(
        self, dq, dk, q, k, gains, eps: float, table, positions, heads: Heads, neox: bool, into=(None, None)
    ):
        if into[0] is not None or into[1] is not None:
            turned = [x.clone() for x in (dq, dk)]  # back by their angles: what the norms' results are
            self.f.qk_norm_rope_backward(
                *turned, q, k, None, None, eps, *table, positions, heads.n_heads, heads.n_kv_heads, neox
            )
            for dx, x, gradient in zip(turned, (q, k), into):
                if gradient is not None:
                    self.gain_gradient(dx, x, eps, gradient)
        self.f.qk_norm_rope_backward(
            dq, dk, q, k, *(gains or (None, None)), eps, *table, positions, heads.n_heads, heads.n_kv_heads, neox
        )
        return dq, dk

    def glu(self, gate, up, activation: str, into: Group | None = None, m: Tensor | None = None) -> Tensor:
        """into, m: as in rms_norm."""
        out = own(self.array(*gate.shape))
        self.f.glu(gate, up, activation, out, peak=getattr(into, "peak", None), **self._riding(out, into, m))
        return out

    def _riding(self, out: Tensor, into: Group | None, m: Tensor | None) -> dict:
        """What makes the kernel that writes `out` also write the low-rank product of its readers: behind it, for the
        product with the group's matrix, and once more apart, for the gradients."""
        if (
            into is None
            or not into.rank
            or (into.dropout and self.training)
            or padding_behind(out) < into.rank
            or self.act != self.dtype
        ):
            return {}
        out.low_of = into
        found = {"a": m[into.width :, : into.in_features], "low": self.extend(out, into.rank)[:, into.in_features :]}
        if into.trains_pairs and self.training:
            into.low = found["keep"] = torch.empty((out.shape[0], into.rank), dtype=self.act, device=self.device)
        return found

    def glu_backward(self, dy, gate, up, activation: str):
        width = gate.shape[1]
        both = self.array(gate.shape[0], 2 * width)
        dgate, dup = both[:, :width], own(both[:, width:])
        self.f.glu_backward(dy, gate, up, activation, dgate, dup)
        return dgate, dup

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


def _numbers(x: Tensor) -> torch.dtype:
    """What an array is on the host: codes of moments are bytes, all else is float32."""
    return x.dtype if x.dtype == torch.uint8 else torch.float32
