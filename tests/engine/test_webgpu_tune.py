"""The race of tiles, on a software device that says that it is none: what wins is kept, what computes wrongly never
wins."""

import json

import numpy as np
import pytest

from anytune.engine.webgpu import autotune, tune
from anytune.engine.webgpu.kernels.gemm import Tile
from tests.support.webgpu import need_webgpu

TILES = (Tile(), Tile(64, 32, 32, 4, 4))


@pytest.fixture
def engine(monkeypatch, tmp_path):
    need_webgpu()
    from anytune.engine.webgpu.adapters import open_device
    from anytune.engine.webgpu.device import Device
    from anytune.engine.webgpu.engine import WebGpuEngine

    monkeypatch.setattr(Device, "software", False)
    monkeypatch.setattr(tune, "MANY", 48)
    for name, value in (
        ("WIDTH", 128),
        ("TOKENS", (32, 64)),
        ("TILES", TILES),
        ("WORKGROUPS", (0, 8)),
        ("BUSY", 0.0),
        ("LASTS", 0.0),
    ):
        monkeypatch.setattr(autotune, name, value)
    monkeypatch.setenv("ANYTUNE_CACHE", str(tmp_path))
    return lambda: WebGpuEngine(open_device())


def seconds(monkeypatch, best):
    """Pretend that the variants (tile, workgroups) in `best` are fast."""
    monkeypatch.setattr(
        autotune.Autotune, "seconds", lambda self, products, tile, groups: 1e-3 if (tile, groups) == best else 2e-3
    )


@pytest.mark.parametrize("best", [(TILES[1], 8), (TILES[0], 8), (TILES[1], 0)])
def test_the_fastest_is_chosen_and_remembered(engine, monkeypatch, tmp_path, best):
    seconds(monkeypatch, best)
    first = engine()
    first.tuning.ensure()
    assert first.tuning.choices == {(way, many): best for way in (True, False) for many in (True, False)}
    assert first.commands.rate > 0 and first.tuning.name != "default"
    (path,) = (tmp_path / "webgpu").glob("*.json")
    assert json.loads(path.read_text("utf-8"))["device"] == first.device.name
    monkeypatch.setattr(tune.Tuning, "autotune", lambda self: pytest.fail("the file was not read"))
    second = engine()
    second.tuning.ensure()
    assert second.tuning.choices == first.tuning.choices and second.identity() == first.identity()
    assert second.commands.rate == first.commands.rate  # sums are cut by it


def autotune_of(engine, speed: dict) -> tuple[dict, list]:
    """(the best times, the turns taken) where contestants take the times of `speed`, one after the other."""
    taken = []

    def seconds(name):
        taken.append(name)
        return speed[name].pop(0) if len(speed[name]) > 1 else speed[name][0]

    return autotune.Autotune(engine(), 32, 1).times(list(speed), seconds), taken


def test_contestants_take_turns_and_the_hopeless_leave(engine):
    """A slow moment of the device meets everybody: the best of several turns counts."""
    found, taken = autotune_of(engine, {"a": [9, 5, 9, 5.2, 9], "b": [9, 5.5, 4.9, 5, 9], "c": [9, 99]})
    assert found == {"a": 5, "b": 4.9, "c": 99} and taken.count("c") == 2 and taken.count("a") == 1 + autotune.TURNS


def test_a_race_on_a_busy_device_is_repeated(engine):
    found, taken = autotune_of(engine, {"a": [9, 5, 9, 9, 9, 7], "b": [9, 8]})
    assert found == {"a": 7, "b": 8} and taken.count("a") == 1 + 2 * autotune.TURNS
    wild = [9.0] + [5 * 1.5**turn for turn in range(20)]
    assert (
        autotune_of(engine, {"a": wild})[1].count("a") == 1 + autotune.AGAIN * autotune.TURNS
    )  # never steady: it ends


def test_a_race_on_a_slow_device_ends(engine, monkeypatch):
    """The default comes first, so that there is always a winner."""
    monkeypatch.setattr(autotune, "PATIENCE", 0.0)
    made = engine()
    made.tuning.ensure()
    assert set(made.tuning.choices.values()) == {(TILES[0], 0)}


def test_slow_devices_race_one_product(engine, monkeypatch):
    contest = autotune.Autotune(engine())
    monkeypatch.setattr(autotune, "SLOW", float("inf"))
    assert [(p.n, p.k) for p in contest.products(True, 32)] == [(128, 128), (512, 128)]
    assert [(p.n, p.k) for p in contest.products(False, 32)] == [(128, 128), (128, 512)]
    monkeypatch.setattr(autotune, "SLOW", 0.0)
    assert len(contest.products(True, 32)) == 1


def test_sums_are_cut_alike_by_rates_that_are_nearly_alike(engine):
    """What decides how sums round must not follow a measurement's noise, but a fast device has larger pieces."""
    made, found = engine(), set()
    made.tuning.ensure()
    for noise in (0.8, 0.9, 1.0, 1.1, 1.2):
        made.commands.rate = 2e10 * noise
        found.add(made.most_columns(512, 576))
    assert len(found) == 1
    made.commands.rate = 2e13
    assert made.most_columns(512, 576) > 8 * found.pop()
    for rate in (0.0, 1e8, 1e9, 1e12):
        made.commands.rate = rate
        assert made.commands.piece <= made.commands.most


def test_a_wrong_variant_never_wins(engine, monkeypatch):
    seconds(monkeypatch, (TILES[1], 0))
    real = autotune.Autotune.run

    def run(self, product, tile, groups):
        real(self, product, tile, groups)
        if tile == TILES[1]:
            self.e.commands.write(product.y, self.e.host(product.y) * np.float32(1.01))

    monkeypatch.setattr(autotune.Autotune, "run", run)
    made = engine()
    made.tuning.ensure()
    assert all(tile == TILES[0] for tile, _ in made.tuning.choices.values())


def test_a_damaged_file_is_raced_again(engine, monkeypatch, tmp_path):
    seconds(monkeypatch, (TILES[1], 0))
    made = engine()
    made.tuning.ensure()
    (path,) = (tmp_path / "webgpu").glob("*.json")
    whole = json.loads(path.read_text("utf-8"))
    rates = [json.dumps({**whole, "rate": rate}) for rate in (None, -1.0, "1")]
    for text in ("", "[1]", '{"choices": [{"forward": true}]}', *rates):
        path.write_text(text, "utf-8")
        again = engine()
        again.tuning.ensure()
        assert again.tuning.choices == made.tuning.choices


def test_submits_are_cut_by_their_cost(engine, monkeypatch):
    """A slow device gets many small submits: no one of them may run long."""
    from anytune.engine.webgpu.device import Device

    seconds(monkeypatch, (TILES[0], 0))
    made, sizes = engine(), []
    made.tuning.ensure()
    made.commands.rate = 0.0  # nothing is known: the most careful
    real = Device.submit
    monkeypatch.setattr(
        Device, "submit", lambda self, commands: (sizes.append(sum(c[5] for c in commands)), real(self, commands))
    )
    x = made.gather(made.vector(np.ones((64, 64), np.float32)), made.integers(np.arange(64)))
    from anytune.engine.webgpu.kernels.rows import fill

    for _ in range(10):
        made.commands.run(fill(), [x], (64, x.stride, 0.0), (1, 64), 0.9e8)
    made.commands.flush()
    assert len(sizes) >= 5 and max(sizes) <= 2e8
    assert made.most_columns(4096, 4096) == 64
