"""What is trained: an adapter's parameters, gradients and moments on an engine, and one step's pieces."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np

from anytune.adapter.scaled import after_scale, before_scale
from anytune.errors import UserError

from .lora import Lora, check_adapted
from .lora_layout import Layout
from .passes import Passes
from .plan import plan_training
from .spec import LoraSpec


class LoraTrainee(Passes):
    """LoRA on a frozen model. Parameters, gradients and both moments are flat float32 vectors on the engine.

    adapter: start from these pairs instead of fresh ones (rank, alpha and modules are then the adapter's).
    ubatch: the most tokens of a micro-batch; context: the longest example.
    """

    def __init__(
        self, model, lora: Lora, adapter=None, ubatch: int = 512, context: int | None = None, memory: int | None = None
    ):
        lora = lora.seeded(0)
        super().__init__(model, ubatch, lora.seed)
        if adapter is not None:
            lora = replace(lora, rank=adapter.rank, alpha=float(adapter.alpha), rslora=adapter.rslora)
            adapter.check(model.gguf)
            check_adapted(adapter)
            names = [n for n in model.gguf.tensors if n in adapter.tensors]
        else:
            names = [n for n in lora.tensors(model.gguf, self.config.layers) if not self.config.ignores(n)]
        self.lora, self.names = lora, names
        shapes = {n: tuple(model.gguf.tensors[n].shape) for n in names}
        self.layout = Layout.of(shapes, lora.rank)
        self.estimate = plan_training(model, LoraSpec(lora, shapes), ubatch, context or ubatch, memory)
        self._start(adapter, context or ubatch)

    def _start(self, adapter, context: int) -> None:
        e, layout = self.engine, self.layout
        start = np.zeros(layout.size, np.float32)
        if adapter is None:
            layout.start(self.lora.seed, start)
        else:
            for pair in layout.pairs:
                a, b = adapter.tensors[pair.name]
                pair.view_a(start)[...], pair.view_b(start)[...] = a, before_scale(self.model.gguf, pair.name, b)
        self.parameters = e.vector(start)
        del start
        self.gradients, self.first, self.second = (e.zeros(layout.size) for _ in range(3))
        self.pairs = pairs = {
            pair.name: e.lora_pair(
                pair.view_a(self.parameters),
                pair.view_b(self.parameters),
                self.lora.scale,
                pair.view_a(self.gradients),
                pair.view_b(self.gradients),
            )
            for pair in layout.pairs
        }
        self.model.hold(self.estimate.hold)
        e.sizes = self.estimate.sizes
        self.weights = weights = self.model.weights
        self.keep = self.estimate.keep
        self._arrange(
            weights.layers(self.model.rope_tables(context), pairs, self.lora.dropout),
            weights.head(pairs),
            self.parameters,
            self.gradients,
        )
        e.row_padding = max((group.rank for layer in self.layers for group in layer.groups), default=0)

    @property
    def steps_in_flight(self) -> int:
        """Steps that may be asked for before the outcome of the first is looked at."""
        return self.engine.steps_in_flight

    @property
    def n_parameters(self) -> int:
        return self.layout.size

    @property
    def spec(self) -> dict:
        """What is trained, JSON-able: for checkpoints to compare."""
        return {**asdict(self.lora), "modules": ",".join(self.names), "kind": "lora"}

    def update(
        self,
        lr: float,
        step: int,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
    ) -> float:
        """One AdamW step (step counts from 1); gradients are clipped to max_grad_norm (0 disables clipping), then
        zeroed.

        -> the gradients' norm before clipping (a Number). If it is not finite nothing is updated.
        """
        return self.engine.adamw(
            self.parameters,
            self.gradients,
            self.first,
            self.second,
            self.layout.size_a,
            (lr, lr * self.lora.plus_ratio),
            step,
            beta1,
            beta2,
            eps,
            weight_decay,
            max_grad_norm,
        )

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
                raise UserError(
                    f"the checkpoint's {name} do not fit this adapter ({self.layout.size:,} float32 "
                    "numbers): it was made with other LoRA settings"
                )
        for name, own in self._vectors().items():
            self.engine.load(own, state[name])
        self.engine.load(self.gradients, np.zeros(self.layout.size, np.float32))

    def adapter(self, copy: bool = True):
        """The parameters as an Adapter. copy=False: views where the engine's memory is the host's, to be saved."""
        from anytune.adapter.adapter import Adapter

        flat = self.engine.host(self.parameters) if copy else self.engine.view(self.parameters)
        gguf = self.model.gguf
        return Adapter(
            tensors={p.name: (p.view_a(flat), after_scale(gguf, p.name, p.view_b(flat))) for p in self.layout.pairs},
            rank=self.lora.rank,
            alpha=self.lora.alpha,
            rslora=self.lora.rslora,
            architecture=self.config.architecture,
            base_name=self.model.name,
            base_sha256=gguf.sha256(),
            chat_template=self.model.template_source,
        )
