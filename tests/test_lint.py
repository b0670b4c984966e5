"""The code is as pyproject.toml's rules for ruff say."""

import subprocess
import sys
from pathlib import Path

from tests.support.require import need


def test_ruff_finds_nothing():
    need("ruff")
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--quiet", "--output-format", "concise", "."]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_would_format_nothing():
    need("ruff")
    command = [sys.executable, "-m", "ruff", "format", "--no-cache", "--check", "."]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
