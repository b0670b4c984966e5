"""What each tensor's rounding costs, to second order: KL divergence without running the model once a tensor and type.

An error E of one product's output y = W x (E = (Q - W) x) moves the logits by J E, and the distributions by
KL = 1/2 E^T J^T F J E, F the covariance of one token's one-hot vector under the model. A label drawn from the model's
own distribution gives a gradient g of its log-likelihood whose mean square <g, E>^2 is that form (Fisher information).
Rounding errors of two rows of W are independent, so the rows' squares are summed instead of the square of their sum:
the same mean, a small part of the variance. One forward and `draws` backwards thus serve every tensor and every type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.engine.composed import Composed
from anytune.likelihood.windows import Forward, logsumexp
from anytune.model.stack import embed, finish, finish_backward, layer_backward, layer_forward
from anytune.quantization.imatrix import Importance
from anytune.quantization.search import tables
from anytune.quantization.search.experts import expert_costs
from anytune.quantization.search.rounding import Rounding

if TYPE_CHECKING:
    from anytune.model import Model

Costs = dict[str, dict[str, float]]


class Watch(Composed):
    """An engine whose products' backwards are written down; everything else is the engine's own.

    seen: id of a group -> (its input [T, in], for each draw the gradients of its linears' outputs [T, out]), float32 on
    the host; routed: id of a group of experts -> int32 [T, used], the experts of each token, whose slots are the rows.
    """

    def __init__(self, engine: Any):
        self._engine = engine
        self.seen: dict[int, tuple[np.ndarray, list[tuple[np.ndarray, ...]]]] = {}
        self.routed: dict[int, np.ndarray] = {}
        self.read: dict[int, np.ndarray] = {}  # what experts read: frozen ones do not ask for it again
        self.split, self.join = engine.split, engine.join

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def _see(self, dys: tuple, x: Any, group: Any) -> None:
        if id(group) not in self.seen:
            self.seen[id(group)] = self.read.pop(id(group)) if id(group) in self.read else self._engine.host(x), []
        self.seen[id(group)][1].append(tuple(self._engine.host(dy) for dy in dys))

    def linear_backward(self, dys: tuple, x: Any, group: Any, need_dx: bool = True) -> Any:
        self._see(dys, x, group)
        return self._engine.linear_backward(dys, x, group, need_dx)

    def expert_linear(self, x: Any, group: Any, routing: Any) -> tuple:
        self.read[id(group)] = np.array(self._engine.host(x), np.float32)
        return self._engine.expert_linear(x, group, routing)

    def expert_linear_backward(self, dys: tuple, x: Any, group: Any, routing: Any, need_dx: bool = True) -> Any:
        self._see(dys, x, group)
        self.routed[id(group)] = np.asarray(self._engine.host(routing.chosen), np.int32)
        return self._engine.expert_linear_backward(dys, x, group, routing, need_dx)


def curvature(
    model: Model,
    pieces: Sequence[Sequence[int]],
    types: Mapping[str, Sequence[str]],
    *,
    draws: int = 8,
    seed: int = 0,
    importance: Importance | None = None,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Costs:
    """Tensor -> type -> KL divergence in nats a token, for the matrices that `types` names and the model runs.

    pieces: windows of one length; every token's distribution counts. draws: labels drawn for each token. importance:
    weighs the search for levels, as when the file is written. A type that cannot hold a tensor costs infinity.
    progress: (layers done, of how many).
    """
    forward = Forward(model, len(pieces[0]))
    e, c, layers = model.engine, model.config, forward.layers
    positions, inputs, top = _run(forward, pieces)
    watch = Watch(e)
    with ThreadPoolExecutor(threads) as pool:
        rounding = Rounding(model.gguf, types, importance, pool)
        hidden, sums, gradients = _drawn(forward, top, draws, np.random.default_rng(seed))
        costs = {
            name: tables.head(rounding, name, hidden, sums, c.logit_cap)
            for name in types
            if name == ("token_embd.weight" if c.tied else "output.weight")
        }
        owed: list[dict] = [{} for _ in gradients]  # of each draw: gradients of what layers lent to others
        for number in reversed(range(len(layers))):
            layer = layers[number]
            saved = layer_forward(watch, e.vector(inputs.pop()), layer, positions)[1]
            gradients = [
                _back(watch, e, dx, saved, layer, positions, own) for dx, own in zip(gradients, owed, strict=True)
            ]
            for group, parts in layer.named:
                x, drawn = watch.seen.pop(id(group))
                chosen = watch.routed.pop(id(group), None)
                for place, part in enumerate(parts):
                    name = f"blk.{number}.{part}.weight"
                    if name in types:
                        dys = [some[place] for some in drawn]
                        costs[name] = (
                            _costs(rounding, name, x, dys, len(pieces))
                            if chosen is None
                            else expert_costs(rounding, name, x, dys, len(pieces), chosen)
                        )
            if progress is not None:
                progress(len(layers) - number, len(layers))
        if "token_embd.weight" in types:
            looked_up = tables.lookup(rounding, "token_embd.weight", pieces, gradients, model.weights.embedding_scale)
            before = costs.get("token_embd.weight", {})
            costs["token_embd.weight"] = {kind: cost + before.get(kind, 0.0) for kind, cost in looked_up.items()}
    return costs


def _back(watch: Watch, e: Any, dx: np.ndarray, saved: Any, layer: Any, positions: Any, owed: dict) -> np.ndarray:
    """The gradient by a layer's input on the host; owed: what it owes to layers below, and is owed."""
    layer.run.owed = owed
    return e.host(layer_backward(watch, e.vector(dx), saved, layer, positions, None, bottom=True))


def _run(forward: Forward, pieces: Sequence[Sequence[int]]) -> tuple[Any, list[np.ndarray], Any]:
    """(positions, every layer's input [T, d] on the host, the last layer's output on the engine)."""
    e, w = forward.engine, forward.model.weights
    ids = np.concatenate([np.asarray(piece, np.int32) for piece in pieces])
    starts = np.cumsum([0, *map(len, pieces)]).astype(np.int32)
    e.training = False
    e.begin(starts, len(ids), (0, 0, 0))
    positions = e.integers(np.concatenate([np.arange(len(piece), dtype=np.int32) for piece in pieces]))
    x, inputs = embed(e, w, forward.layers, e.integers(ids), positions), []
    for layer in forward.layers:
        inputs.append(e.host(x))
        x = layer_forward(e, x, layer, positions)[0]
    return positions, inputs, x


def _drawn(
    forward: Forward, top: Any, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """(what the head sees [T, d], logits' lse [T], for each draw the gradient of the drawn labels' summed loss by
    the last layer's output [T, d])."""
    e, w = forward.engine, forward.model.weights
    h = finish(e, w, top)
    labels, sums = np.empty((draws, len(h)), np.int32), np.empty(len(h))
    for lo, logits in forward.logits(h, np.arange(len(h))):
        sums[lo : lo + len(logits)] = logsumexp(logits)
        labels[:, lo : lo + len(logits)] = sample(logits, sums[lo : lo + len(logits)], draws, rng)
    if forward.head.cap:
        found = [e.cross_entropy(h, forward.head, e.integers(row), 1.0, True)[1] for row in labels]
        return e.host(h), sums, [e.host(finish_backward(e, w, dh, top)) for dh in found]
    # one label's gradient is (mean row of the head) - (its own row): the first is common to all draws
    rows = [e.host(e.embed(e.integers(row), forward.head.weights[0], 1.0)) for row in labels]
    common = e.host(e.cross_entropy(h, forward.head, e.integers(labels[0]), 1.0, True)[1]) + rows[0]
    return (e.host(h), sums, [e.host(finish_backward(e, w, e.vector(common - row), top)) for row in rows])


def sample(logits: np.ndarray, sums: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Labels from the distributions of float32 [n, vocabulary], whose log-sums are given: int32 [draws, n]."""
    shares = np.cumsum(np.exp(logits - sums[:, None].astype(np.float32)), axis=1, dtype=np.float64)
    thresholds = rng.random((draws, len(logits))) * shares[:, -1]
    found = [np.searchsorted(row, at) for row, at in zip(shares, thresholds.T, strict=True)]
    return np.stack(found, axis=1).astype(np.int32)


def _costs(rounding: Rounding, name: str, x: np.ndarray, drawn: Sequence[np.ndarray], windows: int) -> dict[str, float]:
    """Type -> KL of one matrix. x: [T, in]; drawn: [T, out] a draw."""

    def prepare(lo: int, exact: np.ndarray) -> Callable[[np.ndarray], float]:
        hi = lo + len(exact)
        parts = [dy[:, lo:hi].reshape(windows, -1, hi - lo) for dy in drawn]

        def one(difference: np.ndarray) -> float:
            error = (x @ difference.T).reshape(parts[0].shape)
            return sum(float(np.square(np.einsum("wtr,wtr->wr", dy, error)).sum(dtype=np.float64)) for dy in parts)

        return one

    return {kind: cost / (2 * len(drawn) * len(x)) for kind, cost in rounding.sums(name, prepare).items()}
