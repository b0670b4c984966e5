"""Every Triton kernel of a training step and of the known answers passes Triton's compiler, also where no card is: the
interpreter, in which the other tests run, takes Python that the compiler refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.require import need
from tests.support.triton import triton_module

need("torch")
triton_module()
ROOT = Path(__file__).resolve().parents[2]


def test_the_compiler_takes_every_kernel():
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.support.front_end"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert {"forward", "for_queries", "for_keys", "join", "_loss", "walk", "walk_back", "gradients", "_taps"} <= {*seen}
