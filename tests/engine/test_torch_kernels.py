"""The torch engine's fused operations against float64: in plain torch, and as Triton kernels for few and for many
tokens.

Odd sizes, strided views, outputs full of NaN beforehand. Without a GPU the kernels run in Triton's interpreter, which
is slow (so shapes are tiny) and cannot multiply bfloat16 matrices (so that type is left to the GPU).
"""

import numpy as np
import pytest

from tests.support.torch_kernels import (
    BF16,
    DEVICE,
    F16,
    F32,
    LIMIT,
    close,
    double,
    empty,
    f,
    functions,
    kept,
    kernels,
    plain_low,
    pytest_generate_tests,
    seed,
    torch,
    twins,
    view,
)

from anytune.engine import reference as ref
from anytune.engine.torch.plain_low import Part, gradient_table


@pytest.mark.parametrize("rows, n, rank", [(5, 33, 3), (19, 200, 17), (2, 20, 270)])
def test_rms_norm(f, dtype, rows, n, rank):
    limit, eps = LIMIT[dtype], 1e-5
    x, y, a, gain = view(rows, n, dtype), view(rows, n, dtype), view(rank, n, dtype), view(1, n)[0]
    out, total, low, twice = (empty(rows, size, dtype) for size in (n, n, rank, rank))
    f.rms_norm(x, gain, eps, out)
    close(out, ref.rms_norm(double(x), double(gain), eps), limit)
    f.rms_norm(x, gain, eps, out, a=a, low=low)
    close(out, ref.rms_norm(double(x), double(gain), eps), limit)
    close(low, double(out) @ double(a).T, limit)
    f.rms_norm(x, gain, eps, out, add=y, total=total)
    close(total, double(x) + double(y), limit)
    close(out, ref.rms_norm(double(total), double(gain), eps), limit)
    kept(out, total, low)
    want, low[...] = total.clone(), float("nan")
    f.rms_norm(x, gain, eps, out, add=y, total=total, a=a, low=low, keep=twice)
    close(low, double(out) @ double(a).T, limit)
    assert torch.equal(low, twice) and torch.equal(total, want)
    kept(out, total, low, twice)
    out[...] = low[...] = twice[...] = float("nan")
    f.rms_norm(x, gain, eps, out, add=y, total=x, a=a, low=low, keep=twice)  # over its input
    assert torch.equal(x, want) and torch.equal(low, twice)
    close(out, ref.rms_norm(double(want), double(gain), eps), limit)
    close(low, double(out) @ double(a).T, limit)


@pytest.mark.parametrize("rank", [0, 5])
def test_rms_norm_of_a_float32_stream(f, rank):
    x, y, gain, a = view(6, 40), view(6, 40, F16), view(1, 40)[0], view(5, 40, F16)
    out, total, low = empty(6, 40, F16), empty(6, 40), empty(6, 5, F16)
    f.rms_norm(x, gain, 1e-6, out, add=y, total=total, **(dict(a=a, low=low) if rank else {}))
    close(total, double(x) + double(y), 1e-6)
    close(out, ref.rms_norm(double(total), double(gain), 1e-6), LIMIT[F16])
    if rank:
        close(low, double(out) @ double(a).T, LIMIT[F16])


@pytest.mark.parametrize("rows, n", [(3, 33), (4, 130)])
def test_rms_norm_backward(f, dtype, rows, n):
    eps, (dy, x, residual), gain = 1e-4, [view(rows, n, dtype) for _ in range(3)], view(1, n)[0]
    want = ref.gradient(lambda z: ref.rms_norm(z, double(gain), eps), double(x), double(dy))
    out, normed = empty(rows, n, dtype), empty(rows, n, dtype)
    f.rms_norm_backward(dy, x, gain, eps, None, out)
    close(out, want, LIMIT[dtype])
    f.rms_norm_backward(dy, x, gain, eps, residual, dy, normed)
    close(dy, want + double(residual), LIMIT[dtype])
    close(normed, ref.rms_norm(double(x), double(gain), eps), LIMIT[dtype])
    kept(out, normed)


