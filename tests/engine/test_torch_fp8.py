"""Input gradients in fp8: the kernels against their plain twins on shapes that are a multiple of nothing, and whole
models' gradients against float32's."""

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
    kept,
    plain,  # noqa: F401
    pytest_generate_tests,
    seed,
    torch,
    view,
)

from anytune.engine.torch import fp8, plain_fp8, plain_low
from anytune.engine.torch.sizes import Sizes
from anytune.errors import UserError
from anytune.model import Full, load
from tests.engine.test_torch_engine import NAMES, PLACES, files, gradients, hold, trainee_of  # noqa: F401
from tests.model.conftest import stream
from tests.support import dry
from tests.support.cosines import cosines

F8 = plain_fp8.F8
STEP = 2.0**-4  # the most that rounding to e4m3 is off by, as a part of a normal number


def eighths(rows, columns, spare=5):
    """NaN everywhere, with columns behind that nobody may touch."""
    return torch.full((rows, columns + spare), float("nan"), device=DEVICE).to(F8)[:, :columns]


def behind(x):
    assert x._base[:, x.shape[1] :].float().isnan().all()


def numbers(*shape):
    return torch.full(shape, float("nan"), device=DEVICE)


def same_but_rounding(got, want):
    """e4m3 whose operands were the same but for rounding of the last bit."""
    a, b = double(got.float()), double(want.float())
    assert (np.abs(a - b) <= 2 * STEP * np.maximum(np.abs(a), np.abs(b)) + 2.0**-9).all()
    assert (a != b).mean() < 0.02


