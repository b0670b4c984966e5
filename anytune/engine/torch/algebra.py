"""Linear algebra for closed forms on a torch device: engine/algebra.py says what each method means."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from anytune.engine.algebra import NotPositive

Tensor = torch.Tensor


class CardAlgebra:
    """float64 sums and factors on the card, so that nothing but pairs ever leaves it."""

    def __init__(self, device: torch.device):
        self.device = device

    def zeros(self, rows: int, columns: int) -> Tensor:
        return torch.zeros((rows, columns), dtype=torch.float64, device=self.device)

    def array(self, values: Any) -> Tensor:
        return torch.from_numpy(np.array(values, np.float32)).to(self.device)

    def double(self, x: Tensor) -> Tensor:
        return x.double()

    def single(self, x: Tensor) -> Tensor:
        return x.float()

    def host(self, x: Tensor) -> np.ndarray:
        return x.cpu().numpy()

    def concatenate(self, parts: list, axis: int) -> Tensor:
        return torch.cat(parts, axis) if len(parts) > 1 else parts[0]

    def normal(self, rows: int, columns: int) -> Tensor:
        return self.array(np.random.default_rng(0).standard_normal((rows, columns)))

    def trace(self, g: Tensor) -> float:
        return float(g.trace())

    def add_diagonal(self, g: Tensor, value: float) -> None:
        g.diagonal().add_(value)

    def add_gram(self, into: Tensor, x: Tensor, weight: float) -> None:
        into.add_(x.T @ x, alpha=weight)

    def mirror(self, g: Tensor) -> None:
        """Sums are whole here."""

    def add_cross(self, into: Tensor, x: Tensor, y: Tensor, weight: float) -> None:
        into.add_(x.T @ y, alpha=weight)

    def factor(self, g: Tensor) -> Tensor:
        factor, wrong = torch.linalg.cholesky_ex(g)
        if int(wrong) or not bool(torch.isfinite(factor.diagonal()).all()):
            raise NotPositive
        return factor

    def substitute(self, factor: Tensor, y: Tensor) -> Tensor:
        return torch.cholesky_solve(y.double(), factor)

    def orthonormal(self, x: Tensor) -> Tensor:
        return torch.linalg.qr(x)[0]

    def eigh(self, g: Tensor) -> tuple[np.ndarray, Tensor]:
        values, vectors = torch.linalg.eigh(g)
        return values.flip(0).cpu().numpy(), vectors.flip(1)

    def inverse_transposed(self, factor: Tensor, u: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(factor.T, u, upper=True)

    def lower(self, factor: Tensor) -> Tensor:
        return factor
