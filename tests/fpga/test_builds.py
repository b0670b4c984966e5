"""Builds of the simulator that are kept: those of designs that nobody runs any more go."""

import os
import time

from anytune.fpga.simulation import KEPT, STALE, prune


def test_stale_builds_go_and_the_last_few_stay(tmp_path):
    now = time.time()
    ages = {"used": 3 * STALE, "half.1": 0, "half.2": STALE / 6, "old": STALE + 9}
    ages |= {f"b{i:02}": 60.0 * i for i in range(KEPT + 3)}
    for name, age in ages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "engine.so").touch()
        os.utime(tmp_path / name, (now - age, now - age))
    (tmp_path / "note.txt").touch()
    prune(tmp_path, tmp_path / "used")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"used", "half.1", "note.txt", *(f"b{i:02}" for i in range(KEPT))}