@pytest.mark.parametrize("rows, n, rank", [(3, 33, 3), (18, 130, 17), (2, 20, 270)])
@pytest.mark.parametrize("turned", [True, False])
def test_rms_norm_backward_with_its_reader(f, dtype, rows, n, rank, turned):
    """The low-rank product does not change the gradient, and is that of the rounded gradient."""
    (dy, x, residual), gain = [view(rows, n, dtype) for _ in range(3)], view(1, n)[0]
    b = view(rank, n, dtype).t() if turned else view(n, rank, dtype)
    want, out, normed, low = (
        empty(rows, n, dtype),
        empty(rows, n, dtype),
        empty(rows, n, dtype),
        empty(rows, rank, dtype),
    )
    inverse = torch.full((rows,), float("nan"), device=DEVICE)
    f.rms_norm_backward(dy, x, gain, 1e-4, residual, out, inverse=inverse, b=b, low=low)
    close(inverse, 1 / np.sqrt((double(x) ** 2).mean(1) + 1e-4), LIMIT[F32])
    for more in (None, residual):
        f.rms_norm_backward(dy, x, gain, 1e-4, more, want)
        f.rms_norm_backward(dy, x, gain, 1e-4, more, out, b=b, low=low)
        close(out, want, LIMIT[dtype] / 2)
        close(low, double(out) @ double(b), LIMIT[dtype])
    kept(out, low)
    before, low[...] = low.clone(), float("nan")
    f.rms_norm_backward(dy, x, gain, 1e-4, residual, residual, normed, b=b, low=low)
    assert torch.equal(residual, out) and torch.equal(low, before)
    close(normed, ref.rms_norm(double(x), double(gain), 1e-4), LIMIT[dtype])


