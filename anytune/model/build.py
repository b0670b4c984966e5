"""A GGUF's tensors as an engine's groups and vectors: layers ready to run, with or without an adapter."""

from __future__ import annotations

import copy

import numpy as np

from anytune.errors import UserError

from .config import Config
from .keys import check_tensors
from .transformer import Layer


# A layer's norms: the tensor's name -> Layer's
NORMS = {
    "attn_norm": "attn_norm",
    "attn_q_norm": "q_norm",
    "attn_k_norm": "k_norm",
    "post_attention_norm": "post_attn_norm",
    "ffn_norm": "ffn_norm",
    "post_ffw_norm": "post_ffn_norm",
}


def check_model(gguf, config: Config) -> None:
    """Raise UserError unless every tensor that the model needs is there, with the shape that the metadata promise."""
    c = config
    q, kv = c.heads * c.head_size, c.n_kv_heads * c.head_size
    shapes = {
        "attn_norm": (c.width,),
        "attn_q": (q, c.width),
        "attn_k": (kv, c.width),
        "attn_v": (kv, c.width),
        "attn_output": (c.width, q),
        "ffn_norm": (c.width,),
        "ffn_gate": (c.hidden, c.width),
        "ffn_up": (c.hidden, c.width),
        "ffn_down": (c.width, c.hidden),
    }
    if c.arch.head_norms:
        shapes |= {"attn_q_norm": (c.head_size,), "attn_k_norm": (c.head_size,)}
    if c.arch.post_norms:
        shapes |= {"post_attention_norm": (c.width,), "post_ffw_norm": (c.width,)}
    wanted = {f"blk.{i}.{name}.weight": shape for i in range(c.layers) for name, shape in shapes.items()}
    wanted |= {"token_embd.weight": (c.vocabulary, c.width), "output_norm.weight": (c.width,)}
    if not c.tied:
        wanted["output.weight"] = (c.vocabulary, c.width)
    biases = {
        f"blk.{i}.{name}.bias": shapes[name][:1] for i in range(c.layers) for name in c.arch.biases if name in shapes
    }
    if "output" in c.arch.biases:
        biases["output.bias"] = (c.vocabulary,)
    factors = {"rope_freqs.weight": (c.rope_size // 2,)} if c.arch.rope_factors else {}
    check_tensors(gguf, wanted, {**biases, **factors})


class Weights:
    """The tensors of one model on one engine; layers(pairs) arranges them.

    Frozen, unless with_trained() says otherwise.
    """

    def __init__(self, gguf, config: Config, engine, hold: str):
        self.gguf, self.config, self.engine = gguf, config, engine
        self.matrices: dict[str, object] = {}
        self.vectors: dict[str, object] = {}
        self.gradients: dict[str, object] = {}  # of vectors that are trained
        check_model(gguf, config)
        for name, info in gguf.tensors.items():
            if len(info.shape) == 1:
                self.vectors[name] = engine.constant(gguf, name)
            elif len(info.shape) == 2:
                # an embedding table that is not the head is only looked up, a few rows at a time
                lookup = name == "token_embd.weight" and not config.tied
                self.matrices[name] = engine.weight(gguf, name, "lookup" if lookup else hold)

    def with_trained(self, parts: dict[str, tuple]) -> Weights:
        """The same, but for {tensor: (values, gradient)}, engine's arrays of the tensor's shape, in place of the
        file's."""
        made = copy.copy(self)
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
        return [self.layer(i, tables, pairs, dropout) for i in range(self.config.layers)]

    def layer(self, i: int, tables: dict, pairs: dict | None = None, dropout: float = 0.0) -> Layer:
        """Layer number i; as layers()."""
        from anytune.engine.base import Heads

        c, e, pairs = self.config, self.engine, pairs or {}

        def vector(name: str):
            return self.vectors.get(f"blk.{i}.{name}.weight")

        def group(number: int, *names: str):
            full = [f"blk.{i}.{name}" for name in names]
            return e.group(
                [self.matrices[f"{n}.weight"] for n in full],
                [self.vectors.get(f"{n}.bias") for n in full],
                [pairs.get(f"{n}.weight") for n in full],
                dropout,
                4 * i + number,
                [self.gradients.get(f"{n}.bias") for n in full],
            )

        local = c.windowed(i)
        return Layer(
            attn_norm=vector("attn_norm"),
            qkv=group(0, "attn_q", "attn_k", "attn_v"),
            q_norm=vector("attn_q_norm"),
            k_norm=vector("attn_k_norm"),
            out=group(1, "attn_output"),
            post_attn_norm=vector("post_attention_norm"),
            ffn_norm=vector("ffn_norm"),
            gate_up=group(2, "ffn_gate", "ffn_up"),
            down=group(3, "ffn_down"),
            post_ffn_norm=vector("post_ffw_norm"),
            heads=Heads(c.heads, c.n_kv_heads, c.head_size, c.window if local else 0, c.attention_scale),
            rope=tables[local],
            gradients={
                own: self.gradients[f"blk.{i}.{name}.weight"]
                for name, own in NORMS.items()
                if f"blk.{i}.{name}.weight" in self.gradients
            },
        )

    def head(self, pairs: dict | None = None):
        """The output projection (the embedding table where it is tied) as a group of one."""
        name = "token_embd.weight" if self.config.tied else "output.weight"
        pair = (pairs or {}).get("output.weight")
        return self.engine.group(
            [self.matrices[name]],
            [self.vectors.get("output.bias")],
            [pair],
            number=-1,
            bias_gradients=[self.gradients.get("output.bias")],
        )

    @property
    def embedding(self):
        return self.matrices["token_embd.weight"]

    @property
    def embedding_scale(self) -> float:
        return float(np.float32(np.sqrt(self.config.width))) if self.config.arch.scaled_embedding else 1.0

    @property
    def output_norm(self):
        return self.vectors["output_norm.weight"]

    def rope_factors(self) -> np.ndarray | None:
        """Llama 3's divisors, if the file carries them."""
        factors = self.vectors.get("rope_freqs.weight")
        if factors is None:
            return None
        factors = np.asarray(self.engine.host(factors), np.float64)
        if factors.shape != (self.config.rope_size // 2,) or not np.all(factors > 0):
            raise UserError(
                f"{self.gguf.path.name}: tensor rope_freqs.weight does not fit heads of "
                f"{self.config.rope_size}: the file is damaged"
            )
        return factors
