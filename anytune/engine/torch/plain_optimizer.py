"""The norm of all gradients, clipping and AdamW in plain torch, without asking the device for anything.

hyper float32 [9]: lr_a, lr_b, 1-beta1^step, 1-beta2^step, beta1, beta2, eps, weight decay, max_norm (0: no clipping).
state float32 [4]: norm of the last step; halt (not 0: nothing is updated until the host clears it); summed loss of the
step, set by others; the factor that the gradients were clipped by.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor
PIECES = 512  # partial sums
UNIT = 4096  # a piece is a multiple of this many elements
CHUNK = 1 << 24  # elements at once, so that temporaries stay small

NORM, HALT, LOSS, CLIP = range(4)


def piece_size(size: int, pieces: int) -> int:
    """Elements that one partial sum covers."""
    return max(1, -(-size // (pieces * UNIT))) * UNIT


def new_partials(g: Tensor) -> Tensor:
    return torch.zeros(PIECES, dtype=torch.float32 if g.device.type == "mps" else torch.float64, device=g.device)


def square_sum(g, partials=None):
    """partials float64 [PIECES] (made if None): sums of squares of equal pieces of g,
    the last ones may be empty. -> partials."""
    partials = new_partials(g) if partials is None else partials
    size = piece_size(g.numel(), len(partials))
    partials.zero_()
    whole = g.numel() // size
    if whole:
        partials[:whole] = (
            torch.linalg.vector_norm(g[: whole * size].view(whole, size), dim=1, dtype=partials.dtype) ** 2
        )
    if whole * size < g.numel():
        partials[whole] = torch.linalg.vector_norm(g[whole * size :], dtype=partials.dtype) ** 2
    return partials


def decide(hyper, partials, state):
    """Finish the norm; halt, for good, if it or the step's loss is not finite; find the clipping factor."""
    norm = partials.sum().sqrt().float()
    state[HALT] = ((state[HALT] != 0) | ~torch.isfinite(norm) | ~torch.isfinite(state[LOSS])).float()
    state[NORM] = norm
    limit = hyper[8]
    state[CLIP] = torch.where((limit > 0) & (norm > limit), limit / norm, torch.ones_like(norm))


def adamw(p, g, m, v, hyper, partials, state, size_a):
    """One AdamW step (Loshchilov & Hutter 2019) on flat float32 vectors;
    g is clipped, used and zeroed, also when halted.

    Elements before size_a learn at lr_a, the others at lr_b (LoRA+, Hayou et al. 2024). For what hyper and state hold,
    see above. A halted step changes neither p nor m nor v.
    """
    decide(hyper, partials, state)
    correct1, correct2, beta1, beta2, eps, decay = hyper[2:8].unbind()
    halted, clip = state[HALT] != 0, state[CLIP]
    for low, high, lr in ((0, size_a, hyper[0]), (size_a, p.numel(), hyper[1])):
        for first in range(low, high, CHUNK):
            part = slice(first, min(first + CHUNK, high))
            slope, mean, square = g[part] * clip, m[part], v[part]
            mean = beta1 * mean + (1 - beta1) * slope
            square = beta2 * square + (1 - beta2) * slope * slope
            update = (mean / correct1) / ((square / correct2).sqrt() + eps)
            m[part] = torch.where(halted, m[part], mean)
            v[part] = torch.where(halted, v[part], square)
            p[part] = torch.where(halted, p[part], p[part] * (1 - lr * decay) - lr * update)
    g.zero_()