def gradient_of_heads(function, x, dy, size, delta=1e-6):
    """ref.gradient() where heads do not reach each other: one element of every head at a time."""
    out, dy = np.empty((x.size // size, size)), dy.reshape(-1, size)
    for at in range(size):
        step = np.zeros(out.shape)
        step[:, at] = delta
        slope = (function(x + step.reshape(x.shape)) - function(x - step.reshape(x.shape))) / (2 * delta)
        out[:, at] = (slope.reshape(-1, size) * dy).sum(1)
    return out.reshape(x.shape)


@pytest.mark.parametrize("heads, n_kv_heads, size, pairs", [(4, 2, 12, 6), (3, 1, 20, 5), (2, 1, 576, 32)])
@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("norms", [True, False])
def test_qk_norm_rope(f, dtype, heads, n_kv_heads, size, pairs, neox, norms):
    tokens, eps = 5, 1e-5
    cos, sin = view(9, pairs, spare=0), view(9, pairs, spare=0)
    positions = torch.tensor([0, 1, 8, 3, 3], dtype=torch.int32, device=DEVICE)
    gains = (view(1, size)[0], view(1, size)[0]) if norms else (None, None)
    parts = [(view(tokens, n * size, dtype), n, gain) for n, gain in zip((heads, n_kv_heads), gains)]
    (q, _, _), (k, _, _) = parts
    given = (*gains, eps, cos, sin, positions, heads, n_kv_heads, neox)

    def reference(z, n, gain):
        if gain is not None:
            z = ref.rms_norm(z, double(gain), eps, n)
        return ref.rope(z, double(cos), double(sin), positions.cpu().numpy(), n, neox)

    outs, grads = [empty(*z.shape, dtype) for z, _, _ in parts], [view(*z.shape, dtype) for z, _, _ in parts]
    wants = [
        gradient_of_heads(lambda z, n=n, gain=gain: reference(z, n, gain), double(x), double(dy), size)
        for (x, n, gain), dy in zip(parts, grads)
    ]
    f.qk_norm_rope(q, k, *given, *outs)
    for out, (x, n, gain) in zip(outs, parts):
        close(out, reference(double(x), n, gain), LIMIT[dtype])
    kept(*outs)
    f.qk_norm_rope_backward(*grads, q, k, *given)
    for got, want in zip(grads, wants):
        close(got, want, LIMIT[dtype])
    f.qk_norm_rope(q, k, *given, q, k)
    assert torch.equal(q, outs[0]) and torch.equal(k, outs[1])


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("rows, n, rank", [(3, 33, 3), (18, 300, 16), (2, 20, 270)])
def test_glu(f, dtype, activation, rows, n, rank):
    gate, up, dy, a = view(rows, n, dtype, 2.0), view(rows, n, dtype), view(rows, n, dtype), view(rank, n, dtype)
    out, low, twice = empty(rows, n, dtype), empty(rows, rank, dtype), empty(rows, rank, dtype)
    want = ref.glu(double(gate), double(up), activation)
    f.glu(gate, up, activation, out)
    close(out, want, LIMIT[dtype])
    out[...] = float("nan")
    f.glu(gate, up, activation, out, a=a, low=low)
    close(out, want, LIMIT[dtype])
    close(low, double(out) @ double(a).T, LIMIT[dtype])
    low[...] = float("nan")
    f.glu(gate, up, activation, out, a=a, low=low, keep=twice)
    close(low, double(out) @ double(a).T, LIMIT[dtype])
    assert torch.equal(low, twice)
    dgate, dup, again = (empty(rows, n, dtype) for _ in range(3))
    f.glu_backward(dy, gate, up, activation, dgate, dup)
    # the derivative is elementwise, so all of it is two evaluations
    slope = (ref.activation(double(gate) + 1e-6, activation) - ref.activation(double(gate) - 1e-6, activation)) / 2e-6
    close(dgate, double(dy) * double(up) * slope, LIMIT[dtype])
    close(dup, double(dy) * ref.activation(double(gate), activation), LIMIT[dtype])
    kept(out, low, twice, dgate, dup)
    f.glu_backward(dy, gate, up, activation, gate, up, again)
    assert torch.equal(gate, dgate) and torch.equal(up, dup)
    close(again, want, LIMIT[dtype])


@pytest.mark.parametrize("rows, n, rank", [(3, 33, 3), (18, 300, 17), (35, 70, 32), (2, 20, 270)])
@pytest.mark.parametrize("turned", [True, False])
def test_glu_backward_with_its_reader(f, dtype, rows, n, rank, turned):
    """The low-rank product does not change the gradients, and is that of the rounded ones."""
    gate, up, dy = (view(rows, n, dtype) for _ in range(3))
    b = view(rank, 2 * n, dtype).t() if turned else view(2 * n, rank, dtype)
    dgate, dup, again, first, second = (empty(rows, n, dtype) for _ in range(5))
    low = empty(rows, rank, dtype)
    f.glu_backward(dy, gate, up, "silu", first, second)
    f.glu_backward(dy, gate, up, "silu", dgate, dup, b=b, low=low)
    close(dgate, first, LIMIT[dtype] / 2)
    close(dup, second, LIMIT[dtype] / 2)
    close(low, double(dgate) @ double(b[:n]) + double(dup) @ double(b[n:]), LIMIT[dtype])
    kept(dgate, dup, low)
    before, low[...] = low.clone(), float("nan")
    f.glu_backward(dy, gate, up, "silu", gate, up, again, b=b, low=low)
    assert torch.equal(gate, dgate) and torch.equal(up, dup) and torch.equal(low, before)
    kept(again)


@pytest.mark.parametrize("rows, n, ranks", [(3, 33, (3, 3, 3)), (70, 300, (16, 16, 16)), (35, 150, (5, 17, 32))])
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_glu_gradients(f, dtype, activation, rows, n, ranks):
    """The same backward as glu_backward's, and sums over the rounded arrays; padding behind the ranks is not read."""
    r, r1, r2 = ranks
    gate, up, dy = (view(rows, n, dtype) for _ in range(3))
    low_dy, low_x = view(rows, r + 5, dtype), view(rows, r1 + r2 + 7, dtype)
    first, second, again, dgate, dup = (empty(rows, n, dtype) for _ in range(5))
    f.glu_backward(dy, gate, up, activation, first, second, again)
    grads = [torch.full(shape, 0.5, device=DEVICE) for shape in ((r, n), (n, r1), (n, r2))]
    low_dy[:, r:] = low_x[:, r1 + r2 :] = float("nan")
    f.glu_gradients(dy, gate, up, activation, dgate, dup, low_dy, low_x, *grads, 2.0)
    close(dgate, first, LIMIT[dtype] / 2)
    close(dup, second, LIMIT[dtype] / 2)
    close(grads[0], 0.5 + 2 * double(low_dy[:, :r]).T @ double(again), LIMIT[dtype] / 2)
    close(grads[1], 0.5 + double(dgate).T @ double(low_x[:, :r1]), LIMIT[F32])
    close(grads[2], 0.5 + double(dup).T @ double(low_x[:, r1 : r1 + r2]), LIMIT[F32])
    kept(dgate, dup)


def test_glu_at_extremes(f):
    gate = torch.tensor([[-1e4, -90.0, 0.0, 90.0, 1e4, float("nan")]], device=DEVICE)
    up = torch.ones_like(gate)
    for kind in ("silu", "gelu"):
        out, dgate, dup = (torch.empty_like(gate) for _ in range(3))
        f.glu(gate, up, kind, out)
        f.glu_backward(up, gate, up, kind, dgate, dup)
        np.testing.assert_allclose(double(out)[0, :5], [0, 0, 0, 90, 1e4], atol=1e-6)
        assert torch.isfinite(torch.cat((dgate, dup))[:, :5]).all() and out[0, 5].isnan() and dgate[0, 5].isnan()


@pytest.mark.parametrize("rows, inner, rank", [(5, 33, 3), (70, 300, 17)])
@pytest.mark.parametrize("turned", [True, False])
def test_low(f, dtype, rows, inner, rank, turned):
    x = view(rows, inner, dtype)
    w = view(rank, inner, dtype).t() if turned else view(inner, rank, dtype)
    out, again, twice = (empty(rows, rank, dtype) for _ in range(3))
    f.low(x, w, out)
    close(out, double(x) @ double(w), LIMIT[dtype])
    f.low(x, w, again, keep=twice)
    assert torch.equal(out, again) and torch.equal(out, twice)
    kept(out, again, twice)


@pytest.mark.parametrize("rows, unit", [(7, 1), (150, 16)])
def test_gradients(f, dtype, rows, unit):
    features, widths, ranks, columns = 70 if unit == 1 else 80, (5 * unit, 3 * unit, 6 * unit), (3, 0, 5), 16
    ranks = tuple(r if unit == 1 else min(1, r) * 16 for r in ranks)
    columns = max(16, sum(ranks))
    parts, o, r, at = [], 0, 0, 2 * unit
    for width, rank in zip(widths, ranks):
        parts.append(Part(o, o + width, r, r + rank, at, at + rank * features) if rank else None)
        o, r, at = o + width, r + rank, at + rank * (features + width)
    x, dy = view(rows, features, dtype), view(rows, o, dtype)
    low_x, low_dy = view(rows, columns, dtype), view(rows, columns, dtype)
    flat = torch.full((at + 3 * unit,), 0.25, device=DEVICE)
    want = double(flat)
    for p in filter(None, parts):
        z = [double(t) for t in (low_dy[:, p.r0 : p.r1], x, dy[:, p.o0 : p.o1], low_x[:, p.r0 : p.r1])]
        want[p.a : p.a + p.rank * features] += 0.5 * (z[0].T @ z[1]).ravel()
        want[p.b : p.b + p.rank * (p.o1 - p.o0)] += (z[2].T @ z[3]).ravel()
    f.gradients(x, low_dy, dy, low_x, gradient_table(parts, features, columns, DEVICE), flat, 0.5)
    close(flat, want, 2e-5)
    assert (flat[: 2 * unit] == 0.25).all() and (flat[-3 * unit :] == 0.25).all()
    f.gradients(x, low_dy, dy, low_x, gradient_table([None], features, columns, DEVICE), flat, 0.5)
    close(flat, want, 2e-5)
    neox = torch.full_like(flat, 0.25)
    table = gradient_table(parts, features, columns, DEVICE)
    f.gradients(x, low_dy, None, low_x, table, neox, 0.5)
    f.gradients(None, low_dy, dy, low_x, table, neox, 0.5)
    assert torch.equal(neox, flat)
    gain, inverse = view(1, features)[0], view(1, rows)[0]
    normed = double(x) * double(inverse)[:, None] * double(gain)
    want = torch.full_like(flat, 0.25)
    f.gradients(x, low_dy, dy, low_x, table, neox.fill_(0.25), 0.5, (gain, inverse))
    f.gradients(torch.as_tensor(normed).to(DEVICE).to(dtype), low_dy, dy, low_x, table, want, 0.5)
    close(neox, want, LIMIT[dtype])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_gradients_of_groups(f, dtype, count):
    """As each group by itself, whatever their widths and ranks."""
    items, at, rows = [], 0, 40
    for number in range(count):
        features, width, rank = 70 + 16 * number, 90 - 7 * number, (3, 16, 5, 1)[number]
        table = gradient_table(
            [None, Part(10, width, 0, rank, at, at + rank * features)], features, 16 * (1 + number % 2), DEVICE
        )
        at += rank * (features + width - 10)
        columns = 16 * (1 + number % 2)
        items.append(
            (
                view(rows, features, dtype),
                view(rows, columns, dtype),
                view(rows, width, dtype),
                view(rows, columns, dtype),
                table,
                0.5 + number,
            )
        )
    flat, want = torch.full((at,), 0.25, device=DEVICE), torch.full((at,), 0.25, device=DEVICE)
    f.gradients_of_groups(items, flat)
    for item in items:
        plain_low.gradients(*item[:5], want, item[5])
    close(flat, want, 2e-5)


def test_results_repeat_to_the_bit(f):
    """No sum depends on which program comes first, and none of a launch is left for the next."""
    x, y, dy, a, w, results = view(150, 300), view(150, 300), view(150, 300), view(17, 300), view(600, 17), []
    table = gradient_table([Part(0, 30, 0, 16, 0, 5000)], 300, 16, DEVICE)
    for _ in range(3):
        flat, lows, outs = (
            torch.zeros(6000, device=DEVICE),
            [empty(150, 17) for _ in range(5)],
            [empty(150, 300) for _ in range(5)],
        )
        f.low(x, w[:300], lows[0])
        f.gradients(x, lows[0][:, :16], x[:, :30], lows[0][:, 1:], table, flat, 1.0)
        f.glu(x, y, "silu", outs[0], a=a, low=lows[1])
        f.glu_backward(dy, x, y, "silu", outs[1], outs[2], b=w, low=lows[2])
        f.rms_norm(x, y[0], 1e-5, outs[3], a=a, low=lows[3])
        f.rms_norm_backward(dy, x, y[0], 1e-5, y, outs[4], b=w[:300], low=lows[4])
        pairs = [torch.zeros(size, device=DEVICE) for size in ((8, 300), (300, 8), (300, 9))]
        f.glu_gradients(dy, x, y, "silu", outs[1], outs[2], w[:150], w[150:300], *pairs, 1.0)
        lows += pairs
        results.append((flat, *lows, *outs))
    assert all(torch.equal(one, other) for more in results[1:] for one, other in zip(results[0], more))


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU: no interpreter is fast enough")
@pytest.mark.parametrize("tokens", [128, 1000])
def test_at_the_sizes_of_a_model(tokens):
    """Aligned bfloat16 as the engine makes it, where accesses are wide and products run on tensor cores: beside the
    twins."""
    size, hidden, rank = 2048, 6144, 48
    gain, a, wide = view(1, size)[0], view(rank, size, BF16, spare=64), view(tokens, 2 * hidden, BF16, spare=64)
    x, y, low_x, low_dy = (view(tokens, n, BF16, spare=64) for n in (size, size, rank, rank))
    w, down = view(2 * hidden, rank, BF16, spare=size), view(rank, hidden, BF16, spare=64)
    behind = 48 * size  # of every A
    parts = [Part(0, hidden, 0, 16, 0, behind), Part(hidden, 2 * hidden, 16, 48, 16 * size, behind + 16 * hidden)]
    table = gradient_table(parts, size, rank, DEVICE)
    targets = torch.randint(-1, 2 * hidden, (tokens,), dtype=torch.int32, device=DEVICE)
    results = []
    for made in (functions(twins()), functions(kernels())):
        widths = (size, size, rank, size, hidden, rank, rank, rank, rank, rank, rank, hidden, hidden)
        outs = [view(tokens, n, BF16, spare=64).fill_(float("nan")) for n in widths]
        out, total, riding, dx, product, riding_too, skinny, keep, keep_too, low_of_dx, low_of_both, dgate, dup = outs
        made.rms_norm(x, gain, 1e-6, out, add=y, total=total, a=a, low=riding, keep=keep)
        made.rms_norm_backward(y, x, gain, 1e-6, total, dx, b=w[:size], low=low_of_dx)
        made.glu(wide[:, :hidden], wide[:, hidden:], "silu", product, a=down, low=riding_too, keep=keep_too)
        made.glu_backward(product, wide[:, :hidden], wide[:, hidden:], "silu", dgate, dup, b=w, low=low_of_both)
        made.low(wide, w, skinny)
        pairs = [torch.zeros(size, device=DEVICE) for size in ((16, hidden), (hidden, 16), (hidden, 32))]
        made.glu_gradients(product, wide[:, :hidden], wide[:, hidden:], "silu", dgate, dup, low_dy, low_x, *pairs, 2.0)
        flat = torch.zeros(1 << 20, device=DEVICE)
        made.gradients(x, low_dy, wide, low_x, table, flat, 2.0)
        logits, losses = wide.clone(), torch.empty(tokens, device=DEVICE)
        made.loss_rows(logits, targets, torch.ones(1, device=DEVICE), losses, True)
        results.append([*outs, flat, logits, losses, *pairs])
    for got, want in zip(results[1][:-3], results[0]):
        close(got, want, LIMIT[BF16] if got.dtype == BF16 else 2e-5)
    for got, want in zip(results[1][-3:], results[0][-3:]):  # of arrays that were rounded, here and there not alike
        close(got, want, LIMIT[BF16])


@pytest.mark.parametrize("tokens, used, n", [(7, 3, 33), (5, 1, 2100), (1, 8, 300)])
def test_slots(f, dtype, tokens, used, n):
    place = torch.randperm(tokens * used).view(tokens, used).to(DEVICE)
    x, y, dy = (view(rows, n, dtype) for rows in (tokens, tokens * used, tokens * used))
    weights = torch.rand(tokens * used).to(DEVICE)
    out, total, at = empty(tokens * used, n, dtype), empty(tokens, n, dtype), place.cpu().numpy()
    f.spread(x, place, out)
    for slots in at.T:
        assert np.array_equal(double(out)[slots], double(x))
    f.collect(y, place, total)
    close(total, double(y)[at].sum(1), LIMIT[dtype])
    kept(out, total)
    inner, given = torch.full((tokens * used,), float("nan"), device=DEVICE), double(dy)
    f.weigh_backward(dy, y, weights, inner)
    close(inner, (given * double(y)).sum(1), LIMIT[F32])
    close(dy, given * double(weights)[:, None], LIMIT[dtype])


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("slots, n", [(7, 33), (3, 2100)])
def test_weighed_gated_products(f, dtype, activation, slots, n):
    gate, up, dy = (view(slots, n, dtype) for _ in range(3))
    weights, by_weights = torch.rand(slots).to(DEVICE), torch.full((slots,), float("nan"), device=DEVICE)
    w, out, dgate, dup = double(weights)[:, None], *(empty(slots, n, dtype) for _ in range(3))
    f.weighed(gate, up, activation, weights, out)
    inner = ref.glu(double(gate), double(up), activation)
    close(out, inner * w, LIMIT[dtype])
    g, u, d = map(double, (gate, up, dy))
    slope = (ref.activation(g + 1e-6, activation) - ref.activation(g - 1e-6, activation)) / 2e-6
    want, summed = (d * w * u * slope, d * w * ref.activation(g, activation)), (d * inner).sum(1)
    f.weighed_backward(dy, gate, up, activation, weights, dgate, dup, by_weights)
    close(dgate, want[0], LIMIT[dtype])
    close(dup, want[1], LIMIT[dtype])
    close(by_weights, summed, LIMIT[dtype])
    kept(out, dgate, dup)
