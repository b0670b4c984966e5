"""Training of a model's own tensors: float32 values, gradients and an optimizer's state on an engine."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np

from anytune.engine.optimizers import Rule, state_shapes
from anytune.errors import UserError

from .full import Full
from .own_embeddings import OWN
from .passes import Passes
from .plan import plan_training
from .spec import EMBEDDING, FullSpec


class FullTrainee(Passes):
    """The chosen tensors, dequantized once to float32 and trained there; all others stay in their GGUF blocks.

    parameters, gradients: {tensor: flat float32 vector on the engine}; states: {tensor: what the optimizer keeps}.
    """

    steps_in_flight = 0  # the gradients' norm is looked at before anything is updated

    def __init__(self, model, full: Full, ubatch: int = 512, context: int | None = None, memory: int | None = None):
        super().__init__(model, ubatch, 0)
        if self.engine.fp8:
            raise UserError(
                "--dtype fp8 needs frozen weights, which full training does not have: omit it, or train an adapter "
                "(without --full)"
            )
        self.full = full
        self.names = [n for n in full.tensors(model.gguf, self.config.layers) if not self.config.ignores(n)]
        self.shapes = {name: tuple(model.gguf.tensors[name].shape) for name in self.names}
        self.estimate = plan_training(model, FullSpec(full, self.shapes), ubatch, context or ubatch, memory)
        self._start(context or ubatch)

    def _start(self, context: int) -> None:
        e, gguf = self.engine, self.model.gguf
        self.parameters, self.gradients, self.states = {}, {}, {}
        for name, shape in self.shapes.items():
            self.parameters[name] = e.vector(np.asarray(gguf.float32(name), np.float32).reshape(-1))
            self.gradients[name] = e.zeros(math.prod(shape))
            self.states[name] = e.optimizer_state(self.full.optimizer, shape)
        self.model.hold(self.estimate.hold)
        e.sizes, e.row_padding, self.keep = self.estimate.sizes, 0, self.estimate.keep
        self.weights = weights = self.model.weights.with_trained(
            {
                name: (self.parameters[name].reshape(shape), self.gradients[name].reshape(shape))
                for name, shape in self.shapes.items()
            }
        )
        self._arrange(weights.layers(self.model.rope_tables(context)), weights.head())
        self.norm_gradient = self.gradients.get(self.config.output_norm)
        if OWN & self.shapes.keys():
            self.lowest = 0
        if EMBEDDING in self.shapes:
            self.lowest, self.embedding_gradient = 0, self.gradients[EMBEDDING].reshape(self.shapes[EMBEDDING])

    @property
    def n_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def spec(self) -> dict:
        """What is trained, JSON-able: for checkpoints to compare."""
        return {**asdict(self.full), "modules": ",".join(self.names), "kind": "full"}

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
        """One step (counted from 1) of the optimizer; gradients are clipped to max_grad_norm (0 disables clipping),
        then zeroed.

        Matrices are decayed, norms and biases are not. -> the gradients' norm before clipping. If it is not finite
        nothing is updated.
        """
        e = self.engine
        norm = float(e.norm(list(self.gradients.values())))
        if not math.isfinite(norm):
            return norm
        factor = max_grad_norm / norm if max_grad_norm and norm > max_grad_norm else 1.0
        for name, shape in self.shapes.items():
            rule = Rule(factor, lr, step, beta1, beta2, eps, weight_decay if len(shape) > 1 else 0.0)
            e.optimize(self.full.optimizer, self.parameters[name], self.gradients[name], self.states[name], shape, rule)
        return norm

    def _vectors(self) -> dict:
        """Everything that a checkpoint holds: {key: engine's array}."""
        return {
            **self.parameters,
            **{f"{name}/{part}": array for name, state in self.states.items() for part, array in state.items()},
        }

    def state(self) -> dict[str, np.ndarray]:
        """Parameters and the optimizer's state on the host (views where the engine's memory is the host's)."""
        return {key: self.engine.view(array) for key, array in self._vectors().items()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Put back what state() gave. Raises UserError if it is of other tensors or another optimizer."""
        wanted = {name: ((math.prod(shape),), np.float32) for name, shape in self.shapes.items()}
        for name, shape in self.shapes.items():
            wanted |= {f"{name}/{part}": what for part, what in state_shapes(self.full.optimizer, shape).items()}
        for key, (shape, dtype) in wanted.items():
            other = state.get(key)
            if other is None or other.shape != shape or other.dtype != dtype:
                raise UserError(
                    f"the checkpoint's {key} does not belong to this run: it was made with other --train-modules or "
                    "another --optimizer"
                )
        for key, own in self._vectors().items():
            self.engine.load(own, state[key])
        for gradient in self.gradients.values():
            self.engine.load(gradient, np.zeros(gradient.shape, np.float32))

    def values(self) -> dict[str, np.ndarray]:
        """{tensor: float32 [rows, weights of a row]} as they are now.

        Views where the engine's memory is the host's: to be saved before the next step.
        """
        return {
            name: self.engine.view(self.parameters[name]).reshape(math.prod(shape[:-1]), -1)
            for name, shape in self.shapes.items()
        }
