"""Every block type as WGSL: bit for bit the reader's values, and products with it in both directions."""

import numpy as np
import pytest

from anytune.engine import reference as ref
from anytune.engine.answers import error
from anytune.engine.webgpu.kernels.blocks import TYPES
from anytune.gguf import GGUF, dequantize, write_gguf
from anytune.gguf.blocks import BLOCKS
from tests.support.blocks import SCALES
from tests.support.webgpu import need_webgpu

ROWS, WIDTH = 70, 512


def random_blocks(name, rows, width, seed=0):
    """Random bytes with scales that are finite and small."""
    random, block = np.random.default_rng(seed), BLOCKS[name]
    if name in ("F32", "F16", "BF16"):
        return random.standard_normal((rows, width)).astype(np.float32)
    made = random.integers(0, 256, (rows * width // block.block_size, block.type_size), dtype=np.uint8)
    if name == "MXFP4":
        made[:, 0] = random.integers(118, 126, len(made))
    else:
        for at in SCALES[name]:
            made[:, at : at + 2] = random.uniform(-0.01, 0.01, (len(made), 1)).astype(np.float16).view(np.uint8)
    return made.reshape(rows, -1)


@pytest.fixture(scope="module")
def engine():
    need_webgpu()
    from anytune.engine.devices import engine_for

    return engine_for("webgpu")


@pytest.mark.parametrize("name", [*TYPES, "IQ2_XS"])  # the last is one that only the host can read
def test_rows_and_products(engine, tmp_path, name):
    write_gguf(tmp_path / "w.gguf", {}, [("w", (ROWS, WIDTH), name, random_blocks(name, ROWS, WIDTH))])
    random = np.random.default_rng(1)
    with GGUF.open(tmp_path / "w.gguf") as gguf:
        dense = gguf.float32("w")
        assert np.isfinite(dense).all() and dense.std() > 0
        weight = engine.weight(gguf, "w")
        ids = random.permutation(ROWS).astype(np.int32)
        np.testing.assert_array_equal(engine.host(engine.embed(engine.integers(ids), weight, 1.0)), dense[ids])
        x, dy = (random.standard_normal((9, n)).astype(np.float32) for n in (WIDTH, ROWS))
        group = engine.group([weight])
        up = [engine.gather(engine.vector(z), engine.integers(np.arange(9))) for z in (x, dy)]
        want = ref.linear(x, [(dense, None, None)])[0]
        assert error(engine.host(engine.linear(up[0], group)[0]), want) < 1e-5
        few = engine.gather(engine.vector(x), engine.integers(np.arange(3)))
        assert error(engine.host(engine.linear_decode(few, group)[0]), want[:3]) < 1e-5
        assert error(engine.host(engine.linear_backward((up[1],), up[0], group)), dy.astype(np.float64) @ dense) < 1e-5


def test_weights_of_odd_sizes_lie_side_by_side(engine, tmp_path):
    """MXFP4 blocks have 17 bytes: a neighbour may begin within a word."""
    shapes = (64, 64, 65)
    write_gguf(
        tmp_path / "w.gguf",
        {},
        [(f"w{i}", (n, 32), "MXFP4", random_blocks("MXFP4", n, 32, i)) for i, n in enumerate(shapes)],
    )
    x = np.random.default_rng(1).standard_normal((5, 32)).astype(np.float32)
    with GGUF.open(tmp_path / "w.gguf") as gguf:
        group = engine.group([engine.weight(gguf, f"w{i}") for i in range(3)])
        assert len(group.parts()) == 1
        got = engine.linear(engine.gather(engine.vector(x), engine.integers(np.arange(5))), group)
        for i, y in enumerate(got):
            want = x.astype(np.float64) @ dequantize(random_blocks("MXFP4", shapes[i], 32, i), "MXFP4").T
            assert error(engine.host(y), want) < 1e-5
