"""Every module of anytune can be the first one that a process imports: no import depends on another's having been there."""

import os
import pkgutil
import subprocess
import sys

import pytest

import anytune

MODULES = sorted(m.name for m in pkgutil.walk_packages(anytune.__path__, "anytune.") if not m.name.endswith("__main__"))
FIRST = """
import importlib, os, sys
import click, jinja2, numba, numpy, rich, safetensors, torch, triton, wgpu, xllamacpp  # once, not once a module
for module in sys.argv[1:]:
    if (child := os.fork()) == 0:
        try:
            importlib.import_module(module)
        except BaseException as error:
            print(f"{module}: {type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each module gets a process of its own by fork")
def test_any_module_can_be_imported_first():
    done = subprocess.run([sys.executable, "-c", FIRST, *MODULES], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and len(MODULES) > 150, done.stderr
    assert not done.stdout