@pytest.mark.parametrize("tokens, n, rank", [(1, 16, 16), (7, 270, 48), (33, 1030, 0)])
def test_quantize(f, dtype, tokens, n, rank):
    x, low = view(tokens, n, dtype, 3.0), view(tokens, rank, dtype) if rank else None
    x[tokens // 2] = 0
    if rank:
        low[tokens // 2] = 0  # as dy B is where dy is
    out, scale, size = eighths(tokens, n + rank), numbers(tokens), numbers(tokens)
    f.quantize(x, low, out, scale, size)
    behind(out)
    want, factor = double(x), double(scale)[:, None]
    np.testing.assert_allclose(double(size), np.linalg.norm(want, axis=1), rtol=1e-4)
    got = double(out.float()) * factor
    assert (np.abs(got[:, :n] - want) <= STEP * np.abs(want) + factor * 2.0**-10).all()
    if rank:
        assert (np.abs(got[:, n:] - double(low)) <= STEP * np.abs(double(low)) + factor * 2.0**-10).all()
    again = eighths(tokens, n)
    f.quantize(x, None, again, numbers(tokens))
    assert torch.equal(again.float(), out[:, :n].float())


def test_what_is_no_number_stays_none_and_the_rest_is_cut_off(f):
    x, low = view(3, 40, F32), view(3, 16, F32)
    x[0, 3], x[1, 4], low[2] = float("nan"), float("inf"), 1e6
    out, scale = eighths(3, 56), numbers(3)
    f.quantize(x, low, out, scale)
    got = out.float() * scale[:, None]
    assert got[0, 3].isnan() and not got[1].isfinite().all()
    assert (out.float()[2, 40:] == plain_fp8.TOP).all() and got[2, :40].isfinite().all()


@pytest.mark.parametrize("rows, n", [(1, 16), (70, 130), (129, 65)])
def test_turn(f, dtype, rows, n):
    source, out = view(rows, n, dtype), eighths(n, rows)
    scale = fp8.best_scales(source)
    f.turn(source, scale, out)
    behind(out)
    want = double(source)
    assert (
        np.abs((double(out.float()) * double(scale)[:, None]).T - want)
        <= STEP * np.abs(want) + double(scale) * 2.0**-10
    ).all()


@pytest.mark.parametrize("tokens, n, rank", [(5, 100, 16), (70, 270, 48)])
def test_low_fp8(f, tokens, n, rank):
    x, w = torch.randn(tokens, n + rank, device=DEVICE), view(n, rank, BF16 if DEVICE == "cuda" else F32)
    both, scale = x.to(F8), torch.rand(tokens, device=DEVICE) + 0.5
    low = empty(tokens, rank, w.dtype)
    f.low_fp8(both[:, :n], scale, w, low)
    kept(low)
    made = double(both[:, :n].float()) @ double(w)
    close(low, made * double(scale)[:, None], LIMIT[w.dtype])
    same_but_rounding(both[:, n:], plain_fp8.rounded(torch.tensor(made).float()))


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("tokens, n", [(5, 40), (33, 270)])
def test_peaks_of_gated_products(f, dtype, activation, tokens, n):
    gate, up, out, peak = (
        view(tokens, n, dtype, 3.0),
        view(tokens, n, dtype),
        empty(tokens, n, dtype),
        torch.zeros(tokens, device=DEVICE),
    )
    f.glu(gate, up, activation, out, peak=peak)
    kept(out)
    d, u = double(gate), double(up)
    value = double(plain._activate(gate.float(), activation)[0])
    np.testing.assert_allclose(double(peak), np.maximum(np.abs(value), plain.STEEPEST * np.abs(u)).max(1), rtol=1e-2)
    slope = double(plain._activate(torch.tensor(np.linspace(-9, 9, 4001)), activation)[1])
    assert np.abs(slope).max() <= plain.STEEPEST and d.shape == u.shape


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_glu_gradients_in_eighths(f, dtype, activation):
    tokens, n, ranks = 70, 130, (3, 4, 5)
    dy, gate, up = (view(tokens, n, dtype) for _ in range(3))
    gate[7], up[7, 5] = 0, 3000  # a row whose largest element is far from the others
    low_dy, low_x = view(tokens, 16, dtype), view(tokens, 16, dtype)
    peak, norms = torch.zeros(tokens, device=DEVICE), torch.linalg.vector_norm(dy.float(), dim=1)
    plain.glu(gate, up, activation, torch.empty_like(gate), peak=peak)

    def run(g, **how):
        pairs = [torch.zeros(*s, device=DEVICE) for s in ((ranks[0], n), (n, ranks[1]), (n, ranks[2]))]
        dgate, dup = (eighths(tokens, n) if how else empty(tokens, n, dtype) for _ in range(2))
        g.glu_gradients(dy, gate, up, activation, dgate, dup, low_dy, low_x, *pairs, 0.5, **how)
        (behind if how else kept)(dgate)
        return dgate, dup, pairs

    dgate, dup, pairs = run(f)
    scale = numbers(tokens)
    q_gate, q_up, q_pairs = run(f, bound=(norms, peak, 2 / 448), scale=scale)
    for a, b in zip(pairs, q_pairs):
        close(b, a, 1e-6)
    for got, want in ((q_gate, dgate), (q_up, dup)):
        made, right = double(got.float()) * double(scale)[:, None], double(want)
        assert (np.abs(made - right) <= 1.05 * STEP * np.abs(right) + double(scale)[:, None] * 2.0**-9).all()
        assert np.isfinite(made).all()


def rough_trainee(path, place, **lora):
    """A trainee whose gradients pass fp8 also where there are few tokens."""
    made = trainee_of(path, place, "fp8", **lora)
    made.engine.f.small_rows = 0
    return made


@pytest.mark.parametrize("place", PLACES)
def test_few_tokens_are_left_alone(files, place):  # noqa: F811
    """Their products are bound by reading weights, and each launch counts."""
    batch, rough = stream([17, 20]), trainee_of(files["qwen3"], place, "fp8")
    rough.engine.f.small_rows = 512
    exact = trainee_of(files["qwen3"], place, "f32" if place == "cpu-torch" else "bf16")
    exact.engine.f.small_rows = 512
    np.testing.assert_array_equal(gradients(rough, batch)[1], gradients(exact, batch)[1])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_float32s_but_for_rounding(files, place, name):  # noqa: F811
    batch = stream([17, 1, 22, 24])
    plain_format = "f32" if place == "cpu-torch" else "bf16"
    exact = trainee_of(files[name], place, plain_format)
    loss, want = gradients(exact, batch)
    trainee = rough_trainee(files[name], place)
    made = [gradients(trainee, batch) for _ in range(3)]  # eager, recorded, replayed
    assert all(found == loss for found, _ in made)  # the forward is the same
    for _, got in made[1:]:
        np.testing.assert_array_equal(got, made[0][1])
    assert any(g.eight is not None for la in trainee.layers for g in la.groups)
    assert not np.array_equal(made[0][1], want)
    low = min(cosines(trainee, made[0][1], want))
    assert low[0] >= 0.98, low


@pytest.mark.parametrize("place", PLACES)
def test_whatever_is_held_the_bits_are_the_same(files, place):  # noqa: F811
    batch, trainee = stream([30, 10, 9]), rough_trainee(files["qwen3"], place)
    want = gradients(trainee, batch)
    for how, keep in (("blocks", 0), ("stream", 1), ("dense", 2)):
        hold(trainee, how, keep=keep)
        found = gradients(trainee, batch)
        assert found[0] == pytest.approx(want[0], rel=1e-5)
        assert np.linalg.norm(found[1] - want[1]) <= 2e-3 * np.linalg.norm(want[1])


@pytest.mark.parametrize("place", PLACES)
def test_with_dropout_the_low_rank_part_passes_the_mask(files, place):  # noqa: F811
    batch = stream([30, 20])
    exact = trainee_of(files["qwen3"], place, "f32" if place == "cpu-torch" else "bf16", dropout=0.4)
    rough = rough_trainee(files["qwen3"], place, dropout=0.4)
    want, got = gradients(exact, batch), gradients(rough, batch)
    assert got[0] == want[0] and min(cosines(exact, got[1], want[1]))[0] > 0.98


@pytest.mark.parametrize("place", PLACES)
def test_the_estimate_counts_the_rounded_matrices(files, place):  # noqa: F811
    rough, exact = (trainee_of(files["qwen3"], place, dtype) for dtype in ("fp8", "auto"))
    taken = sum(fp8.size(g) for la in rough.layers for g in la.groups if fp8.takes(g))
    held = [dry.prepared(dry.dry_run(t, "dense", 64, Sizes())) for t in (rough, exact)]
    assert taken and taken <= held[0] - held[1] <= taken + 512 * 64
    assert "fp8" in rough.estimate.text and rough.engine.identity()["gradients"] == "fp8"


@pytest.mark.parametrize("place", PLACES)
def test_the_doctor_checks_a_product(files, place):  # noqa: F811
    engine = load(files["qwen3"], device=place).engine
    assert 0.01 < engine.fp8_error() < 0.06 and (place == "cuda" or not engine.has_fp8)


def test_full_training_refuses_it(files):  # noqa: F811
    with pytest.raises(UserError, match="--dtype fp8"):
        load(files["qwen3"], device="cpu-torch", dtype="fp8").full_trainee(Full())


@pytest.mark.parametrize("name", ["mps", "xpu", "rocm"])
def test_other_makers_refuse_it(name):
    from anytune.engine.devices import engine_for

    with pytest.raises(UserError, match="fp8"):
        engine_for(name, dtype="fp8")


def test_layouts_have_room_for_the_pairs_behind():
    x = torch.zeros(4, 24).to(F8)
    out = torch.zeros(4, 8)
    plain_low.low_fp8(x[:, :16], torch.ones(4), torch.ones(16, 8), out)
    assert (out == 0).all() and F16 is not F32
