"""What `import anytune` does, and what it leaves alone."""

import os
import signal
import subprocess
import sys
import time

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


def test_ctrl_c_while_the_command_line_is_imported_is_a_word():
    code = """
import runpy, sys
class Pressed:
    def find_spec(self, name, *_):
        if name == "anytune.cli.ending":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Pressed())
runpy.run_module("anytune", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr == "anytune: interrupted\n", done.stderr


def test_ctrl_c_again_while_threads_end_leaves_at_once():
    code = """
import concurrent.futures, threading, time
from anytune.cli import main
def run(args):
    begun, pool = threading.Event(), concurrent.futures.ThreadPoolExecutor(1)
    pool.submit(lambda: (begun.set(), time.sleep(60)))
    begun.wait()
    print("ready", flush=True)
    return 130
main.run = run
main.main([])
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    while child.poll() is None:
        child.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert child.returncode == 130 and child.stderr.read() == ""
