"""A trainee that is small and real: a low-rank bigram model with exact gradients, dropout and AdamW."""

from __future__ import annotations

import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from anytune.files import atomic_write
from anytune.text.dataset import Builder, Dataset

VOCABULARY = 24


class FakeAdapter:
    """tensors: {name: (a [r, vocabulary], b [vocabulary, r])}; a file is the bytes of a and b in turn."""

    def __init__(self, tensors):
        self.tensors = tensors

    def save(self, path) -> None:
        with atomic_write(path) as file:
            for a, b in self.tensors.values():
                file.write(np.array(a.shape, "<i4").tobytes() + a.tobytes() + b.tobytes())

    @classmethod
    def load(cls, path):
        data = Path(path).read_bytes()
        r, v = np.frombuffer(data, "<i4", 2)
        values = np.frombuffer(data, "<f4", offset=8)
        return cls({"bigram": (values[: r * v].reshape(r, v), values[r * v :].reshape(v, r))})


class FakeProduct:
    noun, file, flag, again, load = "adapter", "adapter.gguf", "--output-adapter", "--lora", FakeAdapter.load

    def __init__(self, trainee):
        self.trainee = trainee

    def now(self):
        return self.trainee.adapter(copy=False)

    def nbytes(self) -> int:
        return 4 * self.trainee.n_parameters


class FakeTrainee:
    """logits[t] = b @ (a[:, ids[t]] * dropout mask); the interface is Model.trainee()'s."""

    def __init__(self, rank=4, dropout=0.1, seed=0, nan_at=None):
        rng = np.random.default_rng(seed)
        self.p = {
            "a": rng.normal(size=(rank, VOCABULARY)).astype(np.float32) * 0.3,
            "b": np.zeros((VOCABULARY, rank), np.float32),
        }
        self.m = {k: np.zeros_like(v) for k, v in self.p.items()}
        self.v = {k: np.zeros_like(v) for k, v in self.p.items()}
        self.g = {k: np.zeros_like(v) for k, v in self.p.items()}
        self.dropout, self.nan_at, self.names = dropout, nan_at, ["bigram"]
        self.n_parameters = sum(v.size for v in self.p.values())
        self.spec = {"rank": rank, "dropout": dropout, "seed": seed}
        self.estimate = SimpleNamespace(peak_bytes=1 << 20, flops_per_token=1e3, text="all in memory")
        self.seen: list[tuple] = []
        self.on_micro = lambda: None

    def _forward(self, batch, mask):
        rows = np.flatnonzero(batch.targets >= 0)
        ids, targets = batch.ids[rows], batch.targets[rows]
        h = self.p["a"][:, ids] * mask[:, None]
        logits = self.p["b"] @ h
        logits = logits - logits.max(0)
        logp = logits - np.log(np.exp(logits).sum(0))
        return ids, targets, h, logp

    def accumulate(self, batch, scale, step, micro):
        self.on_micro()
        self.seen.append((step, micro, zlib.crc32(batch.ids.tobytes()), batch.loss_tokens, scale))
        rng = np.random.default_rng([step, micro])
        mask = (rng.random(len(self.p["a"])) >= self.dropout).astype(np.float32)
        ids, targets, h, logp = self._forward(batch, mask)
        loss = float(-logp[targets, np.arange(len(targets))].sum())
        d = np.exp(logp)
        d[targets, np.arange(len(targets))] -= 1
        d *= np.float32(scale)
        self.g["b"] += d @ h.T
        dh = (self.p["b"].T @ d) * mask[:, None]
        np.add.at(self.g["a"].T, ids, dh.T)
        return float("nan") if self.nan_at == step else loss

    def evaluate(self, batch):
        _, targets, _, logp = self._forward(batch, np.ones(len(self.p["a"]), np.float32))
        return float(-logp[targets, np.arange(len(targets))].sum())

    def update(self, lr, step, *, beta1, beta2, eps, weight_decay, max_grad_norm):
        norm = float(np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in self.g.values())))
        if not np.isfinite(norm):
            return float("nan")
        clip = min(1.0, max_grad_norm / (norm + 1e-6)) if max_grad_norm else 1.0
        for k, p in self.p.items():
            g = self.g[k] * np.float32(clip)
            self.m[k] += np.float32(1 - beta1) * (g - self.m[k])
            self.v[k] += np.float32(1 - beta2) * (g * g - self.v[k])
            m, v = self.m[k] / (1 - beta1**step), self.v[k] / (1 - beta2**step)
            p -= (lr * (m / (np.sqrt(v) + eps) + weight_decay * p)).astype(np.float32)
            self.g[k][:] = 0
        return norm

    def loads(self):
        return {}

    def state(self):
        return {f"{group}.{k}": v for group, d in (("p", self.p), ("m", self.m), ("v", self.v)) for k, v in d.items()}

    def load_state(self, arrays):
        mine = self.state()
        if set(arrays) != set(mine) or any(arrays[k].shape != mine[k].shape for k in mine):
            raise ValueError("another trainee's state")
        for k, v in mine.items():
            v[:] = arrays[k]

    def adapter(self, copy=True):
        return FakeAdapter({"bigram": tuple(v.copy() if copy else v for v in self.p.values())})


def chain_dataset(examples=40, seed=0, shortest=5, longest=30) -> Dataset:
    """Random walks over a fixed cycle with noise (so that there is something to learn), partly masked."""
    rng, builder = np.random.default_rng(seed), Builder()
    for line in range(1, examples + 1):
        n = int(rng.integers(shortest, longest + 1))
        start, noise = int(rng.integers(VOCABULARY)), rng.random(n) < 0.1
        ids = [int(rng.integers(VOCABULARY)) if noise[k] else (start + 5 * k) % VOCABULARY for k in range(n)]
        builder.add(ids, [k >= n // 3 for k in range(n)], line)
    return builder.finish(["data.jsonl"])
