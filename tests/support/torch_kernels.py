"""What the tests of the torch engine's fused operations share: the functions under test on all their roads, strided
arrays, and a float64 comparison.

A test module imports `f`, `seed` and `pytest_generate_tests`, and its tests take `f` (and `dtype`).
"""

import importlib
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.require import need

torch = need("torch")

from anytune.engine.torch import plain, plain_fp8, plain_low, plain_optimizer, plain_slots  # noqa: E402
from tests.support.triton import DEVICE, triton_module  # noqa: E402

if importlib.util.find_spec("triton"):
    triton_module()  # now, before another test imports Triton in the other mode

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
LIMIT = {F32: 2e-5, F16: 2e-3, BF16: 1.6e-2}
NAMES = {
    "norm": ("rms_norm", "rms_norm_backward"),
    "qk_norm_rope": ("qk_norm_rope",),
    "qk_norm_rope_backward": ("qk_norm_rope_backward",),
    "glu": ("glu", "glu_backward"),
    "glu_gradients": ("glu_gradients",),
    "low": ("low", "low_fp8"),
    "low_gradients": ("gradients",),
    "fp8": ("quantize", "turn"),
    "small_gradients": ("gradients_of_groups",),
    "loss": ("loss_rows",),
    "optimizer": ("square_sum", "adamw"),
    "place": ("place",),
    "dropout": ("dropout",),
    "slots": ("spread", "collect", "weigh_backward", "weighed", "weighed_backward"),
}


def twins() -> dict:
    """The plain modules by the kernels' names."""
    return {
        name: plain_low
        if name in ("low", "low_gradients", "small_gradients", "place")
        else plain_optimizer
        if name == "optimizer"
        else plain_fp8
        if name == "fp8"
        else plain_slots
        if name == "slots"
        else plain
        for name in NAMES
    }


def functions(modules: dict) -> SimpleNamespace:
    return SimpleNamespace(
        **{name: getattr(modules[module], name) for module, names in NAMES.items() for name in names}
    )


def kernels() -> dict:
    """The kernels' modules by name."""
    need("triton")
    return {name: importlib.import_module(f"anytune.engine.torch.kernels.{name}") for name in NAMES}


def pytest_generate_tests(metafunc):
    """f: plain, and kernels on both roads; with dtype where a test asks for it."""
    modes, types = ("plain", "few tokens", "many tokens"), {"float32": F32, "float16": F16, "bfloat16": BF16}
    if "dtype" in metafunc.fixturenames:
        pairs = [
            (mode, name)
            for mode in modes
            for name in types
            if DEVICE == "cuda" or mode == "plain" or name != "bfloat16"
        ]
        metafunc.parametrize(
            "f, dtype",
            [(mode, types[name]) for mode, name in pairs],
            indirect=["f"],
            ids=[", ".join(pair) for pair in pairs],
        )
    elif "f" in metafunc.fixturenames:
        metafunc.parametrize("f", modes, indirect=True)


@pytest.fixture
def f(request, monkeypatch):
    """The functions under test. Thresholds are moved so that tiny shapes take the roads of few or of many tokens."""
    if request.param == "plain":
        return functions(twins())
    modules = kernels()
    many = "many" in request.param
    skinny = {
        name: importlib.import_module(f"anytune.engine.torch.kernels.{name}")
        for name in ("norm", "norm_backward", "low", "glu", "glu_backward")
    }
    for module in skinny.values():
        monkeypatch.setattr(module, "SMALL", 0 if many else 512)
    for name, shared in (("low", not many), ("glu", True), ("glu_backward", True)):
        config = skinny[name].MANY if many and name == "low" else skinny[name].FEW
        monkeypatch.setitem(config, "BLOCK", 32)
        monkeypatch.setitem(config, "SHARE", 64 if shared else 4096)
    monkeypatch.setitem(modules["low_gradients"].GRADIENTS, "SHARE", 16 if many else 512)
    monkeypatch.setitem(modules["glu_gradients"].CONFIG, "SHARE", 8 if many else 512)
    monkeypatch.setattr(modules["loss"], "WIDTH", 64)
    return functions(modules)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def view(rows, columns, dtype=F32, scale=1.0, spare=3):
    """A random strided view, as the engine makes them: spare columns behind each row."""
    return (scale * torch.randn(rows, columns + spare)).to(dtype).to(DEVICE)[:, :columns]


def empty(rows, columns, dtype=F32):
    """NaN everywhere, also behind the rows; see kept()."""
    return torch.full((rows, columns + 3), float("nan"), dtype=dtype, device=DEVICE)[:, :columns]


def kept(*views) -> None:
    """Nothing was written behind the rows."""
    for x in views:
        assert x._base[:, x.shape[1] :].isnan().all()


def double(x) -> np.ndarray:
    return x.detach().double().cpu().numpy()


def close(got, want, limit) -> None:
    got, want = (double(z) if torch.is_tensor(z) else z for z in (got, want))
    found = np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)
    assert found <= limit, f"relative error {found:.2e}"
