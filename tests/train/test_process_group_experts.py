"""Two processes that train the experts of a mixture: one process's curve, also of experts to which one of them sends
no token.

Run as a program (`python -m tests.train.test_process_group_experts NAME FOLDER`) it is one of those processes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import anytune
from anytune.adapter.adapter import Adapter
from tests.train.processes import SAME, rows, together, train, write_inputs

MODELS = {"qwen3moe": {"expert_count": 24, "expert_used_count": 1}, "gpt-oss": {}}
HOW = {"lora": anytune.Lora(rank=2, modules="all,experts"), "epochs": 1, "checkpoint_save_steps": 0, "lr": 1e-3}


def trainings(folder: Path) -> dict:
    made = {}
    for name, changes in (("two", {}), ("shard", {"shard": True}), ("numpy-two", {"device": "numpy", "threads": 1})):
        run = train(folder, name, **HOW, **changes)
        run.adapter.save(folder / f"{name}-{os.environ['RANK']}.gguf")
        made[name] = str(run.path)
    return made


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    made = tmp_path_factory.mktemp("experts")
    write_inputs(made, request.param, **MODELS[request.param])
    train(made, "one", **HOW)
    together("trainings", made, module="tests.train.test_process_group_experts")
    return made


@pytest.mark.parametrize("name", ["two", "shard", "numpy-two"])
def test_two_processes_are_one(folder, name):
    one, got = rows(folder / "one"), rows(folder / name)
    assert len(got) == len(one) > 2
    for ours, theirs in zip(got, one, strict=True):
        assert [ours[key] for key in SAME] == [theirs[key] for key in SAME]
        # a rank without a micro-batch of its own goes along where the base is shared out, and counts what it sees
        balance = () if name == "shard" else ("expert_peak", "expert_idle")
        for key in ("loss", "grad_norm", *balance):
            assert ours[key] == pytest.approx(theirs[key], rel=2e-3), (ours["step"], key)
    first = (folder / name / "adapter.gguf").read_bytes()
    assert first == (folder / f"{name}-0.gguf").read_bytes() == (folder / f"{name}-1.gguf").read_bytes()
    mine, right = (Adapter.load(folder / run / "adapter.gguf").tensors for run in (name, "one"))
    for tensor, pair in right.items():
        for found, want in zip(mine[tensor], pair):
            assert np.linalg.norm(found - want) < 0.02 * np.linalg.norm(want), tensor


@pytest.mark.parametrize("folder", ["qwen3moe"], indirect=True)
def test_experts_without_tokens_were_among_them(folder):
    assert all(row["expert_idle"] > 0.1 for row in rows(folder / "one"))


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))), flush=True)
