"""The optimizers of engine/optimizers.py in torch; temporaries are of pieces that a processor's caches hold."""

from __future__ import annotations

import functools
import math

import torch
from torch.optim.adamw import adamw

from anytune.engine import optimizers as rules

from .plain_optimizer import PIECES, UNIT, new_partials
from .update import LOSS

Tensor = torch.Tensor
PIECE = {"cpu": 1 << 16}  # weights at once; multiples of rules.BLOCK
OTHER = 1 << 24


def norm(e, gradients: list[Tensor]) -> float:
    """Squares are summed in float32 within runs of UNIT elements (in float64 by Triton's kernel), then in float64."""
    if e.process_group is not None:
        for g in gradients:
            e.process_group.all_reduce_(g)
    if e.updater.state is not None:
        e.updater.state[LOSS] = 0  # what the step's losses added up to: here the host looks at them
    if e.compiled:
        partials = new_partials(gradients[0]).new_zeros((len(gradients), PIECES))
        for g, own in zip(gradients, partials):
            e.f.square_sum(g, own)
        return math.sqrt(float(partials.sum()))
    return math.sqrt(float(torch.stack([_squares(g) for g in gradients]).sum()))


def _squares(g: Tensor) -> Tensor:
    whole, wide = g.numel() // UNIT * UNIT, torch.float32 if g.device.type == "mps" else torch.float64
    sums = torch.linalg.vector_norm(g[:whole].view(-1, UNIT), dim=1).to(wide).square_().sum()
    return sums + torch.linalg.vector_norm(g[whole:]).to(wide).square_()


def optimizer_state(e, kind: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).to(e.device) for name, array in rules.start(kind, shape).items()}


def optimize(e, kind: str, p: Tensor, g: Tensor, state: dict[str, Tensor], shape: tuple[int, ...], rule) -> None:
    piece = PIECE.get(e.device.type, OTHER)
    if kind == "adafactor":
        _adafactor(p, g, state, shape, rule, piece)
    elif hasattr(e.f, "whole_adamw"):
        return e.f.whole_adamw(p, g, state, rule)
    elif "second" in state:
        _adamw(p, g, state["first"], state["second"], rule, piece)
    else:
        _adamw8bit(p, g, state, rule, piece)
    g.zero_()


def _adamw(p, g, first, second, rule, piece: int) -> None:
    """torch's own AdamW in one pass, as torch.optim.AdamW(fused=True) has it."""
    if rule.factor != 1:
        g.mul_(rule.factor)
    step = torch.full((), rule.step - 1.0, device=p.device)
    adamw(
        [p],
        [g],
        [first],
        [second],
        [],
        [step],
        fused=True,
        amsgrad=False,
        maximize=False,
        beta1=rule.beta1,
        beta2=rule.beta2,
        lr=rule.lr,
        weight_decay=rule.decay,
        eps=rule.eps,
    )


def _adamw8bit(p, g, state, rule, piece: int) -> None:
    root = math.sqrt(1 - rule.beta2**rule.step)
    for low in range(0, p.numel(), piece):
        part = slice(low, min(low + piece, p.numel()))
        scales = slice(low // rules.BLOCK, -(-part.stop // rules.BLOCK))
        slope = g[part].mul_(rule.factor)
        first = decode(state["first"][part], state["first_scale"][scales], True)
        second = decode(state["root"][part], state["root_scale"][scales], False).square_()
        first.mul_(rule.beta1).add_(slope, alpha=1 - rule.beta1)
        second.mul_(rule.beta2).addcmul_(slope, slope, value=1 - rule.beta2).sqrt_()
        below = torch.div(second, root).add_(rule.eps)
        p[part].mul_(1 - rule.lr * rule.decay).addcdiv_(first, below, value=-rule.lr / (1 - rule.beta1**rule.step))
        encode(first, state["first"][part], state["first_scale"][scales], True)
        encode(second, state["root"][part], state["root_scale"][scales], False)


@functools.cache
def _tables(signed: bool, device) -> tuple[Tensor, Tensor, Tensor]:
    """(codes' values float32 [256]; middles [256], the last one behind all; optimizers.first_guess as int32)."""
    values, middles, guess = rules.codes(signed), rules.middles(signed), rules.first_guess(signed)
    return (
        torch.tensor(values, device=device),
        torch.tensor([*middles, math.inf], device=device, dtype=torch.float32),
        torch.tensor(guess, dtype=torch.int32, device=device),
    )


def decode(packed: Tensor, scale: Tensor, signed: bool) -> Tensor:
    """rules.decode: float32 [n]."""
    values = _tables(signed, packed.device)[0].index_select(0, packed.int())
    for rows, factors in _blocks(values, scale):
        rows.mul_(factors)
    return values


def encode(x: Tensor, packed: Tensor, scale: Tensor, signed: bool) -> None:
    """rules.encode into packed and scale; x is given up. Not by a search: torch.bucketize takes many times as long."""
    _, middles, guess = _tables(signed, x.device)
    for rows, largest in _blocks(x, scale):
        torch.linalg.vector_norm(rows, math.inf, dim=1, keepdim=True, out=largest)
        rows.div_(torch.where(largest > 0, largest, 1.0))
    code = guess.index_select(0, (x.view(torch.int32) >> 16).bitwise_and_(0xFFFF))
    packed.copy_(code.add_(middles.index_select(0, code) < x))


def _blocks(x: Tensor, scale: Tensor):
    """(x as rows [k, BLOCK], their scales [k, 1]), then the last block if it is shorter."""
    whole = x.numel() // rules.BLOCK
    yield x[: whole * rules.BLOCK].view(whole, rules.BLOCK), scale[:whole, None]
    if whole * rules.BLOCK < x.numel():
        yield x[None, whole * rules.BLOCK :], scale[whole:, None]


def _adafactor(p, g, state, shape, rule, piece: int) -> None:
    """In place over g, which becomes the update; no number is read back."""
    keep = 1 - rule.step**rules.DECAY
    if "square" in state:
        square = state["square"]
        square.mul_(keep).add_((g * rule.factor).square_().add_(rules.TINY), alpha=1 - keep)
        g.mul_(rule.factor).div_(square.sqrt())
    else:
        grid, power = g.view(shape), rule.factor**2
        for kept, dim in ((state["row"], 1), (state["column"], 0)):
            mean = torch.linalg.vector_norm(grid, dim=dim).square_().mul_(power / shape[dim]).add_(rules.TINY)
            kept.mul_(keep).add_(mean, alpha=1 - keep)
        row, column = state["row"], state["column"]
        grid.mul_(rule.factor / (row / row.mean()).sqrt_()[:, None]).mul_(column.rsqrt())
    size = torch.linalg.vector_norm(g) / math.sqrt(g.numel())
    rate = -rule.lr / (size / rules.THRESHOLD).clamp_(min=1.0)
    p.mul_(1 - rule.lr * rule.decay).addcmul_(g, rate)
