"""The arrays of a Hugging Face folder, and how the numbers of each come from the file's tensors, in portions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from anytune.errors import UserError
from anytune.gguf import GGUF
from anytune.model import naming
from anytune.model.config import Config
from anytune.model.mixers.latent_attention import SPLIT
from anytune.quantization.rewrite import PIECE, Rows, rows_of

LEFT_OUT = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")  # config.json says it
EXPERTS = re.compile(r"blk\.(\d{1,5})\.ffn_(gate|up|gate_up|down)_exps\.(weight|bias)")
EXACT = (".e_score_correction_bias", ".expert_bias")  # choices hang on small differences of these: they stay float32


@dataclass(frozen=True)
class Weight:
    """name, shape: as in the folder. pieces: float32 arrays that are its numbers, one after another."""

    name: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[np.ndarray]]

    @property
    def count(self) -> int:
        return int(np.prod(self.shape))

    def stored(self, dtype: str) -> str:
        """Its own type in a folder of `dtype`."""
        return "f32" if self.name.endswith(EXACT) else dtype


def weights_of(base: GGUF, config: Config, values: Mapping[str, Rows]) -> list[Weight]:
    """All of the model's, in the file's order. values: rows of tensors in place of the file's, such as merged ones.

    UserError for a tensor that Hugging Face's layout has no name for.
    """
    found: list[Weight] = []
    for name in base.tensors:
        if name in LEFT_OUT or config.ignores(name):
            continue
        rows = values.get(name) or (lambda lo, hi, name=name: rows_of(base, name, lo, hi))
        if name.endswith(SPLIT[0]):
            found.append(_of_latents(base, name, config))
        elif name.endswith(SPLIT[1]):
            continue  # with the other half
        elif experts := EXPERTS.fullmatch(name):
            layer, part, kind = experts.groups()
            found += _of_experts(base, config, values, int(layer), part, kind)
        else:
            found.append(_plain(base, name, rows, config))
    return found


def _plain(base: GGUF, name: str, rows: Rows, config: Config) -> Weight:
    arch, t = config.arch, base.tensors[name]
    theirs = naming.theirs(arch, name)
    if not theirs:
        raise UserError(
            f"The tensor {name} has no name in Hugging Face's layout of {config.architecture}: this model cannot be "
            "exported."
        )
    if config.router is not None and arch.expert_names.block != "mlp":
        theirs = theirs.replace(".mlp.", f".{arch.expert_names.block}.")
    other = arch.others.get(name.split(".", 2)[-1])
    order = naming.orders(arch, name, base)

    def pieces() -> Iterator[np.ndarray]:
        step = t.rows if order[0] is not None else max(1, PIECE // t.shape[-1])
        for lo in range(0, t.rows, step):
            x = rows(lo, min(lo + step, t.rows))
            # a vector's numbers are turned as rows
            x = naming.arranged(x.reshape(-1) if len(t.shape) == 1 else x, order).reshape(x.shape)
            if arch.stores_unit(name):
                x = x - np.float32(1)
            yield x if other is None else other.there(x)

    shape = tuple(t.shape)
    return Weight(theirs, shape if other is None else other.shape(shape), pieces)


def _of_latents(base: GGUF, name: str, config: Config) -> Weight:
    """The matrix whose halves are two tensors, of each head the rows that make keys, then those that make values."""
    s, (k, v) = config.latent, (name.removesuffix(SPLIT[0]) + end for end in SPLIT)

    def pieces() -> Iterator[np.ndarray]:
        for head in range(s.heads):
            keys = rows_of(base, k, head * s.rank, (head + 1) * s.rank)
            yield np.concatenate([keys.T, rows_of(base, v, head * s.value, (head + 1) * s.value)])

    theirs = naming.theirs(config.arch, k.replace("attn_k_b", "attn_kv_b"))
    return Weight(theirs, (s.heads * (s.nope + s.value), s.rank), pieces)


def _of_experts(
    base: GGUF, config: Config, values: Mapping[str, Rows], layer: int, part: str, kind: str
) -> list[Weight]:
    """What of a layer's experts is written where the file has this part: gate and up of one parameter with gate."""
    names = config.arch.expert_names

    def expert(of: str, number: int) -> np.ndarray:
        """One expert's matrix [out, in], or bias [1, out]."""
        tensor = f"blk.{layer}.{naming.expert(of)}.{kind}"
        rows = values.get(tensor) or (lambda lo, hi: rows_of(base, tensor, lo, hi))
        each = base.tensors[tensor].rows // config.router.experts
        return rows(number * each, (number + 1) * each)

    experts, *one = base.tensors[f"blk.{layer}.{naming.expert(part)}.{kind}"].shape
    place = naming.LAYER.format(layer, names.module.replace("mlp", names.block))
    called = dict(zip(naming.PARTS, names.each))
    if names.each:
        halves = ("gate", "up") if part == "gate_up" else (part,)
        size = one[0] // len(halves)

        def half(n: int, at: int) -> Iterator[np.ndarray]:
            yield expert(part, n)[at * size : (at + 1) * size]

        return [
            Weight(f"{place}.{n}.{called[which]}.{kind}", (size, *one[1:]), partial(half, n, at))
            for n in range(experts)
            for at, which in enumerate(halves)
        ]
    if part == "up":
        return []

    def pieces() -> Iterator[np.ndarray]:
        for n in range(experts):
            x = expert(part, n)
            if part == "gate":
                both = x, expert("up", n)
                # of a bias the numbers, of a matrix the rows, either by turns or one behind the other
                along = -1 if kind == "bias" else 0
                x = _by_turns(*both, along) if names.turned else np.concatenate(both, along)
            yield x.T if names.turned and kind == "weight" else x

    shape = [one[0] * (2 if part == "gate" else 1), *one[1:]]
    parameter = ("down_proj" if part == "down" else "gate_up_proj") + ("_bias" if kind == "bias" else "")
    return [Weight(f"{place}.{parameter}", (experts, *(shape[::-1] if names.turned else shape)), pieces)]


def _by_turns(gate: np.ndarray, up: np.ndarray, axis: int) -> np.ndarray:
    """The first of gate, the first of up, the second of gate and so on, along an axis."""
    gate, up = np.moveaxis(gate, axis, 0), np.moveaxis(up, axis, 0)
    both = np.stack((gate, up), 1).reshape(-1, *gate.shape[1:])
    return np.moveaxis(both, 0, axis)
