"""A GGUF's tensors as an engine's groups and vectors: layers ready to run, with or without an adapter."""

from __future__ import annotations

import copy
import functools

import numpy as np

from anytune.engine.matrices import Weight
from anytune.errors import UserError

from .config import EMBEDDING, Config
from .keys import check_tensors
from .mixers.latent_attention import SPLIT as LATENT
from .own_embeddings import OWN, PROJECTION, shapes
from .part import Layer, Norm, Run
from .rope import STILL


def check_model(gguf, config: Config) -> None:
    """Raise UserError unless every tensor that the model needs is there, with the shape that the metadata promise."""
    c = config
    wanted = {"token_embd.weight": (c.vocabulary, c.width), c.output_norm: (c.width,)}
    if not c.tied:
        wanted["output.weight"] = (c.vocabulary, c.width)
    wanted |= shapes(c)
    factors = {f"{name}.weight": (c.rope_size // 2,) for name in c.arch.rope_factors}
    optional = {} if c.arch.needs_factors else dict(factors)
    wanted |= factors if c.arch.needs_factors else {}
    if "output" in c.arch.biases:
        optional["output.bias"] = (c.vocabulary,)
    for i in range(c.layers):
        parts = {name: shape for part in c.arch.parts(c, i) for name, shape in part.tensors(c, i).items()}
        wanted |= {f"blk.{i}.{name}": shape for name, shape in parts.items()}
        more = [c.arch.optional, *(part.optional(c) for part in c.arch.parts(c, i))]
        optional |= {f"blk.{i}.{name}": shape for found in more for name, shape in found.items()}
        optional |= {
            f"blk.{i}.{name}.bias": parts[f"{name}.weight"][:-1] for name in c.arch.biases if f"{name}.weight" in parts
        }
    check_tensors(gguf, wanted, optional, c.ignores)


class Weights:
    """The tensors of one model on one engine; layers(pairs) arranges them.

    Frozen, unless with_trained() says otherwise.
    """

    def __init__(self, gguf, config: Config, engine, hold: str):
        self.gguf, self.config, self.engine = gguf, config, engine
        self.matrices: dict[str, Weight] = {}
        self.vectors: dict[str, object] = {}
        self.gradients: dict[str, object] = {}  # of vectors that are trained
        check_model(gguf, config)
        for name, info in gguf.tensors.items():
            if config.ignores(name):
                continue
            if name.endswith(LATENT[1]):  # with its other half: see latent_attention.py
                start = name.removesuffix(LATENT[1])
                k, v = (engine.constant(gguf, start + end) for end in LATENT)
                self.matrices[f"{start}attn_kv_b.weight"] = engine.trained(engine.latent_matrix(k, v), None)
            elif name.endswith(LATENT[0]):
                continue
            elif len(info.shape) == 1 or name.endswith(".bias") or config.arch.is_constant(name):
                self.vectors[name] = engine.constant(gguf, name)
            elif len(info.shape) in (2, 3):
                self.matrices[name] = engine.weight(gguf, name, "lookup" if config.looked_up(name) else hold)

    def with_trained(self, parts: dict[str, tuple]) -> Weights:
        """The same, but for {tensor: (values, gradient)}, engine's arrays of the tensor's shape, in place of the
        file's."""
        made = copy.copy(self)
        made.__dict__.pop("projection", None)
        made.matrices, made.vectors, made.gradients = dict(self.matrices), dict(self.vectors), {}
        for name, (values, gradient) in parts.items():
            if name in made.matrices:
                made.matrices[name] = self.engine.trained(values, gradient)
            else:
                made.vectors[name], made.gradients[name] = values, gradient
        return made

    def clear(self) -> None:
        """Forget all tensors."""
        for tensors in (self.matrices, self.vectors, self.gradients):
            tensors.clear()

    @property
    def slow(self) -> bool:
        """Whether some matrix is dequantized without a compiled kernel, so that doing it once would pay."""
        return any(m.slow for m in self.matrices.values())

    def layers(self, tables: dict, pairs: dict | None = None, dropout: float = 0.0) -> list[Layer]:
        """The layers in order. pairs: {tensor name: engine pair} of an adapter."""
        run = Run(tables.get(STILL), self.owes)
        return [self.layer(i, tables, pairs, dropout, run) for i in range(self.config.layers)]

    def layer(
        self, i: int, tables: dict, pairs: dict | None = None, dropout: float = 0.0, run: Run | None = None
    ) -> Layer:
        """Layer number i; as layers(). run: what it shares with the others."""
        own = LayerWeights(self, i, tables, pairs or {}, dropout, run or Run(tables.get(STILL)))
        made = Layer(*(part.of(own, self.config) for part in self.config.arch.parts(self.config, i)), run=own.run)
        factor = own.vector("layer_output_scale.weight")
        if factor is not None:
            made.factor = float(np.asarray(self.gguf.float32(f"blk.{i}.layer_output_scale.weight")).reshape(-1)[0])
        return made

    @functools.cached_property
    def projection(self):
        """The group that projects embeddings for the layers: own_embeddings.py."""
        return self.engine.group([self.matrices[PROJECTION]], number=12 * self.config.layers)

    @property
    def owes(self) -> bool:
        """Whether gradients of what layers mix in of their own are wanted."""
        wanted = (EMBEDDING, *OWN)
        return bool(self.config.own) and any(
            name in self.gradients or getattr(self.matrices.get(name), "gradient", None) is not None for name in wanted
        )

    def head(self, pairs: dict | None = None):
        """The output projection (the embedding table where it is tied) as a group of one."""
        name = "token_embd.weight" if self.config.tied else "output.weight"
        pair = (pairs or {}).get("output.weight")
        group = self.engine.group(
            [self.matrices[name]],
            [self.vectors.get("output.bias")],
            [pair],
            number=-1,
            bias_gradients=[self.gradients.get("output.bias")],
        )
        group.cap = self.config.logit_cap
        return group

    @property
    def embedding(self):
        return self.matrices["token_embd.weight"]

    @property
    def embedding_scale(self) -> float:
        return self.config.embedding_scale

    @property
    def output_norm(self):
        return self.vectors[self.config.output_norm]

    def rope_factors(self, context: int) -> np.ndarray | None:
        """The divisors of the angles that the file carries for sequences of up to `context` tokens, if it does."""
        names = self.config.arch.rope_factors
        if not names:
            return None
        name = names[-1] if context > self.config.scaling.original_context else names[0]
        factors = self.vectors.get(f"{name}.weight")
        if factors is None:
            return None
        factors = np.asarray(self.engine.host(factors), np.float64)
        if factors.shape != (self.config.rope_size // 2,) or not np.all(factors > 0):
            raise UserError(
                f"{self.gguf.path.name}: tensor {name}.weight does not fit heads of {self.config.rope_size}: the file "
                "is damaged"
            )
        return factors


class LayerWeights:
    """One layer's tensors, by their names within the layer; a part is made of them."""

    def __init__(self, weights: Weights, layer: int, tables: dict, pairs: dict, dropout: float, run: Run):
        self.weights, self.layer, self.tables, self.pairs, self.dropout = weights, layer, tables, pairs, dropout
        self.run = run

    def vector(self, name: str):
        """None if there is no such tensor."""
        return self.weights.vectors.get(f"blk.{self.layer}.{name}")

    def gradient(self, name: str):
        """What that of a vector is added to; None: it is frozen."""
        return self.weights.gradients.get(f"blk.{self.layer}.{name}")

    def norm(self, name: str) -> Norm | None:
        gain = self.vector(f"{name}.weight")
        return None if gain is None else Norm(gain, self.gradient(f"{name}.weight"))

    def matrix(self, name: str):
        return self.weights.matrices[f"blk.{self.layer}.{name}.weight"]

    def group(self, number: int, *names: str, experts: bool = False, biased: bool = True):
        """Linears that share an input; number: 0 to 11, of the group within the layer; experts: of each expert."""
        four, one = divmod(number, 4)
        w, full = self.weights, [f"blk.{self.layer}.{name}" for name in names]
        return (w.engine.expert_group if experts else w.engine.group)(
            [self._matrix(f"{n}.weight") for n in full],
            [w.vectors.get(f"{n}.bias") if biased else None for n in full],
            [self.pairs.get(f"{n}.weight") for n in full],
            self.dropout,
            4 * (four * w.config.layers + self.layer) + one,
            [w.gradients.get(f"{n}.bias") if biased else None for n in full],
        )

    def _matrix(self, name: str):
        """A vector that is the one row of a matrix is one."""
        w, row = self.weights, self.weights.vectors.get(name)
        if row is None:
            return w.matrices[name]
        gradient = w.gradients.get(name)
        return w.engine.trained(row.reshape(1, -1), None if gradient is None else gradient.reshape(1, -1))
