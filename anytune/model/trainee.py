"""What is trained: an adapter's parameters, gradients and moments on an engine, and one step's pieces."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np

from anytune.engine.base import Stream
from anytune.errors import UserError

from .lora import Layout, Lora
from .transformer import backward, forward


class LoraTrainee:
    """LoRA on a frozen model. Parameters, gradients and both moments are flat float32 vectors on the engine.

    adapter: start from these pairs instead of fresh ones (rank, alpha and modules are then the adapter's).
    ubatch: the most tokens of a micro-batch; context: the longest example.
    """

    def __init__(self, model, lora: Lora, adapter=None, ubatch: int = 512, context: int | None = None,
                 memory: int | None = None):
        self.model, self.engine, self.config = model, model.engine, model.config
        if adapter is not None:
            lora = replace(lora, rank=adapter.rank, alpha=float(adapter.alpha), rslora=adapter.rslora)
            adapter.check(model.gguf)
            names = [n for n in model.gguf.tensors if n in adapter.tensors]
        else:
            names = lora.tensors(model.gguf, self.config.layers)
        self.lora, self.names, self.ubatch = lora, names, ubatch
        shapes = {n: tuple(model.gguf.tensors[n].shape) for n in names}
        self.layout = Layout.of(shapes, lora.rank)
        from .plan import plan_training
        self.estimate = plan_training(model, shapes, lora, ubatch, context or ubatch, memory)
        self._start(adapter, context or ubatch)

    def _start(self, adapter, context: int) -> None:
        e, layout = self.engine, self.layout
        start = np.zeros(layout.size, np.float32)
        if adapter is None:
            layout.start(self.lora.seed, start)
        else:
            for pair in layout.pairs:
                a, b = adapter.tensors[pair.name]
                pair.view_a(start)[...], pair.view_b(start)[...] = a, b
        self.parameters = e.vector(start)
        del start
        self.gradients, self.first, self.second = (e.zeros(layout.size) for _ in range(3))
        self.slots = slots = {
            pair.name: e.slot(pair.view_a(self.parameters), pair.view_b(self.parameters), self.lora.scale,
                              pair.view_a(self.gradients), pair.view_b(self.gradients))
            for pair in layout.pairs}
        self.model.hold(self.estimate.hold)
        e.sizes = self.estimate.sizes
        weights = self.model.weights
        self.layers = weights.layers(self.model.rope_tables(context), slots, self.lora.dropout)
        self.head = weights.head(slots)
        self.keep = self.estimate.keep
        self.engine.prepare([g for la in self.layers for g in (la.qkv, la.out, la.gate_up, la.down)] + [self.head],
                            self.parameters, self.gradients)
        trained = [i for i, layer in enumerate(self.layers) if layer.trains]
        self.lowest = trained[0] if trained else len(self.layers)
        e.room = max((g.rank for la in self.layers for g in (la.qkv, la.out, la.gate_up, la.down)), default=0)

    @property
    def lag(self) -> int:
        """Steps that may be asked for before the outcome of the first is looked at."""
        return self.engine.lag

    @property
    def n_parameters(self) -> int:
        return self.layout.size

    @property
    def spec(self) -> dict:
        """What is trained, JSON-able: for checkpoints to compare."""
        return {**asdict(self.lora), "modules": ",".join(self.names), "kind": "lora"}

    def accumulate(self, batch, scale: float, step: int, micro: int):
        """Run one micro-batch; add scale * gradient of its summed loss. -> that sum (nats, a Number)."""
        self.engine.training = True
        return self._replay("train", self._train, batch, scale, (self.lora.seed, step, micro))

    def evaluate(self, batch):
        """Summed loss (nats, a Number) of a micro-batch, no gradients, no dropout."""
        self.engine.training = False
        return self._replay("evaluate", self._measure, batch, 1.0, (0, 0, 0))

    def _replay(self, kind: str, body, batch, scale: float, key: tuple[int, int, int]):
        rows = np.flatnonzero(batch.targets >= 0).astype(np.int32)
        if rows.size == 0:
            return 0.0
        return self.engine.replay(kind, body, Stream(batch.ids, batch.positions, batch.starts, rows, batch.targets[rows],
                                                     scale, self.ubatch, key))

    def _train(self, s: Stream):
        e = self.engine
        tape, h, top = self._forward(s, self.lowest)
        loss, dh = e.cross_entropy(h, self.head, s.targets, s.scale, True)
        del h
        if self.lowest < len(self.layers):
            dx = e.rms_norm_backward(dh, top, self.model.weights.output_norm, self.config.eps)
            del top, dh
            backward(e, self.layers, dx, self.config, s.positions, s.rows, self.lowest, self.keep, tape)
        return loss

    def _measure(self, s: Stream):
        h = self._forward(s, len(self.layers))[1]
        return self.engine.cross_entropy(h, self.head, s.targets, s.scale, False)[0]

    def _forward(self, s: Stream, lowest: int):
        e, weights = self.engine, self.model.weights
        x = e.embed(s.ids, weights.embedding, weights.embedding_scale)
        top, tape = forward(e, self.layers, x, self.config, s.positions, s.rows, lowest, self.keep)
        return tape, e.rms_norm(top, weights.output_norm, self.config.eps), top

    def update(self, lr: float, step: int, *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8,
               weight_decay: float = 0.0, max_grad_norm: float = 1.0) -> float:
        """One AdamW step (step counts from 1); gradients are clipped to max_grad_norm (0: not), then zeroed.

        -> the gradients' norm before clipping (a Number). If it is not finite nothing is updated.
        """
        return self.engine.adamw(self.parameters, self.gradients, self.first, self.second, self.layout.size_a,
                                 (lr, lr * self.lora.plus_ratio), step, beta1, beta2, eps, weight_decay, max_grad_norm)

    def _vectors(self) -> dict:
        return {"parameters": self.parameters, "first_moment": self.first, "second_moment": self.second}

    def state(self) -> dict[str, np.ndarray]:
        """Parameters and moments, float32 on the host (views where the engine's memory is the host's)."""
        return {name: self.engine.view(vector) for name, vector in self._vectors().items()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Put back what state() gave. Raises UserError if it is another layout's."""
        for name in self._vectors():
            other = state.get(name)
            if other is None or other.shape != (self.layout.size,) or other.dtype != np.float32:
                raise UserError(f"the checkpoint's {name} do not fit this adapter ({self.layout.size:,} float32 "
                                "numbers): it was made with other LoRA settings")
        for name, own in self._vectors().items():
            self.engine.load(own, state[name])
        self.engine.load(self.gradients, np.zeros(self.layout.size, np.float32))

    def adapter(self, copy: bool = True):
        """The parameters as an Adapter. copy=False: views where the engine's memory is the host's, to be saved."""
        from anytune.adapter import Adapter
        flat = self.engine.host(self.parameters) if copy else self.engine.view(self.parameters)
        return Adapter(
            tensors={p.name: (p.view_a(flat), p.view_b(flat)) for p in self.layout.pairs}, rank=self.lora.rank,
            alpha=self.lora.alpha, rslora=self.lora.rslora, architecture=self.config.architecture,
            base_name=self.model.name, base_sha256=self.model.gguf.sha256(),
            chat_template=self.model.template_source)
