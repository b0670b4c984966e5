"""The operations of an optimizer's step; engine/optimizers.py says what each optimizer does."""

from __future__ import annotations

from typing import Protocol

from .shapes import Array, Number


class Updates(Protocol):
    """Every engine has them."""

    # -- optimizer, on flat float32 vectors
    def adamw(
        self,
        p,
        g,
        m,
        v,
        cut: int,
        rates: tuple[float, float],
        step: int,
        beta1: float,
        beta2: float,
        eps: float,
        decay: float,
        max_norm: float,
    ) -> Number:
        """One AdamW step in place, at rates[0] up to `cut` and rates[1] behind it -> the gradients' Euclidean norm.

        Gradients are clipped to max_norm (0 disables clipping), used and zeroed. If the norm is not finite nothing
        changes, now or in later steps that were already asked for.
        """

    # -- optimizers of whole weights, a tensor at a time (engine/optimizers.py says what each does)
    def norm(self, gradients: list) -> float:
        """The Euclidean norm of all gradients (flat vectors) together;
        with a process group, of their sums, which they become."""

    def optimizer_state(self, kind: str, shape: tuple[int, ...]) -> dict[str, Array]:
        """What the optimizer `kind` keeps for a tensor of this shape, at its start.
        host(), view() and load() take each."""

    def optimize(self, kind: str, p, g, state: dict[str, Array], shape: tuple[int, ...], rule) -> None:
        """One step of `kind` by `rule` (optimizers.Rule): p and state change in place,
        g (both flat float32) is zeroed."""
