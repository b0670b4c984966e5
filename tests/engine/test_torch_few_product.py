"""The product for some dozens to hundreds of rows, against float64: odd sizes, strided views, tiles that programs share
and programs that have several tiles; and that the engine takes it exactly where its table says so.

Without a GPU the kernel runs in Triton's interpreter, which cannot multiply bfloat16 matrices: float16 then.
"""

from types import SimpleNamespace

import pytest

from tests.support.torch_kernels import (BF16, DEVICE, F16, F32, LIMIT, close, double, empty, kept, seed,  # noqa: F401
                                         torch, view)
from tests.support.triton import triton_module

triton_module()
from anytune.engine.torch import linear, plain_low  # noqa: E402
from anytune.engine.torch.kernels import few_product, shares  # noqa: E402
from anytune.engine.torch.kernels.few_product import Config  # noqa: E402

DTYPES = (F16, BF16) if DEVICE == "cuda" else (F16,)
SMALL = Config(64, 32, 32, 4, 3)
SHAPES = [(33, 40, 72), (100, 72, 136), (128, 64, 96), (200, 40, 104), (256, 32, 64)]


def operands(rows, columns, inner, turned, dtype, spare=8):
    """a, b, out as the engine has them: a and b parts of wider arrays, out with room behind."""
    a = view(rows, inner, dtype, spare=spare)
    b = view(columns, inner, dtype, spare=spare).t() if turned else view(inner, columns, dtype, spare=spare)
    return a, b, empty(rows, columns, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("rows, columns, inner", SHAPES)
def test_product(rows, columns, inner, turned, described, dtype):
    """Alone, shared evenly, and shared wherever the work divides; each of them twice, with the same bits."""
    a, b, _ = operands(rows, columns, inner, turned, dtype)
    tiles = -(-rows // SMALL.rows) * -(-columns // SMALL.columns)
    for programs, times in ((0, 1), (2 * tiles, 2), (2 * tiles + 3, 2), (max(1, tiles - 2), 1)):
        outs = [empty(rows, columns, dtype) for _ in range(times)]
        for out in outs:
            config = SMALL._replace(programs=programs, described=described)
            assert few_product.launch(a, b, out, config) is out
            close(out, double(a) @ double(b), LIMIT[dtype])
        kept(*outs)
        assert torch.equal(outs[0], outs[-1])
    assert not torch.any(shares.counters(a.device))


@pytest.mark.parametrize("turned", [True, False])
def test_what_lies_beside_the_operands_is_not_read(turned):
    (a, b, out), dtype = operands(40, 40, 72, turned, F16), F16
    for x in (a, b.t() if turned else b):
        x._base[:, x.shape[1]:] = float("nan")
    for described in (True, False):
        few_product.launch(a, b, out, SMALL._replace(programs=3, described=described))
        close(out, double(a) @ double(b), LIMIT[dtype])


@pytest.mark.parametrize("rows", [16, 64, 128, 256])
def test_tiles_of_every_height(rows):
    a, b, out = operands(70, 24, 40, True, F16)
    few_product.launch(a, b, out, SMALL._replace(rows=rows, columns=16, step=16, programs=10 ** 4))
    close(out, double(a) @ double(b), LIMIT[F16])
    few_product.launch(a, b, out, SMALL._replace(rows=rows, columns=16, step=16, programs=5))
    close(out, double(a) @ double(b), LIMIT[F16])


@pytest.mark.parametrize("tiles, steps", [(1, 7), (3, 5), (4, 4), (7, 3)])
def test_no_tile_has_more_shares_than_there_is_room_for(tiles, steps):
    units = tiles * steps
    for programs in range(1, units + 1):
        bounds = [p * units // programs for p in range(programs + 1)]
        found = [sum(low < (tile + 1) * steps and high > tile * steps for low, high in zip(bounds, bounds[1:]))
                 for tile in range(tiles)]
        assert max(found) <= few_product.shares_of(tiles, programs)


def engine():
    return SimpleNamespace(f=SimpleNamespace(few_product=few_product.few_product), dtype=F16)


@pytest.mark.parametrize("turned", [True, False])
def test_the_engine_takes_it_where_the_table_says_so(turned, monkeypatch):
    a, b, out = operands(100, 40, 72, turned, F16)
    taken, launch = [], few_product.launch
    monkeypatch.setattr(few_product, "launch", lambda *args: (taken.append(args[3]), launch(*args))[1])
    linear.product(engine(), a, b, out)
    assert not taken    # the table has nothing for a device without a name for it
    close(out, double(a) @ double(b), LIMIT[F16])
    place = few_product.processors(a.device)
    monkeypatch.setitem(few_product.TABLE, (place, turned, 128, 40, 72), SMALL)
    out[...] = float("nan")
    assert linear.product(engine(), a, b, out) is out and taken == [SMALL]
    close(out, double(a) @ double(b), LIMIT[F16])
    kept(out)
    # other rows, other orientation, other types and unaligned rows are torch's
    for other in (*(operands(rows, 40, 72, turned, F16) for rows in (20, 64, 300)),
                  operands(100, 40, 72, not turned, F16), operands(100, 40, 72, turned, F32),
                  operands(100, 40, 72, turned, F16, spare=3)):
        linear.product(engine(), *other)
        close(other[2], double(other[0]) @ double(other[1]), LIMIT[F16])
    assert taken == [SMALL]


def test_its_twin():
    a, b, out = operands(40, 24, 32, True, F32)
    assert plain_low.few_product(a, b, out) is out
    close(out, double(a) @ double(b), LIMIT[F32])


def test_every_entry_of_the_table_fits_its_class():
    for (_, _, over, columns, inner), config in few_product.TABLE.items():
        assert over in few_product.CLASSES and isinstance(config, Config)
        assert columns % 8 == 0 and inner % 8 == 0
