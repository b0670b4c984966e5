"""What `import anytune` does, and what it leaves alone."""

import os
import subprocess
import sys

import pytest

import anytune


def python(code, **environment):
    env = os.environ | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_public_name_is_there_and_importing_is_cheap():
    assert python("import anytune, sys; print('numpy' in sys.modules)") == "False"
    for name in anytune.__all__:
        assert getattr(anytune, name) is not None
        assert name in dir(anytune)
    with pytest.raises(AttributeError, match="nonsense"):
        getattr(anytune, "nonsense")


def test_ctrl_c_while_commands_are_imported_is_a_word():
    code = """
import runpy, sys
class Pressed:
    def find_spec(self, name, *_):
        if name == "anytune.cli.bench":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Pressed())
runpy.run_module("anytune", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr == "anytune: interrupted\n", done.stderr
