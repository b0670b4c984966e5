"""What every test shares: two threads at most, no hub, and a Ctrl-C that arrives."""

import os
import shutil
import signal
import tempfile

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait starve each other on two cores
# What killed processes and reported errors leave goes with the tests. Pytest's own folders, of which it keeps three,
# stay where they were.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="anytune-tests-")
# what a doctor found on this machine must not decide which engine a test runs on
os.environ["ANYTUNE_PROBE"] = os.path.join(tempfile.tempdir, "probe.json")
# nor may what this machine has, nor what an earlier test's doctor found: where no device is named it is the reference
os.environ["ANYTUNE_DEVICE"] = "numpy"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # peers read weights from memory; nothing may ask a hub

# Started in the background of a script, a process inherits an ignored SIGINT, and so do its children: the tests
# that send it would wait for nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure():
    shutil.rmtree(tempfile.tempdir, ignore_errors=True)
